"""Levenberg-Marquardt: zero residual, zero gradient, exact Jacobian, independence, kernels, gradients through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from geopose.geometry._kernels import KERNELS, robust
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import (
    Reprojection,
    implicit_pose,
    levenberg_marquardt,
    small_step,
)
from geopose.geometry.rotation import random_rotation

DISTORTED = Camera(800, 790, 320, 240, (640, 480), (-0.2, 0.05, 0.001, -0.002, 0.01))
PINHOLE = Camera(800, 790, 320, 240, (640, 480))


def _problem(
    rng: np.random.Generator, camera: Camera | None = None, batch: int = 4, n: int = 10, noise: float = 1.0
) -> tuple[Reprojection, Pose]:
    points = rng.uniform(-0.5, 0.5, (batch, n, 3))
    pose = Pose(random_rotation((batch,), rng), rng.uniform(-0.2, 0.2, (batch, 3)) + [0, 0, 3])
    cam = pose.apply(points)
    xy = cam[..., :2] / cam[..., 2:] if camera is None else camera.project(cam)
    scale = 1 / 800 if camera is None else 1.0
    xy = xy + noise * scale * rng.standard_normal(xy.shape)
    whiten = rng.uniform(0.5, 1, (batch, 3, n)) / scale * [[1], [0.3], [1]]
    return Reprojection(points.mT, xy.mT, whiten, camera), pose


@pytest.mark.parametrize("camera", [None, PINHOLE, DISTORTED], ids=["normalised", "pixels", "distorted"])
def test_jacobian_is_the_derivative_along_the_left_tangent(
    rng: np.random.Generator, camera: Camera | None
) -> None:
    problem, pose = _problem(rng, camera)
    r, J = problem.linearise(pose)
    np.testing.assert_array_equal(r, problem.residual(pose))
    for k in range(6):
        xi = np.zeros((4, 6))
        xi[:, k] = 1e-6
        numeric = (problem.residual(pose.retract(xi)) - problem.residual(pose.retract(-xi))) / 2e-6
        np.testing.assert_allclose(J[:, k], numeric, rtol=1e-5, atol=1e-3)


def test_whitened_residual_is_the_mahalanobis_distance(rng: np.random.Generator) -> None:
    problem, pose = _problem(rng, PINHOLE, batch=1)
    w00, w10, w11 = problem.whiten[0]
    error = (PINHOLE.project(pose.apply(problem.points.mT)) - problem.xy.mT)[0]
    for i in range(10):
        W = np.array([[w00[i], 0], [w10[i], w11[i]]])
        cov = np.linalg.inv(W.T @ W)
        expected = error[i] @ np.linalg.solve(cov, error[i])
        assert (problem.residual(pose)[0, :, i] ** 2).sum() == pytest.approx(expected)


def test_small_step_is_exp_to_first_order_and_orthonormal(rng: np.random.Generator) -> None:
    _, pose = _problem(rng)
    xi = 1e-4 * rng.standard_normal((4, 6))
    exact, fast = pose.retract(xi), small_step(pose, xi)
    np.testing.assert_allclose(fast.R, exact.R, atol=1e-10)
    np.testing.assert_allclose(fast.t, exact.t, atol=1e-7)
    far = small_step(pose, 10 * rng.standard_normal((4, 6)))
    np.testing.assert_allclose(far.R @ far.R.mT, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12)


def test_exact_data_leaves_no_residual(rng: np.random.Generator) -> None:
    problem, pose = _problem(rng, noise=0.0)
    start = pose.retract(0.1 * rng.standard_normal((4, 6)))
    found = levenberg_marquardt(problem.residual, problem.linearise, start)
    assert found.converged.all()
    assert found.cost.max() < 1e-15
    np.testing.assert_allclose(found.pose.R, pose.R, atol=1e-9)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "truncated"])
def test_gradient_vanishes_and_scipy_agrees(rng: np.random.Generator, kernel: str) -> None:
    problem, pose = _problem(rng, noise=3.0)
    found = levenberg_marquardt(
        None, problem.linearise, pose, kernel=kernel, scale=1.5, max_iterations=100, tolerance=1e-9
    )
    r, J = problem.linearise(found.pose)
    weight = robust((r * r).sum(-2), kernel, 1.5)[1]
    gradient = np.einsum("bkdn,bdn,bn->bk", J, r, weight)
    assert np.abs(gradient).max() < 1e-4 * np.abs(J).max()

    one, base = problem.item(slice(0, 1)), found.pose[:1]

    def residual(xi: np.ndarray) -> np.ndarray:
        r = one.residual(base.retract(xi[None]))[0]
        return np.sqrt(robust((r * r).sum(0), kernel, 1.5)[0])

    best = least_squares(residual, np.zeros(6), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    assert 2 * best.cost == pytest.approx(found.cost[0], rel=1e-6)
    assert np.abs(best.x).max() < 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_slope_of_a_kernel_is_its_derivative(kernel: str) -> None:
    s = np.array([1e-6, 0.5, 3.9, 4.1, 50.0])
    slope = robust(s, kernel, 2.0)[1]
    numeric = (robust(s + 1e-7, kernel, 2.0)[0] - robust(s - 1e-7, kernel, 2.0)[0]) / 2e-7
    np.testing.assert_allclose(slope, numeric, rtol=1e-4, atol=1e-8)
    assert robust(np.array([1e-9]), kernel, 2.0)[0][0] == pytest.approx(1e-9)


def test_a_wide_cauchy_is_least_squares() -> None:
    s = np.array([1e-3, 0.7, 30.0])
    np.testing.assert_allclose(robust(s, "cauchy", 1e6)[0], s, rtol=1e-10)


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(ValueError, match="kernel.*'tukey'"):
        robust(np.ones(3), "tukey", 1.0)


def test_a_lost_neighbour_changes_no_bit(rng: np.random.Generator) -> None:
    problem, pose = _problem(rng)
    start = pose.retract(0.2 * rng.standard_normal((4, 6)))
    clean = levenberg_marquardt(None, problem.linearise, start)
    points = problem.points.copy()
    points[1] = np.nan
    broken = Reprojection(points, problem.xy, problem.whiten)
    dirty = levenberg_marquardt(None, broken.linearise, start)
    for i in (0, 2, 3):
        np.testing.assert_array_equal(clean.pose.R[i], dirty.pose.R[i])
        np.testing.assert_array_equal(clean.pose.t[i], dirty.pose.t[i])
    assert not dirty.converged[1]


def test_cost_never_rises_and_torch_agrees(rng: np.random.Generator) -> None:
    problem, pose = _problem(rng)
    start = pose.retract(0.5 * rng.standard_normal((4, 6)))
    costs = [levenberg_marquardt(None, problem.linearise, start, max_iterations=k).cost for k in range(1, 15)]
    assert (np.diff(costs, axis=0) <= 1e-9).all()
    ours = levenberg_marquardt(None, problem.linearise, start)
    tensors = Reprojection(
        *(torch.from_numpy(a.copy()) for a in (problem.points, problem.xy, problem.whiten))
    )
    theirs = levenberg_marquardt(None, tensors.linearise, start.torch())
    np.testing.assert_allclose(ours.pose.R, theirs.pose.R.numpy(), atol=1e-9)


def test_a_term_of_another_kind_shares_the_loop(rng: np.random.Generator) -> None:
    """Points in three dimensions, D = 3: the minimum is the Procrustes pose."""
    points, pose = rng.standard_normal((8, 3)), Pose(random_rotation((), rng), rng.standard_normal(3))
    target = pose.apply(points) + 0.01 * rng.standard_normal((8, 3))

    def linearise(p: Pose) -> tuple[np.ndarray, np.ndarray]:
        moved = p.apply(points)
        J = np.zeros((6, 3, 8))
        J[:3] = np.eye(3)[:, :, None]
        J[3:] = np.cross(np.eye(3)[:, None], moved[None]).swapaxes(-1, -2)
        return (moved - target).T, J

    found = levenberg_marquardt(None, linearise, pose)
    from geopose.geometry.rotation import procrustes

    R, t = procrustes(points, target)
    np.testing.assert_allclose(found.pose.R, R, atol=1e-8)
    np.testing.assert_allclose(found.pose.t, t, atol=1e-8)


@pytest.mark.parametrize("camera", [PINHOLE, DISTORTED], ids=["pinhole", "distorted"])
@pytest.mark.parametrize("kernel", ["none", "cauchy"])
def test_implicit_gradient_is_the_derivative_of_the_minimum(
    rng: np.random.Generator, camera: Camera, kernel: str
) -> None:
    from geopose.geometry.pnp import PnPOptions, solve_pnp

    points = rng.uniform(-0.5, 0.5, (6, 3))
    pose = Pose(random_rotation((), rng), np.array([0.1, 0.2, 3.0]))
    px = camera.project(pose.apply(points)) + rng.standard_normal((6, 2))
    root = 0.5 * rng.standard_normal((6, 2, 2))
    cov = root @ root.mT + np.eye(2)
    options = PnPOptions(kernel=kernel, tolerance=1e-11, max_iterations=100)

    def solve(
        obj: torch.Tensor, image: torch.Tensor, half: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = solve_pnp(obj, image, camera, cov_px=(half + half.mT) / 2, options=options)
        return result.pose.R, result.pose.t

    inputs = [torch.tensor(a, requires_grad=True) for a in (points, px, cov)]
    assert torch.autograd.gradcheck(solve, inputs, eps=1e-5, atol=1e-5, rtol=1e-3, fast_mode=True)


def test_implicit_pose_leaves_lost_items_and_missing_points_without_gradient(
    rng: np.random.Generator,
) -> None:
    points, pose = (
        torch.rand(2, 5, 3, dtype=torch.float64),
        Pose(torch.eye(3).double(), torch.tensor([0, 0, 4.0]).double()),
    )
    px = PINHOLE.project(pose.apply(points))
    px[0, 0] = torch.nan
    px.requires_grad_()
    both = Pose(torch.stack([pose.R, pose.R * torch.nan]), torch.stack([pose.t, pose.t * torch.nan]))
    counts = torch.isfinite(px).all(-1)
    cov = torch.eye(2, dtype=torch.float64).expand(2, 5, 2, 2)
    out = implicit_pose(both, points, px, cov, PINHOLE, counts, "none", 1.0)
    out.t[0].sum().backward()
    assert torch.isfinite(px.grad).all()
    assert (px.grad[0, 0] == 0).all()
    assert (px.grad[1] == 0).all()
    assert px.grad[0, 1:].abs().max() > 0


def test_problems_that_are_done_are_left_out_without_a_trace(rng: np.random.Generator) -> None:
    problem, pose = _problem(rng, batch=150)
    problem.xy[3, :, :5] += 0.4  # takes more steps than the others
    problem.xy[7] = np.nan
    start = small_step(pose, rng.standard_normal((150, 6)) * 0.1)
    whole = levenberg_marquardt(None, problem.linearise, start)
    parts = levenberg_marquardt(
        None, problem.linearise, start, part_fn=lambda items: (problem.item(items).linearise, None)
    )
    for name in ("cost", "information", "converged"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(parts.pose.R, whole.pose.R)
    np.testing.assert_array_equal(parts.pose.t, whole.pose.t)
