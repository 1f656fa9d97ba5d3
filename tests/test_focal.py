"""A focal length that is not known: what it does to a pose, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flights import xwing_frames
from scipy.optimize import least_squares

from geopose.checkpoint import model_of
from geopose.estimate import PoseEstimator
from geopose.focal import moved_by_focal
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.result import PoseEstimate
from geopose.scores import mahalanobis2

POINTS = np.random.default_rng(0).uniform(-1, 1, (12, 3))
TRUTH = Pose.from_rvec_tvec(np.array([0.4, -0.7, 0.2]), np.array([0.8, -0.5, 7.0]))
PINHOLE = Camera(600.0, 610.0, 319.5, 239.5, (640, 480))
Seen = list[tuple[np.ndarray, Camera, Pose]]


@pytest.mark.parametrize(
    "camera", [PINHOLE, replace(PINHOLE, distortion=(-0.2, 0.05, 0.001, 0.0))], ids=["pinhole", "distorted"]
)
def test_the_pose_moves_as_scipy_moves_it(camera: Camera) -> None:
    """Seen with one focal length, solved with one that is longer by a thousandth."""
    seen, share = np.asarray(camera.project(TRUTH.apply(POINTS))), 1e-3
    longer = replace(camera, fx=camera.fx * (1 + share), fy=camera.fy * (1 + share))

    def residual(xi: np.ndarray) -> np.ndarray:
        return (np.asarray(longer.project(TRUTH.retract(xi).apply(POINTS))) - seen).ravel()

    wanted = least_squares(residual, np.zeros(6), xtol=1e-14, ftol=1e-14).x / share
    np.testing.assert_allclose(moved_by_focal(TRUTH, POINTS, camera), wanted, rtol=0.02, atol=0.02)
    origin = wanted[:3] + np.cross(wanted[3:], TRUTH.t)
    assert origin[2] == pytest.approx(TRUTH.t[2], rel=0.1)  # ten percent of f are ten percent of the distance


def test_what_is_behind_the_camera_does_not_count() -> None:
    inside = Pose(TRUTH.R, np.array([0.1, 0.0, 0.3]))  # the object is all around the camera
    front = inside.apply(POINTS)[:, 2] > 0
    assert 3 <= front.sum() < len(POINTS)
    moved = moved_by_focal(inside, POINTS, PINHOLE)
    np.testing.assert_allclose(moved, moved_by_focal(inside, POINTS[front], PINHOLE))
    assert np.isfinite(moved).all()
    behind = Pose(TRUTH.R, -TRUTH.t)
    np.testing.assert_array_equal(moved_by_focal(behind, POINTS, PINHOLE), [0, 0, -7, 0, 0, 0])


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    return PoseEstimator.load(model_of("xwing"))


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Five frames of the X-wing's loop."""
    camera, truths, pictures = xwing_frames(range(0, 150, 30))
    return [(picture, camera, truth) for picture, truth in zip(pictures, truths, strict=True)]


def test_a_guess_changes_what_is_said_of_the_pose_alone(estimator: PoseEstimator, seen: Seen) -> None:
    good = 0
    for image, camera, truth in seen:
        sure = estimator.estimate(image, camera)
        unsure = estimator.estimate(image, replace(camera, focal_rel_std=0.2))
        assert sure.pose is not None
        assert unsure.pose is not None
        np.testing.assert_array_equal(unsure.pose.matrix, sure.pose.matrix)
        assert unsure.status == sure.status
        good += sure.status == "ok"
        added = unsure.covariance - sure.covariance
        left = np.concatenate([np.eye(3), -np.cross(np.eye(3), truth.t)], 1)  # of the object's origin
        assert np.sqrt((left @ added @ left.T)[2, 2]) == pytest.approx(0.2 * truth.t[2], rel=0.2)
        assert unsure.camera.focal_rel_std == 0.2
        # A tenth of a diameter is less than a tenth of what 20 % of the distance are.
        assert unsure.confidence < 0.3 * sure.confidence
    assert good >= 4


def _distance2(found: PoseEstimate, truth: Pose) -> float:
    return mahalanobis2(found.pose, truth, found.covariance, np.eye(4)[None])


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_wrong_focal_length_is_inside_of_what_is_said(
    estimator: PoseEstimator, seen: Seen, share: float
) -> None:
    inside = []
    for image, camera, truth in seen:
        wrong = replace(camera, fx=camera.fx * share, fy=camera.fy * share, focal_rel_std=0.1)
        found: PoseEstimate = estimator.estimate(image, wrong)
        assert found.pose is not None
        if found.status == "ok":
            assert abs(found.pose.t[2] / truth.t[2] - share) < 0.03
            inside.append(_distance2(found, truth) < found.region(0.99))
    assert len(inside) >= 4
    assert sum(inside) >= len(inside) - 1
