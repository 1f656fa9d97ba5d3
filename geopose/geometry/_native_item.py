"""One pinhole problem from pixels to a pose in machine code: prepared, fitted, searched where needed, judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from geopose.geometry._fits import RIVAL
from geopose.geometry._native_descents import (
    CONVERGED,
    COST,
    ROW0,
    WIDTH,
    best_of,
    factorise,
    first_look,
    jit,
    squared_residual,
    substitute,
)
from geopose.geometry._native_search import Settings, Workspace, search
from geopose.geometry._native_starts import find_starts
from geopose.geometry._verdict import FAR, KEY, SAME

SOLVED, ODD, ELSEWHERE = 0, 1, 2
# columns of an answer
CODE, COUNT, RMS, LOG_NFA, MIRRORED, PLACED, COVARIANCE, ANSWER = 0, 1, 2, 3, 4, 5, 17, 53
_LEAST = 4  # points
_KEY0, _KEY1, _KEY2 = KEY


@jit
def solve_item(
    b: int,
    obj: Any,
    px: Any,
    cov: Any,
    lenses: Any,
    noise: float,
    certain: bool,
    table: Any,
    first: Any,
    settings: Settings,
    work: Workspace,
    answer: Any,
    inlier: Any,
    candidates: Any,
) -> None:
    """Solve problem `b` of obj (B, N, 3), px (B, N, 2), cov (B, N, 2, 2) or (0, 0, 2, 2), lenses (B or 1, 4).

    A lens is fx, fy, cx, cy, of which f is `certain`. The answer goes to `answer` (B, ANSWER), `inlier` (B, N) and
    `candidates` (B, K, WIDTH), see `_native.Items`.
    """
    answer[b, CODE] = ELSEWHERE
    valid = np.empty(px.shape[1], np.bool_)
    n = _count_valid(b, obj, px, cov, valid)
    if n < _LEAST:
        return
    points, frame = np.empty((8, n)), np.zeros(6)
    if not _prepare(b, obj, px, cov, lenses, noise, valid, points, frame):
        return
    runs = work.runs
    rank = find_starts(points, work.starts)
    if rank == 0 or (rank == 1 and not _four_different(points)):
        return
    limit = _limit(2 * n - 6)
    first_look(runs, ROW0, points, work.starts, limit, settings.most_steps, settings.tolerance)
    best, count, log_nfa, mirrored, kept = best_of(runs, ROW0, ROW0 + 2), 2, -math.inf, False, points
    inside = np.ones(n, np.bool_)
    settled = runs[best, COST] < limit
    if settled and not runs[best, COST] < settings.gate2:  # else no point can lie outside of the gate
        for i in range(n):
            settled = settled and squared_residual(points, i, runs, best) < settings.gate2
    if not settled:
        count, log_nfa, mirrored, kept = search(
            points, table, first[n], first[n + 1], limit, settings, work, inside
        )
        if count == 0:
            return
        best = best_of(runs, ROW0, count)
    if not runs[best, COST] < math.inf:
        return
    k = 0
    for i in range(len(valid)):
        if valid[i]:
            inlier[b, i] = inside[k]
            k += 1
    sure = kept.shape[1] == n or log_nfa < settings.log_alarms
    plain = sure and not mirrored and certain and runs[best, CONVERGED] > 0
    if plain and _finish(b, kept, frame, runs, best, count, answer):
        answer[b, CODE] = SOLVED
        return
    answer[b, CODE], answer[b, LOG_NFA], answer[b, MIRRORED] = ODD, log_nfa, mirrored
    k = 0
    for j in range(count):
        if runs[j, COST] < math.inf:
            for m in range(WIDTH):
                candidates[b, k, m] = runs[j, m]
            k += 1
    answer[b, COUNT] = k


@jit
def _count_valid(b: int, obj: Any, px: Any, cov: Any, valid: Any) -> int:
    """Mark the points of which every number is finite, and count them."""
    n = 0
    for i in range(len(valid)):
        total = obj[b, i, 0] + obj[b, i, 1] + obj[b, i, 2] + px[b, i, 0] + px[b, i, 1]
        if len(cov):
            total += cov[b, i, 0, 0] + cov[b, i, 0, 1] + cov[b, i, 1, 0] + cov[b, i, 1, 1]
        valid[i] = math.isfinite(total)
        n += valid[i]
    return n


@jit
def _prepare(
    b: int, obj: Any, px: Any, cov: Any, lenses: Any, noise: float, valid: Any, points: Any, frame: Any
) -> bool:
    """The valid points centred, scaled to unit size and whitened, and `frame`: their centre (3), size, fx, fy;
    false where that cannot be."""
    row, k, n = b if len(lenses) > 1 else 0, 0, points.shape[1]
    fx, fy, cx, cy = lenses[row, 0], lenses[row, 1], lenses[row, 2], lenses[row, 3]
    for i in range(len(valid)):
        if not valid[i]:
            continue
        for j in range(3):
            points[j, k] = obj[b, i, j]
            frame[j] += obj[b, i, j] / n
        points[3, k], points[4, k] = (px[b, i, 0] - cx) / fx, (px[b, i, 1] - cy) / fy
        w00, w10, w11 = 1 / noise, 0.0, 1 / noise
        if len(cov):
            a, c, d = cov[b, i, 0, 0], 0.5 * (cov[b, i, 0, 1] + cov[b, i, 1, 0]), cov[b, i, 1, 1]
            rest = a * d - c * c
            if not (a > 0 and rest > 0):
                return False
            w00, w11 = 1 / math.sqrt(a), math.sqrt(a) / math.sqrt(rest)
            w10 = -c / a * w11
        points[5, k], points[6, k], points[7, k] = w00 * fx, w10 * fx, w11 * fy
        k += 1
    squares = 0.0
    for j in range(3):
        for i in range(n):
            points[j, i] -= frame[j]
            squares += points[j, i] * points[j, i]
    if not 0 < squares < math.inf:
        return False
    frame[3], frame[4], frame[5] = math.sqrt(squares / n), fx, fy
    for j in range(3):
        for i in range(n):
            points[j, i] /= frame[3]
    return True


@jit
def _four_different(points: Any) -> bool:
    n = points.shape[1]
    key, different = np.empty(n), 1
    for i in range(n):
        key[i] = _KEY0 * points[0, i] + _KEY1 * points[1, i] + _KEY2 * points[2, i]
    key.sort()
    for i in range(1, n):
        different += 1 if key[i] - key[i - 1] > SAME else 0
    return different > 3


@jit
def _limit(freedom: int) -> float:
    """`chi2_limit`."""
    d = 2 / (9 * freedom)
    return freedom * (1 - d + 4 * math.sqrt(d)) ** 3


@jit
def _finish(b: int, kept: Any, frame: Any, runs: Any, best: int, count: int, answer: Any) -> bool:
    """Write the answer; false where a rival does not repeat the best pose, or that is too vague for an `ok`."""
    if not factorise(runs, best, 0.0):
        return False
    for j in range(6):
        row = COVARIANCE + 6 * j
        for k in range(6):
            answer[b, row + k] = 1.0 if j == k else 0.0
        substitute(runs, answer, b, row)
    shift, turn, square = 0.0, 0.0, 0.0
    for j in range(3):
        shift += answer[b, COVARIANCE + 7 * j]
        turn += answer[b, COVARIANCE + 7 * j + 21]
        square += runs[best, 4 * j + 3] ** 2
    if not (turn < 1 and shift < square < FAR * FAR):
        return False
    for k in range(count):
        if k == best or runs[k, CONVERGED] == 0 or not runs[k, COST] < runs[best, COST] + RIVAL:
            continue
        chord, move = 0.0, 0.0  # as `distinct` has it
        for j in range(12):
            off = (runs[k, j] - runs[best, j]) ** 2
            if j % 4 < 3:
                chord += 0.5 * off
            else:
                move += off
        if chord > max(0.01 * turn, 1e-12) or move > max(0.01 * shift, 1e-12 * square):
            return False
    answer[b, RMS] = _rms(kept, runs, best, frame[4], frame[5])
    for j in range(6):
        for k in range(6):
            scale = (frame[3] if j < 3 else 1.0) * (frame[3] if k < 3 else 1.0)
            answer[b, COVARIANCE + 6 * j + k] *= scale
    for j in range(3):
        t = runs[best, 4 * j + 3] * frame[3]
        for k in range(3):
            answer[b, PLACED + 4 * j + k] = runs[best, 4 * j + k]
            t -= runs[best, 4 * j + k] * frame[k]
        answer[b, PLACED + 4 * j + 3] = t
    return True


@jit
def _rms(points: Any, poses: Any, row: int, fx: float, fy: float) -> float:
    """The root mean square of the distances in the image, pixels."""
    total, n = 0.0, points.shape[1]
    for i in range(n):
        a, b, c = points[0, i], points[1, i], points[2, i]
        z = poses[row, 8] * a + poses[row, 9] * b + poses[row, 10] * c + poses[row, 11]
        u = (poses[row, 0] * a + poses[row, 1] * b + poses[row, 2] * c + poses[row, 3]) / z
        v = (poses[row, 4] * a + poses[row, 5] * b + poses[row, 6] * c + poses[row, 7]) / z
        total += (fx * (u - points[3, i])) ** 2 + (fy * (v - points[4, i])) ** 2
    return math.sqrt(total / n)
