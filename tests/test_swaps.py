"""Points taken for each other: found, exchanged, and as good as if they never had been."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopose.geometry.camera import Camera
from geopose.geometry.pnp import solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import random_rotation

CAMERA = Camera(800, 800, 320, 240, (640, 480))
PAIRS = np.stack([np.arange(8), np.arange(8, 16)], -1)  # left and right


def scenes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """An object of eight mirrored pairs of points, and its noisy pixels."""
    left = rng.uniform([0.1, -0.5, -0.5], 0.5, (count, 8, 3))
    points = np.concatenate([left, left * [-1, 1, 1]], 1)
    z = rng.uniform(3, 6, count)
    t = np.stack([*(rng.uniform(-0.25, 0.25, (2, count)) * z), z], -1)
    px = CAMERA.project(Pose(random_rotation((count,), rng), t).apply(points))
    return points, px + rng.standard_normal(px.shape)


def swap(px: np.ndarray, which: list[int]) -> np.ndarray:
    out = px.copy()
    for i, j in PAIRS[which]:
        out[..., i, :], out[..., j, :] = px[..., j, :], px[..., i, :]
    return out


def test_swapped_pairs_are_put_right(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 60)
    clean = solve_pnp(points, px, CAMERA)
    wrong = swap(px, [0, 2, 3, 6])  # eight of sixteen points
    plain = solve_pnp(points, wrong, CAMERA)
    found = solve_pnp(points, wrong, CAMERA, swaps=PAIRS)
    assert plain.swapped is None
    assert plain.inliers.all(-1).mean() < 0.1
    assert (found.status == "ok").mean() >= 0.95
    exact = (found.swapped == np.isin(np.arange(8), [0, 2, 3, 6])).all(-1)
    assert exact.mean() > 0.9  # a pair that stands one before the other may have either label
    np.testing.assert_allclose(found.pose.R[exact], clean.pose.R[exact], atol=1e-6)
    assert found.inliers[exact].mean() > 0.999


def test_outliers_beside_swapped_pairs(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 40)
    wrong = swap(px, [0, 3, 5])
    wrong[:, [1, 10, 15]] = rng.uniform(0, 480, (40, 3, 2))
    found = solve_pnp(points, wrong, CAMERA, swaps=PAIRS)
    assert (found.status == "ok").mean() >= 0.95
    assert found.swapped[:, [0, 3, 5]].mean() > 0.95
    assert found.inliers[:, [1, 10, 15]].mean() < 0.05


def test_labels_that_fit_stay_and_noise_stays_refused(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 60)
    found, clean = solve_pnp(points, px, CAMERA, swaps=PAIRS), solve_pnp(points, px, CAMERA)
    assert not found.swapped.any()
    np.testing.assert_array_equal(found.pose.R, clean.pose.R)
    noise = rng.uniform(0, 1, px.shape) * CAMERA.size_wh
    assert (solve_pnp(points, noise, CAMERA, swaps=PAIRS).status == "no_consensus").mean() > 0.98


def test_every_form_of_call(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 6)
    px[:4] = swap(px[:4], [1, 4])
    px[5, 2] = np.nan
    cov = np.broadcast_to(np.diag([1.0, 2.0]), (6, 16, 2, 2)).copy()
    whole = solve_pnp(points, px, CAMERA, cov_px=cov, swaps=PAIRS)
    assert whole.swapped.shape == (6, 8)
    np.testing.assert_array_equal(whole.swapped[:4].sum(-1), 2)
    for i in range(6):
        one = solve_pnp(points[i], px[i], CAMERA, cov_px=cov[i], swaps=PAIRS.tolist())
        np.testing.assert_array_equal(one.swapped, whole.swapped[i])
        np.testing.assert_allclose(one.pose.R, whole.pose.R[i], atol=1e-9)
    shaped = solve_pnp(points.reshape(2, 3, 16, 3), px.reshape(2, 3, 16, 2), CAMERA, swaps=PAIRS)
    assert shaped.swapped.shape == (2, 3, 8)
    tensors = solve_pnp(torch.tensor(points), torch.tensor(px), CAMERA, cov_px=torch.tensor(cov), swaps=PAIRS)
    assert isinstance(tensors.swapped, torch.Tensor)
    np.testing.assert_array_equal(tensors.pose.R.numpy(), whole.pose.R)


def test_gradients_follow_the_labels(rng: np.random.Generator) -> None:
    points, px = (a[0] for a in scenes(rng, 1))
    wrong = torch.tensor(swap(px, [2, 5]), requires_grad=True)
    result = solve_pnp(torch.tensor(points), wrong, CAMERA, swaps=PAIRS)
    assert bool(result.swapped[2])
    result.pose.t.sum().backward()
    h, row = 1e-4, int(PAIRS[2, 0])
    moved = []
    for sign in (1, -1):
        near = swap(px, [2, 5])
        near[row, 1] += sign * h
        moved.append(solve_pnp(points, near, CAMERA, swaps=PAIRS).pose.t.sum())
    assert wrong.grad is not None
    assert float(wrong.grad[row, 1]) == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-3)


def test_of_pairs_that_share_a_point_one_is_taken(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 10)
    swaps = [*PAIRS.tolist(), [0, 9], [8, 1]]
    found = solve_pnp(points, swap(px, [0, 4]), CAMERA, swaps=swaps)
    assert found.swapped[:, 0].mean() >= 0.9
    assert not found.swapped[:, 8:].any()


def test_no_pairs_are_no_swaps(rng: np.random.Generator) -> None:
    points, px = scenes(rng, 2)
    found = solve_pnp(points, swap(px, [1]), CAMERA, swaps=[])
    assert found.swapped.shape == (2, 0)
    np.testing.assert_array_equal(found.pose.R, solve_pnp(points, swap(px, [1]), CAMERA).pose.R)


@pytest.mark.parametrize("swaps", [[[0, 16]], [[3, 3]], [[-1, 2]], [[0.0, 1.0]], [0, 1], [[0, 1, 2]]])
def test_pairs_that_cannot_be_are_named(rng: np.random.Generator, swaps: list[object]) -> None:
    points, px = scenes(rng, 1)
    with pytest.raises(ValueError, match="swaps: expected"):
        solve_pnp(points[0], px[0], CAMERA, swaps=swaps)
