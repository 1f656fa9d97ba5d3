"""Procedural pictures of surfaces and rooms: the raw material of the backgrounds in `clutter.py`.

Every painter takes a `numpy.random.Generator` and a side length and returns an (n, n, 3) uint8 RGB picture.
None of them tries to be a photograph; together they span what a photograph's background can do to a network:
smooth gradients, natural (1/f) noise, sharp edges, fine repeated structure, writing, clutter with shadows,
all in many palettes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;-+=()[]"


def fractal(
    generator: np.random.Generator, n: int, roughness: float = 0.5, base: int = 2
) -> NDArray[np.float32]:
    """(n, n) noise in [0, 1]: octaves of upsampled grids, each weaker by `roughness` (0.5 is about 1/f)."""
    out = np.zeros((n, n), np.float32)
    amplitude, cells = 1.0, base
    while cells <= n:
        grid = generator.standard_normal((cells + 1, cells + 1), np.float32)
        out += amplitude * cv2.resize(
            grid, (n, n), interpolation=cv2.INTER_CUBIC if cells < 32 else cv2.INTER_LINEAR
        )
        amplitude, cells = amplitude * roughness, cells * 2
    low, high = np.percentile(out[::4, ::4], [1, 99])
    return np.clip((out - low) / max(float(high - low), 1e-6), 0, 1)


def palette(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """(count, 3) RGB colours in [0, 1] that go together: mostly greyish and warm, at times loud."""
    mood = generator.random()
    hue = (
        generator.random() if mood > 0.4 else generator.normal(0.08, 0.05)
    )  # 0.08 is wood, paper, skin, dust
    hues = (hue + generator.normal(0, 0.05 if mood < 0.7 else 0.3, count)) % 1.0
    top = 0.35 if mood < 0.55 else 0.7 if mood < 0.8 else 1.0
    saturation = generator.uniform(0, top, count)
    value = generator.beta(1.3, 1.3, count)
    hsv = np.stack([hues * 360, saturation, value], -1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].reshape(count, 3)


def tinted(generator: np.random.Generator, field: NDArray[np.float32], stops: int = 4) -> Picture:
    """A scalar field in [0, 1] looked up in a random colour ramp."""
    colors = palette(generator, stops)
    if generator.random() < 0.5:
        colors = colors[np.argsort(colors.sum(-1))]
    ramp = cv2.resize(colors[None], (256, 1), interpolation=cv2.INTER_LINEAR)
    table = np.ascontiguousarray(np.clip(ramp * 255, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    grey = cv2.cvtColor((np.clip(field, 0, 1) * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.LUT(grey, table), np.uint8)


def shaded(picture: Picture, factor: NDArray[np.float32]) -> Picture:
    """`picture` times an (n, n) factor, saturated."""
    scaled = cv2.multiply(picture, cv2.merge([factor] * 3), dtype=cv2.CV_8U)
    return np.asarray(scaled, np.uint8)


def _byte(color: NDArray[np.float32]) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in np.clip(color * 255, 0, 255))
    return r, g, b


def _coordinates(generator: np.random.Generator, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two (n, n) coordinate fields in about [0, 1], turned by a random angle."""
    angle = generator.uniform(0, 2 * np.pi) if generator.random() < 0.5 else generator.normal(0, 0.1)
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def clouds(generator: np.random.Generator, n: int) -> Picture:
    """Coloured natural noise, from smoke to gravel."""
    if generator.random() < 0.5:
        return tinted(
            generator, fractal(generator, n, generator.uniform(0.3, 0.95), int(generator.integers(1, 5)))
        )
    planes = [fractal(generator, n, generator.uniform(0.3, 0.8), 2) for _ in range(3)]
    mix = np.eye(3) + generator.uniform(0, 1.5) * np.ones((3, 3))
    mixed = cv2.transform(cv2.merge(planes), (mix / mix.sum(1, keepdims=True)).astype(np.float32))
    return np.asarray(np.clip(mixed * 255, 0, 255), np.uint8)


