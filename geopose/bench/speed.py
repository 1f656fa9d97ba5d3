"""How long a pose takes on this machine, stage by stage, and how long the import takes.

The rounds go through all thread counts and pictures in turn, so that a disturbance meets them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import trange

from geopose import checkpoint
from geopose._io import atomic_path
from geopose.bench.common import spread
from geopose.cad.model import load_cad
from geopose.checkpoint import model_of
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace, square
from geopose.data.synthetic import SyntheticDataset
from geopose.distributed import torch_threads
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.stages import cut
from geopose.train_report import machine

Scene = tuple[NDArray[np.uint8], Camera, NDArray[np.float64]]  # picture, camera, true box
STAGES = ("read", "locate", "keypoints", "pose", "compare", "total")

IMPORTS = {  # what is timed, after what is imported already
    "geopose": ("geopose", "time"),
    "geopose.estimate, beyond torch": ("geopose.estimate", "torch"),
    "torch": ("torch", "time"),
}


@dataclass(frozen=True)
class Options:
    """What is timed.

    model: checkpoint of the X-wing (default: the one that comes with the package); images: different pictures;
    rounds: timings of each picture and thread count; size_wh: of the pictures; imports: fresh interpreters that
    import geopose; seed: of the pictures.
    """

    model: str | None = None
    images: int = 12
    rounds: int = 5
    size_wh: tuple[int, int] = (640, 480)
    imports: int = 5
    seed: int = 20261121

    def __post_init__(self) -> None:
        for name in ("images", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.imports < 0:
            raise ValueError(f"imports: expected 0 or more, got {self.imports}")


def run(options: Options, out: Path | None = None) -> dict[str, Any]:
    """{"rows": milliseconds by threads and stage, "imports": seconds, "table": text}; also written to `out` as JSON.

    A row holds the median, 10th and 90th percentile over pictures and rounds. "read" to "total" are the stages of
    `PoseEstimator.estimate`, all looks at a picture together; "box given" is the same where the place is known, and
    "crop" and "network" are parts of one look at the keypoints.
    """
    estimator = PoseEstimator.load(options.model or model_of("xwing"))
    scenes = renders(estimator, options)
    counts = sorted({1, os.cpu_count() or 1})
    times: dict[tuple[int, str], list[float]] = {}
    for number in trange(options.rounds + 1, disable=None, unit="round"):  # in a terminal
        for image, camera, box in scenes:
            for threads in counts:
                estimator.threads = threads
                with _threads(threads):
                    measured = _one(estimator, image, camera, box)
                if number > 0:  # the first round warms up
                    for name, seconds in measured.items():
                        times.setdefault((threads, name), []).append(1000 * seconds)
    rows = [{"threads": t, "stage": name, "ms": spread(values)} for (t, name), values in times.items()]
    result: dict[str, Any] = {
        "machine": machine(),
        "images": options.images,
        "rounds": options.rounds,
        "size_wh": options.size_wh,
        "rows": rows,
        "imports_s": import_seconds(options.imports),
    }
    result["table"] = table(result)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(checkpoint.jsonable(result), indent=1) + "\n", encoding="utf-8")
    return result


def renders(estimator: PoseEstimator, options: Options) -> list[Scene]:
    """Pictures of the X-wing anywhere in view, 60 to 300 pixels large, nothing before it."""
    view = ViewSpace.of_training(estimator.meta["options"])
    made = SyntheticOptions(
        view=view, scene_wh=options.size_wh, scene_range=(60.0, 300.0), clutter=0.0, occluders=0.0
    )
    ship = load_cad("xwing")
    data = SyntheticDataset(ship, estimator.keypoints, estimator.symmetries, made, options.seed, "scene")
    found = []
    for index in range(options.images):
        item = data[index]
        camera = Camera.from_matrix(item["K"], options.size_wh)
        found.append(
            (np.ascontiguousarray(item["image"].transpose(1, 2, 0)), camera, np.asarray(item["box"], float))
        )
    return found


def _one(
    estimator: PoseEstimator, image: NDArray[np.uint8], camera: Camera, box: NDArray[np.float64]
) -> dict[str, float]:
    """Seconds by stage of one picture."""
    timings = estimator.estimate(image, camera).timings
    seconds = {name: timings.get(name, 0.0) for name in STAGES}
    seconds["box given"] = estimator.estimate(image, camera, box).timings["total"]
    size = float(np.hypot(*(box[2:] - box[:2])) / np.sqrt(2))
    look = square(0.5 * (box[:2] + box[2:]), estimator.crop_scale * size)
    crop = cut(image, look, (estimator.crop_size, estimator.crop_size))
    x = torch.from_numpy(crop).to(estimator.device).permute(2, 0, 1)[None].float().div_(255)
    seconds["crop"] = _clocked(lambda: cut(image, look, (estimator.crop_size, estimator.crop_size)))
    with torch.inference_mode():
        seconds["network"] = _clocked(lambda: estimator.nets["keypoints"](x)["heatmaps"].cpu())
    return seconds


def _clocked(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """That many threads in torch and OpenCV, and the former number afterwards."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        with torch_threads(count):
            yield
    finally:
        cv2.setNumThreads(before)


def import_seconds(count: int) -> dict[str, dict[str, float]]:
    """Seconds of the imports in `IMPORTS`, each in `count` fresh interpreters, in turn; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(count + 1 if count else 0):
        for name, (timed, before) in IMPORTS.items():
            code = f"import time, {before}; t = time.perf_counter(); import {timed}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            if number > 0:
                times[name].append(float(done.stdout))
    return {name: spread(values) for name, values in times.items() if values}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    counts = sorted({row["threads"] for row in result["rows"]})
    cells = {(row["threads"], row["stage"]): row["ms"] for row in result["rows"]}
    stages = list(dict.fromkeys(row["stage"] for row in result["rows"]))
    width, height = result["size_wh"]
    lines = [f"X-wing, {result['images']} renders of {width}x{height}: median ms (10th to 90th percentile)"]
    lines.append(f"{'':11}" + "".join(f"{f'{c} thread' + 's' * (c > 1):>26}" for c in counts))
    for stage in stages:
        shown = (cells[c, stage] for c in counts)
        texts = (f"{ms['median']:8.1f} ({ms['p10']:.1f} to {ms['p90']:.1f})" for ms in shown)
        lines.append(f"{stage:11}" + "".join(f"{text:>26}" for text in texts))
    for name, seconds in result["imports_s"].items():
        lines.append(
            f"import of {name}: {seconds['median']:.3f} s ({seconds['p10']:.3f} to {seconds['p90']:.3f})"
        )
    return "\n".join(lines)
