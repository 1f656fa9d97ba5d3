"""The methods of the comparison: what each learns, from what, and how it answers.

Those with "Lite0" begin with the same ImageNet features, kept fixed up to the same stride.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from geopose.bench.regression_data import Pictures, Target, from_view, to_view, view_of
from geopose.calibrate import calibrate_keypoints, read_renders
from geopose.geometry.pnp import PnPOptions, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import (
    matrix_from_6d,
    matrix_from_quat_wxyz,
    quat_wxyz_from_matrix,
)
from geopose.nets.backbone import ConvNorm, Encoder, channels_last
from geopose.nets.docking import DockingNet, docking_loss, read_docking
from geopose.nets.losses import keypoint_loss
from geopose.nets.posenet import PoseLossOptions, PoseNet, posenet_loss
from geopose.nets.unet import UNet
from geopose.stages import calibrated, keypoints_of

Array = NDArray[np.float64]
Targets = Callable[[Target, Pictures], dict[str, NDArray[Any]]]

_LITE0: dict[str, Any] = {"pretrained": True, "frozen_stride": 4, "frozen_5x5": True}
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Answer:
    """Poses (N,), NaN where there is none; where the middle (N, 3) of the object is, camera frame, metres; and whether
    (N,) each was answered with confidence."""

    pose: Pose
    middle: Array
    found: NDArray[np.bool_]


@dataclass(frozen=True)
class Learned:
    """A method that trains a network.

    build: the network, from the target and the pictures for training; targets: arrays by name, beside the pictures;
    loss: as for `fit.learn`; answer: poses of pictures, from the network and what `prepare` made of pictures for
    validation; learning_rate: at its peak, of pretrained layers (of new ones three times that); attitude: whether it
    says how the object is turned.
    """

    build: Callable[[Target, Pictures], nn.Module]
    targets: Targets
    loss: Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
    answer: Callable[[nn.Module, Target, Pictures, Any], Answer]
    learning_rate: float = 1e-3
    prepare: Callable[[nn.Module, Pictures], Any] = lambda net, val: None
    attitude: bool = True


class PoseRegressor(nn.Module):
    """Place and attitude of the object straight from the features: x, y, log depth and a rotation's first two columns.

    Notes:
        Zhou et al., "On the continuity of rotation representations in neural networks", CVPR 2019.
    """

    def __init__(self, size: int, width: int = 96, hidden: int = 256, *, pretrained: bool = True) -> None:
        super().__init__()
        options = _LITE0 | {"pretrained": pretrained}
        self.encoder = Encoder(**options)
        self.mix = ConvNorm(self.encoder.channels[32] + self.encoder.channels[16], width)
        cells = size // 16
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(width * cells * cells, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 9)
        )  # fmt: skip
        self.log_variances = nn.Parameter(torch.zeros(2))
        channels_last(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`place` (B, 3), `attitude` (B, 3, 3) and `log_variances` (2,) of pictures (B, 3, S, S) in [0, 1]."""
        features = self.encoder(x)
        deep = F.interpolate(features[32], scale_factor=2.0, mode="bilinear")
        raw = self.head(self.mix(torch.cat((deep, features[16]), 1)).contiguous()).float()
        start = raw.new_tensor([1.0, 0, 0, 0, 1, 0])
        return {
            "place": raw[:, :3],
            "attitude": matrix_from_6d(raw[:, 3:] + start),
            "log_variances": self.log_variances,
        }


class Centred(nn.Module):
    """PoseNet behind the mean picture, which is taken off first."""

    def __init__(self, net: PoseNet, mean: Tensor) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Any:
        return self.net(x - self.mean)


# Heatmaps and PnP


def _keypoint_targets(target: Target, pictures: Pictures) -> dict[str, NDArray[Any]]:
    return {key: pictures[key] for key in ("keypoints_px", "inside", "mask", "xyz")}


def _calibrate(net: nn.Module, val: Pictures) -> dict[str, Any]:
    """The calibration of keypoints from pictures that were not trained on."""
    keys = ("image", "keypoints_px", "inside")
    batches = (
        {k: torch.from_numpy(val[k][i : i + _BATCH]) for k in keys} for i in range(0, len(val), _BATCH)
    )
    return calibrate_keypoints(read_renders(net, batches, _device(net), len(val), float("inf")))[0]