def gradient(generator: np.random.Generator, n: int) -> Picture:
    """A wall, a sky, a studio sweep: almost nothing, softly lit."""
    corners = palette(generator, 9).reshape(3, 3, 3)
    corners = corners.mean((0, 1)) + generator.uniform(0.1, 1.0) * (corners - corners.mean((0, 1)))
    smooth = cv2.resize(corners.astype(np.float32), (n, n), interpolation=cv2.INTER_CUBIC)
    smooth += generator.uniform(0, 0.06) * generator.standard_normal((n, n, 1), np.float32)
    return np.asarray(np.clip(smooth * 255, 0, 255), np.uint8)


def stripes(generator: np.random.Generator, n: int) -> Picture:
    """Stripes, checkers or plaid, plain or bent."""
    u, v = _coordinates(generator, n)
    if generator.random() < 0.4:
        u = u + generator.uniform(0.02, 0.2) * fractal(generator, n, 0.4)
    fu, fv = 2 ** generator.uniform(1, 6), 2 ** generator.uniform(1, 6)
    kind = generator.integers(3)
    a = np.floor(u * fu).astype(np.int32)
    b = np.floor(v * (fu if generator.random() < 0.6 else fv)).astype(np.int32)
    index = a if kind == 0 else a + b if kind == 1 else (a % 2) + 2 * (b % 2)
    colors = palette(generator, int(generator.integers(2, 6)))
    picture = (colors[index % len(colors)] * 255).astype(np.uint8)
    return shaded(picture, 0.7 + 0.5 * fractal(generator, n, 0.6))


