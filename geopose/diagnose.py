"""Why a photograph gives no good pose: what every stage saw of it, and the likely cause.

Each cause has a rule on something measured on this very picture, mostly by solving again under its hypothesis: with
another focal length, with lens distortion, with the picture mirrored, in enlarged parts of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from geopose.data.sample import box_centre_size, square
from geopose.estimate import CANDIDATES, PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPResult, solve_pnp
from geopose.image import load_image
from geopose.result import PoseEstimate
from geopose.sharpness import edge_width
from geopose.stages import Candidate, Reading, cut, locate

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

UNITS_M = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
SMALL_PX = 32.0  # training shows little that is smaller
BLUR_SHARE = 0.015  # of the object's size: wider edges than this hide its details
_BLUR_ALL = 0.006  # of the picture's width: where no edge is sharper, nothing is in focus
_SEEN = 0.5  # score of the locator above which something is there
_FOCAL = np.geomspace(1 / 3, 3, 17)
_K1 = (-0.6, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6)
_MOST = 16.0  # squared whitened residual beyond which a keypoint is simply wrong
_GAIN = 12.0  # times the remaining variance that a hypothesis must explain
_POOR = 2.0  # variances that a poor fit leaves; that of a right hypothesis leaves one or less
_LEAST_VARIANCE = 0.3  # of a fit, where the covariances are too large
_SHIFT = 0.15  # of the principal point, in half pictures


@dataclass(frozen=True)
class Check:
    """A measurement: of which cause, what was found, what would be well, and how far beyond that it is (1: just there).

    remedy: what to do, in words, where the check is beyond its limit.
    """

    cause: str
    found: str
    limit: str
    beyond: float
    remedy: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is evidence for the cause."""
        return self.beyond >= 1


@dataclass(frozen=True)
class Diagnosis:
    """What every stage made of a picture.

    camera: that of the estimate, scaled to the picture where it was for another size; candidates: of the locator, best
    first; look: the crop's candidate; reading: what was read there, heatmaps (K, h, w) as probabilities, result: the
    pose of these keypoints; all four None or empty where nothing was found; checks: all measurements; causes: those
    with evidence, likeliest first.
    """

    picture: Picture
    camera: Camera
    estimate: PoseEstimate
    candidates: tuple[Candidate, ...]
    look: Candidate | None
    reading: Reading | None
    heatmaps: NDArray[np.float32]
    result: PnPResult | None
    checks: tuple[Check, ...]

    @property
    def causes(self) -> tuple[Check, ...]:
        failed = [c for c in self.checks if c.failed]
        return tuple(sorted(failed, key=lambda c: -c.beyond))

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.causes:
            return f"likely cause: {self.causes[0].cause}. {self.causes[0].remedy}"
        if self.estimate.status == "ok":
            return "nothing wrong was found"
        told = (
            "none of the usual causes. The picture is sharp, the object large enough, the camera plausible, "
        )
        if self.result is not None and bool(self.result.status == "ok"):
            told += "and the keypoints agree on a pose, but the picture does not look like the object there. "
            return (
                told
                + "Perhaps it is something else that was found (--box says where to look), or hidden in part."
            )
        return told + "but the keypoints do not agree. The object may be hidden in part or unlike the mesh."


def diagnose(
    estimator: PoseEstimator,
    img: Any,
    camera: Camera | None = None,
    box: Any = None,
    distance: float | None = None,
) -> Diagnosis:
    """The Diagnosis of a photograph.

    Args:
        img, camera, box: as in `PoseEstimator.estimate`, but that a camera for another size is a finding, no error.
        distance: of the object from the camera, metres, as far as known: a wrong unit shows in nothing else.
    Raises:
        ValueError: on input that cannot be right, naming the argument.
    """
    if distance is not None and not (np.isfinite(distance) and distance > 0):
        raise ValueError(f"distance: expected metres, got {distance}")
    picture, from_file = load_image(img)
    checks, used = _of_camera(picture, camera, from_file)
    estimate = estimator.estimate(picture, used if used is not None else from_file, box)
    used = estimate.camera
    if box is None:
        candidates = tuple(locate(estimator.nets["locator"], picture, CANDIDATES))
    else:
        candidates = (Candidate(*box_centre_size(np.asarray(box, float)), 1.0),)
    checks += _of_place(estimator, picture, candidates, estimate)
    look = _look(candidates, estimate)
    checks += _of_sharpness(picture, look, estimate)
    if look is None:
        empty = np.zeros((0, 1, 1), np.float32)
        return Diagnosis(picture, used, estimate, candidates, None, None, empty, None, tuple(checks))
    reading = estimator._read(picture, [look])[0]
    result = estimator._solve(reading, look, used).result
    checks += _of_hypotheses(estimator, reading, used)
    checks += _of_unit(estimator, estimate, distance)
    heat = _heatmaps(estimator, picture, reading.box)
    return Diagnosis(picture, used, estimate, candidates, look, reading, heat, result, tuple(checks))


