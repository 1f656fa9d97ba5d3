"""Heatmaps: drawing Gaussians, and reading sub-pixel positions with their covariance.

Pixels are those of the heatmap itself: (x, y), an integer is a pixel's centre.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geopose.geometry._arrays import Array, check_last, either

_WINDOW_STEPS = 8


@either
def gaussian_heatmaps(points_px: Array, size_hw: tuple[int, int], sigma: Array | float) -> Array:
    """Heatmaps (..., K, H, W) with a Gaussian of peak one and width `sigma` pixels at `points_px` (..., K,
    2).

    sigma: a number or (..., K). A point that is not finite draws nothing; one outside draws its tail.
    """
    check_last("points_px", points_px, None, 2)
    height, width = int(size_hw[0]), int(size_hw[1])
    sigma = torch.as_tensor(sigma, dtype=points_px.dtype, device=points_px.device)
    if not bool((sigma > 0).all()):
        raise ValueError(f"sigma: expected a positive number of pixels, got {sigma}")
    finite = torch.isfinite(points_px).all(-1)
    x, y = torch.where(finite[..., None], points_px, torch.zeros_like(points_px)).unbind(-1)
    along_x = torch.exp(-0.5 * ((_grid(width, x) - x[..., None]) / sigma[..., None]) ** 2)
    along_y = torch.exp(-0.5 * ((_grid(height, y) - y[..., None]) / sigma[..., None]) ** 2)
    return along_y[..., :, None] * along_x[..., None, :] * finite[..., None, None].to(points_px.dtype)


@either
def soft_argmax(logits: Array, window: float | None = None) -> tuple[Array, Array, Array]:
    """Mean (..., K, 2), covariance (..., K, 2, 2) in pixels^2 and mass (..., K) of the spatial softmax.

    Args:
        logits: (..., K, H, W); half precision is computed and returned in float32.
        window: None takes the whole map. A number restricts the distribution to a box of this half-width in
            pixels around its own mean (sought from the peak, at most 2.5 pixels off), so that a second peak does
            not pull; three standard deviations of the peak are a good size. The box may reach over the border:
            the logits are continued there by their own parabola (never rising), which keeps the mean of a
            Gaussian peak unbiased up to the border. Mean and covariance are those inside the box, `mass` is
            its share of the whole softmax.
    Notes:
        Mean and covariance are exact moments, taken about the mean (no difference of large numbers). A peak
        narrower than a pixel has covariance near zero: add a floor before inverting it. The place of the box
        is held fixed in the gradient.
    """
    check_last("logits", logits, None, None)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    height, width = logits.shape[-2:]
    if window is None:
        p = torch.softmax(logits.flatten(-2), -1).unflatten(-1, (height, width))
        mean, cov = _moments(p, _grid(width, p), _grid(height, p))
        return mean, cov, torch.ones_like(mean[..., 0])
    if not window >= 1 or min(height, width) < 3:
        raise ValueError(
            f"window: expected a half-width >= 1 on a map of 3x3 or more, got {window} on {height}x{width}"
        )
    peak = logits.flatten(-2).max(-1)
    level = logits - peak.values.detach()[..., None, None]
    place = torch.stack([peak.indices % width, peak.indices // width], -1)
    radius = math.ceil(window) + 3
    local = _grid(2 * radius + 1, level) - radius  # offsets from the peak
    p, inside = _patch(level, place, radius)
    centre = torch.zeros_like(place, dtype=p.dtype)
    with torch.no_grad():
        for _ in range(_WINDOW_STEPS):
            centre = _mean(p * _box(centre, local, local, window), local, local).clamp(-2.5, 2.5)
    weighted = p * _box(centre, local, local, window)
    mean, cov = _moments(weighted / weighted.sum((-2, -1), keepdim=True), local, local)
    return mean + place, cov, (weighted * inside).sum((-2, -1)) / torch.exp(level).sum((-2, -1))


def _patch(level: Tensor, place: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """exp(`level`) (..., 2r + 1, 2r + 1) around the pixel `place` (..., 2), and where it lies on the map."""
    height, width = level.shape[-2:]
    steps = torch.arange(2 * radius + 1, device=level.device) - radius
    columns, rows = place[..., :1] + steps, place[..., 1:] + steps
    on_map_x, on_map_y = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    picked = level.flatten(-2).gather(-1, index.flatten(-2)).unflatten(-1, index.shape[-2:])
    picked = _continued(_continued(picked, on_map_x).mT, on_map_y).mT
    return torch.exp(picked), on_map_y[..., :, None] & on_map_x[..., None, :]


def _grid(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def _mean(weight: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    total = weight.sum((-2, -1))
    return torch.stack([weight.sum(-2) @ xs / total, weight.sum(-1) @ ys / total], -1)


def _moments(p: Tensor, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the distributions `p` (..., H, W), which sum to one.

    Offsets are taken from the peak first, so that rounding in the sum of `p` is not multiplied by the position.
    """
    (x, dx, xx), (y, dy, yy) = _marginal(p.sum(-2), xs), _marginal(p.sum(-1), ys)
    xy = ((p @ dx[..., None]).squeeze(-1) * dy).sum(-1)
    return torch.stack([x, y], -1), torch.stack([xx, xy, xy, yy], -1).unflatten(-1, (2, 2))


def _marginal(p: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (...), offsets from it (..., G) and variance (...) of the distributions `p` (..., G) over `grid`."""
    peak = grid[p.argmax(-1)]
    offset = grid - peak[..., None]
    shift = (p * offset).sum(-1)
    offset = offset - shift[..., None]
    return peak + shift, offset, (p * offset * offset).sum(-1)


def _box(centre: Tensor, xs: Tensor, ys: Tensor, half: float) -> Tensor:
    """The share of each pixel (..., H, W) in the box of half-width `half` around `centre` (..., 2)."""
    x = (half + 0.5 - (xs - centre[..., :1]).abs()).clamp(0, 1)
    y = (half + 0.5 - (ys - centre[..., 1:]).abs()).clamp(0, 1)
    return y[..., :, None] * x[..., None, :]


def _continued(patch: Tensor, on_map: Tensor) -> Tensor:
    """The patch (..., G, 2r + 1) with the columns outside of `on_map` (..., 2r + 1) continued from its middle, which is
    inside, by the parabola of the three columns before, never rising."""
    radius = patch.shape[-1] // 2

    def outward(x: Tensor) -> tuple[Tensor, ...]:  # both ways at once, from two columns before the middle
        return torch.stack([x[..., : radius + 3].flip(-1), x[..., radius - 2 :]], -2).unbind(-1)

    columns = list(outward(patch))
    for k, known in enumerate(outward(on_map[..., None, :])[3:], 3):
        new = 3 * columns[k - 1] - 3 * columns[k - 2] + columns[k - 3]
        usable = torch.isfinite(new) & (new < columns[k - 1])
        columns[k] = torch.where(known, columns[k], torch.where(usable, new, columns[k - 1]))
    left, right = torch.stack(columns[3:], -1).unbind(-2)
    return torch.cat([left.flip(-1), patch[..., radius : radius + 1], right], -1)
