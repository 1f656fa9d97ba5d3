"""The X-wing flies a loop before the stars; every picture is estimated and compared with the truth.

The pictures are rendered here, with another light and another background than those of training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import render
from geopose.cad.shading import Lighting, Material, encode, shade
from geopose.checkpoint import model_of
from geopose.data.sample import box_centre_size, square
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import add, rotation_error, translation_error
from geopose.geometry.pose import Pose
from geopose.result import PoseEstimate
from geopose.stages import cut
from geopose.visualize import (
    GREEN,
    RED,
    Picture,
    draw_glow,
    draw_keypoints,
    draw_pose,
    draw_text,
    heat_overlay,
    save_gif,
    save_panels,
    sheet,
)

SIZE_WH = (480, 360)
BOLT_COLOR = (255, 50, 30)
_BOLT_LENGTH, _BOLT_SPEED, _BOLT_FRAMES = 6.0, 9.0, 7  # metres, metres per frame, frames
_FIRE_EVERY = 4  # frames
_RIGHT = 0.1  # of the diameter: the ADD below which a pose counts as right
_HEAD = " ".join(f"{name:>7}" for name in "xyzwxyz")  # of `_numbers`


@dataclass(frozen=True)
class Frame:
    """One picture of the flight, its truth, and what was estimated from it."""

    image: Picture
    truth: Pose
    estimate: PoseEstimate
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What became of every frame and of the flight, and the files written.

    rows: of each frame its number, status, confidence and seconds; the pose cam_from_obj estimated (t_m, quat_wxyz;
    None where there is none) and the true one (true_t_m, true_quat_wxyz, whose sign is that of the estimate); their
    rotation_error_deg, translation_error_m and add_m (NaN where there is no pose).
    summary: how many frames, the shares found ("ok") and right, medians over those found, NaN if none was.
    """

    rows: tuple[dict[str, Any], ...]
    summary: dict[str, float]
    files: tuple[Path, ...]

    def table(self, every: int | None = None) -> str:
        """Text: of every `every`-th frame (None: of a dozen or two) the pose and below it the true one, errors and
        time; then the whole flight."""
        lines = [
            "The ship in the camera's frame, the truth below it: position x y z in metres, rotation w x y z.",
            "",
            f"{'frame':>5}  {'status':<12} {_HEAD}  {'rotation':>9} {'position':>9} {'time':>8}",
        ]
        for row in self.rows[:: every or max(1, len(self.rows) // 12)]:
            pose, errors = " " * len(_HEAD), " " * 19
            if row["t_m"] is not None:
                pose = _numbers(row["t_m"], row["quat_wxyz"])
                errors = f"{row['rotation_error_deg']:5.2f} deg {row['translation_error_m']:7.3f} m"
            time_ms = f"{1000 * row['seconds']:5.0f} ms"
            lines.append(f"{row['frame']:>5}  {row['status']:<12} {pose}  {errors} {time_ms}")
            lines.append(f"{'':>5}  {'truth':<12} {_numbers(row['true_t_m'], row['true_quat_wxyz'])}")
        s = self.summary
        errors = (
            f"median errors: rotation {s['rotation_error_deg']:.2f} deg, "
            f"position {s['translation_error_m']:.3f} m "
            f"({100 * s['translation_error_d']:.2f} % of the ship's diameter)"
        )
        lines += [
            "",
            f"{s['frames']:.0f} frames: found {100 * s['found']:.0f} %, "
            f"ADD below a tenth of the diameter {100 * s['right']:.0f} %",
            errors if s["found"] else "in none of the pictures is there a pose that this model can vouch for",
            f"median time per picture: {1000 * s['seconds']:.0f} ms",
            *(f"wrote {path}" for path in self.files),
        ]
        return "\n".join(lines)


def _numbers(t_m: Sequence[float], quat_wxyz: Sequence[float]) -> str:
    return " ".join([*(f"{v:7.3f}" for v in t_m), *(f"{v:7.4f}" for v in quat_wxyz)])


def run_demo(
    out: str | Path,
    estimator: PoseEstimator | None = None,
    frames: int = 48,
    seed: int = 0,
    progress: bool = False,
) -> DemoResult:
    """The DemoResult of a flight; writes `overlay.png` and `animation.gif` into the folder `out`.

    Args:
        estimator: None takes the model of the X-wing that comes with the package.
        frames: pictures of the flight, at least 1.
        seed: of stars and noise.
        progress: shows two bars, of the flight and of its animation.
    Raises:
        FileNotFoundError: when there is no trained model of the X-wing.
        ValueError: on a number of frames below one, or an estimator of another mesh.
    """
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    ship = load_cad("xwing")
    estimator = estimator or PoseEstimator.load(model_of("xwing"))
    if estimator.model.content_hash != ship.content_hash:
        name = estimator.model.name
        raise ValueError(
            f"estimator (--model): was trained on {name!r}, expected a model of the {ship.name!r} flown"
        )
    generator = np.random.default_rng(seed)
    camera = Camera.from_fov(float(np.deg2rad(50)), SIZE_WH)
    sky = star_field(generator, SIZE_WH)
    flown = []
    for truth in tqdm(flight(frames), "flying", disable=not progress, unit="frame"):
        image = photograph(ship, camera, truth, sky, generator)
        start = time.perf_counter()
        estimate = estimator.estimate(image, camera=camera)
        flown.append(Frame(image, truth, estimate, time.perf_counter() - start))
    rows = tuple(_row(number, frame, ship) for number, frame in enumerate(flown))
    out = Path(out)
    files = (
        save_panels(panels(_best(flown), estimator), out / "overlay.png"),
        save_gif(animate(flown, ship, progress), out / "animation.gif"),
    )
    return DemoResult(rows, _summary(rows, ship), files)


def flight(frames: int) -> list[Pose]:
    """Poses cam_from_obj of a banked loop, nose (+x) along the path, from far to near and back."""
    steps = np.arange(frames) / frames
    poses = []
    for step in steps:
        here, velocity, inward = _path(step)
        forward = velocity / np.linalg.norm(velocity)
        up = np.array([0.0, -1.0, 0.0]) + 0.45 * inward  # banked into the curve; the camera's y points down
        left = np.cross(up, forward)
        left /= np.linalg.norm(left)
        poses.append(Pose(np.stack([forward, left, np.cross(forward, left)], axis=1), here))
    return poses


def _path(step: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Position, velocity and direction to the loop's centre at `step` in [0, 1), camera frame, metres."""
    angle = 2 * np.pi * step + 0.6
    centre = np.array([0.0, 0.0, 42.0])
    offset = np.array([9 * np.sin(angle), 3 * np.sin(2 * angle), 18 * np.cos(angle)])
    velocity = np.array([9 * np.cos(angle), 6 * np.cos(2 * angle), -18 * np.sin(angle)])
    return centre + offset, velocity, -offset / np.linalg.norm(offset)


def star_field(generator: np.random.Generator, size_wh: tuple[int, int]) -> Picture:
    """Stars of all magnitudes over a faint nebula."""
    width, height = size_wh
    sky = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 30.0), (6, 16.0), (13, 8.0)):
        coarse = generator.random((cells, cells), dtype=np.float32) ** 3
        cloud = cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC)[..., None]
        sky += strength * np.clip(cloud, 0, 1) * np.array([0.45, 0.35, 1.0], np.float32)
    stars = np.zeros_like(sky)
    count = width * height // 350
    x, y = generator.integers(0, width, count), generator.integers(0, height, count)
    brightness = 25 * (1 - generator.random(count)) ** -0.7  # few bright, many faint
    tint = 1 + generator.normal(0, 0.12, (count, 3))
    stars[y, x] = np.minimum(brightness, 900)[:, None] * tint
    sky += cv2.GaussianBlur(stars, (0, 0), 0.6)
    return np.clip(sky, 0, 255).astype(np.uint8)


