"""Running an estimator over a data set in the BOP format: figures, the challenge's results file, a report."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.data.bop import BopDataset, BopFrame, BopObject, read_bop
from geopose.data.bop_results import BopResult, write_results
from geopose.data.sample import ViewSpace, projected_box
from geopose.distributed import process_group, split_indices
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.report import Shown, write_report
from geopose.scores import Score, ScoredObject, Truth, score
from geopose.summary import Evaluation, evaluation_of

BOXES = ("none", "gt")
SHOWN = 6  # best, median and worst pictures each
SHOWN_WIDTH = 480
WARM_UP = 1  # pictures estimated twice, so that the first ones' time is not that of loading code


def evaluate_bop(
    root: str | Path,
    obj_id: int | None,
    estimator: Any,
    *,
    split: str | None = None,
    boxes: str = "none",
    visib: float = 0.6,
    csv: str | Path | None = None,
    summary: str | Path | None = None,
    report: str | Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """The Evaluation of `estimator` on the targets of one object: whole pictures in, no box given.

    Args:
        root: folder of the data set (see `read_bop`).
        obj_id: the object; None where the set has targets of one only.
        estimator: has `estimate(image, camera=, box=)` and `estimate_all(image, camera=, max_instances=)`.
        split: the split's folder; by default the test split.
        boxes: "none", or "gt" to be given the true box of every instance, which is another, easier task.
        visib: least visible fraction of the instances counted as clearly visible.
        csv, summary, report: files to write: the challenge's results, the figures as JSON, pictures as HTML.
        limit: only the first pictures.
        progress: show a bar.
    Raises:
        ValueError: an unknown object or option, a broken data set.
    Notes:
        Started by `torchrun`, every rank takes its share of the pictures and returns the whole evaluation; rank 0
        writes. A picture that cannot be read is left out and named in `.skipped`. The ADD figures count every pose
        that was given, whatever its status.
    """
    if boxes not in BOXES:
        raise ValueError(f"boxes: expected one of {BOXES}, got {boxes!r}")
    dataset = read_bop(root, split)
    known = _object(dataset, obj_id)
    frames = [
        f for f in dataset.target_frames(known.obj_id) if any(i.obj_id == known.obj_id for i in f.instances)
    ]
    if not frames:
        others = sorted({key[2] for key in dataset.targets} - {known.obj_id})
        raise ValueError(
            f"{dataset.root}, split {dataset.split}: no annotated targets of object {known.obj_id}, but of {others}; "
            "choose one of these, or another split"
        )
    target = ScoredObject(known.points, known.diameter, known.symmetries, known.faces)
    frames = frames[:limit]
    with process_group(torch.device("cpu")) as (rank, world):
        own = [frames[i] for i in split_indices(len(frames), rank, world)]
        share = _run(dataset, known.obj_id, target, own, estimator, boxes, progress and rank == 0)
        pictures = share.pictures(target) if report is not None else []
        parts = _gather(share.to_json() | {"pictures": [p.to_json() for p in pictures]}, world)
    notes = (*dataset.notes, *_unknown_views(estimator, frames, known.obj_id, target))
    evaluation = _merge(parts, dataset, known.obj_id, boxes, visib, notes)
    if rank == 0:
        results = [_result(row) for part in parts for row in part["results"]]
        results.sort(key=lambda r: (r.scene_id, r.im_id, -r.score))
        _write(evaluation, results, parts, csv, summary, report)
    return evaluation


def _object(dataset: BopDataset, obj_id: int | None) -> BopObject:
    asked = sorted({key[2] for key in dataset.targets})
    if obj_id is None:
        if len(asked) != 1:
            raise ValueError(f"obj_id: the set has targets of objects {asked}; choose one")
        obj_id = asked[0]
    if obj_id not in dataset.objects:
        raise ValueError(f"obj_id: expected one of {sorted(dataset.objects)}, got {obj_id}")
    return dataset.objects[obj_id]


def _unknown_views(
    estimator: Any, frames: Sequence[BopFrame], obj_id: int, target: ScoredObject
) -> Iterator[str]:
    """A note, where the set shows the object from outside of the view space that the model was trained for."""
    options = getattr(estimator, "meta", {}).get("options", {})
    names = ("elevation_deg", "azimuth_deg", "roll_deg")
    if not all(name in options for name in (*names, "up")):
        return
    view = ViewSpace.of_training(options)
    centre = 0.5 * (target.points.min(0) + target.points.max(0))
    poses = [i.pose for frame in frames for i in frame.instances if i.obj_id == obj_id]
    same = [Pose.from_matrix(s) for s in target.symmetries]
    unknown = sum(not any(view.holds(pose @ s, centre) for s in same) for pose in poses)
    if unknown:
        limits = ", ".join(
            f"{name.removesuffix('_deg')} {low:g} to {high:g}"
            for name, (low, high) in ((name, options[name]) for name in names)
        )
        yield (
            f"{unknown} of {len(poses)} objects are seen from where the model never saw its own ({limits} degrees): "
            "train it for these views, or leave them out"
        )


@dataclass(frozen=True)
class _Share:
    """What one rank found out."""

    frames: dict[tuple[int, int], BopFrame]
    scores: list[Score]
    estimates: dict[tuple[int, int, int], Any]
    truths: dict[tuple[int, int, int], Truth]
    results: list[list[Any]]
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(s) for s in self.scores]
        return {"scores": rows, "results": self.results, "skipped": self.skipped}

    def pictures(self, target: ScoredObject) -> list[Shown]:
        """Overlays of the instances that this rank would show; the merged report picks among all ranks'."""
        shown = []
        for kind, row in _chosen(self.scores):
            key = (row.scene_id, row.im_id, row.instance)
            image, _ = self.frames[key[:2]].load()
            drawn = _draw(image, self.estimates[key], self.truths[key], target)
            shown.append(Shown(kind, row, drawn))
        return shown


