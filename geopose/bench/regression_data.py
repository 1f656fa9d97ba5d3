"""The pictures of the comparison: one rendered set per object, made once and kept in a folder.

Each picture is a crop as a detector would cut it, with the camera of that crop: the same pictures, and the same camera,
for every method. Those that regress are spared what a crop does to a pose: they learn the place and the attitude of
the object in the *view*, the camera turned so that it looks through the crop's middle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import CadModel, load_cad
from geopose.cad.symmetry import Symmetries, find_symmetries
from geopose.data.courtyard import write_courtyard
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace, turned_to
from geopose.data.synthetic import SyntheticDataset
from geopose.fit import cores_shared_with, default_workers, endless_loader
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]

CONDITIONS = ("easy", "occluded", "far", "new background")
"""How the test pictures are taken; the first as those for training."""

SPLITS = ("train", "val", *CONDITIONS)
_KEYS = ("image", "keypoints_px", "inside", "mask", "xyz", "visib_fract", "R", "t", "K")
_HALF = ("mask", "xyz")  # stored with half precision
_BATCH = 16
_ADD_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Target:
    """An object of the comparison: mesh, points to detect (K, 3), symmetries, the middle (3,) of its box, and points
    (P, 3) of its surface for ADD; metres."""

    model: CadModel
    keypoints: Array
    symmetries: Symmetries
    centre: Array
    points: Array

    @classmethod
    def of(cls, name: str, keypoints: int) -> Target:
        """The target of a built-in object or mesh file."""
        model = load_cad(name)
        symmetries = find_symmetries(model)
        chosen = np.asarray(choose_keypoints(model, keypoints, symmetries), float)
        surface, _ = model.sample_surface(_ADD_POINTS, np.random.default_rng(0))
        return cls(model, chosen, symmetries, model.bounds.mean(0), surface)


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures of a split and the truth about them: arrays of the items of `SyntheticDataset` by name."""

    arrays: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, key: str) -> NDArray[Any]:
        return self.arrays[key]

    @property
    def size(self) -> int:
        """Side of a picture, pixels."""
        return int(self.arrays["image"].shape[-1])

    @property
    def pose(self) -> Pose:
        """(N,) true poses cam_from_obj."""
        return Pose(self["R"].astype(np.float64), self["t"].astype(np.float64))

    @property
    def camera(self) -> Camera:
        """(N,) cameras of the crops."""
        K = self["K"].astype(np.float64)
        return Camera(K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], (self.size, self.size))

    def first(self, count: int) -> Pictures:
        """The first `count` of them."""
        return Pictures({k: v[:count] for k, v in self.arrays.items()})

    def rgb(self, row: int) -> NDArray[np.uint8]:
        """(S, S, 3) a picture."""
        return np.ascontiguousarray(self["image"][row].transpose(1, 2, 0))


def view_of(camera: Camera) -> tuple[Array, Array]:
    """Rotations (N, 3, 3) cam_from_view of cameras (N,) of crops, and focal lengths (N,) over the side, of views that
    look through the crops' middle."""
    middle = (camera.size_wh[0] - 1) / 2
    rays = np.stack(
        [(middle - camera.cx) / camera.fx, (middle - camera.cy) / camera.fy, np.ones_like(camera.fx)], -1
    )
    turns = np.stack([turned_to(ray) for ray in rays])
    return turns, camera.fx * np.linalg.norm(rays, axis=-1) / camera.size_wh[0]


def to_view(pose: Pose, camera: Camera, target: Target) -> tuple[Array, Array]:
    """Place (N, 3) and attitude (N, 3, 3) of the object in the views of crops.

    The place is x and y of the middle of the object's box from the crop's middle, in sides of the crop, and the
    logarithm of its depth, in units of what makes a diameter as wide as the crop.
    """
    turns, focal = view_of(camera)
    at = (turns.mT @ pose.apply(target.centre[None]).mT)[..., 0]
    place = np.column_stack(
        [at[:, :2] / at[:, 2:] * focal[:, None], np.log(at[:, 2] / (focal * target.model.diameter))]
    )
    return place, turns.mT @ pose.R


