"""Bad input: for each kind a right answer, a status with its reason, or a ValueError that names the argument.

Not one silent wrong pose. The rows are the inputs on which peers crash, answer NaN with success, or return a badly
fitting pose without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, geodesic_angle

CAMERA = Camera(800, 800, 320, 240, (640, 480))
TRUTH = Pose(exp_so3(np.array([0.4, -0.7, 0.3])), np.array([0.1, -0.2, 2.5]))
RNG = np.random.default_rng(11)
POINTS = RNG.uniform(-0.5, 0.5, (9, 3))
PLANE = POINTS * [1, 1, 0]
LINE = np.linspace(-0.5, 0.5, 9)[:, None] * np.array([1, 0.5, 0.2])
RANDOM = RNG.uniform(0, 480, (9, 2))


def project(points: np.ndarray, pose: Pose = TRUTH) -> np.ndarray:
    """Pixels of points, also of those behind the camera, as a careless program would compute them."""
    cam = pose.apply(points)
    return cam[..., :2] / cam[..., 2:] * 800 + [320, 240]


def changed(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    out = np.array(array, dtype=float)
    out[index] = value
    return out


def right(result: PnPResult, pose: Pose = TRUTH, atol: float = 1e-6, scale: float = 1.0) -> None:
    assert result.status == "ok", result.reason
    assert result.reason == ""
    assert geodesic_angle(np.asarray(result.pose.R, dtype=float), pose.R) < atol
    assert np.linalg.norm(result.pose.t - pose.t) < atol * scale * 10


RIGHT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "exact": lambda: (POINTS, project(POINTS)),
    "one NaN object point": lambda: (changed(POINTS, 0, np.nan), project(POINTS)),
    "one inf pixel": lambda: (POINTS, changed(project(POINTS), 3, np.inf)),
    "one pixel at 1e9": lambda: (POINTS, changed(project(POINTS), 0, 1e9)),
    "N = 4": lambda: (POINTS[:4], project(POINTS[:4])),
    "N = 5": lambda: (POINTS[:5], project(POINTS[:5])),
    "coplanar": lambda: (PLANE, project(PLANE)),
    "coplanar, N = 4": lambda: (PLANE[:4], project(PLANE[:4])),
    "coplanar up to 1e-6": lambda: (POINTS * [1, 1, 1e-6], project(POINTS * [1, 1, 1e-6])),
    "duplicates": lambda: (POINTS[[0, 0, 1, 1, 2, 2, 3, 3, 4]], project(POINTS[[0, 0, 1, 1, 2, 2, 3, 3, 4]])),
    "lists": lambda: (POINTS.tolist(), project(POINTS).tolist()),
    "Fortran order": lambda: (np.asfortranarray(POINTS), np.asfortranarray(project(POINTS))),
    "strided": lambda: (np.repeat(POINTS, 2, 0)[::2], np.tile(project(POINTS), 2)[:, 2:]),
    "read only": lambda: (np.broadcast_to(POINTS, (9, 3)), np.broadcast_to(project(POINTS), (9, 2))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_in_spite_of_it(name: str) -> None:
    points, px = RIGHT[name]()
    right(solve_pnp(points, px, CAMERA))


def test_integers_are_numbers() -> None:
    points = np.round(POINTS * 100).astype(int)
    far = Pose(TRUTH.R, TRUTH.t * 100)
    result = solve_pnp(points, np.round(project(points, far)).astype(int), CAMERA)
    right(result, far, atol=0.02, scale=100)
    assert result.pose.R.dtype == np.float64


def test_float32_is_kept_and_computed_in_float64() -> None:
    result = solve_pnp(POINTS.astype(np.float32), project(POINTS).astype(np.float32), CAMERA)
    right(result, atol=1e-4)
    assert result.pose.R.dtype == result.covariance.dtype == np.float32
    tensors = solve_pnp(torch.tensor(POINTS).float(), torch.tensor(project(POINTS)).float(), CAMERA)
    assert tensors.pose.R.dtype == torch.float32


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_any_unit(unit: float) -> None:
    far = Pose(TRUTH.R, TRUTH.t * unit)
    right(solve_pnp(POINTS * unit, project(POINTS), CAMERA), far, scale=unit)


def test_object_frame_far_away() -> None:
    offset = np.array([4e6, -4e6, 1e6])
    result = solve_pnp(POINTS + offset, project(POINTS), CAMERA)
    right(result, Pose(TRUTH.R, TRUTH.t - TRUTH.R @ offset), atol=1e-8, scale=1e8)
    np.testing.assert_allclose(project(POINTS + offset, result.pose), project(POINTS), atol=1e-3)


@pytest.mark.parametrize("R", [np.eye(3), np.diag([1.0, -1, -1])])
def test_exactly_frontal_plane(R: np.ndarray) -> None:
    pose = Pose(R, np.array([0.3, 0.1, 3.0]))
    right(solve_pnp(PLANE, project(PLANE, pose), CAMERA), pose)


def test_points_on_both_sides_of_the_camera_plane() -> None:
    pose = Pose(TRUTH.R, np.array([0, 0, 0.1]))
    result = solve_pnp(POINTS, project(POINTS, pose), CAMERA)
    if result.status == "ok":  # from the points in front alone
        right(result, pose)
        np.testing.assert_array_equal(result.inliers, pose.apply(POINTS)[:, 2] > 0)
    else:
        assert result.reason


def test_a_thousand_sizes_away_the_rotation_is_not_claimed() -> None:
    far = Pose(TRUTH.R, np.array([10.0, 5, 1000]))
    result = solve_pnp(POINTS, project(POINTS, far), CAMERA)
    assert result.status == "degenerate"
    assert "rotation" in result.reason
    assert geodesic_angle(result.pose.R, far.R) < 1e-3  # the data was exact, and the best pose is handed on
    sure = solve_pnp(POINTS, project(POINTS, far), CAMERA, options=PnPOptions(noise_px=1e-4))
    right(sure, far, atol=1e-4, scale=1000)


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any]], str, str]] = {
    "N = 0": (lambda: (np.zeros((0, 3)), np.zeros((0, 2))), "too_few_points", "0 finite"),
    "N = 2": (lambda: (POINTS[:2], project(POINTS[:2])), "too_few_points", "2 finite"),
    "all NaN": (lambda: (POINTS * np.nan, project(POINTS)), "too_few_points", "0 finite"),
    "two finite of nine": (
        lambda: (changed(POINTS, slice(2, 9), np.nan), project(POINTS)),
        "too_few_points",
        "2 finite",
    ),
    "collinear": (lambda: (LINE, project(LINE)), "degenerate", "one line"),
    "identical": (lambda: (POINTS * 0 + 0.1, project(POINTS * 0 + 0.1)), "degenerate", "one line"),
    "zeros": (lambda: (np.zeros((9, 3)), np.zeros((9, 2))), "degenerate", "one line"),
    "two distinct points": (lambda: (POINTS[[0, 1] * 4], project(POINTS[[0, 1] * 4])), "degenerate", "line"),
    "all pixels identical": (lambda: (POINTS, np.full((9, 2), 200.0)), "degenerate", "not determined"),
    "mirrored points": (lambda: (POINTS * [-1, 1, 1], project(POINTS)), "no_consensus", "mirror"),
    "object behind the camera": (
        lambda: (POINTS, project(POINTS, Pose(TRUTH.R, -TRUTH.t))),
        "no_consensus",
        "mirror",
    ),
    "random pixels": (lambda: (POINTS, RANDOM), "no_consensus", "chance"),
    "pixels on a line": (
        lambda: (POINTS, np.stack([np.linspace(0, 600, 9), np.full(9, 200.0)], -1)),
        "no_consensus",
        "chance",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    build, status, words = REFUSED[name]
    result = solve_pnp(*build(), CAMERA)
    assert result.status == status
    assert words in result.reason
    if status == "too_few_points" or "line" in words:
        assert np.isnan(result.pose.R).all()
        assert not result.inliers.any()


@pytest.mark.parametrize("index", [[0, 1, 2], [0, 1, 2] * 3], ids=["N = 3", "3 distinct points of 9"])
def test_three_points_are_never_ok(index: list[int]) -> None:
    px = project(POINTS[index])
    result = solve_pnp(POINTS[index], px, CAMERA)
    assert result.status in ("ambiguous", "too_few_points")
    assert "three different points" in result.reason
    poses = [result.pose, *(a.pose for a in result.alternatives)]
    assert min(geodesic_angle(p.R, TRUTH.R) for p in poses) < 1e-5
    for p in poses:
        np.testing.assert_allclose(project(POINTS[index], p), px, atol=1e-3)


def _covariances(value: float) -> np.ndarray:
    return np.tile(np.eye(2) * value, (9, 1, 1))


RAISES: dict[str, tuple[Callable[[], Any], str]] = {
    "fewer object points": (lambda: solve_pnp(POINTS[:5], project(POINTS), CAMERA), "got 5 and 9"),
    "homogeneous object points": (
        lambda: solve_pnp(np.ones((9, 4)), RANDOM, CAMERA),
        r"points_obj.*\(9, 4\)",
    ),
    "homogeneous pixels": (lambda: solve_pnp(POINTS, np.ones((9, 3)), CAMERA), r"points_px.*\(9, 3\)"),
    "one point alone": (lambda: solve_pnp(POINTS[0], RANDOM[0], CAMERA), r"points_obj.*\(3,\)"),
    "nothing": (lambda: solve_pnp(None, RANDOM, CAMERA), "points_obj"),
    "words": (lambda: solve_pnp([["a", "b", "c"]] * 4, RANDOM[:4], CAMERA), "numbers"),
    "ragged lists": (lambda: solve_pnp([[1, 2, 3], [1, 2]], RANDOM[:2], CAMERA), "numbers"),
    "complex": (lambda: solve_pnp(POINTS + 0j, RANDOM, CAMERA), "complex"),
    "a matrix for a camera": (lambda: solve_pnp(POINTS, RANDOM, CAMERA.K), "camera.*ndarray"),
    "one covariance for all": (
        lambda: solve_pnp(POINTS, RANDOM, CAMERA, cov_px=np.eye(2)),
        r"cov_px.*\(2, 2\)",
    ),
    "negative covariance": (
        lambda: solve_pnp(POINTS, RANDOM, CAMERA, cov_px=_covariances(-1)),
        "cov_px.*positive",
    ),
    "zero covariance": (
        lambda: solve_pnp(POINTS, RANDOM, CAMERA, cov_px=_covariances(0)),
        "cov_px.*positive",
    ),
    "batches of two and three": (
        lambda: solve_pnp(np.stack([POINTS] * 2), np.stack([RANDOM] * 3), CAMERA),
        "leading dimensions",
    ),
    "a seed for a generator": (lambda: solve_pnp(POINTS, RANDOM, CAMERA, generator=3), "generator.*int"),
    "f = 0": (lambda: Camera(0, 800, 320, 240, (640, 480)), "fx"),
    "NaN in K": (lambda: Camera(800, np.nan, 320, 240, (640, 480)), "fy"),
    "skew in K": (
        lambda: Camera.from_matrix(np.array([[800, 5, 320], [0, 800, 240], [0, 0, 1.0]]), (640, 480)),
        "skew",
    ),
    "no noise": (lambda: PnPOptions(noise_px=0), "noise_px"),
    "unknown kernel": (lambda: PnPOptions(kernel="tukey"), "kernel"),
    "no samples": (lambda: PnPOptions(max_samples=0), "max_samples"),
}


@pytest.mark.parametrize("name", RAISES)
def test_raises_and_says_what_is_wrong(name: str) -> None:
    call, words = RAISES[name]
    with pytest.raises(ValueError, match=words):
        call()


def test_nan_covariance_is_a_missing_point() -> None:
    cov = _covariances(1.0)
    cov[0, 0, 1] = np.nan
    result = solve_pnp(POINTS, changed(project(POINTS), 0, 1.0), CAMERA, cov_px=cov)
    right(result)
    assert not result.inliers[0]
    assert result.inliers[1:].all()


def test_empty_batch() -> None:
    result = solve_pnp(np.zeros((0, 9, 3)), np.zeros((0, 9, 2)), CAMERA)
    assert result.pose.R.shape == (0, 3, 3)
    assert result.inliers.shape == (0, 9)
    assert len(result.status) == 0


def test_no_input_array_is_written_to() -> None:
    points, px = changed(POINTS, 0, np.nan), changed(RANDOM, 1, np.inf)
    before = points.copy(), px.copy()
    solve_pnp(points, px, CAMERA, cov_px=_covariances(1.0))
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(px, before[1])
