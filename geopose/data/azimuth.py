"""Pictures of cars with the heading they are seen from: what the azimuth is, its classes, and an endless set.

One convention everywhere, that of `ViewSpace.azimuth_deg`: the heading of the camera about the object's up axis as seen
from the object's centre, 0 on the first horizontal axis. The built-in car looks along that axis, so 0 sees its front,
90 degrees its left side, 180 its rear and -90 its right side. Of N classes, class k is centred on k 360/N degrees and
holds [k - 1/2, k + 1/2) 360/N: with four, the front, left, rear and right quarters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from geopose.cad.gallery import car
from geopose.cad.model import CadModel, load_cad
from geopose.data.picture import PictureMaker, SyntheticOptions
from geopose.data.sample import ViewSpace, look_at, sample_pose
from geopose.data.textures import palette
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

MESH_SUFFIXES = (".3mf", ".glb", ".gltf", ".obj", ".off", ".ply", ".stl")

# Length, width, height, wheelbase, wheel radius (metres) and the stations of the cabin, by style of body.
_BODIES = {
    "saloon": (4.65, 1.80, 1.44, 2.75, 0.33, (0.29, 0.44, 0.71, 0.88)),
    "hatchback": (4.10, 1.74, 1.48, 2.55, 0.32, (0.26, 0.43, 0.83, 0.965)),
    "estate": (4.70, 1.80, 1.47, 2.75, 0.33, (0.28, 0.43, 0.88, 0.975)),
    "coupe": (4.40, 1.84, 1.30, 2.60, 0.33, (0.33, 0.48, 0.68, 0.93)),
    "off-roader": (4.50, 1.88, 1.73, 2.70, 0.37, (0.27, 0.39, 0.88, 0.97)),
    "van": (4.90, 1.93, 1.92, 3.00, 0.33, (0.14, 0.26, 0.93, 0.985)),
}


@dataclass(frozen=True)
class AzimuthOptions:
    """What pictures of cars to make.

    size: side of the pictures, pixels; classes: N; view: from where the car is seen, its azimuth taken all round (the
    default as in a street: the camera up to 20 degrees above it); fill: longer side of the car's box over the side of
    the picture, low and high; clutter, occluders: probabilities of other things in space and of flat shapes before the
    car; least_visible: share of the car that is seen at least; backgrounds: a folder of photographs to use instead of
    the built-in backgrounds; max_faces: meshes are simplified to this.
    """

    size: int = 224
    classes: int = 4
    view: ViewSpace = field(
        default_factory=lambda: ViewSpace(
            elevation_deg=(0.0, 20.0), roll_deg=(-4.0, 4.0), distance=(1.6, 8.0)
        )
    )
    fill: tuple[float, float] = (0.45, 0.95)
    clutter: float = 0.4
    occluders: float = 0.3
    least_visible: float = 0.5
    backgrounds: str | None = None
    max_faces: int = 4000

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size: got {self.size!r}, expected at least 32 pixels")
        _check_classes(self.classes)
        if not 0 < self.fill[0] <= self.fill[1] <= 1:
            raise ValueError(f"fill: got {self.fill!r}, expected 0 < low <= high <= 1")
        if not 0 <= self.least_visible < 1:
            raise ValueError(f"least_visible: got {self.least_visible!r}, expected a share in [0, 1)")


def azimuth_of(pose: Pose, up: str = "+z", centre: ArrayLike = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """The azimuth (...,), radians in [-pi, pi], that the camera of a pose sees the object from.

    Args:
        pose: cam_from_obj, with any leading dimensions; NaN gives NaN.
        up: the object's axis that points up, such as "+z" or "-y".
        centre: (3,) about which the heading is taken, object frame, metres.
    Raises:
        ValueError: on another `up`.
    Notes:
        The camera that `look_at` puts at azimuth 0 has the object's first horizontal axis behind it and the second at
        its right: seen in that camera, the azimuth of a direction is atan2(x, -z). Straight above or below the object
        there is no azimuth; what is returned there is noise.
    """
    found = pose.numpy()
    eye = -(found.R.mT @ found.t[..., None])[..., 0] - np.asarray(centre, float)
    seen = eye @ look_at(0.0, 0.0, 0.0, ViewSpace(up=up).up).T
    return np.arctan2(seen[..., 0], -seen[..., 2])


def class_of(azimuth: ArrayLike, classes: int) -> NDArray[np.int64]:
    """The class (...,), 0 to N - 1, of azimuths (...,) in radians; -1 where they are not finite."""
    _check_classes(classes)
    turns = np.asarray(azimuth, float) / (2 * np.pi)
    known = np.isfinite(turns)
    label = np.floor(np.where(known, turns, 0.0) * classes + 0.5).astype(np.int64) % classes
    return np.where(known, label, -1)


def class_centre(label: ArrayLike, classes: int) -> NDArray[np.float64]:
    """The azimuth (...,) in the middle of classes (...,), radians in [-pi, pi)."""
    _check_classes(classes)
    return wrapped(2 * np.pi / classes * np.asarray(label))


def wrapped(angle: ArrayLike) -> NDArray[np.float64]:
    """Angles (...,) in radians, brought to [-pi, pi)."""
    return (np.asarray(angle, float) + np.pi) % (2 * np.pi) - np.pi


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"classes: got {classes!r}, expected at least 2")


def random_car(generator: np.random.Generator) -> CadModel:
    """A made-up car: one of six bodies with proportions of its own, in any paint, at times with a stripe."""
    *sizes, cabin = _BODIES[str(generator.choice(list(_BODIES)))]
    length, width, height, wheelbase, wheel = np.array(sizes) * np.exp(generator.normal(0, 0.03, 5))
    paint, stripe = palette(generator, 2).tolist()
    return car(
        paint,
        stripe if generator.random() < 0.25 else None,
        length,
        width,
        height,
        min(wheelbase, 0.67 * length),
        min(wheel, 0.29 * height),
        tuple(np.array(cabin) + generator.uniform(-0.007, 0.007, 4)),
    )


def built_in_cars(count: int, seed: int) -> list[CadModel]:
    """`count` different made-up cars, the same ones for the same seed; about a fifth of a second each."""
    return [random_car(np.random.default_rng([seed, index])) for index in range(count)]


def read_cars(folder: str | Path, unit: str | None = None, most: int = 64) -> list[CadModel]:
    """The meshes below a folder (at most `most` of them, evenly spread), read by `load_cad` in `unit`.

    All must stand alike: the same axis up, the same axis ahead. In folders of ShapeNet cars +y is up, and the first
    horizontal axis of "+y", +z, points to the rear: azimuth 0 is there the view from behind.

    Raises:
        ValueError: when there is none, or one cannot be read; the message names it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"meshes: got {str(folder)!r}, expected a folder of meshes")
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in MESH_SUFFIXES)
    if not files:
        raise ValueError(f"meshes: no mesh ({', '.join(MESH_SUFFIXES)}) below {str(folder)!r}")
    chosen = np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    return [load_cad(files[i], unit) for i in chosen]


