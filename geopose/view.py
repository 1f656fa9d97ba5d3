"""An estimate in space, to be turned with the mouse in a browser: camera, object, rays, doubt, alternatives.

Needs viser (`pip install "geopose[view]"`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from geopose.geometry.pose import Pose
from geopose.geometry.rotation import hat
from geopose.image import load_image
from geopose.result import PoseEstimate

Array = NDArray[np.float64]
GREEN, RED, YELLOW = (40, 200, 90), (230, 60, 60), (240, 200, 40)
SHARE = 0.95  # of the truths that the ellipsoid holds
_WIDEST = 640  # pixels of the picture in the frustum


def build_scene(server: Any, estimate: PoseEstimate, img: Any = None) -> dict[str, Any]:
    """The handles, by name, of what was added to the scene of a `viser.ViserServer`; in the camera's frame, metres.

    "/camera" is the frustum with the picture; "/object" the mesh at its pose, green axes beside it; "/rays" one line
    through each keypoint found, green where it agrees with the pose; "/doubt" the ellipsoid that holds the object's
    centre 95 times in 100; "/alternatives/N" wire frames of the other poses. What an estimate lacks is left out.
    """
    scene, camera, model = server.scene, estimate.camera, estimate.model
    scene.set_up_direction("-y")
    centre = np.asarray(model.bounds, float).mean(0)
    at = (
        estimate.pose.apply(centre[None])[0]
        if estimate.pose is not None
        else np.array([0.0, 0.0, 4 * model.diameter])
    )
    out: dict[str, Any] = {}
    width, height = camera.size_wh
    picture = None
    if img is not None:
        picture = load_image(img)[0]
        step = max(1, -(-max(width, height) // _WIDEST))
        picture = picture[::step, ::step]
    out["/camera"] = scene.add_camera_frustum(
        "/camera", 2 * float(np.arctan(0.5 * height / camera.fy)), width / height,
        scale=0.3 * float(np.linalg.norm(at)), thickness=1.5, thickness_units="screen", image=picture,
    )  # fmt: skip
    if estimate.pose is not None:
        out["/object"] = _mesh(server, "/object", estimate, estimate.pose)
        out["/axes"] = scene.add_frame(
            "/axes",
            axes_length=0.6 * model.diameter,
            axes_radius=0.008 * model.diameter,
            **_at(estimate.pose),
        )
    if estimate.keypoints:
        ends, agree = _rays(estimate, float(at[2])), np.asarray(estimate.keypoints["inliers"], bool)
        lines = np.stack([np.zeros_like(ends), ends], 1).astype(np.float32)
        colors = np.where(agree[:, None, None], GREEN, RED).repeat(2, 1).astype(np.uint8)
        out["/rays"] = scene.add_line_segments(
            "/rays", lines, colors, thickness=1.0, thickness_units="screen"
        )
    if estimate.pose is not None and estimate.covariance is not None:
        axes, directions = ellipsoid(estimate.covariance, at)
        out["/doubt"] = scene.add_icosphere(
            "/doubt", 1.0, YELLOW, scale=tuple(map(float, axes)), opacity=0.35, **_at(Pose(directions, at))
        )
    for number, other in enumerate(estimate.alternatives):
        name = f"/alternatives/{number}"
        if np.isfinite(np.asarray(other.pose.matrix)).all():
            out[name] = _mesh(server, name, estimate, other.pose, wire=True)
            out[name + "/weight"] = scene.add_label(name + "/weight", f"weight {float(other.weight):.2g}")
    return out


def ellipsoid(covariance: Array, point: Array, share: float = SHARE) -> tuple[Array, Array]:
    """(half axes (3,), metres; their directions as the columns of a rotation (3, 3)) of the region that holds a point
    of the object, given where it is (3,) in the camera's frame, in `share` of all cases.

    Notes:
        A point p of exp(xi) T moves by rho + phi x p: its covariance is J C J^T with J = [I, -[p]_x].
    """
    J = np.hstack([np.eye(3), -np.asarray(hat(np.asarray(point, float)))])
    values, vectors = np.linalg.eigh(J @ covariance @ J.T)
    if np.linalg.det(vectors) < 0:
        vectors[:, 0] *= -1
    return np.sqrt(np.maximum(values, 0) * chdtri(3, 1 - share)), vectors


def _rays(estimate: PoseEstimate, depth: float) -> Array:
    """(K, 3) ends of the rays of the keypoints: as far as the pose has them, else `depth`."""
    found = np.asarray(estimate.keypoints["points_px"], float)
    depths = np.full(len(found), depth)
    if estimate.pose is not None:
        depths = estimate.pose.apply(np.asarray(estimate.keypoints["points_obj"], float))[:, 2]
    return np.nan_to_num(np.asarray(estimate.camera.unproject(found, depths)))


def _mesh(server: Any, name: str, estimate: PoseEstimate, pose: Pose, wire: bool = False) -> Any:
    model = estimate.model
    if wire:
        return server.scene.add_mesh_simple(
            name, np.asarray(model.vertices, np.float32), np.asarray(model.faces, np.uint32), color=YELLOW,
            wireframe=True, **_at(pose),
        )  # fmt: skip
    return server.scene.add_mesh_trimesh(name, model.trimesh(), **_at(pose))


def _at(pose: Pose) -> dict[str, Any]:
    return {"wxyz": np.asarray(pose.quat_wxyz, float), "position": np.asarray(pose.t, float)}
