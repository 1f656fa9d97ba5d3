"""Reading data sets in the BOP format (Hodaň et al., "BOP: Benchmark for 6D Object Pose Estimation", 2018).

A data set is a folder with `models/` or `models_eval/` and splits (`test/`, `train_pbr/`, ...) that hold
scenes: `scene_camera.json`, `scene_gt.json`, `scene_gt_info.json` and pictures in `rgb/` or `gray/`.
Millimetres outside, metres inside; rotations, which some sets round, are re-orthonormalised.
Writing is in `bop_write.py`, the challenge's results file in `bop_results.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from geopose._io import eight_bits, is_folder_name
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import project_to_so3

Array = NDArray[np.float64]
MM = 1e-3
PICTURE_FOLDERS = ("rgb", "gray")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SPLITS = ("test", "test_primesense", "test_*", "val", "val_*", "train", "train_*", "*")
CONTINUOUS_STEPS = 315  # ceil(pi / 0.01): the challenge's own discretisation
ROTATION_TOLERANCE = 0.1  # largest entry of R R^T - 1; LM-O has up to 0.02
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BopInstance:
    """One annotated object: pose `cam_from_obj` in metres, visible fraction (NaN if unknown), boxes.

    A box is (x0, y0, x1, y1), the smallest and largest pixel centres; None where the set has none.
    """

    obj_id: int
    pose: Pose
    visib_fract: float = float("nan")
    box: Array | None = None
    box_visib: Array | None = None


@dataclass(frozen=True, eq=False)
class BopFrame:
    """One picture: where it lies, its intrinsics and its objects (none where truth is withheld)."""

    scene_id: int
    im_id: int
    scene: Path
    K: Array
    depth_scale: float
    instances: tuple[BopInstance, ...]

    def picture_path(self) -> Path:
        """The picture's file. Raises ValueError when there is none."""
        for folder in PICTURE_FOLDERS:
            for suffix in SUFFIXES:
                path = self.scene / folder / f"{self.im_id:06d}{suffix}"
                if path.is_file():
                    return path
        raise ValueError(f"{self.scene}: no picture {self.im_id:06d} in {' or '.join(PICTURE_FOLDERS)}")

    def load(self) -> tuple[NDArray[np.uint8], Camera]:
        """The picture, (H, W, 3) uint8 RGB, and its camera. Raises ValueError naming a bad file."""
        path = self.picture_path()
        image = _read_picture(path)
        try:
            return image, Camera.from_matrix(self.K, (image.shape[1], image.shape[0]))
        except ValueError as error:
            raise ValueError(f"{self.scene / 'scene_camera.json'}, key {self.im_id}: {error}") from None

    def depth_path(self) -> Path | None:
        """The depth picture's file, None where there is none."""
        paths = (self.scene / "depth" / f"{self.im_id:06d}{suffix}" for suffix in (".png", ".tif"))
        return next((path for path in paths if path.is_file()), None)

    def load_depth(self) -> NDArray[np.float32]:
        """Depth in metres, (H, W), zero where unknown. Raises ValueError when there is none, or naming a bad file."""
        path = self.depth_path()
        if path is None:
            raise ValueError(f"{self.scene}: no depth {self.im_id:06d}")
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable picture ({error})") from None
        if values.ndim != 2:
            raise ValueError(f"{path}: expected one channel of depth, got shape {values.shape}")
        return np.asarray(values * (self.depth_scale * MM), np.float32)


@dataclass(frozen=True, eq=False)
class BopObject:
    """An object of a set: diameter, metres; symmetries (S, 4, 4), metres, identity first; mesh file."""

    obj_id: int
    diameter: float
    symmetries: Array
    mesh: Path

    @property
    def symmetric(self) -> bool:
        """Whether the set lists any symmetry."""
        return len(self.symmetries) > 1

    @cached_property
    def _loaded(self) -> Any:
        try:
            return trimesh.load(self.mesh, process=False)
        except Exception as error:  # trimesh raises whatever its parsers raise
            raise ValueError(f"{self.mesh}: cannot be read as a mesh ({error})") from None

    @cached_property
    def points(self) -> Array:
        """(V, 3) vertices of the evaluation mesh as they stand in its file, metres."""
        vertices = np.asarray(getattr(self._loaded, "vertices", np.empty((0, 3))), np.float64)
        if len(vertices) == 0 or not np.isfinite(vertices).all():
            raise ValueError(f"{self.mesh}: no finite vertices")
        return vertices * MM

    @cached_property
    def faces(self) -> NDArray[np.int64]:
        """(F, 3) numbers of `points`; none for a file of points alone."""
        return np.asarray(getattr(self._loaded, "faces", ()), np.int64).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class BopDataset:
    """A split of a data set: frames in order of scene and image, objects by id, targets.

    targets maps (scene_id, im_id, obj_id) to the number of instances to be found.
    """

    root: Path
    split: str
    frames: tuple[BopFrame, ...]
    objects: Mapping[int, BopObject]
    targets: Mapping[tuple[int, int, int], int]
    notes: tuple[str, ...] = field(default=())

    def target_frames(self, obj_id: int) -> list[BopFrame]:
        """The frames in which `obj_id` is to be found."""
        return [f for f in self.frames if self.targets.get((f.scene_id, f.im_id, obj_id), 0) > 0]

    def pictures(self) -> Iterator[tuple[BopFrame, NDArray[np.uint8], Camera]]:
        """Every frame with its picture and camera; a broken picture is logged and left out."""
        for frame in self.frames:
            try:
                image, camera = frame.load()
            except ValueError as error:
                _LOG.warning("skipped: %s", error)
                continue
            yield frame, image, camera


