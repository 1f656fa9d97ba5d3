"""The search among outliers of `_pipeline` for one small problem: the same samples, scores and verdicts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from geopose.geometry._correspondences import Problem
from geopose.geometry._fits import HYPOTHESES, OPTIMISE_STEPS, beyond_doubt
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._small import Descent, Floats, Small, starts, tangent_information
from geopose.geometry._small_fits import best_of, first_look, refine_all
from geopose.geometry.p3p import poses_of, triangle_depths
from geopose.geometry.ransac import MISSED, blocks, chance_missed, sample_triplets
from geopose.geometry.refine import LMResult, fast_pose

MOST_POINTS = 2000  # with more, the code for batches is no slower
_SOFT_STEPS, _SOFT_STOP, _HARD_STOP = 6, 0.1, 0.05  # as in `optimise`


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the search found: fits to the inliers, the inliers (N,), log false alarms, whether a mirror image fits."""

    runs: list[Descent]
    kept: Small
    inlier: NDArray[np.bool_]
    log_nfa: float
    mirrored: bool


def search(small: Small, limit: float, options: PnPOptions, seed: int) -> Consensus | None:
    """The consensus of the points; None where there are no hypotheses."""
    gate2 = options.gate_sigma**2
    guesses = _local_optima(small, options, seed)
    if not guesses:
        return None
    inlier = small.squared(guesses[0][1]) < gate2
    kept = small.select(inlier)
    fresh = starts(kept)[0] if np.count_nonzero(inlier) > 2 else None
    runs = refine_all(kept, [pose for _, pose in guesses] + list(fresh or ()), options)
    d2 = small.squared(best_of(runs).pose)
    mirror = Small(small.points * _MIRROR, small.xy, small.weight, small.bend, small.radius)
    both = starts(mirror)[0]
    mirrored = both is not None and any(run.cost < limit for run in first_look(mirror, both, limit, options))
    return Consensus(runs, kept, inlier, log_false_alarms(small, d2, inlier), mirrored)


def search_item(problem: Problem, i: int, limit: float, options: PnPOptions, seed: int) -> Consensus | None:
    """`search` in one item of a pinhole problem; the inliers are of all its points, (N,)."""
    valid = problem.valid[i]
    keep: slice | NDArray[np.bool_] = slice(None) if valid.all() else valid
    points = np.ones((4, int(np.count_nonzero(valid))))
    points[:3] = problem.pinhole.points[i][:, keep]
    white = problem.pinhole.whiten[i][:, keep]
    weight = white[::2]
    if (weight == weight[:, :1]).all():
        weight = weight[:, :1]
    bend = white[1] / white[0] if white[1].any() else None
    small = Small(points, problem.pinhole.xy[i][:, keep], weight, bend, math.sqrt(points.shape[1]))
    found = search(small, limit, options, seed)
    if found is None:
        return None
    inlier = np.zeros(len(valid), bool)
    inlier[keep] = found.inlier
    return replace(found, inlier=inlier)


def together(
    found: list[Consensus],
) -> tuple[LMResult, NDArray[np.bool_], Floats, NDArray[np.bool_]]:
    """Candidates (K, S), inliers (S, N), log false alarms (S,) and mirrored (S,) of several searches."""
    runs = [[run for run in one.runs if run.gram is not None] for one in found]
    shape = max(len(these) for these in runs), len(found)
    R, t, information = (np.full((*shape, *tail), np.nan) for tail in ((3, 3), (3,), (6, 6)))
    cost, converged = np.full(shape, np.inf), np.zeros(shape, bool)
    for s, these in enumerate(runs):
        for k, run in enumerate(these):
            R[k, s], t[k, s] = run.pose[:3, :3], run.pose[:3, 3]
            cost[k, s], converged[k, s] = run.cost, run.converged
            information[k, s] = tangent_information(run.gram)
    result = LMResult(fast_pose(R, t), cost, information, converged, 0)
    log_nfa, mirrored = (np.array([getattr(one, name) for one in found]) for name in ("log_nfa", "mirrored"))
    return result, np.array([one.inlier for one in found]), log_nfa, mirrored


_MIRROR = np.array([[-1.0], [-1.0], [-1.0], [1.0]])


