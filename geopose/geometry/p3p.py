"""All poses of three points: the minimal solver behind the robust estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# arrays are numpy or torch, float64; every function keeps the kind it was given
Array = Any
_FIRST, _SECOND = np.array([0, 0, 1]), np.array([1, 2, 2])  # the sides 12, 13, 23
_ROUND = np.array([0, 1, 2, 0, 1])


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
        depths = triangle_depths(points, rays)
        wide = xp.broadcast_to(points[:, :, None], (3, *depths.shape))
        R, t = poses_of(wide, rays[:, :, None], depths)
        return xp.moveaxis(R, (2, 0, 1), (-3, -2, -1)), xp.moveaxis(t, (1, 0), (-2, -1))


def triangle_depths(points: Array, rays: Array, polish: int = 2) -> Array:
    """The depths (3, 4, ...) of three points along their rays, for each solution; NaN for none.

    points, rays: (3, 3, ...), the point first, then its coordinates; unit rays. polish: Newton steps. The layout
    makes every array operation one over all problems.
    """
    sides = _pick(points, _FIRST) - _pick(points, _SECOND)
    return depths_of((sides * sides).sum(1), (_pick(rays, _FIRST) * _pick(rays, _SECOND)).sum(1), polish)


def depths_of(a: Array, b: Array, polish: int) -> Array:
    """`triangle_depths` of triangles with the squared sides `a` (3, ...), order 12, 13, 23, and cosines `b` (3, ...)
    between the rays. Without `polish` the sides are not checked either."""
    xp = torch if isinstance(a, torch.Tensor) else np
    size = a.sum(0)
    if not polish:
        return _ratios(xp, a, b, 0) * xp.sqrt(size)
    a = a / size
    return _polish(xp, _ratios(xp, a, b, 2), a[:, None], b[:, None], polish) * xp.sqrt(size)


def poses_of(points: Array, rays: Array, depths: Array) -> tuple[Array, Array]:
    """R (3, 3, ...), t (3, ...) of three points (3, 3, ...) at `depths` (3, ...) along unit rays (3, 3, ...)."""
    xp = torch if isinstance(points, torch.Tensor) else np
    points_cam = depths[:, None] * rays
    frames = _triangle_frame(xp, xp.concatenate([points_cam, points], -1))
    count = points.shape[-1]
    R = (frames[:, :, None, ..., :count] * frames[:, None, ..., count:]).sum(0)
    return R, points_cam[0] - (R * points[0]).sum(1)


def _rows(*arrays: Array) -> Array:
    """`stack` along the first axis; for small arrays numpy's own takes four times as long."""
    return torch.stack(arrays) if isinstance(arrays[0], torch.Tensor) else np.array(arrays)


def _pick(a: Array, index: np.ndarray) -> Array:
    """`a[index]` along the first axis."""
    return a[index] if isinstance(a, torch.Tensor) else a.take(index, 0)


def _reverse(a: Array) -> Array:
    """`a` with its first axis turned round; np.flip takes longer than the arithmetic around it."""
    return a.flip(0) if isinstance(a, torch.Tensor) else a[::-1]


