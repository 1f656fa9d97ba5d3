"""Points whose labels were exchanged: which of the given pairs, and the poses that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from geopose.geometry._arrays import Array, back_to_numpy, namespace
from geopose.geometry._correspondences import prepare
from geopose.geometry._fits import HYPOTHESES, OPTIMISE_STEPS
from geopose.geometry._pipeline import CHUNK, Found, solve, take
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry.camera import Camera
from geopose.geometry.ransac import hypothesise, optimise, squared_residuals
from geopose.geometry.refine import fast_pose

_LEAST_GAIN = 2.0  # squared standard deviations by which exchanged labels must fit better


def check_swaps(swaps: Any, count: int) -> np.ndarray:
    """`swaps` as an integer array (P, 2) of indices below `count`."""
    pairs = np.asarray(back_to_numpy(swaps))
    if pairs.size == 0:
        return np.zeros((0, 2), int)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"swaps: expected integers of shape (P, 2), got {pairs.dtype} of shape {pairs.shape}"
        )
    if pairs.min() < 0 or pairs.max() >= count or (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError(f"swaps: expected pairs of different indices below {count}, got {pairs.tolist()}")
    return pairs


def exchange(
    found: Found,
    data: tuple[Array, Array, Array | None, Camera],
    options: PnPOptions,
    seed: int,
    pairs: np.ndarray,
) -> tuple[Found, np.ndarray]:
    """`found` with the poses of exchanged labels where these explain more points, and which (B, P) are exchanged.

    Args:
        found: what `solve` says to the labels as they are; an item that leaves no point over is not touched.
        data: points (B, N, 3), pixels (B, N, 2), covariances (B, N, 2, 2) and camera, as `solve` takes them.
        pairs: (P, 2) indices of points that may have each other's pixels.
    Notes:
        Every pair adds two correspondences to the search: both points with the other's pixel. Of the best pose
        each pair takes the labels that fit it better, and the problem so relabelled is solved as any other,
        with as many times fewer false alarms allowed as there are ways to label.
    """
    obj, px, cov, camera = data
    batch, n = px.shape[:2]
    swapped = np.zeros((batch, len(pairs)), bool)
    good = np.isin(found.status, ("ok", "ambiguous"))
    whole = back_to_numpy(namespace(px).isfinite(obj.sum(-1) + px.sum(-1)) <= found.inliers).all(-1)
    finite = ~np.isin(found.status, ("too_few_points", "degenerate"))
    left_over = np.flatnonzero(~(good & whole) & finite)
    if not len(left_over) or not len(pairs):
        return found, swapped
    step = max(CHUNK // (n + 2 * len(pairs)), 1)
    for items in np.split(left_over, range(step, len(left_over), step)):
        swapped[items] = _choose(_items(data, items), options, seed, pairs)
    items = np.flatnonzero(swapped.any(-1))
    if not len(items):
        return found, swapped
    part = _items(data, items)
    new_px, new_cov = exchanged(part[1:3], swapped[items], pairs)
    strict = replace(options, max_false_alarms=options.max_false_alarms * 0.5 ** len(pairs))
    other = solve(part[0], new_px, new_cov, part[3], strict, seed)
    number = [back_to_numpy(f.inliers).sum(-1) for f in (other, found)]
    better = np.isin(other.status, ("ok", "ambiguous")) & (~good[items] | (number[0] > number[1][items]))
    swapped[items[~better]] = False
    return _put(found, items[better], _rows(other, np.flatnonzero(better))), swapped


def exchanged(arrays: Any, swapped: np.ndarray, pairs: np.ndarray) -> list[Any]:
    """Each array (..., N, ...), batch as that of `swapped` (..., P), with the rows of the swapped pairs exchanged."""
    out: list[Any] = []
    for a in arrays:
        if a is None:
            out.append(None)
            continue
        axis = swapped.ndim - 1
        order = np.broadcast_to(np.arange(a.shape[axis]), (*swapped.shape[:-1], a.shape[axis])).copy()
        for k, (i, j) in enumerate(pairs):
            order[..., i], order[..., j] = np.where(swapped[..., k], j, i), np.where(swapped[..., k], i, j)
        order = order.reshape((*order.shape, *[1] * (a.ndim - order.ndim)))
        if isinstance(a, torch.Tensor):
            out.append(torch.take_along_dim(a, torch.as_tensor(order, device=a.device), axis))
        else:
            out.append(np.take_along_axis(a, order, axis))
    return out


def _choose(data: Any, options: PnPOptions, seed: int, pairs: np.ndarray) -> np.ndarray:
    """(B, P) bool: the pairs that fit the best pose better with labels exchanged."""
    obj, px, cov, camera = data
    n, gate = px.shape[1], options.gate_sigma
    left = np.concatenate([np.arange(n), pairs[:, 0], pairs[:, 1]])
    right = np.concatenate([np.arange(n), pairs[:, 1], pairs[:, 0]])
    with np.errstate(all="ignore"):
        wide = prepare(obj[:, left], px[:, right], None if cov is None else cov[:, right], camera, options)
        guess, _ = hypothesise(wide.pinhole, gate, options.max_samples, HYPOTHESES, seed)
        pose, cost = optimise(wide.exact, guess, gate, OPTIMISE_STEPS)
        d2 = back_to_numpy(squared_residuals(wide.exact, take(namespace(cost), pose, cost)))
    d2 = np.where(back_to_numpy(wide.valid), np.minimum(d2, gate * gate), gate * gate)
    gain = d2[:, pairs].sum(-1) - d2[:, n : n + len(pairs)] - d2[:, n + len(pairs) :] - _LEAST_GAIN
    shared = (pairs[:, None, :, None] == pairs[None, :, None, :]).any((-1, -2))
    swapped, rows = np.zeros(gain.shape, bool), np.arange(len(gain))
    for _ in pairs:  # of pairs that share a point the one that gains most
        k = gain.argmax(-1)
        yes = gain[rows, k] > 0
        swapped[rows[yes], k[yes]] = True
        gain = np.where(yes[:, None] & shared[k], -np.inf, gain)
    return swapped


def _items(data: Any, items: np.ndarray) -> tuple[Any, ...]:
    obj, px, cov, camera = data
    pick = torch.as_tensor(items, device=px.device) if isinstance(px, torch.Tensor) else items
    lens = camera[pick] if camera.batch_shape else camera
    return obj[pick], px[pick], None if cov is None else cov[pick], lens


def _rows(found: Found, items: np.ndarray) -> Found:
    pick = (
        torch.as_tensor(items, device=found.count.device) if isinstance(found.count, torch.Tensor) else items
    )
    return Found(
        fast_pose(found.pose.R[:, pick], found.pose.t[:, pick]),
        found.covariance[:, pick],
        found.weight[:, pick],
        found.rms[:, pick],
        found.count[pick],
        found.inliers[pick],
        found.status[items],
        found.reason[items],
    )


def _put(found: Found, items: np.ndarray, other: Found) -> Found:
    """`found` with `other` in place of `items`."""
    if not len(items):
        return found
    xp, most = namespace(found.weight), max(len(found.weight), len(other.weight))
    pick = torch.as_tensor(items, device=found.weight.device) if xp is torch else items

    def put(a: Array, b: Array, fill: float) -> Array:
        a, b = (xp.concatenate([x, *[xp.full_like(x[:1], fill)] * (most - len(x))]) for x in (a, b))
        a[:, pick] = b
        return a

    pose = fast_pose(put(found.pose.R, other.pose.R, np.nan), put(found.pose.t, other.pose.t, np.nan))
    covariance, rms = put(found.covariance, other.covariance, np.nan), put(found.rms, other.rms, np.nan)
    weight = put(found.weight, other.weight, 0.0)
    for name in ("count", "inliers"):
        getattr(found, name)[pick] = getattr(other, name)
    for name in ("status", "reason"):
        getattr(found, name)[items] = getattr(other, name)
    return Found(pose, covariance, weight, rms, found.count, found.inliers, found.status, found.reason)
