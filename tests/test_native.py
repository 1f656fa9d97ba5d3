"""Machine code and array operations solve the same problems, to the same answers."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopose.geometry import _native, _pipeline
from geopose.geometry._native_starts import find_starts, mirrored_starts
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import random_rotation

CAMERA = Camera(800, 760, 320, 240, (640, 480))
SHAPES = {"box": (1.0, 1.0, 1.0), "plane": (1.0, 1.0, 0.0), "thin": (1.0, 1.0, 0.02)}


def scenes(
    rng: np.random.Generator, shape: str, n: int, count: int, cov: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    points = rng.uniform(-0.5, 0.5, (count, n, 3)) * SHAPES[shape] + [3.0, -2.0, 1.0]
    z = rng.uniform(3, 10, count)
    t = np.stack([*(rng.uniform(-0.25, 0.25, (2, count)) * z), z], -1)
    R = random_rotation((count,), rng)
    px = CAMERA.project(Pose(R, t - (R @ [3.0, -2.0, 1.0])).apply(points))
    noise = rng.standard_normal((*px.shape, 1))
    noise = noise if cov is None else np.linalg.cholesky(cov) @ noise
    return points, px + noise[..., 0]


def covariances(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    root = rng.standard_normal((count, n, 2, 2)) * 4 ** rng.uniform(-1, 1, (count, n, 1, 1))
    return root @ root.mT + 0.05 * np.eye(2)


@pytest.fixture
def by_arrays(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PnPResult]:
    """`solve_pnp` without machine code."""

    def solve(*args: Any, **options: Any) -> PnPResult:
        with monkeypatch.context() as patch:
            patch.setattr(_pipeline, "_solve_part", _pipeline.solve_arrays)
            return solve_pnp(*args, **options)

    return solve


def agree(one: PnPResult, batch: PnPResult, i: int) -> None:
    """To 1e-9, in distances from the camera and radians; covariances to 1e-5 of their size."""
    assert one.status == batch.status[i]
    assert one.reason == batch.reason[i]
    if one.status not in ("ok", "ambiguous"):
        return  # the best of poses that do not fit hangs on the last bit
    np.testing.assert_array_equal(one.inliers, batch.inliers[i])
    np.testing.assert_allclose(one.pose.R, batch.pose.R[i], atol=1e-9)
    np.testing.assert_allclose(one.pose.t, batch.pose.t[i], atol=1e-9 * np.linalg.norm(one.pose.t))
    size = np.sqrt(np.diag(one.covariance))
    off = (one.covariance - batch.covariance[i]) / np.outer(size, size)
    np.testing.assert_allclose(off, 0, atol=1e-5)
    assert one.rms_px == pytest.approx(batch.rms_px[i], rel=1e-9)
    rivals = [a for a in batch.alternatives if a.weight[i] > 1e-4]
    assert len(one.alternatives) == len(rivals)
    for mine, theirs in zip(one.alternatives, rivals, strict=True):
        np.testing.assert_allclose(mine.weight, theirs.weight[i], rtol=1e-4)
        np.testing.assert_allclose(mine.pose.R, theirs.pose.R[i], atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "outliers"), [(6, 0), (10, 0), (50, 0), (12, 4), (20, 10), (60, 36), (16, 16)])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_one_problem_is_one_of_a_batch_of_arrays(
    shape: str, n: int, outliers: int, weighted: bool, by_arrays: Callable[..., PnPResult]
) -> None:
    rng = np.random.default_rng(n + outliers)
    cov = covariances(rng, 8, n) if weighted else None
    points, px = scenes(rng, shape, n, 8, cov)
    px[:, :outliers] = rng.uniform(0, 1, (8, outliers, 2)) * CAMERA.size_wh
    batch, arrays = (solve(points, px, CAMERA, cov_px=cov) for solve in (solve_pnp, by_arrays))
    for i in range(8):
        one = solve_pnp(points[i], px[i], CAMERA, cov_px=None if cov is None else cov[i])
        agree(one, batch, i)
        agree(one, arrays, i)


def test_a_batch_of_everything(by_arrays: Callable[..., PnPResult]) -> None:
    """Clean, among outliers, nonsense, with missing points, too few, collinear, coplanar: each as if alone."""
    rng = np.random.default_rng(3)
    points, px = scenes(rng, "box", 20, 9)
    px[1, :8], px[2] = rng.uniform(0, 480, (8, 2)), rng.uniform(0, 480, (20, 2))
    px[3, 4:7], px[4, :18], points[5, :16] = np.nan, np.nan, np.inf
    points[6] = points[6, :1] + np.linspace(0, 1, 20)[:, None]
    points[7:, :, 2] = 1.0
    px[7:] = CAMERA.project(Pose(random_rotation((), rng), np.array([0.0, 0.0, 9.0])).apply(points[7:]))
    cameras = Camera(*(np.linspace(v, 1.01 * v, 9) for v in (800.0, 760.0, 320.0, 240.0)), (640, 480))
    batch, arrays = (solve(points, px, cameras) for solve in (solve_pnp, by_arrays))
    assert set(batch.status) >= {"ok", "no_consensus", "too_few_points", "degenerate"}
    for i in range(9):
        one = solve_pnp(points[i], px[i], cameras[i])
        agree(one, batch, i)
        agree(one, arrays, i)


def test_what_goes_which_way(monkeypatch: pytest.MonkeyPatch, by_arrays: Callable[..., PnPResult]) -> None:
    taken: list[int] = []
    slow = _pipeline.solve_arrays

    def spy(obj: np.ndarray, *args: Any) -> Any:
        taken.append(len(obj))
        return slow(obj, *args)

    rng = np.random.default_rng(1)
    points, px = scenes(rng, "box", 20, 4)
    bad = px.copy()
    bad[:, :8] = rng.uniform(0, 480, (4, 8, 2))
    lost = px.copy()
    lost[:, 3] = np.nan
    few = px.copy()
    few[1:3, 3:] = np.nan
    bent = replace(CAMERA, distortion=(-0.1, 0.01, 0, 0, 0))
    cases = [
        (px, CAMERA, PnPOptions(), []),
        (bad, CAMERA, PnPOptions(), []),
        (lost, CAMERA, PnPOptions(), []),
        (px, replace(CAMERA, focal_rel_std=0.02), PnPOptions(), []),
        (few, CAMERA, PnPOptions(), [2]),
        (px, bent, PnPOptions(), [4]),
        (px, CAMERA, PnPOptions(kernel="cauchy"), [4]),
    ]
    for pixels, camera, options, expected in cases:
        arrays = by_arrays(points, pixels, camera, options=options)
        taken.clear()
        with monkeypatch.context() as patch:
            patch.setattr(_pipeline, "solve_arrays", spy)
            batch = solve_pnp(points, pixels, camera, options=options)
        assert taken == expected
        for i in range(4):
            agree(solve_pnp(points[i], pixels[i], camera, options=options), arrays, i)
            assert batch.status[i] == arrays.status[i]


def test_outdated_machine_code_is_not_used() -> None:
    """Every file of ours that compiled code is made of counts in what numba keeps it by."""
    folder = Path(_native.__file__).parent
    compiled = [name for name in _native.SOURCES if name.startswith("_native")]
    for name in compiled:
        tree = ast.parse((folder / f"{name}.py").read_text())
        used = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {m.rpartition(".")[2] for m in used if m is not None and m.startswith("geopose.geometry")}
        assert ours - {"camera", "_pnp_options"} <= set(_native.SOURCES), name
    assert set(compiled) == {path.stem for path in folder.glob("_native*.py")}


@pytest.mark.parametrize(
    "error", [RuntimeError("no locator available"), OSError(28, "No space left on device")]
)
def test_compiled_code_need_not_be_kept(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise error

    def twice(x: float) -> float:
        return 2 * x

    monkeypatch.setattr("numba.core.caching.FunctionCache.save_overload", fail)
    assert _native.compile_once(twice, "float64(float64)")(3.0) == 6.0


def test_mirrored_starts_are_those_of_the_mirrored_points() -> None:
    rng = np.random.default_rng(5)
    points = np.ones((8, 12))
    points[:3], points[6] = rng.uniform(-1, 1, (3, 12)), 0.0
    points[3:5] = (points[:2] + [[0.5], [-0.3]]) / (points[2] + 8)
    flipped = points * np.array([-1.0] * 3 + [1.0] * 5)[:, None]
    starts, mine, theirs = np.zeros((3, 3, 12))
    assert find_starts(points, starts) == 2
    assert find_starts(flipped, theirs) == 2
    assert mirrored_starts(points, starts, mine)
    theirs = theirs[:2].reshape(2, 3, 4) * [-1, -1, -1, 1]
    mine = mine[:2].reshape(2, 3, 4)
    order = [np.argsort(a[:, 0, 0]) for a in (mine, theirs)]
    np.testing.assert_allclose(mine[order[0]], theirs[order[1]], atol=1e-9)
