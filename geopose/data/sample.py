"""Where a training picture is taken from: view space, placement, and the square that the networks look at.

One definition is shared by training and estimation: the *box* of an object is the bounding rectangle of its
projected mesh, hidden and cut-off parts included; its *size* is the rectangle's diagonal over sqrt(2), the
side of a square of the same diagonal.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]

# Rows map object axes to (x, y, z) with z up: a cyclic change keeps the hand.
_UP_FRAMES = {
    "+z": np.eye(3),
    "-z": np.diag([1.0, -1.0, -1.0]),
    "+y": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "-y": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "+x": np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "-x": np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]]),
}


@dataclass(frozen=True)
class ViewSpace:
    """From where an object may be seen.

    elevation_deg: angle of the camera above the object's horizontal plane; azimuth_deg: heading of the camera
    about the object's up axis, 0 on the first horizontal axis; roll_deg: turn of the picture; up: the
    object's axis that points up, such as "+z" or "-y"; distance: in diameters of the object.
    """

    elevation_deg: tuple[float, float] = (-90.0, 90.0)
    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    roll_deg: tuple[float, float] = (-180.0, 180.0)
    up: str = "+z"
    distance: tuple[float, float] = (1.8, 20.0)

    def __post_init__(self) -> None:
        limits = {"elevation_deg": 90.0, "azimuth_deg": 360.0, "roll_deg": 180.0}
        for name, limit in limits.items():
            low, high = getattr(self, name)
            if not -limit <= low <= high <= limit:
                raise ValueError(
                    f"{name}: expected low <= high within +-{limit:g} degrees, got ({low}, {high})"
                )
        if self.up not in _UP_FRAMES:
            raise ValueError(f"up: expected one of {', '.join(_UP_FRAMES)}, got {self.up!r}")
        if not 0 < self.distance[0] <= self.distance[1]:
            raise ValueError(f"distance: expected 0 < nearest <= farthest in diameters, got {self.distance}")

    @classmethod
    def of_training(cls, options: Mapping[str, Any]) -> ViewSpace:
        """The view space in the `options` of a checkpoint's metadata."""
        elevation, azimuth, roll = (
            tuple(options[f"{name}_deg"]) for name in ("elevation", "azimuth", "roll")
        )
        return cls(elevation, azimuth, roll, options["up"])

    def sample_rotation(self, generator: np.random.Generator) -> Array:
        """(3, 3) rotation of a camera that looks straight at the object; uniform over the part of the sphere
        allowed."""
        low, high = np.sin(np.deg2rad(self.elevation_deg))
        elevation = float(np.arcsin(generator.uniform(low, high)))
        azimuth = float(np.deg2rad(generator.uniform(*self.azimuth_deg)))
        roll = float(np.deg2rad(generator.uniform(*self.roll_deg)))
        return look_at(elevation, azimuth, roll, self.up)

    def angles_deg(self, pose: Pose, centre: Array) -> Array:
        """(3,) elevation, azimuth and roll, degrees, from which a pose cam_from_obj shows the object whose middle is
        `centre` (3,), object frame."""
        ray = pose.R @ centre + pose.t
        eye = _UP_FRAMES[self.up] @ (-pose.R.T @ ray)
        elevation, azimuth = np.arctan2(eye[2], np.hypot(eye[0], eye[1])), np.arctan2(eye[1], eye[0])
        turn = turned_to(ray).T @ pose.R @ look_at(elevation, azimuth, 0.0, self.up).T
        return np.rad2deg([elevation, azimuth, np.arctan2(turn[1, 0], turn[0, 0])])

    def holds(self, pose: Pose, centre: Array, slack_deg: float = 3.0) -> bool:
        """Whether a pose cam_from_obj shows the object from here, give or take `slack_deg`; `centre` as in
        `angles_deg`."""
        elevation, azimuth, roll = self.angles_deg(pose, centre)
        limits = self.elevation_deg, self.azimuth_deg, self.roll_deg
        whole_turns = (0.0,), (-360.0, 0.0, 360.0), (-360.0, 0.0, 360.0)
        return all(
            any(low - slack_deg <= angle + turn <= high + slack_deg for turn in turns)
            for angle, (low, high), turns in zip((elevation, azimuth, roll), limits, whole_turns, strict=True)
        )

    def sample_distance(self, generator: np.random.Generator) -> float:
        """Distance in diameters, uniform in its logarithm."""
        return float(np.exp(generator.uniform(*np.log(self.distance))))


def look_at(elevation: float, azimuth: float, roll: float, up: str = "+z") -> Array:
    """(3, 3) cam_from_obj rotation of a camera that looks at the origin; angles in radians as in
    `ViewSpace`."""
    se, ce, sa, ca = np.sin(elevation), np.cos(elevation), np.sin(azimuth), np.cos(azimuth)
    forward = -np.array([ce * ca, ce * sa, se])
    right = np.array([-sa, ca, 0.0])
    down = np.array([se * ca, se * sa, -ce])  # forward x right
    upright = np.stack([right, down, forward])
    c, s = np.cos(roll), np.sin(roll)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ upright @ _UP_FRAMES[up]


def turned_to(ray: Array) -> Array:
    """(3, 3) smallest rotation that turns the optical axis to `ray` (3,): the object shows the same side from
    there."""
    ray = ray / np.linalg.norm(ray)
    axis = np.array([-ray[1], ray[0], 0.0])  # z cross ray
    sine = np.hypot(axis[0], axis[1])
    angle = np.arctan2(sine, ray[2])
    return cv2.Rodrigues(axis / sine * angle)[0] if sine > 1e-12 else np.eye(3)


def sample_pose(
    generator: np.random.Generator, view: ViewSpace, centre: Array, diameter: float, ray: Array
) -> Pose:
    """A Pose that puts `centre` (3,), object frame, on `ray` (3,) at a random distance, showing a random
    side."""
    R = turned_to(ray) @ view.sample_rotation(generator)
    distance = view.sample_distance(generator) * diameter
    return Pose(R, ray / np.linalg.norm(ray) * distance - R @ centre)


def projected_box(points_obj: Array, pose: Pose, camera: Camera) -> Array:
    """(4,) x0, y0, x1, y1 in image pixels of the box around the projected points (N, 3); NaN if none is in
    front."""
    px = np.asarray(camera.project(pose.apply(points_obj)))
    px = px[np.isfinite(px).all(-1)]
    if len(px) == 0:
        return np.full(4, np.nan)
    return np.concatenate([px.min(0), px.max(0)])


def box_centre_size(box: Array) -> tuple[Array, float]:
    """Centre (2,) and size of a box (4,): its diagonal over sqrt(2)."""
    return 0.5 * (box[:2] + box[2:]), float(np.hypot(box[2] - box[0], box[3] - box[1]) / np.sqrt(2))


def square(centre: Array, side: float) -> Array:
    """(4,) box of a square."""
    return np.concatenate([centre - 0.5 * side, centre + 0.5 * side])


@functools.lru_cache(maxsize=4)
def shuffled(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    """(count,) the numbers 0 to count - 1 in random order, another order in each `turn` through them."""
    return np.random.default_rng([seed, 0, turn]).permutation(count)
