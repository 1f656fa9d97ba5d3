"""A trained model asked once more what it knows: its calibration and its figures anew, its weights as they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from geopose import checkpoint
from geopose.cad.symmetry import Symmetries
from geopose.data.synthetic import SyntheticDataset
from geopose.distributed import pick_device
from geopose.fit import cores_shared_with, default_workers, endless_loader
from geopose.geometry.pnp import warm_up
from geopose.train_options import TrainOptions
from geopose.train_report import finish_model

_MOST_CROPS = 1024
_UNTIL_TIME_IS_UP = 1 << 40


def recalibrate(
    path: str | Path,
    out: str | Path | None = None,
    minutes: float = 5.0,
    seed: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    covariance_only: bool = False,
    mesh_error: float | None = None,
    cad: Any = None,
    quiet: bool = False,
) -> Path:
    """The path of a checkpoint with the weights of `path`, calibrated and judged anew, as at the end of a training.

    For a model from an earlier geopose, or one whose training was too short to be calibrated well: more pictures make
    a more honest confidence and covariance. Nothing is learned but those, and no mesh is needed; without one the light
    mesh in the checkpoint is rendered, with which an estimate compares, where a training renders the whole.

    Args:
        out: where to write; None replaces `path`. minutes: seven tenths of them calibrate, the rest judge. seed: of the
            renders; None takes that of the training, whose own pictures are others. workers: rendering processes;
            None takes one for two cores. covariance_only: whether keypoints and confidence stay as they are, and only
            the size and the tails of the covariances are fitted: then the model answers what it answered before.
        mesh_error: how far the real thing's surface is from its mesh, diameters, as in `TrainOptions`; None: as it was
            in training.
        cad: the mesh, as in `estimate_pose`, to be rendered in place of the light one.
    Raises:
        FileNotFoundError, ValueError: when `path` is not a checkpoint, `cad` is not its mesh, or minutes or seed cannot
            be right.
    """
    path, out = Path(path), Path(path if out is None else out)
    meta = checkpoint.load_model(path)[1]
    if not 0 < minutes < 1e5:
        raise ValueError(f"minutes: got {minutes}, expected a positive number of minutes")
    if seed is not None and seed < 0:
        raise ValueError(f"seed: got {seed}, expected a number >= 0")
    with checkpoint.pose_model(path, meta):
        seed = int(meta["seed"]) if seed is None else seed
        known = {field.name for field in fields(TrainOptions)}
        options = TrainOptions(**{name: value for name, value in meta["options"].items() if name in known})
        symmetries = Symmetries.from_json(meta["symmetries"])
        before = {name: meta[name] for name in ("calibration", "figures", "command")}
    warm_up()  # before the minutes begin
    if mesh_error is not None:
        options = replace(options, mesh_error=mesh_error)
    model = checkpoint.light_model(meta) if cad is None else checkpoint.full_model(meta, cad)
    workers = default_workers() if workers is None else workers

    def renders(kind: str, number: int) -> Iterable[Any]:
        pictures, own = options.pictures(), 1000 * seed + number
        dataset = SyntheticDataset(model, meta["keypoints"], symmetries, pictures, own, kind)
        dataset[0]  # the bank of backgrounds is made here, once, for the processes forked from this one
        return endless_loader(dataset, 1 if kind == "scene" else 16, workers, 0)

    command = f"geopose calibrate {path.name} --out {out.name} --minutes {minutes:g} --seed {seed}"
    if mesh_error is not None:
        command += f" --mesh-error {mesh_error:g}"
    if cad is not None:
        source = Path(model.source)
        command += f" --cad {source.name if source.is_file() else model.name}"
    seconds, began = 60.0 * minutes, time.monotonic()
    with cores_shared_with(workers), _Bar(seconds, quiet) as bar:
        calibration, figures = finish_model(
            path,
            pick_device(device),
            bar.along(renders("crop", 1), "keypoints"),
            bar.along(renders("scene", 1), "confidence"),
            bar.along(renders("scene", 2), "judgement"),
            began,
            seconds,
            (_MOST_CROPS, _UNTIL_TIME_IS_UP, _UNTIL_TIME_IS_UP),
            before["calibration"] if covariance_only else None,
        )
    if covariance_only:
        figures, command = before["figures"] | figures, command + " --covariance-only"
    command = f"{before['command']} && {command}"
    return checkpoint.rewrite(path, out, {"calibration": calibration, "figures": figures, "command": command})


class _Bar:
    """The time that is left, on a terminal."""

    def __init__(self, seconds: float, quiet: bool) -> None:
        form = "{desc}: {bar} {elapsed}, {postfix}"
        off = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=round(max(seconds, 1)), bar_format=form, file=sys.stderr, disable=off)
        self._began, self._seconds = time.monotonic(), seconds

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def along(self, items: Iterable[Any], name: str) -> Iterator[Any]:
        """The items, each of them shown as it comes."""
        for number, item in enumerate(items, 1):
            gone = time.monotonic() - self._began
            self._bar.n = min(round(gone), self._bar.total or 0)
            self._bar.set_description(name, refresh=False)
            self._bar.set_postfix_str(f"{number} batches, {max(self._seconds - gone, 0) / 60:.1f} min left")
            yield item


__all__ = ["recalibrate"]
