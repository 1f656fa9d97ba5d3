"""The Cambridge Landmarks layout: lists, pictures and their preparation, points, retrieval, and the built courtyard."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from geopose.data.cambridge import (
    CambridgeDataset,
    Views,
    mean_picture,
    prepared,
    read_cambridge,
    read_picture,
    read_pictures,
    read_points,
    retrieve,
    write_cambridge,
    write_points,
)
from geopose.data.courtyard import (
    FOV_DEG,
    look_along,
    photograph,
    plan_view,
    random_weather,
    walk,
    write_courtyard,
)
from geopose.data.courtyard_site import COURT, Place, build_courtyard
from geopose.geometry.camera import Camera
from geopose.nets.posenet import PoseNet

HEAD = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
ROW = "seq7/frame00039.png -13.182436 -18.442966 1.724784 0.678307 0.569025 -0.308146 0.348075\n"


def _list(root: Path, text: str, split: str = "train") -> Path:
    (root / f"dataset_{split}.txt").write_text(text)
    return root


# Lists


def test_a_row_of_kings_college(tmp_path: Path) -> None:
    other = (
        "seq1/frame00001.png   25.317314\t-0.228082  54.493720   0.374564 0.002123 0.915022 -0.149782 \n\n"
    )
    views = read_cambridge(_list(tmp_path, HEAD + ROW + other))
    assert views.names == ("seq7/frame00039.png", "seq1/frame00001.png")
    np.testing.assert_array_equal(views.xyz[0], [-13.182436, -18.442966, 1.724784])
    R = Rotation.from_quat([0.678307, 0.569025, -0.308146, 0.348075], scalar_first=True).as_matrix()
    pose = views.cam_from_world
    np.testing.assert_allclose(pose.R[0], R, atol=1e-12)
    np.testing.assert_allclose(pose.t[0], -R @ views.xyz[0], atol=1e-12)
    np.testing.assert_allclose(
        pose.apply(views.xyz[:, None])[:, 0], 0, atol=1e-9
    )  # centres are where cameras are


def test_windows_line_ends_and_another_split(tmp_path: Path) -> None:
    views = read_cambridge(_list(tmp_path, (HEAD + ROW).replace("\n", "\r\n"), "test"), "test")
    assert len(views) == 1


def test_quaternions_are_normalised_and_keep_their_rotation(tmp_path: Path) -> None:
    views = read_cambridge(_list(tmp_path, HEAD + "a.png 0 0 0 -2 0 -2 0\n" + "b.png 0 0 0 0.0 3 0 4\n"))
    np.testing.assert_allclose(views.wpqr, [[np.sqrt(0.5), 0, np.sqrt(0.5), 0], [0, 0.6, 0, 0.8]])
    want = Rotation.from_quat([[-2, 0, -2, 0], [0, 3, 0, 4]], scalar_first=True).as_matrix()
    np.testing.assert_allclose(views.cam_from_world.R, want, atol=1e-12)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("seq1/frame00002.png 1 2 3 1 0 0", "7 finite numbers"),
        ("seq1/frame00002.png 1 2 3 1 0 0 0 9", "7 finite numbers"),
        ("seq1/frame00002.png 1 2 x 1 0 0 0", "'seq1/frame00002.png 1 2 x 1 0 0 0'"),
        ("seq1/frame00002.png 1 2 nan 1 0 0 0", "finite"),
        ("seq1/frame00002.png", "7 finite numbers"),
        ("seq1/frame00002.png 1 2 3 0 0 0 0", "quaternion of zeros"),
        ("../../etc/passwd 1 2 3 1 0 0 0", "outside"),
        ("/etc/passwd 1 2 3 1 0 0 0", "outside"),
    ],
)
def test_broken_rows_are_named_by_file_and_line(row: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"dataset_train.txt:5: .*{found}"):
        read_cambridge(_list(tmp_path, HEAD + ROW + row + "\n"))


def test_other_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_test\.txt"):
        read_cambridge(tmp_path, "test")
    for text, found in (
        ("", "dataset_train.txt:1: expected 'Visual"),
        (HEAD, "no pictures"),
        (ROW, "txt:1: expected"),
    ):
        with pytest.raises(ValueError, match=found):
            read_cambridge(_list(tmp_path, text))


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    quat = Rotation.random(20, rng=rng).as_quat(canonical=True, scalar_first=True)
    views = Views(tmp_path, tuple(f"seq1/{i}.png" for i in range(20)), rng.uniform(-50, 50, (20, 3)), quat)
    path = write_cambridge(views, "test")
    lines = path.read_text().splitlines()
    assert lines[:3] == HEAD.splitlines()
    assert lines[3].split(" ") == ["seq1/0.png", *(f"{v:.6f}" for v in (*views.xyz[0], *quat[0]))]
    again = read_cambridge(tmp_path, "test")
    assert again.names == views.names
    np.testing.assert_allclose(again.xyz, views.xyz, atol=6e-7)
    np.testing.assert_allclose(again.wpqr, views.wpqr, atol=2e-6)
    rebuilt = Views.from_poses(tmp_path, views.names, views.cam_from_world)
    np.testing.assert_allclose(rebuilt.xyz, views.xyz, atol=1e-9)
    np.testing.assert_allclose(rebuilt.wpqr, views.wpqr, atol=1e-9)
    chosen = views[np.arange(20) % 2 == 1]
    assert chosen.names == views.names[1::2]
    np.testing.assert_array_equal(chosen.xyz, views.xyz[1::2])


# Pictures


def _scene(
    root: Path, rng: np.random.Generator, count: int = 3, size_wh: tuple[int, int] = (60, 40)
) -> Views:
    names = tuple(f"seq1/{i}.png" for i in range(count))
    (root / "seq1").mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)).save(root / name)
    quat = Rotation.random(count, rng=rng).as_quat(canonical=True, scalar_first=True)
    return Views(root, names, rng.uniform(-5, 5, (count, 3)), quat)


def test_the_smaller_side_becomes_256(tmp_path: Path) -> None:
    """As the original: 1920x1080 to 455x256; here of a ramp, which shows which way is up."""
    ramp = np.zeros((1080, 1920, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 1920), np.linspace(0, 255, 1080)[:, None]
    Image.fromarray(ramp).save(tmp_path / "wide.png", compress_level=1)
    small = read_picture(tmp_path / "wide.png")
    assert small.shape == (256, 455, 3)
    assert small[128, 0, 0] < 3
    assert small[128, -1, 0] > 252
    assert small[0, 200, 1] < 3
    assert small[-1, 200, 1] > 252
    Image.fromarray(ramp.transpose(1, 0, 2)).save(tmp_path / "tall.png", compress_level=1)
    assert read_picture(tmp_path / "tall.png", 64).shape == (113, 64, 3)


def test_the_mean_picture(tmp_path: Path, rng: np.random.Generator) -> None:
    views = _scene(tmp_path, rng)
    pictures = read_pictures(views, 40)
    assert pictures.shape == (3, 40, 60, 3)
    raw = np.stack([cv2.imread(str(tmp_path / n))[..., ::-1] for n in views.names])
    np.testing.assert_array_equal(pictures, raw)  # nothing to resize
    np.testing.assert_allclose(mean_picture(pictures), raw.astype(float).mean(0), atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["seq1"]  # kept nowhere
    path = tmp_path / "cache" / "mean.npy"
    first = mean_picture(pictures, path)
    np.testing.assert_array_equal(np.load(path), first)
    np.testing.assert_array_equal(mean_picture(iter(()), path), first)  # not computed again
    with pytest.raises(ValueError, match="at least one"):
        mean_picture([])
    np.save(path, np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"mean.npy: float64 \(4, 4\)"):
        mean_picture(pictures, path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"mean.npy: not an array"):
        mean_picture(pictures, path)


def test_pictures_that_do_not_fit_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    views = _scene(tmp_path, rng)
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "seq1/2.png")
    with pytest.raises(ValueError, match=r"seq1/2.png: 80x40 pixels .*expected 60x40 as seq1/0.png"):
        read_pictures(views, 40)
    dataset = CambridgeDataset(views, np.zeros((40, 60, 3)), side=40, crop=30)
    with pytest.raises(ValueError, match=r"seq1/2.png: picture: got 80x40 pixels, expected 60x40"):
        dataset[2]
    (tmp_path / "seq1/1.png").write_bytes((tmp_path / "seq1/0.png").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"seq1/1.png: not a readable picture"):
        read_pictures(views, 40)
    (tmp_path / "seq1/0.png").unlink()
    with pytest.raises(ValueError, match=r"seq1/0.png: not a readable picture"):
        dataset[0]


def test_testing_takes_the_middle(tmp_path: Path, rng: np.random.Generator) -> None:
    views = _scene(tmp_path, rng)
    pictures = read_pictures(views, 40)
    mean = mean_picture(pictures)
    dataset = CambridgeDataset(views, mean, side=40, crop=30)
    assert len(dataset) == 3
    for i in range(3):
        item = dataset[i]
        want = (pictures[i].astype(np.float32) - mean)[5:35, 15:45].transpose(2, 0, 1)
        np.testing.assert_array_equal(item["image"], want)
        np.testing.assert_allclose(item["xyz"], views.xyz[i], rtol=1e-6)
        np.testing.assert_allclose(item["wpqr"], views.wpqr[i], rtol=1e-6)
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(ValueError, match="crop: got 41"):
        CambridgeDataset(views, mean, side=40, crop=41)
    with pytest.raises(ValueError, match="pictures: got 2"):
        CambridgeDataset(views, mean, side=40, crop=30, pictures=pictures[:2])


def test_what_reaches_the_first_layer_is_prepared_as_in_the_original(rng: np.random.Generator) -> None:
    """(picture - mean) / 255, then minus 0.5, over 0.5."""
    net = PoseNet(0.125, size=80).eval()
    seen: list[torch.Tensor] = []
    net.layers["conv1/7x7_s2"].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    picture, mean = rng.integers(0, 256, (90, 120, 3), np.uint8), rng.uniform(0, 255, (90, 120, 3))
    with torch.no_grad():
        net(torch.from_numpy(prepared(picture, mean, 80))[None] / 255)
    want = ((picture.astype(float) - mean)[5:85, 20:100] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(seen[0][0, :, 3:-3, 3:-3], want.transpose(2, 0, 1), atol=1e-5)


def test_training_crops_anywhere_and_repeats_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    """Pictures whose colour says where a pixel is, and whose blue says which picture it is."""
    views = _scene(tmp_path, rng)
    pictures = np.zeros((3, 40, 60, 3), np.uint8)
    pictures[..., 0], pictures[..., 1] = np.arange(60), np.arange(40)[:, None]
    pictures[..., 2] = np.arange(3)[:, None, None]

    def dataset(seed: int) -> CambridgeDataset:
        return CambridgeDataset(views, None, side=40, crop=30, seed=seed, pictures=pictures)

    items = [dataset(4)[i] for i in range(300)]
    shown = np.array([int(item["image"][2, 0, 0]) for item in items])
    corner = np.array([item["image"][:2, 0, 0] for item in items])
    for item, number in zip(items, shown, strict=True):
        np.testing.assert_allclose(item["xyz"], views.xyz[number], rtol=1e-6)
    assert (np.sort(shown.reshape(-1, 3), 1) == [0, 1, 2]).all()  # each view once in a turn
    assert len({tuple(turn) for turn in shown.reshape(-1, 3)}) == 6  # in any order
    assert set(corner[:, 0]) == set(range(31))  # x: all of 60 - 30 + 1 places
    assert set(corner[:, 1]) == set(range(11))  # y: all of 40 - 30 + 1
    again, other = dataset(4), dataset(5)
    assert all(np.array_equal(again[i]["image"], items[i]["image"]) for i in (0, 7, 299))
    assert any(not np.array_equal(other[i]["image"], items[i]["image"]) for i in range(5))
    assert len(again) > 10**9


# Points

NVM = """NVM_V3

