"""How good an estimate is against known poses: assignment as BOP does it, errors, and why it failed.

Pure functions; `summary.py` counts what they return. An estimate is anything with pose, covariance, status,
confidence, keypoints and box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.cad.render import rasterize
from geopose.data.sample import projected_box
from geopose.geometry import metrics
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]
CORRECT = 0.1  # ADD(-S) below this share of the diameter is a right pose
FAILURES = ("not located", "wrong keypoints", "flipped", "imprecise")
AWAY = 0.75  # of the object's size in the picture: looked for further off than this is "not located"
FLIPPED_DEG = 90.0
IMPRECISE = 0.5  # MSSD below this share of the diameter: right side, too far off


@dataclass(frozen=True, eq=False)
class ScoredObject:
    """The object: points (V, 3) metres, diameter (metres), symmetries (S, 4, 4) with the identity; for VSD the faces
    (F, 3) between the points."""

    points: Array
    diameter: float
    symmetries: Array = field(default_factory=lambda: np.eye(4)[None])
    faces: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 3), np.int64))


@dataclass(frozen=True, eq=False)
class Truth:
    """One instance: pose `cam_from_obj`, the camera, the fraction that is visible (NaN: unknown)."""

    pose: Pose
    camera: Camera
    visib_fract: float = 1.0
    scene_id: int = 0
    im_id: int = 0


@dataclass(frozen=True)
class Score:
    """The errors of one true instance's estimate; infinite where there is no pose.

    Attributes:
        instance: number of the true instance in its image; estimate: of the one assigned to it, -1 for none.
        status: of the estimate; "none" where the estimator gave fewer estimates than there are instances.
        add, add_s, mssd: metres; mspd: pixels; rotation_deg and translation: least over the symmetries.
        add_or_s: ADD-S for an object with symmetries, ADD for one without.
        mssd_hits, mspd_hits: share of BOP's ten thresholds that are met, matched anew at each as BOP does; vsd_hits: of
            its hundred pairs of tolerance and threshold, NaN without depth.
        box_iou: overlap of the boxes of the estimated and of the true pose.
        mahalanobis2: squared distance from the truth in the estimated covariance; inside: probability of the smallest
            region that holds the truth (`metrics.share_inside`); NaN without a covariance.
        failure: "" for a right pose (ADD(-S) below a tenth of the diameter), else one of FAILURES.
    """

    scene_id: int
    im_id: int
    instance: int
    estimate: int
    visib_fract: float
    status: str
    confidence: float
    diameter: float
    add: float
    add_s: float
    add_or_s: float
    mssd: float
    mspd: float
    mssd_hits: float
    mspd_hits: float
    rotation_deg: float
    translation: float
    box_iou: float
    mahalanobis2: float
    inside: float
    failure: str
    seconds: float = float("nan")
    vsd_hits: float = float("nan")

    @property
    def correct(self) -> bool:
        return self.add_or_s < CORRECT * self.diameter

    @property
    def visible(self) -> float:
        """The visible fraction; one where it is unknown."""
        return 1.0 if np.isnan(self.visib_fract) else self.visib_fract


def score(
    estimates: Sequence[Any],
    truths: Sequence[Truth],
    target: ScoredObject,
    seconds: float = float("nan"),
    depth: NDArray[np.float32] | None = None,
) -> list[Score]:
    """One Score per truth of one image, in the order of `truths`.

    Args:
        estimates: of this image, any number; only the `len(truths)` most confident count, as in BOP.
        truths: the instances to be found in this image.
        depth: (H, W) metres measured in this image, 0 where unknown, for VSD.
    Notes:
        Estimates are assigned in the order of their confidence, each to the free instance nearest in MSSD;
        for the recalls this is done again at every threshold, as BOP does.
    """
    ranked = sorted(range(len(estimates)), key=lambda i: -estimates[i].confidence)[: len(truths)]
    with_pose = [i for i in ranked if _pose_of(estimates[i]) is not None]
    without = [i for i in ranked if i not in with_pose]
    posed = [estimates[i] for i in with_pose]
    mssd = _matrix(posed, truths, lambda e, t: metrics.mssd(e, t.pose, target.points, target.symmetries))
    mspd = _matrix(
        posed, truths, lambda e, t: metrics.mspd(e, t.pose, target.points, t.camera, target.symmetries)
    )
    chosen = match(mssd, np.inf)
    mssd_hits = np.mean([match(mssd, x) >= 0 for x in metrics.mssd_thresholds(target.diameter)], 0)
    width = truths[0].camera.size_wh[0] if truths else 1
    mspd_hits = np.mean([match(mspd, x) >= 0 for x in metrics.mspd_thresholds(width)], 0)
    vsd_hits = np.full(len(truths), np.nan)
    if depth is not None and len(target.faces):
        vsd = _vsd(posed, truths, target, depth)
        vsd_hits = np.mean([match(each, x) >= 0 for each in vsd for x in metrics.BOP_FRACTIONS], 0)
    scores = []
    for i, truth in enumerate(truths):
        index = with_pose[chosen[i]] if chosen[i] >= 0 else without.pop(0) if without else -1
        estimate = estimates[index] if index >= 0 else None
        row = _errors(estimate, truth, target)
        row |= {"mssd": float(mssd[chosen[i], i]) if chosen[i] >= 0 else np.inf}
        row |= {"mspd": float(mspd[chosen[i], i]) if chosen[i] >= 0 else np.inf}
        row |= {"mssd_hits": float(mssd_hits[i]), "mspd_hits": float(mspd_hits[i])}
        row |= {"vsd_hits": float(vsd_hits[i])}
        row["failure"] = _failure(row, estimate, truth, target)
        scores.append(Score(truth.scene_id, truth.im_id, i, index, truth.visib_fract, seconds=seconds, **row))
    return scores


def match(errors: Array, limit: float) -> NDArray[np.int64]:
    """(G,) index of the estimate of each truth, -1 for none; `errors` (E, G), most confident first."""
    free = np.ones(errors.shape[1], bool)
    chosen = np.full(errors.shape[1], -1)
    for e, row in enumerate(errors):
        masked = np.where(free & (row < limit), row, np.inf)
        if np.isfinite(masked).any():
            chosen[np.argmin(masked)] = e
            free[np.argmin(masked)] = False
        elif limit == np.inf and free.any():  # behind the camera is still an estimate
            chosen[np.argmax(free)] = e
            free[np.argmax(free)] = False
    return chosen


def _pose_of(estimate: Any) -> Pose | None:
    pose = None if estimate is None or estimate.pose is None else estimate.pose.numpy()
    return pose if pose is not None and np.isfinite(pose.R).all() and np.isfinite(pose.t).all() else None


def _matrix(estimates: Sequence[Any], truths: Sequence[Truth], error: Any) -> Array:
    values = np.full((len(estimates), len(truths)), np.inf)
    for i, estimate in enumerate(estimates):
        for j, truth in enumerate(truths):
            values[i, j] = np.nan_to_num(float(error(_pose_of(estimate), truth)), nan=np.inf, posinf=np.inf)
    return values


def _vsd(
    estimates: Sequence[Any], truths: Sequence[Truth], target: ScoredObject, depth: NDArray[Any]
) -> Array:
    """(T, E, G) visible surface discrepancies at BOP's tolerances; only the part of the picture with both is drawn."""
    errors = np.ones((len(metrics.BOP_FRACTIONS), len(estimates), len(truths)))
    for i, estimate in enumerate(estimates):
        for j, truth in enumerate(truths):
            poses = estimate.pose.numpy(), truth.pose
            boxes = np.stack([projected_box(target.points, p, truth.camera) for p in poses])
            if not np.isfinite(boxes).all() or not box_iou(*boxes) > 0:
                continue  # nothing in common
            width, height = truth.camera.size_wh
            low = np.clip(np.floor(boxes[:, :2].min(0)).astype(int), 0, (width, height))
            high = np.clip(np.ceil(boxes[:, 2:].max(0)).astype(int) + 1, 0, (width, height))
            if not (high > low).all():
                continue
            view = truth.camera.crop_resize(np.concatenate([low, high]) - 0.5, tuple(high - low))
            est, true = (_drawn_depth(target, pose, view) for pose in poses)
            seen = depth[low[1] : high[1], low[0] : high[0]]
            errors[:, i, j] = metrics.vsd(est, true, seen, view, diameter=target.diameter)
    return errors


