"""Rotations against SciPy and OpenCV, group axioms, gradients at zero and near pi."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers import rotation_vectors
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geopose.geometry import rotation

KINDS = ["uniform", "tiny", "near_pi"]
ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.0999, 0.1001, 1.0, 3.0, 3.1415]
AXIS = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)

angle = st.one_of(st.floats(0, 3.14), st.floats(0, 1e-6), st.floats(3.1415, 3.14159265))
axis = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1)


@st.composite
def vectors(draw: st.DrawFn) -> np.ndarray:
    direction = np.array(draw(axis))
    return direction / np.linalg.norm(direction) * draw(angle)


@pytest.mark.parametrize("kind", KINDS)
def test_exp_agrees_with_scipy_and_opencv(rng, kind):
    v = rotation_vectors(rng, 40, kind)
    R = rotation.exp_so3(v)
    np.testing.assert_allclose(R, Rotation.from_rotvec(v).as_matrix(), atol=1e-15)
    np.testing.assert_allclose(R, [cv2.Rodrigues(x)[0] for x in v], atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_log_agrees_with_scipy(rng, kind):
    R = Rotation.from_rotvec(rotation_vectors(rng, 40, kind)).as_matrix()
    np.testing.assert_allclose(rotation.log_so3(R), Rotation.from_matrix(R).as_rotvec(), atol=1e-14)


def test_log_of_half_turns_has_length_pi():
    half_turns = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
    np.testing.assert_allclose(np.abs(rotation.log_so3(half_turns)), np.pi * np.eye(3), atol=1e-15)


@given(vectors())
def test_log_inverts_exp(v):
    back = rotation.log_so3(rotation.exp_so3(v))
    np.testing.assert_allclose(back, v, atol=1e-13)


@given(vectors(), vectors(), vectors())
def test_group_axioms(a, b, c):
    A, B, C = rotation.exp_so3(np.stack([a, b, c]))
    np.testing.assert_allclose((A @ B) @ C, A @ (B @ C), atol=1e-14)
    np.testing.assert_allclose(A @ rotation.exp_so3(-a), np.eye(3), atol=1e-14)
    assert np.linalg.det(A @ B) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("size", ANGLES)
def test_gradients_of_exp_and_log(size):
    v = (AXIS * size).requires_grad_()
    assert torch.autograd.gradcheck(rotation.exp_so3, v)
    assert torch.autograd.gradcheck(lambda x: rotation.log_so3(rotation.exp_so3(x)), v)
    jacobian = torch.autograd.functional.jacobian(lambda x: rotation.log_so3(rotation.exp_so3(x)), v)
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), atol=1e-10, rtol=0)


def test_derivative_of_exp_at_zero_is_hat():
    jacobian = torch.autograd.functional.jacobian(rotation.exp_so3, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(jacobian.permute(2, 0, 1), rotation.hat(torch.eye(3, dtype=torch.float64)))


def test_hat_is_the_cross_product(rng):
    a, b = rng.standard_normal((2, 5, 3))
    np.testing.assert_allclose((rotation.hat(a) @ b[..., None])[..., 0], np.cross(a, b), atol=1e-15)


def test_series_and_closed_form_meet():
    x = torch.tensor([1e-2 * (1 - 1e-12), 1e-2 * (1 + 1e-12)], dtype=torch.float64)
    for coefficient in rotation.so3_coefficients(x):
        assert abs(coefficient[0] - coefficient[1]) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_quaternions_agree_with_scipy(rng, kind):
    R = Rotation.from_rotvec(rotation_vectors(rng, 40, kind)).as_matrix()
    q = rotation.quat_wxyz_from_matrix(R)
    expected = Rotation.from_matrix(R).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    expected *= np.sign((q * expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(q, expected, atol=1e-14)
    assert (q[:, 0] >= 0).all()
    np.testing.assert_allclose(rotation.matrix_from_quat_wxyz(-3 * q), R, atol=1e-14)


def test_quaternions_of_the_four_branches():
    turns = Rotation.from_rotvec(np.vstack([np.zeros(3), np.pi * np.eye(3)])).as_matrix()
    np.testing.assert_allclose(np.abs(rotation.quat_wxyz_from_matrix(turns)), np.eye(4), atol=1e-15)
    R = torch.tensor(turns, requires_grad=True)
    rotation.quat_wxyz_from_matrix(R)[:, 1:].sum().backward()
    assert torch.isfinite(R.grad).all()


def test_zero_quaternion_is_nan_and_leaves_its_neighbour():
    R = rotation.matrix_from_quat_wxyz([[0, 0, 0, 0], [2, 0, 0, 0]])
    assert np.isnan(R[0]).all()
    assert (R[1] == np.eye(3)).all()


def test_6d_takes_the_first_two_columns(rng):
    R = rotation.random_rotation((20,), rng)
    d6 = np.concatenate([2 * R[..., 0], R[..., 1] + 0.3 * R[..., 0]], -1)
    np.testing.assert_allclose(rotation.matrix_from_6d(d6), R, atol=1e-14)
    assert np.isnan(rotation.matrix_from_6d(np.ones(6))).any()


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-9, np.pi])
def test_geodesic_angle_is_exact_over_the_whole_range(size):
    R = rotation.random_rotation((), torch.Generator().manual_seed(1))
    turned = R @ torch.as_tensor(Rotation.from_rotvec(AXIS.numpy() * size).as_matrix())
    assert float(rotation.geodesic_angle(R, turned)) == pytest.approx(size, rel=1e-6, abs=1e-15)


def test_geodesic_angle_has_a_finite_gradient_at_zero():
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    rotation.geodesic_angle(torch.eye(3, dtype=torch.float64), rotation.exp_so3(v)).backward()
    assert torch.equal(v.grad, torch.zeros(3, dtype=torch.float64))


def test_projection_is_the_nearest_rotation(rng):
    M = rng.standard_normal((50, 3, 3))
    R = rotation.project_to_so3(M)
    np.testing.assert_allclose(R @ R.mT, np.broadcast_to(np.eye(3), R.shape), atol=1e-13)
    np.testing.assert_allclose(np.linalg.det(R), 1)
    for step in rotation.exp_so3(0.05 * rng.standard_normal((30, 3))):
        near, far = (np.linalg.norm(M - X, axis=(-2, -1)) for X in (R, step @ R))
        assert (near <= far).all()


def test_projection_gradients():
    generator = torch.Generator().manual_seed(3)
    R = rotation.random_rotation((3,), generator)  # all singular values coincide here
    general = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    for M in (R, general):
        assert torch.autograd.gradcheck(rotation.project_to_so3, M.requires_grad_())


def test_projection_keeps_a_nan_to_itself(rng):
    M = rng.standard_normal((3, 3, 3))
    alone = rotation.project_to_so3(M)
    M[1, 2, 0] = np.nan
    R = rotation.project_to_so3(M)
    assert np.isnan(R[1]).all()
    assert (R[[0, 2]] == alone[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_projection_of_half_precision(rng, dtype):
    R = rotation.random_rotation((5,), rng)
    found = rotation.project_to_so3(torch.tensor(R, dtype=dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double(), R, atol=0.02)


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.longdouble])
def test_numbers_as_torch_does_not_have_them(rng, dtype):
    v = rng.normal(size=(4, 3))
    np.testing.assert_allclose(rotation.exp_so3(v.astype(dtype)), rotation.exp_so3(v), atol=1e-6)


def test_procrustes_recovers_a_motion_and_agrees_with_scipy(rng):
    src, t = rng.standard_normal((6, 3)), np.array([0.3, -2.0, 5.0])
    R = rotation.random_rotation((), rng)
    w = rng.uniform(0.1, 1, 6)
    found_R, found_t = rotation.procrustes(src, src @ R.T + t)
    np.testing.assert_allclose(found_R, R, atol=1e-13)
    np.testing.assert_allclose(found_t, t, atol=1e-13)
    dst = src @ R.T + 0.1 * rng.standard_normal((6, 3))
    mean_src, mean_dst = (np.average(x, axis=0, weights=w) for x in (src, dst))
    expected, _ = Rotation.align_vectors(dst - mean_dst, src - mean_src, weights=w)
    found_R, found_t = rotation.procrustes(src, dst, w)
    np.testing.assert_allclose(found_R, expected.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(found_t, mean_dst - found_R @ mean_src, atol=1e-13)


def test_procrustes_never_reflects(rng):
    flat = rng.standard_normal((5, 3)) * [1, 1, 0]
    R, _ = rotation.procrustes(flat, flat * [1, -1, 1])
    np.testing.assert_allclose(np.linalg.det(R), 1)
    np.testing.assert_allclose(R, np.diag([1, -1, -1]), atol=1e-12)


def test_random_rotations_are_uniform_and_repeat():
    one, two = (rotation.random_rotation((20000,), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.mean(0).abs().max() < 0.02
    angles = rotation.geodesic_angle(torch.eye(3, dtype=torch.float64), one)
    assert float(angles.mean()) == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)  # density (1 - cos a) / pi
    with pytest.raises(ValueError, match="generator"):
        rotation.random_rotation((), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (rotation.exp_so3, (3,)),
        (rotation.log_so3, (3, 3)),
        (rotation.hat, (3,)),
        (rotation.matrix_from_quat_wxyz, (4,)),
        (rotation.quat_wxyz_from_matrix, (3, 3)),
        (rotation.matrix_from_6d, (6,)),
        (rotation.project_to_so3, (3, 3)),
    ],
)
def test_kind_dtype_and_batch(rng, function, shape):
    x = rng.standard_normal((2, 4, *shape))
    full = function(x)
    np.testing.assert_allclose(full[1, 2], function(x[1, 2]), atol=1e-15)
    spoilt = x.copy()
    spoilt[0, 3] = np.nan
    assert np.isnan(function(spoilt)[0, 3]).any()
    assert (np.delete(function(spoilt).reshape(8, -1), 3, 0) == np.delete(full.reshape(8, -1), 3, 0)).all()
    assert function(x.astype(np.float32)).dtype == np.float32
    tensor = function(torch.tensor(x, dtype=torch.float32))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    with pytest.raises(ValueError, match="expected shape"):
        function(np.zeros((5, 7)))
