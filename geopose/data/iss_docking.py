"""The ISS docking data set: in each picture, where the station is and how far away.

A folder with `train.csv` and `val.csv` (columns ImageID, distance, location; a location is text such as "[215, 158]",
pixels x, y from the top left), `test.csv` with the column ImageID alone or none at all, and the square pictures
`train/<ImageID>.jpg`, `val/...`, `test/...`, 512 x 512 in the original. Its distances run from 61 to 491 in a unit of
its own. A submission has the columns and the form of `train.csv`. Nothing in these files is evaluated.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from geopose._io import atomic_path
from geopose.data.sample import shuffled
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

SPLITS = ("train", "val", "test")
IMAGE_SIZE = 512
DISTANCES = (61.0, 491.0)
"""Least and greatest distance in the original."""

_SHOWN = 5  # broken rows that a message names
_ZOOM = (0.85, 1.2)  # side of a training window over that of the picture
_LEAST_WINDOW = 0.15  # the same of a second look


@dataclass(frozen=True)
class Labels:
    """What a table says of N pictures: ids (N,) int64, distance (N,) in the set's unit, location (N, 2) pixels."""

    ids: NDArray[np.int64]
    distance: Array
    location: Array

    def __post_init__(self) -> None:
        count = len(self.ids)
        if np.shape(self.distance) != (count,) or np.shape(self.location) != (count, 2):
            raise ValueError(
                f"labels: got distance {np.shape(self.distance)} and location {np.shape(self.location)} beside "
                f"{count} ids, expected ({count},) and ({count}, 2)"
            )

    def __len__(self) -> int:
        return len(self.ids)


def read_labels(path: str | Path) -> Labels:
    """The Labels of `train.csv`, `val.csv` or a submission; columns in any order, others are not read.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming file and line of the rows that are broken: a number that is none, a distance that is not
            positive, a location that is not a pair, an id that came before.
    """
    rows = _read(Path(path), {"ImageID": _id, "distance": _distance, "location": _location})
    ids, distance, location = zip(*rows, strict=True) if rows else ((), (), ())
    return Labels(
        np.array(ids, np.int64), np.array(distance, float), np.array(location, float).reshape(-1, 2)
    )


def write_labels(path: str | Path, labels: Labels) -> Path:
    """The path of a table in the set's form, which is also that of a submission; numbers are rounded to whole ones.

    Raises ValueError for values that are not finite.
    """
    if not (np.isfinite(labels.distance).all() and np.isfinite(labels.location).all()):
        raise ValueError("labels: expected finite distances and locations, got NaN or infinity")
    distance, location = np.rint(labels.distance).astype(int), np.rint(labels.location).astype(int)
    rows = [[i, d, f"[{x}, {y}]"] for i, d, (x, y) in zip(labels.ids, distance, location, strict=True)]
    return _write(Path(path), [["ImageID", "distance", "location"], *rows])


def write_ids(path: str | Path, ids: NDArray[np.int64]) -> Path:
    """The path of a table without labels, as `test.csv`."""
    return _write(Path(path), [["ImageID"], *([i] for i in ids)])


def split_ids(root: str | Path, split: str) -> NDArray[np.int64]:
    """The ids (N,) of a split, from its table or, without one, from its folder of pictures.

    Raises:
        FileNotFoundError, ValueError: when there is neither, or the table is broken.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    table, folder = root / f"{split}.csv", root / split
    if table.is_file():
        return np.array([number for (number,) in _read(table, {"ImageID": _id})], np.int64)
    found = sorted(int(p.stem) for p in folder.glob("*.jpg") if p.stem.isdecimal())
    if not found:
        raise FileNotFoundError(f"{root}: neither {table.name} nor pictures {split}/<ImageID>.jpg")
    return np.array(found, np.int64)


def picture_path(root: str | Path, split: str, image_id: int) -> Path:
    """Where a picture of the set lies."""
    return Path(root) / split / f"{image_id}.jpg"


def read_picture(path: str | Path) -> Picture:
    """A picture (S, S, 3) uint8 RGB. Raises ValueError naming a file that cannot be read or is not square."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ValueError(f"{path}: expected a picture, got a file that is missing or broken")
    if picture.shape[0] != picture.shape[1]:
        raise ValueError(f"{path}: expected a square picture, got {picture.shape[1]} x {picture.shape[0]}")
    return np.asarray(picture, np.uint8)


