"""Which points of an object a network is asked to find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopose.cad import mesh
from geopose.cad.model import CadModel
from geopose.cad.symmetry import Symmetries, front

Array = NDArray[np.float64]
VIEWS = 48  # directions from which the visibility of a point is judged
CELLS = 48  # of the depth map of one view, along the diameter
SCALE = 0.06  # of the diameter: the neighbourhood in which a place is called distinctive


def choose_keypoints(model: CadModel, count: int = 16, symmetries: Symmetries | None = None) -> Array:
    """`count` points (count, 3) on the surface of `model`, object frame, metres; the same on every call.

    Args:
        model: the mesh.
        count: how many, at least 4. The default, 16, leaves enough for RANSAC when half of the object is
            hidden; the error of a pose falls only with the square root of the number, and each point costs a
            heatmap.
        symmetries: of the model, as `find_symmetries` gives them; None: the object is taken to have none.

    Why these points. Surface points instead of the corners of the bounding box: a heatmap finds what it can
    see, and the corners of the box lie in the air. Farthest point sampling, started from the centre, because
    the error of a pose falls with the spread of its points, and because spread points are not all hidden at
    once. Both choices are those of PVNet (Peng et al., "PVNet: Pixel-wise Voting Network for 6DoF Pose
    Estimation", CVPR 2019, section 3.1). Here the distance is weighted by two things that the mesh knows: how
    many directions see the place (a point inside a cavity is learned by guessing), and how much normals and
    colours vary around it (a corner or a tip is found more exactly than a place on a smooth wall). Vertices
    are candidates as well as points between them, so that corners are met exactly. Points that all lie in a
    plane, which leave a pose ambiguous, are avoided where the mesh has any thickness: places off the plane
    take the last positions.

    With discrete symmetries, points come in whole orbits as long as they fit: a symmetry only renames them,
    so that the targets of two poses that look alike are the same picture. What does not fill an orbit is
    chosen singly.

    With a continuous symmetry, training turns the object about its axis until the camera is in front of a
    fixed half plane (`front`), so the points lie on the side that faces it, silhouettes included: the other
    side is never seen.
    """
    if count < 4:
        raise ValueError(
            f"count: got {count}, expected at least 4 keypoints: fewer leave the pose undetermined"
        )
    group = Symmetries.none() if symmetries is None else symmetries
    places, weight = _candidates(model)
    facing = _facing(places, group, model.diameter)
    places, weight = places[facing], weight[facing]
    orbits = np.einsum("sij,nj->nsi", group.discrete[:, :3, :3], places) + group.discrete[:, :3, 3]
    chosen = _spread(orbits, weight, places.mean(axis=0), count, 1e-6 * model.diameter)
    return _thickened(chosen, places, weight)


def _candidates(model: CadModel) -> tuple[Array, Array]:
    """Places on the surface (N, 3) and how good they are (N,), from 0.05 to 1."""
    generator = np.random.default_rng(0)
    dense, face, bary = mesh.sample_surface(model.vertices, model.faces, 20_000, generator)
    normals = mesh.face_areas_normals(model.vertices, model.faces)[1][face]
    features = [normals]
    if (colors := model.baked().colors) is not None:
        features.append(np.einsum("nk,nkc->nc", bary, colors[model.faces[face]].astype(np.float64)))
    corners = np.unique(model.vertices, axis=0)
    if len(corners) > 2_000:
        corners = corners[np.sort(generator.permutation(len(corners))[:2_000])]
    places = np.concatenate([corners, dense[::10]])
    tree = cKDTree(dense)
    sight = np.clip(_visibility(dense, model.diameter)[tree.query(places)[1]] / 0.3, 0.05, 1.0)
    around = tree.query_ball_point(places, SCALE * model.diameter)
    variety = np.zeros(len(places))
    for feature in features:
        variety += np.array([_variety(feature[index]) for index in around])
    rank = np.argsort(np.argsort(variety, kind="stable"), kind="stable") / max(len(places) - 1, 1)
    return places, sight * (0.6 + 0.4 * rank)


def _variety(values: Array) -> float:
    """How far `values` (N, 3) spread: the least plus half of the middle principal standard deviation."""
    if len(values) < 4:
        return 0.0
    deviations = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(values.T)), 0.0, None))
    return float(deviations[0] + 0.5 * deviations[1])


def _visibility(points: Array, diameter: float) -> Array:
    """Fraction (N,) of directions all round from which each of the dense surface points is in front.

    A coarse orthographic depth map is splatted for every direction; a point is seen when no other in its cell
    is more than a cell and a half nearer.
    """
    k = np.arange(VIEWS) + 0.5
    z = 1.0 - 2.0 * k / VIEWS
    angle = np.pi * (1.0 + np.sqrt(5.0)) * k
    directions = np.column_stack(
        [np.sqrt(1.0 - z**2) * np.cos(angle), np.sqrt(1.0 - z**2) * np.sin(angle), z]
    )
    cell = diameter / CELLS
    seen = np.zeros(len(points))
    for direction in directions:
        right = front(direction)
        plane = np.floor((points @ np.stack([right, np.cross(direction, right)], axis=1)) / cell).astype(
            np.int64
        )
        plane -= plane.min(axis=0)
        index = plane[:, 0] * (plane[:, 1].max() + 1) + plane[:, 1]
        height = points @ direction
        top = np.full(index.max() + 1, -np.inf)
        np.maximum.at(top, index, height)
        seen += height > top[index] - 1.5 * cell
    return seen / VIEWS


def _facing(places: Array, group: Symmetries, diameter: float) -> NDArray[np.bool_]:
    """Which places (N,) may be seen after a continuous symmetry has been turned away; all, without one."""
    if not group.continuous:
        return np.ones(len(places), dtype=bool)
    axis, point = group.continuous[0]
    if (
        len(group.continuous) > 1
    ):  # a sphere is seen along its own +z (see `geopose.data.synthetic.canonical`)
        return (places - point)[:, 2] <= 0.02 * diameter
    return (places - point) @ front(axis) >= -0.02 * diameter


def _spread(orbits: Array, weight: Array, centre: Array, count: int, same: float) -> Array:
    """`count` points by weighted farthest point sampling of whole orbits (N, S, 3), then of single points."""
    images = np.linalg.norm(orbits - orbits[:, :1], axis=2)
    apart = np.where(images > same, images, np.inf).min(
        axis=1
    )  # distance to the nearest other of the own orbit
    chosen: list[Array] = []
    distance = np.linalg.norm(orbits[:, 0] - centre, axis=1)
    whole = np.array([len(_distinct(orbit, same)) for orbit in orbits])
    while len(chosen) < count:
        room = count - len(chosen)
        fits = whole <= room
        single = not fits.any()
        reach = distance if single else np.where(fits, np.minimum(distance, apart), -1.0)
        best = int(np.argmax(np.round(reach * weight, 12)))
        if not chosen:
            distance = np.full(len(orbits), np.inf)
        points = orbits[best, :1] if single else _distinct(orbits[best], same)
        for point in points:
            chosen.append(point)
            distance = np.minimum(distance, np.linalg.norm(orbits[:, 0] - point, axis=1))
    return np.stack(chosen)


def _distinct(points: Array, same: float) -> Array:
    """The different ones among `points` (S, 3), in order."""
    kept: list[Array] = []
    for point in points:
        if all(np.linalg.norm(point - other) > same for other in kept):
            kept.append(point)
    return np.stack(kept)


def _thickened(chosen: Array, places: Array, weight: Array) -> Array:
    """`chosen`, its last points moved off its plane where it is much flatter than the mesh."""
    for k in (1, 2):
        centre = chosen.mean(axis=0)
        normal = np.linalg.svd(chosen - centre)[2][2]
        height = np.abs((places - centre) @ normal)
        if np.abs((chosen - centre) @ normal).max() >= 0.5 * height.max():
            break
        chosen = chosen.copy()
        chosen[-k] = places[np.argmax(height * weight)]
    return chosen
