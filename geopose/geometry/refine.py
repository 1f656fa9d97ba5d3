"""Least squares on SE(3): Levenberg-Marquardt, robust kernels, the reprojection residual.

Arrays are numpy or torch, float64, with any leading dimensions; formulas are written once for both. Residuals
come as (..., D, M): M observations of D components each, already divided by their standard deviations
(whitened). A kernel acts on the squared length of one observation. Points lie on the last axis because that
is three times as fast as (..., N, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, namespace
from geopose.geometry._kernels import normal_equations, robust, squares
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

JacobianFn = Callable[[Pose], tuple[Array, Array]]
StopFn = Callable[[int, Array, Array, Array], Array]
_TINY = 1e-300  # keeps an all-zero matrix from being singular
_EYE = np.eye(3)
# row i: the skew matrix of the i-th axis, flattened
_GENERATORS = np.array(
    [[0.0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]]
)
_DIFFERENCE = 1e-5  # radians, and share of the distance
_RATIO, _MARGIN = 0.01, 0.01  # squared: steps that shrink by ten, and a tenth of the tolerance
_BLOCK = 64  # problems evaluated at once on the CPU
_SPARSE = 0.75  # where fewer of the problems are still open, the others are left out
# damping: start, factor after success, factor after failure, bounds
DAMPING = _START, _DOWN, _UP, _LOW, _HIGH = 1e-4, 0.1, 10.0, 1e-9, 1e6


def fast_pose(R: Array, t: Array) -> Pose:
    """`Pose(R, t)` without the checks, for arrays that were just computed."""
    pose = object.__new__(Pose)
    pose.__dict__.update(R=R, t=t)
    return pose


def small_step(pose: Pose, xi: Array) -> Pose:
    """`pose` moved by `xi` (..., 6) = (rho, phi): to first order `pose.retract(xi)`, without trigonometry.

    Cayley's map R = I + 2 ([a]x + [a]x^2) / (1 + a.a) with a = phi/2 is exactly orthonormal.
    """
    half = xi[..., 3:] * 0.5
    generators: Array = _GENERATORS
    eye: Array = _EYE
    if isinstance(xi, torch.Tensor):
        generators, eye = torch.from_numpy(_GENERATORS).to(xi), torch.from_numpy(_EYE).to(xi)
    k = (half @ generators).reshape((*xi.shape[:-1], 3, 3))
    turn = eye + (2 / (1 + (half * half).sum(-1)))[..., None, None] * (k + k @ k)
    return fast_pose(turn @ pose.R, (turn @ pose.t[..., None])[..., 0] + xi[..., :3])


@dataclass(frozen=True)
class Reprojection:
    """Whitened reprojection residuals of N points for any number of poses.

    points: (..., 3, N) object frame; xy: (..., 2, N) measured positions; whiten: (..., 3, N) the entries
    00, 10, 11 of the lower triangular W with W'W the inverse covariance, all zero for a missing point.
    Without a camera xy are normalised coordinates (z = 1 plane) and W is in their unit, which is exact for a
    pinhole; with one xy are pixels and every projection goes through its distortion.
    """

    points: Array
    xy: Array
    whiten: Array
    camera: Camera | None = None

    def residual(self, pose: Pose) -> Array:
        """(..., 2, N); infinite for a point that counts and is not in front of the camera."""
        return self._evaluate(pose, False)[0]

    def linearise(self, pose: Pose) -> tuple[Array, Array]:
        """The residual (..., 2, N) and its derivative (..., 6, 2, N) by the left tangent (rho, phi)."""
        return self._evaluate(pose, True)

    def select(self, keep: Array) -> Reprojection:
        """The same problem with only the points where `keep` (..., N) holds."""
        xp = namespace(self.points)
        return Reprojection(self.points, self.xy, xp.where(keep[..., None, :], self.whiten, 0.0), self.camera)

    def item(self, index: Any) -> Reprojection:
        """The problems at `index` of the first batch dimension."""
        camera = self.camera[index] if self.camera is not None and self.camera.batch_shape else self.camera
        return Reprojection(self.points[index], self.xy[index], self.whiten[index], camera)

    def _evaluate(self, pose: Pose, derivative: bool) -> tuple[Array, Array]:
        xp = namespace(self.points)
        points_cam = pose.R @ self.points + pose.t[..., None]
        x, y, z = points_cam[..., 0, :], points_cam[..., 1, :], points_cam[..., 2, :]
        w = self.whiten
        w00, w10, w11 = w[..., 0, :], w[..., 1, :], w[..., 2, :]
        skew = bool(w10.any())
        behind = z <= 0
        some_behind = bool(behind.any())
        if some_behind:
            z = xp.where(behind, 1.0, z)
        shape = z.shape
        J = None
        if self.camera is None:
            iz = 1 / z
            u, v = x * iz, y * iz
        else:
            flat = xp.stack([x, y, z], -1)
            px, d = self.camera.project_jacobian(flat)  # (..., N, 2), (..., N, 2, 3)
            u, v = px[..., 0], px[..., 1]
        eu, ev = u - self.xy[..., 0, :], v - self.xy[..., 1, :]
        r = xp.empty((*shape[:-1], 2, shape[-1])) if xp is np else z.new_empty((*shape[:-1], 2, shape[-1]))
        r[..., 0, :] = w00 * eu
        r[..., 1, :] = w10 * eu + w11 * ev if skew else w11 * ev
        if some_behind:
            r = xp.where((behind & (w00 > 0))[..., None, :], np.inf, r)
        if not derivative:
            return r, J
        if self.camera is None:
            # rows of d(u, v) / d(rho, phi) of a pinhole
            uv = u * v
            du = (iz, None, -u * iz, -uv, 1 + u * u, -v)
            dv = (None, iz, -v * iz, -1 - v * v, uv, u)
        else:
            ux, uy, uz, vx, vy, vz = (d[..., i, j] for i in (0, 1) for j in (0, 1, 2))
            du = (ux, uy, uz, uz * y - uy * z, ux * z - uz * x, uy * x - ux * y)
            dv = (vx, vy, vz, vz * y - vy * z, vx * z - vz * x, vy * x - vx * y)
        size = (*shape[:-1], 6, 2, shape[-1])
        J = xp.empty(size) if xp is np else z.new_empty(size)
        for k in range(6):
            a, b = du[k], dv[k]
            J[..., k, 0, :] = 0 if a is None else a
            J[..., k, 1, :] = 0 if b is None else b
        first = J[..., 0, :]
        J[..., 1, :] *= w11[..., None, :]
        if skew:
            J[..., 1, :] += w10[..., None, :] * first
        first *= w00[..., None, :]
        return r, J


@dataclass(frozen=True)
class LMResult:
    """What `levenberg_marquardt` found.

    pose; cost: (...) sum of rho; information: (..., 6, 6) half the Hessian, in tangent order; converged: (...)
    bool; iterations: the most that any item took.
    """

    pose: Pose
    cost: Array
    information: Array
    converged: Array
    iterations: int


@np.errstate(all="ignore")  # items that are not finite say so in their result
def levenberg_marquardt(
    residual_fn: Callable[[Pose], Array] | None,
    jacobian_fn: JacobianFn,
    pose: Pose,
    *,
    kernel: str = "none",
    scale: float = 1.0,
    max_iterations: int = 30,
    tolerance: float = 1e-7,
    stop_fn: StopFn | None = None,
    part_fn: Callable[[Array], tuple[JacobianFn, StopFn | None]] | None = None,
) -> LMResult:
    """The pose of least sum(rho(|r|^2)) near `pose`.

    Args:
        residual_fn: pose -> whitened residuals (..., D, M). None: `jacobian_fn` is called for trial steps
            too, which is cheaper when most steps succeed.
        jacobian_fn: pose -> (residuals (..., D, M), derivatives (..., 6, D, M)) with respect to the left
            tangent (rho, phi). Observations that do not count are zero in both. An infinite residual forbids
            a step.
        pose: starts, batch (...); numpy or torch float64.
        kernel, scale: see `robust`; `scale` in standard deviations.
        max_iterations: most trial steps.
        tolerance: an item stops when what is left to go is shorter than this, in standard deviations of the
            pose (`stops`).
        stop_fn: (steps taken, cost, squared length of the step in standard deviations, cost that the linear
            model expected after it) -> (...) bool, items to give up; asked after every step.
        part_fn: indices of the last batch dimension -> `jacobian_fn` and `stop_fn` of these problems alone, the
            `residual_fn` being None. Where it is given, what is done is no longer computed.
    Notes:
        Marquardt 1963 with the scaling of the diagonal. Every item has its own damping, accepts only steps
        that lower its own cost, and stops by itself; a NaN item leaves its neighbours bit-identical.
        The gradient is exact for every kernel; the Hessian leaves out the curvature of the residual.
    """
    xp = namespace(pose.R)
    evaluate = _evaluator(xp, jacobian_fn, part_fn, pose, None, kernel, scale)
    cost, A, g = evaluate(pose)
    done = ~xp.isfinite(cost)
    if bool(done.any()):  # lost from the start: harmless numbers, never looked at again
        A, g = xp.where(done[..., None, None], 1.0, A), xp.where(done[..., None], 0.0, g)
    converged = xp.zeros_like(done)
    damping, count, before = xp.full_like(cost, _START), 0, xp.full_like(cost, xp.nan)
    rest: _Rest | None = None
    while count < max_iterations and not bool(done.all()):
        if part_fn is not None:
            open_ = ~done.reshape((-1, done.shape[-1])).all(0)
            if int(open_.sum()) < _SPARSE * len(open_):
                state = [pose.R, pose.t, cost, A, g, done, converged, damping, before]
                rest, state = _Rest.of(rest, open_, state)
                (jacobian_fn, stop_fn), pose = part_fn(rest.items), fast_pose(*state[:2])
                evaluate = _evaluator(xp, jacobian_fn, part_fn, pose, rest.items, kernel, scale)
                cost, A, g, done, converged, damping, before = state[2:]
        count += 1
        trial, length = _proposed(pose, A, g, damping)
        if residual_fn is None:
            cost_new, A_new, g_new = evaluate(trial)
        else:
            cost_new = robust(squares(residual_fn(trial)), kernel, scale)[0].sum(-1)
        # so near the optimum that rounding hides the decrease, a step is taken on trust
        small, expected = stops(length, before, tolerance), cost - length
        near = small | (length < 1e-10 * cost)
        take = ((cost_new < cost) | (near & (cost_new <= cost * (1 + 1e-9) + 1e-24))) & ~done
        converged = converged | (small & ~done)
        pick = _chooser(xp, take)
        pose, cost = fast_pose(pick(trial.R, pose.R), pick(trial.t, pose.t)), pick(cost_new, cost)
        done = done | small | (~take & (damping >= _HIGH))
        before = pick(length, xp.nan)
        if stop_fn is not None:
            done = done | stop_fn(count, cost, length, expected)
        damping = xp.clip(damping * xp.where(take, _DOWN, _UP), _LOW, _HIGH)
        if residual_fn is not None:
            _, A_new, g_new = evaluate(pose)
        A, g = pick(A_new, A), pick(g_new, g)
    if rest is not None:
        pose_R, pose_t, cost, A, _, _, converged = rest.whole([pose.R, pose.t, cost, A, g, done, converged])
        pose = fast_pose(pose_R, pose_t)
    return LMResult(pose, cost, A, converged, count)


def _proposed(pose: Pose, A: Array, g: Array, damping: Array) -> tuple[Pose, Array]:
    """The pose after a damped step, and the squared length of that (undamped) in standard deviations."""
    lhs = A * 1.0
    diagonal = lhs.reshape((*damping.shape, 36))[..., ::7]
    diagonal *= 1 + damping[..., None]
    diagonal += _TINY
    step = -namespace(A).linalg.solve(lhs, g[..., None])[..., 0]
    return small_step(pose, step), -(step * g).sum(-1)


def _chooser(xp: Any, take: Array) -> Callable[[Array, Any], Array]:
    """The function (new, old) -> new where `take`, else old."""
    if bool(take.all()):
        return lambda new, old: new
    return lambda new, old: xp.where(take.reshape((*take.shape, *[1] * (new.ndim - take.ndim))), new, old)


@dataclass(frozen=True)
class _Rest:
    """Problems that are still computed: their indices of the last batch dimension, and the arrays of all problems."""

    items: Array
    arrays: list[Array]

    @classmethod
    def of(cls, before: _Rest | None, open_: Array, state: list[Array]) -> tuple[_Rest, list[Array]]:
        """Of the problems computed so far those where `open_`, and their part of `state`."""
        here = open_.nonzero()[0] if isinstance(open_, np.ndarray) else open_.nonzero()[:, 0]
        lead = (slice(None),) * (state[2].ndim - 1)
        if before is None:
            rest = cls(here, [a.copy() if isinstance(a, np.ndarray) else a.clone() for a in state])
        else:
            rest = cls(before.items[here], before.whole(state))
        return rest, [a[(*lead, here)] for a in state]

    def whole(self, state: list[Array]) -> list[Array]:
        """The arrays of all problems, those of `items` as in `state`."""
        index = (*(slice(None),) * (state[2].ndim - 1), self.items)
        for all_, part in zip(self.arrays, state, strict=False):
            all_[index] = part
        return self.arrays[: len(state)]


def stops(length: Any, before: Any, tolerance: Any) -> Any:
    """Whether a step of squared length `length`, after one of `before`, leaves less to go than `tolerance`.

    Standard deviations of the pose. Gauss-Newton steps shrink by a constant ratio in the end, so the next step
    is about sqrt(length / before) times this one; NaN for `before` where that is not known.
    """
    limit = tolerance * tolerance
    return (length <= limit) | ((length <= _RATIO * before) & (length * length <= _MARGIN * limit * before))


def _evaluator(
    xp: Any,
    jacobian_fn: JacobianFn,
    part_fn: Callable[[Array], tuple[JacobianFn, StopFn | None]] | None,
    pose: Pose,
    items: Array | None,
    kernel: str,
    scale: float,
) -> Callable[[Pose], tuple[Array, Array, Array]]:
    """The function pose -> `normal_equations`; on the CPU in blocks that fit into its cache where there is `part_fn`.

    items: indices of the problems of `pose`, None for all of them.
    """
    count = pose.t.shape[-2] if pose.t.ndim > 1 else 1
    if part_fn is None or xp is torch or count <= _BLOCK:
        return lambda pose: normal_equations(xp, *jacobian_fn(pose), kernel, scale)
    slices = [slice(i, i + _BLOCK) for i in range(0, count, _BLOCK)]
    blocks = [(s, part_fn(s if items is None else items[s])[0]) for s in slices]

    def evaluate(pose: Pose) -> tuple[Array, Array, Array]:
        cost = np.empty(pose.t.shape[:-1])
        A, g = np.empty((*cost.shape, 6, 6)), np.empty((*cost.shape, 6))
        for s, jacobian in blocks:
            r, J = jacobian(fast_pose(pose.R[..., s, :, :], pose.t[..., s, :]))
            cost[..., s], A[..., s, :, :], g[..., s, :] = normal_equations(np, r, J, kernel, scale)
        return cost, A, g

    return evaluate


def implicit_pose(
    pose: Pose,
    points_obj: Array,
    points_px: Array,
    cov_px: Array,
    camera: Camera,
    counts: Array,
    kernel: str,
    scale: float,
) -> Pose:
    """`pose` itself, made a differentiable function of points, pixels, covariances and camera.

    Args:
        pose: minimum of the sum of rho(squared whitened residual), batch (...), torch float64.
        points_obj, points_px, cov_px: (..., N, 3), (..., N, 2), (..., N, 2, 2), torch float64.
        counts: (..., N) bool, the points that entered the minimum.
        kernel, scale: see `robust`.
    Notes:
        Implicit function theorem: at the minimum the gradient g(xi, theta) is zero, so d xi = -H^-1
        (dg/dtheta) d theta with the full Hessian H, here central differences of g. One Newton step whose
        value is cut off has that derivative, at the memory of one evaluation. Items whose pose is not finite,
        or whose Hessian is singular, get no gradient.
    """
    use = counts & torch.isfinite(pose.t).all(-1)[..., None]
    eye3 = torch.eye(3, dtype=pose.R.dtype, device=pose.R.device)
    base = fast_pose(
        torch.where(torch.isfinite(pose.R), pose.R, eye3).detach(), torch.nan_to_num(pose.t).detach()
    )
    obj = torch.where(use[..., None], points_obj, torch.zeros_like(points_obj))
    px = torch.where(use[..., None], points_px, torch.zeros_like(points_px))
    cov = torch.where(use[..., None, None], cov_px, eye3[:2, :2])

    def gradient(at: Pose) -> Array:
        cam = torch.where(use[..., None], obj @ at.R.mT + at.t[..., None, :], torch.ones_like(obj))
        seen, d = camera.project_jacobian(cam)
        e = torch.where(use[..., None], seen - px, torch.zeros_like(seen))
        a, b, c = cov[..., 0, 0], (cov[..., 0, 1] + cov[..., 1, 0]) / 2, cov[..., 1, 1]
        x, y = e[..., 0], e[..., 1]
        pull = torch.stack([c * x - b * y, a * y - b * x], -1) / (a * c - b * b)[..., None]  # cov^-1 e
        pull = pull * (robust((pull * e).sum(-1), kernel, scale)[1] * use)[..., None]
        force = (pull[..., None, :] @ d)[..., 0, :]  # on each point, camera frame; and its moment
        return torch.cat([force.sum(-2), torch.linalg.cross(cam, force).sum(-2)], -1)

    with torch.no_grad():
        size = torch.cat([base.t.norm(dim=-1, keepdim=True)] * 3 + [torch.ones_like(base.t)], -1)
        h = _DIFFERENCE * torch.where(size > 0, size, torch.ones_like(size))
        nudge = torch.eye(6, dtype=h.dtype, device=h.device).reshape(6, *(1,) * (h.ndim - 1), 6) * h
        ahead, behind = gradient(small_step(base, nudge)), gradient(small_step(base, -nudge))
        H = torch.movedim((ahead - behind) / 2, 0, -1) / h[..., None, :]
        H = (H + H.mT) / 2
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        root = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
        scaled = H / root[..., None] / root[..., None, :]
        fine = torch.isfinite(scaled).all(-1).all(-1) & (
            torch.linalg.det(torch.nan_to_num(scaled)).abs() > 1e-24
        )
        inverse = torch.linalg.inv(torch.where(fine[..., None, None], scaled, torch.eye(6).to(H)))
    step = -(inverse @ (gradient(base) / root)[..., None])[..., 0] / root
    step = torch.where(fine[..., None], step, torch.zeros_like(step))
    return small_step(fast_pose(pose.R.detach(), pose.t.detach()), step - step.detach())
