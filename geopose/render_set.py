"""A data set of rendered pictures in the BOP format, and a sheet that shows some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from geopose.cad.model import CadModel
from geopose.cad.symmetry import find_symmetries
from geopose.data.bop import MM
from geopose.data.bop_write import BopWriter
from geopose.data.picture import SyntheticOptions
from geopose.data.synthetic import SyntheticDataset
from geopose.distributed import rank_world, split_indices
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.visualize import Picture, save_image, sheet

OBJECT_ID = 1
SHEET_COUNT, SHEET_COLUMNS, SHEET_WIDTH = 32, 8, 240


def render_set(
    model: CadModel,
    out: str | Path,
    count: int,
    options: SyntheticOptions,
    seed: int = 0,
    split: str = "train_pbr",
    progress: bool = False,
) -> Path:
    """The folder `out` with `count` pictures of `model`, its only object (number 1), and `sheet.png`, which is
    `sheet_SPLIT.png` where another split's is there.

    Picture i depends on the seed, the options and i alone. Under `torchrun` every rank writes its share as a scene
    of its own, and the same mesh; rank 0 writes the sheet of the first 32 pictures of all.

    Raises:
        ValueError: for a count below one, or when `out` holds such a set already, or one of another mesh, or a
            `sheet_SPLIT.png`.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    out = Path(out)
    rank, world = rank_world()
    symmetries = find_symmetries(model)
    # The keypoints of the samples are not used.
    scenes = SyntheticDataset(model, np.zeros((1, 3)), symmetries, options, seed, kind="scene")
    shown: dict[int, Picture] = {}
    far = (2 * options.view.distance[1] + 4) * model.diameter  # things behind the object included
    with BopWriter(out, split, rank, depth_scale=max(0.1, far / MM / 65535)) as writer:
        shows = _sheet_path(out, split) if rank == 0 else None
        writer.add_model(OBJECT_ID, model, symmetries)  # by all ranks: the boxes are those of its vertices
        for index in tqdm(
            split_indices(count, rank, world), disable=not progress or rank > 0, unit="picture"
        ):
            item = scenes[index]
            image = _image(item)
            writer.add(
                image,
                Camera.from_matrix(item["K"], options.scene_wh),
                [(OBJECT_ID, Pose(item["R"], item["t"]))],
                item["depth"],
                item["mask"][None],
                item["mask_visib"][None],
                [int(item["silhouette_px"])],
            )
            if rank == 0 and index < SHEET_COUNT:
                shown[index] = _thumbnail(image)
    if shows is not None:
        for index in set(range(min(count, SHEET_COUNT))) - set(shown):  # the other ranks', made once more
            shown[index] = _thumbnail(_image(scenes[index]))
        save_image(sheet([shown[index] for index in sorted(shown)], SHEET_COLUMNS), shows)
    return out


def _sheet_path(out: Path, split: str) -> Path:
    """A name that nothing in `out` has."""
    first, other = out / "sheet.png", out / f"sheet_{split}.png"
    if first.exists() and other.exists():
        raise ValueError(f"{other} is there already; choose another folder or split, or move it away")
    return other if first.exists() else first


def _image(item: dict[str, Any]) -> Picture:
    return np.ascontiguousarray(item["image"].transpose(1, 2, 0))


def _thumbnail(image: Picture) -> Picture:
    height = round(SHEET_WIDTH * image.shape[0] / image.shape[1])
    return np.asarray(cv2.resize(image, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
