"""Moving pictures in (a video file, a camera, a folder of pictures), and tracked ones out (overlay video, CSV)."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.geometry.camera import Camera
from geopose.image import load_image
from geopose.result import PoseEstimate
from geopose.track import Tracker

Picture = NDArray[np.uint8]

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi")  # that can be written
_FPS = 30.0  # of a folder, and of a source that does not say
_UPPER = np.triu_indices(6)
COLUMNS = (
    "frame", "time_s", "status", "confidence", "x_m", "y_m", "z_m", "qw", "qx", "qy", "qz",
    *(f"cov_{i}{j}" for i, j in zip(*_UPPER, strict=True)), "reason", "picture",
)  # fmt: skip
"""Of the CSV. The pose is cam_from_obj; cov_ij is the upper triangle of its covariance in the order (rho, phi), metres
and radians, left tangent; picture is the name of the file, of a folder's."""


@dataclass(frozen=True)
class Frame:
    """One picture, when it was taken (seconds), and how many were dropped before it; `problem` if it cannot be read;
    the camera of its EXIF data, and the name of its file in a folder."""

    number: int
    time: float
    picture: Picture | None
    dropped: int = 0
    problem: str = ""
    camera: Camera | None = None
    name: str = ""


@dataclass(frozen=True)
class Footage:
    """Frames of a source, all of one size, their rate, how many they are (None: nobody knows), and the camera that
    the EXIF data of the first one tell of (None: they do not; only a folder's may)."""

    frames: Iterator[Frame]
    fps: float
    count: int | None
    size_wh: tuple[int, int]
    camera: Camera | None = None


@dataclass(frozen=True)
class Tracked:
    """What became of a video.

    frames: that were read; ok: with a pose to be trusted; searched: looked at as a whole; unreadable: skipped;
    dropped: of a camera, while another was worked on; seconds: the estimates alone; interrupted: whether the user ended
    it; files: written.
    """

    frames: int
    ok: int
    searched: int
    unreadable: int
    dropped: int
    seconds: float
    seconds_in_all: float
    interrupted: bool
    files: tuple[Path, ...]

    def __str__(self) -> str:
        many = max(self.frames, 1)
        lines = [
            f"{self.frames} frames: a pose to be trusted in {self.ok} ({100 * self.ok / many:.0f} %), "
            f"the whole picture searched in {self.searched}",
            f"{many / max(self.seconds, 1e-9):.1f} frames/s for the poses, "
            f"{many / max(self.seconds_in_all, 1e-9):.1f} with reading, drawing and writing",
        ]
        if self.unreadable:
            lines.append(f"{self.unreadable} pictures could not be read and were skipped; the CSV says why")
        if self.dropped:
            lines.append(f"{self.dropped} frames of the camera passed while others were worked on")
        if self.interrupted:
            lines.append("interrupted; what was done is kept")
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


