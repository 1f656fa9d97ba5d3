"""Learning where a camera is in a place, from a folder in the layout of Cambridge Landmarks, and judging it.

Beside the network's answers stand those of two methods that learn nothing: the pose of the training view that looks
most like the picture (Sattler et al., "Understanding the Limitations of CNN-based Absolute Camera Pose Regression",
CVPR 2019, say why), and the mean pose of the training views.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from geopose import checkpoint
from geopose._io import atomic_path
from geopose.data.cambridge import (
    CambridgeDataset,
    Picture,
    Views,
    mean_picture,
    prepared,
    read_cambridge,
    read_pictures,
    read_points,
    retrieve,
    shrunk,
)
from geopose.distributed import pick_device
from geopose.fit import Batch, Clock, Learner, cores_shared_with, endless_loader, learn
from geopose.geometry.metrics import rotation_error
from geopose.geometry.pose import Pose
from geopose.image import load_image
from geopose.nets.backbone import fold_batchnorm, keep_freed_memory
from geopose.nets.places import load_places
from geopose.nets.posenet import PoseLossOptions, PoseNet, build_posenet, camera_pose, posenet_loss
from geopose.train_report import Progress, machine, plot_history, say

ROLE = "posenet"
NETWORK, RETRIEVAL, MEAN = "PoseNet", "nearest training view", "mean training pose"
_BATCH = 32


@dataclass(frozen=True)
class PoseNetOptions:
    """How to train; the defaults are those for the original pictures.

    Attributes:
        width: multiplies the channels of GoogLeNet; norm: "lrn" to start from `places`, "batch" to start from nothing.
        side, crop: pixels, the smaller side of the pictures and the side of what the network sees.
        loss: "beta", "learned" or "reprojection" (see `PoseLossOptions`; the last follows "learned" in the second half
            of the time, and reads `reconstruction.nvm`); beta: metres per unit of quaternion distance.
        dropout: of the first two heads, and of the last.
        places: the pickle of GoogLeNet's weights to start from (see `load_places`); None starts from nothing.
        batch_size: pictures a step; learning_rate: its peak, of Adam.
        workers: processes that cut the crops. The pictures lie in memory, so that there is hardly a need for one.
        device, seed, quiet: as everywhere.
    """

    width: float = 1.0
    norm: str = "lrn"
    side: int = 256
    crop: int = 224
    loss: str = "beta"
    beta: float = 500.0
    dropout: tuple[float, float] = (0.7, 0.5)
    places: str | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    workers: int = 0
    device: str | None = None
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 2 or not self.learning_rate > 0 or self.workers < 0:
            raise ValueError(
                f"batch_size, learning_rate, workers: got {self.batch_size}, {self.learning_rate}, {self.workers}, "
                "expected at least 2, a positive number, at least 0"
            )
        PoseLossOptions(self.loss, self.beta)


@dataclass(frozen=True)
class PoseNetModel:
    """A trained network in evaluation mode, the mean picture (H, W, 3) of its training, and what its checkpoint
    says."""

    net: nn.Module
    mean: Picture
    meta: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> PoseNetModel:
        """The model in a checkpoint that `train_posenet` wrote. Raises as `checkpoint.load_model` does."""
        states, meta = checkpoint.load_model(path)
        if meta["roles"] != [ROLE]:
            raise ValueError(
                f"{path}: holds the networks {meta['roles']}, expected one made by train_posenet"
            )
        try:
            net: nn.Module = build_posenet(meta["networks"][ROLE])
            net.load_state_dict(states[ROLE], strict=True)
            with Image.open(io.BytesIO(base64.b64decode(meta["mean_picture"], validate=True))) as picture:
                mean = np.asarray(picture.convert("RGB"))
        except (KeyError, TypeError, RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path}: the network does not fit its weights: {error}") from None
        chosen = pick_device(device)
        net = fold_batchnorm(net).to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(net.eval(), mean, meta, chosen)

    @torch.inference_mode()
    def poses(self, images: Sequence[NDArray[np.float32]]) -> Pose:
        """The poses `cam_from_world` (N,) of pictures as `prepared` makes them."""
        found = []
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.stack(images[start : start + _BATCH])).to(self.device) / 255.0
            found.append(self.net(batch.contiguous(memory_format=torch.channels_last)).double().cpu())
        rows = torch.cat(found).numpy()
        return camera_pose(rows[:, :3], rows[:, 3:])

    def locate(self, images: Sequence[Any]) -> Pose:
        """The poses `cam_from_world` (N,) of the cameras that took pictures of the place, of any kind (a path, an array
        (H, W, 3) uint8 RGB, ...). Raises ValueError naming one that has not the shape of the training pictures."""
        crops = []
        for number, image in enumerate(images):
            small = shrunk(Image.fromarray(load_image(image)[0]), min(self.mean.shape[:2]))
            try:
                crops.append(prepared(small, self.mean, int(self.meta["options"]["crop"])))
            except ValueError as error:
                raise ValueError(f"images[{number}]: {error}") from None
        if not crops:
            raise ValueError("images: expected at least one picture, got none")
        return self.poses(crops)


def train_posenet(
    root: str | Path, out: str | Path, minutes: float = 60.0, options: PoseNetOptions | None = None
) -> Path:
    """The path of the checkpoint `out`, trained on `dataset_train.txt` in `root`; a plot of the loss lies beside it.

    Takes `minutes`, the reading of the pictures included. An interrupted training starts anew. The checkpoint holds the
    last head only: the others serve training.

    Raises:
        FileNotFoundError, ValueError: on bad options or a broken set.
        RuntimeError: when the loss stays non-finite.
    """
    options, clock, out = options or PoseNetOptions(), Clock(), Path(out)
    if not minutes > 0:
        raise ValueError(f"minutes: got {minutes}, expected a positive number")
    device = pick_device(options.device)
    keep_freed_memory()
    torch.manual_seed(options.seed)
    net = PoseNet(
        options.width, norm=options.norm, size=options.crop, dropout=options.dropout,
        learned_weights=options.loss != "beta",
    )  # fmt: skip
    if options.places is not None:
        missing = load_places(net, options.places)
        say(f"{options.places}: nothing for {', '.join(missing)}", options.quiet)
    views = read_cambridge(root)
    net.start_at(torch.from_numpy(views.xyz.mean(0)), torch.from_numpy(views.wpqr.mean(0)))
    points = read_points(views) if options.loss == "reprojection" else None
    pictures = read_pictures(views, options.side)
    mean = np.rint(mean_picture(pictures)).astype(np.uint8)  # as the checkpoint holds it
    dataset = CambridgeDataset(
        views, mean, side=options.side, crop=options.crop, seed=options.seed, pictures=pictures, points=points
    )
    learner = Learner(ROLE, net.to(device, memory_format=torch.channels_last), options.learning_rate)  # type: ignore[call-overload]
    for group in learner.optimiser.param_groups:
        group["weight_decay"], group["factor"] = (
            0.0,
            1.0,
        )  # AdamW without decay is Adam; all layers learn alike
    with cores_shared_with(options.workers):
        _learn(learner, dataset, options, minutes, clock, device)
    meta = {
        "name": Path(root).resolve().name,
        "options": {k: v for k, v in asdict(options).items() if k not in ("quiet", "device", "workers")},
        "mean_picture": _as_text(mean),
        "machine": machine(),
        "minutes": clock.elapsed() / 60,
        "images": learner.samples,
    }
    checkpoint.save_model(out, {ROLE: net.without_auxiliary()}, meta)
    title = f"{meta['name']}: {clock.elapsed() / 60:.1f} minutes"
    plot_history({ROLE: learner.history}, title, out.with_name(out.stem + "_training.png"))
    return out


def _learn(
    learner: Learner,
    dataset: CambridgeDataset,
    options: PoseNetOptions,
    minutes: float,
    clock: Clock,
    device: torch.device,
) -> None:
    """Trains the network in place until the minutes are over."""
    begin_s, until_s = clock.elapsed(), max(60.0 * minutes, clock.elapsed())
    first = "learned" if options.loss == "reprojection" else options.loss
    phases = [PoseLossOptions(kind, options.beta) for kind in (first, options.loss)]
    loader = endless_loader(dataset, options.batch_size, options.workers, 0, pin=device.type == "cuda")
    progress = Progress(ROLE, begin_s, until_s, options.quiet)

    def loss_fn(out: Any, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return posenet_loss(out, batch, phases[clock.elapsed() > 0.5 * (begin_s + until_s)])

    def after_step(learner: Learner, loss: float) -> None:
        now = clock.elapsed()
        learner.note(now, loss, max(1.0, 60.0 * minutes / 500))
        progress.show(now, learner.samples, loss)

    try:
        learn(learner, loader, loss_fn, clock, until_s, device, after_step)
    finally:
        progress.close()
    learner.finish()


def _as_text(picture: Picture) -> str:
    """A picture as base64 of a PNG, for JSON."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


