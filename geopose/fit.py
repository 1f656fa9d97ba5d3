"""Fitting one network to an endless stream of samples within a given time.

AdamW with clipped gradients; the learning rate rises over the first 5 % of the time and falls on a cosine to
nothing at its end (a learner may have another schedule); an exponential moving average of the weights is what is
kept. Time, not epochs, drives the schedule, so that training ends when it was promised to, on any machine.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from geopose.distributed import average_, broadcast_number, torch_threads

Batch = dict[str, Tensor]
LossFn = Callable[[Any, Batch], tuple[Tensor, Mapping[str, Tensor]]]
_GRADIENT_NORM = 2.0
_EMA_DECAY = 0.999
_NEW_LAYERS = 3.0  # their learning rate over that of the encoder, which knows pictures already
_MAX_BAD_STEPS = 50


class IndexStream(Sampler[int]):
    """Sample numbers without end: start + rank, start + rank + world, ...; ranks never share one."""

    def __init__(self, start: int, rank: int = 0, world: int = 1) -> None:
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[int]:
        index = self.start + self.rank
        while True:
            yield index
            index += self.world


class Clock:
    """Seconds a training has been at work, over all its sittings."""

    def __init__(self, before: float = 0.0) -> None:
        self._zero = time.monotonic() - before

    def elapsed(self) -> float:
        return time.monotonic() - self._zero


def start_worker(_worker: int) -> None:
    """Prepares a rendering process: one thread of each kind, and Ctrl-C left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def cores_shared_with(workers: int) -> Iterator[None]:
    """Leaves a core to each of the rendering processes: threads that wait for one another slow both sides down.

    OpenCV's own threads are stopped too, since a process forked while they exist may hang at its first call.
    """
    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with torch_threads(max(1, torch.get_num_threads() - workers)):
            yield
    finally:
        cv2.setNumThreads(cv_threads)


def default_workers() -> int:
    """Rendering processes of this training process: one for two of its cores, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def endless_loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    start: int,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> DataLoader[Any]:
    """Batches without end from a map-style dataset that is a pure function of the index (its length is not used)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=IndexStream(start, rank, world),
        num_workers=workers,
        worker_init_fn=start_worker,
        prefetch_factor=3 if workers else None,
        pin_memory=pin,
        drop_last=True,
    )


