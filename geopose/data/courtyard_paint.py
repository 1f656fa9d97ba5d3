"""Pictures of surfaces for the courtyard: facades with windows and doors, roofs, the ground, a clock, signs.

Every surface is (H, W, 3) RGB in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.data.textures import fractal

F32 = NDArray[np.float32]
RGB = tuple[float, float, float]

STONE: RGB = (0.80, 0.74, 0.62)
_GLASS: RGB = (0.17, 0.21, 0.27)
_WOOD: RGB = (0.30, 0.16, 0.09)


def _grained(
    generator: np.random.Generator, color: RGB, size_wh: tuple[int, int], strength: float = 0.3
) -> F32:
    """A surface of one colour, weathered."""
    grain = cv2.resize(fractal(generator, 256, 0.75), size_wh)
    grain = grain + 0.5 * cv2.resize(fractal(generator, 256, 0.4), size_wh)
    return np.asarray(color, np.float32) * (1 + strength * (grain[..., None] - 0.75))


def _mirrored(surface: F32) -> F32:
    """The surface and its mirror images, which together fit onto themselves on all sides."""
    wide = np.concatenate([surface, surface[:, ::-1]], 1)
    return np.concatenate([wide, wide[::-1]])


def plain(generator: np.random.Generator, color: RGB, pixels: int, strength: float = 0.3) -> F32:
    """A weathered surface of one colour that can be repeated; (2 pixels, 2 pixels, 3)."""
    return _mirrored(_grained(generator, color, (pixels, pixels), strength))


def leaves(generator: np.random.Generator) -> F32:
    """Foliage that can be repeated."""
    out = _grained(generator, (0.20, 0.30, 0.10), (128, 128), 0.9)
    out *= 1 + 0.25 * cv2.resize(generator.standard_normal((64, 64), np.float32), (128, 128))[..., None]
    return _mirrored(out)


def awning() -> F32:
    """Stripes of white and blue cloth."""
    white = (np.arange(256) // 32 % 2)[None, :, None] > 0
    return np.where(white, (0.95, 0.93, 0.88), (0.16, 0.30, 0.55)).repeat(64, 0).astype(np.float32)


def tiles(generator: np.random.Generator, color: RGB) -> F32:
    """A roof of tiles, each a little different."""
    out = _grained(generator, color, (256, 256), 0.25)
    out *= (1 + 0.14 * generator.standard_normal((16, 16, 1))).repeat(16, 0).repeat(16, 1)
    out[::16] *= 0.55
    out[:, ::16] *= 0.75
    return out


def facade(
    generator: np.random.Generator,
    width: float,
    height: float,
    wall: RGB,
    trim: RGB,
    columns: int,
    floors: int,
    window: tuple[float, float] = (0.42, 0.55),
    arched: bool = False,
    door: float | None = None,
    bricks: bool = False,
) -> F32:
    """A facade of `width` by `height` metres: `columns` by `floors` windows, each `window` of its field
    wide and high; a door at `door` of the width."""
    scale = 40.0  # pixels per metre
    w, h = round(width * scale), round(height * scale)
    out = _grained(generator, wall, (w, h))
    course = 3 if bricks else 16
    rows = np.arange(h) // course
    if bricks:
        out *= (1 + 0.10 * generator.standard_normal((h // 3 + 1, w // 8 + 1, 1)))[rows][:, np.arange(w) // 8]
    out[np.arange(h) % course == 0] *= 0.86
    for floor in range(floors + 1):
        y = round(h * (1 - floor / floors))
        out[max(y - 7, 0) : y + 3] = np.asarray(trim) * (0.75 if floor else 0.55)
    field_w, field_h = w / columns, h / floors
    for floor in range(floors):
        for column in range(columns):
            middle = (column + 0.5) * field_w
            is_door = (
                floor == 0 and door is not None and abs((column + 0.5) / columns - door) <= 0.5 / columns
            )
            ww, wh = (
                (window[0] * field_w, window[1] * field_h) if not is_door else (1.6 * scale, 0.8 * field_h)
            )
            bottom = h - floor * field_h - (0.0 if is_door else 0.22 * field_h)
            light = generator.uniform(0.7, 1.5)  # what a pane reflects
            glass = (light * _GLASS[0], light * _GLASS[1], light * _GLASS[2])
            fill = _WOOD if is_door else glass
            _opening(out, (middle, bottom), (ww, wh), trim, fill, arched or is_door, not is_door)
    out *= np.clip(np.linspace(1.06, 0.80, h), 0, 1)[:, None, None]  # dirt and bounced light
    return out


def _opening(
    out: F32,
    foot: tuple[float, float],
    size: tuple[float, float],
    trim: RGB,
    fill: RGB,
    arched: bool,
    bars: bool,
) -> None:
    """Draws a window or a door, its foot at the middle of the sill, in place."""
    (x, y), (w, h) = foot, size

    def shape(grow: float, color: RGB) -> None:
        left, right = round(x - w / 2 - grow), round(x + w / 2 + grow)
        top = round(y - h - grow + (0.5 * w if arched else 0))
        cv2.rectangle(out, (left, top), (right, round(y + 0.4 * grow)), color, -1)
        if arched:
            axes = (round(w / 2 + grow), round(0.5 * w + grow))
            cv2.ellipse(out, (round(x), round(y - h + 0.5 * w)), axes, 0, 180, 360, color, -1)

    shape(5, trim)
    shape(0, fill)
    if bars:
        shine = tuple(min(2.2 * c, 1) for c in fill)
        corners = np.array(
            [[x - 0.4 * w, y - 0.1 * h], [x + 0.1 * w, y - 0.85 * h], [x + 0.3 * w, y - 0.85 * h]]
        )
        cv2.fillPoly(out, [np.rint(corners).astype(np.int32)], shine)
        for k in (1, 2):
            level = round(y - k * h / 3)
            cv2.line(out, (round(x - w / 2), level), (round(x + w / 2), level), trim, 2)
        cv2.line(out, (round(x), round(y)), (round(x), round(y - h)), trim, 2)


def ground(generator: np.random.Generator, half: tuple[float, float]) -> F32:
    """The ground seen from above, north at the top, `half` metres to each side: paving, four lawns, paths, a round."""
    scale = 14.0
    w, h = round(2 * half[0] * scale), round(2 * half[1] * scale)
    out = _grained(generator, (0.60, 0.57, 0.52), (w, h), 0.35)
    for step, dark in ((round(1.2 * scale), 0.86), (round(4.8 * scale), 0.75)):
        out[::step], out[:, ::step] = out[::step] * dark, out[:, ::step] * dark
    grass = _grained(generator, (0.27, 0.43, 0.13), (w, h), 0.7)
    grass *= (1 + 0.07 * np.sign(np.sin(np.arange(w) / scale * 2.2)))[None, :, None]  # mown in stripes
    lawns = np.zeros((h, w), np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round((x + half[0]) * scale), round((half[1] - y) * scale)

    for x0, y0, x1, y1 in (
        (-18, 2.5, -2.5, 11),
        (3.5, 2.5, 18, 11),
        (-18, -11, -2.5, -2),
        (3.5, -11, 18, -2),
    ):
        cv2.rectangle(lawns, at(x0, y1), at(x1, y0), 255, -1)
    cv2.circle(lawns, at(0.5, 0.2), round(5.5 * scale), 0, -1)
    cv2.line(lawns, at(3.5, -2), at(18, -11), 0, round(1.8 * scale))
    edge = cv2.dilate(lawns, np.ones((7, 7), np.uint8))
    out[edge > 0] *= 0.65
    out[lawns > 0] = grass[lawns > 0]
    for radius in range(2, 6):
        cv2.circle(out, at(0.5, 0.2), round(radius * scale), (0.50, 0.30, 0.24), 3)
    return out


def sign(text: str, ground: RGB, ink: RGB) -> F32:
    """A board with a word or two."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_TRIPLEX, 1.6, 3)
    letters = np.zeros((64, 480), np.uint8)
    at = ((480 - width) // 2, (64 + height) // 2)
    cv2.putText(letters, text, at, cv2.FONT_HERSHEY_TRIPLEX, 1.6, 255, 3, cv2.LINE_AA)
    weight = (letters[..., None] / 255).astype(np.float32)
    return weight * np.asarray(ink, np.float32) + (1 - weight) * np.asarray(ground, np.float32)


def clock() -> F32:
    """A blue clock with golden hands."""
    out = np.full((256, 256, 3), STONE, np.float32)
    cv2.circle(out, (128, 128), 118, (0.10, 0.16, 0.38), -1)
    for hour in range(12):
        _hand(out, hour * np.pi / 6, 88, 110, 8)
    _hand(out, 1.9, 0, 62, 9)
    _hand(out, 4.0, 0, 95, 6)
    return out


def _hand(out: F32, angle: float, begin: float, end: float, width: int) -> None:
    """Draws a golden line from the middle outwards, `angle` radians after twelve."""
    a, b = ((round(128 + r * np.sin(angle)), round(128 - r * np.cos(angle))) for r in (begin, end))
    cv2.line(out, a, b, (0.95, 0.80, 0.30), width)
