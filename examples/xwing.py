"""Keypoints of an X-wing by heatmaps, its pose by PnP, and lasers that leave its cannons.

    python examples/xwing.py                            # renders a small set, trains 1.5 minutes on the CPU
    python examples/xwing.py DATA --minutes 600         # the original: 0.jpg, 0_mat.json, ..., camera_info.json

Leaves in --out: the checkpoint, heatmaps.png (one line per picture), keypoints.png (close up; true points in red, found
ones in green), animation.gif (a pursued ship, its outline at the pose found and bolts along it), a plot of the loss.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from geopose import Camera, PoseEstimate, load_cad
from geopose.data.annotated import AnnotatedSet, Augmentation, whole_picture
from geopose.data.xwing import FOCAL_HALF_WIDTHS, box_points_of_ship, read_xwing, write_xwing
from geopose.demo import Frame, animate, photograph, star_field
from geopose.geometry.metrics import rotation_error
from geopose.preset_report import draw_found, heatmap_sheet, pursuit
from geopose.presets import XWING, RecipeModel, train_recipe, weighted_pose
from geopose.visualize import save_gif, save_image, sheet

SMALL = replace(
    XWING, network={**XWING.network, "frozen_stride": 4, "frozen_5x5": True}, size=128, sigma=1.5, learning_rate=5e-4,
    augmentation=Augmentation(20, blur=0.5),
)  # fmt: skip
SIDE = 320  # of the animation


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="the original data; rendered without")
    parser.add_argument("--out", type=Path, default=Path("out/xwing"))
    parser.add_argument("--minutes", type=float, default=1.5, help="of training")
    parser.add_argument("--count", type=int, default=400, help="pictures to render")
    parser.add_argument("--frames", type=int, default=36, help="of the animation")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare pictures")
    a = parser.parse_args(arguments)

    root = a.data or write_xwing(a.out / "set", a.count)
    training, unseen = read_xwing(root).split(0.01 if a.data else 0.1)
    recipe = XWING if a.data else SMALL
    path = train_recipe(recipe, training, unseen, a.out / "xwing.geopose", a.minutes, workers=a.workers)
    model = RecipeModel.load(path)

    found = model.read(unseen)
    result = weighted_pose(unseen.points_obj, found.points_px, found.confidence, unseen.camera)
    turned = np.rad2deg(rotation_error(result.pose, unseen.pose))
    print(f"{len(unseen)} pictures not trained on: normalised mean absolute argmax error {found.nmae:.4f}")
    posed, median = np.mean(result.status == "ok"), np.nanmedian(turned)
    print(f"PnP gives a pose in {posed:.0%}; median rotation error {median:.1f} degrees")
    rows = range(min(len(unseen), 8))
    print("heatmaps:", save_image(heatmap_sheet(unseen, found, rows[:4]), a.out / "heatmaps.png"))
    close = [draw_found(unseen, found, row) for row in rows]
    print("keypoints:", save_image(sheet(close, 4), a.out / "keypoints.png"))

    f, middle, generator = FOCAL_HALF_WIDTHS * SIDE / 2, (SIDE - 1) / 2, np.random.default_rng(0)
    ship, points, camera = load_cad("xwing"), box_points_of_ship(), Camera(f, f, middle, middle, (SIDE, SIDE))
    flight, sky = pursuit(a.frames, 30.0), star_field(generator, (SIDE, SIDE))
    images = {str(i): photograph(ship, camera, pose, sky, generator) for i, pose in enumerate(flight)}
    keypoints = np.stack([camera.project(pose.apply(points)) for pose in flight])
    boxes = np.tile(whole_picture((SIDE, SIDE)), (a.frames, 1))
    seen = model.read(AnnotatedSet(tuple(images), points, keypoints, boxes, camera, images.__getitem__))
    poses = weighted_pose(points, seen.points_px, seen.confidence, camera)
    frames = []
    for i, true in enumerate(flight):
        pose = poses.pose[i] if np.isfinite(poses.pose.t[i]).all() else None
        answer = PoseEstimate(pose, None, str(poses.status[i]), (), 1.0, {}, None, (), {}, camera, ship)
        frames.append(Frame(images[str(i)], true, answer, seconds=0.0))
    print("animation:", save_gif(animate(frames, ship), a.out / "animation.gif"))


if __name__ == "__main__":
    main()
