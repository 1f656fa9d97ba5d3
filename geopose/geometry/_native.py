"""`solve_pnp` on the CPU for pinhole cameras: whole problems in machine code, one after the other.

What is unusual (rival poses, a doubtful consensus, an uncertain focal length) is only searched here and judged by
`finish`; what cannot be solved so (under four points, collinear ones) is left to the code for arrays.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
from numba import types
from numba.core import event

from geopose.geometry._fits import HYPOTHESES, beyond_doubt
from geopose.geometry._native_descents import WIDTH
from geopose.geometry._native_item import ANSWER, solve_item
from geopose.geometry._native_search import Settings, workspace
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry.camera import Camera
from geopose.geometry.ransac import sample_triplets

_LOG = logging.getLogger(__name__)
# the files that go into the compiled code
SOURCES = (
    "_native",
    "_native_item",
    "_native_search",
    "_native_starts",
    "_native_p3p",
    "_native_descents",
    "_fits",
    "_verdict",
    "refine",
    "ransac",
)


@dataclass(frozen=True)
class Items:
    """What the compiled code found for a batch (B,) of problems (B, N).

    answer: (B, ANSWER), in columns CODE (SOLVED, ODD or ELSEWHERE) ... COVARIANCE; of the solved PLACED (12: rows of
    (R | t)) and COVARIANCE (36) are in the caller's frame and unit. inlier: (B, N) of the solved and the odd.
    candidates: (B, K, WIDTH) descents of the odd, COUNT of them, in the centred frame of unit size.
    """

    answer: np.ndarray
    inlier: np.ndarray
    candidates: np.ndarray


def solve_items(
    obj: np.ndarray, px: np.ndarray, cov: np.ndarray | None, camera: Camera, options: PnPOptions, seed: int
) -> Items:
    """The problems of float64 arrays (B, N, 3), (B, N, 2), (B, N, 2, 2)."""
    batch, n = px.shape[:2]
    lens = camera.fx, camera.fy, camera.cx, camera.cy
    if camera.batch_shape:
        lenses = np.stack([np.broadcast_to(np.asarray(v, float), (batch,)) for v in lens], -1)
    else:
        lenses = np.array([lens], float)
    sizes: tuple[int, ...] = (n,)
    if not math.isfinite(px.sum() + obj.sum() + (0.0 if cov is None else cov.sum())):
        total = px.sum(-1) + obj.sum(-1) + (0.0 if cov is None else cov.sum((-1, -2)))
        sizes = tuple(np.unique(np.isfinite(total).sum(-1)).tolist())
    table, first = _tables(n, sizes, options.max_samples, seed)
    found = Items(np.zeros((batch, ANSWER)), np.zeros((batch, n), bool), np.empty((batch, HYPOTHESES, WIDTH)))
    machine_code()(
        np.ascontiguousarray(obj),
        np.ascontiguousarray(px),
        np.empty((0, 0, 2, 2)) if cov is None else np.ascontiguousarray(cov),
        lenses,
        table,
        first,
        (options.noise_px, options.gate_sigma**2, options.tolerance),
        (math.log(options.max_false_alarms), beyond_doubt(options)),
        options.max_iterations,
        camera.focal_rel_std == 0,
        found.answer,
        found.inlier,
        found.candidates,
    )
    return found


@functools.lru_cache(maxsize=64)
def _tables(n: int, sizes: tuple[int, ...], most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of problems with k points, for k in `sizes`, at most n: rows first[k] to first[k + 1] of the first
    array."""
    parts = [sample_triplets(k, most, seed) for k in sizes]
    count = np.zeros(n + 1, np.int64)
    count[list(sizes)] = [len(part) for part in parts]
    table = np.ascontiguousarray(np.concatenate(parts), np.int64)
    return table, np.concatenate([np.zeros(1, np.int64), count.cumsum()])


@functools.cache
def machine_code() -> Callable[..., None]:
    """The loop over problems, compiled at the first call on a machine and kept on disk by numba.

    numba tells outdated code by the time of this file, and by what the function closes over: a hash of all the others.
    """
    files = [Path(__file__).with_name(f"{name}.py") for name in SOURCES]
    there = [
        file.read_bytes() for file in files if file.is_file()
    ]  # a frozen application has none, and none changes
    version = hashlib.sha256(b"".join(there)).hexdigest()

    def run(
        obj: Any, px: Any, cov: Any, lenses: Any, table: Any, first: Any, numbers: Any, alarms: Any, most_steps: Any,
        certain: Any, answer: Any, inlier: Any, candidates: Any,
    ) -> None:  # fmt: skip
        len(version)
        noise, gate2, tolerance = numbers
        settings, work = Settings(gate2, tolerance, most_steps, alarms[0], alarms[1]), workspace()
        for k in range(len(px)):
            solve_item(
                k, obj, px, cov, lenses, noise, certain, table, first, settings, work, answer, inlier, candidates
            )  # fmt: skip

    f, i, b = types.float64, types.int64, types.boolean
    inputs = [given(f, 3), given(f, 3), given(f, 4), given(f, 2), given(i, 2), given(i, 1)]
    outputs = [written(f, 2), written(b, 2), written(f, 3)]
    with event.install_listener("numba:compile", _Note()):
        return compile_once(
            run, types.void(*inputs, types.UniTuple(f, 3), types.UniTuple(f, 2), i, b, *outputs)
        )


class _Note(event.Listener):
    """Says once that something is compiled; loading compiled code is no such event."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            _LOG.warning("compiling solve_pnp, once on this machine: some twenty seconds")
        self.said = True

    def on_end(self, event: Any) -> None:
        pass


def given(kind: Any, ndim: int) -> Any:
    """The type of an array that compiled code reads, which may be read-only."""
    return types.Array(kind, ndim, "C", readonly=True)


def written(kind: Any, ndim: int) -> Any:
    """The type of an array that compiled code fills."""
    return types.Array(kind, ndim, "C")


def compile_once(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """`function` in machine code, kept on disk where there is a place for it."""
    options = {"error_model": "numpy", "nogil": True}
    try:
        compiled = numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError) as error:  # no folder that can be written to, or a full disk
        _LOG.info("compiled code is not kept (%s)", error)
        compiled = numba.njit(signature, **options)(function)
    return cast(Callable[..., Any], compiled)
