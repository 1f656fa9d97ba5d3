"""The steps of `solve_pnp` on one batch: start, refine, search where needed, weigh, judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, back_to_numpy, namespace
from geopose.geometry._correspondences import Problem, prepare
from geopose.geometry._fits import (
    HYPOTHESES,
    OPTIMISE_STEPS,
    RIVAL,
    TIE,
    beyond_doubt,
    chi2_limit,
    first_look,
    refine_all,
)
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._single_search import MOST_POINTS, search_item, together
from geopose.geometry._verdict import FEW, judge, last_words, screen
from geopose.geometry.ambiguity import distinct, laplace_log_weight, two_starts
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.ransac import (
    chance_of_distance,
    hypothesise,
    log_false_alarms,
    optimise,
    squared_residuals,
)
from geopose.geometry.refine import LMResult, Reprojection, fast_pose

CHUNK = 200_000  # points handled at once: bounds the memory


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


def solve(obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions, seed: int) -> Found:
    """The results of a batch (B,) of problems, points (B, N, 3), pixels (B, N, 2), covariances (B, N, 2, 2)."""
    batch, n = px.shape[:2]
    if batch == 0 or n < 3:  # too little to compute with: stand-ins without a finite point
        few = [np.full((max(batch, 1), 3, k), np.nan) for k in (3, 2)]
        found = _solve(few[0], few[1], None, Camera(1, 1, 0, 0, (1, 1)), options, seed)
        return _cut(found, batch, n, px, obj)
    size = max(CHUNK // n, 1)
    parts = []
    for i in range(0, batch, size):
        part = slice(i, i + size)
        lens = camera[part] if camera.batch_shape else camera
        parts.append(_solve(obj[part], px[part], None if cov is None else cov[part], lens, options, seed))
    return parts[0] if len(parts) == 1 else _join(namespace(px), parts)


def _join(xp: Any, parts: list[Found]) -> Found:
    """Chunks of a batch put together; missing candidates hold NaN and weight zero."""
    most = max(len(p.weight) for p in parts)

    def join(arrays: list[Array], fill: float) -> Array:
        padded = [xp.concatenate([a, *[xp.full_like(a[:1], fill)] * (most - len(a))]) for a in arrays]
        return xp.concatenate(padded, 1)

    return Found(
        fast_pose(join([p.pose.R for p in parts], np.nan), join([p.pose.t for p in parts], np.nan)),
        join([p.covariance for p in parts], np.nan),
        join([p.weight for p in parts], 0.0),
        join([p.rms for p in parts], np.nan),
        xp.concatenate([p.count for p in parts]),
        xp.concatenate([p.inliers for p in parts]),
        np.concatenate([p.status for p in parts]),
        np.concatenate([p.reason for p in parts]),
    )


def _cut(found: Found, batch: int, n: int, obj: Array, px: Array) -> Found:
    """The answer to a problem without enough points, in the sizes asked for."""
    number = back_to_numpy(namespace(px).isfinite(obj).all(-1) & namespace(px).isfinite(px).all(-1)).sum(-1)
    return Found(
        fast_pose(found.pose.R[:, :batch], found.pose.t[:, :batch]),
        found.covariance[:, :batch],
        found.weight[:, :batch],
        found.rms[:, :batch],
        found.count[:batch],
        np.zeros((batch, n), bool),
        found.status[:batch],
        np.array([FEW.format(i, n) for i in number] + [None], dtype=object)[:batch],
    )


def _solve(obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions, seed: int) -> Found:
    with np.errstate(all="ignore"):
        problem = prepare(obj, px, cov, camera, options)
        xp = namespace(px)
        pin = problem.pinhole
        weight = pin.whiten[..., 0, :] * pin.whiten[..., 2, :]
        starts, variances = two_starts(pin.points, pin.xy, weight)
        status, reason, different = screen(problem, variances)
        limit = chi2_limit(2.0 * problem.valid.sum(-1) - 6)
        found = first_look(problem.exact, starts, limit, options)
        d2 = squared_residuals(problem.exact, take(xp, found.pose, found.cost))
        inlier = (d2 < options.gate_sigma**2) & problem.valid
        settled = (inlier | ~problem.valid).all(-1) & (xp.where(problem.valid, d2, 0.0).sum(-1) < limit)
        search = np.flatnonzero((status == "ok") & (~back_to_numpy(settled) | (different == 3)))
        if options.kernel != "none" and len(search) < len(obj):
            found = refine_all(problem.exact, found.pose, options, options.kernel)
        pose, cost, information, converged = found.pose, found.cost, found.information, found.converged
        for items, more, inlier_s, log_nfa, mirrored in _searches(
            problem, search, limit, different, options, seed
        ):
            pose, cost, information, converged, inlier = _merge(
                xp, items, (pose, cost, information, converged, inlier), (more, inlier_s)
            )
            false = mirrored & ~back_to_numpy(settled)[items]
            kept = back_to_numpy(inlier_s)
            judge(problem, items, kept, log_nfa, false, options, status, reason, different)
        candidates = (pose, cost, information, converged)
        return finish(problem, *candidates, inlier, camera, options, status, reason, different)


def take(xp: Any, pose: Pose, cost: Array) -> Pose:
    """Of poses (K, B) the one (B,) of least cost (K, B), NaN last."""
    k = xp.where(xp.isnan(cost), xp.inf, cost).argmin(0)
    if len(k) == 1:
        k = int(k[0])
        return fast_pose(pose.R[k], pose.t[k])
    rows = xp.arange(cost.shape[1]) if xp is np else torch.arange(cost.shape[1], device=cost.device)
    return fast_pose(pose.R[k, rows], pose.t[k, rows])


Consensuses = tuple[np.ndarray, LMResult, Array, np.ndarray, np.ndarray]


def _searches(
    problem: Problem, items: np.ndarray, limit: Array, different: np.ndarray, options: PnPOptions, seed: int
) -> Iterator[Consensuses]:
    """Of groups of `items`: which, robust candidates (K, S), inliers (S, N), log false alarms (S,), and whether all
    points fit the mirror image (S,).

    On the CPU a search for one item after the other is several times faster than one for all together, in which every
    item takes the steps of the slowest.
    """
    alone = np.zeros(len(items), bool)
    if (
        isinstance(problem.valid, np.ndarray)
        and problem.exact is problem.pinhole
        and options.kernel == "none"
    ):
        if problem.valid.shape[-1] <= MOST_POINTS:
            found = {i: search_item(problem, i, limit[i], options, seed) for i in items if different[i] > 3}
            found = {i: consensus for i, consensus in found.items() if consensus is not None}
            alone = np.isin(items, list(found))
            if found:
                yield items[alone], *together([c for c in found.values() if c is not None])
    rest = items[~alone]
    if len(rest):
        yield rest, *_search(problem, rest, options, seed), _fits_mirrored(problem, rest, limit, options)


def _search(
    problem: Problem, items: np.ndarray, options: PnPOptions, seed: int
) -> tuple[LMResult, Array, np.ndarray]:
    """Robust candidates (K, S) of the items (S,), their inliers (S, N) and log false alarms (S,)."""
    xp = namespace(problem.valid)
    pick = torch.as_tensor(items, device=problem.valid.device) if xp is torch else items
    exact, valid = problem.exact.item(pick), problem.valid[pick]
    pin = exact if problem.exact is problem.pinhole else problem.pinhole.item(pick)
    guess, cost = _local_optima(exact, pin, valid, options, seed)
    best = take(xp, guess, cost)
    d2 = squared_residuals(exact, best)
    inlier = (d2 < options.gate_sigma**2) & valid
    kept = exact.select(inlier)
    area = pin.whiten[..., 0, :] * pin.whiten[..., 2, :]
    fresh, _ = two_starts(pin.points, pin.xy, xp.where(inlier, area, 0.0))
    every = fast_pose(xp.concatenate([guess.R, fresh.R]), xp.concatenate([guess.t, fresh.t]))
    refined = refine_all(kept, every, options, options.kernel)
    final = take(xp, refined.pose, refined.cost)
    chance = chance_of_distance(pin, squared_residuals(exact, final), valid)
    return refined, inlier, log_false_alarms(chance, inlier, valid)


def _local_optima(
    exact: Reprojection, pin: Reprojection, valid: Array, options: PnPOptions, seed: int
) -> tuple[Pose, Array]:
    """Up to four poses (K, S) of little truncated cost, and that cost (K, S); NaN and infinite where there are fewer.

    Of the hypotheses only the best is optimised where that leads to a consensus beyond doubt.
    """
    xp, gate = namespace(valid), options.gate_sigma
    guess, _ = hypothesise(pin, gate, options.max_samples, HYPOTHESES, seed)
    pose, cost = optimise(exact, fast_pose(guess.R[:1], guess.t[:1]), gate, OPTIMISE_STEPS)
    d2 = squared_residuals(exact, fast_pose(pose.R[0], pose.t[0]))
    log_nfa = log_false_alarms(chance_of_distance(pin, d2, valid), d2 < gate * gate, valid)
    weak = np.flatnonzero(~(log_nfa < beyond_doubt(options)))
    if not len(weak):
        return pose, cost
    pick = torch.as_tensor(weak, device=valid.device) if xp is torch else weak
    some, some_cost = optimise(
        exact.item(pick), fast_pose(guess.R[:, pick], guess.t[:, pick]), gate, OPTIMISE_STEPS
    )
    order = xp.argsort(xp.where(xp.isnan(some_cost), xp.inf, some_cost), 0)
    some, (some_cost,) = _reorder(order, some, some_cost)
    more = len(some_cost) - 1
    R, t, cost = (xp.concatenate([a, *[xp.full_like(a, xp.nan)] * more]) for a in (pose.R, pose.t, cost))
    R[:, pick], t[:, pick], cost[:, pick] = some.R, some.t, some_cost
    return fast_pose(R, t), cost


def _merge(xp: Any, items: np.ndarray, old: tuple[Any, ...], new: tuple[LMResult, Array]) -> tuple[Any, ...]:
    """Candidates (K, B) in which those of `items` are replaced, padded with infinite cost."""
    pose, cost, information, converged, inlier = old
    more, inlier_s = new
    K, B = max(len(more.cost), len(cost)), cost.shape[1]

    def put(a: Array, b: Array, fill: float) -> Array:
        if len(items) == B:
            return b
        full = (xp.full if xp is np else torch.full)((K, *a.shape[1:]), fill, dtype=a.dtype)
        full = full if xp is np else full.to(a.device)
        full[: a.shape[0]] = a
        full[:, items] = fill
        full[: b.shape[0], items] = b
        return full

    pose = fast_pose(put(pose.R, more.pose.R, np.nan), put(pose.t, more.pose.t, np.nan))
    cost, converged = put(cost, more.cost, np.inf), put(converged, more.converged, False)
    information = put(information, more.information, np.nan)
    inlier = inlier * 1 > 0
    inlier[items] = inlier_s
    return pose, cost, information, converged, inlier


def _fits_mirrored(problem: Problem, items: np.ndarray, limit: Array, options: PnPOptions) -> np.ndarray:
    """(S,) bool: all points of the items fit if the object is mirrored."""
    xp = namespace(limit)
    pick = torch.as_tensor(items, device=limit.device) if xp is torch else items
    pin, exact = problem.pinhole.item(pick), problem.exact.item(pick)
    exact = Reprojection(-exact.points, exact.xy, exact.whiten, exact.camera)
    starts, _ = two_starts(exact.points, pin.xy, pin.whiten[..., 0, :] * pin.whiten[..., 2, :])
    found = first_look(exact, starts, limit[pick], options)
    return np.asarray(back_to_numpy((found.cost < limit[pick]).any(0)))


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
    pose, (cost, information, converged) = _reorder(order, pose, cost, information, converged)
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
        pose, (weight, covariance, converged, cost) = _reorder(
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


def _reorder(order: Array, pose: Pose, *arrays: Array) -> tuple[Pose, list[Array]]:
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
