"""A camera and the pose of an object in OpenCV's own files, YAML or XML, as `cv2.FileStorage` has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path
from geopose.geometry._camera_files import node_values, opencv_storage
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

SUFFIXES = (".yml", ".yaml", ".xml")


def write_opencv(
    path: str | os.PathLike[str],
    camera: Camera,
    pose: Pose | None = None,
    covariance: NDArray[np.floating[Any]] | None = None,
) -> Path:
    """The path of a file with one camera and, if given, one pose `cam_from_obj`; `Camera.load` reads the camera.

    Args:
        path: ends in .yml, .yaml or .xml.
        camera: camera_matrix (3, 3), distortion_coefficients (D, 1), image_width, image_height.
        pose: rvec (3, 1), radians, and tvec (3, 1), metres, as `cv2.projectPoints` wants them.
        covariance: (6, 6) of (rho, phi), stored as covariance_rho_m_phi_rad.
    Raises:
        ValueError: another suffix, or more than one camera or pose.
        OSError: the file cannot be written.
    """
    path = _checked(path)
    camera = camera.numpy()
    if camera.batch_shape or (pose is not None and pose.batch_shape):
        raise ValueError("camera, pose: expected one of each, got a batch; index it first")
    with atomic_path(path) as temporary:
        storage = cv2.FileStorage(str(temporary), cv2.FILE_STORAGE_WRITE)
        if not storage.isOpened():
            raise OSError(f"{path}: cannot be written; does the folder exist, and may you write there?")
        storage.write("image_width", camera.size_wh[0])
        storage.write("image_height", camera.size_wh[1])
        storage.write("camera_matrix", np.asarray(camera.K))
        storage.write("distortion_coefficients", np.array(camera.distortion or (0.0,) * 5)[:, None])
        if pose is not None:
            storage.write("rvec", np.asarray(pose.numpy().rvec, np.float64)[:, None])
            storage.write("tvec", np.asarray(pose.numpy().t, np.float64)[:, None])
        if covariance is not None:
            storage.write("covariance_rho_m_phi_rad", np.asarray(covariance, np.float64))
        storage.release()
    return path


def read_opencv_pose(path: str | os.PathLike[str]) -> Pose:
    """The pose `cam_from_obj` of a file with `rvec` and `tvec`, metres.

    OpenCV's calibration sample writes `extrinsic_parameters` instead, a row (rvec, tvec) for each of N views: then
    the poses (N,).

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file, when it is broken or holds neither.
    """
    path = _checked(path)
    try:
        storage = opencv_storage(path)
        found = {name: _matrix(storage, name) for name in ("rvec", "tvec", "extrinsic_parameters")}
        storage.release()
    except (ValueError, cv2.error) as error:
        raise ValueError(f"{path}: {error}") from None
    rows = found["extrinsic_parameters"]
    if found["rvec"] is not None and found["tvec"] is not None:
        rows = np.concatenate([found["rvec"].ravel(), found["tvec"].ravel()])
    if rows is None:
        raise ValueError(f"{path}: expected the fields rvec and tvec, or extrinsic_parameters")
    if rows.shape[-1] != 6 or rows.ndim > 2 or not np.isfinite(rows).all():
        raise ValueError(
            f"{path}: expected three finite numbers in rvec and in tvec, got {rows.tolist()!r:.100}"
        )
    return Pose.from_rvec_tvec(rows[..., :3], rows[..., 3:])


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    return path


def _matrix(storage: cv2.FileStorage, name: str) -> NDArray[np.float64] | None:
    """A field as OpenCV's matrix or as a plain list of numbers; None where it is neither."""
    node = storage.getNode(name)
    return None if node.empty() else node_values(name, node)