@dataclass(frozen=True, eq=False)
class Relocalisation:
    """Where cameras are said to be: the views asked about, those trained on, and the poses (N,) found, by method."""

    views: Views
    training: Views
    found: Mapping[str, Pose]

    def errors(self, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances (N,) between true and found camera centres, metres, and angles (N,) between orientations,
        degrees."""
        pose = self.found[method]
        distance = np.linalg.norm(pose.inverse().t - self.views.xyz, axis=-1)
        return distance, np.rad2deg(rotation_error(pose, self.views.cam_from_world))

    def medians(self) -> dict[str, tuple[float, float]]:
        """Median errors by method, metres and degrees."""
        return {
            method: (float(np.median(metres)), float(np.median(degrees)))
            for method, (metres, degrees) in ((m, self.errors(m)) for m in self.found)
        }


def evaluate_posenet(
    model: PoseNetModel | str | Path, root: str | Path, split: str = "test"
) -> Relocalisation:
    """The `Relocalisation` of the views of a split by the network, by retrieval, and by the mean pose.

    Raises FileNotFoundError and ValueError for a broken checkpoint or set.
    """
    model = model if isinstance(model, PoseNetModel) else PoseNetModel.load(model)
    views, training = read_cambridge(root, split), read_cambridge(root)
    side, crop = int(model.meta["options"]["side"]), int(model.meta["options"]["crop"])
    pictures = read_pictures(views, side)
    dataset = CambridgeDataset(views, model.mean, side=side, crop=crop, pictures=pictures)
    nearest = retrieve(read_pictures(training, side), pictures)
    mean = camera_pose(training.xyz.mean(0), training.wpqr.mean(0))
    found = {
        NETWORK: model.poses([dataset[i]["image"] for i in range(len(views))]),
        RETRIEVAL: training.cam_from_world[nearest],
        MEAN: Pose.stack([mean] * len(views)),
    }
    return Relocalisation(views, training, found)


def plot_plan(
    result: Relocalisation,
    path: str | Path,
    background: tuple[Picture, tuple[float, float, float, float]] | None = None,
) -> Path:
    """The path of a picture of the place from above (x to the right, y upwards): where the training views were taken,
    and for each view asked about the true place joined to the network's.

    background: a picture, and the metres at its left, right, lower and upper edge.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8.2), layout="constrained")
    axis = figure.subplots()
    if background is not None:
        axis.imshow(background[0], extent=background[1], alpha=0.75)
    true, said = result.views.xyz, np.asarray(result.found[NETWORK].inverse().t)
    axis.plot(
        *result.training.xyz[:, :2].T, ".", color="white", mec="0.25", mew=0.4, ms=5, label="training views"
    )
    for a, b in zip(true, said, strict=True):
        axis.plot(*np.stack([a, b])[:, :2].T, "-", color="black", lw=0.8)
    for xyz, pose, color, label in (
        (true, result.views.cam_from_world, "#1fd15a", "true"),
        (said, result.found[NETWORK], "#ff3b30", NETWORK),
    ):
        ahead = np.asarray(pose.R)[:, 2, :2]  # the optical axis, in the world
        axis.quiver(*xyz[:, :2].T, *ahead.T, color=color, width=0.0028, scale=28, headwidth=4, zorder=3)
        axis.plot(*xyz[:, :2].T, "o", color=color, mec="black", mew=0.5, ms=5, label=label, zorder=4)
    words = "; ".join(f"{m} {metres:.2f} m, {deg:.1f}°" for m, (metres, deg) in result.medians().items())
    axis.set(
        title=f"{len(true)} views, median errors: {words}", xlabel="x (m)", ylabel="y (m)", aspect="equal"
    )
    axis.title.set_fontsize(10)
    axis.legend(loc="upper right", framealpha=0.9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)
