"""solve_pnp as a whole: at the statistical limit, honest about rivals and noise, the same in every form of call."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
import pytest
import torch
from scipy.stats import chi2

from geopose.geometry import _native
from geopose.geometry._correspondences import check, flatten
from geopose.geometry._pipeline import solve
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import cramer_rao
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle, random_rotation

CAMERA = Camera(800, 800, 320, 240, (640, 480))
DISTORTED = Camera(800, 790, 320, 240, (640, 480), (-0.25, 0.08, 0.001, -0.002, 0.0))


def scenes(
    rng: np.random.Generator,
    n: int,
    count: int,
    kind: str = "box",
    noise: float = 1.0,
    cov: np.ndarray | None = None,
    camera: Camera = CAMERA,
) -> tuple[np.ndarray, np.ndarray, Pose]:
    points = rng.uniform(-0.5, 0.5, (count, n, 3)) * (1 if kind == "box" else [1, 1, 0])
    z = rng.uniform(3, 10, count)
    pose = Pose(
        random_rotation((count,), rng), np.stack([*(rng.uniform(-0.25, 0.25, (2, count)) * z), z], -1)
    )
    px = camera.project(pose.apply(points))
    error = rng.standard_normal((*px.shape, 1))
    error = noise * error if cov is None else np.linalg.cholesky(cov) @ error
    return points, px + error[..., 0], pose


def covariances(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Sizes spread by four either way, axes by up to sqrt(20)."""
    size, stretch = 4 ** rng.uniform(-1, 1, (count, n)), 20 ** rng.uniform(0, 0.5, (count, n))
    angle = rng.uniform(0, np.pi, (count, n))
    c, s = np.cos(angle), np.sin(angle)
    root = np.stack([c * size * stretch, -s * size / stretch, s * size * stretch, c * size / stretch], -1)
    root = root.reshape(count, n, 2, 2)
    return root @ root.mT


def rotation_bound(points: np.ndarray, truth: Pose, cov: np.ndarray | None = None) -> np.ndarray:
    return np.trace(cramer_rao(points, truth, CAMERA, cov)[:, 3:, 3:], axis1=-2, axis2=-1)


def check_coverage(result: PnPResult, truth: Pose, slack: tuple[float, float, float]) -> None:
    """The truth lies inside the 50, 90 and 99 % ellipsoids as often as they say."""
    xi = (result.pose @ truth.inverse()).log()
    distance = np.einsum("bi,bij,bj->b", xi, np.linalg.inv(result.covariance), xi)
    for share, off in zip((0.5, 0.9, 0.99), slack, strict=True):
        assert abs((distance < chi2.ppf(share, 6)).mean() - share) < off


@pytest.mark.parametrize("n", [6, 20])
def test_error_is_at_the_cramer_rao_bound(rng: np.random.Generator, n: int) -> None:
    points, px, truth = scenes(rng, n, 500)
    result = solve_pnp(points, px, CAMERA)
    assert (result.status == "ok").mean() > 0.99
    error = geodesic_angle(result.pose.R, truth.R) ** 2
    assert np.sqrt(error.sum() / rotation_bound(points, truth).sum()) < 1.1


def test_covariances_are_used_in_full(rng: np.random.Generator) -> None:
    cov = covariances(rng, 500, 12)
    points, px, truth = scenes(rng, 12, 500, cov=cov)
    bound = rotation_bound(points, truth, cov).sum()
    weighted = solve_pnp(points, px, CAMERA, cov_px=cov)
    plain = solve_pnp(points, px, CAMERA, options=PnPOptions(noise_px=4))
    assert np.sqrt((geodesic_angle(weighted.pose.R, truth.R) ** 2).sum() / bound) < 1.1
    assert np.sqrt((geodesic_angle(plain.pose.R, truth.R) ** 2).sum() / bound) > 1.8
    check_coverage(weighted, truth, (0.06, 0.04, 0.015))


def test_covariance_covers_the_truth(rng: np.random.Generator) -> None:
    points, px, truth = scenes(rng, 16, 1000)
    check_coverage(solve_pnp(points, px, CAMERA), truth, (0.05, 0.04, 0.012))
    px[:, :6] = rng.uniform(0, 480, (1000, 6, 2))
    result = solve_pnp(points[:100], px[:100], CAMERA)
    assert (result.status == "ok").mean() >= 0.99
    check_coverage(result, truth[:100], (0.12, 0.08, 0.03))