def cut(picture: Picture, corner: ArrayLike, width: int, size: int) -> Picture:
    """The square window of `width` pixels from the pixel `corner` (x, y) on, as (size, size, 3).

    What lies outside of the picture is black, as space is. What was at p is then at `to_size(p - corner, width, size)`.
    """
    corner = np.asarray(corner, int)
    limit = np.array([picture.shape[1], picture.shape[0]])
    low = np.clip(corner, 0, limit)
    high = np.clip(corner + width, low, limit)
    out = np.zeros((width, width, 3), np.uint8)
    (x0, y0), (x1, y1) = low - corner, high - corner
    if (high > low).all():
        out[y0:y1, x0:x1] = picture[low[1] : high[1], low[0] : high[0]]
    method = cv2.INTER_AREA if size < width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(out, (size, size), interpolation=method), np.uint8)


def to_size(points_px: ArrayLike, before: int, after: int) -> Array:
    """Pixels (..., 2) of a square picture after its side went from `before` to `after`.

    An integer is a pixel's centre: `Camera.crop_resize` of the whole picture moves points in the same way.
    """
    return (np.asarray(points_px, float) + 0.5) * (after / before) - 0.5


def second_look(
    location: ArrayLike, distance: float, near: float, side: int
) -> tuple[NDArray[np.int64], int]:
    """Corner (2,) and width of the window around `location`, pixels of a picture of `side`, in which a station at
    `distance` seems to be at the distance `near`; the whole picture where it is nearer already."""
    share = float(np.clip(near / distance, _LEAST_WINDOW, 1.0)) if np.isfinite(distance) else 1.0
    if share > 0.9:
        return np.zeros(2, np.int64), side
    width = max(round(side * share), 1)
    return np.rint(np.asarray(location, float) - (width - 1) / 2).astype(np.int64), width


def radius2(location: ArrayLike, side: int) -> Array:
    """(...,) squared distance of locations (..., 2) from the middle of a picture, in units of its side."""
    return np.square((np.asarray(location, float) - (side - 1) / 2) / side).sum(-1)


class DockingDataset(Dataset):
    """Pictures of a split at the size of a network; items are dicts of arrays, ready to be collated.

    image (3, size, size) uint8; id (); and, in "train" and "val", location_px (2,) float32 in pixels of that image,
    distance () float32 in the set's unit, radius2 () float32 of the location in the whole picture.

    Args:
        augment: None gives the pictures as they are, `len` of them. A seed gives an endless set, in which picture i
            depends on the seed and i alone: windows of the pictures, turned by quarters, mirrored, lighter or darker.
            Half of the windows are about as large as the picture, half are such as a `second_look` cuts. Their distance
            is that at which the station seems to be: half of it in a window of half the side.
        near: distance at which a second look puts the station.
    Raises:
        FileNotFoundError, ValueError: when a table is broken or a picture missing; later, when one cannot be read.
    Notes:
        Turning about the picture's centre is a roll of the camera, exactly; a window brings the station nearer as far
        as perspective within it may be neglected; a mirrored station is none, but what is asked for is the same.
    """

    def __init__(
        self, root: str | Path, split: str, size: int, augment: int | None = None, near: float = 110.0
    ) -> None:
        self.root, self.split, self.size, self.augment, self.near = Path(root), split, size, augment, near
        self.labels = read_labels(self.root / f"{split}.csv") if split in SPLITS[:2] else None
        self.ids = split_ids(root, split) if self.labels is None else self.labels.ids
        if augment is not None and self.labels is None:
            raise ValueError(f"split: got {split!r} to augment, expected one with labels")
        if len(self.ids) == 0:
            raise ValueError(f"{self.root / split}.csv: expected at least one picture, got none")
        paths = (picture_path(root, split, int(i)) for i in self.ids)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(f"{missing[0]}: no such picture ({len(missing)} of {len(self.ids)} are missing)")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.augment is None:
            return self._item(index, None)
        turn, place = divmod(index, len(self))
        row = int(shuffled(self.augment, turn, len(self))[place])
        return self._item(row, np.random.default_rng([self.augment, 1, index]))

    def picture(self, row: int) -> Picture:
        """A picture (S, S, 3) uint8 RGB as it is in the file. Raises ValueError naming it where it cannot be read."""
        return read_picture(picture_path(self.root, self.split, int(self.ids[row])))

    def _item(self, row: int, generator: np.random.Generator | None) -> dict[str, Any]:
        picture = self.picture(row)
        side, corner, width = len(picture), np.zeros(2, np.int64), len(picture)
        if self.labels is None:
            return {"image": _channels_first(cut(picture, corner, width, self.size)), "id": self.ids[row]}
        location, distance = self.labels.location[row], float(self.labels.distance[row])
        if generator is not None:
            corner, width = _window(generator, location, distance, self.near, side)
        picture, point = cut(picture, corner, width, self.size), to_size(location - corner, width, self.size)
        if generator is not None:
            picture, point = _turned(generator, picture, point)
            picture = _exposed(generator, picture)
        return {
            "image": _channels_first(picture),
            "id": self.ids[row],
            "location_px": point.astype(np.float32),
            "distance": np.float32(distance * width / side),
            "radius2": np.float32(radius2(location, side)),
        }


