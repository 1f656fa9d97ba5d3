"""Pictures for people: poses drawn on photographs, keypoints with their uncertainty, sheets, animations.

Pictures are (H, W, 3) uint8 RGB arrays; every `draw_` function returns a new one. Needs nothing but a mesh, a camera
and numbers, so that training and estimation can draw too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geopose._io import atomic_path
from geopose.cad.model import CadModel
from geopose.cad.render import render
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]
F32 = NDArray[np.float32]

GREEN: Color = (70, 255, 130)
RED: Color = (255, 70, 70)
YELLOW: Color = (255, 220, 60)
AXES: tuple[Color, ...] = ((255, 70, 70), (80, 230, 80), (90, 140, 255))
_SHIFT = 4  # fractional bits of OpenCV's line coordinates


class Estimated(Protocol):
    """What `draw_estimate` needs of a PoseEstimate."""

    @property
    def pose(self) -> Pose | None: ...
    @property
    def status(self) -> str: ...
    @property
    def keypoints(self) -> dict[str, NDArray[Any]]: ...
    @property
    def box(self) -> NDArray[np.float64] | None: ...
    @property
    def camera(self) -> Camera: ...
    @property
    def model(self) -> CadModel: ...


def outline(model: CadModel, camera: Camera, cam_from_obj: Pose, crease_deg: float = 35.0) -> F32:
    """(H, W) strength in [0, 1] of the lines of a drawing of the mesh: silhouette, steps in depth, and creases sharper
    than `crease_deg`.

    Found between neighbouring pixels of a rendering at twice the size (Saito and Takahashi, "Comprehensible rendering
    of 3-D shapes", SIGGRAPH 1990), then averaged: smooth lines, about one pixel wide on a picture of
    480 rows.
    """
    width, height = camera.size_wh
    lines = np.zeros((2 * height, 2 * width), np.float32)
    double = camera.crop_resize(np.array([-0.5, -0.5, width - 0.5, height - 0.5]), (2 * width, 2 * height))
    pose = cam_from_obj.numpy()
    seen = render(model, double, pose)
    rows, columns = np.flatnonzero(seen.mask.any(1)), np.flatnonzero(seen.mask.any(0))
    if len(rows) == 0:
        return lines[::2, ::2]
    part = np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]
    points = seen.xyz[part] @ pose.R.T.astype(np.float32) + pose.t.astype(np.float32)
    step = 0.015 * model.diameter
    bends = np.cos(np.deg2rad(crease_deg))
    mask, normal = seen.mask[part], seen.normal[part]
    across = _edges(mask, normal, points, step, bends)
    down = _edges(mask.T, normal.swapaxes(0, 1), points.swapaxes(0, 1), step, bends).T
    lines[part] = across | down
    pen = max(2, round(height / 200))
    lines = np.asarray(cv2.dilate(lines, np.ones((pen, pen), np.uint8)), np.float32)
    return np.asarray(cv2.resize(lines, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _edges(mask: NDArray[np.bool_], normal: F32, points: F32, step: float, bends: float) -> NDArray[np.bool_]:
    """(H, W) whether a pixel and the one right of it lie on different surfaces."""
    both = mask[:, :-1] & mask[:, 1:]
    way = points[:, 1:] - points[:, :-1]
    # The neighbour leaves the tangent planes of both pixels by a step.
    off = [np.abs(np.einsum("hwc,hwc->hw", n, way)) for n in (normal[:, :-1], normal[:, 1:])]
    bent = np.einsum("hwc,hwc->hw", normal[:, :-1], normal[:, 1:]) < bends
    out = np.zeros(mask.shape, bool)
    out[:, :-1] = (mask[:, :-1] != mask[:, 1:]) | (both & (bent | (np.minimum(*off) > step)))
    return out


def draw_pose(
    image: Picture,
    model: CadModel,
    camera: Camera,
    cam_from_obj: Pose,
    color: Color = GREEN,
    tint: float = 0.12,
) -> Picture:
    """The picture with the outline of the mesh at a pose, and its silhouette tinted by `tint` in [0, 1]."""
    lines = outline(model, camera, cam_from_obj)[..., None]
    paint = np.asarray(color, np.float32)
    out = image.astype(np.float32)
    if tint > 0:
        out += tint * render(model, camera, cam_from_obj).mask[..., None] * (paint - out)
    halo = cv2.GaussianBlur(lines, (0, 0), 1.5)[..., None]
    out *= 1 - np.clip(halo, 0, 0.6)  # a dark border keeps the line readable on anything
    return _to_uint8(out + np.clip(1.3 * lines, 0, 1) * (paint - out))


def draw_axes(image: Picture, camera: Camera, cam_from_obj: Pose, length: float) -> Picture:
    """The picture with the object's x, y and z axes in red, green and blue; `length` in metres."""
    points = cam_from_obj.numpy().apply(np.vstack([np.zeros(3), length * np.eye(3)]))
    out = image.copy()
    if (points[:, 2] <= 1e-3 * length).any():
        return out
    px = np.asarray(camera.project(points))
    for tip, color in zip(px[1:], AXES, strict=True):
        _line(out, px[0], tip, color, 2)
    return out


def draw_keypoints(
    image: Picture,
    points_px: NDArray[np.floating],
    cov_px: NDArray[np.floating] | None = None,
    inliers: NDArray[np.bool_] | None = None,
    sigmas: float = 2.0,
) -> Picture:
    """The picture with keypoints (K, 2) as dots, green for inliers (K,) and red for others, and the ellipses of their
    covariances (K, 2, 2) at `sigmas` standard deviations. Points that are not finite are left out."""
    out = image.copy()
    inliers = np.ones(len(points_px), bool) if inliers is None else inliers
    circle = np.linspace(0, 2 * np.pi, 33)
    unit = np.stack([np.cos(circle), np.sin(circle)], axis=1)
    for i in np.flatnonzero(np.isfinite(points_px).all(-1)):
        color = GREEN if inliers[i] else RED
        if cov_px is not None and np.isfinite(cov_px[i]).all():
            variances, directions = np.linalg.eigh(cov_px[i])
            ring = points_px[i] + sigmas * (unit * np.sqrt(np.maximum(variances, 0))) @ directions.T
            cv2.polylines(out, [_fixed(ring)], True, color, 1, cv2.LINE_AA, _SHIFT)
        cv2.circle(out, _fixed(points_px[i]).tolist(), 2 << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)
    return out


def draw_box(image: Picture, box: NDArray[np.floating], color: Color = YELLOW) -> Picture:
    """The picture with the box (4,) x0, y0, x1, y1 drawn on it."""
    x0, y0, x1, y1 = np.clip(box, -1e5, 1e5)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    out = image.copy()
    cv2.polylines(out, [_fixed(corners)], True, color, 1, cv2.LINE_AA, _SHIFT)
    return out


def draw_text(image: Picture, lines: Sequence[str], color: Color = (255, 255, 255)) -> Picture:
    """The picture with lines of (ASCII) text at its top left, edged in black."""
    letters = np.zeros(image.shape[:2], np.uint8)
    scale = max(image.shape[0] / 900, 0.36)
    for number, text in enumerate(lines):
        origin = (int(16 * scale), int(38 * scale * (number + 1)))
        cv2.putText(letters, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    edge = cv2.dilate(letters, np.ones((3, 3), np.uint8))
    out, where = image.copy(), edge > 0
    bright = letters[where, None] / 255.0
    dark = out[where] * (1 - edge[where, None] / 255.0)
    out[where] = np.rint(dark * (1 - bright) + bright * np.array(color))
    return out


def draw_estimate(image: Picture, estimate: Estimated) -> Picture:
    """The picture with what an estimator found: outline (green if it is sure, else red), keypoints, axes; its status
    in words when there is no good pose."""
    out = image.copy()
    sure = estimate.status == "ok"
    pose = estimate.pose
    if pose is not None and np.isfinite(np.asarray(pose.numpy().matrix)).all():
        out = draw_pose(out, estimate.model, estimate.camera, pose, GREEN if sure else RED)
        out = draw_axes(out, estimate.camera, pose, 0.25 * estimate.model.diameter)
    if estimate.keypoints:
        found = estimate.keypoints
        out = draw_keypoints(out, found["points_px"], found["cov_px"], found["inliers"])
    return out if sure else draw_text(out, [estimate.status], RED)


def draw_glow(image: Picture, segments_px: NDArray[np.floating], color: Color, width: float) -> Picture:
    """The picture with glowing line segments (N, 2, 2), `width` pixels wide, added as light."""
    light = np.zeros(image.shape, np.float32)
    core = np.zeros(image.shape[:2], np.float32)
    for a, b in segments_px:
        _line(light, a, b, color, max(round(1.6 * width), 1))
        _line(core, a, b, (255, 255, 255), max(round(0.6 * width), 1))
    glow = cv2.GaussianBlur(light, (0, 0), 1.4 * width)
    return _to_uint8(image + light + 1.5 * glow + 0.8 * core[..., None])


def heat_overlay(crop: Picture, heatmap: NDArray[np.floating]) -> Picture:
    """The crop, darkened, with one heatmap (h, w) of any size glowing on it, brightest where it peaks."""
    size = (crop.shape[1], crop.shape[0])
    heat = cv2.resize(np.asarray(heatmap, np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1)
    colored = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = np.sqrt(heat)[..., None]
    return _to_uint8(0.7 * (1 - weight) * crop + weight * colored)


def sheet(images: Sequence[Picture], columns: int, gap: int = 2) -> Picture:
    """The pictures, all of one size, in rows of `columns`.

    Raises:
        ValueError: when there are none or their sizes differ.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"images: expected pictures of one size, got {sorted(shapes) or 'none'}")
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out


def save_panels(panels: Mapping[str, Picture], path: str | os.PathLike[str], columns: int = 2) -> Path:
    """The path of a figure that shows each picture under its title."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 5.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, image) in zip(axes, panels.items(), strict=False):
        axis.imshow(image, interpolation="nearest" if image.shape[0] < 300 else None)
        axis.set_title(title)
    return _save_figure(figure, path)


def save_image(image: Picture, path: str | os.PathLike[str]) -> Path:
    """The path of the picture written; its suffix chooses the format."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
    return Path(path)


def save_gif(frames: Sequence[Picture], path: str | os.PathLike[str], fps: float = 12.0) -> Path:
    """The path of an animated GIF that repeats for ever. Raises ValueError without frames."""
    if len(frames) == 0:
        raise ValueError("frames: expected at least one picture, got none")
    palette = _palette(frames)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with atomic_path(path) as temporary:
        options: dict[str, Any] = {"append_images": pictures[1:], "duration": round(1000 / fps), "loop": 0}
        pictures[0].save(temporary, format="GIF", save_all=True, optimize=False, **options)
    return Path(path)


def _palette(frames: Sequence[Picture], colors: int = 128) -> Image.Image:
    """One palette for all frames, in which a rare colour counts as much as a frequent one."""
    pixels = np.concatenate([f[::2, ::2].reshape(-1, 3) for f in frames[:: max(len(frames) // 16, 1)]])
    distinct = np.unique(pixels & 0xF8, axis=0)
    return Image.fromarray(distinct[None]).quantize(colors)


def _save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _line(
    out: NDArray[Any], a: NDArray[np.floating], b: NDArray[np.floating], color: Color, width: int
) -> None:
    ends = _fixed(np.clip(np.stack([a, b]), -1e5, 1e5)).tolist()
    cv2.line(
        out, ends[0], ends[1], color, width, cv2.LINE_AA if out.dtype == np.uint8 else cv2.LINE_8, _SHIFT
    )


def _fixed(points: NDArray[np.floating]) -> NDArray[np.int32]:
    return np.rint(np.clip(points, -1e5, 1e5) * (1 << _SHIFT)).astype(np.int32)


def _to_uint8(image: NDArray[np.floating]) -> Picture:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
