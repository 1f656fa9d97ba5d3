"""Running estimators over a data set in the BOP format: figures, the challenge's results file, a report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.cad.symmetry import Symmetries
from geopose.data.bop import BopDataset, BopFrame, BopObject, read_bop
from geopose.data.bop_results import BopResult, write_results
from geopose.data.sample import ViewSpace, projected_box
from geopose.distributed import process_group, split_indices
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.report import Shown, chosen, drawn_jpeg, shown_of, write_report
from geopose.scores import Score, ScoredObject, Truth, score
from geopose.summary import Evaluation, Evaluations, evaluation_of

_File = str | Path | None
_Found = Mapping[str, list[Any]]  # of all ranks together, as `_Share.to_json`, and the pictures of a report
BOXES = ("none", "gt")
SAME_SIZE = 0.02  # diameters that differ by more are of different objects
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
        ValueError: an unknown object or option, a broken data set; no csv, or a report, where the truth is withheld.
    Notes:
        Started by `torchrun`, every rank takes its share of the pictures and returns the whole evaluation; rank 0
        writes. A picture that cannot be read is left out and named in `.skipped`. The ADD figures count every pose
        that was given, whatever its status. Where the truth is withheld there are no figures, only the results file.
    """
    job = _job(read_bop(root, split), obj_id, estimator, boxes, visib, limit, csv, report)
    with process_group(torch.device("cpu")) as (rank, world):
        found = _estimated(job, rank, world, progress, report is not None)
    evaluation = _evaluation(job, found, visib)
    if rank == 0:
        _write(evaluation, [found], csv, summary)
        if report is not None:
            write_report(report, evaluation, shown_of(evaluation, found["pictures"]))
    return evaluation


