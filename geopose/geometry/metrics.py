"""Errors of poses as the literature defines them, and the bound that no unbiased estimator beats.

Poses have any leading dimensions; `points` are (V, 3) or (..., V, 3), object frame, metres; `symmetries` (S,
4, 4) move the object onto itself, the identity among them; None means the identity alone. An error of a pose
that is not finite is NaN. Lower is better everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import chdtr, chdtri, fdtr, fdtri
from torch import Tensor

from geopose.geometry._arrays import Array, as_float_array, check_last, either, to_tensor
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle, hat, safe_norm

# Thresholds of correctness of the BOP challenge (Hodan et al., ECCVW 2020, section 2.4).
BOP_FRACTIONS = tuple(round(0.05 * k, 2) for k in range(1, 11))
VSD_DELTA = 0.015  # metres


@either
def add(est: Pose, gt: Pose, points: Array) -> Array:
    """Mean distance (...), metres, between the model's points under the two poses (Hinterstoisser, ACCV
    2012)."""
    return safe_norm(est.apply(points) - gt.apply(points)).mean(-1)


@either
def add_s(est: Pose, gt: Pose, points: Array) -> Array:
    """Mean distance (...), metres, from each true point to the nearest estimated one (ADD-S, ADI)."""
    moved, target = torch.broadcast_tensors(est.apply(points), gt.apply(points))
    flat_moved, flat_target = moved.flatten(0, -3) if moved.ndim > 2 else moved[None], target
    flat_target = target.flatten(0, -3) if target.ndim > 2 else target[None]
    errors = []
    for a, b in zip(flat_moved, flat_target, strict=True):
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            errors.append((a - b).sum() * torch.nan)
            continue
        _, nearest = cKDTree(a.detach().cpu().numpy()).query(b.detach().cpu().numpy())
        errors.append(safe_norm(a[torch.as_tensor(nearest, device=a.device)] - b).mean())
    return torch.stack(errors).reshape(moved.shape[:-2]) if errors else moved.new_zeros(moved.shape[:-2])


@either
def mssd(est: Pose, gt: Pose, points: Array, symmetries: Array | None = None) -> Array:
    """Largest distance (...), metres, between the points, under the symmetry where it is least (BOP)."""
    moved = est.apply(points)
    errors = (safe_norm(moved - true.apply(points)).amax(-1) for true in _equivalent(gt, symmetries))
    return functools.reduce(torch.minimum, errors)


@either
def mspd(est: Pose, gt: Pose, points: Array, camera: Camera, symmetries: Array | None = None) -> Array:
    """Largest distance (...), pixels, between the points' projections, least over the symmetries (BOP).

    Infinite where an estimated or true point lies behind the camera.
    """
    moved = camera.project(est.apply(points))
    offsets = (moved - camera.project(true.apply(points)) for true in _equivalent(gt, symmetries))
    errors = (_behind_is_infinite(safe_norm(offset)).amax(-1) for offset in offsets)
    return _unless_nan(functools.reduce(torch.minimum, errors), est, gt)


@either
def reprojection(est: Pose, gt: Pose, points: Array, camera: Camera) -> Array:
    """Mean distance (...), pixels, between the points' projections under the two poses (Brachmann, CVPR
    2016).

    Infinite where an estimated or true point lies behind the camera.
    """
    distance = safe_norm(camera.project(est.apply(points)) - camera.project(gt.apply(points)))
    return _unless_nan(_behind_is_infinite(distance).mean(-1), est, gt)


@either
def vsd(
    depth_est: Array,
    depth_gt: Array,
    depth_test: Array,
    camera: Camera,
    *,
    diameter: float,
    taus: tuple[float, ...] = BOP_FRACTIONS,
    delta: float = VSD_DELTA,
) -> Array:
    """Visible surface discrepancy (..., T) in [0, 1], one per tolerance of `taus` (BOP 2019).

    Args:
        depth_est, depth_gt: (..., H, W) depth z, metres, of the model rendered in either pose; 0 where it is
        not. depth_test: (..., H, W) measured depth, metres; 0 where there is no measurement (there the model
            counts as visible).
        diameter: of the object, metres; the tolerances `taus` are fractions of it.
        delta: tolerance of the visibility test, metres.
    Notes:
        Hodan et al., ECCVW 2016, eq. 14 and ECCV 2018. Nothing visible in either pose gives 1.
    """
    width, height = camera.size_wh
    for name, depth in (("depth_est", depth_est), ("depth_gt", depth_gt), ("depth_test", depth_test)):
        check_last(name, depth, height, width)
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(depth_est)
    length = safe_norm(to_tensor(camera.unproject(pixels))).reshape(height, width)
    est, gt, test = depth_est * length, depth_gt * length, depth_test * length
    seen_gt = ((gt - test <= delta) | (test == 0)) & (gt > 0)
    seen_est = (((est - test <= delta) | (test == 0)) & (est > 0)) | (seen_gt & (est > 0))
    both, one = seen_gt & seen_est, (seen_gt | seen_est).sum((-2, -1))
    distance = (gt - est).abs() / diameter
    errors = []
    for tau in taus:
        wrong = ((distance >= tau) & both).sum((-2, -1)) + one - both.sum((-2, -1))
        share = wrong.to(depth_est) / one.clamp(min=1)  # of whole numbers: in the precision of the depth
        errors.append(torch.where(one > 0, share, torch.ones_like(share)))
    return torch.stack(errors, -1)


@either
def rotation_error(est: Pose, gt: Pose, symmetries: Array | None = None) -> Array:
    """Angle (...), radians, between the rotations, least over the symmetries."""
    angles = [geodesic_angle(est.R, true.R) for true in _equivalent(gt, symmetries)]
    return torch.stack(torch.broadcast_tensors(*angles)).amin(0)


@either
def translation_error(est: Pose, gt: Pose, symmetries: Array | None = None) -> Array:
    """Distance (...), metres, between the origins, least over the symmetries (one may move the origin)."""
    lengths = [safe_norm(est.t - true.t) for true in _equivalent(gt, symmetries)]
    return torch.stack(torch.broadcast_tensors(*lengths)).amin(0)


@either
def cramer_rao(points_obj: Array, pose: Pose, camera: Camera, cov_px: Array | None = None) -> Array:
    """The least covariance (..., 6, 6) of an unbiased pose estimate: the inverse Fisher information.

    Args:
        points_obj: (..., N, 3) metres; pose: the true one; camera: with its distortion.
        cov_px: (..., N, 2, 2) covariance of the measured pixels, pixels^2; None means one pixel, isotropic.
    Returns:
        Covariance of the tangent (rho, phi) of the left update exp(xi) @ pose, metres and radians. NaN where
        the points do not determine the pose. Points behind the camera, values that are not finite
        and covariances that are not positive definite carry no information.
    """
    check_last("points_obj", points_obj, None, 3)
    dtype, pose = points_obj.dtype, pose.torch(torch.float64)
    points = pose.apply(points_obj.double())
    _, J_point = camera.project_jacobian(points)
    eye = torch.eye(3, dtype=points.dtype, device=points.device).expand(*points.shape, 3)
    J = J_point @ torch.cat([eye, -hat(points)], -1)
    identity = torch.eye(2, dtype=points.dtype, device=points.device)
    cov = identity if cov_px is None else cov_px.double()
    proper = torch.isfinite(cov).flatten(-2).all(-1) & (torch.linalg.det(cov) > 0)
    usable = (torch.isfinite(J).flatten(-2).all(-1) & proper)[..., None, None]
    J = torch.where(usable, J, torch.zeros_like(J))
    weight = torch.linalg.inv(torch.where(usable, cov, identity))
    return _safe_inverse((J.mT @ weight @ J).sum(-3)).to(dtype)


@either
def expected_distance(covariance: Array, pose: Pose, points: Array) -> Array:
    """Root mean square distance (...), metres, of the model's points to where they are, when the pose's left tangent
    has this covariance (..., 6, 6): about the ADD to be expected."""
    moved = pose.apply(points)
    eye = torch.eye(3, dtype=moved.dtype, device=moved.device).expand(*moved.shape, 3)
    left = torch.cat([eye, -hat(moved)], -1)  # (..., V, 3, 6)
    squared = (left @ covariance[..., None, :, :] * left).sum((-2, -1))
    return squared.mean(-1).clamp_min(0).sqrt()


def share_inside(distance2: Array, dof: float = np.inf, dimension: int = 6) -> np.ndarray:
    """Probability of the region of an error's distribution whose rim runs through the error: how far out it lies.

    Args:
        distance2: (...) squared Mahalanobis distances under the covariance. dof: degrees of freedom of the Student t
            that the covariance is of, above 2; infinite for a Gaussian. dimension: numbers of the error.
    Notes:
        With S = C (dof - 2) / dof, xi^T S^-1 xi / dimension has the F distribution with (dimension, dof) degrees of
        freedom (Kotz and Nadarajah, "Multivariate t distributions and their applications", 2004).
    """
    d2 = np.asarray(distance2, float)
    if np.isinf(dof):
        return np.asarray(chdtr(dimension, d2))
    return np.asarray(fdtr(dimension, dof, d2 * _over(dof, dimension)))


def region_radius2(share: float, dof: float = np.inf, dimension: int = 6) -> float:
    """The squared Mahalanobis distance inside of which an error lies with probability `share`; see `share_inside`."""
    if np.isinf(dof):
        return float(chdtri(dimension, 1 - share))
    return float(fdtri(dimension, dof, share)) / _over(dof, dimension)


def _over(dof: float, dimension: int) -> float:
    if not dof > 2:
        raise ValueError(
            f"dof: expected more than 2 (there is no covariance of a Student t below), got {dof}"
        )
    return dof / (dof - 2) / dimension


def mspd_thresholds(width: int) -> np.ndarray:
    """BOP's ten MSPD thresholds, pixels, for images `width` pixels wide: 5 ... 50 at width 640."""
    return np.arange(5.0, 51.0, 5.0) * (width / 640)


