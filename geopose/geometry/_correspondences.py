"""From the caller's arrays to a batch of well-scaled, whitened problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, as_float_array, as_numbers, back_to_numpy, namespace
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry.camera import Camera
from geopose.geometry.refine import Reprojection


def check(
    points_obj: Array, points_px: Array, camera: Camera, cov_px: Array | None
) -> tuple[Array, Array, Any]:
    """The three arrays as floating-point arrays, shapes checked."""
    if not isinstance(camera, Camera):
        raise ValueError(f"camera: expected a geopose.Camera, got {type(camera).__name__}")
    obj, px = as_numbers("points_obj", points_obj), as_numbers("points_px", points_px)
    cov = None if cov_px is None else as_numbers("cov_px", cov_px)
    for name, array, width in (("points_obj", obj, 3), ("points_px", px, 2)):
        if array.ndim < 2 or array.shape[-1] != width:
            raise ValueError(f"{name}: expected shape (..., N, {width}), got {tuple(array.shape)}")
    if obj.shape[-2] != px.shape[-2]:
        raise ValueError(
            "points_obj, points_px: expected the same number of points, "
            f"got {obj.shape[-2]} and {px.shape[-2]}"
        )
    if cov is not None and (cov.ndim < 3 or tuple(cov.shape[-3:]) != (px.shape[-2], 2, 2)):
        raise ValueError(f"cov_px: expected shape (..., {px.shape[-2]}, 2, 2), got {tuple(cov.shape)}")
    return obj, px, cov


def _plain(a: Array) -> Array:
    """float64, numpy unless the tensor lives on an accelerator."""
    if isinstance(a, torch.Tensor):
        a = a.detach().to(torch.float64)
        return a if a.device.type != "cpu" else a.numpy()
    return a if a.dtype == np.float64 else a.astype(np.float64)


def flatten(
    obj: Array, px: Array, cov: Array | None, camera: Camera
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The common leading dimensions, and (obj, px, cov, camera) with one batch dimension."""
    n = px.shape[-2]
    shapes = [tuple(obj.shape[:-2]), tuple(px.shape[:-2]), camera.batch_shape]
    if cov is not None:
        shapes.append(tuple(cov.shape[:-3]))
    try:
        lead = np.broadcast_shapes(*shapes) if any(shapes) else ()
    except ValueError:
        raise ValueError(
            f"points_obj, points_px, camera, cov_px: leading dimensions {shapes} do not match"
        ) from None
    obj, px = _plain(obj), _plain(px)
    cov = None if cov is None else _plain(cov)
    device = next((a.device for a in (obj, px, cov) if isinstance(a, torch.Tensor)), None)
    if device is not None:
        obj, px, cov = (None if a is None else torch.as_tensor(a, device=device) for a in (obj, px, cov))

    def flat(a: Array, tail: tuple[int, ...]) -> Array:
        if lead == tuple(a.shape[: a.ndim - len(tail)]):
            return a.reshape((-1, *tail)) if lead else a[None]
        return namespace(a).broadcast_to(a, (*lead, *tail)).reshape((-1, *tail))

    if device is None:
        camera = (
            camera.numpy() if any(isinstance(v, torch.Tensor) for v in camera._array_leaves()) else camera
        )
    if camera.batch_shape:
        fields = {k: flat(as_float_array(getattr(camera, k)), ()) for k in ("fx", "fy", "cx", "cy")}
        d = camera.distortion
        d = flat(d, (d.shape[-1],)) if getattr(d, "ndim", 1) > 1 else d
        camera = Camera(**fields, size_wh=camera.size_wh, distortion=d, focal_rel_std=camera.focal_rel_std)
    cov = None if cov is None else flat(cov, (n, 2, 2))
    return lead, (flat(obj, (n, 3)), flat(px, (n, 2)), cov, camera)


def seed_of(generator: np.random.Generator | torch.Generator | None) -> int:
    if generator is None:
        return 0
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(2**62))
    raise ValueError(f"generator: expected a numpy or torch Generator, got {type(generator).__name__}")


@dataclass(frozen=True)
class Problem:
    """A batch (B,) of problems in an object frame centred and scaled to unit size."""

    exact: Reprojection  # what is minimised
    pinhole: Reprojection  # the same, or its linearisation where the camera distorts
    valid: Array  # (B, N)
    centre: Array  # (B, 3)
    size: Array  # (B,)
    focal: Any  # (B, 2, N), None where f is certain: derivative of the residual by log f
    to_px: tuple[Array, Array]  # focal lengths (B or 1, 1); ones where the residual is in pixels


def distorts(camera: Camera) -> bool:
    return len(camera.distortion) > 0 and bool((abs(as_float_array(camera.distortion)) > 0).any())


