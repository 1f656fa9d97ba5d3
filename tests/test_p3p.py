"""p3p: every solution, exact, in the order of nothing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from geopose.geometry.p3p import p3p
from geopose.geometry.rotation import random_rotation


def _scene(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    R = random_rotation((count,), rng)
    t = np.stack([rng.uniform(-1, 1, count), rng.uniform(-1, 1, count), rng.uniform(4, 12, count)], -1)
    points = rng.standard_normal((count, 3, 3))
    cam = points @ R.mT + t[:, None]
    return points, cam / cam[..., 2:], R, t


def test_truth_is_among_the_solutions(rng: np.random.Generator) -> None:
    points, rays, R, t = _scene(rng, 5000)
    R_all, t_all = p3p(points, rays)
    assert R_all.shape == (5000, 4, 3, 3)
    error = np.abs(R_all - R[:, None]).max((-1, -2)) + np.abs(t_all - t[:, None]).max(-1)
    assert np.nanmin(error, -1).max() < 1e-6


def test_solutions_are_rotations_and_reproject(rng: np.random.Generator) -> None:
    points, rays, _, _ = _scene(rng, 2000)
    R, t = p3p(points, rays)
    found = np.isfinite(t[..., 0])
    assert found.sum(-1).min() >= 1
    cam = points[:, None] @ R.mT + t[..., None, :]
    assert (cam[found][..., 2] > 0).all()
    assert np.abs(cam / cam[..., 2:] - rays[:, None])[found].max() < 1e-8
    assert np.abs(R @ R.mT - np.eye(3))[found].max() < 1e-12
    np.testing.assert_allclose(np.linalg.det(R[found]), 1, atol=1e-12)


def test_opencv_finds_no_solution_that_we_miss(rng: np.random.Generator) -> None:
    points, rays, _, _ = _scene(rng, 200)
    R, t = p3p(points, rays)
    found = missed = 0
    for i in range(200):
        _, rvecs, tvecs = cv2.solveP3P(
            points[i], rays[i, :, :2].copy(), np.eye(3), None, flags=cv2.SOLVEPNP_AP3P
        )
        for rvec, tvec in zip(rvecs, tvecs, strict=True):
            theirs = cv2.Rodrigues(rvec)[0]
            cam = points[i] @ theirs.T + tvec.ravel()
            if np.abs(cam / cam[:, 2:] - rays[i]).max() > 1e-7 or (cam[:, 2] < 0).any():
                continue  # OpenCV also reports poses that do not reproject
            found += 1
            missed += not np.nanmin(np.abs(R[i] - theirs).max((-1, -2))) < 1e-4
    assert found > 300
    assert missed == 0


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
def test_batch_shapes_and_torch_agree(rng: np.random.Generator, batch: tuple[int, ...]) -> None:
    points, rays, _, _ = _scene(rng, 6)
    count = int(np.prod(batch, dtype=int))
    points, rays = points[:count].reshape(*batch, 3, 3), rays[:count].reshape(*batch, 3, 3)
    R, t = p3p(points, rays)
    R_torch, t_torch = p3p(torch.from_numpy(points), torch.from_numpy(rays))
    assert R.shape == (*batch, 4, 3, 3)
    np.testing.assert_allclose(R, R_torch.numpy(), atol=1e-9)
    np.testing.assert_allclose(t, t_torch.numpy(), atol=1e-8)


def test_degenerate_triangles_give_nan_and_leave_neighbours_alone(rng: np.random.Generator) -> None:
    points, rays, _, _ = _scene(rng, 4)
    alone = p3p(points[3:], rays[3:])
    points[0] = points[0, 0] + np.arange(3)[:, None] * points[0, 1]  # on one line
    points[1, 1] = points[1, 0]
    points[2, 0] = np.nan
    R, t = p3p(points, rays)
    assert np.isnan(R[1:3]).all()
    assert not np.isfinite(R[0]).any() or np.isnan(R[0]).any()
    np.testing.assert_array_equal(R[3], alone[0][0])
    np.testing.assert_array_equal(t[3], alone[1][0])
