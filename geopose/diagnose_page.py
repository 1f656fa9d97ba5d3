"""A diagnosis as one HTML page that needs no other file: every stage in pictures, every measurement in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geopose._io import atomic_path
from geopose.data.sample import projected_box, square
from geopose.diagnose import Diagnosis
from geopose.geometry.pose import Pose
from geopose.report import html_page
from geopose.stages import cut
from geopose.visualize import (
    GREEN,
    RED,
    YELLOW,
    Color,
    Picture,
    draw_axes,
    draw_box,
    draw_keypoints,
    draw_pose,
    heat_overlay,
    sheet,
)

WHITE = (255, 255, 255)
_ZOOM = 640  # pixels of an enlarged crop
_WIDEST = 900  # pixels of a whole picture
_MORE_STYLE = """
figure { width: 47% } table { margin: .6em 0 1.4em } td, th { text-align: left; vertical-align: top }
@media (max-width: 600px) { figure { width: 100% } }
.verdict { border-left: 6px solid #1667c2; padding: .4em 1em; background: #f2f6fb; font-size: 17px }
.failed td { background: #fdeaea } .failed td:first-child { font-weight: bold }
"""


def write_page(diagnosis: Diagnosis, path: str | Path, title: str) -> Path:
    """The path of the HTML page written."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            html_page(title, "\n".join(_sections(diagnosis, title)), _MORE_STYLE), encoding="utf-8"
        )
    return Path(path)


def _sections(d: Diagnosis, title: str) -> Iterator[str]:
    e = d.estimate
    yield f"<h1>{escape(title)}</h1>"
    yield f"<p class='verdict'>{escape(d.verdict[0].upper() + d.verdict[1:])}</p>"
    said = [f"status <b>{escape(e.status)}</b>, confidence {e.confidence:.2f}", *map(escape, e.reasons)]
    yield f"<p>{'<br>'.join(said)}</p>"
    checks = [*d.causes, *(c for c in d.checks if not c.failed)]
    yield "<h2>Evidence</h2>" + _table(
        ("cause", "measured", "would be well", "times the limit"),
        [(c.cause, c.found, c.limit, f"{c.beyond:.1f}" if c.beyond > 0 else "") for c in checks],
        [c.failed for c in checks],
    )
    yield "<h2>1. Where it was located</h2>" + _figure(_located(d), _candidates(d))
    if d.look is None or d.reading is None or d.result is None:
        yield "<p>Nothing was found: no other stage had anything to look at.</p>" + _camera(d)
        return
    crop = cut(d.picture, d.reading.box, (_ZOOM, _ZOOM))
    small = cut(d.picture, d.reading.box, (160, 160))
    columns = int(np.ceil(np.sqrt(len(d.heatmaps))))
    heats = [heat_overlay(small, h) for h in d.heatmaps]
    heat = sheet([_numbered(h, {n: (3.0, 14.0)}) for n, h in enumerate(heats)], columns)
    yield "<h2>2. The crop, and where the network sees each keypoint</h2>"
    yield _figure(crop, f"the crop, {d.reading.box[2] - d.reading.box[0]:.0f} px of the picture across")
    yield _figure(heat, "heatmaps: one bright spot is sure, several are a doubt, a haze is no idea")
    points, cov, scale = (
        _in_crop(d.reading.points_px, d),
        d.reading.cov_px,
        _ZOOM / (d.reading.box[2] - d.reading.box[0]),
    )
    inliers = np.asarray(d.result.inliers)
    yield "<h2>3. Keypoints and their pose</h2>"
    dots = draw_keypoints(crop, points, cov * scale**2, inliers)
    dots = _numbered(dots, {n: (x + 5, y - 5) for n, (x, y) in enumerate(points) if np.isfinite(x + y)})
    yield _figure(
        dots,
        f"keypoints with 2-sigma ellipses; green: agree with the pose ({inliers.sum()} of {len(inliers)})",
    )
    yield _figure(_residuals(crop, d, points), "from each keypoint found (dot) to where the pose has it")
    yield _residual_table(d)
    yield "<h2>4. The pose</h2>" + _poses(d)
    yield _camera(d)


def _located(d: Diagnosis) -> Picture:
    out = d.picture
    for number, c in enumerate(d.candidates):
        out = draw_box(out, square(c.centre, c.size), GREEN if number == 0 else YELLOW)
    return out


def _candidates(d: Diagnosis) -> str:
    if not d.candidates:
        return "no candidate"
    each = (f"{c.score:.2f} at ({c.centre[0]:.0f}, {c.centre[1]:.0f}), {c.size:.0f} px" for c in d.candidates)
    return "candidates, the best in green: score " + "; ".join(each)


def _in_crop(px: NDArray[np.float64], d: Diagnosis) -> NDArray[np.float64]:
    box = d.reading.box if d.reading is not None else np.array([-0.5, -0.5, 0.5, 0.5])
    return (px - box[:2]) * (_ZOOM / (box[2] - box[0])) - 0.5


def _expected(d: Diagnosis) -> NDArray[np.float64] | None:
    """(K, 2) where the pose of the keypoints has them, picture pixels."""
    if d.result is None or not np.isfinite(np.asarray(d.result.pose.matrix)).all():
        return None
    return np.asarray(d.camera.project(d.result.pose.apply(d.estimate.keypoints["points_obj"])))


def _residuals(crop: Picture, d: Diagnosis, points: NDArray[np.float64]) -> Picture:
    out, expected = crop.copy(), _expected(d)
    if expected is None or d.result is None:
        return out
    for a, b, good in zip(points, _in_crop(expected, d), np.asarray(d.result.inliers), strict=True):
        if np.isfinite(a).all() and np.isfinite(b).all():
            ends = np.clip(np.rint(np.stack([a, b])), -9999, 9999).astype(int).tolist()
            color = GREEN if good else RED
            cv2.line(out, ends[0], ends[1], color, 2, cv2.LINE_AA)
            cv2.circle(out, ends[0], 4, color, -1, cv2.LINE_AA)
    return out


def _residual_table(d: Diagnosis) -> str:
    expected = _expected(d)
    if expected is None or d.reading is None or d.result is None:
        return "<p>The keypoints have no pose in common.</p>"
    off = d.reading.points_px - expected
    sigmas = np.sqrt(np.einsum("ni,nij,nj->n", off, np.linalg.inv(d.reading.cov_px), off))
    spread = np.sqrt(np.linalg.eigvalsh(d.reading.cov_px)[:, 1])
    rows = [
        (str(n), f"{x:.1f}, {y:.1f}", f"{s:.1f}", f"{np.hypot(*o):.1f}", f"{z:.1f}", "yes" if good else "no")
        for n, ((x, y), s, o, z, good) in enumerate(
            zip(d.reading.points_px, spread, off, sigmas, np.asarray(d.result.inliers), strict=True)
        )
    ]
    text = f"<p>Solver: {escape(str(d.result.status))}"
    text += f", {escape(d.result.reason)}</p>" if d.result.reason else "</p>"
    head = ("keypoint", "found at, px", "std. dev., px", "off by, px", "off by, std. dev.", "agrees")
    return text + _table(head, rows, [r[-1] == "no" for r in rows])


def _poses(d: Diagnosis) -> str:
    e = d.estimate
    parts = []
    if e.pose is not None and np.isfinite(np.asarray(e.pose.matrix)).all():
        color = GREEN if e.status == "ok" else RED
        drawn = draw_pose(d.picture, e.model, d.camera, e.pose, color)
        drawn = draw_axes(drawn, d.camera, e.pose, 0.25 * e.model.diameter)
        parts.append(_figure(drawn, "the final pose, compared with the picture: " + _words(e.pose)))
        parts.append(_figure(_pose_in_crop(d, e.pose, color), "the same in the crop"))
    for other in e.alternatives:
        if np.isfinite(np.asarray(other.pose.matrix)).all() and float(other.weight) > 0:
            box = projected_box(e.model.vertices, other.pose, d.camera)
            if np.isfinite(box).all():
                said = f"an alternative of weight {float(other.weight):.2g}: {_words(other.pose)}"
                parts.append(_figure(_pose_in_crop(d, other.pose, YELLOW), said))
    if not parts:
        return "<p>There is no pose.</p>"
    if not any("an alternative" in part for part in parts):
        parts.append("<p>The keypoints allow no alternative.</p>")
    return "".join(parts)


def _pose_in_crop(d: Diagnosis, pose: Pose, color: Color) -> Picture:
    assert d.reading is not None, "poses are drawn only where something was read"
    lens = d.camera.crop_resize(d.reading.box, (_ZOOM, _ZOOM))
    return draw_pose(cut(d.picture, d.reading.box, (_ZOOM, _ZOOM)), d.estimate.model, lens, pose, color)


def _numbered(picture: Picture, places: Mapping[int, tuple[float, float]]) -> Picture:
    out = picture.copy()
    for number, (x, y) in places.items():
        at = round(float(x)), round(float(y))
        cv2.putText(out, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE, 1, cv2.LINE_AA)
    return out


def _words(pose: Pose) -> str:
    x, y, z = np.asarray(pose.t)
    return f"x {x:.3g}, y {y:.3g}, z {z:.3g} m"


def _camera(d: Diagnosis) -> str:
    c = d.camera
    bends = ", ".join(f"{v:.3g}" for v in c.distortion) or "none"
    text = f"fx {c.fx:.1f}, fy {c.fy:.1f}, cx {c.cx:.1f}, cy {c.cy:.1f} px; distortion {bends}"
    if c.focal_rel_std:
        text += f"; focal length uncertain by {100 * c.focal_rel_std:.0f} %"
    times = ", ".join(f"{name} {1000 * s:.0f}" for name, s in d.estimate.timings.items())
    return f"<h2>Camera and time</h2><p>{text}</p><p>ms: {times}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], failed: Sequence[bool]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
    for row, bad in zip(rows, failed, strict=True):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr class='{'failed' if bad else 'well'}'>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _figure(picture: Picture, caption: str) -> str:
    if max(picture.shape[:2]) > _WIDEST:
        scale = _WIDEST / max(picture.shape[:2])
        picture = np.asarray(
            cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f"<img alt='{escape(caption, quote=True)}' src='data:image/jpeg;base64,{data}'>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
