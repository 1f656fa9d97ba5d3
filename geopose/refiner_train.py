"""Learning to compare a drawing with a photograph, from made-up things: the refiner that every training begins with.

    python -m geopose.refiner_train --out refiner.geopose --minutes 90

Comparing is much the same for all objects, so that this is learned once. Things come and go: one that was seen in
some pictures is not seen again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from geopose import checkpoint
from geopose.cad.symmetry import Symmetries
from geopose.data.picture import SyntheticOptions
from geopose.data.synthetic import SyntheticDataset
from geopose.data.things import thing
from geopose.distributed import pick_device
from geopose.fit import Clock, Learner, cores_shared_with, default_workers, endless_loader, learn
from geopose.geometry.pose import Pose
from geopose.geometry.refine import Reprojection, levenberg_marquardt
from geopose.nets.backbone import keep_freed_memory
from geopose.nets.losses import refiner_loss
from geopose.nets.refiner import information
from geopose.train import SAVE_EVERY_S
from geopose.train_options import ALIKE
from geopose.train_report import Progress, machine, plot_history, say
from geopose.train_state import (
    check_same_run,
    read_state,
    read_state_bytes,
    state_path,
    training_lock,
    write_state,
)

ROLE = "refiner"
_EACH, _AT_ONCE = 48, 384  # pictures of a thing, and things that are shown in turn
_MESH_ERROR = (0.005, 0.015)  # diameters, of every other thing
JUDGED, _BATCH = 512, 16  # pairs of things that were never shown, and how many at once


@dataclass(frozen=True)
class RefinerOptions:
    """How to train.

    minutes: of training; seed; start: a checkpoint with a refiner to begin with, None for ImageNet's features;
    batch_size; learning_rate: its peak; workers: processes that make pictures, None for one per two cores; device;
    quiet: write nothing to stderr.
    """

    minutes: float = 90.0
    seed: int = 0
    start: str | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    workers: int | None = None
    device: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, least in (("minutes", 0), ("learning_rate", 0), ("seed", -1), ("batch_size", 1)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a number above {least}")


class PairsOfThings(Dataset[Any]):
    """Endless pairs for a refiner (see `SyntheticDataset`) of ever new things; `[i]` depends on seed and i alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, 1, index])
        number = index // _EACH + int(generator.integers(_AT_ONCE))
        return _pairs(self.seed, number)._pair(generator)


@lru_cache(maxsize=2 * _AT_ONCE)
def _pairs(seed: int, number: int) -> SyntheticDataset:
    generator = np.random.default_rng([seed, 2, number])
    error = float(generator.uniform(*_MESH_ERROR)) if generator.random() < 0.5 else 0.0
    options = SyntheticOptions(alike=ALIKE, mesh_error=error)
    return SyntheticDataset(thing(seed, number), np.zeros((1, 3)), Symmetries.none(), options, seed, "pair")


def train_refiner(out: str | Path, options: RefinerOptions | None = None) -> Path:
    """The path of the checkpoint `out`, which holds a refiner alone; a plot of the loss lies beside it.

    While it runs, `out + ".state"` is replaced every 40 seconds; the same call goes on from there.

    Raises:
        FileNotFoundError, ValueError: on a start that holds no refiner or is `out` itself, or the state of another
            training.
        RuntimeError: when another process is training `out`, a rendering process dies, or the loss stays non-finite.
    """
    options, out = options or RefinerOptions(), Path(out)
    if options.start is not None and out.exists() and out.samefile(options.start):
        raise ValueError(f"out: got {out}, which is the start, expected another file")
    device = pick_device(options.device)
    keep_freed_memory()
    torch.manual_seed(options.seed)
    workers = default_workers() if options.workers is None else options.workers
    with training_lock(out), cores_shared_with(workers):
        learner, before = _learner(options)
        clock = _learn(learner, before, out, options, workers, device)
        seconds = clock.elapsed()
        figures = judge(learner.net, PairsOfThings(1000 * options.seed + 999), device, options.quiet)
    start = f" --start {Path(options.start).name}" if options.start else ""
    command = f"python -m geopose.refiner_train --out {out.name} --minutes {options.minutes:g} --seed {options.seed}"
    meta = {
        "name": "made-up things",
        "command": " && ".join([*before["command"], command + start]),
        "seed": options.seed,
        "machine": machine(),
        "minutes": before["minutes"] + seconds / 60,
        "images": {ROLE: before["images"] + learner.samples},
        "figures": figures,
    }
    checkpoint.save_model(out, {ROLE: learner.net}, meta)
    state_path(out).unlink(missing_ok=True)
    plot_history(
        {ROLE: learner.history}, f"{seconds / 60:.1f} minutes", out.with_name(out.stem + "_training.png")
    )
    words = ", ".join(f"{k} {v:.3g}" for k, v in figures.items())
    say(f"{out}: {words}", options.quiet)
    return out


