"""Two recipes of the literature, frozen, and the one loop that follows either.

`XWING`: U-Net, heatmaps drawn per batch, mean squared error, Adam, a learning rate that falls where the error on unseen
pictures no longer does. `SEMANTIC`: stacked hourglass, mean squared error, RMSprop, turned and scaled pictures, and a
pose that weighs keypoints by the confidence of their heatmaps (Pavlakos et al., "6-DoF Object Pose from Semantic
Keypoints", ICRA 2017). What is added to both: gradients are clipped, and an average of the weights is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geopose import checkpoint
from geopose.data.annotated import AnnotatedSet, Augmentation, CropDataset, inverted, moved
from geopose.distributed import pick_device
from geopose.fit import (
    Batch,
    Clock,
    Learner,
    cores_shared_with,
    default_workers,
    endless_loader,
    learn,
)
from geopose.geometry.camera import Camera
from geopose.geometry.heatmap import soft_argmax
from geopose.geometry.pnp import PnPResult, solve_pnp
from geopose.nets.backbone import keep_freed_memory
from geopose.nets.losses import STRIDE, LossOptions, keypoint_loss
from geopose.train_report import Progress, machine, plot_history, say

Array = NDArray[np.float64]

ROLE = "keypoints"
_CHECKS = 40  # looks at unseen pictures in a training
_CHECK_SHARE = 0.1  # of the time, at most
_BATCH = 16
_LEAST = 1e-3  # height of a heatmap that counts as nothing


@dataclass(frozen=True)
class Recipe:
    """How a network learns keypoints from annotated pictures.

    Attributes:
        network: options of `build_keypoint_net`, without `num_keypoints`.
        size: side of the network's input, pixels, a multiple of 32.
        sigma: standard deviation of the Gaussians, of peak one, in heatmap cells of four pixels.
        optimiser: "adam" or "rmsprop"; learning_rate, batch_size: as they say.
        plateau: None keeps the learning rate. (factor, patience) multiplies it by `factor` when the error on unseen
            pictures has not fallen for `patience` of the 40 looks at them.
        augmentation: of the pictures.
    """

    name: str
    network: Mapping[str, Any]
    size: int = 256
    sigma: float = 2.0
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    batch_size: int = 16
    plateau: tuple[float, int] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.optimiser not in ("adam", "rmsprop"):
            raise ValueError(f"optimiser: got {self.optimiser!r}, expected 'adam' or 'rmsprop'")
        if self.size < 64 or self.size % 32:
            raise ValueError(f"size: got {self.size}, expected a multiple of 32, at least 64")
        if self.batch_size < 2 or not self.learning_rate > 0 or not self.sigma > 0:
            raise ValueError(
                f"batch_size, learning_rate, sigma: got {self.batch_size}, {self.learning_rate}, {self.sigma}, "
                "expected at least 2 and positive numbers"
            )


XWING = Recipe(
    "xwing",
    {"kind": "unet", "pretrained": True, "dense": False},
    sigma=2.5,  # 10 pixels of 256
    plateau=(0.1, 6),
    augmentation=Augmentation(quarter_turns=True, blur=0.5),
)
"""The X-wing tracking task's: Adam at 1e-3, batches of 16, turns by quarters, blur. Its encoder is EfficientNet-Lite0
with ImageNet weights, the form of B0 for processors without an accelerator. Heatmaps have a quarter of the picture's
resolution."""

XWING_B0 = replace(XWING, name="xwing_b0", network={"kind": "unet", "encoder": "b0", "dense": False})
"""The same with the original's encoder, EfficientNet-B0, from nothing: for a GPU and many pictures."""

SEMANTIC = Recipe(
    "semantic",
    {"kind": "hourglass", "stacks": 2, "features": 256},
    optimiser="rmsprop",
    learning_rate=2.5e-4,
    batch_size=8,
    augmentation=Augmentation(rotation_deg=30.0, scale=(0.8, 1.2)),
)
"""Pavlakos et al.: 256 pixels to K x 64 x 64, two hourglasses, RMSprop at 2.5e-4, batches of 8, turns and scales."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a network sees in N pictures.

    points_px: (N, K, 2) image pixels; confidence: (N, K) in [0, 1], the height of the heatmap's peak; heatmaps: (N, K,
    S/4, S/4); crop_from_image: (N, 2, 3) affine map of pixels; nmae: the normalised mean absolute error of the places
    of the heatmaps' maxima, in sides of the crop, against the annotations; NaN without any.
    """

    points_px: Array
    confidence: Array
    heatmaps: NDArray[np.float32]
    crop_from_image: Array
    nmae: float


