"""The Cambridge Landmarks layout: photographs of a place, and where the camera was for each of them.

A scene is a folder with `dataset_train.txt`, `dataset_test.txt` and pictures in `seq1/`, `seq2/`, ... (Kendall, Grimes,
Cipolla, "PoseNet", ICCV 2015). A row holds a picture's name, the camera's centre X Y Z in metres and the quaternion
W P Q R of the rotation from world to camera. `reconstruction.nvm`, where there is one, holds the points of the place
that each picture shows (VisualSFM's format).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from geopose._io import atomic_path
from geopose.data.sample import shuffled
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import matrix_from_quat_wxyz
from geopose.nets.backbone import Encoder

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Path_ = str | Path

TITLE = "Visual Landmark Dataset V1"
COLUMNS = "ImageFile, Camera Position [X Y Z W P Q R]"
SPLITS = ("train", "test")
POINTS = "reconstruction.nvm"
SIDE, CROP = 256, 224  # pixels: smaller side of a picture, and what the network sees of it
_DESCRIBED_SIDE = 128
_LENGTH = 1 << 40  # of an endless set


@dataclass(frozen=True, eq=False)
class Views:
    """Photographs of one place: names relative to `root`, camera centres `xyz` (N, 3) in metres, and unit quaternions
    `wpqr` (N, 4), scalar first and not negative, of the rotations from world to camera."""

    root: Path
    names: tuple[str, ...]
    xyz: Array
    wpqr: Array

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, chosen: Any) -> Views:
        """The views that `chosen` (a mask, a slice or numbers) picks."""
        number = np.arange(len(self))[chosen]
        return Views(self.root, tuple(self.names[i] for i in number), self.xyz[number], self.wpqr[number])

    @property
    def cam_from_world(self) -> Pose:
        """The poses (N,): t = -R xyz."""
        R = matrix_from_quat_wxyz(self.wpqr)
        return Pose(R, -(R @ self.xyz[..., None])[..., 0])

    @classmethod
    def from_poses(cls, root: Path_, names: Sequence[str], cam_from_world: Pose) -> Views:
        """The views of poses (N,)."""
        pose = cam_from_world.numpy()
        return cls(Path(root), tuple(names), np.asarray(pose.inverse().t), np.asarray(pose.quat_wxyz))


def read_cambridge(root: Path_, split: str = "train") -> Views:
    """The views of `dataset_<split>.txt` in `root`; quaternions come normalised. The pictures are not opened.

    Raises:
        FileNotFoundError: when there is no such list.
        ValueError: naming file and line, for a row that is not a name and seven finite numbers, a quaternion of zeros,
            or a name that leaves the folder; for a list of another kind, or an empty one.
    """
    path = Path(root) / f"dataset_{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such list of pictures; expected a folder in the layout of Cambridge Landmarks"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != TITLE:
        raise ValueError(f"{path}:1: expected {TITLE!r}, got {lines[0][:60] if lines else ''!r}")
    names: list[str] = []
    rows: list[Array] = []
    for number, line in enumerate(lines[2:], 3):
        if line.strip():
            name, row = _row(f"{path}:{number}", line)
            names.append(name)
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no pictures in it")
    values = np.stack(rows)
    return Views(Path(root), tuple(names), values[:, :3], values[:, 3:])


def _row(where: str, line: str) -> tuple[str, Array]:
    """The name and the seven numbers of a row, the quaternion normalised, w not negative."""
    fields = line.split()
    try:
        values = np.array([float(field) for field in fields[1:]])
    except ValueError:
        values = np.empty(0)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise ValueError(
            f"{where}: expected a picture and 7 finite numbers (X Y Z W P Q R), got {line.strip()!r:.100}"
        )
    place = PurePosixPath(fields[0])
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{where}: the picture {fields[0]!r} is outside of the folder")
    length = float(np.linalg.norm(values[3:]))
    if length < 1e-6:
        raise ValueError(f"{where}: a quaternion of zeros is no rotation")
    values[3:] /= length if values[3] >= 0 else -length
    return fields[0], values


def write_cambridge(views: Views, split: str = "train") -> Path:
    """The path of the list written, in the layout that `read_cambridge` reads, with six decimals. The pictures are the
    caller's."""
    rows = [
        f"{name} " + " ".join(f"{value:.6f}" for value in (*xyz, *wpqr))
        for name, xyz, wpqr in zip(views.names, views.xyz, views.wpqr, strict=True)
    ]
    path = views.root / f"dataset_{split}.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([TITLE, COLUMNS, "", *rows]) + "\n", encoding="utf-8")
    return path