def _run(
    dataset: BopDataset,
    obj_id: int,
    target: ScoredObject,
    frames: Sequence[BopFrame],
    estimator: Any,
    boxes: str,
    progress: bool,
) -> _Share:
    share = _Share({}, [], {}, {}, [], [])
    warm = WARM_UP
    for frame in tqdm(frames, disable=not progress, unit="picture"):
        try:
            image, camera = frame.load()
            depth = None if frame.depth_path() is None else frame.load_depth()
            if depth is not None and depth.shape != image.shape[:2]:
                raise ValueError(f"{frame.depth_path()}: {depth.shape}, but the picture is {image.shape[:2]}")
        except ValueError as error:
            share.skipped.append(str(error))
            continue
        count = dataset.targets[frame.scene_id, frame.im_id, obj_id]
        instances = sorted(
            (i for i in frame.instances if i.obj_id == obj_id), key=lambda i: -np.nan_to_num(i.visib_fract)
        )
        truths = [
            Truth(i.pose, camera, i.visib_fract, frame.scene_id, frame.im_id) for i in instances[:count]
        ]
        given = [projected_box(target.points, t.pose, camera) for t in truths] if boxes == "gt" else None
        while warm > 0:
            _estimate(estimator, image, camera, count, given)
            warm -= 1
        start = time.perf_counter()
        estimates = _estimate(estimator, image, camera, count, given)
        seconds = time.perf_counter() - start
        if given is None:
            rows = score(estimates, truths, target, seconds, depth)
        else:
            pairs = zip(estimates, truths, range(len(truths)), strict=True)
            rows = [_numbered(score([e], [t], target, seconds, depth)[0], i) for e, t, i in pairs]
        share.scores.extend(rows)
        share.frames[frame.scene_id, frame.im_id] = frame
        for row, truth in zip(rows, truths, strict=True):
            key = (row.scene_id, row.im_id, row.instance)
            share.estimates[key] = estimates[row.estimate] if row.estimate >= 0 else None
            share.truths[key] = truth
        share.results.extend(_result_rows(frame, obj_id, estimates[: len(truths)], seconds))
    return share


def _numbered(row: Score, i: int) -> Score:
    """The score of the i-th truth that was given the i-th box."""
    return Score(**(asdict(row) | {"instance": i, "estimate": i}))


