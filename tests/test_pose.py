"""Pose: group axioms, tangent space, borders to OpenCV and SciPy, bad input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers import random_poses, rotation_vectors
from scipy.linalg import expm

from geopose.geometry.pose import Pose
from geopose.geometry.rotation import hat

BATCHES = [(), (1,), (3, 1, 2, 1)]


def make(rng: np.random.Generator, batch: tuple[int, ...], kind: str = "uniform") -> Pose:
    poses = random_poses(rng, max(1, int(np.prod(batch))), kind)
    return Pose(poses.R.reshape(*batch, 3, 3), poses.t.reshape(*batch, 3))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["uniform", "tiny", "near_pi"])
def test_group_axioms(rng, batch, kind):
    a, b, c = (make(rng, batch, kind) for _ in range(3))
    eye = np.broadcast_to(np.eye(4), (*batch, 4, 4))
    np.testing.assert_allclose((a @ a.inverse()).matrix, eye, atol=1e-14)
    np.testing.assert_allclose((a.inverse() @ a).matrix, eye, atol=1e-14)
    np.testing.assert_allclose(((a @ b) @ c).matrix, (a @ (b @ c)).matrix, atol=1e-13)
    np.testing.assert_allclose((a @ Pose.identity(batch)).matrix, a.matrix)
    np.testing.assert_allclose((a @ b).matrix, a.matrix @ b.matrix, atol=1e-14)


@pytest.mark.parametrize("kind", ["uniform", "tiny", "near_pi"])
def test_exp_is_the_matrix_exponential_and_log_its_inverse(rng, kind):
    xi = np.concatenate([rng.standard_normal((10, 3)), rotation_vectors(rng, 10, kind)], -1)
    for row in xi:
        generator = np.zeros((4, 4))
        generator[:3, :3], generator[:3, 3] = hat(row[3:]), row[:3]
        np.testing.assert_allclose(Pose.exp(row).matrix, expm(generator), atol=1e-13)
    np.testing.assert_allclose(Pose.exp(xi).log(), xi, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-3, 0.0999, 0.1001, 2.0, 3.1415])
def test_gradients_of_exp_and_log(size):
    xi = torch.tensor([0.3, -1.0, 2.0, 0.6 * size, 0, 0.8 * size], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Pose.exp(x).matrix, xi)
    assert torch.autograd.gradcheck(lambda x: Pose.exp(x).log(), xi)


def test_retract_is_a_left_update(rng):
    pose, xi = make(rng, (4,)), 0.1 * rng.standard_normal((4, 6))
    np.testing.assert_allclose(pose.retract(xi).matrix, (Pose.exp(xi) @ pose).matrix, atol=1e-15)
    assert pose[0].retract(xi).batch_shape == (4,)


def test_borders(rng):
    pose = make(rng, (5,))
    np.testing.assert_allclose(Pose.from_matrix(pose.matrix).matrix, pose.matrix)
    np.testing.assert_allclose(Pose.from_matrix(pose.matrix[:, :3]).matrix, pose.matrix)
    np.testing.assert_allclose(Pose.from_rvec_tvec(pose.rvec, pose.t).matrix, pose.matrix, atol=1e-14)
    np.testing.assert_allclose(Pose.from_quat_wxyz(pose.quat_wxyz, pose.t).matrix, pose.matrix, atol=1e-14)
    column = Pose.from_rvec_tvec(cv2.Rodrigues(pose.R[0])[0], pose.t[0].reshape(3, 1))
    np.testing.assert_allclose(column.matrix, pose[0].matrix, atol=1e-12)


def test_apply_agrees_with_the_matrix(rng):
    pose, points = make(rng, (2, 3)), rng.standard_normal((7, 3))
    moved = pose.apply(points)
    homogeneous = np.concatenate([points, np.ones((7, 1))], -1)
    np.testing.assert_allclose(moved, (homogeneous @ pose.matrix.mT)[..., :3], atol=1e-14)


def test_kinds_and_dtypes(rng):
    pose = make(rng, (2,))
    tensor = pose.torch(torch.float32)
    assert tensor.inverse().matrix.dtype == torch.float32
    assert tensor.apply(torch.zeros(4, 3)).dtype == torch.float32
    assert isinstance(pose.apply(np.zeros((4, 3))), np.ndarray)
    assert tensor.numpy().R.dtype == np.float32
    assert Pose.identity(like=tensor.R).R.dtype == torch.float32
    assert Pose(np.eye(3, dtype=int), [0, 0, 1]).R.dtype == np.float64
    graph = Pose(torch.eye(3), torch.ones(3, requires_grad=True))
    assert graph.torch().t.requires_grad


def test_indexing_stacking_and_choosing(rng):
    pose = make(rng, (3,))
    again = Pose.stack([pose[i] for i in range(3)])
    np.testing.assert_array_equal(again.matrix, pose.matrix)
    chosen = Pose.where(np.array([True, False, True]), pose, Pose.identity((3,)))
    np.testing.assert_array_equal(chosen.matrix[1], np.eye(4))
    np.testing.assert_array_equal(chosen.matrix[[0, 2]], pose.matrix[[0, 2]])


def test_parts_broadcast():
    assert Pose(np.eye(3), np.zeros((4, 3))).R.shape == (4, 3, 3)
    assert Pose(np.zeros((4, 3, 3)), np.zeros(3)).t.shape == (4, 3)


def test_a_nan_neighbour_leaves_the_others_alone(rng):
    pose = make(rng, (3,))
    t = pose.t.copy()
    t[1] = np.nan
    spoilt = Pose(pose.R, t)
    for name in ("matrix", "rvec"):
        assert (getattr(spoilt, name)[[0, 2]] == getattr(pose, name)[[0, 2]]).all()
    assert (spoilt.log()[[0, 2]] == pose.log()[[0, 2]]).all()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Pose(np.eye(4), np.zeros(3)), r"R: .*got \(4, 4\)"),
        (lambda: Pose(np.eye(3), np.zeros(2)), r"t: .*got \(2,\)"),
        (lambda: Pose(np.zeros((2, 3, 3)), np.zeros((5, 3))), "do not match"),
        (lambda: Pose(torch.eye(3), np.zeros(3)), "both numpy or both torch"),
        (lambda: Pose("a", np.zeros(3)), "R: expected numbers, got 'a'"),
        (lambda: Pose(None, np.zeros(3)), "R: expected numbers, got None"),
        (lambda: Pose(np.eye(3), [[1.0], [1.0, 2.0]]), "t: expected numbers"),
        (lambda: Pose(torch.eye(3), torch.zeros(3) * 1j), "t: expected numbers, got torch.complex64"),
        (lambda: Pose.from_matrix("a"), "matrix: expected numbers, got 'a'"),
        (lambda: Pose.from_rvec_tvec(np.zeros(3), None), "tvec: expected numbers, got None"),
        (lambda: Pose.from_matrix(np.eye(3)), "matrix"),
        (lambda: Pose.from_matrix(np.arange(16.0).reshape(4, 4)), "last row"),
        (lambda: Pose.identity() @ np.eye(4), "apply"),
        (lambda: Pose.identity().apply(np.zeros(3)), "points"),
        (lambda: Pose.exp(np.zeros(5)), "xi"),
    ],
)
def test_bad_input(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
