"""Learning where the station is and how far away, from a folder in the layout of the ISS docking data.

The network is trained on "train" for a given time; the first half of "val" calibrates its uncertainties, the second
half judges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from geopose import checkpoint
from geopose.data.iss_docking import DockingDataset, Labels, cut, radius2, read_labels, second_look
from geopose.distributed import pick_device
from geopose.docking_report import Prediction, calibrated, evaluate, fit_uncertainty, in_words, joined, rows
from geopose.fit import Clock, Learner, cores_shared_with, default_workers, endless_loader, learn
from geopose.image import load_image
from geopose.nets.backbone import fold_batchnorm, keep_freed_memory
from geopose.nets.docking import DockingNet, build_docking, docking_loss, read_docking
from geopose.train_report import Progress, machine, plot_history, say
from geopose.visualize import Picture

ROLE = "docking"
_BATCH = 32
_NEAR = 1.8  # the least distance times this is where a second look puts the station


@dataclass(frozen=True)
class DockingOptions:
    """How to train.

    minutes: of training, reading included; size: side of the network's picture, a multiple of 32; batch_size;
    learning_rate: its peak; pretrained: start from ImageNet weights; frozen_stride, frozen_5x5: what of the encoder is
    not trained (see `DockingNet`); workers: reading processes, None for one per two cores; device; seed; quiet.
    """

    minutes: float = 10.0
    size: int = 256
    batch_size: int = 16
    learning_rate: float = 1e-3
    pretrained: bool = True
    frozen_stride: int = 4
    frozen_5x5: bool = True
    workers: int | None = None
    device: str | None = None
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if not self.minutes > 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"minutes, batch_size, learning_rate: got {self.minutes}, {self.batch_size}, {self.learning_rate}, "
                "expected positive numbers"
            )
        if self.size < 64 or self.size % 32:
            raise ValueError(f"size: got {self.size}, expected a multiple of 32, at least 64")


@dataclass(frozen=True)
class DockingModel:
    """A trained network and what its checkpoint says of it: size of its pictures, calibration, figures."""

    net: nn.Module
    meta: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> DockingModel:
        """The model in a checkpoint that `train_docking` wrote. Raises as `checkpoint.load_model` does."""
        states, meta = checkpoint.load_model(path)
        if meta["roles"] != [ROLE]:
            raise ValueError(
                f"{path}: holds the networks {meta['roles']}, expected one made by train_docking"
            )
        try:
            net: nn.Module = build_docking(meta["networks"][ROLE], weights=False)
            net.load_state_dict(states[ROLE], strict=True)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: the network does not fit its weights: {error}") from None
        chosen = pick_device(device)
        net = fold_batchnorm(net).to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(net.eval(), meta, chosen)

    @property
    def near(self) -> float:
        """Distance at which the second look puts the station, in the set's unit."""
        return float(self.meta["near"])

    @property
    def size(self) -> int:
        """Side of the network's picture, pixels."""
        return int(self.meta["options"]["size"])


def train_docking(root: str | Path, out: str | Path, options: DockingOptions | None = None) -> Path:
    """The path of the checkpoint `out`, trained on the set in `root`; a plot of the loss lies beside it.

    Takes `options.minutes` and then some seconds for calibration and judgement. An interrupted training starts anew.

    Raises:
        FileNotFoundError, ValueError: on bad options or a broken set.
        RuntimeError: when a reading process dies, or the loss stays non-finite.
    """
    options, clock, out = options or DockingOptions(), Clock(), Path(out)
    device = pick_device(options.device)
    keep_freed_memory()
    distances = read_labels(Path(root) / "train.csv").distance
    if len(distances) == 0:
        raise ValueError(f"{Path(root) / 'train.csv'}: expected at least one picture, got none")
    near = _NEAR * float(np.percentile(distances, 1))
    dataset = DockingDataset(root, "train", options.size, augment=options.seed, near=near)
    val = DockingDataset(root, "val", options.size).labels
    if val is None or len(val) < 2:
        raise ValueError(
            f"{Path(root) / 'val.csv'}: expected two pictures or more to calibrate and judge with"
        )
    logs = np.log(distances)
    torch.manual_seed(options.seed)
    net = DockingNet(
        options.pretrained, frozen_stride=options.frozen_stride, frozen_5x5=options.frozen_5x5,
        log_distance=(float(logs.mean()), max(float(logs.std()), 0.05)),
    )  # fmt: skip
    learner = Learner(ROLE, net.to(device, memory_format=torch.channels_last), options.learning_rate)  # type: ignore[call-overload]
    workers = default_workers() if options.workers is None else options.workers
    with cores_shared_with(workers):
        _learn(learner, dataset, options, workers, clock, device)
    meta: dict[str, Any] = {
        "name": "iss_docking",
        "near": near,
        "options": {k: v for k, v in asdict(options).items() if k not in ("quiet", "device", "workers")},
        "machine": machine(),
        "minutes": clock.elapsed() / 60,
        "images": learner.samples,
        "calibration": {},
        "figures": {},
    }
    checkpoint.save_model(out, {ROLE: learner.net}, meta)
    model = DockingModel.load(out, str(device))  # with the weights as they are stored
    meta |= _judged(model, root, val, options.quiet)
    checkpoint.save_model(out, {ROLE: learner.net}, meta)
    minutes, words = f"{clock.elapsed() / 60:.1f} minutes", in_words(meta["figures"])
    plot_history({ROLE: learner.history}, f"{minutes}\n{words}", out.with_name(out.stem + "_training.png"))
    say(f"{out}: {minutes}, {words}", options.quiet)
    return out


