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

from geopose.geometry._arrays import Array
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

KERNELS = ("none", "truncated", "huber", "cauchy", "geman_mcclure")
# damping: start, factor after success, factor after failure, bounds
_TINY = 1e-300  # keeps an all-zero matrix from being singular
_EYE = np.eye(3)
# row i: the skew matrix of the i-th axis, flattened
_GENERATORS = np.array(
    [[0.0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]]
)
_CURVATURE = 0.95  # most of a residual's curvature that a kernel may take away
_DIFFERENCE = 1e-5  # radians, and share of the distance
_RATIO, _MARGIN = 0.01, 0.01  # squared: steps that shrink by ten, and a tenth of the tolerance
_START, _DOWN, _UP, _LOW, _HIGH = 1e-4, 0.1, 10.0, 1e-9, 1e6


def namespace(x: Array) -> Any:
    """The module, numpy or torch, whose functions take `x`."""
    return torch if isinstance(x, torch.Tensor) else np


def robust(squared: Array, kernel: str, scale: float) -> tuple[Array, Array, Array | None]:
    """rho(s), rho'(s), rho''(s) of a kernel at squared whitened residuals s; `scale` in standard deviations.

    Near zero every kernel is rho(s) = s. With c = scale: `truncated` min(s, c^2); `huber` 2 c sqrt(s) - c^2
    beyond c; `cauchy` c^2 log(1 + s/c^2); `geman_mcclure` s / (1 + s/c^2), which tends to c^2. The second
    derivative is None where it is zero throughout.
    """
    xp, c2 = namespace(squared), scale * scale
    if kernel == "none":
        return squared, xp.ones_like(squared), None
    if kernel == "truncated":
        inside = squared < c2
        return xp.where(inside, squared, c2), xp.where(inside, 1.0, xp.zeros_like(squared)), None
    if kernel == "huber":
        beyond = squared > c2
        root = xp.sqrt(xp.where(beyond, squared, c2))
        second = xp.where(beyond, -0.5 * scale / (root * root * root), 0.0)
        return xp.where(beyond, 2 * scale * root - c2, squared), scale / root, second
    q = 1 / (1 + squared / c2)
    if kernel == "cauchy":
        return -c2 * xp.log(q), q, -q * q / c2
    if kernel == "geman_mcclure":
        return xp.where(xp.isfinite(squared), squared * q, c2), q * q, -2 / c2 * q * q * q
    raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")


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
    jacobian_fn: Callable[[Pose], tuple[Array, Array]],
    pose: Pose,
    *,
    kernel: str = "none",
    scale: float = 1.0,
    max_iterations: int = 30,
    tolerance: float = 1e-7,
    stop_fn: Callable[[int, Array, Array, Array], Array] | None = None,
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
    Notes:
        Marquardt 1963 with the scaling of the diagonal. Every item has its own damping, accepts only steps
        that lower its own cost, and stops by itself; a NaN item leaves its neighbours bit-identical.
        The gradient is exact for every kernel; the Hessian leaves out the curvature of the residual.
    """
    xp = namespace(pose.R)
    cost, A, g = _normal_equations(xp, *jacobian_fn(pose), kernel, scale)
    done = ~xp.isfinite(cost)
    if bool(done.any()):  # lost from the start: harmless numbers, never looked at again
        A, g = xp.where(done[..., None, None], 1.0, A), xp.where(done[..., None], 0.0, g)
    converged = xp.zeros_like(done)
    damping, count, before = xp.full_like(cost, _START), 0, xp.full_like(cost, xp.nan)
    while count < max_iterations and not bool(done.all()):
        count += 1
        lhs = A * 1.0
        diagonal = lhs.reshape((*cost.shape, 36))[..., ::7]
        diagonal *= 1 + damping[..., None]
        diagonal += _TINY
        step = -xp.linalg.solve(lhs, g[..., None])[..., 0]
        length = -(step * g).sum(-1)  # squared length of the step in standard deviations (undamped)
        trial = small_step(pose, step)
        if residual_fn is None:
            cost_new, A_new, g_new = _normal_equations(xp, *jacobian_fn(trial), kernel, scale)
        else:
            cost_new = robust(_squares(residual_fn(trial)), kernel, scale)[0].sum(-1)
        # so near the optimum that rounding hides the decrease, a step is taken on trust
        small, expected = stops(length, before, tolerance), cost - length
        near = small | (length < 1e-10 * cost)
        take = ((cost_new < cost) | (near & (cost_new <= cost * (1 + 1e-9) + 1e-24))) & ~done
        converged = converged | (small & ~done)
        all_taken = bool(take.all())
        if all_taken:
            pose, cost = trial, cost_new
        else:
            R = xp.where(take[..., None, None], trial.R, pose.R)
            pose = fast_pose(R, xp.where(take[..., None], trial.t, pose.t))
            cost = xp.where(take, cost_new, cost)
        done = done | small | (~take & (damping >= _HIGH))
        before = length if all_taken else xp.where(take, length, xp.nan)
        if stop_fn is not None:
            done = done | stop_fn(count, cost, length, expected)
        damping = xp.clip(damping * xp.where(take, _DOWN, _UP), _LOW, _HIGH)
        if residual_fn is not None:
            _, A_new, g_new = _normal_equations(xp, *jacobian_fn(pose), kernel, scale)
        if all_taken:
            A, g = A_new, g_new
        else:
            A = xp.where(take[..., None, None], A_new, A)
            g = xp.where(take[..., None], g_new, g)
    return LMResult(pose, cost, A, converged, count)


def stops(length: Any, before: Any, tolerance: float) -> Any:
    """Whether a step of squared length `length`, after one of `before`, leaves less to go than `tolerance`.

    Standard deviations of the pose. Gauss-Newton steps shrink by a constant ratio in the end, so the next step
    is about sqrt(length / before) times this one; NaN for `before` where that is not known.
    """
    limit = tolerance * tolerance
    return (length <= limit) | ((length <= _RATIO * before) & (length * length <= _MARGIN * limit * before))


def bend_of(squared: Array, slope: Array, second: Array) -> Array:
    """(..., M) the curvature that a kernel adds along the residual, limited so that the Hessian stays positive."""
    xp = namespace(squared)
    return xp.maximum(2 * second, -_CURVATURE * slope / xp.where(squared > 0, squared, 1.0))


def _squares(r: Array) -> Array:
    return (r * r).sum(-2)


def _normal_equations(xp: Any, r: Array, J: Array, kernel: str, scale: float) -> tuple[Array, Array, Array]:
    """Cost (...), half the Hessian (..., 6, 6) and half the gradient (..., 6).

    The Hessian leaves out the curvature of the residual, not that of the kernel, which is limited so that it
    stays positive (Triggs et al., "Bundle adjustment", 1999, section 4.3).
    """
    if kernel == "none":
        flat = J.reshape((*J.shape[:-3], 6, -1))
        return (r * r).sum((-1, -2)), flat @ flat.mT, (flat @ r.reshape((*r.shape[:-2], -1, 1)))[..., 0]
    squared = _squares(r)
    value, weight, second = robust(squared, kernel, scale)
    r = xp.where(xp.isfinite(r), r, 0.0)
    pulls = (J * r[..., None, :, :]).sum(-2)  # (..., 6, M)
    weighted = J * weight[..., None, None, :]
    A = weighted.reshape((*J.shape[:-3], 6, -1)) @ J.reshape((*J.shape[:-3], 6, -1)).mT
    if second is not None:
        A = A + (pulls * bend_of(squared, weight, second)[..., None, :]) @ pulls.mT
    return value.sum(-1), A, (pulls * weight[..., None, :]).sum(-1)


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
