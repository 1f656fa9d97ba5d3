"""U-Net: a Lite0 encoder, a light decoder to stride 4, heads for heatmaps, mask and object coordinates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.nets.backbone import CHANNELS, ConvNorm, Encoder, mixed_precision


class UNet(nn.Module):
    """One heatmap of logits per keypoint at a quarter of the crop's size.

    Args:
        num_keypoints: K, the number of heatmaps.
        pretrained: ImageNet weights in the encoder (needs `geopose[pretrained]`).
        dense: also predict the visible mask and the object coordinates; they help learning and cost little.
        folded: the encoder has no normalisation (what `pretrained` leads to), to load a checkpoint into.
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) are not trained.
        widths: channels of the decoder at strides 32, 16, 8 and 4.
        bfloat16: train the decoder in bfloat16 on processors that multiply it in hardware; evaluation is float32.
    Notes:
        Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015, with the added (not concatenated) laterals of Lin et al.,
        "Feature Pyramid Networks", CVPR 2017. At stride 32 the mean over the picture is added to every cell, so that
        each heatmap can know the whole object.
    """

    def __init__(
        self, num_keypoints: int, pretrained: bool = False, dense: bool = True, *, folded: bool = False,
        frozen_stride: int = 0, widths: tuple[int, int, int, int] = (128, 128, 96, 64), bfloat16: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_keypoints < 1:
            raise ValueError(f"num_keypoints: got {num_keypoints!r}, expected at least 1")
        self.options = {
            "kind": "unet", "num_keypoints": num_keypoints, "pretrained": False, "dense": dense,
            "folded": pretrained or folded, "frozen_stride": frozen_stride, "widths": list(widths), "bfloat16": bfloat16,
        }  # fmt: skip
        self.num_keypoints, self.dense, self.bfloat16 = num_keypoints, dense, bfloat16
        self.encoder = Encoder(pretrained, folded=folded, frozen_stride=frozen_stride)
        w32, w16, w8, w4 = widths
        self.lateral = nn.ModuleList(nn.Conv2d(CHANNELS[s], w, 1) for s, w in zip((32, 16, 8, 4), widths, strict=True))
        self.context = nn.Linear(w32, w32)
        self.smooth = nn.ModuleList(ConvNorm(w, w, 3) for w in widths)
        self.narrow = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity() for a, b in ((w32, w16), (w16, w8), (w8, w4))
        )
        self.head = nn.Conv2d(w4, num_keypoints + (4 if dense else 0), 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

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
        with mixed_precision(self.bfloat16 and self.training):
            y = self._decode(features)
        maps = self.head(y.float())
        out = {"heatmaps": maps[:, : self.num_keypoints]}
        if self.dense:
            out["mask"] = maps[:, self.num_keypoints : self.num_keypoints + 1]
            out["xyz"] = maps[:, self.num_keypoints + 1 :]
        return out

    def _decode(self, features: dict[int, Tensor]) -> Tensor:
        y = self.lateral[0](features[32])
        y = y + self.context(F.relu(y).mean((2, 3)))[:, :, None, None]
        y = self.smooth[0](y)
        for level, stride in enumerate((16, 8, 4), start=1):
            y = F.interpolate(self.narrow[level - 1](y), scale_factor=2.0, mode="nearest")
            y = self.smooth[level](y + self.lateral[level](features[stride]))
        return y


def check_picture(x: Tensor, multiple: int) -> None:
    """Raise ValueError unless `x` is (B, 3, H, W) with H and W positive multiples of `multiple`."""
    if x.ndim != 4 or x.shape[1] != 3 or any(size % multiple or size == 0 for size in x.shape[2:]):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, 3, H, W) with H and W multiples of {multiple}")
