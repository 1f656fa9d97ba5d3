"""A trained model for other hands: its networks as ONNX, everything else that a pose needs as JSON.

`examples/onnx_pose.py` makes a pose from these files with onnxruntime, NumPy and OpenCV alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geopose import checkpoint
from geopose._io import atomic_path
from geopose.data.synthetic import PADDING
from geopose.nets.exported import write_onnx
from geopose.nets.locator import SIZE_UNIT_PX, STRIDE
from geopose.nets.losses import LossOptions
from geopose.stages import FOUND, LOCATOR_SIDE

MODEL_FILE = "model.json"
_FORMAT_VERSION = 1
_MULTIPLE = 32  # of the locator's picture sides


def export_onnx(model: str | Path, out: str | Path) -> list[Path]:
    """The files written into the folder `out`: `<role>.onnx` of each network, and `model.json`.

    Every network takes `image`, float32 RGB in [0, 1], channels first, with any batch: the locator (B, 3, H, W) with H
    and W multiples of 32, the others the model's crop. `model.json` says the rest, units in the names.

    Args:
        model: a checkpoint file.
    Raises:
        FileNotFoundError, ValueError: when it is not one.
    Notes:
        `onnx.checker` has the last word.
    """
    import onnx

    nets, meta = checkpoint.load_nets(model)
    with checkpoint.pose_model(model, meta):
        side, said = meta["options"]["crop_size"], description(meta)
    files, written = {}, []
    for role, net in nets.items():
        path = Path(out) / f"{role}.onnx"
        with atomic_path(path) as temporary:
            names = write_onnx(net, role, temporary, None if role == "locator" else side)
            onnx.checker.check_model(str(temporary), full_check=True)
        files[role] = {"file": path.name, "input": "image", "outputs": list(names)}
        written.append(path)
    with atomic_path(Path(out) / MODEL_FILE) as temporary:
        text = json.dumps(checkpoint.jsonable(said | {"networks": files}), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return [*written, Path(out) / MODEL_FILE]


def description(meta: dict[str, Any]) -> dict[str, Any]:
    """What `model.json` says beside the names of the files: how to cut, decode and calibrate, and which points of the
    object the keypoints are."""
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
        "networks": {},
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
