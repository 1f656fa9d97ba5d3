"""A pose compared with the photograph: the mesh is drawn at it, a network says where each drawn point really lies,
least squares move the pose there, and so on until it rests.

Notes:
    Hu et al., "Perspective Flow Aggregation for Data-Limited 6D Object Pose Estimation", ECCV 2022: the flow between
    a rendering and the photograph, and the pose from its correspondences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geopose.cad.guide import CELL, guide
from geopose.cad.model import CadModel
from geopose.data.sample import box_centre_size, projected_box
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection, levenberg_marquardt
from geopose.nets.refiner import information
from geopose.stages import cut

Array = NDArray[Any]

_FINER = (1.0, 1.5, 2.0, 2.0)  # side of the crop in each drawing, over that of training
_ROOM = 0.08  # object sizes around the object in a tight drawing
_MULTIPLE = 16  # crop pixels: what the network takes
_STILL = 3.0  # squared, over its covariance: half of what chance alone moves six numbers; a pose that moves less rests
_NEAR = 0.02  # object sizes; a point nearer than this is where it should be
_HOPELESS = 0.1  # agreement; a pose that was moved once and then agrees less is not where the object is
_FEW = 12  # points that are too few


@dataclass(frozen=True)
class Compared:
    """A pose after the comparison.

    pose: the better one, or the one given where the comparison says nothing, or agrees less with where it led to;
    covariance: (6, 6) in the left tangent, None where the pose is the one given; agreement: mean probability that a
    drawn point lies within 2 % of the object's size of where it was drawn, before the last step. The focal length is
    taken for exact.
    """

    pose: Pose
    covariance: Array | None
    agreement: float


@dataclass(frozen=True)
class _Flow:
    """Where the drawn `points` (M, 3) lie in the crop of `view`: at `place` (2, M), each coordinate with the scale b
    (M,) of a Laplace distribution, pixels. near: pixels that are 2 % of the object's size; term: for the pose."""

    term: Reprojection
    points: Array
    view: Camera
    place: Array
    b: Array
    near: float

    def agreement(self, pose: Pose) -> float:
        """Mean probability that a drawn point lies near where `pose` has it; none where it does not project."""
        off = np.asarray(self.view.project(pose.apply(self.points))).T - self.place
        return float(np.nan_to_num(np.prod(_between(off, self.b, self.near), axis=0)).mean())


def compare(
    net: nn.Module,
    picture: NDArray[np.uint8],
    camera: Camera,
    pose: Pose,
    model: CadModel,
    keypoints: Reprojection,
    crop: tuple[int, float],
    tight: bool = False,
) -> Compared:
    """The pose that rests: drawn at it, the mesh is where the photograph has it.

    Args:
        net: a `Refiner`. picture: (H, W, 3). model: a light mesh, painted by vertex. keypoints: the inliers, in pixels
            of `camera`; they hold the first step, which may be far. crop: pixels of the crop, and its side over the
            object's size, as in training. tight: later drawings show the object and a little around it alone, which
            saves a quarter of their pixels, where pictures of ever new proportions cost the network nothing extra.
    """
    covariance, agreement, given, first = None, 0.0, pose, 0.0
    for number, finer in enumerate(_FINER):
        flow = _flow(net, picture, camera, pose, model, (int(finer * crop[0]), crop[1]), tight and number > 0)
        if flow is None:
            break
        agreement, terms = flow.agreement(pose), (keypoints, flow.term)[number > 0 :]
        if number == 0:
            first = agreement
        elif agreement < _HOPELESS:
            if agreement < first:
                pose, covariance = given, None
            break

        def linearise(at: Pose, terms: tuple[Reprojection, ...] = terms) -> tuple[Array, Array]:
            parts = [each.linearise(at) for each in terms]
            return np.concatenate([r for r, _ in parts], 1), np.concatenate([J for _, J in parts], 2)

        best = levenberg_marquardt(
            None, linearise, pose, kernel="cauchy", scale=2.5, max_iterations=10, tolerance=1e-2
        )
        if not np.isfinite(best.cost):
            break
        step = np.asarray((best.pose @ pose.inverse()).log())
        pose, covariance = best.pose, np.linalg.inv(best.information)
        if number and step @ best.information @ step < _STILL:
            break
    return Compared(pose, covariance, agreement)


def _flow(
    net: nn.Module,
    picture: NDArray[np.uint8],
    camera: Camera,
    pose: Pose,
    model: CadModel,
    crop: tuple[int, float],
    tight: bool,
) -> _Flow | None:
    """What the network makes of the mesh drawn at `pose`; None if hardly any of it is in the picture."""
    side, scale = crop
    points = pose.apply(model.vertices)
    box = projected_box(model.vertices, pose, camera)
    if not np.isfinite(box).all() or not (points[:, 2] > 1e-3 * model.diameter).all():
        return None
    centre, size = box_centre_size(box)
    if not 4 < size < 1e5:
        return None
    px, extent = scale * size / side, np.full(2, side)  # of the photograph, in one of the crop; of the crop
    if tight:
        wanted = ((box[2:] - box[:2]) + 2 * _ROOM * size) / px
        extent = np.minimum(_MULTIPLE * np.ceil(wanted / _MULTIPLE), side)
    look = np.concatenate([centre - 0.5 * px * extent, centre + 0.5 * px * extent])
    size_wh = int(extent[0]), int(extent[1])
    view = camera.crop_resize(look, size_wh)
    drawn = guide(model, pose, view)
    if len(drawn.cells) < _FEW:
        return None
    both = np.concatenate([cut(picture, look, size_wh), drawn.picture], 2)
    x = torch.from_numpy(both).to(next(net.parameters()).device).permute(2, 0, 1)[None].float().div_(255)
    with torch.inference_mode():
        found = net(x)[0].flatten(1).cpu().double()[:, torch.from_numpy(drawn.cells)]
        weight = information(found[None], torch.ones(1, found.shape[1], dtype=found.dtype))[0].numpy() / CELL
    flow, b = CELL * found[:2].numpy(), CELL * found[2].exp().numpy()  # crop pixels
    place = np.asarray(view.project(pose.apply(drawn.points))).T + flow
    if len(view.distortion):
        term = Reprojection(drawn.points.T, place, weight, view.numpy())
    else:  # the same on the plane z = 1, in half the time
        focal = np.array([[view.fx], [view.fy]], float)
        plane = (place - np.array([[view.cx], [view.cy]], float)) / focal
        term = Reprojection(drawn.points.T, plane, weight * focal[[0, 0, 1]])  # a column of W, an axis
    return _Flow(term, drawn.points, view, place, b, _NEAR * side / scale)


def _between(mean: Array, b: Array, limit: float) -> Array:
    """Probability of [-limit, limit] under the Laplace distribution of `mean` and scale `b`."""

    def below(x: Array) -> Array:
        tail = 0.5 * np.exp(-np.abs(x) / b)
        return np.where(x < 0, tail, 1 - tail)

    return below(limit - mean) - below(-limit - mean)


__all__ = ["Compared", "compare"]
