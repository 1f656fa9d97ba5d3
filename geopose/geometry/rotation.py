"""Rotations: exponential, logarithm, quaternions, 6D, angles, Procrustes.

Every function takes numpy arrays or torch tensors with any leading dimensions and returns the same kind in
the same dtype. Element i of a batch never depends on element j. Series replace the closed forms near the zero
rotation, so that values and first derivatives stay exact there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopose.geometry._arrays import Array, check_last, either

# Below this squared angle the series are used; the first term left out is under 1e-17 there.
_SMALL_SQUARED = 1e-2


def series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """The polynomial sum(c_i x^i) by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def so3_coefficients(squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(a)/a, (1-cos a)/a^2 and (a-sin a)/a^3 of `squared` = a^2, smooth at zero."""
    small = squared < _SMALL_SQUARED
    a = torch.where(small, torch.ones_like(squared), squared).sqrt()
    x = torch.where(small, squared, torch.zeros_like(squared))
    half = torch.sin(a / 2)
    return (
        torch.where(small, series(x, (1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)), torch.sin(a) / a),
        torch.where(
            small, series(x, (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800)), 2 * half * half / (a * a)
        ),
        torch.where(
            small,
            series(x, (1 / 6, -1 / 120, 1 / 5040, -1 / 362880, 1 / 39916800)),
            (a - torch.sin(a)) / a**3,
        ),
    )


@either
def hat(phi: Array) -> Array:
    """The skew matrix (..., 3, 3) of `phi` (..., 3): hat(a) @ b = a x b."""
    check_last("phi", phi, 3)
    x, y, z = phi.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


@either
def exp_so3(phi: Array) -> Array:
    """The rotation matrix (..., 3, 3) of the rotation vector `phi` (..., 3), radians (Rodrigues)."""
    check_last("phi", phi, 3)
    a, b, _ = so3_coefficients((phi * phi).sum(-1))
    k = hat(phi)
    eye = torch.eye(3, dtype=phi.dtype, device=phi.device)
    return eye + a[..., None, None] * k + b[..., None, None] * (k @ k)


@either
def log_so3(R: Array) -> Array:
    """The rotation vector (..., 3) of `R` (..., 3, 3), radians, length at most pi.

    Goes through the quaternion, so that it stays exact near pi, where the trace formula loses half its
    digits. At exactly pi the axis has two signs and one of them is returned.
    """
    check_last("R", R, 3, 3)
    q = quat_wxyz_from_matrix(R)
    w, v = q[..., 0], q[..., 1:]
    squared = (v * v).sum(-1)
    small = squared < _SMALL_SQUARED / 4
    n = torch.where(small, torch.ones_like(squared), squared).sqrt()
    w_safe = torch.where(small, w, torch.ones_like(w))
    u = torch.where(small, squared, torch.zeros_like(squared)) / (w_safe * w_safe)
    near_zero = 2 / w_safe * series(u, (1, -1 / 3, 1 / 5, -1 / 7, 1 / 9, -1 / 11, 1 / 13))
    return torch.where(small, near_zero, 2 * torch.atan2(n, w) / n)[..., None] * v


@either
def matrix_from_quat_wxyz(quat: Array) -> Array:
    """The rotation matrix (..., 3, 3) of the quaternion `quat` (..., 4), scalar first.

    The quaternion is normalised first; a zero quaternion gives NaN.
    """
    check_last("quat", quat, 4)
    w, x, y, z = (quat / quat.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


@either
def quat_wxyz_from_matrix(R: Array) -> Array:
    """The unit quaternion (..., 4), scalar first and not negative, of the rotation `R` (..., 3, 3).

    Each row of the 4x4 table is 4 q_i q; the row with the largest q_i is normalised (Shepperd 1978), so no
    square root of a small number enters the value or the gradient.
    """
    check_last("R", R, 3, 3)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = R.flatten(-2).unbind(-1)
    diagonal = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )
    a, b, c = m21 - m12, m02 - m20, m10 - m01
    d, e, f = m10 + m01, m02 + m20, m21 + m12
    w, x, y, z = diagonal.unbind(-1)
    table = torch.stack([w, a, b, c, a, x, d, e, b, d, y, f, c, e, f, z], -1).unflatten(-1, (4, 4))
    best = diagonal.detach().argmax(-1)[..., None, None].expand(*diagonal.shape[:-1], 1, 4)
    q = table.gather(-2, best).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


@either
def matrix_from_6d(d6: Array) -> Array:
    """The rotation (..., 3, 3) whose first two columns come from `d6` (..., 6) by Gram-Schmidt.

    `d6[..., :3]` points along the first column, `d6[..., 3:]` into the half plane of the second
    (Zhou et al., CVPR 2019). Parallel or zero vectors give NaN.
    """
    check_last("d6", d6, 6)
    a, b = d6[..., :3], d6[..., 3:]
    x = a / a.norm(dim=-1, keepdim=True)
    y = b - (x * b).sum(-1, keepdim=True) * x
    length = y.norm(dim=-1, keepdim=True)
    parallel = length <= 8 * torch.finfo(d6.dtype).eps * b.norm(dim=-1, keepdim=True)
    y = y / torch.where(parallel, torch.full_like(length, math.nan), length)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def safe_norm(v: Tensor) -> Tensor:
    """The length of `v` (..., D) with gradient zero, not NaN, at the zero vector."""
    squared = (v * v).sum(-1)
    zero = squared == 0
    root = torch.where(zero, torch.ones_like(squared), squared).sqrt()
    return torch.where(zero, torch.zeros_like(squared), root)


@either
def geodesic_angle(Ra: Array, Rb: Array) -> Array:
    """The angle (...) in [0, pi] of the rotation between `Ra` and `Rb` (..., 3, 3), radians.

    Taken from sine and cosine together: exact to rounding at 0 and at pi, gradient zero where it has none.
    """
    check_last("Ra", Ra, 3, 3)
    check_last("Rb", Rb, 3, 3)
    R = Ra.mT @ Rb
    axis = torch.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], -1
    )
    return torch.atan2(safe_norm(axis), R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


@either
def project_to_so3(M: Array) -> Array:
    """The rotation (..., 3, 3) nearest to `M` (..., 3, 3) in the Frobenius norm, determinant +1.

    A matrix with an entry that is not finite gives NaN. First derivatives are those of the polar factor,
    finite also where singular values coincide (as they do at every rotation), zero along directions that `M`
    leaves undefined; second derivatives are not provided.
    """
    check_last("M", M, 3, 3)
    if M.dtype in (torch.float16, torch.bfloat16):  # there is no decomposition of these
        return project_to_so3(M.float()).to(M.dtype)
    finite = torch.isfinite(M).all(-1).all(-1)[..., None, None]
    eye = torch.eye(3, dtype=M.dtype, device=M.device)
    safe = torch.where(finite, M, eye)
    with torch.no_grad():
        U, s, Vt = torch.linalg.svd(safe)
        sign = torch.ones_like(s)
        sign[..., 2] = torch.where(torch.linalg.det(U @ Vt) < 0, -1.0, 1.0).to(s.dtype)
        R, s = (U * sign[..., None, :]) @ Vt, s * sign
        sums = s[..., :, None] + s[..., None, :]
        usable = sums > 64 * torch.finfo(M.dtype).eps * s[..., :1, None]
        inverse = torch.where(
            usable, 1 / torch.where(usable, sums, torch.ones_like(sums)), torch.zeros_like(sums)
        )
    if M.requires_grad:
        A = Vt @ R.mT @ safe @ Vt.mT  # symmetric up to rounding; its skew part carries the derivative
        R = R + R @ Vt.mT @ ((A - A.mT) * inverse) @ Vt
    return torch.where(finite, R, torch.full_like(R, math.nan))


@either
def procrustes(src: Array, dst: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """R (..., 3, 3) and t (..., 3) minimising sum(w |R src + t - dst|^2), reflections excluded.

    Args:
        src, dst: (..., N, 3) points in the same unit; N >= 1, three that are not collinear fix the rotation.
        weights: (..., N), not negative; None weighs all alike.
    Notes:
        Kabsch 1976, Umeyama 1991. A point that is not finite makes its own element NaN and no other.
    """
    check_last("src", src, None, 3)
    check_last("dst", dst, None, 3)
    if src.shape[-2] != dst.shape[-2] or src.shape[-2] < 1:
        raise ValueError(
            f"src, dst: expected the same number (>= 1) of points, got {src.shape[-2]}, {dst.shape[-2]}"
        )
    w = torch.ones_like(src[..., 0]) if weights is None else weights
    check_last("weights", w, src.shape[-2])
    w = (w / w.sum(-1, keepdim=True))[..., None]
    src_mean, dst_mean = (w * src).sum(-2), (w * dst).sum(-2)
    R = project_to_so3((dst - dst_mean[..., None, :]).mT @ (w * (src - src_mean[..., None, :])))
    return R, dst_mean - (R @ src_mean[..., None]).squeeze(-1)


def random_rotation(shape: tuple[int, ...], generator: torch.Generator | np.random.Generator) -> Any:
    """Rotations (*shape, 3, 3), float64, uniform over SO(3), of the kind of the generator."""
    if isinstance(generator, torch.Generator):
        quat = torch.randn(*shape, 4, generator=generator, dtype=torch.float64, device=generator.device)
        return matrix_from_quat_wxyz(quat)
    if isinstance(generator, np.random.Generator):
        return matrix_from_quat_wxyz(generator.standard_normal((*shape, 4)))
    raise ValueError(f"generator: expected a torch or numpy Generator, got {type(generator).__name__}")
