"""All poses of three points: the minimal solver behind the robust estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# arrays are numpy or torch, float64; every function keeps the kind it was given
Array = Any


def p3p(points_obj: Array, bearings: Array) -> tuple[Array, Array]:
    """Every `cam_from_obj` of three points: rotations (..., 4, 3, 3), translations (..., 4, 3), NaN for none.

    Args:
        points_obj: (..., 3, 3) three points, one a row, object frame, any unit.
        bearings: (..., 3, 3) viewing rays in the camera frame, one a row, of any length; z=1 rays will do.
    Notes:
        The depths are the common points of two conics. A degenerate conic of their pencil (one real root of a
        cubic) falls into two lines, each of which meets the other conic in two points: Persson and Nordberg,
        "Lambda Twist", ECCV 2018, eq. 5-15; the lines are taken apart as in Ding et al., "Revisiting the P3P
        problem", CVPR 2023. Depths are polished by two Newton steps, so exact data is met to rounding error.
        Collinear or repeated points give NaN. Solutions may repeat (double roots).
    """
    xp = torch if isinstance(points_obj, torch.Tensor) else np
    with np.errstate(all="ignore"):
        y = bearings / xp.sqrt((bearings * bearings).sum(-1))[..., None]
        x1, x2, x3 = points_obj[..., 0, :], points_obj[..., 1, :], points_obj[..., 2, :]
        y1, y2, y3 = y[..., 0, :], y[..., 1, :], y[..., 2, :]
        a12, a13, a23 = _square(x1 - x2), _square(x1 - x3), _square(x2 - x3)
        size = a12 + a13 + a23
        a = (a12 / size, a13 / size, a23 / size)
        b = ((y1 * y2).sum(-1), (y1 * y3).sum(-1), (y2 * y3).sum(-1))
        depths = _depths(xp, a, b)  # (..., 4, 3), of a triangle whose squared sides sum to one
        depths = _polish(xp, depths, a, b)
        points_cam = (depths * xp.sqrt(size)[..., None, None])[..., None] * y[
            ..., None, :, :
        ]  # (..., 4, 3, 3)
        frame_cam = _triangle_frame(xp, points_cam)
        frame_obj = _triangle_frame(xp, points_obj)[..., None, :, :]
        R = frame_cam @ frame_obj.mT
        t = points_cam.mean(-2) - (R @ points_obj.mean(-2)[..., None, :, None])[..., 0]
    return R, t


def _square(v: Array) -> Array:
    return (v * v).sum(-1)


def _cross(xp: Any, a: Array, b: Array) -> Array:
    """(..., 3) cross product; np.cross costs three times as much on small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return xp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _triangle_frame(xp: Any, points: Array) -> Array:
    """(..., 3, 3) orthonormal columns: along side 12, in the plane, normal; of points (..., 3, 3) in rows."""
    e1 = points[..., 1, :] - points[..., 0, :]
    e3 = _cross(xp, e1, points[..., 2, :] - points[..., 0, :])
    e1 = e1 / xp.sqrt(_square(e1))[..., None]
    e3 = e3 / xp.sqrt(_square(e3))[..., None]
    return xp.stack([e1, _cross(xp, e3, e1), e3], -1)


def _adjugate(m: tuple[Array, ...]) -> tuple[Array, ...]:
    """The six entries 00, 01, 02, 11, 12, 22 of the adjugate of a symmetric matrix given the same way."""
    p, q, r, s, t, u = m
    return s * u - t * t, r * t - q * u, q * t - r * s, p * u - r * r, q * r - p * t, p * s - q * q


