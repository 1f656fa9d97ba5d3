"""Semantic keypoints from a stacked hourglass, and the pose that weighs them by the confidence of their heatmaps.

    python examples/semantic_keypoints.py                       # renders a small set, trains 1.8 minutes on the CPU
    python examples/semantic_keypoints.py DATA --minutes 600    # the original: images.npz, train_data.npz, kpt.npy, ...

Leaves in --out: the checkpoint, pose_1.png and so on (true keypoints, heatmaps, keypoints found, CAD model aligned),
keypoints.png (true points in red, found ones in green) and a plot of the loss.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from geopose.data.semantic import read_semantic, write_semantic
from geopose.preset_report import draw_found, mesh_model, panels
from geopose.presets import SEMANTIC, RecipeModel, train_recipe, weighted_pose
from geopose.visualize import save_image, save_panels, sheet

SMALL = replace(
    SEMANTIC, network={"kind": "hourglass", "stacks": 2, "features": 64, "depth": 3}, size=96, sigma=1.2,
    learning_rate=1e-3,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="folder of the original data; rendered without")
    parser.add_argument("--annotations", default="part", help="key of the keypoints in train_data.npz")
    parser.add_argument("--out", type=Path, default=Path("out/semantic_keypoints"))
    parser.add_argument("--minutes", type=float, default=1.8, help="of training")
    parser.add_argument("--count", type=int, default=500, help="pictures to render for training")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare pictures")
    a = parser.parse_args(arguments)

    root = a.data or write_semantic(a.out / "set", (a.count, max(a.count // 10, 3)))
    training, unseen = (read_semantic(root, split, a.annotations) for split in ("train", "valid"))
    recipe = SEMANTIC if a.data else SMALL
    path = train_recipe(recipe, training, unseen, a.out / "semantic.geopose", a.minutes, workers=a.workers)

    found = RecipeModel.load(path).read(unseen)
    off = np.linalg.norm(found.points_px - unseen.keypoints_px, axis=-1)
    near = off < 0.1 * (unseen.boxes[:, 2:] - unseen.boxes[:, :2])[:, :1]
    print(
        f"{len(unseen)} pictures not trained on: {near.mean():.0%} of the keypoints within a tenth of the crop,"
    )
    print(f"median {np.nanmedian(off):.1f} px")

    result = weighted_pose(unseen.points_obj, found.points_px, found.confidence, unseen.camera)
    aligned = unseen.camera.project(result.pose.apply(unseen.points_obj))
    rest = np.nanmedian(np.linalg.norm(aligned - unseen.keypoints_px, axis=-1))
    print(
        f"poses in {np.mean(result.status == 'ok'):.0%}; the CAD keypoints lie {rest:.1f} px from the true ones"
    )

    car = mesh_model(unseen)
    shown = [i for i in np.argsort(np.nanmedian(off, 1)) if np.isfinite(result.pose.t[i]).all()][:3]
    for number, row in enumerate(shown, 1):
        four = panels(unseen, found, row, result.pose[row], car)
        print("the pose:", save_panels(four, a.out / f"pose_{number}.png"))
    close = [draw_found(unseen, found, row) for row in range(min(len(unseen), 12))]
    print("keypoints:", save_image(sheet(close, 4), a.out / "keypoints.png"))


if __name__ == "__main__":
    main()