def _of_camera(
    picture: Picture, camera: Camera | None, from_file: Camera | None
) -> tuple[list[Check], Camera | None]:
    """What the camera's numbers alone tell, and the camera to go on with."""
    if camera is None:
        return [], None
    camera, checks = camera.numpy(), []
    height, width = picture.shape[:2]
    other = tuple(camera.size_wh) != (width, height)
    had = f"{camera.size_wh[0]}x{camera.size_wh[1]}"
    same_shape = abs(camera.size_wh[0] / camera.size_wh[1] / (width / height) - 1) < 0.02
    remedy = f"The camera is for pictures of {had}: "
    if same_shape:
        remedy += "scale it along with the picture (Camera.crop_resize), or use the picture as it was taken."
    else:
        remedy += "this one was cut, or comes from another camera; use the picture as it was taken."
    checks.append(
        Check(
            "image resized without K", f"camera for {had}, picture of {width}x{height}", "the same size", 10.0 * other,
            remedy,
        )
    )  # fmt: skip
    if other:
        whole = np.array([-0.5, -0.5, camera.size_wh[0] - 0.5, camera.size_wh[1] - 0.5])
        camera = camera.crop_resize(whole, (width, height)) if same_shape else None
        return checks, camera
    across, down = 2 * (camera.cx + 0.5) / width, 2 * (camera.cy + 0.5) / height
    off = min(abs(across - 1), abs(down - 1)) if abs(across / down - 1) < 0.1 else 0.0
    checks.append(
        Check(
            "image resized without K",
            f"principal point at {100 * across:.0f} % and {100 * down:.0f} % of the middle",
            f"within {100 * _SHIFT:.0f} %, or off in one direction only",
            min(off / _SHIFT, 9.0),
            f"K looks like that of a picture {across:.2g} times as large as this one: scale it along with the picture.",
        )
    )
    fov = float(np.rad2deg(2 * np.arctan(0.5 * width / camera.fx)))
    checks.append(
        Check(
            "wrong K", f"field of view {fov:.1f} degrees", "3 to 140", 5.0 * (not 3 < fov < 140),
            "The focal length is in pixels, not in millimetres: f_px = f_mm * width_px / sensor_width_mm.",
        )
    )  # fmt: skip
    if from_file is not None:
        ratio = float(camera.fx / from_file.fx)
        checks.append(
            Check(
                "wrong K",
                f"focal length {camera.fx:.0f} px, EXIF says {from_file.fx:.0f} px",
                "within 20 %",
                min(abs(np.log(ratio)) / np.log(1.2), 8.0),
                "The picture was taken with another focal length (zoom?) than the camera was calibrated for.",
            )
        )
    return checks, camera


