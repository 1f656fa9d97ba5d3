"""solve_pnp: a pose from points, with its uncertainty, its rivals, and a reason when there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, is_array, to_tensor
from geopose.geometry._correspondences import check, flatten, seed_of
from geopose.geometry._finish import Found
from geopose.geometry._labels import check_swaps, exchange, exchanged
from geopose.geometry._native import machine_code
from geopose.geometry._pipeline import solve
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._pnp_result import Alternative, PnPResult
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import fast_pose, implicit_pose

__all__ = ["Alternative", "PnPOptions", "PnPResult", "solve_pnp", "warm_up"]

_FLOAT64 = np.dtype(np.float64)


def solve_pnp(
    points_obj: Array,
    points_px: Array,
    camera: Camera,
    *,
    cov_px: Array | None = None,
    options: PnPOptions = PnPOptions(),  # noqa: B008 (frozen)
    generator: np.random.Generator | torch.Generator | None = None,
    swaps: Array | None = None,
) -> PnPResult:
    """The pose `cam_from_obj` of greatest likelihood among outliers and rival poses, or the reason for none.

    Args:
        points_obj: (..., N, 3) object frame, metres (any unit: translation comes in the same one).
        points_px: (..., N, 2) pixels. A correspondence that is not finite is missing. Lists and integers will
        do.
        camera: its leading dimensions broadcast against those of the points.
        cov_px: (..., N, 2, 2) covariance of each point, pixels^2. None: `options.noise_px` on both axes, one
            pixel unless said otherwise: every test and the covariance of the pose rely on it.
        swaps: (P, 2) indices of points that may have been taken for each other, as a left and a right one. Where
            points are left over, the search also tries their pixels exchanged, a point in one pair at most.
            `geopose.cad.mirror_pairs` names the pairs of a mesh.
        options: see `PnPOptions`.
        generator: source of the random samples; None always draws the same ones.
    Returns:
        PnPResult in the kind (numpy, torch) and floating dtype of the input. `status` is `ok`,
        `too_few_points` (under three, or three with nothing to check them), `degenerate` (collinear points,
        or a view that does not determine the pose), `ambiguous` (rival poses of comparable probability),
        `no_consensus` (no pose fits more points than chance would) or `not_converged`.
    Raises:
        ValueError: shapes that do not match, covariances that are not positive definite, a camera or options
            that are none.
    Notes:
        Two weak-perspective starts are refined together by Levenberg-Marquardt. Where the better one leaves a
        point outside the gate, three-point poses are searched (`hypothesise`), and accepted if significant
        (`log_false_alarms`). With torch inputs the pose is differentiable in points_obj, points_px, cov_px
        and the camera through the implicit function theorem at the optimum, inliers held fixed; all else is
        detached.
    """
    if not isinstance(options, PnPOptions):
        raise ValueError(f"options: expected PnPOptions, got {type(options).__name__}")
    seed = seed_of(generator)
    if _is_plain(points_obj, points_px, camera, cov_px):
        data = points_obj[None], points_px[None], None if cov_px is None else cov_px[None], camera
        return _solve((), data, swaps, options, seed)
    arrays = check(points_obj, points_px, camera, cov_px)
    tensors = [a for a in (*arrays, *camera._array_leaves()) if isinstance(a, torch.Tensor)]
    dtype = next((a.dtype for a in (points_px, points_obj) if _is_floating(a)), _FLOAT64)
    lead, data = flatten(*arrays, camera)
    result = _solve(lead, data, swaps, options, seed)
    if not tensors:
        return result if dtype == _FLOAT64 else _convert(result, lambda a: _as_dtype(a, dtype))
    device = tensors[0].device
    result = _convert(result, lambda a: _as_tensor(a, torch.float64, device))
    if torch.is_grad_enabled() and any(a.requires_grad for a in tensors):
        result = _attach(result, arrays, swaps, camera, options, device)
    kind = dtype if isinstance(dtype, torch.dtype) else torch.float64
    return result if kind == torch.float64 else _convert(result, lambda a: _as_tensor(a, kind, device))


def warm_up() -> None:
    """Do now what the first `solve_pnp` of a process does: load its machine code or, once on a machine, compile it."""
    machine_code()


def _solve(
    lead: tuple[int, ...], data: tuple[Any, ...], swaps: Array | None, options: PnPOptions, seed: int
) -> PnPResult:
    """The result in numpy or on the accelerator, float64."""
    obj, px, cov, lens = data
    found = solve(obj, px, cov, lens, options, seed)
    if swaps is None:
        return _unflatten(found, lead)
    pairs = check_swaps(swaps, px.shape[1])
    found, swapped = exchange(found, data, options, seed, pairs)
    return replace(_unflatten(found, lead), swapped=swapped.reshape((*lead, len(pairs))))


def _is_plain(obj: Any, px: Any, camera: Any, cov: Any) -> bool:
    """Whether this is one problem of float64 arrays whose shapes match, and a camera of numbers."""
    return (
        type(obj) is type(px) is np.ndarray
        and obj.dtype == px.dtype == _FLOAT64
        and obj.shape == (len(px), 3)
        and px.shape == (len(px), 2)
        and (
            cov is None
            or (type(cov) is np.ndarray and cov.dtype == _FLOAT64 and cov.shape == (len(px), 2, 2))
        )
        and type(camera) is Camera
        and type(camera.fx) is float
        and type(camera.distortion) is tuple
    )


def _is_floating(a: Any) -> bool:
    return a.is_floating_point() if isinstance(a, torch.Tensor) else is_array(a) and a.dtype.kind == "f"


def _as_dtype(a: Any, dtype: Any) -> Any:
    return a if a.dtype == bool else a.astype(dtype)


def _unflatten(found: Found, lead: tuple[int, ...]) -> PnPResult:
    """The result in the caller's leading dimensions."""

    def shape(a: Any) -> Any:
        return a.reshape((*lead, *a.shape[1:])) if lead else a[0]

    def pose(k: int) -> Pose:
        return fast_pose(shape(found.pose.R[k]), shape(found.pose.t[k]))

    rivals = tuple(
        Alternative(pose(k), shape(found.covariance[k]), shape(found.weight[k]), shape(found.rms[k]))
        for k in range(1, 1 + int(found.count.max()) if len(found.status) else 1)
    )
    status, reason = (
        (shape(found.status), shape(found.reason)) if lead else (str(found.status[0]), found.reason[0])
    )
    return PnPResult(
        pose(0), shape(found.covariance[0]), shape(found.inliers), status, reason, shape(found.rms[0]), rivals
    )


