"""An estimate in space, to be turned with the mouse in a browser: camera, object, rays, doubt, alternatives.

Needs viser (`pip install "geopose[view]"`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.geometry.camera import Camera
from geopose.geometry.metrics import region_radius2
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import hat
from geopose.image import load_image
from geopose.result import PoseEstimate

Array = NDArray[np.float64]
GREEN, RED, YELLOW, BLUE, GREY = (20, 150, 60), (215, 50, 50), (245, 190, 0), (40, 110, 220), (70, 70, 70)
SHARE = 0.95  # of the truths that the ellipsoid holds
_WIDEST = 1024  # pixels of the picture in the scene
_FOV = math.radians(40)  # of the looker


def build_scene(server: Any, estimate: PoseEstimate, img: Any = None) -> dict[str, Any]:
    """The handles, by name, of what was added to the scene of a `viser.ViserServer`; in the camera's frame, metres.

    "/camera" is the pyramid that the camera sees, with its "/camera/picture" straightened as its base, just behind the
    object; "/object" the axes of the object at its pose, "/object/solid" and "/object/wire" its mesh, of which a switch
    shows one; "/rays" a line of sight from the camera through each keypoint found to the picture, green where it agrees
    with the pose, and "/points" where the pose has the keypoints; "/doubt" the ellipsoid that holds the object's centre
    95 times in 100; "/alternatives/N" wire frames of the other poses. What an estimate lacks is left out. A panel names
    the colours and leads to three points of view.

    Raises:
        ValueError: for a picture of another size than the estimate's camera has.
    """
    estimate = _only_finite(estimate)
    scene, camera, model, pose = server.scene, estimate.camera, estimate.model, estimate.pose
    scene.set_up_direction("-y")
    centre = np.asarray(model.bounds, float).mean(0)
    at = np.array([0.0, 0.0, 4 * model.diameter]) if pose is None else np.asarray(pose.apply(centre[None]))[0]
    depth = max(float(at[2]), 0.0) + 0.75 * model.diameter  # of the picture
    out = _camera(scene, camera, depth, None if img is None else _same_size(load_image(img)[0], camera))
    if pose is not None:
        sizes = {"axes_length": 0.45 * model.diameter, "axes_radius": 0.006 * model.diameter}
        out["/object"] = scene.add_frame("/object", **sizes, **_at(pose))
        out["/object/solid"] = scene.add_mesh_trimesh("/object/solid", model.trimesh())
        out["/object/wire"] = _wire(scene, "/object/wire", estimate, GREY, visible=False)
        label, above = f"{model.name}, {np.linalg.norm(at):.3g} m away", at - [0, 0.5 * model.diameter, 0]
        out["/label"] = scene.add_label("/label", label, position=above, anchor="bottom-center")
    if estimate.keypoints:
        out |= _sight(scene, estimate, pose, depth)
    if pose is not None and estimate.covariance is not None:
        axes, directions = ellipsoid(estimate.covariance, at, estimate.covariance_dof)
        out["/doubt"] = scene.add_icosphere(
            "/doubt", 1.0, YELLOW, scale=tuple(map(float, axes)), opacity=0.5, **_at(Pose(directions, at))
        )
    for number, other in enumerate(estimate.alternatives):
        name = f"/alternatives/{number}"
        out[name] = _wire(scene, name, estimate, BLUE, **_at(other.pose))
        out[name + "/weight"] = scene.add_label(name + "/weight", f"weight {float(other.weight):.2g}")
    _panel(server, estimate, at, depth)
    if pose is not None:
        _switch(server, out["/object/solid"], out["/object/wire"])
    return out


def ellipsoid(
    covariance: Array, point: Array, dof: float = np.inf, share: float = SHARE
) -> tuple[Array, Array]:
    """(half axes (3,), metres; their directions as the columns of a rotation (3, 3)) of the region that holds a point
    of the object, given where it is (3,) in the camera's frame, in `share` of all cases.

    Notes:
        A point p of exp(xi) T moves by rho + phi x p: its covariance is J C J^T with J = [I, -[p]_x].
    """
    J = np.hstack([np.eye(3), -np.asarray(hat(np.asarray(point, float)))])
    values, vectors = np.linalg.eigh(J @ covariance @ J.T)
    if np.linalg.det(vectors) < 0:
        vectors[:, 0] *= -1
    return np.sqrt(np.maximum(values, 0) * region_radius2(share, dof, 3)), vectors


def straightened(picture: NDArray[np.uint8], camera: Camera) -> NDArray[np.uint8]:
    """The picture (H, W, 3) as the same camera without distortion would have taken it."""
    if len(camera.distortion) == 0:
        return picture
    pinhole = _pinhole(camera)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in camera.size_wh)), -1).reshape(-1, 2)
    seen = np.asarray(camera.project(np.asarray(pinhole.unproject(grid)))).astype(np.float32)
    maps = np.nan_to_num(seen, nan=-9.0).reshape(*picture.shape[:2], 2)
    return np.asarray(cv2.remap(picture, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR), np.uint8)


def _camera(scene: Any, camera: Camera, depth: float, picture: NDArray[np.uint8] | None) -> dict[str, Any]:
    """The pyramid from the camera to the four corners of its picture at `depth`, and the picture there."""
    width, height = camera.size_wh
    corners_px = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    corners = np.asarray(_pinhole(camera).unproject(corners_px, np.full(4, depth)))
    edges = [(np.zeros(3), c) for c in corners] + list(zip(corners, np.roll(corners, -1, 0), strict=True))
    lines = {"thickness": 1.5, "thickness_units": "screen"}
    out = {"/camera": scene.add_line_segments("/camera", np.array(edges, np.float32), GREY, **lines)}
    out["/camera/label"] = scene.add_label("/camera/label", "camera", anchor="bottom-right")
    if picture is not None:
        flat = straightened(picture, camera)
        scale = min(1.0, _WIDEST / max(width, height))
        flat = np.asarray(cv2.resize(flat, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        span = corners[2] - corners[0]
        out["/camera/picture"] = scene.add_image(
            "/camera/picture", flat, float(span[0]), float(span[1]), position=corners.mean(0),
            cast_shadow=False, receive_shadow=False, jpeg_quality=90,
        )  # fmt: skip
    return out


def _sight(scene: Any, estimate: PoseEstimate, pose: Pose | None, depth: float) -> dict[str, Any]:
    """Lines of sight to `depth`, and the keypoints where the pose has them."""
    found = np.asarray(estimate.keypoints["points_px"], float)
    agree = np.asarray(estimate.keypoints["inliers"], bool)
    ends = np.asarray(estimate.camera.unproject(found, np.full(len(found), depth)))
    seen = np.isfinite(ends).all(-1)
    colors = np.where(agree[:, None], GREEN, RED).astype(np.uint8)
    lines = np.stack([np.zeros_like(ends), ends], 1).astype(np.float32)[seen]
    thick = {"thickness": 1.5, "thickness_units": "screen"}
    out = {"/rays": scene.add_line_segments("/rays", lines, colors[seen][:, None].repeat(2, 1), **thick)}
    if pose is not None:
        points = np.asarray(pose.apply(np.asarray(estimate.keypoints["points_obj"], float)), np.float32)
        size = 0.014 * estimate.model.diameter
        out["/points"] = scene.add_point_cloud(
            "/points", points, colors, point_size=size, point_shape="circle", precision="float32"
        )
    return out


def _wire(scene: Any, name: str, estimate: PoseEstimate, color: tuple[int, int, int], **more: Any) -> Any:
    vertices, faces = estimate.model.vertices, estimate.model.faces
    return scene.add_mesh_simple(
        name,
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.uint32),
        color=color,
        wireframe=True,
        **more,
    )


def _switch(server: Any, solid: Any, wire: Any) -> None:
    """A box to tick that shows the wire frame, and the ellipsoid in it, instead of the solid."""
    through = server.gui.add_checkbox("See through", False)

    @through.on_update
    def _(_: Any) -> None:
        solid.visible, wire.visible = not through.value, through.value


def _panel(server: Any, estimate: PoseEstimate, at: Array, depth: float) -> None:
    """The answer and the colours in words, and buttons that lead to points of view; the first is where to start."""
    server.gui.configure_theme(control_width="large", show_share_button=False)
    server.gui.add_markdown("\n\n".join(_said(estimate, at)))
    views = _views(estimate, at, depth)
    for name, (position, look_at, fov) in views.items():
        server.gui.add_button(name).on_click(_mover(position, look_at, fov))
    first = server.initial_camera
    first.position, first.look_at, first.fov = next(iter(views.values()))
    first.up = np.array([0.0, -1.0, 0.0])
    first.near, first.far = 1e-3 * depth, 30 * depth


def _views(estimate: PoseEstimate, at: Array, depth: float) -> dict[str, tuple[Array, Array, float]]:
    """(where from, where to, vertical field of view) by name: all of it from the side; the object; as the camera."""
    camera, away = estimate.camera, at / np.linalg.norm(at)
    right = np.cross([0.0, 1.0, 0.0], away)
    right /= np.linalg.norm(right)
    principal = np.array([0.0, 0.0, depth])
    # far enough for the picture's half diagonal and half the way, as seen from the side
    half = 0.5 * math.hypot(
        depth, *(depth * n / f for n, f in zip(camera.size_wh, (camera.fx, camera.fy), strict=True))
    )
    middle = 0.6 * principal
    side = np.array([0.8, -0.5, -0.75])
    side *= 0.82 * half / math.tan(0.5 * _FOV) / np.linalg.norm(side)
    near = np.array([0.0, -0.5, 0.0]) + 0.6 * right - away
    near *= 0.7 * estimate.model.diameter / math.tan(0.5 * _FOV) / np.linalg.norm(near)
    views = {"From the side": (middle + side, middle, _FOV)}
    if estimate.pose is not None:
        views["The object"] = (at + near, at, _FOV)
    views["As the camera"] = np.zeros(3), principal, 2 * math.atan(0.5 * camera.size_wh[1] / camera.fy)
    return views


def _mover(position: Array, look_at: Array, fov: float) -> Callable[[Any], None]:
    def move(event: Any) -> None:
        if event.client is not None:
            with event.client.atomic():
                event.client.camera.up_direction = np.array([0.0, -1.0, 0.0])
                event.client.camera.position, event.client.camera.look_at = position, look_at
                event.client.camera.fov = fov

    return move


def _said(estimate: PoseEstimate, at: Array) -> list[str]:
    """Paragraphs of Markdown: what the estimate says, and what the colours stand for."""
    head = f"**{escape(estimate.model.name)}**: {estimate.status}, confidence {estimate.confidence:.2f}"
    out = [head, *map(escape, estimate.reasons)]
    colours = []
    if estimate.keypoints:
        agree = np.asarray(estimate.keypoints["inliers"], bool)
        colours += [(GREEN, f"{agree.sum()} keypoints that agree with the pose")]
        colours += [(RED, f"{(~agree).sum()} that do not")] if not agree.all() else []
    if estimate.pose is not None:
        out.append("centre at x {:.4g}, y {:.4g}, z {:.4g} m: right, down, forward".format(*at))
        out.append("the object's axes: x red, y green, z blue")
    if estimate.pose is not None and estimate.covariance is not None:
        axes = " x ".join(f"{a:.2g}" for a in ellipsoid(estimate.covariance, at, estimate.covariance_dof)[0])
        colours.append((YELLOW, f"holds the centre {100 * SHARE:.0f} times in 100: half axes {axes} m"))
    if estimate.alternatives:
        colours.append((BLUE, "other poses that the keypoints allow"))
    dot = "<span style='color:rgb{}'>\u25cf</span> {}"
    return out + [dot.format(str(color).replace(" ", ""), text) for color, text in colours]


def _same_size(picture: NDArray[np.uint8], camera: Camera) -> NDArray[np.uint8]:
    size = picture.shape[1], picture.shape[0]
    if size != tuple(camera.size_wh):
        width, height = camera.size_wh
        raise ValueError(
            f"img: got a picture of {size[0]}x{size[1]}, the estimate was made from one of {width}x{height}: "
            "give the one that it was made from"
        )
    return picture


def _pinhole(camera: Camera) -> Camera:
    return Camera(camera.fx, camera.fy, camera.cx, camera.cy, camera.size_wh)


def _only_finite(estimate: PoseEstimate) -> PoseEstimate:
    """The estimate without poses and covariances that hold NaN."""
    pose, covariance = estimate.pose, estimate.covariance
    return replace(
        estimate,
        pose=pose if pose is not None and np.isfinite(np.asarray(pose.matrix)).all() else None,
        covariance=covariance if covariance is not None and np.isfinite(covariance).all() else None,
        alternatives=tuple(a for a in estimate.alternatives if np.isfinite(np.asarray(a.pose.matrix)).all()),
    )


def _at(pose: Pose) -> dict[str, Any]:
    return {"wxyz": np.asarray(pose.quat_wxyz, float), "position": np.asarray(pose.t, float)}