def wood(generator: np.random.Generator, n: int) -> Picture:
    """Planks with grain."""
    u, v = _coordinates(generator, n)
    planks = 2 ** generator.uniform(0, 3)
    board = np.floor(u * planks).astype(np.int32)
    offset = generator.random(64, np.float32)[board % 64]
    grain = fractal(generator, n, 0.6)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (generator.uniform(3, 15) * (u + 0.15 * grain + offset) + v))
    fine = cv2.resize(generator.random((n, max(4, n // 24)), np.float32), (n, n))
    field = 0.45 * rings + 0.3 * fine + 0.35 * offset
    brown = np.array([[0.25, 0.14, 0.07], [0.55, 0.36, 0.2], [0.85, 0.68, 0.47]], np.float32)
    if generator.random() < 0.7:
        brown = np.clip(brown * generator.uniform(0.5, 1.4) + generator.normal(0, 0.05, 3), 0, 1).astype(
            np.float32
        )
        ramp = cv2.resize(brown[None], (256, 1))[0]
        picture = (ramp[(np.clip(field, 0, 1) * 255).astype(np.uint8)] * 255).astype(np.uint8)
    else:
        picture = tinted(generator, field)
    gap = np.abs((u * planks) % 1.0 - 0.5) > 0.49
    picture[gap] //= 3
    return picture


def bricks(generator: np.random.Generator, n: int) -> Picture:
    """Bricks, tiles, keyboards, windows, shelves of books: rows of boxes with gaps."""
    rows = int(generator.integers(3, 22))
    height = n / rows
    colors = palette(generator, int(generator.integers(2, 8)))
    base = palette(generator, 1)[0]
    picture = np.full((n, n, 3), _byte(base), np.uint8)
    aspect, jitter, gap = (
        generator.uniform(0.3, 3.5),
        generator.choice([0.0, 0.0, 0.6]),
        generator.uniform(0.02, 0.15),
    )
    spread = generator.uniform(0, 0.12)
    shift = generator.choice([0.0, 0.5])
    for row in range(rows):
        x = -height * aspect * (shift * (row % 2) + generator.random() * jitter)
        while x < n:
            w = max(3.0, height * aspect * (1 + jitter * generator.uniform(-0.7, 1.0)))
            color = colors[generator.integers(len(colors))] + np.float32(generator.normal(0, spread))
            p = (int(x + gap * height), int((row + gap) * height))
            q = (int(x + w - gap * height), int((row + 1 - gap) * height))
            cv2.rectangle(picture, p, q, _byte(color), -1)
            x += w
    return shaded(picture, 0.65 + 0.5 * fractal(generator, n, 0.8))


def cells(generator: np.random.Generator, n: int) -> Picture:
    """Stones, leaves, foam: Voronoi cells with shaded edges."""
    count = int(2 ** generator.uniform(4, 10))
    seeds = np.ones((n, n), np.uint8)
    seeds[generator.integers(0, n, count), generator.integers(0, n, count)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    colors = palette(generator, int(generator.integers(2, 8)))
    light = generator.uniform(0.6, 1.2, count + 2).astype(np.float32)
    picture = (colors[label % len(colors)] * 255).astype(np.uint8)
    return shaded(
        picture, light[label % len(light)] * (1.1 - 0.5 * distance / max(float(distance.max()), 1.0))
    )


def writing(generator: np.random.Generator, n: int) -> Picture:
    """A page, a poster or a label."""
    paper, ink = palette(generator, 2)
    if generator.random() < 0.6:
        paper, ink = 0.85 + 0.15 * paper, 0.3 * ink
    picture = np.full((n, n, 3), _byte(paper), np.uint8)
    size = 2 ** generator.uniform(-1.6, 1.3)
    font, y = FONTS[generator.integers(len(FONTS))], 0.0
    while y < n:
        y += size * generator.uniform(28, 40)
        letters = generator.integers(0, len(LETTERS), 60)
        text = "".join(LETTERS[i] for i in letters)[: int(generator.integers(5, 60))]
        at = (int(generator.uniform(-30, 20)), int(y))
        cv2.putText(picture, text, at, font, size, _byte(ink), int(1 + size * 1.5), cv2.LINE_AA)
        if generator.random() < 0.08:
            corner = (int(generator.uniform(20, n)), int(y + generator.uniform(10, 90)))
            cv2.rectangle(picture, (at[0] + 30, int(y)), corner, _byte(palette(generator, 1)[0]), -1)
    turn = cv2.getRotationMatrix2D(
        (n / 2, n / 2), float(generator.normal(0, 25)), float(generator.uniform(1.0, 1.5))
    )
    return np.asarray(cv2.warpAffine(picture, turn, (n, n), borderMode=cv2.BORDER_REFLECT), np.uint8)


def lights(generator: np.random.Generator, n: int) -> Picture:
    """A dark room or a sky with points, blurred discs and glows."""
    picture = np.full((n, n, 3), _byte(0.25 * generator.random() * palette(generator, 1)[0]), np.uint8)
    large = generator.uniform(0.5, 18)
    for _ in range(int(2 ** generator.uniform(4, 8))):
        at = tuple(int(v) for v in generator.integers(0, n, 2))
        color = np.clip(palette(generator, 1)[0] + 0.3, 0, 1)
        cv2.circle(picture, at, int(large * generator.random() ** 3), _byte(color), -1, cv2.LINE_AA)
    if generator.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(generator.uniform(0.5, 6))), np.uint8)
    return picture


def shapes(generator: np.random.Generator, n: int, ground: Picture | None = None) -> Picture:
    """Polygons, ellipses, bars and cables over a ground, each with a soft shadow now and then."""
    picture = ground if ground is not None else gradient(generator, n)
    colors = palette(generator, 8)
    for _ in range(int(2 ** generator.uniform(2, 5.5))):
        draw_shape(generator, picture, colors[generator.integers(8)], n * 2 ** generator.uniform(-5, -1))
    return shaded(picture, 0.75 + 0.4 * fractal(generator, n, 0.6))


def draw_shape(
    generator: np.random.Generator, picture: Picture, color: NDArray[np.float32], size: float
) -> None:
    """Draws one random shape of about `size` pixels into `picture`, in place."""
    h, w = picture.shape[:2]
    at, byte = generator.uniform(0, 1, 2) * (w, h), _byte(color)
    kind, edge = generator.integers(4), cv2.LINE_AA
    if kind == 0:
        turns = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 9))))
        ring = np.stack([np.cos(turns), np.sin(turns)], -1) * (
            size * generator.uniform(0.4, 1.0, (len(turns), 1))
        )
        cv2.fillPoly(picture, [np.round(at + ring).astype(np.int32)], byte, edge)
    elif kind == 1:
        axes = (max(1, int(size * generator.uniform(0.2, 1))), max(1, int(size * generator.uniform(0.2, 1))))
        thickness = -1 if generator.random() < 0.7 else max(1, int(size * 0.15))
        turn = float(generator.uniform(0, 180))
        cv2.ellipse(picture, (int(at[0]), int(at[1])), axes, turn, 0, 360, byte, thickness, edge)
    elif kind == 2:
        box = (
            (float(at[0]), float(at[1])),
            (size, size * float(generator.uniform(0.1, 1))),
            float(generator.uniform(0, 180)),
        )
        corners = cv2.boxPoints(box)
        cv2.fillPoly(picture, [np.round(corners).astype(np.int32)], byte, edge)
        cv2.polylines(picture, [np.round(corners).astype(np.int32)], True, _byte(0.6 * color), 1, edge)
    else:
        steps = np.cumsum(generator.normal(0, size * 0.3, (12, 2)), 0)
        smooth = cv2.GaussianBlur(steps.astype(np.float32)[:, None], (1, 5), 0).reshape(-1, 2)
        cv2.polylines(
            picture, [np.round(at + smooth).astype(np.int32)], False, byte, max(1, int(size * 0.06)), edge
        )