def _answer_keypoints(net: nn.Module, target: Target, pictures: Pictures, calibration: Any) -> Answer:
    points, covs = [], []
    for out in _outputs(net, pictures):
        px, cov = keypoints_of(out["heatmaps"].double(), pictures.size, calibration["window"])
        points.append(px.numpy())
        covs.append(calibrated(cov.numpy(), calibration))
    return _posed(target, pictures, np.concatenate(points), np.concatenate(covs))


def _posed(target: Target, pictures: Pictures, points_px: Array, cov_px: Array) -> Answer:
    result = solve_pnp(target.keypoints, points_px, pictures.camera, cov_px=cov_px, options=PnPOptions())
    return Answer(result.pose, _middle(result.pose, target), np.asarray(result.status) == "ok")


def true_keypoints(target: Target, pictures: Pictures, noise_px: float, seed: int) -> Answer:
    """PnP from the true keypoints, each `noise_px` off: what geometry makes of good ones."""
    truth = pictures["keypoints_px"][:, 0].astype(np.float64)
    noise = np.random.default_rng(seed).normal(0, noise_px, truth.shape)
    cov = np.broadcast_to(max(noise_px, 0.01) ** 2 * np.eye(2), (*truth.shape, 2))
    return _posed(target, pictures, truth + noise, cov)


# Regression


def _posenet(target: Target, training: Pictures, width: float = 0.5) -> nn.Module:
    net = PoseNet(
        width, norm="batch", size=training.size, dropout=(0.2, 0.2), learned_weights=True
    )  # from nothing: GoogLeNet's weights are not at hand
    targets = _posenet_targets(target, training)
    net.start_at(torch.from_numpy(targets["xyz"].mean(0)), torch.from_numpy(targets["wpqr"].mean(0)))
    mean = torch.from_numpy(training["image"].mean(0, dtype=np.float64) / 255).float()
    return Centred(net, mean)


def _posenet_targets(target: Target, pictures: Pictures) -> dict[str, NDArray[Any]]:
    place, attitude = to_view(pictures.pose, pictures.camera, target)
    return {"xyz": place.astype(np.float32), "wpqr": quat_wxyz_from_matrix(attitude).astype(np.float32)}


def _answer_posenet(net: nn.Module, target: Target, pictures: Pictures, _: Any) -> Answer:
    rows = torch.cat(list(_outputs(net, pictures))).double().numpy()
    return _viewed(target, pictures, rows[:, :3], matrix_from_quat_wxyz(rows[:, 3:]))


def _regressor_targets(target: Target, pictures: Pictures) -> dict[str, NDArray[Any]]:
    place, attitude = to_view(pictures.pose, pictures.camera, target)
    return {"place": place.astype(np.float32), "attitude": attitude.astype(np.float32)}


