"""Levenberg-Marquardt of many small pinhole problems at once, compiled by torch: `PnPOptions.compiled`.

The formulas of `Reprojection`, `small_step` and `levenberg_marquardt`, each number an array of its own over all
problems, so that one loop goes over the points of eight problems at a time.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopose.geometry.pose import Pose
from geopose.geometry.refine import DAMPING, LMResult, Reprojection, StopFn, fast_pose, stops

_START, _DOWN, _UP, _LOW, _HIGH = DAMPING
_PAIRS = [(i, j) for i in range(6) for j in range(i, 6)]
_SQUARE = [_PAIRS.index((min(i, j), max(i, j))) for i in range(6) for j in range(6)]
_SPARSE = 0.6  # where fewer of the problems are still open, the others are left out


def descend(
    problem: Reprojection,
    pose: Pose,
    max_iterations: int,
    tolerance: float,
    part_fn: Callable[[Any], StopFn],
) -> LMResult:
    """`levenberg_marquardt` of starts (2, B) of a numpy pinhole problem (B,), without a kernel.

    part_fn: indices of problems -> their `stop_fn`.
    """
    if len(problem.points) == 1:  # torch would compile the size of one anew
        two = np.zeros(2, int)
        pose = fast_pose(pose.R[:, two], pose.t[:, two])
        both = descend(problem.item(two), pose, max_iterations, tolerance, lambda here: part_fn(two[here]))
        one = fast_pose(both.pose.R[:, :1], both.pose.t[:, :1])
        return LMResult(
            one, both.cost[:, :1], both.information[:, :1], both.converged[:, :1], both.iterations
        )
    step = _compiled_step()
    data = [_last(a) for a in (problem.points, problem.xy, problem.whiten)]
    whole = _start(step, data, pose)
    state, items, stop_fn = whole, np.arange(len(problem.points)), part_fn(slice(None))
    limit = torch.tensor(tolerance, dtype=torch.float64)
    for count in range(1, max_iterations + 1):
        open_ = ~state[4].all(0)
        number = int(open_.sum())
        if number == 0:
            break
        if number < _SPARSE * len(open_):
            here = open_.nonzero()[:, 0]
            here = torch.cat([here, here[:1]]) if number == 1 else here
            _put(whole, items, state)
            items = items[here.numpy()]
            data, state = [a[..., here] for a in data], [a[..., here] for a in state]
            stop_fn = part_fn(items)
        *state, length, expected = step(*data, *state, limit)
        state[4] |= torch.from_numpy(stop_fn(count, *(a.numpy() for a in (state[2], length, expected))))
    _put(whole, items, state)
    placed, normal, cost, _, _, converged, _ = (a.numpy() for a in whole)
    matrix = np.moveaxis(placed, 0, -1).reshape((*cost.shape, 3, 4))
    information = np.moveaxis(normal[_SQUARE], 0, -1).reshape((*cost.shape, 6, 6))
    found = fast_pose(np.ascontiguousarray(matrix[..., :3]), np.ascontiguousarray(matrix[..., 3]))
    return LMResult(found, cost, information, converged, max_iterations)


def _last(a: np.ndarray) -> Tensor:
    """(B, D, N) as (D, N, B)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, 0, -1)))


def _start(step: Any, data: list[Tensor], pose: Pose) -> list[Tensor]:
    """Pose (12, 2, B), normal equations (27, 2, B), cost, damping, done, converged, length of the last step (2, B)."""
    placed = np.concatenate([pose.R, pose.t[..., None]], -1).reshape((*pose.t.shape[:-1], 12))
    moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(placed, -1, 0)))
    cost = torch.full_like(moved[0], torch.inf)
    unit = torch.zeros(
        (27, *cost.shape), dtype=cost.dtype
    )  # normal equations that lead nowhere: nothing moves
    unit[[_PAIRS.index((i, i)) for i in range(6)]] = 1.0
    never = torch.zeros_like(cost, dtype=torch.bool)
    fresh = (torch.full_like(cost, _START), never, never.clone(), torch.full_like(cost, torch.nan))
    state = step(*data, moved, unit, cost, *fresh, torch.zeros((), dtype=cost.dtype))[:3]
    return [*state, fresh[0], ~torch.isfinite(state[2]), *fresh[2:]]


def _put(whole: list[Tensor], items: np.ndarray, state: Sequence[Tensor]) -> None:
    for all_, part in zip(whole, state, strict=True):
        all_[..., torch.from_numpy(items)] = part


