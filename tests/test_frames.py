"""Frames of other programs: examples worked by hand, and round trips.

The scene of the worked examples: our camera sees the object's origin at (0.1, 0.2, 3): a little right, a little
low, three metres ahead; the object's x axis points away from the camera, its y axis left, its z axis up.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import random_poses
from scipy.spatial.transform import Rotation

from geopose.geometry import frames
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

OURS = Pose(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.array([0.1, 0.2, 3.0]))
ROUND_TRIPS = {
    "opengl": lambda p: frames.pose_from_opengl(frames.pose_to_opengl(p)),
    "blender": lambda p: frames.pose_from_blender(frames.pose_to_blender(p)),
    "pytorch3d": lambda p: frames.pose_from_pytorch3d(*frames.pose_to_pytorch3d(p)),
    "bop": lambda p: frames.pose_from_bop(*frames.pose_to_bop(p)),
    "colmap": lambda p: frames.pose_from_colmap(*frames.pose_to_colmap(p)),
    "ros optical": lambda p: frames.pose_from_ros(*frames.pose_to_ros(p)),
    "ros body": lambda p: frames.pose_from_ros(*frames.pose_to_ros(p, "body"), "body"),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("kind", ["uniform", "tiny", "near_pi"])
def test_round_trips(rng, name, kind):
    poses = random_poses(rng, 6, kind)
    np.testing.assert_allclose(ROUND_TRIPS[name](poses).matrix, poses.matrix, atol=1e-13)
    tensors = ROUND_TRIPS[name](poses.torch(torch.float32))
    assert tensors.R.dtype == torch.float32
    np.testing.assert_allclose(tensors.matrix, poses.matrix, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "tiny", "near_pi"])
def test_kornia_round_trip(rng, kind):
    """One pose, a batch, and the gradient through both ways."""
    poses = random_poses(rng, 6, kind)
    for given in (poses, Pose(poses.R[0], poses.t[0])):
        back = frames.pose_from_kornia(frames.pose_to_kornia(given))
        np.testing.assert_allclose(back.numpy().matrix, given.matrix, atol=1e-7)
    t = torch.from_numpy(poses.t).requires_grad_()
    frames.pose_from_kornia(
        frames.pose_to_kornia(Pose(torch.from_numpy(poses.R), t))
    ).t.square().sum().backward()
    np.testing.assert_allclose(t.grad, 2 * poses.t, atol=1e-12)


def test_kornia_cameras_project_to_our_pixels(rng):
    camera = Camera(801.0, 799.0, 310.5, 250.0, (640, 480))
    poses = Pose(OURS.R @ random_poses(rng, 5, "tiny").R, OURS.t + rng.uniform(-0.1, 0.1, (5, 3)))
    points = rng.uniform(-0.2, 0.2, (7, 3))
    theirs = frames.camera_to_kornia(camera, poses)
    seen = theirs.project(torch.from_numpy(points).expand(5, 7, 3))
    np.testing.assert_allclose(seen, camera.project(poses.apply(points)), atol=1e-6)
    back, same = frames.camera_from_kornia(theirs)
    assert back.size_wh == camera.size_wh
    np.testing.assert_allclose(back.K, np.broadcast_to(camera.K, (5, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(same.matrix, poses.matrix, atol=1e-12)
    assert len(frames.camera_to_kornia(camera, OURS).fx) == 1


def test_kornia_cameras_of_several_sizes_are_refused():
    theirs = frames.camera_to_kornia(Camera(1.0, 1.0, 1.0, 1.0, (4, 4)), Pose(OURS.R[None], OURS.t[None]))
    theirs.width = torch.tensor([4.0, 5.0])
    theirs.height = torch.tensor([4.0, 4.0])
    with pytest.raises(ValueError, match="one size"):
        frames.camera_from_kornia(theirs)


def test_opengl_example():
    """Looking along -z with y up: low is -y, ahead is -z."""
    view = np.array([[0, -1, 0, 0.1], [0, 0, 1, -0.2], [-1, 0, 0, -3], [0, 0, 0, 1]])
    np.testing.assert_allclose(frames.pose_to_opengl(OURS), view, atol=1e-15)
    np.testing.assert_allclose(frames.pose_from_opengl(view).matrix, OURS.matrix, atol=1e-15)


def test_opengl_look_at():
    """gluLookAt's matrix, from its manual page, for an eye on +x looking at the origin with z up."""
    eye, up = np.array([3.0, 0, 0]), np.array([0, 0, 1.0])
    f = -eye / 3
    s = np.cross(f, up)
    view = np.eye(4)
    view[:3, :3] = [s, np.cross(s, f), -f]
    view[:3, 3] = -view[:3, :3] @ eye
    pose = frames.pose_from_opengl(view)
    points = np.array([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    # From +x looking to the origin: up is -y of the picture, world y is to the right, world x is nearer.
    np.testing.assert_allclose(pose.apply(points), [[0, 0, 3], [0, -1, 3], [1, 0, 3], [0, 0, 2]], atol=1e-15)


def test_blender_example():
    """A Blender camera at rest looks down: its view direction is the world's -z, the picture's up the world's +y."""
    camera = np.eye(4)
    camera[2, 3] = 5.0  # five metres above the origin
    pose = frames.pose_from_blender(camera)
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(pose.apply(points), [[0, 0, 5], [1, 0, 5], [0, -1, 5], [0, 0, 4]], atol=1e-15)
    moved = np.eye(4)
    moved[:3, 3] = [0.5, 0, 1]
    np.testing.assert_allclose(frames.pose_from_blender(camera, moved).t, [0.5, 0, 4], atol=1e-15)
    with pytest.raises(ValueError, match="scale"):
        frames.pose_from_blender(camera, np.diag([2.0, 2, 2, 1]))


def test_pytorch3d_example():
    """x left, y up, z ahead: right is -x, low is -y; points are rows, x_view = x R + T."""
    R, T = frames.pose_to_pytorch3d(OURS)
    np.testing.assert_allclose(T, [-0.1, -0.2, 3], atol=1e-15)
    x_axis, y_axis, z_axis = np.eye(3) @ R
    np.testing.assert_allclose(x_axis, [0, 0, 1], atol=1e-15)  # away from the camera
    np.testing.assert_allclose(y_axis, [1, 0, 0], atol=1e-15)  # left
    np.testing.assert_allclose(z_axis, [0, 1, 0], atol=1e-15)  # up


def test_pytorch3d_formula_for_opencv_cameras(rng):
    """PyTorch3D's cameras_from_opencv_projection: transpose R, then negate its first two columns and T's x, y."""
    pose = random_poses(rng, 4)
    R, T = frames.pose_to_pytorch3d(pose)
    expected_R, expected_T = pose.R.transpose(0, 2, 1).copy(), pose.t.copy()
    expected_R[:, :, :2] *= -1
    expected_T[:, :2] *= -1
    np.testing.assert_allclose(R, expected_R, atol=1e-15)
    np.testing.assert_allclose(T, expected_T, atol=1e-15)


def test_bop_example():
    pose = frames.pose_from_bop([0, -1, 0, 0, 0, -1, 1, 0, 0], [100, 200, 3000])
    np.testing.assert_allclose(pose.matrix, OURS.matrix, atol=1e-15)
    R, t = frames.pose_to_bop(OURS)
    assert R.tolist() == [0, -1, 0, 0, 0, -1, 1, 0, 0]
    assert t.tolist() == [100, 200, 3000]


def test_bop_rotations_are_made_orthonormal():
    rounded = np.round(Rotation.from_rotvec([0.3, -0.5, 1.1]).as_matrix(), 2)
    assert abs(np.linalg.det(rounded) - 1) > 1e-4
    pose = frames.pose_from_bop(rounded, [0, 0, 1000])
    np.testing.assert_allclose(pose.R @ pose.R.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(pose.R, rounded, atol=0.01)


def test_colmap_example():
    """A line of images.txt: QW QX QY QZ TX TY TZ."""
    pose = frames.pose_from_colmap([0.5, 0.5, -0.5, 0.5], [0.1, 0.2, 3.0])
    expected = Rotation.from_quat([0.5, -0.5, 0.5, 0.5]).as_matrix()  # SciPy: x y z w
    np.testing.assert_allclose(pose.R, expected, atol=1e-15)
    np.testing.assert_allclose(expected, OURS.R, atol=1e-15)
    np.testing.assert_array_equal(pose.t, OURS.t)


def test_colmap_pixels():
    assert frames.points_from_colmap([[0.5, 0.5], [320, 240]]).tolist() == [[0, 0], [319.5, 239.5]]
    assert frames.points_to_colmap(np.zeros((1, 2))).tolist() == [[0.5, 0.5]]


def test_ros_example():
    """Three metres forward, 0.1 to the right (-y), 0.2 low (-z); the object is turned like the body itself."""
    position, quat = frames.pose_to_ros(OURS, "body")
    np.testing.assert_allclose(position, [3, -0.1, -0.2], atol=1e-15)
    np.testing.assert_allclose(quat, [0, 0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(
        frames.pose_from_ros([3, -0.1, -0.2], [0, 0, 0, 1], "body").matrix, OURS.matrix
    )
    position, quat = frames.pose_to_ros(OURS)
    np.testing.assert_array_equal(position, OURS.t)
    # The static transform that ROS drivers publish from optical to body frames: rpy (-pi/2, 0, -pi/2).
    drivers = Rotation.from_euler("xyz", [-np.pi / 2, 0, -np.pi / 2])
    body_from_optical = drivers.as_matrix()
    np.testing.assert_allclose(body_from_optical @ OURS.t, [3, -0.1, -0.2], atol=1e-15)
    with pytest.raises(ValueError, match="frame"):
        frames.pose_to_ros(OURS, "base_link")


def frustum_px(P: np.ndarray, point_cv: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenGL's own way: clip, divide, viewport transform, origin at the lower left corner of the window."""
    clip = P @ np.append(point_cv * [1, -1, -1], 1)
    ndc = clip[:3] / clip[3]
    x, y = (ndc[0] + 1) / 2 * size[0], (ndc[1] + 1) / 2 * size[1]
    return np.array([x, size[1] - y])  # from the upper left corner of the image


@pytest.mark.parametrize("size", [(640, 480), (300, 500)])
def test_projection_matrix_agrees_with_the_camera(rng, size):
    camera = Camera(500, 510, 300.25, 222.5, size)
    P = frames.camera_to_opengl(camera, 0.1, 50)
    point = np.array([0.3, -0.2, 2.0])
    corner_px = frustum_px(P, point, size)
    np.testing.assert_allclose(camera.project(point[None])[0], corner_px - 0.5, atol=1e-10)
    back = frames.camera_from_opengl(P, size)
    np.testing.assert_allclose(back.K, camera.K, atol=1e-10)


def test_clip_planes_are_at_plus_and_minus_one():
    P = frames.camera_to_opengl(Camera(500, 500, 319.5, 239.5, (640, 480)), 0.1, 50)
    for depth, ndc in ((0.1, -1), (50, 1)):
        clip = P @ [0, 0, -depth, 1]
        assert clip[2] / clip[3] == pytest.approx(ndc)


def test_glu_perspective():
    """gluPerspective(fovy, aspect): f = cot(fovy / 2), matrix diag(f / aspect, f); the centre is the image's."""
    f = 1 / np.tan(np.radians(50) / 2)
    P = np.array([[f / (640 / 480), 0, 0, 0], [0, f, 0, 0], [0, 0, -1.002, -0.2002], [0, 0, -1, 0]])
    camera = frames.camera_from_opengl(P, (640, 480))
    assert camera.fx == pytest.approx(camera.fy)
    assert camera.fy == pytest.approx(240 / np.tan(np.radians(25)))
    assert (camera.cx, camera.cy) == (319.5, 239.5)
    by_angle = Camera.from_fov(np.radians(50), (640, 480), "y")
    np.testing.assert_allclose(camera.K, by_angle.K)


def test_half_widths():
    """35 mm lens, 36 mm sensor: 1.94444 half widths on both axes, square pixels on a picture that is not square."""
    P = np.array([[35 / 18, 0, 0, 0], [0, 35 / 18, 0, 0], [0, 0, -1, -0.2], [0, 0, -1, 0]])
    camera = frames.camera_from_opengl(P, (960, 640), half_widths=True)
    assert camera.fx == camera.fy == pytest.approx(35 / 36 * 960)
    assert (camera.cx, camera.cy) == (479.5, 319.5)
    assert frames.camera_from_opengl(P, (960, 640)).fy == pytest.approx(camera.fy / 1.5)


def test_batched_projection_matrices():
    cameras = Camera(torch.tensor([500.0, 600]), 500, 320, 240, (640, 480))
    P = frames.camera_to_opengl(cameras, 0.1, 10)
    assert P.shape == (2, 4, 4)
    assert P.dtype == torch.float32
    torch.testing.assert_close(frames.camera_from_opengl(P, (640, 480)).K, cameras.K)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: frames.camera_from_opengl(np.eye(4), (4, 4)), "last row"),
        (lambda: frames.camera_from_opengl(np.eye(3), (4, 4)), "projection"),
        (
            lambda: frames.camera_from_opengl(
                [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, -1, -1], [0, 0, -1, 0]], (4, 4)
            ),
            "skew",
        ),
        (lambda: frames.camera_to_opengl(Camera(1, 1, 1, 1, (4, 4), (0.1, 0, 0, 0)), 1, 2), "distortion"),
        (lambda: frames.camera_to_kornia(Camera(1, 1, 1, 1, (4, 4), (0.1, 0, 0, 0)), OURS), "distortion"),
        (lambda: frames.camera_to_opengl(Camera(1, 1, 1, 1, (4, 4)), 2, 1), "near"),
        (lambda: frames.pose_from_ros([0, 0, 1], [0, 0, 1]), "quat_xyzw"),
        (lambda: frames.pose_from_pytorch3d(np.eye(4), np.zeros(3)), "R"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
