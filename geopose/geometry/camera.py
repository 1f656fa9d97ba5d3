"""Camera: pixels from points and back; the only home of the half pixel.

Camera axes are +x right, +y down, +z forward. Pixels are (x, y), an integer is a pixel's centre, and an
image of width W spans -0.5 ... W - 0.5.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopose.geometry._arrays import (
    Array,
    as_float_array,
    as_numbers,
    back_to_numpy,
    check_last,
    either,
    is_array,
    namespace,
    to_tensor,
)

_COUNTS = (0, 4, 5, 8, 12)
_NEWTON_STEPS = 50


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with OpenCV's distortion.

    fx, fy, cx, cy: pixels, numbers or arrays (...); size_wh: width and height of the image; distortion: (k1,
    k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]]), OpenCV's order, also (..., D); focal_rel_std: standard
    deviation of the focal length over itself, 0 where it was calibrated. Raises ValueError on values that no
    camera has.
    """

    fx: Any
    fy: Any
    cx: Any
    cy: Any
    size_wh: tuple[int, int]
    distortion: Any = ()
    focal_rel_std: float = 0.0

    def __post_init__(self) -> None:
        for name in _FIELDS[:4]:
            as_numbers(name, getattr(self, name))
        distortion = _distortion(self.distortion)
        many = distortion.sum(-1) if is_array(distortion) and distortion.ndim > 1 else 0.0
        for name, value in zip(_FIELDS, _common(self.fx, self.fy, self.cx, self.cy, many), strict=False):
            if not bool(_all_finite(value)):
                raise ValueError(f"{name}: expected finite pixels, got {value}")
            if name in ("fx", "fy") and not bool(np.all(np.asarray(back_to_numpy(value)) > 0)):
                raise ValueError(f"{name}: expected a positive focal length in pixels, got {value}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "size_wh", _size("size_wh", self.size_wh))
        object.__setattr__(self, "distortion", distortion)
        if not 0 <= as_numbers("focal_rel_std", self.focal_rel_std, "a number >= 0") < math.inf:
            raise ValueError(f"focal_rel_std: expected a number >= 0, got {self.focal_rel_std}")

    def _array_leaves(self) -> list[Any]:
        return [self.fx, self.fy, self.cx, self.cy, self.distortion]

    def numpy(self) -> Camera:
        """The same camera without tensors."""
        return dataclasses.replace(self, **{k: back_to_numpy(getattr(self, k)) for k in _FIELDS})

    @classmethod
    def from_matrix(cls, K: Array, size_wh: tuple[int, int], distortion: Any = ()) -> Camera:
        """The camera of the matrix `K` (..., 3, 3); raises ValueError on skew, f <= 0 or NaN."""
        K = as_numbers("K", K)
        check_last("K", K, 3, 3)
        if not bool(_all_finite(K)):
            raise ValueError(f"K: expected finite entries, got {K}")
        rest = abs(K[..., [0, 1, 2, 2], [1, 0, 0, 1]])
        if bool((rest > 1e-6 * abs(K[..., :1, 0])).any()) or bool((abs(K[..., 2, 2] - 1) > 1e-6).any()):
            raise ValueError(f"K: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] without skew, got {K}")
        return cls(K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2], size_wh, distortion)

    @classmethod
    def from_fov(cls, fov: float, size_wh: tuple[int, int], axis: str = "x") -> Camera:
        """The camera with square pixels, centred, that sees the angle `fov`, radians, edge to edge.

        axis: "x" (width), "y" (height) or "diagonal".
        """
        width, height = _size("size_wh", size_wh)
        spans = {"x": width, "y": height, "diagonal": math.hypot(width, height)}
        if axis not in spans:
            raise ValueError(f"axis: expected one of {sorted(spans)}, got {axis!r}")
        if not 0 < fov < math.pi:
            raise ValueError(f"fov: expected radians between 0 and pi, got {fov}")
        f = spans[axis] / 2 / math.tan(fov / 2)
        return cls(f, f, (width - 1) / 2, (height - 1) / 2, (width, height))

    @classmethod
    def load(cls, path: str | os.PathLike[str], camera_id: int | None = None) -> Camera:
        """The camera in a file: our JSON, BOP camera.json, OpenCV YAML or XML, COLMAP cameras.txt.

        `camera_id` chooses among several COLMAP cameras. Raises ValueError naming the file and the field.
        """
        from geopose.geometry._camera_files import load_camera

        return load_camera(path, camera_id)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write our JSON: fx, fy, cx, cy, width, height, distortion, focal_rel_std."""
        from geopose.geometry._camera_files import save_camera

        save_camera(self, path)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the intrinsics; () for one camera."""
        return tuple(getattr(self.fx, "shape", ()))

    @property
    def K(self) -> Array:
        """The camera matrices (..., 3, 3)."""
        return _matrix(self.fx, self.fy, self.cx, self.cy)

    def __getitem__(self, index: Any) -> Camera:
        """The cameras at `index` of the leading dimensions."""
        if not self.batch_shape:
            raise IndexError("this camera has no leading dimensions to index")
        picked = {k: getattr(self, k)[index] for k in _FIELDS[:4]}
        if is_array(self.distortion) and self.distortion.ndim > 1:
            picked["distortion"] = self.distortion[index]
        return dataclasses.replace(self, **picked)

    def project(self, points_cam: Array) -> Array:
        """Pixels (..., N, 2) of `points_cam` (..., N, 3), metres; NaN where z <= 0 or not finite.

        With strong barrel distortion a point far outside the view folds back into the image, as in OpenCV.
        """
        if isinstance(points_cam, np.ndarray) and isinstance(self.fx, float) and len(self.distortion) == 0:
            return _project(as_float_array(points_cam), self)  # torch takes many times as long
        return self._project(points_cam)

    @either
    def _project(self, points_cam: Array) -> Array:
        xy, _, ok = _pinhole(points_cam)
        fx, fy, cx, cy = self._intrinsics(points_cam)
        coefficients = self._coefficients(points_cam)
        if coefficients:
            xy = _distort(xy, coefficients)
        px = torch.stack([fx * xy[..., 0] + cx, fy * xy[..., 1] + cy], -1)
        return torch.where(ok[..., None], px, torch.full_like(px, math.nan))

    @either
    def project_jacobian(self, points_cam: Array) -> tuple[Array, Array]:
        """Pixels (..., N, 2) and their derivative (..., N, 2, 3) by the point, through the distortion.

        NaN where `project` gives NaN.
        """
        xy, z, ok = _pinhole(points_cam)
        fx, fy, cx, cy = self._intrinsics(points_cam)
        coefficients = self._coefficients(points_cam)
        zero, one = torch.zeros_like(z), torch.ones_like(z)
        rows = [torch.stack([one, zero, -xy[..., 0]], -1), torch.stack([zero, one, -xy[..., 1]], -1)]
        J = torch.stack(rows, -2) / z[..., None, None]
        if coefficients:
            J = _distortion_jacobian(xy, coefficients) @ J
            xy = _distort(xy, coefficients)
        px = torch.stack([fx * xy[..., 0] + cx, fy * xy[..., 1] + cy], -1)
        J = torch.stack([fx[..., None] * J[..., 0, :], fy[..., None] * J[..., 1, :]], -2)
        nan = torch.full_like(z, math.nan)
        return torch.where(ok[..., None], px, nan[..., None]), torch.where(
            ok[..., None, None], J, nan[..., None, None]
        )

    @either
    def normalise(self, points_px: Array) -> Array:
        """Undistorted (x/z, y/z) (..., N, 2) of the pixels `points_px` (..., N, 2).

        The distortion is inverted by damped Newton steps in float64; NaN where no undistorted point on the
        near side of the fold projects there. First derivatives come from the implicit function theorem.
        """
        check_last("points_px", points_px, None, 2)
        fx, fy, cx, cy = self._intrinsics(points_px)
        xy = torch.stack([(points_px[..., 0] - cx) / fx, (points_px[..., 1] - cy) / fy], -1)
        coefficients = self._coefficients(xy.double())
        return _undistort(xy.double(), coefficients).to(xy.dtype) if coefficients else xy

    @either
    def unproject(self, points_px: Array, depth: Array | None = None) -> Array:
        """Rays (x, y, 1) (..., N, 3) of `points_px` (..., N, 2), times `depth` (..., N), z, if given."""
        xy = self.normalise(points_px)
        rays = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
        if depth is None:
            return rays
        check_last("depth", depth, rays.shape[-2])
        return rays * depth[..., None]

    def crop_resize(self, box_px: Array, size_wh: tuple[int, int]) -> Camera:
        """The camera of the picture cut at `box_px` (..., 4) and resized to `size_wh`.

        box_px: x0, y0, x1, y1, edges in image pixels: the whole image is (-0.5, -0.5, W - 0.5, H - 0.5).
        """
        scale, shift = _crop(box_px, size_wh)
        fx, fy, cx, cy = _crop_intrinsics(self, scale, shift)
        return dataclasses.replace(self, fx=fx, fy=fy, cx=cx, cy=cy, size_wh=_size("size_wh", size_wh))

    def _intrinsics(self, like: Tensor) -> list[Tensor]:
        return [_columns(v, like) for v in (self.fx, self.fy, self.cx, self.cy)]

    def _coefficients(self, like: Tensor) -> list[Tensor]:
        """The twelve distortion coefficients, each broadcasting over points, or [] where there are none."""
        if len(self.distortion) == 0 if not is_array(self.distortion) else self.distortion.shape[-1] == 0:
            return []
        d = to_tensor(self.distortion if is_array(self.distortion) else list(self.distortion)).to(like)
        given = [c if c.ndim == 0 else c[..., None] for c in d.unbind(-1)]
        return given + [torch.zeros((), dtype=like.dtype, device=like.device)] * (12 - len(given))


