"""The picture that a pose predicts: the mesh under a plain light, to be compared with the photograph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.cad.render import rasterize
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

CELL = 4  # pixels; one surface point is taken of each cell of 4x4
GREY = 128  # of the background, and of what lies outside of a photograph
_PLAIN = 0.7  # colour of an unpainted mesh


@dataclass(frozen=True)
class Guide:
    """What a pose predicts in a crop of H x W pixels.

    picture: (H, W, 6) uint8, the colour under a lamp at the camera (grey where there is nothing), and the object
    coordinates scaled to the bounding box, 1 to 255 (0 where there is nothing).
    points: (M, 3) surface points, object frame, metres; cells: (M,) flat index of the cell of each, row by row.
    """

    picture: NDArray[np.uint8]
    points: NDArray[np.float64]
    cells: NDArray[np.int64]


def guide(model: CadModel, pose: Pose, camera: Camera) -> Guide:
    """The Guide of a mesh (painted by vertex, or unpainted) at `pose` in the crop of `camera`, which has no distortion
    and whose sides are multiples of CELL."""
    width, height = camera.size_wh
    seen = rasterize(pose.apply(model.vertices), model.faces, camera, near=1e-3 * model.diameter)
    attributes: list[NDArray[Any]] = [model.vertices, model.normals]
    if model.colors is not None:
        attributes.append(model.colors)
    values = seen.interpolate(np.concatenate(attributes, 1), model.faces)
    low, high = model.bounds
    box = np.stack([0.5 * (low + high), np.maximum(0.5 * (high - low), 1e-3 * model.diameter)]).astype(float)
    picture = np.empty((height * width, 6), np.uint8)
    picture[:] = (GREY, GREY, GREY, 0, 0, 0)
    _machine_code()(
        seen.pixel, values, seen.points(camera), np.ascontiguousarray(pose.R, float), box, picture
    )
    y, x = np.divmod(seen.pixel, width)
    taken = np.flatnonzero((x % CELL == 1) & (y % CELL == 1))
    cells = (y[taken] // CELL) * (width // CELL) + x[taken] // CELL
    return Guide(picture.reshape(height, width, 6), values[taken, :3].astype(float), cells)


def _paint(pixel: Any, values: Any, rays: Any, R: Any, box: Any, picture: Any) -> None:
    """Fills the pixels (N,) of the picture (H * W, 6) from values (N, 6 or 9): place, normal and colour, seen along
    rays (N, 3); R (3, 3): cam_from_obj; box (2, 3): middle and half extents of the mesh."""
    for n in range(len(pixel)):
        along, length2, reach2 = 0.0, 0.0, 0.0
        for i in range(3):
            normal = R[i, 0] * values[n, 3] + R[i, 1] * values[n, 4] + R[i, 2] * values[n, 5]
            along += normal * rays[n, i]
            length2 += normal * normal
            reach2 += rays[n, i] * rays[n, i]
        lit = 0.4 + 0.6 * abs(along) / max(np.sqrt(length2 * reach2), 1e-24)
        for i in range(3):
            color = values[n, 6 + i] if values.shape[1] > 6 else _PLAIN
            picture[pixel[n], i] = np.uint8(255 * min(max(color * lit, 0.0), 1.0) + 0.5)
            place = (values[n, i] - box[0, i]) / box[1, i]
            picture[pixel[n], 3 + i] = np.uint8(128.5 + 127 * min(max(place, -1.0), 1.0))


@functools.cache
def _machine_code() -> Callable[..., None]:
    """`_paint`, compiled at the first picture."""
    from geopose.geometry._native import compile_once, given, types, written

    f, d = given(types.float32, 2), given(types.float64, 2)
    return compile_once(_paint, types.void(given(types.int64, 1), f, f, d, d, written(types.uint8, 2)))