def docking_answer(
    cam_from_obj: Pose, camera: Camera, target: ArrayLike, unit_m: float = 1.0
) -> tuple[Array, Array]:
    """Geometry's answer: location (..., 2), pixels of `camera`, and distance (...) in the set's unit, of a pose (...).

    Args:
        target: (3,) the point of the station that is asked for, object frame, metres.
        unit_m: metres in a unit of the set.
    Notes:
        The distance is the straight one from the camera's centre. Behind the camera the location is NaN.
    """
    points = cam_from_obj.numpy().apply(np.asarray(target, float).reshape(1, 3))
    location = np.asarray(camera.project(points))[..., 0, :]
    return location, np.linalg.norm(points[..., 0, :], axis=-1) / unit_m


def _channels_first(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _window(
    generator: np.random.Generator, location: Array, distance: float, near: float, side: int
) -> tuple[NDArray[np.int64], int]:
    """Corner (2,) and width of a random window that holds the location."""
    if generator.random() < 0.5:
        guess = distance * np.exp(generator.normal(0, 0.25))
        corner, width = second_look(location, guess, near, side)
    else:
        width = round(side * float(np.exp(generator.uniform(*np.log(_ZOOM)))))
        corner = np.full(2, (side - width) // 2)
    shifted = np.rint(corner + generator.normal(0, 0.06 * width, 2))
    inside = np.clip(shifted, np.ceil(location + 1 - width), np.floor(location))
    return inside.astype(np.int64), width


def _turned(generator: np.random.Generator, picture: Picture, point: Array) -> tuple[Picture, Array]:
    """Picture and point turned by a random number of quarters, and mirrored half of the time."""
    last = len(picture) - 1
    quarters = int(generator.integers(4))
    for _ in range(quarters):
        point = np.array([point[1], last - point[0]])  # anticlockwise, as np.rot90
    picture = np.rot90(picture, quarters)
    if generator.random() < 0.5:
        picture, point = picture[:, ::-1], np.array([last - point[0], point[1]])
    return picture, point


def _exposed(generator: np.random.Generator, picture: Picture) -> Picture:
    """The picture with another exposure, tone curve and black level."""
    level = np.arange(256) / 255
    curve = level ** np.exp(generator.normal(0, 0.15)) * np.exp(generator.normal(0, 0.2))
    curve += generator.uniform(-0.02, 0.03)
    return np.clip(255 * curve + 0.5, 0, 255).astype(np.uint8)[picture]


def _read(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> list[tuple[Any, ...]]:
    """One tuple per row: what the columns' parsers make of its cells; "ImageID", the first, must be unique."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a table with the columns {', '.join(columns)}"
        )
    try:
        table = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        lines = [(table.line_num, [cell.strip() for cell in cells]) for cells in table if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of comma-separated values ({error})") from None
    head = lines[0][1] if lines else []
    if not set(columns) <= set(head):
        raise ValueError(f"{path}:1: got the columns {head}, expected {', '.join(columns)}")
    rows: list[tuple[Any, ...]] = []
    broken: list[str] = []
    line_of: dict[Any, int] = {}
    for line, cells in lines[1:]:
        try:
            if len(cells) != len(head):
                raise ValueError(f"got {len(cells)} cells, expected {len(head)}")
            row = tuple(parse(cells[head.index(name)]) for name, parse in columns.items())
            if row[0] in line_of:
                raise ValueError(f"ImageID {row[0]} is also in line {line_of[row[0]]}")
            line_of[row[0]] = line
            rows.append(row)
        except ValueError as error:
            broken.append(f"{path}:{line}: {error}")
    if broken:
        more = f"\nand {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError("\n".join(broken[:_SHOWN]) + more)
    return rows


def _id(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:  # of 64 bits
        raise ValueError(f"ImageID: got {text!r:.60}, expected a whole number")
    return int(text)


def _distance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"distance: got {text!r}, expected a positive number")
    return value


def _location(text: str) -> list[float]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    numbers = isinstance(value, list) and all(type(v) in (int, float) and abs(v) < 1e6 for v in value)
    if not numbers or len(value) != 2:
        raise ValueError(f'location: got {text!r}, expected pixels such as "[215, 158]"')
    return [float(v) for v in value]


def _write(path: Path, rows: list[list[Any]]) -> Path:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path