@dataclass(frozen=True, eq=False)
class RecipeModel:
    """A trained network in evaluation mode and what its checkpoint says of it."""

    net: nn.Module
    meta: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> RecipeModel:
        """The model in a checkpoint that `train_recipe` wrote. Raises as `checkpoint.load_nets` does."""
        where = pick_device(device)
        nets, meta = checkpoint.load_nets(path, where)
        if list(nets) != [ROLE] or "recipe" not in meta:
            raise ValueError(f"{path}: holds the networks {sorted(nets)}, expected one made by train_recipe")
        return cls(nets[ROLE], meta, where)

    @property
    def size(self) -> int:
        """Side of the network's input, pixels."""
        return int(self.meta["recipe"]["size"])

    @torch.inference_mode()
    def read(self, pictures: AnnotatedSet) -> Reading:
        """What the network sees in the pictures of a set; its annotations serve the error only."""
        self.net.eval()
        dataset = CropDataset(pictures, self.size)
        maps, matrices, errors = [], [], []
        for start in range(0, len(dataset), _BATCH):
            items = [dataset[i] for i in range(start, min(start + _BATCH, len(dataset)))]
            image = torch.from_numpy(np.stack([item["image"] for item in items])).to(self.device)
            x = image.float().div_(255).contiguous(memory_format=torch.channels_last)
            found = self.net(x)["heatmaps"].float().cpu()
            maps.append(found)
            matrices += [item["crop_from_image"] for item in items]
            truth, inside = (np.stack([item[k][0] for item in items]) for k in ("keypoints_px", "inside"))
            errors.append(np.abs(argmax_px(found) - truth)[inside] / self.size)
        heatmaps = torch.cat(maps)
        crop_px = peaks_px(heatmaps)
        points = np.stack([moved(p, inverted(m)) for p, m in zip(crop_px, matrices, strict=True)])
        confidence = heatmaps.flatten(2).amax(2).clamp(0, 1).double().numpy()
        wrong = np.concatenate(errors)
        nmae = float(wrong.mean()) if len(wrong) else float("nan")
        return Reading(points, confidence, heatmaps.numpy(), np.stack(matrices), nmae)


def peaks_px(heatmaps: Tensor) -> Array:
    """(..., K, 2) crop pixels of the peaks of heatmaps (..., K, H, W) whose Gaussians have peak one: the centre of mass
    around the maximum, continued over the border (`soft_argmax` of their logarithm)."""
    mean, _, _ = soft_argmax(heatmaps.double().clamp_min(_LEAST).log(), window=3.0)
    return ((mean + 0.5) * STRIDE - 0.5).numpy()