_FIELDS = ("fx", "fy", "cx", "cy", "distortion")


def crop_affine(box_px: Array, size_wh: tuple[int, int]) -> Array:
    """The matrix (..., 2, 3) taking image pixels to the pixels of the crop `box_px` (..., 4) at `size_wh`.

    The same map as `Camera.crop_resize`; also the matrix `cv2.warpAffine` wants. Edges as there.
    """
    scale, shift = _crop(box_px, size_wh)
    stack, zero = namespace(scale).stack, 0 * scale[..., 0]
    rows = stack([scale[..., 0], zero, shift[..., 0]], -1), stack([zero, scale[..., 1], shift[..., 1]], -1)
    return stack(rows, -2)


def _crop(box_px: Array, size_wh: tuple[int, int]) -> tuple[Array, Array]:
    """Scale and shift (..., 2) with crop_px = scale * image_px + shift."""
    box = as_numbers("box_px", box_px)
    check_last("box_px", box, 4)
    extent = box[..., 2:] - box[..., :2]
    if not bool((extent > 0).all()):
        raise ValueError(f"box_px: expected edges x0 < x1 and y0 < y1, got {box.tolist()}")
    size = np.array(_size("size_wh", size_wh), float)
    scale = (box.new_tensor(size) if isinstance(box, Tensor) else size.astype(box.dtype)) / extent
    return scale, -box[..., :2] * scale - 0.5


