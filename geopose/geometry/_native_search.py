"""The search among outliers in machine code: the samples, scores and verdicts of `ransac`, compiled by numba.

Arrays as in `_native_descents` and `_native_starts`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from geopose.geometry._fits import HYPOTHESES, OPTIMISE_STEPS
from geopose.geometry._native_descents import (
    CONVERGED,
    COST,
    GEMAN_MCCLURE,
    PLAIN,
    ROW0,
    TRUNCATED,
    WIDTH,
    add_rivals,
    begin,
    best_of,
    copy,
    descend,
    first_look,
    jit,
    refine_all,
    squared_residual,
)
from geopose.geometry._native_p3p import capped, hypothesise
from geopose.geometry._native_starts import find_starts, mirrored_starts

_SOFT = np.int64(HYPOTHESES)  # the first row of the descents that lead to those of the result
_ROWS = 2 * HYPOTHESES + 2
_SOFT_STEPS, _SOFT_STOP, _HARD_STOP = 6, 1.0, 0.05


class Settings(NamedTuple):
    """Of `PnPOptions` what the search needs; log_alarms: logarithm of `max_false_alarms`; doubt: `beyond_doubt`."""

    gate2: float
    tolerance: float
    most_steps: int
    log_alarms: float
    doubt: float


class Workspace(NamedTuple):
    """Descents, the first rows those of the result; the best samples' poses and costs; starts, twice."""

    runs: Any
    hypotheses: Any
    starts: Any
    fresh: Any


@jit
def workspace() -> Workspace:
    return Workspace(
        np.zeros((_ROWS, WIDTH)), np.zeros((HYPOTHESES + 1, COST + 1)), np.zeros((3, 12)), np.zeros((3, 12))
    )


@jit
def log_false_alarms(points: Any, runs: Any, row: int, inlier: Any) -> float:
    """`ransac.log_false_alarms` of a pose, with the chances of `ransac.chance_of_distance`."""
    n, number = points.shape[1], 0
    for i in range(n):
        number += inlier[i]
    if number <= 3:
        return math.inf
    area = 4 * _between_quartiles(points, ROW0 + 3) * _between_quartiles(points, ROW0 + 4)
    chance, k = np.empty(number), 0
    for i in range(n):
        if inlier[i]:
            value = math.pi * squared_residual(points, i, runs, row) / (points[5, i] * points[7, i]) / area
            chance[k] = min(max(value, 1e-30), 1.0) if math.isfinite(value) else 1.0
            k += 1
    chance.sort()
    total, least = 0.0, math.inf
    for k in range(1, number + 1):
        total += chance[k - 1]
        if k > 3:
            subsets = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - math.lgamma(k - 2)
            least = min(least, math.log(n - 3) + subsets + (k - 3) * math.log(total))
    return least


@jit
def _between_quartiles(points: Any, row: int) -> float:
    n = points.shape[1]
    values = np.empty(n)
    for i in range(n):
        values[i] = points[row, i]
    values.sort()
    return _quantile(values, 0.75) - _quantile(values, 0.25)


@jit
def _quantile(values: Any, share: float) -> float:
    """Of sorted values."""
    place = share * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


@jit
def _mark(points: Any, runs: Any, row: int, gate2: float, inlier: Any) -> int:
    """Mark the points inside the gate, and count them."""
    number = 0
    for i in range(points.shape[1]):
        inlier[i] = squared_residual(points, i, runs, row) < gate2
        number += inlier[i]
    return number


@jit
def _sort(runs: Any, first: int, count: int) -> None:
    """So many rows by rising cost."""
    last = len(runs) - 1
    for k in range(first + 1, first + count):
        copy(runs, last, runs, k, 0, WIDTH)
        place = k
        while place > first and runs[place - 1, COST] > runs[last, COST]:
            copy(runs, place, runs, place - 1, 0, WIDTH)
            place -= 1
        copy(runs, place, runs, last, 0, WIDTH)


