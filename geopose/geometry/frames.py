"""Poses and cameras of other programs, both ways.

Ours is OpenCV's: camera axes +x right, +y down, +z forward, metres, pixel centres at integers. `pose` is
always `cam_from_obj`. Everything is batched, numpy or torch in, the same kind out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopose.geometry._arrays import Array, as_float_array, check_last, either, to_tensor
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose, as_like
from geopose.geometry.rotation import matrix_from_quat_wxyz, project_to_so3, quat_wxyz_from_matrix

# OpenGL and Blender cameras look along -z with +y up: half a turn about x.
_GL_FROM_CV = np.diag([1.0, -1.0, -1.0])
# PyTorch3D cameras have +x left, +y up, +z forward: half a turn about z.
_P3D_FROM_CV = np.diag([-1.0, -1.0, 1.0])
# ROS REP 103: optical frames are ours; body frames have +x forward, +y left, +z up.
_BODY_FROM_CV = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def _turn(turn: np.ndarray, pose: Pose) -> Pose:
    """`pose` with the axes of its destination frame turned."""
    return Pose(as_like(turn, pose.R), as_like(np.zeros(3), pose.t)) @ pose


def pose_from_opengl(view: Array) -> Pose:
    """The pose of OpenGL's model-view matrix `view` (..., 4, 4), column vectors, camera looking along -z."""
    return _turn(_GL_FROM_CV.T, Pose.from_matrix(view))


def pose_to_opengl(pose: Pose) -> Array:
    """OpenGL's model-view matrix (..., 4, 4), for column vectors, of `pose`."""
    return _turn(_GL_FROM_CV, pose).matrix


def pose_from_blender(camera_matrix_world: Array, object_matrix_world: Array | None = None) -> Pose:
    """The pose of Blender's `matrix_world` (..., 4, 4) of the camera and of the object (None: at the origin).

    Scale must be applied to the object in Blender first (its matrix_world then is a rigid motion).
    """
    cam_from_world = _turn(_GL_FROM_CV.T, Pose.from_matrix(camera_matrix_world).inverse())
    if object_matrix_world is None:
        return cam_from_world
    world_from_obj = Pose.from_matrix(object_matrix_world)
    stretch = abs(world_from_obj.R @ world_from_obj.R.mT - as_like(np.eye(3), world_from_obj.R)).max()
    if bool(stretch > 1e-3):
        raise ValueError(
            "object_matrix_world: expected no scale; apply it in Blender (Object > Apply > Scale)"
        )
    return cam_from_world @ world_from_obj


def pose_to_blender(pose: Pose) -> Array:
    """Blender's `matrix_world` (..., 4, 4) of the camera, the object being at the origin."""
    return _turn(_GL_FROM_CV, pose).inverse().matrix


def pose_from_pytorch3d(R: Array, T: Array) -> Pose:
    """The pose of PyTorch3D's R (..., 3, 3) and T (..., 3), which act on row vectors: x_view = x R + T."""
    R = as_float_array(R)
    check_last("R", R, 3, 3)
    return _turn(_P3D_FROM_CV.T, Pose(R.mT, T))


def pose_to_pytorch3d(pose: Pose) -> tuple[Array, Array]:
    """PyTorch3D's R (..., 3, 3) and T (..., 3), acting on row vectors."""
    turned = _turn(_P3D_FROM_CV, pose)
    return turned.R.mT, turned.t


def pose_from_bop(cam_R_m2c: Array, cam_t_m2c_mm: Array) -> Pose:
    """The pose of BOP's cam_R_m2c (..., 9), row by row, or (..., 3, 3), and cam_t_m2c (..., 3), millimetres.

    BOP's files hold rounded rotations: the nearest rotation is taken.
    """
    R = as_float_array(cam_R_m2c)
    if R.shape[-1] == 9:
        R = R.reshape(*R.shape[:-1], 3, 3)
    return Pose(project_to_so3(R), as_float_array(cam_t_m2c_mm) / 1000)


def pose_to_bop(pose: Pose) -> tuple[Array, Array]:
    """BOP's cam_R_m2c (..., 9), row by row, and cam_t_m2c (..., 3), millimetres."""
    return pose.R.reshape(*pose.R.shape[:-2], 9), pose.t * 1000


def pose_from_colmap(quat_wxyz: Array, t: Array) -> Pose:
    """`cam_from_world` of a line of COLMAP's images.txt: QW QX QY QZ (..., 4) and TX TY TZ (..., 3)."""
    return Pose.from_quat_wxyz(quat_wxyz, t)


def pose_to_colmap(pose: Pose) -> tuple[Array, Array]:
    """COLMAP's QW QX QY QZ (..., 4) and TX TY TZ (..., 3) of `cam_from_world`."""
    return pose.quat_wxyz, pose.t


def points_from_colmap(points_px: Array) -> Array:
    """Our pixels of COLMAP's (..., 2), which counts from the corner: half a pixel less."""
    return as_float_array(points_px) - 0.5


def points_to_colmap(points_px: Array) -> Array:
    """COLMAP's pixels (..., 2) of ours."""
    return as_float_array(points_px) + 0.5


def pose_from_ros(position: Array, quat_xyzw: Array, frame: str = "optical") -> Pose:
    """The pose of a ROS geometry_msgs/Pose of the object in the camera's frame.

    position (..., 3) metres, quat_xyzw (..., 4) scalar last; frame: "optical" (axes as ours) or "body" (+x
    forward, +y left, +z up).
    """
    quat_xyzw = as_float_array(quat_xyzw)
    check_last("quat_xyzw", quat_xyzw, 4)
    pose = Pose(matrix_from_quat_wxyz(quat_xyzw[..., [3, 0, 1, 2]]), position)
    return _turn(_ros_turn(frame).T, pose)