def _learn(
    learner: Learner,
    dataset: DockingDataset,
    options: DockingOptions,
    workers: int,
    clock: Clock,
    device: torch.device,
) -> None:
    """Trains the network in place until the minutes are over."""
    until_s = max(60.0 * options.minutes, clock.elapsed())
    loader = endless_loader(dataset, options.batch_size, workers, 0, pin=device.type == "cuda")
    progress = Progress(ROLE, clock.elapsed(), until_s, options.quiet)

    def after_step(learner: Learner, loss: float) -> None:
        now = clock.elapsed()
        learner.note(now, loss, max(1.0, 60.0 * options.minutes / 500))
        progress.show(now, learner.samples, loss)

    try:
        learn(learner, loader, docking_loss, clock, until_s, device, after_step, half=device.type == "cuda")
    finally:
        progress.close()
    learner.finish()


def _judged(model: DockingModel, root: str | Path, labels: Labels, quiet: bool) -> dict[str, Any]:
    """{"calibration", "figures"}: the former from the first half of "val", the latter from the rest."""
    say("calibrating and judging on the pictures for validation", quiet)
    raw = predict(model, root, "val")
    first, rest = np.s_[: len(labels) // 2], np.s_[len(labels) // 2 :]
    calibration = fit_uncertainty(rows(raw, first), rows(labels, first))
    honest = calibrated(rows(raw, rest), calibration)
    return {"calibration": calibration, "figures": evaluate(honest, rows(labels, rest))}


def predict(model: DockingModel, root: str | Path, split: str = "test", progress: bool = False) -> Prediction:
    """What the model reads in the pictures of a split, labels or none. Raises as `DockingDataset` does."""
    dataset = DockingDataset(root, split, model.size)
    parts = []
    for start in tqdm(range(0, len(dataset), _BATCH), desc=split, unit="batch", disable=not progress):
        taken = range(start, min(start + _BATCH, len(dataset)))
        parts.append(_read(model, [dataset.picture(row) for row in taken], dataset.ids[taken]))
    return _calibrated(joined(parts), model)


def predict_pictures(model: DockingModel, images: Sequence[Any]) -> Prediction:
    """What the model reads in pictures of any kind (a path, an array (S, S, 3) uint8 RGB, ...), numbered from zero.

    They must be square and taken with the field of view of the training pictures. Raises ValueError where one is not.
    """
    parts = []
    for number, image in enumerate(images):
        picture, _ = load_image(image)
        if picture.shape[0] != picture.shape[1]:
            raise ValueError(f"images[{number}]: expected a square picture, got shape {picture.shape}")
        parts.append(_read(model, [picture], np.array([number])))
    if not parts:
        raise ValueError("images: expected at least one picture, got none")
    return _calibrated(joined(parts), model)


def _read(model: DockingModel, pictures: Sequence[Picture], ids: NDArray[np.int64]) -> Prediction:
    """The uncalibrated reading of pictures: a look at the whole, then one at the surroundings of the station."""
    whole = [(np.zeros(2, np.int64), len(p)) for p in pictures]
    first = _look(model, pictures, ids, whole)
    windows = [
        second_look(location, distance, model.near, len(p))
        for location, distance, p in zip(first.location, first.distance, pictures, strict=True)
    ]
    again = np.array([width < len(p) for (_, width), p in zip(windows, pictures, strict=True)])
    if not again.any():
        return first
    chosen = [int(i) for i in np.flatnonzero(again)]
    second = _look(model, [pictures[i] for i in chosen], ids[chosen], [windows[i] for i in chosen])
    return rows(joined([rows(first, ~again), second]), np.argsort([*np.flatnonzero(~again), *chosen]))


@torch.inference_mode()
def _look(
    model: DockingModel,
    pictures: Sequence[Picture],
    ids: NDArray[np.int64],
    windows: Sequence[tuple[NDArray[np.int64], int]],
) -> Prediction:
    """What the network reads in windows (corner, width) of pictures, in terms of the whole pictures."""
    small = [cut(p, *window, model.size) for p, window in zip(pictures, windows, strict=True)]
    image = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).to(model.device).float().div_(255)
    found = model.net(image.contiguous(memory_format=torch.channels_last))
    out = {name: value.double().cpu() for name, value in found.items()}
    points, cov = read_docking(out)
    corner, width = np.stack([w[0] for w in windows]), np.array([w[1] for w in windows])
    side = np.array([len(p) for p in pictures])
    ratio = width / model.size
    location = (points.numpy() + 0.5) * ratio[:, None] - 0.5 + corner
    off = np.array([radius2(at, s) for at, s in zip(location, side, strict=True)])
    log_distance = out["log_distance"].numpy() + out["bend"].numpy() * off + np.log(side / width)
    scale = out["log_scale"].exp().numpy()
    return Prediction(ids, location, cov.numpy() * ratio[:, None, None] ** 2, np.exp(log_distance), scale)


def _calibrated(raw: Prediction, model: DockingModel) -> Prediction:
    return calibrated(raw, model.meta["calibration"]) if model.meta["calibration"] else raw