@jit
def _local_optima(
    points: Any, table: Any, first: int, last: int, settings: Settings, work: Workspace, inlier: Any
) -> tuple[int, float]:
    """Up to four minima of the truncated cost, least first, in the first rows of the descents; how many, and the
    logarithm of the false alarms of the first hypothesis' one. Where that is beyond doubt it is the only one, and
    exact."""
    gate2, runs = settings.gate2, work.runs
    count = hypothesise(points, table, first, last, gate2, work.hypotheses)
    for k in range(_SOFT, _SOFT + count):
        begin(runs, k, points, work.hypotheses, k - _SOFT, GEMAN_MCCLURE, gate2)
        descend(runs, k, points, GEMAN_MCCLURE, gate2, _SOFT_STEPS, _SOFT_STOP)
        if k == _SOFT:
            begin(runs, ROW0, points, runs, k, TRUNCATED, gate2)
            descend(runs, ROW0, points, TRUNCATED, gate2, OPTIMISE_STEPS, settings.tolerance)
            _mark(points, runs, ROW0, gate2, inlier)
            log_nfa = log_false_alarms(points, runs, ROW0, inlier)
            if log_nfa < settings.doubt:
                return 1, log_nfa
        runs[k, COST] = capped(points, runs, k, gate2, math.inf)
    _sort(runs, _SOFT, count)
    half = (count + 1) // 2
    for k in range(half):
        begin(runs, k, points, runs, _SOFT + k, TRUNCATED, gate2)
        descend(runs, k, points, TRUNCATED, gate2, OPTIMISE_STEPS, _HARD_STOP)
    _sort(runs, ROW0, half)
    return half, math.inf


@jit
def search(
    points: Any,
    table: Any,
    first: int,
    last: int,
    limit: float,
    settings: Settings,
    work: Workspace,
    inlier: Any,
) -> tuple[int, float, bool, Any]:
    """The consensus of the points: its poses in the first rows of the descents and how many, the logarithm of false
    alarms, whether a mirror image fits all points, and the inliers, also marked in `inlier` (N,)."""
    runs, gate2, n = work.runs, settings.gate2, len(inlier)
    most, tolerance = settings.most_steps, settings.tolerance
    count, log_nfa = _local_optima(points, table, first, last, settings, work, inlier)
    if count == 0:
        return 0, math.inf, False, points
    number = _mark(points, runs, ROW0, gate2, inlier)
    kept, k = np.empty((8, number)), 0
    for i in range(n):
        if inlier[i]:
            for j in range(8):
                kept[j, k] = points[j, i]
            k += 1
    others = 2 if number > 2 and find_starts(kept, work.fresh) > 0 else 0
    inside = runs[0, COST] - gate2 * (n - number)
    exact = log_nfa < settings.doubt and _is_plain(runs, kept, inside)
    if exact:
        if others:
            count = add_rivals(runs, kept, work.fresh, most, tolerance)
    else:
        for k in range(count):
            begin(runs, k, kept, runs, k, PLAIN, 0.0)
        for k in range(others):
            begin(runs, count + k, kept, work.fresh, k, PLAIN, 0.0)
        count += others
        refine_all(runs, count, kept, most, tolerance)
    best = best_of(runs, ROW0, count)
    if best > 0 or not exact:
        log_nfa = log_false_alarms(points, runs, best, inlier)
    mirrored = False
    if mirrored_starts(points, work.starts, work.fresh):
        first_look(runs, _SOFT, points, work.fresh, limit, most, tolerance)
        mirrored = min(runs[_SOFT, COST], runs[_SOFT + 1, COST]) < limit
    return count, log_nfa, mirrored, kept


@jit
def _is_plain(runs: Any, kept: Any, inside: float) -> bool:
    """Make descent 0, a minimum of the truncated cost, a minimum of the cost `inside` the gate; false where it is none,
    because a point came or went with the last step."""
    if runs[0, CONVERGED] == 0:
        return False
    total = 0.0
    for i in range(kept.shape[1]):
        total += squared_residual(kept, i, runs, ROW0)
    if not abs(total - inside) <= 1e-6 * (1 + abs(inside)):
        return False
    runs[0, COST] = max(inside, 0.0)
    return True
