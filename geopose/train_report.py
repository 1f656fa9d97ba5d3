"""What a training says: progress while it runs, figures of the finished model, and the plot beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.calibrate import (
    LEAST_CONFIDENCE,
    PRIOR,
    answer_confidence,
    calibrate_keypoints,
    confidence_of,
    fit_answers,
    fit_confidence,
    fit_tails,
    read_renders,
)
from geopose.checkpoint import jsonable
from geopose.data.sample import box_centre_size
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import add, add_s, rotation_error, share_inside, translation_error
from geopose.geometry.pose import Pose
from geopose.scores import mahalanobis2
from geopose.summary import LEVELS

_LINE_EVERY_S = 15.0
CLEARLY_VISIBLE = 0.6  # share of the silhouette
_ENDS = (0.0, 0.15, 0.7)  # when calibrating keypoints, then poses, then judging begins; shares of the time
_WRONG_MODE = 0.3  # diameters of ADD from which on a pose is another mode, which no covariance describes
_ROUNDS = (0.3, 0.7)  # of calibrating poses: by a confidence that saw no renders, then by that of the first


class Progress:
    """A bar on a terminal, a line every 15 seconds elsewhere, nothing when quiet; always on stderr."""

    def __init__(self, title: str, begin_s: float, until_s: float, quiet: bool = False) -> None:
        self.title, self.until_s, self.quiet = title, until_s, quiet
        self._shown_s, self._samples, self._loss = begin_s, None, None
        self._bar = None
        if not quiet and sys.stderr.isatty():
            form = "{l_bar}{bar}| {postfix}"
            self._bar = tqdm(
                total=round(max(until_s - begin_s, 1)), desc=title, bar_format=form, file=sys.stderr
            )
        self._begin_s = begin_s

    _samples: int | None
    _loss: float | None

    def show(self, now_s: float, samples: int, loss: float) -> None:
        """Takes note of a step; writes when it is time to."""
        if self._samples is None:
            self._samples, self._shown_s = samples, now_s
        smooth = self._loss is not None and np.isfinite(self._loss)
        self._loss = 0.95 * self._loss + 0.05 * loss if smooth and self._loss is not None else loss
        pause = 1.0 if self._bar is not None else _LINE_EVERY_S
        if self.quiet or now_s - self._shown_s < pause:
            return
        speed = (samples - self._samples) / (now_s - self._shown_s)
        left = max(self.until_s - now_s, 0.0)
        text = f"loss {self._loss:.3f}, {speed:.0f} images/s, {samples} images, {left / 60:.1f} min left"
        if self._bar is not None:
            self._bar.n = round(now_s - self._begin_s)
            self._bar.set_postfix_str(text)
        else:
            say(f"{self.title}: {text}")
        self._shown_s, self._samples = now_s, samples

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(text: str, quiet: bool = False) -> None:
    """Writes a line to stderr at once."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def judge_scenes(
    estimator: PoseEstimator, scenes: Iterable[Mapping[str, Tensor]], count: int, until: float, least: int = 4
) -> list[dict[str, float]]:
    """One row per rendered photograph, whole picture in and no box given: found, errors, visible share, size, seconds,
    squared Mahalanobis distance of the truth, probability of the smallest region of the pose's distribution that has
    it inside.

    Args:
        scenes: collated one by one; image (1, 3, H, W) uint8, R, t, K, visib_fract, box.
        count: how many, fewer (but `least`) when `time.monotonic()` passes `until`.
    """
    symmetries = estimator.symmetries.expand()
    points = estimator.model.vertices
    rows: list[dict[str, float]] = []
    for scene in scenes:
        image, camera, truth = _scene(scene)
        began = time.perf_counter()
        found = estimator.estimate(image, camera)
        row = {
            "seconds": time.perf_counter() - began,
            "visib_fract": float(scene["visib_fract"][0]),
            "size_px": box_centre_size(scene["box"][0].numpy())[1],
            "found": float(found.status == "ok"),
            "confidence": found.confidence,
        }
        distance = pose_distance(found.pose, truth, points, len(symmetries) > 1)
        row["add"] = distance / float(estimator.meta["diameter"])
        for name in ("rotation_deg", "translation", "keypoint_px", "distance2", "inside"):
            row[name] = float("nan")
        if found.pose is not None:
            same = truth @ Pose.from_matrix(symmetries)
            row["rotation_deg"] = float(np.rad2deg(rotation_error(found.pose, same)).min())
            row["translation"] = float(translation_error(found.pose, same).min())
            row["translation"] /= float(estimator.meta["diameter"])
            seen = camera.project(same.apply(estimator.keypoints))
            errors = np.linalg.norm(found.keypoints["points_px"] - seen, axis=-1)
            row["keypoint_px"] = float(np.median(errors, axis=-1).min())
        if found.pose is not None and found.covariance is not None:
            row["distance2"] = float(mahalanobis2(found.pose, truth, found.covariance, symmetries))
            row["inside"] = float(share_inside(row["distance2"], found.covariance_dof))
        rows.append(row)
        if len(rows) >= count or (time.monotonic() > until and len(rows) >= least):
            break
    return rows


