"""Training pictures made from a mesh: an endless set in which picture i of seed s is always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from geopose.cad.model import CadModel
from geopose.cad.render import Fragments, facing, rasterize, surface_color
from geopose.cad.shading import (
    Lighting,
    cast_shadow,
    encode,
    ground_shadow,
    random_lighting,
    random_material,
    shade,
    vary_color,
)
from geopose.cad.symmetry import Symmetries
from geopose.data import augment, clutter
from geopose.data.sample import (
    ViewSpace,
    box_centre_size,
    projected_box,
    sample_pose,
    square,
    turned_to,
)
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3

F32 = NDArray[np.float32]
PADDING = 0.5  # value outside of the picture, in training and in estimation
KINDS = ("crop", "window", "scene")


@dataclass(frozen=True)
class SyntheticOptions:
    """What pictures to make.

    crop_size: pixels of a crop; crop_scale: side of a crop over the object's size; crop_jitter: standard deviation of the logarithm of that;
    crop_shift: standard deviation of the crop's centre in object sizes; window_size: pixels of a locator's window; window_range: object sizes in it;
    scene_wh, scene_range, scene_fov_deg: whole pictures; empty: share of windows without the object; clutter, occluders: probabilities of other
    things in space and of flat shapes before the object; truncated: share of crops that reach over the picture's border;
    backgrounds: a folder of photographs to use instead of the built-in backgrounds; max_faces: the mesh is simplified to this.
    """

    view: ViewSpace = field(default_factory=ViewSpace)
    crop_size: int = 128
    crop_scale: float = 1.5
    crop_jitter: float = 0.1
    crop_shift: float = 0.07
    window_size: int = 160
    window_range: tuple[float, float] = (14.0, 260.0)
    scene_wh: tuple[int, int] = (640, 480)
    scene_range: tuple[float, float] = (40.0, 500.0)
    scene_fov_deg: tuple[float, float] = (35.0, 75.0)
    empty: float = 0.25
    clutter: float = 0.6
    occluders: float = 0.4
    truncated: float = 0.12
    backgrounds: str | None = None
    max_faces: int = 2500


@dataclass(frozen=True)
class Picture:
    """A finished picture and the truth about it.

    image: (H, W, 3) uint8 RGB; visible: (H, W) float32, 1 where the object is seen; full: (H, W) bool, its silhouette without occluders;
    xyz: (H, W, 3) float32 object coordinates in metres where full; depth: (H, W) float32 metres of what is seen, 0 for background.
    """

    image: NDArray[np.uint8]
    visible: F32
    full: NDArray[np.bool_]
    xyz: F32
    depth: F32


class PictureMaker:
    """Pictures of one mesh under random light, among random things."""

    def __init__(self, model: CadModel, options: SyntheticOptions) -> None:
        self.model = model.simplified(options.max_faces)
        self.options = options
        self.vertices = self.model.vertices
        self.centre = 0.5 * (self.model.bounds[0] + self.model.bounds[1])
        self.half = np.maximum(0.5 * self.model.extents, 1e-3 * model.diameter)
        self.diameter = model.diameter
        self.background: Callable[..., NDArray[np.uint8]] = (
            clutter.BackgroundFolder(options.backgrounds) if options.backgrounds else clutter.background
        )

    def make(self, generator: np.random.Generator, camera: Camera, pose: Pose | None, where: Pose) -> Picture:
        """A Picture by `camera` (no distortion).

        pose: the object's cam_from_obj, or None to leave it out. where: the pose around which other things stand.
        """
        width, height = camera.size_wh
        up = where.R @ np.array([0.0, 0, 1.0])
        lighting = random_lighting(generator, up if generator.random() < 0.5 else None)
        backdrop = self.background(generator, (width, height)).astype(np.float32) / 255
        light = (backdrop * backdrop).reshape(-1, 3)
        depth = np.full(height * width, np.inf, np.float32)
        full = np.zeros((height, width), bool)
        visible = np.zeros(height * width, np.float32)
        xyz = np.zeros((height * width, 3), np.float32)
        covered = np.zeros(height * width, np.float32)
        if generator.random() < self.options.clutter:
            self._add_clutter(generator, camera, where, lighting, light, depth, covered)
        if pose is not None:
            seen, nearer, coords = self._add_object(generator, camera, pose, lighting, light, depth, covered)
            full.reshape(-1)[seen.pixel] = True
            visible[seen.pixel[nearer]] = 1
            xyz[seen.pixel] = coords
        if generator.random() < 0.7:
            shadow = ground_shadow(generator, covered.reshape(height, width)).reshape(-1)
            light *= np.where(covered > 0, 1, shadow)[:, None]
        image = encode(light).reshape(height, width, 3)
        visible = visible.reshape(height, width)
        if generator.random() < self.options.occluders and pose is not None:
            self._add_shapes(generator, image, visible, full)
        fine = min(width, height) / 128
        image = augment.defocus(generator, image, min(fine, 1.6))
        image = augment.tone(generator, image)
        depth[~np.isfinite(depth)] = 0
        shape = (height, width)
        return Picture(
            augment.sensor(generator, image), visible, full, xyz.reshape(*shape, 3), depth.reshape(shape)
        )

    def _add_object(
        self,
        generator: np.random.Generator,
        camera: Camera,
        pose: Pose,
        lighting: Lighting,
        light: F32,
        depth: F32,
        covered: F32,
    ) -> tuple[Fragments, NDArray[np.bool_], F32]:
        model = self.model
        vertices = (self.vertices @ pose.R.T + pose.t).astype(np.float32)
        seen = rasterize(vertices, model.faces, camera, near=1e-3 * self.diameter)
        coords = seen.interpolate(self.vertices.astype(np.float32), model.faces)
        nearer = seen.depth < depth[seen.pixel]
        points = seen.interpolate(vertices, model.faces)
        normals = facing(seen.interpolate(model.normals @ pose.R.T.astype(np.float32), model.faces), points)
        color = surface_color(model, seen)
        if model.colors is None and model.texture is None:
            # An unpainted mesh may have any colour.
            color = np.broadcast_to(clutter.palette(generator, 1)[0], color.shape).astype(np.float32)
        color = vary_color(generator, color, ((coords - self.centre) / self.diameter).astype(np.float32))
        shadow = None
        if generator.random() < 0.3 and len(points):
            shadow = cast_shadow(points, lighting.directions[0], vertices, model.faces)
        shaded = shade(color, normals, points, lighting, random_material(generator), shadow)
        light[seen.pixel[nearer]] = shaded[nearer]
        depth[seen.pixel[nearer]] = seen.depth[nearer]
        covered[seen.pixel] = 1
        return seen, nearer, coords.astype(np.float32)

    def _add_clutter(
        self,
        generator: np.random.Generator,
        camera: Camera,
        where: Pose,
        lighting: Lighting,
        light: F32,
        depth: F32,
        covered: F32,
    ) -> None:
        """Other meshes around the object: some behind, some beside, some before it."""
        target = where.R @ self.centre + where.t
        vertices, faces, colors, start = [], [], [], 0
        for _ in range(int(generator.integers(1, 5))):
            v, f, c = clutter.distractor(generator)
            size = self.diameter * np.exp(generator.uniform(np.log(0.3), np.log(1.6)))
            offset = generator.normal(0, 1, 3) * np.array([0.75, 0.75, 0.6]) * self.diameter
            turn = np.asarray(exp_so3(generator.normal(0, 2, 3)))
            vertices.append(v * size @ turn.T + target + offset)
            faces.append(f + start)
            colors.append(c)
            start += len(v)
        cam = np.concatenate(vertices).astype(np.float32)
        face = np.concatenate(faces)
        seen = rasterize(cam, face, camera, near=0.05 * self.diameter)
        if len(seen.pixel) == 0:
            return
        corners = cam[face]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        points = seen.interpolate(cam, face)
        color = seen.interpolate(np.concatenate(colors).astype(np.float32), face)
        if generator.random() < 0.5:
            color = vary_color(generator, color, points / np.float32(self.diameter))
        normals = facing(flat[seen.face], points)
        light[seen.pixel] = shade(color, normals, points, lighting, random_material(generator))
        depth[seen.pixel] = seen.depth
        covered[seen.pixel] = 1

    def _add_shapes(
        self, generator: np.random.Generator, image: F32, visible: F32, full: NDArray[np.bool_]
    ) -> None:
        """Flat textured shapes before the object, in place."""
        ys, xs = np.nonzero(full)
        if len(ys) == 0:
            return
        height, width = full.shape
        extent = max(float(np.ptp(xs)), float(np.ptp(ys)), 8.0)
        cover = np.zeros((height, width), np.float32)
        for _ in range(int(generator.integers(1, 4))):
            i = int(generator.integers(len(ys)))
            middle = np.array([xs[i], ys[i]]) + generator.normal(0, 0.25 * extent, 2)
            count = int(generator.integers(3, 8))
            angles = np.sort(generator.uniform(0, 2 * np.pi, count))
            radius = extent * generator.uniform(0.08, 0.4) * generator.uniform(0.6, 1.2, count)
            corners = middle + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
            cv2.fillPoly(cover, [np.rint(corners * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_AA, shift=4)
        texture = self.background(generator, (width, height)).astype(np.float32) / 255
        image += (texture - image) * cover[..., None]
        visible *= 1 - cover


class SyntheticDataset(Dataset):
    """Endless training samples of one mesh; `dataset[i]` depends on the seed, the options and i alone.

    kind "crop": for the keypoint network; "window": for the locator; "scene": whole pictures for evaluation.
    Items are dicts of arrays; `SAMPLES` in the documentation of each kind's method names them.
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
        self.maker = PictureMaker(model, options)
        self.keypoints = np.asarray(keypoints, float)
        self.symmetries = symmetries
        self.options, self.seed, self.kind, self.length = options, seed, kind, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, NDArray]:
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

    def _crop(self, generator: np.random.Generator) -> dict[str, NDArray]:
        """image (3, S, S) uint8; keypoints_px (Sym, K, 2) crop pixels; inside (Sym, K) bool; mask (S/4, S/4) visible share of the cell;
        xyz (3, S/4, S/4) in [-1, 1] of the bounding box; visib_fract (); R (3, 3), t (3,), K (3, 3) of the crop; present ()."""
        options, side = self.options, self.options.crop_size
        while True:  # what cannot be seen teaches nothing
            pose, centre, size = self._pose(generator)
            scale = options.crop_scale * np.exp(generator.normal(0, options.crop_jitter))
            middle = centre + generator.normal(0, options.crop_shift, 2) * size
            focal = side / (scale * size)
            camera = Camera(focal, focal, *(0.5 * (side - 1) - focal * middle), size_wh=(side, side))
            picture = self.maker.make(generator, camera, pose, pose)
            image, visible = picture.image, picture.visible
            if generator.random() < options.truncated:
                image, visible = _cut_off(generator, image, visible)
            if visible.sum() > 0.12 * picture.full.sum():
                break
        cells = side // 4
        mask = cv2.resize(visible, (cells, cells), interpolation=cv2.INTER_AREA)
        weight = picture.full.astype(np.float32)
        inside_share = cv2.resize(weight, (cells, cells), interpolation=cv2.INTER_AREA)
        local = ((picture.xyz - self.maker.centre) / self.maker.half * weight[..., None]).astype(np.float32)
        xyz = cv2.resize(local, (cells, cells), interpolation=cv2.INTER_AREA)
        xyz = (xyz / np.maximum(inside_share, 1e-3)[..., None]).clip(-1, 1)
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

    def keypoint_targets(self, pose: Pose, camera: Camera) -> NDArray:
        """(Sym, K, 2) pixels of the keypoints, a row for each discrete symmetry; a continuous one is settled by `canonical`."""
        pose = canonical(pose, self.symmetries, self.maker.centre)
        moves = np.asarray(self.symmetries.discrete)
        moved = self.keypoints @ moves[:, :3, :3].mT + moves[:, None, :3, 3]
        return np.asarray(camera.project(pose.apply(moved)))

    def _window(self, generator: np.random.Generator) -> dict[str, NDArray]:
        """image (3, S, S) uint8; centre_px (2,), size_px () of the box; visib_fract (); present ()."""
        options, side = self.options, self.options.window_size
        pose, centre, size = self._pose(generator)
        size_px = float(np.exp(generator.uniform(*np.log(options.window_range))))
        focal = size_px / size
        # The centre may lie outside by a third of the object.
        margin = min(0.3 * size_px, 0.3 * side)
        centre_px = generator.uniform(-margin, side - 1 + margin, 2)
        camera = Camera(focal, focal, *(centre_px - focal * centre), size_wh=(side, side))
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

    def _scene(self, generator: np.random.Generator) -> dict[str, NDArray]:
        """image (3, H, W) uint8; R, t, K float64; box (4,); visib_fract (); depth (H, W); mask, mask_visib (H, W) bool; present ()."""
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
        present = generator.random() >= options.empty if self.kind == "window" else True
        picture = self.maker.make(generator, camera, pose if present else None, pose)
        silhouette = self._whole_silhouette(pose, camera)
        return {
            "image": np.ascontiguousarray(picture.image.transpose(2, 0, 1)),
            "R": pose.R,
            "t": pose.t,
            "K": np.asarray(camera.K, float),
            "box": projected_box(self.maker.vertices, pose, camera),
            "visib_fract": np.float32(min(picture.visible.sum() / max(silhouette, 1), 1)),
            "depth": picture.depth,
            "mask": picture.full,
            "mask_visib": picture.visible > 0.5,
            "present": np.bool_(present),
        }

    def _whole_silhouette(self, pose: Pose, camera: Camera) -> int:
        """Pixels of the object if neither the border nor anything else hid it."""
        box = projected_box(self.maker.vertices, pose, camera)
        size = np.clip(np.ceil(box[2:] - box[:2]), 1, 4096).astype(int)
        whole = camera.crop_resize(box, (int(size[0]), int(size[1])))
        vertices = pose.apply(self.maker.vertices)
        return len(rasterize(vertices, self.maker.model.faces, whole, near=1e-3 * self.maker.diameter).pixel)


def canonical(pose: Pose, symmetries: Symmetries, centre: NDArray) -> Pose:
    """The pose among those that look alike under a continuous symmetry that turns the same side to the camera.

    With one axis, the object is turned about it until the camera lies in a fixed half plane; with more (a sphere), it keeps no rotation
    but that of the ray it is seen on. Poses without continuous symmetry are returned as they are.
    """
    if not symmetries.continuous:
        return pose
    axis, point = (np.asarray(v, float) for v in symmetries.continuous[0])
    if len(symmetries.continuous) > 1:
        seen = pose.apply(point[None])[0]
        R = turned_to(seen)
        return Pose(R, seen - R @ point)
    eye = -pose.R.T @ pose.t - point  # the camera, from the axis
    across = np.eye(3)[np.argmin(np.abs(axis))]
    first = np.cross(axis, across)
    first /= np.linalg.norm(first)
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
        part = [np.s_[:width], np.s_[side - width :], np.s_[:, :width], np.s_[:, side - width :]][
            generator.integers(4)
        ]
        image[part] = round(255 * PADDING)
        visible[part] = 0
    return image, visible
