"""Pictures of a mesh, without a GPU, a display or a compiler.

`cv2.triangleRasterize` (OpenCV >= 5) answers one question per pixel: which triangle is in front? Everything
else (depth, colour, texture, normal, object coordinates) follows exactly, per pixel, from the pixel's ray and
that triangle: deferred shading. The rasteriser knows a centred pinhole with square pixels and OpenGL axes;
any other camera is folded into the vertices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.cad.appearance import sample_texture
from geopose.cad.model import CadModel
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.floating]
_SIDES = 64  # of the pyramid that what a camera that distorts sees is cut to


@dataclass(frozen=True)
class Fragments:
    """The visible surface, one row per covered pixel (N of them).

    pixel: (N,) flat index y * W + x; face: (N,) index into the faces given; bary: (N, 3) perspective-correct
    weights of the face's corners; depth: (N,) z in the camera frame, the unit of the vertices.
    """

    pixel: NDArray[np.int64]
    face: NDArray[np.int64]
    bary: NDArray[np.float32]
    depth: NDArray[np.float32]

    def interpolate(self, values: Array, faces: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, C) values at the pixels, from (V, C) values at the vertices."""
        values = np.ascontiguousarray(values, np.float32)
        out = np.empty((len(self.face), values.shape[1]), np.float32)
        _machine_code()[1](self.face, np.ascontiguousarray(faces, np.int64), self.bary, values, out)
        return out

    def points(self, camera: Camera) -> NDArray[np.float32]:
        """(N, 3) where the pixels' rays meet the surface, camera frame."""
        return _rays(camera, self.pixel) * self.depth[:, None]


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of a mesh; leading dimensions are those of the poses.

    color: (..., H, W, 3) float32 in [0, 1], the unlit surface colour (sRGB), 0 where there is nothing.
    depth: (..., H, W) float32 metres along the camera's z axis, 0 where there is nothing.
    normal: (..., H, W, 3) float32 unit normals in the camera frame, turned towards the camera.
    xyz: (..., H, W, 3) float32 object coordinates in metres.
    mask: (..., H, W) bool.
    """

    color: NDArray[np.float32]
    depth: NDArray[np.float32]
    normal: NDArray[np.float32]
    xyz: NDArray[np.float32]
    mask: NDArray[np.bool_]


@functools.lru_cache(maxsize=1)
def _settings() -> cv2.TriangleRasterizeSettings:
    settings = cv2.TriangleRasterizeSettings()
    return settings.setShadingType(cv2.RASTERIZE_SHADING_FLAT).setCullingMode(cv2.RASTERIZE_CULLING_NONE)


def clip_near(corners: Array, near: float) -> tuple[Array, NDArray[np.int64]]:
    """Triangles (M, 3, 3) cut at z = near, and the face (M,) that each came from.

    corners: (F, 3, 3) triangles in the camera frame. Sutherland and Hodgman, "Reentrant polygon clipping",
    CACM 1974.
    """
    return _clip(corners, corners[:, :, 2], near)


def _clip(corners: Array, height: Array, level: float) -> tuple[Array, NDArray[np.int64]]:
    """Triangles (M, 3, 3) where `height` (F, 3), linear over each triangle, exceeds `level`, and their origin (M,)."""
    front = height > level
    if front.all():
        return corners, np.arange(len(corners))
    count = front.sum(1)
    whole = np.flatnonzero(count == 3)
    parts, origin = [corners[whole]], [whole]
    for number in (1, 2):
        index = np.flatnonzero(count == number)
        # Roll the corners so that the lonely one comes first.
        lonely = np.argmax(front[index] == (number == 1), axis=1)
        order = (lonely[:, None] + np.arange(3)) % 3
        a, b, c = np.moveaxis(np.take_along_axis(corners[index], order[:, :, None], axis=1), 1, 0)
        h_a, h_b, h_c = np.take_along_axis(height[index], order, axis=1).T
        ab = a + (b - a) * ((level - h_a) / (h_b - h_a))[:, None]
        ac = a + (c - a) * ((level - h_a) / (h_c - h_a))[:, None]
        pieces = [(a, ab, ac)] if number == 1 else [(ab, b, c), (ab, c, ac)]
        for piece in pieces:
            parts.append(np.stack(piece, axis=1))
            origin.append(index)
    return np.concatenate(parts), np.concatenate(origin)


def _clip_view(corners: Array, camera: Camera) -> tuple[Array, NDArray[np.int64]]:
    """Triangles (M, 3, 3) cut at the borders of what a camera that distorts sees, and the origin (M,) of each.

    Beyond the fold of the distortion points would be projected back into the picture.
    """
    origin = np.arange(len(corners))
    if len(corners) == 0:
        return corners, origin
    xy = corners[:, :, :2] / corners[:, :, 2:]
    (x0, y0), (x1, y1) = xy.min((0, 1)), xy.max((0, 1))
    box = np.array([[x0, y0, 1], [x1, y0, 1], [x0, y1, 1], [x1, y1, 1]])
    for border in _borders(*_numbers(camera)):
        if not (box @ border > 0).all():
            corners, piece = _clip(corners, corners @ border, 0.0)
            origin = origin[piece]
    return corners, origin


def rasterize(vertices_cam: Array, faces: NDArray[np.integer], camera: Camera, near: float) -> Fragments:
    """Fragments of the nearest surface in every pixel.

    Args:
        vertices_cam: (V, 3) vertices in the camera frame (+z forward), any unit.
        faces: (F, 3) vertex indices.
        camera: one, not a batch. Its distortion is applied to the vertices: exact there, straight lines between;
            what lies outside of its field of view, or beyond the fold of its distortion, is not drawn.
        near: triangles are cut at z = near, in the unit of the vertices; > 0.
    """
    if not near > 0:
        raise ValueError(f"near: expected a distance > 0, got {near}")
    _check_one(camera)
    width, height = camera.size_wh
    corners = np.asarray(vertices_cam, np.float32)[faces]
    kept, origin = clip_near(corners, near)
    if len(camera.distortion):
        kept, piece = _clip_view(kept, camera)
        origin = origin[piece]
    if len(kept) == 0:
        empty = np.zeros(0, np.int64)
        return Fragments(empty, empty, np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
    flat = kept.reshape(-1, 3)
    if len(camera.distortion):
        flat = np.concatenate([_distorted_rays(flat, camera) * flat[:, 2:], flat[:, 2:]], axis=1)
    # f_r = H / 2 belongs to a vertical field of view of 90 degrees.
    focal = 0.5 * height
    shift_x, shift_y = float(camera.cx) - 0.5 * (width - 1), float(camera.cy) - 0.5 * (height - 1)
    fold = np.array([[float(camera.fx), 0, shift_x], [0, -float(camera.fy), -shift_y], [0, 0, -focal]])
    folded = flat.astype(np.float32, copy=False) @ (fold.T / focal).astype(np.float32)
    # Depths are floats between these planes: as near and as far as the triangles themselves, they tell them apart.
    front, far = 0.5 * float(flat[:, 2].min()), 2.0 * float(flat[:, 2].max())
    numbers = origin.astype(np.float32).repeat(9).reshape(-1, 3)  # of the faces; exact up to 2**24 of them
    buffer = np.full((height, width, 3), -1.0, np.float32)
    depth = np.full((height, width), far, np.float32)
    index = np.arange(len(flat), dtype=np.int32).reshape(-1, 3)
    eye = np.eye(4, dtype=np.float32)
    drawn, _ = cv2.triangleRasterize(
        folded, index, numbers, buffer, depth, eye, 0.5 * np.pi, front, far, _settings()
    )
    number = np.asarray(drawn)[..., 0].ravel()
    pixel = np.flatnonzero(number >= 0)
    if len(camera.distortion):
        pixel = pixel[np.isfinite(_rays(camera, pixel)[:, 0])]
    face = number[pixel].astype(np.int64)
    return _fragments(pixel, face, corners, camera)


def _check_one(camera: Camera) -> None:
    """Raises ValueError unless `camera` is one camera."""
    if not isinstance(camera, Camera):
        raise ValueError(f"camera: expected a Camera, got {type(camera).__name__}")
    if batch := camera.batch_shape or np.shape(camera.distortion)[:-1]:
        raise ValueError(f"camera: expected one camera, got a batch {tuple(batch)}; index it first")


def _fragments(
    pixel: NDArray[np.int64], face: NDArray[np.int64], corners: Array, camera: Camera
) -> Fragments:
    """Exact barycentric coordinates and depth where each pixel's ray meets its face.

    With rows b x c, c x a, a x b of the corners a, b, c, the ray d has weights proportional to M d (Moeller and
    Trumbore, "Fast, minimum storage ray-triangle intersection", 1997).
    """
    bary, depth = np.empty((len(face), 3), np.float32), np.empty(len(face), np.float32)
    _machine_code()[0](face, np.ascontiguousarray(corners, np.float32), _rays(camera, pixel), bary, depth)
    return Fragments(pixel, face, bary, depth)


def _weigh(face: Any, corners: Any, rays: Any, bary: Any, depth: Any) -> None:
    """Fills bary (N, 3) and depth (N,): where rays (N, 3) meet their faces (N,) of corners (F, 3, 3)."""
    for n in range(len(face)):
        f = face[n]
        ax, ay, az = np.float64(corners[f, 0, 0]), np.float64(corners[f, 0, 1]), np.float64(corners[f, 0, 2])
        bx, by, bz = np.float64(corners[f, 1, 0]), np.float64(corners[f, 1, 1]), np.float64(corners[f, 1, 2])
        cx, cy, cz = np.float64(corners[f, 2, 0]), np.float64(corners[f, 2, 1]), np.float64(corners[f, 2, 2])
        ux, uy, uz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx  # b x c
        vx, vy, vz = cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax
        wx, wy, wz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        x, y, z = rays[n]
        sign = 1.0 if ax * ux + ay * uy + az * uz >= 0 else -1.0
        # a pixel's centre may lie a hair outside of the face that claimed it
        u = max(sign * (ux * x + uy * y + uz * z), 0.0)
        v = max(sign * (vx * x + vy * y + vz * z), 0.0)
        w = max(sign * (wx * x + wy * y + wz * z), 0.0)
        total = u + v + w
        size = max(abs(ux), abs(uy), abs(uz), abs(vx), abs(vy), abs(vz), abs(wx), abs(wy), abs(wz))
        if total <= 1e-12 * size:  # seen edge-on
            u = v = w = 1.0
            total = 3.0
        bary[n, 0], bary[n, 1], bary[n, 2] = u / total, v / total, w / total
        depth[n] = (u * az + v * bz + w * cz) / total


def _mix(face: Any, faces: Any, bary: Any, values: Any, out: Any) -> None:
    """Fills out (N, C) from values (V, C) at the corners faces (F, 3) of the faces (N,), weighed by bary (N, 3)."""
    for n in range(len(face)):
        i, j, k = faces[face[n]]
        for c in range(values.shape[1]):
            out[n, c] = bary[n, 0] * values[i, c] + bary[n, 1] * values[j, c] + bary[n, 2] * values[k, c]


@functools.cache
def _machine_code() -> tuple[Callable[..., None], Callable[..., None]]:
    """`_weigh` and `_mix`, compiled at the first picture."""
    from geopose.geometry._native import compile_once, given, types, written

    f, i = types.float32, types.int64
    weigh = types.void(given(i, 1), given(f, 3), given(f, 2), written(f, 2), written(f, 1))
    mix = types.void(given(i, 1), given(i, 2), given(f, 2), given(f, 2), written(f, 2))
    return compile_once(_weigh, weigh), compile_once(_mix, mix)


def _rays(camera: Camera, pixel: NDArray[np.integer]) -> NDArray[np.float32]:
    """(N, 3) rays with z = 1 through the centres of pixels (N,)."""
    if len(camera.distortion):
        return _bent_rays(*_numbers(camera))[pixel]
    y, x = np.divmod(pixel, camera.size_wh[0])
    rays = np.ones((len(pixel), 3), np.float32)
    rays[:, 0] = (x - float(camera.cx)) / float(camera.fx)
    rays[:, 1] = (y - float(camera.cy)) / float(camera.fy)
    return rays


def _numbers(camera: Camera) -> tuple[Any, ...]:
    """The arguments of `_bent_rays` and `_borders`, plain numbers, to remember what they returned by."""
    inner = (float(camera.fx), float(camera.fy), float(camera.cx), float(camera.cy))
    return (camera.size_wh, *inner, tuple(map(float, camera.distortion)))


@functools.lru_cache(maxsize=8)
def _bent_rays(
    size_wh: tuple[int, int], fx: float, fy: float, cx: float, cy: float, distortion: tuple[float, ...]
) -> NDArray[np.float32]:
    """(H * W, 3) rays with z = 1 through all pixels of a camera that distorts; NaN beyond the fold."""
    y, x = np.mgrid[: size_wh[1], : size_wh[0]].astype(np.float64)
    camera = Camera(fx, fy, cx, cy, size_wh, distortion)
    rays = np.asarray(camera.unproject(np.stack([x.ravel(), y.ravel()], axis=1)))
    radius, angle = np.hypot(rays[:, 0], rays[:, 1]), np.arctan2(rays[:, 1], rays[:, 0])
    # A ray may come from behind the fold, where the distortion turns a neighbourhood over twice: look on the way out.
    around = np.linspace(0, 2 * np.pi, _SIDES, endpoint=False)
    out = np.linspace(0, np.max(radius, where=np.isfinite(radius), initial=0.0), 256)
    way = np.stack([np.cos(around)[:, None] * out, np.sin(around)[:, None] * out, np.ones((_SIDES, 256))], -1)
    folded = np.linalg.det(np.asarray(camera.project_jacobian(way.reshape(-1, 3))[1])[:, :, :2]) <= 0
    folded = folded.reshape(_SIDES, 256)
    fold = np.where(folded.any(1), out[folded.argmax(1)], out[-1])
    rays[radius > np.interp(angle, around, fold, period=2 * np.pi)] = np.nan
    return rays.astype(np.float32)


@functools.lru_cache(maxsize=8)
def _borders(*camera: Any) -> NDArray[np.float32]:
    """(K, 3) inward normals of a pyramid around all rays of a camera that distorts, two pixels wider."""
    rays = _bent_rays(*camera)
    around = np.linspace(0, 2 * np.pi, _SIDES, endpoint=False)
    outward = np.stack([np.cos(around), np.sin(around)], axis=1).astype(np.float32)
    seen = rays[np.isfinite(rays[:, 0]), :2]
    reach = np.max(outward @ seen.T, axis=1, initial=-np.inf) + 2 / min(camera[1:3])
    return np.column_stack([-outward, reach]).astype(np.float32)


def _distorted_rays(points_cam: Array, camera: Camera) -> Array:
    px = np.asarray(camera.project(points_cam.astype(np.float64)))
    return np.stack([(px[:, 0] - camera.cx) / camera.fx, (px[:, 1] - camera.cy) / camera.fy], axis=1)


def surface_color(model: CadModel, fragments: Fragments) -> NDArray[np.float32]:
    """(N, 3) unlit sRGB colour of the surface in [0, 1]: texture, else vertex colours, else a middle grey."""
    if model.texture is not None and model.uv is not None:
        return sample_texture(model.texture, fragments.interpolate(model.uv, model.faces))
    if model.colors is not None:
        return fragments.interpolate(model.colors, model.faces)
    return np.full((len(fragments.pixel), 3), 0.5, np.float32)


def render(model: CadModel, camera: Camera, cam_from_obj: Pose, near: float | None = None) -> Rendering:
    """The Rendering of a mesh from one pose or a batch of them.

    Args:
        model: the mesh, metres.
        camera: any pinhole, any size, no batch; distortion as in `rasterize`.
        cam_from_obj: Pose with any leading dimensions (numpy or torch).
        near: metres; surfaces nearer than this are cut away. Default: a thousandth of the diameter.
    Returns:
        Rendering whose arrays start with the leading dimensions of the pose.
    """
    if not isinstance(cam_from_obj, Pose):
        raise ValueError(f"cam_from_obj: expected a Pose, got {type(cam_from_obj).__name__}")
    _check_one(camera)
    pose = cam_from_obj.numpy()
    R, t = pose.R.reshape(-1, 3, 3), pose.t.reshape(-1, 3)
    if not (np.isfinite(R).all() and np.isfinite(t).all()):
        raise ValueError("cam_from_obj: expected finite numbers, got NaN or infinity")
    near = 1e-3 * model.diameter if near is None else near
    width, height = camera.size_wh
    flat = (len(t), height * width)
    color, normal, xyz = (np.zeros((*flat, 3), np.float32) for _ in range(3))
    pictures: list[NDArray] = [color, np.zeros(flat, np.float32), normal, xyz, np.zeros(flat, bool)]
    for i in range(len(t)):
        pixel, values = _render_one(model, camera, R[i], t[i], near)
        for picture, value in zip(pictures, values, strict=True):
            picture[i, pixel] = value
    shape = (*pose.batch_shape, height, width)
    return Rendering(*(picture.reshape(*shape, *picture.shape[2:]) for picture in pictures))


def _render_one(
    model: CadModel, camera: Camera, R: Array, t: Array, near: float
) -> tuple[NDArray[np.int64], tuple[NDArray | bool, ...]]:
    """The pixels (N,) that one pose covers, and what a Rendering says of them, in its order."""
    fragments = rasterize(model.vertices @ R.T + t, model.faces, camera, near)
    normal = fragments.interpolate(model.normals @ R.T, model.faces)
    return fragments.pixel, (
        surface_color(model, fragments),
        fragments.depth,
        facing(normal, _rays(camera, fragments.pixel)),
        fragments.interpolate(model.vertices, model.faces),
        True,
    )


def facing(normals: Array, rays: Array) -> NDArray[np.float32]:
    """Unit normals (N, 3), turned towards the camera along rays (N, 3): a mesh's winding is not to be
    trusted."""
    away = np.einsum("ni,ni->n", normals, rays)
    length = np.sqrt(np.einsum("ni,ni->n", normals, normals))
    scale = np.where(away > 0, -1, 1) / np.maximum(length, 1e-12)
    return (normals * scale[:, None]).astype(np.float32)