@dataclass(frozen=True)
class Lessons:
    """What poses in fresh scenes teach.

    considered: features of every pose considered, and whether it was right (ADD(-S) below a tenth of the diameter).
    answered: features of those given at last, whether they were right, and the squared Mahalanobis distance of the
    truth, infinite for the wrong mode.
    """

    considered: list[tuple[dict[str, float], bool]]
    answered: list[tuple[dict[str, float], bool, float]]


def learn_from_scenes(
    estimator: PoseEstimator, scenes: Iterable[Mapping[str, Tensor]], count: int, until: float
) -> Lessons:
    """The Lessons of `count` scenes, fewer (but four) when `time.monotonic()` passes `until`."""
    seen: list[tuple[dict[str, float], Pose | None]] = []
    confident = estimator.confident

    def record(values: Mapping[str, float], pose: Pose | None) -> float:
        seen.append((dict(values), pose))
        return confident(values, pose)

    symmetries = estimator.symmetries.expand()
    diameter, points = float(estimator.meta["diameter"]), estimator.model.vertices
    lessons = Lessons([], [])
    estimator.confident = record  # type: ignore[method-assign,assignment]
    try:
        for number, scene in enumerate(scenes, 1):
            image, camera, truth = _scene(scene)
            seen.clear()
            found = estimator.estimate(image, camera)
            off = [pose_distance(pose, truth, points, len(symmetries) > 1) for _, pose in seen]
            for (values, pose), distance in zip(seen, off, strict=True):
                lessons.considered.append((values, distance < 0.1 * diameter))
                if pose is not None and pose is found.pose:
                    near = distance < _WRONG_MODE * diameter
                    d2 = float(mahalanobis2(pose, truth, found.covariance, symmetries)) if near else np.inf
                    lessons.answered.append((values, distance < 0.1 * diameter, d2))
            if number >= count or (time.monotonic() > until and number >= 4):
                break
    finally:
        del estimator.confident
    return lessons


