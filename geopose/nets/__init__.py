"""Networks: tensors in, tensors out."""

from __future__ import annotations

from geopose.nets.backbone import fold_batchnorm, keep_freed_memory
from geopose.nets.hourglass import Hourglass
from geopose.nets.locator import Locator, build_locator
from geopose.nets.losses import LossOptions, keypoint_loss, locator_loss, refiner_loss
from geopose.nets.refiner import Refiner, build_refiner
from geopose.nets.unet import UNet, build_keypoint_net

KeypointNet = UNet | Hourglass

__all__ = [
    "Hourglass", "KeypointNet", "Locator", "LossOptions", "Refiner", "UNet", "build_keypoint_net",
    "build_locator", "build_refiner", "fold_batchnorm", "keep_freed_memory", "keypoint_loss", "locator_loss",
    "refiner_loss",
]  # fmt: skip
