"""A trained model for other hands: its networks as ONNX, everything else that a pose needs as JSON.

`examples/onnx_pose.py` makes a pose from these files with onnxruntime, NumPy and OpenCV alone.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geopose import checkpoint
from geopose._io import atomic_path
from geopose.data.synthetic import PADDING
from geopose.nets.locator import SIZE_UNIT_PX, STRIDE
from geopose.nets.losses import LossOptions
from geopose.stages import FOUND, LOCATOR_SIDE

OPSET = 17
MODEL_FILE = "model.json"
_FORMAT_VERSION = 1
_OUTPUTS = {"locator": ("maps",), "keypoints": ("heatmaps", "mask"), "refiner": ("flow",)}
_MULTIPLE = 32  # of the locator's picture sides


class _Outputs(nn.Module):
    """A network that returns a tuple of its outputs by name."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The named outputs, or the only one."""
        out = self.net(image)
        return tuple(out[name] for name in self.names) if isinstance(out, dict) else (out,)


def export_onnx(model: str | Path, out: str | Path) -> list[Path]:
    """The files written into the folder `out`: `<role>.onnx` of each network, and `model.json`.

    Every network takes `image`, float32 RGB in [0, 1], channels first, with any batch: the locator (B, 3, H, W) with H
    and W multiples of 32, the others the model's crop. `model.json` says the rest, units in the names.

    Args:
        model: a checkpoint file.
    Raises:
        FileNotFoundError, ValueError: when it is not one. ImportError: without the package `onnx`.
    Notes:
        Written by torch's tracing exporter, which needs no other package to write and of which the networks use nothing
        but convolutions, resizing and concatenation; float32 throughout. `onnx.checker` has the last word.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("the export needs the package onnx: pip install 'geopose[onnx]'") from error
    nets, meta = checkpoint.load_nets(model)
    side = int(meta["options"]["crop_size"])
    files, written = {}, []
    for role, net in nets.items():
        channels = 9 if role == "refiner" else 3
        shape = (2, channels, 96, 128) if role == "locator" else (2, channels, side, side)
        path = Path(out) / f"{role}.onnx"
        with atomic_path(path) as temporary:
            names = _write(_plain(net), role, torch.zeros(shape), temporary)
            onnx.checker.check_model(str(temporary), full_check=True)
        files[role] = {"file": path.name, "input": "image", "outputs": list(names)}
        written.append(path)
    with atomic_path(Path(out) / MODEL_FILE) as temporary:
        text = json.dumps(checkpoint.jsonable(description(meta, files)), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return [*written, Path(out) / MODEL_FILE]


def description(meta: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """What `model.json` says: how to cut, decode and calibrate, and which points of the object the keypoints are."""
    options, calibration = meta["options"], meta.get("calibration") or {}
    mesh = meta.get("mesh") or {}
    return {
        "format": "geopose-onnx",
        "format_version": _FORMAT_VERSION,
        "name": meta["name"],
        "content_hash": meta["content_hash"],
        "diameter_m": meta["diameter"],
        "keypoints_m": meta["keypoints"],
        "symmetries": meta["symmetries"],
        "bounds_m": None if not mesh else [mesh["vertices"].min(0), mesh["vertices"].max(0)],
        "networks": files,
        "image": "float32 RGB in [0, 1], shape (B, 3, H, W); an integer pixel coordinate is the pixel's centre",
        "padding": round(255 * PADDING),
        "locator": {
            "side_px": LOCATOR_SIDE,
            "multiple_px": _MULTIPLE,
            "stride_px": STRIDE,
            "maps": [
                "logit of the centre", "log2(size / size_unit_px)", "offset x px", "offset y px", "logit of visibility",
            ],
            "size_unit_px": SIZE_UNIT_PX,
            "size": "diagonal of the object's box over sqrt(2)",
            "least_score": FOUND,
        },
        "crop": {"size_px": int(options["crop_size"]), "scale": float(options.get("crop_scale", 1.5))},
        "heatmaps": {
            "stride_px": 4,
            "window_cells": calibration.get("window"),
            "taught_sigma_cells": LossOptions().sigma,
            "floor_cells": 0.1,
        },
        "covariance": {
            "rule": "covariance in crop px^2, keypoint by keypoint: scale * covariance + floor_px^2 * identity",
            "scale": calibration.get("scale", 1.0),
            "floor_px": calibration.get("floor_px", 0.3),
            "pose_scale": calibration.get("pose_scale", 1.0),
            "pose_dof": calibration.get("pose_dof"),
        },
        "refiner": {
            "stride_px": 4,
            "input": "photograph RGB, rendering RGB, place in the bounding box as (1 + 254 u) / 255, 0 outside",
            "flow": "x and y of drawn to seen, and log of the Laplace scale, all in cells; then the weight of the cell "
            "in the pose over what that scale says: log of W00, W10 times the scale, log of W11",
        },
    }  # fmt: skip


def _plain(net: nn.Module) -> nn.Module:
    """A copy on the CPU that computes in float32."""
    net = copy.deepcopy(net).cpu().eval()
    net.mixed = False  # type: ignore[assignment]
    return net


def _write(net: nn.Module, role: str, example: Tensor, path: Path) -> tuple[str, ...]:
    """The names of the outputs of the ONNX file written."""
    with torch.inference_mode():
        out = net(example)
    names = tuple(n for n in _OUTPUTS[role] if n in out) if isinstance(out, dict) else _OUTPUTS[role]
    axes = {name: {0: "batch"} for name in ("image", *names)}
    if role == "locator":
        axes["image"] |= {2: "height", 3: "width"}
        axes["maps"] |= {2: "height_8", 3: "width_8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes are traced as constants, on purpose
        torch.onnx.export(
            _Outputs(net, names), (example,), str(path), input_names=["image"], output_names=list(names),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    return names
