"""Geometry against regression: six ways to tell where an object is, on the same pictures, in the same minutes.

One set is rendered per object. Four methods train on it for the same time: heatmaps and PnP, PoseNet, direct regression
from the backbone that the heatmaps start from, and the network of the ISS docking task, which says place and distance
alone. The nearest training view, and PnP from the true keypoints, frame them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from geopose import checkpoint
from geopose._io import atomic_path
from geopose.bench.common import page_parts
from geopose.bench.regression_data import CONDITIONS, Pictures, Target, render_sets, to_view
from geopose.bench.regression_methods import CEILING, LEARNED, RETRIEVAL, Answer, Retrieval, true_keypoints
from geopose.bench.regression_report import PART, fill_tables, summarise, write_figures, write_table
from geopose.data.sample import ViewSpace, shuffled
from geopose.distributed import pick_device
from geopose.fit import Clock, Learner, endless_loader, learn
from geopose.geometry.metrics import add, add_s, rotation_error
from geopose.nets.backbone import fold_batchnorm, keep_freed_memory
from geopose.train_report import Progress, machine, say

_ROLE = "regression"
_DIGITS = 5  # of stored errors


@dataclass(frozen=True)
class Options:
    """What to compare, and how long.

    Attributes:
        objects: built-in names or mesh files.
        minutes: of training, for each method, object and size of the training set.
        total_minutes: of all trainings together, which share them evenly, instead of `minutes`.
        train, val, test: pictures for training, to calibrate with, and to test on under each condition.
        sizes: smaller training sets to train on too, for the first object only: the first pictures of `train`.
        picture: side of the pictures, pixels, a multiple of 32, at least 96.
        keypoints: points to detect.
        elevation_deg, roll_deg: from where objects are seen; the azimuth goes all round.
        ceiling_px: how far the true keypoints are off for PnP.
        batch_size: pictures a step.
        timed: pictures to measure the time per picture on, all methods in turn.
        seed: of everything random.
        workers: processes that render pictures; None: one for each core.
        page: Markdown page between whose marks the tables are written; the figures are laid beside it.
        device: "cpu", "cuda", ...; None: a GPU when there is one. Times are measured there too.
        quiet: write nothing to stderr.
    """

    objects: tuple[str, ...] = ("xwing", "iss", "car")
    minutes: float = 10.0
    total_minutes: float | None = None
    train: int = 3000
    val: int = 200
    test: int = 200
    sizes: tuple[int, ...] = (300, 1000)
    picture: int = 128
    keypoints: int = 16
    elevation_deg: tuple[float, float] = (-10.0, 60.0)
    roll_deg: tuple[float, float] = (-25.0, 25.0)
    ceiling_px: float = 1.0
    batch_size: int = 16
    timed: int = 30
    seed: int = 0
    workers: int | None = None
    page: str | None = None
    device: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        checks = {
            "objects": (len(self.objects) > 0, "at least one name"),
            "minutes": (self.minutes > 0, "a positive number"),
            "total_minutes": (self.total_minutes is None or self.total_minutes > 0, "a positive number"),
            "train": (self.train >= 4, "at least 4"),
            "val": (self.val >= 2, "at least 2"),
            "test": (self.test >= 2, "at least 2"),
            "sizes": (all(4 <= s < self.train for s in self.sizes), "numbers from 4 to below train"),
            "picture": (self.picture >= 96 and self.picture % 32 == 0, "a multiple of 32, at least 96"),
            "keypoints": (self.keypoints >= 4, "at least 4"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "timed": (self.timed >= 1, "at least 1"),
            "ceiling_px": (self.ceiling_px >= 0, "a number >= 0"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {expected}")

    def view(self) -> ViewSpace:
        """From where the objects are seen."""
        return ViewSpace(self.elevation_deg, (-180.0, 180.0), self.roll_deg)

    def plan(self, number: int) -> list[tuple[int, list[str]]]:
        """(pictures, methods that train on them) for the object of this number, most pictures first."""
        smaller = sorted(set(self.sizes), reverse=True) if number == 0 else []
        whole = [name for name in LEARNED if LEARNED[name].attitude]
        return [(self.train, list(LEARNED)), *((size, whole) for size in smaller)]

    def shared(self) -> Options:
        """The same options with `minutes` for each training and no `total_minutes`."""
        if self.total_minutes is None:
            return self
        trainings = sum(len(names) for i in range(len(self.objects)) for _, names in self.plan(i))
        return replace(self, minutes=self.total_minutes / trainings, total_minutes=None)


def run(options: Options | None = None, out: Path | None = None) -> dict[str, Any]:
    """The results: `options`, `machine`, `objects` (by name: `methods`, a list of rows as `summarise` makes them),
    `table` (Markdown) and `files` written.

    Into the folder `out` ("out/regression" by default) go the pictures, one checkpoint and one JSON file of errors per
    method, regression.json, table.md and figures. What is there already is kept: a method that has finished is not
    trained again, and one that was interrupted starts anew.

    Raises:
        ValueError: on bad options, or when `out` holds results of other options, or the page has no marks.
    """
    options, out = (options or Options()).shared(), Path(out or "out/regression")
    if options.page is not None:
        page_parts(options.page, PART)
    keep_freed_memory()
    results: dict[str, Any] = {"options": asdict(options), "machine": machine(), "objects": {}}
    shown: dict[str, dict[str, Pictures]] = {}
    counts = {"train": options.train, "val": options.val, **dict.fromkeys(CONDITIONS, options.test)}
    for number, name in enumerate(options.objects):
        target = Target.of(name, options.keypoints)
        folder = out / target.model.name
        sets = render_sets(
            target,
            folder,
            counts,
            options.picture,
            options.view(),
            options.seed,
            options.workers,
            options.quiet,
        )
        views = Retrieval.of(target, sets["train"])
        stored = [
            row for size, names in options.plan(number)
            for row in _methods(target, sets, views, size, names, folder, options)
        ]  # fmt: skip
        seconds = _seconds(target, sets, views, folder, options)
        rows = [summarise(row) | {"seconds": seconds.get(row["method"])} for row in stored]
        results["objects"][target.model.name] = {"methods": rows, "errors": stored}
        shown[target.model.name] = {condition: sets[condition] for condition in CONDITIONS}
    table, *figures = write_table(results, out / "table.md"), *write_figures(results, shown, out)
    if options.page is not None:
        fill_tables(options.page, table, figures)
    for entry in results["objects"].values():
        del entry["errors"]  # they lie in the files of the methods
    results["files"] = [str(path) for path in (table, *figures)]
    with atomic_path(out / "regression.json") as temporary:
        temporary.write_text(json.dumps(checkpoint.jsonable(results), indent=1) + "\n", encoding="utf-8")
    return {**results, "table": table.read_text(encoding="utf-8")}


def _methods(
    target: Target,
    sets: Mapping[str, Pictures],
    views: Retrieval,
    size: int,
    names: Sequence[str],
    folder: Path,
    options: Options,
) -> Iterator[dict[str, Any]]:
    """The errors of the learned methods `names`, of retrieval from `views` and of the true keypoints, with `size`
    training pictures, from their files where they are there."""
    training = sets["train"].first(size)

    def learned(name: str) -> Callable[[], tuple[dict[str, Any], Callable[[Pictures], Answer]]]:
        def work() -> tuple[dict[str, Any], Callable[[Pictures], Answer]]:
            path = _path(folder, name, size, checkpoint.SUFFIX)
            samples, minutes = _train(name, target, training, path, options)
            net, prepared = _loaded(name, target, training, sets["val"], path, options)
            numbers = {"parameters": sum(p.numel() for p in net.parameters()), "images": samples}
            return numbers | {"minutes": minutes}, lambda pictures: LEARNED[name].answer(
                net, target, pictures, prepared
            )

        return work

    def retrieval() -> tuple[dict[str, Any], Callable[[Pictures], Answer]]:
        return {"parameters": 0}, lambda pictures: views.first(size).answer(target, pictures)

    def ceiling() -> tuple[dict[str, Any], Callable[[Pictures], Answer]]:
        return {"parameters": 0}, lambda p: true_keypoints(target, p, options.ceiling_px, options.seed)

    for name, work in {**{n: learned(n) for n in names}, RETRIEVAL: retrieval, CEILING: ceiling}.items():
        path = _path(folder, name, size, ".json")
        identity = _identity(options, target, name)
        if path.is_file():
            row = json.loads(path.read_text(encoding="utf-8"))
            if row.get("identity") != identity:
                raise ValueError(
                    f"{path}: holds results of other options ({row.get('identity')}, now {identity}); "
                    "delete it or take another folder"
                )
            yield row
            continue
        numbers, answer = work()
        errors = {c: _errors(answer(sets[c]), target, sets[c], training) for c in CONDITIONS}
        row = {"identity": identity, "object": target.model.name, "method": name, "size": size}
        row = checkpoint.jsonable(row | numbers | {"errors": errors})
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(row), encoding="utf-8")
        yield row


def _identity(options: Options, target: Target, method: str) -> dict[str, Any]:
    """What results depend on, beside method and size of the training set, which their file's name says."""
    keys = ["val", "test", "picture", "keypoints", "elevation_deg", "roll_deg", "seed"]
    keys += ["minutes", "batch_size"] if method in LEARNED else ["ceiling_px"] if method == CEILING else []
    same = {"mesh": target.model.content_hash, **{k: getattr(options, k) for k in keys}}
    return dict(checkpoint.jsonable(same))


