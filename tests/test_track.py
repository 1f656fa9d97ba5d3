"""Poses through time: following, losing, finding again; videos in, overlays and tables out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from flights import xwing_frames
from PIL import Image

from geopose import cli
from geopose import video as video_module
from geopose.cad.model import CadModel
from geopose.cad.symmetry import Symmetries
from geopose.checkpoint import model_of
from geopose.data.sample import projected_box
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import rotation_error, translation_error
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, hat
from geopose.image import load_image
from geopose.result import PoseEstimate
from geopose.track import Tracker, TrackOptions
from geopose.video import COLUMNS, VIDEOS, open_footage, track_footage

CAMERA = Camera(500.0, 500.0, 159.5, 119.5, (320, 240))
BRICK = CadModel.from_trimesh(trimesh.creation.box((0.2, 0.1, 0.06)), "brick")
AT_CENTRE = np.diag(
    [4e-6, 4e-6, 1e-4, 1e-3, 1e-3, 1e-3]
)  # of the brick's place, m^2, and its rotation, rad^2
FRAME = np.zeros((240, 320, 3), np.uint8)


def flight(seconds: float) -> Pose:
    """A brick that drifts and turns."""
    R = exp_so3(np.array([0.4, 1.1, -0.6]) * seconds) @ exp_so3(np.array([1.0, 0.3, 0.2]))
    return Pose(R, np.array([-0.1, 0.02, 1.2]) + seconds * np.array([0.12, -0.03, 0.1]))


def covariance(pose: Pose) -> np.ndarray:
    """`AT_CENTRE` in the left tangent: a turn about the camera moves what is far from it."""
    A = np.eye(6)
    A[:3, 3:] = hat(np.asarray(pose.t))
    return A @ AT_CENTRE @ A.T


class Scripted:
    """An estimator that says what the script says of the time of each call; notes the boxes it was given."""

    model = BRICK
    symmetries = Symmetries.none()
    keypoints = np.asarray(BRICK.vertices)

    def __init__(self, script: Callable[[int], tuple[str, Pose | None]]) -> None:
        self.script, self.boxes = script, []

    def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
        status, pose = self.script(len(self.boxes))
        self.boxes.append(box)
        reasons = () if status == "ok" else ("because",)
        confidence = 0.9 if status == "ok" else 0.1
        cov = None if pose is None else covariance(pose)
        return PoseEstimate(
            pose, cov, status, reasons, confidence, {}, None, (), {"total": 0.01}, camera or CAMERA, BRICK
        )  # fmt: skip


def tracker(script: Callable[[int], tuple[str, Pose | None]], **options: Any) -> Tracker:
    return Tracker(Scripted(script), CAMERA, TrackOptions(**options))  # type: ignore[arg-type]


def ok(number: int) -> tuple[str, Pose | None]:
    return "ok", flight(number / 30)


def boxes_of(found: Tracker) -> list[Any]:
    return found.estimator.boxes  # type: ignore[attr-defined]


def test_the_prediction_aims_the_next_crop() -> None:
    track = tracker(ok)
    for number in range(12):
        found = track.update(FRAME)
        assert found.status == "ok"
        assert translation_error(found.pose, flight(number / 30)) < (5e-3 if number < 6 else 1e-3)
        assert rotation_error(found.pose, flight(number / 30)) < 0.03
    assert boxes_of(track)[0] is None
    assert track.searched == 1
    for number in (8, 11):
        box = projected_box(BRICK.vertices, flight(number / 30), CAMERA)
        np.testing.assert_allclose(boxes_of(track)[number], box, atol=2.0)


def test_the_filter_beats_single_frames_and_knows_by_how_much() -> None:
    rng = np.random.default_rng(3)
    truths = [flight(number / 30) for number in range(120)]
    measured = [Pose.exp(rng.multivariate_normal(np.zeros(6), covariance(t))) @ t for t in truths]
    track = tracker(lambda n: ("ok", measured[n]), alike=1.0, linear_noise=0.3, angular_noise=0.5)
    single, filtered, squared = [], [], []
    for number in range(120):
        found, truth = track.update(FRAME, number / 30), truths[number]
        if number >= 30:
            single.append(rotation_error(measured[number], truth))
            filtered.append(rotation_error(found.pose, truth))
            e = (truth @ found.pose.inverse()).log()
            squared.append(e @ np.linalg.solve(found.covariance, e))
    assert np.mean(filtered) < 0.75 * np.mean(single)
    assert 2 < np.mean(squared) < 8  # 6 would be exact; a steady flight is smoother than the model allows


def test_a_short_gap_is_bridged_and_a_long_one_is_a_loss() -> None:
    blind = set(range(10, 12)) | set(range(20, 30))
    calls: list[int] = []

    def script(_: int) -> tuple[str, Pose | None]:
        return ("not_found", None) if calls[-1] in blind else ("ok", flight(calls[-1] / 30))

    track = tracker(script, patience=3)
    found = []
    for number in range(36):
        calls.append(number)
        found.append(track.update(FRAME))
        assert track.lost == (22 <= number < 30)
    assert [f.status for f in found] == ["not_found" if n in blind else "ok" for n in range(36)]
    for number in (10, 11, 20, 21):
        assert found[number].reasons == ("because", "the pose is predicted from earlier frames")
        assert translation_error(found[number].pose, flight(number / 30)) < 0.02
    spread = [np.trace(found[n].covariance[:3, :3]) for n in (9, 10, 11)]
    assert spread[0] < spread[1] < spread[2]
    assert all(found[n].pose is None for n in range(22, 30))
    assert track.searched == 1 + 8 + 1  # at first, frames 22 to 29, and the one that finds it again


def test_a_pose_that_leaps_is_not_believed() -> None:
    flip = np.diag([-1.0, -1.0, 1.0])

    def script(call: int) -> tuple[str, Pose | None]:
        pose = flight(call / 30)
        return "ok", Pose(pose.R @ flip, pose.t) if call == 8 else pose

    track = tracker(script)
    found = [track.update(FRAME) for _ in range(12)]
    assert [f.status for f in found] == ["ok"] * 8 + ["no_consensus"] + ["ok"] * 3
    assert "leaps" in found[8].reasons[0]
    assert found[8].confidence == pytest.approx(0.1)
    assert rotation_error(found[8].pose, flight(8 / 30)) < 0.1


def test_a_pose_that_stays_elsewhere_is_believed_after_a_search() -> None:
    """What leapt was real: the object was moved."""

    def script(call: int) -> tuple[str, Pose | None]:
        pose = flight(call / 30)
        return "ok", pose if call < 8 else Pose(pose.R, pose.t + np.array([0.1, 0.0, 0.2]))

    track = tracker(script, patience=2)
    found = [track.update(FRAME) for _ in range(11)]
    assert [f.status for f in found] == ["ok"] * 8 + ["no_consensus"] + ["ok"] * 2
    assert track.searched == 2


def test_equal_looking_poses_are_one() -> None:
    turns = [np.eye(3), *(np.diag(d) for d in ([1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1]))]
    same = np.stack([np.vstack([np.hstack([t, np.zeros((3, 1))]), [0, 0, 0, 1]]) for t in turns])
    rng = np.random.default_rng(0)

    def script(call: int) -> tuple[str, Pose | None]:
        return "ok", flight(call / 30) @ Pose.from_matrix(same[rng.integers(4) if call else 0])

    estimator = Scripted(script)
    estimator.symmetries = Symmetries(same, ())
    track = Tracker(estimator, CAMERA)  # type: ignore[arg-type]
    for number in range(10):
        found = track.update(FRAME)
        assert found.status == "ok"
        assert rotation_error(found.pose, flight(number / 30)) < 0.05


def test_what_leaves_the_picture_is_searched_for() -> None:
    def script(call: int) -> tuple[str, Pose | None]:
        return "ok", Pose(np.eye(3), np.array([0.02 * call, 0.0, 0.8]))

    track = tracker(script)
    for _ in range(25):
        track.update(FRAME)
    left = next(n for n, box in enumerate(boxes_of(track)) if n and box is None)
    edge = projected_box(BRICK.vertices, script(left)[1], CAMERA)
    assert abs(edge[0] - 319) < 16  # 12.5 px a frame


def test_a_doubtful_focal_length_stays_doubtful() -> None:
    """Sixty frames do not average it away, and it does not lead the filter astray: all else is as if it were known."""
    depth, track = [], []
    for std in (0.0, 0.05, 0.3):
        track.append(Tracker(Scripted(ok), replace(CAMERA, focal_rel_std=std)))  # type: ignore[arg-type]
        found = [track[-1].update(FRAME) for _ in range(60)][-1]
        assert found.status == "ok"
        assert found.camera.focal_rel_std == std
        assert track[-1].searched == 1
        left = np.concatenate([np.eye(3), -np.cross(np.eye(3), found.pose.t)], 1)  # of the object's origin
        depth.append((left @ found.covariance @ left.T)[2, 2] / found.pose.t[2] ** 2)
    for std, squared in zip((0.05, 0.3), depth[1:], strict=True):
        assert np.sqrt(squared - depth[0]) == pytest.approx(std, rel=0.1)
    assert boxes_of(track[0]) is not boxes_of(track[2])
    np.testing.assert_array_equal(boxes_of(track[0])[1:], boxes_of(track[2])[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [("gate", 1.0), ("patience", 0), ("alike", 0.5), ("linear_noise", -1.0), ("frame_s", float("nan"))],
)
def test_options_that_cannot_be_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrackOptions(**{name: value})  # type: ignore[arg-type]


def test_time_must_pass() -> None:
    track = tracker(ok)
    track.update(FRAME, 1.0)
    for time in (1.0, float("nan")):
        with pytest.raises(ValueError, match="time"):
            track.update(FRAME, time)


@pytest.mark.parametrize("independent", [False, True])
def test_a_frame_that_cannot_be_takes_no_time(independent: bool) -> None:
    track = tracker(ok, independent=independent)
    track.update(FRAME, 0.0)
    with pytest.raises(ValueError, match="320x240, got one of 320x10"):
        track.update(FRAME[:10], 1 / 30)
    assert track.update(FRAME, 1 / 30).status == "ok"  # the same time once more, with the right picture


# footage


def write_frames(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        picture = np.full((240, 320, 3), 40 + 10 * number, np.uint8)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder


def rows_in(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count_frames(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_folder_becomes_a_video_and_a_table(tmp_path: Path, suffix: str) -> None:
    folder = write_frames(tmp_path / "frames")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:60])
    Image.fromarray(FRAME[:100]).save(folder / "004.png")
    footage = open_footage(folder, fps=10.0)
    assert (footage.count, footage.size_wh) == (6, (320, 240))
    out, table = tmp_path / f"deep/o{suffix}", tmp_path / "t.csv"
    track = tracker(ok)
    tracked = track_footage(track, footage, out, table)
    assert (tracked.frames, tracked.ok, tracked.unreadable, tracked.interrupted) == (4, 4, 2, False)
    assert "2 pictures could not be read" in str(tracked)
    assert count_frames(out) == 4
    rows = rows_in(table)
    assert tuple(rows[0]) == COLUMNS
    assert [float(r["time_s"]) for r in rows] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [r["status"] for r in rows] == ["ok", "ok", "unreadable", "ok", "unreadable", "ok"]
    assert "002.png" in rows[2]["reason"]
    assert [r["picture"] for r in rows] == [f"{number:03d}.png" for number in range(6)]
    assert "320x100" in rows[4]["reason"]
    pose = Pose.from_quat_wxyz(
        np.array([float(rows[0][k]) for k in ("qw", "qx", "qy", "qz")]),
        np.array([float(rows[0][k]) for k in ("x_m", "y_m", "z_m")]),
    )
    np.testing.assert_allclose(pose.matrix, flight(0.0).matrix, atol=1e-7)
    np.testing.assert_allclose(float(rows[0]["cov_22"]), covariance(flight(0.0))[2, 2], rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "frames", "t.csv"]

    again = open_footage(out)
    assert again.fps == pytest.approx(10.0)
    pictures = list(again.frames)
    assert [f.time for f in pictures] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.02)
    assert (np.diff([f.picture[5, -5].mean() for f in pictures]) > 5).all()  # type: ignore[index]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    def script(call: int) -> tuple[str, Pose | None]:
        if call == 3:
            raise KeyboardInterrupt
        return ok(call)

    footage = open_footage(write_frames(tmp_path / "frames"))
    tracked = track_footage(tracker(script), footage, tmp_path / "o.mp4", tmp_path / "t.csv")
    assert tracked.interrupted
    assert tracked.frames == 3
    assert count_frames(tmp_path / "o.mp4") == 3
    assert len(rows_in(tmp_path / "t.csv")) == 3


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def script(call: int) -> tuple[str, Pose | None]:
        if call == 3:
            raise OSError("No space left on device")
        return ok(call)

    footage = open_footage(write_frames(tmp_path / "frames"))
    with pytest.raises(OSError, match="No space"):
        track_footage(tracker(script), footage, tmp_path / "o.mp4", tmp_path / "t.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]


class SlowCamera:
    """A camera whose driver queues frames: each grab or read takes the oldest."""

    def __init__(self, _: int) -> None:
        self.taken = 0

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 25.0

    def grab(self) -> bool:
        self.taken += 1
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        self.taken += 1
        return self.taken < 20, np.full((240, 320, 3), self.taken, np.uint8)

    def release(self) -> None:
        pass


@pytest.mark.parametrize("every_frame", [False, True])
def test_a_camera_shows_what_is_new(monkeypatch: pytest.MonkeyPatch, every_frame: bool) -> None:
    clock = iter(
        0.1 * n for n in range(100)
    )  # every look at the clock is 0.1 s later: a frame takes that long
    monkeypatch.setattr(video_module.cv2, "VideoCapture", SlowCamera)
    monkeypatch.setattr(video_module.time, "monotonic", lambda: next(clock))
    footage = open_footage("0", every_frame=every_frame)
    frames = list(footage.frames)
    assert footage.count is None
    shown = [int(f.picture[0, 0, 0]) for f in frames]  # type: ignore[index]
    assert shown == (list(range(1, 20)) if every_frame else [1, 4, 7, 10, 13, 16, 19])
    assert [f.dropped for f in frames[1:]] == [0 if every_frame else 2] * (len(frames) - 1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.mp4", "missing.mp4"),
        ("empty", "no pictures"),
        ("text.mp4", "not a video"),
        ("broken", "a.png"),
    ],
)
def test_what_is_no_footage_is_named(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_text("nothing")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_footage(tmp_path / source)


@pytest.mark.parametrize("name", ["o.nonsense", "o.gif", "o.webp", "o.png"])
def test_a_format_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    footage = open_footage(write_frames(tmp_path / "frames", 2))
    with pytest.raises(ValueError, match=rf"{name}.*\.mp4"):
        track_footage(tracker(ok), footage, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]


@pytest.mark.parametrize("suffix", VIDEOS)
def test_formats_that_can_be_written_are_read_again(tmp_path: Path, suffix: str) -> None:
    footage = open_footage(write_frames(tmp_path / "frames", 3))
    track_footage(tracker(ok), footage, tmp_path / f"o{suffix}")
    assert count_frames(tmp_path / f"o{suffix}") == 3


def test_pictures_of_a_folder_follow_by_number(tmp_path: Path) -> None:
    for number in (0, 1, 2, 9, 10, 11, 100):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(tmp_path / f"take2_{number}.png")
    shown = [int(f.picture[0, 0, 0]) for f in open_footage(tmp_path).frames]  # type: ignore[index]
    assert shown == [0, 1, 2, 9, 10, 11, 100]


def test_the_focal_length_of_a_folder_is_that_of_its_exif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35
    folder = write_frames(tmp_path / "frames", 2)
    for path in list(folder.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    first = next(iter(sorted(folder.iterdir())))
    expected = load_image(first)[1]
    assert expected is not None
    assert open_footage(folder).camera.fx == expected.fx  # type: ignore[union-attr]

    class Seeing(Scripted):
        def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
            assert camera is not None
            assert camera.fx == expected.fx
            return super().estimate(img, camera, box)

    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None: Seeing(ok))
    assert cli.main(["track", str(folder), "--model", "m"]) == 0
    assert "from EXIF" in capsys.readouterr().out


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Scripted] = []

    def load(path: str, device: str | None = None) -> Scripted:
        loaded.append(Scripted(ok))
        return loaded[-1]

    monkeypatch.setattr(PoseEstimator, "load", load)
    folder = write_frames(tmp_path / "frames")
    words = ["track", str(folder), "--model", "m", "--fov", "35", "--csv", str(tmp_path / "t.csv")]
    assert cli.main([*words, "--out", str(tmp_path / "o.mp4"), "--json", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "6 frames: a pose to be trusted in 6 (100 %), the whole picture searched in 1" in out
    assert "frames/s" in out
    assert json.loads((tmp_path / "r.json").read_text())["frames"] == 6
    assert loaded[0].boxes[1] is not None
    assert cli.main([*words, "--independent"]) == 0
    assert loaded[1].boxes == [None] * 6
    monkeypatch.setattr(
        PoseEstimator, "load", lambda path, device=None: Scripted(lambda n: ("not_found", None))
    )
    assert cli.main(words) == 3


# with the networks


@pytest.fixture(scope="module")
def flown() -> tuple[Camera, list[Pose], list[np.ndarray]]:
    return xwing_frames(range(40, 47))


def test_the_xwing_is_followed(flown: tuple[Camera, list[Pose], list[np.ndarray]]) -> None:
    camera, truths, pictures = flown
    estimator = PoseEstimator.load(model_of("xwing"))
    track = Tracker(estimator, camera)
    for truth, picture in zip(truths, pictures, strict=True):
        found = track.update(picture)
        assert found.status == "ok"
        assert rotation_error(found.pose, truth) < np.deg2rad(6)
        assert translation_error(found.pose, truth) < 0.05 * truth.t[2]
    assert track.searched == 1
    guessing = Tracker(estimator)  # a video has no EXIF
    assert [guessing.update(picture).status for picture in pictures[:4]] == ["ok"] * 4
    assert guessing.searched == 1
    alone = Tracker(estimator, camera, TrackOptions(independent=True))
    alone.update(pictures[0])
    one, two = alone.update(pictures[1], 0.5), estimator.estimate(pictures[1], camera)
    np.testing.assert_array_equal(one.pose.matrix, two.pose.matrix)
    np.testing.assert_array_equal(one.covariance, two.covariance)
    assert (one.status, one.reasons, one.confidence) == (two.status, two.reasons, two.confidence)
