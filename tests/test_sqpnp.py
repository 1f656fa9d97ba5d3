"""sqpnp: exact on exact data of every kind, the least of its error on noisy data."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from geopose.geometry.rotation import geodesic_angle, random_rotation
from geopose.geometry.sqpnp import sqpnp

SHAPES = {"box": (1.0, 1.0, 1.0), "plane": (1.0, 1.0, 0.0), "thin": (1.0, 1.0, 1e-3)}


def scene(
    rng: np.random.Generator, shape: str, n: int, count: int, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    points = rng.uniform(-0.5, 0.5, (count, n, 3)) * SHAPES[shape] + [0.3, -0.2, 0.1]
    R = random_rotation((count,), rng)
    t = np.stack([*rng.uniform(-0.5, 0.5, (2, count)), rng.uniform(3, 6, count)], -1)
    cam = points @ R.mT + t[:, None]
    return points, cam[..., :2] / cam[..., 2:] + noise * rng.standard_normal((count, n, 2)), R, t


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [5, 6, 20])
def test_exact_data_gives_the_exact_pose(rng: np.random.Generator, shape: str, n: int) -> None:
    points, xy, R, t = scene(rng, shape, n, 100)
    pose = sqpnp(points, xy)
    error = geodesic_angle(pose.R, R)
    assert (error < 1e-5).mean() >= 0.99
    assert np.median(error) < 1e-9
    assert np.abs(pose.t - t)[error < 1e-5].max() < 1e-4


def test_opencv_reaches_no_smaller_error(rng: np.random.Generator) -> None:
    points, xy, _, _ = scene(rng, "box", 8, 60, noise=2e-3)
    ours, worse = sqpnp(points, xy), 0
    for i in range(60):
        _, rvec, tvec = cv2.solvePnP(points[i], xy[i], np.eye(3), None, flags=cv2.SOLVEPNP_SQPNP)
        errors = []
        for R, t in ((ours.R[i], ours.t[i]), (cv2.Rodrigues(rvec)[0], tvec.ravel())):
            cam = points[i] @ R.T + t
            errors.append(((cam[:, :2] - xy[i] * cam[:, 2:]) ** 2).sum())
        worse += errors[0] > errors[1] * (1 + 1e-6)
    assert worse <= 1


def test_weights_leave_points_out_and_torch_agrees(rng: np.random.Generator) -> None:
    points, xy, R, _ = scene(rng, "box", 9, 6)
    xy[:, :2] = 0.3
    weights = np.tile([0.0, 0, 1, 1, 1, 1, 1, 1, 1], (6, 1))
    pose = sqpnp(points, xy, weights)
    assert geodesic_angle(pose.R, R).max() < 1e-6
    tensors = sqpnp(*(torch.from_numpy(a.reshape(2, 3, *a.shape[1:])) for a in (points, xy, weights)))
    np.testing.assert_allclose(tensors.R.numpy().reshape(6, 3, 3), pose.R, atol=1e-9)


def test_what_has_no_pose_is_nan_and_leaves_neighbours_alone(rng: np.random.Generator) -> None:
    points, xy, R, _ = scene(rng, "box", 6, 4)
    points[0] = np.linspace(0, 1, 6)[:, None] * [1.0, 2, 3]
    xy[1, 2] = np.nan
    xy[2] = 0.0
    pose = sqpnp(points, xy)
    assert np.isnan(pose.R[:3]).all()
    assert geodesic_angle(pose.R[3], R[3]) < 1e-6
    with pytest.raises(ValueError, match="points_obj, xy"):
        sqpnp(points[:, :5], xy)
