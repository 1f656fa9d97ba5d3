"""One small problem in numpy: the formulas of `Reprojection`, `levenberg_marquardt` and `two_starts` in few calls.

A numpy call on twenty points costs half a microsecond whatever it does, so this is written for their number:
buffers are kept, points lie on the last axis with a row of ones, poses are 4x4 matrices, and what has the size
of a pose is computed in Python's floats. Residuals and derivatives share one matrix, whose Gram matrix holds
half the Hessian, half the gradient and the cost.

The tangent here is (phi_y, -phi_x, phi_z, -rho_z, rho_x, rho_y): so ordered and signed, its derivatives are
products of whole arrays. `TO_TANGENT` and `SIGN_PAIRS` lead back to (rho, phi).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv, dsyev

from geopose.geometry.refine import DAMPING, stops

Floats = NDArray[np.float64]

TO_TANGENT = np.array(
    [4, 5, 3, 1, 0, 2]
)  # where (rho, phi) stand in the tangent used here, and with which signs
SIGN_PAIRS = np.multiply.outer(*2 * [np.array([1.0, 1.0, -1.0, -1.0, 1.0, 1.0])])
_FLAT = TO_TANGENT[:, None] * 6 + TO_TANGENT
_FLIP = np.array([[-1.0], [1.0]])
_START, _DOWN, _UP, _LOW, _HIGH = DAMPING


class Small:
    """Whitened reprojection residuals of N points, pinhole, and their normal equations.

    points: (4, N) object frame, the last row ones; xy: (2, N) normalised image coordinates; weight: (2, N) or
    (2, 1), the diagonal of the lower triangular W with W'W the inverse covariance; bend: (N,) its entry 10
    over its entry 00, None where covariances are diagonal; radius: no point is farther from the origin.
    """

    __slots__ = (
        "_corner", "_flat", "_flat_t", "_gram", "_last", "_moved", "_products", "_seen", "_turned", "_turning",
        "_uv", "_vu",
        "bend", "points", "radius", "residual", "weight", "xy",
    )  # fmt: skip

    def __init__(
        self, points: Floats, xy: Floats, weight: Floats, bend: Floats | None, radius: float
    ) -> None:
        n = points.shape[1]
        self.points, self.xy, self.weight, self.bend, self.radius = points, xy, weight, bend, radius
        self._moved = np.empty((4, n))
        self._seen = np.empty((4, n))  # u, v, 1, 1/z
        self._uv, self._vu = self._seen[:2], self._seen[1::-1]
        J = np.zeros((7, 2, n))  # the derivatives by the tangent, and the residual
        rows = J.reshape(14, n)
        self._products, self._corner, self._turned, self._last = J[:4], rows[0:4:3], J[2], rows[8:12:3]
        self._gram, self.residual = J, J[6]
        self._flat = J.reshape(7, 2 * n)
        self._flat_t = self._flat.T
        self._turning = weight * _FLIP

    def select(self, keep: NDArray[np.bool_]) -> Small:
        """The same problem with only the points where `keep` (N,) holds."""
        return Small(
            self.points[:, keep],
            self.xy[:, keep],
            self.weight if self.weight.shape[1] == 1 else self.weight[:, keep],
            None if self.bend is None else self.bend[keep],
            self.radius,
        )

    def plain(self, pose: Floats) -> Floats | None:
        """The Gram matrix (7, 7) of (derivatives, residual) at `pose` (4, 4); None with a point behind."""
        self.points_cam(pose)
        if pose.item(11) <= self.radius and self._moved[2].min() <= 0:
            return None
        self._differentiate()
        return self._flat.dot(self._flat_t)

    def truncated(self, pose: Floats, gate2: float) -> Floats:
        """The same for the sum of min(|r|^2, gate2); a point behind the camera costs gate2."""
        squared = self._squares(pose)
        return self._weighted(np.where(squared < gate2, 1.0, 0.0), np.minimum(squared, gate2))

    def geman_mcclure(self, pose: Floats, gate2: float) -> Floats:
        """The same for the sum of |r|^2 / (1 + |r|^2 / gate2), its curvature left out of the Hessian."""
        squared = self._squares(pose)
        share = 1 / (1 + squared / gate2)
        return self._weighted(share * share, gate2 - gate2 * share)

    def _squares(self, pose: Floats) -> Floats:
        """(N,) squared whitened residuals, infinite behind the camera, after `_differentiate`."""
        z = self.points_cam(pose)[2]
        behind = z <= 0 if pose.item(11) <= self.radius else None
        if behind is not None:
            z[behind] = 1.0
        self._differentiate()
        r = self.residual
        x, y = r * r
        x += y
        if behind is not None:
            x[behind] = np.inf
        return x

    def _weighted(self, slope: Floats, value: Floats) -> Floats:
        """The Gram matrix with points weighed by `slope` (N,), their costs `value` (N,) summed in the last entry."""
        G: Floats = (self._gram * slope).reshape(7, -1).dot(self._flat_t)
        G[6, 6] = np.add.reduce(value)
        return G

    def points_cam(self, pose: Floats) -> Floats:
        """The points (4, N) in the camera frame; valid until the next call."""
        return pose.dot(self.points, self._moved)

    def squared(self, pose: Floats) -> Floats:
        """(N,) squared whitened residuals at `pose`, infinite behind the camera."""
        x, y, z, _ = self.points_cam(pose)
        r = (self._moved[:2] / z - self.xy) * self.weight
        if self.bend is not None:
            r[1] += self.bend * r[0]
        r *= r
        d2 = r[0] + r[1]
        if pose.item(11) <= self.radius:
            d2[z <= 0] = np.inf
        return d2

    def _differentiate(self) -> None:
        """Residuals and derivatives (7, 2, N) of the points last moved."""
        seen, weight, r = self._seen, self.weight, self.residual
        np.divide(self._moved, self._moved[2], seen)
        np.subtract(self._uv, self.xy, r)
        np.multiply(r, weight, r)
        np.multiply(seen[:, None, :], self._uv * weight, self._products)
        np.add(self._corner, weight, self._corner)
        np.multiply(self._vu, self._turning, self._turned)
        np.multiply(seen[3], weight, self._last)
        if self.bend is not None:
            self._gram[4, 1] = 0.0
            self._gram[:, 1] += self.bend * self._gram[:, 0]


def tangent_information(gram: Floats) -> Floats:
    """Half the Hessian (6, 6) in the order (rho, phi), from the Gram matrix (7, 7) of a `Small`."""
    return np.asarray(gram[:6, :6].take(_FLAT) * SIGN_PAIRS)


def moved(pose: Floats, step: list[float]) -> Floats:
    """`pose` (4, 4) moved back by `step` in the tangent used here: `small_step` of `refine`."""
    y, x, z, back, right, down = step
    x, y, z = 0.5 * x, -0.5 * y, -0.5 * z
    xx, yy, zz = x * x, y * y, z * z
    s = 2 / (1 + xx + yy + zz)
    turn = (
        1 - s * (yy + zz), s * (x * y - z), s * (x * z + y), -right,
        s * (x * y + z), 1 - s * (xx + zz), s * (y * z - x), -down,
        s * (x * z - y), s * (y * z + x), 1 - s * (xx + yy), back,
        0.0, 0.0, 0.0, 1.0,
    )  # fmt: skip
    return np.array(turn).reshape(4, 4).dot(pose)


@functools.lru_cache(maxsize=64)
def _damped(damping: float) -> Floats:
    """What multiplies the normal matrix (6, 6)."""
    return np.ones((6, 6)) + damping * np.eye(6)


class Descent:
    """Levenberg-Marquardt from one start, a step at a time.

    pose: (4, 4); gram: (7, 7) there (see `Small`); cost; length: of the last step, squared standard deviations;
    expected: the cost that the last linear model hoped for; converged; done: converged or given up.
    """

    __slots__ = (
        "_before",
        "_damping",
        "_step",
        "converged",
        "cost",
        "done",
        "expected",
        "gram",
        "length",
        "look",
        "pose",
    )

    def __init__(self, look: Callable[[Floats], Floats | None], pose: Floats) -> None:
        self.look, self.pose = look, pose
        gram = look(pose)
        self.cost = math.inf if gram is None else gram.item(48)
        self.gram: Any = gram
        self.converged, self.done = False, not self.cost < math.inf
        self.length, self.expected = math.nan, math.inf
        self._damping, self._before = _START, math.nan
        self._step: Floats | None = None

    def restart(self) -> None:
        """Go on with the damping of a start, unless it has converged."""
        self._damping, self._before, self.done = _START, math.nan, self.converged

    def step(self, tolerance: float) -> None:
        """One trial step; `tolerance` in standard deviations of the pose."""
        self.propose(tolerance)
        self.settle()

    def propose(self, tolerance: float) -> None:
        """The first half of `step`: what the linear model says, `length` and `expected`."""
        gram = self.gram
        gradient = gram[:6, 6]
        _, step, info = dposv(gram[:6, :6] * _damped(self._damping), gradient)
        if info:
            self.done = True
            return
        self.length = length = step.dot(gradient).item()
        self.expected = self.cost - length
        if stops(length, self._before, tolerance):  # what it would change is beyond what counts
            self.pose, self.cost = moved(self.pose, step.tolist()), max(self.expected, 0.0)
            self.converged = self.done = True
        else:
            self._step = step

    def settle(self) -> None:
        """The second half: the step is taken where it lowers the cost."""
        step, self._step = self._step, None
        if step is None:
            return
        trial = moved(self.pose, step.tolist())
        gram = self.look(trial)
        cost = math.inf if gram is None else gram.item(48)
        near = self.length < 1e-10 * self.cost and cost <= self.cost * (1 + 1e-9) + 1e-24
        if cost < self.cost or near:
            self.pose, self.gram, self.cost = trial, gram, cost
            self._damping, self._before = max(self._damping * _DOWN, _LOW), self.length
        else:
            self.done = self._damping >= _HIGH
            self._damping, self._before = min(self._damping * _UP, _HIGH), math.nan

    def run(self, most: int, tolerance: float) -> None:
        """Up to so many steps."""
        for _ in range(most):
            if self.done:
                break
            self.step(tolerance)


@dataclass(frozen=True, slots=True)
class Starts:
    """Both weak-perspective poses (4, 4); whether the points are coplanar; their centre and the direction (3,) in
    which they vary least."""

    poses: tuple[Floats, Floats]
    flat: bool
    centre: Floats
    normal: Floats

    def mirrored(self) -> list[Floats]:
        """The two of the object's mirror image, as reflections (4, 4) of the object itself: in weak perspective they
        look the same, with what lies before the principal plane behind it."""
        flip = np.eye(4)
        flip[:3, :3] -= 2 * np.multiply.outer(self.normal, self.normal)
        flip[:3, 3] = 2 * self.normal.dot(self.centre) * self.normal
        return [pose.dot(flip) for pose in self.poses]


def starts(small: Small) -> Starts | None:
    """Both weak-perspective poses; None where the points are collinear.

    The formulas and names of `two_starts`.
    """
    points, weight = small.points, small.weight
    n = points.shape[1]
    if weight.shape[1] == 1:
        share = np.full(n, 1 / n)
    else:
        share = weight[0] * weight[1]
        share /= share.sum()
    pw = points * share
    moments = pw.dot(points.T)
    centre = moments[:3, 3]
    variances, axes, info = dsyev(moments[:3, :3] - np.multiply.outer(centre, centre))
    v0, v1, v2 = variances.tolist()
    if info or not v1 > 1e-10 * v2:
        return None
    rays = np.empty((3, n))
    rays[:2], rays[2] = small.xy, 1.0
    x, y, z = rays.dot(share).tolist()
    k = 1 / math.sqrt(x * x + y * y + z * z)
    x, y, z = x * k, y * k, z * k
    k = 1 / (1 + z)
    turn = np.array((1 - k * x * x, -k * x * y, -x, -k * x * y, 1 - k * y * y, -y, x, y, z)).reshape(3, 3)
    rays = turn.dot(rays)
    b = (rays[:2] / rays[2]).dot(pw.T)
    m = (b[:, :3] - np.multiply.outer(b[:, 3], centre)).dot(axes)
    (_, p2, p1), (_, q2, q1) = m.tolist()
    p1, q1, p2, q2 = p1 / v2, q1 / v2, p2 / v1, q2 / v1
    s1, s2, s12 = p1 * p1 + q1 * q1, p2 * p2 + q2 * q2, p1 * p2 + q1 * q2
    real, imag = s2 - s1, -2 * s12
    size = math.sqrt(real * real + imag * imag)
    a1 = math.sqrt(max(size + real, 0.0) * 0.5)
    a2 = math.sqrt(max(size - real, 0.0) * 0.5) * (-1.0 if imag < 0 else 1.0)
    if not s1 + a1 * a1 > 0:
        return None
    depth = 1 / math.sqrt(s1 + a1 * a1)
    p1, q1, a1, p2, q2, a2 = (value * depth for value in (p1, q1, a1, p2, q2, a2))
    (_, y1, x1), (_, y2, x2), (_, y3, x3) = axes.tolist()
    frame = (x1, x2, x3, y1, y2, y3, x2 * y3 - x3 * y2, x3 * y1 - x1 * y3, x1 * y2 - x2 * y1)
    basis = np.array(frame).reshape(3, 3)
    (x, y), (cx, cy, cz) = b[:, 3].tolist(), centre.tolist()
    poses = []
    for s in (1.0, -1.0):
        c1, c2 = s * a1, s * a2
        flat = (p1, p2, q1 * c2 - c1 * q2, q1, q2, c1 * p2 - p1 * c2, c1, c2, p1 * q2 - q1 * p2)
        R = np.array(flat).reshape(3, 3).dot(basis)
        z = depth
        if depth < 1.3 * (small.radius + math.sqrt(cx * cx + cy * cy + cz * cz)):  # nothing may start behind
            row = R[2]
            z = max(depth, -1.3 * (row.dot(points[:3]).min().item() - row.dot(centre).item()))
        pose = np.zeros((4, 4))
        pose[:3, :3] = R
        pose[:3, 3] = np.array((x * z, y * z, z)) - R.dot(centre)
        pose[:3] = turn.T.dot(pose[:3])
        pose[3, 3] = 1.0
        poses.append(pose)
    return Starts((poses[0], poses[1]), v0 <= 1e-9 * v2, centre, basis[2])