def read_bop(root: str | Path, split: str | None = None) -> BopDataset:
    """The data set below `root`.

    Args:
        root: the data set's folder, one of its splits, or a single scene.
        split: name of the split folder; by default the first there is of test, test_*, val, train, ...
    Raises:
        ValueError: a folder without scenes; a file that is broken, with the file and the key.
    Notes:
        Where `test_targets_bop19.json` (or `..._bop24.json`) lies beside the chosen test split, only its
        targets count; otherwise every annotated instance is a target.
    """
    top = Path(root).resolve()  # "." has neither a name nor a parent
    if not top.is_dir():
        raise ValueError(f"{top}: expected the folder of a BOP data set")
    if split is not None and not is_folder_name(split):
        raise ValueError(f"split: expected the name of a folder in {top}, got {split!r}")
    scenes, name, base = _find_scenes(top, split)
    frames: list[BopFrame] = []
    for scene in scenes:
        frames += _read_scene(scene)
    objects = _read_objects(base)
    targets, note = _read_targets(base, name, frames)
    return BopDataset(base, name, tuple(frames), objects, targets, tuple(n for n in (note,) if n))


def _find_scenes(top: Path, split: str | None) -> tuple[list[Path], str, Path]:
    """Scene folders, the split's name and the data set's folder."""

    def scenes_in(folder: Path) -> list[Path]:
        return sorted(p.parent for p in folder.glob("*/scene_camera.json"))

    if split is None and (top / "scene_camera.json").is_file():
        return [top], top.parent.name, _base(top.parent)
    if split is None and scenes_in(top):
        return scenes_in(top), top.name, _base(top)
    for pattern in (split,) if split else SPLITS:
        for folder in sorted(p for p in top.glob(pattern) if p.is_dir()):
            if scenes_in(folder):
                return scenes_in(folder), folder.name, top
    wanted = f"split {split!r}" if split else "split"
    there = ", ".join(sorted(p.name for p in top.iterdir() if p.is_dir())) or "none"
    raise ValueError(
        f"{top}: no {wanted} with scenes (folders that hold scene_camera.json) in it; its folders: {there}"
    )


def _base(split: Path) -> Path:
    return split.parent if any((split.parent / m).is_dir() for m in ("models", "models_eval")) else split


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file and the place of the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None


def _numbers(path: Path, key: str, entry: Any, name: str, count: int) -> Array:
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}, key {key}: {name} is missing")
    try:
        values = np.asarray(entry[name], np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(
            f"{path}, key {key}: {name} should be {count} finite numbers, got {entry[name]!r:.80}"
        )
    return values


def _number(path: Path, key: str, entry: dict[str, Any], name: str, default: float) -> float:
    return float(_numbers(path, key, entry, name, 1)[0]) if name in entry else default


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(k.isdecimal() for k in content):
        raise ValueError(f"{path}: expected an object with image ids as keys")
    return content


def _read_scene(scene: Path) -> list[BopFrame]:
    if not scene.name.isdigit():
        raise ValueError(f"{scene}: a scene folder is named by a number, such as 000002")
    camera_file, gt_file, info_file = (scene / f"scene_{x}.json" for x in ("camera", "gt", "gt_info"))
    cameras = _mapping(camera_file)
    truths = _mapping(gt_file) if gt_file.is_file() else {}
    infos = _mapping(info_file) if info_file.is_file() else {}
    frames = []
    for key in sorted(cameras, key=int):
        K = _numbers(camera_file, key, cameras[key], "cam_K", 9).reshape(3, 3)
        instances = truths.get(key, [])
        info = infos.get(key, [{}] * len(instances) if isinstance(instances, list) else [])
        if not isinstance(instances, list) or not isinstance(info, list) or len(info) != len(instances):
            raise ValueError(f"{info_file}, key {key}: expected as many entries as {gt_file.name} has")
        if not all(isinstance(entry, dict) for entry in info):
            raise ValueError(f"{info_file}, key {key}: expected an object for each instance")
        found = tuple(
            _read_instance(gt_file, f"{key}[{i}]", instance, more)
            for i, (instance, more) in enumerate(zip(instances, info, strict=True))
        )
        scale = _number(camera_file, key, cameras[key], "depth_scale", 1.0)
        frames.append(BopFrame(int(scene.name), int(key), scene, K, scale, found))
    return frames


def _read_instance(path: Path, key: str, entry: Any, info: dict[str, Any]) -> BopInstance:
    R = _numbers(path, key, entry, "cam_R_m2c", 9).reshape(3, 3)
    t = _numbers(path, key, entry, "cam_t_m2c", 3) * MM
    obj_id = int(_numbers(path, key, entry, "obj_id", 1)[0])
    if np.abs(R @ R.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise ValueError(
            f"{path}, key {key}: cam_R_m2c is no rotation (scaled, or mirrored?): {np.round(R, 3).tolist()}"
        )
    fraction = _number(path, key, info, "visib_fract", float("nan"))
    return BopInstance(
        obj_id, Pose(project_to_so3(R), t), fraction, _box(info.get("bbox_obj")), _box(info.get("bbox_visib"))
    )


def _box(value: Any) -> Array | None:
    """[x, y, w, h] as (x0, y0, x1, y1); None for a missing box or the -1 of an invisible one."""
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, (int, float)) for v in value):
        return None
    x, y, w, h = (float(v) for v in value)
    if not (np.isfinite(value).all() and w >= 0 and h >= 0):
        return None
    return np.array([x, y, x + w, y + h])


