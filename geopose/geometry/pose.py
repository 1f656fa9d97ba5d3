"""Pose: a rigid transform named by both frames, destination first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopose.geometry import rotation
from geopose.geometry._arrays import Array, as_float_array, as_numbers, check_last, either


@dataclass(frozen=True, eq=False)
class Pose:
    """A rigid transform `dst_from_src`: x_dst = R x_src + t.

    R: (..., 3, 3) rotation; t: (..., 3) metres; both numpy arrays or both torch tensors. Leading dimensions
    broadcast. Only shapes are checked: a batch may hold NaN elements.
    """

    R: Array
    t: Array

    def __post_init__(self) -> None:
        R, t = as_numbers("R", self.R), as_numbers("t", self.t)
        check_last("R", R, 3, 3)
        check_last("t", t, 3)
        if isinstance(R, Tensor) != isinstance(t, Tensor):
            raise ValueError(
                f"R, t: expected both numpy or both torch, got {type(R).__name__}, {type(t).__name__}"
            )
        if R.shape[:-2] != t.shape[:-1]:
            try:
                batch = np.broadcast_shapes(tuple(R.shape[:-2]), tuple(t.shape[:-1]))
            except ValueError:
                raise ValueError(
                    f"R, t: leading dimensions of {tuple(R.shape)} and {tuple(t.shape)} do not match"
                ) from None
            expand: Any = torch.broadcast_to if isinstance(R, Tensor) else np.broadcast_to
            R, t = expand(R, (*batch, 3, 3)), expand(t, (*batch, 3))
        object.__setattr__(self, "R", R)
        object.__setattr__(self, "t", t)

    def _array_leaves(self) -> list[Any]:
        return [self.R, self.t]

    @classmethod
    def from_matrix(cls, matrix: Array) -> Pose:
        """The pose of homogeneous matrices (..., 4, 4), or (..., 3, 4); the last row is checked."""
        matrix = as_numbers("matrix", matrix)
        if matrix.shape[-2:] not in ((4, 4), (3, 4)):
            raise ValueError(f"matrix: expected shape (..., 4, 4) or (..., 3, 4), got {tuple(matrix.shape)}")
        if matrix.shape[-2] == 4:
            row = abs(matrix[..., 3, :] - as_like([0.0, 0.0, 0.0, 1.0], matrix))
            if bool((row > 1e-6).any()):
                raise ValueError(
                    "matrix: expected the last row (0, 0, 0, 1); is it transposed or a projection?"
                )
        return cls(matrix[..., :3, :3], matrix[..., :3, 3])

    @classmethod
    def from_rvec_tvec(cls, rvec: Array, tvec: Array) -> Pose:
        """The pose of a rotation vector (..., 3), radians, and a translation (..., 3), metres.

        OpenCV's column vectors (3, 1) are accepted as well.
        """
        rvec, tvec = as_numbers("rvec", rvec), as_numbers("tvec", tvec)
        rvec = rvec[..., 0] if tuple(rvec.shape) == (3, 1) else rvec
        tvec = tvec[..., 0] if tuple(tvec.shape) == (3, 1) else tvec
        return cls(rotation.exp_so3(rvec), tvec)

    @classmethod
    def from_quat_wxyz(cls, quat: Array, t: Array) -> Pose:
        """The pose of a quaternion (..., 4), scalar first, and a translation (..., 3), metres."""
        return cls(rotation.matrix_from_quat_wxyz(quat), t)

    @classmethod
    def identity(cls, batch: tuple[int, ...] = (), like: Array | None = None) -> Pose:
        """The identity, repeated over `batch`; numpy float64, or the kind and dtype of `like`."""
        eye, zero = np.broadcast_to(np.eye(3), (*batch, 3, 3)).copy(), np.zeros((*batch, 3))
        return cls(eye, zero) if like is None else cls(as_like(eye, like), as_like(zero, like))

    @classmethod
    def exp(cls, xi: Array) -> Pose:
        """The pose of the tangent vector `xi` (..., 6) = (rho, phi), metres and radians."""
        return cls(*_exp(xi))

    @classmethod
    def stack(cls, poses: Sequence[Pose]) -> Pose:
        """One pose with a new first dimension holding `poses`, all of one kind and batch shape."""
        join: Any = torch.stack if isinstance(poses[0].R, Tensor) else np.stack
        return cls(join([p.R for p in poses]), join([p.t for p in poses]))

    @classmethod
    def where(cls, condition: Array, a: Pose, b: Pose) -> Pose:
        """Element by element `a` where `condition` (...) holds, else `b`."""
        pick: Any = torch.where if isinstance(a.R, Tensor) else np.where
        return cls(pick(condition[..., None, None], a.R, b.R), pick(condition[..., None], a.t, b.t))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading dimensions."""
        return tuple(self.t.shape[:-1])

    @property
    def matrix(self) -> Array:
        """The homogeneous matrices (..., 4, 4)."""
        return _matrix(self.R, self.t)

    @property
    def rvec(self) -> Array:
        """The rotation vectors (..., 3), radians."""
        return rotation.log_so3(self.R)

    @property
    def quat_wxyz(self) -> Array:
        """The unit quaternions (..., 4), scalar first and not negative."""
        return rotation.quat_wxyz_from_matrix(self.R)

    def inverse(self) -> Pose:
        """`src_from_dst`."""
        Rt = self.R.mT
        return Pose(Rt, -(Rt @ self.t[..., None])[..., 0])

    def __matmul__(self, other: Pose) -> Pose:
        """`a_from_c = a_from_b @ b_from_c`."""
        if not isinstance(other, Pose):
            raise ValueError(f"@ composes two poses, got {type(other).__name__}; .apply moves points")
        return Pose(self.R @ other.R, (self.R @ other.t[..., None])[..., 0] + self.t)

    def apply(self, points: Array) -> Array:
        """`points` (..., N, 3) of the source frame, in the destination frame."""
        if isinstance(self.R, Tensor) or isinstance(points, Tensor):
            return _apply(self.R, self.t, points)
        return _moved(self.R, self.t, as_float_array(points))  # torch takes several times as long

    def retract(self, xi: Array) -> Pose:
        """exp(xi) @ self: moved by the tangent vector `xi` (..., 6) = (rho, phi) of the destination frame."""
        return Pose.exp(xi) @ self

    def log(self) -> Array:
        """The tangent vector (..., 6) = (rho, phi) with exp(log) = self."""
        return _log(self.R, self.t)

    def numpy(self) -> Pose:
        """The same pose in numpy arrays, cut from any autograd graph."""
        if not isinstance(self.R, Tensor):
            return self
        return Pose(self.R.detach().cpu().numpy(), self.t.detach().cpu().numpy())

    def torch(self, dtype: torch.dtype = torch.float64, device: Any = None) -> Pose:
        """The same pose in tensors of `dtype`; tensors keep their graph."""
        if isinstance(self.R, Tensor):
            return Pose(self.R.to(device=device, dtype=dtype), self.t.to(device=device, dtype=dtype))
        return Pose(*(torch.tensor(np.array(x), dtype=dtype, device=device) for x in (self.R, self.t)))

    def __getitem__(self, index: Any) -> Pose:
        """The poses at `index` of the leading dimensions."""
        return Pose(self.R[index], self.t[index])


