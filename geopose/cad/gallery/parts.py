"""Builders for coloured meshes: a `Part` is a closed shell, `assemble` makes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from geopose.cad.model import CadModel

Array = NDArray[np.float64]
Rgb = tuple[float, float, float]
Point = tuple[float, float, float]

DECIMALS = 6  # vertices lie on a grid of a micrometre: the last bit of a sine does not change the hash


@dataclass(frozen=True)
class Part:
    """A closed shell.

    Attributes:
        vertices: (V, 3) metres.
        faces: (F, 3), counter-clockwise seen from outside.
        colors: (F, 3) sRGB in [0, 1], one colour per face.
    """

    vertices: Array
    faces: NDArray[np.int64]
    colors: Array

    @property
    def centroids(self) -> Array:
        """Face centroids (F, 3), metres."""
        return self.vertices[self.faces].mean(axis=1)

    @property
    def normals(self) -> Array:
        """Outward unit face normals (F, 3)."""
        a, b, c = self.vertices[self.faces].transpose(1, 0, 2)
        n = np.cross(b - a, c - a)
        return n / np.linalg.norm(n, axis=1, keepdims=True)

    def painted(self, rgb: Rgb, where: NDArray[np.bool_] | None = None) -> Part:
        """The same shell with colour `rgb` on all faces, or on those of the mask `where` (F,)."""
        colors = self.colors.copy()
        colors[slice(None) if where is None else where] = rgb
        return replace(self, colors=colors)

    def moved(self, offset: ArrayLike) -> Part:
        """The shell shifted by `offset` (3,), metres."""
        return replace(self, vertices=self.vertices + np.asarray(offset, dtype=float))

    def rotated(self, axis: ArrayLike, angle: float, about: ArrayLike = (0.0, 0.0, 0.0)) -> Part:
        """The shell turned by `angle` radians about the line through `about` along `axis`."""
        matrix = trimesh.transformations.rotation_matrix(angle, axis, about)
        return replace(self, vertices=self.vertices @ matrix[:3, :3].T + matrix[:3, 3])

    def mirrored(self, axis: int = 1) -> Part:
        """The mirror image across the plane where coordinate `axis` is zero (left and right for 1)."""
        vertices = self.vertices.copy()
        vertices[:, axis] *= -1
        return replace(self, vertices=vertices, faces=self.faces[:, ::-1])

    def nearest(self, point: ArrayLike) -> Point:
        """Vertex closest to `point` (3,), metres, on the grid of `assemble`: a keypoint on the surface."""
        best = np.argmin(np.linalg.norm(self.vertices - np.asarray(point, dtype=float), axis=1))
        x, y, z = np.round(self.vertices[best], DECIMALS) + 0.0
        return float(x), float(y), float(z)


def chamfered(x: float, half_width: float, bottom: float, top: float, upper: float, lower: float) -> Array:
    """Ring (12, 3) in the plane of `x`: a rectangle |y| <= half_width, bottom <= z <= top with cut corners.

    `upper` and `lower` are the corner cuts in metres; the flat sides carry a point in the middle.
    """
    w, middle = half_width, 0.5 * (bottom + lower + top - upper)
    left = [(w - lower, bottom), (w, bottom + lower), (w, middle), (w, top - upper), (w - upper, top)]
    yz = [(0.0, bottom), *left, (0.0, top), *((-y, z) for y, z in reversed(left))]
    return np.array([(x, y, z) for y, z in yz])


def loft(sections: ArrayLike, rgb: Rgb, *, caps: tuple[bool, bool] = (True, True)) -> Part:
    """Closed shell through `sections` (M, N, 3), rings of N corresponding points, metres.

    A ring may shrink to one point. `caps` closes the first and the last ring with a fan about its mean.
    """
    rings = np.asarray(sections, dtype=float)
    if rings.ndim != 3 or rings.shape[0] < 2 or rings.shape[1] < 3 or rings.shape[2] != 3:
        raise ValueError(f"sections: expected (M >= 2, N >= 3, 3), got {rings.shape}")
    m, n = rings.shape[:2]
    i, j = np.meshgrid(np.arange(m - 1), np.arange(n), indexing="ij")
    a, b = (i * n + j).ravel(), (i * n + (j + 1) % n).ravel()
    vertices = np.concatenate([rings.reshape(-1, 3), rings[[0, -1]].mean(axis=1)])
    first, second = (np.linalg.norm(vertices[p] - vertices[q], axis=1) for p, q in ((a, b + n), (b, a + n)))
    short = (first <= second + 1e-9)[:, None, None]
    one = np.stack([np.stack([a, b, b + n], 1), np.stack([a, b + n, a + n], 1)], 1)
    other = np.stack([np.stack([a, b, a + n], 1), np.stack([b, b + n, a + n], 1)], 1)
    faces = [np.where(short, one, other).reshape(-1, 3)]
    ring, following = np.arange(n), (np.arange(n) + 1) % n
    if caps[0]:
        faces.append(np.stack([following, ring, np.full(n, m * n)], 1))
    if caps[1]:
        last = (m - 1) * n
        faces.append(np.stack([last + ring, last + following, np.full(n, m * n + 1)], 1))
    return _clean(vertices, np.concatenate(faces), rgb)


def _clean(vertices: Array, faces: NDArray[np.int64], rgb: Rgb) -> Part:
    """Part with equal vertices merged, collapsed triangles dropped and faces turned outward."""
    unique, index = np.unique(np.round(vertices, 9) + 0.0, axis=0, return_inverse=True)
    faces = index.reshape(-1)[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    used, compact = np.unique(faces, return_inverse=True)
    unique, faces = unique[used], compact.reshape(-1, 3)
    a, b, c = unique[faces].transpose(1, 0, 2)
    if np.einsum("ij,ij->", np.cross(a, b), c) < 0:
        faces = faces[:, ::-1]
    return Part(unique, faces, np.tile(np.asarray(rgb, dtype=float), (len(faces), 1)))


def divided(stations: Sequence[float], step: float) -> Array:
    """The increasing or decreasing `stations` with evenly spaced ones put between, at most `step` apart."""
    pieces = [
        np.linspace(lo, hi, max(1, int(np.ceil(abs(hi - lo) / step - 1e-9))), endpoint=False)
        for lo, hi in pairwise(stations)
    ]
    return np.concatenate([*pieces, [stations[-1]]])


def revolve(
    profile: Sequence[tuple[float, float, Rgb]], sides: int, *, step: float = np.inf, phase: float = 0.5
) -> Part:
    """Solid of revolution about the x axis from points (x, radius, colour of the band to the next).

    The profile starts and ends on the axis, or at a ring closed by a flat cap of the neighbouring colour; it
    may run back and forth, which makes cups and nozzles. Bands longer than `step` metres are cut; `phase`
    turns the ring by that many sides. The colour of the last point is not used.
    """
    points: list[tuple[float, float]] = []
    bands: list[Rgb] = []
    for (x0, r0, rgb), (x1, r1, _) in pairwise(profile):
        pieces = max(1, int(np.ceil(np.hypot(x1 - x0, r1 - r0) / step - 1e-9)))
        for k in range(pieces):
            points.append((x0 + (x1 - x0) * k / pieces, r0 + (r1 - r0) * k / pieces))
            bands.append(rgb)
    points.append(profile[-1][:2])
    angle = 2 * np.pi * (np.arange(sides) + phase) / sides
    circle = np.stack([np.zeros(sides), np.cos(angle), np.sin(angle)], 1)
    rings = np.array([circle * r + (x, 0.0, 0.0) for x, r in points])
    part = loft(rings, bands[0])
    return replace(part, colors=_band_colors(part, np.array(points), np.array(bands)))


def _band_colors(part: Part, points: Array, bands: Array) -> Array:
    """Colour (F, 3) of each face: that of the profile segment on which its vertices lie."""
    corner = part.vertices[part.faces]
    xr = np.stack([corner[..., 0], np.hypot(corner[..., 1], corner[..., 2])], -1)  # (F, 3, 2)
    start, along = points[:-1], np.diff(points, axis=0)
    length = np.maximum((along**2).sum(-1), 1e-18)
    s = np.clip(((xr[:, :, None] - start) * along).sum(-1) / length, 0, 1)
    off = np.linalg.norm(start + s[..., None] * along - xr[:, :, None], axis=-1)  # (F, 3, segments)
    return bands[np.argmin(off.max(axis=1), axis=1)]


def box(size: ArrayLike, centre: ArrayLike, rgb: Rgb, *, step: float = np.inf) -> Part:
    """Axis-aligned box of `size` (3,) about `centre` (3,), the longest edge cut every `step` metres."""
    extent = np.asarray(size, dtype=float)
    axis = int(np.argmax(extent))
    u, v = (axis + 1) % 3, (axis + 2) % 3
    stations = divided((-extent[axis] / 2, extent[axis] / 2), step)
    rings = np.zeros((len(stations), 4, 3))
    rings[:, :, axis] = stations[:, None]
    rings[:, :, u] = np.array([1, -1, -1, 1]) * extent[u] / 2
    rings[:, :, v] = np.array([1, 1, -1, -1]) * extent[v] / 2
    return loft(rings, rgb).moved(centre)


def extrude(polygon_xz: ArrayLike, y_range: tuple[float, float], rgb: Rgb, *, cuts: int = 1) -> Part:
    """Prism over a star-shaped polygon (N, 2) of (x, z), from y_range[0] to y_range[1], in `cuts` slices."""
    xz = np.asarray(polygon_xz, dtype=float)
    rings = [np.stack([xz[:, 0], np.full(len(xz), y), xz[:, 1]], 1) for y in np.linspace(*y_range, cuts + 1)]
    return loft(rings, rgb)


def tube(start: ArrayLike, end: ArrayLike, radius: float, rgb: Rgb, *, sides: int = 8, cuts: int = 1) -> Part:
    """Capped round bar of `radius` metres from `start` to `end` (3,), in `cuts` pieces."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    length = float(np.linalg.norm(end - start))
    part = revolve([(0.0, radius, rgb), (length, radius, rgb)], sides, step=length / cuts)
    turn = trimesh.geometry.align_vectors([1.0, 0.0, 0.0], (end - start) / length)
    return replace(part, vertices=part.vertices @ turn[:3, :3].T + start)


def assemble(name: str, parts: Sequence[Part], keypoints: Mapping[str, Point]) -> CadModel:
    """CadModel in metres of all `parts`; a vertex between two colours becomes two, so colours end sharply."""
    starts = np.cumsum([0, *(len(p.vertices) for p in parts[:-1])])
    vertices = np.round(np.concatenate([p.vertices for p in parts]), DECIMALS) + 0.0
    faces = np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=True)])
    colors = np.round(255 * np.concatenate([p.colors for p in parts])).astype(np.int64)
    corners = np.concatenate([faces.reshape(-1, 1), np.repeat(colors, 3, axis=0)], axis=1)
    kinds, index = np.unique(corners, axis=0, return_inverse=True)
    rgb = kinds[:, 1:].astype(np.uint8)
    mesh = trimesh.Trimesh(vertices[kinds[:, 0]], index.reshape(-1, 3), vertex_colors=rgb, process=False)
    return CadModel.from_trimesh(mesh, name, "m", dict(keypoints), source=f"geopose.cad.gallery.{name}")
