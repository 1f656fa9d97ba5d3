"""What stands around the object in a training picture: backgrounds and other things.

A bank of procedural pictures and one of meshes are made at first use in each process, from a fixed
seed, so that a draw depends on its generator alone. A background is then a few crops of the bank, turned,
recoloured, blended and lit; `BackgroundFolder` takes the user's photographs instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray

from .textures import SURFACES, Picture, draw_shape, fractal, palette, room

BANK_SIDE = 320
BANK_COUNT = 216
MESH_COUNT = 128
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
Mesh = tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float32]]


@functools.lru_cache(maxsize=1)
def _pictures() -> tuple[Picture, ...]:
    """The bank: one third plain surfaces, two thirds rooms composed of them."""
    generator = np.random.default_rng(20_240_601)
    surfaces = [SURFACES[i % len(SURFACES)](generator, BANK_SIDE) for i in range(BANK_COUNT // 3)]
    return (*surfaces, *(room(generator, surfaces) for _ in range(BANK_COUNT - len(surfaces))))


@functools.lru_cache(maxsize=1)
def _masks() -> tuple[Picture, ...]:
    """(128, 128) uint8 blending masks: blobs, half planes, boxes and soft ramps."""
    generator = np.random.default_rng(7)
    masks = []
    for i in range(96):
        if i % 3 == 0:
            field = fractal(generator, 128, 0.45)
            hard = float(generator.choice([3, 30]))
            mask = np.clip((field - generator.uniform(0.35, 0.65)) * hard + 0.5, 0, 1) * 255
        else:
            mask = np.zeros((128, 128, 3), np.uint8)
            for _ in range(int(generator.integers(1, 4))):
                draw_shape(generator, mask, np.ones(3, np.float32), float(generator.uniform(20, 110)))
            mask = cv2.GaussianBlur(mask[..., 0], (0, 0), float(generator.choice([0.5, 0.5, 6])))
        masks.append(np.asarray(mask, np.uint8))
    return tuple(masks)


def _window(
    generator: np.random.Generator, picture: Picture, size_wh: tuple[int, int], least: float
) -> Picture:
    """A random crop of `picture` with the aspect of `size_wh`, mirrored at random, resized to it."""
    (h, w), (out_w, out_h) = picture.shape[:2], size_wh
    fit = min(w / out_w, h / out_h)
    scale = fit * np.exp(generator.uniform(np.log(least), 0))
    cw, ch = max(1, int(out_w * scale)), max(1, int(out_h * scale))
    x, y = int(generator.integers(w - cw + 1)), int(generator.integers(h - ch + 1))
    times = max(1, min(round(scale), cw, ch))  # a whole one is many times as fast
    cw, ch = cw // times, ch // times
    crop = picture[y : y + times * ch, x : x + times * cw]
    if times > 1:
        crop = np.asarray(cv2.resize(crop, (cw, ch), interpolation=cv2.INTER_AREA), np.uint8)
    resized = cv2.resize(crop, (out_w, out_h), interpolation=cv2.INTER_LINEAR)
    flip = int(generator.integers(3))
    return np.asarray(resized if flip == 2 else cv2.flip(resized, flip), np.uint8)


def _layer(generator: np.random.Generator, size_wh: tuple[int, int]) -> Picture:
    """A crop of the bank, recoloured by a random matrix about the grey axis."""
    bank = _pictures()
    picture = bank[generator.integers(len(bank))]
    if generator.random() < 0.3:
        picture = picture.transpose(1, 0, 2)  # of which the window alone is copied
    layer = _window(generator, picture, size_wh, 0.25)
    keep = generator.choice([1.0, 0.6, 0.4, generator.uniform(0, 1.3)])  # saturation kept
    matrix = np.full((3, 3), (1 - keep) / 3) + keep * np.eye(3)
    if generator.random() < 0.12:
        matrix = matrix[generator.permutation(3)]
    gain = np.exp(generator.normal(0.1, 0.3)) * np.exp(generator.normal(0, 0.07, (3, 1)))
    shift = generator.normal(5, 18) + generator.normal(0, 6, (3, 1))
    return np.asarray(cv2.transform(layer, np.hstack([matrix * gain, shift])), np.uint8)


def _litter(generator: np.random.Generator, picture: Picture) -> Picture:
    """`picture` with patches of the bank at their own resolution, for fine detail in a large one."""
    h, w = picture.shape[:2]
    masks, bank = _masks(), _pictures()
    for _ in range(int(generator.integers(0, 1 + 2 * h * w // 160**2))):
        pw, ph = (int(min(side, 2 ** generator.uniform(5, 8.3))) for side in (w, h))
        x, y = int(generator.integers(w - pw + 1)), int(generator.integers(h - ph + 1))
        source = bank[generator.integers(len(bank))]
        patch = _window(generator, source, (pw, ph), 0.4)
        weight = cv2.resize(masks[generator.integers(len(masks))], (pw, ph)).astype(np.float32) * np.float32(
            1 / 255
        )
        area = picture[y : y + ph, x : x + pw]
        area[...] = cv2.blendLinear(patch, area.copy(), weight, 1 - weight)
    return picture


def background(generator: np.random.Generator, size_wh: tuple[int, int]) -> Picture:
    """A made-up background, (H, W, 3) uint8 RGB.

    Args:
        generator: every draw comes from it; the same state gives the same picture.
        size_wh: width and height in pixels.
    Notes:
        The first call in a process also makes the bank (seconds). Some are nearly plain, as skies are.
    """
    w, h = int(size_wh[0]), int(size_wh[1])
    if w < 1 or h < 1:
        raise ValueError(f"size_wh must be positive, got {size_wh}")
    masks = _masks()
    picture = _layer(generator, (w, h))
    layers = generator.choice([0, 1, 2, 3], p=[0.35, 0.35, 0.2, 0.1])
    for _ in range(layers):
        mask = cv2.resize(masks[generator.integers(len(masks))], (w, h), interpolation=cv2.INTER_LINEAR)
        if generator.random() < 0.5:
            mask = cv2.flip(mask, int(generator.integers(-1, 2)))
        weight = mask.astype(np.float32) * np.float32(generator.uniform(0.5, 1) / 255)
        picture = np.asarray(
            cv2.blendLinear(_layer(generator, (w, h)), picture, weight, 1 - weight), np.uint8
        )
    if w * h > 256**2:
        picture = _litter(generator, picture)
    if generator.random() < 0.3:
        colors, size = palette(generator, 4), min(w, h)
        for _ in range(int(generator.integers(1, 8))):
            draw_shape(
                generator, picture, colors[generator.integers(4)], size * 2 ** generator.uniform(-4.5, -1)
            )
    if generator.random() < 0.3:
        sigma = float(2 ** generator.uniform(-1, 2))
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)
    if generator.random() < 0.5:
        light = np.exp(generator.normal(0, 0.35, (3, 3))).astype(np.float32)
        field = cv2.resize(light, (w, h), interpolation=cv2.INTER_LINEAR)
        picture = np.asarray(cv2.multiply(picture, cv2.merge([field] * 3), dtype=cv2.CV_8U), np.uint8)
    if generator.random() < 0.1:  # night, space, an unlit hall
        picture = np.asarray(cv2.convertScaleAbs(picture, alpha=float(generator.uniform(0, 0.3))), np.uint8)
    return picture


class BackgroundFolder:
    """Random crops of the photographs below a folder; called as `background` is.

    Photographs are reduced to at most `side` pixels on the longer side and the last `keep` are held in
    memory. Files that cannot be read are left out and named in `.broken`.
    """

    def __init__(self, path: str | Path, side: int = 1024, keep: int = 256) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"backgrounds must be a folder of pictures, got {str(path)!r}")
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self.files:
            raise ValueError(f"no picture ({', '.join(sorted(IMAGE_SUFFIXES))}) below {str(path)!r}")
        self.side, self.keep = side, keep
        self.broken: set[str] = set()
        self._cache: dict[int, Picture] = {}

    def __call__(self, generator: np.random.Generator, size_wh: tuple[int, int]) -> Picture:
        """A window of a random photograph, (H, W, 3) uint8 RGB; a made-up one if the file is broken."""
        picture = self._read(int(generator.integers(len(self.files))))
        if picture is None:
            return background(generator, size_wh)
        layer = _window(generator, picture, (int(size_wh[0]), int(size_wh[1])), 0.2)
        gain, shift = np.exp(generator.normal(0, 0.2, 3)), generator.normal(0, 10, 3)
        return np.asarray(cv2.transform(layer, np.hstack([np.diag(gain), shift[:, None]])), np.uint8)

    def _read(self, index: int) -> Picture | None:
        if index in self._cache:
            return self._cache[index]
        picture = cv2.imread(str(self.files[index]), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            self.broken.add(str(self.files[index]))
            return None
        scale = self.side / max(picture.shape[:2])
        if scale < 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if len(self._cache) >= self.keep:
            self._cache.pop(next(iter(self._cache)))
        self._cache[index] = np.asarray(picture, np.uint8)
        return self._cache[index]


def _lathe(generator: np.random.Generator, outline: list[tuple[float, float]]) -> trimesh.Trimesh:
    return trimesh.creation.revolve(np.array(outline), sections=int(generator.integers(8, 17)))


def _box(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    body = trimesh.creation.box(np.exp(generator.normal(0, 0.5, 3)))
    return [body.subdivide(), *_labels(generator, body)]


def _labels(generator: np.random.Generator, body: trimesh.Trimesh) -> list[trimesh.Trimesh]:
    """Thin plates stuck to the sides of a box, as labels, screens and buttons."""
    plates = []
    for axis in generator.permutation(3)[: generator.integers(0, 4)]:
        extents = np.array(body.extents) * generator.uniform(0.2, 0.8, 3)
        extents[axis] = 0.02
        center = (np.array(body.extents) - extents) / 2 * generator.uniform(-0.9, 0.9, 3)
        center[axis] = generator.choice([-1, 1]) * body.extents[axis] / 2
        plates.append(trimesh.creation.box(extents).apply_translation(center))
    return plates


def _mug(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    r, h, wall = generator.uniform(0.3, 0.5), generator.uniform(0.6, 1.2), 0.05
    cup = _lathe(
        generator,
        [(0, 0), (r * generator.uniform(0.7, 1), 0), (r, h), (r - wall, h), (r * 0.65, wall), (0, wall)],
    )
    handle = trimesh.creation.torus(h * 0.3, 0.05, major_sections=10, minor_sections=5)
    handle.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    return [cup, handle.apply_translation([r, 0, h / 2])]


def _bottle(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    r, neck, h = generator.uniform(0.2, 0.4), generator.uniform(0.06, 0.12), generator.uniform(0.6, 1)
    body = _lathe(
        generator,
        [(0, 0), (r, 0), (r, h), (neck, h * generator.uniform(1.1, 1.4)), (neck, h * 1.5), (0, h * 1.5)],
    )
    label = trimesh.creation.cylinder(r * 1.02, h * 0.4, sections=14).apply_translation([0, 0, h * 0.5])
    cap = trimesh.creation.cylinder(neck * 1.3, 0.12, sections=8).apply_translation([0, 0, h * 1.5])
    return [body, label, cap]


def _animal(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    """Overlapping deformed balls in a row with legs and a head: toys, plush, fruit."""
    parts = []
    center = np.zeros(3)
    for _ in range(int(generator.integers(2, 7))):
        ball = trimesh.creation.icosphere(1, 1.0).apply_scale(np.exp(generator.normal(-1.1, 0.35, 3)))
        parts.append(ball.apply_translation(center))
        center = center + generator.normal(0, 0.3, 3)
    for _ in range(int(generator.integers(0, 5))):
        leg = trimesh.creation.cylinder(
            generator.uniform(0.04, 0.12), generator.uniform(0.3, 0.8), sections=6
        )
        parts.append(leg.apply_translation(generator.normal(0, 0.25, 3) - [0, 0, 0.3]))
    return parts


def _tool(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    """A handle with a head across it: hammers, drills, lamps."""
    length = generator.uniform(0.8, 1.5)
    handle = trimesh.creation.cylinder(generator.uniform(0.05, 0.15), length, sections=10)
    head = trimesh.creation.box(generator.uniform(0.15, 0.6, 3))
    if generator.random() < 0.5:
        head = trimesh.creation.cone(generator.uniform(0.2, 0.5), generator.uniform(0.2, 0.6), sections=12)
    return [handle, head.apply_translation([generator.uniform(-0.2, 0.2), 0, length / 2])]


def _extrusion(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    """A star-shaped outline pulled into depth: brackets, cookies, gears, letters."""
    count = int(generator.integers(3, 24))
    turns = np.arange(count) * 2 * np.pi / count
    radius = np.where(np.arange(count) % 2, generator.uniform(0.3, 1.0), 1.0) * generator.uniform(
        0.6, 1.0, count
    )
    ring = np.stack([np.cos(turns), np.sin(turns)], -1) * radius[:, None]
    depth = generator.uniform(0.05, 1.0)
    rings = np.vstack([np.c_[ring, np.full(count, z)] for z in (0.0, depth)] + [[0, 0, 0], [0, 0, depth]])
    i, j = np.arange(count), (np.arange(count) + 1) % count
    sides = np.vstack([np.c_[i, j, j + count], np.c_[i, j + count, i + count]])
    caps = np.vstack(
        [np.c_[j, i, np.full(count, 2 * count)], np.c_[i + count, j + count, np.full(count, 2 * count + 1)]]
    )
    return [trimesh.Trimesh(rings, np.vstack([sides, caps]), process=False)]


def _torus(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    major, minor = int(generator.integers(10, 22)), int(generator.integers(5, 10))
    return [
        trimesh.creation.torus(0.5, generator.uniform(0.08, 0.3), major_sections=major, minor_sections=minor)
    ]


KINDS: tuple[Callable[[np.random.Generator], list[trimesh.Trimesh]], ...] = (
    _box, _box, _mug, _bottle, _animal, _animal, _tool, _extrusion, _torus,
)  # fmt: skip


@functools.lru_cache(maxsize=1)
def _meshes() -> tuple[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]], ...]:
    """The bank: centred vertices of unit diameter, faces, and the part of each vertex."""
    generator = np.random.default_rng(11)
    return tuple(_assemble(generator) for _ in range(MESH_COUNT))


def _assemble(
    generator: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    while True:
        parts = KINDS[generator.integers(len(KINDS))](generator)
        if generator.random() < 0.25:
            extra = KINDS[generator.integers(len(KINDS))](generator)
            offset = generator.normal(0, 0.4, 3)
            parts = parts + [p.apply_scale(0.6).apply_translation(offset) for p in extra]
        if 12 <= sum(len(p.faces) for p in parts) <= 500:
            break
    start = np.cumsum([0] + [len(p.vertices) for p in parts])
    vertices = np.vstack([p.vertices for p in parts])
    faces = np.vstack([p.faces + s for p, s in zip(parts, start[:-1], strict=True)]).astype(np.int32)
    part = np.repeat(np.arange(len(parts)), np.diff(start)).astype(np.int32)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    return vertices / (2 * np.linalg.norm(vertices, axis=-1).max()), faces, part


def distractor(generator: np.random.Generator, paint: NDArray[np.floating] | None = None) -> Mesh:
    """A made-up thing: vertices (V, 3), faces (F, 3) of at most 500, colors (V, 3) RGB in [0, 1].

    Its vertices lie within half a unit of the origin; scale it to taste. Parts share no vertices, so their
    colours meet in sharp edges: made-up ones, or of `paint` (N, 3).
    """
    bank = _meshes()
    vertices, faces, part = bank[generator.integers(len(bank))]
    stretched = vertices * np.exp(generator.normal(0, 0.25, 3))
    stretched = stretched / (2 * np.linalg.norm(stretched, axis=-1).max())
    count = int(part.max()) + 1
    colors = palette(generator, count) if paint is None else paint[generator.integers(len(paint), size=count)]
    return stretched, faces, np.clip(colors, 0.02, 1.0)[part].astype(np.float32)
