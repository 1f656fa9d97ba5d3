"""U-Net: a Lite0 (or B0) encoder, a light decoder to stride 4, heads for heatmaps, mask and object coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from geopose.nets.hourglass import Hourglass


class UNet(nn.Module):
    """One heatmap of logits per keypoint at a quarter of the crop's size.

    Args:
        num_keypoints: K, the number of heatmaps.
        pretrained: ImageNet weights in the encoder.
        dense: also predict the visible mask and the object coordinates; they help learning and cost little.
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) are not trained.
        frozen_5x5: the encoder's 5x5 depthwise filters are not trained; see `Encoder`.
        widths: channels of the decoder at strides 16, 8 and 4.
        bfloat16: train the decoder in bfloat16 on processors that multiply it in hardware; evaluation stays
            float32.
        encoder: "lite0" or "b0"; see `Encoder`.
    Notes:
        Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015. The encoder's maps are joined to the decoder's, not added:
        added, they drown what comes from the coarse maps, and learning takes several times as long (measured by
        `benchmarks/learning_speed.py`).
    """

    def __init__(
        self, num_keypoints: int, pretrained: bool = False, dense: bool = True, *,
        frozen_stride: int = 0, frozen_5x5: bool = False, widths: Sequence[int] = (128, 96, 64),
        bfloat16: bool = True, encoder: str = "lite0",
    ) -> None:  # fmt: skip
        super().__init__()
        if num_keypoints < 1:
            raise ValueError(f"num_keypoints: got {num_keypoints!r}, expected at least 1")
        self.options = {
            "kind": "unet", "num_keypoints": num_keypoints, "pretrained": False, "dense": dense,
            "frozen_stride": frozen_stride, "frozen_5x5": frozen_5x5, "widths": list(widths), "bfloat16": bfloat16,
            "encoder": encoder,
        }  # fmt: skip
        self.num_keypoints, self.dense, self.mixed = num_keypoints, dense, bfloat16
        self.encoder = Encoder(pretrained, frozen_stride=frozen_stride, frozen_5x5=frozen_5x5, kind=encoder)
        channels = self.encoder.channels
        coarser = (channels[32], *widths)
        sizes = zip((16, 8, 4), coarser, widths, strict=False)
        self.join = nn.ModuleList(ConvNorm(below + channels[stride], w, 3) for stride, below, w in sizes)
        self.last = ConvNorm(widths[-1], widths[-1], 3)
        self.head = nn.Conv2d(widths[-1], num_keypoints + (4 if dense else 0), 1)
        channels_last(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits and maps of crops.

        Args:
            x: (B, 3, S, S) RGB in [0, 1] (or uint8), S a multiple of 32.
        Returns:
            `heatmaps` (B, K, S/4, S/4) logits; with dense also `mask` (B, 1, S/4, S/4) logits and `xyz`
            (B, 3, S/4, S/4), object coordinates scaled to the bounding box in [-1, 1].
        Raises:
            ValueError: on another shape.
        """
        check_picture(x, 32)
        features = self.encoder(x)
        with mixed_precision(self.mixed and self.training):
            y = features[32]
            for join, stride in zip(self.join, (16, 8, 4), strict=True):
                y = join(
                    torch.cat((F.interpolate(y, scale_factor=2.0, mode="bilinear"), features[stride]), 1)
                )
            y = self.last(y)
        maps = self.head(y.float())
        out = {"heatmaps": maps[:, : self.num_keypoints]}
        if self.dense:
            out["mask"] = maps[:, self.num_keypoints : self.num_keypoints + 1]
            out["xyz"] = maps[:, self.num_keypoints + 1 :]
        return out


def build_keypoint_net(options: Mapping[str, Any], weights: bool = True) -> UNet | Hourglass:
    """The keypoint network that `options` describe.

    Args:
        options: JSON-able; `kind` ("unet" or "hourglass"), `num_keypoints`, and any argument of `UNet` or
            `Hourglass`. A network's own `.options` rebuild its architecture.
        weights: False never looks for pretrained weights: to load a checkpoint into it.
    Raises:
        ValueError: on an unknown kind or option, or `num_keypoints` missing.
    """
    rest = dict(options)
    kinds: dict[str, Callable[..., UNet | Hourglass]] = {"unet": UNet, "hourglass": Hourglass}
    kind = rest.pop("kind", "unet")
    if kind not in kinds:
        raise ValueError(f"kind: got {kind!r}, expected one of {sorted(kinds)}")
    if "num_keypoints" not in rest:
        raise ValueError(f"options: got {sorted(rest)}, expected num_keypoints among them")
    return kinds[kind](**checked_options(rest, kinds[kind], weights))