def regressor_loss(
    out: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean distance of places and Frobenius distance of attitudes, weighed by learned variances (Kendall and
    Cipolla, CVPR 2017, eq. 8), and both."""  # fmt: skip
    place = (out["place"] - batch["place"]).abs().sum(1).mean()
    attitude = (out["attitude"] - batch["attitude"]).square().sum((1, 2)).add(1e-8).sqrt().mean()
    s_p, s_a = out["log_variances"].unbind()
    total = place * torch.exp(-s_p) + s_p + attitude * torch.exp(-s_a) + s_a
    return total, {"place": place.detach(), "attitude": attitude.detach()}


def _answer_regressor(net: nn.Module, target: Target, pictures: Pictures, _: Any) -> Answer:
    parts = list(_outputs(net, pictures))
    place, attitude = (torch.cat([p[k] for p in parts]).double().numpy() for k in ("place", "attitude"))
    return _viewed(target, pictures, place, attitude)


def _viewed(target: Target, pictures: Pictures, place: Array, attitude: Array) -> Answer:
    pose = from_view(place, attitude, pictures.camera, target)
    return Answer(pose, _middle(pose, target), np.ones(len(pictures), bool))


def _middle(pose: Pose, target: Target) -> Array:
    return pose.apply(target.centre[None])[..., 0, :]


# Where and how far


def _docking(target: Target, training: Pictures) -> nn.Module:
    logs = to_view(training.pose, training.camera, target)[0][:, 2]
    return DockingNet(**_LITE0, log_distance=(float(logs.mean()), max(float(logs.std()), 0.02)))


def _docking_targets(target: Target, pictures: Pictures) -> dict[str, NDArray[Any]]:
    place, _ = to_view(pictures.pose, pictures.camera, target)
    location = pictures.camera.project(pictures.pose.apply(target.centre[None]))[:, 0]
    zero = np.zeros(len(pictures), np.float32)
    return {
        "location_px": location.astype(np.float32), "distance": np.exp(place[:, 2]).astype(np.float32),
        "radius2": zero,
    }  # fmt: skip


def _answer_docking(net: nn.Module, target: Target, pictures: Pictures, _: Any) -> Answer:
    parts = list(_outputs(net, pictures))
    location = torch.cat([read_docking(p)[0] for p in parts]).numpy()
    logs = torch.cat([p["log_distance"] for p in parts]).double().numpy()
    turns, focal = view_of(pictures.camera)
    rays = pictures.camera.unproject(location[:, None])[:, 0]
    seen = (turns.mT @ rays[..., None])[..., 0]
    place = np.column_stack([seen[:, :2] / seen[:, 2:] * focal[:, None], logs])
    upright = np.broadcast_to(np.eye(3), (len(pictures), 3, 3))
    pose = from_view(place, upright, pictures.camera, target)
    unknown = Pose(np.full_like(pose.R, np.nan), np.full_like(pose.t, np.nan))
    return Answer(unknown, _middle(pose, target), np.ones(len(pictures), bool))


LEARNED: dict[str, Learned] = {
    "heatmaps + PnP": Learned(
        lambda target, training: UNet(len(target.keypoints), dense=True, **_LITE0),
        _keypoint_targets, keypoint_loss, _answer_keypoints, prepare=_calibrate,
    ),
    "direct regression": Learned(
        lambda target, training: PoseRegressor(training.size),
        _regressor_targets, regressor_loss, _answer_regressor, 5e-4,
    ),
    "PoseNet": Learned(
        _posenet, _posenet_targets,
        lambda out, batch: posenet_loss(out, batch, PoseLossOptions("learned")), _answer_posenet,
    ),
    "place and distance": Learned(
        _docking, _docking_targets, docking_loss, _answer_docking, attitude=False,
    ),
}  # fmt: skip
"""The methods that train, by name."""

RETRIEVAL, CEILING = "nearest training view", "PnP from true keypoints"


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Training views by what they look like: answers with the place and attitude of the one most alike.

    A picture is described by the ImageNet features of Lite0 at stride 16, averaged over it, as photographs are by
    `data.cambridge.retrieve`; alike are those with the largest cosine, the mean of the training views being zero.
    """

    net: nn.Module
    known: NDArray[np.float32]
    place: Array
    attitude: Array

    @classmethod
    def of(cls, target: Target, training: Pictures) -> Retrieval:
        """The views of a training set, described once."""
        net = _Described(Encoder(pretrained=True, depth=11))
        return cls(net, _described(net, training), *to_view(training.pose, training.camera, target))

    def first(self, count: int) -> Retrieval:
        """The first `count` views."""
        return Retrieval(self.net, self.known[:count], self.place[:count], self.attitude[:count])

    def answer(self, target: Target, pictures: Pictures) -> Answer:
        """The poses (N,) of pictures."""
        mean = self.known.mean(0)
        asked, known = _described(self.net, pictures) - mean, self.known - mean
        best = (asked @ (known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)).T).argmax(1)
        return _viewed(target, pictures, self.place[best], self.attitude[best])


class _Described(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, 112) averaged features of pictures (B, 3, S, S)."""
        return self.encoder.up_to(16, x).mean((2, 3))


def _described(net: nn.Module, pictures: Pictures) -> NDArray[np.float32]:
    return np.asarray(torch.cat(list(_outputs(net, pictures))).numpy(), np.float32)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


@torch.inference_mode()
def _outputs(net: nn.Module, pictures: Pictures) -> Any:
    """What the network says, batch by batch, float32 on the CPU."""
    net.eval()
    for start in range(0, len(pictures), _BATCH):
        image = torch.from_numpy(pictures["image"][start : start + _BATCH]).to(_device(net)).float().div_(255)
        out = net(image.contiguous(memory_format=torch.channels_last))
        yield {k: v.float().cpu() for k, v in out.items()} if isinstance(out, Mapping) else out.float().cpu()
