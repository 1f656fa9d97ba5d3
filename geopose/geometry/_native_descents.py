"""Levenberg-Marquardt on pinhole points in machine code: `Reprojection` and `levenberg_marquardt`, compiled by numba.

Everything here is called from compiled code alone (`_native`). A numpy call costs more than what it does to twenty
points, so these are loops over numbers: the formulas, names and constants of the modules for arrays. Arrays are few and
large, because numba takes its time over every array that a function is given:

- points: (8, N) float64, rows X, Y, Z (object frame), x, y (normalised image), and the entries 00, 10, 11 of W.
- runs: (K + 2, WIDTH) float64, K descents, one a row: the pose first (12: rows of (R | t)), then COST ... NORMAL (6 x
  7: half the Hessian, half the gradient by the left tangent (rho, phi)). The last two rows hold Cholesky's factor and
  what a step tries.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from geopose.geometry._fits import FIRST_STEPS, RIVAL, SETTLED, TIE, hopeless_cost
from geopose.geometry.refine import DAMPING, stops

# fused multiply-add, but nothing that would lose a NaN
jit = numba.njit(error_model="numpy", nogil=True, fastmath={"contract"})

# numba compiles a function anew for every Python integer that it is given, not for numpy's
COST, DAMPED, BEFORE = 12, 13, 14
LENGTH = 15  # of the last step, squared standard deviations
EXPECTED = 16  # cost that the last linear model hoped for
PROPOSED, CONVERGED, DONE = 17, 18, 19  # 0 or 1: a step is proposed; converged; converged or given up
# numba compiles a function anew for every Python integer that it is given, but not for those of numpy
STEP = np.int64(20)  # to be subtracted
NORMAL = np.int64(26)
WIDTH = np.int64(68)
PLAIN, TRUNCATED, GEMAN_MCCLURE = np.int64(0), np.int64(1), np.int64(2)  # what a residual costs
ROW0, ROW1 = np.int64(0), np.int64(1)

_START, _DOWN, _UP, _LOW, _HIGH = DAMPING
_NEARER = 16.0  # squared ratio of distances
_stops, _hopeless_cost = jit(stops), jit(hopeless_cost)


@jit
def look(points: Any, runs: Any, row: int, mode: int, gate2: float) -> float:
    """The cost at the pose of a row, whose half Hessian and half gradient are written beside it.

    PLAIN: the sum of |r|^2, infinite with a point behind the camera. TRUNCATED: of min(|r|^2, gate2). GEMAN_MCCLURE: of
    |r|^2 / (1 + |r|^2 / gate2), its curvature left out of the Hessian. There a point behind the camera costs gate2.
    """
    r0, r1, r2, tx = runs[row, 0], runs[row, 1], runs[row, 2], runs[row, 3]
    r3, r4, r5, ty = runs[row, 4], runs[row, 5], runs[row, 6], runs[row, 7]
    r6, r7, r8, tz = runs[row, 8], runs[row, 9], runs[row, 10], runs[row, 11]
    for j in range(NORMAL, WIDTH):
        runs[row, j] = 0.0
    cost = 0.0
    for i in range(points.shape[1]):
        a, b, c = points[0, i], points[1, i], points[2, i]
        z = r6 * a + r7 * b + r8 * c + tz
        if not z > 0:
            if mode == PLAIN:
                return math.inf
            cost += gate2
            continue
        iz = 1 / z
        u, v = (r0 * a + r1 * b + r2 * c + tx) * iz, (r3 * a + r4 * b + r5 * c + ty) * iz
        w00, w10, w11 = points[5, i], points[6, i], points[7, i]
        eu = u - points[3, i]
        ev = w10 * eu + w11 * (v - points[4, i])
        eu *= w00
        squared = eu * eu + ev * ev
        slope = 1.0
        if mode == PLAIN:
            cost += squared
        elif mode == TRUNCATED:
            if not squared < gate2:
                cost += gate2
                continue
            cost += squared
        else:
            share = 1 / (1 + squared / gate2)
            cost += gate2 - gate2 * share
            slope = share * share
        uv = u * v
        first = (w00 * iz, 0.0, -w00 * u * iz, -w00 * uv, w00 * (1 + u * u), -w00 * v, eu)
        second = (
            w10 * iz,
            w11 * iz,
            -(w10 * u + w11 * v) * iz,
            -w10 * uv - w11 * (1 + v * v),
            w10 * (1 + u * u) + w11 * uv,
            w11 * u - w10 * v,
            ev,
        )
        for j in range(6):
            f, s = slope * first[j], slope * second[j]
            for k in range(7):
                runs[row, NORMAL + 7 * j + k] += f * first[k] + s * second[k]
    return cost


@jit
def squared_residual(points: Any, i: int, poses: Any, row: int) -> float:
    """|r|^2 of one point at the pose of a row, infinite behind the camera."""
    a, b, c = points[0, i], points[1, i], points[2, i]
    z = poses[row, 8] * a + poses[row, 9] * b + poses[row, 10] * c + poses[row, 11]
    if not z > 0:
        return math.inf
    eu = (poses[row, 0] * a + poses[row, 1] * b + poses[row, 2] * c + poses[row, 3]) / z - points[3, i]
    ev = (poses[row, 4] * a + poses[row, 5] * b + poses[row, 6] * c + poses[row, 7]) / z - points[4, i]
    first, second = points[5, i] * eu, points[6, i] * eu + points[7, i] * ev
    return first * first + second * second


@jit
def factorise(runs: Any, row: int, damping: float) -> bool:
    """Cholesky's lower factor of the damped normal matrix of a row into the last row but one, reciprocals on its
    diagonal; false where there is none."""
    factor = len(runs) - 2
    for j in range(6):
        rest = runs[row, NORMAL + 8 * j] * (1 + damping)
        for k in range(j):
            rest -= runs[factor, 6 * j + k] * runs[factor, 6 * j + k]
        if not 0 < rest < math.inf:
            return False
        inverse = 1 / math.sqrt(rest)
        runs[factor, 7 * j] = inverse
        for i in range(j + 1, 6):
            rest = runs[row, NORMAL + 7 * i + j]
            for k in range(j):
                rest -= runs[factor, 6 * i + k] * runs[factor, 6 * j + k]
            runs[factor, 6 * i + j] = rest * inverse
    return True


@jit
def substitute(runs: Any, x: Any, row: int, first: int) -> None:
    """x[row, first:first + 6] replaced by the solution of L L' x = x, with the factor in the last row but one."""
    factor = len(runs) - 2
    for i in range(6):
        rest = x[row, first + i]
        for k in range(i):
            rest -= runs[factor, 6 * i + k] * x[row, first + k]
        x[row, first + i] = rest * runs[factor, 7 * i]
    for i in range(5, -1, -1):
        rest = x[row, first + i]
        for k in range(i + 1, 6):
            rest -= runs[factor, 6 * k + i] * x[row, first + k]
        x[row, first + i] = rest * runs[factor, 7 * i]


