"""Pictures with known keypoints: the set, its crops, and the files of the X-wing and the semantic keypoints task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from geopose.cad.model import load_cad
from geopose.data.annotated import (
    AnnotatedSet,
    Augmentation,
    CropDataset,
    crop_map,
    inverted,
    moved,
    read_rgb,
    warped,
    whole_picture,
)
from geopose.data.picture import PictureMaker
from geopose.data.semantic import car_points, read_semantic, write_semantic
from geopose.data.xwing import BOX_POINTS, CAMERA_FILE, box_points_of_ship, read_xwing, write_xwing
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

CAMERA = Camera(200.0, 200.0, 59.5, 39.5, (120, 80))


def blob(point: np.ndarray, size_wh: tuple[int, int] = (120, 80), sigma: float = 3.0) -> np.ndarray:
    """A soft bright spot on grey, its middle at a point."""
    y, x = np.mgrid[: size_wh[1], : size_wh[0]]
    spot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(128 + 120 * spot).astype(np.uint8)[..., None], 3, 2)


def spot_of(image: np.ndarray) -> np.ndarray:
    """The centre of mass (2,) of what is brighter than grey in a picture (3, H, W)."""
    weight = np.clip(image[0].astype(float) - 130, 0, None)
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def spots(count: int = 5) -> AnnotatedSet:
    """Pictures with one spot each, which is the first of two keypoints; the second is annotated in picture 0 alone."""
    at = np.random.default_rng(3).uniform((40, 25), (80, 55), (count, 2))
    images = {f"{i}.png": blob(p) for i, p in enumerate(at)}
    second = np.full((count, 2), np.nan)
    second[0] = (300.0, 10.0)
    boxes = np.tile(whole_picture((120, 80)), (count, 1))
    keypoints = np.stack([at, second], 1)
    return AnnotatedSet(tuple(images), np.zeros((2, 3)), keypoints, boxes, CAMERA, images.__getitem__)


# Sets and crops


def test_a_set_holds_what_fits() -> None:
    data = spots(6)
    with pytest.raises(ValueError, match=r"keypoints_px, boxes: got \(6, 2, 2\), \(6, 4\) beside 5 names"):
        replace(data, names=data.names[:5])
    taken = data.take([4, 1])
    assert taken.names == ("4.png", "1.png")
    np.testing.assert_array_equal(taken.keypoints_px[0, 0], data.keypoints_px[4, 0])
    rest, share = data.split(0.3, seed=1)
    assert (len(rest), len(share)) == (4, 2)
    assert sorted(rest.names + share.names) == sorted(data.names)
    assert data.split(0.3, seed=1)[1].names == share.names
    assert len(data.split(0.001)[1]) == 1
    for bad in (0, 1.0):
        with pytest.raises(ValueError, match="share: got"):
            data.split(bad)


def test_the_crop_of_a_box() -> None:
    """Edges go to edges; a quarter turn clockwise is numpy's backward rot90."""
    box = np.array([10.0, 20.0, 42.0, 52.0])
    corners = np.array([[10.0, 20.0], [42.0, 52.0]])
    np.testing.assert_allclose(moved(corners, crop_map(box, 64)), [[-0.5, -0.5], [63.5, 63.5]], atol=1e-12)
    wide = moved(corners, crop_map(box, 64, scale=2.0))
    np.testing.assert_allclose(wide, [[15.5, 15.5], [47.5, 47.5]], atol=1e-12)
    matrix = crop_map(box, 64, 0.3, 1.4)
    np.testing.assert_allclose(moved(moved(corners, matrix), inverted(matrix)), corners, atol=1e-9)
    picture = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    quarter = warped(picture, crop_map(whole_picture((48, 48)), 48, np.pi / 2), 48)
    assert np.abs(quarter.astype(int) - np.rot90(picture, -1)).max() <= 1


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.4, 0.6), (-2.0, 2.5)])
def test_pictures_and_points_move_together(angle: float, scale: float) -> None:
    """Also where the picture shrinks to less than half, and is smoothed first."""
    point = np.array([70.3, 33.8])
    matrix = crop_map(whole_picture((120, 80)), 64, angle, scale)
    crop = warped(blob(point, sigma=6.0), matrix, 64)
    np.testing.assert_allclose(spot_of(crop.transpose(2, 0, 1)), moved(point, matrix), atol=0.15)
    if scale > 1:
        assert (crop[0, 0] == 128).all(), "grey beyond the picture"