def test_covariance_is_the_cramer_rao_bound_at_the_estimate(rng: np.random.Generator) -> None:
    cov = covariances(rng, 1, 8)[0]
    points, px, _ = scenes(rng, 8, 1, cov=cov)
    result = solve_pnp(points[0], px[0], CAMERA, cov_px=cov)
    np.testing.assert_allclose(
        result.covariance, cramer_rao(points[0], result.pose, CAMERA, cov), rtol=1e-6, atol=1e-12
    )


def test_focal_uncertainty_enters_the_covariance(rng: np.random.Generator) -> None:
    points, px, _ = scenes(rng, 10, 1)
    known = solve_pnp(points[0], px[0], CAMERA)
    unsure = solve_pnp(points[0], px[0], dataclasses.replace(CAMERA, focal_rel_std=0.03))
    h = 1e-4
    moved = [
        solve_pnp(points[0], px[0], Camera(800 * s, 800 * s, 320, 240, (640, 480))) for s in (1 + h, 1 - h)
    ]
    slope = (moved[0].pose @ moved[1].pose.inverse()).log() / (2 * h)
    np.testing.assert_allclose(
        unsure.covariance - known.covariance, 0.03**2 * np.outer(slope, slope), rtol=0.05, atol=1e-5
    )
    np.testing.assert_array_equal(unsure.pose.R, known.pose.R)


def test_a_plane_gives_both_poses(rng: np.random.Generator) -> None:
    points, px, truth = scenes(rng, 6, 300, kind="plane")
    result = solve_pnp(points, px, CAMERA)
    best = geodesic_angle(result.pose.R, truth.R)
    either = np.min(
        [best, *(np.nan_to_num(geodesic_angle(a.pose.R, truth.R), nan=9) for a in result.alternatives)], 0
    )
    assert (best > 0.4).mean() > 0.03  # noise alone decides between the two
    assert (either > 0.4).mean() < 0.01
    weight = np.sum([a.weight for a in result.alternatives], 0)
    ambiguous = result.status == "ambiguous"
    np.testing.assert_array_equal(ambiguous, (weight >= 0.1) & ((result.status == "ok") | ambiguous))
    assert (result.alternatives[0].weight <= 1).all()
    assert "poses" in result.reason[np.flatnonzero(ambiguous)[0]]


def test_weights_are_the_frequencies_of_the_truth(rng: np.random.Generator) -> None:
    points, px, truth = scenes(rng, 8, 800, kind="plane", noise=3.0)
    result = solve_pnp(points, px, CAMERA, options=PnPOptions(noise_px=3.0))
    rival = result.alternatives[0]
    wrong = geodesic_angle(rival.pose.R, truth.R) < geodesic_angle(result.pose.R, truth.R)
    unsure = rival.weight > 0.05
    assert unsure.sum() > 100
    assert abs(wrong[unsure].mean() - rival.weight[unsure].mean()) < 0.08


@pytest.mark.parametrize(("n", "outliers"), [(12, 4), (20, 10), (20, 14), (60, 36)])
def test_outliers_are_found_and_cost_nothing(rng: np.random.Generator, n: int, outliers: int) -> None:
    points, px, truth = scenes(rng, n, 40)
    px[:, :outliers] = rng.uniform(0, 1, (40, outliers, 2)) * [640, 480]
    result = solve_pnp(points, px, CAMERA)
    alone = solve_pnp(points[:, outliers:], px[:, outliers:], CAMERA)
    assert (result.status == "ok").mean() >= 0.95
    assert result.inliers[:, outliers:].mean() > 0.995
    assert result.inliers[:, :outliers].mean() < 0.02
    clean = ~result.inliers[:, :outliers].any(-1) & result.inliers[:, outliers:].all(-1)
    np.testing.assert_allclose(result.pose.R[clean], alone.pose.R[clean], atol=1e-6)


def test_random_pixels_are_refused_and_good_ones_are_not(rng: np.random.Generator) -> None:
    points, px, _ = scenes(rng, 16, 150)
    noise = solve_pnp(points, rng.uniform(0, 1, px.shape) * [640, 480], CAMERA)
    assert (noise.status == "no_consensus").mean() >= 0.98
    cov = np.broadcast_to(9 * np.eye(2), (150, 16, 2, 2))
    crop = solve_pnp(points, 250 + 100 * rng.uniform(0, 1, px.shape), CAMERA, cov_px=cov)
    assert (crop.status == "no_consensus").mean() >= 0.98
    assert (solve_pnp(points, px, CAMERA).status == "ok").all()