@jit
def _move(runs: Any, row: int) -> None:
    """`small_step` of the pose of a row by -STEP, into the last row."""
    last = len(runs) - 1
    x, y, z = -0.5 * runs[row, STEP + 3], -0.5 * runs[row, STEP + 4], -0.5 * runs[row, STEP + 5]
    xx, yy, zz = x * x, y * y, z * z
    s = 2 / (1 + xx + yy + zz)
    turn = (
        1 - s * (yy + zz), s * (x * y - z), s * (x * z + y),
        s * (x * y + z), 1 - s * (xx + zz), s * (y * z - x),
        s * (x * z - y), s * (y * z + x), 1 - s * (xx + yy),
    )  # fmt: skip
    for j in range(4):
        a, b, c = runs[row, j], runs[row, 4 + j], runs[row, 8 + j]
        for i in range(3):
            shift = runs[row, STEP + i] if j == 3 else 0.0
            runs[last, 4 * i + j] = turn[3 * i] * a + turn[3 * i + 1] * b + turn[3 * i + 2] * c - shift


@jit
def copy(here: Any, row: int, there: Any, other: int, first: int, last: int) -> None:
    """Columns first to last of a row `here` become those of a row `there`."""
    for j in range(first, last):
        here[row, j] = there[other, j]


@jit
def begin(runs: Any, k: int, points: Any, poses: Any, row: int, mode: int, gate2: float) -> None:
    """Descent `k` starts at the pose of a row of `poses`."""
    copy(runs, k, poses, row, 0, 12)
    runs[k, COST] = look(points, runs, k, mode, gate2)
    runs[k, LENGTH], runs[k, EXPECTED], runs[k, CONVERGED] = math.nan, math.inf, 0.0
    _restart(runs, k)


