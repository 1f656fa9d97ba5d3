"""Photographs with semantic keypoints in five numpy files: read, and a small rendered set written in the same layout.

A folder with `images.npz` (a picture (H, W, 3) uint8 under each name), `train_data.npz` and `valid_data.npz` (`imgname`
(N,) bytes, `center` (N, 2) pixels, `scale` (N,): the square looked at is 200 `scale` pixels wide around `center`, and
`part` (N, K, 2) pixels of the keypoints, not positive where a point is not annotated), `kpt.npy` (K, 3), the keypoints
on the CAD model, and `misc_data.npz` (`K` (3, 3) of the camera, `vertices` (V, 3), `faces` (F, 3) from 0). In such
files data of Pavlakos et al., "6-DoF Object Pose from Semantic Keypoints", ICRA 2017, are handed out for an
exercise; `center`, `scale` and `part` are those of Newell's hourglass code. Where the pixels have another name,
`read_semantic` takes it. Nothing in these files is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path
from geopose.cad.model import CadModel, load_cad
from geopose.data.annotated import AnnotatedSet
from geopose.data.picture import PictureMaker, SyntheticOptions
from geopose.data.sample import ViewSpace, box_centre_size, projected_box, sample_pose, square
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]

SPLITS = ("train", "valid")
_SCALE_PX = 200.0
_MARGIN = 1.35  # side of what is looked at over the size of the object
_CORNERS = ("head_lamp", "tail_lamp", "wheel_front", "wheel_rear", "roof_front", "roof_rear")


def read_semantic(root: str | Path, split: str = "train", annotations: str = "part") -> AnnotatedSet:
    """The pictures of a split as an `AnnotatedSet`; `points_obj` and `mesh` are in the CAD model's unit.

    Pictures are held in memory. Pixels are taken to be counted from the centre of the first.

    Args:
        annotations: key of the keypoints' pixels in `train_data.npz`.
    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: naming the file that is broken, and what of it.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    path = root / f"{split}_data.npz"
    data = _arrays(path, ("imgname", "center", "scale", annotations))
    misc = _arrays(root / "misc_data.npz", ("K", "vertices", "faces"))
    points = _shaped(_arrays(root / "kpt.npy", ("",))[""], (None, 3), root / "kpt.npy", "keypoints")
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in data["imgname"].tolist())
    count, k = len(names), len(points)
    centres = _shaped(data["center"], (count, 2), path, "center")
    sides = _SCALE_PX * _shaped(data["scale"], (count,), path, "scale")
    keypoints = _shaped(data[annotations], (count, k, 2), path, annotations)
    if count == 0 or not (sides > 0).all():
        raise ValueError(f"{path}: expected at least one picture and positive values in 'scale'")
    pictures = _pictures(root / "images.npz", names)
    height, width = next(iter(pictures.values())).shape[:2]
    matrix = _shaped(misc["K"], (3, 3), root / "misc_data.npz", "K")
    faces = _shaped(misc["faces"], (None, 3), root / "misc_data.npz", "faces").astype(np.int32)
    return AnnotatedSet(
        names,
        points,
        np.where((keypoints > 0).all(-1, keepdims=True), keypoints, np.nan),
        np.stack([square(c, s) for c, s in zip(centres, sides, strict=True)]),
        Camera.from_matrix(matrix, (width, height)),
        pictures.__getitem__,
        mesh=(_shaped(misc["vertices"], (None, 3), root / "misc_data.npz", "vertices"), faces),
    )


def car_points(model: CadModel | None = None) -> dict[str, tuple[float, float, float]]:
    """The semantic keypoints of the built-in car: its lamps, wheels and roof corners, by name."""
    named = (model or load_cad("car")).named_keypoints
    return {f"{c}_{side}": named[f"{c}_{side}"] for c in _CORNERS for side in ("left", "right")}


def write_semantic(
    root: str | Path,
    counts: Sequence[int] = (320, 32),
    seed: int = 0,
    size_wh: tuple[int, int] = (256, 192),
    view: ViewSpace | None = None,
) -> Path:
    """The folder `root` with rendered pictures of the built-in car in this layout, `counts` to train on and to judge
    with. The same arguments write the same arrays.

    view: from where the car is seen; its front and left side, from a little above, by default.

    Raises ValueError on counts below one.
    """
    if len(counts) != 2 or min(counts) < 1:
        raise ValueError(f"counts: got {counts!r}, expected two numbers of at least 1")
    root = Path(root)
    view = view or ViewSpace((5.0, 40.0), (10.0, 80.0), (-8.0, 8.0), distance=(1.6, 4.0))
    model = load_cad("car")
    points = np.array(list(car_points(model).values()))
    maker = PictureMaker(model, SyntheticOptions(view=view, clutter=0.3, occluders=0.2))
    camera = Camera.from_fov(np.deg2rad(50.0), size_wh)
    images: dict[str, NDArray[np.uint8]] = {}
    for split_number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        rows: dict[str, list[Any]] = {"imgname": [], "center": [], "scale": [], "part": []}
        for number in range(count):
            generator = np.random.default_rng([seed, split_number, number])
            pose, box = _car_view(generator, view, maker, camera)
            name = f"{split}_{number}.jpg"
            images[name] = maker.make(generator, camera, pose, pose).image
            centre, size = box_centre_size(box)
            part = np.asarray(camera.project(pose.apply(points)))
            values = (name.encode(), centre, _MARGIN * size / _SCALE_PX, part)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
        _save(root / f"{split}_data.npz", {key: np.array(column) for key, column in rows.items()})
    _save(root / "images.npz", images)
    _save(root / "misc_data.npz", {"K": camera.K, "vertices": model.vertices, "faces": model.faces})
    with atomic_path(root / "kpt.npy") as temporary:
        np.save(temporary, points)
    return root


def _car_view(
    generator: np.random.Generator, view: ViewSpace, maker: PictureMaker, camera: Camera
) -> tuple[Pose, Array]:
    """A pose that shows the whole car, and its box."""
    width, height = camera.size_wh
    while True:
        ray = np.array([*np.tan(generator.normal(0, np.deg2rad(8), 2)), 1.0])
        pose = sample_pose(generator, view, maker.centre, maker.diameter, ray)
        box = projected_box(maker.vertices, pose, camera)
        if (box[:2] > 0).all() and box[2] < width - 1 and box[3] < height - 1:
            return pose, box


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a numpy file under `keys`; of a file of one array, that under the key ""."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if list(keys) != [""]:
                raise ValueError(f"got one array, expected {', '.join(keys)}")
            return {"": loaded}
        with loaded as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise ValueError(f"got the arrays {sorted(file.files)}, expected {', '.join(keys)}")
            return {key: file[key] for key in keys}
    except Exception as error:  # numpy lets any error of zipfile, zlib and its own parser through
        raise ValueError(f"{path}: {error}") from None


def _pictures(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    found = _arrays(path, sorted(set(names)))
    for name, picture in found.items():
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"{path}: {name}: expected a picture (H, W, 3) uint8, got {picture.dtype} {picture.shape}"
            )
    return found


def _shaped(array: NDArray[Any], shape: Sequence[int | None], path: Path, what: str) -> Array:
    """The array as finite floats if it has this shape (None: any length)."""
    good = array.ndim == len(shape) and all(e in (None, n) for e, n in zip(shape, array.shape, strict=False))
    if not good or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        words = ", ".join("N" if e is None else str(e) for e in shape)
        raise ValueError(
            f"{path}: {what!r}: expected finite numbers of shape ({words}), got {array.dtype} {array.shape}"
        )
    return np.asarray(array, float)
