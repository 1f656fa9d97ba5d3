"""Networks: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

from geopose.nets.backbone import fold_batchnorm
from geopose.nets.hourglass import Hourglass
from geopose.nets.locator import Locator
from geopose.nets.losses import LossOptions, keypoint_loss, locator_loss
from geopose.nets.unet import UNet

KeypointNet = UNet | Hourglass

__all__ = [
    "Hourglass", "KeypointNet", "Locator", "LossOptions", "UNet", "build_keypoint_net", "build_locator",
    "fold_batchnorm", "keypoint_loss", "locator_loss",
]  # fmt: skip


def build_keypoint_net(options: dict[str, Any], weights: bool = True) -> KeypointNet:
    """The keypoint network that `options` describe.

    Args:
        options: JSON-able; `kind` ("unet" or "hourglass"), `num_keypoints`, and any argument of `UNet` or `Hourglass`.
            A network's own `.options` rebuild its architecture.
        weights: False builds the same architecture without looking for pretrained weights, to load a checkpoint into.
    Raises:
        ValueError: on an unknown kind or option, or `num_keypoints` missing.
    """
    rest = dict(options)
    kinds: dict[str, type[UNet] | type[Hourglass]] = {"unet": UNet, "hourglass": Hourglass}
    kind = rest.pop("kind", "unet")
    if kind not in kinds:
        raise ValueError(f"kind: got {kind!r}, expected one of {sorted(kinds)}")
    return _build(kinds[kind], rest, weights)


def build_locator(options: dict[str, Any], weights: bool = True) -> Locator:
    """The locator that `options` (JSON-able, any argument of `Locator`) describe; see `build_keypoint_net`."""
    return _build(Locator, dict(options), weights)


def _build(cls: type[Any], options: dict[str, Any], weights: bool) -> Any:
    if not weights and options.pop("pretrained", False):
        options["folded"] = True
    if "widths" in options:
        options["widths"] = tuple(options["widths"])
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"options: {error}; got {sorted(options)}") from error
