"""Where is the International Space Station in the picture, and how far away? Learned, and from the pose.

    python examples/iss_docking.py                      # renders a small set, trains 1.5 minutes on the CPU
    python examples/iss_docking.py DATA --minutes 30    # the original: train.csv, val.csv, train/, val/, test/

Leaves in --out: the checkpoint, submission.csv, answers.png (marked pictures), errors.png and a plot of the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from geopose import load_cad, solve_pnp
from geopose.data.iss_docking import DockingDataset, docking_answer, read_labels, write_labels
from geopose.data.iss_docking_write import FULL_COUNTS, TRUTH, read_truth, write_iss_docking
from geopose.docking_report import evaluate, in_words, marked, plot_errors
from geopose.docking_train import DockingModel, DockingOptions, predict, train_docking
from geopose.visualize import save_image, sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", nargs="?", type=Path, help="folder of the original data; rendered without one"
    )
    parser.add_argument("--out", type=Path, default=Path("out/iss_docking"))
    parser.add_argument("--minutes", type=float, default=1.5, help="of training")
    parser.add_argument(
        "--count", type=int, default=400, help="pictures to render for training; 0: all 16,000"
    )
    args = parser.parse_args()

    root = args.data
    if root is None:
        small = (args.count, max(args.count // 6, 4), max(args.count // 10, 4))
        counts = small if args.count else FULL_COUNTS
        root = write_iss_docking(args.out / "set", counts, progress=True)

    # The network is what takes the time of a CPU; a GPU waits for pictures.
    options = DockingOptions(minutes=args.minutes, workers=None if args.data else 0)
    path = train_docking(root, args.out / "iss.geopose", options)
    model = DockingModel.load(path)

    answers = predict(model, root, "test", progress=True)
    print("submission:", write_labels(args.out / "submission.csv", answers.labels))

    if (root / TRUTH).is_file():  # rendered here: the truth of "test" is known
        split, truth = "test", read_truth(root)
        labels, poses = truth["test"]
        camera, points = truth["camera"], np.array(list(load_cad("iss").named_keypoints.values()))
        seen = camera.project(poses.apply(points))
        seen = seen + np.random.default_rng(0).normal(0, 2, seen.shape)
        found = solve_pnp(points, seen, camera).pose
        location, distance = docking_answer(found, camera, truth["target"], truth["unit_m"])
        off = np.linalg.norm(location - labels.location, axis=1), 100 * abs(distance / labels.distance - 1)
        print(f"geometry, PnP from {len(points)} points, each 2 px off: median {np.median(off[0]):.1f} px, "
              f"{np.median(off[1]):.1f} percent, and the attitude")  # fmt: skip
    else:
        split, labels = "val", read_labels(root / "val.csv")
        answers = predict(model, root, split, progress=True)

    title = f"{split}: {len(labels)} pictures not trained on, {in_words(evaluate(answers, labels))}"
    print(title)
    pictures = DockingDataset(root, split, model.size)
    truths = list(zip(labels.location, labels.distance, strict=True))[:12]
    shown = [marked(pictures.picture(i), answers, i, truth) for i, truth in enumerate(truths)]
    print("pictures:", save_image(sheet(shown, columns=4), args.out / "answers.png"))
    print("errors:", plot_errors(answers, labels, args.out / "errors.png", title))


if __name__ == "__main__":
    main()