def _estimate(
    estimator: Any,
    image: NDArray[np.uint8],
    camera: Camera,
    count: int,
    boxes: list[NDArray[np.float64]] | None,
) -> list[Any]:
    if boxes is not None:
        return [estimator.estimate(image, camera=camera, box=box) for box in boxes]
    if count == 1:
        return [estimator.estimate(image, camera=camera)]
    return sorted(
        estimator.estimate_all(image, camera=camera, max_instances=count), key=lambda e: -e.confidence
    )


def _result_rows(
    frame: BopFrame, obj_id: int, estimates: Sequence[Any], seconds: float
) -> Iterator[list[Any]]:
    for e in estimates:
        if e.pose is not None and np.isfinite(np.asarray(e.pose.matrix)).all():
            matrix = np.asarray(e.pose.numpy().matrix).tolist()
            yield [frame.scene_id, frame.im_id, obj_id, float(e.confidence), matrix, seconds]


def _result(row: Sequence[Any]) -> BopResult:
    scene_id, im_id, obj_id, confidence, matrix, seconds = row
    return BopResult(scene_id, im_id, obj_id, confidence, Pose.from_matrix(np.array(matrix)), seconds)


def _gather(part: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """The parts of all ranks, in their order, on every rank; as JSON, so that nothing is unpickled."""
    if world == 1:
        return [part]
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    data = torch.frombuffer(bytearray(json.dumps(part).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    longest = int(max(int(s) for s in sizes))
    buffers = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(buffers, torch.nn.functional.pad(data, (0, longest - len(data))), group=group)
    return [json.loads(b[: int(s)].numpy().tobytes()) for b, s in zip(buffers, sizes, strict=True)]


def _merge(
    parts: Sequence[dict[str, Any]],
    dataset: BopDataset,
    obj_id: int,
    boxes: str,
    visib: float,
    notes: Sequence[str],
) -> Evaluation:
    scores = [Score(**row) for part in parts for row in part["scores"]]
    skipped = [text for part in parts for text in part["skipped"]]
    if not scores:
        raise ValueError(f"{dataset.root}: no picture could be read; first: {skipped[0]}")
    task = "whole pictures, no box given" if boxes == "none" else "TRUE BOXES GIVEN"
    title = f"{dataset.root.name}/{dataset.split}, object {obj_id}: {task}"
    return evaluation_of(title, scores, visib, skipped, notes)


def _write(
    evaluation: Evaluation,
    results: list[BopResult],
    parts: Sequence[dict[str, Any]],
    csv: str | Path | None,
    summary: str | Path | None,
    report: str | Path | None,
) -> None:
    if csv is not None:
        write_results(csv, results)
    if summary is not None:
        with atomic_path(summary) as temporary:
            temporary.write_text(json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + "\n")
    if report is not None:
        offered = {(p["kind"], *p["key"]): p for part in parts for p in part["pictures"]}
        by_instance = {tuple(p["key"]): p for p in offered.values()}
        shown = []
        for kind, row in _chosen(evaluation.scores):
            found = by_instance.get((row.scene_id, row.im_id, row.instance))
            if found is not None:
                shown.append(Shown(kind, row, base64.b64decode(found["jpeg"])))
        write_report(report, evaluation, shown)


def _chosen(scores: Sequence[Score]) -> list[tuple[str, Score]]:
    """Instances worth a look: the best, those around the median, the worst, and some of every kind of failure."""
    order = sorted(scores, key=lambda s: (s.add_or_s / s.diameter, s.scene_id, s.im_id, s.instance))
    middle = max(0, len(order) // 2 - SHOWN // 2)
    chosen = [("best", s) for s in order[:SHOWN]]
    chosen += [("median", s) for s in order[middle : middle + SHOWN]]
    chosen += [("worst", s) for s in reversed(order[-SHOWN:])]
    for failure in sorted({s.failure for s in order} - {""}):
        clear = sorted((s for s in order if s.failure == failure), key=lambda s: -s.visible)
        chosen += [(f"failed: {failure}", s) for s in clear[:SHOWN]]
    return chosen


def _draw(image: NDArray[np.uint8], estimate: Any, truth: Truth, target: ScoredObject) -> bytes:
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
