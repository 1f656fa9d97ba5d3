"""All poses of three points: the minimal solver behind the robust estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# arrays are numpy or torch, float64; every function keeps the kind it was given
Array = Any
_FIRST, _SECOND = np.array([0, 0, 1]), np.array([1, 2, 2])  # the sides 12, 13, 23
_CUBIC = ((0, 0), (0, 1), (1, 0), (1, 1))
_TURN, _BACK = np.array([1, 2, 0]), np.array([2, 0, 1])
_EXCHANGE, _CROSSWISE = np.array([0, 2, 1]), np.array([0, 2, 1, 5, 4, 3])  # of the last two coordinates
_COLUMNS = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
_ENTRIES = _COLUMNS.ravel()  # of a symmetric matrix, from its entries 00, 01, 02, 11, 12, 22


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
        rays = bearings / xp.sqrt((bearings * bearings).sum(-1))[..., None]
        points, rays = (xp.moveaxis(a, (-2, -1), (0, 1)) for a in (points_obj, rays))  # (3, 3, ...)
        R, t = poses_of(points[:, :, None], rays[:, :, None], triangle_depths(points, rays))
        return xp.moveaxis(R, (2, 0, 1), (-3, -2, -1)), xp.moveaxis(t, (1, 0), (-2, -1))


def triangle_depths(points: Array, rays: Array, polish: int = 2) -> Array:
    """The depths (3, 4, ...) of three points along their rays, for each solution; NaN for none.

    points, rays: (3, 3, ...), the point first, then its coordinates; unit rays. polish: Newton steps. The layout
    makes every array operation one over all problems.
    """
    xp = torch if isinstance(points, torch.Tensor) else np
    sides = _pick(points, _FIRST) - _pick(points, _SECOND)
    a = (sides * sides).sum(1)
    size = a.sum(0)
    a, b = a / size, (_pick(rays, _FIRST) * _pick(rays, _SECOND)).sum(1)
    return _polish(xp, _ratios(xp, a, b), a[:, None], b[:, None], polish) * xp.sqrt(size)


def poses_of(points: Array, rays: Array, depths: Array) -> tuple[Array, Array]:
    """R (3, 3, ...), t (3, ...) of three points (3, 3, ...) at `depths` (3, ...) along unit rays (3, 3, ...)."""
    xp = torch if isinstance(points, torch.Tensor) else np
    points_cam = depths[:, None] * rays
    frame_cam, frame_obj = _triangle_frame(xp, points_cam), _triangle_frame(xp, points)
    R = (frame_cam[:, :, None] * frame_obj[:, None]).sum(0)
    return R, points_cam[0] - (R * points[0]).sum(1)


def _rows(*arrays: Array) -> Array:
    """`stack` along the first axis; for small arrays numpy's own takes four times as long."""
    return torch.stack(arrays) if isinstance(arrays[0], torch.Tensor) else np.array(arrays)


def _pick(a: Array, index: np.ndarray) -> Array:
    """`a[index]` along the first axis."""
    return a[index] if isinstance(a, torch.Tensor) else a.take(index, 0)