def pose_to_ros(pose: Pose, frame: str = "optical") -> tuple[Array, Array]:
    """The position (..., 3) and orientation xyzw (..., 4) of ROS in the camera's `frame`."""
    turned = _turn(_ros_turn(frame), pose)
    return turned.t, quat_wxyz_from_matrix(turned.R)[..., [1, 2, 3, 0]]


def _ros_turn(frame: str) -> np.ndarray:
    turns = {"optical": np.eye(3), "body": _BODY_FROM_CV}
    if frame not in turns:
        raise ValueError(f"frame: expected 'optical' or 'body', got {frame!r}")
    return turns[frame]


def pose_from_kornia(se3: Any) -> Pose:
    """The pose of kornia's `Se3`, alone or a batch; tensors, and gradients pass."""
    return Pose.from_matrix(se3.matrix())


def pose_to_kornia(pose: Pose) -> Any:
    """kornia's `Se3` of a pose, or of a batch (B,) of them; gradients pass. Its translation is a parameter of its own
    where the pose hangs on nothing that learns."""
    from kornia.geometry.liegroup import Se3

    return Se3.from_matrix(to_tensor(pose.matrix))


def camera_from_kornia(pinhole: Any) -> tuple[Camera, Pose]:
    """The camera and the poses (B,) of kornia's `PinholeCamera`, tensors.

    Raises ValueError for a batch of pictures of several sizes.
    """
    sizes = {(int(w), int(h)) for w, h in zip(pinhole.width, pinhole.height, strict=True)}
    if len(sizes) != 1:
        raise ValueError(f"pinhole: expected pictures of one size, got {sorted(sizes)}")
    lens = (pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy)
    return Camera(*lens, sizes.pop()), Pose(pinhole.rotation_matrix, pinhole.translation_vector[..., 0])


def camera_to_kornia(camera: Camera, pose: Pose) -> Any:
    """kornia's `PinholeCamera`, a batch as it always is, that projects points of the object to our pixels.

    Raises ValueError for a camera with distortion, which it does not have.
    """
    from kornia.geometry.camera import PinholeCamera

    _check_straight(camera, "kornia's PinholeCamera")
    extrinsics = to_tensor(pose.matrix).reshape(-1, 4, 4)
    K = to_tensor(camera.K, like=extrinsics).to(extrinsics).reshape(-1, 3, 3).expand(len(extrinsics), 3, 3)
    intrinsics = torch.nn.functional.pad(K, (0, 1, 0, 1))
    intrinsics[:, 3, 3] = 1
    width, height = (torch.full((len(K),), float(side)).to(extrinsics) for side in camera.size_wh)
    return PinholeCamera(intrinsics, extrinsics, height, width)


def _check_straight(camera: Camera, whose: str) -> None:
    if len(camera.distortion) and bool((abs(as_float_array(camera.distortion)) > 0).any()):
        raise ValueError(f"camera: {whose} cannot hold distortion; undistort the picture first")


def camera_from_opengl(projection: Array, size_wh: tuple[int, int], half_widths: bool = False) -> Camera:
    """The camera of OpenGL's projection matrix (..., 4, 4), column vectors, and a viewport of `size_wh`.

    OpenGL's window counts from the corner of the image; our pixels are half a pixel less. With `half_widths`
    both axes of the matrix are measured in half widths of the image, as files do that store lens over half
    the sensor's width twice; OpenGL itself measures y in half heights. Raises ValueError on an orthographic,
    transposed or skewed matrix.
    """
    P = as_float_array(projection)
    check_last("projection", P, 4, 4)
    expected = as_like([0.0, 0.0, -1.0, 0.0], P)
    if bool((abs(P[..., 3, :] - expected) > 1e-6).any()):
        raise ValueError(
            "projection: expected the last row (0, 0, -1, 0) of a perspective matrix; is it transposed?"
        )
    if bool((abs(P[..., [0, 1], [1, 0]]) > 1e-6).any()):
        raise ValueError("projection: expected no skew")
    width, height = size_wh
    half_x, half_y = width / 2, (width if half_widths else height) / 2
    cx = width / 2 - 0.5 - P[..., 0, 2] * half_x
    cy = height / 2 - 0.5 + P[..., 1, 2] * half_y
    return Camera(P[..., 0, 0] * half_x, P[..., 1, 1] * half_y, cx, cy, size_wh)


def camera_to_opengl(camera: Camera, near: float, far: float) -> Array:
    """OpenGL's projection matrix (..., 4, 4), column vectors, with clip planes at `near` and `far`, metres.

    Raises ValueError for a camera with distortion, which no matrix holds.
    """
    _check_straight(camera, "a projection matrix")
    if not 0 < near < far:
        raise ValueError(f"near, far: expected 0 < near < far, got {near}, {far}")
    return _projection(camera.K, camera.size_wh, near, far)


@either
def _projection(K: Tensor, size_wh: tuple[int, int], near: float, far: float) -> Tensor:
    width, height = size_wh
    P = torch.zeros(*K.shape[:-2], 4, 4, dtype=K.dtype, device=K.device)
    P[..., 0, 0], P[..., 1, 1] = 2 * K[..., 0, 0] / width, 2 * K[..., 1, 1] / height
    P[..., 0, 2] = 1 - 2 * (K[..., 0, 2] + 0.5) / width
    P[..., 1, 2] = 2 * (K[..., 1, 2] + 0.5) / height - 1
    P[..., 2, 2], P[..., 2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    P[..., 3, 2] = -1
    return P
