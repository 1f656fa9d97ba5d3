"""What the benchmarks share: fair timings, the machine they belong to, files that are whole."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

import geopose
from geopose._io import atomic_path
from geopose.checkpoint import jsonable
from geopose.train_report import machine

_NAMED = ("numpy", "torch", "opencv-python", "opencv-python-headless", "poselib", "pycolmap")


def about() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    versions = {"geopose": geopose.__version__, "python": platform.python_version()}
    for name in _NAMED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": machine(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def spread(values: ArrayLike) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(np.asarray(values, float), [10, 50, 90])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def interleaved(
    contest: Mapping[str, Callable[..., Any]], items: Iterable[tuple[Any, ...]], warm_up: int = 3
) -> dict[str, list[float]]:
    """Seconds by contestant of one call for each item; all take turns on every item.

    The order turns round from item to item, so that none always comes after the same other one. The first
    `warm_up` items are run first, without a clock.
    """
    items = list(items)
    for item in items[:warm_up]:
        for call in contest.values():
            call(*item)
    times: dict[str, list[float]] = {name: [] for name in contest}
    names = list(contest)
    for number, item in enumerate(items):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            contest[name](*item)
            times[name].append(time.perf_counter() - start)
    return times


def timings(times: Mapping[str, Sequence[float]], first: str, unit: float = 1e3) -> dict[str, Any]:
    """By contestant: spread in seconds times `unit`, and `ratio`: the median over the items of its time over that of
    `first` on the same item."""
    base = np.asarray(times[first])
    return {
        name: {**spread(unit * np.asarray(t)), "ratio": float(np.median(np.asarray(t) / base))}
        for name, t in times.items()
    }


def model_parser(text: str | None) -> argparse.ArgumentParser:
    """The arguments of a script that measures a model: which, of what, and where the JSON goes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cad", default="xwing")
    parser.add_argument("--unit")
    parser.add_argument("--model", help="checkpoint; default: the built-in or cached one of the CAD")
    parser.add_argument("--json")
    return parser


def write_json(path: str | Path | None, results: Mapping[str, Any]) -> None:
    """Writes the results beside what they were measured on (`about`); nothing without a path."""
    if path is None:
        return
    with atomic_path(path) as temporary:
        text = json.dumps(jsonable({"about": about(), **results}), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def page_parts(page: str | Path, name: str) -> tuple[str, str]:
    """What a Markdown page holds before and after its part between the marks `<!-- name: begin -->` and
    `<!-- name: end -->`, these included. Raises ValueError when the page has no such part."""
    marks = [f"<!-- {name}: {end} -->" for end in ("begin", "end")]
    before, begin, rest = Path(page).read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{page}: expected the lines {marks[0]!r} and {marks[1]!r}")
    return before + begin, end + after


def fill_page(page: str | Path, name: str, text: str) -> Path:
    """The path of a Markdown page whose part of that name, see `page_parts`, is now `text`."""
    before, after = page_parts(page, name)
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}\n\n{text.strip()}\n\n{after}", encoding="utf-8")
    return Path(page)
