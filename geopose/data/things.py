"""Made-up objects, each a mesh that nobody has seen: what a network learns from that is to know no object in
particular."""

from __future__ import annotations

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray

from geopose.cad.model import BUILT_IN, CadModel, load_cad
from geopose.data import clutter
from geopose.data.picture import waves
from geopose.data.textures import palette

MOST_FACES = 2500
_EDGES = (0.3, 0.2, 0.14, 0.1, 0.07)  # diameters; the finest that leaves few enough faces
_GALLERY_SHARE = 0.1

Vertices = NDArray[np.float64]


def _blob(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    """A ball with dents and humps: fruit, stones, figures."""
    ball = trimesh.creation.icosphere(3, 1.0)
    way = generator.normal(0, 1, (int(generator.integers(3, 12)), 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    sharp = np.exp(generator.uniform(np.log(1.5), np.log(25), len(way)))
    hump = np.exp(sharp * (ball.vertices @ way.T - 1)) @ generator.normal(0.1, 0.45, len(way))
    ball.vertices *= np.exp(np.clip(hump, -1.2, 1.2))[:, None]
    return [ball.apply_scale(np.exp(generator.normal(0, 0.3, 3)))]


_KINDS = (*clutter.KINDS, _blob, _blob, _blob)


def _parts(generator: np.random.Generator) -> list[trimesh.Trimesh]:
    """A thing of one to three kinds grown together, no two parts alike."""
    parts: list[trimesh.Trimesh] = []
    for number in range(int(generator.choice([1, 2, 3], p=[0.4, 0.35, 0.25]))):
        more = _KINDS[generator.integers(len(_KINDS))](generator)
        whole = trimesh.util.concatenate(more)
        turn = cv2.Rodrigues(generator.normal(0, 1 if number else 0, 3))[0]
        size = (0.45 if number else 1) * np.exp(generator.normal(0, 0.3)) / whole.scale
        frame = np.eye(4)
        frame[:3, :3] = size * turn
        frame[:3, 3] = generator.normal(0, 0.22 if number else 0, 3) - size * turn @ whole.bounds.mean(0)
        parts += [part.apply_transform(frame) for part in more]
    return parts


def _refined(part: trimesh.Trimesh, edge: float) -> trimesh.Trimesh:
    vertices, faces = trimesh.remesh.subdivide_to_size(part.vertices, part.faces, edge, max_iter=12)
    return trimesh.Trimesh(vertices, faces, process=False)


def _field(
    generator: np.random.Generator, points: Vertices, long: tuple[float, float], count: int
) -> Vertices:
    """(V,) a smooth field about as large as one, over waves of these lengths."""
    logs = float(np.log(long[0])), float(np.log(long[1]))
    field = waves(generator, points, 1.0, logs, count) @ generator.normal(0, 1, count)
    return np.asarray(field / np.sqrt(0.5 * count))


def _painted(generator: np.random.Generator, points: Vertices, part: NDArray[np.int64]) -> Vertices:
    """(V, 3) colours in [0, 1]: of parts, in patches, in stripes, or nearly one, all a little stained."""
    way = generator.random()
    colors = palette(generator, max(int(part.max()) + 1, 4)).astype(float)
    if way < 0.35:
        paint = colors[part]
    elif way < 0.65:
        paint = np.broadcast_to(colors[0], points.shape).copy()
    elif way < 0.85:  # patches about some points
        seeds = points[generator.integers(len(points), size=int(generator.integers(3, 16)))]
        nearest = np.linalg.norm(points[:, None] - seeds, axis=2).argmin(1)
        paint = colors[nearest % len(colors)]
    else:
        paint = colors[(_field(generator, points, (0.15, 0.8), 2) > 0).astype(int)]
    if generator.random() < 0.4:  # a marking
        paint[_field(generator, points, (0.3, 1.5), 4) > generator.uniform(0.8, 1.6)] = colors[-1]
    shade = generator.uniform(0, 0.12) * _field(generator, points, (0.08, 0.6), 12)
    return np.clip(paint * np.exp(shade)[:, None], 0.02, 1)


def made_up(generator: np.random.Generator) -> CadModel:
    """A thing of about a metre, of at most some 2,500 faces, painted by vertex (now and then not at all)."""
    parts = _parts(generator)
    scale = float(np.ptp(np.concatenate([p.vertices for p in parts]), axis=0).max())
    fine = parts
    for edge in _EDGES:
        finer = [_refined(p, edge * scale) for p in parts]
        if sum(len(p.faces) for p in finer) > MOST_FACES:
            break
        fine = finer
    points = np.concatenate([p.vertices for p in fine]) / scale
    part = np.repeat(np.arange(len(fine)), [len(p.vertices) for p in fine])
    whole = trimesh.util.concatenate(fine)
    if generator.random() < 0.5:  # grown, worn or scanned rather than built
        swell = generator.uniform(0.005, 0.03) * _field(generator, points, (0.12, 0.8), 10)
        points = points + whole.vertex_normals * swell[:, None]
    plain = generator.random() < 0.12
    paint = np.round(255 * _painted(generator, points, part)).astype(np.uint8)
    mesh = trimesh.Trimesh(points, whole.faces, process=False)
    if not plain:
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=paint)
    return load_cad(mesh, "m")


def thing(seed: int, number: int) -> CadModel:
    """Thing `number` of a seed, always the same; one in ten is of the gallery."""
    generator = np.random.default_rng([seed, number])
    if generator.random() < _GALLERY_SHARE:
        return load_cad(BUILT_IN[generator.integers(len(BUILT_IN))])
    while True:
        try:
            return made_up(generator)
        except ValueError:  # fell flat
            continue


__all__ = ["made_up", "thing"]
