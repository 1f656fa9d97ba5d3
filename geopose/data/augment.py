"""What lens, sensor and file format do to a picture, drawn at random."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[Any]  # float32
_GRAINS = 1024  # pixels of a square of noise


def tone(generator: np.random.Generator, image: F32) -> F32:
    """Exposure, white balance, contrast and tone curve of an unknown camera; (H, W, 3) float32 about [0,
    1]."""
    gain = np.exp(generator.normal(0, 0.15)) * np.exp(generator.normal(0, 0.05, 3))
    offset = generator.normal(0, 0.03)
    change = np.column_stack([np.diag(gain), np.full(3, offset)])  # all of it is linear
    if generator.random() < 0.5:
        grey = float((gain * cv2.mean(image)[:3] + offset).mean())
        change *= np.exp(generator.normal(0, 0.2))
        change[:, 3] += grey * (1 - change[0, 0] / gain[0])
    if generator.random() < 0.3:
        kept = generator.uniform(0.3, 1.3)
        change = (kept * np.eye(3) + (1 - kept) / 3) @ change
    return np.clip(cv2.transform(image, change), 0, 1)


def defocus(generator: np.random.Generator, image: F32, strongest: float = 1.0) -> F32:
    """Softness of lens, resampling and motion; `strongest` scales the blur (1 for pictures of 128 pixels)."""
    kind = generator.random()
    if kind < 0.12:  # motion
        length = max(int(generator.integers(2, 8) * strongest), 2) | 1
        kernel = np.zeros((length, length), np.float32)
        angle = generator.uniform(0, np.pi)
        middle, reach = 0.5 * (length - 1), 0.5 * (length - 1) * np.array([np.cos(angle), np.sin(angle)])
        ends = np.rint([middle - reach, middle + reach]).astype(int)
        cv2.line(kernel, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 1.0)
        kernel += kernel[::-1, ::-1]  # else it moves the picture, and the truth would stay behind
        return cv2.filter2D(image, -1, kernel / float(kernel.sum()))
    if kind < 0.45:  # fewer pixels than this picture has
        height, width = image.shape[:2]
        most = 1 + 1.8 * strongest
        factor = generator.uniform(min(1.1, most), most)
        size = (max(int(width / factor), 8), max(int(height / factor), 8))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        back = cv2.INTER_LINEAR if generator.random() < 0.6 else cv2.INTER_CUBIC
        return cv2.resize(small, (width, height), interpolation=back)
    return cv2.GaussianBlur(
        image, (0, 0), float(generator.uniform(0.35, 0.6 + 0.8 * strongest * generator.random()))
    )


@functools.lru_cache(maxsize=1)
def _noise() -> F32:
    noise = np.random.default_rng(13).standard_normal((_GRAINS, _GRAINS, 3), dtype=np.float32)
    noise.setflags(write=False)
    return noise


def _grains(generator: np.random.Generator, height: int, width: int) -> F32:
    """(height, width, 3) of normal noise, not to be written to: a window of a stored square, which takes no time, where
    there are many windows."""
    if max(height, width) > _GRAINS // 2:
        return generator.standard_normal((height, width, 3), dtype=np.float32)
    y, x = generator.integers(_GRAINS - height + 1), generator.integers(_GRAINS - width + 1)
    return _noise()[y : y + height, x : x + width]


def sensor(generator: np.random.Generator, image: F32) -> NDArray[np.uint8]:
    """uint8 picture with sharpening, noise of photons and electronics, and compression."""
    if generator.random() < 0.3:
        soft = cv2.GaussianBlur(image, (0, 0), 1.0)
        image = image + np.float32(generator.uniform(0.2, 1.2)) * (image - soft)
    sigma = float(np.exp(generator.uniform(np.log(0.002), np.log(0.05))))
    height, width = image.shape[:2]
    if generator.random() < 0.4:  # demosaicing leaves coarse grains
        coarse = _grains(generator, height // 2 + 1, width // 2 + 1)
        noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        noise = _grains(generator, height, width)
    noise = noise * np.float32(sigma)
    if generator.random() < 0.5:
        noise *= np.sqrt(np.clip(image, 0.02, 1)) * np.float32(1.5)
    noise += image
    out = np.clip(noise * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    if generator.random() < 0.35:
        quality = int(generator.integers(35, 96))
        _, data = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])
        out = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return out
