"""One problem alone takes a shorter way through the code than a batch does, and arrives at the same place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geopose.geometry import pnp
from geopose.geometry._pipeline import Found
from geopose.geometry._small import Small, starts
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
def test_one_problem_is_one_of_a_batch(shape: str, n: int, outliers: int, weighted: bool) -> None:
    rng = np.random.default_rng(n + outliers)
    cov = covariances(rng, 8, n) if weighted else None
    points, px = scenes(rng, shape, n, 8, cov)
    px[:, :outliers] = rng.uniform(0, 1, (8, outliers, 2)) * CAMERA.size_wh
    batch = solve_pnp(points, px, CAMERA, cov_px=cov)
    for i in range(8):
        one = solve_pnp(points[i], px[i], CAMERA, cov_px=None if cov is None else cov[i])
        agree(one, batch, i)


def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean or not; what is unusual goes the long way, to the same answer."""
    taken: list[object] = []
    short = pnp.solve_one

    def spy(*args: object) -> object:
        taken.append(short(*args))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr(pnp, "solve_one", spy)
    rng = np.random.default_rng(1)
    points, px = (a[0] for a in scenes(rng, "box", 20, 1))
    bad = px.copy()
    bad[:8] = rng.uniform(0, 480, (8, 2))
    lost = px.copy()
    lost[3] = np.nan
    solve_pnp(points, px, CAMERA)
    solve_pnp(points, bad, CAMERA)
    assert [type(found) for found in taken] == [PnPResult, PnPResult]
    unusual = [
        (lost, CAMERA, PnPOptions(), type(None)),
        (px, replace(CAMERA, distortion=(-0.1, 0.01, 0, 0, 0)), PnPOptions(), type(None)),
        (px, CAMERA, PnPOptions(kernel="cauchy"), type(None)),
        (px, replace(CAMERA, focal_rel_std=0.02), PnPOptions(), Found),
    ]
    for pixels, camera, options, kind in unusual:
        one = solve_pnp(points, pixels, camera, options=options)
        assert type(taken[-1]) is kind
        agree(one, solve_pnp(points[None], pixels[None], camera, options=options), 0)
    assert len(taken) == 6


def test_mirrored_starts_are_those_of_the_mirrored_points() -> None:
    rng = np.random.default_rng(5)
    points = np.ones((4, 12))
    points[:3] = rng.uniform(-1, 1, (3, 12))
    xy = (points[:2] + [[0.5], [-0.3]]) / (points[2] + 8)
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    here = starts(Small(points, xy, np.full((2, 1), 800.0), None, 4.0))
    there = starts(Small(flip @ points, xy, np.full((2, 1), 800.0), None, 4.0))
    assert here is not None
    assert there is not None
    mine, theirs = (
        np.array(sorted((p.ravel().tolist() for p in poses), key=lambda p: p[0]))
        for poses in (here.mirrored(), [p @ flip for p in there.poses])
    )
    np.testing.assert_allclose(mine, theirs, atol=1e-9)