def _learner(options: RefinerOptions) -> tuple[Learner, dict[str, Any]]:
    """The network to train, and what its start had cost."""
    before: dict[str, Any] = {"command": [], "minutes": 0.0, "images": 0}
    kept = {"frozen_stride": 4, "frozen_5x5": True}
    net = checkpoint.build_net(ROLE, {"pretrained": True, **kept}, weights=options.start is None)
    if options.start is not None:
        weights, meta = checkpoint.load_model(options.start)
        if ROLE not in weights:
            raise ValueError(f"start: {options.start} holds {sorted(weights)}, expected a refiner")
        net.load_state_dict(weights[ROLE], strict=True)
        before = {"command": [meta["command"]], "minutes": meta["minutes"], "images": meta["images"][ROLE]}
    return Learner(ROLE, net, options.learning_rate), before


def _learn(
    learner: Learner,
    before: dict[str, Any],
    out: Path,
    options: RefinerOptions,
    workers: int,
    device: torch.device,
) -> Clock:
    """Trains the network in place until the minutes are over; the clock counts all sittings."""
    names = ("minutes", "seed", "batch_size", "learning_rate")
    identity = {"before": before} | {name: getattr(options, name) for name in names}
    clock, file = Clock(), state_path(out)
    data = read_state_bytes(file)
    learner.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if data:
        meta, tensors = read_state(data, file)
        check_same_run(file, meta["identity"], identity)
        learner.restore(meta["learner"], tensors)
        clock = Clock(float(meta["elapsed_s"]))
        say(f"going on from {file} at {clock.elapsed() / 60:.1f} minutes", options.quiet)
    if learner.done:
        return clock
    learner.begun_s, until_s = learner.begun_s or 0.0, 60 * options.minutes
    progress = Progress(ROLE, clock.elapsed(), until_s, options.quiet)
    saved_s = clock.elapsed()

    def save() -> None:
        meta = {"identity": identity, "learner": learner.meta(), "elapsed_s": clock.elapsed()}
        write_state(file, meta, learner.tensors())

    def after_step(learner: Learner, loss: float) -> None:
        nonlocal saved_s
        now = clock.elapsed()
        learner.note(now, loss, max(2.0, until_s / 500))
        progress.show(now, learner.samples, loss)
        if now - saved_s >= SAVE_EVERY_S:
            save()
            saved_s = now

    dataset = PairsOfThings(1000 * options.seed)
    dataset[0]  # the bank of backgrounds is made here, once, for the processes forked from this one
    loader = endless_loader(dataset, options.batch_size, workers, learner.samples, pin=device.type == "cuda")
    try:
        learn(learner, loader, refiner_loss, clock, until_s, device, after_step, half=device.type == "cuda")
    finally:
        progress.close()
    learner.finish()
    save()
    return clock


def judge(
    net: nn.Module, pairs: Dataset[Any] | Sequence[Any], device: torch.device, quiet: bool = False
) -> dict[str, float]:
    """What a refiner makes of the first JUDGED pairs of a set (of kind "pair", see `SyntheticDataset`).

    "left": the mean distance of the drawn points from where they belong after the one comparison, diameters, median
    over the pairs, whose guesses are some degrees and percent off; one in sixteen is altogether wrong. "nll", "flow",
    "pose", "total": means of the parts of `refiner_loss`.
    """
    sums: dict[str, float] = {}
    left: list[float] = []
    net.eval()
    for index in tqdm(range(0, JUDGED, _BATCH), "judging", unit="batch", disable=quiet):
        batch = [pairs[index + i] for i in range(_BATCH)]
        targets = {k: torch.from_numpy(np.stack([b[k] for b in batch])).to(device) for k in batch[0]}
        with torch.inference_mode():
            out = net(targets.pop("image").float().div_(255))
            parts = refiner_loss(out, targets)[1]
            weight = information(out.flatten(2), targets["drawn"].flatten(1))
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) * _BATCH / JUDGED
        flow = out[:, :2].flatten(2).cpu().double().numpy()
        left += [_left(*item) for item in zip(batch, flow, weight.cpu().double().numpy(), strict=True)]
    return {"left": float(np.median(left)), **sums}


def _left(pair: dict[str, Any], flow: NDArray[Any], weight: NDArray[Any]) -> float:
    """Mean distance of a pair's points, diameters, after the least squares of a flow (2, M) and its weights (3, M)."""
    drawn = pair["drawn"].reshape(-1) > 0
    centre, focal = pair["centre"].astype(float), float(pair["focal"])
    points = pair["points"].reshape(3, -1)[:, drawn].astype(float)
    guess = points + centre[:, None]
    place = guess[:2] / guess[2] + flow[:, drawn] / focal
    term = Reprojection(points, place, focal * weight[:, drawn])
    start = Pose(np.eye(3), centre)
    found = levenberg_marquardt(
        None, term.linearise, start, kernel="cauchy", scale=2.5, max_iterations=10
    ).pose
    truth = pair["turn"] @ points + (centre + pair["shift"])[:, None]
    return float(np.linalg.norm(found.apply(points.T).T - truth, axis=0).mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m geopose.refiner_train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--minutes", type=float, default=RefinerOptions.minutes)
    parser.add_argument("--seed", type=int, default=RefinerOptions.seed)
    parser.add_argument("--start", metavar="FILE", help="checkpoint with a refiner to begin with")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    try:
        train_refiner(args.out, RefinerOptions(args.minutes, args.seed, args.start, workers=args.workers))
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; the same command goes on from {state_path(Path(args.out))}\n")


if __name__ == "__main__":
    main()
