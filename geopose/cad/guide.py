"""The picture that a pose predicts: the mesh under a plain light, to be compared with the photograph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.cad.render import facing, rasterize
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

CELL = 4  # pixels; one surface point is taken of each cell of 4x4
GREY = 128  # of the background, and of what lies outside of a photograph
_PLAIN = 0.7  # colour of an unpainted mesh


@dataclass(frozen=True)
class Guide:
    """What a pose predicts in a crop of S x S pixels.

    picture: (S, S, 6) uint8, the colour under a lamp at the camera (grey where there is nothing), and the object
    coordinates scaled to the bounding box, 1 to 255 (0 where there is nothing).
    points: (M, 3) surface points, object frame, metres; cells: (M,) flat index of the cell of each, row by row.
    """

    picture: NDArray[np.uint8]
    points: NDArray[np.float64]
    cells: NDArray[np.int64]


def guide(model: CadModel, pose: Pose, camera: Camera) -> Guide:
    """The Guide of a mesh (painted by vertex, or unpainted) at `pose` in the square crop of `camera`, which has no
    distortion."""
    side = camera.size_wh[0]
    seen = rasterize(pose.apply(model.vertices), model.faces, camera, near=1e-3 * model.diameter)
    attributes: list[NDArray[Any]] = [model.vertices, model.normals]
    if model.colors is not None:
        attributes.append(model.colors)
    values = seen.interpolate(np.concatenate(attributes, 1).astype(np.float32), model.faces)
    rays = seen.points(camera)
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    normals = facing(values[:, 3:6] @ pose.R.T.astype(np.float32), rays)
    lit = 0.4 - 0.6 * np.einsum("ni,ni->n", normals, rays)
    color = values[:, 6:] if model.colors is not None else np.full((len(lit), 3), _PLAIN, np.float32)
    low, high = model.bounds
    middle, half = 0.5 * (low + high), np.maximum(0.5 * (high - low), 1e-3 * model.diameter)
    scaled = ((values[:, :3] - middle) / half).clip(-1, 1)
    picture: NDArray[Any] = np.empty((side * side, 6), np.uint8)
    picture[:] = (GREY, GREY, GREY, 0, 0, 0)
    picture[seen.pixel, :3] = 255 * np.clip(color * lit[:, None], 0, 1) + 0.5
    picture[seen.pixel, 3:] = 128.5 + 127 * scaled
    y, x = np.divmod(seen.pixel, side)
    taken = np.flatnonzero((x % CELL == 1) & (y % CELL == 1))
    cells = (y[taken] // CELL) * (side // CELL) + x[taken] // CELL
    return Guide(picture.reshape(side, side, 6), values[taken, :3].astype(float), cells)
