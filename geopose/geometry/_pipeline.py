"""The steps of `solve_pnp` on one batch: start, refine, search where needed, weigh, judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, back_to_numpy, namespace
from geopose.geometry._correspondences import Problem, distorts, prepare
from geopose.geometry._finish import Found, finish, reorder
from geopose.geometry._fits import (
    HYPOTHESES,
    OPTIMISE_STEPS,
    beyond_doubt,
    chi2_limit,
    first_look,
    refine_all,
)
from geopose.geometry._native import Items, solve_items
from geopose.geometry._native_descents import CONVERGED, COST, NORMAL
from geopose.geometry._native_item import CODE, COUNT, COVARIANCE, LOG_NFA, MIRRORED, ODD, PLACED, RMS, SOLVED
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry._verdict import FEW, judge, screen
from geopose.geometry.ambiguity import two_starts
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


def solve(obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions, seed: int) -> Found:
    """The results of a batch (B,) of problems, points (B, N, 3), pixels (B, N, 2), covariances (B, N, 2, 2)."""
    batch, n = px.shape[:2]
    if batch == 0 or n < 3:  # too little to compute with: stand-ins without a finite point
        few = [np.full((max(batch, 1), 3, k), np.nan) for k in (3, 2)]
        found = solve_arrays(few[0], few[1], None, Camera(1, 1, 0, 0, (1, 1)), options, seed)
        return _cut(found, batch, n, px, obj)
    size = max(CHUNK // n, 1)
    parts = []
    for i in range(0, batch, size):
        part = slice(i, i + size)
        lens = camera[part] if camera.batch_shape else camera
        parts.append(
            _solve_part(obj[part], px[part], None if cov is None else cov[part], lens, options, seed)
        )
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


def _solve_part(
    obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions, seed: int
) -> Found:
    """In machine code what can be, the rest by array operations."""
    if isinstance(px, torch.Tensor) or options.kernel != "none" or distorts(camera):
        return solve_arrays(obj, px, cov, camera, options, seed)
    items = solve_items(obj, px, cov, camera, options, seed)
    kind = items.answer[:, CODE]
    if not kind.any():
        return _solved(items, slice(None))
    parts, order = [], []
    for which in np.unique(kind):
        here = np.flatnonzero(kind == which)
        order.append(here)
        if which == SOLVED:
            parts.append(_solved(items, here))
            continue
        lens = camera[here] if camera.batch_shape else camera
        some = obj[here], px[here], None if cov is None else cov[here], lens, options
        parts.append(_finish_odd(items, here, *some) if which == ODD else solve_arrays(*some, seed))
    found, back = _join(np, parts), np.argsort(np.concatenate(order))
    return Found(
        fast_pose(found.pose.R[:, back], found.pose.t[:, back]),
        *(a[:, back] for a in (found.covariance, found.weight, found.rms)),
        *(a[back] for a in (found.count, found.inliers, found.status, found.reason)),
    )


def _solved(items: Items, here: np.ndarray | slice) -> Found:
    answer = items.answer[None, here]
    placed = answer[..., PLACED : PLACED + 12].reshape((*answer.shape[:2], 3, 4))
    count = answer.shape[1]
    return Found(
        fast_pose(placed[..., :3].copy(), placed[..., 3].copy()),
        answer[..., COVARIANCE : COVARIANCE + 36].reshape((1, count, 6, 6)),
        np.ones((1, count)),
        answer[..., RMS].copy(),
        np.zeros(count, int),
        items.inlier[here],
        np.full(count, "ok", dtype="<U16"),
        np.full(count, "", dtype=object),
    )


def _finish_odd(
    items: Items,
    here: np.ndarray,
    obj: np.ndarray,
    px: np.ndarray,
    cov: np.ndarray | None,
    camera: Camera,
    options: PnPOptions,
) -> Found:
    """The results of the items `here`, of which the other arguments are the problems."""
    with np.errstate(all="ignore"):
        problem = prepare(obj, px, cov, camera, options)
        answer = items.answer[here]
        last = int(answer[:, COUNT].max())
        rows = np.moveaxis(items.candidates[here, :last], 1, 0)  # (K, B, WIDTH)
        rows = np.where((np.arange(last)[:, None] < answer[:, COUNT])[..., None], rows, np.nan)
        placed = rows[..., :12].reshape((*rows.shape[:2], 3, 4))
        inlier, different = items.inlier[here], problem.valid.sum(-1)
        status, reason = np.full(len(here), "ok", dtype="<U16"), np.full(len(here), "", dtype=object)
        verdict = inlier, answer[:, LOG_NFA], answer[:, MIRRORED] > 0, options, status, reason, different
        judge(problem, np.arange(len(here)), *verdict)
        return finish(
            problem,
            fast_pose(placed[..., :3], placed[..., 3]),
            rows[..., COST],
            rows[..., NORMAL:].reshape((*rows.shape[:2], 6, 7))[..., :6],
            rows[..., CONVERGED] > 0,
            inlier,
            camera,
            options,
            status,
            reason,
            different,
        )


def solve_arrays(
    obj: Array, px: Array, cov: Array | None, camera: Camera, options: PnPOptions, seed: int
) -> Found:
    """The results by operations on arrays, numpy or torch, of all problems at once."""
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
        if len(search):
            more, inlier_s, log_nfa = _search(problem, search, options, seed)
            false = _fits_mirrored(problem, search, limit, options) & ~back_to_numpy(settled)[search]
            pose, cost, information, converged, inlier = _merge(
                xp, search, (pose, cost, information, converged, inlier), (more, inlier_s)
            )
            kept = back_to_numpy(inlier_s)
            judge(problem, search, kept, log_nfa, false, options, status, reason, different)
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
    some, (some_cost,) = reorder(order, some, some_cost)
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
