"""Whether a model means what it says: coverage of its covariances, reliability of its confidence, false answers.

    python benchmarks/calibration.py geopose/weights/xwing.geopose --images 500 --out calibration
    python benchmarks/calibration.py duck.geopose --cad obj_000009.ply --without PHOTOGRAPHS MORE --out duck

Whole renders of 640x480, no box given, clutter and occluders as in training, of a seed that no training, calibration or
other benchmark uses. Without `--without` the pictures that lack the object are renders as well: one half shows another
of the built-in objects, the other half a scene from which the object was left out.

Writes calibration.json, calibration.md and reliability.png into `--out` and prints the Markdown. Intervals are Wilson's
of 95 %. Coverage is counted over the poses answered `ok`, and over all poses with an ADD(-S) below 0.3 diameters: a
worse one is another mode, which no covariance describes. The position is that of the middle of the object's bounding
box. The reliability is that of every pose given, whatever its status; so is what other limits of the confidence, below
which no pose is answered `ok`, would have answered.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.bench.common import write_json
from geopose.cad.model import BUILT_IN, CadModel, load_cad
from geopose.cad.symmetry import Symmetries
from geopose.checkpoint import full_model
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import share_inside
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import hat
from geopose.scores import CORRECT, Score, ScoredObject, mahalanobis2
from geopose.summary import (
    BINS,
    LEVELS,
    Evaluation,
    calibration_error,
    confidence_bins,
    evaluate_renders,
)
from geopose.train_options import ALIKE, SCATTERED

Array = NDArray[np.float64]
PARTS = {"whole": 6, "position": 3, "rotation": 3}  # numbers
SANE = 0.3  # diameters of ADD(-S)
LIMITS = (0.5, 0.7, 0.8, 0.9, 0.95)  # of the confidence
GROSS = 0.2  # diameters of ADD(-S)
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class Watched:
    """An estimator and its pictures that remember the answers and the true poses, and show a bar."""

    def __init__(self, estimator: Any, scenes: Any, count: int) -> None:
        self.estimator, self.scenes = estimator, scenes
        self.answers: list[Any] = []
        self.truths: list[Pose] = []
        self.bar = tqdm(total=count, desc="renders", unit="picture")

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.scenes[index]
        self.truths.append(Pose(item["R"], item["t"]))
        return dict(item)

    def estimate(self, image: NDArray[np.uint8], camera: Camera) -> Any:
        self.answers.append(self.estimator.estimate(image, camera=camera))
        self.bar.update()
        return self.answers[-1]


def how_far_out(answer: Any, truth: Pose, target: ScoredObject, middle: Array) -> dict[str, float]:
    """How far out the truth lies, by part (see PARTS): `share_inside` of the estimate's distribution; NaN without a
    pose or with a broken covariance.

    Of several symmetric truths that counts which is nearest as a whole. `middle` (3,): the place of the object whose
    position is meant, object frame.
    """
    nothing = dict.fromkeys(PARTS, float("nan"))
    if answer.pose is None or answer.covariance is None:
        return nothing
    pose, cov = answer.pose, np.asarray(answer.covariance, np.float64)
    whole = np.array([mahalanobis2(pose, truth, cov, s[None]) for s in target.symmetries])
    if not np.isfinite(whole).any():
        return nothing
    same = truth @ Pose.from_matrix(target.symmetries[np.nanargmin(whole)])
    at = pose.apply(middle[None])[0]
    moves = np.hstack([np.eye(3), -hat(at)])  # (rho, phi) moves the point by rho + phi x point
    off = same.apply(middle[None])[0] - at
    turn = np.asarray((same @ pose.inverse()).log())[3:]
    squared = {
        "whole": np.nanmin(whole),
        "position": off @ np.linalg.solve(moves @ cov @ moves.T, off),
        "rotation": turn @ np.linalg.solve(cov[3:, 3:], turn),
    }
    dof = answer.covariance_dof
    return {part: float(share_inside(squared[part], dof, count)) for part, count in PARTS.items()}


def share(hits: int, of: int) -> dict[str, Any]:
    """{"hits", "of", "share", "low", "high"}: Wilson's 95 % interval; share, low and high are None for none."""
    if of == 0:
        return {"hits": 0, "of": 0, "share": None, "low": None, "high": None}
    interval = binomtest(hits, of).proportion_ci(0.95, "wilson")
    return {"hits": hits, "of": of, "share": hits / of, "low": interval.low, "high": interval.high}


