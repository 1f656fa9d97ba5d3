"""`solve_pnp` for one small problem: the steps of `_pipeline`, without what only a batch needs.

Whatever is not usual here (a missing point, collinear points, a distorting camera, a pose that the points do
not determine) is left to `_pipeline`, which gives the same answers to all else, more slowly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri

from geopose.geometry._correspondences import Problem, whiten
from geopose.geometry._fits import RIVAL
from geopose.geometry._pipeline import Found, finish
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._pnp_result import PnPResult
from geopose.geometry._single_search import MOST_POINTS, Consensus, search
from geopose.geometry._small import (
    SIGN_PAIRS,
    TO_TANGENT,
    Descent,
    Floats,
    Small,
    starts,
    tangent_information,
)
from geopose.geometry._small_fits import best_of, first_look, limit_of
from geopose.geometry._verdict import FAR, KEY, SAME, judge
from geopose.geometry.camera import Camera
from geopose.geometry.refine import Reprojection, fast_pose

_LOWER = np.maximum(TO_TANGENT[:, None], TO_TANGENT) * 6 + np.minimum(TO_TANGENT[:, None], TO_TANGENT)


@dataclass(frozen=True, slots=True)
class _Scene:
    """A problem in a centred object frame of unit size, and the way back."""

    small: Small
    centre: Floats
    size: float
    focal: tuple[float, float]
    count: int


@np.errstate(all="ignore")
def solve_one(
    obj: Any, px: Any, cov: Any, camera: Camera, options: PnPOptions, seed: int
) -> PnPResult | Found | None:
    """The result of one problem, points (N, 3), pixels (N, 2), float64; None where `_pipeline` has to do it."""
    n = len(px)
    if not 4 <= n <= MOST_POINTS or options.kernel != "none" or camera.batch_shape or _distorts(camera):
        return None
    scene = _prepare(obj, px, cov, camera, options)
    if scene is None:
        return None
    small, gate2 = scene.small, options.gate_sigma**2
    both = starts(small)
    if both is None or (both.flat and not _four_different(small)):
        return None
    limit = limit_of(2 * n - 6)
    runs = first_look(small, both.poses, limit, options)
    best, every = best_of(runs), np.ones(n, bool)
    # within a cost of gate2 no point can lie outside of the gate
    if best.cost < limit and (best.cost < gate2 or small.squared(best.pose).max() < gate2):
        return _finish(scene, Consensus(runs, small, every, -math.inf, False), camera, options)
    found = search(small, both, limit, options, seed)
    return None if found is None else _finish(scene, found, camera, options)


def _finish(scene: _Scene, found: Consensus, camera: Camera, options: PnPOptions) -> PnPResult | Found:
    runs, best = found.runs, best_of(found.runs)
    sure = found.inlier.all() or found.log_nfa < math.log(options.max_false_alarms)
    if best.converged and sure and not found.mirrored and camera.focal_rel_std == 0:
        rivals = [r for r in runs if r is not best and r.converged and r.cost < best.cost + RIVAL]
        result = _finish_one(scene, best, rivals, found)
        if result is not None:
            return result
    return _finish_many(scene, found, camera, options)


def _distorts(camera: Camera) -> bool:
    return len(camera.distortion) > 0 and any(camera.distortion)


def _prepare(obj: Any, px: Any, cov: Any, camera: Camera, options: PnPOptions) -> _Scene | None:
    """The problem centred, scaled and whitened as `prepare` does it; None where a number is not finite."""
    n = len(px)
    points = np.empty((4, n))
    points[3] = 1.0
    centre = points[3].dot(obj) / n
    inner = points[:3]
    np.subtract(obj.T, centre[:, None], inner)
    flat = inner.reshape(-1)
    squares = flat.dot(flat).item()
    if not 0.0 < squares < math.inf:
        return None
    size = math.sqrt(squares / n)
    inner /= size
    fx, fy = focal = camera.fx, camera.fy
    xy = px.T - np.array(((camera.cx,), (camera.cy,)))
    xy /= np.array(((fx,), (fy,)))
    if not math.isfinite(np.add.reduce(xy, axis=None)):
        return None
    bend: Floats | None = None
    if cov is None:
        weight = np.array(((fx / options.noise_px,), (fy / options.noise_px,)))
    else:
        if not math.isfinite(np.add.reduce(cov, axis=None)):
            return None
        w00, w10, w11 = whiten(cov)
        weight = np.array((w00 * fx, w11 * fy))
        bend = w10 / w00 if w10.any() else None
    return _Scene(Small(points, xy, weight, bend, math.sqrt(n)), centre, size, focal, n)


def _four_different(small: Small) -> bool:
    key = np.sort(np.array((*KEY, 0.0)).dot(small.points))
    return bool(np.count_nonzero(key[1:] - key[:-1] > SAME) > 2)


def _finish_one(scene: _Scene, best: Descent, rivals: list[Descent], found: Consensus) -> PnPResult | None:
    """The result where the rivals repeat `best`; None where one does not, or the pose is too vague for an `ok`."""
    root, info = dpotrf(best.gram[:6, :6], 1)
    if info:
        return None
    inverse, _ = dpotri(root, 1)
    covariance = inverse.take(_LOWER) * SIGN_PAIRS
    x, y, z, a, b, c = covariance.reshape(36)[::7].tolist()
    pose = best.pose
    R, t = pose[:3, :3].copy(), pose[:3, 3]
    distance = math.sqrt(t.dot(t))
    if not (a + b + c < 1.0 and math.sqrt(x + y + z) < distance < FAR):
        return None
    for rival in rivals:  # as `distinct` has it
        off = rival.pose[:3] - pose[:3]
        off *= off
        move, chord = off[:, 3].sum().item(), 0.5 * off[:, :3].sum().item()
        if chord > max(0.01 * (a + b + c), 1e-12) or move > max(0.01 * (x + y + z), 1e-12 * distance**2):
            return None
    small, size = found.kept, scene.size
    seen = small.points_cam(pose)
    off = seen[:2] / seen[2] - small.xy
    off *= np.array(((scene.focal[0],), (scene.focal[1],)))
    rms = math.sqrt((off * off).sum() / off.shape[1])
    covariance[:3] *= size
    covariance[:, :3] *= size
    whole = fast_pose(R, t * size - R.dot(scene.centre))
    return PnPResult(whole, covariance, found.inlier, "ok", "", np.float64(rms), ())


def _finish_many(scene: _Scene, found: Consensus, camera: Camera, options: PnPOptions) -> Found:
    """The same by the code for batches, which weighs several candidates and words the doubts."""
    runs = [run for run in found.runs if run.gram is not None]
    pose = fast_pose(
        np.array([run.pose[:3, :3] for run in runs])[:, None],
        np.array([run.pose[:3, 3] for run in runs])[:, None],
    )
    information = np.array([tangent_information(run.gram) for run in runs])[:, None]
    cost = np.array([[run.cost] for run in runs])
    converged = np.array([[run.converged] for run in runs])
    problem, inlier = _as_problem(scene), found.inlier[None]
    status, reason = np.full(1, "ok", dtype="<U16"), np.full(1, "", dtype=object)
    number, log_nfa = np.full(1, scene.count), np.full(1, found.log_nfa)
    judge(
        problem,
        np.zeros(1, int),
        inlier,
        log_nfa,
        np.array([found.mirrored]),
        options,
        status,
        reason,
        number,
    )
    return finish(
        problem, pose, cost, information, converged, inlier, camera, options, status, reason, number
    )


def _as_problem(scene: _Scene) -> Problem:
    small = scene.small
    weight = np.broadcast_to(small.weight, (2, scene.count))
    skew = weight[0] * (0.0 if small.bend is None else small.bend)
    x, y = small.xy
    same = Reprojection(
        small.points[None, :3], small.xy[None], np.array((weight[0], skew, weight[1]))[None], None
    )
    focal = np.array((weight[0] * x, skew * x + weight[1] * y))[None]
    valid = np.ones((1, scene.count), bool)
    return Problem(same, same, valid, scene.centre[None], np.array([scene.size]), focal, scene.focal)