def _drawn_depth(target: ScoredObject, pose: Pose, camera: Camera) -> Array:
    """(H, W) depth of the mesh at a pose, metres, 0 where it is not."""
    width, height = camera.size_wh
    seen = rasterize(pose.apply(target.points), target.faces, camera, near=1e-3 * target.diameter)
    depth = np.zeros(height * width)
    depth[seen.pixel] = seen.depth
    return depth.reshape(height, width)


def _errors(estimate: Any, truth: Truth, target: ScoredObject) -> dict[str, Any]:
    pose = _pose_of(estimate)
    status = "none" if estimate is None else str(estimate.status)
    row: dict[str, Any] = {"status": status, "diameter": target.diameter, "box_iou": 0.0}
    row |= {"confidence": 0.0 if estimate is None else float(estimate.confidence)}
    row |= {"mahalanobis2": np.nan, "inside": np.nan}
    if pose is None:
        return row | dict.fromkeys(("add", "add_s", "add_or_s", "rotation_deg", "translation"), np.inf)
    row["add"] = float(metrics.add(pose, truth.pose, target.points))
    row["add_s"] = float(metrics.add_s(pose, truth.pose, target.points))
    row["add_or_s"] = row["add_s"] if len(target.symmetries) > 1 else row["add"]
    row["rotation_deg"] = float(np.rad2deg(metrics.rotation_error(pose, truth.pose, target.symmetries)))
    row["translation"] = float(metrics.translation_error(pose, truth.pose, target.symmetries))
    boxes = (projected_box(target.points, p, truth.camera) for p in (pose, truth.pose))
    row["box_iou"] = box_iou(*boxes)
    if estimate.covariance is not None:
        row["mahalanobis2"] = mahalanobis2(pose, truth.pose, estimate.covariance, target.symmetries)
        dof = float(getattr(estimate, "covariance_dof", np.inf))
        row["inside"] = float(metrics.share_inside(row["mahalanobis2"], dof))
    return row