@pytest.mark.parametrize("camera", [CAMERA, DISTORTED], ids=["pinhole", "distorted"])
def test_every_form_of_call_gives_the_same(rng: np.random.Generator, camera: Camera) -> None:
    cov = covariances(rng, 6, 10)
    points, px, _ = scenes(rng, 10, 6, cov=cov, camera=camera)
    px[4, :3] += 100
    whole = solve_pnp(points, px, camera, cov_px=cov)
    assert whole.pose.R.shape == (6, 3, 3)
    assert whole.covariance.shape == (6, 6, 6)
    assert whole.rms_px.shape == whole.status.shape == whole.reason.shape == (6,)
    shaped = solve_pnp(
        points.reshape(2, 3, 10, 3), px.reshape(2, 3, 10, 2), camera, cov_px=cov.reshape(2, 3, 10, 2, 2)
    )
    np.testing.assert_array_equal(shaped.pose.R, whole.pose.R.reshape(2, 3, 3, 3))
    tensors = [torch.from_numpy(a) for a in (points, px, cov)]
    as_torch = solve_pnp(tensors[0], tensors[1], camera, cov_px=tensors[2])
    assert isinstance(as_torch.pose.R, torch.Tensor)
    assert isinstance(as_torch.inliers, torch.Tensor)
    np.testing.assert_array_equal(as_torch.pose.R.numpy(), whole.pose.R)
    _, data = flatten(*check(points, px, camera, cov), camera)
    native = solve(*(torch.from_numpy(a) for a in data[:3]), data[3], PnPOptions(), 0)
    np.testing.assert_allclose(native.pose.R[0].numpy(), whole.pose.R, atol=1e-9)
    np.testing.assert_allclose(native.covariance[0].numpy(), whole.covariance, rtol=1e-4, atol=1e-10)
    for i in range(6):
        one = solve_pnp(points[i], px[i], camera, cov_px=cov[i])
        assert isinstance(one.status, str)
        assert one.status == whole.status[i]
        np.testing.assert_allclose(one.pose.R, whole.pose.R[i], atol=1e-9)
        np.testing.assert_array_equal(one.inliers, whole.inliers[i])


def test_a_lost_neighbour_changes_no_bit(rng: np.random.Generator) -> None:
    points, px, _ = scenes(rng, 12, 5)
    px[2, :5] = rng.uniform(0, 480, (5, 2))
    clean = solve_pnp(points, px, CAMERA)
    for lost in (np.nan, 0.0, 1e9):
        broken = px.copy()
        broken[1] = lost
        dirty = solve_pnp(points, broken, CAMERA)
        assert dirty.status[1] != "ok"
        for i in (0, 2, 3, 4):
            np.testing.assert_array_equal(dirty.pose.R[i], clean.pose.R[i])
            np.testing.assert_array_equal(dirty.covariance[i], clean.covariance[i])


