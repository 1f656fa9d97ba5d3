"""A courtyard made in code: facades that repeat themselves, landmarks that do not, lawns, trees, textures painted.

World: metres, z up, y north; the court is 44 m wide and 30 m deep about the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.data import courtyard_paint as paint
from geopose.data.courtyard_paint import RGB, STONE

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Picture = NDArray[np.uint8]

COURT = (22.0, 15.0)  # metres from the middle to the facades


@dataclass(frozen=True, eq=False)
class Place:
    """A built place: vertices (V, 3), faces (F, 3), normals (V, 3), texture coordinates (V, 2), the number (F,) of each
    face's texture and how many of its pixels lie on a metre (F,), and the textures, each with its smaller copies."""

    vertices: Array
    faces: NDArray[np.int64]
    normals: F32
    uv: F32
    material: NDArray[np.int64]
    density: F32
    textures: tuple[tuple[Picture, ...], ...]


@dataclass
class _Site:
    """A place being built: patches of surface, each a grid of vertices."""

    parts: list[tuple[Array, NDArray[np.int64], Array, Array, int]] = field(default_factory=list)
    textures: list[Picture] = field(default_factory=list)
    count: int = 0

    def paint(self, surface: NDArray[np.floating]) -> int:
        """The number of a new texture, (H, W, 3) in [0, 1]."""
        self.textures.append(np.clip(255 * surface, 0, 255).astype(np.uint8))
        return len(self.textures) - 1

    def grid(self, points: Array, normals: Array, uv: Array, texture: int) -> None:
        """A patch (A, B, 3) with its normals (A, B, 3) and texture coordinates (A, B, 2)."""
        a, b = points.shape[:2]
        i = np.arange(a * b).reshape(a, b)
        corner = np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, 1:], i[1:, :-1]], -1).reshape(-1, 4)
        faces = np.concatenate([corner[:, [0, 1, 2]], corner[:, [0, 2, 3]]]) + self.count
        self.parts.append((points.reshape(-1, 3), faces, normals.reshape(-1, 3), uv.reshape(-1, 2), texture))
        self.count += a * b

    def quad(
        self, corners: Sequence[Sequence[float] | Array], texture: int, tiles: float | None = None
    ) -> None:
        """A flat patch: bottom left, bottom right, top right, top left; the texture fills it, or repeats every `tiles`
        metres."""
        c = np.asarray(corners, float)
        across, upward = c[1] - c[0], c[3] - c[0]
        normal = np.cross(across, upward)
        size = (
            np.ones(2)
            if tiles is None
            else np.array([np.linalg.norm(across), np.linalg.norm(upward)]) / tiles
        )
        uv = np.array([[[0, 0], [1, 0]], [[0, 1], [1, 1]]]) * size
        normals = np.broadcast_to(normal / np.linalg.norm(normal), (2, 2, 3))
        self.grid(np.array([[c[0], c[1]], [c[3], c[2]]]), normals, uv, texture)

    def box(self, low: Sequence[float], high: Sequence[float], texture: int, tiles: float = 1.0) -> None:
        """A box without a floor."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        for (ax, ay), (bx, by) in pairwise(ring):
            self.quad([(ax, ay, z0), (bx, by, z0), (bx, by, z1), (ax, ay, z1)], texture, tiles)
        self.quad([(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)], texture, tiles)

    def turned(
        self, profile: Sequence[tuple[float, float]], at: Sequence[float], texture: int, sides: int = 12
    ) -> None:
        """A surface of revolution of radii and heights about the vertical through `at` (x, y, z)."""
        line = np.asarray(profile, float)
        angle = np.linspace(0, 2 * np.pi, sides + 1)
        around = np.stack([np.cos(angle), np.sin(angle)], -1)
        points = np.empty((len(line), sides + 1, 3))
        points[..., :2] = line[:, None, :1] * around + np.asarray(at)[:2]
        points[..., 2] = line[:, 1:] + at[2]
        slope = np.gradient(line, axis=0)
        normals = np.empty_like(points)
        normals[..., :2] = slope[:, None, 1:] * around
        normals[..., 2] = -slope[:, :1]
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
        uv = np.stack(np.broadcast_arrays(angle * max(line[:, 0].max(), 0.2), along[:, None]), -1)
        self.grid(points, normals, uv, texture)

    def house(
        self,
        front: tuple[float, float, float, float],
        depth: float,
        height: float,
        ridge: float,
        facade: int,
        wall: int,
        roof: int,
    ) -> None:
        """A house whose facade stands on the line `front` (x0, y0, x1, y1), the court on the right, with a pitched
        roof whose ridge runs along it."""
        a, b = np.array([*front[:2], 0.0]), np.array([*front[2:], 0.0])
        along = (b - a) / np.linalg.norm(b - a)
        back = np.array([-along[1], along[0], 0.0])
        up, eaves = np.array([0, 0, height]), 0.4
        c, d = b + depth * back, a + depth * back
        self.quad([b, a, a + up, b + up], facade)
        for p, q in ((a, d), (d, c), (c, b)):
            self.quad([p, q, q + up, p + up], wall, 3.0)
        top = np.array([0, 0, height + ridge]) + 0.5 * depth * back
        low = up - eaves * back + np.array([0, 0, -2 * eaves * ridge / depth])
        self.quad([b + low, a + low, a + top, b + top], roof, 2.5)
        self.quad([d + up, c + up, b + top, a + top], roof, 2.5)
        for p, q in ((a, d), (b, c)):
            middle = 0.5 * (p + q) + up + [0, 0, ridge]
            self.quad([p + up, q + up, middle, middle], wall, 3.0)

    def built(self) -> Place:
        """The place, with the smaller copies of its textures."""
        parts = list(zip(*self.parts, strict=True))
        vertices, faces, normals, uv = (np.concatenate(part) for part in parts[:4])
        material = np.concatenate([np.full(len(f), n) for f, n in zip(parts[1], parts[4], strict=True)])
        area = np.linalg.norm(np.cross(*np.moveaxis(np.diff(vertices[faces], axis=1), 1, 0)), axis=1)
        (ax, ay), (bx, by) = np.diff(uv[faces], axis=1).transpose(1, 2, 0)
        pixels = np.array([t.shape[0] * t.shape[1] for t in self.textures])[material] * np.abs(
            ax * by - ay * bx
        )
        density = np.sqrt(pixels / np.maximum(area, 1e-9))
        return Place(
            vertices, faces, normals.astype(np.float32), uv.astype(np.float32), material,
            density.astype(np.float32), tuple(_pyramid(t) for t in self.textures),
        )  # fmt: skip


def _pyramid(texture: Picture) -> tuple[Picture, ...]:
    levels = [texture]
    while min(levels[-1].shape[:2]) > 8:
        half = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
        levels.append(np.asarray(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA), np.uint8))
    return tuple(levels)


def build_courtyard(seed: int = 0) -> Place:
    """The courtyard: the same for the same seed, which changes the weathering, not the plan."""
    generator = np.random.default_rng([seed, 7])
    site = _Site()
    half = (COURT[0] + 8, COURT[1] + 8)
    ground = site.paint(paint.ground(generator, half))
    site.quad(
        [(-half[0], -half[1], 0), (half[0], -half[1], 0), (half[0], half[1], 0), (-half[0], half[1], 0)],
        ground,
    )
    _wings(site, generator)
    _tower(site, generator)
    _furniture(site, generator)
    return site.built()


def _wings(site: _Site, generator: np.random.Generator) -> None:
    """The four sides of the court."""
    x, y = COURT
    slate = site.paint(paint.tiles(generator, (0.33, 0.36, 0.42)))
    tile = site.paint(paint.tiles(generator, (0.58, 0.29, 0.19)))
    stone = site.paint(paint.plain(generator, STONE, 128))
    brick: RGB = (0.56, 0.27, 0.20)
    plain = {c: site.paint(paint.plain(generator, c, 128)) for c in (brick, (0.85, 0.80, 0.66))}
    white: RGB = (0.92, 0.90, 0.84)
    # front line, height, ridge, wall, trim, columns, floors, window, arched, door, bricks, roof, plain wall
    rows = (
        ((-15, y, -4, y), 8.5, 3.0, (0.84, 0.77, 0.60), white, 6, 2, (0.42, 0.6), False, 0.25, False, slate, stone),
        ((-4, y, 8, y), 13.5, 4.5, STONE, (0.70, 0.63, 0.50), 5, 1, (0.5, 0.62), True, None, False, slate, stone),
        ((8, y, 22, y), 8.5, 3.0, (0.84, 0.77, 0.60), white, 8, 2, (0.42, 0.6), False, 0.8, False, slate, stone),
        ((x, 15, x, 5), 9.5, 2.6, brick, white, 4, 3, (0.40, 0.6), False, 0.4, True, tile, plain[brick]),
        ((x, 5, x, -4), 8.0, 3.2, (0.88, 0.84, 0.74), (0.30, 0.26, 0.22), 4, 3, (0.45, 0.5), False, 0.6, False, tile,
         plain[0.85, 0.80, 0.66]),
        ((x, -4, x, -15), 10.5, 2.6, (0.62, 0.68, 0.72), white, 5, 3, (0.36, 0.62), True, 0.1, False, slate, stone),
        ((22, -y, 6, -y), 6.0, 2.8, (0.77, 0.68, 0.52), (0.86, 0.80, 0.66), 7, 1, (0.62, 0.72), True, None, False, tile,
         stone),
        ((2, -y, -22, -y), 7.0, 2.8, brick, (0.88, 0.82, 0.68), 11, 2, (0.36, 0.58), False, 0.5, True, tile,
         plain[brick]),
        ((-x, -15, -x, -1), 11.0, 3.5, (0.80, 0.62, 0.44), white, 7, 3, (0.44, 0.6), True, 0.5, False, slate, stone),
        ((-x, 3, -x, 15), 8.0, 3.0, (0.70, 0.60, 0.56), (0.25, 0.30, 0.28), 6, 2, (0.5, 0.58), False, 0.2, True, tile,
         plain[brick]),
    )  # fmt: skip
    for front, height, ridge, wall, trim, columns, floors, window, arched, door, bricks, roof, rest in rows:
        width = float(np.hypot(front[2] - front[0], front[3] - front[1]))
        facade = paint.facade(
            generator, width, height, wall, trim, columns, floors, window, arched, door, bricks
        )
        site.house(front, 7.0, height, ridge, site.paint(facade), rest, roof)


def _tower(site: _Site, generator: np.random.Generator) -> None:
    """The clock tower in the north-west."""
    wall = paint.facade(generator, 6, 18, (0.66, 0.58, 0.47), (0.78, 0.72, 0.60), 2, 5, (0.22, 0.5), True)
    stone, roof = site.paint(wall), site.paint(paint.tiles(generator, (0.26, 0.40, 0.36)))
    clock = site.paint(paint.clock())
    x0, x1, y0, y1, top = -21.0, -15.0, 15.0, 21.0, 21.0
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for (ax, ay), (bx, by) in pairwise(ring):
        site.quad([(ax, ay, 0), (bx, by, 0), (bx, by, top), (ax, ay, top)], stone)
        peak = (0.5 * (x0 + x1), 0.5 * (y0 + y1), top + 8)
        site.quad([(ax, ay, top), (bx, by, top), peak, peak], roof, 3.0)
    site.quad(
        [(-20, y0 - 0.1, 16.2), (-16, y0 - 0.1, 16.2), (-16, y0 - 0.1, 20.2), (-20, y0 - 0.1, 20.2)], clock
    )
    site.quad([(x1 + 0.1, 16, 16.2), (x1 + 0.1, 20, 16.2), (x1 + 0.1, 20, 20.2), (x1 + 0.1, 16, 20.2)], clock)


def _furniture(site: _Site, generator: np.random.Generator) -> None:
    """What stands in the court: fountain, statue, trees, lamps, a kiosk, a stall, signs, hedges, benches."""
    stone = site.paint(paint.plain(generator, (0.72, 0.69, 0.63), 64))
    bronze = site.paint(paint.plain(generator, (0.25, 0.36, 0.31), 64, 0.6))
    water = site.paint(paint.plain(generator, (0.25, 0.42, 0.50), 64, 0.5))
    iron = site.paint(paint.plain(generator, (0.13, 0.14, 0.15), 16))
    leaves = site.paint(paint.leaves(generator))
    bark = site.paint(paint.plain(generator, (0.34, 0.27, 0.20), 32, 0.8))
    red = site.paint(paint.plain(generator, (0.74, 0.10, 0.09), 32, 0.2))
    planks = site.paint(paint.plain(generator, (0.45, 0.30, 0.18), 32, 0.5))
    striped = site.paint(paint.awning())
    basin = (0.5, 0.2, 0.0)
    site.turned([(3.0, 0), (3.1, 0.7), (2.7, 0.75), (2.6, 0.5)], basin, stone, 16)
    site.turned([(2.65, 0.5), (0.3, 0.5)], basin, water, 16)
    site.turned(
        [(0.35, 0.4), (0.3, 1.6), (1.2, 2.0), (1.25, 2.2), (0.2, 2.1), (0.15, 3.0), (0.0, 3.2)], basin, stone
    )
    site.box((-11.2, 5.8, 0), (-9.2, 7.8, 1.8), stone, 2.0)
    site.turned([(0.5, 1.8), (0.45, 2.6), (0.55, 3.2), (0.4, 3.7), (0.15, 3.8), (0.25, 4.1), (0.0, 4.4)],
                (-10.2, 6.8, 0), bronze)  # fmt: skip
    for tx, ty, size in (
        (-13, -6.5, 1.0),
        (-6, -8.5, 0.75),
        (14.5, 7.5, 1.15),
        (7.5, 9, 0.7),
        (9, -4.5, 0.6),
    ):
        _tree(site, generator, (tx, ty), size, leaves, bark)
    for lx, ly in ((-19.5, 0.3), (-2.2, -12.5), (2.8, 12.5), (19.5, 0.2), (-2.2, 12.5)):
        site.turned(
            [(0.12, 0), (0.06, 0.5), (0.05, 3.4), (0.3, 3.5), (0.22, 4.0), (0.0, 4.2)], (lx, ly, 0), iron, 6
        )
    site.box((18.6, -12.9, 0), (19.8, -11.7, 2.6), red)
    site.box((-20.5, -12.5, 0), (-16.5, -10.5, 1.0), planks)
    for px, py in ((-20.5, -12.5), (-16.5, -12.5), (-20.5, -10.5), (-16.5, -10.5)):
        site.turned([(0.05, 0), (0.05, 2.5)], (px, py, 0), iron, 4)
    site.quad([(-21, -10, 2.3), (-16, -10, 2.3), (-16, -11.5, 3.0), (-21, -11.5, 3.0)], striped)
    site.quad([(-21, -13, 2.3), (-16, -13, 2.3), (-16, -11.5, 3.0), (-21, -11.5, 3.0)], striped)
    inn = site.paint(paint.sign("THE PLOUGH", (0.10, 0.25, 0.18), (0.95, 0.82, 0.40)))
    books = site.paint(paint.sign("BOOKS", (0.45, 0.08, 0.12), (0.97, 0.94, 0.85)))
    site.quad([(21.9, 3.5, 2.5), (21.9, -2.5, 2.5), (21.9, -2.5, 3.3), (21.9, 3.5, 3.3)], inn)
    site.quad([(-21.9, 5, 3.7), (-21.9, 12, 3.7), (-21.9, 12, 4.6), (-21.9, 5, 4.6)], books)
    for x0, y0, x1, y1 in ((4, 2.9, 17.5, 3.5), (-17.5, -2.9, -6, -2.3)):
        site.box((x0, y0, 0), (x1, y1, 0.9), leaves, 2.0)
    for bx, by in ((-8, 11.6), (8, -11.9), (16, 11.6), (-12, -11.7)):
        site.box((bx, by, 0.35), (bx + 1.8, by + 0.5, 0.5), planks)


def _tree(
    site: _Site, generator: np.random.Generator, at: tuple[float, float], size: float, leaves: int, bark: int
) -> None:
    site.turned([(0.28 * size, 0), (0.18 * size, 3 * size)], (*at, 0), bark, 8)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    for _ in range(9):
        offset, radius = generator.normal(0, 0.75 * size, 3), size * generator.uniform(1.0, 1.6)
        ball = np.stack([np.maximum(np.cos(angle), 0) * radius, np.sin(angle) * radius], -1)
        middle = (at[0] + offset[0], at[1] + offset[1], 4.3 * size + 0.8 * offset[2])
        site.turned([(float(r), float(z)) for r, z in ball], middle, leaves, 12)
