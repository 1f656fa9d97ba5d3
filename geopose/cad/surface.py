"""A mesh as something to register against: closest points, and copies of the mesh fitted onto itself."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from geopose.cad import mesh
from geopose.cad.model import CadModel

Array = NDArray[np.float64]
REACH = 0.03  # of the diameter: how far from its place a colour may be found
COLOR_STEP = 0.4  # a difference of sRGB colours, as vectors, that counts like `REACH`


class Surface:
    """The surface of a model, scaled to diameter 1 about its centroid, ready to compare copies of it.

    Attributes:
        centre (3,), size: `points_here = (points_obj - centre) / size`.
        moments: (3, 3) second moments of the surface about its centroid.
        probes: (N, 3) points that stand for the surface when a copy is compared.
    """

    def __init__(
        self, model: CadModel, use_color: bool = True, dense: int = 30_000, probes: int = 1_500
    ) -> None:
        self.size = model.diameter
        self.centre, moments = area_moments(model.vertices, model.faces)
        self.moments = moments / self.size**2
        vertices = (model.vertices - self.centre) / self.size
        self.triangles = vertices[model.faces]
        _, self.normals = mesh.face_areas_normals(vertices, model.faces)
        generator = np.random.default_rng(0)
        self.dense, self.face, dense_weights = mesh.sample_surface(vertices, model.faces, dense, generator)
        self.tree = cKDTree(self.dense)
        self.coarse = self.dense[generator.permutation(dense)[: dense // 6]]
        self.coarse_tree = cKDTree(self.coarse)
        self.probes, face, weights = mesh.sample_surface(vertices, model.faces, probes, generator)
        places = np.unique(vertices, axis=0)
        self.corners = places[generator.permutation(len(places))[:probes]]
        self.shuffled = generator.permutation(probes)
        seen = model.color_at(self.face, dense_weights) if use_color else None
        self.painted = seen is not None and bool(np.ptp(seen, axis=0).max() > 0.05)
        if seen is not None and self.painted:
            self.colors = np.asarray(model.color_at(face, weights), np.float64)
            self.color_tree = cKDTree(np.concatenate([self.dense / REACH, seen / COLOR_STEP], axis=1))

    def closest(self, points: Array, neighbours: int = 5) -> tuple[Array, NDArray[np.int64]]:
        """Closest surface points (N, 3) and faces (N,), exact among the faces of the nearest samples."""
        _, index = self.tree.query(points, k=neighbours)
        face = self.face[index]
        repeated = np.repeat(points, neighbours, axis=0)
        found = trimesh.triangles.closest_point(self.triangles[face.reshape(-1)], repeated)
        distance = np.linalg.norm(found - repeated, axis=1).reshape(-1, neighbours)
        best = np.argmin(distance, axis=1)
        rows = np.arange(len(points))
        return found.reshape(-1, neighbours, 3)[rows, best], face[rows, best]

    def mismatch(self, R: Array, t: Array) -> tuple[float, float, float]:
        """Mean, 99th percentile and maximum of the distance of a moved copy to the surface, in diameters.

        Mean and percentile are over the surface, the maximum also over vertices, where small details are.
        """
        moved = np.concatenate([self.probes, self.corners]) @ R.T + t
        distance = np.linalg.norm(moved - self.closest(moved)[0], axis=1)
        over = distance[: len(self.probes)]
        return float(over.mean()), float(np.percentile(over, 99)), float(distance.max())

    def repainted(self, R: Array, t: Array) -> float:
        """Fraction of moved probes that land on the surface but on no similar colour; 0 for a plain model."""
        if not self.painted:
            return 0.0
        moved = self.probes @ R.T + t
        landed = self.tree.query(moved)[0] < 0.5 * REACH
        distance, _ = self.color_tree.query(np.concatenate([moved / REACH, self.colors / COLOR_STEP], axis=1))
        return float((landed & (distance > 1.0)).mean())

    def fit_coarsely(
        self, R: Array, t: Array, probes: int = 100, steps: int = 10
    ) -> tuple[Array, Array, Array]:
        """Rotations (B, 3, 3), shifts (B, 3), mean distance (B,) after some registration from each start."""
        points = self.probes[self.shuffled[:probes]]
        normals = self.normals[self.face]
        lookup = self.tree.query(self.coarse)[1]
        for _ in range(steps):
            moved = np.einsum("nj,bij->bni", points, R) + t[:, None]
            index = self.coarse_tree.query(moved.reshape(-1, 3))[1].reshape(moved.shape[:2])
            difference = moved - self.coarse[index]
            turn, shift = _step(moved, difference, normals[lookup[index]], 0.2)
            R, t = turn @ R, np.einsum("bij,bj->bi", turn, t) + shift
        moved = np.einsum("nj,bij->bni", points, R) + t[:, None]
        distance, _ = self.coarse_tree.query(moved.reshape(-1, 3))
        return R, t, distance.reshape(moved.shape[:2]).mean(axis=1)

    def fit(self, R: Array, t: Array, probes: int = 600, steps: int = 8) -> tuple[Array, Array]:
        """One copy of the mesh (R, t) registered onto the mesh itself, against exact closest points."""
        points = self.probes[self.shuffled[:probes]]
        for k in range(steps):
            moved = points @ R.T + t
            found, face = self.closest(moved)
            slip = 0.02 if k < steps - 4 else 1e-4
            distance = np.linalg.norm(moved - found, axis=1)
            trust = 1.0 / (
                1.0 + (distance / (3.0 * distance.mean() + 1e-12)) ** 2
            )  # Cauchy: details do not pull
            turn, shift = _step(
                moved[None], (moved - found)[None], self.normals[face][None], slip, trust[None]
            )
            R, t = turn[0] @ R, turn[0] @ t + shift[0]
            if np.abs(shift).max() < 1e-10 and np.abs(turn - np.eye(3)).max() < 1e-10:
                break
        return R, t


def _step(
    moved: Array, difference: Array, normals: Array, slip: float, trust: Array | None = None
) -> tuple[Array, Array]:
    """Rotations (B, 3, 3) and shifts (B, 3) that bring points closer to the surface: a Gauss-Newton step.

    The distance along the normal counts fully and that along the surface by `slip` (Chen and Medioni, "Object
    modelling by registration of multiple range images", 1992, with a little of Besl and McKay's
    point-to-point term).
    """
    weight = normals[..., :, None] * normals[..., None, :] * (1.0 - slip) + slip * np.eye(3)
    if trust is not None:
        weight *= trust[..., None, None]
    x, y, z = moved[..., 0], moved[..., 1], moved[..., 2]
    o = np.zeros_like(x)
    hat = np.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(*moved.shape, 3)
    jacobian = np.concatenate([-hat, np.broadcast_to(np.eye(3), hat.shape)], axis=-1)  # (B, N, 3, 6)
    weighted = weight @ jacobian
    hessian = np.einsum("bnki,bnkj->bij", jacobian, weighted)
    gradient = np.einsum("bnki,bnk->bi", weighted, difference)
    damping = 1e-6 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] * np.eye(6)
    step = -np.linalg.solve(hessian + damping, gradient[..., None])[..., 0]
    length = np.linalg.norm(step[:, :3], axis=1, keepdims=True)
    step *= np.minimum(1.0, 0.3 / np.maximum(length, 1e-12))
    return Rotation.from_rotvec(step[:, :3]).as_matrix(), step[:, 3:]


def area_moments(vertices: Array, faces: NDArray) -> tuple[Array, Array]:
    """Centroid (3,) and second moments (3, 3) about it of a surface of uniform density, exact."""
    area, _ = mesh.face_areas_normals(vertices, faces)
    share = area / area.sum()
    corners = vertices[faces].astype(np.float64)
    middle = corners.mean(axis=1)
    centre = share @ middle
    corners, middle = corners - centre, middle - centre
    # The integral of x x^T over a triangle is (area / 12) (sum of v v^T over its corners + 9 m m^T).
    second = np.einsum("f,fki,fkj->ij", share, corners, corners) + 9.0 * np.einsum(
        "f,fi,fj->ij", share, middle, middle
    )
    return centre, second / 12.0
