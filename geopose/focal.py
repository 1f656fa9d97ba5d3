"""What a focal length that is only roughly known does to a pose: it moves with it, mostly along the line of sight."""

from __future__ import annotations

from dataclasses import replace
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection
from geopose.result import PoseEstimate

Array = NDArray[np.float64]
_STEP = 1e-4
_RIGHT = 0.1  # diameters that a right pose is off at most


def moved_by_focal(pose: Pose, points: Array, camera: Camera) -> Array:
    """(6,) left tangent (rho, phi), by which the pose of least squares moves for a relative error of one of the focal
    length, to first order.

    Args:
        points: (N, 3) of the object, seen with equal weights; what is not in front of the camera does not count. Fewer
            than three leave a motion along the line of sight.
    """
    points = points[pose.apply(points)[:, 2] > 0]
    seen = np.asarray(camera.project(pose.apply(points))).T
    if len(points) < 3 or not np.isfinite(seen).all():
        return np.array([0.0, 0.0, float(pose.t[2]), 0.0, 0.0, 0.0])
    weights = np.array([1.0, 0.0, 1.0])[:, None].repeat(len(points), 1)
    term = Reprojection(points.T, seen, weights, camera.numpy())
    longer = replace(camera.numpy(), fx=camera.fx * (1 + _STEP), fy=camera.fy * (1 + _STEP))
    J = term.linearise(pose)[1].reshape(6, -1)
    slope = J @ replace(term, camera=longer).residual(pose).ravel() / _STEP
    return np.asarray(np.linalg.lstsq(J @ J.T, -slope, rcond=None)[0])


def with_focal(found: PoseEstimate, camera: Camera, points: Array) -> PoseEstimate:
    """The estimate that was made with `camera` as if its focal length were exact, now with what is not known of that:
    in the covariances, and in the confidence, as the probability that this alone leaves the pose right.

    Args:
        points: (N, 3) of the object, which it is judged by.
    """
    std = float(camera.focal_rel_std)
    found = replace(found, camera=camera)
    if std == 0 or found.pose is None:
        return found
    move = std * moved_by_focal(found.pose, points, camera)
    away = np.linalg.norm(move[:3] + np.cross(move[3:], found.pose.apply(points)), axis=-1).mean()
    chance = erf(_RIGHT * found.model.diameter / (max(float(away), 1e-12) * sqrt(2)))
    others = [(a, std * moved_by_focal(a.pose, points, camera)) for a in found.alternatives]
    return replace(
        found,
        covariance=None if found.covariance is None else found.covariance + np.outer(move, move),
        alternatives=tuple(replace(a, covariance=a.covariance + np.outer(m, m)) for a, m in others),
        confidence=found.confidence * chance,
    )