def test_augmented_crops_keep_their_keypoints() -> None:
    data = spots()
    options = Augmentation(rotation_deg=25.0, quarter_turns=True, scale=(0.9, 1.3), blur=0.5)
    crops = CropDataset(data, 96, options, seed=5)
    items = [crops[i] for i in range(15)]
    for item in items:
        assert item["image"].shape == (3, 96, 96)
        assert item["image"].dtype == np.uint8
        np.testing.assert_allclose(spot_of(item["image"]), item["keypoints_px"][0, 0], atol=0.3)
        assert item["inside"].tolist() == [[True, False]], "not annotated, or beyond the crop"
        assert np.isfinite(item["keypoints_px"]).all()
        expected = moved(data.keypoints_px[item["row"], 0], item["crop_from_image"])
        np.testing.assert_allclose(item["keypoints_px"][0, 0], expected, rtol=1e-5)
    for start in (0, 5, 10):
        assert sorted(item["row"] for item in items[start : start + 5]) == [0, 1, 2, 3, 4]
    again = CropDataset(data, 96, options, seed=5)[7]
    np.testing.assert_array_equal(again["image"], items[7]["image"])
    assert not np.array_equal(CropDataset(data, 96, options, seed=6)[7]["image"], items[7]["image"])
    angles = {round(float(np.arctan2(*i["crop_from_image"][[1, 0], [0, 0]])), 3) for i in items}
    assert len(angles) == 15
    assert np.ptp(list(angles)) > 2


def test_plain_crops_are_as_they_are() -> None:
    data = spots()
    crops = CropDataset(data, 120)
    assert len(crops) == 5
    item = crops[2]
    np.testing.assert_array_equal(item["image"][:, 20:100], data.read("2.png").transpose(2, 0, 1))
    np.testing.assert_allclose(item["keypoints_px"][0, 0], data.keypoints_px[2, 0] + [0, 20], rtol=1e-6)


def test_bad_crops(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="annotated: got a set without pictures"):
        CropDataset(spots().take([]), 96)
    with pytest.raises(ValueError, match="size: got 16"):
        CropDataset(spots(), 16)
    for change in ({"scale": (1.2, 0.8)}, {"rotation_deg": -1.0}, {"blur": 2.0}):
        with pytest.raises(ValueError, match="rotation_deg, scale, blur: got"):
            Augmentation(**change)  # type: ignore[arg-type]
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ValueError, match=f"{name}: expected a picture"):
            read_rgb(tmp_path / name)


# The X-wing's files


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pose, Camera]]:
    """The poses and cameras that pictures are drawn with from here on."""
    seen: list[tuple[Pose, Camera]] = []
    make = PictureMaker.make

    def noted(self: Any, generator: Any, camera: Camera, pose: Pose, *rest: Any) -> Any:
        seen.append((pose, camera))
        return make(self, generator, camera, pose, *rest)

    monkeypatch.setattr(PictureMaker, "make", noted)
    return seen


