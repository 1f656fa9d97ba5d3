"""Contour alignment: nearer to the truth on pictures, exact derivatives, and silence where it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from geopose.align import _both, _correspond, _Lines, _look, align, keypoint_term
from geopose.cad.model import load_cad
from geopose.cad.render import render
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import add
from geopose.geometry.pose import Pose
from geopose.stages import Reading

CAMERA = Camera(600.0, 600.0, 319.5, 239.5, (640, 480))
CAR = load_cad("car")
CAR_LIGHT = CAR.baked().simplified(1500)
POINTS = np.ascontiguousarray(CAR.vertices[:: len(CAR.vertices) // 15][:16])


def scene(seed: int) -> tuple[np.ndarray, Pose, Reading]:
    """A lit car on a noisy floor, the truth, and what a network would read, with keypoints 4 % of its size off."""
    rng = np.random.default_rng(seed)
    R = Rotation.from_euler(
        "xyz", [100 + rng.uniform(-15, 15), rng.uniform(-20, 20), rng.uniform(-180, 180)], degrees=True
    )
    truth = Pose(R.as_matrix(), np.array([*rng.uniform(-0.5, 0.5, 2), 1.0]) * CAR.diameter * [1, 1, 6])
    drawn = render(CAR, CAMERA, truth)
    floor = rng.uniform(0.3, 0.5, 3) + rng.normal(0, 0.05, (480, 640, 1))
    picture = np.where(drawn.mask[..., None], 0.2 + 0.7 * drawn.color, floor)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.7) + rng.normal(0, 0.02, picture.shape)
    px = CAMERA.project(truth.apply(CAR.vertices))
    box = np.concatenate([px.min(0), px.max(0)])
    size = float(np.hypot(*(box[2:] - box[:2])) / np.sqrt(2))
    square = np.concatenate(
        [0.5 * (box[:2] + box[2:]) - 0.75 * size, 0.5 * (box[:2] + box[2:]) + 0.75 * size]
    )
    view = CAMERA.crop_resize(square, (32, 32))
    mask = np.clip(render(CAR, view, truth).mask.astype(np.float32), 0.03, 0.97)
    sigma = 0.04 * size
    points = CAMERA.project(truth.apply(POINTS)) + rng.normal(0, sigma, POINTS[:, :2].shape)
    reading = Reading(points, np.broadcast_to(sigma**2 * np.eye(2), (len(points), 2, 2)), mask, square)
    return np.uint8(255 * picture.clip(0, 1)), truth, reading


def from_keypoints(reading: Reading) -> Pose:
    """OpenCV's least squares."""
    _, rvec, tvec = cv2.solvePnP(POINTS, reading.points_px, CAMERA.K, None, flags=cv2.SOLVEPNP_SQPNP)
    rvec, tvec = cv2.solvePnPRefineLM(POINTS, reading.points_px, CAMERA.K, None, rvec, tvec)
    return Pose.from_rvec_tvec(rvec.ravel(), tvec.ravel())


def run(seed: int, camera: Camera = CAMERA) -> tuple[Any, Pose, Pose]:
    picture, truth, reading = scene(seed)
    start = from_keypoints(reading)
    term = keypoint_term(POINTS, reading, np.ones(len(POINTS), bool), camera)
    return align(picture, camera, start, CAR_LIGHT, reading, term), start, truth


def test_the_contour_brings_poses_nearer_to_the_truth() -> None:
    before, after, distances, agreements = [], [], [], []
    for seed in range(12):
        found, start, truth = run(seed)
        assert found.covariance is not None
        assert found.gain > 0
        agreements.append(found.agreement)
        before.append(float(add(start, truth, CAR.vertices)) / CAR.diameter)
        after.append(float(add(found.pose, truth, CAR.vertices)) / CAR.diameter)
        step = (truth @ found.pose.inverse()).log()
        distances.append(float(step @ np.linalg.solve(found.covariance, step)))
    assert np.median(after) < 0.6 * np.median(before)
    assert np.mean(after) < np.mean(before)
    assert np.mean(agreements) > 0.7
    assert np.median(distances) < 12.6  # 95 % of a chi-square of 6: the covariance is not far too small


def test_residuals_have_the_derivative_they_say() -> None:
    picture, truth, reading = scene(0)
    term = keypoint_term(POINTS, reading, np.ones(len(POINTS), bool), CAMERA)
    px = CAMERA.project(truth.apply(CAR_LIGHT.vertices))
    view = _look(picture, CAMERA, truth, CAR_LIGHT, reading, np.concatenate([px.min(0), px.max(0)]))
    assert view is not None
    lines = _correspond(view, view.drawn, truth, 6.0)
    assert isinstance(lines, _Lines)
    r, J = _both(truth, term, lines, view.camera)
    assert r.shape == (2, len(POINTS) + len(lines.place))
    for k in range(6):
        step = np.zeros(6)
        step[k] = 1e-6
        numeric = (
            _both(truth.retract(step), term, lines, view.camera)[0]
            - _both(truth.retract(-step), term, lines, view.camera)[0]
        ) / 2e-6
        np.testing.assert_allclose(J[k], numeric, rtol=1e-5, atol=1e-4)


def test_whitened_keypoints_have_the_mahalanobis_length() -> None:
    _, truth, reading = scene(1)
    rng = np.random.default_rng(0)
    half = rng.normal(size=(len(POINTS), 2, 2))
    cov = half @ half.swapaxes(1, 2) + 0.1 * np.eye(2)
    keep = rng.random(len(POINTS)) > 0.3
    term = keypoint_term(POINTS, replace(reading, cov_px=cov), keep, CAMERA)
    error = CAMERA.project(truth.apply(POINTS)) - reading.points_px
    wanted = np.einsum("ni,nij,nj->n", error, np.linalg.inv(cov), error) * keep
    np.testing.assert_allclose(np.square(term.residual(truth)).sum(0), wanted, rtol=1e-9)


def test_a_picture_without_contour_says_nothing() -> None:
    picture, _, reading = scene(3)
    start = from_keypoints(reading)
    term = keypoint_term(POINTS, reading, np.ones(len(POINTS), bool), CAMERA)
    flat = replace(reading, mask=np.full_like(reading.mask, 0.5))
    found = align(np.full_like(picture, 128), CAMERA, start, CAR_LIGHT, flat, term)
    assert found.covariance is None
    assert found.pose is start
    assert found.agreement == 0


def test_a_contour_that_contradicts_the_keypoints_is_not_followed() -> None:
    picture, truth, reading = scene(4)
    aside = Pose(truth.R, truth.t + np.array([0.07, 0, 0]) * CAR.diameter)
    sure = replace(reading, points_px=CAMERA.project(aside.apply(POINTS)), cov_px=reading.cov_px * 0.12)
    term = keypoint_term(POINTS, sure, np.ones(len(POINTS), bool), CAMERA)
    found = align(picture, CAMERA, aside, CAR_LIGHT, sure, term)
    assert found.covariance is None
    assert found.pose is aside