def _of_place(
    estimator: PoseEstimator, picture: Picture, candidates: tuple[Candidate, ...], estimate: PoseEstimate
) -> list[Check]:
    """Whether the object is in view, wholly, and large enough."""
    unsure = estimate.status != "ok"
    best = candidates[0].score if candidates else 0.0
    size = candidates[0].size if candidates else np.nan
    nearer = None
    if unsure and best < _SEEN:
        nearer = max(_enlarged(estimator, picture), key=lambda c: c.score, default=None)
        if nearer is not None and nearer.score > max(best, _SEEN) and nearer.size < SMALL_PX:
            size, best = nearer.size, nearer.score
    small = unsure and size < SMALL_PX and best >= _SEEN
    enlarged = " (in an enlarged part of the picture)" if nearer is not None and size == nearer.size else ""
    checks = [
        Check(
            "too small", f"{size:.0f} px large{enlarged}", f"{SMALL_PX:.0f} px",
            min(SMALL_PX / size, 6.0) + 0.5 if small else 0.0,
            "Go nearer, zoom in, or take a picture with more pixels.",
        ),
        Check(
            "not in view", f"best score of the locator {best:.2f}", f"{_SEEN:.2f}",
            float(unsure and best < _SEEN),  # just there: any other cause found explains it as well
            "The locator sees the object nowhere; if it is there, say where: --box X0 Y0 X1 Y1.",
        ),
    ]  # fmt: skip
    if estimate.box is not None and np.isfinite(estimate.box).all() and not best < _SEEN:
        height, width = picture.shape[:2]
        x0, y0, x1, y1 = estimate.box
        seen = max(min(x1, width - 0.5) - max(x0, -0.5), 0) * max(min(y1, height - 0.5) - max(y0, -0.5), 0)
        cut = 1 - float(seen / max((x1 - x0) * (y1 - y0), 1e-9))
        checks.append(
            Check(
                "not in view", f"{100 * cut:.0f} % of its box is outside of the picture", "25 %",
                cut / 0.25 if unsure else 0.0, "Only a part is in view: point the camera at the object.",
            )
        )  # fmt: skip
    return checks