def _cross(xp: Any, a: Array, b: Array) -> Array:
    """(..., 3) cross product; np.cross costs three times as much on small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return xp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _triangle_frame(xp: Any, points: Array) -> Array:
    """(3, 3, ...) orthonormal axes: along side 12, in the plane, normal; of points (3, 3, ...)."""
    e1, side = points[1] - points[0], points[2] - points[0]
    e1 = e1 / xp.sqrt((e1 * e1).sum(0))
    e2 = side - (e1 * side).sum(0) * e1
    e2 = e2 / xp.sqrt((e2 * e2).sum(0))
    a, b = _pick(e1, _ROUND), _pick(e2, _ROUND)
    return _rows(e1, e2, a[1:4] * b[2:] - a[2:] * b[1:4])


def _ratios(xp: Any, a: Array, b: Array, polish: int) -> Array:
    """Depths (3, 4, ...) of the three rays where the squared sides sum up to one, NaN where complex or negative.

    x E12 + y E13 + z E23 with x a12 + y a13 + z a23 = 0 vanishes at the depths, where Eij = di^2 + dj^2 - 2 bij di dj.
    """
    (b12, b13, b23), a23 = b, a[2]
    # det(x E12 + ...) = s12 x^2 (y + z) + s13 y^2 (x + z) + s23 z^2 (x + y) + 2 m x y z, with squared sines s,
    # m = 1 - b12 b13 b23, x = a23, y = g a23, z = -(a12 + g a13): a cubic in g, or from the other end in 1 / g
    ends, sines = a[:2], 1 - b * b
    turned, across, s23 = _reverse(ends), a23 * sines[:2], sines[2]
    outer = ends * (s23 * ends - across)
    inner = across * (a23 - turned) + ends * (s23 * (ends + 2 * turned) - 2 * a23 * (1 - b12 * b13 * b23))
    swap = xp.abs(outer[1]) < xp.abs(outer[0])  # the smaller one is the constant term: no root at infinity
    c0, c3 = xp.where(swap, _reverse(outer), outer)
    c1, c2 = xp.where(swap, _reverse(inner), inner)
    g = _real_root(xp, c2 / c3, c1 / c3, c0 / c3, polish)
    k12, k13 = xp.where(swap, g, 1.0), xp.where(swap, 1.0, g)
    # the degenerate conic, and another one of the pencil
    x, y, z = _rows(k12, -k13) * a23, _rows(k13, k12) * a23, _rows(-k12, k13) * a[0] - _rows(k13, k12) * a[1]
    # d is the depth, of the second or the third point, whose square counts more; s is the other one
    big = xp.abs(x[0] + z[0]) > xp.abs(y[0] + z[0])
    x, y = xp.where(big, x, y), xp.where(big, y, x)
    bd, bs = xp.where(big, b12, b13), xp.where(big, b13, b12)
    (m00, q00), (mdd, qdd), (mss, qss) = x + y, x + z, y + z
    (m0d, q0d), (m0s, q0s), (mds, qds) = -bd * x, -bs * y, -b23 * z
    # the conic falls into the lines d = w0 + w1 s, mdd d = -(m0d + mds s) +- (r0 + r1 s)
    r00, r11, r01 = m0d * m0d - mdd * m00, mds * mds - mdd * mss, m0d * mds - mdd * m0s
    first = r00 > r11
    root = xp.sqrt(xp.where(first, r00, r11))  # NaN where the lines are complex
    rest = r01 / root
    r0, r1 = xp.where(first, root, rest), xp.where(first, rest, root)
    w0, w1 = _rows(r0 - m0d, -r0 - m0d) / mdd, _rows(r1 - mds, -r1 - mds) / mdd
    A = qss + w1 * (2 * qds + qdd * w1)
    B = q0s + qds * w0 + w1 * (q0d + qdd * w0)
    C = q00 + w0 * (2 * q0d + qdd * w0)
    square = B * B
    disc = square - A * C
    disc = xp.where(disc > -1e-9 * square, xp.where(disc > 0, disc, 0.0), xp.nan)
    q = -B - xp.copysign(xp.sqrt(disc), B)
    s = _rows(q / A, C / q)  # (2, 2, ...)
    d = w0 + w1 * s
    form = 2 * (1 + d * (d - bd - b23 * s) + s * (s - bs))
    one = xp.where((d > 0) & (s > 0), 1 / xp.sqrt(form), xp.nan)
    d, s = d * one, s * one
    return _rows(one, xp.where(big, d, s), xp.where(big, s, d)).reshape((3, 4, *g.shape))


def _real_root(xp: Any, b: Array, c: Array, d: Array, polish: int) -> Array:
    """The real root of d + c g + b g^2 + g^3 that lies farthest from the others."""
    third = b / 3
    q = third * third - c / 3
    r = third * (third * third - 0.5 * c) + 0.5 * d
    size, inside = xp.abs(r), r * r - q * q * q
    three = inside < 0
    root_q = xp.sqrt(q)
    big = (size + xp.sqrt(inside)) ** (1 / 3)
    far = xp.where(three, 2 * root_q * xp.cos(xp.arccos(size / (root_q * q)) / 3), big + q / big)
    g = -third - xp.copysign(far, r)
    for _ in range(polish):
        step = (d + g * (c + g * (b + g))) / (c + g * (2 * b + 3 * g))
        g = xp.where(xp.isfinite(step), g - step, g)
    return g


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
