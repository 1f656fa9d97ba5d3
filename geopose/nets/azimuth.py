"""From which heading a thing is seen: the classifier of the original, and a density on the circle.

Both answer with probabilities of azimuths, so that they are used and judged alike: see `distribution`.
"""

from __future__ import annotations

import math
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

GRID = 720
"""Azimuths at which the density of `CircularNet` is evaluated."""


class AzimuthClassifier(nn.Module):
    """Scores of N classes of azimuth, from a plain stack of convolutions.

    Args:
        classes: N.
        size: side of the pictures, pixels; the last map must keep one pixel: at least 194 with six convolutions.
        channels: of the convolutions, 7x7 first and 3x3 then, without padding, each with ReLU, 2x2 maximum and dropout.
        dense: widths of the fully connected layers, each with ReLU and dropout.
        dropout: after each convolution.
        dense_dropout: after each fully connected layer.
        bfloat16: train in mixed precision on processors that have bfloat16 in hardware.
    Raises:
        ValueError: when the convolutions leave nothing of a picture of `size`, or there are fewer than two classes.
    Notes:
        The defaults are those of "To learn cars' pose with deep learning" (Keras); so is the first state of the weights
        (Glorot and Bengio, AISTATS 2010, eq. 16, no bias). The maximum is taken before the ReLU, which is the
        same and faster. Pictures are brought to [-1, 1] first.
    """

    def __init__(
        self,
        classes: int = 4,
        size: int = 224,
        *,
        channels: Sequence[int] = (32, 64, 64, 128, 128, 256),
        dense: Sequence[int] = (4096, 1024, 256),
        dropout: float = 0.4,
        dense_dropout: float = 0.25,
        bfloat16: bool = True,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes: got {classes!r}, expected at least 2")
        self.options = {
            "kind": "classifier", "classes": classes, "size": size, "channels": list(channels), "dense": list(dense),
            "dropout": dropout, "dense_dropout": dense_dropout, "bfloat16": bfloat16,
        }  # fmt: skip
        self.size, self.mixed = size, bfloat16
        layers: list[nn.Module] = []
        c_in, side = 3, size
        for number, c_out in enumerate(channels):
            kernel = 7 if number == 0 else 3
            layers += [nn.Conv2d(c_in, c_out, kernel), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(dropout)]
            c_in, side = c_out, (side - kernel + 1) // 2
        if side < 1:
            raise ValueError(
                f"size: got {size!r} pixels, of which {len(channels)} convolutions leave nothing"
            )
        layers.append(nn.Flatten())
        width = c_in * side * side
        for w in dense:
            layers += [nn.Linear(width, w), nn.ReLU(), nn.Dropout(dense_dropout)]
            width = w
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) of pictures (B, 3, size, size), RGB in [0, 1] or uint8.

        Raises:
            ValueError: on another shape.
        """
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (B, 3, {self.size}, {self.size}), the size it was made for"
            )
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        with mixed_precision(self.mixed and self.training):
            return self.layers(2 * x - 1).float()

    def distribution(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Azimuths (N,), the middles of the classes, and their probabilities (B, N), from `forward`'s output."""
        return circle(out.shape[1], out), out.softmax(1)


