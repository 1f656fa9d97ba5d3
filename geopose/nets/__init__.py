"""Networks: tensors in, tensors out."""

from __future__ import annotations

from geopose.nets.backbone import fold_batchnorm, keep_freed_memory
from geopose.nets.hourglass import Hourglass
from geopose.nets.locator import Locator, build_locator
from geopose.nets.losses import LossOptions, keypoint_loss, locator_loss
from geopose.nets.unet import UNet, build_keypoint_net

KeypointNet = UNet | Hourglass

__all__ = [
    "Hourglass", "KeypointNet", "Locator", "LossOptions", "UNet", "build_keypoint_net", "build_locator",
    "fold_batchnorm", "keep_freed_memory", "keypoint_loss", "locator_loss",
]  # fmt: skip