def box_iou(a: Array, b: Array) -> float:
    """Intersection over union of two boxes (4,) = x0, y0, x1, y1; 0 where one is not finite."""
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
    return float(overlap / union) if np.isfinite(union) and union > 0 else 0.0


def mahalanobis2(est: Pose, gt: Pose, covariance: Any, symmetries: Array) -> float:
    """Squared Mahalanobis distance of the truth, least over the symmetries; NaN for a broken covariance.

    The error is xi with gt = exp(xi) @ est, the tangent in which covariances are given.
    """
    cov = np.asarray(covariance, np.float64)
    scale = np.sqrt(np.abs(np.diag(cov))) if cov.shape == (6, 6) else np.zeros(6)
    if not np.isfinite(cov).all() or not (scale > 0).all():
        return float("nan")
    xi = np.asarray((gt @ Pose.from_matrix(symmetries) @ est.inverse()).log()) / scale
    values, vectors = np.linalg.eigh(cov / np.outer(scale, scale))
    if values[0] <= 0:
        return float("nan")
    return float((((xi @ vectors) ** 2) / values).sum(-1).min())


def _failure(row: Mapping[str, Any], estimate: Any, truth: Truth, target: ScoredObject) -> str:
    """Why a pose is wrong, "" when it is right."""
    if row["add_or_s"] < CORRECT * target.diameter:
        return ""
    box = projected_box(target.points, truth.pose, truth.camera)
    centre, size = (box[:2] + box[2:]) / 2, np.hypot(*(box[2:] - box[:2])) / np.sqrt(2)
    place = _looked_at(estimate)
    if place is None or not np.linalg.norm(place - centre) <= AWAY * size:
        return "not located"
    if np.isfinite(row["rotation_deg"]) and row["rotation_deg"] > FLIPPED_DEG:
        return "flipped"
    return "imprecise" if row["mssd"] < IMPRECISE * target.diameter else "wrong keypoints"


def _looked_at(estimate: Any) -> Array | None:
    """Where in the picture the estimator took the object to be: amid its keypoints, else its box."""
    points = (getattr(estimate, "keypoints", None) or {}).get("points_px")
    if points is not None and np.isfinite(points).all(-1).any():
        return np.nanmedian(np.asarray(points, np.float64), 0)
    box = None if estimate is None else estimate.box
    return None if box is None else (np.asarray(box, np.float64)[:2] + np.asarray(box, np.float64)[2:]) / 2