def from_view(place: Array, attitude: Array, camera: Camera, target: Target) -> Pose:
    """The poses (N,) of places and attitudes in views: the inverse of `to_view`."""
    turns, focal = view_of(camera)
    depth = np.exp(place[:, 2]) * focal * target.model.diameter
    at = np.column_stack([place[:, :2] / focal[:, None], np.ones(len(place))]) * depth[:, None]
    R = turns @ attitude
    return Pose(R, (turns @ at[..., None])[..., 0] - R @ target.centre)


def picture_options(
    condition: str, size: int, view: ViewSpace, backgrounds: str | None = None
) -> SyntheticOptions:
    """How pictures of a split are made. "occluded": there are always other things before and around the object; "far":
    the object had 16 to 32 pixels; "new background": photographs of the built courtyard stand behind it."""
    usual = SyntheticOptions(
        view=view, crop_size=size, clutter=0.3, occluders=0.2, truncated=0.0, crop_range=(40.0, 280.0)
    )
    changes: dict[str, dict[str, Any]] = {
        "occluded": {"clutter": 1.0, "occluders": 1.0},
        "far": {"crop_range": (16.0, 32.0)},
        "new background": {"backgrounds": backgrounds},
    }
    return replace(usual, **changes.get(condition, {}))


def render_sets(
    target: Target,
    folder: Path,
    counts: dict[str, int],
    size: int,
    view: ViewSpace,
    seed: int,
    workers: int | None,
    quiet: bool = False,
) -> dict[str, Pictures]:
    """The pictures of every split of `counts`, from `folder` where they were made before, else rendered by `workers`
    processes, None for one on each core.

    Raises:
        ValueError: when the folder holds pictures made otherwise.
    """
    workers = 2 * default_workers() if workers is None else workers
    found = {}
    for number, split in enumerate(SPLITS):
        if split not in counts:
            continue
        path = folder / f"{split.replace(' ', '_')}.npz"
        identity = json.dumps(
            [target.model.content_hash, len(target.keypoints), size, counts[split], repr(view), seed]
        )
        if not path.is_file():
            backgrounds = str(_courtyard(folder.parent)) if split == "new background" else None
            options = picture_options(split, size, view, backgrounds)
            dataset = SyntheticDataset(
                target.model, target.keypoints, target.symmetries, options, 1000 * seed + 10 + number, "crop"
            )
            _render(dataset, path, identity, counts[split], workers, f"{target.model.name}, {split}", quiet)
        with np.load(path, allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                raise ValueError(
                    f"{path}: holds pictures made with other options; delete it or take another folder"
                )
            found[split] = Pictures({key: file[key] for key in _KEYS})
    return found


def _courtyard(folder: Path) -> Path:
    root = folder / "courtyard"
    if not (root / "dataset_test.txt").is_file():  # written last
        write_courtyard(root, (12, 4), seed=3)
    return root


def _render(
    dataset: SyntheticDataset, path: Path, identity: str, count: int, workers: int, title: str, quiet: bool
) -> None:
    batches: list[dict[str, Any]] = []
    dataset[0]  # what all pictures share is made here, for the processes forked from this one
    with cores_shared_with(workers), tqdm(total=count, desc=title, disable=quiet) as bar:
        size = min(_BATCH, count)
        for batch in endless_loader(dataset, size, workers, 0):
            batches.append({key: batch[key].numpy() for key in _KEYS})
            bar.update(min(size, count - bar.n))
            if size * len(batches) >= count:
                break
    arrays: dict[str, Any] = {key: np.concatenate([b[key] for b in batches])[:count] for key in _KEYS}
    arrays |= {key: arrays[key].astype(np.float16) for key in _HALF}
    arrays["identity"] = np.array(identity)
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
