"""Stacked hourglass: repeated bottom-up, top-down networks with a heatmap head after each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.nets.backbone import channels_last, check_picture, mixed_precision


class Hourglass(nn.Module):
    """One heatmap per keypoint from each of `stacks` hourglasses; the last is the answer, all are trained.

    Args:
        num_keypoints: K, the number of heatmaps.
        stacks: number of hourglasses; the paper uses 8, two give most of it.
        features: channels; the paper uses 256, half of it trains in a fraction of the time.
        depth: times the map is halved inside a hourglass (64 -> 4 at the paper's 4).
        bfloat16: train in bfloat16 on processors that multiply it in hardware; evaluation is float32.
    Notes:
        Newell, Yang, Deng, "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016, figures 2-4.
    """

    def __init__(
        self, num_keypoints: int, stacks: int = 2, *, features: int = 128, depth: int = 4,
        bfloat16: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {"num_keypoints": num_keypoints, "stacks": stacks, "features": features, "depth": depth}
        for name, value in sizes.items():
            least = 4 if name == "features" else 1
            if value < least:
                raise ValueError(f"{name}: got {value!r}, expected at least {least}")
        self.options = {"kind": "hourglass", **sizes, "bfloat16": bfloat16}
        self.mixed = bfloat16
        self.stem = nn.Sequential(
            nn.Conv2d(3, features // 4, 7, 2, 3, bias=False), nn.BatchNorm2d(features // 4),
            nn.ReLU(inplace=True), _Residual(features // 4, features // 2), nn.MaxPool2d(2),
            _Residual(features // 2, features // 2), _Residual(features // 2, features),
        )  # fmt: skip
        self.hourglasses = nn.ModuleList(_HourglassModule(features, depth) for _ in range(stacks))
        self.neck = nn.ModuleList(
            nn.Sequential(_Residual(features, features), nn.Conv2d(features, features, 1, bias=False),
                          nn.BatchNorm2d(features), nn.ReLU(inplace=True))
            for _ in range(stacks)
        )  # fmt: skip
        self.head = nn.ModuleList(nn.Conv2d(features, num_keypoints, 1) for _ in range(stacks))
        self.back_features = nn.ModuleList(nn.Conv2d(features, features, 1) for _ in range(stacks - 1))
        self.back_heatmaps = nn.ModuleList(nn.Conv2d(num_keypoints, features, 1) for _ in range(stacks - 1))
        channels_last(self)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Heatmaps of crops.

        Args:
            x: (B, 3, S, S) RGB in [0, 1] (or uint8), S a multiple of 32; 256 in the paper.
        Returns:
            `stacks`, a list of (B, K, S/4, S/4), and `heatmaps`, the last of them.
        Raises:
            ValueError: on another shape.
        """
        check_picture(x, 32)
        x = x.float() / 255.0 if x.dtype == torch.uint8 else x
        x = ((x - 0.5) * 4.0).contiguous(memory_format=torch.channels_last)
        stacks: list[Tensor] = []
        with mixed_precision(self.mixed and self.training):
            y = self.stem(x)
            for index, hourglass in enumerate(self.hourglasses):
                z = self.neck[index](hourglass(y))
                heatmaps = self.head[index](z)
                stacks.append(heatmaps.float())
                if index + 1 < len(self.hourglasses):
                    y = y + self.back_features[index](z) + self.back_heatmaps[index](heatmaps)
        return {"heatmaps": stacks[-1], "stacks": stacks}


class _Residual(nn.Module):
    """Pre-activated bottleneck residual: 1x1 to half, 3x3, 1x1."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        mid = max(1, c_out // 2)
        layers: list[nn.Module] = []
        for a, b, kernel in ((c_in, mid, 1), (mid, mid, 3), (mid, c_out, 1)):
            conv = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
            layers += [nn.BatchNorm2d(a), nn.ReLU(inplace=True), conv]
        self.body = nn.Sequential(*layers)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The residual's feature map, of the size of `x`."""
        return self.skip(x) + self.body(x)


class _HourglassModule(nn.Module):
    """One hourglass: a skip branch, and below it the same at half the size, `depth` times."""

    def __init__(self, features: int, depth: int) -> None:
        super().__init__()
        self.skip = _Residual(features, features)
        self.down = _Residual(features, features)
        inner = _HourglassModule(features, depth - 1) if depth > 1 else _Residual(features, features)
        self.inner: nn.Module = inner
        self.up = _Residual(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map, of the shape of `x`."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2, ceil_mode=True))))
        low = F.interpolate(low, scale_factor=2.0, mode="nearest")
        return self.skip(x) + low[..., : x.shape[-2], : x.shape[-1]]
