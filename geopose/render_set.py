"""A data set of rendered pictures in the BOP format, and a sheet that shows some of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from geopose.cad.model import CadModel
from geopose.cad.symmetry import find_symmetries
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
    """The folder `out` with `count` pictures of `model`, its only object (number 1), and `sheet.png`.

    Picture i depends on the seed, the options and i alone. Under `torchrun` every rank writes its share as a scene
    of its own; rank 0 writes the mesh and the sheet of its first 32 pictures.

    Raises:
        ValueError: for a count below one, or when `out` holds such a set already.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    out = Path(out)
    rank, world = rank_world()
    symmetries = find_symmetries(model)
    # The keypoints of the samples are not used.
    scenes = SyntheticDataset(model, np.zeros((1, 3)), symmetries, options, seed, kind="scene")
    shown: list[Picture] = []
    with BopWriter(out, split, scene_id=rank) as writer:
        if rank == 0:
            writer.add_model(OBJECT_ID, model, symmetries)
        for index in tqdm(
            split_indices(count, rank, world), disable=not progress or rank > 0, unit="picture"
        ):
            item = scenes[index]
            image = np.ascontiguousarray(item["image"].transpose(1, 2, 0))
            writer.add(
                image,
                Camera.from_matrix(item["K"], options.scene_wh),
                [(OBJECT_ID, Pose(item["R"], item["t"]))],
                item["depth"],
                item["mask"][None],
                item["mask_visib"][None],
            )
            if len(shown) < SHEET_COUNT:
                shown.append(_thumbnail(image))
    if rank == 0:
        save_image(sheet(shown, SHEET_COLUMNS), out / "sheet.png")
    return out


def _thumbnail(image: Picture) -> Picture:
    height = round(SHEET_WIDTH * image.shape[0] / image.shape[1])
    return np.asarray(cv2.resize(image, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)