def has_compiler() -> bool:
    """Whether there is a C++ compiler for torch to use."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


@functools.cache
def _compiled_step() -> Any:
    """`_step`, compiled for any number of points and problems, for one thread: more wait for one another."""
    if not has_compiler():
        raise RuntimeError("PnPOptions.compiled: expected a C++ compiler (g++, clang++ or $CXX), found none")
    return torch.compile(_step, dynamic=True, fullgraph=True, options={"cpp.threads": 1})


def _step(
    points: Tensor,
    xy: Tensor,
    whiten: Tensor,
    pose: Tensor,
    normal: Tensor,
    cost: Tensor,
    damping: Tensor,
    done: Tensor,
    converged: Tensor,
    before: Tensor,
    tolerance: Tensor,
) -> tuple[Tensor, ...]:
    """One trial step: the new state, the squared length of the step, and the cost expected after it."""
    step, length = _solve(normal, damping)
    trial = _moved(pose, step)
    normal_new, cost_new = _look(points, xy, whiten, trial)
    small, expected = stops(length, before, tolerance), cost - length
    near = small | (length < 1e-10 * cost)
    take = ((cost_new < cost) | (near & (cost_new <= cost * (1 + 1e-9) + 1e-24))) & ~done
    return (
        torch.where(take, trial, pose),
        torch.where(take, normal_new, normal),
        torch.where(take, cost_new, cost),
        torch.clamp(damping * torch.where(take, _DOWN, _UP), _LOW, _HIGH),
        done | small | (~take & (damping >= _HIGH)),
        converged | (small & ~done),
        torch.where(take, length, torch.nan),
        length,
        expected,
    )


def _look(points: Tensor, xy: Tensor, whiten: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Half the Hessian (21 entries) and half the gradient (6), (27, 2, B), and the cost (2, B)."""
    (px, py, pz), (mx, my), (w00, w10, w11) = (a[:, :, None].unbind(0) for a in (points, xy, whiten))
    x, y, z = (a * px + b * py + c * pz + d for a, b, c, d in (pose[:4], pose[4:8], pose[8:]))
    behind = z <= 0
    iz = 1 / torch.where(behind, 1.0, z)
    u, v = x * iz, y * iz
    uv, none = u * v, torch.zeros_like(u)
    du = (iz, none, -u * iz, -uv, 1 + u * u, -v)  # d(u, v) / d(rho, phi) of a pinhole
    dv = (none, iz, -v * iz, -1 - v * v, uv, u)
    first, second = [w00 * a for a in du], [w10 * a + w11 * b for a, b in zip(du, dv, strict=True)]
    eu, ev = w00 * (u - mx), w10 * (u - mx) + w11 * (v - my)
    sums = [(first[i] * first[j] + second[i] * second[j]).sum(0) for i, j in _PAIRS]
    sums += [(a * eu + b * ev).sum(0) for a, b in zip(first, second, strict=True)]
    cost = torch.where(behind & (w00 > 0), torch.inf, eu * eu + ev * ev).sum(0)
    return torch.stack(sums), cost


def _solve(normal: Tensor, damping: Tensor) -> tuple[list[Tensor], Tensor]:
    """The damped step, six of (2, B), by Cholesky's factors, and its squared length in standard deviations."""
    entry, g = dict(zip(_PAIRS, normal, strict=False)), normal[21:].unbind(0)
    low: dict[tuple[int, int], Tensor] = {}
    scale: list[Tensor] = []
    half: list[Tensor] = []
    for j in range(6):
        rest = entry[j, j] * (1 + damping)
        for k in range(j):
            rest = rest - low[j, k] * low[j, k]
        scale.append(torch.rsqrt(rest))
        for i in range(j + 1, 6):
            rest = entry[j, i]
            for k in range(j):
                rest = rest - low[i, k] * low[j, k]
            low[i, j] = rest * scale[j]
    for i in range(6):
        rest = -g[i]
        for k in range(i):
            rest = rest - low[i, k] * half[k]
        half.append(rest * scale[i])
    step: list[Tensor] = []
    for i in reversed(range(6)):
        rest = half[i]
        for k in range(i + 1, 6):
            rest = rest - low[k, i] * step[k - i - 1]
        step.insert(0, rest * scale[i])
    length = -step[0] * g[0]
    for a, b in zip(step[1:], g[1:], strict=True):
        length = length - a * b
    return step, length


def _moved(pose: Tensor, step: list[Tensor]) -> Tensor:
    """`small_step`."""
    a, b, c = (0.5 * angle for angle in step[3:])
    aa, bb, cc = a * a, b * b, c * c
    s = 2 / (1 + aa + bb + cc)
    turn = (
        (1 - s * (bb + cc), s * (a * b - c), s * (a * c + b)),
        (s * (a * b + c), 1 - s * (aa + cc), s * (b * c - a)),
        (s * (a * c - b), s * (b * c + a), 1 - s * (aa + bb)),
    )
    p = pose.unbind(0)
    rows = [[r[0] * p[j] + r[1] * p[4 + j] + r[2] * p[8 + j] for j in range(4)] for r in turn]
    for row, shift in zip(rows, step[:3], strict=True):
        row[3] = row[3] + shift
    return torch.stack([entry for row in rows for entry in row])
