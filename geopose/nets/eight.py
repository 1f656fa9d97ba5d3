"""Convolutions in eight bits, to evaluate networks on processors that multiply bytes in hardware."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from geopose.nets.backbone import Block, ConvNorm, Encoder

_UNIT = 6 / 255  # what a byte between two layers is worth: ReLU6
_MIDDLE = 128  # the byte that stands for zero in what may be negative
_SHAPES = 12  # of pictures, whose packed weights are kept
_PIXEL, _GREY = 1 / 128, 127  # what a pixel's byte is worth to the encoder, and which stands for zero


@cache
def has_fast_bytes() -> bool:
    """True where this processor multiplies bytes in hardware (AMX or AVX512-VNNI) and torch can, looked up once."""
    checks = ("_is_amx_tile_supported", "_is_vnni_supported", "_is_avx512_vnni_supported")  # old names, too
    able = all(hasattr(torch.ops.onednn, name) for name in ("qconv2d_pointwise", "qconv_prepack"))
    return able and any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


class _Bytes(nn.Module):
    """A folded convolution of bytes, with weights of a byte each, scaled by output channel; `zero`: the byte that
    stands for zero in what it is given."""

    def __init__(self, layer: ConvNorm, zero: int) -> None:
        super().__init__()
        conv = layer.conv
        assert isinstance(conv.bias, Tensor), "folded"
        weight = conv.weight.detach().float()
        self.step = (weight.flatten(1).abs().amax(1) / 127).clamp_min(1e-30)
        self.whole = torch.round(weight / self.step.view(-1, 1, 1, 1)).to(torch.int8)
        self.where = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        # The weights as pictures of a size and a number of threads want them; others would be packed at each call.
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self.bias, self.zero = nn.Parameter(conv.bias.detach().float(), requires_grad=False), zero
        self.none = torch.zeros(len(weight), dtype=torch.int32)
        self.act = "relu" if isinstance(layer.act, nn.ReLU) else "none"

    def forward(self, x: Tensor, scale: float, out_scale: float | None = None) -> Tensor:
        """float32, or bytes that are worth `out_scale` each, cut off at 0 and 255; x: bytes worth `scale` each."""
        case = (torch.get_num_threads(), *x.shape)
        if case not in self.packed:
            if len(self.packed) >= _SHAPES:
                self.packed.clear()
            pack = torch.ops.onednn.qconv_prepack
            self.packed[case] = pack(self.whole, self.step, scale, self.zero, *self.where, list(x.shape))
        kind, worth = (torch.float32, 1.0) if out_scale is None else (torch.uint8, out_scale)
        return torch.ops.onednn.qconv2d_pointwise(
            x, scale, self.zero, self.packed[case], self.step, self.none, self.bias, *self.where, worth, 0, kind,
            self.act, [], "",
        )  # fmt: skip


def _as_bytes(x: Tensor, scale: float | None = None, zero: int = _MIDDLE) -> tuple[Tensor, float]:
    """(B, C, H, W) values as bytes around `zero`, channels last, and what one is worth: `scale`, or else what the
    largest value asks for."""
    values = x.permute(0, 2, 3, 1).contiguous()
    flat = values.view(-1, values.shape[-1] * values.shape[-2]).numpy()
    if scale is None:
        scale = max(float(cv2.norm(flat, cv2.NORM_INF)) / 127, 1e-30)
    whole = cv2.convertScaleAbs(flat, alpha=1 / scale, beta=zero)
    return torch.from_numpy(whole).view(values.shape).permute(0, 3, 1, 2), scale


class _EightConv(nn.Module):
    """A `ConvNorm` in eight bits, float32 before and after."""

    def __init__(self, layer: ConvNorm) -> None:
        super().__init__()
        self.conv = _Bytes(layer, _MIDDLE)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map (B, c_out, H / stride, W / stride)."""
        return self.conv(*_as_bytes(x))


class _EightBlock(nn.Module):
    """A `Block` in eight bits, float32 before and after; ReLU6 says what the bytes in between are worth."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        assert isinstance(block.expand, ConvNorm), "all but an encoder's first"
        self.expand, self.depthwise = _Bytes(block.expand, _MIDDLE), _Bytes(block.depthwise, 0)
        self.project, self.residual = _Bytes(block.project, 0), block.residual

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map."""
        y = self.expand(*_as_bytes(x), _UNIT)
        y = self.project(self.depthwise(y, _UNIT, _UNIT), _UNIT)
        return x + y if self.residual else y


class _EightStart(nn.Module):
    """An encoder's first two layers, a `ConvNorm` and a `Block` that does not expand; its input is bytes anyway."""

    def __init__(self, stem: ConvNorm, block: Block) -> None:
        super().__init__()
        self.stem = _Bytes(stem, _GREY)
        self.depthwise, self.project = _Bytes(block.depthwise, 0), _Bytes(block.project, 0)

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map."""
        y = self.stem(*_as_bytes(x, _PIXEL, _GREY), _UNIT)
        return self.project(self.depthwise(y, _UNIT, _UNIT), _UNIT)


class _Pointwise(nn.Module):
    """A 1x1 convolution as a product of matrices: torch has no fast one for a single picture."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight.detach()[:, :, 0, 0], conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_out, H, W)."""
        return nn.functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def eight_bits(net: nn.Module) -> nn.Module:
    """`net` itself, folded and for evaluation alone: around an `Encoder` of Lite0 its convolutions are replaced, for
    good, by such in eight bits; any other network is left as it is.

    What a layer is given is scaled to bytes by its own largest value, so nothing need be measured beforehand.

    Notes:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018; a scale for each output channel: Krishnamoorthi, "Quantizing deep convolutional networks for
        efficient inference", 2018.
    """
    encoder = getattr(net, "encoder", None)
    if isinstance(encoder, Encoder) and isinstance(encoder.layers[0].act, nn.ReLU6):
        _replace(net)
        net.mixed = False  # type: ignore[assignment]
    return net


def _replace(net: nn.Module) -> None:
    for name, child in net.named_children():
        if isinstance(child, Encoder):
            layers: list[Any] = list(child.layers)
            stem, block, *rest = layers
            child.layers = nn.ModuleList((_EightStart(stem, block), nn.Identity(), *map(_EightBlock, rest)))
        elif isinstance(child, ConvNorm):
            setattr(net, name, _EightConv(child))
        elif isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1):
            setattr(net, name, _Pointwise(child))
        else:
            _replace(child)