def as_like(value: Any, like: Array) -> Array:
    """`value` as an array of the kind, dtype and device of `like`."""
    if isinstance(like, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return np.asarray(value, dtype=like.dtype)


@either
def _exp(xi: Array) -> tuple[Array, Array]:
    check_last("xi", xi, 6)
    rho, phi = xi[..., :3], xi[..., 3:]
    a, b, c = (x[..., None, None] for x in rotation.so3_coefficients((phi * phi).sum(-1)))
    k = rotation.hat(phi)
    kk = k @ k
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    return eye + a * k + b * kk, ((eye + b * k + c * kk) @ rho[..., None]).squeeze(-1)


@either
def _matrix(R: Array, t: Array) -> Array:
    row = torch.zeros(*t.shape[:-1], 1, 4, dtype=R.dtype, device=R.device)
    row[..., 3] = 1
    return torch.cat([torch.cat([R, t[..., None]], -1), row], -2)


def _moved(R: Array, t: Array, points: Array) -> Array:
    check_last("points", points, None, 3)
    return points @ R.mT + t[..., None, :]


_apply = either(_moved)


@either
def _log(R: Array, t: Array) -> Array:
    phi = rotation.log_so3(R)
    squared = (phi * phi).sum(-1)
    small = squared < 1e-2
    x = torch.where(small, squared, torch.zeros_like(squared))
    safe = torch.where(small, torch.ones_like(squared), squared)
    half = safe.sqrt() / 2
    near_zero = rotation.series(x, (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160))
    d = torch.where(small, near_zero, (1 - half * torch.cos(half) / torch.sin(half)) / safe)
    k_t = torch.linalg.cross(phi, t)
    rho = t - k_t / 2 + d[..., None] * torch.linalg.cross(phi, k_t)
    return torch.cat([rho, phi], -1)
