"""Pictures whose keypoints are known: what several data sets come down to, and crops of them to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from geopose.data.sample import shuffled, square
from geopose.geometry.camera import Camera, crop_affine
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
_GREY = (128, 128, 128)  # beyond the picture
_SHRUNK = 0.6  # a crop that shrinks more is smoothed first


@dataclass(frozen=True, eq=False)
class AnnotatedSet:
    """N pictures of one object with K known points.

    Attributes:
        names: of the pictures.
        points_obj: (K, 3) object frame, in the set's unit of length.
        keypoints_px: (N, K, 2) image pixels; NaN where a point is not annotated.
        boxes: (N, 4) squares x0, y0, x1, y1 to look at, edges in image pixels.
        camera: of all pictures.
        read: the picture (H, W, 3) uint8 RGB of a name; raises ValueError naming one that cannot be read.
        pose: (N,) cam_from_obj, or None where the set does not say.
        mesh: vertices (V, 3) and faces (F, 3) of the object, or None.
    """

    names: tuple[str, ...]
    points_obj: Array
    keypoints_px: Array
    boxes: Array
    camera: Camera
    read: Callable[[str], Picture]
    pose: Pose | None = None
    mesh: tuple[Array, NDArray[np.int32]] | None = None

    def __post_init__(self) -> None:
        n, k = len(self.names), len(self.points_obj)
        if np.shape(self.keypoints_px) != (n, k, 2) or np.shape(self.boxes) != (n, 4):
            raise ValueError(
                f"keypoints_px, boxes: got {np.shape(self.keypoints_px)}, {np.shape(self.boxes)} beside {n} names and "
                f"{k} points, expected ({n}, {k}, 2), ({n}, 4)"
            )

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: ArrayLike) -> AnnotatedSet:
        """The same set with only the pictures `rows`."""
        index = np.asarray(rows, np.int64)
        return replace(
            self, names=tuple(self.names[i] for i in index), keypoints_px=self.keypoints_px[index],
            boxes=self.boxes[index], pose=None if self.pose is None else self.pose[index],
        )  # fmt: skip

    def split(self, share: float, seed: int = 0) -> tuple[AnnotatedSet, AnnotatedSet]:
        """(the rest, `share` of the pictures, at least one, drawn at random). Raises ValueError below two pictures."""
        if len(self) < 2 or not 0 < share < 1:
            raise ValueError(
                f"share: got {share!r} of {len(self)} pictures, expected one in (0, 1) of at least 2"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(round(share * len(self)), 1), len(self) - 1)
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))


@dataclass(frozen=True)
class Augmentation:
    """Changes of a crop in which the picture and its keypoints move together, by one affine map.

    rotation_deg: turn of the picture, degrees, at most, either way; quarter_turns: a random number of these too; scale:
    side of the crop over that of its box, low and high; blur: probability of a Gaussian blur.

    There are no mirrored pictures: a mirrored object is another object, whose keypoints belong to no pose.
    """

    rotation_deg: float = 0.0
    quarter_turns: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    blur: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] and self.rotation_deg >= 0 and 0 <= self.blur <= 1):
            raise ValueError(
                f"rotation_deg, scale, blur: got {self.rotation_deg}, {self.scale}, {self.blur}, "
                "expected at least 0, 0 < low <= high, a probability"
            )


class CropDataset(Dataset):
    """Square crops of the pictures of a set; items are dicts of arrays, ready to be collated.

    image (3, S, S) uint8; keypoints_px (1, K, 2) float32, crop pixels; inside (1, K) bool, annotated and in the crop;
    row (), the picture's number; crop_from_image (2, 3) float64, the affine map of pixels.

    Args:
        size: S, pixels.
        augment: None gives the crops as they are, `len` of them. An `Augmentation` gives an endless set, in which crop
            i depends on the seed and i alone and every picture comes once in each round.
    """

    def __init__(
        self, annotated: AnnotatedSet, size: int, augment: Augmentation | None = None, seed: int = 0
    ) -> None:
        if len(annotated) == 0:
            raise ValueError("annotated: got a set without pictures")
        if size < 32:
            raise ValueError(f"size: got {size!r}, expected at least 32 pixels")
        self.set, self.size, self.augment, self.seed = annotated, size, augment, seed

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.augment is None:
            return self._item(index, crop_map(self.set.boxes[index], self.size), 0.0)
        turn, place = divmod(index, len(self))
        row = int(shuffled(self.seed, turn, len(self))[place])
        generator = np.random.default_rng([self.seed, 1, index])
        options = self.augment
        angle = np.deg2rad(generator.uniform(-1, 1) * options.rotation_deg)
        if options.quarter_turns:
            angle += 0.5 * np.pi * generator.integers(4)
        scale = float(np.exp(generator.uniform(*np.log(options.scale))))
        sigma = generator.uniform(0.5, 1.2) if generator.random() < options.blur else 0.0
        return self._item(row, crop_map(self.set.boxes[row], self.size, angle, scale), sigma)

    def _item(self, row: int, matrix: Array, sigma: float) -> dict[str, Any]:
        image = warped(self.set.read(self.set.names[row]), matrix, self.size)
        if sigma > 0:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
        points = moved(self.set.keypoints_px[row], matrix)
        with np.errstate(invalid="ignore"):
            inside = np.all((points > -0.5) & (points < self.size - 0.5), axis=-1)
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "keypoints_px": np.nan_to_num(points, nan=0.0)[None].astype(np.float32),
            "inside": np.asarray(inside)[None],
            "row": row,
            "crop_from_image": matrix,
        }


def crop_map(box: ArrayLike, size: int, angle: float = 0.0, scale: float = 1.0) -> Array:
    """(2, 3) affine map from image pixels to those of the crop (size, size) of a square `box` (4,), `scale` times as
    wide as the box and turned about its middle by `angle`, radians, clockwise as seen."""
    x0, y0, x1, y1 = np.asarray(box, float)
    plain = crop_affine(square(np.array([x0 + x1, y0 + y1]) / 2, scale * (x1 - x0)), (size, size))
    middle, c, s = 0.5 * (size - 1), np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    out = turn @ np.asarray(plain, float)
    out[:, 2] += middle - turn @ np.full(2, middle)
    return out


def moved(points_px: ArrayLike, matrix: Array) -> Array:
    """Points (..., 2) under an affine map (2, 3)."""
    return np.asarray(points_px, float) @ matrix[:, :2].T + matrix[:, 2]


def inverted(matrix: Array) -> Array:
    """The inverse (2, 3) of an affine map (2, 3)."""
    return np.asarray(cv2.invertAffineTransform(np.asarray(matrix, float)), float)


def warped(picture: Picture, matrix: Array, size: int) -> Picture:
    """The picture (size, size, 3) an affine map (2, 3) of pixels makes, smoothed where it shrinks, grey outside."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < _SHRUNK:  # a warp alone would skip pixels
        height, width = picture.shape[:2]
        small = max(round(1.2 * scale * width), 1), max(round(1.2 * scale * height), 1)
        ratio = np.array([width / small[0], height / small[1]])
        picture = np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), np.uint8)
        linear = matrix[:, :2] * ratio  # image = ratio * (small + 0.5) - 0.5
        matrix = np.column_stack([linear, matrix[:, 2] + matrix[:, :2] @ (0.5 * ratio - 0.5)])
    out = cv2.warpAffine(
        picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_GREY
    )  # fmt: skip
    return np.asarray(out, np.uint8)


def read_rgb(path: Any) -> Picture:
    """A picture (H, W, 3) uint8 RGB. Raises ValueError naming a file that cannot be read."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ValueError(f"{path}: expected a picture, got a file that is missing or broken")
    return np.asarray(picture, np.uint8)


def whole_picture(size_wh: Sequence[int]) -> Array:
    """(4,) the smallest square around a picture, edges in pixels."""
    width, height = size_wh
    return square(np.array([(width - 1) / 2, (height - 1) / 2]), float(max(width, height)))