def test_chunks_make_no_difference(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    points, px, _ = scenes(rng, 8, 5)
    px[1, :3] = rng.uniform(0, 480, (3, 2))
    points[3:, :, 2] = 0
    cameras = Camera(np.full(5, 800.0), 800.0, 320.0, 240.0, (640, 480))
    whole = solve_pnp(points, px, cameras)
    monkeypatch.setattr("geopose.geometry._pipeline.CHUNK", 16)
    monkeypatch.setattr("geopose.geometry.ransac._CHUNK", 1)
    parts = solve_pnp(points, px, cameras)
    np.testing.assert_array_equal(parts.pose.R, whole.pose.R)
    np.testing.assert_array_equal(parts.covariance, whole.covariance)
    np.testing.assert_array_equal(parts.status, whole.status)
    assert len(parts.alternatives) == len(whole.alternatives)
    for a, b in zip(parts.alternatives, whole.alternatives, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


def test_shared_points_and_a_batch_of_cameras(rng: np.random.Generator) -> None:
    points, _, truth = scenes(rng, 10, 3)
    cameras = Camera(np.array([600.0, 800, 900]), 800.0, 320.0, 240.0, (640, 480))
    px = cameras.project(truth.apply(points[0]))
    result = solve_pnp(points[0], px, cameras)
    np.testing.assert_allclose(result.pose.R, truth.R, atol=1e-7)
    px[1, :4] = 5.0
    result = solve_pnp(points[0], px, cameras)
    np.testing.assert_allclose(result.pose.R, truth.R, atol=1e-7)


def test_a_batch_of_distortions_shares_one_matrix(rng: np.random.Generator) -> None:
    d = np.stack([DISTORTED.distortion, np.zeros(5)])
    points, px, _ = scenes(rng, 8, 2)
    both = solve_pnp(points, px, Camera(800, 790, 320, 240, (640, 480), d))
    for i in range(2):
        alone = solve_pnp(points[i], px[i], Camera(800, 790, 320, 240, (640, 480), d[i]))
        np.testing.assert_allclose(both.pose.t[i], alone.pose.t, rtol=1e-9)


def test_the_generator_decides_the_draws(rng: np.random.Generator) -> None:
    points, px, _ = scenes(rng, 40, 1)
    px[0, :24] = rng.uniform(0, 480, (24, 2))

    def run(generator: np.random.Generator | torch.Generator | None) -> np.ndarray:
        return solve_pnp(points[0], px[0], CAMERA, generator=generator).pose.R

    np.testing.assert_array_equal(run(np.random.default_rng(1)), run(np.random.default_rng(1)))
    np.testing.assert_array_equal(run(None), run(None))
    np.testing.assert_allclose(run(torch.Generator().manual_seed(3)), run(None), atol=1e-5)


def test_opencv_agrees_on_a_clean_problem(rng: np.random.Generator) -> None:
    points, px, _ = scenes(rng, 12, 1, camera=DISTORTED)
    result = solve_pnp(points[0], px[0], DISTORTED)
    distortion = np.array(DISTORTED.distortion)
    _, rvec, tvec = cv2.solvePnP(points[0], px[0], DISTORTED.K, distortion, flags=cv2.SOLVEPNP_SQPNP)
    rvec, tvec = cv2.solvePnPRefineLM(
        points[0], px[0], DISTORTED.K, distortion, rvec, tvec, (cv2.TERM_CRITERIA_COUNT, 100, 0)
    )
    np.testing.assert_allclose(result.pose.R, cv2.Rodrigues(rvec)[0], atol=1e-6)
    np.testing.assert_allclose(result.pose.t, tvec.ravel(), atol=1e-5)
    seen = DISTORTED.project(result.pose.apply(points[0]))
    assert result.rms_px == pytest.approx(np.sqrt(((seen - px[0]) ** 2).sum(-1).mean()))


@pytest.mark.parametrize("kernel", ["huber", "cauchy", "geman_mcclure"])
def test_kernels_bear_what_the_gate_lets_through(rng: np.random.Generator, kernel: str) -> None:
    points, px, truth = scenes(rng, 20, 100, noise=0.5)
    px[:, :3] += 4.0 * rng.choice([-1, 1], (100, 3, 2))  # eight standard deviations, inside a gate of twenty
    options = PnPOptions(noise_px=0.5, gate_sigma=20, kernel=kernel)
    robust = solve_pnp(points, px, CAMERA, options=options)
    plain = solve_pnp(points, px, CAMERA, options=dataclasses.replace(options, kernel="none"))
    error = [np.median(geodesic_angle(r.pose.R, truth.R)) for r in (robust, plain)]
    assert error[0] < 0.8 * error[1]


def test_gradients_of_a_batch_reach_every_input(rng: np.random.Generator) -> None:
    cov = covariances(rng, 3, 8)
    points, _, truth = scenes(rng, 8, 3)
    px = CAMERA.project(truth.apply(points[0])) + rng.standard_normal((3, 8, 2))
    px[0, 0] = np.nan
    inputs = [torch.tensor(a, requires_grad=True) for a in (points[0], px, cov)]
    result = solve_pnp(inputs[0], inputs[1], CAMERA, cov_px=inputs[2])
    (result.pose.t.sum() + result.pose.R[..., 0].sum()).backward()
    for x in inputs:
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().max() > 0
    assert not result.covariance.requires_grad
    h = 1e-4
    up, down = px.copy(), px.copy()
    up[1, 2, 0] += h
    down[1, 2, 0] -= h
    moved = [solve_pnp(points[0], p, CAMERA, cov_px=cov).pose for p in (up, down)]
    numeric = ((moved[0].t - moved[1].t).sum() + (moved[0].R - moved[1].R)[..., 0].sum()) / (2 * h)
    assert float(inputs[1].grad[1, 2, 0]) == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_px", "a"),
        ("noise_px", math.inf),
        ("noise_px", math.nan),
        ("gate_sigma", None),
        ("max_samples", 10.5),
        ("max_iterations", "a"),
    ],
)
def test_options_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value!r}"):
        PnPOptions(**{name: value})


def test_no_options_are_the_defaults_not_none() -> None:
    with pytest.raises(ValueError, match="options: expected PnPOptions, got NoneType"):
        solve_pnp(np.zeros((8, 3)), np.zeros((8, 2)), CAMERA, options=None)  # type: ignore[arg-type]


def test_only_compiling_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def twice(x: float) -> float:
        return 2 * x

    keep = _native.compile_once
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_native, "compile_once", lambda *_: keep(twice, "float64(float64)"))
    said = []
    for _ in range(2):  # compiled, then loaded
        assert _native.machine_code.__wrapped__()(3.0) == 6.0
        said.append(sum("compiling" in m for m in caplog.messages))
    assert said == [1, 1]
