"""What the scores of many estimates come to: recalls, medians, coverage, failures; a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.scores import CORRECT, FAILURES, Score, ScoredObject, Truth, score

ADD_FRACTIONS = (0.02, 0.05, 0.1, 0.2)  # of the diameter
LEVELS = (0.5, 0.9, 0.99)
BINS = 10  # of the confidence


@dataclass(frozen=True)
class Summary:
    """What the scores of a group come to; shares in [0, 1], NaN where there is nothing to count.

    Attributes:
        found: share with status "ok".
        add_recall: share with ADD(-S) below 2, 5, 10 and 20 % of the diameter, whatever the status (as BOP
            counts).
        trusted: share with status "ok" and ADD(-S) below 10 %: what a user who heeds the status gets right.
        false_accept: share of the "ok" ones that are wrong; false_refuse: share of the right ones not "ok".
        ar_mssd, ar_mspd: BOP's average recalls; `ar`: their mean. ar_vsd: of the instances whose picture has depth;
            ar_bop: the mean of all three, which is BOP's own.
        rotation_deg_median, translation_median: of the "ok" ones, degrees and metres.
        coverage: share of "ok" estimates whose truth is in the 50, 90, 99 % region of their distribution.
        calibration_error: mean distance of the confidence from the share that is right, over its tenths, weighted by
            their counts, of every pose given (Guo et al., "On calibration of modern neural networks", 2017, eq. 3).
    """

    name: str
    count: int
    found: float
    add_recall: dict[str, float]
    add_s_recall: float
    trusted: float
    false_accept: float
    false_refuse: float
    ar_mssd: float
    ar_mspd: float
    ar: float
    rotation_deg_median: float
    translation_median: float
    coverage: dict[str, float]
    coverage_count: int
    statuses: dict[str, int]
    failures: dict[str, int]
    ar_vsd: float = float("nan")
    ar_bop: float = float("nan")
    calibration_error: float = float("nan")


def summarise(scores: Sequence[Score], name: str = "all") -> Summary:
    """The Summary of a group of scores."""
    ok = [s for s in scores if s.status == "ok"]
    right = [s for s in scores if s.correct]
    inside = np.array([s.inside for s in ok if np.isfinite(s.inside)])
    failures = Counter(s.failure for s in scores if s.failure)
    mssd, mspd = _mean([s.mssd_hits for s in scores]), _mean([s.mspd_hits for s in scores])
    vsd = _mean([s.vsd_hits for s in scores if np.isfinite(s.vsd_hits)])
    return Summary(
        name=name,
        count=len(scores),
        found=_mean([s.status == "ok" for s in scores]),
        add_recall={f"{f:g}": _mean([s.add_or_s < f * s.diameter for s in scores]) for f in ADD_FRACTIONS},
        add_s_recall=_mean([s.add_s < CORRECT * s.diameter for s in scores]),
        trusted=_mean([s.status == "ok" and s.correct for s in scores]),
        false_accept=_mean([not s.correct for s in ok]),
        false_refuse=_mean([s.status != "ok" for s in right]),
        ar_mssd=mssd,
        ar_mspd=mspd,
        ar=(mssd + mspd) / 2,
        rotation_deg_median=_median([s.rotation_deg for s in ok]),
        translation_median=_median([s.translation for s in ok]),
        coverage={f"{p:g}": _mean(inside <= p) for p in LEVELS},
        coverage_count=len(inside),
        statuses=dict(Counter(s.status for s in scores).most_common()),
        failures={f: failures.get(f, 0) for f in FAILURES},
        ar_vsd=vsd,
        ar_bop=(mssd + mspd + vsd) / 3,
        calibration_error=calibration_error(reliability_bins(scores)),
    )


def reliability_bins(scores: Sequence[Score]) -> list[tuple[int, float, float, int]]:
    """(its number, mean confidence, share with ADD(-S) below 0.1 d, count) for each tenth of the confidence that holds
    any of the poses given, whatever their status."""
    posed = [s for s in scores if np.isfinite(s.add)]
    return confidence_bins([s.confidence for s in posed], [s.correct for s in posed])


def confidence_bins(
    confidence: Sequence[float], right: Sequence[bool]
) -> list[tuple[int, float, float, int]]:
    """The bins of `reliability_bins` of confidences (N,) and what came true (N,)."""
    p, y = np.asarray(confidence, float), np.asarray(right, float)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    inside = [(int(i), place == i) for i in np.unique(place)]
    return [(i, float(p[a].mean()), float(y[a].mean()), int(a.sum())) for i, a in inside]


def calibration_error(bins: Sequence[tuple[int, float, float, int]]) -> float:
    """Of the bins of `confidence_bins`, as `Summary` has it; NaN without any."""
    off = sum(count * abs(said - right) for _, said, right, count in bins)
    return off / sum(count for *_, count in bins) if bins else float("nan")


def mean_summary(summaries: Sequence[Summary], name: str) -> Summary:
    """The mean of several summaries, each of the same weight; counts are summed, and what is NaN is left out."""
    rows: list[dict[str, Any]] = [asdict(s) | {"name": 0} for s in summaries]
    return Summary(**({k: _together([row[k] for row in rows]) for k in rows[0]} | {"name": name}))


def _together(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        keys = dict.fromkeys(k for v in values for k in v)
        return {k: _together([v[k] for v in values if k in v]) for k in keys}
    if isinstance(values[0], int):
        return sum(values)
    return _mean([v for v in values if not np.isnan(v)])


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Scores of every instance and their summaries; print it for a table.

    Attributes:
        summaries: of the clearly visible instances, then of all; none where the truth is withheld.
        seconds_median: per image, from the picture in memory to the poses.
        skipped: pictures that could not be read, in words; their instances are not among the scores.
    """

    title: str
    summaries: tuple[Summary, ...]
    scores: tuple[Score, ...]
    seconds_median: float
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return table(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON: what is infinite or unknown is null."""
        return dict(_plain(asdict(self)))


@dataclass(frozen=True)
class Evaluations:
    """The Evaluations of several objects of one data set, by object id; print them for their tables and the means.

    seconds_median: per image, for all of its objects.
    """

    objects: Mapping[int, Evaluation]
    seconds_median: float

    @property
    def mean(self) -> Evaluation:
        """Means over the objects of the clearly visible instances and of all; last, as the challenge counts, every
        instance alike. Without scores; without summaries where no truth is known."""
        ids = [i for i, e in self.objects.items() if e.summaries]
        known = [self.objects[i] for i in ids]
        said = "means over the objects; counts are sums" if known else "no truth is known of any"
        title = f"objects {', '.join(map(str, ids or self.objects))}: {said}"
        groups = [
            mean_summary(group, f"mean, {group[0].name}")
            for group in zip(*(e.summaries for e in known), strict=True)
        ]
        if known:
            groups.append(summarise([s for e in known for s in e.scores], "all instances alike"))
        return Evaluation(title, tuple(groups), (), self.seconds_median)

    def __str__(self) -> str:
        return "\n\n".join(map(str, (*self.objects.values(), self.mean)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON: "objects", each as `Evaluation.to_json` with its "obj_id", and their "mean"."""
        objects = [{"obj_id": obj_id} | e.to_json() for obj_id, e in self.objects.items()]
        mean = self.mean.to_json()
        return {"objects": objects, "mean": {k: mean[k] for k in ("title", "summaries", "seconds_median")}}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def evaluation_of(
    title: str,
    scores: Sequence[Score],
    visib: float = 0.6,
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Evaluation:
    """The Evaluation of `scores`: over the instances of visib_fract >= `visib` (or unknown), and over all."""
    ordered = sorted(scores, key=lambda s: (s.scene_id, s.im_id, s.instance))
    times = {(s.scene_id, s.im_id): s.seconds for s in ordered if np.isfinite(s.seconds)}
    seen = summarise([s for s in ordered if s.visible >= visib], f"visible >= {visib:g}")
    groups = seen, summarise(ordered)
    return Evaluation(
        title, groups, tuple(ordered), _median(list(times.values())), tuple(skipped), tuple(notes)
    )


def rows_of(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """(label, one text per summary) for every line of the table."""
    groups = evaluation.summaries
    lines: list[tuple[str, list[str]]] = [("instances", [str(g.count) for g in groups])]

    def percent(label: str, values: list[float]) -> None:
        lines.append((label, ["-" if np.isnan(v) else f"{100 * v:.1f} %" for v in values]))

    def number(label: str, values: list[float], unit: str) -> None:
        lines.append((label, ["-" if np.isnan(v) else f"{v:.2f} {unit}" for v in values]))

    percent("found (status ok)", [g.found for g in groups])
    for f in ADD_FRACTIONS:
        percent(f"ADD(-S) < {f:g} d", [g.add_recall[f"{f:g}"] for g in groups])
    percent("ADD-S < 0.1 d", [g.add_s_recall for g in groups])
    percent("ok and ADD(-S) < 0.1 d", [g.trusted for g in groups])
    percent("wrong among ok", [g.false_accept for g in groups])
    percent("refused among right", [g.false_refuse for g in groups])
    percent("average recall, MSSD", [g.ar_mssd for g in groups])
    percent("average recall, MSPD", [g.ar_mspd for g in groups])
    percent("mean of these two", [g.ar for g in groups])
    if not all(np.isnan(g.ar_vsd) for g in groups):
        percent("average recall, VSD", [g.ar_vsd for g in groups])
        percent("mean of these three (BOP's AR)", [g.ar_bop for g in groups])
    number("rotation error, median of ok", [g.rotation_deg_median for g in groups], "deg")
    number("translation error, median of ok", [1000 * g.translation_median for g in groups], "mm")
    for p in LEVELS:
        percent(f"truth in the {100 * p:g} % region", [g.coverage[f"{p:g}"] for g in groups])
    percent("calibration error of confidence", [g.calibration_error for g in groups])
    for name in FAILURES:
        lines.append((f"failed: {name}", [str(g.failures[name]) for g in groups]))
    return lines


def table(evaluation: Evaluation) -> str:
    """The evaluation as text."""
    cells = (
        [("", [g.name for g in evaluation.summaries]), *rows_of(evaluation)] if evaluation.summaries else []
    )
    widths = [max(len(texts[i]) for _, texts in cells) + 2 for i in range(len(evaluation.summaries))]
    text = [evaluation.title, *evaluation.notes]
    for label, texts in cells:
        text.append(f"{label:<32}" + "".join(f"{t:>{w}}" for t, w in zip(texts, widths, strict=True)))
    for group in evaluation.summaries:
        text.append(f"status, {group.name}: " + ", ".join(f"{k} {n}" for k, n in group.statuses.items()))
    text.append(f"median time per image: {1000 * evaluation.seconds_median:.1f} ms")
    if evaluation.skipped:
        text.append(f"skipped pictures: {len(evaluation.skipped)}, first: {evaluation.skipped[0]}")
    return "\n".join(text)


def evaluate_renders(
    estimator: Any, dataset: Any, target: ScoredObject, count: int, visib: float = 0.6
) -> Evaluation:
    """The Evaluation on pictures 0 ... `count` - 1 of `dataset`, whole pictures made from the mesh.

    Args:
        estimator: has `estimate(image, camera=...)`.
        dataset: `SyntheticDataset(..., kind="scene")`: items with image (3, H, W) uint8, R, t, K, visib_fract.
        target: `ScoredObject(model.vertices, model.diameter, symmetries.expand())`.
    """
    scores: list[Score] = []
    for i in range(count):
        item = dataset[i]
        image = np.ascontiguousarray(np.asarray(item["image"]).transpose(1, 2, 0))
        camera = Camera.from_matrix(np.asarray(item["K"], np.float64), (image.shape[1], image.shape[0]))
        pose = Pose(np.asarray(item["R"], np.float64), np.asarray(item["t"], np.float64))
        truth = Truth(pose, camera, float(item["visib_fract"]), 0, i)
        start = time.perf_counter()
        estimate = estimator.estimate(image, camera=camera)
        scores += score([estimate], [truth], target, time.perf_counter() - start)
    return evaluation_of(f"{count} renders, whole pictures", scores, visib)
