"""What goes wrong on photographs: a sheet of failed instances, drawn as outlines without the photographs themselves.

    python benchmarks/failures.py LMO_FOLDER --obj 9 --model duck.geopose --cad models/obj_000009.ply --out failures.jpg

Green: the true pose; red: the answer; dots: keypoints as the network read them. Whole pictures in, no box given;
instances with at least `--visib` of the object in sight, up to six of every kind of failure, the clearest first.
Printed as well: how far the outlines of both poses lie from the edges of the photographs, for a published pose has
errors, too.
"""

from __future__ import annotations

import argparse
from collections import Counter

import cv2
import numpy as np
from tqdm import tqdm

from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import render
from geopose.data.bop import read_bop
from geopose.data.sample import box_centre_size, projected_box, square
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.scores import ScoredObject, Truth, score
from geopose.visualize import draw_pose, draw_text, save_image, sheet

SIDE = 240  # pixels of a panel
EACH = 6  # panels of a kind
GREEN, RED = (80, 230, 100), (250, 90, 80)
FINE = 4  # outline pixels to a pixel
REACH, PACE = 4.0, 0.25  # pixels that an outline is moved to find the edges, and how finely


def main() -> None:
    """Counts the kinds of failure and writes the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="folder of a BOP data set")
    parser.add_argument("--obj", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cad", required=True, help="the mesh, to draw it")
    parser.add_argument("--unit", default="mm")
    parser.add_argument("--visib", type=float, default=0.6)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    dataset = read_bop(args.root)
    known = dataset.objects[args.obj]
    target = ScoredObject(known.points, known.diameter, known.symmetries)
    estimator = PoseEstimator.load(args.model)
    model = load_cad(args.cad, args.unit)
    rows, shifts = [], []
    for frame in tqdm(dataset.target_frames(args.obj), unit="picture"):
        image, camera = frame.load()
        for instance in (i for i in frame.instances if i.obj_id == args.obj and i.visib_fract >= args.visib):
            estimate = estimator.estimate(image, camera)
            truth = Truth(instance.pose, camera, instance.visib_fract, frame.scene_id, frame.im_id)
            rows.append((score([estimate], [truth], target)[0], estimate, truth))
            if rows[-1][0].failure in ("", "imprecise"):
                shifts.append([off_edges(image, camera, model, p) for p in (truth.pose, estimate.pose)])
    kinds = Counter(row.failure or "right" for row, _, _ in rows)
    print(", ".join(f"{kind}: {number}" for kind, number in kinds.most_common()))

    if shifts:
        off = np.array(shifts)
        published, answered = np.median(np.linalg.norm(off, axis=2), 0)
        mean_x, mean_y = off.mean(0)[0]
        print(
            f"from the outline to the edges of the photograph, median of {len(off)}: {published:.2f} px from the "
            f"published pose (on average {mean_x:+.2f} to the right, {mean_y:+.2f} down), {answered:.2f} px from the "
            "answer"
        )
    panels = []
    for kind in sorted(set(kinds) - {"right"}):
        chosen = sorted((r for r in rows if r[0].failure == kind), key=lambda r: -r[0].visib_fract)[:EACH]
        panels += [panel(model, *row) for row in chosen]
    if panels:
        save_image(sheet(panels, EACH), args.out)


def off_edges(image: np.ndarray, camera: Camera, model: CadModel, pose: Pose) -> np.ndarray:
    """(2,) pixels by which the outline of the mesh has to move to lie on the strongest edges across it."""
    x0, y0, x1, y1 = projected_box(model.vertices, pose, camera)
    box = np.array([np.floor(x0) - 2, np.floor(y0) - 2, np.ceil(x1) + 2, np.ceil(y1) + 2])
    sides = (FINE * (box[2:] - box[:2])).astype(int)
    mask = render(model, camera.crop_resize(box, tuple(sides)), pose).mask.astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(outlines, key=len)[::FINE, 0]
    slope = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), FINE)
    normal = np.stack(
        [cv2.Sobel(slope, -1, *axis)[points[:, 1], points[:, 0]] for axis in ((1, 0), (0, 1))], 1
    )
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-9)
    places = ((points + 0.5) / FINE + box[:2]).astype(np.float32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gradients = [cv2.Sobel(grey, -1, *axis) for axis in ((1, 0), (0, 1))]
    steps = np.arange(-REACH, REACH + PACE, PACE, np.float32)
    shifts = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 1, 2)
    moved = (places + shifts).astype(np.float32)
    across = [cv2.remap(g, moved[..., 0], moved[..., 1], cv2.INTER_LINEAR) for g in gradients]
    strength = np.abs(across[0] * normal[:, 0] + across[1] * normal[:, 1]).mean(1)
    return shifts[strength.argmax(), 0]


def panel(model, row, estimate, truth):  # type: ignore[no-untyped-def]
    """One failed instance: outlines of both poses and the keypoints, around the true place."""
    box = projected_box(model.vertices, truth.pose, truth.camera)
    centre, size = box_centre_size(box)
    cut = square(centre, 2.0 * size)
    view = truth.camera.crop_resize(cut, (SIDE, SIDE))
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image = draw_pose(image, model, view, truth.pose, GREEN)
    if estimate.pose is not None and (estimate.pose.apply(model.vertices)[:, 2] > 0).all():
        image = draw_pose(image, model, view, estimate.pose, RED)
    for x, y in (
        (np.asarray(estimate.keypoints.get("points_px", np.zeros((0, 2)))) - cut[:2]) * SIDE / (2 * size)
    ):
        if 0 <= x < SIDE and 0 <= y < SIDE:
            cv2.circle(image, (round(float(x)), round(float(y))), 2, (120, 200, 255), -1, cv2.LINE_AA)
    words = f"{row.failure}, {estimate.status}"
    return draw_text(image, [words, f"image {row.im_id}, {100 * row.visib_fract:.0f} % in sight"])


if __name__ == "__main__":
    main()
