"""`solve_pnp` against other solvers on the same problems: exactness, honesty, outliers, photographs, speed.

OpenCV is always there; PoseLib and pycolmap compete where they are installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from tqdm import tqdm

from geopose.bench.common import write_json
from geopose.bench.pnp_peers import all_of, exact_peers, from_truth, robust_peers
from geopose.bench.pnp_photographs import photographs
from geopose.bench.pnp_report import tables, write_figure
from geopose.bench.pnp_scenes import (
    CAMERA,
    SHAPES,
    Floats,
    Scenes,
    bounds,
    is_right,
    random_covariances,
    random_pixels,
    scenes,
    score,
)
from geopose.bench.pnp_speed import speed
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection, levenberg_marquardt
from geopose.geometry.rotation import geodesic_angle

OURS, FLOOR = "geopose", "maximum likelihood"
COUNTS, NOISES, QUICK_NOISES = (4, 5, 6, 10, 20, 50), (0.1, 0.5, 1.0, 2.0, 5.0), (0.1, 1.0, 5.0)
LEVELS = (0.5, 0.9, 0.99)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Options:
    """What is measured.

    parts: "accuracy", "covariances", "coverage", "outliers", "swaps", "refusal", "photographs", "speed"; all
    where none is named; full: every noise and ten times as many problems; trials: problems per cell, 100, or 1,000 when
    full, unless given; data: folder of the photographs of a chessboard (default: chessboard in the folder that
    GEOPOSE_DATA names); seed: of the problems.
    """

    parts: tuple[str, ...] = ()
    full: bool = False
    trials: int | None = None
    data: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
        if self.trials is not None and self.trials < 2:
            raise ValueError(f"trials: expected at least 2, got {self.trials}")

    @property
    def count(self) -> int:
        """Problems per cell."""
        return self.trials if self.trials is not None else 1000 if self.full else 100

    def folder(self) -> Path | None:
        """The folder of the photographs, None where there is none."""
        root = os.environ.get("GEOPOSE_DATA")
        folder = Path(self.data) if self.data else Path(root) / "chessboard" if root else None
        return folder if folder is not None and folder.is_dir() else None


def run(options: Options | None = None, out: Path | None = None) -> dict[str, Any]:
    """The results by part, and "table": all of them as Markdown.

    Written to `out` as JSON, with the table as .md and a figure as .png beside it.
    """
    options = options or Options()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        names = options.parts or tuple(PARTS)
        result: dict[str, Any] = {"options": asdict(options), "trials": options.count}
        parts = tqdm([name for name in PARTS if name in names], disable=None, unit="part")  # in a terminal
        result |= {name: PARTS[name](options) for name in parts}
    finally:
        cv2.setNumThreads(before)
    result["table"] = tables(result)
    if out is not None:
        out = Path(out)
        result["files"] = [str(out), *map(str, write_figure(result, out))]
        write_json(out, result)
    return result


def ours(problem: Scenes, noise: float = 1.0, **more: Any) -> PnPResult:
    """What `solve_pnp` says when it knows the noise."""
    return solve_pnp(problem.points, problem.px, CAMERA, options=PnPOptions(noise_px=noise), **more)


def accuracy(options: Options) -> list[dict[str, Any]]:
    """By shape, N and noise: RMSE over the bound and gross failures of every contestant; `over_floor`: rotation RMSE
    over that of maximum likelihood on the same problems, those in which neither fails.

    "maximum likelihood" is the likeliest of all contestants' poses and of those reached from the truth. A gross
    failure is avoidable if that one is likelier. `either_percent` is how often one of our poses, the best and its
    alternatives, is no gross failure.
    """
    rows = []
    for shape in SHAPES:
        peers = exact_peers(shape)
        for n in COUNTS:
            for noise in NOISES if options.full else QUICK_NOISES:
                rng = np.random.default_rng([options.seed, SHAPES.index(shape), n, int(10 * noise)])
                problem = scenes(rng, shape, n, options.count, noise)
                bound, result = bounds(problem), ours(problem, noise)
                found = {OURS: result.pose, **{name: all_of(peer, problem) for name, peer in peers.items()}}
                row: dict[str, Any] = {"shape": shape, "n": n, "noise_px": noise}
                floor = _likeliest(problem, [from_truth(problem), *found.values()])
                best, fair = _cost(problem, floor), is_right(floor, problem.truth, bound)
                for name, pose in {FLOOR: floor, **found}.items():
                    right = is_right(pose, problem.truth, bound)
                    worse = ~(_cost(problem, pose) <= best + 1e-3)
                    row[name] = score(pose, problem.truth, bound)
                    row[name]["avoidable_percent"] = 100.0 * float((~right & worse).mean())
                    row[name]["over_floor"] = _over(pose, floor, problem.truth, right & fair)
                either = is_right(result.pose, problem.truth, bound)
                for rival in result.alternatives:
                    either = either | is_right(rival.pose, problem.truth, bound)
                row["either_percent"] = 100.0 * float(either.mean())
                rows.append(row)
    return rows


def _over(pose: Pose, floor: Pose, truth: Pose, use: NDArray[np.bool_]) -> float:
    """Rotation RMSE over that of another solver on the same problems."""
    squares = [(geodesic_angle(p.R, truth.R)[use] ** 2).sum() for p in (pose, floor)]
    return float(np.sqrt(squares[0] / squares[1])) if use.any() else np.nan


def _likeliest(problem: Scenes, poses: list[Pose]) -> Pose:
    """Of several poses of each problem the one of least cost."""
    costs = np.array([_cost(problem, pose) for pose in poses])
    k, rows = np.nan_to_num(costs, nan=np.inf).argmin(0), np.arange(len(problem))
    R, t = (np.array([getattr(pose, name) for pose in poses])[k, rows] for name in ("R", "t"))
    return Pose(R, t)


def _cost(problem: Scenes, pose: Pose) -> Floats:
    """(B,) sum of squared distances in standard deviations, NaN without a pose."""
    with np.errstate(all="ignore"):
        off = CAMERA.project(pose.apply(problem.points)) - problem.px
        return np.asarray((off * np.linalg.solve(problem.cov, off[..., None])[..., 0]).sum((-1, -2)))


def covariances(options: Options) -> list[dict[str, Any]]:
    """By shape, 20 points whose covariances differ: RMSE over the bound of those who use them and those who do not."""
    rows = []
    for number, shape in enumerate(SHAPES):
        rng = np.random.default_rng([options.seed, 101, number])
        problem = scenes(rng, shape, 20, options.count, cov=random_covariances(rng, options.count, 20))
        bound = bounds(problem)
        plain = float(np.sqrt(np.trace(problem.cov, axis1=-2, axis2=-1).mean() / 2))
        told = ours(problem, cov_px=problem.cov).pose
        found = {FLOOR: _likeliest(problem, [weighted_from_truth(problem), told]), OURS: told}
        found |= {"geopose, not told": ours(problem, plain).pose}
        found |= {name: all_of(peer, problem) for name, peer in exact_peers(shape).items()}
        row: dict[str, Any] = {"shape": shape, "n": 20}
        rows.append(row | {name: score(pose, problem.truth, bound) for name, pose in found.items()})
    return rows


def weighted_from_truth(problem: Scenes) -> Pose:
    """The optimum nearest to the true pose when each point counts by its covariance."""
    white = 800.0 * np.linalg.inv(np.linalg.cholesky(problem.cov))
    entries = np.stack([white[..., 0, 0], white[..., 1, 0], white[..., 1, 1]], -2)
    terms = Reprojection(problem.points.mT, CAMERA.normalise(problem.px).mT, entries)
    return levenberg_marquardt(None, terms.linearise, problem.truth).pose


def coverage(options: Options) -> list[dict[str, Any]]:
    """How often the truth lies inside the ellipsoids of 50, 90 and 99 %, over ten times as many problems."""
    rows, count = [], 10 * options.count
    for kind, n, outliers in (("clean", 10, 0), ("clean", 20, 0), ("weighted", 16, 0), ("filtered", 20, 6)):
        rng = np.random.default_rng([options.seed, 202, n, outliers, len(kind)])
        cov = random_covariances(rng, count, n) if kind == "weighted" else None
        problem = scenes(rng, "box", n, count, cov=cov)
        problem.px[:, :outliers] = random_pixels(rng, count, outliers)
        result = ours(problem, cov_px=cov)
        good = result.status == "ok"
        xi = (result.pose @ problem.truth.inverse()).log()[good]
        distance = (xi * np.linalg.solve(result.covariance[good], xi[..., None])[..., 0]).sum(-1)
        row = {str(level): 100.0 * float((distance < chi2.ppf(level, 6)).mean()) for level in LEVELS}
        rows.append(
            {"kind": kind, "n": n, "outliers": outliers, "ok_percent": 100.0 * float(good.mean()), **row}
        )
    return rows


def outliers(options: Options) -> list[dict[str, Any]]:
    """By N and share of outliers, uniform over the picture: success, and RMSE over the bound of the inliers alone.

    Our answers count only with status `ok`; the peers have no such thing.
    """
    rows = []
    for n in (20, 50, 100):
        for share in SHARES:
            k = round(share * n)
            rng = np.random.default_rng([options.seed, 303, n, k])
            problem = scenes(rng, "box", n, options.count)
            problem.px[:, :k] = random_pixels(rng, options.count, k)
            bound, result = bounds(problem, k), ours(problem)
            row: dict[str, Any] = {"n": n, "share": share}
            row[OURS] = score(result.pose, problem.truth, bound, result.status == "ok")
            for name, peer in robust_peers().items():
                row[name] = score(all_of(peer, problem), problem.truth, bound)
            rows.append(row)
    return rows


def swaps(options: Options) -> list[dict[str, Any]]:
    """Eight mirrored pairs of points, some of them taken for each other: success in percent."""
    rows = []
    pairs = np.stack([np.arange(8), np.arange(8, 16)], -1)
    for exchanged in (0, 1, 2, 4, 6):
        rng = np.random.default_rng([options.seed, 404, exchanged])
        clean = scenes(rng, "box", 16, options.count)
        left = np.abs(clean.points[:, :8]) * [1, 0, 0] + clean.points[:, :8] * [0, 1, 1]
        points = np.concatenate([left, left * [-1, 1, 1]], 1)
        px = CAMERA.project(clean.truth.apply(points)) + rng.standard_normal(clean.px.shape)
        bound = bounds(Scenes(points, px, clean.truth, clean.cov))
        for i, j in pairs[:exchanged]:
            px[:, [i, j]] = px[:, [j, i]]
        problem = Scenes(points, px, clean.truth, clean.cov)
        row: dict[str, Any] = {"pairs": exchanged}
        for name, told in ((OURS, pairs), ("geopose, not told", None)):
            result = ours(problem, swaps=told)
            row[name] = score(result.pose, problem.truth, bound, result.status == "ok")
        row |= {name: score(all_of(p, problem), problem.truth, bound) for name, p in robust_peers().items()}
        rows.append(row)
    return rows


def refusal(options: Options) -> list[dict[str, Any]]:
    """By N: how many answers to random pixels are accepted, and how many to good data refused, in percent.

    Ours over five times as many problems.
    """
    rows = []
    for n in (12, 16, 20):
        rng = np.random.default_rng([options.seed, 505, n])
        good = scenes(rng, "box", n, 5 * options.count)
        noise = Scenes(good.points, random_pixels(rng, len(good), n), good.truth, good.cov)
        row: dict[str, Any] = {"n": n}
        row[OURS] = _shares([np.isin(ours(p).status, ("ok", "ambiguous")) for p in (noise, good)])
        few = [Scenes(p.points[::5], p.px[::5], p.truth[::5], p.cov[::5]) for p in (noise, good)]
        for name, peer in {**exact_peers(), **robust_peers()}.items():
            row[name] = _shares([np.isfinite(all_of(peer, p).t).all(-1) for p in few])
        rows.append(row)
    return rows


def _shares(accepted: list[Any]) -> dict[str, float]:
    noise, good = (100.0 * float(a.mean()) for a in accepted)
    return {"accepted_percent": noise, "refused_percent": 100.0 - good}


def _photographs(options: Options) -> list[dict[str, Any]] | None:
    folder = options.folder()
    return None if folder is None else photographs(folder)


PARTS: dict[str, Callable[[Options], Any]] = {
    "accuracy": accuracy,
    "covariances": covariances,
    "coverage": coverage,
    "outliers": outliers,
    "swaps": swaps,
    "refusal": refusal,
    "photographs": _photographs,
    "speed": lambda options: speed(options.count, options.full, options.seed),
}