def _read_objects(base: Path) -> dict[int, BopObject]:
    """Objects of models_eval/, or models/ where that is missing; none for a set without models."""
    for folder in (base / "models_eval", base / "models"):
        path = folder / "models_info.json"
        if path.is_file():
            return {
                int(k): BopObject(
                    int(k),
                    float(_numbers(path, k, info, "diameter", 1)[0]) * MM,
                    bop_symmetries(info, f"{path}, key {k}"),
                    folder / f"obj_{int(k):06d}.ply",
                )
                for k, info in _mapping(path).items()
            }
    return {}


def bop_symmetries(info: Mapping[str, Any], where: str = "models_info.json") -> Array:
    """(S, 4, 4) symmetry transforms of an entry of models_info.json, metres, identity first.

    A continuous symmetry is cut into 315 steps, as the challenge does, and combined with every discrete one.
    """
    discrete = [np.eye(4)]
    for values in _listed(info, "symmetries_discrete", where):
        matrix = np.asarray(values, np.float64)
        if matrix.size != 16 or not np.isfinite(matrix).all():
            raise ValueError(
                f"{where}: symmetries_discrete should be lists of 16 numbers, got {values!r:.80}"
            )
        matrix = matrix.reshape(4, 4).copy()
        matrix[:3, :3], matrix[:3, 3] = project_to_so3(matrix[:3, :3]), matrix[:3, 3] * MM
        discrete.append(matrix)
    continuous = []
    for entry in _listed(info, "symmetries_continuous", where):
        known = entry if isinstance(entry, dict) else {}
        axis, offset = (np.asarray(known.get(k) or (), np.float64) for k in ("axis", "offset"))
        if axis.shape != (3,) or offset.shape != (3,) or not np.linalg.norm(axis) > 0:
            raise ValueError(f"{where}: symmetries_continuous needs an axis and an offset, got {entry!r:.80}")
        turn = trimesh.transformations.rotation_matrix
        angles = 2 * np.pi * np.arange(CONTINUOUS_STEPS) / CONTINUOUS_STEPS
        continuous += [turn(float(a), axis, offset * MM) for a in angles]
    if not continuous:
        return np.stack(discrete)
    return np.stack([c @ d for d in discrete for c in continuous])


def _listed(info: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """The list of that name, empty where it is missing or null."""
    entries = info.get(name) or []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: {name} should be a list, got {entries!r:.80}")
    return entries


def _read_targets(
    base: Path, split: str, frames: list[BopFrame]
) -> tuple[dict[tuple[int, int, int], int], str | None]:
    truths: dict[tuple[int, int, int], int] = {}
    for frame in frames:
        for instance in frame.instances:
            key = (frame.scene_id, frame.im_id, instance.obj_id)
            truths[key] = truths.get(key, 0) + 1
    if not split.startswith("test"):
        return truths, None
    for path in (base / f"test_targets_{year}.json" for year in ("bop19", "bop24")):
        if not path.is_file():
            continue
        entries = read_json(path)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{path}: expected a list of targets")
        asked = [
            (
                *(int(_numbers(path, f"[{i}]", entry, name, 1)[0]) for name in ("scene_id", "im_id")),
                *(int(_number(path, f"[{i}]", entry, name, 1.0)) for name in ("obj_id", "inst_count")),
            )
            for i, entry in enumerate(entries)
        ]
        said = f"targets of {path.name}"
        if all("obj_id" in e for e in entries):
            return {(scene, image, obj): count for scene, image, obj, count in asked}, said
        pictures = {row[:2] for row in asked}
        return {k: n for k, n in truths.items() if k[:2] in pictures}, said
    return truths, None


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. PIL, for it raises on a truncated file where OpenCV returns half a picture."""
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I") or picture.mode == "F":
                return np.repeat(eight_bits(np.asarray(picture, np.float64), picture.mode)[..., None], 3, -1)
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
