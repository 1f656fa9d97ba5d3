"""`_fits` for one small problem: several descents in turns."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from geopose.geometry._fits import FIRST_STEPS, RIVAL, SETTLED, TIE, chi2_limit, hopeless_cost
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._small import Descent, Floats, Small

_NEARER = 16.0  # squared ratio of distances


@functools.lru_cache(maxsize=4096)
def limit_of(freedom: int) -> float:
    """`chi2_limit`."""
    return float(chi2_limit(np.array(float(freedom))))


def first_look(small: Small, both: Sequence[Floats], limit: float, options: PnPOptions) -> list[Descent]:
    """Both starts refined on all points; `_fits.first_look` says when one is given up."""
    runs, spread = [Descent(small.plain, pose) for pose in both], None
    half = min(FIRST_STEPS, options.max_iterations)
    for first, last in ((0, half), (half, options.max_iterations)):
        if first:
            if not any(not run.converged and run.cost < limit + RIVAL for run in runs):
                break
            for run in runs:
                run.restart()
        for steps in range(first + 1, last + 1):
            for run in runs:
                if not run.done:
                    run.propose(options.tolerance)
            if min(run.expected for run in runs) > 10 * limit:
                spread = spread_of(small) if spread is None else spread
                fair = hopeless_cost(steps, limit, spread)
                if all(run.expected > fair for run in runs):
                    return runs
            for run in runs:
                run.settle()
            settled = any(run.length < SETTLED and run.cost < limit for run in runs)
            for run in runs:
                run.done = run.done or (settled and run.cost > limit + RIVAL)
            if all(run.done for run in runs):
                break
    return runs


def rivals_of(best: Descent, small: Small, starts: Sequence[Floats], options: PnPOptions) -> list[Descent]:
    """The starts refined, each until it is seen to be far from `best`, which has converged on the same points.

    A start is left out where it lies that much nearer to `best` than the other one does: it leads there.
    """
    off = [pose[:3, :3] - best.pose[:3, :3] for pose in starts]
    chord = [np.vdot(a, a).item() for a in off]
    worst, runs = best.cost + RIVAL, []
    for pose, length in zip(starts, chord, strict=True):
        if length * _NEARER < max(chord):
            continue
        run = Descent(small.plain, pose)
        for _ in range(options.max_iterations):
            if run.done:
                break
            run.propose(options.tolerance)
            if run.expected > worst:
                break
            run.settle()
            if run.cost > worst:
                break
        runs.append(run)
    return runs


def refine_all(small: Small, starts: list[Floats], options: PnPOptions) -> list[Descent]:
    """All starts refined, but for those far from the best one."""
    runs = [Descent(small.plain, pose) for pose in starts]
    for _ in range(options.max_iterations):
        for run in runs:
            if not run.done:
                run.step(options.tolerance)
        worst = min((run.cost for run in runs if run.length < SETTLED), default=math.inf) + RIVAL
        for run in runs:
            run.done = run.done or run.cost > worst
        if all(run.done for run in runs):
            break
    return runs


def best_of(runs: list[Descent]) -> Descent:
    """The one of least cost; of two that are the same the earlier one."""
    best = runs[0]
    for run in runs[1:]:
        if run.cost + TIE < best.cost:
            best = run
    return best


def spread_of(small: Small) -> float:
    """`_fits.spread_of`."""
    off = small.xy - np.add.reduce(small.xy, 1)[:, None] / small.xy.shape[1]
    off *= small.weight
    return float(np.vdot(off, off))
