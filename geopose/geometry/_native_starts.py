"""Weak-perspective starts in machine code: `two_starts`, compiled by numba.

Points as in `_native_descents`; starts: (3, 12), both poses, and in the last row the points' centre (3) and the
direction in which they vary least (3).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from geopose.geometry._native_descents import jit


@jit
def find_starts(points: Any, starts: Any) -> int:
    """`two_starts`, written to `starts`: 0 where the points are collinear, 1 where coplanar, else 2."""
    n = points.shape[1]
    total, cx, cy, cz, x, y = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        w = points[5, i] * points[7, i]
        total += w
        cx += w * points[0, i]
        cy += w * points[1, i]
        cz += w * points[2, i]
        x += w * points[3, i]
        y += w * points[4, i]
    if not 0 < total < math.inf:
        return 0
    centre = cx / total, cy / total, cz / total
    x, y = x / total, y / total
    # look along the mean ray: rotate it onto the optical axis by the shortest turn
    z = 1 / math.sqrt(x * x + y * y + 1)
    x, y = x * z, y * z
    k = 1 / (1 + z)
    turn = 1 - k * x * x, -k * x * y, -x, -k * x * y, 1 - k * y * y, -y, x, y, z
    moments, b = np.zeros((3, 3)), np.zeros((2, 4))
    for i in range(n):
        w = points[5, i] * points[7, i] / total
        u, v = points[3, i], points[4, i]
        iz = 1 / (turn[6] * u + turn[7] * v + turn[8])
        p, q = (turn[0] * u + turn[1] * v + turn[2]) * iz, (turn[3] * u + turn[4] * v + turn[5]) * iz
        b[0, 3] += w * p
        b[1, 3] += w * q
        for j in range(3):
            off = w * (points[j, i] - centre[j])
            b[0, j] += off * p
            b[1, j] += off * q
            for m in range(3):
                moments[j, m] += off * (points[m, i] - centre[m])
    if not math.isfinite(moments.sum() + b.sum()):
        return 0
    variances, axes = np.linalg.eigh(moments)
    v0, v1, v2 = variances[0], variances[1], variances[2]
    if not v1 > 1e-10 * v2:
        return 0
    e1, e2 = (axes[0, 2], axes[1, 2], axes[2, 2]), (axes[0, 1], axes[1, 1], axes[2, 1])
    e3 = cross(e1, e2)
    p1, q1, p2, q2 = 0.0, 0.0, 0.0, 0.0
    for j in range(3):
        p1 += b[0, j] * e1[j] / v2
        q1 += b[1, j] * e1[j] / v2
        p2 += b[0, j] * e2[j] / v1
        q2 += b[1, j] * e2[j] / v1
    s1, s2, s12 = p1 * p1 + q1 * q1, p2 * p2 + q2 * q2, p1 * p2 + q1 * q2
    real, imag = s2 - s1, -2 * s12
    size = math.sqrt(real * real + imag * imag)
    a1 = math.sqrt(max(size + real, 0.0) * 0.5)
    a2 = math.copysign(math.sqrt(max(size - real, 0.0) * 0.5), 1.0 if imag == 0 else imag)
    scale = math.sqrt(s1 + a1 * a1)
    if not scale > 0:
        return 0
    for k in range(2):
        sign = (1.0 - 2.0 * k) / scale
        c1, c2 = (p1 / scale, q1 / scale, sign * a1), (p2 / scale, q2 / scale, sign * a2)
        c3 = cross(c1, c2)
        _place(points, turn, (c1, c2, c3), (e1, e2, e3), centre, (b[0, 3], b[1, 3], 1 / scale), starts, k)
    for j in range(3):
        starts[2, j], starts[2, 3 + j] = centre[j], e3[j]
    return 1 if v0 <= 1e-9 * v2 else 2


@jit
def _place(
    points: Any, turn: Any, columns: Any, axes: Any, centre: Any, seen: Any, starts: Any, k: int
) -> None:
    """Start `k`, of the rotation that takes `axes` to `columns`, seen through `turn`: `seen` are x, y of `centre`, and
    its depth, made larger where a point would lie behind it."""
    c1, c2, c3 = columns
    e1, e2, e3 = axes
    R = np.empty((3, 3))
    for j in range(3):
        for m in range(3):
            R[j, m] = c1[j] * e1[m] + c2[j] * e2[m] + c3[j] * e3[m]
    near = -math.inf
    for i in range(points.shape[1]):
        far = 0.0
        for j in range(3):
            far += R[2, j] * (points[j, i] - centre[j])
        near = max(near, -far)
    depth = max(seen[2], 1.3 * near)
    for j in range(3):
        t = (turn[j] * seen[0] + turn[3 + j] * seen[1] + turn[6 + j]) * depth
        for m in range(3):
            r = turn[j] * R[0, m] + turn[3 + j] * R[1, m] + turn[6 + j] * R[2, m]
            starts[k, 4 * j + m] = r
            t -= r * centre[m]
        starts[k, 4 * j + 3] = t


@jit
def cross(a: Any, b: Any) -> Any:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@jit
def mirrored_starts(points: Any, starts: Any, out: Any) -> bool:
    """Both starts of the object's mirror image, as reflections of the object itself; false where there are none.

    In weak perspective the two look the same, with what lies before the principal plane behind it. Near the camera
    they come from scratch, so that none has a point behind.
    """
    n, far, deep = points.shape[1], 0.0, True
    for m in range(3):
        far += 2 * starts[2, m] * starts[2, 3 + m]
    for k in range(2):
        for j in range(3):
            along = 0.0
            for m in range(3):
                along += starts[k, 4 * j + m] * starts[2, 3 + m]
            for m in range(3):
                out[k, 4 * j + m] = starts[k, 4 * j + m] - 2 * along * starts[2, 3 + m]
            out[k, 4 * j + 3] = starts[k, 4 * j + 3] + far * along
        for i in range(n):
            z = out[k, 11]
            for m in range(3):
                z += out[k, 8 + m] * points[m, i]
            deep = deep and z > 0.25 * out[k, 11]
    if deep:
        return True
    flipped = points.copy()
    for j in range(3):
        for i in range(n):
            flipped[j, i] *= -1.0
    if find_starts(flipped, out) == 0:
        return False
    for k in range(2):
        for j in range(3):
            for m in range(3):
                out[k, 4 * j + m] *= -1.0
    return True
