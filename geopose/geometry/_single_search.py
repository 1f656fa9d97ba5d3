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
from geopose.geometry._small import Descent, Floats, Small, Starts, starts, tangent_information
from geopose.geometry._small_fits import best_of, first_look, refine_all, rivals_of
from geopose.geometry.p3p import poses_of, triangle_depths
from geopose.geometry.ransac import MISSED, blocks, chance_missed, sample_triplets
from geopose.geometry.refine import LMResult, fast_pose

MOST_POINTS = 2000  # with more, the code for batches is no slower
_SOFT_STEPS, _SOFT_STOP, _HARD_STOP = 6, 1.0, 0.05


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the search found: fits to the inliers, the inliers (N,), log false alarms, whether a mirror image fits."""

    runs: list[Descent]
    kept: Small
    inlier: NDArray[np.bool_]
    log_nfa: float
    mirrored: bool


def search(small: Small, both: Starts, limit: float, options: PnPOptions, seed: int) -> Consensus | None:
    """The consensus of the points, `both` being the starts from all of them; None where there are no hypotheses."""
    guesses, log_nfa = _local_optima(small, options, seed)
    if not guesses:
        return None
    best, gate2 = guesses[0], options.gate_sigma**2
    inlier = small.squared(best.pose) < gate2
    number = np.count_nonzero(inlier)
    kept = small.select(inlier)
    fresh = starts(kept) if number > 2 else None
    others = [] if fresh is None else fresh.poses
    inside = best.cost - gate2 * (len(inlier) - number)
    if log_nfa < beyond_doubt(options) and _plain(best, kept, inside):
        runs = [best, *rivals_of(best, kept, others, options)]
    else:
        runs = refine_all(kept, [run.pose for run in guesses] + list(others), options)
    if best_of(runs) is not best:
        log_nfa = log_false_alarms(small, small.squared(best_of(runs).pose), inlier)
    mirrored = any(run.cost < limit for run in first_look(small, _mirrored(small, both), limit, options))
    return Consensus(runs, kept, inlier, log_nfa, mirrored)


def _plain(best: Descent, kept: Small, inside: float) -> bool:
    """Make `best`, a minimum of the truncated cost, a minimum of the cost of the points inside the gate, `kept`; false
    where it is none, because a point came or went with the last step."""
    if not best.converged:
        return False
    d2 = kept.squared(best.pose)
    if not abs(d2.sum() - inside) <= 1e-6 * (1 + abs(inside)):
        return False
    best.cost, best.gram[6, 6] = max(inside, 0.0), max(inside, 0.0)
    return True


def _mirrored(small: Small, both: Starts) -> list[Floats]:
    """Starts for the mirror image of the object; near the camera from scratch, so that none has a point behind."""
    poses = both.mirrored()
    if all(pose[2].dot(small.points).min().item() > 0.25 * pose.item(11) for pose in poses):
        return poses
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    found = starts(Small(flip.dot(small.points), small.xy, small.weight, small.bend, small.radius))
    return [] if found is None else [pose.dot(flip) for pose in found.poses]


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
    both = starts(small)
    found = None if both is None else search(small, both, limit, options, seed)
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


def _local_optima(small: Small, options: PnPOptions, seed: int) -> tuple[list[Descent], float]:
    """Up to four minima of the truncated cost, least first (`_pipeline._local_optima`), and the logarithm of the false
    alarms of the first hypothesis' one. Where that is beyond doubt it is the only one, and exact."""
    gate2 = options.gate_sigma**2
    guesses, costs = _hypotheses(small, gate2, options.max_samples, HYPOTHESES, seed)
    if not len(costs):
        return [], math.inf
    best = _harden(small, _soften(small, _square(guesses[..., 0]), gate2), gate2, options.tolerance)
    d2 = small.squared(best.pose)
    log_nfa = log_false_alarms(small, d2, d2 < gate2)
    if log_nfa < beyond_doubt(options):
        return [best], log_nfa
    soft = [_soften(small, _square(guesses[..., k]), gate2) for k in range(len(costs))]
    soft.sort(key=lambda pose: _truncated(small, pose, gate2))
    hard = [_harden(small, pose, gate2, _HARD_STOP) for pose in soft[: (len(soft) + 1) // 2]]
    return sorted(hard, key=lambda run: run.cost), math.inf


def _soften(small: Small, pose: Floats, gate2: float) -> Floats:
    """`pose` after a few steps under Geman-McClure's kernel."""
    run = Descent(lambda at: small.geman_mcclure(at, gate2), pose)
    run.run(_SOFT_STEPS, _SOFT_STOP)
    return run.pose


def _harden(small: Small, pose: Floats, gate2: float, tolerance: float) -> Descent:
    """The local minimum of the truncated cost near `pose`."""
    run = Descent(lambda at: small.truncated(at, gate2), pose)
    run.run(OPTIMISE_STEPS, tolerance)
    return run


def _truncated(small: Small, pose: Floats, gate2: float) -> float:
    return float(np.minimum(small.squared(pose), gate2).sum())


def _hypotheses(small: Small, gate2: float, most: int, keep: int, seed: int) -> tuple[Floats, Floats]:
    """The `keep` best three-point poses (3, 4, keep), best first, and their truncated costs (keep,): `hypothesise`."""
    n = small.points.shape[1]
    tables = _tables(n, most, seed)
    rays = np.ones((3, n))
    rays[:2] = small.xy
    rays /= np.sqrt((rays * rays).sum(0))
    kept, costs, share = np.empty((3, 4, 0)), np.empty(0), 0.0
    drawn = 0
    for index in tables:
        drawn += index.shape[1]
        points, bearings = (a[:3].take(index, 1).swapaxes(0, 1) for a in (small.points, rays))
        depths = triangle_depths(points, bearings, polish=0).reshape(3, -1)
        found = np.flatnonzero(depths[0] == depths[0])
        sample = found % index.shape[1]
        R, t = poses_of(points.take(sample, 2), bearings.take(sample, 2), depths.take(found, 1))
        poses = np.concatenate([R, t[:, None]], 1)
        squared = _capped(small, poses, gate2)
        cost = np.add.reduce(squared, 1)
        before = len(costs)
        if before:
            poses, cost = np.concatenate([kept, poses], 2), np.concatenate([costs, cost])
        order = np.argsort(cost, kind="stable")[:keep]
        kept, costs = poses.take(order, 2), cost.take(order)
        if len(costs):
            if order[0] >= before:
                share = np.count_nonzero(squared[order[0] - before] < gate2) / n
            if chance_missed(share, drawn) <= MISSED:
                break
    return kept, costs


@functools.lru_cache(maxsize=64)
def _tables(n: int, most: int, seed: int) -> list[NDArray[np.int64]]:
    """The samples (3, H) of each block."""
    table = sample_triplets(n, most, seed)
    return [np.ascontiguousarray(table[block].T) for block in blocks(most) if block.start < len(table)]


def _square(pose: Floats) -> Floats:
    return np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])


