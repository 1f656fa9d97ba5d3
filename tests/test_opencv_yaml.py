"""Poses in OpenCV's files: OpenCV itself reads what is written, and its calibration's file is read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import data_path

from geopose import Camera, Pose
from geopose.opencv_yaml import read_opencv_pose, write_opencv

CAMERA = Camera(700.0, 710.0, 320.5, 239.25, (640, 480), (-0.25, 0.04, 1e-3, -2e-3, 0.01))
POSE = Pose.from_rvec_tvec(np.array([0.3, -1.2, 0.5]), np.array([0.02, -0.1, 1.4]))


@pytest.mark.parametrize("suffix", [".yml", ".yaml", ".xml"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = write_opencv(tmp_path / f"pose{suffix}", CAMERA, POSE, 0.01 * np.eye(6))
    read = read_opencv_pose(path)
    np.testing.assert_allclose(read.matrix, POSE.matrix, atol=1e-14)
    camera = Camera.load(path)
    np.testing.assert_allclose(camera.K, CAMERA.K)
    assert camera.size_wh == CAMERA.size_wh
    np.testing.assert_allclose(camera.distortion, CAMERA.distortion)


def test_opencv_projects_with_it_as_we_do(tmp_path: Path) -> None:
    path = write_opencv(tmp_path / "pose.yml", CAMERA, POSE)
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    K, d, rvec, tvec = (
        storage.getNode(name).mat() for name in ("camera_matrix", "distortion_coefficients", "rvec", "tvec")
    )
    storage.release()
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (7, 3))
    theirs = cv2.projectPoints(points, rvec, tvec, K, d)[0][:, 0]
    np.testing.assert_allclose(CAMERA.project(POSE.apply(points)), theirs, atol=1e-9)


def test_a_camera_without_distortion_and_without_a_pose(tmp_path: Path) -> None:
    path = write_opencv(tmp_path / "camera.yml", Camera(500.0, 500.0, 319.5, 239.5, (640, 480)))
    assert not np.any(Camera.load(path).distortion)
    with pytest.raises(ValueError, match=r"camera\.yml: expected the fields rvec and tvec"):
        read_opencv_pose(path)


def test_plain_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pose.yaml"
    path.write_text("%YAML:1.0\n---\nrvec: [ 0.1, 0.2, 0.3 ]\ntvec: [ 1., 2., 3. ]\n")
    np.testing.assert_allclose(read_opencv_pose(path).t, [1, 2, 3])
    np.testing.assert_allclose(read_opencv_pose(path).R, cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0])


def test_the_views_of_a_calibration() -> None:
    poses = read_opencv_pose(data_path("chessboard", "left_intrinsics.yml"))
    assert poses.batch_shape == (13,)
    np.testing.assert_allclose(poses.t[0], [-0.0752179, -0.1089594, 0.3997021], atol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["", "no yaml", "%YAML:1.0\n---\nrvec: [ 1, 2 ]\ntvec: [ 1, 2, 3 ]\n", "%YAML:1.0\n---\nrvec: x\n"],
)
def test_broken_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yml"):
        read_opencv_pose(path)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.yml, \.yaml, \.xml"):
        write_opencv(tmp_path / "pose.txt", CAMERA, POSE)
    with pytest.raises(ValueError, match="index it first"):
        write_opencv(tmp_path / "pose.yml", CAMERA, Pose.identity((2,)))
    assert list(tmp_path.iterdir()) == []