def photograph(
    model: CadModel, camera: Camera, pose: Pose, sky: Picture, generator: np.random.Generator
) -> Picture:
    """(H, W, 3) uint8: the mesh in sunlight before the sky, with the noise of a sensor; smooth edges."""
    width, height = camera.size_wh
    double = camera.crop_resize(np.array([-0.5, -0.5, width - 0.5, height - 0.5]), (2 * width, 2 * height))
    seen = render(model, double, pose)
    points = pose.apply(seen.xyz[seen.mask].astype(np.float64)).astype(np.float32)
    light = np.zeros((2 * height, 2 * width, 3), np.float32)
    material = Material(diffuse=0.95, specular=0.25, shininess=30.0, mirror=0.0, metal=0.0)
    light[seen.mask] = shade(seen.color[seen.mask], seen.normal[seen.mask], points, _sunlight(), material)
    ship = cv2.resize(encode(light), (width, height), interpolation=cv2.INTER_AREA)
    cover = cv2.resize(seen.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    image = 255 * ship + (1 - cover[..., None]) * sky
    image = image + generator.normal(0, 1.5, image.shape)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _sunlight() -> Lighting:
    """A sun at the upper left behind the camera, and starlight from everywhere."""
    sun = np.array([[-0.5, -0.65, -0.57]], np.float32)
    none = np.zeros((0, 4), np.float32)
    up, dim = np.array([0, -1, 0], np.float32), np.full(3, 0.3, np.float32)
    return Lighting(sun, np.full((1, 3), 1.0, np.float32), up, dim, 0.6 * dim, none, none[:, :3])


def _row(number: int, frame: Frame, ship: CadModel) -> dict[str, Any]:
    pose, truth = frame.estimate.pose, frame.truth
    true_quat = np.asarray(truth.quat_wxyz)
    row: dict[str, Any] = {
        "frame": number,
        "status": frame.estimate.status,
        "confidence": frame.estimate.confidence,
        "t_m": None,
        "quat_wxyz": None,
        "true_t_m": np.asarray(truth.t).tolist(),
        "true_quat_wxyz": true_quat.tolist(),
        "rotation_error_deg": float("nan"),
        "translation_error_m": float("nan"),
        "add_m": float("nan"),
        "seconds": frame.seconds,
    }
    if pose is not None:
        quat = np.asarray(pose.quat_wxyz)
        row |= {
            "t_m": np.asarray(pose.t).tolist(),
            "quat_wxyz": quat.tolist(),
            "true_quat_wxyz": (true_quat if quat @ true_quat > 0 else -true_quat).tolist(),
            "rotation_error_deg": float(np.rad2deg(rotation_error(pose, truth))),
            "translation_error_m": float(translation_error(pose, truth)),
            "add_m": float(add(pose, truth, ship.vertices)),
        }
    return row


def _summary(rows: Sequence[dict[str, Any]], ship: CadModel) -> dict[str, float]:
    ok = [row for row in rows if row["status"] == "ok"]

    def median(name: str, among: Sequence[dict[str, Any]]) -> float:
        return float(np.median([row[name] for row in among])) if among else float("nan")

    return {
        "frames": float(len(rows)),
        "found": len(ok) / len(rows),
        "right": float(np.mean([row["add_m"] < _RIGHT * ship.diameter for row in rows])),
        "rotation_error_deg": median("rotation_error_deg", ok),
        "translation_error_m": median("translation_error_m", ok),
        "translation_error_d": median("translation_error_m", ok) / ship.diameter,
        "seconds": median("seconds", rows),
    }


def _best(flown: Sequence[Frame]) -> Frame:
    """The frame to show: the ship large and near the middle of the picture, and estimated if any was."""

    def rank(frame: Frame) -> tuple[bool, float]:
        x, y, z = frame.truth.t
        return frame.estimate.status == "ok", -float(z + 2 * np.hypot(x, y))

    return max(flown, key=rank)


def panels(frame: Frame, estimator: PoseEstimator) -> dict[str, Picture]:
    """The four pictures that tell how a pose came about, by title."""
    estimate, image = frame.estimate, frame.image
    box = estimate.box
    if estimate.pose is None or box is None or not np.isfinite(box).all():
        return {"picture": image, f"no pose: {estimate.status}": draw_text(image, estimate.reasons, RED)}
    centre, size = box_centre_size(box)
    crop_box = square(centre, estimator.crop_scale * size)
    zoom = 640
    close = cut(image, crop_box, (zoom, zoom))
    to_close = _crop_mapping(crop_box, zoom)
    found = estimate.keypoints
    scale = zoom / (crop_box[2] - crop_box[0])
    dots = draw_keypoints(close, to_close(found["points_px"]), found["cov_px"] * scale**2, found["inliers"])
    heat = [heat_overlay(crop, h) for crop, h in _heatmaps(image, crop_box, estimator)]
    columns = int(np.ceil(np.sqrt(len(heat))))
    return {
        "picture": image,
        "where the network sees each keypoint": sheet(heat, columns),
        "keypoints and their 2-sigma ellipses": dots,
        "the CAD model at the estimated pose": draw_pose(
            image, estimate.model, estimate.camera, estimate.pose
        ),
    }


def _crop_mapping(box: NDArray[np.float64], size: int) -> Any:
    """Function from image pixels (..., 2) to those of the square `box`, resized to `size`."""
    scale = size / (box[2] - box[0])
    return lambda points_px: (points_px - box[:2]) * scale - 0.5


def _heatmaps(
    image: Picture, crop_box: NDArray[np.float64], estimator: PoseEstimator
) -> list[tuple[Picture, NDArray[np.float32]]]:
    """The crop, as the network gets it, with each keypoint's heatmap as a probability."""
    net = estimator.nets["keypoints"]
    crop = cut(image, crop_box, (estimator.crop_size, estimator.crop_size))
    x = torch.from_numpy(crop).to(next(net.parameters()).device).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        logits = net(x)["heatmaps"][0].float().cpu()
    heat = logits.flatten(1).softmax(1).reshape(logits.shape).numpy()
    return [(crop, h) for h in heat]


def animate(flown: Sequence[Frame], ship: CadModel, progress: bool = False) -> list[Picture]:
    """The frames with the estimated outline, and bolts that leave the cannons along the estimated pose."""
    muzzles = np.array(
        [p for name, p in sorted(ship.named_keypoints.items()) if name.startswith("cannon_tip")]
    )
    pictures = []
    for now, frame in enumerate(tqdm(flown, "drawing", disable=not progress, unit="frame")):
        estimate = frame.estimate
        image = frame.image
        if estimate.pose is not None:
            color = GREEN if estimate.status == "ok" else RED
            image = draw_pose(image, estimate.model, estimate.camera, estimate.pose, color, tint=0.08)
        segments = [
            piece
            for fired in range(max(0, now - _BOLT_FRAMES + 1), now + 1)
            if fired % _FIRE_EVERY == 0 and (pose := flown[fired].estimate.pose) is not None
            for piece in _bolts(pose, muzzles, now - fired, estimate)
        ]
        if segments:
            image = draw_glow(image, np.array(segments), BOLT_COLOR, width=0.006 * image.shape[1])
        pictures.append(image)
    return pictures


def _bolts(
    fired: Pose, muzzles: NDArray[np.float64], age: int, now: PoseEstimate
) -> list[NDArray[np.float64]]:
    """Visible pieces (2, 2) in pixels of the bolts fired from `fired`, `age` frames ago, not hidden by `now`."""
    along = np.linspace(0, _BOLT_LENGTH, 13)[:, None] + _BOLT_SPEED * age
    lines = fired.apply(muzzles[:, None] + along * np.array([1.0, 0, 0]))  # (cannons, 13, 3)
    depth = None if now.pose is None else render(now.model, now.camera, now.pose).depth
    width, height = now.camera.size_wh
    pieces = []
    for line in lines:
        line = line[line[:, 2] > 1.0]
        px = np.asarray(now.camera.project(line))
        for a, b, z in zip(px[:-1], px[1:], line[:-1, 2], strict=True):
            x, y = np.rint(a).astype(int)
            inside = 0 <= x < width and 0 <= y < height
            if not (inside and depth is not None and 0 < depth[y, x] < z):
                pieces.append(np.stack([a, b]))
    return pieces