def evaluate_bop_objects(
    root: str | Path,
    estimators: Mapping[int, Any],
    *,
    split: str | None = None,
    boxes: str = "none",
    visib: float = 0.6,
    csv: str | Path | None = None,
    summary: str | Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluations:
    """The Evaluations of several objects, and one results file of all of them, as the challenge wants it.

    Args:
        estimators: of each object, by its id.
        limit: only the first pictures of each object.
    Raises:
        ValueError: as `evaluate_bop`; no estimators.
    Notes:
        The rest as in `evaluate_bop`. The time of a picture is the sum of those that its objects took.
    """
    if not estimators:
        raise ValueError("estimators: got none, expected one for each object")
    dataset = read_bop(root, split)
    jobs = [_job(dataset, i, each, boxes, visib, limit, csv, None) for i, each in estimators.items()]
    with process_group(torch.device("cpu")) as (rank, world):
        found = [_estimated(job, rank, world, progress) for job in jobs]
    each = {job.known.obj_id: _evaluation(job, f, visib) for job, f in zip(jobs, found, strict=True)}
    evaluations = Evaluations(each, float(np.median(list(_seconds(found).values()))))
    if rank == 0:
        _write(evaluations, found, csv, summary)
    return evaluations


@dataclass(frozen=True, eq=False)
class _Job:
    """One object to be found in a set: in which pictures, by what, and what there is to say of it beforehand."""

    dataset: BopDataset
    known: BopObject
    target: ScoredObject
    frames: list[BopFrame]
    estimator: Any
    boxes: str
    notes: tuple[str, ...]

    def count(self, frame: BopFrame) -> int:
        """How many instances are to be found in a picture."""
        return self.dataset.targets[frame.scene_id, frame.im_id, self.known.obj_id]

    def truths(self, frame: BopFrame, camera: Camera) -> list[Truth]:
        """Those instances, the most visible ones first; fewer where fewer are annotated."""
        own = [i for i in frame.instances if i.obj_id == self.known.obj_id]
        own.sort(key=lambda i: -np.nan_to_num(i.visib_fract))
        place = frame.scene_id, frame.im_id
        return [Truth(i.pose, camera, i.visib_fract, *place) for i in own[: self.count(frame)]]


def _job(
    dataset: BopDataset, obj_id: int | None, estimator: Any, boxes: str, visib: float, limit: int | None,
    csv: _File, report: _File,
) -> _Job:  # fmt: skip
    """Raises ValueError, before any work is done, for what cannot be had from this set."""
    for name, value, good, expected in (
        ("boxes", boxes, boxes in BOXES, f"one of {BOXES}"),
        ("visib", visib, 0 <= visib <= 1, "a share between 0 and 1"),
        ("limit", limit, limit is None or limit >= 1, "None or at least 1"),
    ):
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    known = _object(dataset, obj_id)
    obj_id, where = known.obj_id, f"{dataset.root}, split {dataset.split}"
    asked = sum(key[2] == obj_id for key in dataset.targets)
    frames = dataset.target_frames(obj_id)
    if not frames:
        others = sorted({key[2] for key in dataset.targets} - {obj_id})
        raise ValueError(
            f"{where}: none of the {asked} targets of object {obj_id} has a picture"
            if asked
            else f"{where}: no targets of object {obj_id}, but of {others}; choose one of these, or another split"
        )
    annotated = [f for f in frames if any(i.obj_id == obj_id for i in f.instances)]
    if not annotated:
        withheld = f"the truth of object {obj_id} is withheld in {where}"
        if report is not None:
            raise ValueError(f"report: got {str(report)!r}, but {withheld}: there is nothing to show")
        if boxes == "gt":
            raise ValueError(f'boxes: got "gt", but {withheld}; expected "none"')
        if csv is None:
            raise ValueError(f"csv: {withheld}; expected a file for the poses, for there are no figures")
    notes = list(dataset.notes)
    if asked > len(frames):
        notes.append(
            f"{asked - len(frames)} of {asked} targets have no picture: they are not counted, in BOP they are misses"
        )
    if unknown := len(frames) - len(annotated):
        only = "" if csv is None else f", only poses in {csv}"
        notes.append(f"the truth of {unknown} of {len(frames)} targets is withheld: no figures of them{only}")
    if boxes == "gt" and csv is not None:
        notes.append(f"{csv} was made with TRUE BOXES: it is no submission to the challenge")
    frames = (annotated if boxes == "gt" or csv is None else frames)[:limit]
    target = ScoredObject(known.points, known.diameter, known.symmetries, known.faces)
    notes += [*_unknown_views(estimator, frames, known), *_another_object(estimator, known)]
    return _Job(dataset, known, target, frames, estimator, boxes, tuple(notes))


def _object(dataset: BopDataset, obj_id: int | None) -> BopObject:
    asked = sorted({key[2] for key in dataset.targets})
    if not asked:
        raise ValueError(
            f"{dataset.root}, split {dataset.split}: no targets: neither an annotated object nor one in "
            "test_targets_bop19.json beside a test split"
        )
    if obj_id is None:
        if len(asked) != 1:
            raise ValueError(f"obj_id: the set has targets of objects {asked}; choose one")
        obj_id = asked[0]
    if obj_id not in dataset.objects:
        known = sorted(dataset.objects) or f"those in models/models_info.json, which {dataset.root} lacks"
        raise ValueError(f"obj_id: expected one of {known}, got {obj_id}")
    return dataset.objects[obj_id]


def _unknown_views(estimator: Any, frames: Sequence[BopFrame], known: BopObject) -> Iterator[str]:
    """A note, where the set shows the object from outside of the view space that the model was trained for."""
    options = getattr(estimator, "meta", {}).get("options", {})
    names = ("elevation_deg", "azimuth_deg", "roll_deg")
    if not all(name in options for name in (*names, "up")):
        return
    view = ViewSpace.of_training(options)
    centre = 0.5 * (known.points.min(0) + known.points.max(0))
    poses = [i.pose for frame in frames for i in frame.instances if i.obj_id == known.obj_id]
    same = [Pose.from_matrix(s) for s in known.symmetries]
    unknown = sum(not any(view.holds(pose @ s, centre) for s in same) for pose in poses)
    if unknown:
        limits = ", ".join("{} {:g} to {:g}".format(n.removesuffix("_deg"), *options[n]) for n in names)
        yield (
            f"{unknown} of {len(poses)} objects are seen from where the model never saw its own ({limits} degrees): "
            "train it for these views, or leave them out"
        )


def _another_object(estimator: Any, known: BopObject) -> Iterator[str]:
    """Notes, where the model's object cannot be the set's."""
    meta = getattr(estimator, "meta", {})
    size = meta.get("diameter")
    if size is not None and abs(size - known.diameter) > SAME_SIZE * known.diameter:
        yield (
            f"the model is of an object of diameter {1000 * size:.1f} mm, object {known.obj_id} of the set has "
            f"{1000 * known.diameter:.1f} mm: another object, or another unit?"
        )
    if "symmetries" in meta and Symmetries.from_json(meta["symmetries"]).is_symmetric != known.symmetric:
        who, other = ("set", "model") if known.symmetric else ("model", "set")
        yield f"the {who} knows symmetries of the object, the {other} none: errors are counted by the set's"


@dataclass(frozen=True)
class _Share:
    """What one rank found out."""

    frames: dict[tuple[int, int], BopFrame]
    scores: list[Score]
    estimates: dict[tuple[int, int, int], Any]
    truths: dict[tuple[int, int, int], Truth]
    results: list[list[Any]]
    seconds: list[list[Any]]
    skipped: list[str]
    no_depth: list[str]

    def to_json(self) -> dict[str, list[Any]]:
        plain = {name: getattr(self, name) for name in ("results", "seconds", "skipped", "no_depth")}
        return plain | {"scores": [asdict(s) for s in self.scores]}

    def pictures(self, target: ScoredObject) -> list[Shown]:
        """Overlays of the instances that this rank would show; the merged report picks among all ranks'."""
        shown = []
        for kind, row in chosen(self.scores):
            key = (row.scene_id, row.im_id, row.instance)
            image, _ = self.frames[key[:2]].load()
            drawn = drawn_jpeg(image, self.estimates[key], self.truths[key], target)
            shown.append(Shown(kind, row, drawn))
        return shown


def _run(job: _Job, frames: Sequence[BopFrame], progress: bool) -> _Share:
    share = _Share({}, [], {}, {}, [], [], [], [])
    target = job.target
    for frame in tqdm(frames, disable=not progress, unit="picture"):
        try:
            image, camera = frame.load()
        except ValueError as error:
            share.skipped.append(str(error))
            continue
        count, truths = job.count(frame), job.truths(frame, camera)
        depth = _depth(frame, image.shape[:2], share.no_depth) if truths else None
        given = [projected_box(target.points, t.pose, camera) for t in truths] if job.boxes == "gt" else None
        for _ in range(0 if share.seconds else WARM_UP):
            _estimate(job.estimator, image, camera, count, given)
        start = time.perf_counter()
        estimates = _estimate(job.estimator, image, camera, count, given)
        seconds = time.perf_counter() - start
        if given is None:
            rows = score(estimates, truths, target, seconds, depth)
        else:
            rows = [
                replace(score(own, [t], target, seconds, depth)[0], instance=i, estimate=i if own else -1)
                for i, (own, t) in enumerate(zip(([e] if e else [] for e in estimates), truths, strict=True))
            ]
        share.scores.extend(rows)
        share.frames[frame.scene_id, frame.im_id] = frame
        for row, truth in zip(rows, truths, strict=True):
            key = (row.scene_id, row.im_id, row.instance)
            share.estimates[key] = estimates[row.estimate] if row.estimate >= 0 else None
            share.truths[key] = truth
        share.results.extend(_result_rows(frame, job.known.obj_id, estimates[:count]))
        share.seconds.append([frame.scene_id, frame.im_id, seconds])
    return share


def _depth(frame: BopFrame, shape: tuple[int, ...], unusable: list[str]) -> NDArray[np.float32] | None:
    """The depth of a picture, (H, W) metres; None where there is none; one that does not fit is named in `unusable`."""
    if frame.depth_path() is None:
        return None
    try:
        depth = frame.load_depth()
        if depth.shape != shape:
            raise ValueError(f"{frame.depth_path()}: {depth.shape}, but the picture is {shape}")
    except ValueError as error:
        unusable.append(str(error))
        return None
    return depth


def _estimate(
    estimator: Any,
    image: NDArray[np.uint8],
    camera: Camera,
    count: int,
    boxes: list[NDArray[np.float64]] | None,
) -> list[Any]:
    if boxes is not None:
        seen = [box if np.isfinite(box).all() else None for box in boxes]  # not where it is behind the camera
        return [b if b is None else estimator.estimate(image, camera=camera, box=b) for b in seen]
    if count == 1:
        return [estimator.estimate(image, camera=camera)]
    return sorted(
        estimator.estimate_all(image, camera=camera, max_instances=count), key=lambda e: -e.confidence
    )


def _result_rows(frame: BopFrame, obj_id: int, estimates: Sequence[Any]) -> Iterator[list[Any]]:
    for e in estimates:
        if e is not None and e.pose is not None and np.isfinite(np.asarray(e.pose.matrix)).all():
            matrix = np.asarray(e.pose.numpy().matrix).tolist()
            yield [frame.scene_id, frame.im_id, obj_id, float(e.confidence), matrix]


def _estimated(job: _Job, rank: int, world: int, progress: bool, pictures: bool = False) -> _Found:
    """What all ranks found out, on every rank."""
    own = [job.frames[i] for i in split_indices(len(job.frames), rank, world)]
    share = _run(job, own, progress and rank == 0)
    drawn = [p.to_json() for p in share.pictures(job.target)] if pictures else []
    parts = _gather(share.to_json() | {"pictures": drawn}, world)
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


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


def _evaluation(job: _Job, found: _Found, visib: float) -> Evaluation:
    skipped, no_depth = found["skipped"], found["no_depth"]
    if not found["seconds"]:
        raise ValueError(f"{job.dataset.root}: no picture could be read; first: {skipped[0]}")
    notes = job.notes
    if no_depth:
        notes += (
            f"pictures without VSD, for their depth cannot be used: {len(no_depth)}, first: {no_depth[0]}",
        )
    task = "whole pictures, no box given" if job.boxes == "none" else "TRUE BOXES GIVEN"
    title = f"{job.dataset.root.name}/{job.dataset.split}, object {job.known.obj_id}: {task}"
    if found["scores"]:
        return evaluation_of(title, [Score(**row) for row in found["scores"]], visib, skipped, notes)
    median = float(np.median(list(_seconds([found]).values())))
    return Evaluation(title, (), (), median, tuple(skipped), notes)


def _seconds(found: Sequence[_Found]) -> dict[tuple[int, int], float]:
    """By scene and image, what all objects took together, also where none was found."""
    total: dict[tuple[int, int], float] = {}
    for scene_id, im_id, seconds in (row for each in found for row in each["seconds"]):
        total[scene_id, im_id] = total.get((scene_id, im_id), 0.0) + seconds
    return total


def _write(evaluation: Evaluation | Evaluations, found: Sequence[_Found], csv: _File, summary: _File) -> None:
    if csv is not None:
        seconds = _seconds(found)
        results = [
            BopResult(
                scene, image, obj, confidence, Pose.from_matrix(np.array(matrix)), seconds[scene, image]
            )
            for each in found
            for scene, image, obj, confidence, matrix in each["results"]
        ]
        write_results(csv, sorted(results, key=lambda r: (r.scene_id, r.im_id, r.obj_id, -r.score)))
    if summary is not None:
        with atomic_path(summary) as temporary:
            temporary.write_text(json.dumps(evaluation.to_json(), indent=1, allow_nan=False) + "\n")
