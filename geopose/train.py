"""Learning one object from its CAD model: nothing but renders in, one checkpoint out.

First the locator (windows of whole pictures), then the keypoint network (crops), then the refiner (crops and what a
pose near the true one predicts there), each in its share of the minutes; then the calibration and the judgement on
renders of seeds that no training used.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from geopose import checkpoint
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import CadModel, load_cad
from geopose.cad.symmetry import Symmetries, find_symmetries
from geopose.data.synthetic import SyntheticDataset
from geopose.distributed import broadcast_bytes, broadcast_number, pick_device, process_group
from geopose.fit import Clock, Learner, cores_shared_with, default_workers, endless_loader, learn
from geopose.geometry.pnp import warm_up
from geopose.nets.backbone import keep_freed_memory
from geopose.nets.losses import keypoint_loss, locator_loss, refiner_loss
from geopose.train_options import TrainOptions
from geopose.train_report import Progress, finish_model, machine, plot_history, say
from geopose.train_state import (
    check_same_run,
    clear_leftovers,
    read_state,
    read_state_bytes,
    state_path,
    training_lock,
    write_state,
)

SAVE_EVERY_S = 40.0
_FINAL_SHARE, _FINAL_MOST_S = 0.1, 480.0
_SHARE_ANEW, _SHARE_TAKEN_OVER = (
    0.3,
    0.1,
)  # of the time, for a refiner from nothing and for one that knows comparing
_RATE_TAKEN_OVER = 0.2  # its learning rate over that of the others
_MESH_FACES = 5000
_ANY_TIME = ("workers", "device", "restart", "quiet")  # options that may change between two sittings


def train(cad: Any, out: str | Path, options: TrainOptions | None = None) -> Path:
    """The path of the checkpoint `out`, trained from renders of `cad` alone; a plot of the losses lies beside
    it.

    Takes `options.minutes`. While it runs, `out + ".state"` is replaced every 40 seconds; the same call goes
    on from there after any interruption, and removes it at the end. Under `torchrun` all processes train
    together and rank 0 writes.

    Args:
        cad: a CadModel, a built-in name, or a mesh file (with `options.unit` where the file has none).
    Raises:
        ValueError: on bad input, or when an interrupted training of `out` had other settings.
        RuntimeError: when another process is training `out`, a rendering process dies, or the loss stays
            non-finite.
    """
    options = options or TrainOptions()
    if options.pretrained is None:
        options = replace(options, pretrained=options.network == "unet")
    if options.frozen_stride is None:
        options = replace(options, frozen_stride=4 if options.pretrained else 0)
    if options.frozen_5x5 is None:
        options = replace(options, frozen_5x5=bool(options.pretrained))
    out = Path(out)
    if out.is_dir():
        raise ValueError(
            f"out: got the folder {out}, expected a file such as {out / ('part' + checkpoint.SUFFIX)}"
        )
    warm_up()  # before the minutes begin
    clock = Clock()
    keep_freed_memory()
    model = load_cad(cad, options.unit).painted(options.color)
    if Path(model.source).is_file() and out.exists() and out.samefile(model.source):
        raise ValueError(f"out: got {out}, which is the mesh itself, expected another file")
    if options.transfer is None:
        options = replace(options, transfer=bool(options.pretrained) and options.start is None)
    if options.refiner_share is None:
        options = replace(options, refiner_share=_SHARE_TAKEN_OVER if options.transfer else _SHARE_ANEW)
    device = pick_device(options.device)
    workers = default_workers() if options.workers is None else options.workers
    with process_group(device) as (rank, world), cores_shared_with(workers):
        if rank == 0:
            with training_lock(out) as lock:
                _Run(model, out, options, device, rank, world, clock, lock).work()
        else:
            _Run(model, out, options, device, rank, world, clock, None).work()
        if dist.is_initialized():
            dist.barrier()
    return out


def _final_seconds(total: float) -> float:
    """Of so many seconds, those for calibration and judgement: what a handful of pictures teach is not honest."""
    return min(_FINAL_SHARE * total, _FINAL_MOST_S)


class _Run:
    """One training, from its state file (or from nothing) to its checkpoint."""

    def __init__(
        self,
        model: CadModel,
        out: Path,
        options: TrainOptions,
        device: torch.device,
        rank: int,
        world: int,
        clock: Clock,
        lock: Path | None,
    ) -> None:
        self.model, self.out, self.options, self.device = model, out, options, device
        self.rank, self.world, self.clock, self.lock = rank, world, clock, lock
        self.state_file = state_path(out)
        self.identity = {k: v for k, v in asdict(options).items() if k not in _ANY_TIME}
        self.identity["content_hash"] = model.content_hash
        stored = self._stored()
        first: dict[str, Any] = {}
        self.before: dict[str, Any] = {"command": [], "minutes": 0.0, "images": {}}  # what the start had cost
        if stored is None and options.start is not None:
            first = self._first(options.start)
        elif stored is None:
            self.symmetries = find_symmetries(model)
            self.keypoints = np.asarray(choose_keypoints(model, options.num_keypoints, self.symmetries))
            if options.transfer and options.refiner_share:
                first = {"refiner": checkpoint.load_model(checkpoint.TRANSFERRED)[0]["refiner"]}
        else:
            self.symmetries = Symmetries.from_json(stored[0]["symmetries"])
            self.keypoints = np.asarray(stored[0]["keypoints"], float)
            self.before = stored[0].get("before", self.before)
            self.clock = Clock(float(stored[0]["elapsed_s"]) + clock.elapsed())
        torch.manual_seed(options.seed)
        roles = ["locator", "keypoints"] + ["refiner"] * bool(options.refiner_share or "refiner" in first)
        if stored is not None:
            roles = [role for role in ("locator", "keypoints", "refiner") if role in stored[0]["learners"]]
        self.learners = [self._learner(role, first.get(role)) for role in roles]
        if stored is not None:
            for learner in self.learners:
                learner.restore(stored[0]["learners"][learner.role], stored[1])
            say(f"going on from {self.state_file} at {self.clock.elapsed() / 60:.1f} minutes", self.quiet)
        self.known: dict[str, Any] | None = stored[0].get("known") if stored is not None else None
        self.saved_s = self.clock.elapsed()
        self.progress: Progress | None = None

    @property
    def quiet(self) -> bool:
        return self.options.quiet or self.rank > 0

    def _stored(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        data = b""
        if self.rank == 0:
            clear_leftovers(self.state_file)
            if self.options.restart:
                self.state_file.unlink(missing_ok=True)
            data = read_state_bytes(self.state_file)
        data = broadcast_bytes(data, self.device)
        if not data:
            return None
        meta, tensors = read_state(data, self.state_file)
        check_same_run(self.state_file, meta["identity"], self.identity)
        return meta, tensors

    def _first(self, path: str) -> dict[str, Any]:
        """Weights by role of the checkpoint to start from, whose keypoints and symmetries are taken over."""
        weights, meta = checkpoint.load_model(path)
        with checkpoint.pose_model(path, meta):
            self.symmetries = Symmetries.from_json(meta["symmetries"])
            self.keypoints = np.asarray(meta["keypoints"], float)
            self.before = {k: meta[k] for k in self.before} | {"command": [meta["command"]]}
        if meta["content_hash"] != self.model.content_hash:
            raise ValueError(
                f"start: {path} was trained on {meta['name']!r}, another mesh than {self.model.name!r}"
            )
        for name in ("network", "num_keypoints", "dense", "crop_scale"):
            if meta["options"].get(name) != getattr(self.options, name):
                raise ValueError(
                    f"start: {path} has {name}={meta['options'].get(name)!r}, expected {getattr(self.options, name)!r}"
                )
        return weights

    def _learner(self, role: str, weights: dict[str, Any] | None) -> Learner:
        o = self.options
        net_options: dict[str, Any] = {}
        if role != "keypoints" or o.network == "unet":
            net_options = {
                "pretrained": bool(o.pretrained),
                "frozen_stride": min(o.frozen_stride or 0, 4) if role == "refiner" else o.frozen_stride,
                "frozen_5x5": o.frozen_5x5,
            }
        if role == "keypoints":
            net_options |= {"kind": o.network, "num_keypoints": o.num_keypoints}
            net_options |= {"dense": o.dense} if o.network == "unet" else {}
        net = checkpoint.build_net(role, net_options, weights=weights is None)
        if weights is not None:
            net.load_state_dict(weights, strict=True)
        rate = o.learning_rate * (_RATE_TAKEN_OVER if role == "refiner" and o.transfer else 1.0)
        return Learner(role, net.to(self.device, memory_format=torch.channels_last), rate)  # type: ignore[call-overload]

    def dataset(self, kind: str, seed_offset: int = 0) -> Dataset[Any]:
        """Pictures of a kind; training uses offset 0, calibration 1, judgement 2: no picture is in two of them."""
        seed = 1000 * self.options.seed + seed_offset
        return SyntheticDataset(
            self.model, self.keypoints, self.symmetries, self.options.pictures(), seed, kind
        )

    def work(self) -> None:
        total = 60.0 * self.options.minutes
        training = total - _final_seconds(total)
        locator, refiner = self.options.locator_share, self.options.refiner_share or 0.0
        plan: dict[str, tuple[str, Callable[..., Any], float]] = {
            "locator": ("window", locator_loss, locator),
            "keypoints": ("crop", keypoint_loss, max(1 - locator - refiner, 0.0)),
            "refiner": ("pair", refiner_loss, refiner),
        }
        left = 1.0
        for learner in self.learners:
            kind, loss_fn, share = plan[learner.role]
            if not learner.done and share > 1e-9:
                self._learn(learner, kind, loss_fn, min(share / left, 1.0), training)
            left = max(left - share, 1e-9)
        if self.rank == 0:
            self._finish(total)

    def _learn(
        self, learner: Learner, kind: str, loss_fn: Callable[..., Any], share: float, training_s: float
    ) -> None:
        """Trains one network for `share` of what is left, at its beginning, until `training_s` on the clock."""
        o = self.options
        workers = default_workers() if o.workers is None else o.workers
        dataset = self.dataset(kind)
        dataset[0]  # the bank of backgrounds is made here, once, for the processes forked from this one
        loader = endless_loader(
            dataset, o.batch_size, workers, learner.samples, self.rank, self.world, self.device.type == "cuda"
        )
        if learner.begun_s is None:
            learner.begun_s = broadcast_number(self.clock.elapsed(), self.device)
        until_s = learner.begun_s + share * (training_s - learner.begun_s)
        self.progress = Progress(learner.role, self.clock.elapsed(), until_s, self.quiet)
        try:
            half = self.device.type == "cuda"
            learn(learner, loader, loss_fn, self.clock, until_s, self.device, self._after_step, half)
        except KeyboardInterrupt:
            if self.rank == 0:
                self._save()
                say(f"\nstopped; the same command goes on from {self.state_file}", self.quiet)
            raise
        finally:
            self.progress.close()
        learner.finish()
        if self.rank == 0:
            self._try_to_save()

    def _after_step(self, learner: Learner, loss: float) -> None:
        if self.rank > 0:
            return
        now = self.clock.elapsed()
        learner.note(now, loss, max(2.0, 60.0 * self.options.minutes / 500))
        if self.progress is not None:
            self.progress.show(now, learner.samples, loss)
        if now - self.saved_s >= SAVE_EVERY_S:
            self._try_to_save()

    def _try_to_save(self) -> None:
        """A disk that is full for a while ends no training: the last state stays, and the next save may succeed."""
        try:
            self._save()
        except OSError as error:
            self.saved_s = self.clock.elapsed()
            warnings.warn(f"the training goes on, but its state could not be saved: {error}", stacklevel=2)

    def _save(self) -> None:
        meta = {
            "identity": self.identity,
            "elapsed_s": self.clock.elapsed(),
            "keypoints": self.keypoints,
            "symmetries": self.symmetries.to_json(),
            "learners": {learner.role: learner.meta() for learner in self.learners},
            "before": self.before,
            "known": self.known,
        }
        tensors: dict[str, Any] = {}
        for learner in self.learners:
            tensors |= learner.tensors()
        write_state(self.state_file, meta, tensors)
        self.saved_s = self.clock.elapsed()
        if self.lock is not None and self.lock.exists():
            self.lock.touch()

    def meta(self) -> dict[str, Any]:
        """What the checkpoint says beside the weights; its commands, minutes and images include those of the start."""
        light = self.model.baked(_MESH_FACES).simplified(_MESH_FACES)
        options = {k: v for k, v in asdict(self.options).items() if k not in ("restart", "quiet", "device")}
        options["start"] = self.options.start and Path(self.options.start).name
        cad = self.model.source if Path(self.model.source).is_file() else self.model.name
        return {
            "name": self.model.name,
            "unit": self.model.unit,
            "source": Path(self.model.source).name,
            "content_hash": self.model.content_hash,
            "diameter": self.model.diameter,
            "keypoints": self.keypoints,
            "named_keypoints": self.model.named_keypoints,
            "symmetries": self.symmetries.to_json(),
            "options": options,
            "command": " && ".join([*self.before["command"], self.options.command(cad, str(self.out))]),
            "seed": self.options.seed,
            "machine": machine(),
            "minutes": self.before["minutes"] + self.clock.elapsed() / 60,
            "images": {
                learner.role: learner.samples + self.before["images"].get(learner.role, 0)
                for learner in self.learners
            },
            "calibration": {},
            "figures": {},
            "mesh": {"vertices": light.vertices, "faces": light.faces, "colors": light.colors},
        }

    def _remember(self, known: dict[str, Any]) -> None:
        """Keeps what the calibration has found out, for a call that goes on from here."""
        self.known = known
        self._try_to_save()

    def _finish(self, total_s: float) -> None:
        nets = {learner.role: learner.net for learner in self.learners}
        meta = self.meta()
        unfinished = self.out.with_name(f".{self.out.name}.unfinished")  # as users will load it
        checkpoint.save_model(unfinished, nets, meta)
        say("calibrating and judging on fresh renders", self.quiet)
        o = self.options
        workers = default_workers() if o.workers is None else o.workers
        left = max(total_s - self.clock.elapsed(), 0.0)
        crops = self.dataset("crop", 1)
        crops[0]
        calibration, figures = finish_model(
            unfinished,
            self.device,
            endless_loader(crops, min(o.batch_size, 32), workers, 0),
            endless_loader(self.dataset("scene", 1), 1, workers, 0),
            endless_loader(self.dataset("scene", 2), 1, workers, 0),
            time.monotonic(),
            left,
            known=self.known,
            remember=self._remember,
        )
        minutes = self.before["minutes"] + self.clock.elapsed() / 60
        meta |= {"calibration": calibration, "figures": figures, "minutes": minutes}
        checkpoint.save_model(self.out, nets, meta)
        unfinished.unlink(missing_ok=True)
        histories: Mapping[str, Any] = {learner.role: learner.history for learner in self.learners}
        title = f"{self.model.name}: {self.clock.elapsed() / 60:.1f} minutes, ADD-0.1d {100 * figures['add_01d']:.0f} %"
        plot_history(histories, title, self.out.with_name(self.out.stem + "_training.png"))
        self.state_file.unlink(missing_ok=True)
        words = ", ".join(f"{k} {v:.3g}" for k, v in figures.items() if isinstance(v, (int, float)))
        say(f"{self.out}: {words}", self.quiet)