def argmax_px(heatmaps: Tensor) -> Array:
    """(..., K, 2) crop pixels of the largest cells of heatmaps (..., K, H, W)."""
    best, width = heatmaps.flatten(-2).argmax(-1), heatmaps.shape[-1]
    cells = torch.stack([best % width, best // width], -1).double()
    return ((cells + 0.5) * STRIDE - 0.5).numpy()


def weighted_pose(
    points_obj: Array, points_px: Array, confidence: Array, camera: Camera, sigma_px: float = 2.0
) -> PnPResult:
    """The PnPResult (...) of keypoints (..., K, 2) over R and t, each weighed by its confidence (..., K).

    Args:
        sigma_px: standard deviation, image pixels, of a keypoint of confidence one; its square over the confidence is
            the variance.
    Notes:
        Minimises sum_k c_k |projection_k - x_k|^2, as Pavlakos et al., ICRA 2017, eq. 3, but in the picture instead of
        space, and without the points that fit no pose.
    """
    variance = sigma_px**2 / np.clip(confidence, 1e-2, 1.0)
    return solve_pnp(points_obj, points_px, camera, cov_px=variance[..., None, None] * np.eye(2))


def train_recipe(
    recipe: Recipe,
    training: AnnotatedSet,
    unseen: AnnotatedSet,
    out: str | Path,
    minutes: float = 60.0,
    *,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Path:
    """The path of the checkpoint `out`, a network trained by a recipe; a plot of the losses lies beside it.

    An interrupted training starts anew.

    Args:
        training, unseen: pictures of the same points; the latter judge, and steer a recipe with `plateau`.
        minutes: of learning.
        workers: processes that cut the crops; None: one for two cores.
    Raises:
        ValueError: on bad input. RuntimeError: when a process dies, or the loss stays non-finite.
    """
    out, clock = Path(out), Clock()
    if not minutes > 0:
        raise ValueError(f"minutes: got {minutes}, expected a positive number")
    if np.shape(training.points_obj) != np.shape(unseen.points_obj):
        raise ValueError(
            f"unseen: got {len(unseen.points_obj)} keypoints, expected {len(training.points_obj)}"
        )
    on = pick_device(device)
    keep_freed_memory()
    torch.manual_seed(seed)
    net = checkpoint.build_net(ROLE, {**recipe.network, "num_keypoints": len(training.points_obj)}, True)
    _hush(net)
    learner = _learner(recipe, net.to(on, memory_format=torch.channels_last))  # type: ignore[call-overload]
    workers = default_workers() if workers is None else workers
    dataset = CropDataset(training, recipe.size, recipe.augmentation, seed)
    with cores_shared_with(workers):
        loader = endless_loader(dataset, recipe.batch_size, workers, 0, pin=on.type == "cuda")
        _Watch(learner, recipe, unseen, clock, 60.0 * minutes, on, quiet).run(loader)
    meta: dict[str, Any] = {
        "name": recipe.name,
        "recipe": asdict(replace(recipe, network=dict(recipe.network))),
        "points_obj": training.points_obj,
        "seed": seed,
        "machine": machine(),
        "minutes": clock.elapsed() / 60,
        "images": learner.samples,
        "figures": {},
    }
    checkpoint.save_model(out, {ROLE: net}, meta)
    nmae = RecipeModel.load(out, str(on)).read(unseen).nmae
    meta["figures"] = {"nmae_argmax": nmae}
    checkpoint.save_model(out, {ROLE: net}, meta)
    title = f"{recipe.name}: {clock.elapsed() / 60:.1f} minutes, argmax error {100 * nmae:.2f} %"
    plot_history({ROLE: learner.history}, title, out.with_name(out.stem + "_training.png"))
    say(f"{out}: {title} of the crop's side, {learner.samples} pictures", quiet)
    return out


def recipe_loss(out: Mapping[str, Any], batch: Batch, sigma: float) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The mean squared error (and its parts) per cell between heatmaps and Gaussians of peak one that are drawn here,
    for each batch, on the maps of keypoints inside of the crop; with `stacks`, their sum."""
    total, parts = keypoint_loss(out, batch, LossOptions("mse", sigma=sigma))
    return total / out["heatmaps"][0, 0].numel(), parts


def _hush(net: nn.Module) -> None:
    """Makes heatmaps that are next to nothing everywhere, as the Gaussians are nearly everywhere: no time goes into
    unlearning those of a random start."""
    for layer in net.get_submodule("head").modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=1e-2)
            nn.init.zeros_(layer.get_parameter("bias"))


def _learner(recipe: Recipe, net: nn.Module) -> Learner:
    """The network on its way, with the recipe's optimiser and a learning rate that does not follow the clock."""
    learner = Learner(ROLE, net, recipe.learning_rate, schedule=lambda _: 1.0)
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    parameters = [p for p in net.parameters() if p.requires_grad]
    learner.optimiser = kinds[recipe.optimiser](  # type: ignore[assignment]
        [{"params": parameters, "factor": 1.0}],
        lr=recipe.learning_rate,  # type: ignore[call-arg]
    )
    return learner


class _Watch:
    """Trains one network, looks at unseen pictures now and then, and lowers the rate where that is the recipe."""

    def __init__(
        self,
        learner: Learner,
        recipe: Recipe,
        unseen: AnnotatedSet,
        clock: Clock,
        seconds: float,
        device: torch.device,
        quiet: bool,
    ) -> None:
        self.learner, self.recipe, self.device, self.clock = learner, recipe, device, clock
        self.begin_s = clock.elapsed()
        self.until_s = self.begin_s + seconds
        self.pause = seconds / _CHECKS
        self.next_s = self.begin_s + self.pause
        crops = CropDataset(unseen, recipe.size)
        count = min(len(crops), 2 * _BATCH)
        self.unseen = torch.utils.data.default_collate([crops[i] for i in range(count)])
        self.progress = Progress(recipe.name, self.begin_s, self.until_s, quiet)
        self.best, self.since_best, self.rate = float("inf"), 0, 1.0
        learner.schedule = lambda _: self.rate
        self._recent: list[float] = []

    def run(self, loader: DataLoader[Any]) -> None:
        """Trains until the time is over and leaves the averaged weights in the network."""
        half = self.device.type == "cuda"
        try:
            learn(
                self.learner, loader, self.loss, self.clock, self.until_s, self.device, self.after_step, half
            )
        finally:
            self.progress.close()
        self.learner.finish()

    def loss(self, out: Any, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return recipe_loss(out, batch, self.recipe.sigma)

    def after_step(self, learner: Learner, loss: float) -> None:
        now = self.clock.elapsed()
        self._recent.append(loss)
        self.progress.show(now, learner.samples, loss)
        if now < self.next_s:
            return
        learner.history.append([round(now, 2), learner.samples, float(np.nanmean(self._recent))])
        self._recent.clear()
        if self.recipe.plateau is not None:
            self._lower(*self.recipe.plateau)
        cost = self.clock.elapsed() - now
        self.next_s = now + max(self.pause, cost / _CHECK_SHARE)

    @torch.no_grad()
    def _lower(self, factor: float, patience: int) -> None:
        """Lowers the learning rate when unseen pictures have not been read better for `patience` looks."""
        net = self.learner.net.eval()
        image = self.unseen["image"].to(self.device).float().div_(255)
        out = net(image.contiguous(memory_format=torch.channels_last))
        net.train()
        error = float(self.loss(out, {k: v.to(self.device) for k, v in self.unseen.items()})[0])
        self.since_best = 0 if error < self.best else self.since_best + 1
        self.best = min(self.best, error)
        if self.since_best >= patience:
            self.rate, self.since_best = self.rate * factor, 0
