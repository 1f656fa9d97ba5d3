"""EPnP: exact on exact data in every configuration, close on noisy data, OpenCV as witness."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from geopose.geometry.camera import Camera
from geopose.geometry.epnp import epnp
from geopose.geometry.rotation import geodesic_angle, random_rotation

CAMERA = Camera(800, 800, 320, 240, (640, 480))


def _scene(
    rng: np.random.Generator, kind: str, n: int, count: int = 50
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = rng.uniform(-0.5, 0.5, (count, n, 3))
    if kind == "planar":
        points[..., 2] = 0
    if kind == "quasi-planar":
        points[..., 2] *= 0.02
    R = random_rotation((count,), rng)
    cam = points @ R.mT + np.array([0.1, -0.2, 5.0])
    return points, cam[..., :2] / cam[..., 2:], R


@pytest.mark.parametrize("n", [4, 5, 6, 20])
@pytest.mark.parametrize("kind", ["box", "planar", "quasi-planar"])
def test_exact_data_gives_the_exact_pose(rng: np.random.Generator, kind: str, n: int) -> None:
    points, xy, R = _scene(rng, kind, n)
    pose = epnp(points, xy)
    # three depths of four points leave a few nearly double solutions of single-precision accuracy
    assert np.quantile(geodesic_angle(pose.R, R), 0.9) < 1e-8
    seen = pose.apply(points)
    assert np.abs(seen[..., :2] / seen[..., 2:] - xy).max() < 1e-5
    assert np.linalg.norm(pose.t - [0.1, -0.2, 5.0], axis=-1).max() < 0.05


def test_noise_costs_no_more_than_in_opencv(rng: np.random.Generator) -> None:
    points, xy, R = _scene(rng, "box", 12)
    px = xy * 800 + [320, 240] + rng.standard_normal(xy.shape)
    ours = geodesic_angle(epnp(points, CAMERA.normalise(px)).R, R)
    theirs = []
    for p, q, r in zip(points, px, R, strict=True):
        _, rvec, _ = cv2.solvePnP(p, q, CAMERA.K, None, flags=cv2.SOLVEPNP_EPNP)
        theirs.append(geodesic_angle(cv2.Rodrigues(rvec)[0], r))
    assert np.median(ours) < 1.2 * np.median(theirs)
    assert np.degrees(np.median(ours)) < 1.5


def test_weight_zero_leaves_a_point_out(rng: np.random.Generator) -> None:
    points, xy, R = _scene(rng, "box", 8)
    xy[:, 0] += 0.3
    weights = np.ones(8)
    weights[0] = 0
    assert geodesic_angle(epnp(points, xy, weights).R, R).max() < 1e-6
    assert np.median(geodesic_angle(epnp(points, xy).R, R)) > 0.05


def test_batch_torch_and_neighbours(rng: np.random.Generator) -> None:
    points, xy, _ = _scene(rng, "box", 7, 6)
    points[2, :, 2] = 0  # a planar neighbour takes another branch
    points[3] = points[3, :1]  # and one is no object at all
    xy[4, 0] = np.nan
    whole = epnp(points.reshape(2, 3, 7, 3), xy.reshape(2, 3, 7, 2))
    assert whole.R.shape == (2, 3, 3, 3)
    R = whole.R.reshape(6, 3, 3)
    assert np.isnan(R[3:5]).all()
    for i in (0, 1, 2, 5):
        np.testing.assert_allclose(R[i], epnp(points[i], xy[i]).R, atol=1e-12)
    torch_pose = epnp(torch.from_numpy(points), torch.from_numpy(xy))
    assert isinstance(torch_pose.R, torch.Tensor)
    np.testing.assert_allclose(torch_pose.R[0].numpy(), R[0], atol=1e-12)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="same number"):
        epnp(np.zeros((3, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="xy"):
        epnp(np.zeros((5, 3)), np.zeros((5, 3)))
