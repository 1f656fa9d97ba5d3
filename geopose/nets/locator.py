"""Locator: where in the whole picture the object is, and how large, without anchors or boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.nets.backbone import (
    ConvNorm,
    Encoder,
    channels_last,
    check_picture,
    checked_options,
    mixed_precision,
)

STRIDE = 8
"""Input pixels per output cell; cell i is centred on pixel `(i + 0.5) * STRIDE - 0.5`."""

SIZE_UNIT_PX = 32.0
"""The size whose logarithm is zero."""


class Locator(nn.Module):
    """A map of object centres with size, offset and visibility at each, fully convolutional.

    Args:
        pretrained: ImageNet weights in the encoder.
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) are not trained.
        frozen_5x5: the encoder's 5x5 depthwise filters are not trained; see `Encoder`.
        width: channels of the decoder.
        bfloat16: on processors that multiply it in hardware, train the decoder and evaluate all in bfloat16: it takes
            half the time, and moves places by 0.2 % of the object's size.
    Notes:
        Zhou, Wang, Kraehenbuehl, "Objects as Points", 2019, on EfficientNet-Lite0.
    """

    def __init__(
        self,
        pretrained: bool = False,
        *,
        frozen_stride: int = 0,
        frozen_5x5: bool = False,
        width: int = 80,
        bfloat16: bool = True,
    ) -> None:
        super().__init__()
        self.options = {
            "pretrained": False, "frozen_stride": frozen_stride, "frozen_5x5": frozen_5x5, "width": width,
            "bfloat16": bfloat16,
        }  # fmt: skip
        self.mixed = bfloat16
        self.encoder = Encoder(pretrained, depth=13, frozen_stride=frozen_stride, frozen_5x5=frozen_5x5)
        channels = self.encoder.channels
        self.join = nn.ModuleList(
            (ConvNorm(channels[32] + channels[16], width, 3), ConvNorm(width + channels[8], width, 3))
        )
        self.last = ConvNorm(width, width, 3)
        self.head = nn.Conv2d(width, 5, 1)
        with torch.no_grad():  # the rare positive: Lin et al., "Focal Loss", ICCV 2017, section 3.3
            self.head.get_parameter("bias")[:2] = torch.tensor([-4.0, 1.0])
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Five maps of a picture.

        Args:
            x: (B, 3, H, W) RGB in [0, 1] (or uint8), H and W multiples of 8.
        Returns:
            (B, 5, H/8, W/8): centre logit, log2(size / 32 px), offset x and y from the cell's centre in input
            pixels, logit of the visible fraction. The size is the diagonal of the amodal box over sqrt(2).
        Raises:
            ValueError: on another shape.
        """
        check_picture(x, STRIDE)
        with mixed_precision(self.mixed and not self.training):
            features = self.encoder(x)
        with mixed_precision(self.mixed):
            y = features[32]
            for join, stride in zip(self.join, (16, 8), strict=True):
                fine = features[stride]
                y = F.interpolate(y, scale_factor=2.0, mode="bilinear")[
                    ..., : fine.shape[-2], : fine.shape[-1]
                ]
                y = join(torch.cat((y, fine), 1))
            y = self.last(y)
        out = self.head(y.float())
        return torch.cat((out[:, :2], out[:, 2:4] * STRIDE, out[:, 4:]), 1)


def build_locator(options: Mapping[str, Any], weights: bool = True) -> Locator:
    """The locator that `options` (JSON-able, any argument of `Locator`) describe.

    weights: False never looks for pretrained weights: to load a checkpoint into it.
    """
    return Locator(**checked_options(options, Locator, weights))


def decode(out: Tensor, top: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (B, top, 2) and sizes (B, top) in input pixels, and scores (B, top) in [0, 1], best first.

    Args:
        out: (B, 5, H, W), what `Locator` returns.
        top: how many local maxima (of 3x3 cells) to return; where a picture has fewer, the rest have score 0.
    Raises:
        ValueError: on another shape, or `top` not between 1 and the number of cells.
    """
    if out.ndim != 4 or out.shape[1] != 5:
        raise ValueError(f"out: got shape {tuple(out.shape)}, expected (B, 5, H, W)")
    width = out.shape[-1]
    if not 1 <= top <= out.shape[-2] * width:
        raise ValueError(f"top: got {top!r}, expected 1 to {out.shape[-2] * width}")
    score = out[:, :1].sigmoid()
    peak = score * (F.max_pool2d(score, 3, 1, 1) == score)
    best, index = peak.flatten(1).topk(top, dim=1)
    values = out.flatten(2).gather(2, index[:, None, :].expand(-1, 5, -1))
    cells = torch.stack((index % width, index // width), -1)
    centres_px = (cells + 0.5) * STRIDE - 0.5 + values[:, 2:4].mT
    return centres_px, SIZE_UNIT_PX * torch.exp2(values[:, 1]), best