@jit
def _restart(runs: Any, k: int) -> None:
    """Descent `k` goes on with the damping of a start, unless it has converged."""
    runs[k, DAMPED], runs[k, BEFORE], runs[k, PROPOSED] = _START, math.nan, 0.0
    runs[k, DONE] = runs[k, CONVERGED] if runs[k, COST] < math.inf else 1.0


@jit
def _propose(runs: Any, k: int, tolerance: float) -> None:
    """The first half of a step: what the linear model says, LENGTH and EXPECTED."""
    runs[k, PROPOSED] = 0.0
    if not factorise(runs, k, runs[k, DAMPED]):
        runs[k, DONE] = 1.0
        return
    for j in range(6):
        runs[k, STEP + j] = runs[k, NORMAL + 7 * j + 6]
    substitute(runs, runs, k, STEP)
    length = 0.0
    for j in range(6):
        length += runs[k, STEP + j] * runs[k, NORMAL + 7 * j + 6]
    runs[k, LENGTH], runs[k, EXPECTED] = length, runs[k, COST] - length
    if _stops(length, runs[k, BEFORE], tolerance):  # what it would change is beyond what counts
        _move(runs, k)
        copy(runs, k, runs, len(runs) - 1, 0, 12)
        runs[k, COST] = max(runs[k, EXPECTED], 0.0)
        runs[k, CONVERGED] = runs[k, DONE] = 1.0
    else:
        runs[k, PROPOSED] = 1.0


@jit
def _settle(runs: Any, k: int, points: Any, mode: int, gate2: float) -> None:
    """The second half: the step is taken where it lowers the cost."""
    if runs[k, PROPOSED] == 0:
        return
    last, old = len(runs) - 1, runs[k, COST]
    runs[k, PROPOSED] = 0.0
    _move(runs, k)
    cost = look(points, runs, last, mode, gate2)
    near = runs[k, LENGTH] < 1e-10 * old and cost <= old * (1 + 1e-9) + 1e-24
    if cost < old or near:
        copy(runs, k, runs, last, 0, 12)
        copy(runs, k, runs, last, NORMAL, WIDTH)
        runs[k, COST], runs[k, BEFORE] = cost, runs[k, LENGTH]
        runs[k, DAMPED] = max(runs[k, DAMPED] * _DOWN, _LOW)
    else:
        runs[k, DONE] = 1.0 if runs[k, DAMPED] >= _HIGH else 0.0
        runs[k, DAMPED], runs[k, BEFORE] = min(runs[k, DAMPED] * _UP, _HIGH), math.nan


@jit
def descend(runs: Any, k: int, points: Any, mode: int, gate2: float, most: int, tolerance: float) -> None:
    """Up to `most` steps of descent `k`; `tolerance` in standard deviations of the pose."""
    for _ in range(most):
        if runs[k, DONE] > 0:
            break
        _propose(runs, k, tolerance)
        _settle(runs, k, points, mode, gate2)


