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
CELLS = 36  # of the depth map of one view, along the diameter
SCALE = 0.06  # of the diameter: the neighbourhood in which a place is called distinctive

MOST = 1024  # keypoints; each is spread away from all before it


def choose_keypoints(model: CadModel, count: int = 16, symmetries: Symmetries | None = None) -> Array:
    """`count` points (count, 3) on the surface of `model`, object frame, metres; the same on every call.

    Args:
        model: the mesh.
        count: how many, 4 to 1024. The default, 16, leaves enough for RANSAC when half of the object is
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
    if not isinstance(count, (int, np.integer)) or not 4 <= count <= MOST:
        raise ValueError(
            f"count: got {count!r}, expected 4 to {MOST} keypoints: fewer leave the pose undetermined"
        )
    group = Symmetries.none() if symmetries is None else symmetries
    places, weight, surface = _candidates(model)
    facing = _facing(places, group, model.diameter)
    places, weight = places[facing], weight[facing]
    orbits = np.einsum("sij,nj->nsi", group.discrete[:, :3, :3], places) + group.discrete[:, :3, 3]
    off = surface.query(orbits.reshape(-1, 3))[0].reshape(orbits.shape[:2]).max(axis=1) / model.diameter
    weight /= 1.0 + (np.maximum(off - 0.015, 0.0) / 0.015) ** 2  # where an approximate symmetry holds best
    chosen = _spread(orbits, weight, places.mean(axis=0), count, 1e-6 * model.diameter)
    return _thickened(chosen, places, weight)


def _candidates(model: CadModel) -> tuple[Array, Array, cKDTree]:
    """Places on the surface (N, 3), how good they are (N,), and dense samples of the surface."""
    generator = np.random.default_rng(0)
    dense, face, bary = mesh.sample_surface(model.vertices, model.faces, 20_000, generator)
    normals = mesh.face_areas_normals(model.vertices, model.faces)[1][face]
    paint = model.color_at(face, bary)
    corners, copies = np.unique(model.vertices, axis=0, return_counts=True)
    some = np.sort(generator.permutation(len(corners))[:2_000])
    places = np.concatenate([corners[some], dense[::10]])
    sharp = np.concatenate([copies[some] >= 3, np.zeros(len(places) - len(some), bool)])  # three walls meet
    tree = cKDTree(dense)
    sight = np.clip(_visibility(dense, model.diameter)[tree.query(places)[1]] / 0.3, 0.05, 1.0)
    around = tree.query_ball_point(places, SCALE * model.diameter)
    corner, border = np.array([1.0, 0.5, 0.0]), np.array([0.0, 1.0, 0.5])  # of walls, of colours
    variety = np.stack([_deviations(normals[index]) for index in around]) @ corner
    if paint is not None:
        variety += np.stack([_deviations(paint[index]) for index in around]) @ border
    distinct = np.minimum(variety / max(float(np.percentile(variety, 98)), 1e-9), 1.0) + 0.3 * sharp
    return places, sight * (0.5 + 0.5 * distinct), tree


def _deviations(values: Array) -> Array:
    """Principal standard deviations (3,) of `values` (N, 3), the least first; zero for fewer than four."""
    if len(values) < 4:
        return np.zeros(3)
    return np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(values.T)), 0.0, None))


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
        seen += height > top[index] - 1.25 * cell
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
        reach = np.where(whole <= room, np.minimum(distance, apart), 0.0)
        left = _left_over(room, whole[reach > same])
        reach[[left.get(int(size), room) > min(left.values(), default=0) for size in whole]] = 0.0
        single = not (reach > same).any()
        reach = distance if single else reach
        best = int(np.argmax(np.round(reach * weight, 12)))
        if not chosen:
            distance = np.full(len(orbits), np.inf)
        points = orbits[best, :1] if single else _distinct(orbits[best], same)
        for point in points:
            chosen.append(point)
            distance = np.minimum(distance, np.linalg.norm(orbits[:, 0] - point, axis=1))
    return np.stack(chosen)


def _left_over(room: int, whole: NDArray[np.int64]) -> dict[int, int]:
    """For each size of orbit: how many of `room` places stay empty when one such orbit is taken first.

    `whole` (M,) holds the orbit's size for every candidate, so there are as many orbits of a size as it
    occurs there, divided by the size.
    """
    supply = {int(size): -(-int(np.count_nonzero(whole == size)) // int(size)) for size in np.unique(whole)}
    result = {}
    for first in supply:
        filled = {first}
        for size, number in supply.items():
            spare = min(number - (size == first), room // size)
            filled |= {
                base + k * size for base in filled for k in range(spare + 1) if base + k * size <= room
            }
        result[first] = room - max(filled)
    return result


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
