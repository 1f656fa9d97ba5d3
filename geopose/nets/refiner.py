"""Refiner: where each seen point of a predicted picture really lies in the photograph, and what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.nets.backbone import ConvNorm, Encoder, channels_last, checked_options, mixed_precision

STRIDE = 4
"""Crop pixels per output cell."""

_DEPTH = 11  # of the encoder: to stride 16
_LOG_B = (-4.0, 3.0)  # cells, smallest and largest
_LOG_WORTH = 3.0  # most, either way
CHANNELS = 6
_INDEPENDENT = (
    24.0  # cells that the neighbouring, like-minded cells of a flow are worth, before anything is learned
)


class Refiner(nn.Module):
    """The flow from a rendering at a guessed pose to the photograph, with its uncertainty.

    Args:
        pretrained: ImageNet weights in the encoder.
        frozen_stride: encoder layers up to this stride (0, 2, 4) are not trained.
        frozen_5x5: the encoder's 5x5 depthwise filters are not trained; see `Encoder`.
        widths: channels where both pictures meet, and of the decoder at strides 8 and 4.
        bfloat16: train the decoder, and evaluate all of it, in bfloat16 on processors that multiply it in hardware.
    Notes:
        Render and compare: Li et al., "DeepIM", ECCV 2018; flow in place of a pose: Hu et al., "Perspective Flow
        Aggregation", ECCV 2022. Both pictures go through the same first layers, as in FlowNetC (Dosovitskiy et al.,
        ICCV 2015), and on together.
    """

    def __init__(
        self,
        pretrained: bool = False,
        *,
        frozen_stride: int = 0,
        frozen_5x5: bool = False,
        widths: Sequence[int] = (64, 96, 64),
        bfloat16: bool = True,
    ) -> None:
        super().__init__()
        if frozen_stride > STRIDE:
            raise ValueError(f"frozen_stride: got {frozen_stride!r}, expected 0, 2 or 4")
        self.options = {
            "pretrained": False, "frozen_stride": frozen_stride, "frozen_5x5": frozen_5x5, "widths": list(widths),
            "bfloat16": bfloat16,
        }  # fmt: skip
        self.mixed = bfloat16
        self.encoder = Encoder(pretrained, depth=_DEPTH, frozen_stride=frozen_stride, frozen_5x5=frozen_5x5)
        channels, meet = self.encoder.channels, widths[0]
        self.meet = ConvNorm(2 * channels[4] + 4, meet, 3)
        self.enter = nn.Conv2d(meet, channels[4], 1)
        self.join = nn.ModuleList(
            (ConvNorm(channels[16] + channels[8], widths[1], 3), ConvNorm(widths[1] + meet, widths[2], 3))
        )
        self.last = ConvNorm(widths[2], widths[2], 3)
        self.head = nn.Conv2d(widths[2], CHANNELS, 1)
        with torch.no_grad():  # at first every cell is worth what its flow's uncertainty says
            for parameter in self.head.parameters():
                parameter[3:] = 0
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Flow and uncertainty in every cell.

        Args:
            x: (B, 9, S, S) in [0, 1], S a multiple of 16: RGB of the photograph, then the six channels of a
                `Guide`'s picture.
        Returns:
            (B, 6, S/4, S/4): x and y of the flow, in cells; the logarithm of the scale b of the Laplace distribution
            of each of them, in cells; and what the cell is worth to the pose, see `information`.
        Raises:
            ValueError: on another shape.
        """
        if x.ndim != 4 or x.shape[1] != 9 or any(size % 16 or size == 0 for size in x.shape[2:]):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, 9, S, S) with S a multiple of 16")
        with mixed_precision(self.mixed and not self.training):
            both = self.encoder.up_to(STRIDE, torch.cat((x[:, :3], x[:, 3:6])))
        seen, drawn = both.chunk(2)
        place = x[:, 6:, 1::STRIDE, 1::STRIDE]
        mask = (place > 0).any(1, keepdim=True).to(x.dtype)
        with mixed_precision(self.mixed):
            met = self.meet(torch.cat((seen, drawn, (2 * place - 1) * mask, mask), 1))
        with mixed_precision(self.mixed and not self.training):
            features = self.encoder.beyond(STRIDE, seen + self.enter(met.float()))
        with mixed_precision(self.mixed):
            y = features[16]
            for join, fine in zip(self.join, (features[8], met), strict=True):
                y = join(torch.cat((F.interpolate(y, scale_factor=2.0, mode="bilinear"), fine), 1))
            y = self.last(y)
        out = self.head(y.float())
        low, high = _LOG_B
        log_b = low + (high - low) * torch.sigmoid((out[:, 2:3] - 0.5) * (4.0 / (high - low)))
        worth = _LOG_WORTH * torch.tanh(out[:, 3:] / _LOG_WORTH)
        return torch.cat((out[:, :2], log_b, worth), 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("head.weight", "head.bias"):  # of a refiner that learned flow alone
            old = state_dict.get(prefix + name)
            if old is not None and len(old) == 3:
                state_dict[prefix + name] = torch.cat((old, torch.zeros_like(old)))
        super()._load_from_state_dict(state_dict, prefix, *args)


def information(out: Tensor, drawn: Tensor) -> Tensor:
    """(B, 3, M) the entries 00, 10, 11 of the lower triangular W of each cell: W'W is its weight in the least squares
    of the pose, per squared cell; zero where nothing is drawn.

    Args:
        out: (B, 6, M) of a `Refiner`. drawn: (B, M), 1 where the guide shows the object.
    Notes:
        The last three channels say how the weight differs from 1 / (2 b^2), shared among neighbours of like mind:
        the logarithms of W's diagonal, and its lower entry over 1 / b. Unlike b they are learned from the pose that
        comes of them. Weights learned through the solver: Teed and Deng, "DROID-SLAM", NeurIPS 2021; Lipson et al.,
        "Coupled Iterative Refinement", CVPR 2022.
    """
    share = (2.0 * (drawn.sum(1, keepdim=True) / _INDEPENDENT).clamp_min(1.0)).rsqrt()
    unit = torch.exp(-out[:, 2]) * share * drawn
    return torch.stack((unit * out[:, 3].exp(), unit * out[:, 4], unit * out[:, 5].exp()), 1)


def build_refiner(options: Mapping[str, Any], weights: bool = True) -> Refiner:
    """The refiner that `options` (JSON-able, any argument of `Refiner`) describe.

    weights: False never looks for pretrained weights: to load a checkpoint into it.
    """
    return Refiner(**checked_options(options, Refiner, weights))