def mssd_thresholds(diameter: float) -> np.ndarray:
    """BOP's ten MSSD thresholds, metres: 0.05 ... 0.5 of the object's diameter."""
    return np.array(BOP_FRACTIONS) * diameter


def recalls(errors: Array, thresholds: Array) -> np.ndarray:
    """The share of `errors` (N) strictly below each of `thresholds` (T); a missing or NaN estimate never is.

    BOP's average recall is the mean of the result. Raises ValueError where there are no errors.
    """
    errors = np.asarray(as_float_array(errors)).reshape(-1, 1)
    if errors.size == 0:
        raise ValueError("errors: expected at least one (infinity for an estimate that is missing), got none")
    return (errors < np.asarray(as_float_array(thresholds)).reshape(1, -1)).mean(0)


def _equivalent(pose: Pose, symmetries: Array | None) -> Iterator[Pose]:
    """`pose` followed by each symmetry of the object."""
    if symmetries is None:
        yield pose
        return
    check_last("symmetries", symmetries, 4, 4)
    if symmetries.ndim != 3 or not len(symmetries):
        raise ValueError(f"symmetries: expected shape (S, 4, 4), S >= 1, got {tuple(symmetries.shape)}")
    for matrix in symmetries.to(pose.t):
        yield pose @ Pose.from_matrix(matrix)