def _local_optima(small: Small, options: PnPOptions, seed: int) -> list[tuple[float, Floats]]:
    """Up to four truncated costs and poses (4, 4), least first: `_pipeline._local_optima`."""
    gate = options.gate_sigma
    guesses = _hypotheses(small, gate, options.max_samples, HYPOTHESES, seed)
    if not guesses:
        return []
    hard = [_harden(small, _soften(small, guesses[0], gate), gate)]
    d2 = small.squared(hard[0][1])
    if log_false_alarms(small, d2, d2 < gate * gate) < beyond_doubt(options):
        return hard
    soft = [_soften(small, guess, gate) for guess in guesses]
    soft.sort(key=lambda pose: _truncated(small, pose, gate))
    hard = [_harden(small, pose, gate) for pose in soft[: (len(soft) + 1) // 2]]
    return sorted(hard, key=lambda found: found[0])


def _soften(small: Small, pose: Floats, gate: float) -> Floats:
    """`pose` after a few steps under Geman-McClure's kernel."""
    run = Descent(lambda at: small.soft(at, "geman_mcclure", gate), pose)
    for _ in range(_SOFT_STEPS):
        if run.done:
            break
        run.step(_SOFT_STOP)
    return run.pose


def _harden(small: Small, pose: Floats, gate: float) -> tuple[float, Floats]:
    """The local minimum of the truncated cost near `pose`: cost and pose."""
    run = Descent(lambda at: small.soft(at, "truncated", gate), pose)
    for _ in range(OPTIMISE_STEPS):
        if run.done:
            break
        run.step(_HARD_STOP)
    return run.cost, run.pose


def _truncated(small: Small, pose: Floats, gate: float) -> float:
    return float(np.minimum(small.squared(pose), gate * gate).sum())


def _hypotheses(small: Small, gate: float, most: int, keep: int, seed: int) -> list[Floats]:
    """The `keep` best three-point poses (4, 4), best first: `hypothesise`."""
    n = small.points.shape[1]
    table = sample_triplets(n, most, seed).T
    rays = np.ones((3, n))
    rays[:2] = small.xy
    rays /= np.sqrt((rays * rays).sum(0))
    kept, costs = np.empty((3, 4, 0)), np.empty(0)
    for block in blocks(most):
        index = table[:, block]
        if index.shape[1] == 0:
            break
        points, bearings = (a[:3].take(index, 1).swapaxes(0, 1) for a in (small.points, rays))
        depths = triangle_depths(points, bearings, polish=1).reshape(3, -1)
        found = np.flatnonzero(depths[0] == depths[0])
        sample = found % index.shape[1]
        R, t = poses_of(points.take(sample, 2), bearings.take(sample, 2), depths.take(found, 1))
        poses = np.concatenate([R, t[:, None]], 1)
        cost = _scores(small, poses, gate)
        kept, costs = np.concatenate([kept, poses], 2), np.concatenate([costs, cost])
        order = np.argsort(costs, kind="stable")[:keep]
        kept, costs = kept.take(order, 2), costs.take(order)
        if len(costs):
            share = np.count_nonzero(small.squared(_square(kept[..., 0])) < gate * gate) / n
            if chance_missed(share, block.stop) <= MISSED:
                break
    return [_square(kept[..., k]) for k in range(len(costs))]


def _square(pose: Floats) -> Floats:
    return np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])


def _scores(small: Small, poses: Floats, gate: float) -> Floats:
    """(V,) truncated costs of poses (3, 4, V)."""
    x, y, z = (row.T.dot(small.points) for row in poses)
    behind = z <= 0
    x /= z
    x -= small.xy[0]
    x *= small.weight[0]
    y /= z
    y -= small.xy[1]
    y *= small.weight[1]
    if small.bend is not None:
        y += small.bend * x
    x *= x
    y *= y
    x += y
    np.minimum(x, gate * gate, out=x)
    x[behind] = gate * gate
    return np.add.reduce(x, 1)


def log_false_alarms(small: Small, d2: Floats, inlier: NDArray[np.bool_]) -> float:
    """`ransac.log_false_alarms` with the chances of `ransac.chance_of_distance`."""
    n, k = len(d2), np.count_nonzero(inlier)
    if k <= 3:
        return math.inf
    xy = np.sort(small.xy, 1)
    sides = _quartile(xy, 0.75) - _quartile(xy, 0.25)
    area = 4 * sides.prod() * np.broadcast_to(small.weight[0] * small.weight[1], (n,))[inlier]
    chance = np.pi * d2[inlier] / area
    chance[chance != chance] = 1.0
    sums = np.cumsum(np.sort(np.clip(chance, 1e-30, 1.0)))[3:]
    free = np.arange(1, k - 2)
    return float((_subsets(n)[: k - 3] + free * np.log(sums)).min())


@functools.lru_cache(maxsize=256)
def _subsets(n: int) -> Floats:
    """Logarithm of (n - 3) C(n, k) / (k - 3)! for k = 4 ... n."""
    factorial = np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))
    k = np.arange(4, n + 1)
    return np.log(n - 3) + factorial[n] - factorial[k] - factorial[n - k] - factorial[k - 3]


def _quartile(rows: Floats, share: float) -> Floats:
    """The quantile of sorted rows (2, N)."""
    place = share * (rows.shape[1] - 1)
    low = int(place)
    return rows[:, low] + (place - low) * (rows[:, min(low + 1, rows.shape[1] - 1)] - rows[:, low])
