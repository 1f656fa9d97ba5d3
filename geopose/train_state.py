"""What lets a killed training go on: a state file, replaced whole every few seconds, and a lock against a
second run.

The state is safetensors (tensors) with JSON beside it, like a checkpoint: reading it never executes anything.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from geopose._io import atomic_path
from geopose.checkpoint import jsonable

_METADATA_KEY = "geopose_state"
_STATE_VERSION = 1
_FOREIGN_LOCK_SECONDS = 900.0  # a lock of another machine, not touched for so long, is taken for dead


def state_path(out: Path) -> Path:
    """The state file that belongs to the checkpoint `out`."""
    return out.with_name(out.name + ".state")


def write_state(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replaces the state file at once: a kill or a power cut leaves the old one or the new one, never half of one."""
    text = json.dumps(jsonable({**meta, "state_version": _STATE_VERSION}), allow_nan=False)
    with atomic_path(path, durable=True) as temporary:
        data = save({k: _plain(t) for k, t in tensors.items()}, metadata={_METADATA_KEY: text})
        temporary.write_bytes(data)


def read_state(data: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(meta, tensors) from the bytes of a state file; `path` is only for the message.

    Raises:
        ValueError: when these are not the bytes of a state file of this version.
    """
    advice = f"delete {path} (or pass restart=True, --restart) to start this training over"
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"][_METADATA_KEY])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not the state of a geopose training ({error!r}); {advice}") from None
    if meta.get("state_version") != _STATE_VERSION:
        raise ValueError(
            f"{path}: state version {meta.get('state_version')}, expected {_STATE_VERSION}; {advice}"
        )
    return meta, tensors


def check_same_run(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Nothing, when an interrupted training may be gone on with.

    Raises:
        ValueError: naming every entry of `wanted` that differs from `stored`, and how to start over.
    """
    wanted = jsonable(wanted)
    keys = sorted({*stored, *wanted})
    changes = [
        f"{key}: was {stored.get(key)!r}, now {wanted.get(key)!r}"
        for key in keys
        if stored.get(key) != wanted.get(key)
    ]
    if changes:
        raise ValueError(
            f"{path} belongs to an interrupted training with other settings ({'; '.join(changes)}). Give the same "
            "settings to go on with it, or delete that file (or pass restart=True, --restart) to start over"
        )


@contextmanager
def training_lock(out: Path) -> Iterator[Path]:
    """Yields the lock file `out + ".lock"`, held while the block runs; touch it now and then.

    The lock names its owner (host, process, start of the process). One whose process is gone is taken over;
    one of another machine is, when it has not been touched for 15 minutes.

    Raises:
        RuntimeError: when another training is writing to `out`.
    """
    path = out.with_name(out.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}
    with _alone_in(path.parent):
        for attempt in range(3):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                owner = _live_owner(path)
                if owner is not None or attempt == 2:
                    who = owner or "another process"
                    raise RuntimeError(
                        f"{out} is being trained by {who}; wait for it, or train into another file "
                        f"(if that training is surely gone, delete {path})"
                    ) from None
                _bury(path)
                continue
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(mine, file)
            break
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds other processes of this machine off while the block runs, where the system can lock a folder."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):  # some network file systems
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _bury(path: Path) -> None:
    """Removes a dead lock, and gives back one that another process took over since it was looked at."""
    grave = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    if _live_owner(grave) is not None and not path.exists():
        os.rename(grave, path)
    else:
        grave.unlink(missing_ok=True)


def _live_owner(path: Path) -> str | None:
    """Who holds the lock, in words; None when its owner is gone."""
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text(encoding="utf-8"))
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # being written this very moment, or damaged
        return "another process" if age < 5.0 else None
    words = f"process {pid} on {host}"
    if host != socket.gethostname() or os.name == "nt":
        return words if age < _FOREIGN_LOCK_SECONDS else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return None if started is not None and _process_start(pid) != started else words


def _process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, so that a reused number is told apart; -1 for one that is
    dead but
    not yet buried, None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def read_state_bytes(path: Path) -> bytes:
    """The bytes of a state file; b"" when there is none."""
    return path.read_bytes() if path.is_file() else b""


def clear_leftovers(path: Path) -> None:
    """Removes the halves of state files that kills in mid-write left behind (see `atomic_path`)."""
    for half in path.parent.glob(f".{path.stem}-????????{path.suffix}"):
        half.unlink(missing_ok=True)
