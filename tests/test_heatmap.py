"""Heatmaps: drawing, exact moments, no bias at the border or from a second peak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopose.geometry.heatmap import gaussian_heatmaps, soft_argmax


def gaussian_logits(points: np.ndarray, size_hw: tuple[int, int], sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    dx, dy = columns - points[..., 0, None, None], rows - points[..., 1, None, None]
    return -(dx**2 + dy**2) / (2 * sigma**2)


def test_gaussians_are_where_they_are_asked_for():
    maps = gaussian_heatmaps([[3.0, 1.0], [2.5, 4.0], [-2.0, 0.0]], (6, 8), 1.5)
    assert maps.shape == (3, 6, 8)
    assert maps[0, 1, 3] == 1
    assert maps[0].sum(0).argmax() == 3
    assert maps[1, 4, 2] == pytest.approx(np.exp(-0.5 * (0.5 / 1.5) ** 2))
    assert maps[1, 4, 2] == pytest.approx(maps[1, 4, 3])
    assert maps[2].max() == pytest.approx(np.exp(-0.5 * (2 / 1.5) ** 2))


def test_gaussians_agree_with_the_formula(rng):
    points = rng.uniform(-3, 20, (2, 3, 2))
    expected = np.exp(gaussian_logits(points, (12, 17), 2.2))
    np.testing.assert_allclose(gaussian_heatmaps(points, (12, 17), 2.2), expected, atol=1e-15)
    np.testing.assert_allclose(
        gaussian_heatmaps(points, (12, 17), np.full((2, 3), 2.2)), expected, atol=1e-15
    )


def test_points_that_are_not_finite_draw_nothing():
    maps = gaussian_heatmaps(torch.tensor([[1.0, torch.nan], [1.0, 2.0]], requires_grad=True), (5, 5), 1.0)
    assert maps[0].max() == 0
    assert maps[1].max() == 1
    with pytest.raises(ValueError, match="sigma"):
        gaussian_heatmaps(np.zeros((1, 2)), (4, 4), 0.0)


def test_moments_are_exact(rng):
    logits = rng.standard_normal((2, 3, 9, 7)) * 3
    mean, cov, mass = soft_argmax(logits)
    p = np.exp(logits) / np.exp(logits).sum((-2, -1), keepdims=True)
    rows, columns = np.mgrid[:9, :7]
    for i in np.ndindex(2, 3):
        samples = np.stack([columns.ravel(), rows.ravel()])
        np.testing.assert_allclose(mean[i], np.average(samples, axis=1, weights=p[i].ravel()), atol=1e-13)
        np.testing.assert_allclose(cov[i], np.cov(samples, aweights=p[i].ravel(), ddof=0), atol=1e-13)
    assert (mass == 1).all()


def test_a_large_map_in_float32_keeps_its_covariance():
    logits = gaussian_logits(np.array([1000.3, 7.0]), (15, 1024), 1.2).astype(np.float32) + np.float32(50)
    mean, cov, _ = soft_argmax(logits[None])
    assert mean[0, 0] == pytest.approx(1000.3, abs=1e-4)
    assert cov[0, 0, 0] == pytest.approx(1.44, rel=1e-4)


def test_a_single_hot_pixel():
    logits = np.full((1, 5, 6), -np.inf)
    logits[0, 2, 4] = 0
    mean, cov, _ = soft_argmax(logits)
    np.testing.assert_array_equal(mean, [[4, 2]])
    np.testing.assert_array_equal(cov, np.zeros((1, 2, 2)))


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_no_bias_anywhere_up_to_the_border(rng, sigma):
    points = rng.uniform(-0.5, 31.5, (300, 2))
    points[:4] = [[-0.5, 31.5], [0, 0], [31.49, 16.2], [12.0, 31.0]]
    logits = gaussian_logits(points, (32, 32), sigma)
    mean, cov, _ = soft_argmax(logits, window=3 * sigma)
    np.testing.assert_allclose(mean, points, atol=0.01)
    np.testing.assert_allclose(np.linalg.eigvalsh(cov), sigma**2, rtol=0.06)  # the cut tails are missing
    whole, _, _ = soft_argmax(logits)
    assert np.abs(whole - points).max() > 0.5  # what the window is for


def test_a_second_peak_does_not_pull():
    one, two = (gaussian_logits(np.array(c), (32, 40), 1.5) for c in ([10.3, 8.6], [30.0, 25.0]))
    logits = np.log(np.exp(one) + 0.5 * np.exp(two))[None]
    mean, cov, mass = soft_argmax(logits, window=5)
    np.testing.assert_allclose(mean[0], [10.3, 8.6], atol=0.01)
    assert mass[0] == pytest.approx(2 / 3, abs=0.01)
    assert np.linalg.norm(soft_argmax(logits)[0] - mean) > 5
    assert soft_argmax(logits)[1][0, 0, 0] > 10 * cov[0, 0, 0]


def test_oblique_covariance(rng):
    sigma = np.array([[4.0, 1.5], [1.5, 2.0]])
    rows, columns = np.mgrid[:41, :41]
    d = np.stack([columns - 20.2, rows - 19.7], -1)
    logits = -0.5 * np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(sigma), d)
    _, cov, _ = soft_argmax(logits[None])
    np.testing.assert_allclose(cov[0], sigma, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3.0])
def test_gradient_and_batch(window):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64)
    logits[..., 3, 3] += 6  # a clear peak, away from the border
    if window is None:
        assert torch.autograd.gradcheck(lambda x: soft_argmax(x)[:2], logits.clone().requires_grad_())
    leaf = logits.clone().requires_grad_()
    soft_argmax(leaf, window)[0].sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad.abs().max() > 0
    spoilt = logits.clone()
    spoilt[0, 1] = torch.nan
    for clean, dirty in zip(soft_argmax(logits, window), soft_argmax(spoilt, window), strict=True):
        assert torch.equal(clean[1], dirty[1])
        assert torch.equal(clean[0, 0], dirty[0, 0])


def test_half_precision_is_computed_in_float32():
    mean, _, _ = soft_argmax(torch.zeros(1, 64, 64, dtype=torch.float16))
    assert mean.dtype == torch.float32
    assert mean.tolist() == [[31.5, 31.5]]


def test_bad_window():
    with pytest.raises(ValueError, match="window"):
        soft_argmax(np.zeros((1, 8, 8)), window=0.5)
    with pytest.raises(ValueError, match="window"):
        soft_argmax(np.zeros((1, 2, 8)), window=2)
