"""What the picture itself says about a pose: its contour against the mesh's, in the least squares of the keypoints.

The silhouette is drawn at the pose. Along lines across it, colours and the network's mask tell the object from what
is behind it, and so where the contour really is. These distances join the keypoints' reprojection errors in one
Levenberg-Marquardt; then all is drawn anew.

Notes:
    Correspondence lines and their posterior: Stoiber et al., "SRT3D: A Sparse Region-Based 3D Object Tracking
    Approach", IJCV 2022, sections 3.2 to 3.4; colour histograms: Prisacariu and Reid, "PWP3D", IJCV 2012.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.cad.render import Fragments, rasterize
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection, levenberg_marquardt
from geopose.stages import Reading, cut

Array = NDArray[Any]

SIDES = (64, 208)  # pixels of the crop that is looked at, least and most
MARGIN = 1.5  # side of the crop over the silhouette's
REACH = (0.10, 0.06, 0.035)  # object sizes that the contour may be away, round by round
MOST_LINES = 120
BINS = 16  # of each colour
_COLOUR, _MASK = 3.0, 4.0  # most that a colour, and the mask, may say (log odds)
_TEMPER = 0.15  # neighbouring pixels repeat one another
_FLOOR_PX = 0.7  # of a contour's place: blur, and the drawn silhouette's steps
_NEAR = 0.02  # object sizes; a contour nearer than this agrees
_FEW = 12  # lines that are too few
_CONTRADICTION = 16.8  # 99 % of a chi-square of 6 degrees of freedom: keypoints would rather not go there


@dataclass(frozen=True)
class Aligned:
    """A pose and what the contour says about it.

    pose: the better one, or that of the keypoints again; covariance: (6, 6) in the left tangent, None where the pose
    is that of the keypoints; gain: by how much the crop became likelier (log), 0 without a better pose; agreement:
    share of the contour lines that find the contour within 2 % of the object's size of where the pose has it.
    """

    pose: Pose
    covariance: Array | None
    gain: float
    agreement: float


@dataclass(frozen=True)
class _View:
    """A crop around the object: its camera, what says object or not (S, S) in log odds, and its seen part (S, S);
    what was drawn there at the first pose, see `silhouette`."""

    camera: Camera
    odds: NDArray[np.float32]
    seen: NDArray[np.float32]
    drawn: tuple[NDArray[np.float32], Fragments]


@dataclass(frozen=True)
class _Lines:
    """points: (3, M) of the mesh; normal: (2, M); place, sigma: (M,) of the contour along it, crop pixels."""

    points: Array
    normal: Array
    place: Array
    sigma: Array


def align(
    picture: NDArray[np.uint8],
    camera: Camera,
    pose: Pose,
    model: CadModel,
    reading: Reading,
    keypoints: Reprojection,
) -> Aligned:
    """The pose that explains keypoints and contour best, or the one given where the contour says nothing or contradicts
    the keypoints.

    Args:
        picture: (H, W, 3). pose: from the keypoints. model: a light mesh. reading: what the keypoint network said; its
            mask is where the object is seen. keypoints: the inliers, in pixels of `camera`.
    """
    nothing = Aligned(pose, None, 0.0, 0.0)
    box = _box(pose, model, camera)
    view = None if box is None else _look(picture, camera, pose, model, reading, box)
    if box is None or view is None:
        return nothing
    size = _size(box) * float(view.camera.fx) / float(camera.fx)  # crop pixels
    start, drawn = pose, view.drawn
    for reach in REACH:
        across = _correspond(view, drawn, pose, reach * size)
        if across is None:
            return nothing
        lines: _Lines = across

        def linearise(at: Pose, lines: _Lines = lines) -> tuple[Array, Array]:
            return _both(at, keypoints, lines, view.camera)

        best = levenberg_marquardt(
            None, linearise, pose, kernel="cauchy", scale=2.5, max_iterations=8, tolerance=1e-3
        )
        if not np.isfinite(best.cost):
            return nothing
        pose = best.pose
        drawn = silhouette(view.camera, pose, model)
    gain = _likelihood(view, drawn[0]) - _likelihood(view, view.drawn[0])
    dearer = float(np.square(keypoints.residual(pose)).sum() - np.square(keypoints.residual(start)).sum())
    better = gain > 0 and dearer < _CONTRADICTION
    away = _away(pose if better else start, lines, view.camera)[0]
    agreement = float((np.abs(away) < _NEAR * size).mean())
    if not better:
        return Aligned(start, None, 0.0, agreement)
    return Aligned(pose, np.linalg.inv(best.information), gain, agreement)


def _size(box: Array) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _box(pose: Pose, model: CadModel, camera: Camera) -> Array | None:
    points = pose.apply(model.vertices)
    if not (points[:, 2] > 1e-3 * model.diameter).all():
        return None
    px = np.asarray(camera.project(points))
    box = np.concatenate([px.min(0), px.max(0)])
    return box if np.isfinite(box).all() and _size(box) > 8 else None


def silhouette(view: Camera, pose: Pose, model: CadModel) -> tuple[NDArray[np.float32], Fragments]:
    """(H, W) one where the mesh is drawn, else zero, and the surface seen there."""
    seen = rasterize(pose.apply(model.vertices), model.faces, view, near=1e-3 * model.diameter)
    mask = np.zeros(view.size_wh[0] * view.size_wh[1], np.float32)
    mask[seen.pixel] = 1
    return mask.reshape(view.size_wh[1], view.size_wh[0]), seen


def _look(
    picture: NDArray[np.uint8], camera: Camera, pose: Pose, model: CadModel, reading: Reading, box: Array
) -> _View | None:
    side = int(np.clip(round(MARGIN * _size(box)), *SIDES))
    middle, half = 0.5 * (box[:2] + box[2:]), 0.5 * MARGIN * _size(box)
    square = np.concatenate([middle - half, middle + half])
    crop = cut(picture, square, (side, side))
    view = camera.crop_resize(square, (side, side))
    drawn = silhouette(view, pose, model)
    inside = drawn[0]
    if not inside.any() or inside.all():
        return None
    # the network's mask, from its own crop's cells to these pixels
    cells = reading.mask.shape[-1]
    scale = cells / (reading.box[2] - reading.box[0])
    grid = (np.arange(side) + 0.5) * (2 * half / side)
    at_x = ((square[0] + grid - reading.box[0]) * scale - 0.5).astype(np.float32)
    at_y = ((square[1] + grid - reading.box[1]) * scale - 0.5).astype(np.float32)
    logit = np.log(np.clip(reading.mask, 1e-4, 1 - 1e-4) / (1 - np.clip(reading.mask, 1e-4, 1 - 1e-4)))
    map_x, map_y = np.meshgrid(at_x, at_y)
    mask = cv2.remap(
        logit.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    seen = 1 / (1 + np.exp(-mask))
    # what is surely object and what surely not teach the colours
    sure = cv2.erode(inside, np.ones((3, 3), np.uint8)) * seen
    other = (1 - cv2.dilate(inside, np.ones((5, 5), np.uint8))) * (1 - seen)
    if sure.sum() < 30 or other.sum() < 30:
        return None
    index = (crop // (256 // BINS)).astype(np.int32)
    index = (index[..., 0] * BINS + index[..., 1]) * BINS + index[..., 2]
    tables = []
    for weight in (sure, other):
        counts = (
            np.bincount(index.ravel(), weight.ravel(), BINS**3).reshape(BINS, BINS, BINS).astype(np.float32)
        )
        for axis in range(3):
            counts = _smooth(counts, axis)
        tables.append(counts.ravel() / counts.sum() + 0.3 / BINS**3)
    colour = np.log(tables[0] / tables[1])[index].astype(np.float32)
    odds = np.clip(colour, -_COLOUR, _COLOUR) + np.clip(mask, -_MASK, _MASK)
    xs, ys = square[0] + grid, square[1] + grid
    height, width = picture.shape[:2]
    odds[(ys < 0) | (ys > height - 1)] = 0  # beyond the picture nothing is known
    odds[:, (xs < 0) | (xs > width - 1)] = 0
    return _View(view, odds, seen, drawn)


def _smooth(counts: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Counts blurred with (1, 2, 1) / 4 along an axis."""
    padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
    take = lambda a, b: padded[tuple(slice(a, b) if i == axis else slice(None) for i in range(3))]  # noqa: E731
    return 0.25 * take(0, -2) + 0.5 * take(1, -1) + 0.25 * take(2, None)


