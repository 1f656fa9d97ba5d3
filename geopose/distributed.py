"""Several processes, one job: ranks, shares of the work, and the few collectives that training needs.

Started by `torchrun`, every process finds its rank in the environment; started plainly, it is rank 0 of 1.
Splitting work (`split_indices`) needs no communication; `process_group` opens torch's own for those who do
talk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank_world() -> tuple[int, int]:
    """(rank, number of processes), from the environment that `torchrun` sets; (0, 1) without it.

    Raises:
        ValueError: when RANK and WORLD_SIZE are not a valid pair of integers.
    """
    rank_text, world_text = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, world = int(rank_text), int(world_text)
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ValueError(
            f"RANK={rank_text!r}, WORLD_SIZE={world_text!r} in the environment: expected 0 <= RANK < WORLD_SIZE"
        )
    return rank, world


def split_indices(count: int, rank: int | None = None, world: int | None = None) -> range:
    """This rank's share of `range(count)`: rank, rank + world, ... ; the shares are disjoint and cover
    everything.

    Args:
        count: number of items, >= 0.
        rank, world: default to `rank_world()`.
    """
    if count < 0:
        raise ValueError(f"count: got {count}, expected >= 0")
    own_rank, own_world = rank_world()
    rank = own_rank if rank is None else rank
    world = own_world if world is None else world
    if not 0 <= rank < world:
        raise ValueError(f"rank, world: got {rank}, {world}, expected 0 <= rank < world")
    return range(rank, count, world)


def pick_device(device: str | None = None) -> torch.device:
    """The device asked for; without one, this rank's GPU where there is one, else the CPU.

    Raises:
        ValueError: for a name torch does not know, or a device that is not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: got {device!r}, expected e.g. 'cpu', 'cuda', 'cuda:1' ({error})") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ValueError(
                f"device: got {device!r}, but torch {torch.__version__} sees {count or 'no'} GPU here; use 'cpu'"
            )
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank % count)
    elif chosen.type != "cpu":
        try:
            torch.ones(1, device=chosen).item()
        except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
            raise ValueError(
                f"device: got {device!r}, which is not here; use 'cpu' ({error!s:.100})"
            ) from None
    return chosen


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Yields (rank, world) with torch's process group open when world > 1: nccl on GPUs, gloo on CPUs."""
    rank, world = rank_world()
    opened = world > 1 and not dist.is_initialized()
    if opened:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield rank, world
    finally:
        if opened:
            dist.destroy_process_group()


def broadcast_number(value: float, device: torch.device) -> float:
    """Rank 0's `value` on every rank (float64 exactly); the value itself without a process group."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(tensor, src=0)
    return float(tensor.item())


def broadcast_bytes(data: bytes, device: torch.device) -> bytes:
    """Rank 0's `data` on every rank; the data itself without a process group. Plain bytes: nothing is unpickled."""
    if not dist.is_initialized():
        return data
    length = int(broadcast_number(len(data), device))
    buffer = torch.empty(length, dtype=torch.uint8, device=device)
    if dist.get_rank() == 0 and length:
        buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    if length:
        dist.broadcast(buffer, src=0)
    return buffer.cpu().numpy().tobytes()


def average_(tensor: Tensor) -> Tensor:
    """`tensor` replaced, in place, by its mean over the ranks; unchanged without a process group."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """That many threads in torch, and the former number afterwards.

    A second one saves little in networks that are evaluated for one picture; where the cores are busy with other work,
    two that wait for one another after every layer can take ten times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
