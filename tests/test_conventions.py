"""One test per numbered sentence of docs/conventions.md, by number; the first test checks that none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import random_poses, rotation_vectors, toy_points
from scipy.spatial.transform import Rotation

from geopose.geometry import frames, metrics, rotation
from geopose.geometry.camera import Camera, crop_affine
from geopose.geometry.heatmap import gaussian_heatmaps, soft_argmax
from geopose.geometry.pnp import solve_pnp
from geopose.geometry.pose import Pose

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conventions.md"
CAMERA = Camera(500, 520, 310, 250, (640, 480))
SEES = Pose(np.eye(3), np.array([0.0, 0.0, 2.0]))


def test_every_sentence_has_its_test():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    tests = [int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)]
    assert sorted(tests) == numbers


def test_01_inner_names_cancel(rng):
    cam_from_world, world_from_obj = random_poses(rng, 2)
    cam_from_obj = cam_from_world @ world_from_obj
    points_obj = toy_points(rng)
    through_world = cam_from_world.apply(world_from_obj.apply(points_obj))
    np.testing.assert_allclose(cam_from_obj.apply(points_obj), through_world, atol=1e-14)


def test_02_apply_moves_points(rng):
    dst_from_src = random_poses(rng, 1)[0]
    point = np.array([1.0, 2.0, 3.0])
    expected = dst_from_src.R @ point + dst_from_src.t
    np.testing.assert_allclose(dst_from_src.apply(point[None])[0], expected, atol=1e-15)


def test_03_inverse_swaps_frames(rng):
    dst_from_src, points = random_poses(rng, 1)[0], toy_points(rng)
    src_from_dst = dst_from_src.inverse()
    np.testing.assert_allclose(src_from_dst.apply(dst_from_src.apply(points)), points, atol=1e-14)


def test_04_an_object_pose_is_cam_from_obj(rng):
    rvec, tvec, points = np.array([0.3, -0.2, 0.5]), np.array([0.1, -0.2, 3.0]), toy_points(rng)
    px = cv2.projectPoints(points, rvec, tvec, CAMERA.K, None)[0][:, 0]
    pose = Pose.from_rvec_tvec(rvec, tvec)
    np.testing.assert_allclose(CAMERA.project(pose.apply(points)), px, atol=1e-10)
    found = solve_pnp(points, px, CAMERA)
    np.testing.assert_allclose(found.pose.matrix, pose.matrix, atol=1e-6)


def test_05_symmetries_act_in_the_object_frame(rng):
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    points = np.array([[0.2, 0.1, 0.0], [-0.2, -0.1, 0.0], [0.0, 0.0, 0.4]])
    pose = random_poses(rng, 1)[0]
    same = pose @ Pose.from_matrix(half_turn)
    np.testing.assert_allclose(same.apply(points), pose.apply(points)[[1, 0, 2]], atol=1e-15)
    assert metrics.mssd(same, pose, points, np.stack([np.eye(4), half_turn])) < 1e-14


def test_06_camera_axes():
    centre, right, low = CAMERA.project(np.array([[0.0, 0, 2], [0.1, 0, 2], [0, 0.1, 2]]))
    assert right[0] > centre[0]
    assert low[1] > centre[1]


def test_07_an_integer_is_a_pixel_centre():
    drawn = gaussian_heatmaps([[3.0, 1.0]], (4, 6), 1.0)[0]
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (1, 3)
    assert drawn[1, 2] == drawn[1, 4]


def test_08_an_image_spans_from_minus_a_half():
    wide = Camera.from_fov(np.pi / 2, (640, 480))
    edges = wide.project(np.array([[-1.0, -480 / 640, 1], [1, 480 / 640, 1]]))
    np.testing.assert_allclose(edges, [[-0.5, -0.5], [639.5, 479.5]])


def test_09_boxes_hold_edges():
    whole = CAMERA.crop_resize((-0.5, -0.5, 639.5, 479.5), (640, 480))
    np.testing.assert_allclose(whole.K, CAMERA.K)
    one_pixel = crop_affine((4.5, 6.5, 5.5, 7.5), (1, 1))  # the pixel (5, 7) alone
    np.testing.assert_allclose(one_pixel @ [5, 7, 1], [0, 0])


def test_10_crop_camera_and_crop_map_agree(rng):
    box, size, points = (100.2, 50.1, 180.4, 300.9), (48, 96), SEES.apply(toy_points(rng))
    px = CAMERA.project(points)
    mapped = px @ crop_affine(box, size)[:, :2].T + crop_affine(box, size)[:, 2]
    np.testing.assert_allclose(CAMERA.crop_resize(box, size).project(points), mapped, atol=1e-10)
    image = np.zeros((480, 640), np.float32)
    image[101:141, 111:151] = 1  # edges at 110.5 and 150.5, 100.5 and 140.5
    cut = cv2.warpAffine(image, crop_affine((110.5, 100.5, 150.5, 140.5), (40, 40)), (40, 40))
    assert (cut == 1).all()


def test_11_maps_of_a_stride():
    stride, W, H = 4, 64, 48
    down = crop_affine((-0.5, -0.5, W - 0.5, H - 0.5), (W // stride, H // stride))
    h = np.array([3.0, 5.0])
    np.testing.assert_allclose(down @ np.append((h + 0.5) * stride - 0.5, 1), h)


def test_12_sizes_are_width_height():
    portrait = Camera.from_fov(1.0, (300, 500))
    assert portrait.size_wh == (300, 500)
    assert (portrait.cx, portrait.cy) == (149.5, 249.5)
    assert gaussian_heatmaps([[0.0, 0.0]], (500, 300), 1.0).shape == (1, 500, 300)


def test_13_distortion_order(rng):
    coefficients = 0.01 * rng.standard_normal(12)
    points = SEES.apply(toy_points(rng))
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), CAMERA.K, coefficients)[0][:, 0]
    distorted = Camera.from_matrix(CAMERA.K, (640, 480), coefficients)
    np.testing.assert_allclose(distorted.project(points), expected, atol=1e-10)


def test_14_behind_the_camera_is_nan():
    px = CAMERA.project(np.array([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0], [0.1, 0.1, 1.0]]))
    assert np.isnan(px[:2]).all()
    assert np.isfinite(px[2]).all()


def test_15_pixels_nothing_reaches_are_nan():
    barrel = Camera(500, 500, 320, 240, (640, 480), (-0.4, 0, 0, 0))  # r - 0.4 r^3 is never above 0.61
    rays = barrel.unproject(np.array([[320 + 500 * 0.62, 240], [320 + 500 * 0.60, 240]]))
    assert np.isnan(rays[0, :2]).all()
    assert np.isfinite(rays[1]).all()


def test_16_depth_is_z():
    points = CAMERA.unproject(np.array([[310.0, 250.0], [810.0, 250.0]]), np.array([2.0, 2.0]))
    np.testing.assert_allclose(points, [[0, 0, 2], [2, 0, 2]])


def test_17_rotation_vectors_are_radians():
    quarter = rotation.exp_so3(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(quarter, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)  # x to y


def test_18_rotation_vectors_are_short():
    long = np.array([0, 0, 1.5 * np.pi])
    np.testing.assert_allclose(rotation.log_so3(rotation.exp_so3(long)), [0, 0, -np.pi / 2], atol=1e-15)


def test_19_quaternions_are_scalar_first(rng):
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        rotation.matrix_from_quat_wxyz([half, 0, 0, half]) @ [1, 0, 0], [0, 1, 0], atol=1e-15
    )
    q = rotation.quat_wxyz_from_matrix(rotation.random_rotation((100,), rng))
    assert (q[:, 0] >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1)


def test_20_six_numbers_are_two_columns(rng):
    R = rotation.random_rotation((), rng)
    np.testing.assert_allclose(rotation.matrix_from_6d(np.r_[R[:, 0], R[:, 1]]), R, atol=1e-14)


def test_21_tangent_is_translation_first():
    shift = Pose.exp(np.array([1.0, 2, 3, 0, 0, 0]))
    np.testing.assert_array_equal(shift.t, [1, 2, 3])
    np.testing.assert_array_equal(shift.R, np.eye(3))
    np.testing.assert_allclose(Pose.exp(np.array([0, 0, 0, 0, 0, 0.3])).rvec, [0, 0, 0.3])


def test_22_the_update_acts_in_the_camera_frame():
    turned = Pose(Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix(), np.array([0.0, 0.0, 2.0]))
    moved = turned.retract(np.array([0.1, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(moved.t, [0.1, 0, 2])  # the camera's x, not the object's


def test_23_pose_covariance(rng):
    points, pose, cov_px = toy_points(rng), random_poses(rng, 1)[0], np.tile(0.25 * np.eye(2), (12, 1, 1))
    px = CAMERA.project(pose.apply(points))
    ahead = [CAMERA.project(pose.retract(x).apply(points)) for x in 1e-6 * np.eye(6)]
    J = np.stack([((a - px) / 1e-6).ravel() for a in ahead], -1)
    expected = np.linalg.inv(J.T @ J / 0.25)
    np.testing.assert_allclose(metrics.cramer_rao(points, pose, CAMERA, cov_px), expected, rtol=1e-3)
    found = solve_pnp(points, px, CAMERA, cov_px=cov_px)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_24_keypoint_covariance_is_in_pixels_squared():
    x, y = np.meshgrid(np.arange(41), np.arange(31))
    logits = -((x - 20.3) ** 2) / (2 * 3.0**2) - (y - 15.1) ** 2 / (2 * 1.5**2)
    _, cov, _ = soft_argmax(logits[None])
    np.testing.assert_allclose(cov[0], np.diag([9, 2.25]), atol=1e-4)


def test_25_units():
    assert frames.pose_from_bop(np.eye(3), cam_t_m2c_mm=[0, 0, 1500]).t[2] == 1.5
    assert Camera.from_fov(np.pi / 2, (100, 100)).fx == pytest.approx(50)
    quarter = Pose.from_rvec_tvec([0, 0, np.pi / 2], [0, 0, 1])
    assert metrics.rotation_error(quarter, Pose.identity()) == pytest.approx(np.pi / 2)


def test_26_batch_elements_are_independent(rng):
    poses, points = random_poses(rng, 4), np.stack([toy_points(rng) for _ in range(4)])
    distorted = Camera.from_matrix(CAMERA.K, (640, 480), (-0.2, 0.05, 0.001, 0.001))
    keep = [0, 2, 3]
    bad = points.copy()
    bad[1] = np.nan
    px, bad_px = (distorted.project(poses.apply(p)) for p in (points, bad))
    assert np.isnan(bad_px[1]).all()
    assert (px[keep] == bad_px[keep]).all()
    assert (distorted.normalise(px)[keep] == distorted.normalise(bad_px)[keep]).all()
    clean, spoilt = solve_pnp(points, px, distorted), solve_pnp(points, bad_px, distorted)
    assert (clean.pose.matrix[keep] == spoilt.pose.matrix[keep]).all()
    assert (clean.covariance[keep] == spoilt.covariance[keep]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_27_kind_and_dtype_are_the_callers(rng, dtype):
    points = SEES.apply(toy_points(rng)).astype(dtype)
    rvec = rotation_vectors(rng, 3).astype(dtype)
    for x, function in ((points, CAMERA.project), (rvec, rotation.exp_so3)):
        assert isinstance(function(x), np.ndarray)
        assert function(x).dtype == dtype
        tensor = function(torch.as_tensor(x))
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == getattr(torch, dtype)


def test_28_the_same_seed_gives_the_same_bits():
    one, two, other = (rotation.random_rotation((9,), np.random.default_rng(s)) for s in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()


def test_29_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"points_cam: expected shape \(\.\.\., N, 3\), got \(4, 2\)"):
        CAMERA.project(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"fx: expected a positive focal length in pixels, got -1"):
        Camera(-1, 1, 0, 0, (4, 4))


def test_30_not_finite_is_missing(rng):
    points, pose = toy_points(rng), random_poses(rng, 1)[0]
    px = CAMERA.project(pose.apply(points))
    px[2], points[7, 1] = np.nan, np.inf
    found = solve_pnp(points, px, CAMERA)
    assert found.status == "ok"
    np.testing.assert_allclose(found.pose.matrix, pose.matrix, atol=1e-6)
    assert not found.inliers[[2, 7]].any()


def test_31_opengl_axes():
    ahead_right_high = Pose(np.eye(3), np.array([0.1, -0.2, 3.0]))
    np.testing.assert_allclose(frames.pose_to_opengl(ahead_right_high)[:3, 3], [0.1, 0.2, -3])
    at_rest = frames.pose_from_blender(np.eye(4))  # looks down the world's -z with its y up
    np.testing.assert_allclose(at_rest.apply(np.array([[0.1, 0.2, -3.0]])), [[0.1, -0.2, 3]])


def test_32_opengl_half_pixel():
    P = np.array(
        [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, -1, -0.2], [0, 0, -1, 0]]
    )  # centred: window (320, 240)
    camera = frames.camera_from_opengl(P, (640, 480))
    assert (camera.cx, camera.cy) == (319.5, 239.5)
    np.testing.assert_allclose(frames.camera_to_opengl(camera, 0.1, 10)[:2], P[:2], atol=1e-15)


def test_33_colmap_half_pixel(tmp_path):
    path = tmp_path / "cameras.txt"
    path.write_text("1 PINHOLE 640 480 500 500 320 240\n")
    assert (Camera.load(path).cx, Camera.load(path).cy) == (319.5, 239.5)
    assert frames.points_from_colmap([[0.5, 0.5]]).tolist() == [[0, 0]]


def test_34_pytorch3d_axes(rng):
    pose, points = random_poses(rng, 1)[0], toy_points(rng)
    R, T = frames.pose_to_pytorch3d(pose)
    np.testing.assert_allclose(points @ R + T, pose.apply(points) * [-1, -1, 1], atol=1e-14)


def test_35_bop():
    pose = frames.pose_from_bop([0, -1, 0, 1, 0, 0, 0, 0, 1.01], [1, 2, 3000])
    np.testing.assert_allclose(pose.R, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(pose.t, [0.001, 0.002, 3])


def test_36_ros():
    ahead_right_high = Pose(np.eye(3), np.array([0.1, -0.2, 3.0]))
    position, quat_xyzw = frames.pose_to_ros(ahead_right_high)
    np.testing.assert_array_equal(position, [0.1, -0.2, 3])
    np.testing.assert_array_equal(quat_xyzw, [0, 0, 0, 1])
    np.testing.assert_allclose(frames.pose_to_ros(ahead_right_high, "body")[0], [3, -0.1, 0.2], atol=1e-15)
