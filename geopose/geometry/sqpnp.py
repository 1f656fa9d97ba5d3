"""SQPnP: the pose of least algebraic error from three or more points, coplanar or not, as a problem of nine numbers."""

from __future__ import annotations

from typing import Any

import torch

from geopose.geometry._arrays import Array, as_problems, either
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, hat, project_to_so3

_STEPS = 15  # Newton steps from each start


def sqpnp(points_obj: Array, xy: Array, weights: Array | None = None) -> Pose:
    """The pose `cam_from_obj` (...) of least algebraic error; NaN for collinear points and those not finite.

    Args:
        points_obj: (..., N, 3) object frame, N >= 3.
        xy: (..., N, 2) normalised image coordinates, as from `Camera.normalise`.
        weights: (..., N) not negative, of the points; None weighs all alike.
    Raises:
        ValueError: on shapes that do not match or N < 3.
    Notes:
        Terzakis and Lourakis, "A consistently fast and globally optimal solution to the perspective-n-point problem",
        ECCV 2020: with the translation eliminated, the squared distances of the points from their viewing rays are
        r' Omega r in the nine entries r of the rotation. Starts are the rotations nearest to both signs of the
        eigenvectors of the smaller eigenvalues. From there not their sequential quadratic programming but damped
        Newton steps on the rotation group, for all starts of all problems at once; the least error with the points in
        front wins. Coplanar sets, whose Omega has three null vectors more, are no special case. As for any algebraic
        error: refine the result. `solve_pnp` starts elsewhere.
    """
    return Pose(*_sqpnp(points_obj, xy, weights))


@either
def _sqpnp(points_obj: Array, xy: Array, weights: Array | None) -> tuple[Array, Array]:
    lead, points, image, w = as_problems(points_obj, xy, weights, 3)
    lost = ~(torch.isfinite(points).all(-1).all(-1) & torch.isfinite(image).all(-1).all(-1))
    points, image = (torch.where(lost[:, None, None], torch.zeros_like(a), a) for a in (points, image))
    centre = points.mean(-2, keepdim=True)
    size = (points - centre).square().sum(-1).mean(-1).sqrt()[:, None, None].clamp_min(1e-300)
    scaled = (points - centre) / size
    spread = torch.linalg.eigvalsh(scaled.mT @ scaled)
    lost = lost | ~(spread[:, 1] > 1e-10 * spread[:, 2])
    omega, to_t, singular = _quadratic(scaled, image, w)
    lost = lost | singular
    vectors = torch.linalg.eigh(omega)[1][..., :6].mT  # (B, 6, 9)
    starts = project_to_so3(torch.cat([vectors, -vectors], 1).unflatten(-1, (3, 3)))
    R = _descend(starts, omega)
    r = R.flatten(-2)
    t = -(to_t[:, None] @ r[..., None])[..., 0]
    error = ((r[..., None, :] @ omega[:, None]) @ r[..., None])[..., 0, 0]
    depth = (scaled[:, None] @ R.mT + t[..., None, :])[..., 2]
    error = torch.where((depth > 0).all(-1), error, error + 1e6)
    best = error.argmin(-1)
    rows = torch.arange(len(R), device=R.device)
    R, t = R[rows, best], t[rows, best] * size[:, 0]
    t = t - (R @ centre.mT)[..., 0]
    R, t = (
        torch.where(lost.reshape(-1, *[1] * (a.ndim - 1)), torch.full_like(a, torch.nan), a) for a in (R, t)
    )
    return R.reshape(*lead, 3, 3).to(xy.dtype), t.reshape(*lead, 3).to(xy.dtype)


def _quadratic(points: Array, image: Array, w: Array) -> tuple[Array, Array, Array]:
    """Omega (B, 9, 9), the map (B, 3, 9) from the entries of R, row by row, to -t, and whether there is none (B,)."""
    u, v = image[..., 0], image[..., 1]
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    rows = torch.stack(
        [torch.stack([one, zero, -u], -1), torch.stack([zero, one, -v], -1)], -2
    )  # (B, N, 2, 3)
    Q = rows.mT @ rows * w[..., None, None]  # (B, N, 3, 3)
    # R p = A r with A = kron(I, p')
    QA = (Q[..., :, :, None] * points[..., None, None, :]).flatten(-2)  # (B, N, 3, 9)
    inverse, info = torch.linalg.inv_ex(Q.sum(1))  # singular where all pixels are one
    inverse = torch.where((info > 0)[:, None, None], torch.zeros_like(inverse), inverse)
    to_t = inverse @ QA.sum(1)
    AQA = (
        points[..., None, :, None, None] * Q[..., :, None, :, None] * points[..., None, None, None, :]
    ).sum(1)
    omega = AQA.flatten(-2).flatten(-3, -2) - QA.sum(1).mT @ to_t
    return (omega + omega.mT) / 2, to_t, info > 0


def _descend(R: Array, omega: Array) -> Array:
    """Rotations (B, K, 3, 3) moved to a local minimum of r' Omega r: Levenberg-Marquardt's damping on the exact Hessian
    of exp(phi) R."""
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    E = hat(eye)  # (3, 3, 3): the generators
    pairs: Any = 0.5 * (E[:, None] @ E[None] + E[None] @ E[:, None])  # second derivatives of exp at zero
    O = omega[:, None]
    scale = omega.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None, None].clamp_min(1e-300)
    damping = torch.full(R.shape[:2], 1e-4, dtype=R.dtype, device=R.device)
    cost = _value(R, O)
    for _ in range(_STEPS):
        Or = (O @ R.flatten(-2)[..., None])[..., 0]  # (B, K, 9)
        D = (E @ R[..., None, :, :]).flatten(-2)  # (B, K, 3, 9)
        g = (D @ Or[..., None])[..., 0]
        curve = ((pairs @ R[..., None, None, :, :]).flatten(-2) @ Or[..., None, :, None])[..., 0]
        H = D @ O @ D.mT + curve
        values, vectors = torch.linalg.eigh(H / scale)
        push = (vectors.mT @ g[..., None])[..., 0] / scale[..., 0]
        phi = -(vectors @ (push / (values.abs() + damping[..., None] + 1e-15))[..., None])[..., 0]
        length = phi.norm(dim=-1, keepdim=True)
        trial = exp_so3(phi * (length.clamp(max=0.7) / length.clamp_min(1e-300))) @ R
        value = _value(trial, O)
        better = value < cost
        R, cost = torch.where(better[..., None, None], trial, R), torch.where(better, value, cost)
        damping = (damping * torch.where(better, 0.1, 10.0)).clamp(1e-12, 1e3)
    return R


def _value(R: Array, omega: Array) -> Array:
    r = R.flatten(-2)[..., None]
    return (r.mT @ omega @ r)[..., 0, 0]
