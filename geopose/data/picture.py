"""One training picture: the object under random light, among random things, seen by a random camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.cad.render import Fragments, facing, rasterize
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
from geopose.data import augment, clutter
from geopose.data.sample import Array, ViewSpace
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

F32 = NDArray[Any]  # float32
_MOST_MESH_ERROR = 0.1  # diameters, beyond which it is another thing
_WAVES = 6  # of a thing that is not quite its mesh
_LONG = (-0.7, 0.7)  # logarithms of their length over the thing's, shortest and longest


@dataclass(frozen=True)
class SyntheticOptions:
    """What pictures to make.

    crop_size: pixels of a crop; crop_scale: side of a crop over the object's size; crop_jitter: standard
    deviation of the logarithm of that; crop_shift: standard deviation of the crop's centre in object sizes;
    crop_range: sizes in the photograph, pixels: smaller ones are enlarged to the crop, as they will be;
    window_size: pixels of a locator's window; window_range: object sizes in it; scene_wh: size of whole pictures,
    pixels; scene_range: sizes of the object in them, pixels; scene_fov_deg: their horizontal field of view, degrees;
    empty: share of windows without the object; clutter: probability of other things beside and before the object;
    scattered: most of them that stand anywhere in a window or whole picture, not only at the object; alike: share of
    them that have its colours, so that shape must tell them apart; occluders: probability of flat shapes before it;
    truncated: share of crops that reach over the picture's border; gross: share of the refiner's guesses that are
    altogether wrong; mesh_error: how far the thing's surface is from its mesh, diameters, root mean square over
    pictures: a scan is rounder than the thing, a part is worn; softest: most blur of the sensor's pixels, see
    `augment.defocus`; backgrounds: a folder of photographs to use instead of the built-in backgrounds; max_faces: the
    mesh is simplified to this.
    """

    view: ViewSpace = field(default_factory=ViewSpace)
    crop_size: int = 128
    crop_scale: float = 1.5
    crop_jitter: float = 0.16
    crop_shift: float = 0.08
    crop_range: tuple[float, float] = (28.0, 280.0)
    window_size: int = 160
    window_range: tuple[float, float] = (14.0, 260.0)
    scene_wh: tuple[int, int] = (640, 480)
    scene_range: tuple[float, float] = (40.0, 500.0)
    scene_fov_deg: tuple[float, float] = (35.0, 75.0)
    empty: float = 0.25
    clutter: float = 0.6
    scattered: int = 0
    alike: float = 0.0
    occluders: float = 0.4
    truncated: float = 0.12
    gross: float = 0.06
    mesh_error: float = 0.0
    softest: float = 1.6
    backgrounds: str | None = None
    max_faces: int = 2500

    def __post_init__(self) -> None:
        if not 0 <= self.mesh_error <= _MOST_MESH_ERROR:
            raise ValueError(
                f"mesh_error: got {self.mesh_error!r}, expected diameters, 0 to {_MOST_MESH_ERROR:g}"
            )


@dataclass(frozen=True)
class Picture:
    """A finished picture and the truth about it.

    image: (H, W, 3) uint8 RGB; visible: (H, W) float32, 1 where the object is seen; full: (H, W) bool, its
    silhouette without occluders; xyz: (H, W, 3) float32 object coordinates in metres where full; depth: (H,
    W) float32 metres of what is seen, 0 for background.
    """

    image: NDArray[np.uint8]
    visible: F32
    full: NDArray[np.bool_]
    xyz: F32
    depth: F32


class PictureMaker:
    """Pictures of one mesh under random light, among random things."""

    def __init__(self, model: CadModel, options: SyntheticOptions) -> None:
        self.model = model.baked(options.max_faces).simplified(options.max_faces)
        self.options = options
        self.vertices = self.model.vertices
        self.centre = 0.5 * (self.model.bounds[0] + self.model.bounds[1])
        self.half = np.maximum(0.5 * self.model.extents, 1e-3 * model.diameter)
        self.diameter = model.diameter
        # Object coordinates, normals and colours side by side are interpolated in one go.
        parts = [self.vertices, self.model.normals]
        if self.model.colors is not None:
            parts.append(self.model.colors)
        self.attributes = np.concatenate([np.asarray(p, np.float32) for p in parts], axis=1)
        self.background: Callable[..., NDArray[np.uint8]] = (
            clutter.BackgroundFolder(options.backgrounds) if options.backgrounds else clutter.background
        )

    def make(
        self,
        generator: np.random.Generator,
        camera: Camera,
        pose: Pose | None,
        where: Pose,
        pixels: float = 1.0,
    ) -> Picture:
        """A Picture by `camera` (no distortion).

        pose: the object's cam_from_obj, or None to leave it out. where: the pose around which other things
        stand. pixels: the share of the picture's width and height that the sensor had; the rest was enlarged.
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
        seen_mask = visible.reshape(height, width)
        if generator.random() < self.options.occluders and pose is not None:
            self._add_shapes(generator, image, seen_mask, full)
        if pixels < 1:  # blur, noise and compression belong to the sensor's pixels
            small = max(round(width * pixels), 8), max(round(height * pixels), 8)
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        fine = min(image.shape[:2]) / 128
        image = augment.defocus(generator, image, min(fine, self.options.softest))
        taken = augment.sensor(generator, augment.tone(generator, image))
        if pixels < 1:
            taken = np.asarray(cv2.resize(taken, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        depth[~np.isfinite(depth)] = 0
        shape = (height, width)
        return Picture(taken, seen_mask, full, xyz.reshape(*shape, 3), depth.reshape(shape))

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
        thing = self.vertices
        if self.options.mesh_error > 0:
            thing = misshapen(generator, thing, self.options.mesh_error * self.diameter)
        vertices = (thing @ pose.R.T + pose.t).astype(np.float32)
        seen = rasterize(vertices, model.faces, camera, near=1e-3 * self.diameter)
        values = seen.interpolate(self.attributes, model.faces)
        coords = values[:, :3]
        nearer = seen.depth < depth[seen.pixel]
        points = seen.points(camera)
        normals = facing(values[:, 3:6] @ pose.R.T.astype(np.float32), points)
        if model.colors is not None:
            color = values[:, 6:]
        else:  # an unpainted mesh may have any colour
            color = np.broadcast_to(clutter.palette(generator, 1)[0], coords.shape).astype(np.float32)
        color = vary_color(generator, color, ((coords - self.centre) / self.diameter).astype(np.float32))
        shadow = None
        if generator.random() < 0.3 and len(points):
            shadow = cast_shadow(points, lighting.directions[0], vertices, model.faces)
        shaded = shade(color, normals, points, lighting, random_material(generator), shadow)
        light[seen.pixel[nearer]] = shaded[nearer]
        depth[seen.pixel[nearer]] = seen.depth[nearer]
        covered[seen.pixel] = 1
        return seen, nearer, coords

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
        """Other meshes around the object: some behind, some beside, some before it. And those that are scattered: as
        near or far as it, anywhere in the picture."""
        target = where.R @ self.centre + where.t
        vertices, faces, colors, start = [], [], [], 0
        near = int(generator.integers(1, 5))
        for number in range(near + int(generator.integers(self.options.scattered + 1))):
            alike = self.options.alike > 0 and generator.random() < self.options.alike
            v, f, c = clutter.distractor(generator, self.model.colors if alike else None)
            size = self.diameter * np.exp(generator.uniform(np.log(0.3), np.log(1.6)))
            if number < near:
                place = target + generator.normal(0, 1, 3) * np.array([0.75, 0.75, 0.6]) * self.diameter
            else:
                ray = np.asarray(camera.unproject(generator.uniform(0, camera.size_wh)[None]))[0]
                place = ray * target[2] * np.exp(generator.uniform(-0.2, 0.4))
            turn = cv2.Rodrigues(generator.normal(0, 2, 3))[0]
            vertices.append(v * size @ turn.T + place)
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
        points = seen.points(camera)
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


def waves(
    generator: np.random.Generator, points: Array, unit: float, logs: tuple[float, float], count: int
) -> Array:
    """(V, count) random plane waves at points (V, 3), in [-1, 1]; `logs`: least and greatest natural logarithm of their
    length in `unit`, which is in that of the points."""
    turns = generator.normal(0, 1, (3, count))
    turns *= 2 * np.pi / (np.linalg.norm(turns, axis=0) * unit * np.exp(generator.uniform(*logs, count)))
    return np.asarray(np.sin(points @ turns + generator.uniform(0, 2 * np.pi, count)))


def misshapen(generator: np.random.Generator, vertices: Array, error: float) -> Array:
    """(V, 3) the vertices of a thing that is not quite its mesh: moved along a few smooth waves, longer than half the
    thing, so that neighbours stay neighbours. How far is drawn, too: `error` is its root mean square, in the unit of
    the vertices. No turn and no shift of the whole is among it, to first order; a change of size may be.
    """
    about = vertices - vertices.mean(0)
    longest = max(float(np.ptp(about, axis=0).max()), 1e-12)
    moves = waves(generator, about, longest, _LONG, _WAVES) @ generator.normal(0, 1, (_WAVES, 3))
    moves -= moves.mean(0)
    inertia = np.square(about).sum() * np.eye(3) - about.T @ about
    moves -= np.cross(np.linalg.pinv(inertia) @ np.cross(about, moves).sum(0), about)
    far = np.sqrt(np.square(moves).sum(1).mean())
    return vertices + moves * (error * abs(generator.normal()) / max(far, 1e-12))
