"""A pose through time: a Kalman filter on SE(3) for a body that keeps its velocity and its spin, more or less.

The state is the pose and its twist, taken at a point of the body (its centre) in the camera's axes: a body that flies
straight while it turns has a constant twist there, but not about the camera's origin. The centre's part is the linear
Kalman filter; the rotation's error is a left (camera-frame) perturbation, R_true = exp(phi) R.

Notes:
    Sola, Deray, Atchuthan, "A micro Lie theory for state estimation in robotics", arXiv:1812.01537: the error-state
    filter, and the left Jacobian of SO(3) (eq. 145). Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to
    Tracking and Navigation", 2001: continuous white-noise acceleration (section 6.2.2), the normalised innovation
    squared (section 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, hat, log_so3

Array = NDArray[np.float64]

_SEEN = np.eye(6, 12)  # a measurement sees the pose, not the twist


@dataclass(frozen=True)
class Motion:
    """Where a body is, where it goes, and how sure that is.

    R: (3, 3) cam_from_obj; centre: (3,) of the body's `about`, camera frame, metres; velocity: (3,) of the centre, m/s;
    spin: (3,) rad/s about the camera's axes; covariance: (12, 12) of the errors of (centre, rotation, velocity, spin);
    about: (3,) the point of the body that flies straight, object frame, metres.
    """

    R: Array
    centre: Array
    velocity: Array
    spin: Array
    covariance: Array
    about: Array

    @property
    def pose(self) -> Pose:
        """cam_from_obj."""
        return Pose(self.R, self.centre - self.R @ self.about)

    @property
    def pose_covariance(self) -> Array:
        """(6, 6) of the pose in the order (rho, phi), metres and radians, left tangent at the camera's origin."""
        back = _to_centre(-self.centre)
        return back @ self.covariance[:6, :6] @ back.T


def start(pose: Pose, covariance: Array, about: Array, speed_std: float, spin_std: float) -> Motion:
    """A Motion at rest, at a measured `pose` with its `covariance` (6, 6).

    about: (3,) object frame. speed_std, spin_std: of the unknown velocity, m/s, and spin, rad/s, on each axis.
    """
    centre = np.asarray(pose.R @ about + pose.t)
    P = np.diag([0.0] * 6 + [speed_std**2] * 3 + [spin_std**2] * 3)
    P[:6, :6] = _at_centre(covariance, centre)
    return Motion(np.asarray(pose.R), centre, np.zeros(3), np.zeros(3), P, np.asarray(about, float))


def predict(motion: Motion, dt: float, linear_noise: float, angular_noise: float) -> Motion:
    """The Motion `dt` seconds later.

    linear_noise, angular_noise: square roots of the spectral densities of the random acceleration, m/s^1.5 and
    rad/s^1.5: the standard deviations of the change of velocity and spin over one second.
    """
    turn = exp_so3(motion.spin * dt)
    F = np.eye(12)
    F[:3, 6:9] = dt * np.eye(3)
    F[3:6, 3:6] = turn
    F[3:6, 9:] = dt * _left_jacobian(motion.spin * dt)
    q = np.kron(
        np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.diag([linear_noise**2, angular_noise**2])
    )
    return replace(
        motion,
        R=turn @ motion.R,
        centre=motion.centre + dt * motion.velocity,
        covariance=F @ motion.covariance @ F.T + np.kron(q, np.eye(3)),
    )


def innovation(motion: Motion, pose: Pose, covariance: Array) -> tuple[Array, Array]:
    """(y (6,) by which a measured pose differs from the expected one: centre, rotation; its covariance (6, 6))."""
    centre = np.asarray(pose.R @ motion.about + pose.t)
    y = np.concatenate([centre - motion.centre, log_so3(pose.R @ motion.R.T)])
    return y, motion.covariance[:6, :6] + _at_centre(covariance, centre)


def leap(motion: Motion, pose: Pose, covariance: Array) -> float:
    """The normalised innovation squared of a measured pose: chi-square with 6 degrees of freedom if all is well."""
    y, S = innovation(motion, pose, covariance)
    return float(y @ np.linalg.solve(S, y))


def update(motion: Motion, pose: Pose, covariance: Array) -> Motion:
    """The Motion after a measured `pose` with its `covariance` (6, 6)."""
    y, S = innovation(motion, pose, covariance)
    P = motion.covariance
    K = np.linalg.solve(S, P[:6]).T
    step = K @ y
    rest = np.eye(12) - K @ _SEEN
    P = rest @ P @ rest.T + K @ (S - P[:6, :6]) @ K.T  # Joseph's form stays positive
    reset = np.eye(12)
    reset[3:6, 3:6] = _left_jacobian(step[3:6])  # the error is now counted from the new rotation
    return replace(
        motion,
        R=exp_so3(step[3:6]) @ motion.R,
        centre=motion.centre + step[:3],
        velocity=motion.velocity + step[6:9],
        spin=motion.spin + step[9:],
        covariance=reset @ (0.5 * (P + P.T)) @ reset.T,
    )


def _at_centre(covariance: Array, centre: Array) -> Array:
    """(6, 6) of (centre, rotation) from that of (rho, phi) at the camera's origin."""
    there = _to_centre(centre)
    return there @ np.asarray(covariance, float) @ there.T


def _to_centre(centre: Array) -> Array:
    """(6, 6) which takes (rho, phi) at the camera's origin to the move of the point at `centre`, and phi."""
    A = np.eye(6)
    A[:3, 3:] = -hat(centre)
    return A


def _left_jacobian(phi: Array) -> Array:
    """(3, 3) J with exp(phi + d) = exp(J d) exp(phi) to first order."""
    return np.asarray(Pose.exp(np.concatenate([np.eye(3), np.tile(phi, (3, 1))], 1)).t).T