3
seq1/0.jpg\t1670 1 0 0 0 0 0 0 0 0
seq1/1.jpg\t1670 1 0 0 0 1 0 0 0 0
elsewhere/2.jpg\t1670 1 0 0 0 1 0 0 0 0

3
1.5 2 -3 10 20 30 2 0 11 1.5 2.5 1 12 -3 4
4 5 6 10 20 30 1 2 1 0 0
7 8 9 1 2 3 2 2 1 0 0 1 5 0 0

0
"""


def test_points_that_a_view_shows(tmp_path: Path) -> None:
    views = Views(tmp_path, ("seq1/1.png", "seq1/0.png", "seq9/0.png"), np.zeros((3, 3)), np.eye(4)[:3])
    with pytest.raises(FileNotFoundError, match="reprojection"):
        read_points(views)
    (tmp_path / "reconstruction.nvm").write_text(NVM)
    first, second, none = read_points(views)
    np.testing.assert_array_equal(first, [[1.5, 2, -3], [7, 8, 9]])
    np.testing.assert_array_equal(second, [[1.5, 2, -3]])
    assert none.shape == (0, 3)
    pictures = np.zeros((3, 40, 60, 3), np.uint8)
    dataset = CambridgeDataset(views, None, side=40, crop=30, pictures=pictures, points=[first, second, none])
    assert {tuple(p) for p in dataset[0]["points"].tolist()} == {(1.5, 2, -3), (7, 8, 9)}
    assert dataset[2]["points"].shape == (64, 3)
    assert np.isnan(dataset[2]["points"]).all()
    cut = NVM[: NVM.index("12 -3 4")]
    for broken, line in ((NVM.replace("4 5 6", "4 x 6"), 10), (NVM.replace("_V3", "_V2"), 1), (cut, 9)):
        (tmp_path / "reconstruction.nvm").write_text(broken)
        with pytest.raises(ValueError, match=rf"reconstruction.nvm:{line}: "):
            read_points(views)


def test_points_written_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    quat = Rotation.random(4, rng=rng).as_quat(canonical=True, scalar_first=True)
    views = Views(tmp_path, tuple(f"s/{i}.png" for i in range(4)), rng.uniform(-5, 5, (4, 3)), quat)
    points, px = rng.uniform(-20, 20, (10, 3)), rng.uniform(-200, 200, (4, 10, 2))
    px[rng.random((4, 10)) < 0.5] = np.nan
    write_points(views, 400.0, points, px)
    for i, found in enumerate(read_points(views)):
        np.testing.assert_allclose(found, points[np.isfinite(px[i, :, 0])], atol=1e-5)


# Retrieval


def test_retrieval_finds_the_picture_again(courtyard: Place) -> None:
    """The same places a step aside, in another light and half the size."""
    camera, smaller = (Camera.from_fov(np.deg2rad(FOV_DEG), size) for size in ((192, 128), (96, 64)))
    hour, later = (random_weather(courtyard, np.random.default_rng(i)) for i in (1, 2))
    spots = [([12, -9, 1.6], [-1, 0.6, 0.1]), ([-14, 9, 1.6], [1, -0.7, 0]), ([0, -12, 1.6], [0, 1, 0.1])]

    def seen(camera: Camera, weather: object, aside: float) -> list[np.ndarray]:
        return [
            photograph(courtyard, camera, look_along(np.array(eye) + aside, np.array(way, float)), weather)[0]
            for eye, way in spots
        ]

    found = retrieve(seen(camera, hour, 0.0), seen(smaller, later, 0.4)[::-1])
    assert found.tolist() == [2, 1, 0]


# The courtyard


@pytest.fixture(scope="module")
def courtyard() -> Place:
    return build_courtyard()


def test_the_picture_shows_what_the_pose_says(courtyard: Place) -> None:
    """The red kiosk stands at (19.2, -12.3): its pixels, by OpenCV, are red; so they are after the list's journey."""
    camera = Camera.from_fov(np.deg2rad(FOV_DEG), (240, 135))
    weather = random_weather(courtyard, np.random.default_rng(3))
    rng = np.random.default_rng(0)
    for _ in range(6):
        eye = np.array([*rng.uniform([8, -8], [15, -2]), 1.6])
        ahead = np.array([19.2, -12.3, 1.4]) - eye + rng.normal(0, 1.0, 3)
        pose = look_along(eye, ahead, rng.normal(0, 0.1))
        views = Views.from_poses(".", ["a"], type(pose)(pose.R[None], pose.t[None]))
        R = Rotation.from_quat(views.wpqr[0], scalar_first=True).as_matrix()
        np.testing.assert_allclose(views.xyz[0], eye, atol=1e-9)
        px, _ = cv2.projectPoints(
            np.array([[19.2, -12.3, 1.4]]), cv2.Rodrigues(R)[0], -R @ eye, camera.K, None
        )
        x, y = np.rint(px.ravel()).astype(int)
        picture, depth = photograph(courtyard, camera, pose, weather)
        red, green, blue = picture[y, x].astype(float)
        assert red > 2.5 * max(green, blue), (x, y, picture[y, x])
        distance = (R @ (np.array([19.2, -12.3, 1.4]) - eye))[2]
        assert abs(depth[y, x] - distance) < 1.0
        up = picture[0, 0].astype(float), R[1] @ [0, 0, 1]
        assert up[1] < -0.9  # y points down