def _capped(small: Small, poses: Floats, gate2: float) -> Floats:
    """(V, N) squared whitened residuals at poses (3, 4, V), at most gate2, which is also that of points behind."""
    count, n = poses.shape[2], small.points.shape[1]
    z = poses[2].T.dot(small.points)
    r = poses[:2].swapaxes(1, 2).reshape(2 * count, 4).dot(small.points).reshape(2, count, n)
    r /= z
    r -= small.xy[:, None]
    r *= small.weight[:, None]
    if small.bend is not None:
        r[1] += small.bend * r[0]
    r *= r
    squared: Floats = r[0]
    squared += r[1]
    np.minimum(squared, gate2, out=squared)
    if count and not poses[2, 3].min() > small.radius:
        squared[z <= 0] = gate2
    return squared


def log_false_alarms(small: Small, d2: Floats, inlier: NDArray[np.bool_]) -> float:
    """`ransac.log_false_alarms` with the chances of `ransac.chance_of_distance`."""
    n, k = len(d2), np.count_nonzero(inlier)
    if k <= 3:
        return math.inf
    places, shares = _quartiles(n)
    width, height = np.sort(small.xy, 1).take(places, 1).dot(shares).tolist()
    density = math.pi / (4 * width * height) if width * height > 0 else math.inf
    chance = d2[inlier]
    if small.weight.shape[1] == 1:
        chance *= density / small.weight.prod().item()
    else:
        chance *= density / (small.weight[0] * small.weight[1])[inlier]
    chance[chance != chance] = 1.0
    chance.sort()
    sums = np.add.accumulate(np.minimum(np.maximum(chance, 1e-30), 1.0))[3:]
    subsets, free = _subsets(n)
    return float((subsets[: k - 3] + free[: k - 3] * np.log(sums)).min())


@functools.lru_cache(maxsize=256)
def _subsets(n: int) -> tuple[Floats, Floats]:
    """Logarithm of (n - 3) C(n, k) / (k - 3)!, and k - 3, for k = 4 ... n."""
    factorial = np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))
    k = np.arange(4, n + 1)
    return np.log(n - 3) + factorial[n] - factorial[k] - factorial[n - k] - factorial[k - 3], np.arange(
        1.0, n - 2
    )


@functools.lru_cache(maxsize=256)
def _quartiles(n: int) -> tuple[NDArray[np.int64], Floats]:
    """Places among n sorted numbers, and factors that make of these the distance between the quartiles."""
    places, shares = [], []
    for share, sign in ((0.25, -1.0), (0.75, 1.0)):
        place = share * (n - 1)
        low = int(place)
        places += [low, min(low + 1, n - 1)]
        shares += [sign * (1 - (place - low)), sign * (place - low)]
    return np.array(places), np.array(shares)
