"""Where is the camera? PoseNet, and the nearest training view beside it.

    python examples/kings_college.py                        # small form: a built courtyard, under three minutes
    python examples/kings_college.py KingsCollege --places places-googlenet.pickle --minutes 600
                                                            # the original pictures and the original network

Leaves in the folder --out: posenet.geopose, its loss as posenet_training.png, and plan.png: the place from above, where
the training views were taken, and for each test view the true camera joined to the estimated one. KingsCollege is the
folder of the Cambridge Landmarks data set (dataset_train.txt, dataset_test.txt, seq1/, ...); without --places GoogLeNet
starts from nothing, with batch normalisation.
"""

import argparse
from pathlib import Path

from geopose.data.courtyard import plan_view, write_courtyard
from geopose.posenet_train import PoseNetOptions, evaluate_posenet, plot_plan, train_posenet

SMALL = PoseNetOptions(
    width=0.25, norm="batch", side=128, crop=112, loss="learned", dropout=(0.0, 0.0), learning_rate=4e-3
)
PUBLISHED = {  # King's College, median metres and degrees
    "PoseNet, Caffe (Kendall et al.)": (1.92, 5.40),
    "PoseNet, a PyTorch re-implementation, beta 500": (1.19, 4.51),
    "Active Search (structure-based)": (0.13, 0.22),
    "DSAC++ (structure-based)": (0.177, 0.30),
    "hloc (structure-based)": (0.069, 0.11),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root", type=Path, nargs="?", help="folder of the original data; a courtyard is built without"
    )
    parser.add_argument("--out", type=Path, default=Path("out/kings_college"), help="folder for what is made")
    parser.add_argument("--minutes", type=float, help="of training; 1.5 in the small form, else 600")
    parser.add_argument("--places", help="pickle of GoogLeNet's weights, trained on Places, to start from")
    parser.add_argument(
        "--frames", type=int, nargs=2, default=(240, 60), help="pictures to train and to test on"
    )
    a = parser.parse_args(arguments)

    background = None
    if a.root is None:
        root, options, minutes = a.out / "courtyard", SMALL, a.minutes or 1.5
        print(f"a walk through a courtyard: {sum(a.frames)} pictures in {root}", flush=True)
        write_courtyard(root, tuple(a.frames), size_wh=(320, 180))
        background = plan_view()
    else:
        root, minutes = a.root, a.minutes or 600.0
        from_nothing = PoseNetOptions(norm="batch", learning_rate=1e-3)
        options = PoseNetOptions(places=a.places) if a.places else from_nothing
    model = train_posenet(root, a.out / "posenet.geopose", minutes, options)
    result = evaluate_posenet(model, root)

    print(f"\nmedian errors on the {len(result.views)} test views of {root}")
    for method, (metres, degrees) in result.medians().items():
        print(f"{method:>48}: {metres:6.2f} m {degrees:6.2f} degrees")
    print("published, on King's College" + ("" if a.root else ", another place than this"))
    for method, (metres, degrees) in PUBLISHED.items():
        print(f"{method:>48}: {metres:6.2f} m {degrees:6.2f} degrees")
    print(f"see {plot_plan(result, a.out / 'plan.png', background)}")


if __name__ == "__main__":
    main()
