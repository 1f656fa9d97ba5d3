"""Learning the azimuth of cars from renders: one loop for the classifier of the original and the circular network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from geopose import checkpoint
from geopose.azimuth_report import (
    AzimuthScores,
    judge,
    most_likely,
    save_confusion,
    save_curves,
    save_pictures,
)
from geopose.cad.model import CadModel
from geopose.data.azimuth import AzimuthDataset, AzimuthOptions, built_in_cars, class_of, mirrored, split_cars
from geopose.distributed import pick_device
from geopose.fit import (
    Batch,
    Clock,
    Learner,
    cores_shared_with,
    default_workers,
    endless_loader,
    learn,
    replayed,
)
from geopose.nets.azimuth import (
    AzimuthClassifier,
    AzimuthNet,
    build_azimuth_net,
    circular_loss,
    classifier_loss,
)
from geopose.nets.backbone import keep_freed_memory
from geopose.train_report import Progress, machine, say

CIRCULAR: dict[str, Any] = {"kind": "circular", "pretrained": True, "frozen_stride": 4, "frozen_5x5": True}
"""The better network: features of ImageNet, a density on the circle."""

CLASSIFIER: dict[str, Any] = {"kind": "classifier"}
"""The network of the original; its classes and the side of its pictures are those of the pictures."""

ROLE = "azimuth"
_CARS = 32  # built-in ones
_KEPT = 10_000  # pictures to learn from again: 1.5 GB of 224 pixels
_PROBE = 96  # unseen pictures behind each point of the curves
_POINTS, _PROBE_SHARE = 24, 0.06  # of the curves, and of the time


@dataclass(frozen=True)
class AzimuthTraining:
    """What came of a training: the checkpoint, its history (rows: `HISTORY`), and its scores on pictures of cars it has
    not seen."""

    path: Path
    history: list[list[float]]
    scores: AzimuthScores


def train_azimuth(
    out: str | Path,
    minutes: float = 10.0,
    *,
    net: Mapping[str, Any] = CIRCULAR,
    pictures: AzimuthOptions | None = None,
    cars: Sequence[CadModel] | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    replays: int = 1,
    test_pictures: int = 400,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> AzimuthTraining:
    """The `AzimuthTraining` of the checkpoint `out`; beside it `_curves.png`, `_confusion.png` and `_pictures.png`.

    Args:
        minutes: of learning; making the cars before and judging after it take some seconds more.
        net: options of `build_azimuth_net`: `CIRCULAR`, `CLASSIFIER`, or changes of these.
        pictures: what to show; `AzimuthOptions()` by default.
        cars: meshes, of which `split_cars` keeps some for judging; None: 32 built-in cars.
        learning_rate: at its peak. None: 3e-4 for the circular network (layers on top of the encoder: three times
            that); 5e-5 for the classifier, whose optimiser is Adam, as in the original.
        batch_size: pictures per step.
        replays: how often a picture is learned from, about, mirrored or not: for networks that learn faster than
            pictures are made.
        test_pictures: how many to judge with.
        seed: of everything random.
        workers: processes that make pictures; None: one for two cores; 0: none.
        device: "cpu", "cuda", ...; None: a GPU when there is one.
        quiet: write nothing to stderr.
    Raises:
        ValueError: on bad input.
        RuntimeError: when a process that makes pictures dies, or the loss stays non-finite.
    """
    out, pictures = Path(out), pictures or AzimuthOptions()
    _check(out, minutes, batch_size, replays, test_pictures, learning_rate)
    options = dict(net)
    if options.get("kind") == "classifier":
        options = {"classes": pictures.classes, "size": pictures.size, **options}
    torch.manual_seed(seed)
    on = pick_device(device)
    keep_freed_memory()
    network = build_azimuth_net(options).to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]
    say("making cars", quiet)
    learned, unseen = split_cars(built_in_cars(_CARS, seed) if cars is None else cars)
    workers = default_workers() if workers is None else workers
    train_set, probe_set, test_set = (
        AzimuthDataset(models, pictures, 1000 * seed + offset)
        for offset, models in enumerate((learned, unseen, unseen))
    )
    with cores_shared_with(workers):
        learner = _learner(network, learning_rate)
        probe = next(iter(endless_loader(probe_set, min(_PROBE, test_pictures), 0, 0)))
        watch = _Watch(learner, probe, pictures.classes, 60.0 * minutes, on, quiet)
        fresh = endless_loader(train_set, batch_size, workers, 0, pin=on.type == "cuda")
        watch.run(fresh, replays)
        meta = {
            "kind": ROLE,
            "options": asdict(pictures),
            "cars": [model.content_hash for model in learned],
            "seed": seed,
            "machine": machine(),
            "minutes": watch.clock.elapsed() / 60,
            "images": learner.samples,
            "history": watch.history,
        }
        checkpoint.save_model(out, {ROLE: network}, meta)
        scores = _judged(out, test_set, test_pictures, workers, on)
    figures = scores.figures(pictures.classes)
    checkpoint.save_model(out, {ROLE: network}, meta | {"figures": figures})
    name = f"{type(network).__name__}, {pictures.classes} classes"
    save_curves({name: watch.history}, out.with_name(out.stem + "_curves.png"))
    save_confusion({name: scores}, pictures.classes, out.with_name(out.stem + "_confusion.png"))
    say(f"{out}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()), quiet)
    return AzimuthTraining(out, watch.history, scores)


def _judged(
    path: Path, test_set: AzimuthDataset, count: int, workers: int, device: torch.device
) -> AzimuthScores:
    """The scores of the network as it is stored; some of its answers are drawn beside the checkpoint."""
    stored, _ = load_azimuth(path, device)
    scores = judge(stored, test_set, count, workers=workers)
    save_pictures(stored, test_set, path.with_name(path.stem + "_pictures.png"))
    return scores


def load_azimuth(path: str | Path, device: torch.device | str = "cpu") -> tuple[AzimuthNet, dict[str, Any]]:
    """(the network in evaluation mode on `device`, metadata) of a checkpoint written by `train_azimuth`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is none, is of another kind, or its weights do not fit.
    """
    states, meta = checkpoint.load_model(path)
    if list(states) != [ROLE]:
        raise ValueError(f"{path}: holds the networks {sorted(states)}, expected one made by train_azimuth")
    try:
        net = build_azimuth_net(meta["networks"][ROLE], weights=False)
        net.load_state_dict(states[ROLE], strict=True)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: the network does not fit its weights: {error}") from None
    return net.to(device, memory_format=torch.channels_last).eval(), meta  # type: ignore[call-overload]


def _check(
    out: Path,
    minutes: float,
    batch_size: int,
    replays: int,
    test_pictures: int,
    learning_rate: float | None,
) -> None:
    if out.is_dir():
        raise ValueError(f"out: got the folder {out}, expected a file such as {out / 'car.geopose'}")
    checks = {
        "minutes": (minutes, minutes > 0, "a positive number"),
        "batch_size": (batch_size, batch_size >= 2, "at least 2"),
        "replays": (replays, replays >= 1, "at least 1"),
        "test_pictures": (test_pictures, test_pictures >= 1, "at least 1"),
        "learning_rate": (
            learning_rate,
            learning_rate is None or 0 < learning_rate < 1,
            "a number between 0 and 1",
        ),
    }
    for name, (value, good, expected) in checks.items():
        if not good:
            raise ValueError(f"{name}: got {value!r}, expected {expected}")


def _learner(net: AzimuthNet, learning_rate: float | None) -> Learner:
    """The network on its way; for the classifier, Adam with the same rate for all layers."""
    if not isinstance(net, AzimuthClassifier):
        return Learner(ROLE, net, learning_rate or 3e-4)
    learner = Learner(ROLE, net, learning_rate or 5e-5)
    for group in learner.optimiser.param_groups:
        group["factor"], group["weight_decay"] = 1.0, 0.0
    return learner


class _Watch:
    """What is noted while a network learns: loss and accuracy on the pictures that come and on unseen ones."""

    def __init__(
        self, learner: Learner, probe: Batch, classes: int, until_s: float, device: torch.device, quiet: bool
    ) -> None:
        self.learner, self.classes, self.device = learner, classes, device
        self.probe = {k: v.to(device) for k, v in probe.items()}
        classifier = isinstance(learner.net, AzimuthClassifier)
        self.loss_fn: Callable[..., Any] = classifier_loss if classifier else circular_loss
        self.history: list[list[float]] = []
        self._recent: list[tuple[float, float]] = []
        self._average: Any = copy.deepcopy(learner.net)
        self.clock, self.until_s = Clock(), until_s
        self.progress = Progress(type(learner.net).__name__, 0.0, until_s, quiet)
        self._next_s = until_s / _POINTS

    def run(self, loader: DataLoader[Any], replays: int) -> None:
        """Trains the network until the time is over and leaves the averaged weights in it."""
        half = self.device.type == "cuda"

        def replay(batches: Iterable[Batch]) -> Iterable[Batch]:
            return replayed(batches, replays, _KEPT, lambda batch, draw: mirrored(batch, self.classes, draw))

        try:
            learn(
                self.learner,
                loader,
                self.loss,
                self.clock,
                self.until_s,
                self.device,
                self.after_step,
                half,
                replay,
            )
        finally:
            self.progress.close()
        self.learner.finish()
        self.note(self.clock.elapsed())

    def loss(self, out: Tensor, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a step, noted."""
        found: tuple[Tensor, Mapping[str, Tensor]] = self.loss_fn(out, batch)
        self._recent.append((float(found[0].detach()), self._accuracy(out.detach(), batch)))
        return found

    def after_step(self, learner: Learner, loss: float) -> None:
        """Shows progress, and notes a point of the curves when it is time to."""
        now = self.clock.elapsed()
        self.progress.show(now, learner.samples, loss)
        if now >= self._next_s:
            self.note(now)
            cost = self.clock.elapsed() - now
            self._next_s = now + max(self.until_s / _POINTS, cost / _PROBE_SHARE)

    @torch.no_grad()
    def note(self, now: float) -> None:
        """Notes a point of the curves: the averaged weights on the unseen pictures."""
        self._average.load_state_dict(self.learner.average.state)
        out = self._average.eval()(self.probe["image"]).float()
        test = [float(self.loss_fn(out, self.probe)[0]), self._accuracy(out, self.probe)]
        train = np.mean(self._recent, axis=0).tolist() if self._recent else [float("nan")] * 2
        self.history.append([now, self.learner.samples, *train, *test])
        self._recent.clear()

    def _accuracy(self, out: Tensor, batch: Batch) -> float:
        answer = class_of(most_likely(self._average, out).cpu(), self.classes)
        return float(np.mean(answer == batch["label"].cpu().numpy()))
