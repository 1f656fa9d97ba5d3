"""Pictures of what a network trained by a recipe sees: heatmaps, keypoints close up, and the CAD model in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh

from geopose.cad.model import CadModel
from geopose.data.annotated import AnnotatedSet, moved, warped
from geopose.data.sample import look_at
from geopose.geometry.pose import Pose
from geopose.presets import Reading
from geopose.visualize import Picture, draw_keypoints, draw_pose, heat_overlay, sheet

_SURE = 0.3  # confidence of a keypoint that counts


def crop_of(
    pictures: AnnotatedSet, reading: Reading, row: int, side: int = 256
) -> tuple[Picture, np.ndarray]:
    """What the network looked at in a picture, (side, side, 3), and the affine map (2, 3) to it from the picture."""
    cells = reading.heatmaps.shape[-1]
    ratio = side / (4 * cells)
    matrix = reading.crop_from_image[row] * ratio
    matrix[:, 2] += 0.5 * ratio - 0.5
    return warped(pictures.read(pictures.names[row]), matrix, side), matrix


def draw_found(pictures: AnnotatedSet, reading: Reading, row: int, side: int = 256) -> Picture:
    """The crop of a picture close up: annotated keypoints in red, found ones over them in green."""
    crop, matrix = crop_of(pictures, reading, row, side)
    truth = moved(pictures.keypoints_px[row], matrix)
    crop = draw_keypoints(crop, truth, inliers=np.zeros(len(truth), bool))
    return draw_keypoints(crop, moved(reading.points_px[row], matrix))


def heatmap_sheet(pictures: AnnotatedSet, reading: Reading, rows: Sequence[int], side: int = 128) -> Picture:
    """One line per picture: the crop with its keypoints, then the heatmap of each."""
    tiles = []
    for row in rows:
        crop, _ = crop_of(pictures, reading, row, side)
        tiles.append(draw_found(pictures, reading, row, side))
        tiles += [heat_overlay(crop, np.maximum(h, 0)) for h in reading.heatmaps[row]]
    return sheet(tiles, 1 + reading.heatmaps.shape[1])


def panels(
    pictures: AnnotatedSet, reading: Reading, row: int, pose: Pose, model: CadModel
) -> dict[str, Picture]:
    """The four pictures that tell how a pose came about, by title: true keypoints, heatmaps, keypoints found (in red
    those of low confidence, which hardly count), and the CAD model at the pose `cam_from_obj`."""
    crop, matrix = crop_of(pictures, reading, row, 200)
    small, _ = crop_of(pictures, reading, row, 160)
    heat = [heat_overlay(small, np.maximum(h, 0)) for h in reading.heatmaps[row]]
    return {
        "true keypoints": draw_keypoints(crop, moved(pictures.keypoints_px[row], matrix)),
        "heatmaps": sheet(heat, int(np.ceil(np.sqrt(len(heat))))),
        "keypoints found": draw_keypoints(
            crop, moved(reading.points_px[row], matrix), inliers=reading.confidence[row] > _SURE
        ),
        "the CAD model aligned": draw_pose(
            pictures.read(pictures.names[row]), model, pictures.camera, pose, tint=0.25
        ),
    }


def mesh_model(pictures: AnnotatedSet, name: str = "object") -> CadModel:
    """The CAD model that came with a set. Raises ValueError when none did."""
    if pictures.mesh is None:
        raise ValueError("pictures: the set holds no mesh")
    return CadModel.from_trimesh(trimesh.Trimesh(*pictures.mesh, process=False), name)


def pursuit(frames: int, distance: float) -> list[Pose]:
    """Poses cam_from_obj of the X-wing as a pursuer sees it: from above and behind, weaving and banking; `distance` in
    metres on average."""
    angle = 2 * np.pi * np.arange(frames) / frames
    poses = []
    for a in angle:
        R = look_at(np.deg2rad(30 + 18 * np.sin(2 * a)), np.pi + 0.8 * np.sin(a), np.deg2rad(28 * np.cos(a)))
        where = distance * np.array([0.18 * np.sin(a), 0.10 * np.sin(2 * a), 1.0 + 0.2 * np.cos(a)])
        poses.append(Pose(R, where))
    return poses