def replayed(
    batches: Iterable[Batch],
    times: int,
    kept: int,
    change: Callable[[Batch, torch.Generator], Batch],
    seed: int = 0,
) -> Iterator[Batch]:
    """Each batch as it comes, and after it `times` - 1 more, drawn from those that came: for a network that learns
    faster than its pictures are made.

    Args:
        kept: samples to remember at most; then new ones take the place of random old batches.
        change: makes of a drawn batch, which is a copy, another one, mirrored for example.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    old: list[Batch] = []

    def below(most: int, count: int) -> list[int]:
        return torch.randint(most, (count,), generator=generator).tolist()

    for batch in batches:
        yield batch
        size = len(next(iter(batch.values())))
        if times > 1 and (len(old) + 1) * size <= max(kept, size):
            old.append(batch)
        elif times > 1:
            old[below(len(old), 1)[0]] = batch
        for _ in range(times - 1):
            picks = list(zip(below(len(old), size), below(size, size), strict=True))
            drawn = {k: torch.stack([old[i][k][j] for i, j in picks]) for k in batch}
            yield change(drawn, generator)


def rate_at(fraction: float, warm_up: float = 0.05) -> float:
    """Learning rate relative to its peak after `fraction` of the time: linear rise, then a cosine to zero."""
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < warm_up:
        return max(fraction / warm_up, 0.02)
    return 0.5 * (1.0 + math.cos(math.pi * (fraction - warm_up) / (1.0 - warm_up)))


class Average:
    """Exponential moving average of a network's weights and norms' statistics (float tensors; others are copied)."""

    def __init__(self, net: nn.Module) -> None:
        self.state = {name: t.detach().clone() for name, t in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        keep = min(_EMA_DECAY, (1.0 + step) / (10.0 + step))
        now = net.state_dict()
        names = [n for n, t in self.state.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in names], [now[n] for n in names], 1.0 - keep)
        for name in self.state.keys() - set(names):
            self.state[name].copy_(now[name])


@dataclass
class Learner:
    """One network on its way: weights, their average, the optimiser, and how far it is."""

    role: str
    net: nn.Module
    learning_rate: float
    step: int = 0
    samples: int = 0
    begun_s: float | None = None  # on the training's clock
    done: bool = False
    history: list[list[float]] = field(default_factory=list)  # rows: clock s, samples, loss
    schedule: Callable[[float], float] = rate_at  # the rate over its peak, by the share of the time gone
    _recent: list[float] = field(default_factory=list)  # losses since the last row

    def __post_init__(self) -> None:
        self.average = Average(self.net)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        encoder = {id(p) for name, p in self.net.named_parameters() if name.startswith("encoder.")}
        groups = [
            {
                "params": [p for p in trained if (id(p) in encoder) == old and (p.ndim > 1) == matrix],
                "weight_decay": 1e-2 if matrix else 0.0,
                "factor": 1.0 if old else _NEW_LAYERS,
            }
            for old in (False, True)
            for matrix in (True, False)
        ]
        self.optimiser = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.learning_rate, fused=True
        )

    def _optimised(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """What the state file must hold of this network; when it is done, only its average."""
        out = {f"{self.role}/average/{k}": v for k, v in self.average.state.items()}
        if self.done:
            return out
        out |= {f"{self.role}/net/{k}": v for k, v in self.net.state_dict().items()}
        for number, parameter in enumerate(self._optimised()):
            for name, value in self.optimiser.state.get(parameter, {}).items():
                out[f"{self.role}/optimiser/{number}/{name}"] = value
        return out

    def meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "begun_s": self.begun_s,
            "done": self.done,
            "history": self.history,
        }

    def restore(self, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up the state that `meta` and `tensors` of an earlier sitting describe."""
        self.step, self.samples, self.done = int(meta["step"]), int(meta["samples"]), bool(meta["done"])
        self.begun_s, self.history = meta["begun_s"], list(meta["history"])
        mine = {k[len(self.role) + 1 :]: v for k, v in tensors.items() if k.startswith(self.role + "/")}
        average = {k[len("average/") :]: v for k, v in mine.items() if k.startswith("average/")}
        weights = {k[len("net/") :]: v for k, v in mine.items() if k.startswith("net/")}
        self.net.load_state_dict(average if self.done else weights, strict=True)
        self.__post_init__()  # a folded network has other tensors than the one that was built
        for name, tensor in self.average.state.items():
            tensor.copy_(average[name])
        for number, parameter in enumerate(self._optimised()):
            prefix = f"optimiser/{number}/"
            for key in [k for k in mine if k.startswith(prefix)]:
                name = key[len(prefix) :]
                # the fused optimiser keeps its step counter in float32 where the parameter is, the moments like it
                value = mine[key].to(parameter.device)
                value = value if name == "step" else torch.empty_like(parameter).copy_(value)
                self.optimiser.state[parameter][name] = value

    def note(self, now_s: float, loss: float, every_s: float) -> None:
        """Takes the loss of a step into the history, in which every row is the mean over `every_s` seconds."""
        self._recent.append(loss)
        last = self.history[-1][0] if self.history else self.begun_s or 0.0
        if now_s - last >= every_s:
            self.history.append([round(now_s, 2), self.samples, float(np.nanmean(self._recent))])
            self._recent.clear()

    def finish(self) -> None:
        """Puts the averaged weights into the network and drops the rest."""
        self.done = True
        self.net.load_state_dict(self.average.state)
        self.optimiser.state.clear()
        self.net.eval()


