"""Training pictures made from a mesh: an endless set in which picture i of seed s is always the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from geopose.cad.guide import CELL, guide
from geopose.cad.model import CadModel
from geopose.cad.render import rasterize
from geopose.cad.symmetry import Symmetries, front
from geopose.data.picture import PictureMaker, SyntheticOptions
from geopose.data.sample import box_centre_size, projected_box, sample_pose, turned_to
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3

F32 = NDArray[Any]  # float32
PADDING = 0.5  # value outside of the picture, in training and in estimation
KINDS = ("crop", "window", "scene", "pair")
_FAR_CELLS = 8.0  # most that a flow is asked to say
_ZOOM = 2.4  # most that a pair shows a part of the object enlarged, as the last comparisons do


class SyntheticDataset(Dataset):
    """Endless training samples of one mesh; `dataset[i]` depends on the seed, the options and i alone.

    kind "crop": for the keypoint network (items: see `_crop`); "window": for the locator (`_window`);
    "pair": a crop and what a pose near the true one predicts there, for the refiner (`_pair`);
    "scene": whole pictures for evaluation (`_scene`). Items are dicts of arrays, ready to be collated.
    """

    def __init__(
        self,
        model: CadModel,
        keypoints: NDArray[np.floating],
        symmetries: Symmetries,
        options: SyntheticOptions,
        seed: int,
        kind: str = "crop",
        length: int = 1 << 40,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        wide = kind in ("window", "scene")  # in the others scattered things would hide the object
        self.maker = PictureMaker(model, options if wide else replace(options, scattered=0))
        self.keypoints = np.asarray(keypoints, float)
        self.symmetries = symmetries
        self.options, self.seed, self.kind, self.length = options, seed, kind, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, KINDS.index(self.kind), index])
        return getattr(self, "_" + self.kind)(generator)

    def _pose(self, generator: np.random.Generator) -> tuple[Pose, NDArray, float]:
        """A pose off the optical axis, and the centre and size of its box on the plane z = 1."""
        view = self.options.view
        while True:
            angle = generator.normal(0, np.deg2rad(14), 2).clip(-0.6, 0.6)
            ray = np.array([np.tan(angle[0]), np.tan(angle[1]), 1.0])
            pose = sample_pose(generator, view, self.maker.centre, self.maker.diameter, ray)
            points = pose.apply(self.maker.vertices)
            near = points[:, 2] > 0.05 * self.maker.diameter
            if near.all():
                break
        plane = points[:, :2] / points[:, 2:]
        centre, size = box_centre_size(np.concatenate([plane.min(0), plane.max(0)]))
        return pose, centre, size

    def _crop(self, generator: np.random.Generator) -> dict[str, Any]:
        """image (3, S, S) uint8; keypoints_px (Sym, K, 2) crop pixels; inside (Sym, K) bool; mask (S/4, S/4)
        visible share of the cell; xyz (3, S/4, S/4) in [-1, 1] of the bounding box; visib_fract (); R (3, 3),
        t (3,), K (3, 3) of the crop; present ()."""
        options, side = self.options, self.options.crop_size
        while True:  # what cannot be seen teaches nothing
            pose, centre, size = self._pose(generator)
            scale = options.crop_scale * np.exp(generator.normal(0, options.crop_jitter))
            middle = centre + generator.normal(0, options.crop_shift, 2) * size
            focal = side / (scale * size)
            cx, cy = 0.5 * (side - 1) - focal * middle
            camera = Camera(focal, focal, cx, cy, (side, side))
            seen_px = float(np.exp(generator.uniform(*np.log(options.crop_range))))
            picture = self.maker.make(generator, camera, pose, pose, min(scale * seen_px / side, 1.0))
            image, visible = picture.image, picture.visible
            if generator.random() < options.truncated:
                image, visible = _cut_off(generator, image, visible)
            if visible.sum() > 0.12 * picture.full.sum():
                break
        cells = side // 4
        mask = cv2.resize(visible, (cells, cells), interpolation=cv2.INTER_AREA)
        weight = picture.full.astype(np.float32)
        inside_share = cv2.resize(weight, (cells, cells), interpolation=cv2.INTER_AREA)[..., None]
        xyz = cv2.resize(picture.xyz, (cells, cells), interpolation=cv2.INTER_AREA)
        xyz = (xyz - inside_share * self.maker.centre) / (np.maximum(inside_share, 1e-3) * self.maker.half)
        xyz = xyz.clip(-1, 1).astype(np.float32)
        targets = self.keypoint_targets(pose, camera)
        inside = ((targets > -0.5) & (targets < side - 0.5)).all(-1)
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "keypoints_px": targets.astype(np.float32),
            "inside": inside,
            "mask": mask,
            "xyz": np.ascontiguousarray(xyz.transpose(2, 0, 1)),
            "visib_fract": np.float32(visible.sum() / max(weight.sum(), 1)),
            "R": pose.R.astype(np.float32),
            "t": pose.t.astype(np.float32),
            "K": np.asarray(camera.K, np.float32),
            "present": np.bool_(True),
        }

    def _pair(self, generator: np.random.Generator) -> dict[str, Any]:
        """image (9, S, S) uint8: the crop and the picture of the `Guide` of a guessed pose; flow (2, S/4, S/4) cells
        from where the guess has a surface point to where it is; drawn (S/4, S/4), where the guess shows one. Most show
        only a part of the object, enlarged, and a guess that is the better for it.

        And for the pose, camera axes, in diameters: points (3, S/4, S/4), those surface points as guessed, from the
        object's centre; centre (3,) of the guess; turn (3, 3) and shift (3,) about that centre, from the guess to the
        truth; focal () in cells."""
        options, side = self.options, self.options.crop_size
        model, maker = self.maker.model, self.maker
        while True:
            guess, centre, size = self._pose(generator)
            zoom = float(np.exp(generator.uniform(0, np.log(_ZOOM)))) if generator.random() < 0.6 else 1.0
            focal = zoom * side / (options.crop_scale * size)
            room = 0.4 * options.crop_scale * size * (1 - 1 / zoom)
            cx, cy = 0.5 * (side - 1) - focal * (centre + generator.uniform(-room, room, 2))
            camera = Camera(focal, focal, cx, cy, (side, side))
            truth = _astray(generator, guess, maker.centre, size, 1 / zoom)
            if generator.random() < options.gross:
                ray = guess.apply(maker.centre[None])[0]
                R = turned_to(ray) @ options.view.sample_rotation(generator)
                truth = Pose(R, ray - R @ maker.centre)
            if not (truth.apply(maker.vertices)[:, 2] > 0.05 * maker.diameter).all():
                continue
            seen_px = float(np.exp(generator.uniform(*np.log(options.crop_range))))
            pixels = min(options.crop_scale * seen_px / (zoom * side), 1.0)
            picture = maker.make(generator, camera, truth, truth, pixels)
            image, visible = picture.image, picture.visible
            if generator.random() < options.truncated:
                image, visible = _cut_off(generator, image, visible)
            if visible.sum() > 0.12 * picture.full.sum():
                break
        drawn = guide(model, guess, camera)
        cells = side // CELL
        flow = np.zeros((2, cells * cells), np.float32)
        moved = np.asarray(camera.project(truth.apply(drawn.points)))
        was = np.asarray(camera.project(guess.apply(drawn.points)))
        flow[:, drawn.cells] = ((moved - was) / CELL).clip(-_FAR_CELLS, _FAR_CELLS).T
        mask = np.zeros(cells * cells, np.float32)
        mask[drawn.cells] = 1
        middle, true_middle = (each.apply(maker.centre[None])[0] for each in (guess, truth))
        points = np.zeros((3, cells * cells), np.float32)
        points[:, drawn.cells] = (guess.apply(drawn.points) - middle).T / maker.diameter
        both = np.concatenate([image, drawn.picture], 2)
        return {
            "image": np.ascontiguousarray(both.transpose(2, 0, 1)),
            "flow": flow.reshape(2, cells, cells),
            "drawn": mask.reshape(cells, cells),
            "points": points.reshape(3, cells, cells),
            "centre": (middle / maker.diameter).astype(np.float32),
            "turn": (truth.R @ guess.R.T).astype(np.float32),
            "shift": ((true_middle - middle) / maker.diameter).astype(np.float32),
            "focal": np.float32(focal / CELL),
        }

    def keypoint_targets(self, pose: Pose, camera: Camera) -> NDArray:
        """(Sym, K, 2) pixels of the keypoints, a row for each discrete symmetry; a continuous one is settled
        by `canonical`."""
        pose = canonical(pose, self.symmetries, self.maker.centre)
        moves = np.asarray(self.symmetries.discrete)
        moved = self.keypoints @ moves[:, :3, :3].mT + moves[:, None, :3, 3]
        return np.asarray(camera.project(pose.apply(moved)))

    def _window(self, generator: np.random.Generator) -> dict[str, Any]:
        """image (3, S, S) uint8; centre_px (2,), size_px () of the box; visib_fract (); present ()."""
        options, side = self.options, self.options.window_size
        pose, centre, size = self._pose(generator)
        size_px = float(np.exp(generator.uniform(*np.log(options.window_range))))
        focal = size_px / size
        # The centre may lie outside by a third of the object.
        margin = min(0.3 * size_px, 0.3 * side)
        centre_px = generator.uniform(-margin, side - 1 + margin, 2)
        cx, cy = centre_px - focal * centre
        camera = Camera(focal, focal, cx, cy, (side, side))
        present = generator.random() >= options.empty
        picture = self.maker.make(generator, camera, pose if present else None, pose)
        seen = float(picture.visible.sum())
        silhouette = max(float(picture.full.sum()), 1.0)
        box = projected_box(self.maker.vertices, pose, camera)
        cut = (box.clip(-0.5, side - 0.5)[2:] - box.clip(-0.5, side - 0.5)[:2]).prod() / (
            box[2:] - box[:2]
        ).prod()
        return {
            "image": np.ascontiguousarray(picture.image.transpose(2, 0, 1)),
            "centre_px": centre_px.astype(np.float32),
            "size_px": np.float32(size_px),
            "visib_fract": np.float32(seen / silhouette * cut if present else 0),
            "present": np.bool_(present and seen > 12),
        }

    def _scene(self, generator: np.random.Generator) -> dict[str, Any]:
        """image (3, H, W) uint8; R, t, K float64; box (4,); silhouette_px () pixels of the object if neither the border
        nor anything else hid it; visib_fract () of them; depth (H, W); mask, mask_visib (H, W) bool; present ()."""
        options = self.options
        width, height = options.scene_wh
        fov = np.deg2rad(generator.uniform(*options.scene_fov_deg))
        camera = Camera.from_fov(fov, options.scene_wh)
        centre_px = generator.uniform(0.06, 0.94, 2) * (width, height)
        size_px = float(np.exp(generator.uniform(*np.log(options.scene_range))))
        ray = np.asarray(camera.unproject(centre_px[None]))[0]
        R = turned_to(ray) @ options.view.sample_rotation(generator)
        reach = float(camera.fx) * self.maker.diameter
        distance = np.clip(reach / size_px, *(np.array(options.view.distance) * self.maker.diameter))
        pose = Pose(R, ray / np.linalg.norm(ray) * distance - R @ self.maker.centre)
        picture = self.maker.make(generator, camera, pose, pose)
        # A thing that is not quite its mesh may show more than that.
        silhouette = max(self._whole_silhouette(pose, camera), int(picture.full.sum()), 1)
        return {
            "image": np.ascontiguousarray(picture.image.transpose(2, 0, 1)),
            "R": pose.R,
            "t": pose.t,
            "K": np.asarray(camera.K, float),
            "box": projected_box(self.maker.vertices, pose, camera),
            "silhouette_px": np.int64(silhouette),
            "visib_fract": np.float32(picture.visible.sum() / silhouette),
            "depth": picture.depth,
            "mask": picture.full,
            "mask_visib": picture.visible > 0.5,
            "present": np.bool_(True),
        }

    def _whole_silhouette(self, pose: Pose, camera: Camera) -> int:
        """Pixels of the object if neither the border nor anything else hid it."""
        box = projected_box(self.maker.vertices, pose, camera)
        corner = np.floor(box[:2])
        size = np.clip(np.ceil(box[2:] - corner) + 1, 1, 4096).astype(int)
        moved = {"cx": camera.cx - float(corner[0]), "cy": camera.cy - float(corner[1])}
        whole = replace(camera, size_wh=(int(size[0]), int(size[1])), **moved)
        vertices = pose.apply(self.maker.vertices)
        return len(rasterize(vertices, self.maker.model.faces, whole, near=1e-3 * self.maker.diameter).pixel)


def _astray(generator: np.random.Generator, pose: Pose, centre: NDArray, size: float, share: float) -> Pose:
    """A pose as far from `pose` as one from keypoints may be: some degrees, some percent of the size (on the plane
    z = 1) and of the distance; often less. Or a `share` of that."""
    much = share * float(np.exp(generator.uniform(np.log(0.15), np.log(1.8))))
    R = np.asarray(exp_so3(generator.normal(0, np.deg2rad(9) * much, 3))) @ pose.R
    at = pose.apply(centre[None])[0]
    ray = at / at[2]
    ray[:2] += generator.normal(0, 0.035 * much, 2) * size
    return Pose(R, ray * at[2] * np.exp(generator.normal(0, 0.06 * much)) - R @ centre)


def canonical(pose: Pose, symmetries: Symmetries, centre: NDArray) -> Pose:
    """The pose among those that look alike under a continuous symmetry that turns the same side to the
    camera.

    With one axis, the object is turned about it until the camera lies in a fixed half plane; with more (a
    sphere), it keeps no rotation but that of the ray it is seen on. Poses without continuous symmetry are
    returned as they are.
    """
    if not symmetries.continuous:
        return pose
    axis, point = (np.asarray(v, float) for v in symmetries.continuous[0])
    if len(symmetries.continuous) > 1:
        seen = pose.apply(point[None])[0]
        R = turned_to(seen)
        return Pose(R, seen - R @ point)
    eye = -pose.R.T @ pose.t - point  # the camera, from the axis
    first = front(axis)
    second = np.cross(axis, first)
    angle = np.arctan2(eye @ second, eye @ first)
    turn = np.asarray(exp_so3(axis / np.linalg.norm(axis) * angle))
    return pose @ Pose(turn, point - turn @ point)


def _cut_off(
    generator: np.random.Generator, image: NDArray[np.uint8], visible: F32
) -> tuple[NDArray[np.uint8], F32]:
    """The sample as if the photograph ended inside it: up to two sides are padded."""
    image, visible = image.copy(), visible.copy()
    side = len(image)
    for _ in range(int(generator.integers(1, 3))):
        width = int(side * generator.uniform(0.05, 0.5))
        parts: list[Any] = [np.s_[:width], np.s_[side - width :], np.s_[:, :width], np.s_[:, side - width :]]
        part = parts[int(generator.integers(4))]
        image[part] = round(255 * PADDING)
        visible[part] = 0
    return image, visible