def split_cars(cars: Sequence[CadModel]) -> tuple[list[CadModel], list[CadModel]]:
    """(cars to learn from, cars to be judged on): every fourth is kept for judging, or all are in both if there are
    fewer than four."""
    if len(cars) < 4:
        return list(cars), list(cars)
    return [c for i, c in enumerate(cars) if i % 4 != 3], list(cars[3::4])


def mirrored(batch: Mapping[str, Tensor], classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """image (B, 3, S, S), azimuth and label (B,) of a batch, each picture mirrored left to right with probability 1/2.

    A mirrored car is a car as well: its azimuth is the opposite one. What is not the same in a mirror, R, t and K, is
    left out.
    """
    flip = torch.rand(len(batch["azimuth"]), generator=generator) < 0.5
    azimuth = torch.where(flip, -batch["azimuth"], batch["azimuth"])
    return {
        "image": torch.where(flip[:, None, None, None], batch["image"].flip(-1), batch["image"]),
        "azimuth": azimuth,
        "label": torch.from_numpy(class_of(azimuth.numpy(), classes)),
    }


class AzimuthDataset(Dataset):
    """Endless pictures of cars anywhere before random backgrounds; `dataset[i]` depends on the cars, the options, the
    seed and i alone.

    Items: image (3, S, S) uint8; azimuth () float32, radians in [-pi, pi]; label () int64, its class; R (3, 3), t (3,),
    K (3, 3) float64, the pose cam_from_obj and the camera.

    Raises:
        ValueError: without cars.
    """

    def __init__(
        self, cars: Sequence[CadModel], options: AzimuthOptions, seed: int, length: int = 1 << 40
    ) -> None:
        if not cars:
            raise ValueError("cars: got none, expected at least one mesh")
        pictures = SyntheticOptions(
            view=options.view,
            clutter=options.clutter,
            occluders=options.occluders,
            backgrounds=options.backgrounds,
            max_faces=options.max_faces,
        )
        self.makers = [PictureMaker(model, pictures) for model in cars]
        self.options, self.seed, self.length = options, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, index])
        maker = self.makers[int(generator.integers(len(self.makers)))]
        while True:
            pose, camera = self._view(generator, maker)
            pixels = min(float(np.exp(generator.uniform(np.log(0.4), np.log(1.6)))), 1.0)
            picture = maker.make(generator, camera, pose, pose, pixels)
            if picture.visible.sum() > self.options.least_visible * picture.full.sum():
                break
        azimuth = azimuth_of(pose, self.options.view.up, maker.centre)
        return {
            "image": np.ascontiguousarray(picture.image.transpose(2, 0, 1)),
            "azimuth": np.float32(azimuth),
            "label": class_of(azimuth, self.options.classes),
            "R": pose.R,
            "t": pose.t,
            "K": np.asarray(camera.K, float),
        }

    def _view(self, generator: np.random.Generator, maker: PictureMaker) -> tuple[Pose, Camera]:
        """A pose off the axis of a larger photograph, and the camera of a square cut out of that one, in which the
        whole car lies somewhere."""
        side = self.options.size
        ray = np.array([*np.tan(generator.normal(0, np.deg2rad(10), 2).clip(-0.5, 0.5)), 1.0])
        pose = sample_pose(generator, self.options.view, maker.centre, maker.diameter, ray)
        points = pose.apply(maker.vertices)
        plane = points[:, :2] / points[:, 2:]
        low, extent = plane.min(0), np.ptp(plane, axis=0)
        focal = generator.uniform(*self.options.fill) * side / extent.max()
        corner = generator.uniform(0, 1, 2) * (side - focal * extent) - 0.5
        cx, cy = corner - focal * low
        return pose, Camera(focal, focal, cx, cy, (side, side))
