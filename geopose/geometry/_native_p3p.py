"""Three-point poses of random samples in machine code: `p3p` without polishing and `hypothesise`, compiled by numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from geopose.geometry._native_descents import COST, ROW0, copy, jit, squared_residual
from geopose.geometry._native_starts import cross
from geopose.geometry.ransac import BLOCK, MISSED, chance_missed

_chance_missed = jit(chance_missed)


@jit
def _depth_ratios(a12: float, a13: float, a23: float, b12: float, b13: float, b23: float, out: Any) -> int:
    """`p3p._ratios` of one sample without polishing: depths into `out` (4, 3), and how many there are."""
    s12, s13, s23 = 1 - b12 * b12, 1 - b13 * b13, 1 - b23 * b23
    mixed = 2 * a23 * (1 - b12 * b13 * b23)
    across12, across13 = a23 * s12, a23 * s13
    c0, c3 = a12 * (s23 * a12 - across12), a13 * (s23 * a13 - across13)
    c1 = across12 * (a23 - a13) + a12 * (s23 * (a12 + 2 * a13) - mixed)
    c2 = across13 * (a23 - a12) + a13 * (s23 * (a13 + 2 * a12) - mixed)
    swap = abs(c3) < abs(c0)  # the smaller one is the constant term: no root at infinity
    if swap:
        c0, c1, c2, c3 = c3, c2, c1, c0
    g = _far_root(c2 / c3, c1 / c3, c0 / c3)
    k12, k13 = (g, 1.0) if swap else (1.0, g)
    x0, x1 = k12 * a23, -k13 * a23
    y0, y1 = k13 * a23, k12 * a23
    z0, z1 = -k12 * a12 - k13 * a13, k13 * a12 - k12 * a13
    big = abs(x0 + z0) > abs(y0 + z0)
    bd, bs = b12, b13
    if not big:
        x0, x1, y0, y1, bd, bs = y0, y1, x0, x1, b13, b12
    mdd, mss, qdd, qss = x0 + z0, y0 + z0, x1 + z1, y1 + z1
    m0d, q0d, m0s, q0s, mds, qds = -bd * x0, -bd * x1, -bs * y0, -bs * y1, -b23 * z0, -b23 * z1
    r00, r11, r01 = m0d * m0d - mdd * (x0 + y0), mds * mds - mdd * mss, m0d * mds - mdd * m0s
    larger = max(r00, r11)
    if not larger >= 0:  # the lines are complex
        return 0
    root = math.sqrt(larger)
    r0, r1 = (root, r01 / root) if r00 > r11 else (r01 / root, root)
    count = 0
    for line in range(2):
        sign = 1.0 - 2.0 * line
        w0, w1 = (sign * r0 - m0d) / mdd, (sign * r1 - mds) / mdd
        A = qss + w1 * (2 * qds + qdd * w1)
        B = q0s + qds * w0 + w1 * (q0d + qdd * w0)
        C = x1 + y1 + w0 * (2 * q0d + qdd * w0)
        disc = B * B - A * C
        if not disc > -1e-9 * B * B:
            continue
        q = -B - math.copysign(math.sqrt(max(disc, 0.0)), B)
        for s in (q / A, C / q):
            d = w0 + w1 * s
            if not (d > 0 and s > 0):
                continue
            one = 1 / math.sqrt(2 * (1 + d * (d - bd - b23 * s) + s * (s - bs)))
            if not 0 < one < math.inf:
                continue
            out[count, 0], out[count, 1], out[count, 2] = one, d * one, s * one
            if not big:
                out[count, 1], out[count, 2] = s * one, d * one
            count += 1
    return count


@jit
def _far_root(b: float, c: float, d: float) -> float:
    """`p3p._real_root` without polishing."""
    third = b / 3
    q = third * third - c / 3
    r = third * (third * third - 0.5 * c) + 0.5 * d
    size, inside = abs(r), r * r - q * q * q
    if inside < 0:
        root = math.sqrt(q)
        far = 2 * root * math.cos(math.acos(size / (root * q)) / 3)
    else:
        big = (size + math.sqrt(inside)) ** (1 / 3)
        far = big + q / big
    return -third - math.copysign(far, r)


@jit
def _frame(a: Any, b: Any, c: Any) -> Any:
    """Orthonormal axes of a triangle: along the side from a to b, in the plane, and normal."""
    e1, side = (b[0] - a[0], b[1] - a[1], b[2] - a[2]), (c[0] - a[0], c[1] - a[1], c[2] - a[2])
    k = 1 / math.sqrt(e1[0] * e1[0] + e1[1] * e1[1] + e1[2] * e1[2])
    e1 = e1[0] * k, e1[1] * k, e1[2] * k
    k = e1[0] * side[0] + e1[1] * side[1] + e1[2] * side[2]
    e2 = side[0] - k * e1[0], side[1] - k * e1[1], side[2] - k * e1[2]
    k = 1 / math.sqrt(e2[0] * e2[0] + e2[1] * e2[1] + e2[2] * e2[2])
    e2 = e2[0] * k, e2[1] * k, e2[2] * k
    return e1, e2, cross(e1, e2)


@jit
def capped(points: Any, poses: Any, row: int, gate2: float, most: float) -> float:
    """The sum of min(|r|^2, gate2), or a part of it that is `most` or more."""
    total = 0.0
    for i in range(points.shape[1]):
        total += min(squared_residual(points, i, poses, row), gate2)
        if total >= most:
            break
    return total


@jit
def _vector(points: Any, i: int) -> Any:
    return points[0, i], points[1, i], points[2, i]


@jit
def _ray(points: Any, i: int) -> Any:
    """The unit ray through a pixel."""
    x, y = points[3, i], points[4, i]
    k = 1 / math.sqrt(x * x + y * y + 1)
    return x * k, y * k, k


@jit
def _far(a: Any, b: Any) -> float:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2


@jit
def _dot(a: Any, b: Any) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@jit
def hypothesise(points: Any, table: Any, first: int, last: int, gate2: float, poses: Any) -> int:
    """The best three-point poses of the samples `table` (H, 3), rows first to last, and their truncated costs, best
    first, into `poses` (K + 1, 13); how many. `ransac.hypothesise` says when the search ends."""
    n, keep = points.shape[1], len(poses) - 1
    count, share, end, better = 0, 0.0, BLOCK, False
    depths = np.empty((4, 3))
    for k in range(keep):
        poses[k, COST] = math.inf
    for h in range(last - first):
        if h == end:
            if better:
                inside = 0
                for i in range(n):
                    inside += 1 if squared_residual(points, i, poses, ROW0) < gate2 else 0
                share, better = inside / n, False
            if _chance_missed(share, h) <= MISSED:
                break
            end *= 2
        i1, i2, i3 = table[first + h, 0], table[first + h, 1], table[first + h, 2]
        p1, p2, p3 = _vector(points, i1), _vector(points, i2), _vector(points, i3)
        r1, r2, r3 = _ray(points, i1), _ray(points, i2), _ray(points, i3)
        a12, a13, a23 = _far(p1, p2), _far(p1, p3), _far(p2, p3)
        found = _depth_ratios(a12, a13, a23, _dot(r1, r2), _dot(r1, r3), _dot(r2, r3), depths)
        if found == 0:
            continue
        scale, there = math.sqrt(a12 + a13 + a23), _frame(p1, p2, p3)
        for solution in range(found):
            d1, d2, d3 = depths[solution, 0], depths[solution, 1], depths[solution, 2]
            d1, d2, d3 = scale * d1, scale * d2, scale * d3
            seen = d1 * r1[0], d1 * r1[1], d1 * r1[2]
            here = _frame(seen, (d2 * r2[0], d2 * r2[1], d2 * r2[2]), (d3 * r3[0], d3 * r3[1], d3 * r3[2]))
            for j in range(3):
                t = seen[j]
                for m in range(3):
                    r = here[0][j] * there[0][m] + here[1][j] * there[1][m] + here[2][j] * there[2][m]
                    poses[keep, 4 * j + m] = r
                    t -= r * p1[m]
                poses[keep, 4 * j + 3] = t
            cost = capped(points, poses, keep, gate2, poses[keep - 1, COST])
            if not cost < poses[keep - 1, COST]:
                continue
            place = min(count, keep - 1)
            while place > 0 and poses[place - 1, COST] > cost:
                copy(poses, place, poses, place - 1, 0, COST + 1)
                place -= 1
            copy(poses, place, poses, keep, 0, COST)
            poses[place, COST] = cost
            count = min(count + 1, keep)
            better = better or place == 0
    return count
