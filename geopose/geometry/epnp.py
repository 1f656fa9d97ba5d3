"""EPnP: a pose from four or more points by linear algebra alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, as_problems, either
from geopose.geometry.p3p import p3p
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import procrustes

_PLANAR = 1e-8  # ratio of variances across and along a plane under which points count as coplanar
_POLISH = 10  # Gauss-Newton steps on the coefficients
# products of coefficients that each guess solves for linearly
_SOLID = (
    ((0, 0), (0, 1), (0, 2), (0, 3)),
    ((0, 0), (0, 1), (1, 1)),
    ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2)),
)
_FLAT = (((0, 0),), ((0, 0), (0, 1), (1, 1)))


def epnp(points_obj: Array, xy: Array, weights: Array | None = None) -> Pose:
    """The pose `cam_from_obj` (...) of least algebraic error; NaN for collinear points.

    Args:
        points_obj: (..., N, 3) object frame, N >= 4.
        xy: (..., N, 2) normalised image coordinates, as from `Camera.normalise`.
        weights: (..., N) not negative, of the rows; None weighs all alike.
    Raises:
        ValueError: on shapes that do not match or N < 4.
    Notes:
        Lepetit, Moreno-Noguer and Fua, "EPnP", IJCV 2009: points as weighted sums of control points (eq.
        1-2), the linear system of the image (eq. 5-7), coefficients of its null vectors from the distances
        between control points (eq. 10-14) and Gauss-Newton on them (eq. 15); the guess of least reprojection
        error wins. Coplanar points get three control points instead of four. With N = 4 in general position
        the system has four null vectors and the guesses often fail: there the three-point poses of the four
        triplets compete as well. An algebraic error is not the likelihood: on noisy data refine the result,
        and on planes expect the wrong one of two poses now and then. `solve_pnp` starts elsewhere.
    """
    return Pose(*_epnp(points_obj, xy, weights))


@either
def _epnp(points_obj: Array, xy: Array, weights: Array | None) -> tuple[Array, Array]:
    lead, points, image, w = as_problems(points_obj, xy, weights, 4)
    finite = torch.isfinite(points).all(-1).all(-1) & torch.isfinite(image).all(-1).all(-1)
    share = w / w.sum(-1, keepdim=True)
    centre = (share[..., None] * points).sum(-2)
    centred = points - centre[:, None]
    scatter = centred.mT @ (share[..., None] * centred)
    variance, axes = torch.linalg.eigh(torch.where(finite[:, None, None], scatter, torch.eye(3).to(scatter)))
    usable = finite & (variance[:, 1] > 1e-12 * variance[:, 2])
    R = torch.full((len(points), 3, 3), np.nan, dtype=points.dtype, device=points.device)
    t = torch.full((len(points), 3), np.nan, dtype=points.dtype, device=points.device)
    flat = variance[:, 0] <= _PLANAR * variance[:, 2]
    for kind, guesses, first in ((flat, _FLAT, 1), (~flat, _SOLID, 0)):
        i = torch.nonzero(kind & usable)[:, 0]
        if len(i):
            spread = axes[i][:, :, first:] * variance[i][:, None, first:].sqrt()
            R[i], t[i], error = _solve(points[i], image[i], w[i], centre[i], spread, guesses)
            if points.shape[1] == 4:
                R_4, t_4, error_4 = _four(points[i], image[i], w[i])
                better = error_4 < error
                R[i] = torch.where(better[:, None, None], R_4, R[i])
                t[i] = torch.where(better[:, None], t_4, t[i])
    return R.reshape(*lead, 3, 3).to(xy.dtype), t.reshape(*lead, 3).to(xy.dtype)


def _solve(
    points: Array, image: Array, w: Array, centre: Array, spread: Array, guesses: Any
) -> tuple[Array, Array, Array]:
    """R (B, 3, 3), t (B, 3), error (B,); `spread` (B, 3, C-1) leads from the centre to the controls."""
    batch, n, _ = points.shape
    controls = torch.cat([centre[:, None], centre[:, None] + spread.mT], 1)  # (B, C, 3)
    count = controls.shape[1]
    inner = (points - centre[:, None]) @ (spread / (spread * spread).sum(-2, keepdim=True))
    alpha = torch.cat([1 - inner.sum(-1, keepdim=True), inner], -1)  # (B, N, C)
    zero = torch.zeros_like(alpha)
    rows_u = torch.stack([alpha, zero, -alpha * image[..., :1]], -1).flatten(-2)  # (B, N, 3C)
    rows_v = torch.stack([zero, alpha, -alpha * image[..., 1:]], -1).flatten(-2)
    m = torch.cat([rows_u * w[..., None], rows_v * w[..., None]], 1)
    vectors = torch.linalg.eigh(m.mT @ m)[1][..., :count].mT.reshape(batch, count, count, 3)  # (B, K, C, 3)
    a, b = zip(*itertools.combinations(range(count), 2), strict=True)
    edges = vectors[:, :, a] - vectors[:, :, b]  # (B, K, P, 3)
    gram = torch.einsum("bipc,bjpc->bpij", edges, edges)
    rho = ((controls[:, a] - controls[:, b]) ** 2).sum(-1)  # (B, P)
    best_error = torch.full((batch,), np.inf, dtype=points.dtype, device=points.device)
    best_R = torch.full((batch, 3, 3), np.nan, dtype=points.dtype, device=points.device)
    best_t = best_R[..., 0].clone()
    for pairs in guesses:
        beta = _polish(_guess(gram, rho, pairs), gram, rho)
        cam = alpha @ torch.einsum("bk,bkcd->bcd", beta, vectors)
        sign = torch.where((cam[..., 2] * w).sum(-1) < 0, -1.0, 1.0)
        cam = cam * sign[:, None, None]
        R, t = procrustes(points, cam, w)
        error = _error(R, t, points, image, w)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_R = torch.where(better[:, None, None], R, best_R)
        best_t = torch.where(better[:, None], t, best_t)
    return best_R, best_t, best_error


def _four(points: Array, image: Array, w: Array) -> tuple[Array, Array, Array]:
    """The best of the three-point poses of the four triplets: R (B, 3, 3), t (B, 3), error (B,)."""
    triplets = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]], device=points.device)
    rays = torch.cat([image, torch.ones_like(image[..., :1])], -1)
    R, t = (x.flatten(1, 2) for x in p3p(points[:, triplets], rays[:, triplets]))  # (B, 16, ...)
    error, best = _error(R, t, points[:, None], image[:, None], w[:, None]).min(-1)
    rows = torch.arange(len(points), device=points.device)
    return R[rows, best], t[rows, best], error


def _error(R: Array, t: Array, points: Array, image: Array, w: Array) -> Array:
    """(...) weighted sum of squared reprojection errors, infinite with a point behind the camera."""
    seen = points @ R.mT + t[..., None, :]
    off = (((seen[..., :2] / seen[..., 2:] - image) * w[..., None]) ** 2).sum((-1, -2))
    return torch.where(((seen[..., 2] > 0) | (w == 0)).all(-1) & torch.isfinite(off), off, np.inf)


def _guess(gram: Array, rho: Array, pairs: tuple[tuple[int, int], ...]) -> Array:
    """Coefficients (B, K) from the products beta_i beta_j named in `pairs`, the others taken as zero."""
    columns = [gram[..., i, j] * (1 if i == j else 2) for i, j in pairs]
    system = torch.stack(columns, -1)  # (B, P, products)
    products = dict(zip(pairs, (torch.linalg.pinv(system) @ rho[..., None])[..., 0].unbind(-1), strict=True))
    sign = torch.where(products[0, 0] < 0, -1.0, 1.0)
    products = {k: v * sign for k, v in products.items()}
    first = products[0, 0].clamp(min=1e-300).sqrt()
    beta = torch.zeros(*gram.shape[:1], gram.shape[-1], dtype=gram.dtype, device=gram.device)
    beta[:, 0] = first
    for j in range(1, gram.shape[-1]):
        if (j, j) in products:
            beta[:, j] = products[j, j].clamp(min=0).sqrt() * torch.where(products[0, j] < 0, -1.0, 1.0)
        elif (0, j) in products:
            beta[:, j] = products[0, j] / first
    return beta


def _polish(beta: Array, gram: Array, rho: Array) -> Array:
    """`beta` (B, K) after Gauss-Newton on the squared distances; a step that does not help is not taken."""

    def residual(b: Array) -> Array:
        return torch.einsum("bi,bpij,bj->bp", b, gram, b) - rho

    r = residual(beta)
    for _ in range(_POLISH):
        J = 2 * torch.einsum("bpij,bj->bpi", gram, beta)
        step = torch.linalg.pinv(torch.nan_to_num(J), rtol=1e-10) @ torch.nan_to_num(r)[..., None]
        trial = beta - step[..., 0]
        r_trial = residual(trial)
        better = ((r_trial**2).sum(-1) < (r**2).sum(-1))[:, None]
        beta, r = torch.where(better, trial, beta), torch.where(better, r_trial, r)
    return beta
