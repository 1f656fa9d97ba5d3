"""A set like the ISS docking data, made from the mesh of the station: same files, known poses beside it.

The station hangs in hard sunlight before black, stars, the limb of the Earth or the Earth below, in any attitude.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import facing, rasterize
from geopose.cad.shading import Lighting, Material, cast_shadow, encode, shade
from geopose.data import space
from geopose.data.iss_docking import (
    DISTANCES,
    IMAGE_SIZE,
    SPLITS,
    Labels,
    docking_answer,
    picture_path,
    write_ids,
    write_labels,
)
from geopose.data.sample import projected_box, turned_to
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import matrix_from_quat_wxyz

F32 = NDArray[Any]  # float32
Array = NDArray[np.float64]

FULL_COUNTS = (10_000, 1_000, 5_000)
"""Pictures in train, val and test of the original."""

TRUTH = "truth.json"
TARGETS = ("station", "docking_port")
BACKGROUNDS = {"black": 0.15, "stars": 0.35, "limb": 0.35, "earth": 0.15}  # and their shares

_FINE = 2  # samples a pixel, along x and y
_JPEG_QUALITY = 92
_MOST_EXPOSED = {
    "limb": 3.0,
    "earth": 2.0,
}  # a camera that sees the Earth is not opened as wide as before black


@dataclass(frozen=True)
class DockingScenes:
    """What pictures to make.

    target: what location and distance mean: "station", the middle of its bounding box (the original asks for the
    coordinates and the distance of the station), or "docking_port", a named keypoint of the built-in mesh. unit_m:
    metres in a unit of distance; at the default the station fills the picture at the least distance. distance: least
    and greatest, in units, uniform between. fov_deg: of the square picture. margin: least space between target and
    border over the picture's side. seed: picture i of a split depends on it and i alone.
    """

    target: str = "station"
    unit_m: float = 2.5
    distance: tuple[float, float] = DISTANCES
    fov_deg: float = 45.0
    margin: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target: got {self.target!r}, expected one of {', '.join(TARGETS)}")
        if not (self.unit_m > 0 and 0 < self.distance[0] <= self.distance[1]):
            raise ValueError(
                f"unit_m, distance: got {self.unit_m}, {self.distance}, expected positive numbers, low <= high"
            )
        if not (0 <= self.margin < 0.5 and 0 < self.fov_deg < 120):
            raise ValueError(
                f"margin, fov_deg: got {self.margin}, {self.fov_deg}, expected 0 to 0.5 and 0 to 120"
            )


class DockingPictures:
    """Pictures of a station under the sun, with their poses; the same number gives the same picture."""

    def __init__(self, model: CadModel | None = None, options: DockingScenes | None = None) -> None:
        self.model = (model or load_cad("iss")).baked()
        self.options = options = options or DockingScenes()
        if options.target == "station":
            self.target = 0.5 * (self.model.bounds[0] + self.model.bounds[1])
        elif options.target in self.model.named_keypoints:
            self.target = np.array(self.model.named_keypoints[options.target])
        else:
            raise ValueError(f"target: {self.model.name!r} names no point {options.target!r}")
        reach = float(np.linalg.norm(self.model.vertices - self.target, axis=1).max())
        if not options.distance[0] * options.unit_m > reach:
            raise ValueError(
                f"distance: got {options.distance[0]} x {options.unit_m} m at least, expected more than the "
                f"{reach:.1f} m from the target to the farthest point of the station"
            )
        self.camera = Camera.from_fov(np.deg2rad(options.fov_deg), (IMAGE_SIZE, IMAGE_SIZE))
        colors = self.model.colors
        colors = np.full((len(self.model.vertices), 3), 0.6, np.float32) if colors is None else colors
        self.attributes = np.concatenate([self.model.normals, colors], axis=1).astype(np.float32)
        # The Earth is soft: half of the pixels will do.
        y, x = 2 * np.mgrid[: IMAGE_SIZE // 2, : IMAGE_SIZE // 2] + 0.5
        rays = np.asarray(self.camera.unproject(np.stack([x, y], -1).reshape(-1, 2)))
        self.rays = (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)

    def pose(self, split: str, image_id: int) -> Pose:
        """The pose cam_from_obj of a picture."""
        options = self.options
        generator = np.random.default_rng([options.seed, SPLITS.index(split), image_id, 0])
        low, high = options.margin * IMAGE_SIZE, (1 - options.margin) * IMAGE_SIZE - 1
        ray = np.asarray(self.camera.unproject(generator.uniform(low, high, (1, 2))))[0]
        distance = generator.uniform(*options.distance) * options.unit_m
        quaternion = generator.normal(size=4)  # uniform over all attitudes
        R = turned_to(ray) @ matrix_from_quat_wxyz(quaternion / np.linalg.norm(quaternion))
        return Pose(R, ray / np.linalg.norm(ray) * distance - R @ self.target)

    def answers(self, poses: Sequence[Pose]) -> Labels:
        """Location and distance of poses, with ids that count from zero."""
        location, distance = docking_answer(Pose.stack(poses), self.camera, self.target, self.options.unit_m)
        return Labels(np.arange(len(poses)), distance, location)

    def picture(self, split: str, image_id: int) -> NDArray[np.uint8]:
        """A picture (512, 512, 3) uint8 RGB."""
        generator = np.random.default_rng([self.options.seed, SPLITS.index(split), image_id, 1])
        pose = self.pose(split, image_id)
        kind = str(generator.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values())))
        sun = _unit(generator.normal(0, 1, 3) + np.array([0, 0, -1.3]))
        down = space.direction_down(generator, limb=kind == "limb")
        part, size_wh, pixel, station = self._station(generator, pose, _lighting(generator, kind, sun, down))
        exposure = _exposure(generator, station, _MOST_EXPOSED.get(kind, 6.0))
        image = self._background(generator, kind, sun, down, exposure)
        layer = np.zeros((size_wh[0] * size_wh[1], 4), np.float32)
        layer[pixel, :3], layer[pixel, 3] = encode(exposure * station), 1
        height, width = image[part].shape[:2]
        fine = layer.reshape(size_wh[1], size_wh[0], 4)
        over = np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))
        image[part] = image[part] * (1 - over[..., 3:]) + over[..., :3]
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(generator.uniform(0.3, 0.6))))
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        image = image + noise * np.float32(generator.uniform(0.002, 0.012))
        return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)

    def _station(
        self, generator: np.random.Generator, pose: Pose, lighting: Lighting
    ) -> tuple[tuple[slice, slice], tuple[int, int], NDArray[np.int64], F32]:
        """The part of the picture that the station touches, its size in samples, the flat indices (N,) of the samples
        on the station and the linear light (N, 3) of these."""
        model = self.model
        box = projected_box(model.vertices, pose, self.camera)
        x0, y0 = np.clip(np.floor(box[:2]), 0, IMAGE_SIZE - 1).astype(int)
        x1, y1 = np.clip(np.ceil(box[2:]) + 1, 1, IMAGE_SIZE).astype(int)
        edges = np.array([x0, y0, x1, y1]) - 0.5
        fine = self.camera.crop_resize(edges, (_FINE * int(x1 - x0), _FINE * int(y1 - y0)))
        vertices = (model.vertices @ pose.R.T + pose.t).astype(np.float32)
        seen = rasterize(vertices, model.faces, fine, near=1e-3 * model.diameter)
        values = seen.interpolate(self.attributes, model.faces)
        points = seen.points(fine)
        normals = facing(values[:, :3] @ pose.R.T.astype(np.float32), points)
        shadow = cast_shadow(points, lighting.directions[0], vertices, model.faces, 384)
        shine = float(np.exp(generator.uniform(np.log(12), np.log(80))))
        material = Material(1.0, float(generator.uniform(0.15, 0.6)), shine, 0.0, 0.0)
        light = shade(values[:, 3:], normals, points, lighting, material, shadow)
        return (slice(y0, y1), slice(x0, x1)), fine.size_wh, seen.pixel, light

    def _background(
        self, generator: np.random.Generator, kind: str, sun: Array, down: Array, exposure: np.float32
    ) -> F32:
        """(512, 512, 3) what is behind the station, in [0, 1]."""
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
        if kind == "stars":
            space.add_stars(generator, image.reshape(-1, 3))
        if kind in ("limb", "earth"):
            light = space.earth(generator, self.rays, sun.astype(np.float32), down.astype(np.float32))
            small = encode(exposure * light).reshape(IMAGE_SIZE // 2, IMAGE_SIZE // 2, 3)
            image = np.asarray(cv2.resize(small, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR))
        return image


def write_iss_docking(
    root: str | Path,
    counts: tuple[int, int, int] = (400, 60, 40),
    options: DockingScenes | None = None,
    model: CadModel | None = None,
    progress: bool = False,
) -> Path:
    """The folder `root` with a set of `counts` pictures in train, val and test, and `truth.json`.

    The files are those of the original (`geopose.data.iss_docking`); FULL_COUNTS makes as many pictures. Each file
    appears whole or not at all, and a split's table comes after its pictures: what was interrupted goes on where it was
    when called again, with larger counts too. `truth.json` holds the camera, the target, the unit and, for each picture
    of each split, the pose (R row by row, t in metres) and the exact location and distance: "test" has them here alone.

    Raises:
        ValueError: for counts that are no counts, or when `root` holds a set made otherwise.
    """
    if len(counts) != len(SPLITS) or any(c < 0 for c in counts) or sum(counts) < 1:
        raise ValueError(f"counts: got {counts}, expected pictures in {', '.join(SPLITS)}")
    root = Path(root)
    maker = DockingPictures(model, options)
    poses = {s: [maker.pose(s, i) for i in range(c)] for s, c in zip(SPLITS, counts, strict=True)}
    answers = {split: maker.answers(p) for split, p in poses.items() if p}
    _write_truth(root / TRUTH, maker, poses, answers)
    with tqdm(total=sum(counts), disable=not progress, unit="picture") as bar:
        for split, labels in answers.items():
            for image_id in range(len(labels)):
                path = picture_path(root, split, image_id)
                if not path.exists():
                    _write_picture(path, maker.picture(split, image_id))
                bar.update()
            if split == "test":
                write_ids(root / "test.csv", labels.ids)
            else:
                write_labels(root / f"{split}.csv", labels)
    return root


def read_truth(root: str | Path) -> dict[str, Any]:
    """What `write_iss_docking` wrote in `truth.json`: "camera" (Camera), "target" (3,) metres, "unit_m", and by split
    (Labels, poses cam_from_obj (N,)) with exact numbers.

    Raises ValueError for another file.
    """
    path = Path(root) / TRUTH
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        out: dict[str, Any] = {"camera": _camera(stored["made_of"]), "unit_m": stored["made_of"]["unit_m"]}
        out["target"] = np.array(stored["made_of"]["target_m"], float)
        for split in SPLITS:
            rows = stored[split]
            labels = Labels(
                np.array([r["ImageID"] for r in rows], np.int64),
                np.array([r["distance"] for r in rows], float),
                np.array([r["location"] for r in rows], float).reshape(-1, 2),
            )
            R = np.array([r["R"] for r in rows], float).reshape(-1, 3, 3)
            out[split] = (labels, Pose(R, np.array([r["t"] for r in rows], float).reshape(-1, 3)))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the truth of a set of pictures, got another file ({error!r})"
        ) from None
    return out


def _camera(made_of: Mapping[str, Any]) -> Camera:
    return Camera.from_fov(np.deg2rad(made_of["fov_deg"]), (IMAGE_SIZE, IMAGE_SIZE))


def _write_truth(
    path: Path, maker: DockingPictures, poses: Mapping[str, Sequence[Pose]], answers: Mapping[str, Labels]
) -> None:
    """Writes truth.json; refuses to mix two sets in one folder."""
    made_of = {**asdict(maker.options), "model": maker.model.content_hash, "target_m": maker.target.tolist()}
    made_of = json.loads(json.dumps(made_of))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8")).get("made_of")
        except (AttributeError, ValueError, RecursionError):
            before = None
        if before != made_of:
            raise ValueError(f"{path}: this folder holds a set made otherwise ({before}), expected {made_of}")
    parts = [f'"made_of": {json.dumps(made_of)}']
    for split in SPLITS:
        rows = []
        for i, pose in enumerate(poses[split]):
            labels = answers[split]
            row = {"ImageID": i, "distance": labels.distance[i], "location": labels.location[i].tolist()}
            rows.append(json.dumps({**row, "R": pose.R.ravel().tolist(), "t": pose.t.tolist()}))
        parts.append(f'"{split}": [\n' + ",\n".join(rows) + "\n]")
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def _unit(v: Array) -> Array:
    return v / max(float(np.linalg.norm(v)), 1e-9)


def _lighting(generator: np.random.Generator, kind: str, sun: Array, down: Array) -> Lighting:
    """One hard sun, next to nothing from the sky, and what the Earth sends back."""
    day = max(float(-sun @ down), 0.05)  # over the place below
    earth = np.array([0.10, 0.14, 0.20]) * (day if kind in ("limb", "earth") else 0.4 * generator.random())
    ambient = np.full(3, generator.uniform(0.008, 0.03))
    return Lighting(
        sun[None].astype(np.float32),
        np.array([[1.15, 1.10, 1.02]], np.float32),
        (-down).astype(np.float32),
        ambient.astype(np.float32),
        (ambient + earth).astype(np.float32),
        np.zeros((1, 4), np.float32),
        np.zeros((1, 3), np.float32),
    )


def _exposure(generator: np.random.Generator, station: F32, most: float) -> np.float32:
    """Gain of a camera that was set for the station, more or less, and not above `most`."""
    level = float(np.percentile(station, 85)) if len(station) else 1.0
    gain = generator.uniform(0.35, 0.7) / max(level, 1e-3)
    return np.float32(np.clip(gain, 0.8, most))