def _trace(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """trace(A B) of two symmetric matrices of six entries."""
    return a[0] * b[0] + a[3] * b[3] + a[5] * b[5] + 2 * (a[1] * b[1] + a[2] * b[2] + a[4] * b[4])


def _full(xp: Any, m: tuple[Array, ...]) -> Array:
    p, q, r, s, t, u = m
    return xp.stack([p, q, r, q, s, t, r, t, u], -1).reshape((*p.shape, 3, 3))


def _depths(xp: Any, a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """Positive depths (..., 4, 3) of the three rays, NaN where complex or negative."""
    (a12, a13, a23), (b12, b13, b23) = a, b
    zero = a12 * 0
    one = (a23, -a23 * b12, zero, a23 - a12, a12 * b23, -a12)
    two = (a23, zero, -a23 * b13, -a13, a13 * b23, a23 - a13)
    adj1, adj2 = _adjugate(one), _adjugate(two)
    c = (_trace(adj1, one) / 3, _trace(adj1, two), _trace(adj2, one), _trace(adj2, two) / 3)
    # the smaller end coefficient belongs to the constant term: no root at infinity
    swap = xp.abs(c[3]) < xp.abs(c[0])
    one, two = (
        tuple(xp.where(swap, j, i) for i, j in zip(one, two, strict=True)),
        tuple(xp.where(swap, i, j) for i, j in zip(one, two, strict=True)),
    )
    g = _real_root(xp, *(xp.where(swap, j, i) for i, j in zip(c, reversed(c), strict=True)))
    pair = tuple(i + g * j for i, j in zip(one, two, strict=True))  # two lines
    other = _full(
        xp, tuple(j - g * i for i, j in zip(one, two, strict=True))
    )  # any other conic of the pencil
    lines = _split(xp, pair)  # (..., 2, 3)
    # a line l: every point is alpha u + beta v; put into the conic this is a quadratic form in (alpha, beta)
    lines = lines / xp.sqrt(_square(lines))[..., None]
    small = (xp.abs(lines[..., 0]) < 0.6)[..., None]
    axes = xp.eye(3, dtype=lines.dtype) if xp is np else torch.eye(3, dtype=lines.dtype, device=lines.device)
    u = _cross(xp, lines, xp.where(small, axes[0], axes[1]))
    v = _cross(xp, lines, u)
    other_u = (other[..., None, :, :] @ u[..., None])[..., 0]
    qa, qb = (u * other_u).sum(-1), (v * other_u).sum(-1)
    qc = (v * (other[..., None, :, :] @ v[..., None])[..., 0]).sum(-1)
    disc = qb * qb - qa * qc
    disc = xp.where((disc < 0) & (disc > -1e-9 * (qb * qb + xp.abs(qa * qc))), 0.0, disc)
    q = -(qb + xp.where(qb < 0, -1.0, 1.0) * xp.sqrt(disc))
    alpha, beta = xp.stack([q, qc], -1), xp.stack([qa, q], -1)
    depths = alpha[..., None] * u[..., None, :] + beta[..., None] * v[..., None, :]  # (..., 2, 2, 3)
    depths = depths.reshape((*depths.shape[:-3], 4, 3))
    depths = depths * xp.where(depths.sum(-1) < 0, -1.0, 1.0)[..., None]
    d1, d2, d3 = depths[..., 0], depths[..., 1], depths[..., 2]
    form = 2 * (
        _square(depths) - d1 * d2 * b12[..., None] - d1 * d3 * b13[..., None] - d2 * d3 * b23[..., None]
    )
    depths = depths / xp.sqrt(form)[..., None]
    positive = (d1 > 0) & (d2 > 0) & (d3 > 0)
    return xp.where(positive[..., None], depths, xp.nan)


def _real_root(xp: Any, c0: Array, c1: Array, c2: Array, c3: Array) -> Array:
    """The real root of c0 + c1 g + c2 g^2 + c3 g^3 that lies farthest from the others, c3 not zero."""
    b, c, d = c2 / c3, c1 / c3, c0 / c3
    q = (b * b - 3 * c) / 9
    r = (2 * b * b * b - 9 * b * c + 27 * d) / 54
    three = r * r < q * q * q
    root_q = xp.sqrt(xp.where(q > 0, q, 0.0))
    ratio = xp.where(three, r / (root_q * root_q * root_q), 0.0)
    theta = xp.arccos(xp.clip(ratio, -1.0, 1.0)) + xp.where(r > 0, 0.0, 2 * np.pi)
    trig = -2 * root_q * xp.cos(theta / 3)
    inside = r * r - q * q * q
    big = (xp.abs(r) + xp.sqrt(xp.where(inside > 0, inside, 0.0))) ** (1 / 3)
    card = -xp.where(r < 0, -1.0, 1.0) * (big + xp.where(big > 0, q / big, 0.0))
    g = xp.where(three, trig, card) - b / 3
    for _ in range(2):
        slope = c + g * (2 * b + 3 * g)
        step = (d + g * (c + g * (b + g))) / slope
        g = xp.where(xp.isfinite(step), g - step, g)
    return g


def _split(xp: Any, pair: tuple[Array, ...]) -> Array:
    """The two lines (..., 2, 3) of a symmetric rank-two matrix, NaN where they are complex."""
    adj = _full(xp, _adjugate(pair))
    diag = -xp.stack([adj[..., 0, 0], adj[..., 1, 1], adj[..., 2, 2]], -1)
    k = xp.argmax(diag, -1)[..., None]
    pick = np.take_along_axis if xp is np else torch.take_along_dim
    column = pick(-adj, k[..., None], -1)[..., 0]
    scale = pick(diag, k, -1)
    p = column / xp.sqrt(xp.where(scale > 0, scale, xp.nan))
    px, py, pz = p[..., 0], p[..., 1], p[..., 2]
    c00, c01, c02, c11, c12, c22 = pair
    entries = [c00, c01 - pz, c02 + py, c01 + pz, c11, c12 - px, c02 - py, c12 + px, c22]  # C + [p]x = 2 m l'
    flat = xp.stack(entries, -1)
    matrix = flat.reshape((*flat.shape[:-1], 3, 3))
    k = xp.argmax(xp.abs(flat), -1)[..., None, None]
    row = pick(matrix, k // 3, -2)[..., 0, :]
    col = pick(matrix, k % 3, -1)[..., 0]
    return xp.stack([row, col], -2)


def _polish(xp: Any, depths: Array, a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """Depths (..., 4, 3) after two Newton steps on the three side lengths; NaN where these are not met."""
    (a12, a13, a23), (b12, b13, b23) = (tuple(i[..., None] for i in s) for s in (a, b))
    d1, d2, d3 = depths[..., 0], depths[..., 1], depths[..., 2]
    for k in range(3):
        e12 = d1 * d1 + d2 * d2 - 2 * b12 * d1 * d2 - a12
        e13 = d1 * d1 + d3 * d3 - 2 * b13 * d1 * d3 - a13
        e23 = d2 * d2 + d3 * d3 - 2 * b23 * d2 * d3 - a23
        if k == 2:
            break
        # half the Jacobian: [[p, q, 0], [r, 0, s], [0, u, v]]
        p, q = d1 - b12 * d2, d2 - b12 * d1
        r, s = d1 - b13 * d3, d3 - b13 * d1
        u, v = d2 - b23 * d3, d3 - b23 * d2
        det = -2 * (p * s * u + q * r * v)
        step1 = (-e12 * s * u - q * (e13 * v - s * e23)) / det
        step2 = (p * (e13 * v - e23 * s) - e12 * r * v) / det
        step3 = (e12 * r * u - p * e13 * u - q * r * e23) / det
        good = xp.isfinite(step1 + step2 + step3)
        d1, d2, d3 = (xp.where(good, d - st, d) for d, st in ((d1, step1), (d2, step2), (d3, step3)))
    met = (xp.abs(e12) + xp.abs(e13) + xp.abs(e23) < 1e-6) & (d1 > 0) & (d2 > 0) & (d3 > 0)
    return xp.where(met[..., None], xp.stack([d1, d2, d3], -1), xp.nan)