def _correspond(
    view: _View, drawn: tuple[NDArray[np.float32], Fragments], pose: Pose, reach: float
) -> _Lines | None:
    """Where the contour is, on lines across what was `drawn` at `pose`, at most `reach` crop pixels away."""
    inside, fragments = drawn
    side = inside.shape[0]
    rim = (inside > 0) & (cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1) == 0)
    on_rim = np.flatnonzero(rim.ravel()[fragments.pixel])
    if len(on_rim) < _FEW:
        return None
    on_rim = on_rim[np.linspace(0, len(on_rim) - 1, min(MOST_LINES, len(on_rim))).astype(int)]
    soft = cv2.GaussianBlur(inside, (0, 0), 1.2)
    gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.125)
    y, x = np.divmod(fragments.pixel[on_rim], side)
    slope = np.hypot(gx[y, x], gy[y, x])
    steep = slope > 0.05
    on_rim, x, y, slope = on_rim[steep], x[steep], y[steep], slope[steep]
    if len(on_rim) < _FEW:
        return None
    normal = -np.stack([gx[y, x], gy[y, x]]) / slope
    edge = np.clip(
        (soft[y, x] - 0.5) / slope, -1, 1
    )  # the drawn contour is this far beyond the pixel's centre
    steps = max(int(np.ceil(reach)), 3)
    along = np.arange(-steps - 2, steps + 3)
    at_x = (x + normal[0] * edge)[:, None] + normal[0][:, None] * along
    at_y = (y + normal[1] * edge)[:, None] + normal[1][:, None] * along
    odds = cv2.remap(
        view.odds,
        at_x.astype(np.float32),
        at_y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )
    # the object must be seen just inside of its contour: elsewhere the rim of something else would be followed
    depth = np.arange(2, 2 + max(4, steps))
    in_x = (x[:, None] - normal[0][:, None] * depth).astype(np.float32)
    in_y = (y[:, None] - normal[1][:, None] * depth).astype(np.float32)
    visible = cv2.remap(view.seen, in_x, in_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).max(1)
    # log p(d): inside of d all is object, beyond it nothing is
    total = _TEMPER * np.cumsum(odds, 1)
    total = 0.5 * (total[:, 1:-3] + total[:, 2:-2])  # the contour between two samples counts half of both
    shift = along[2:-2][None]
    p = np.exp(total - total.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = (p * shift).sum(1)
    variance = (p * (shift - mean[:, None]) ** 2).sum(1)
    known = (visible > 0.5) & (np.ptp(odds, axis=1) > 1)
    if known.sum() < _FEW:
        return None
    points = fragments.points(view.camera)[on_rim].astype(float)
    points = pose.inverse().apply(points)[known].T
    normal, mean, variance = normal[:, known].astype(float), mean[known], variance[known]
    place = normal[0] * x[known] + normal[1] * y[known] + mean
    # the pixel's centre stands for the contour that lies `edge` beyond it
    return _Lines(points, normal, place, np.sqrt(variance + _FLOOR_PX**2))


def _away(pose: Pose, lines: _Lines, view: Camera) -> tuple[Array, Array, Array]:
    """(M,) signed crop pixels from each line's contour to the pose's; (M, 3) points and pulls, camera frame."""
    cam = (pose.R @ lines.points).T + pose.t
    px, d = view.project_jacobian(cam)
    px, d = np.asarray(px), np.asarray(d)  # (M, 2), (M, 2, 3)
    distance = lines.normal[0] * px[:, 0] + lines.normal[1] * px[:, 1] - lines.place
    return np.where(cam[:, 2] > 0, distance, np.inf), cam, np.einsum("im,mij->mj", lines.normal, d)


def _both(pose: Pose, keypoints: Reprojection, lines: _Lines, view: Camera) -> tuple[Array, Array]:
    """Whitened residuals (2, N + M) of keypoints and lines, and their derivatives (6, 2, N + M)."""
    r, J = keypoints.linearise(pose)
    away, cam, pull = _away(pose, lines, view)
    r_lines = away / lines.sigma
    J_lines = (np.concatenate([pull, np.cross(cam, pull)], 1) / lines.sigma[:, None]).T  # (6, M)
    return (
        np.concatenate([r, np.stack([r_lines, np.zeros_like(r_lines)])], 1),
        np.concatenate([J, np.stack([J_lines, np.zeros_like(J_lines)], 1)], 2),
    )


def _likelihood(view: _View, inside: NDArray[np.float32]) -> float:
    """Log-likelihood of the crop under a silhouette, up to a constant."""
    return float(_TEMPER * (inside * view.odds).sum())


def mask_agreement(pose: Pose, reading: Reading, camera: Camera, model: CadModel) -> float:
    """How much of the predicted mask lies inside the pose's silhouette, in [0, 1]."""
    cells = reading.mask.shape[-1]
    view = replace(camera, distortion=()).crop_resize(reading.box, (cells, cells))
    drawn = silhouette(view, pose, model)[0].ravel()
    mask = reading.mask.ravel() > 0.5
    if not mask.any() or not drawn.any():
        return 0.0
    inside = float(drawn[mask].mean())
    # A pose whose silhouette dwarfs the mask is as wrong as one that misses it.
    return inside * min(1.0, 4 * float(mask.sum()) / float(drawn.sum()))


def keypoint_term(points_obj: Array, reading: Reading, inliers: Array, camera: Camera) -> Reprojection:
    """The keypoints' part of the least squares, in pixels of `camera`."""
    a, b, c = reading.cov_px[:, 0, 0], reading.cov_px[:, 0, 1], reading.cov_px[:, 1, 1]
    w11 = 1 / np.sqrt(c - b * b / a)
    whiten = np.stack([1 / np.sqrt(a), -b / a * w11, w11]) * np.asarray(inliers, bool)
    return Reprojection(points_obj.T, reading.points_px.T, whiten, camera.numpy())


__all__ = ["Aligned", "align", "keypoint_term", "mask_agreement", "silhouette"]
