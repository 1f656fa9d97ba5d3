"""Robust kernels, and the normal equations of whitened residuals under them."""

from __future__ import annotations

from typing import Any

from geopose.geometry._arrays import Array, namespace

KERNELS = ("none", "truncated", "huber", "cauchy", "geman_mcclure")
_CURVATURE = 0.95  # most of a residual's curvature that a kernel may take away


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
        return c2 * xp.log1p(squared / c2), q, -q * q / c2
    if kernel == "geman_mcclure":
        return xp.where(xp.isfinite(squared), squared * q, c2), q * q, -2 / c2 * q * q * q
    raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")


def bend_of(squared: Array, slope: Array, second: Array) -> Array:
    """(..., M) the curvature that a kernel adds along the residual, limited so that the Hessian stays positive."""
    xp = namespace(squared)
    return xp.maximum(2 * second, -_CURVATURE * slope / xp.where(squared > 0, squared, 1.0))


def squares(r: Array) -> Array:
    return (r * r).sum(-2)


def normal_equations(xp: Any, r: Array, J: Array, kernel: str, scale: float) -> tuple[Array, Array, Array]:
    """Cost (...), half the Hessian (..., 6, 6) and half the gradient (..., 6).

    The Hessian leaves out the curvature of the residual, not that of the kernel, which is limited so that it
    stays positive (Triggs et al., "Bundle adjustment", 1999, section 4.3).
    """
    if kernel == "none":
        flat = J.reshape((*J.shape[:-3], 6, -1))
        return (r * r).sum((-1, -2)), flat @ flat.mT, (flat @ r.reshape((*r.shape[:-2], -1, 1)))[..., 0]
    squared = squares(r)
    value, weight, second = robust(squared, kernel, scale)
    r = xp.where(xp.isfinite(r), r, 0.0)
    pulls = (J * r[..., None, :, :]).sum(-2)  # (..., 6, M)
    weighted = J * weight[..., None, None, :]
    A = weighted.reshape((*J.shape[:-3], 6, -1)) @ J.reshape((*J.shape[:-3], 6, -1)).mT
    if second is not None:
        A = A + (pulls * bend_of(squared, weight, second)[..., None, :]) @ pulls.mT
    return value.sum(-1), A, (pulls * weight[..., None, :]).sum(-1)
