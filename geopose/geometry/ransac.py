"""Robust estimation: minimal samples, truncated scores, local optimisation, significance."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, namespace
from geopose.geometry.p3p import poses_of, triangle_depths
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection, fast_pose, levenberg_marquardt

BLOCK = 128  # samples of the first look; more are drawn only where it did not settle the matter
MISSED = 1e-6  # chance of having drawn no three inliers that ends the search
_CHUNK = 2_000_000  # residuals computed at once: bounds the memory


@functools.lru_cache(maxsize=64)
def sample_triplets(count: int, most: int, seed: int) -> np.ndarray:
    """(H, 3) int, H <= `most`, triplets of range(count): all of them in random order, or a random choice."""
    if count < 3:
        return np.zeros((0, 3), int)
    rng = np.random.default_rng(seed)
    if math.comb(count, 3) <= most:
        return rng.permutation(_every_triplet(count))
    i, j, k = (rng.random((3, most)) * [[count], [count - 1], [count - 2]]).astype(int)
    j += j >= i  # the j-th of those that are left
    k += k >= np.minimum(i, j)
    k += k >= np.maximum(i, j)
    return np.stack([i, j, k], -1)


@functools.lru_cache(maxsize=64)
def _every_triplet(count: int) -> np.ndarray:
    return np.array(list(itertools.combinations(range(count), 3)))


@np.errstate(all="ignore")  # poses that do not exist are NaN
def hypothesise(problem: Reprojection, gate: float, most: int, keep: int, seed: int) -> tuple[Pose, Array]:
    """The `keep` best of all three-point poses, batch (keep, B), and their truncated costs (keep, B).

    Args:
        problem: pinhole problem, batch (B,), normalised coordinates; points of weight zero are never drawn.
        gate: standard deviations beyond which a residual costs no more.
        most: samples per item.
        seed: of the samples. An item's samples depend on it and on the item's number of points only.
    Notes:
        Every sample gives up to four poses (`p3p`), every pose is scored on every point at once: MSAC (Torr
        and Zisserman 2000) in Mahalanobis units. Samples come in blocks; a block ends the search where the best
        pose's share e of inliers leaves a chance (1 - e^3)^H below 1e-6 of never having drawn three inliers.
    """
    xp = namespace(problem.points)
    weight = problem.whiten[..., 0, :]
    valid = _to_numpy(weight) > 0  # (B, N)
    tables = {n: sample_triplets(n, most, seed) for n in np.unique(valid.sum(-1)).tolist()}
    order = np.argsort(~valid, axis=-1, kind="stable")
    active = np.arange(len(valid))
    best_pose: Pose | None = None
    best_cost: Any = None
    for block in blocks(most):
        size = max((len(tables[n][block]) for n in valid[active].sum(-1).tolist()), default=0)
        if size == 0:
            break
        index = np.zeros((len(active), size, 3), int)
        for row, item in enumerate(active):
            table = tables[int(valid[item].sum())][block]
            index[row, : len(table)] = order[item][table]  # rows left at 0, 0, 0 give no pose
        step = max(1, _CHUNK // (4 * size * valid.shape[1]))
        parts = []
        for i in range(0, len(active), step):
            sub = problem.item(_like(active[i : i + step], problem.points))
            parts.append(_score_samples(sub, _like(index[i : i + step], problem.points), gate, keep))
        pose = fast_pose(*(xp.concatenate([getattr(p, k) for p, _ in parts], 1) for k in ("R", "t")))
        cost = xp.concatenate([c for _, c in parts], 1)
        if best_pose is None:
            best_pose, best_cost = pose, cost
        else:
            old = fast_pose(best_pose.R[:, active], best_pose.t[:, active])
            both = fast_pose(xp.concatenate([old.R, pose.R]), xp.concatenate([old.t, pose.t]))
            pose, cost = _best(both, xp.concatenate([best_cost[:, active], cost]), keep)
            best_pose.R[:, active], best_pose.t[:, active], best_cost[:, active] = pose.R, pose.t, cost
        d2 = squared_residuals(problem, fast_pose(best_pose.R[0], best_pose.t[0]))
        share = _to_numpy(((d2 < gate * gate) & (weight > 0)).sum(-1)) / np.maximum(valid.sum(-1), 1)
        active = np.flatnonzero(chance_missed(share, block.stop) > MISSED)
        if len(active) == 0:
            break
    if best_pose is None:
        raise ValueError("problem: expected an item with three points or more")
    return best_pose, best_cost


def chance_missed(share: Any, samples: int) -> Any:
    """The chance that no sample held three inliers, if these are the given share of the points."""
    return (1 - share**3) ** samples


def blocks(most: int) -> list[slice]:
    """Ranges that double the number of samples drawn so far, up to `most`."""
    ends = [BLOCK]
    while ends[-1] < most:
        ends.append(2 * ends[-1])
    return [slice(a, min(b, most)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _score_samples(problem: Reprojection, index: Array, gate: float, keep: int) -> tuple[Pose, Array]:
    """The best `keep` poses (keep, B) and costs of the samples `index` (B, H, 3)."""
    xp = namespace(problem.points)
    batch, count = index.shape[:2]
    rows = _like(np.arange(batch), problem.points)[:, None]
    rays = xp.concatenate([problem.xy, xp.ones_like(problem.xy[:, :1])], 1)
    rays = rays / xp.sqrt((rays * rays).sum(1))[:, None]
    points, rays = (xp.moveaxis(a, 1, 0) for a in (problem.points, rays))  # (3, B, N)
    points, rays = (xp.stack([a[:, rows, index[..., k]] for k in range(3)]) for a in (points, rays))
    depths = xp.moveaxis(triangle_depths(points, rays, polish=0), 1, 2).reshape((3, batch, 4 * count))
    none = xp.isnan(depths[0])  # about half: leave out what no item has
    order = _stable(none * 1)[:, : max(int((~none).sum(-1).max()), min(keep, count * 4))]
    sample = order % count
    R, t = poses_of(points[:, :, rows, sample], rays[:, :, rows, sample], depths[:, rows, order])
    pose = fast_pose(xp.moveaxis(R, (0, 1), (2, 3)), xp.moveaxis(t, 0, 2))
    wide = Reprojection(problem.points[:, None], problem.xy[:, None], problem.whiten[:, None])
    cost = truncated_cost(wide, pose, gate)
    pose = fast_pose(xp.moveaxis(pose.R, 1, 0), xp.moveaxis(pose.t, 1, 0))
    return _best(pose, xp.moveaxis(cost, 1, 0), keep)


def _best(pose: Pose, cost: Array, keep: int) -> tuple[Pose, Array]:
    xp = namespace(cost)
    order: Any = (
        np.argsort(cost, axis=0, kind="stable") if xp is np else torch.sort(cost, dim=0, stable=True)[1]
    )
    order = order[:keep]
    rows = _like(np.arange(cost.shape[1]), cost)[None]
    return fast_pose(pose.R[order, rows], pose.t[order, rows]), cost[order, rows]


def _stable(values: Array) -> Any:
    """Indices that sort the last axis; equals keep their order, in torch as in numpy."""
    if isinstance(values, torch.Tensor):
        return torch.sort(values, dim=-1, stable=True)[1]
    return np.argsort(values, axis=-1, kind="stable")


def squared_residuals(problem: Reprojection, pose: Pose) -> Array:
    """(..., N) squared Mahalanobis distances; infinite behind the camera and where the pose is not finite."""
    xp = namespace(problem.points)
    with np.errstate(all="ignore"):
        r = problem.residual(pose)
        d2 = (r * r).sum(-2)
    return xp.where(xp.isnan(d2), xp.inf, d2)


def truncated_cost(problem: Reprojection, pose: Pose, gate: float) -> Array:
    """(...) sum of min(d^2, gate^2) over the points that count; infinite where the pose is not finite."""
    xp = namespace(problem.points)
    d2 = squared_residuals(problem, pose)
    d2 = xp.where((problem.whiten[..., 0, :] > 0), xp.clip(d2, None, gate * gate), 0.0)
    return xp.where(xp.isfinite(pose.t[..., 0]), d2.sum(-1), xp.inf)


def optimise(problem: Reprojection, pose: Pose, gate: float, iterations: int) -> tuple[Pose, Array]:
    """The better half of the poses (K, B) moved to a local minimum of the truncated cost, and that cost.

    A few steps under Geman-McClure's kernel first, whose wider basin takes in the inliers that a noisy
    three-point pose has lost.
    """
    soft = levenberg_marquardt(
        None, problem.linearise, pose, kernel="geman_mcclure", scale=gate, max_iterations=6, tolerance=0.1
    )
    # the promising half
    start, _ = _best(soft.pose, truncated_cost(problem, soft.pose, gate), (len(soft.cost) + 1) // 2)
    hard = levenberg_marquardt(
        None,
        problem.linearise,
        start,
        kernel="truncated",
        scale=gate,
        max_iterations=iterations,
        tolerance=0.05,
    )
    return hard.pose, hard.cost


def chance_of_distance(problem: Reprojection, d2: Array, valid: Array) -> np.ndarray:
    """(B, N) the chance of a random pixel to lie as close to its projection as each point does, in (0, 1].

    Args:
        problem: pinhole problem; d2: (B, N) squared Mahalanobis distances; valid: (B, N) bool.
    Notes:
        The ellipse through the point over the area where the points lie: a rectangle twice as wide and high
        as their quartiles are apart, which is all of it for random pixels and does not follow a few far
        outliers.
    """
    xy, white, d2, valid = (_to_numpy(a) for a in (problem.xy, problem.whiten, d2, valid))
    xy = np.sort(np.where(valid[:, None], xy, np.inf), -1)
    last = np.maximum(valid.sum(-1) - 1, 0)[:, None, None]
    sides = []
    for share in (0.25, 0.75):
        low = np.floor(share * last).astype(int)
        part = share * last - low
        below, above = (np.take_along_axis(xy, np.minimum(k, last), -1)[..., 0] for k in (low, low + 1))
        sides.append(below + part[..., 0] * (above - below))
    area = 4 * np.prod(sides[1] - sides[0], -1)[:, None]
    with np.errstate(all="ignore"):
        chance = np.pi * d2 / (white[..., 0, :] * white[..., 2, :]) / area
    return np.where(np.isfinite(chance), np.clip(chance, 1e-30, 1.0), 1.0)


def log_false_alarms(chance: Array, inlier: Array, valid: Array) -> np.ndarray:
    """(...) logarithm of the number of point subsets expected to fit random pixels as well as the inliers do.

    Args:
        chance: (..., N) in (0, 1]: how likely a random pixel lies as close to its projection as the point
        does.
        inlier, valid: (..., N) bool.
    Notes:
        After Moisan and Stival, "A probabilistic criterion to detect rigid point matches", IJCV 2004. A
        fitted pose takes up three points, so k points within summed chance S have probability about S^m / m!,
        m = k - 3 (the volume of a ball in 2m dimensions, times that of all poses' pictures, taken as one).
        There are C(n, k) subsets and n - 3 choices of k: (n - 3) C(n, k) S^m / m!, the least over k. It leans
        to the strict side: on random pixels about 0.5 % lie below 0.015. With three inliers: +inf.
    """
    chance, inlier, valid = (_to_numpy(a) for a in (chance, inlier, valid))
    n = np.maximum(valid.sum(-1), 3)[..., None]
    sums = np.cumsum(np.sort(np.where(inlier & valid, chance, np.inf), axis=-1), axis=-1)
    k = np.minimum(np.maximum(np.arange(1, sums.shape[-1] + 1), 3), n)
    # log factorials
    lf = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(sums.shape[-1], 4) + 1)))])
    with np.errstate(all="ignore"):
        value = np.log(n - 3) + lf[n] - lf[k] - lf[n - k] + (k - 3) * np.log(sums) - lf[k - 3]
    return np.where((np.arange(1, sums.shape[-1] + 1) > 3) & np.isfinite(sums), value, np.inf).min(-1)


def _to_numpy(x: Array) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


def _like(x: np.ndarray, like: Array) -> Any:
    return torch.as_tensor(x, device=like.device) if isinstance(like, torch.Tensor) else x
