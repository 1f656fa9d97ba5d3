"""How sharp a picture is, measured on its own edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def edge_width(picture: NDArray[np.uint8]) -> float:
    """Standard deviation, pixels, of the blur of the clearest edges of a picture (H, W, 3); NaN where there is no edge.

    Notes:
        Zhuo and Sim, "Defocus map estimation from a single image", Pattern Recognition 2011, section 3: blurred once
        more by sigma, an edge's gradient shrinks by sqrt(1 + sigma^2 / width^2). A little more blur tells nothing of a
        wide edge, whose slope is lost in the noise: sigma grows until it is like the width.
    """
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    wide = float("nan")
    for sigma in (1.0, 2.0, 4.0):
        found = _edge_width(grey, sigma)
        wide = found if np.isfinite(found) else wide
        if not found > 1.5 * sigma:
            break
    return wide


def _edge_width(grey: NDArray[np.float32], sigma: float) -> float:
    # Noise would look like sharp edges: everything is seen through a slight blur, taken out again at the end.
    before = 0.8 * sigma
    first = cv2.GaussianBlur(grey, (0, 0), before)
    again = cv2.GaussianBlur(first, (0, 0), sigma)
    one, two = (np.hypot(*np.gradient(g)) for g in (first, again))
    around = int(6 * sigma) + 1
    ridge = one >= 0.97 * cv2.dilate(one, np.ones((around, around), np.uint8))  # in the middle of an edge
    strong = ridge & (one >= max(0.3 * float(one.max()), 2.0 / sigma))
    if strong.sum() < 8:
        return float("nan")
    ratio = np.maximum(one[strong] / np.maximum(two[strong], 1e-6), 1 + 1e-6)
    squared = (
        float(np.median(sigma**2 / (ratio**2 - 1))) - before**2 - 1 / 3
    )  # 1/3: a difference over two pixels
    return float(np.sqrt(max(squared, 0.0)))