def prepare(obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions) -> Problem:
    xp = namespace(px)
    valid = xp.isfinite(obj.sum(-1) + px.sum(-1))
    if cov is not None:
        valid = valid & xp.isfinite(cov.sum((-1, -2)))
    bent = distorts(camera)
    normal: Any = None
    if bent:
        with np.errstate(all="ignore"):
            normal = camera.normalise(px)
        valid = valid & xp.isfinite(normal.sum(-1))
    whole = bool(valid.all())
    if not whole:
        obj, px = (xp.where(valid[..., None], a, 0.0) for a in (obj, px))
        normal = None if normal is None else xp.where(valid[..., None], normal, 0.0)
        if cov is not None:
            eye = xp.eye(2) if xp is np else torch.eye(2, dtype=px.dtype, device=px.device)
            cov = xp.where(valid[..., None, None], cov, eye)
    if cov is None:
        one = xp.full_like(px[..., 0], 1 / options.noise_px)
        white = (one, one * 0, one)
    else:
        white = whiten(cov)
    if not whole:
        white = tuple(xp.where(valid, w, 0.0) for w in white)
    count = valid.sum(-1)
    n = xp.clip(count, 1, None)[..., None] * 1.0
    centre = obj.sum(-2) / n
    obj = obj - centre[..., None, :]
    if not whole:
        obj = xp.where(valid[..., None], obj, 0.0)
    size = xp.sqrt((obj * obj).sum((-1, -2)) / n[..., 0])
    size = xp.where(size > 0, size, 1.0)
    points = obj.mT / size[..., None, None]
    fx, fy, cx, cy = (_column(v, px) for v in (camera.fx, camera.fy, camera.cx, camera.cy))
    u, v = px[..., 0] - cx, px[..., 1] - cy
    focal = xp.stack([white[0] * u, white[1] * u + white[2] * v], -2) if camera.focal_rel_std > 0 else None
    if not bent:
        xy = xp.stack([u / fx, v / fy], -2)
        same = Reprojection(points, xy, xp.stack([white[0] * fx, white[1] * fx, white[2] * fy], -2))
        return Problem(same, same, valid, centre, size, focal, (fx, fy))
    exact = Reprojection(points, px.mT, xp.stack(white, -2), camera)
    rays = xp.concatenate([normal, xp.ones_like(normal[..., :1])], -1)
    J = camera.project_jacobian(rays)[1][..., :2]
    lower = _lower(white, J)
    pinhole = Reprojection(points, normal.mT, xp.stack([xp.where(valid, w, 0.0) for w in lower], -2))
    return Problem(exact, pinhole, valid, centre, size, focal, (1.0, 1.0))


def _column(value: Any, like: Array) -> Any:
    """A number as it is, (B,) as (B, 1)."""
    if getattr(value, "ndim", 0) == 0:
        return float(value)
    return (torch.as_tensor(value).to(like) if isinstance(like, torch.Tensor) else value)[..., None]


def whiten(cov: Array) -> tuple[Array, Array, Array]:
    """Entries 00, 10, 11 of the lower triangular W with W'W = cov^-1."""
    xp = namespace(cov)
    a, b, d = cov[..., 0, 0], (cov[..., 0, 1] + cov[..., 1, 0]) / 2, cov[..., 1, 1]
    rest = a * d - b * b
    if not bool(((a > 0) & (rest > 0)).all()):
        bad = back_to_numpy(cov)[back_to_numpy(~((a > 0) & (rest > 0)))][0]
        raise ValueError(f"cov_px: expected positive definite matrices, pixels^2, got {bad.tolist()}")
    root = xp.sqrt(a)
    w11 = root / xp.sqrt(rest)
    return 1 / root, -b / a * w11, w11


def _lower(white: tuple[Array, ...], J: Array) -> tuple[Array, Array, Array]:
    """The lower triangular V with V'V = J'W'W J: whitening of coordinates whose derivative is J."""
    xp = namespace(J)
    w00, w10, w11 = white
    a0, a1 = w00 * J[..., 0, 0], w00 * J[..., 0, 1]
    b0, b1 = w10 * J[..., 0, 0] + w11 * J[..., 1, 0], w10 * J[..., 0, 1] + w11 * J[..., 1, 1]
    m00, m01, m11 = a0 * a0 + b0 * b0, a0 * a1 + b0 * b1, a1 * a1 + b1 * b1
    v11 = xp.sqrt(m11)
    safe = xp.where(v11 > 0, v11, 1.0)
    v10 = m01 / safe
    rest = m00 - v10 * v10
    return xp.sqrt(xp.where(rest > 0, rest, 0.0)), v10, v11
