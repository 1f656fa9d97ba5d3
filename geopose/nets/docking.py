"""DockingNet: where the station is and how far away, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.geometry.heatmap import soft_argmax
from geopose.nets.backbone import (
    ConvNorm,
    Encoder,
    channels_last,
    check_picture,
    checked_options,
    mixed_precision,
)
from geopose.nets.losses import STRIDE as HEATMAP_STRIDE
from geopose.nets.losses import cells_from_px, keypoint_loss, posterior_covariance

STRIDE = 8
"""Input pixels per heatmap cell; cell i is centred on pixel `(i + 0.5) * STRIDE - 0.5`."""

_SIGMA = 1.0  # cells, of the Gaussian target
_WINDOW = 3.0  # cells, of the soft-argmax
_AROUND = (1, 3, 7)  # cells of stride 16, sides of the surroundings in which the distance is read
_BEND = 0.5  # to start with: what a field of view of 45 degrees asks for, see `DockingNet`
_BETA = 0.5


class DockingNet(nn.Module):
    """A heatmap of the location at an eighth of the picture's size, and the logarithm of the distance.

    Args:
        pretrained: ImageNet weights in the encoder.
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) are not trained.
        frozen_5x5: the encoder's 5x5 depthwise filters are not trained; see `Encoder`.
        width: channels of the decoder.
        log_distance: mean and standard deviation of the logarithm of the distances to be learned.
        bfloat16: train the decoder in bfloat16 on processors that multiply it in hardware; evaluation stays float32.
    Notes:
        The distance is read where the heatmap looks: the decoder's maps are averaged with the heatmap's probabilities
        as weights, narrow and blurred, and joined to the mean of the coarsest map over the picture: what fills which
        surroundings tells the size. `bend` is one number for all pictures: how much farther than it seems a station is
        that stands off the picture's middle, where a pinhole shows things larger. At an angle a from the axis the
        area shown is as at the distance d cos(a)^1.5, and log(cos(a)^-1.5) is 0.75 r^2 / f^2 at first. So no focal
        length f need be known.
    """

    def __init__(
        self, pretrained: bool = False, *, frozen_stride: int = 0, frozen_5x5: bool = False, width: int = 96,
        log_distance: tuple[float, float] = (5.4, 0.55), bfloat16: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options = {
            "pretrained": False, "frozen_stride": frozen_stride, "frozen_5x5": frozen_5x5, "width": width,
            "log_distance": [float(v) for v in log_distance], "bfloat16": bfloat16,
        }  # fmt: skip
        self.mixed = bfloat16
        self.middle, self.spread = (float(v) for v in log_distance)
        if not self.spread > 0:
            raise ValueError(f"log_distance: got {log_distance}, expected (mean, standard deviation > 0)")
        self.encoder = Encoder(pretrained, depth=13, frozen_stride=frozen_stride, frozen_5x5=frozen_5x5)
        channels = self.encoder.channels
        self.join = nn.ModuleList(
            (ConvNorm(channels[32] + channels[16], width, 3), ConvNorm(width + channels[8], width, 3))
        )
        self.head = nn.Conv2d(width, 1, 1)
        self.distance = nn.Sequential(
            nn.Linear((1 + len(_AROUND)) * width + channels[32], 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 2),
        )
        self.bend = nn.Parameter(torch.full((1,), _BEND))
        channels_last(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits and distances of pictures.

        Args:
            x: (B, 3, H, W) RGB in [0, 1] (or uint8), H and W multiples of 32.
        Returns:
            `heatmaps` (B, 1, H/8, W/8) logits; `log_distance` (B,), as it would be in the middle of the whole picture;
            `log_scale` (B,), the logarithm of the scale of its Laplace distribution; `bend` (B,), to be added to
            `log_distance` for each unit of squared distance from the middle, in sides of the picture.
        Raises:
            ValueError: on another shape.
        """
        check_picture(x, 32)
        features = self.encoder(x)
        with mixed_precision(self.mixed and self.training):
            coarse = self.join[0](torch.cat((_doubled(features[32]), features[16]), 1))
            fine = self.join[1](torch.cat((_doubled(coarse), features[8]), 1))
        heatmaps = self.head(fine.float())
        look = heatmaps.detach().flatten(1).softmax(-1).view_as(heatmaps)
        look_coarse = F.avg_pool2d(look, 2) * 4.0
        seen = [(fine.float() * look).sum((2, 3)), features[32].float().mean((2, 3))]
        for cells in _AROUND:
            weight = F.avg_pool2d(look_coarse, cells, 1, cells // 2)
            seen.append((coarse.float() * weight).sum((2, 3)))
        raw = self.distance(torch.cat(seen, 1))
        log_scale = raw[:, 1].clamp(-6.0, 2.0) + torch.tensor(self.spread).log()
        return {
            "heatmaps": heatmaps,
            "log_distance": self.middle + self.spread * raw[:, 0],
            "log_scale": log_scale,
            "bend": self.bend.float().expand(len(x)),
        }


def build_docking(options: Mapping[str, Any], weights: bool = True) -> DockingNet:
    """The network that `options` (JSON-able, any argument of `DockingNet`) describe.

    weights: False never looks for pretrained weights: to load a checkpoint into it.
    """
    return DockingNet(**checked_options(options, DockingNet, weights))


def read_docking(out: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Location (B, 2) and its covariance (B, 2, 2), pixels of the input, of what `DockingNet` returns."""
    mean, cov, _ = soft_argmax(out["heatmaps"].double(), _WINDOW)
    location = (mean[:, 0] + 0.5) * STRIDE - 0.5
    return location, STRIDE**2 * posterior_covariance(cov[:, 0], _SIGMA)


def docking_loss(
    out: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss (a scalar with gradient) and its parts (detached, unweighted).

    Args:
        out: what `DockingNet` returns.
        targets: collated items of `DockingDataset`: `location_px` (B, 2) pixels of the input, `distance` (B,),
            `radius2` (B,).
    Raises:
        ValueError: on shapes that do not match.
    Notes:
        The location learns as a keypoint does (`keypoint_loss`: the spatial softmax against a Gaussian, and the
        likelihood of its mean). The logarithm of the distance has a Laplace likelihood, |e| / b + log 2b, weighted by
        b^0.5 held fixed: else what is hard is given up early (Seitzer et al., "On the pitfalls of heteroscedastic
        uncertainty estimation", ICLR 2022, eq. 4).
    """
    location, distance = targets["location_px"].float(), targets["distance"].float()
    heatmaps = out["heatmaps"]
    if location.shape != (len(heatmaps), 2) or distance.shape != (len(heatmaps),):
        raise ValueError(
            f"location_px, distance: got {tuple(location.shape)}, {tuple(distance.shape)} beside heatmaps "
            f"{tuple(heatmaps.shape)}, expected (B, 2), (B,) beside (B, 1, H, W)"
        )
    cells = cells_from_px(location, STRIDE)
    height, width = heatmaps.shape[2:]
    inside = ((cells > -0.5) & (cells < cells.new_tensor([width, height]) - 0.5)).all(-1)
    point_targets = {
        "keypoints_px": ((cells + 0.5) * HEATMAP_STRIDE - 0.5)[:, None, None],
        "inside": inside[:, None, None],
    }
    heat, parts = keypoint_loss({"heatmaps": heatmaps}, point_targets)
    log_distance = out["log_distance"].float() + out["bend"].float() * targets["radius2"].float()
    error = (log_distance - distance.log()).abs()
    log_b = out["log_scale"].float()
    nll = error * torch.exp(-log_b) + log_b
    far = (nll * torch.exp(_BETA * log_b).detach()).mean()
    total = heat + 4.0 * far
    parts |= {"distance": error.mean().detach(), "distance_nll": nll.mean().detach(), "total": total.detach()}
    return total, parts


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")
