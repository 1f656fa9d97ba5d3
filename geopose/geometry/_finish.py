"""From candidates to results: the best pose and its rivals, their weights and covariances, the last statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, back_to_numpy, namespace
from geopose.geometry._correspondences import Problem
from geopose.geometry._fits import RIVAL, TIE
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._verdict import last_words
from geopose.geometry.ambiguity import distinct, laplace_log_weight
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import fast_pose


@dataclass
class Found:
    """Results with one batch dimension; candidates have K in front and are sorted by cost."""

    pose: Pose
    covariance: Array
    weight: Array
    rms: Array
    count: Array  # candidates that matter, (B,)
    inliers: Array
    status: np.ndarray
    reason: np.ndarray


def finish(
    problem: Problem,
    pose: Pose,
    cost: Array,
    information: Array,
    converged: Array,
    inlier: Array,
    camera: Camera,
    options: PnPOptions,
    status: np.ndarray,
    reason: np.ndarray,
    different: np.ndarray,
) -> Found:
    """Best and rivals, their weights, covariances and the last statuses."""
    xp = namespace(cost)
    cost = xp.where(xp.isfinite(cost), cost, xp.inf)
    rank = xp.arange(len(cost))[:, None] * TIE  # of two that are the same the earlier one
    rank = rank if xp is np else rank.to(cost)
    order = xp.argsort(xp.where(converged, cost, cost * (1 + 1e-6) + 1e-6) + rank, 0)
    pose, (cost, information, converged) = reorder(order, pose, cost, information, converged)
    keep = (cost < cost[0] + RIVAL) & converged
    last = max((k for k in range(1, len(cost)) if bool(keep[k].any())), default=0) + 1
    pose = fast_pose(pose.R[:last], pose.t[:last])
    cost, information, converged, keep = cost[:last], information[:last], converged[:last], keep[:last]
    weight = xp.where(xp.isfinite(cost), xp.ones_like(cost), 0.0)
    if last == 1:
        covariance = _inverse(xp, information)
    else:  # few problems have rivals: no work for the others
        covariance = xp.full_like(information, xp.nan)
        covariance[0] = _inverse(xp, information[0])
        covariance[1:][keep[1:]] = _inverse(xp, information[1:][keep[1:]])
        weight[1:] = 0.0
        i = keep[1:].any(0)
        some = fast_pose(pose.R[:, i], pose.t[:, i])
        weight[:, i] = _weights(some, cost[:, i], information[:, i], covariance[:, i], keep[:, i])
        order = xp.argsort(-weight[1:], 0) + 1  # repeated optima weigh nothing: rivals come first
        order = xp.concatenate([order[:1] * 0, order])
        pose, (weight, covariance, converged, cost) = reorder(
            order, pose, weight, covariance, converged, cost
        )
    lost = (status == "too_few_points") | (status == "degenerate")
    if lost.any():  # no pose at all
        i = torch.as_tensor(lost, device=cost.device) if xp is torch else lost
        pose = fast_pose(xp.where(i[:, None, None], xp.nan, pose.R), xp.where(i[:, None], xp.nan, pose.t))
        covariance, weight = xp.where(i[:, None, None], xp.nan, covariance), xp.where(i, 0.0, weight)
        inlier = inlier & ~i[:, None]
    if camera.focal_rel_std > 0:
        J = problem.exact.select(inlier).linearise(pose)[1]
        focal = (problem.focal * inlier[..., None, :]).reshape((*inlier.shape[:-1], -1, 1))
        shift = covariance @ (J.reshape((*J.shape[:-2], -1)) @ focal)
        covariance = covariance + camera.focal_rel_std**2 * (shift @ shift.mT)
    rms = _rms(problem, pose, inlier)
    weights, variances = back_to_numpy(weight), back_to_numpy(covariance[0][:, range(6), range(6)])
    fit = back_to_numpy(xp.where(converged[0], cost[0], xp.where(xp.isfinite(cost[0]), xp.nan, xp.inf)))
    last_words(status, reason, different, weights, variances, fit, back_to_numpy(pose.t[0]), options)
    # back to the caller's object frame and unit
    s, c = problem.size, problem.centre
    pose = fast_pose(pose.R, pose.t * s[..., None] - (pose.R @ c[..., None])[..., 0])
    unit = xp.ones_like(covariance[0, :, 0])
    unit[..., :3] = s[..., None]
    covariance = covariance * unit[..., None] * unit[..., None, :]
    return Found(pose, covariance, weight, rms, (weight[1:] > 1e-4).sum(0), inlier, status, reason)


def reorder(order: Array, pose: Pose, *arrays: Array) -> tuple[Pose, list[Array]]:
    """Candidates (K, B) taken in `order` (K, B)."""
    if order.shape[1] == 1:
        only = order[:, 0]
        return fast_pose(pose.R[only], pose.t[only]), [a[only] for a in arrays]
    rows = np.arange(order.shape[1]) if isinstance(order, np.ndarray) else torch.arange(order.shape[1])
    return fast_pose(pose.R[order, rows], pose.t[order, rows]), [a[order, rows] for a in arrays]


def _weights(pose: Pose, cost: Array, information: Array, covariance: Array, keep: Array) -> Array:
    """(K, B) posterior probabilities of the candidates, zero for what repeats an earlier one."""
    xp = namespace(cost)
    for k in range(1, len(cost)):
        for j in range(k):
            other = distinct(fast_pose(pose.R[k], pose.t[k]), fast_pose(pose.R[j], pose.t[j]), covariance[j])
            keep[k] &= other | ~keep[j]
    keep[0] = True
    value = xp.where(keep, laplace_log_weight(cost, information), -xp.inf)
    top = xp.amax(value, 0)
    weight = xp.exp(value - xp.where(xp.isfinite(top), top, 0.0))
    total = weight.sum(0)
    return xp.where(total > 0, weight / xp.where(total > 0, total, 1.0), 0.0)


def _inverse(xp: Any, information: Array) -> Array:
    """The inverse (..., 6, 6), infinite-looking instead of failing where singular, NaN where not finite."""
    diagonal = information[..., range(6), range(6)]
    root = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    scaled = information / root[..., None] / root[..., None, :]
    eye = xp.eye(6) if xp is np else torch.eye(6, dtype=root.dtype, device=root.device)
    fine = xp.isfinite(scaled.sum((-1, -2)))[..., None, None]
    inverse = xp.linalg.inv(xp.where(fine, scaled, eye) + 1e-15 * eye)
    return xp.where(fine, inverse / root[..., None] / root[..., None, :], xp.nan)


def _rms(problem: Problem, pose: Pose, inlier: Array) -> Array:
    xp = namespace(inlier)
    exact = problem.exact
    r = exact.residual(pose)
    w00, w10, w11 = exact.whiten[..., 0, :], exact.whiten[..., 1, :], exact.whiten[..., 2, :]
    eu = r[..., 0, :] / w00
    ev = (r[..., 1, :] - w10 * eu) / w11
    squared = (eu * problem.to_px[0]) ** 2 + (ev * problem.to_px[1]) ** 2
    number = inlier.sum(-1)
    return xp.sqrt(xp.where(inlier, squared, 0.0).sum(-1) / xp.where(number > 0, number, 1))