def learn(
    learner: Learner,
    loader: DataLoader[Any],
    loss_fn: LossFn,
    clock: Clock,
    until_s: float,
    device: torch.device,
    after_step: Callable[[Learner, float], None],
    half: bool = False,
    replay: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> None:
    """Trains `learner` in place until the clock of rank 0 says `until_s`, for one step at least.

    Args:
        loader: endless; batches hold "image" (B, 3, H, W) uint8 and the targets of `loss_fn`.
        loss_fn: (network output, batch on the device) -> (loss, its parts).
        after_step: called on every rank after each step with the learner and the loss; may save, and may
            raise.
        half: run the network under bfloat16 autocast.
        replay: makes of the loader's batches those to learn from; see `replayed`.
    Raises:
        RuntimeError: when a rendering worker dies, the device fails, or the loss stays non-finite.
    """
    died = None
    try:
        try:
            _steps(learner, replay(loader), loss_fn, clock, until_s, device, after_step, half)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if _is_lost_device(error):
                raise RuntimeError(
                    f"the device {device} failed ({str(error).strip().splitlines()[0]}). The same command goes on from "
                    "the last saved state, once the device is back (a new process may do, else a restart of the "
                    "machine), or on the device 'cpu'"
                ) from error
            if not _is_death(error, loader):
                raise
            died = f"{type(error).__name__}: {error}"
    except RuntimeError as error:  # torch's signal handler may raise while the pipe's error is looked at
        if not _is_death(error, loader):
            raise
        died = f"{type(error).__name__}: {error}"
    if died is not None:  # raised here, so that no traceback keeps the other workers alive
        raise RuntimeError(
            f"a process that renders training pictures died ({died}). Often memory ran out: use a smaller "
            "batch_size or fewer workers. In a script, call train() under `if __name__ == '__main__':`. The same "
            "command goes on from the last saved state"
        )


def _steps(
    learner: Learner,
    batches: Iterable[Batch],
    loss_fn: LossFn,
    clock: Clock,
    until_s: float,
    device: torch.device,
    after_step: Callable[[Learner, float], None],
    half: bool,
) -> None:
    begun_s = clock.elapsed() if learner.begun_s is None else learner.begun_s
    net: nn.Module = learner.net.train()
    world = 1
    if dist.is_initialized():
        world = dist.get_world_size()
        net = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    parameters = learner._optimised()
    bad = 0
    for batch in batches:
        now = broadcast_number(clock.elapsed(), device)
        if now >= until_s and learner.step > 0:
            break
        rate = learner.learning_rate * learner.schedule((now - begun_s) / max(until_s - begun_s, 1e-9))
        for group in learner.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        image = batch.pop("image").float().div_(255.0).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = net(image)
        loss, _parts = loss_fn(_floats(output), batch)
        learner.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        learner.samples += world * len(image)
        if bool(torch.isfinite(norm)):  # the same on every rank: gradients are averaged
            bad = 0
            learner.optimiser.step()
            learner.step += 1
            learner.average.update(learner.net, learner.step)
        else:
            bad += 1
            if bad >= _MAX_BAD_STEPS:
                raise RuntimeError(
                    f"training the {learner.role} network: the loss was not finite {bad} times in a row; "
                    "try a smaller learning_rate"
                )
        after_step(learner, float(average_(loss.detach())))


def _floats(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, Mapping):
        return {k: _floats(v) for k, v in output.items()}
    if isinstance(output, (list, tuple)):
        return [_floats(v) for v in output]
    return output


def _is_lost_device(error: Exception) -> bool:
    """Whether `error` is what torch says when a GPU is gone or broken, not merely out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    said = (
        type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error) or "HIP error" in str(error)
    )
    return isinstance(error, RuntimeError) and said


def _is_death(error: Exception, loader: DataLoader[Any]) -> bool:
    """Whether `error` is what torch says when a worker is gone, at the signal or at the pipe, whichever is
    first.

    What a data set raises in a worker comes as "Caught ..." and is left as it is.
    """
    text = str(error)
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)
    return loader.num_workers > 0 and not text.startswith("Caught ")