def _crop_intrinsics(camera: Camera, scale: Array, shift: Array) -> tuple[Array, ...]:
    inner = [camera.fx, camera.fy, camera.cx, camera.cy]
    like = next((v for v in (*inner, scale) if isinstance(v, Tensor)), None)
    if like is not None:  # arrays and numbers stay such: torch takes several times as long
        scale, shift = to_tensor(scale).to(like.device), to_tensor(shift).to(like.device)
        inner = [to_tensor(v).to(scale.device) if not isinstance(v, Tensor) else v.to(scale) for v in inner]
    fx, fy, cx, cy = inner
    sx, sy, tx, ty = scale[..., 0], scale[..., 1], shift[..., 0], shift[..., 1]
    return fx * sx, fy * sy, cx * sx + tx, cy * sy + ty


@either
def _matrix(fx: Array, fy: Array, cx: Array, cy: Array) -> Array:
    fx, fy, cx, cy = (to_tensor(v) for v in (fx, fy, cx, cy))
    o, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, o, cx, o, fy, cy, o, o, one], -1).unflatten(-1, (3, 3))


def _common(*values: Any) -> list[Any]:
    """`values` as Python floats, or broadcast against each other where any has a dimension."""
    like = next((to_tensor(v) for v in values if isinstance(v, Tensor)), None)
    try:
        if like is not None:
            return list(torch.broadcast_tensors(*(to_tensor(v, like).to(like.device) for v in values)))
        if all(np.ndim(v) == 0 for v in values):
            return [float(v) for v in values]
        return [np.array(v) for v in np.broadcast_arrays(*(as_float_array(v) for v in values))]
    except (ValueError, RuntimeError):
        got = [tuple(np.shape(v)) for v in values]
        raise ValueError(f"fx, fy, cx, cy, distortion: leading shapes do not match, got {got}") from None