def read_picture(path: Path_, side: int = SIDE) -> Picture:
    """The picture (H, W, 3) RGB, its smaller side brought to `side` pixels: 1920x1080 becomes 455x256.

    Raises ValueError naming a file that is missing or cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return shrunk(picture.convert("RGB"), side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def shrunk(picture: Image.Image, side: int = SIDE) -> Picture:
    """The picture (H, W, 3), its smaller side `side` pixels."""
    smaller = min(picture.size)
    size = (side * picture.width // smaller, side * picture.height // smaller)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def read_pictures(views: Views, side: int = SIDE) -> Picture:
    """All pictures of the views (N, H, W, 3), as `read_picture` makes them: 0.4 GB for King's College.

    Raises ValueError naming the first file that cannot be read or has another shape than the first.
    """
    first = read_picture(views.root / views.names[0], side)
    out = np.empty((len(views), *first.shape), np.uint8)
    for number, name in enumerate(views.names):
        picture = read_picture(views.root / name, side)
        if picture.shape != first.shape:
            raise ValueError(
                f"{views.root / name}: {picture.shape[1]}x{picture.shape[0]} pixels when its smaller side is {side}, "
                f"expected {first.shape[1]}x{first.shape[0]} as {views.names[0]} has"
            )
        out[number] = picture
    return out


def mean_picture(pictures: Iterable[Picture], path: Path_ | None = None) -> NDArray[np.float32]:
    """The mean (H, W, 3) of pictures (N, H, W, 3), grey levels; kept nowhere unless `path` is given: a `.npy` file,
    read if it is there and written if not.

    Raises ValueError without pictures, or when the file holds something else.
    """
    if path is not None and Path(path).is_file():
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not an array of numbers ({error})") from None
        if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.float32:
            raise ValueError(
                f"{path}: {stored.dtype} {stored.shape}, expected a mean picture, float32 (H, W, 3)"
            )
        return stored
    total, count = np.zeros((1, 1, 3)), 0
    for picture in pictures:
        total, count = total + picture, count + 1
    if count == 0:
        raise ValueError("pictures: expected at least one, got none")
    mean = (total / count).astype(np.float32)
    if path is not None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, mean, allow_pickle=False)
    return mean


def prepared(
    picture: Picture,
    mean: NDArray[np.floating] | Picture | None,
    crop: int = CROP,
    generator: np.random.Generator | None = None,
) -> NDArray[np.float32]:
    """What the network is shown of a picture (H, W, 3): (3, crop, crop) grey levels minus those of the mean picture,
    from the middle, or with a generator from anywhere.

    Over 255 it is what `PoseNet` takes. Raises ValueError where the mean picture has another size.
    """
    if mean is not None and mean.shape != picture.shape:
        raise ValueError(
            f"picture: got {picture.shape[1]}x{picture.shape[0]} pixels, expected {mean.shape[1]}x{mean.shape[0]} as "
            "the mean picture has"
        )
    room = np.subtract(picture.shape[:2], crop)
    y, x = np.rint(0.5 * room).astype(int) if generator is None else generator.integers(0, room + 1)
    part = np.s_[y : y + crop, x : x + crop]
    image = picture[part].astype(np.float32)
    return np.ascontiguousarray(
        (image if mean is None else image - mean[part]).transpose(2, 0, 1), np.float32
    )


class CambridgeDataset(Dataset[dict[str, Any]]):
    """Views prepared as PoseNet's authors do; `dataset[i]` depends on the arguments and i alone.

    Items: `image` (3, crop, crop), see `prepared`; `xyz` (3,) metres; `wpqr` (4,); with `points`, also `points`
    (64, 3): some that the picture shows, NaN if it shows none.

    Args:
        views: what to show.
        mean: the mean picture of the training views (H, W, 3); None subtracts nothing.
        seed: in training. The set is endless then, every len(views) items a new shuffle, and the crop is random. None,
            for testing, gives the views in order, cropped in the middle.
        pictures: those of `read_pictures`; by default each is read when it is asked for.
        points: world points (M_i, 3) that each view shows, as `read_points` gives them.
    """

    def __init__(
        self,
        views: Views,
        mean: NDArray[np.floating] | Picture | None,
        *,
        side: int = SIDE,
        crop: int = CROP,
        seed: int | None = None,
        pictures: Picture | None = None,
        points: Sequence[Array] | None = None,
    ) -> None:
        if not 0 < crop <= side:
            raise ValueError(
                f"crop: got {crop} pixels, expected 1 to {side}, the smaller side of the pictures"
            )
        if pictures is not None and len(pictures) != len(views):
            raise ValueError(f"pictures: got {len(pictures)}, expected {len(views)}, one for each view")
        self.views, self.mean, self.side, self.crop = views, mean, side, crop
        self.seed, self.pictures, self.points = seed, pictures, points

    def __len__(self) -> int:
        return len(self.views) if self.seed is None else _LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: got {index}, expected 0 to {len(self) - 1}")
        number, generator = index, np.random.default_rng(0)
        if self.seed is not None:
            turn, place = divmod(index, len(self.views))
            number = int(shuffled(self.seed, turn, len(self.views))[place])
            generator = np.random.default_rng([self.seed, 1, index])
        name = self.views.root / self.views.names[number]
        picture = read_picture(name, self.side) if self.pictures is None else self.pictures[number]
        try:
            image = prepared(picture, self.mean, self.crop, None if self.seed is None else generator)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        item = {
            "image": image,
            "xyz": self.views.xyz[number].astype(np.float32),
            "wpqr": self.views.wpqr[number].astype(np.float32),
        }
        if self.points is not None:
            item["points"] = _some(self.points[number], generator)
        return item


def _some(points: Array, generator: np.random.Generator, count: int = 64) -> NDArray[np.float32]:
    if len(points) == 0:
        return np.full((count, 3), np.nan, np.float32)
    return points[generator.integers(0, len(points), count)].astype(np.float32)


def read_points(views: Views) -> list[Array]:
    """The world points (M_i, 3), metres, that each view shows, from `reconstruction.nvm`; views are found by name, what
    follows the dot apart (the lists of Cambridge say .png where the reconstruction says .jpg).

    Raises:
        FileNotFoundError: when there is none.
        ValueError: naming file and line of what is broken.
    Notes:
        VisualSFM, "NVM_V3": cameras, then points with the indices of the cameras that see them.
    """
    path = views.root / POINTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such reconstruction, which the reprojection loss needs")
    numbers = {name.rpartition(".")[0]: i for i, name in enumerate(views.names)}
    seen: list[list[tuple[float, ...]]] = [[] for _ in views.names]
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = ((number, line.split()) for number, line in enumerate(file, 1))
        filled = ((number, fields) for number, fields in lines if fields)
        number = 0
        try:
            number, fields = next(filled)
            if fields[0] != "NVM_V3":
                raise ValueError
            number, fields = next(filled)
            cameras: list[int | None] = []
            for _ in range(int(fields[0])):
                number, fields = next(filled)
                cameras.append(numbers.get(fields[0].rpartition(".")[0]))
            number, fields = next(filled)
            for _ in range(int(fields[0])):
                number, fields = next(filled)
                point = tuple(float(field) for field in fields[:3])
                for k in range(int(fields[6])):  # after position and colour: camera, feature, x, y
                    view = cameras[int(fields[7 + 4 * k])]
                    if view is not None:
                        seen[view].append(point)
        except (ValueError, IndexError, StopIteration):
            raise ValueError(
                f"{path}:{number}: not as VisualSFM writes a reconstruction, or cut short"
            ) from None
    return [np.asarray(points, float).reshape(-1, 3) for points in seen]


def write_points(views: Views, focal_px: float, points: Array, px: Array) -> Path:
    """The path of `reconstruction.nvm` written: points (M, 3), and where (N, M, 2) each view shows them, in pixels from
    the picture's middle, NaN where it does not. Points that none shows are left out."""
    lines = ["NVM_V3", "", str(len(views))]
    for name, xyz, wpqr in zip(views.names, views.xyz, views.wpqr, strict=True):
        numbers = " ".join(f"{value:.9g}" for value in (focal_px, *wpqr, *xyz))
        lines.append(f"{name}\t{numbers} 0 0")
    seen = np.isfinite(px[..., 0])
    lines += ["", str(int(seen.any(0).sum()))]
    for j in np.flatnonzero(seen.any(0)):
        by = np.flatnonzero(seen[:, j])
        measured = " ".join(f"{i} {j} {px[i, j, 0]:.2f} {px[i, j, 1]:.2f}" for i in by)
        position = " ".join(f"{value:.7g}" for value in points[j])
        lines.append(f"{position} 128 128 128 {len(by)} {measured}")
    path = views.root / POINTS
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*lines, "", "0"]) + "\n", encoding="utf-8")
    return path


