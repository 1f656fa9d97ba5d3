"""An evaluation as one HTML file that needs no other: figures, a curve, a reliability diagram, pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path
from geopose.scores import Score, ScoredObject, Truth
from geopose.summary import BINS, Evaluation, reliability_bins, rows_of

SHOWN = 6  # best, median and worst pictures each
SHOWN_WIDTH = 480

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.6em; overflow-wrap: anywhere } h2::first-letter { text-transform: uppercase }
table { border-collapse: collapse; display: block; overflow-x: auto } figure img, svg { max-width: 100%; height: auto }
td, th { padding: .15em .9em; text-align: right; border-bottom: 1px solid #ddd } svg { margin: 1em 0 }
td:first-child, th:first-child { text-align: left } figcaption { font-size: 12px }
figure { display: inline-block; margin: .4em; width: 360px; max-width: calc(100% - .8em); vertical-align: top }
figure img { width: 100% } @media (max-width: 600px) { td, th { padding: .15em .4em } body { margin: 1em auto } }
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """The text of a page that needs no other file and fits a telephone, too; `style` is added to the CSS of all."""
    width = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'>{width}<title>{escape(title)}</title>"
    return f"{head}<style>{_STYLE}{style}</style>{body}\n"


@dataclass(frozen=True)
class Shown:
    """A picture of the report: under which heading, which instance, JPEG bytes."""

    kind: str
    row: Score
    jpeg: bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values, to be sent between ranks."""
        key = [self.row.scene_id, self.row.im_id, self.row.instance]
        return {"kind": self.kind, "key": key, "jpeg": base64.b64encode(self.jpeg).decode()}


def shown_of(evaluation: Evaluation, sent: Sequence[dict[str, Any]]) -> list[Shown]:
    """The pictures to be shown, of those that the ranks sent as `Shown.to_json`."""
    by_instance = {tuple(p["key"]): base64.b64decode(p["jpeg"]) for p in sent}
    rows = ((kind, row, (row.scene_id, row.im_id, row.instance)) for kind, row in chosen(evaluation.scores))
    return [Shown(kind, row, by_instance[key]) for kind, row, key in rows if key in by_instance]


