"""PoseNet: GoogLeNet whose three classifiers give way to heads that say where the camera is.

Kendall, Grimes, Cipolla, "PoseNet: A Convolutional Network for Real-Time 6-DOF Camera Relocalization", ICCV 2015, on
the network of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1. Layers bear the names that they
have in Caffe's GoogLeNet, so that weights trained there find their place (`places.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopose.geometry.pose import Pose
from geopose.geometry.rotation import matrix_from_quat_wxyz, safe_norm
from geopose.nets.backbone import ConvNorm, channels_last, checked_options, mixed_precision

# Channels: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
_AUXILIARY = {"4a": "loss1", "4d": "loss2"}  # where the first two heads branch off
_POOL_AFTER = ("3b", "4e")
_LAST = "loss3"
LOSSES = ("beta", "learned", "reprojection")
_NEAREST = 0.25  # of a point's true depth; if it is nearer to an estimated camera, or behind, it is taken for as near


class PoseNet(nn.Module):
    """Position and orientation of the camera from one picture of a known place.

    Args:
        width: multiplies all channels (rounded to eights); 1 is GoogLeNet, a quarter suits tests and laptops.
        norm: "lrn", local response normalisation as in Caffe, to start from its weights; "batch", batch normalisation
            after each convolution, to start from nothing.
        size: side of the square pictures, an even number of at least 80.
        dropout: of the first two heads, and of the last.
        auxiliary: whether the first two heads are there; they serve training only.
        learned_weights: hold the logarithms of two variances that weigh position against orientation.
        bfloat16: train the convolutions in bfloat16 on processors that multiply it in hardware; evaluation is
            float32.
    Notes:
        The loss's log-variances start at 0 and -3 (Kendall and Cipolla, CVPR 2017). Convolutions start as in He et
        al., "Delving deep into rectifiers", ICCV 2015; `start_at` puts the heads at a mean pose.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        norm: str = "lrn",
        size: int = 224,
        dropout: Sequence[float] = (0.7, 0.5),
        auxiliary: bool = True,
        learned_weights: bool = False,
        bfloat16: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < width <= 4:
            raise ValueError(f"width: got {width!r}, expected a factor in (0, 4]")
        if norm not in ("lrn", "batch"):
            raise ValueError(f"norm: got {norm!r}, expected 'lrn' or 'batch'")
        if size < 80 or size % 2:
            raise ValueError(f"size: got {size!r}, expected an even number of pixels, at least 80")
        if len(dropout) != 2 or not all(0 <= d < 1 for d in dropout):
            raise ValueError(f"dropout: got {dropout!r}, expected two shares in [0, 1)")
        self.options = {
            "width": float(width), "norm": norm, "size": size, "dropout": [float(d) for d in dropout],
            "auxiliary": auxiliary, "learned_weights": learned_weights, "bfloat16": bfloat16,
        }  # fmt: skip
        self.size, self.dropout, self.mixed = size, tuple(dropout), bfloat16
        self.auxiliary = _AUXILIARY if auxiliary else {}
        self.lrn = nn.LocalResponseNorm(5, 1e-4, 0.75) if norm == "lrn" else nn.Identity()
        self.layers = nn.ModuleDict(_layers(width, norm, size, auxiliary))
        if learned_weights:
            self.log_variances = nn.Parameter(torch.tensor([0.0, -3.0]))
        for name, layer in self.layers.items():
            weighed = layer.conv if isinstance(layer, ConvNorm) else layer
            assert isinstance(weighed, (nn.Conv2d, nn.Linear))
            if name.endswith(("/xyz", "/wpqr")):
                nn.init.normal_(weighed.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(weighed.weight, nonlinearity="relu")
            if weighed.bias is not None:
                nn.init.zeros_(weighed.bias)
        channels_last(self)

    @torch.no_grad()
    def start_at(self, xyz: Tensor, wpqr: Tensor) -> None:
        """Makes `xyz` (3,), metres, and `wpqr` (4,) what every head says before it has learned anything."""
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Linear) and not name.endswith("/fc"):
                layer.bias.copy_(xyz if name.endswith("/xyz") else wpqr)

    def forward(self, x: Tensor) -> Tensor | dict[str, Any]:
        """Poses, each as x, y, z of the camera in metres and w, p, q, r of the rotation from world to camera.

        Args:
            x: (B, 3, size, size) RGB in [0, 1] minus the mean picture in [0, 1]. The original's last step of
                preparation, minus 0.5 and over 0.5, is taken here.
        Returns:
            In evaluation (B, 7), the last head's. In training a dict: `heads`, the three of them, and
            `log_variances` (2,) where weights are learned. The quaternions are not normalised.
        Raises:
            ValueError: on another shape.
        """
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, 3, {self.size}, {self.size})")
        with mixed_precision(self.mixed and self.training):
            maps = self._features(x)
        if not self.training:
            return self._head(_LAST, maps[_LAST])
        out: dict[str, Any] = {"heads": [self._head(name, y) for name, y in maps.items()]}
        if hasattr(self, "log_variances"):
            out["log_variances"] = self.log_variances
        return out

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by the head that looks at them."""
        x = F.pad((x - 0.5) / 0.5, (3, 3, 3, 3), value=-1.0)  # beyond the picture is the mean picture
        y = self.lrn(_pool(self._conv("conv1/7x7_s2", x)))
        y = self._conv("conv2/3x3", self._conv("conv2/3x3_reduce", y))
        y = _pool(self.lrn(y))
        maps: dict[str, Tensor] = {}
        for block in _INCEPTIONS:
            y = self._inception(f"inception_{block}/", y)
            if self.training and block in self.auxiliary:
                head = self.auxiliary[block]
                maps[head] = self._conv(f"{head}/conv", F.avg_pool2d(y, 5, 3, ceil_mode=True))
            if block in _POOL_AFTER:
                y = _pool(y)
        maps[_LAST] = y.mean((2, 3))
        return maps

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.layers[name](x))

    def _inception(self, name: str, x: Tensor) -> Tensor:
        parts = (
            self._conv(name + "1x1", x),
            self._conv(name + "3x3", self._conv(name + "3x3_reduce", x)),
            self._conv(name + "5x5", self._conv(name + "5x5_reduce", x)),
            self._conv(name + "pool_proj", F.max_pool2d(x, 3, 1, 1)),
        )
        return torch.cat(parts, 1)

    def _head(self, name: str, features: Tensor) -> Tensor:
        y = F.relu(self.layers[f"{name}/fc"](features.float().flatten(1)))
        y = F.dropout(y, self.dropout[name == _LAST], self.training)
        return torch.cat((self.layers[f"{name}/xyz"](y), self.layers[f"{name}/wpqr"](y)), 1)

    def without_auxiliary(self) -> PoseNet:
        """A copy in evaluation mode without what serves training only: two thirds of the weights, the same answers."""
        net = PoseNet(**{**self.options, "auxiliary": False, "learned_weights": False})  # type: ignore[arg-type]
        kept = net.state_dict().keys()
        net.load_state_dict({k: v for k, v in self.state_dict().items() if k in kept})
        return net.to(next(self.parameters()).device).eval()


def _layers(width: float, norm: str, size: int, auxiliary: bool) -> dict[str, nn.Module]:
    """All layers with weights, by the names that Caffe's GoogLeNet gives them; new ones are `*/xyz`, `*/wpqr` and the
    last head's `fc`."""

    def scaled(channels: int) -> int:
        return max(8, 8 * round(channels * width / 8))

    def conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d | ConvNorm:
        if norm == "batch":
            return ConvNorm(c_in, c_out, kernel, stride)
        return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2)

    first = conv(3, scaled(64), 7, 2)
    (first.conv if isinstance(first, ConvNorm) else first).padding = (0, 0)  # the forward pass pads
    layers: dict[str, nn.Module] = {"conv1/7x7_s2": first, "conv2/3x3_reduce": conv(scaled(64), scaled(64))}
    layers["conv2/3x3"] = conv(scaled(64), scaled(192), 3)
    c_in = scaled(192)
    side = _pooled(_pooled(size // 2, 3, 2), 3, 2)  # of blocks 3
    side = _pooled(_pooled(side, 3, 2), 5, 3)  # of the maps of the first two heads
    for block, channels in _INCEPTIONS.items():
        one, reduce3, three, reduce5, five, projection = (scaled(c) for c in channels)
        name = f"inception_{block}/"
        layers[name + "1x1"] = conv(c_in, one)
        layers[name + "3x3_reduce"], layers[name + "3x3"] = conv(c_in, reduce3), conv(reduce3, three, 3)
        layers[name + "5x5_reduce"], layers[name + "5x5"] = conv(c_in, reduce5), conv(reduce5, five, 5)
        layers[name + "pool_proj"] = conv(c_in, projection)
        c_in = one + three + five + projection
        if auxiliary and block in _AUXILIARY:
            head = _AUXILIARY[block]
            layers[f"{head}/conv"] = conv(c_in, scaled(128))
            layers |= _head_layers(head, scaled(128) * side * side, scaled(1024))
    return layers | _head_layers(_LAST, c_in, scaled(2048))


def _head_layers(name: str, c_in: int, hidden: int) -> dict[str, nn.Module]:
    return {
        f"{name}/fc": nn.Linear(c_in, hidden),
        f"{name}/xyz": nn.Linear(hidden, 3),
        f"{name}/wpqr": nn.Linear(hidden, 4),
    }


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, ceil_mode=True)  # Caffe rounds up


def _pooled(size: int, kernel: int, stride: int) -> int:
    """Side of a map after pooling that rounds up."""
    return math.ceil((size - kernel) / stride) + 1


def build_posenet(options: Mapping[str, Any], weights: bool = True) -> PoseNet:
    """The network that `options` (JSON-able, any argument of `PoseNet`) describe; `weights` changes nothing, for none
    are looked for (`places.load_places` reads them)."""
    return PoseNet(**checked_options(options, PoseNet, weights))


@dataclass(frozen=True)
class PoseLossOptions:
    """How `posenet_loss` weighs.

    Attributes:
        kind: "beta", position plus `beta` times orientation; "learned", weighed by the network's own variances;
            "reprojection", the distance of scene points in the picture, which needs no weight, but a network that one
            of the others has trained well: a poor one learns to step back until everything looks close together.
        beta: metres per unit of quaternion distance; the authors' and others' 500 for King's College.
        heads: weights of the three heads, or of the last alone.
    """

    kind: str = "beta"
    beta: float = 500.0
    heads: tuple[float, ...] = (0.3, 0.3, 1.0)

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ValueError(f"kind: got {self.kind!r}, expected one of {', '.join(LOSSES)}")
        if not self.beta > 0:
            raise ValueError(f"beta: got {self.beta!r}, expected a positive number")


def posenet_loss(
    out: Mapping[str, Any], targets: Mapping[str, Tensor], options: PoseLossOptions | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss (a scalar with gradient), and detached: position (metres), orientation (quaternion distance) and,
    where it was asked for, reprojection of the last head.

    Args:
        out: what `PoseNet` returns in training: `heads`, each (B, 7); `log_variances` (2,) for "learned".
        targets: `xyz` (B, 3) metres; `wpqr` (B, 4), unit quaternions of one hemisphere; for "reprojection" `points`
            (B, N, 3), world, metres, those that the picture shows; NaN rows are left out.
        options: `PoseLossOptions()` by default.
    Raises:
        ValueError: on shapes that do not match, or where something that the loss needs is missing.
    Notes:
        "beta": Kendall, Grimes, Cipolla, ICCV 2015, eq. 2. "learned" and "reprojection": Kendall and Cipolla,
        "Geometric Loss Functions for Camera Pose Regression with Deep Learning", CVPR 2017; the reprojection is in
        units of the focal length, mean absolute (L1) difference.
    """
    options = options or PoseLossOptions()
    heads: Sequence[Tensor] = out["heads"]
    if any(head.shape != (len(targets["xyz"]), 7) for head in heads) or len(heads) != len(options.heads):
        raise ValueError(
            f"out: got heads {[tuple(h.shape) for h in heads]} beside xyz {tuple(targets['xyz'].shape)}, "
            f"expected {len(options.heads)} of shape (B, 7)"
        )
    for kind, where, key in (("learned", out, "log_variances"), ("reprojection", targets, "points")):
        if options.kind == kind and key not in where:
            raise ValueError(f"{'out' if where is out else 'targets'}: the loss {kind!r} needs {key!r}")
    losses: list[Tensor] = []
    parts: dict[str, Tensor] = {}
    for head in heads:
        position, orientation = _distances(head, targets, normalised=options.kind == "learned")
        parts = {"position": position, "orientation": orientation}
        if options.kind == "beta":
            losses.append(position + options.beta * orientation)
        elif options.kind == "learned":
            s_x, s_q = out["log_variances"].unbind()
            losses.append(position * torch.exp(-s_x) + s_x + orientation * torch.exp(-s_q) + s_q)
        else:
            parts["reprojection"] = reprojection(head, targets)
            losses.append(parts["reprojection"])
    total = torch.stack([w * loss for w, loss in zip(options.heads, losses, strict=True)]).sum()
    parts["total"] = total
    return total, {name: part.detach() for name, part in parts.items()}


def _distances(head: Tensor, targets: Mapping[str, Tensor], normalised: bool) -> tuple[Tensor, Tensor]:
    """Mean distance of positions, metres, and of quaternions, the true ones being unit ones; the network's are as they
    are (2015) or normalised (2017)."""
    quat = F.normalize(head[:, 3:], dim=1) if normalised else head[:, 3:]
    position = safe_norm(head[:, :3] - targets["xyz"].float()).mean()
    return position, safe_norm(quat - targets["wpqr"].float()).mean()


def reprojection(head: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Mean absolute difference, in focal lengths, between where points are seen from the estimated (B, 7) and from the
    true poses; zero without points."""
    points = targets["points"].float()
    true = camera_pose(targets["xyz"].float(), targets["wpqr"].float()).apply(points)
    known = torch.isfinite(points).all(-1) & (true[..., 2] > 0)
    points, true = (torch.where(known[..., None], x, 1.0) for x in (points, true))
    said = camera_pose(head[:, :3], head[:, 3:]).apply(points)
    depth = torch.maximum(said[..., 2:], _NEAREST * true[..., 2:])
    error = (said[..., :2] / depth - true[..., :2] / true[..., 2:]).abs().sum(-1)
    return (error * known).sum() / known.sum().clamp_min(1)


def camera_pose(xyz: Any, wpqr: Any) -> Pose:
    """The Pose `cam_from_world` of cameras at `xyz` (..., 3) whose rotation from world to camera is `wpqr` (..., 4)."""
    R = matrix_from_quat_wxyz(wpqr)
    return Pose(R, -(R @ xyz[..., None])[..., 0])