@torch.inference_mode()
def describe(pictures: Sequence[Picture] | Picture) -> NDArray[np.float32]:
    """(N, 112) what pictures look like as a whole: ImageNet features of EfficientNet-Lite0 at stride 16, averaged over
    each picture, its smaller side brought to 128 pixels. Needs the weights that `Encoder(pretrained=True)` needs.

    On the built courtyard these find views twice as near as grey thumbnails do, and no farther than features of other
    strides or of parts of the picture.
    """
    encoder = Encoder(pretrained=True, depth=11).eval()
    out = []
    for picture in pictures:
        small = torch.from_numpy(shrunk(Image.fromarray(picture), _DESCRIBED_SIDE).copy())
        out.append(encoder.up_to(16, small.permute(2, 0, 1)[None]).mean((2, 3))[0].numpy())
    return np.stack(out)


def retrieve(
    training: Sequence[Picture] | Picture, pictures: Sequence[Picture] | Picture
) -> NDArray[np.int64]:
    """The number (N,) of the training picture that looks most like each picture: the largest cosine between descriptors
    (`describe`), those of the training pictures centred on zero."""
    known = describe(training)
    mean = known.mean(0)
    known, asked = known - mean, describe(pictures) - mean
    known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    return (asked @ known.T).argmax(1)