def _all_finite(value: Any) -> Any:
    return torch.isfinite(value).all() if isinstance(value, Tensor) else np.isfinite(value).all()


def _size(name: str, size_wh: Sequence[int]) -> tuple[int, int]:
    expected = "(width, height) in whole pixels"
    numbers = as_numbers(name, size_wh, expected).tolist()
    if np.shape(numbers) != (2,) or any(not v.is_integer() or v < 1 for v in numbers):
        raise ValueError(f"{name}: expected {expected}, got {size_wh!r}")
    return int(numbers[0]), int(numbers[1])


def _distortion(value: Any) -> Any:
    if value is None:
        return ()
    array = as_numbers("distortion", value)
    if array.ndim == 2 and 1 in array.shape:  # OpenCV's (1, D) and (D, 1)
        array = array.reshape(-1)
    if array.ndim < 1 or not bool(_all_finite(array)):
        raise ValueError(f"distortion: expected finite coefficients (..., D), got {value}")
    if array.shape[-1] == 14:
        if bool((array[..., 12:] != 0).any()):
            raise ValueError("distortion: a tilted sensor (tauX, tauY) is not supported, at most 12 numbers")
        array = array[..., :12]
    if array.shape[-1] not in _COUNTS:
        raise ValueError(
            f"distortion: expected {_COUNTS} coefficients in OpenCV's order, got {array.shape[-1]}"
        )
    return tuple(float(v) for v in array) if not isinstance(array, Tensor) and array.ndim == 1 else array


def _columns(value: Any, like: Tensor) -> Tensor:
    """An intrinsic (...) as (..., 1), broadcasting over the points; a number as it is."""
    tensor = value.to(like) if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value)).to(like)
    return tensor if tensor.ndim == 0 else tensor[..., None]


@np.errstate(over="ignore")
def _project(points: Array, c: Camera) -> Array:  # of plain numbers, without distortion
    check_last("points_cam", points, None, 3)
    z = np.where((points[..., 2] > 0) & np.isfinite(points).all(-1), points[..., 2], np.nan)
    return np.stack([points[..., 0] / z * c.fx + c.cx, points[..., 1] / z * c.fy + c.cy], -1)