def test_a_written_xwing_is_read_as_it_was_drawn(tmp_path: Path, drawn: list[tuple[Pose, Camera]]) -> None:
    root = write_xwing(tmp_path / "set", 3, seed=4, side=96)
    files = {p.name for p in root.iterdir()}
    assert files == {*(f"{i}.jpg" for i in range(3)), *(f"{i}_mat.json" for i in range(3)), CAMERA_FILE}
    info = json.loads((root / CAMERA_FILE).read_text())
    assert info["projection_matrix"][0][0] == pytest.approx(1.94444, abs=1e-5)
    assert info["projection_matrix"][1][1] == pytest.approx(1.94444, abs=1e-5)
    data = read_xwing(root)
    assert data.names == ("0.jpg", "1.jpg", "2.jpg")
    np.testing.assert_allclose(data.camera.K, [[93.3333, 0, 47.5], [0, 93.3333, 47.5], [0, 0, 1]], atol=1e-3)
    assert data.pose is not None
    for i, (pose, camera) in enumerate(drawn):
        expected = camera.project(pose.apply(box_points_of_ship()))
        np.testing.assert_allclose(data.keypoints_px[i], expected, atol=1e-6)
        direct = data.camera.project(data.pose[i].apply(BOX_POINTS))
        np.testing.assert_allclose(direct, expected, atol=1e-6)
    again = write_xwing(tmp_path / "again", 3, seed=4, side=96)
    for path in root.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_the_box_goes_round_the_ship() -> None:
    """Length and width are those of the mesh, the points are the corners of a box about its middle."""
    points, bounds = box_points_of_ship(), load_cad("xwing").bounds
    np.testing.assert_allclose(points.mean(0), bounds.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.ptp(points, 0)[:2], np.ptp(bounds, 0)[:2], rtol=0.1)
    assert BOX_POINTS[0].tolist() == [-0.156, -0.182, -0.032], "x is the fastest"
    assert BOX_POINTS[1].tolist() == [0.156, -0.182, -0.032]
    nose = points[BOX_POINTS[:, 1] < 0]
    assert (nose[:, 0] > bounds.mean(0)[0]).all(), "the nose of the built-in ship is at +x"


def opengl_folder(root: Path, size_wh: tuple[int, int] = (64, 96)) -> np.ndarray:
    """A folder made by hand, and the pixels (2, 8, 2) that OpenGL's pipeline gives the box in it."""
    root.mkdir()
    view = np.eye(4)
    view[:3, 3] = (0.0, 0.1, -2.0)
    f = 35 / 18
    projection = np.array([[f, 0, 0, 0], [0, f, 0, 0], [0, 0, -1.002, -0.2], [0, 0, -1, 0]])
    pixels = []
    for i, angle in enumerate((0.3, -1.1)):
        model = np.eye(4)
        model[:3, :3] = cv2.Rodrigues(np.array([angle, 0.5, 0.2]))[0]
        model[:3, 3] = (0.1, -0.05, 0.2 * i)
        (root / f"{i}_mat.json").write_text(json.dumps(model.tolist()))
        cv2.imwrite(str(root / f"{i}.jpg"), np.full((size_wh[1], size_wh[0], 3), 90, np.uint8))
        clip = np.c_[BOX_POINTS, np.ones(8)] @ (projection @ view @ model).T
        ndc = clip[:, :2] / clip[:, 3:]  # both axes in half widths
        middle = np.array(size_wh) / 2
        pixels.append(middle - 0.5 + ndc * [size_wh[0] / 2, -size_wh[0] / 2])
    info = {"model_view_matrix": view.tolist(), "projection_matrix": projection.tolist()}
    (root / CAMERA_FILE).write_text(json.dumps(info))
    return np.stack(pixels)


def test_opengl_matrices_are_read_as_opengl_draws(tmp_path: Path) -> None:
    expected = opengl_folder(tmp_path / "set")
    data = read_xwing(tmp_path / "set")
    np.testing.assert_allclose(data.keypoints_px, expected, atol=1e-9)
    assert data.camera.K[1, 1] == pytest.approx(35 / 18 * 32), "fy is fx, whatever the height"
    np.testing.assert_allclose(data.boxes[0], [-16.5, -0.5, 79.5, 95.5])
    moved_camera = tmp_path / "camera.json"
    (tmp_path / "set" / CAMERA_FILE).rename(moved_camera)
    np.testing.assert_array_equal(read_xwing(tmp_path / "set", moved_camera).keypoints_px, data.keypoints_px)