def open_footage(source: str | Path, fps: float | None = None, every_frame: bool = False) -> Footage:
    """The Footage of a video file, a folder of pictures, or a camera's number.

    Args:
        source: the pictures of a folder are taken by name, 2 before 10.
        fps: frames per second; None: what the file says, else 30. every_frame: of a camera, also the frames that it
            took while another was worked on; a file's are never dropped.
    Raises:
        FileNotFoundError, ValueError: where there is nothing to be read, naming the source.
    """
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps: expected a positive number, got {fps}")
    path = Path(source)
    if path.is_dir():
        known = Image.registered_extensions()
        there = (p for p in path.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
        files = sorted(
            there, key=lambda p: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", p.name)]
        )
        if not files:
            raise ValueError(f"source: no pictures in the folder {str(path)!r}")
        return _footage(_of_folder(files, fps or _FPS), fps or _FPS, len(files), source)
    live = str(source).isdigit() and not path.exists()
    if not live and not path.is_file():
        raise FileNotFoundError(f"source: no such video, folder or camera {str(source)!r}")
    capture = cv2.VideoCapture(int(str(source))) if live else cv2.VideoCapture(str(path))
    if not capture.isOpened():
        what = f"no camera number {source}" if live else f"{str(path)!r} is not a video that OpenCV can read"
        raise ValueError(f"source: {what}")
    said = capture.get(cv2.CAP_PROP_FPS)
    rate = fps or (said if 1 <= said <= 1000 else _FPS)
    if live:
        return _footage(_of_camera(capture, rate, every_frame), rate, None, source)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return _footage(_of_video(capture, rate, fps is None), rate, count if count > 0 else None, source)


def _footage(frames: Iterator[Frame], fps: float, count: int | None, source: str | Path) -> Footage:
    """The Footage with its size, that of the first frame that can be read; frames of another size are a problem."""
    begun: list[Frame] = []
    for frame in frames:
        begun.append(frame)
        if frame.picture is not None:
            height, width = frame.picture.shape[:2]
            checked = (_of_size(f, (width, height)) for f in chain(begun, frames))
            return Footage(checked, fps, count, (width, height), frame.camera)
    why = f"; the first: {begun[0].problem}" if begun else ""
    raise ValueError(f"source: not one frame of {str(source)!r} can be read{why}")


def _of_size(frame: Frame, size_wh: tuple[int, int]) -> Frame:
    if frame.picture is None or frame.picture.shape[:2] == size_wh[::-1]:
        return frame
    height, width = frame.picture.shape[:2]
    problem = f"is {width}x{height}, the first picture {size_wh[0]}x{size_wh[1]}"
    return replace(frame, picture=None, problem=problem)


def _of_folder(files: list[Path], fps: float) -> Iterator[Frame]:
    for number, path in enumerate(files):
        try:
            picture, camera = load_image(path)
            yield Frame(number, number / fps, picture, camera=camera, name=path.name)
        except (ValueError, OSError) as error:
            yield Frame(number, number / fps, None, problem=str(error), name=path.name)


def _of_video(capture: cv2.VideoCapture, fps: float, its_times: bool) -> Iterator[Frame]:
    """its_times: the file's own times, where they rise; a phone's frames come at uneven times."""
    number, last = 0, -np.inf
    try:
        while True:
            good, picture = capture.read()
            if not good:
                return
            said = 1e-3 * capture.get(cv2.CAP_PROP_POS_MSEC)
            now = said if its_times and said > last and said > 0 else max(number / fps, last + 0.5 / fps)
            yield Frame(number, now, _rgb(picture))
            number, last = number + 1, now
    finally:
        capture.release()


def _rgb(picture: NDArray[Any]) -> Picture:
    return np.ascontiguousarray(picture[..., ::-1], np.uint8)


def _of_camera(capture: cv2.VideoCapture, fps: float, every_frame: bool) -> Iterator[Frame]:
    number, begun, busy = 0, time.monotonic(), 0.0
    try:
        while True:
            dropped = 0 if every_frame else int(busy * fps)
            for _ in range(dropped):  # they wait in the driver, and are old
                capture.grab()
            good, picture = capture.read()
            if not good:
                return
            got = time.monotonic()
            yield Frame(number, got - begun, _rgb(picture), dropped)
            busy, number = time.monotonic() - got, number + 1
    finally:
        capture.release()


def track_footage(
    tracker: Tracker,
    footage: Footage,
    out: str | Path | None = None,
    table: str | Path | None = None,
    progress: bool = False,
) -> Tracked:
    """What became of the footage; writes an overlay video `out` and a CSV `table` (see `COLUMNS`), if asked for.

    Ctrl-C ends it: files appear with all that was done. After an error no file appears.

    Raises:
        ValueError: when `out` has no format that can be written.
    """
    counts = {"frames": 0, "ok": 0, "unreadable": 0, "dropped": 0}
    seconds, begun, interrupted = 0.0, time.perf_counter(), False
    with ExitStack() as stack:
        rows = csv.writer(stack.enter_context(_text(table))) if table is not None else None
        if rows is not None:
            rows.writerow(COLUMNS)
        video = stack.enter_context(_video(out, footage.fps, footage.size_wh)) if out is not None else None
        bar = stack.enter_context(tqdm(total=footage.count, disable=not progress, unit="frame"))
        try:
            for frame in footage.frames:
                counts["dropped"] += frame.dropped
                estimate = None
                if frame.picture is None:
                    counts["unreadable"] += 1
                else:
                    clock = time.perf_counter()
                    estimate = tracker.update(frame.picture, frame.time)
                    seconds += time.perf_counter() - clock
                    counts["frames"] += 1
                    counts["ok"] += estimate.status == "ok"
                if rows is not None:
                    rows.writerow(row_of(frame, estimate))
                if video is not None and estimate is not None:
                    shown = cv2.cvtColor(estimate.overlay(frame.picture), cv2.COLOR_RGB2BGR)
                    for _ in range(1 + frame.dropped):
                        video.write(shown)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    files = [Path(p) for p in (out, table) if p is not None]
    return Tracked(
        searched=tracker.searched, seconds=seconds, seconds_in_all=time.perf_counter() - begun,
        interrupted=interrupted, files=tuple(files), **counts,
    )  # fmt: skip


def row_of(frame: Frame, estimate: PoseEstimate | None) -> list[Any]:
    """The frame's line of the CSV, in the order of `COLUMNS`; numbers that are not known are empty."""
    head = [frame.number, f"{frame.time:.6f}"]
    if estimate is None:
        return [*head, "unreadable", *[""] * (len(COLUMNS) - 5), frame.problem, frame.name]
    numbers = [""] * (7 + len(_UPPER[0]))
    if estimate.pose is not None:
        numbers[:3] = [f"{v:.9g}" for v in np.asarray(estimate.pose.t)]
        numbers[3:7] = [f"{v:.9g}" for v in np.asarray(estimate.pose.quat_wxyz)]
    if estimate.covariance is not None:
        numbers[7:] = [f"{v:.6g}" for v in np.asarray(estimate.covariance)[_UPPER]]
    return [
        *head,
        estimate.status,
        f"{estimate.confidence:.4f}",
        *numbers,
        "; ".join(estimate.reasons),
        frame.name,
    ]


@contextmanager
def _text(path: str | Path) -> Iterator[IO[str]]:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        yield file


@contextmanager
def _video(path: str | Path, fps: float, size_wh: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """A writer of a video that appears whole: MPEG-4 for .mp4 and the like, motion JPEG for .avi."""
    if Path(path).suffix.lower() not in VIDEOS:  # of some others OpenCV makes a file for each frame
        raise ValueError(f"out: got {str(path)!r}, expected a name that ends in one of {', '.join(VIDEOS)}")
    code = "MJPG" if Path(path).suffix.lower() == ".avi" else "mp4v"
    with atomic_path(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*code), fps, size_wh)
        if not writer.isOpened():
            raise ValueError(f"out: OpenCV cannot write {str(path)!r} here; .avi may do")
        try:
            yield writer
        finally:
            writer.release()
