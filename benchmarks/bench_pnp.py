"""Accuracy, coverage, refusals and speed of solve_pnp, OpenCV beside it on the same problems in the same run.

    python benchmarks/bench_pnp.py --json pnp.json            # everything; a few minutes on one core
    python benchmarks/bench_pnp.py --parts speed --trials 200

RMSE is of the rotation, over the Cramer-Rao bound of the same problems, gross failures (beyond ten bounds and ten
degrees) left out and counted. "avoidable" are those where a start from the truth reaches a likelier pose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from common import spread, write_json
from scipy.stats import chi2

from geopose.geometry.camera import Camera
from geopose.geometry.metrics import cramer_rao
from geopose.geometry.pnp import PnPOptions, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle, random_rotation

CAMERA = Camera(800, 800, 320, 240, (640, 480))
CV_K = CAMERA.K
SHAPES = {"box": (1.0, 1.0, 1.0), "planar": (1.0, 1.0, 0.0), "quasi-planar": (1.0, 1.0, 0.02)}


def scenes(
    rng: np.random.Generator, shape: str, n: int, count: int, noise: float
) -> tuple[np.ndarray, np.ndarray, Pose]:
    """Points, noisy pixels and true poses, three to ten object sizes away."""
    points = rng.uniform(-0.5, 0.5, (count, n, 3)) * SHAPES[shape]
    z = rng.uniform(3, 10, count)
    pose = Pose(
        random_rotation((count,), rng), np.stack([*(rng.uniform(-0.25, 0.25, (2, count)) * z), z], -1)
    )
    px = CAMERA.project(pose.apply(points))
    return points, px + noise * rng.standard_normal(px.shape), pose


def opencv(flag: int) -> Callable[[np.ndarray, np.ndarray], Pose]:
    """An OpenCV solver followed by its Levenberg-Marquardt."""

    def solve(points: np.ndarray, px: np.ndarray) -> Pose:
        try:
            _, rvec, tvec = cv2.solvePnP(points, px, CV_K, None, flags=flag)
            rvec, tvec = cv2.solvePnPRefineLM(points, px, CV_K, None, rvec, tvec)
        except cv2.error:
            return Pose(np.full((3, 3), np.nan), np.full(3, np.nan))
        return Pose(cv2.Rodrigues(rvec)[0], tvec.ravel())

    return solve


PEERS = {"SQPnP+LM": opencv(cv2.SOLVEPNP_SQPNP), "EPnP+LM": opencv(cv2.SOLVEPNP_EPNP)}


def cost(points: np.ndarray, px: np.ndarray, pose: Pose) -> np.ndarray:
    return ((CAMERA.project(pose.apply(points)) - px) ** 2).sum((-1, -2))


def from_truth(points: np.ndarray, px: np.ndarray, truth: Pose) -> Pose:
    """The optimum that OpenCV's refinement reaches from the true pose."""
    poses = []
    for i in range(len(points)):
        rvec, t = cv2.Rodrigues(truth.R[i])[0], truth.t[i].reshape(3, 1).copy()
        stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 50, 1e-12)
        rvec, t = cv2.solvePnPRefineLM(points[i], px[i], CV_K, None, rvec, t, stop)
        poses.append(Pose(cv2.Rodrigues(rvec)[0], t.ravel()))
    return Pose.stack(poses)


def accuracy(trials: int) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for n in (4, 5, 6, 10, 20, 50):
            for noise in (0.1, 1.0, 5.0):
                rng = np.random.default_rng(n)
                points, px, truth = scenes(rng, shape, n, trials, noise)
                bound = noise**2 * np.trace(cramer_rao(points, truth, CAMERA)[:, 3:, 3:], axis1=-2, axis2=-1)
                limit = np.maximum(10 * np.sqrt(bound), np.radians(10))
                oracle = from_truth(points, px, truth)
                ours = solve_pnp(points, px, CAMERA, options=PnPOptions(noise_px=noise))
                either = geodesic_angle(ours.pose.R, truth.R)
                for rival in ours.alternatives:
                    either = np.fmin(either, geodesic_angle(rival.pose.R, truth.R))
                found = {"oracle": oracle, "geopose": ours.pose}
                for name, solver in PEERS.items():
                    found[name] = Pose.stack([solver(p, q) for p, q in zip(points, px, strict=True)])
                row: dict[str, Any] = {"shape": shape, "n": n, "noise_px": noise}
                for name, pose in found.items():
                    error = geodesic_angle(pose.R, truth.R)
                    gross = ~(error < limit)
                    better = cost(points, px, oracle) < cost(points, px, pose) - 1e-3 * noise**2
                    row[name] = {
                        "rmse_over_bound": float(np.sqrt((error[~gross] ** 2).sum() / bound[~gross].sum())),
                        "gross_percent": 100 * float(gross.mean()),
                        "avoidable_percent": 100 * float((gross & (better | np.isnan(error))).mean()),
                    }
                row["neither_pose_percent"] = 100 * float((~(either < limit)).mean())
                rows.append(row)
                cells = (
                    f"{k} {row[k]['rmse_over_bound']:.2f}"
                    f" {row[k]['gross_percent']:.1f}/{row[k]['avoidable_percent']:.1f}"
                    for k in found
                )
                print(f"{shape:13s} N={n:2d} {noise:3g} px  " + "  ".join(cells), flush=True)
    return rows