def coverage(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """By part and level ("0.9"): the share of the truths inside the region of that probability."""
    found = {}
    for part in PARTS:
        out = np.array([row[part] for row in rows if np.isfinite(row[part])])
        inside = {f"{p:g}": int((out <= p).sum()) for p in LEVELS}
        found[part] = {level: share(hits, len(out)) for level, hits in inside.items()}
    return found


def reliability(confidence: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """How confidences (N,) agree with what came true (N,): the bins of the diagram, and three figures.

    "ece": the distance of the mean confidence from the observed share, over the bins, weighted by their counts (Guo et
    al., "On calibration of modern neural networks", ICML 2017, eq. 3); "brier": the mean squared error (Brier, 1950);
    "brier_constant": that of always saying the observed share. None for none.
    """
    p, y = np.asarray(confidence, float), np.asarray(right, float)
    if len(p) == 0:
        return {"bins": [], "ece": None, "brier": None, "brier_constant": None}
    found = confidence_bins(confidence, right)
    bins = [
        {"from": i / BINS, "to": (i + 1) / BINS, "predicted": said, **share(round(come_true * count), count)}
        for i, said, come_true, count in found
    ]
    return {
        "bins": bins,
        "ece": calibration_error(found),
        "brier": float(np.mean((p - y) ** 2)),
        "brier_constant": float(y.mean() * (1 - y.mean())),
    }


def limits(confidence: Sequence[float], error: Sequence[float]) -> list[dict[str, Any]]:
    """By limit of the confidence (N,): how many of the poses it answers, how many of these are right, and how many have
    an error (N,), in diameters, above GROSS."""
    p, off = np.asarray(confidence, float), np.asarray(error, float)
    return [
        {
            "limit": limit,
            "answered": int((p >= limit).sum()),
            "right": int((off[p >= limit] < CORRECT).sum()),
            "gross": int((off[p >= limit] >= GROSS).sum()),
        }
        for limit in LIMITS
    ]


def photographs(folders: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name of the folder, picture) of every picture in the folders and below; ValueError for a folder without any."""
    for folder in folders:
        files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"--without: {folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
        yield from ((Path(folder).name, f) for f in files)


def empty_renders(
    model: CadModel, scenes: SyntheticDataset, count: int, seed: int
) -> Iterator[tuple[str, NDArray[np.uint8], Camera]]:
    """(kind, picture, camera) of renders without the object, every second one with another object in its place."""
    options, none = replace(scenes.options, view=ViewSpace()), Symmetries.none()
    others = [o for o in map(load_cad, BUILT_IN) if o.content_hash != model.content_hash]
    sets = [SyntheticDataset(o, np.zeros((1, 3)), none, options, seed, "scene") for o in others]
    for i in range(count):
        item = (sets[i // 2 % len(sets)] if i % 2 else scenes)[i]
        camera = Camera.from_matrix(item["K"], scenes.options.scene_wh)
        if i % 2:
            yield "renders of other objects", np.ascontiguousarray(item["image"].transpose(1, 2, 0)), camera
        else:
            generator, where = np.random.default_rng([seed, i]), Pose(item["R"], item["t"])
            yield (
                "renders without any object",
                scenes.maker.make(generator, camera, None, where).image,
                camera,
            )


def answers_without(
    estimator: Any, pictures: Iterator[tuple[str, Any, Camera | None]], count: int
) -> dict[str, dict[str, Any]]:
    """By kind of picture and "all": the share answered `ok`, the statuses, the confidences of those answered `ok`."""
    rows: list[tuple[str, str, float]] = []
    for kind, picture, camera in tqdm(pictures, "without the object", count, unit="picture"):
        answer = estimator.estimate(picture, camera=camera)
        rows.append((kind, answer.status, float(answer.confidence)))
    groups = {kind: [r for r in rows if r[0] == kind] for kind in dict.fromkeys(r[0] for r in rows)}
    if len(groups) > 1:
        groups["all"] = rows
    return {
        kind: {
            "answered_ok": share(sum(r[1] == "ok" for r in group), len(group)),
            "statuses": dict(Counter(r[1] for r in group).most_common()),
            "confidences_of_ok": [r[2] for r in group if r[1] == "ok"],
        }
        for kind, group in groups.items()
    }


def figures_of(
    evaluation: Evaluation, watched: Watched, target: ScoredObject, middle: Array
) -> dict[str, Any]:
    """Coverage and reliability of an evaluation whose answers and truths were watched."""
    rows: list[tuple[Score, dict[str, float]]] = [
        (row, how_far_out(answer, truth, target, middle))
        for row, answer, truth in zip(evaluation.scores, watched.answers, watched.truths, strict=True)
    ]
    posed = [
        row for row, answer in zip(evaluation.scores, watched.answers, strict=True) if answer.pose is not None
    ]
    sane = SANE * target.diameter
    return {
        "images": len(rows),
        "answered_ok": share(sum(row.status == "ok" for row, _ in rows), len(rows)),
        "right_and_ok": share(sum(row.status == "ok" and row.correct for row, _ in rows), len(rows)),
        "coverage": {
            "answered ok": coverage([d for row, d in rows if row.status == "ok"]),
            f"ADD(-S) < {SANE:g} d": coverage([d for row, d in rows if row.add_or_s < sane]),
        },
        "reliability": reliability([s.confidence for s in posed], [s.correct for s in posed]),
        "limits": limits([s.confidence for s in posed], [s.add_or_s / s.diameter for s in posed]),
        "poses": len(posed),
        "rows": [
            {
                "index": row.im_id, "status": row.status, "confidence": row.confidence, "visib_fract": row.visib_fract,
                "add_diameters": row.add_or_s / row.diameter, "how_far_out": d,
            }
            for row, d in rows
        ],
    }  # fmt: skip


def percent(part: Mapping[str, Any]) -> str:
    """A share with its interval."""
    if part["share"] is None:
        return "-"
    return f"{100 * part['share']:.1f} % ({100 * part['low']:.1f} to {100 * part['high']:.1f})"


def table(result: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    figures, r = result["renders"], result["renders"]["reliability"]
    lines = [
        f"{result['object']}, {figures['images']} renders, seed {result['seed']}: {percent(figures['answered_ok'])} "
        f"answered `ok`, {percent(figures['right_and_ok'])} `ok` with ADD(-S) < 0.1 d.",
        "",
        "| truth inside the region of | poses | " + " | ".join(f"{100 * p:g} %" for p in LEVELS) + " |",
        "|---" * (2 + len(LEVELS)) + "|",
    ]
    for group, parts in figures["coverage"].items():
        for part, levels in parts.items():
            name = "whole pose" if part == "whole" else part
            cells = " | ".join(percent(levels[f"{p:g}"]) for p in LEVELS)
            lines.append(f"| {name}, {group} | {levels[f'{LEVELS[0]:g}']['of']} | {cells} |")
    lines += ["", "| confidence said | poses | mean | came true |", "|---|---|---|---|"]
    lines += [
        f"| {b['from']:.1f} to {b['to']:.1f} | {b['of']} | {b['predicted']:.3f} | {percent(b)} |"
        for b in r["bins"]
    ]
    if r["bins"]:
        lines += [
            "",
            f"Expected calibration error {r['ece']:.3f}; Brier score {r['brier']:.3f} (a constant: "
            f"{r['brier_constant']:.3f}); {figures['poses']} poses in {figures['images']} pictures.",
        ]
    lines += [
        "",
        f"| limit of the confidence | answered | right | wrong | ADD(-S) >= {GROSS:g} d |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['limit']:g} | {row['answered']} | {row['right']} | {row['answered'] - row['right']} | {row['gross']} |"
        for row in figures["limits"]
    ]
    lines += [
        "",
        "| pictures without the object | pictures | answered `ok` | statuses |",
        "|---|---|---|---|",
    ]
    for kind, part in result["without"].items():
        statuses = ", ".join(f"`{status}` {count}" for status, count in part["statuses"].items())
        lines.append(
            f"| {kind} | {part['answered_ok']['of']} | {percent(part['answered_ok'])} | {statuses} |"
        )
    return "\n".join(lines) + "\n"


def draw(figures: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes the reliability diagram and the histogram below it as a PNG."""
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    r = figures["reliability"]
    bins, blue, red = r["bins"], "#1667c2", "#d9653b"
    top.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1, label="honest")
    for number, b in enumerate(bins):
        label = "came true, with 95 % intervals; the larger, the more poses" if number == 0 else None
        top.vlines(b["predicted"], b["low"], b["high"], color=blue, alpha=0.45, lw=1.5)
        top.plot(
            b["predicted"], b["share"], "o", color=blue, ms=3 + 2.5 * np.log2(1 + b["of"]) / 2, label=label
        )
    top.set(ylabel="share with ADD(-S) < 0.1 d", ylim=(-0.03, 1.19), xlim=(-0.02, 1.02), title=title)
    top.set_yticks(np.linspace(0, 1, 6))
    top.legend(loc="upper left", frameon=False, fontsize=8.5)
    if bins:
        text = f"calibration error {r['ece']:.3f}, Brier score {r['brier']:.3f} (a constant: {r['brier_constant']:.3f})"
        below.set_title(text, fontsize=9, loc="left")
    starts = [b["from"] for b in bins]
    right = [b["hits"] for b in bins]
    wrong = [b["of"] - b["hits"] for b in bins]
    below.bar(starts, right, 1 / BINS, align="edge", color=blue, alpha=0.6, edgecolor="white", label="right")
    bars = below.bar(
        starts, wrong, 1 / BINS, right, align="edge", color=red, alpha=0.8, edgecolor="white", label="wrong"
    )
    below.bar_label(bars, [str(b["of"]) for b in bins], fontsize=8)
    below.legend(loc="upper center", frameon=False, fontsize=8.5, ncols=2)
    below.set(xlabel="confidence", ylabel="poses", ylim=(0, 1.2 * max((b["of"] for b in bins), default=1)))
    for axis in (top, below):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def mesh_of(estimator: PoseEstimator, cad: str | None, unit: str | None) -> CadModel:
    """The mesh to render: the file, the built-in object, else the light mesh that the model carries.

    Raises ValueError when the file is not what the model was trained on.
    """
    wanted = estimator.meta["content_hash"]
    if cad is not None:
        return full_model(estimator.meta, cad if unit is None else load_cad(cad, unit))
    for name in BUILT_IN:
        if load_cad(name).content_hash == wanted:
            return load_cad(name)
    warnings.warn("no --cad: the light mesh inside the model is rendered", stacklevel=2)
    return estimator.model


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes the files, prints the table, returns what the JSON holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint")
    parser.add_argument(
        "--cad", help="its mesh (default: the built-in object, else the light mesh in the model)"
    )
    parser.add_argument("--unit", help="of --cad (default: that of the training)")
    parser.add_argument("--images", type=int, default=500, help="renders (default: %(default)s)")
    parser.add_argument(
        "--without", nargs="+", metavar="FOLDER", help="photographs that do not show the object"
    )
    parser.add_argument("--empty", type=int, default=100, help="renders without it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4_000_019, help="of the renders (default: %(default)s)")
    parser.add_argument("--mesh-error", type=float, help="of the things' surfaces (default: as in training)")
    parser.add_argument("--out", required=True, help="folder to write to")
    args = parser.parse_args(arguments)
    if args.images < 1 or args.empty < 0:
        parser.error("--images must be at least 1 and --empty at least 0")

    estimator = PoseEstimator.load(args.model)
    trained = estimator.meta["options"]
    model = mesh_of(estimator, args.cad, args.unit)
    error = trained.get("mesh_error", 0.0) if args.mesh_error is None else args.mesh_error
    view = ViewSpace.of_training(trained)
    options = SyntheticOptions(view=view, alike=ALIKE, scattered=SCATTERED, mesh_error=error)
    scenes = SyntheticDataset(model, estimator.keypoints, estimator.symmetries, options, args.seed, "scene")
    target = ScoredObject(model.vertices, model.diameter, estimator.symmetries.expand())
    files = list(photographs(args.without or []))  # a wrong folder is said before the work
    watched = Watched(estimator, scenes, args.images)
    evaluation = evaluate_renders(watched, watched, target, args.images)
    watched.bar.close()
    figures = figures_of(evaluation, watched, target, model.bounds.mean(0))
    if files:
        without = answers_without(estimator, ((folder, f, None) for folder, f in files), len(files))
    else:
        empty = SyntheticDataset(
            model, estimator.keypoints, estimator.symmetries, options, args.seed + 1, "scene"
        )
        pictures = empty_renders(model, empty, args.empty, args.seed + 1)
        without = answers_without(estimator, pictures, args.empty)
    result = {"object": model.name, "seed": args.seed, "renders": figures, "without": without}
    out = Path(args.out)
    write_json(out / "calibration.json", result)
    text = table(result)
    with atomic_path(out / "calibration.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(
        figures,
        f"{model.name}: {figures['poses']} poses in {figures['images']} renders",
        out / "reliability.png",
    )
    print(text)
    return result


if __name__ == "__main__":
    main()