def _cross(xp: Any, a: Array, b: Array) -> Array:
    """(..., 3) cross product; np.cross costs three times as much on small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return xp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _triangle_frame(xp: Any, points: Array) -> Array:
    """(3, 3, ...) orthonormal axes: along side 12, in the plane, normal; of points (3, 3, ...)."""
    e1, side = points[1] - points[0], points[2] - points[0]
    e3 = _pick(e1, _TURN) * _pick(side, _BACK) - _pick(e1, _BACK) * _pick(side, _TURN)
    e1 = e1 / xp.sqrt((e1 * e1).sum(0))
    e3 = e3 / xp.sqrt((e3 * e3).sum(0))
    return _rows(e1, _pick(e3, _TURN) * _pick(e1, _BACK) - _pick(e3, _BACK) * _pick(e1, _TURN), e3)


def _adjugate(xp: Any, m: Array) -> Array:
    """The entries (6, ...) 00, 01, 02, 11, 12, 22 of the adjugate of a symmetric matrix given the same way."""
    p, q, r, s, t, u = m
    return _rows(s * u - t * t, r * t - q * u, q * t - r * s, p * u - r * r, q * r - p * t, p * s - q * q)


def _ratios(xp: Any, a: Array, b: Array) -> Array:
    """Positive depths (3, 4, ...) of the three rays, NaN where complex or negative."""
    (a12, a13, a23), (b12, b13, b23) = a, b
    zero = a12 * 0
    one = _rows(a23, -a23 * b12, zero, a23 - a12, a12 * b23, -a12)
    two = _rows(a23, zero, -a23 * b13, -a13, a13 * b23, a23 - a13)
    pair = xp.moveaxis(_rows(one, two), 0, 1)  # entry, conic
    adjugate = _adjugate(xp, pair)
    adjugate[[1, 2, 4]] *= 2
    # coefficients of det(one + g two)
    c = _rows(*((adjugate[:, i] * pair[:, j]).sum(0) for i, j in _CUBIC))
    c[0] /= 3
    c[3] /= 3
    # the smaller end coefficient belongs to the constant term: no root at infinity
    swap = xp.abs(c[3]) < xp.abs(c[0])
    one, two = xp.where(swap, two, one), xp.where(swap, one, two)
    c0, c1, c2, c3 = xp.where(swap, xp.flip(c, (0,)), c)
    g = _real_root(xp, c2 / c3, c1 / c3, c0 / c3)
    lines = _split(xp, one + g * two)  # (3, 2, ...): two lines
    other = (two - g * one)[:, None]  # any other conic of the pencil
    # in depths over the first, (1, y, z): the line gives the one with the larger coefficient by the other, s
    big = xp.abs(lines[1]) > xp.abs(lines[2])
    lines = xp.where(big, lines, _pick(lines, _EXCHANGE))
    q00, q0d, q0s, qdd, qds, qss = xp.where(big, other, _pick(other, _CROSSWISE))
    w0, w1 = -lines[0] / lines[1], -lines[2] / lines[1]
    A = qss + w1 * (2 * qds + qdd * w1)
    B = q0s + qds * w0 + w1 * (q0d + qdd * w0)
    C = q00 + w0 * (2 * q0d + qdd * w0)
    disc = B * B - A * C
    disc = xp.where((disc < 0) & (disc > -1e-9 * (B * B + xp.abs(A * C))), 0.0, disc)
    q = -(B + xp.where(B < 0, -1.0, 1.0) * xp.sqrt(disc))
    s = _rows(q / A, C / q)  # (2, 2, ...)
    d = w0 + w1 * s
    y, z = xp.where(big, d, s), xp.where(big, s, d)
    y, z = y.reshape((4, *y.shape[2:])), z.reshape((4, *z.shape[2:]))
    form = 2 * (1 - b13 * z + z * z + y * (y - b12 - b23 * z))
    first = xp.where((y > 0) & (z > 0), 1 / xp.sqrt(form), xp.nan)
    return _rows(first, first * y, first * z)


def _real_root(xp: Any, b: Array, c: Array, d: Array) -> Array:
    """The real root of d + c g + b g^2 + g^3 that lies farthest from the others."""
    q = (b * b - 3 * c) / 9
    r = (b * (2 * b * b - 9 * c) + 27 * d) / 54
    q3 = q * q * q
    inside = r * r - q3
    sign = xp.where(r < 0, 1.0, -1.0)
    root_q = xp.sqrt(xp.where(q > 0, q, 0.0))
    angle = xp.arccos(xp.abs(r) / (root_q * q))  # used where the ratio is under one
    big = (xp.abs(r) + xp.sqrt(xp.where(inside > 0, inside, 0.0))) ** (1 / 3)
    single = big + xp.where(big > 0, q / big, 0.0)
    g = sign * xp.where(inside < 0, 2 * root_q * xp.cos(angle / 3), single) - b / 3
    for _ in range(2):
        step = (d + g * (c + g * (b + g))) / (c + g * (2 * b + 3 * g))
        g = xp.where(xp.isfinite(step), g - step, g)
    return g


def _split(xp: Any, pair: Array) -> Array:
    """The two lines (3, 2, ...) of symmetric rank-two matrices (6, ...), NaN where they are complex."""
    adj = -_adjugate(xp, pair)
    dx, dy, dz = adj[0], adj[3], adj[5]
    # p with adj = p p', by its largest entry
    first, second, third = (_pick(adj, k) for k in _COLUMNS)
    column, scale = xp.where(dy > dx, second, first), xp.maximum(dx, dy)
    column, scale = xp.where(dz > scale, third, column), xp.maximum(scale, dz)
    px, py, pz = column / xp.sqrt(scale)  # NaN where negative
    zero = pz * 0
    matrix = _pick(pair, _ENTRIES) + _rows(zero, -pz, py, pz, zero, -px, -py, px, zero)
    matrix = matrix.reshape((3, 3, *px.shape))  # C + [p]x = 2 m l'
    size = xp.abs(matrix)
    row, column = _largest(xp, matrix, size.sum(1)), _largest(xp, xp.moveaxis(matrix, 0, 1), size.sum(0))
    return xp.moveaxis(_rows(row, column), 0, 1)


def _largest(xp: Any, rows: Array, size: Array) -> Array:
    """Of the rows (3, 3, ...) the one (3, ...) of greatest `size` (3, ...)."""
    first = xp.where(size[1] > size[0], rows[1], rows[0])
    return xp.where(size[2] > xp.maximum(size[0], size[1]), rows[2], first)


def _polish(xp: Any, depths: Array, a: Array, b: Array, steps: int) -> Array:
    """Depths (3, 4, ...) after Newton steps on the three side lengths; NaN where these are not met."""
    b12, b13, b23 = b
    d1, d2, d3 = depths
    for k in range(steps + 1):
        # half the Jacobian: [[p, q, 0], [r, 0, s], [0, u, v]]
        p, q = d1 - b12 * d2, d2 - b12 * d1
        r, s = d1 - b13 * d3, d3 - b13 * d1
        u, v = d2 - b23 * d3, d3 - b23 * d2
        error = _rows(p * d1 + q * d2, r * d1 + s * d3, u * d2 + v * d3) - a
        if k == steps:
            break
        e12, e13, e23 = error
        su, rv = s * u, r * v
        mixed = e13 * v - e23 * s
        det = -2 * (p * su + q * rv)
        change = (
            _rows(-e12 * su - q * mixed, p * mixed - e12 * rv, u * (e12 * r - p * e13) - q * r * e23) / det
        )
        change = xp.where(xp.isfinite(change.sum(0)), change, 0.0)
        d1, d2, d3 = depths = depths - change
    met = (xp.abs(error).sum(0) < 1e-6) & (depths > 0).all(0)
    return xp.where(met, depths, xp.nan)