def _enlarged(estimator: PoseEstimator, picture: Picture) -> list[Candidate]:
    """Candidates in nine overlapping quarters of the picture, each enlarged twice; in the picture's own pixels."""
    height, width = picture.shape[:2]
    h, w = max(height // 2, 1), max(width // 2, 1)
    found = []
    for y in (0, (height - h) // 2, height - h):
        for x in (0, (width - w) // 2, width - w):
            part = cv2.resize(picture[y : y + h, x : x + w], (2 * w, 2 * h), interpolation=cv2.INTER_CUBIC)
            for c in locate(estimator.nets["locator"], part, 1):
                found.append(Candidate((c.centre + 0.5) / 2 - 0.5 + [x, y], c.size / 2, c.score))
    return found


def _look(candidates: tuple[Candidate, ...], estimate: PoseEstimate) -> Candidate | None:
    """Where the crop is: around the pose to be trusted, else at the candidate it came from, else at the best one."""
    if estimate.box is None or not np.isfinite(estimate.box).all():
        return candidates[0] if candidates else None
    centre, size = box_centre_size(estimate.box)
    near = min(candidates, key=lambda c: float(np.linalg.norm(c.centre - centre)), default=None)
    if estimate.status == "ok":
        return Candidate(centre, size, candidates[0].score if candidates else 1.0)
    inside = near is not None and np.abs(near.centre - centre).max() < 0.5 * near.size
    return near if inside else (candidates[0] if candidates else None)


def _of_sharpness(picture: Picture, look: Candidate | None, estimate: PoseEstimate) -> list[Check]:
    """How wide the edges around the object are, or, where nothing was found, those of the picture."""
    height, width = picture.shape[:2]
    if look is not None and look.score >= _SEEN:
        x0, y0, x1, y1 = np.rint(square(look.centre, 1.2 * look.size)).astype(int)
        part = picture[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
        what, limit = f"the object {look.size:.0f} px large", max(BLUR_SHARE * look.size, 1.2)
    else:
        part, what, limit = picture, "in the whole picture", max(_BLUR_ALL * width, 2.0)
    wide = edge_width(part) if min(part.shape[:2]) > 8 else float("nan")
    return [
        Check(
            "out of focus", f"edges {wide:.1f} px wide (standard deviation), {what}", f"{limit:.1f} px",
            min(wide / limit, 7.0) if np.isfinite(wide) and estimate.status != "ok" else 0.0,
            "Everything is blurred, by focus or by motion: take a sharper picture.",
        )
    ]  # fmt: skip


def _of_hypotheses(estimator: PoseEstimator, reading: Reading, camera: Camera) -> list[Check]:
    """How much better the same keypoints fit with another focal length, with lens distortion, and mirrored."""
    points, freedom = estimator.keypoints, 2 * len(estimator.keypoints) - 7

    def cost(px: Array, cov: Array, lens: Camera) -> float:
        pose = solve_pnp(points, px, lens, cov_px=cov, options=estimator.options).pose
        off = np.asarray(lens.project(pose.apply(points))) - px
        squared = np.einsum("ni,nij,nj->n", off, np.linalg.inv(cov), off)
        return float(np.where(np.isfinite(squared), np.minimum(squared, _MOST), _MOST).sum())

    def gain(better: float) -> float:
        """What the hypothesis explains, in variances that it leaves, over the limit; 0 where there is no need of it."""
        return (
            (base - better) / max(better / freedom, _LEAST_VARIANCE) / _GAIN
            if base > _POOR * freedom
            else 0.0
        )

    px, cov = reading.points_px, reading.cov_px
    base = cost(px, cov, camera)
    by_focal = [cost(px, cov, replace(camera, fx=s * camera.fx, fy=s * camera.fy)) for s in _FOCAL]
    focal = float(_FOCAL[int(np.argmin(by_focal))])
    by_lens = [cost(px, cov, replace(camera, distortion=(k, 0.0, 0.0, 0.0))) for k in _K1]
    k1 = _K1[int(np.argmin(by_lens))]
    width = camera.size_wh[0]
    mirror = np.array([[-1.0, 0.0], [0.0, 1.0]])
    flipped = replace(camera, cx=width - 1 - camera.cx, distortion=())
    mirrored = cost(px * [-1, 1] + [width - 1, 0], mirror @ cov @ mirror, flipped)
    per = f"{base / freedom:.1f} variances"
    limit = f"{_POOR:g} variances as they are, or a gain of less than {_GAIN:.0f} remaining ones"
    return [
        Check(
            "wrong K",
            f"the keypoints fit best with {focal:.2f} times the focal length: "
            f"{min(by_focal) / freedom:.1f} against {per}",
            limit,
            gain(min(by_focal)) if not 0.8 < focal < 1.25 else 0.0,
            f"K may be of another camera, zoom or picture size: {focal * camera.fx:.0f} px fit better.",
        ),
        Check(
            "distortion ignored",
            f"the keypoints fit best with k1 = {k1:g}: {min(by_lens) / freedom:.1f} against {per}",
            limit,
            gain(min(by_lens)) if k1 != (camera.distortion[0] if len(camera.distortion) else 0.0) else 0.0,
            "The lens bends straight lines: calibrate it and give its distortion with the camera.",
        ),
        Check(
            "mirrored",
            f"the mirror image of the keypoints: {mirrored / freedom:.1f} against {per}",
            limit,
            gain(mirrored),
            "The picture is mirrored (a selfie camera?), or the mesh has an axis the wrong way round.",
        ),
    ]


def _of_unit(estimator: PoseEstimator, estimate: PoseEstimate, distance: float | None) -> list[Check]:
    """Whether the object's size is plausible, and whether the distance is off by the ratio of two units."""
    model = estimator.model
    odd = not 1e-3 < model.diameter < 1e3
    remedy = f"The mesh was read in {model.unit!r}; train again with the right --unit."
    checks = [
        Check("wrong unit", f"the object is {model.diameter:.3g} m large", "1 mm to 1 km", 4.0 * odd, remedy)
    ]
    if distance is None or estimate.pose is None:
        return checks
    found = float(np.linalg.norm(estimate.pose.t))
    ratios = {
        u: m / UNITS_M[model.unit] for u, m in UNITS_M.items() if u != model.unit and model.unit in UNITS_M
    }
    near = min(ratios, key=lambda u: abs(np.log(distance / found / ratios[u])), default="")
    fits = bool(near) and abs(np.log(distance / found / ratios[near])) < np.log(1.5)
    return [
        *checks,
        Check(
            "wrong unit",
            f"found at {found:.3g} m, known to be at {distance:.3g} m",
            "no ratio of two units between them",
            8.0 * fits,
            f"The mesh was read in {model.unit!r}, but {near!r} fits the distance: train again with --unit {near}.",
        ),
    ]


def _heatmaps(estimator: PoseEstimator, picture: Picture, box: Array) -> NDArray[np.float32]:
    """(K, h, w) the heatmaps of a crop as probabilities."""
    crop = cut(picture, box, (estimator.crop_size, estimator.crop_size))
    x = torch.from_numpy(crop).to(estimator.device).permute(2, 0, 1)[None].float().div_(255)
    with torch.inference_mode():
        logits = estimator.nets["keypoints"](x)["heatmaps"][0].float().cpu()
    return logits.flatten(1).softmax(1).reshape(logits.shape).numpy()