def _convert(result: PnPResult, change: Any) -> PnPResult:
    """The result with `change` applied to every array of numbers."""

    def pose(p: Pose) -> Pose:
        return fast_pose(change(p.R), change(p.t))

    rivals = tuple(
        Alternative(pose(a.pose), change(a.covariance), change(a.weight), change(a.rms_px))
        for a in result.alternatives
    )
    return PnPResult(
        pose(result.pose),
        change(result.covariance),
        change(result.inliers),
        result.status,
        result.reason,
        change(result.rms_px),
        rivals,
        None if result.swapped is None else change(result.swapped),
    )


def _as_tensor(a: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(a, device=device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _attach(
    result: PnPResult,
    arrays: tuple[Any, Any, Any],
    swaps: Array | None,
    camera: Camera,
    options: PnPOptions,
    device: torch.device,
) -> PnPResult:
    """The float64 torch result with the poses put into the graph of the inputs."""
    obj, px = (to_tensor(a).to(device, torch.float64) for a in arrays[:2])
    cov = None if arrays[2] is None else to_tensor(arrays[2]).to(device, torch.float64)
    if cov is None:
        cov = options.noise_px**2 * torch.eye(2, dtype=torch.float64, device=device).expand(
            *px.shape[:-1], 2, 2
        )
    if swaps is not None and result.swapped is not None and result.swapped.any():
        lead = result.swapped.shape[:-1]
        px, cov = px.expand(*lead, *px.shape[-2:]), cov.expand(*lead, *cov.shape[-3:])
        px, cov = exchanged((px, cov), result.swapped.cpu().numpy(), check_swaps(swaps, px.shape[-2]))

    def pose(p: Pose) -> Pose:
        return implicit_pose(p, obj, px, cov, camera, result.inliers, options.kernel, options.kernel_sigma)

    rivals = tuple(replace(a, pose=pose(a.pose)) for a in result.alternatives)
    return replace(result, pose=pose(result.pose), alternatives=rivals)
