"""Which way does a car point? A circular network, the classifier of the original, and geometry, on the same pictures.

    python examples/car_azimuth.py                                  # small form: under three minutes on two cores
    python examples/car_azimuth.py --minutes 50 --size 224 --plain --networks classifier
    python examples/car_azimuth.py --minutes 60 --size 224 --classes 36 --meshes ShapeNet/02958343 --unit m --up +y
    python examples/car_azimuth.py --pose-model car.geopose         # after `geopose train car --out car.geopose`

Leaves in the folder --out: circular.geopose and classifier.geopose, curves.png, confusion.png, and for each network a
sheet of pictures on whose compasses green is the truth and yellow the answer.
"""

import argparse
from pathlib import Path

from geopose import PoseEstimator, load_cad
from geopose.azimuth_report import judge, judge_geometry, judge_points, save_confusion, save_curves
from geopose.azimuth_train import CIRCULAR, CLASSIFIER, load_azimuth, train_azimuth
from geopose.checkpoint import find_model
from geopose.data.azimuth import AzimuthDataset, AzimuthOptions, ViewSpace, built_in_cars, read_cars


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--out", type=Path, default=Path("out/car_azimuth"), help="folder for what is made")
    option("--minutes", type=float, default=1.0, help="of training, for each network")
    option("--size", type=int, default=96, help="side of the pictures; 224 is the original's")
    option("--classes", type=int, default=4, help="of azimuth: 4 or 36")
    option("--count", type=int, default=200, help="pictures to judge with")
    option("--cars", type=int, default=32, help="built-in cars; every fourth is kept for judging")
    option("--meshes", type=Path, help="folder of meshes to take instead of the built-in cars")
    option("--unit", help="of the meshes: m, cm, mm or in")
    option("--up", default="+z", help="the meshes' axis that points up: +z, +y, ...")
    option("--pose-model", help="checkpoint of the built-in car, for geometry's answer")
    option("--plain", action="store_true", help="the original's pictures: nothing beside or before the car")
    option("--networks", nargs="+", default=["circular", "classifier"], help="which to train")
    option("--workers", type=int, help="processes that make pictures")
    a = parser.parse_args(arguments)

    view = ViewSpace(elevation_deg=(0, 20), roll_deg=(-4, 4), distance=(1.6, 8), up=a.up)
    beside = {"clutter": 0.0, "occluders": 0.0} if a.plain else {}
    pictures = AzimuthOptions(size=a.size, classes=a.classes, view=view, **beside)
    cars = read_cars(a.meshes, a.unit) if a.meshes else built_in_cars(a.cars, seed=0)
    # The original's dropout of 0.4 is against learning few pictures by heart; from endless ones, it learns nothing.
    classifier = CLASSIFIER | {"dropout": 0.0}
    if a.size < 194:  # the original needs 194 pixels or more
        classifier |= {"channels": [32, 64, 64, 128], "dense": [1024, 256]}
    quick = {"net": classifier, "learning_rate": 1e-3, "batch_size": 64, "replays": 3}
    plans = {"circular": {"net": CIRCULAR}, "classifier": quick}
    trained = {
        name: train_azimuth(a.out / f"{name}.geopose", a.minutes, **plans[name],
                            pictures=pictures, cars=cars, test_pictures=a.count, workers=a.workers)
        for name in a.networks
    }  # fmt: skip
    save_curves({name: t.history for name, t in trained.items()}, a.out / "curves.png")
    save_confusion({name: t.scores for name, t in trained.items()}, a.classes, a.out / "confusion.png")
    report = {f"{name}, unseen cars": t.scores for name, t in trained.items()}

    if not a.meshes:  # the one car whose points and, perhaps, whose model of poses are known
        car = load_cad("car")
        own = AzimuthDataset([car], pictures, seed=77)
        for name, t in trained.items():
            report[f"{name}, the built-in car"] = judge(load_azimuth(t.path)[0], own, a.count)
        report["geometry, its true points, 2 px off"] = judge_points(own, car.named_keypoints, a.count, 2.0)
        pose_model = a.pose_model or find_model(car.content_hash)
        if pose_model:
            report["geometry, poses"] = judge_geometry(PoseEstimator.load(pose_model), own, a.count)
    for name, scores in report.items():
        f = scores.figures(a.classes)
        right = ", ".join(f"{100 * v:5.1f} % of {k[9:]}" for k, v in f.items() if k.startswith("accuracy"))
        print(f"{name:>35}: right in {right} classes; median error {f['median_deg']:.1f} degrees")
    print(f"see {a.out}/curves.png, confusion.png, circular_pictures.png, classifier_pictures.png")


if __name__ == "__main__":
    main()