def test_walks_stay_in_the_court_and_look_around() -> None:
    for way in (1, -1):
        poses = walk(np.random.default_rng(5), 60, 0.75, way, 30.0)
        some = walk(np.random.default_rng(5), 6, 0.75, way, 30.0)  # the same way, fewer pictures
        assert all(np.array_equal(p.R, q.R) for p, q in zip(poses[::10], some, strict=True))
        centres = np.array([pose.inverse().t for pose in poses])
        assert (np.abs(centres[:, :2]) < COURT).all()
        assert (np.abs(centres[:, 2] - 1.6) < 0.15).all()
        assert np.linalg.norm(np.diff(centres, axis=0), axis=1).max() < 4.0
        turned = np.unwrap(np.arctan2(centres[:, 1], centres[:, 0]))
        assert way * (turned[-1] - turned[0]) > 5.5
        assert min(np.linalg.norm(centres[:, :2] - [0.5, 0.2], axis=1)) > 3.1  # not through the fountain


def test_a_written_walk(tmp_path: Path) -> None:
    root = write_courtyard(tmp_path / "a", (12, 4), size_wh=(96, 54))
    training, test = read_cambridge(root), read_cambridge(root, "test")
    assert len(training) == 12
    assert {name.split("/")[0] for name in training.names} == {"seq1", "seq3", "seq4", "seq5", "seq7", "seq8"}
    assert test.names == (
        "seq2/frame00001.png",
        "seq2/frame00002.png",
        "seq6/frame00001.png",
        "seq6/frame00002.png",
    )
    pictures = read_pictures(training, 54)
    assert pictures.shape == (12, 54, 96, 3)
    assert pictures.std(axis=(1, 2)).min() > 12  # something to see in each
    again = write_courtyard(tmp_path / "b", (12, 4), size_wh=(96, 54))
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert len(files) == 16 + 3
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)
    # the reconstruction's measurements are where OpenCV projects its points
    lines = (root / "reconstruction.nvm").read_text().splitlines()
    everything = {view.names[i]: view[i : i + 1] for view in (training, test) for i in range(len(view))}
    cameras = [line.split() for line in lines[3 : 3 + 16]]
    focal = 48 / np.tan(np.deg2rad(FOV_DEG) / 2)
    checked = 0
    for line in lines[21:-2][::40]:
        fields = [float(v) for v in line.split()]
        for k in range(int(fields[6])):
            camera, _, x, y = fields[7 + 4 * k : 11 + 4 * k]
            name, f = cameras[int(camera)][:2]
            assert float(f) == pytest.approx(focal)
            pose = everything[name].cam_from_world
            K = np.diag([focal, focal, 1.0])
            px, _ = cv2.projectPoints(np.array([fields[:3]]), cv2.Rodrigues(pose.R[0])[0], pose.t[0], K, None)
            np.testing.assert_allclose(px.ravel(), [x, y], atol=0.02)
            checked += 1
    assert checked > 50
    assert min(len(points) for points in read_points(training)) > 5
    with pytest.raises(ValueError, match="frames: got 1 test pictures, expected at least 2"):
        write_courtyard(tmp_path, (12, 1))


def test_the_plan_shows_the_court_from_above() -> None:
    picture, (left, right, low, high) = plan_view(pixels=200)
    assert picture.shape == (200, 200, 3)

    def at(x: float, y: float) -> np.ndarray:
        return picture[int((high - y) / (high - low) * 200), int((x - left) / (right - left) * 200)].astype(
            float
        )

    kiosk, lawn = at(19.2, -12.3), at(-8, 9)
    assert kiosk[0] > 2.5 * max(kiosk[1:])
    assert lawn[1] > 1.2 * max(lawn[0], lawn[2])