def chosen(scores: Sequence[Score]) -> list[tuple[str, Score]]:
    """Instances worth a look: the best, those around the median, the worst, and some of every kind of failure."""
    order = sorted(scores, key=lambda s: (s.add_or_s / s.diameter, s.scene_id, s.im_id, s.instance))
    middle = max(0, len(order) // 2 - SHOWN // 2)
    found = [("best", s) for s in order[:SHOWN]]
    found += [("median", s) for s in order[middle : middle + SHOWN]]
    found += [("worst", s) for s in reversed(order[-SHOWN:])]
    for failure in sorted({s.failure for s in order} - {""}):
        clear = sorted((s for s in order if s.failure == failure), key=lambda s: -s.visible)
        found += [(f"failed: {failure}", s) for s in clear[:SHOWN]]
    return found


def drawn_jpeg(image: NDArray[np.uint8], estimate: Any, truth: Truth, target: ScoredObject) -> bytes:
    """JPEG of the picture with the estimate's overlay and, in blue, the outline of the truth."""
    drawn = np.ascontiguousarray(image.copy() if estimate is None else estimate.overlay(image))
    px = np.asarray(truth.camera.project(truth.pose.apply(target.points)))
    px = px[np.isfinite(px).all(-1)]
    if len(px):
        hull = cv2.convexHull(np.clip(px, -1e4, 1e4).astype(np.float32))
        cv2.polylines(drawn, [np.round(hull).astype(np.int32)], True, (60, 160, 255), 1, cv2.LINE_AA)
    scale = SHOWN_WIDTH / drawn.shape[1]
    if scale < 1:
        drawn = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise RuntimeError("the overlay could not be encoded as JPEG")
    return bytes(jpeg)


def write_report(path: str | Path, evaluation: Evaluation, shown: Sequence[Shown]) -> Path:
    """The path of the HTML file; pictures stand in the order of `shown`, under one heading per kind."""
    heads = "".join(f"<th>{escape(g.name)}</th>" for g in evaluation.summaries)
    rows = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(t)}</td>' for t in texts)}</tr>"
        for label, texts in rows_of(evaluation)
    )
    statuses = "".join(
        f"<p>Status, {escape(g.name)}: {escape(', '.join(f'{k} {n}' for k, n in g.statuses.items()))}</p>"
        for g in evaluation.summaries
    )
    skipped = "".join(f"<li>{escape(text)}</li>" for text in evaluation.skipped)
    parts = [
        f"<h1>{escape(evaluation.title)}</h1>",
        *(f"<p>{escape(note)}</p>" for note in evaluation.notes),
        f"<p>Median time per image: {1000 * evaluation.seconds_median:.1f} ms</p>",
        f"<table><tr><th></th>{heads}</tr>{rows}</table>{statuses}",
        "<h2>Share of instances with ADD(-S) below a share of the diameter</h2>",
        _curve(evaluation),
        "<h2>What the confidence says, and what share of these poses is right (ADD(-S) below 0.1 d)</h2>",
        _reliability(evaluation),
        f"<h2>Skipped pictures</h2><ul>{skipped}</ul>" if skipped else "",
        "<p>In the pictures, the object is drawn at the pose found; the convex outline of the true pose is blue.</p>"
        if shown
        else "",
        *(
            f"<h2>{escape(kind)}</h2>" + "".join(_figure(s) for s in group)
            for kind, group in groupby(shown, lambda s: s.kind)
        ),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(html_page(evaluation.title, "\n".join(parts)), encoding="utf-8")
    return Path(path)


def _figure(shown: Shown) -> str:
    s = shown.row
    what = f"scene {s.scene_id}, image {s.im_id}"
    if np.isfinite(s.visib_fract):
        what += f", {100 * s.visib_fract:.0f} % visible"
    figures = f"{s.status}, confidence {s.confidence:.2f}"
    if np.isfinite(s.add_or_s):
        figures += (
            f"; ADD(-S) {s.add_or_s / s.diameter:.3f} d, rotation {s.rotation_deg:.1f} deg, "
            f"translation {1000 * s.translation:.1f} mm"
        )
    if s.failure:
        figures += f"; {s.failure}"
    data = base64.b64encode(shown.jpeg).decode()
    image = f"<img alt='{escape(what)}' src='data:image/jpeg;base64,{data}'>"
    return f"<figure>{image}<figcaption>{escape(what)}<br>{escape(figures)}</figcaption></figure>"


def _curve(evaluation: Evaluation, width: int = 560, height: int = 220, most: float = 0.3) -> str:
    """SVG of the recall over the threshold, one line per summary; the dashed line is a tenth of the diameter."""
    colors = ("#1667c2", "#999999")
    least = (float(g.name.rsplit(" ", 1)[-1]) if ">=" in g.name else 0.0 for g in evaluation.summaries)
    lines = []
    for color, group, visible in zip(colors, evaluation.summaries, least, strict=False):
        errors = np.array([s.add_or_s / s.diameter for s in evaluation.scores if s.visible >= visible])
        if len(errors) == 0:
            continue
        x = np.linspace(0, most, 121)
        y = (errors[None] < x[:, None]).mean(1)
        points = " ".join(
            f"{40 + a / most * width:.1f},{10 + (1 - b) * height:.1f}" for a, b in zip(x, y, strict=True)
        )
        lines.append(f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{points}'/>")
        at = f"x='{width + 30}' y='{height + 4 - 8 * len(lines)}'"  # below the curves, which rise
        lines.append(
            f"<text {at} text-anchor='end' fill='{color}' font-size='12'>{escape(group.name)}</text>"
        )
    tenth = 40 + 0.1 / most * width
    ticks = "".join(
        f"<text x='{40 + v / most * width:.0f}' y='{height + 26}' font-size='11' text-anchor='middle'>{v:g} d</text>"
        for v in (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    )
    ticks += "".join(
        f"<text x='34' y='{14 + (1 - v) * height:.0f}' font-size='11' text-anchor='end'>{100 * v:.0f} %</text>"
        for v in (0, 0.5, 1)
    )
    frame = f"<rect x='40' y='10' width='{width}' height='{height}' fill='none' stroke='#bbb'/>"
    dash = f"<line x1='{tenth}' x2='{tenth}' y1='10' y2='{height + 10}' stroke='#bbb' stroke-dasharray='4'/>"
    size = f"width='{width + 60}' height='{height + 34}' viewBox='0 0 {width + 60} {height + 34}'"
    return f"<svg {size}>{frame}{dash}{ticks}{''.join(lines)}</svg>"


def _reliability(evaluation: Evaluation, size: int = 260) -> str:
    """SVG of the share of right poses over the confidence, tenth by tenth, of all instances whose pose was given; the
    numbers on top count them. On the dashed line, the confidence says what comes true."""
    left, top = 46, 34

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f"<text x='{x:.0f}' y='{y:.0f}' font-size='11' text-anchor='{anchor}'>{words}</text>"

    parts = [f"<rect x='{left}' y='{top}' width='{size}' height='{size}' fill='none' stroke='#bbb'/>"]
    parts += [f"<path d='M{left} {top + size}L{left + size} {top}' stroke='#bbb' stroke-dasharray='4'/>"]
    for v in (0, 0.5, 1):
        parts += [text(left - 6, top + 4 + (1 - v) * size, f"{100 * v:.0f} %", "end")]
        parts += [text(left + v * size, top + size + 16, f"{v:g}")]
    bins = reliability_bins(evaluation.scores)
    places = [at(said, right) for _, said, right, _ in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts += [f"<polyline fill='none' stroke='#1667c2' stroke-width='2' points='{line}'/>"]
    parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='#1667c2'/>" for x, y in places]
    for tenth, *_, count in bins:
        parts += [text(at((tenth + 0.5) / BINS, 1)[0], top - 12, str(count))]
    parts += [text(left - 6, top - 12, "poses", "end"), text(left + size / 2, top + size + 32, "confidence")]
    box = f"width='{size + left + 20}' height='{size + top + 40}' viewBox='0 0 {size + left + 20} {size + top + 40}'"
    return f"<svg {box}>{''.join(parts)}</svg>"
