"""What an estimator answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose import checkpoint
from geopose.cad.model import CadModel
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import region_radius2
from geopose.geometry.pnp import Alternative
from geopose.geometry.pose import Pose
from geopose.image import load_image

Array = NDArray[np.float64]
FORMAT = "geopose/pose_estimate/1"  # of the JSON; described by pose_estimate.schema.json beside this file


@dataclass(frozen=True)
class PoseEstimate:
    """A pose in a photograph, how sure it is, and everything needed to see why.

    pose: cam_from_obj, metres, or None; covariance: (6, 6) of (rho, phi), metres and radians, or None; covariance_dof:
    degrees of freedom of the Student t that it is of, infinite for a Gaussian;
    status: "ok" or why not (see `solve_pnp`; "not_found" when nothing looks like it); reasons: in words;
    confidence: in [0, 1], the probability that the pose is right; keypoints: dict of points_px (K, 2), cov_px
    (K, 2, 2), inliers (K,), points_obj (K, 3), or empty; box: (4,) x0, y0, x1, y1 image pixels of the whole
    object; alternatives: other poses that the keypoints allow, with their
    posterior weights; timings: seconds per stage; camera: the camera used.
    """

    pose: Pose | None
    covariance: Array | None
    status: str
    reasons: tuple[str, ...]
    confidence: float
    keypoints: dict[str, NDArray[Any]]
    box: Array | None
    alternatives: tuple[Alternative, ...]
    timings: dict[str, float]
    camera: Camera
    model: CadModel
    covariance_dof: float = np.inf

    def region(self, share: float) -> float:
        """The squared Mahalanobis distance under `covariance` inside of which the true pose lies with probability
        `share` in (0, 1), by the renders that taught it."""
        if not 0 < share < 1:
            raise ValueError(f"share: expected a probability between 0 and 1, got {share}")
        return region_radius2(share, self.covariance_dof)

    def overlay(self, img: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB: the photograph with the object's outline, keypoints and axes drawn on it."""
        from geopose.visualize import draw_estimate

        return draw_estimate(load_image(img)[0], self)

    def to_json(self, indent: int | None = 2) -> str:
        """JSON text; transforms are named dst_from_src, matrices are row-major, units are in the names.

        `pose_estimate.schema.json`, part of the package, describes it.
        """
        pose = None
        if self.pose is not None:
            pose = {
                "matrix_m": np.asarray(self.pose.matrix),
                "quat_wxyz": np.asarray(self.pose.quat_wxyz),
                "t_m": np.asarray(self.pose.t),
            }
        camera = self.camera
        value = {
            "format": FORMAT,
            "status": self.status,
            "reasons": self.reasons,
            "confidence": self.confidence,
            "cam_from_obj": pose,
            "covariance_rho_m_phi_rad": self.covariance,
            "covariance_dof": self.covariance_dof,
            "box_px": self.box,
            "keypoints": self.keypoints,
            "alternatives": [{"matrix_m": np.asarray(a.pose.matrix), "weight": a.weight} for a in self.alternatives],
            "camera": {
                "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy, "size_wh": camera.size_wh,
                "distortion": camera.distortion, "focal_rel_std": camera.focal_rel_std,
            },
            "object": {"name": self.model.name, "content_hash": self.model.content_hash},
            "timings_s": self.timings,
        }  # fmt: skip
        return json.dumps(checkpoint.jsonable(value), indent=indent)


def distinct(found: list[PoseEstimate]) -> list[PoseEstimate]:
    """Without the later of two answers for one instance, and without those that have no pose, if any has one."""
    kept: list[PoseEstimate] = []
    places: list[Any] = []  # of the middle of the object: its origin may be far from it
    for f in found:
        if f.pose is None:
            continue
        place = f.pose.apply(f.model.bounds.mean(0)[None])[0]
        if all(np.linalg.norm(place - other) > 0.3 * f.model.diameter for other in places):
            kept.append(f)
            places.append(place)
    return kept or found[:1]
