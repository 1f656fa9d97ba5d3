"""Metrics: truth scores perfectly, so does truth under each symmetry; closed forms; the Cramer-Rao bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import random_poses, toy_points
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from scipy.stats import chi2, multivariate_t

from geopose.geometry import metrics
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

CAMERA = Camera(570, 575, 325, 242, (640, 480), (-0.1, 0.02, 0.001, 0.001))
QUARTERS = np.tile(np.eye(4), (4, 1, 1))  # a square prism about the axis x = 0.1
QUARTERS[:, :3, :3] = Rotation.from_rotvec(np.pi / 2 * np.arange(4)[:, None] * [0, 0, 1]).as_matrix()
QUARTERS[:, :3, 3] = [0.1, 0, 0] - QUARTERS[:, :3, :3] @ [0.1, 0, 0]
PRISM = np.array([[x + 0.1, y, z] for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-0.2, 0.25)])
PAIRWISE = {
    "add": lambda a, b, s: metrics.add(a, b, PRISM),
    "add_s": lambda a, b, s: metrics.add_s(a, b, PRISM),
    "mssd": lambda a, b, s: metrics.mssd(a, b, PRISM, s),
    "mspd": lambda a, b, s: metrics.mspd(a, b, PRISM, CAMERA, s),
    "reprojection": lambda a, b, s: metrics.reprojection(a, b, PRISM, CAMERA),
    "rotation": lambda a, b, s: metrics.rotation_error(a, b, s),
    "translation": lambda a, b, s: metrics.translation_error(a, b, s),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_truth_is_perfect(rng, name):
    poses = random_poses(rng, 5)
    np.testing.assert_allclose(PAIRWISE[name](poses, poses, None), np.zeros(5), atol=1e-12)


@pytest.mark.parametrize("name", ["mssd", "mspd", "rotation", "translation", "add_s"])
@pytest.mark.parametrize("k", range(4))
def test_truth_under_a_symmetry_is_perfect(rng, name, k):
    poses = random_poses(rng, 5)
    turned = poses @ Pose.from_matrix(QUARTERS[k])
    np.testing.assert_allclose(PAIRWISE[name](turned, poses, QUARTERS), np.zeros(5), atol=1e-10)
    if k and name != "add_s":
        assert (PAIRWISE[name](turned, poses, None) > 0.01).all()


def test_a_known_shift():
    gt = Pose(np.eye(3), np.array([0.0, 0, 2]))
    est = Pose(np.eye(3), np.array([0.03, 0.04, 2]))
    pinhole = Camera(500, 500, 320, 240, (640, 480))
    plane = PRISM * [1, 1, 0]
    assert metrics.add(est, gt, PRISM) == pytest.approx(0.05)
    assert metrics.add_s(est, gt, PRISM) == pytest.approx(0.05)
    assert metrics.mssd(est, gt, PRISM) == pytest.approx(0.05)
    assert metrics.translation_error(est, gt) == pytest.approx(0.05)
    assert metrics.mspd(est, gt, plane, pinhole) == pytest.approx(0.05 * 500 / 2)
    assert metrics.reprojection(est, gt, plane, pinhole) == pytest.approx(12.5)


def test_against_loops(rng):
    est, gt = random_poses(rng, 4), random_poses(rng, 4)
    for i in range(4):
        a, b = est[i].apply(PRISM), gt[i].apply(PRISM)
        assert metrics.add(est, gt, PRISM)[i] == pytest.approx(np.linalg.norm(a - b, axis=1).mean())
        assert metrics.add_s(est, gt, PRISM)[i] == pytest.approx(cdist(b, a).min(1).mean())
        largest = [
            np.linalg.norm(a - gt[i].apply(PRISM @ S[:3, :3].T + S[:3, 3]), axis=1).max() for S in QUARTERS
        ]
        assert metrics.mssd(est, gt, PRISM, QUARTERS)[i] == pytest.approx(min(largest))
        angle = (Rotation.from_matrix(est.R[i]).inv() * Rotation.from_matrix(gt.R[i])).magnitude()
        assert metrics.rotation_error(est, gt)[i] == pytest.approx(angle)


def test_add_s_is_differentiable():
    t = torch.tensor([0.01, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    gt = Pose(torch.eye(3, dtype=torch.float64), torch.tensor([0.0, 0, 2], dtype=torch.float64))
    metrics.add_s(Pose(gt.R, t), gt, torch.tensor(PRISM)).backward()
    torch.testing.assert_close(t.grad, torch.tensor([1.0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_nan_pose_is_nan_and_alone(rng, name):
    est, gt = random_poses(rng, 3), random_poses(rng, 3)
    t = est.t.copy()
    t[1] = np.nan
    R = est.R.copy()
    R[1] = np.nan
    spoilt, clean = PAIRWISE[name](Pose(R, t), gt, None), PAIRWISE[name](est, gt, None)
    assert np.isnan(spoilt[1])
    assert (spoilt[[0, 2]] == clean[[0, 2]]).all()


def test_behind_the_camera_is_infinite():
    gt = Pose(np.eye(3), np.array([0.0, 0, 2]))
    behind = Pose(np.eye(3), np.array([0.0, 0, -2]))
    assert metrics.mspd(behind, gt, PRISM, CAMERA) == np.inf
    assert metrics.reprojection(behind, gt, PRISM, CAMERA) == np.inf


@pytest.mark.parametrize("name", PAIRWISE)
def test_kinds(rng, name):
    poses = random_poses(rng, 2)
    assert isinstance(PAIRWISE[name](poses, poses, QUARTERS), np.ndarray)
    assert isinstance(PAIRWISE[name](poses.torch(), poses.torch(), QUARTERS), torch.Tensor)
    assert PAIRWISE[name](poses[0], poses[0], None).shape == ()


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_precisions_mix(rng, name, kind):
    poses, other = random_poses(rng, 2), random_poses(rng, 2)
    expected = PAIRWISE[name](poses, other, QUARTERS)
    rough = Pose(poses.R.astype(np.float32), poses.t.astype(np.float32))
    if kind == "torch":
        rough, other = rough.torch(torch.float32), other.torch()
    found = PAIRWISE[name](rough, other, QUARTERS)
    assert found.dtype in (np.float64, torch.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_no_poses_have_no_errors(rng, name):
    none = random_poses(rng, 2)[:0]
    assert PAIRWISE[name](none, none, QUARTERS).shape == (0,)


def test_bad_symmetries(rng):
    pose = random_poses(rng, 1)
    for bad in (np.eye(4), np.eye(3)[None], np.zeros((0, 4, 4))):
        with pytest.raises(ValueError, match="symmetries"):
            metrics.mssd(pose, pose, PRISM, bad)


class TestVsd:
    """A square plate, one metre away, eight by eight pixels in a picture of 16 by 12."""

    camera = Camera(1000, 1000, 7.5, 5.5, (16, 12))

    def plate(self, depth: float = 1.0, shift: int = 0) -> np.ndarray:
        image = np.zeros((12, 16))
        image[2:10, 4 + shift : 12 + shift] = depth
        return image

    def vsd(self, est: np.ndarray, gt: np.ndarray, test: np.ndarray, **options: object) -> np.ndarray:
        return metrics.vsd(est, gt, test, self.camera, diameter=0.1, **options)  # type: ignore[arg-type]

    def test_truth(self):
        assert (self.vsd(self.plate(), self.plate(), self.plate()) == 0).all()
        assert self.vsd(self.plate(), self.plate(), self.plate()).shape == (10,)

    def test_depth_beyond_some_tolerances(self):
        errors = self.vsd(self.plate(1.012), self.plate(), np.zeros((12, 16)))  # 0.12 of the diameter
        np.testing.assert_array_equal(errors, [1, 1] + [0] * 8)

    def test_shift(self):
        errors = self.vsd(self.plate(shift=2), self.plate(), np.zeros((12, 16)))
        np.testing.assert_allclose(errors, 4 / 10)  # 6 columns shared of 10

    def test_precision_is_that_of_the_depth(self):
        errors = self.vsd(self.plate(shift=4), self.plate(), np.zeros((12, 16)))  # 4 columns shared of 12
        np.testing.assert_allclose(errors, 2 / 3, rtol=0, atol=1e-12)

    def test_hidden_parts_do_not_count(self):
        wall = self.plate()
        wall[:, :8] = 0.5  # covers the left half; what the estimate does there is not judged
        est = self.plate()
        est[2:10, 4:6] = 0
        assert (self.vsd(est, self.plate(), wall) == 0).all()
        assert (self.vsd(est, self.plate(), self.plate()) == 16 / 64).all()

    def test_visibility_tolerance(self):
        test = self.plate(0.98)  # the sensor saw something 20 mm nearer
        assert (self.vsd(self.plate(), self.plate(), test) == 1).all()  # nothing visible
        assert (self.vsd(self.plate(), self.plate(), test, delta=0.03) == 0).all()

    def test_distance_is_along_the_ray(self):
        wide = Camera(10, 10, 7.5, 5.5, (16, 12))
        gt, est = (np.full((12, 16), z) for z in (1.0, 1.012))
        errors = metrics.vsd(est, gt, np.zeros((12, 16)), wide, diameter=0.1, taus=(0.13,))
        x, y = np.meshgrid((np.arange(16) - 7.5) / 10, (np.arange(12) - 5.5) / 10)
        assert errors[0] == pytest.approx((0.12 * np.sqrt(x**2 + y**2 + 1) >= 0.13).mean())

    def test_batch_and_bad_shape(self):
        both = self.vsd(np.stack([self.plate(), self.plate(shift=2)]), self.plate(), np.zeros((12, 16)))
        np.testing.assert_allclose(both[:, 0], [0, 0.4])
        with pytest.raises(ValueError, match="depth_gt"):
            self.vsd(self.plate(), self.plate().T, self.plate())


def fisher_by_differences(points: np.ndarray, pose: Pose, cov: np.ndarray) -> np.ndarray:
    step = 1e-6 * np.eye(6)
    ahead, back = (CAMERA.project(pose.retract(s * step).apply(points)) for s in (1, -1))
    J = np.moveaxis((ahead - back) / 2e-6, 0, -1)  # (N, 2, 6)
    return np.einsum("nik,nij,njl->kl", J, np.linalg.inv(cov), J)


def test_cramer_rao_is_the_inverse_information(rng):
    points, pose = toy_points(rng), random_poses(rng, 1)[0]
    A = rng.standard_normal((12, 2, 2))
    cov = A @ A.mT + 0.1 * np.eye(2)
    bound = metrics.cramer_rao(points, pose, CAMERA, cov)
    np.testing.assert_allclose(bound @ fisher_by_differences(points, pose, cov), np.eye(6), atol=1e-5)
    unit = metrics.cramer_rao(points, pose, CAMERA)
    np.testing.assert_allclose(
        metrics.cramer_rao(points, pose, CAMERA, np.tile(4 * np.eye(2), (12, 1, 1))), 4 * unit
    )


def test_cramer_rao_predicts_the_scatter_of_least_squares(rng):
    points, pose = toy_points(rng), random_poses(rng, 1)[0]
    px, noise = CAMERA.project(pose.apply(points)), 0.5 * rng.standard_normal((2000, 12, 2))
    ahead = CAMERA.project(pose.retract(1e-6 * np.eye(6)).apply(points))
    J = ((ahead - px) / 1e-6).reshape(6, 24).T
    found = np.linalg.lstsq(J, noise.reshape(2000, 24).T, rcond=None)[
        0
    ]  # one Gauss-Newton step from the truth
    bound = metrics.cramer_rao(points, pose, CAMERA, np.tile(0.25 * np.eye(2), (12, 1, 1)))
    L = np.linalg.inv(np.linalg.cholesky(bound))
    np.testing.assert_allclose(L @ np.cov(found) @ L.T, np.eye(6), atol=0.12)


def test_cramer_rao_of_what_cannot_be_determined(rng):
    pose = random_poses(rng, 1)[0]
    assert np.isnan(metrics.cramer_rao(toy_points(rng, 2), pose, CAMERA)).all()
    line = np.linspace(-0.5, 0.5, 9)[:, None] * [[1.0, 2.0, 0.5]]
    assert np.isnan(metrics.cramer_rao(line, pose, CAMERA)).all()
    assert np.isnan(metrics.cramer_rao(np.full((5, 3), np.nan), pose, CAMERA)).all()


def test_cramer_rao_leaves_out_what_is_not_finite(rng):
    points, pose = toy_points(rng), random_poses(rng, 1)[0]
    cov = np.tile(np.eye(2), (12, 1, 1))
    cov[3], points[5] = np.nan, np.nan
    cov[7] = 0
    kept = np.delete(np.arange(12), [3, 5, 7])
    expected = metrics.cramer_rao(points[kept], pose, CAMERA)
    np.testing.assert_allclose(metrics.cramer_rao(points, pose, CAMERA, cov), expected, rtol=1e-9)


def test_expected_distance_is_that_of_drawn_poses(rng):
    pose, points = random_poses(rng, 1)[0], toy_points(rng)
    root = rng.normal(0, 1, (6, 6)) * [[0.002], [0.001], [0.02], [0.004], [0.01], [0.003]]
    drawn = pose.retract(rng.normal(0, 1, (20000, 6)) @ root.T)
    squared = np.square(drawn.apply(points) - pose.apply(points)).sum(-1)
    expected = metrics.expected_distance(root @ root.T, pose, points)
    assert float(expected) == pytest.approx(np.sqrt(squared.mean()), rel=0.02)


def test_recalls_and_thresholds():
    np.testing.assert_allclose(metrics.mspd_thresholds(640), [5, 10, 15, 20, 25, 30, 35, 40, 45, 50])
    np.testing.assert_allclose(metrics.mspd_thresholds(1280)[0], 10)
    np.testing.assert_allclose(metrics.mssd_thresholds(2.0), np.linspace(0.1, 1.0, 10))
    share = metrics.recalls(np.array([4.0, 5.0, 60.0, np.inf, np.nan]), metrics.mspd_thresholds(640))
    np.testing.assert_allclose(share, [0.2] + [0.4] * 9)  # strictly below
    with pytest.raises(ValueError, match="errors"):
        metrics.recalls(np.array([]), [1.0])


@pytest.mark.parametrize("dimension", [3, 6])
def test_regions_of_a_student_t_hold_their_share_of_scipys(dimension: int, rng: np.random.Generator) -> None:
    root = rng.normal(size=(dimension, dimension))
    covariance = root @ root.T
    for dof in (2.5, 4.0, 30.0):
        drawn = multivariate_t(shape=covariance * (dof - 2) / dof, df=dof, seed=rng).rvs(20_000)
        distance2 = (drawn * np.linalg.solve(covariance, drawn.T).T).sum(1)
        for share in (0.5, 0.9, 0.99):
            radius2 = metrics.region_radius2(share, dof, dimension)
            assert (distance2 < radius2).mean() == pytest.approx(
                share, abs=4 * np.sqrt(share * (1 - share) / 20_000)
            )
            assert metrics.share_inside(radius2, dof, dimension) == pytest.approx(share)


def test_regions_of_a_gaussian_are_those_of_chi_square() -> None:
    for share in (0.5, 0.9, 0.99):
        assert metrics.region_radius2(share) == pytest.approx(chi2.ppf(share, 6))
        assert metrics.share_inside(chi2.ppf(share, 3), dimension=3) == pytest.approx(share)
        assert metrics.region_radius2(share, 1e7) == pytest.approx(chi2.ppf(share, 6), rel=1e-4)
    assert np.isnan(metrics.share_inside(np.nan))
    assert np.isnan(metrics.share_inside(np.nan, 4.0))
    with pytest.raises(ValueError, match="dof: expected more than 2"):
        metrics.region_radius2(0.9, 2.0)