def _path(folder: Path, method: str, size: int, suffix: str) -> Path:
    return folder / f"{method.replace(' + ', '_').replace(' ', '_')}-{size}{suffix}"


class _Training(Dataset[dict[str, Any]]):
    """Endless training pictures with a method's targets, every picture once in each round."""

    def __init__(self, pictures: Pictures, targets: Mapping[str, NDArray[Any]], seed: int) -> None:
        self.arrays = {"image": pictures["image"], **targets}
        self.count, self.seed = len(pictures), seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        turn, place = divmod(index, self.count)
        row = shuffled(self.seed, turn, self.count)[place]
        return {key: array[row] for key, array in self.arrays.items()}


def _train(name: str, target: Target, training: Pictures, path: Path, options: Options) -> tuple[int, float]:
    """(pictures seen, minutes taken) of a training, whose network is left in the checkpoint `path`."""
    method, device = LEARNED[name], pick_device(options.device)
    torch.manual_seed(options.seed)
    net = method.build(target, training).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = Learner(_ROLE, net, method.learning_rate)
    dataset = _Training(training, method.targets(target, training), options.seed)
    batch_size = min(options.batch_size, len(training))
    title = f"{target.model.name}, {name}, {len(training)} pictures"
    # The pictures lie in memory: no process but this one is needed.
    loader = endless_loader(dataset, batch_size, 0, 0, pin=device.type == "cuda")
    clock = Clock()
    progress = Progress(title, 0.0, 60.0 * options.minutes, options.quiet)
    try:
        learn(
            learner, loader, method.loss, clock, 60.0 * options.minutes, device,
            lambda who, loss: progress.show(clock.elapsed(), who.samples, loss), device.type == "cuda",
        )  # fmt: skip
    finally:
        progress.close()
    minutes = clock.elapsed() / 60
    learner.finish()
    checkpoint.save_model(path, {_ROLE: net}, {"method": name, "images": learner.samples, "minutes": minutes})
    say(f"{title}: {learner.samples} pictures seen in {minutes:.1f} minutes", options.quiet)
    return learner.samples, minutes


