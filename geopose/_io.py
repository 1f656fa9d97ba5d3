"""Writing files so that a reader never sees half of one; names of folders; grey levels of more than eight bits."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on an error.

    The temporary name keeps the suffix, so that writers which look at it (PIL, OpenCV) still work.
    Missing parent folders are made. With `durable`, not even a power cut leaves anything but the old file or the new
    one: the disk holds the new file before it gets the name. What a link points to is replaced, not the link; the new
    file has the rights of the old one. A device or a pipe is yielded as it is: it cannot be replaced.

    Raises:
        FileNotFoundError: where the block wrote nothing.
        OSError: what the system says of a full disk or a forbidden folder, naming `path`.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        yield temporary
        if durable:
            _sync(temporary, os.O_RDWR)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        if durable:
            with suppress(OSError):  # not every system opens folders
                _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_folder_name(text: str) -> bool:
    """Whether it names a folder within another, and neither that itself nor one elsewhere."""
    return text not in ("", "..") and Path(text).name == text


def eight_bits(values: NDArray[np.float64], mode: str) -> NDArray[np.uint8]:
    """Grey levels, those of floats in [0, 1] or as those of integers, of which the highest tells the number of bits:
    8 or 16, or 10, 12 or 14 where 16 would be nearly black. `mode`: of PIL's picture; "F" holds floats.

    Raises:
        ValueError: where one of them is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"img: expected finite values, got NaN or infinity in a picture of mode {mode!r}")
    highest = values.max(initial=0)
    if mode == "F" and highest <= 1:
        return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    white = 65535.0
    if highest < white / 8:
        white = next(2.0**bits - 1 for bits in (8, 10, 12, 14) if highest < 2**bits)
    return np.clip(values * (255 / white), 0, 255).astype(np.uint8)
