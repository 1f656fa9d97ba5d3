"""How fast poses come: alone, among outliers, in batches, and how much memory a large batch takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from geopose.bench.common import interleaved, timings
from geopose.bench.pnp_peers import Solver, all_of, exact_peers, robust_peers
from geopose.bench.pnp_scenes import CAMERA, Scenes, random_pixels, scenes
from geopose.distributed import torch_threads
from geopose.geometry.pnp import solve_pnp

OURS = "geopose"
BATCH, ROUNDS = 1024, 5
_LARGE = """
import resource
import numpy as np
from geopose.bench.pnp_scenes import CAMERA, scenes
from geopose.geometry.pnp import solve_pnp
problem = scenes(np.random.default_rng(0), "box", 20, {count})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = solve_pnp(problem.points, problem.px, CAMERA)
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, (found.status == "ok").mean())
"""


def speed(trials: int, full: bool, seed: int) -> dict[str, Any]:
    """`single`, `robust`: milliseconds per call, all contestants in turn on every problem; `batch`: microseconds per
    problem of a batch of 1,024; each with its ratio to ours. `threads`: our batch with one and with two threads.
    `memory`: of 100,000 problems, only when `full`."""
    count = min(trials, 300)
    return {
        "single": [_single(n, 0.0, count, seed) for n in (10, 20, 50)],
        "robust": [_single(n, share, count, seed) for n in (20, 50, 100) for share in (0.3, 0.5)],
        "batch": [
            _batch(n, share, min(BATCH, 2 * trials), seed) for n, share in ((16, 0.0), (50, 0.0), (20, 0.3))
        ],
        "threads": _threads(min(BATCH, 2 * trials), seed),
        "memory": memory(100_000) if full else None,
    }


def _problem(n: int, share: float, count: int, seed: int) -> Scenes:
    k = round(share * n)
    rng = np.random.default_rng([seed, 606, n, k])
    problem = scenes(rng, "box", n, count)
    problem.px[:, :k] = random_pixels(rng, count, k)
    return problem


def _single(n: int, share: float, count: int, seed: int) -> dict[str, Any]:
    problem = _problem(n, share, count, seed)
    peers: dict[str, Solver] = exact_peers() if share == 0 else robust_peers()
    contest: dict[str, Callable[..., Any]] = {OURS: lambda p, q: solve_pnp(p, q, CAMERA), **peers}
    times = interleaved(contest, zip(problem.points, problem.px, strict=True))
    return {"n": n, "share": share, "ms": timings(times, OURS)}


def _batch(n: int, share: float, count: int, seed: int) -> dict[str, Any]:
    problem = _problem(n, share, count, seed)
    contest: dict[str, Callable[..., Any]] = {
        OURS: lambda: solve_pnp(problem.points, problem.px, CAMERA),
        "geopose, a loop": lambda: [
            solve_pnp(p, q, CAMERA) for p, q in zip(problem.points, problem.px, strict=True)
        ],
    }
    if torch.cuda.is_available():
        points, px = (torch.from_numpy(a).cuda() for a in (problem.points, problem.px))
        contest["geopose, GPU"] = lambda: solve_pnp(points, px, CAMERA).pose.t.cpu()
    peers = exact_peers() if share == 0 else robust_peers()
    for name in ("SQPnP + LM", "OpenCV MAGSAC", "PoseLib-LS", "PoseLib", "PoseLib, fast"):
        if name in peers:
            contest[f"{name}, a loop"] = lambda solver=peers[name]: all_of(solver, problem)
    times = interleaved(contest, [()] * ROUNDS, warm_up=1)
    return {"n": n, "share": share, "count": count, "us": timings(times, OURS, 1e6 / count)}


def _threads(count: int, seed: int) -> dict[str, Any]:
    """Our batch of clean and of robust problems with one and with two threads of torch."""
    problem = _problem(20, 0.3, count, seed)

    def solve(threads: int) -> None:
        with torch_threads(threads):
            solve_pnp(torch.from_numpy(problem.points), torch.from_numpy(problem.px), CAMERA)

    contest = {"1 thread": lambda: solve(1), "2 threads": lambda: solve(2)}
    times = interleaved(contest, [()] * ROUNDS, warm_up=1)
    return timings(times, "1 thread", 1e6 / count)


def memory(count: int) -> dict[str, float]:
    """Highest resident memory, bytes, of a process that solves `count` problems of 20 points at once, before and after;
    and the share of them that came out `ok`."""
    done = subprocess.run(
        [sys.executable, "-c", _LARGE.format(count=count)], capture_output=True, text=True, check=True
    )
    before, after, good = map(float, done.stdout.split())
    return {"count": count, "before": before, "after": after, "ok_percent": 100 * good}
