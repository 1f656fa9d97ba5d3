"""`PnPOptions.compiled`: the same answers, whether the step is compiled or run as it is written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from geopose.geometry import _compiled
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import random_rotation

CAMERA = Camera(800, 760, 320, 240, (640, 480))
OPTIONS = PnPOptions(compiled=True)


def scenes(
    rng: np.random.Generator, n: int, count: int, flat: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = rng.uniform(-0.5, 0.5, (count, n, 3)) * [1.0, 1.0, 0.0 if flat else 1.0]
    t = np.stack([*rng.uniform(-1, 1, (2, count)), rng.uniform(3, 10, count)], -1)
    root = rng.standard_normal((count, n, 2, 2)) + 0.5 * np.eye(2)
    cov = root @ root.mT + 0.05 * np.eye(2)
    px = CAMERA.project(Pose(random_rotation((count,), rng), t).apply(points))
    px += (np.linalg.cholesky(cov) @ rng.standard_normal((count, n, 2, 1)))[..., 0]
    return points, px, cov


def agree(one: PnPResult, other: PnPResult) -> None:
    np.testing.assert_array_equal(one.status, other.status)
    np.testing.assert_array_equal(one.inliers, other.inliers)
    np.testing.assert_allclose(one.pose.R, other.pose.R, atol=1e-9)
    np.testing.assert_allclose(one.pose.t, other.pose.t, rtol=1e-9, atol=1e-9)
    size = np.sqrt(one.covariance[..., range(6), range(6)])
    off = (one.covariance - other.covariance) / size[..., None] / size[..., None, :]
    np.testing.assert_allclose(np.nan_to_num(off), 0, atol=1e-6)
    assert len(one.alternatives) == len(other.alternatives)
    for mine, theirs in zip(one.alternatives, other.alternatives, strict=True):
        np.testing.assert_allclose(mine.weight, theirs.weight, atol=1e-6)


@pytest.mark.parametrize(("n", "flat"), [(5, False), (20, False), (8, True)])
def test_the_formulas_are_those_of_the_other_way(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, n: int, flat: bool
) -> None:
    monkeypatch.setattr(_compiled, "_compiled_step", lambda: _compiled._step)
    points, px, cov = scenes(rng, n, 40, flat)
    px[3, 0] = np.nan  # a missing point, and a problem without a pose
    px[4] = np.nan
    px[5:8, :2] = rng.uniform(0, 480, (3, 2, 2))
    agree(
        solve_pnp(points, px, CAMERA, cov_px=cov), solve_pnp(points, px, CAMERA, cov_px=cov, options=OPTIONS)
    )


@pytest.mark.skipif(not _compiled.has_compiler(), reason="needs a C++ compiler")
def test_compiled_for_any_number_of_points_and_problems(rng: np.random.Generator) -> None:
    for n, count in ((20, 64), (9, 5), (12, 1), (50, 33)):
        points, px, cov = scenes(rng, n, count)
        plain = solve_pnp(points, px, CAMERA, cov_px=cov)
        agree(plain, solve_pnp(points, px, CAMERA, cov_px=cov, options=OPTIONS))


def test_without_a_compiler_the_option_says_so(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(_compiled, "_compiled_step", _compiled._compiled_step.__wrapped__)
    points, px, _ = scenes(rng, 10, 2)
    with pytest.raises(RuntimeError, match=r"PnPOptions.compiled: expected a C\+\+ compiler"):
        solve_pnp(points, px, CAMERA, options=OPTIONS)