def coverage(trials: int) -> dict[str, Any]:
    rng, result = np.random.default_rng(1), {}
    for name, outliers in (("clean", 0), ("filtered", 6)):
        points, px, truth = scenes(rng, "box", 16, trials, 1.0)
        px[:, :outliers] = rng.uniform(0, 1, (trials, outliers, 2)) * CAMERA.size_wh
        found = solve_pnp(points, px, CAMERA)
        xi = (found.pose @ truth.inverse()).log()
        distance = np.einsum("bi,bij,bj->b", xi, np.linalg.inv(found.covariance), xi)
        result[name] = {str(q): float((distance < chi2.ppf(q, 6)).mean()) for q in (0.5, 0.9, 0.99)}
        print("coverage", name, result[name], flush=True)
    return result


def robust(trials: int) -> dict[str, Any]:
    rng, result = np.random.default_rng(2), {}
    for n in (12, 16, 20):
        points, px, _ = scenes(rng, "box", n, trials, 1.0)
        noise = solve_pnp(points, rng.uniform(0, 1, px.shape) * CAMERA.size_wh, CAMERA)
        result[f"noise, N={n}"] = {"accepted_percent": 100 * float((noise.status != "no_consensus").mean())}
        good = solve_pnp(points, px, CAMERA)
        result[f"good, N={n}"] = {"refused_percent": 100 * float((good.status != "ok").mean())}
    for n, share in ((20, 0.3), (20, 0.5), (20, 0.7), (100, 0.5), (100, 0.7)):
        points, px, truth = scenes(rng, "box", n, trials, 1.0)
        k = round(share * n)
        px[:, :k] = rng.uniform(0, 1, (trials, k, 2)) * CAMERA.size_wh
        found = solve_pnp(points, px, CAMERA)
        bound = np.trace(cramer_rao(points[:, k:], truth, CAMERA)[:, 3:, 3:], axis1=-2, axis2=-1)
        error = geodesic_angle(found.pose.R, truth.R)
        right = error < np.maximum(10 * np.sqrt(bound), np.radians(10))
        result[f"outliers {share:.0%}, N={n}"] = {
            "success_percent": 100 * float((right & (found.status == "ok")).mean()),
            "rmse_over_bound": float(np.sqrt((error[right] ** 2).sum() / bound[right].sum())),
        }
    for name, row in result.items():
        print(name, row, flush=True)
    return result


def speed(trials: int) -> dict[str, Any]:
    """Milliseconds per call; all contestants take turns on each problem."""
    rng, result = np.random.default_rng(3), {}
    single: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
        "geopose": lambda p, q: solve_pnp(p, q, CAMERA),
        **PEERS,
    }
    usac: Callable[[np.ndarray, np.ndarray], Any] = lambda p, q: cv2.solvePnPRansac(  # noqa: E731
        p, q, CV_K, None, reprojectionError=3.0, flags=cv2.USAC_MAGSAC
    )
    for n, share in ((10, 0), (16, 0), (32, 0), (50, 0), (20, 0.5), (100, 0.5)):
        points, px, _ = scenes(rng, "box", n, trials, 1.0)
        px[:, : int(share * n)] = rng.uniform(0, 480, (trials, int(share * n), 2))
        contest = single if share == 0 else {"geopose": single["geopose"], "USAC_MAGSAC": usac}
        times: dict[str, list[float]] = {name: [] for name in contest}
        for p, q in zip(points, px, strict=True):
            for name, solver in contest.items():
                start = time.perf_counter()
                solver(p, q)
                times[name].append(1e3 * (time.perf_counter() - start))
        result[f"N={n}, {share:.0%} outliers"] = {name: spread(t[5:]) for name, t in times.items()}
        start = time.perf_counter()
        solve_pnp(points, px, CAMERA)
        batch = 1e3 * (time.perf_counter() - start) / trials
        result[f"N={n}, {share:.0%} outliers"]["geopose, batch"] = {"median": batch}
        medians = {k: round(v["median"], 3) for k, v in result[f"N={n}, {share:.0%} outliers"].items()}
        print(f"N={n}, {share:.0%} outliers, ms:", medians, flush=True)
    return result


def main() -> None:
    parts = {"accuracy": accuracy, "coverage": coverage, "robust": robust, "speed": speed}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--trials", type=int, default=500, help="problems per cell")
    parser.add_argument("--json", help="write the results here")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    write_json(args.json, {name: parts[name](args.trials) for name in args.parts})


if __name__ == "__main__":
    main()