@jit
def first_look(
    runs: Any, k0: int, points: Any, starts: Any, limit: float, most: int, tolerance: float
) -> None:
    """Both starts refined on all points, descents `k0` and the next; `_fits.first_look` says when one is given up."""
    k1, spread, half = k0 + 1, -1.0, min(FIRST_STEPS, most)
    begin(runs, k0, points, starts, ROW0, PLAIN, 0.0)
    begin(runs, k1, points, starts, ROW1, PLAIN, 0.0)
    for steps in range(1, most + 1):
        if steps == half + 1:
            hope = False
            for k in (k0, k1):
                hope = hope or (runs[k, CONVERGED] == 0 and runs[k, COST] < limit + RIVAL)
                _restart(runs, k)
            if not hope:
                return
        if runs[k0, DONE] > 0 and runs[k1, DONE] > 0:
            if steps > half:
                return
            continue
        for k in (k0, k1):
            if runs[k, DONE] == 0:
                _propose(runs, k, tolerance)
        least = min(runs[k0, EXPECTED], runs[k1, EXPECTED])
        if least > 10 * limit:
            spread = _spread_of(points) if spread < 0 else spread
            if least > _hopeless_cost(steps, limit, spread):
                return
        settled = False
        for k in (k0, k1):
            _settle(runs, k, points, PLAIN, 0.0)
            settled = settled or (runs[k, LENGTH] < SETTLED and runs[k, COST] < limit)
        for k in (k0, k1):
            if settled and runs[k, COST] > limit + RIVAL:
                runs[k, DONE] = 1.0


@jit
def add_rivals(runs: Any, points: Any, starts: Any, most: int, tolerance: float) -> int:
    """Both starts refined behind descent 0, which has converged on the same points, each until it is seen to be far
    from that; the number of descents.

    A start is left out where it lies much nearer to descent 0 than the other one does: it leads there.
    """
    chord = _chord(starts, ROW0, runs), _chord(starts, ROW1, runs)
    worst: Any = runs[0, COST] + RIVAL
    count: Any = ROW1
    for k in range(2):
        if chord[k] * _NEARER < max(chord[0], chord[1]):
            continue
        begin(runs, count, points, starts, k, PLAIN, 0.0)
        for _ in range(most):
            if runs[count, DONE] > 0:
                break
            _propose(runs, count, tolerance)
            if runs[count, EXPECTED] > worst:
                break
            _settle(runs, count, points, PLAIN, 0.0)
            if runs[count, COST] > worst:
                break
        count += 1
    return count


@jit
def _chord(starts: Any, row: int, runs: Any) -> float:
    """Squared distance of the rotations of a start and of descent 0."""
    total = 0.0
    for j in range(12):
        if j % 4 < 3:
            total += (starts[row, j] - runs[0, j]) ** 2
    return total


@jit
def refine_all(runs: Any, count: int, points: Any, most: int, tolerance: float) -> None:
    """So many descents, begun before, but for those far from the best one."""
    for _ in range(most):
        worst, open_ = math.inf, False
        for k in range(count):
            if runs[k, DONE] == 0:
                _propose(runs, k, tolerance)
                _settle(runs, k, points, PLAIN, 0.0)
            if runs[k, LENGTH] < SETTLED:
                worst = min(worst, runs[k, COST])
        for k in range(count):
            if runs[k, COST] > worst + RIVAL:
                runs[k, DONE] = 1.0
            open_ = open_ or runs[k, DONE] == 0
        if not open_:
            break


@jit
def best_of(runs: Any, first: int, count: int) -> int:
    """Of so many descents the one of least cost; of two that are the same the earlier one."""
    best = first
    for k in range(first + 1, first + count):
        if runs[k, COST] + TIE < runs[best, COST]:
            best = k
    return best


@jit
def _spread_of(points: Any) -> float:
    """`_fits.spread_of`."""
    n, x, y = points.shape[1], 0.0, 0.0
    for i in range(n):
        x += points[3, i] / n
        y += points[4, i] / n
    total = 0.0
    for i in range(n):
        a, b = (points[3, i] - x) * points[5, i], (points[4, i] - y) * points[7, i]
        total += a * a + b * b
    return total
