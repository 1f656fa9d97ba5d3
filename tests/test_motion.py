"""The filter on SE(3) against regression, Riccati's equation, finite differences and its own statistics."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_poses
from scipy.linalg import solve_discrete_are
from scipy.stats import chi2

from geopose.geometry import motion as m
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, log_so3

ABOUT = np.array([0.1, -0.05, 0.2])
COV = np.diag([4e-4, 9e-4, 0.01, 1e-4, 4e-4, 2e-4])


def at(R: np.ndarray, centre: np.ndarray) -> Pose:
    return Pose(R, centre - R @ ABOUT)


def centred(motion: m.Motion, cov: np.ndarray) -> np.ndarray:
    """The covariance of a pose, (6, 6), whose part at the centre is `cov`."""
    back = m._to_centre(-motion.centre)
    return back @ cov @ back.T


def test_a_straight_flight_without_noise_is_a_regression() -> None:
    """Without process noise the filter is weighted least squares over all frames (Bar-Shalom, section 3.3)."""
    rng = np.random.default_rng(0)
    dt, frames, speed = 0.04, 12, 50.0
    times = dt * np.arange(frames)
    truth = np.array([0.3, -0.2, 5.0]) + times[:, None] * [0.5, 0.2, -1.0]
    seen = truth + rng.normal(0, 1, (frames, 3)) * np.sqrt(np.diag(COV)[:3])
    motion = None
    for centre in seen:
        pose = at(np.eye(3), centre)
        here = m.Motion(np.eye(3), centre, np.zeros(3), np.zeros(3), np.eye(12), ABOUT)
        if motion is None:
            motion = m.start(pose, centred(here, COV), ABOUT, speed, 1e-9)
        else:
            motion = m.update(m.predict(motion, dt, 0.0, 0.0), pose, centred(here, COV))
    assert motion is not None
    A = np.stack([np.ones(frames), times - times[-1]], 1)
    for axis in range(3):
        information = A.T @ A / COV[axis, axis] + np.outer([0, 1], [0, 1]) / speed**2
        cov = np.linalg.inv(information)
        best = cov @ A.T @ seen[:, axis] / COV[axis, axis]
        np.testing.assert_allclose([motion.centre[axis], motion.velocity[axis]], best, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(
            motion.covariance[np.ix_([axis, axis + 6], [axis, axis + 6])], cov, rtol=1e-6
        )


def test_a_turn_about_one_axis_is_a_regression_of_the_angle() -> None:
    rng = np.random.default_rng(1)
    dt, frames, spin = 0.05, 15, 20.0
    axis = np.array([0.0, 0.0, 1.0])
    angles = 0.3 + 2.0 * dt * np.arange(frames) + rng.normal(0, 0.01, frames)
    motion = None
    for angle in angles:
        pose = at(exp_so3(angle * axis), np.array([0.0, 0.0, 3.0]))
        cov = np.diag([1e-6] * 3 + [1e-4] * 3)
        here = m.Motion(pose.R, np.array([0.0, 0, 3]), np.zeros(3), np.zeros(3), np.eye(12), ABOUT)
        if motion is None:
            motion = m.start(pose, centred(here, cov), ABOUT, 1e-9, spin)
        else:
            motion = m.update(m.predict(motion, dt, 0.0, 0.0), pose, centred(here, cov))
    assert motion is not None
    A = np.stack([np.ones(frames), dt * (np.arange(frames) - frames + 1)], 1)
    best = np.linalg.solve(A.T @ A / 1e-4 + np.diag([0, 1 / spin**2]), A.T @ angles / 1e-4)
    np.testing.assert_allclose(log_so3(motion.R)[2], best[0], atol=1e-9)
    np.testing.assert_allclose(motion.spin[2], best[1], atol=1e-7)


def test_the_steady_state_solves_riccatis_equation() -> None:
    dt, q, r = 1 / 30, 0.7, 2e-4
    F, H = np.array([[1, dt], [0, 1]]), np.array([[1.0, 0.0]])
    Q = q**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
    expected = solve_discrete_are(F.T, H.T, Q, np.array([[r]]))  # before the measurement
    pose = at(np.eye(3), np.array([0.0, 0.0, 2.0]))
    here = m.Motion(np.eye(3), np.array([0.0, 0, 2]), np.zeros(3), np.zeros(3), np.eye(12), ABOUT)
    cov = centred(here, r * np.eye(6))
    motion = m.start(pose, cov, ABOUT, 1.0, 1.0)
    for _ in range(150):
        motion = m.predict(motion, dt, q, q)
        before, motion = motion.covariance, m.update(motion, pose, cov)
    for axis in range(6):
        np.testing.assert_allclose(before[np.ix_([axis, axis + 6], [axis, axis + 6])], expected, rtol=1e-6)


def test_a_body_that_flies_and_turns_is_followed_exactly(rng: np.random.Generator) -> None:
    first = random_poses(rng, 1)[0]
    R, centre = np.asarray(first.R), np.asarray(first.t)
    velocity, spin, dt = np.array([0.4, -0.1, 0.3]), np.array([0.5, -1.5, 2.0]), 0.1
    motion = m.start(at(R, centre), COV, ABOUT, 1.0, 1.0)
    motion = m.Motion(motion.R, motion.centre, velocity, spin, motion.covariance, ABOUT)
    for _ in range(20):
        motion = m.predict(motion, dt, 0.1, 0.1)
    expected = at(exp_so3(2.0 * spin) @ R, centre + 2.0 * velocity)
    np.testing.assert_allclose(motion.pose.matrix, expected.matrix, atol=1e-9)


def test_the_covariance_of_the_pose_is_that_of_its_left_tangent(rng: np.random.Generator) -> None:
    """Started at a measurement, the pose's covariance is the measurement's; and a prediction's matches samples."""
    pose = random_poses(rng, 1)[0]
    A = rng.normal(0, 1, (6, 6)) * 0.02
    motion = m.start(pose, A @ A.T, ABOUT, 0.3, 0.5)
    np.testing.assert_allclose(motion.pose_covariance, A @ A.T, atol=1e-12)
    np.testing.assert_allclose(motion.pose.matrix, pose.matrix, atol=1e-12)
    spin, velocity = np.array([1.0, -2.0, 0.5]), np.array([0.2, 0.1, -0.4])
    motion = m.Motion(motion.R, motion.centre, velocity, spin, 1e-4 * motion.covariance, ABOUT)
    after = m.predict(motion, 0.4, 0.0, 0.0)
    e = rng.multivariate_normal(np.zeros(12), motion.covariance, 4000)
    R = exp_so3(0.4 * (spin + e[:, 9:])) @ exp_so3(e[:, 3:6]) @ motion.R
    centre = motion.centre + e[:, :3] + 0.4 * (velocity + e[:, 6:9])
    moved = (Pose(R, centre - R @ ABOUT) @ after.pose.inverse()).log()
    scale = np.sqrt(np.diag(after.pose_covariance))
    np.testing.assert_allclose(
        np.cov(moved.T) / np.outer(scale, scale),
        after.pose_covariance / np.outer(scale, scale),
        atol=0.08,
    )


