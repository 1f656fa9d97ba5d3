"""Camera against OpenCV, distortion both ways, crops, files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import data_path, random_poses, toy_points
from hypothesis import given
from hypothesis import strategies as st

from geopose.geometry.camera import Camera, crop_affine

K = np.array([[535.0, 0, 342.0], [0, 541.0, 235.5], [0, 0, 1]])
DISTORTIONS = {
    0: (),
    4: (-0.27, 0.06, 0.0018, -0.0003),
    5: (-0.27, -0.04, 0.0018, -0.0003, 0.24),
    8: (0.4, -0.1, 0.001, -0.002, 0.02, 0.6, -0.05, 0.01),
    12: (-0.2, 0.05, 0.001, -0.002, 0.01, 0.02, 0.01, 0.01, 0.003, -0.002, 0.001, 0.004),
}


OPENCV_4X4 = "%YAML:1.0\n---\nK: [1, 0, 1, 0, 1, 1, 0, 0, 1]\nimage_width: 4\nimage_height: 4\n"


def camera(count: int) -> Camera:
    return Camera.from_matrix(K, (640, 480), DISTORTIONS[count])


def points_in_view(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    z = rng.uniform(1, 5, (*shape, 1))
    return np.concatenate([rng.uniform(-0.5, 0.5, (*shape, 2)) * z, z], -1)


@pytest.mark.parametrize("count", DISTORTIONS)
def test_project_agrees_with_opencv(rng, count):
    pose, points = random_poses(rng, 1)[0], toy_points(rng, 30)
    expected, jacobian = cv2.projectPoints(points, pose.rvec, pose.t, K, np.array(DISTORTIONS[count]))
    cam = pose.apply(points)
    px, J = camera(count).project_jacobian(cam)
    np.testing.assert_allclose(px, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(camera(count).project(cam), px, atol=0)
    by_translation = jacobian[:, 3:6].reshape(30, 2, 3)  # the same as by the point itself
    np.testing.assert_allclose(J, by_translation, atol=1e-8)


@pytest.mark.parametrize("count", DISTORTIONS)
def test_unproject_inverts_project(rng, count):
    points = points_in_view(rng, (4, 25))
    px = camera(count).project(points)
    np.testing.assert_allclose(camera(count).unproject(px, points[..., 2]), points, atol=1e-12)
    rays = camera(count).unproject(px)
    np.testing.assert_allclose(rays, points / points[..., 2:], atol=1e-12)


@pytest.mark.parametrize("count", [4, 5, 8, 12])
def test_normalise_agrees_with_opencv(rng, count):
    px = camera(count).project(points_in_view(rng, (25,)))
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-14)
    d = np.array(DISTORTIONS[count])
    expected = cv2.undistortPoints(px[:, None], K, d, criteria=criteria)
    np.testing.assert_allclose(camera(count).normalise(px), expected[:, 0], atol=1e-9)


@pytest.mark.parametrize("count", [0, 5, 12])
def test_gradients(rng, count):
    points = torch.tensor(points_in_view(rng, (3,)), requires_grad=True)
    px = camera(count).project(points).detach().requires_grad_()
    assert torch.autograd.gradcheck(camera(count).project, points)
    assert torch.autograd.gradcheck(camera(count).normalise, px)
    if count:
        d = torch.tensor(DISTORTIONS[count], dtype=torch.float64, requires_grad=True)

        def undistorted(coefficients: torch.Tensor) -> torch.Tensor:
            return Camera.from_matrix(torch.as_tensor(K), (640, 480), coefficients).normalise(px.detach())

        assert torch.autograd.gradcheck(undistorted, d)


def test_the_gradient_of_a_point_behind_is_zero_not_nan():
    points = torch.tensor([[0.1, 0.2, -1.0], [0.1, 0.2, 0.0], [0.1, 0.2, 2.0]], requires_grad=True)
    camera(5).project(points)[2].sum().backward()
    assert torch.isfinite(points.grad).all()


def test_behind_the_camera_is_nan():
    px, J = camera(4).project_jacobian(np.array([[0, 0, -1.0], [0, 0, 0], [np.nan, 0, 1], [0.1, 0, 1]]))
    assert np.isnan(px[:3]).all()
    assert np.isnan(J[:3]).all()
    assert np.isfinite(px[3]).all()
    assert np.isfinite(J[3]).all()


def test_pixels_beyond_the_fold_have_no_ray():
    barrel = Camera(500, 500, 320, 240, (640, 480), (-0.4, 0, 0, 0))
    fold = 1 / np.sqrt(3 * 0.4)  # r with d(r - 0.4 r^3)/dr = 0
    reach = fold - 0.4 * fold**3
    px = np.array([[320 + 500 * (reach + 0.01), 240], [320 + 500 * (reach - 1e-4), 240], [np.nan, 0]])
    xy = barrel.normalise(px)
    assert np.isnan(xy[[0, 2]]).all()
    assert fold - 0.02 < xy[1, 0] < fold
    np.testing.assert_array_equal(barrel.normalise(px[1:2]), xy[1:2])


def test_no_ray_is_mirrored(rng):
    """Far beyond the fold the model shows the scene once more, turned by 180 degrees."""
    for strength in rng.uniform(-0.6, -0.1, 50):
        barrel = Camera(500, 500, 320, 240, (640, 480), (strength, 0.02, 0, 0))
        px = rng.uniform(-600, 1300, (40, 2))
        px[0] = 330, 250
        xy = barrel.normalise(px)
        seen = np.isfinite(xy).all(1)
        assert seen[0]
        assert (((px - [320, 240]) * xy).sum(1)[seen] >= 0).all()
        np.testing.assert_allclose(barrel.project(barrel.unproject(px[seen])), px[seen], atol=1e-6)


def test_batched_cameras(rng):
    Ks = np.stack([K, K * [[1.5], [1.2], [1]]])
    d = np.stack([DISTORTIONS[5], np.zeros(5)])
    both, points = Camera.from_matrix(Ks, (640, 480), d), points_in_view(rng, (2, 9))
    for i in range(2):
        single = Camera.from_matrix(Ks[i], (640, 480), d[i])
        px = both.project(points)
        np.testing.assert_allclose(px[i], single.project(points[i]), atol=1e-12)
        np.testing.assert_allclose(both.normalise(px)[i], single.normalise(px[i]), atol=1e-14)
        np.testing.assert_array_equal(both[i].K, Ks[i])
    np.testing.assert_array_equal(both.K, Ks)
    with pytest.raises(IndexError):
        camera(0)[0]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_distortions_of_many_make_many_cameras(rng, kind):
    d = np.outer([1.0, 0.0, 2.0], DISTORTIONS[5])
    many, points = Camera(600, 610, 320, 240, (640, 480), kind(d)), points_in_view(rng, (7,))
    assert many.batch_shape == (3,)
    for i in range(3):
        single = Camera(600, 610, 320, 240, (640, 480), d[i])
        np.testing.assert_allclose(many.project(points)[i], single.project(points), atol=1e-12)
        np.testing.assert_allclose(many[i].project(points), single.project(points), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_opencvs_rows_and_columns_are_flat_in_torch_too(rng, shape):
    points, d = torch.tensor(points_in_view(rng, (4,))), DISTORTIONS[5]
    px = Camera(600, 610, 320, 240, (640, 480), torch.tensor(d).reshape(shape)).project(points)
    np.testing.assert_allclose(px, Camera(600, 610, 320, 240, (640, 480), d).project(points))


def test_kinds_and_dtypes(rng):
    points = points_in_view(rng, (4,)).astype(np.float32)
    assert camera(5).project(points).dtype == np.float32
    px = camera(5).project(torch.tensor(points))
    assert px.dtype == torch.float32
    assert camera(5).unproject(px).dtype == torch.float32
    made = Camera(torch.tensor(500.0), 500, 320, 240, (640, 480))
    assert made.K.dtype == torch.float32
    assert isinstance(made.numpy().fx, np.ndarray | float)
    assert isinstance(made.project(points), torch.Tensor)


@pytest.mark.parametrize("size", [(640, 480), (300, 500)])
def test_field_of_view_is_edge_to_edge(size):
    for axis, edge in (("x", (-0.5, None)), ("y", (None, -0.5)), ("diagonal", (-0.5, -0.5))):
        view = Camera.from_fov(1.2, size, axis)
        px = [(view.cx, view.cy)[i] if e is None else e for i, e in enumerate(edge)]
        ray = view.unproject(np.array([px]))[0]
        assert np.arccos(1 / np.linalg.norm(ray)) == pytest.approx(0.6)


@pytest.mark.parametrize("box", [(-0.5, -0.5, 639.5, 479.5), (100.2, 50.1, 180.4, 300.9), (-80, 20, 90, 500)])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_crop_camera_and_crop_affine_agree(rng, box, size):
    points = points_in_view(rng, (20,))
    crop = camera(5).crop_resize(box, size)
    px = camera(5).project(points)
    mapped = px @ crop_affine(box, size)[:, :2].T + crop_affine(box, size)[:, 2]
    np.testing.assert_allclose(crop.project(points), mapped, atol=1e-10)
    corners = np.array([box[:2], box[2:]]) @ crop_affine(box, size)[:, :2].T + crop_affine(box, size)[:, 2]
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [size[0] - 0.5, size[1] - 0.5]], atol=1e-10)


def test_whole_image_crop_changes_nothing():
    same = camera(4).crop_resize((-0.5, -0.5, 639.5, 479.5), (640, 480))
    np.testing.assert_allclose(same.K, K, atol=1e-12)
    half = camera(4).crop_resize((-0.5, -0.5, 639.5, 479.5), (320, 240))
    assert half.cx == pytest.approx((342 + 0.5) / 2 - 0.5)


def test_a_blob_lands_where_the_crop_camera_projects_it():
    point = np.array([[0.11, -0.17, 2.0]])
    x, y = camera(0).project(point)[0]
    rows, columns = np.mgrid[:480, :640]
    image = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 6.0**2)).astype(np.float32)
    box, size = (x - 70.3, y - 90.1, x + 49.7, y + 69.9), (60, 80)
    warped = cv2.warpAffine(image, crop_affine(box, size), size, flags=cv2.INTER_LINEAR)
    rows, columns = np.mgrid[:80, :60]
    centroid = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
    np.testing.assert_allclose(centroid, camera(0).crop_resize(box, size).project(point)[0], atol=0.02)


def test_batched_crops():
    boxes = np.array([[0, 0, 10, 20.0], [5, 5, 25, 25]])
    crops = camera(4).crop_resize(boxes, (64, 64))
    for i in range(2):
        np.testing.assert_allclose(crops[i].K, camera(4).crop_resize(boxes[i], (64, 64)).K)
    tensors = camera(4).crop_resize(torch.tensor(boxes), (64, 64))
    assert isinstance(tensors.K, torch.Tensor)


def test_own_json_round_trip(tmp_path: Path):
    camera_in = Camera(500.25, 510.5, 320.1, 240.2, (640, 480), DISTORTIONS[12], 0.05)
    camera_in.save(tmp_path / "new" / "camera.json")
    out = Camera.load(tmp_path / "new" / "camera.json")
    assert (out.size_wh, out.distortion, out.focal_rel_std) == ((640, 480), DISTORTIONS[12], 0.05)
    np.testing.assert_array_equal(out.K, camera_in.K)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["camera.json"]
    with pytest.raises(ValueError, match="one camera"):
        Camera.from_matrix(np.stack([K, K]), (640, 480)).save(tmp_path / "batch.json")


def test_bop_json(tmp_path: Path):
    fields = dict(
        cx=325.2611, cy=242.04899, depth_scale=1.0, fx=572.4114, fy=573.57043, height=480, width=640
    )
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(fields))
    out = Camera.load(path)
    np.testing.assert_array_equal(out.K, [[572.4114, 0, 325.2611], [0, 573.57043, 242.04899], [0, 0, 1]])
    assert out.size_wh == (640, 480)


@pytest.mark.parametrize("suffix", [".yml", ".yaml", ".xml"])
@pytest.mark.parametrize(
    "names",
    [
        ("camera_matrix", "distortion_coefficients", "image_width", "image_height"),
        ("K", "dist", "width", "height"),
        ("M1", "D1", "width", "height"),
        ("K", "distortion", "width", "height"),
        ("cameraMatrix", "distCoeffs", "imageWidth", "imageHeight"),
    ],
)
def test_opencv_files(tmp_path: Path, suffix, names):
    path = tmp_path / f"camera{suffix}"
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in zip(names, (K, np.array(DISTORTIONS[5])[:, None], 640, 480), strict=True):
        storage.write(name, value)
    storage.release()
    out = Camera.load(path)
    np.testing.assert_array_equal(out.K, K)
    assert (out.size_wh, out.distortion) == ((640, 480), DISTORTIONS[5])


def test_ros_yaml(tmp_path: Path):
    path = tmp_path / "ost.yaml"
    path.write_text(
        "image_width: 640\nimage_height: 480\ncamera_name: head\n"
        "camera_matrix:\n  rows: 3\n  cols: 3\n  data: [535., 0., 342., 0., 541., 235.5, 0., 0., 1.]\n"
        "distortion_model: plumb_bob\n"
        "distortion_coefficients:\n  rows: 1\n  cols: 5\n  data: [-0.27, -0.04, 0.0018, -0.0003, 0.24]\n"
    )
    out = Camera.load(path)
    np.testing.assert_array_equal(out.K, K)
    assert out.distortion == DISTORTIONS[5]
    path.write_text(path.read_text().replace("plumb_bob", "equidistant"))
    with pytest.raises(ValueError, match="distortion_model"):
        Camera.load(path)


def test_the_chessboard_calibration():
    out = Camera.load(data_path("chessboard", "left_intrinsics.yml"))
    assert out.size_wh == (640, 480)
    assert out.fx == out.fy == 535.91573396163199
    assert (out.cx, out.cy) == (342.28315473308373, 235.57082909788173)
    assert out.distortion[3] == -2.8122100441115472e-04
    assert len(out.distortion) == 5


@pytest.mark.parametrize(
    ("line", "f", "distortion"),
    [
        ("SIMPLE_PINHOLE 640 480 500 320 240", (500, 500), ()),
        ("PINHOLE 640 480 500 510 320 240", (500, 510), ()),
        ("SIMPLE_RADIAL 640 480 500 320 240 0.1", (500, 500), (0.1, 0, 0, 0)),
        ("RADIAL 640 480 500 320 240 0.1 0.2", (500, 500), (0.1, 0.2, 0, 0)),
        ("OPENCV 640 480 500 510 320 240 1e-1 .2 .3 .4", (500, 510), (0.1, 0.2, 0.3, 0.4)),
        (
            "FULL_OPENCV 640 480 500 510 320 240 .1 .2 .3 .4 .5 .6 .7 .8",
            (500, 510),
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        ),
    ],
)
def test_colmap_models(tmp_path: Path, line, f, distortion):
    path = tmp_path / "cameras.txt"
    path.write_text(f"# Camera list with one line of data per camera:\n\n7 {line}\n")
    out = Camera.load(path)
    assert (out.fx, out.fy, out.cx, out.cy) == (*f, 319.5, 239.5)
    assert (out.size_wh, out.distortion) == ((640, 480), distortion)


def test_colmap_with_several_cameras(tmp_path: Path):
    path = tmp_path / "cameras.txt"
    path.write_text("1 PINHOLE 640 480 500 510 320 240\n2 PINHOLE 320 240 250 255 160 120\n")
    assert Camera.load(path, camera_id=2).size_wh == (320, 240)
    with pytest.raises(ValueError, match=r"cameras\.txt: .*\[1, 2\].*camera_id"):
        Camera.load(path)
    with pytest.raises(ValueError, match="no camera 3"):
        Camera.load(path, camera_id=3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4}', "'height' is missing"),
        (
            "a.json",
            '{"fx": "1", "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
            "'fx': expected a number",
        ),
        (
            "a.json",
            '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4, "k1": 0}',
            "'k1' is not known",
        ),
        (
            "a.json",
            '{"fx": -1, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
            "fx: expected a positive",
        ),
        ("a.json", '{"fx": 1, "fy": 1, "cx": NaN, "cy": 1, "width": 4, "height": 4}', "cx: expected finite"),
        ("a.json", '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4.5, "height": 4}', "size_wh"),
        ("a.json", "[1]", "JSON object"),
        ("a.json", "{", "Expecting"),
        ("a.yml", "", "cannot read"),
        ("a.yml", "%YAML:1.0\n---\nimage_width: 4\nimage_height: 4\n", "'camera_matrix' is missing"),
        (
            "a.yml",
            "%YAML:1.0\n---\nK: [1, 0, 1, 0, 1, 1, 0, 0, 1]\nimage_width: 4\n",
            "'image_height' is missing",
        ),
        ("a.yml", "%YAML:1.0\n---\nK: [1, 2]\nimage_width: 4\nimage_height: 4\n", "expected 9 numbers"),
        (
            "a.yml",
            "%YAML:1.0\n---\nK: 5\nimage_width: 4\nimage_height: 4\n",
            "'camera_matrix': expected a matrix",
        ),
        ("a.yml", f"{OPENCV_4X4}fisheye_model: 1\nD: [0.1, 0, 0, 0]\n", "'fisheye_model'"),
        ("a.yml", f"{OPENCV_4X4}dist_params: [0.1, 0, 0, 0]\n", "'dist_params' is not known"),
        (
            "a.json",
            '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 1%s, "height": 4}' % (400 * "0"),
            "too large",
        ),
        ("a.txt", "1 FISHEYE 4 4 1 1 1", "MODEL: 'FISHEYE'"),
        ("a.txt", "1 PINHOLE 4 4 1 1 1", "PARAMS: PINHOLE expects 4"),
        ("a.txt", "1 PINHOLE 4 4 1 1 1 x", "PARAMS: expected numbers"),
        ("a.txt", "camera", "line 1"),
        ("a.txt", "", r"cameras \[\]"),
        ("a.pdf", "", r"\.pdf"),
    ],
)
def test_bad_files_name_the_file_and_the_field(tmp_path: Path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Camera.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Camera.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Camera(0, 1, 1, 1, (4, 4)), "fx: expected a positive"),
        (lambda: Camera(1, float("inf"), 1, 1, (4, 4)), "fy: expected finite"),
        (lambda: Camera(1, 1, 1, 1, (4, 0)), "size_wh"),
        (lambda: Camera(1, 1, 1, 1, 4), "size_wh"),
        (lambda: Camera(1, 1, 0, 0, ("a", "b")), r"size_wh: .*\('a', 'b'\)"),
        (lambda: Camera(1, 1, 0, 0, None), "size_wh: .*None"),
        (lambda: Camera(None, 1, 0, 0, (3, 1)), "fx: expected numbers, got None"),
        (lambda: Camera(1, "a", 0, 0, (3, 1)), "fy: expected numbers, got 'a'"),
        (lambda: Camera(1, 1, [[1, 2], [1]], 0, (3, 1)), "cx: expected numbers"),
        (lambda: Camera(1, 1, 0, np.array([1j]), (3, 1)), "cy: expected numbers, got complex128"),
        (lambda: Camera(10**400, 1, 0, 0, (3, 1)), "fx: expected numbers"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), "a"), "distortion: expected numbers, got 'a'"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), focal_rel_std="x"), "focal_rel_std: .*'x'"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), focal_rel_std=np.nan), "focal_rel_std: .*nan"),
        (lambda: Camera.from_matrix(None, (4, 4)), "K: expected numbers, got None"),
        (lambda: Camera.load(None), "path: expected a camera file, got None"),
        (lambda: camera(0).crop_resize("a", (4, 4)), "box_px: expected numbers, got 'a'"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), (1, 2, 3)), "distortion: .*got 3"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), [0.0] * 13 + [1.0]), "tilted"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), (np.nan,) * 4), "distortion: expected finite"),
        (lambda: Camera(1, 1, 1, 1, (4, 4), focal_rel_std=-1), "focal_rel_std"),
        (lambda: Camera(np.ones(2), np.ones(3), 1, 1, (4, 4)), "do not match"),
        (lambda: Camera.from_matrix(K + np.eye(3)[[1, 0, 2]], (4, 4)), "skew"),
        (lambda: Camera.from_matrix(K * np.nan, (4, 4)), "K: expected finite"),
        (lambda: Camera.from_matrix(-K, (4, 4)), "K"),
        (lambda: Camera.from_fov(4.0, (4, 4)), "fov"),
        (lambda: Camera.from_fov(1.0, (4, 4), "z"), "axis"),
        (lambda: camera(0).crop_resize((3, 0, 1, 5), (4, 4)), "box_px"),
        (lambda: camera(0).project(np.zeros((4, 2))), "points_cam"),
        (lambda: camera(0).unproject(np.zeros((4, 3))), "points_px"),
        (lambda: camera(0).unproject(np.zeros((4, 2)), np.zeros(3)), "depth"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tilt_of_zero_is_no_tilt():
    assert len(Camera(1, 1, 1, 1, (4, 4), [0.1] * 12 + [0.0, 0.0]).distortion) == 12


@given(st.integers(0, 10**6))
def test_arrays_and_tensors_are_projected_and_cut_alike(seed: int) -> None:
    """Arrays take a shorter way than tensors; the way of the tensors is held to OpenCV above."""
    rng = np.random.default_rng(seed)
    own = Camera(*rng.uniform(100, 900, 2), *rng.uniform(0, 500, 2), (640, 480))
    points = rng.normal(0, 1, (2, 9, 3)) + [0, 0, 1]
    points[0, 0, 2], points[1, 3, 0], points[1, 4, 2] = 0, np.inf, np.nan
    lost = ~((points[..., 2] > 0) & np.isfinite(points).all(-1))
    px = own.project(points)
    assert isinstance(px, np.ndarray)
    np.testing.assert_allclose(px, own.project(torch.tensor(points)).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(px).all(-1), lost)
    assert own.project(points.astype(np.float32)).dtype == np.float32
    corner, size = rng.uniform(-50, 400, 2), rng.uniform(5, 300, 2)
    box = np.concatenate([corner, corner + size])
    cut, same = own.crop_resize(box, (128, 96)), own.crop_resize(torch.tensor(box), (128, 96))
    np.testing.assert_allclose(cut.K, np.asarray(same.K), rtol=1e-12)
    np.testing.assert_allclose(
        crop_affine(box, (128, 96)), crop_affine(torch.tensor(box), (128, 96)).numpy(), rtol=1e-12
    )


def test_a_point_of_whole_numbers_is_one() -> None:
    own = Camera(100.0, 100.0, 0.0, 0.0, (64, 64))
    np.testing.assert_allclose(own.project(np.array([[1, 2, 4]])), [[25, 50]])
    np.testing.assert_allclose(own.project([[1, 2, 4]]), [[25, 50]])
    with pytest.raises(ValueError, match="points_cam"):
        own.project(np.zeros((3, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far = own.project(np.array([[1e30, 0, 1e-30], [np.nan, 0, 1], [np.inf, 0, 1]], np.float32))
    assert far[0, 0] == np.inf
    assert np.isnan(far[1:]).all()