def finish_model(
    path: Path,
    device: torch.device,
    crops: Iterable[Mapping[str, Tensor]],
    scenes_to_learn: Iterable[Mapping[str, Tensor]],
    scenes_to_judge: Iterable[Mapping[str, Tensor]],
    now: float,
    seconds: float,
    most: tuple[int, int, int] = (512, 1000, 400),
    keep: Mapping[str, Any] | None = None,
    known: Mapping[str, Any] | None = None,
    remember: Callable[[dict[str, Any]], None] = lambda known: None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(calibration, figures) of the checkpoint at `path`: keypoints first, then the confidence, of poses and then of
    answers, then the covariances of those answered `ok`, then the judgement, and the covariances once more with what it
    saw, which the figures do not know of.

    Args:
        crops, scenes_to_learn, scenes_to_judge: three streams of fresh renders.
        now, seconds: start on `time.monotonic()`'s clock, and the time there is; a few pictures are taken in
            any case.
        most: pictures of the three streams to take at most. keep: a calibration whose keypoints and confidence stay.
        remember: called with what is known after each of the first two steps, plain values; known: the same, from a
            call that was interrupted, whose `seconds` are what is left.
    """
    estimator = PoseEstimator.load(path, str(device))
    so_far: dict[str, Any] = {"stage": 0, "calibration": {}, "figures": {}, "distances2": [], **(known or {})}
    stage, calibration, figures = so_far["stage"], so_far["calibration"], so_far["figures"]
    distances2: list[float] = so_far["distances2"]
    ends = [(end - _ENDS[stage]) / (1 - _ENDS[stage]) for end in _ENDS]
    if stage == 0:
        if keep is None:
            until = now + ends[1] * seconds
            readings = read_renders(estimator.nets["keypoints"], crops, device, most[0], until)
            calibration, figures = calibrate_keypoints(readings)
        else:
            calibration, figures = {k: v for k, v in keep.items() if k not in ("pose_scale", "pose_dof")}, {}
        stage = 1
        remember({"stage": stage, "calibration": jsonable(calibration), "figures": jsonable(figures)})
    estimator.calibration = dict(calibration)
    if stage == 1:
        scenes, done = iter(scenes_to_learn), 0.0
        considered: list[tuple[dict[str, float], bool]] = []
        for part in _ROUNDS if keep is None else (1.0,):
            done += part
            until = now + (ends[1] + done * (ends[2] - ends[1])) * seconds
            lessons = learn_from_scenes(estimator, scenes, round(part * most[1]), until)
            considered += lessons.considered
            if keep is None:
                features, right = [values for values, _ in considered], [r for _, r in considered]
                calibration = {**calibration, "confidence": fit_confidence(features, right, PRIOR)}
                estimator.calibration = dict(calibration)  # it decides how long an estimate looks
        said = [confidence_of(values, calibration) for values, _, _ in lessons.answered]
        if keep is None:
            calibration["answers"] = fit_answers(said, [right for _, right, _ in lessons.answered])
        sure = [answer_confidence(confidence, calibration) >= LEAST_CONFIDENCE for confidence in said]
        known2 = [d2 for _, _, d2 in lessons.answered]
        distances2 = [d2 for d2, believed in zip(known2, sure, strict=True) if believed and np.isfinite(d2)]
        calibration = estimator.calibration = {**calibration, **fit_tails(distances2)}
        remember(
            {
                "stage": 2,
                "calibration": jsonable(calibration),
                "figures": jsonable(figures),
                "distances2": jsonable(distances2),
            }
        )
    rows = judge_scenes(estimator, scenes_to_judge, most[2], now + seconds)
    scale = float(calibration["pose_scale"])
    judged = [scale * r["distance2"] for r in rows if r["found"] and r["add"] < _WRONG_MODE]
    calibration = {**calibration, **fit_tails([*distances2, *judged])}
    clear = [r for r in rows if r["visib_fract"] >= CLEARLY_VISIBLE]
    return jsonable(calibration), {**summary(rows), **figures, "visible_06": summary(clear)}


def pose_distance(pose: Pose | None, truth: Pose, points: Any, symmetric: bool) -> float:
    """ADD, or ADD-S of a symmetric object, in metres; infinite without a pose."""
    if pose is None:
        return float("inf")
    return float((add_s if symmetric else add)(pose, truth, np.asarray(points, float)))


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Figures over judged scenes: shares in [0, 1]; medians over the instances found, and how many of these are wrong,
    and have the truth inside the 50, 90 and 99 % region of their distribution."""
    if not rows:
        return {"images": 0}
    found = [r for r in rows if r["found"]]

    def median(name: str, of: Sequence[Mapping[str, float]]) -> float:
        values = [r[name] for r in of if np.isfinite(r[name])]
        return float(np.median(values)) if values else float("nan")

    inside = np.array([r["inside"] for r in found if np.isfinite(r["inside"])])
    return {
        "images": len(rows),
        "found": len(found) / len(rows),
        "add_01d": float(np.mean([r["add"] < 0.1 and r["found"] > 0 for r in rows])),
        "rotation_median_deg": median("rotation_deg", found),
        "translation_median_diameters": median("translation", found),
        "keypoint_median_px": median("keypoint_px", found),
        "seconds_median": median("seconds", rows),
        "wrong_among_found": float(np.mean([r["add"] >= 0.1 for r in found])) if found else float("nan"),
        "coverage": {f"{p:g}": float(np.mean(inside <= p)) if len(inside) else float("nan") for p in LEVELS},
    }


def _scene(scene: Mapping[str, Tensor]) -> tuple[np.ndarray, Camera, Pose]:
    image = scene["image"][0].permute(1, 2, 0).contiguous().numpy()
    camera = Camera.from_matrix(scene["K"][0].double().numpy(), (image.shape[1], image.shape[0]))
    return image, camera, Pose(scene["R"][0].double().numpy(), scene["t"][0].double().numpy())


def plot_history(histories: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path) -> Path:
    """The path of a PNG with the loss of each network over the minutes of training (rows: seconds, images, loss)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(len(histories), 1), squeeze=False)[0]
    for axis, (role, rows) in zip(axes, histories.items(), strict=False):
        values = np.asarray(rows, float).reshape(-1, 3)
        axis.plot(values[:, 0] / 60, values[:, 2], lw=1.2)
        images = int(values[-1, 1]) if len(values) else 0
        axis.set(title=f"{role}: {images} images", xlabel="training time (minutes)", ylabel="loss")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def machine() -> str:
    """The computer in words: processor, cores, accelerator, torch."""
    import os
    import platform

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"
