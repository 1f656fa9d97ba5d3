"""Two-fold views: both weak-perspective starts, which local optima are distinct, how much each one weighs."""

from __future__ import annotations

from typing import Any

import numpy as np

from geopose.geometry._arrays import Array, namespace
from geopose.geometry.p3p import _cross
from geopose.geometry.pose import Pose
from geopose.geometry.refine import fast_pose


def two_starts(points: Array, xy: Array, weights: Array) -> tuple[Pose, Array]:
    """Both weak-perspective poses, batch (2, ...), and the rising variances (..., 3) along the points' axes.

    Args:
        points: (..., 3, N) object frame.
        xy: (..., 2, N) normalised image coordinates (z = 1 plane).
        weights: (..., N), not negative; zero leaves a point out.
    Notes:
        The points are projected onto their two principal axes (p, q); least squares gives the 2x2 map M from
        there to the image, seen along the mean ray. M = s [r1 r2] lacks the third row (a, b) of the two
        rotation columns: they have equal length and are orthogonal, so (a + ib)^2 = |m2|^2 - |m1|^2 - 2i
        m1.m2, whose two square roots are the two poses (Poelman and Kanade, PAMI 1997, for the planar case;
        Collins and Bartoli, "IPPE", IJCV 2014). The third axis, not correlated with the first two, does not
        disturb M. Coplanar points and N = 3 are no special cases. Collinear points give NaN or nonsense: look
        at the second variance.
    """
    xp = namespace(points)
    with np.errstate(all="ignore"):
        total = weights.sum(-1)
        w = (weights / xp.where(total > 0, total, 1.0)[..., None])[..., None, :]
        centre = (points * w).sum(-1)
        p = points - centre[..., None]
        pw = p * w
        variances, axes = xp.linalg.eigh(pw @ p.mT)
        # look along the mean ray: rotate it onto the optical axis by the shortest turn
        rays = xp.stack([xy[..., 0, :], xy[..., 1, :], xp.ones_like(xy[..., 0, :])], -2)
        mean = (rays * w).sum(-1)
        mean = mean / xp.sqrt((mean * mean).sum(-1))[..., None]
        turn = _turn_to_axis(xp, mean)
        rays = turn @ rays
        flat = rays[..., :2, :] / rays[..., 2:, :]
        offset = (flat * w).sum(-1)
        e1, e2 = axes[..., 2], axes[..., 1]
        frame = xp.stack([e1, e2, _cross(xp, e1, e2)], -1)  # columns
        m = ((flat @ pw.mT) @ frame)[..., :2]  # (..., 2, 2)
        m1, m2 = m[..., 0] / variances[..., 2:], m[..., 1] / variances[..., 1:2]
        s1, s2, s12 = (m1 * m1).sum(-1), (m2 * m2).sum(-1), (m1 * m2).sum(-1)
        real, imag = s2 - s1, -2 * s12
        size = xp.sqrt(real * real + imag * imag)
        a = xp.sqrt(xp.where(size + real > 0, size + real, 0.0) * 0.5)
        b = xp.sqrt(xp.where(size - real > 0, size - real, 0.0) * 0.5) * xp.where(imag < 0, -1.0, 1.0)
        scale = xp.sqrt(s1 + a * a)
        depth = 1 / scale
        a, b = xp.stack([a, -a]), xp.stack([b, -b])
        m1, m2 = (xp.stack([v[..., 0], v[..., 1]]) for v in (m1, m2))
        c1 = xp.stack([xp.stack([m1[0], m1[0]]), xp.stack([m1[1], m1[1]]), a], -1) * depth[..., None]
        c2 = xp.stack([xp.stack([m2[0], m2[0]]), xp.stack([m2[1], m2[1]]), b], -1) * depth[..., None]
        R = xp.stack([c1, c2, _cross(xp, c1, c2)], -1) @ frame.mT
        # nothing may start behind the camera
        near = -xp.amin(R[..., 2:, :] @ xp.where(w > 0, p, 0.0), -1)[..., 0]
        depth = xp.maximum(depth + 0 * near, 1.3 * near)
        centre_cam = depth[..., None] * xp.stack([offset[..., 0], offset[..., 1], xp.ones_like(scale)], -1)
        R = turn.mT @ R
        t = (turn.mT @ centre_cam[..., None] - R @ centre[..., None])[..., 0]
    return fast_pose(R, t), variances


def _turn_to_axis(xp: Any, ray: Array) -> Array:
    """The shortest rotation (..., 3, 3) that takes the unit `ray` (..., 3), z > 0, to (0, 0, 1)."""
    x, y, z = ray[..., 0], ray[..., 1], ray[..., 2]
    k = 1 / (1 + z)
    xy = -k * x * y
    return xp.stack([1 - k * x * x, xy, -x, xy, 1 - k * y * y, -y, x, y, z], -1).reshape(
        (*ray.shape[:-1], 3, 3)
    )


def distinct(poses: Pose, best: Pose, covariance: Array) -> Array:
    """(K, ...) bool: which of the poses (K, ...) are more than 0.1 standard deviations from `best` (...).

    `covariance` (..., 6, 6) is that of `best`. Differences under 1e-6 (radians, of the distance) never count.
    """
    xp = namespace(poses.R)
    chord = ((poses.R - best.R) ** 2).sum((-1, -2)) / 2  # about the squared angle
    move = ((poses.t - best.t) ** 2).sum(-1)
    var = covariance[..., range(6), range(6)]
    # the translation of the object's origin moves with the rotation: judge it on the rotation too
    floor = 1e-12 * (best.t**2).sum(-1)
    turned = chord > xp.maximum(0.01 * var[..., 3:].sum(-1), xp.full_like(floor, 1e-12))
    moved = move > xp.maximum(0.01 * var[..., :3].sum(-1), floor)
    return turned | moved


def laplace_log_weight(cost: Array, information: Array) -> Array:
    """(...) log of exp(-cost / 2) sqrt(det covariance), the posterior mass of an optimum up to a constant.

    cost: (...) sum of squared whitened residuals; information: (..., 6, 6) inverse covariance. The prior is
    flat in the tangent space. NaN becomes -inf.
    """
    xp = namespace(cost)
    sign, logdet = xp.linalg.slogdet(information)
    value = -0.5 * cost - 0.5 * logdet
    return xp.where((sign > 0) & xp.isfinite(value), value, -xp.inf)
