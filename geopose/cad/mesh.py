"""Operations on bare vertex and face arrays: weld, crease normals, boundary, diameter, sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def weld(vertices: NDArray) -> Index:
    """Label (V,) of each vertex, equal for bit-identical rows, counted from 0 in order of appearance."""
    rows = np.ascontiguousarray(vertices) + 0.0  # -0.0 and 0.0 are the same place
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # number the groups by first appearance, not by value
    return order[inverse.reshape(-1)].astype(np.int64)


def face_areas_normals(vertices: NDArray, faces: NDArray) -> tuple[Array, Array]:
    """Areas (F,) and unit normals (F, 3), counter-clockwise; the normal of a face without area is zero."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    cross = np.cross(b - a, c - a)
    length = np.linalg.norm(cross, axis=1)
    return 0.5 * length, cross / np.maximum(length, np.finfo(float).tiny)[:, None]


def signed_volume(vertices: NDArray, faces: NDArray) -> float:
    """Volume enclosed by a closed mesh, negative when its faces look inward."""
    centred = vertices - vertices.mean(axis=0)
    a, b, c = (centred[faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)


def _edge_pairs(labels: NDArray) -> tuple[NDArray, Index, Index]:
    """Sorted directed-edge keys of faces given as welded labels (F, 3): (key, face, side), sorted by key."""
    start, end = labels, np.roll(labels, -1, axis=1)
    low, high = np.minimum(start, end).astype(np.int64), np.maximum(start, end).astype(np.int64)
    key = (low * (int(labels.max()) + 1) + high).reshape(-1)
    order = np.argsort(key, kind="stable")
    return key[order], order // 3, order % 3


def boundary_edges(vertices: NDArray, faces: NDArray) -> int:
    """Number of edges that do not join an even number of faces; 0 for a closed mesh.

    Vertices in the same place are one vertex, so that a mesh split along seams for its normals still counts
    as closed.
    """
    key, _, _ = _edge_pairs(weld(vertices)[faces])
    _, count = np.unique(key, return_counts=True)
    return int((count % 2).sum())


def crease_normals(vertices: NDArray, faces: NDArray, crease_deg: float) -> tuple[Index, Index, NDArray]:
    """Vertices split where the surface folds sharply: (source (V',), faces (F, 3), normals (V', 3)).

    `vertices[source]` are the new vertices. Two corners of neighbouring faces share a normal when the faces
    meet at a common edge at less than the crease angle; what is connected in this way around a vertex is one
    smooth fan, and its normal is the mean of its faces' normals weighted by their angle (Thürmer and
    Wüthrich, "Computing vertex normals from polygonal facets", 1998). Neighbours are found by place, so a
    texture seam does not make a crease.
    """
    place = weld(vertices)[faces]
    _, normals = face_areas_normals(vertices, faces)
    key, face, side = _edge_pairs(place)
    same = np.flatnonzero(key[1:] == key[:-1])
    f, g, s_f, s_g = face[same], face[same + 1], side[same], side[same + 1]
    smooth = np.einsum("ij,ij->i", normals[f], normals[g]) > np.cos(np.deg2rad(crease_deg))
    f, g, s_f, s_g = f[smooth], g[smooth], s_f[smooth], s_g[smooth]
    flipped = place[f, s_f] == place[g, s_g]  # both faces run the edge the same way: inconsistent winding
    g_first = np.where(flipped, s_g, (s_g + 1) % 3)  # the corner of g at the start of f's edge
    g_second = np.where(flipped, (s_g + 1) % 3, s_g)
    rows = np.concatenate([3 * f + s_f, 3 * f + (s_f + 1) % 3])
    cols = np.concatenate([3 * g + g_first, 3 * g + g_second])
    size = faces.size
    graph = coo_matrix((np.ones(len(rows), bool), (rows, cols)), shape=(size, size))
    count, fan = connected_components(graph, directed=False)
    corners = vertices[faces].astype(np.float64)
    to_next = _unit(np.roll(corners, -1, axis=1) - corners)
    angle = np.arccos(np.clip(-np.einsum("fki,fki->fk", to_next, np.roll(to_next, 1, axis=1)), -1.0, 1.0))
    total = np.zeros((count, 3))
    np.add.at(total, fan, (angle[..., None] * normals[:, None]).reshape(-1, 3))
    keys = np.stack([fan.astype(np.int64), faces.reshape(-1).astype(np.int64)], axis=1)
    label = weld(keys)
    first = np.zeros(int(label.max()) + 1, np.int64)
    first[label[::-1]] = np.arange(size)[::-1]
    return faces.reshape(-1)[first], label.reshape(-1, 3), _unit(total)[fan[first]].astype(np.float32)


def _unit(vectors: NDArray) -> NDArray:
    """`vectors` (..., 3) scaled to length one; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(float).tiny)


def diameter(points: NDArray) -> float:
    """Largest distance between two of `points` (N, 3), exact: the pair lies on the convex hull."""
    points = np.unique(points, axis=0)
    if len(points) > 64:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # flat or a line: no hull in space
            centred = points - points.mean(axis=0)
            plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
            try:
                points = points[ConvexHull(plane).vertices]
            except QhullError:
                ends = [plane[:, 0].argmin(), plane[:, 0].argmax()]
                points = points[ends]
    return max(
        (float(cdist(points[i : i + 512], points).max()) for i in range(0, len(points), 512)), default=0.0
    )


def sample_surface(
    vertices: NDArray, faces: NDArray, count: int, generator: np.random.Generator
) -> tuple[Array, Index, Array]:
    """`count` points uniform over the surface: (points (n, 3), face index (n,), barycentric weights (n, 3)).

    Stratified over the cumulated area, so that every part gets its share to within one point.
    """
    area, _ = face_areas_normals(vertices, faces)
    cumulated = np.cumsum(area)
    where = (np.arange(count) + generator.random(count)) / max(count, 1) * cumulated[-1]
    face = np.minimum(np.searchsorted(cumulated, where, side="right"), len(faces) - 1).astype(np.int64)
    uv = generator.random((count, 2))
    uv = np.where(uv.sum(axis=1, keepdims=True) > 1.0, 1.0 - uv, uv)
    weights = np.column_stack([1.0 - uv.sum(axis=1), uv])
    return np.einsum("nk,nki->ni", weights, vertices[faces[face]].astype(np.float64)), face, weights


def split_faces(vertices: NDArray, faces: NDArray, chosen: NDArray) -> tuple[Index, Index]:
    """Chosen faces cut into four in the middles of their edges, and their neighbours so that no gap opens.

    Args:
        vertices: (V, 3); those in the same place are one, so that both sides of a seam are cut.
        chosen: indices into faces (F, 3).
    Returns:
        (ends (M, 2) of the edges whose middles are the vertices V, V + 1, ..., faces (F', 3)).
    """
    label = weld(vertices)
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).astype(np.int64)  # (F, 3, 2)
    low, high = label[edges].min(-1), label[edges].max(-1)
    key = low * (int(label.max()) + 1) + high
    cut = np.isin(key, key[chosen]) & (low != high)
    ends, inverse = np.unique(np.sort(edges[cut], axis=1), axis=0, return_inverse=True)
    middle = np.full(cut.shape, -1, np.int64)
    middle[cut] = len(vertices) + inverse.reshape(-1)
    number = cut.sum(1)
    # Turned so that a single cut is in the first edge, and that of two cuts the uncut edge is the last.
    first = np.where(number == 1, cut.argmax(1), (cut.argmin(1) + 1) % 3)
    turn = (first[:, None] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(faces, turn, 1).astype(np.int64).T
    ab, bc, ca = np.take_along_axis(middle, turn, 1).T
    pieces = {
        0: [(a, b, c)],
        1: [(a, ab, c), (ab, b, c)],
        2: [(ab, b, bc), (a, ab, bc), (a, bc, c)],
        3: [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)],
    }
    made = [np.stack(piece, 1)[number == n] for n, those in pieces.items() for piece in those]
    return ends, np.concatenate(made)


def decimate(vertices: NDArray, faces: NDArray, max_faces: int) -> tuple[Array, Index]:
    """About `max_faces` faces at most, welded, by quadric edge collapse: (vertices (V, 3), faces (F, 3))."""
    import fast_simplification

    label = weld(vertices)
    points = np.zeros((int(label.max()) + 1, 3))
    points[label] = vertices
    centre, size = points.mean(axis=0), float(np.ptp(points, axis=0).max())
    scaled, triangles = (points - centre) / size, label[faces].astype(np.int32)
    for eagerness in (4.0, 7.0):  # the gentler loses less, but may stop early
        new_points, new_faces = fast_simplification.simplify(
            scaled, triangles, target_count=max_faces, agg=eagerness
        )[:2]
        if len(new_faces) <= 1.05 * max_faces:
            break
    area, _ = face_areas_normals(new_points, new_faces)
    new_faces = new_faces[area > 0.0]
    keep, new_faces = np.unique(new_faces, return_inverse=True)
    return np.asarray(new_points[keep], np.float64) * size + centre, new_faces.reshape(-1, 3).astype(np.int64)