@pytest.mark.parametrize("spin_std", [0.5, 4.0])
def test_errors_are_as_large_as_claimed(spin_std: float) -> None:
    """Over simulated flights of the model the normalised errors squared have the chi-square's mean."""
    rng = np.random.default_rng(5)
    dt, q, w = 1 / 30, 0.5, 1.5
    half = np.linalg.cholesky(np.kron(np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.eye(3)))
    leaps, errors = [], []
    for pose in random_poses(rng, 25):
        R, centre = np.asarray(pose.R), np.asarray(pose.t)
        velocity, spin = rng.normal(0, 0.5, 3), rng.normal(0, spin_std, 3)
        motion = None
        for _ in range(8):
            measured = Pose.exp(rng.multivariate_normal(np.zeros(6), COV)) @ at(R, centre)
            if motion is None:
                motion = m.start(measured, COV, ABOUT, 0.5, spin_std)
            else:
                motion = m.predict(motion, dt, q, w)
                leaps.append(m.leap(motion, measured, COV))
                motion = m.update(motion, measured, COV)
            last = R, centre, velocity, spin
            kick, twist = q * half @ rng.normal(0, 1, 6), w * half @ rng.normal(0, 1, 6)
            centre, velocity = centre + dt * velocity + kick[:3], velocity + kick[3:]
            R, spin = exp_so3(dt * spin + twist[:3]) @ R, spin + twist[3:]
        assert motion is not None
        R_, centre_, velocity_, spin_ = last
        e = np.concatenate(
            [
                centre_ - motion.centre,
                log_so3(R_ @ motion.R.T),
                velocity_ - motion.velocity,
                spin_ - motion.spin,
            ]
        )
        errors.append(e @ np.linalg.solve(motion.covariance, e))
    for values, freedom in ((leaps, 6), (errors, 12)):
        low, high = chi2.ppf([5e-4, 1 - 5e-4], freedom * len(values)) / len(values)
        assert 0.98 * low < np.mean(values) < 1.02 * high


def test_a_leap_stands_out(rng: np.random.Generator) -> None:
    pose = random_poses(rng, 1)[0]
    motion = m.predict(m.start(pose, COV, ABOUT, 0.1, 0.1), 1 / 30, 0.1, 0.1)
    assert m.leap(motion, pose, COV) < 1e-9
    flipped = Pose(pose.R @ np.diag([-1.0, -1.0, 1.0]), pose.t)
    assert m.leap(motion, flipped, COV) > chi2.ppf(0.999, 6)
    moved = Pose(pose.R, pose.t + np.array([0.0, 0.0, 2.0]))
    assert m.leap(motion, moved, COV) > chi2.ppf(0.999, 6)
