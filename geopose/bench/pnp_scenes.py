"""Problems with known poses for the benchmark of PnP, and how far an answer is from the best that can be had."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import load_cad
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import cramer_rao
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle, hat, random_rotation

Floats = NDArray[np.float64]
CAMERA = Camera(800, 800, 320, 240, (640, 480))
BOXES = {"box": (1.0, 1.0, 1.0), "planar": (1.0, 1.0, 0.0), "quasi-planar": (1.0, 1.0, 0.02)}
SHAPES = (*BOXES, "X-wing")
LONG, GROSS = 10.0, np.radians(10.0)  # a gross failure: beyond this many bounds, and this angle


@dataclass(frozen=True)
class Scenes:
    """points (B, N, 3), pixels (B, N, 2), true poses (B), cov (B, N, 2, 2) of the pixels."""

    points: Floats
    px: Floats
    truth: Pose
    cov: Floats

    def __len__(self) -> int:
        return len(self.px)


@lru_cache(maxsize=1)
def _ship() -> Floats:
    ship = load_cad("xwing")
    points = choose_keypoints(ship, 50)
    return np.asarray(points - points.mean(0)) / ship.diameter


def shape_points(rng: np.random.Generator, shape: str, n: int, count: int) -> Floats:
    """(count, n, 3) points of an object of size one: uniform in a box, or keypoints of the X-wing."""
    if shape == "X-wing":
        places = _ship()
        return np.stack([places[rng.permutation(len(places))[:n]] for _ in range(count)])
    return rng.uniform(-0.5, 0.5, (count, n, 3)) * BOXES[shape]


def random_covariances(rng: np.random.Generator, count: int, n: int) -> Floats:
    """(count, n, 2, 2): standard deviations spread by four either way, and ratios of the axes' variances up to 20."""
    size, stretch = 4 ** rng.uniform(-1, 1, (count, n)), 20 ** rng.uniform(0, 0.25, (count, n))
    angle = rng.uniform(0, np.pi, (count, n))
    c, s = np.cos(angle) * size, np.sin(angle) * size
    root = np.stack([c * stretch, -s / stretch, s * stretch, c / stretch], -1).reshape(count, n, 2, 2)
    return root @ root.mT


def scenes(
    rng: np.random.Generator, shape: str, n: int, count: int, noise: float = 1.0, cov: Floats | None = None
) -> Scenes:
    """Objects three to ten sizes away, turned at random; pixels with Gaussian noise, `noise` on both axes or `cov`."""
    points = shape_points(rng, shape, n, count)
    z = rng.uniform(3, 10, count)
    t = np.stack([*(rng.uniform(-0.25, 0.25, (2, count)) * z), z], -1)
    truth = Pose(random_rotation((count,), rng), t)
    if cov is None:
        cov = np.broadcast_to(noise**2 * np.eye(2), (count, n, 2, 2))
    px = CAMERA.project(truth.apply(points))
    error = np.linalg.cholesky(cov) @ rng.standard_normal((*px.shape, 1))
    return Scenes(points, px + error[..., 0], truth, cov)


def random_pixels(rng: np.random.Generator, *lead: int) -> Floats:
    """(..., 2) pixels anywhere in the picture."""
    return rng.uniform(0, 1, (*lead, 2)) * CAMERA.size_wh


@dataclass(frozen=True)
class Bounds:
    """Cramer-Rao variances of an answer (B,): of the rotation, rad^2, and of the translation, object sizes^2."""

    rotation: Floats
    translation: Floats


def bounds(problem: Scenes, first: int = 0) -> Bounds:
    """The bounds of the problems, from their points from `first` on."""
    cov = cramer_rao(problem.points[:, first:], problem.truth, CAMERA, problem.cov[:, first:])
    lever = np.concatenate([np.broadcast_to(np.eye(3), (len(problem), 3, 3)), -hat(problem.truth.t)], -1)
    of_t = lever @ cov @ lever.mT
    return Bounds(np.trace(cov[:, 3:, 3:], axis1=1, axis2=2), np.trace(of_t, axis1=1, axis2=2))


def score(
    pose: Pose, truth: Pose, bound: Bounds, accepted: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """RMSE over the bound of what is no gross failure, and the share of gross failures in percent.

    Only `accepted` answers count for the RMSE; all others are failures.
    """
    right = is_right(pose, truth, bound)
    if accepted is not None:
        right = right & accepted
    turned, moved = geodesic_angle(pose.R, truth.R) ** 2, ((pose.t - truth.t) ** 2).sum(-1)
    row = {"gross_percent": 100.0 * float((~right).mean()), "rotation": np.nan, "translation": np.nan}
    if right.any():
        row["rotation"] = float(np.sqrt(turned[right].sum() / bound.rotation[right].sum()))
        row["translation"] = float(np.sqrt(moved[right].sum() / bound.translation[right].sum()))
    return row


def is_right(pose: Pose, truth: Pose, bound: Bounds) -> NDArray[np.bool_]:
    """(B,) whether a pose is no gross failure: its rotation within ten bounds or ten degrees."""
    error = geodesic_angle(pose.R, truth.R)
    return np.asarray(error < np.maximum(LONG * np.sqrt(bound.rotation), GROSS))