def test_broken_xwing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pictures 0.jpg"):
        read_xwing(tmp_path)
    with pytest.raises(ValueError, match="count: got 0"):
        write_xwing(tmp_path, 0)
    root = tmp_path / "set"
    opengl_folder(root)
    good = json.loads((root / "0_mat.json").read_text())
    scaled, shifted = (2 * np.array(good)).tolist(), np.array(good).T.tolist()
    scaled[3] = [0, 0, 0, 1]
    for value, message in (
        (scaled, "0_mat.json: expected a rotation and a shift, without scale"),
        (shifted, "0_mat.json: expected the last row .* is the matrix transposed"),
        ([[1, 2]], "0_mat.json: expected a 4x4 matrix"),
        ({"a": 1}, "0_mat.json: expected a 4x4 matrix"),
    ):
        (root / "0_mat.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=message):
            read_xwing(root)
    (root / "0_mat.json").write_text("{")
    (root / "1_mat.json").unlink()
    with pytest.raises(ValueError, match=r"0_mat.json: not JSON .*; .*1_mat.json: no such file"):
        read_xwing(root)
    opengl_folder(tmp_path / "other")
    cv2.imwrite(str(tmp_path / "other" / "1.jpg"), np.zeros((50, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"1.jpg: expected 64 x 96 pixels as in 0.jpg, got \(64, 50\)"):
        read_xwing(tmp_path / "other").read("1.jpg")
    camera = tmp_path / "other" / CAMERA_FILE
    camera.write_text(json.dumps({"model_view_matrix": np.eye(4).tolist()}))
    with pytest.raises(
        ValueError, match=r"camera_info.json: expected a 4x4 matrix of numbers 'projection_matrix'"
    ):
        read_xwing(tmp_path / "other")
    camera.unlink()
    with pytest.raises(FileNotFoundError, match="camera_info.json: no such file"):
        read_xwing(tmp_path / "other")


# The files of the semantic keypoints


def test_a_written_car_is_read_as_it_was_drawn(tmp_path: Path, drawn: list[tuple[Pose, Camera]]) -> None:
    root = write_semantic(tmp_path / "set", (3, 2), seed=1, size_wh=(96, 72))
    training, unseen = read_semantic(root), read_semantic(root, "valid")
    assert (len(training), len(unseen)) == (3, 2)
    points = np.array(list(car_points().values()))
    assert points.shape == (12, 3)
    for data, views in ((training, drawn[:3]), (unseen, drawn[3:])):
        np.testing.assert_allclose(data.points_obj, points)
        assert data.mesh is not None
        np.testing.assert_allclose(data.mesh[0], load_cad("car").vertices)
        for i, (pose, _) in enumerate(views):
            expected, _ = cv2.projectPoints(points, cv2.Rodrigues(pose.R)[0], pose.t, data.camera.K, None)
            np.testing.assert_allclose(data.keypoints_px[i], expected[:, 0], atol=1e-6)
            x0, y0, x1, y1 = data.boxes[i]
            assert ((data.keypoints_px[i] > [x0, y0]) & (data.keypoints_px[i] < [x1, y1])).all()
            assert x1 - x0 == pytest.approx(y1 - y0)
        assert data.read(data.names[0]).shape == (72, 96, 3)
    assert not set(training.names) & set(unseen.names)
    again = write_semantic(tmp_path / "again", (3, 2), seed=1, size_wh=(96, 72))
    for name in ("images.npz", "train_data.npz", "valid_data.npz"):
        with np.load(root / name) as one, np.load(again / name) as two:
            assert one.files == two.files
            for key in one.files:
                np.testing.assert_array_equal(one[key], two[key])
    with pytest.raises(ValueError, match=r"counts: got \(0, 1\)"):
        write_semantic(tmp_path, (0, 1))


def semantic_folder(root: Path, **changes: Any) -> Path:
    """A folder made by hand: two pictures, three points; `changes` go into train_data.npz."""
    root.mkdir(exist_ok=True)
    rows = {
        "imgname": np.array([b"a.jpg", b"b.jpg"]),
        "center": np.array([[40.0, 30.0], [20.0, 25.0]]),
        "scale": np.array([0.3, 0.2]),
        "part": np.array([[[5, 6], [0, 0], [30, 20]], [[1, 2], [3, 4], [50, -1]]], np.int64),
    }
    np.savez(root / "train_data.npz", **(rows | changes))
    np.savez(
        root / "images.npz",
        **{n: np.full((60, 80, 3), i, np.uint8) for i, n in enumerate(("a.jpg", "b.jpg"))},
    )
    K = np.array([[90.0, 0, 40], [0, 95.0, 30], [0, 0, 1]])
    np.savez(root / "misc_data.npz", K=K, vertices=np.eye(3), faces=np.array([[0, 1, 2]]))
    np.save(root / "kpt.npy", np.eye(3))
    return root


def test_centre_scale_and_missing_points(tmp_path: Path) -> None:
    data = read_semantic(semantic_folder(tmp_path / "set"))
    assert data.names == ("a.jpg", "b.jpg")
    np.testing.assert_allclose(data.boxes, [[10, 0, 70, 60], [0, 5, 40, 45]])
    missing = np.isnan(data.keypoints_px).all(-1)
    assert missing.tolist() == [[False, True, False], [False, False, True]]
    np.testing.assert_array_equal(data.keypoints_px[0, 0], [5, 6])
    assert (data.camera.fx, data.camera.fy, data.camera.size_wh) == (90.0, 95.0, (80, 60))
    assert data.read("b.jpg")[0, 0].tolist() == [1, 1, 1]
    assert data.pose is None
    text = np.array(["a.jpg", "b.jpg"])
    other = read_semantic(
        semantic_folder(tmp_path / "other", imgname=text, spots=np.ones((2, 3, 2))), annotations="spots"
    )
    assert (other.keypoints_px == 1).all()
    assert other.names == data.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": np.zeros((3, 2))}, r"train_data.npz: 'center': expected finite numbers of shape \(2, 2\)"),
        ({"part": np.zeros((2, 4, 2))}, r"train_data.npz: 'part': expected finite numbers of shape \(2, 3, 2\)"),
        ({"scale": np.array([0.3, 0.0])}, r"train_data.npz: expected at least one picture and positive values"),
        ({"scale": np.array([0.3, np.nan])}, r"train_data.npz: 'scale': expected finite"),
        ({"imgname": np.array([b"a.jpg", b"c.jpg"])}, r"images.npz: got the arrays .* expected a.jpg, c.jpg"),
        ({"center": np.array([{}, {}], object)}, r"train_data.npz: .*allow_pickle"),
    ],
)  # fmt: skip
def test_broken_semantic_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_semantic(semantic_folder(tmp_path / "set", **change))


def test_missing_and_foreign_semantic_files(tmp_path: Path) -> None:
    root = semantic_folder(tmp_path / "set")
    with pytest.raises(ValueError, match="split: got 'test'"):
        read_semantic(root, "test")
    with pytest.raises(FileNotFoundError, match="valid_data.npz: no such file"):
        read_semantic(root, "valid")
    with pytest.raises(ValueError, match=r"train_data.npz: got the arrays .*, expected .* other"):
        read_semantic(root, annotations="other")
    np.savez(root / "images.npz", **{n: np.zeros((60, 80), np.uint8) for n in ("a.jpg", "b.jpg")})
    with pytest.raises(ValueError, match=r"images.npz: a.jpg: expected a picture \(H, W, 3\) uint8"):
        read_semantic(root)
    (root / "kpt.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match="kpt.npy"):
        read_semantic(root)
