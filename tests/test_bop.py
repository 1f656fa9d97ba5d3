"""Data sets in the BOP format: reading, writing, results files, and what is said about broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from helpers import data_path, random_poses
from PIL import Image

from geopose.cad.model import CadModel
from geopose.cad.symmetry import Symmetries
from geopose.data.bop import bop_symmetries, read_bop
from geopose.data.bop_results import BopResult, read_results, write_results
from geopose.data.bop_write import BopWriter
from geopose.data.clutter import BackgroundFolder, background, distractor
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.image import load_image

CAMERA = Camera(60.0, 61.0, 31.0, 23.5, (64, 48))


@pytest.fixture
def brick() -> CadModel:
    return CadModel.from_trimesh(trimesh.creation.box((0.1, 0.06, 0.04)), "brick")


def write_set(root: Path, brick: CadModel, rng: np.random.Generator, count: int = 3) -> list[Pose]:
    """A small set; its pictures are of one grey each, 10, 20, 30, ..."""
    poses = [random_poses(rng, 2, distance=0.5) for _ in range(count)]
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    half_turn[:3, 3] = [0.002, 0, 0]
    with BopWriter(root, split="test", scene_id=7) as writer:
        writer.add_model(4, brick, Symmetries(np.stack([np.eye(4), half_turn])))
        for i, pair in enumerate(poses):
            image = np.full((48, 64, 3), 10 * (i + 1), np.uint8)
            masks = np.zeros((2, 48, 64), bool)
            masks[:, 10:20, 5:25] = True
            visible = masks.copy()
            visible[1, :, :20] = False
            depth = np.full((48, 64), 0.5123, np.float32)
            writer.add(image, CAMERA, [(4, pair[0]), (4, pair[1])], depth, masks, visible)
    return poses


def test_what_is_written_is_read(tmp_path: Path, brick: CadModel, rng: np.random.Generator) -> None:
    poses = write_set(tmp_path, brick, rng)
    dataset = read_bop(tmp_path)
    assert dataset.split == "test"
    assert [(f.scene_id, f.im_id) for f in dataset.frames] == [(7, 0), (7, 1), (7, 2)]
    assert dataset.targets == {(7, i, 4): 2 for i in range(3)}
    for frame, pair in zip(dataset.frames, poses, strict=True):
        image, camera = frame.load()
        assert (image == 10 * (frame.im_id + 1)).all()
        assert camera.size_wh == CAMERA.size_wh
        np.testing.assert_allclose(camera.K, CAMERA.K)
        np.testing.assert_allclose(frame.load_depth(), 0.5123, atol=6e-5)
        for instance, R, t in zip(frame.instances, pair.R, pair.t, strict=True):
            np.testing.assert_allclose(instance.pose.R, R, atol=1e-12)
            np.testing.assert_allclose(instance.pose.t, t, atol=1e-12)
        assert [i.visib_fract for i in frame.instances] == [1.0, 0.25]
        np.testing.assert_allclose(frame.instances[1].box_visib, [20, 10, 24, 19])
        corners = np.array(cv2.projectPoints(brick.vertices, pair.rvec[0], pair.t[0], CAMERA.K, None)[0])[
            :, 0
        ]
        np.testing.assert_allclose(frame.instances[0].box, [*corners.min(0), *corners.max(0)], atol=1e-6)


def test_models_are_written_in_millimetres_with_symmetries(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator
) -> None:
    write_set(tmp_path, brick, rng, 1)
    known = read_bop(tmp_path).objects[4]
    assert known.diameter == pytest.approx(np.linalg.norm([0.1, 0.06, 0.04]))
    np.testing.assert_allclose(np.ptp(known.points, axis=0), [0.1, 0.06, 0.04], atol=1e-6)
    raw = trimesh.load(tmp_path / "models" / "obj_000004.ply")
    np.testing.assert_allclose(raw.extents, [100, 60, 40], atol=1e-3)
    info = json.loads((tmp_path / "models" / "models_info.json").read_text())["4"]
    assert info["size_x"] == pytest.approx(100)
    assert len(info["symmetries_discrete"]) == 1
    assert info["symmetries_discrete"][0][3] == pytest.approx(2.0)
    np.testing.assert_allclose(known.symmetries[1, :3, 3], [0.002, 0, 0])


def test_masks_and_camera_file(tmp_path: Path, brick: CadModel, rng: np.random.Generator) -> None:
    write_set(tmp_path, brick, rng, 1)
    mask = cv2.imread(str(tmp_path / "test/000007/mask_visib/000000_000001.png"), cv2.IMREAD_UNCHANGED)
    assert mask.sum() == 255 * 10 * 5
    assert Camera.load(tmp_path / "camera.json").size_wh == (64, 48)


def test_a_writer_continues_only_when_told(tmp_path: Path, brick: CadModel, rng: np.random.Generator) -> None:
    write_set(tmp_path, brick, rng, 2)
    with pytest.raises(ValueError, match="holds a scene already; choose another folder or split"):
        BopWriter(tmp_path, split="test", scene_id=7)
    with BopWriter(tmp_path, split="test", scene_id=7, append=True) as writer:
        assert writer.add(np.zeros((48, 64, 3), np.uint8), CAMERA, []) == 2
    assert len(read_bop(tmp_path).frames) == 3


def test_what_is_known_of_an_object_stays(tmp_path: Path, brick: CadModel) -> None:
    """Somebody may have written its symmetries by hand."""
    with BopWriter(tmp_path, split="train") as writer:
        writer.add_model(4, brick, Symmetries.none())
    info = tmp_path / "models" / "models_info.json"
    by_hand = json.loads(info.read_text())
    by_hand["4"]["symmetries_continuous"] = [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]
    info.write_text(json.dumps(by_hand))
    with BopWriter(tmp_path, split="val") as writer:
        writer.add_model(4, brick, Symmetries.none())
        writer.add_model(5, brick)
    after = json.loads(info.read_text())
    assert after["4"] == by_hand["4"]
    assert sorted(after) == ["4", "5"]


def test_an_object_does_not_replace_another(tmp_path: Path, brick: CadModel) -> None:
    """The pictures of the first set would be judged by the mesh of the second."""
    other = CadModel.from_trimesh(trimesh.creation.box((0.2, 0.06, 0.04)), "other")
    with BopWriter(tmp_path, split="train") as writer:
        writer.add_model(4, brick, Symmetries.none())
        writer.add_model(5, other)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(
            ValueError, match=r"obj_000004\.ply is another mesh than 'other'; choose another folder"
        ),
        BopWriter(tmp_path, split="test") as writer,
    ):
        writer.add_model(4, other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with BopWriter(tmp_path, split="test") as writer:
        writer.add_model(4, brick, Symmetries.none())
    assert all(path.read_bytes() == data for path, data in before.items())


def test_depth_that_the_format_does_not_hold_is_refused(tmp_path: Path) -> None:
    """It was cut off at 6.5 m in silence."""
    with BopWriter(tmp_path, split="test", scene_id=7) as writer:
        image, depth = np.zeros((48, 64, 3), np.uint8), np.full((48, 64), np.inf)
        for wrong in (7.0, -0.1):
            depth[0, 0] = wrong
            with pytest.raises(ValueError, match=r"depth: expected 0 to 6\.55 m"):
                writer.add(image, CAMERA, [], depth)
        depth[0, :3] = 6.5535, np.nan, 0.0
        assert writer.add(image, CAMERA, [], depth) == 0
    stored = cv2.imread(str(next(tmp_path.rglob("depth/*.png"))), cv2.IMREAD_UNCHANGED)
    assert stored[0, :4].tolist() == [65535, 0, 0, 0]


def test_a_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    writer = BopWriter(tmp_path)
    image = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="image"):
        writer.add(image[:-1], CAMERA, [])
    with pytest.raises(ValueError, match="masks"):
        writer.add(image, CAMERA, [], masks=np.zeros((1, 48, 64), bool))
    with pytest.raises(ValueError, match="distortion"):
        writer.add(image, Camera(60.0, 60.0, 31.0, 23.0, (64, 48), (0.1, 0, 0, 0)), [])
    with pytest.raises(ValueError, match="depth_scale"):
        BopWriter(tmp_path, depth_scale=0)
    masks, pose = np.ones((1, 48, 64), bool), Pose(np.eye(3), np.array([0, 0, 1.0]))
    for wrong in ([], [3071], [[3072]]):
        with pytest.raises(
            ValueError, match=r"px_count_all: expected 1 counts of at least \[3072\] pixels, got"
        ):
            writer.add(image, CAMERA, [(4, pose)], masks=masks, masks_visib=masks, px_count_all=wrong)


def test_the_visible_fraction_is_of_the_whole_silhouette(tmp_path: Path) -> None:
    masks = np.zeros((2, 48, 64), bool)
    masks[:, :10, :20] = True
    poses = [(4, Pose(np.eye(3), np.array([0, 0, 1.0])))] * 2
    with BopWriter(tmp_path) as writer:
        writer.add(np.zeros((48, 64, 3), np.uint8), CAMERA, poses, None, masks, masks, [400, 200])
    info = json.loads((tmp_path / "train_pbr/000000/scene_gt_info.json").read_text())["0"]
    assert [i["px_count_all"] for i in info] == [400, 200]
    assert [i["px_count_valid"] for i in info] == [200, 200]
    assert [i["visib_fract"] for i in info] == [0.5, 1.0]


def test_scene_split_and_root_read_the_same(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator
) -> None:
    write_set(tmp_path, brick, rng, 1)
    for path in (tmp_path, tmp_path / "test", tmp_path / "test" / "000007"):
        dataset = read_bop(path)
        assert (dataset.root, dataset.split, len(dataset.frames)) == (tmp_path, "test", 1)
        assert 4 in dataset.objects


def test_a_set_is_read_from_within(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, brick, rng, 1)
    for path in (tmp_path, tmp_path / "test", tmp_path / "test" / "000007"):
        monkeypatch.chdir(path)
        dataset = read_bop(".")
        assert (dataset.root, dataset.split, len(dataset.frames)) == (tmp_path, "test", 1)
        assert 4 in dataset.objects


@pytest.mark.parametrize("split", ["", "..", "a/b", "/tmp/elsewhere"])
def test_a_split_is_a_folder_of_the_set(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match="split: expected the name of a folder"):
        BopWriter(tmp_path / "set", split=split)
    with pytest.raises(ValueError, match="split: expected the name of a folder"):
        read_bop(tmp_path, split)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_too_large_is_no_readable_picture(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, brick, rng, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    with pytest.raises(ValueError, match=r"000000\.png: not a readable picture"):
        read_bop(tmp_path).frames[0].load()


def test_other_splits_grey_and_jpeg(tmp_path: Path, brick: CadModel, rng: np.random.Generator) -> None:
    write_set(tmp_path, brick, rng, 1)
    (tmp_path / "test").rename(tmp_path / "test_primesense")
    scene = tmp_path / "test_primesense" / "000007"
    (scene / "rgb").rename(scene / "gray")
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(scene / "gray" / "000000.jpg")
    (scene / "gray" / "000000.png").unlink()
    dataset = read_bop(tmp_path)
    assert dataset.split == "test_primesense"
    assert (dataset.frames[0].load()[0] == 77).all()
    with pytest.raises(ValueError, match="no split 'val'"):
        read_bop(tmp_path, "val")


@pytest.mark.parametrize("year", ["bop19", "bop24"])
def test_targets_limit_what_is_asked(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator, year: str
) -> None:
    write_set(tmp_path, brick, rng)
    entry = {"scene_id": 7, "im_id": 1} | ({"obj_id": 4, "inst_count": 1} if year == "bop19" else {})
    (tmp_path / f"test_targets_{year}.json").write_text(json.dumps([entry]))
    dataset = read_bop(tmp_path)
    assert dataset.targets == {(7, 1, 4): 1 if year == "bop19" else 2}
    assert [f.im_id for f in dataset.target_frames(4)] == [1]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("scene_gt.json", lambda t: t[: len(t) // 2], r"scene_gt\.json.*line"),
        ("scene_gt.json", lambda t: t.replace("cam_t_m2c", "t", 1), r"gt\.json, key 0\[0\].*cam_t_m2c is missing"),
        ("scene_gt.json", lambda t: json.dumps({"0": [{"cam_R_m2c": [1] * 9, "cam_t_m2c": [0] * 3, "obj_id": 4}] * 2}),
         r"key 0\[0\].*no rotation"),
        ("scene_camera.json", lambda t: t.replace("cam_K", "K", 1), r"scene_camera\.json, key 0: cam_K is missing"),
        ("scene_camera.json", lambda t: t.replace("60.0", '"x"', 1), r"scene_camera\.json, key 0: cam_K should be 9"),
        ("scene_gt_info.json", lambda t: json.dumps({"0": []}), r"scene_gt_info\.json, key 0"),
        ("../../models/models_info.json", lambda t: t.replace("diameter", "d"), r"models_info\.json, key 4: diameter"),
        ("../../test_targets_bop19.json", lambda t: '[{"im_id": 3}]', r"test_targets_bop19.*scene_id"),
    ],
)  # fmt: skip
def test_broken_files_are_named_with_the_key(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator, name: str, change, said: str
) -> None:
    write_set(tmp_path, brick, rng, 1)
    path = tmp_path / "test" / "000007" / name
    path.write_text(change(path.read_text() if path.exists() else ""))
    with pytest.raises(ValueError, match=said):
        read_bop(tmp_path)


def test_a_broken_picture_is_skipped_and_named(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path, brick, rng)
    broken = tmp_path / "test" / "000007" / "rgb" / "000001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert [frame.im_id for frame, _, _ in read_bop(tmp_path).pictures()] == [0, 2]
    assert "000001.png" in caplog.text


def test_rounded_rotations_are_made_rotations(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator
) -> None:
    poses = write_set(tmp_path, brick, rng, 1)
    path = tmp_path / "test" / "000007" / "scene_gt.json"
    table = json.loads(path.read_text())
    for entry in table["0"]:
        entry["cam_R_m2c"] = np.round(entry["cam_R_m2c"], 2).tolist()
    path.write_text(json.dumps(table))
    R = read_bop(tmp_path).frames[0].instances[0].pose.R
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(R, poses[0].R[0], atol=0.02)


def test_continuous_symmetries_are_cut_into_steps() -> None:
    flip = np.diag([1.0, -1, -1, 1])
    info = {
        "symmetries_discrete": [flip.ravel().tolist()],
        "symmetries_continuous": [{"axis": [0, 0, 2], "offset": [10, 0, 0]}],
    }
    found = bop_symmetries(info)
    assert found.shape == (630, 4, 4)
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-12)
    on_axis = np.array([0.01, 0, 0.3, 1])
    np.testing.assert_allclose(found[:315] @ on_axis, np.tile(on_axis, (315, 1)), atol=1e-12)
    with pytest.raises(ValueError, match="axis"):
        bop_symmetries({"symmetries_continuous": [{"axis": [0, 0, 1]}]})


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"symmetries_discrete": None, "symmetries_continuous": None}, None),
        ({"symmetries_discrete": 5}, "x: symmetries_discrete should be a list"),
        ({"symmetries_continuous": [[0, 0, 1]]}, "x: symmetries_continuous needs an axis"),
        ({"symmetries_continuous": [{"axis": None}]}, "x: symmetries_continuous needs an axis"),
    ],
)
def test_symmetries_that_are_none(info: dict[str, Any], said: str | None) -> None:
    if said is None:
        np.testing.assert_array_equal(bop_symmetries(info, "x"), np.eye(4)[None])
        return
    with pytest.raises(ValueError, match=said):
        bop_symmetries(info, "x")


def test_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split"):
        read_bop(tmp_path)
    with pytest.raises(ValueError, match="folder of a BOP"):
        read_bop(tmp_path / "absent")


def test_results_round_trip_in_the_challenges_format(tmp_path: Path, rng: np.random.Generator) -> None:
    poses = random_poses(rng, 2)
    results = [BopResult(2, 3, 5, 0.5, poses[0], 0.25), BopResult(2, 3, 5, 0.25, poses[1], 0.25)]
    path = write_results(tmp_path / "name_lmo-test.csv", results)
    lines = path.read_text().splitlines()
    assert lines[0] == "scene_id,im_id,obj_id,score,R,t,time"
    columns = lines[1].split(",")
    assert columns[:4] == ["2", "3", "5", "0.5"]
    np.testing.assert_allclose([float(v) for v in columns[4].split(" ")], poses.R[0].ravel())
    np.testing.assert_allclose([float(v) for v in columns[5].split(" ")], 1000 * poses.t[0])
    for read, written in zip(read_results(path), results, strict=True):
        assert (read.scene_id, read.im_id, read.obj_id, read.score, read.time) == (
            written.scene_id, written.im_id, written.obj_id, written.score, written.time,
        )  # fmt: skip
        np.testing.assert_allclose(read.pose.matrix, written.pose.matrix, atol=1e-12)


def test_results_that_the_challenge_refuses(tmp_path: Path, rng: np.random.Generator) -> None:
    pose = random_poses(rng, 1)[0]
    with pytest.raises(ValueError, match="time must be equal"):
        write_results(
            tmp_path / "a.csv", [BopResult(1, 1, 1, 1, pose, 0.1), BopResult(1, 1, 2, 1, pose, 0.2)]
        )
    with pytest.raises(ValueError, match="not finite"):
        write_results(tmp_path / "a.csv", [BopResult(1, 1, 1, 1, Pose(pose.R * np.nan, pose.t))])
    assert not (tmp_path / "a.csv").exists()
    (tmp_path / "b.csv").write_text("scene_id,im_id,obj_id,score,R,t,time\n1,2,3,0.5,1 0 0,0 0 1,-1\n")
    with pytest.raises(ValueError, match=r"b\.csv, line 2: expected 9"):
        read_results(tmp_path / "b.csv")


def test_lmo_is_read(rng: np.random.Generator) -> None:
    dataset = read_bop(data_path("lmo"))
    assert (dataset.split, len(dataset.frames)) == ("test", 100)
    assert sorted(dataset.objects) == [1, 5, 9, 10, 12]
    assert [k for k, o in dataset.objects.items() if o.symmetric] == [10]
    off = []
    for frame in dataset.frames[::9]:
        image, camera = frame.load()
        assert image.shape == (480, 640, 3)
        for instance in frame.instances:
            np.testing.assert_allclose(np.linalg.det(instance.pose.R), 1, atol=1e-12)
            points = instance.pose.apply(dataset.objects[instance.obj_id].points)
            px = camera.project(points)
            off.append(np.abs(np.concatenate([px.min(0), px.max(0)]) - instance.box).max())
    assert np.median(off) < 3  # the set's own boxes are those of its masks, in whole pixels


@pytest.mark.parametrize("size_wh", [(128, 128), (96, 64), (33, 500), (1, 1)])
def test_backgrounds_depend_on_the_generator_alone(size_wh: tuple[int, int]) -> None:
    first, again = (background(np.random.default_rng(5), size_wh) for _ in range(2))
    assert first.shape == (size_wh[1], size_wh[0], 3)
    assert first.dtype == np.uint8
    assert (first == again).all()


def test_backgrounds_differ_in_brightness_colour_and_detail() -> None:
    generator = np.random.default_rng(2)
    pictures = np.stack([background(generator, (64, 64)) for _ in range(60)]).astype(float)
    means = pictures.mean((1, 2, 3))
    assert means.std() > 25
    assert 70 < means.mean() < 185
    detail = np.abs(np.diff(pictures.mean(-1), axis=1)).mean((1, 2))
    assert np.percentile(detail, 90) > 5 * np.percentile(detail, 10)
    with pytest.raises(ValueError, match="size_wh"):
        background(generator, (0, 5))


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture"):
        BackgroundFolder(tmp_path)
    Image.fromarray(np.full((40, 80, 3), (200, 0, 0), np.uint8)).save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    folder = BackgroundFolder(tmp_path)
    generator = np.random.default_rng(0)
    pictures = [folder(generator, (32, 24)) for _ in range(12)]
    assert {p.shape for p in pictures} == {(24, 32, 3)}
    assert any(p[..., 0].min() > p[..., 1:].max() + 50 for p in pictures)
    assert folder.broken == {str(tmp_path / "broken.jpg")}


def test_distractors_are_small_closed_indexed_meshes() -> None:
    generator = np.random.default_rng(3)
    for _ in range(40):
        vertices, faces, colors = distractor(generator)
        assert 12 <= len(faces) <= 500
        assert faces.min() >= 0
        assert faces.max() < len(vertices) == len(colors)
        assert np.linalg.norm(vertices, axis=-1).max() <= 0.5 + 1e-9
        assert np.isfinite(vertices).all()
        assert ((colors >= 0) & (colors <= 1)).all()
    first, again = (distractor(np.random.default_rng(9)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_a_distractor_wears_the_paint_it_is_given() -> None:
    paint = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.1]], np.float32)
    for seed in range(10):
        plain, painted = (
            distractor(np.random.default_rng(seed)),
            distractor(np.random.default_rng(seed), paint),
        )
        np.testing.assert_array_equal(plain[0], painted[0])
        assert {tuple(row) for row in painted[2]} <= {tuple(row) for row in paint}
        assert not (plain[2] == painted[2]).all()


def test_grey_levels_of_sixteen_bits_are_those_that_estimates_see(
    tmp_path: Path, brick: CadModel, rng: np.random.Generator
) -> None:
    """A dark photograph stays dark: nothing is stretched to the picture's own range."""
    write_set(tmp_path, brick, rng, 1)
    path = tmp_path / "test/000007/rgb/000000.png"
    levels = np.full((48, 64), 9000, np.uint16)
    levels[:10] = 30000
    Image.fromarray(levels).save(path)
    image, _ = read_bop(tmp_path).frames[0].load()
    np.testing.assert_array_equal(image, load_image(path)[0])
    assert image.min() == 9000 * 255 // 65535