SURFACES: tuple[Callable[[np.random.Generator, int], Picture], ...] = (
    clouds, gradient, wood, stripes, bricks, cells, writing, shapes, wood, gradient, clouds, lights,
)  # fmt: skip


def _paste(
    generator: np.random.Generator, picture: Picture, patch: Picture, corners: NDArray[np.float32]
) -> Picture:
    """`patch` warped onto four corners of `picture`, over its own soft shadow."""
    n = picture.shape[0]
    square = np.array([[0, 0], [n, 0], [n, n], [0, n]], np.float32)
    warp = cv2.getPerspectiveTransform(square, corners.astype(np.float32))
    mask = np.zeros((n, n), np.uint8)
    cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 255, cv2.LINE_AA)
    offset = generator.normal(0, n * 0.03, 2)
    shift = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32)
    small = cv2.resize(cv2.warpAffine(mask, shift, (n, n)), (n // 4, n // 4), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), float(generator.uniform(0.5, 4))), (n, n))
    picture = shaded(picture, 1 - np.float32(generator.uniform(0.2, 0.8) / 255) * soft.astype(np.float32))
    warped = cv2.warpPerspective(patch, warp, (n, n), borderMode=cv2.BORDER_REFLECT)
    weight = mask.astype(np.float32) / 255
    return np.asarray(cv2.blendLinear(warped, picture, weight, 1 - weight), np.uint8)


def room(generator: np.random.Generator, surfaces: Sequence[Picture]) -> Picture:
    """A table or floor in perspective before a wall, with papers and shapes on it, made of `surfaces`."""
    picture = surfaces[int(generator.integers(len(surfaces)))].copy()
    n = picture.shape[0]
    horizon = n * generator.uniform(-0.3, 0.7)
    if generator.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(generator.uniform(0.5, 8))), np.uint8)
    tilt, spread = generator.normal(0, n * 0.15), n * generator.uniform(0.0, 3.0)
    plane = np.array([[0, horizon - tilt], [n, horizon + tilt], [n + spread, n * 1.1], [-spread, n * 1.1]])
    picture = _paste(generator, picture, surfaces[int(generator.integers(len(surfaces)))], plane)
    for _ in range(int(generator.integers(0, 6))):
        center = generator.uniform(0, 1, 2) * n
        extent = n * 2 ** generator.uniform(-3.5, -0.8)
        turns = np.arange(4) * np.pi / 2 + generator.uniform(0, 6.3)
        ring = np.stack([np.cos(turns), np.sin(turns) * generator.uniform(0.3, 1.0)], -1) * extent
        wobble = generator.uniform(0.7, 1.2, (4, 1))
        picture = _paste(
            generator, picture, surfaces[int(generator.integers(len(surfaces)))], center + ring * wobble
        )
    if generator.random() < 0.5:
        picture = shapes(generator, n, picture)
    return picture