class CircularNet(nn.Module):
    """The parameters of a density on the circle, from ImageNet features.

    The density is p(a) ~ exp(sum over k of x_k cos(k a) + y_k sin(k a)), k = 1 ... `harmonics`: with one harmonic the
    von Mises distribution, direction and concentration being those of the vector (x_1, y_1); with more, it can say
    "front or rear".

    Args:
        pretrained: ImageNet weights in the encoder.
        frozen_stride: encoder layers up to this stride (0, 2, 4, 8) are not trained.
        frozen_5x5: the encoder's 5x5 depthwise filters are not trained; see `Encoder`.
        harmonics: K.
        hidden: channels of the layer between the encoder and the parameters.
    Notes:
        Prokudin, Gehler, Nowozin, "Deep directional statistics", ECCV 2018 (von Mises likelihood); Gatto and
        Jammalamadaka, "The generalized von Mises distribution", Statistical Methodology 2007. The negative
        log-likelihood is convex in the parameters (an exponential family).
    """

    def __init__(
        self,
        pretrained: bool = False,
        *,
        frozen_stride: int = 0,
        frozen_5x5: bool = False,
        harmonics: int = 4,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if harmonics < 1:
            raise ValueError(f"harmonics: got {harmonics!r}, expected at least 1")
        self.options = {
            "kind": "circular", "pretrained": False, "frozen_stride": frozen_stride, "frozen_5x5": frozen_5x5,
            "harmonics": harmonics, "hidden": hidden,
        }  # fmt: skip
        self.harmonics = harmonics
        self.encoder = Encoder(pretrained, frozen_stride=frozen_stride, frozen_5x5=frozen_5x5)
        self.mix = ConvNorm(self.encoder.channels[32], hidden)
        self.head = nn.Linear(2 * hidden, 2 * harmonics)
        nn.init.zeros_(self.head.weight)  # at first every azimuth is as likely: without it, large gradients
        nn.init.zeros_(self.head.bias)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters (B, K, 2) of pictures (B, 3, H, W), RGB in [0, 1] or uint8, H and W multiples of 32.

        Raises:
            ValueError: on another shape.
        """
        check_picture(x, 32)
        deep = self.mix(self.encoder(x)[32])
        pooled = torch.cat((deep.mean((2, 3)), deep.amax((2, 3))), 1)
        return self.head(pooled).unflatten(1, (self.harmonics, 2))

    def distribution(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Azimuths (GRID,) and their probabilities (B, GRID), from `forward`'s output."""
        angles = circle(GRID, out)
        return angles, potential(out, angles).softmax(1)


AzimuthNet = AzimuthClassifier | CircularNet


def circle(count: int, like: Tensor) -> Tensor:
    """`count` azimuths (count,) from 0 on, evenly round the circle, radians in [0, 2 pi)."""
    return torch.arange(count, device=like.device, dtype=like.dtype) * (2 * math.pi / count)


def potential(parameters: Tensor, azimuth: Tensor) -> Tensor:
    """The logarithm of the density, short of a constant, of parameters (B, K, 2) at azimuths (A,) or (B, A): (B, A)."""
    k = torch.arange(1, parameters.shape[1] + 1, device=azimuth.device, dtype=azimuth.dtype)
    angles = azimuth[..., None] * k
    waves = torch.cat((angles.cos(), angles.sin()), -1)
    flat = torch.cat((parameters[..., 0], parameters[..., 1]), -1)
    return (waves @ flat[..., None])[..., 0]


def circular_loss(out: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean negative log-likelihood, nats (log 2 pi for an answer that knows nothing), and no parts.

    Args:
        out: (B, K, 2), what `CircularNet` returns.
        targets: `azimuth` (B,), radians.
    Notes:
        The density is normalised by the trapezoid rule on GRID azimuths, which for a smooth periodic function is as
        good as exact (against the Bessel function of the von Mises distribution: 1e-12 up to a concentration of 1000).
    """
    log_total = potential(out, circle(GRID, out)).logsumexp(1) + math.log(2 * math.pi / GRID)
    at_truth = potential(out, targets["azimuth"].to(out.dtype)[:, None])[:, 0]
    return (log_total - at_truth).mean(), {}


def classifier_loss(out: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean cross-entropy of logits (B, N) and `label` (B,), nats (log N for an answer that knows nothing), and no
    parts."""
    return F.cross_entropy(out, targets["label"]), {}


def build_azimuth_net(options: Mapping[str, Any], weights: bool = True) -> AzimuthNet:
    """The network that `options` (JSON-able: `kind`, "circular" or "classifier", and any argument of its class)
    describe.

    weights: False never looks for pretrained weights: to load a checkpoint into it.

    Raises:
        ValueError: on an unknown kind or option.
    """
    rest = dict(options)
    kinds: dict[str, Callable[..., AzimuthNet]] = {"circular": CircularNet, "classifier": AzimuthClassifier}
    kind = rest.pop("kind", "circular")
    if kind not in kinds:
        raise ValueError(f"kind: got {kind!r}, expected one of {sorted(kinds)}")
    return kinds[kind](**checked_options(rest, kinds[kind], weights))