def _behind_is_infinite(distance: Tensor) -> Tensor:
    return torch.where(torch.isnan(distance), torch.full_like(distance, torch.inf), distance)


def _unless_nan(error: Tensor, *poses: Pose) -> Tensor:
    """`error`, NaN again where a pose is not finite."""
    for pose in poses:
        finite = torch.isfinite(pose.t).all(-1) & torch.isfinite(pose.R).flatten(-2).all(-1)
        error = torch.where(finite, error, torch.full_like(error, torch.nan))
    return error


def _safe_inverse(information: Tensor) -> Tensor:
    """The inverse (..., 6, 6), NaN where the matrix is singular; scaled first, since the units differ."""
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    positive = (diagonal > 0).all(-1, keepdim=True)
    scale = torch.where(positive, diagonal, torch.ones_like(diagonal)).rsqrt()
    scaled = information * scale[..., :, None] * scale[..., None, :]
    values = torch.linalg.eigvalsh(scaled.detach())
    singular = ~positive[..., 0] | (values[..., 0] <= 1e-13 * values[..., -1])
    eye = torch.eye(6, dtype=information.dtype, device=information.device)
    inverse = torch.linalg.inv(torch.where(singular[..., None, None], eye, scaled))
    inverse = inverse * scale[..., :, None] * scale[..., None, :]
    return torch.where(singular[..., None, None], torch.full_like(inverse, torch.nan), inverse)