def _loaded(
    name: str, target: Target, training: Pictures, val: Pictures, path: Path, options: Options
) -> tuple[nn.Module, Any]:
    """The network of a checkpoint, folded, in evaluation mode, and what it prepares from pictures for validation."""
    net = LEARNED[name].build(target, training)
    net.load_state_dict(checkpoint.load_model(path)[0][_ROLE], strict=True)
    net = fold_batchnorm(net).to(pick_device(options.device), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return net, LEARNED[name].prepare(net, val)


def _errors(
    answer: Answer, target: Target, pictures: Pictures, training: Pictures
) -> dict[str, list[float | None]]:
    """By name, for each picture: rotation_deg; translation and add, in diameters; found; nearest_deg, the angle from
    the view's attitude to the nearest one trained on. None stands for infinity: no answer."""
    truth, diameter = pictures.pose, target.model.diameter
    symmetries = np.asarray(target.symmetries.expand())
    middle = truth.apply(target.centre[None])[:, 0]
    distance = add_s if len(symmetries) > 1 else add
    columns = {
        "rotation_deg": np.rad2deg(np.asarray(rotation_error(answer.pose, truth, symmetries))),
        "translation": np.linalg.norm(answer.middle - middle, axis=-1) / diameter,
        "add": np.asarray(distance(answer.pose, truth, target.points)) / diameter,
        "found": answer.found.astype(float),
        "nearest_deg": _nearest(*(to_view(p.pose, p.camera, target)[1] for p in (pictures, training))),
    }
    return {
        key: [round(float(v), _DIGITS) if np.isfinite(v) else None for v in values]
        for key, values in columns.items()
    }


def _nearest(asked: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) degrees from rotations (N, 3, 3) to the nearest of others (M, 3, 3): from the trace of their difference."""
    trace = np.einsum("nij,mij->nm", asked, known).max(1)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def _seconds(
    target: Target, sets: Mapping[str, Pictures], views: Retrieval, folder: Path, options: Options
) -> dict[str, float]:
    """Median seconds per picture of every method, measured one picture after the other, all methods in turn."""
    training, test = sets["train"], sets["easy"]
    answers: dict[str, Callable[[Pictures], Answer]] = {}
    for name, method in LEARNED.items():
        path = _path(folder, name, options.train, checkpoint.SUFFIX)
        net, prepared = _loaded(name, target, training, sets["val"], path, options)
        answers[name] = lambda p, m=method, n=net, a=prepared: m.answer(n, target, p, a)  # type: ignore[misc]
    answers[RETRIEVAL] = lambda p: views.answer(target, p)
    answers[CEILING] = lambda p: true_keypoints(target, p, options.ceiling_px, options.seed)
    times: dict[str, list[float]] = {name: [] for name in answers}
    for i in range(-2, min(options.timed, len(test))):  # the first two warm up
        one = Pictures({k: v[max(i, 0) : max(i, 0) + 1] for k, v in test.arrays.items()})
        for name, answer in answers.items():
            begun = time.perf_counter()
            answer(one)
            if i >= 0:
                times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in times.items()}