def _pinhole(points_cam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x/z, y/z), z made safe to divide by, and where the point lies in front of the camera."""
    check_last("points_cam", points_cam, None, 3)
    ok = (points_cam[..., 2] > 0) & torch.isfinite(points_cam).all(-1)
    safe = torch.where(ok[..., None], points_cam, torch.ones_like(points_cam))
    return safe[..., :2] / safe[..., 2:], safe[..., 2], ok


def _radial(r2: Tensor, c: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The radial factor and its derivative by r^2."""
    k1, k2, _, _, k3, k4, k5, k6 = c[:8]
    top, bottom = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    d_top, d_bottom = k1 + r2 * (2 * k2 + r2 * 3 * k3), k4 + r2 * (2 * k5 + r2 * 3 * k6)
    return top / bottom, (d_top * bottom - top * d_bottom) / (bottom * bottom)


def _distort(xy: Tensor, c: list[Tensor]) -> Tensor:
    """Distorted normalised coordinates (..., 2), OpenCV's model (calib3d, "Detailed Description")."""
    x, y = xy.unbind(-1)
    p1, p2, (s1, s2, s3, s4) = c[2], c[3], c[8:]
    r2 = x * x + y * y
    radial, _ = _radial(r2, c)
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + s2 * r2)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + s4 * r2)
    return torch.stack([xd, yd], -1)


def _distortion_jacobian(xy: Tensor, c: list[Tensor]) -> Tensor:
    """d distorted / d undistorted (..., 2, 2)."""
    x, y = xy.unbind(-1)
    p1, p2, (s1, s2, s3, s4) = c[2], c[3], c[8:]
    r2 = x * x + y * y
    radial, slope = _radial(r2, c)
    a, b = 2 * (s1 + 2 * s2 * r2), 2 * (s3 + 2 * s4 * r2)
    shared = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x + a * x
    yy = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x + b * y
    return torch.stack([xx, shared + a * y, shared + b * x, yy], -1).unflatten(-1, (2, 2))


def _solve_2x2(J: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J^-1 v and det J."""
    (a, b), (c, d) = J[..., 0, :].unbind(-1), J[..., 1, :].unbind(-1)
    det = a * d - b * c
    safe = torch.where(det == 0, torch.ones_like(det), det)
    solution = torch.stack([d * v[..., 0] - b * v[..., 1], a * v[..., 1] - c * v[..., 0]], -1)
    return solution / safe[..., None], det


def _undistort(target: Tensor, c: list[Tensor]) -> Tensor:
    """xy with distort(xy) = `target`, float64; every element takes its own steps and stops on its own."""
    with torch.no_grad():
        detached = [v.detach() for v in c]
        xy, goal = target.detach().clone(), target.detach()
        xy = xy + torch.zeros_like(_distort(xy, detached))  # broadcast against batched coefficients
        damping = torch.ones_like(xy[..., :1])
        error = (_distort(xy, detached) - goal).norm(dim=-1, keepdim=True)
        tolerance = 4 * torch.finfo(xy.dtype).eps * (1 + goal.norm(dim=-1, keepdim=True))
        for _ in range(_NEWTON_STEPS):
            active = (error > tolerance) & (damping > 1e-6)
            if not bool(active.any()):
                break
            step, _ = _solve_2x2(_distortion_jacobian(xy, detached), _distort(xy, detached) - goal)
            trial = xy - damping * step
            trial_error = (_distort(trial, detached) - goal).norm(dim=-1, keepdim=True)
            better = active & (trial_error < error)
            xy, error = torch.where(better, trial, xy), torch.where(better, trial_error, error)
            damping = torch.where(
                better, (2 * damping).clamp(max=1), torch.where(active, damping / 2, damping)
            )
        J = _distortion_jacobian(xy, detached)
        near = (_solve_2x2(J, xy)[1] > 0) & (J[..., 0, 0] + J[..., 1, 1] > 0)  # not folded, not mirrored
        ok = (error < 1e-9 * (1 + goal.norm(dim=-1, keepdim=True))) & near[..., None]
    step, _ = _solve_2x2(J, _distort(xy, c) - target)
    return torch.where(ok, xy - step, torch.full_like(xy, math.nan))
