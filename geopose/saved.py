"""An estimate read back from the JSON in which it was saved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import Alternative
from geopose.geometry.pose import Pose
from geopose.result import FORMAT, PoseEstimate

Array = NDArray[np.float64]


def read_estimate(path: str | os.PathLike[str], model: CadModel) -> PoseEstimate:
    """The PoseEstimate of a file that `PoseEstimate.to_json` or `geopose estimate --json FILE` wrote, of the object
    `model`. Covariances of the alternatives are not saved, and are NaN.

    Raises:
        FileNotFoundError, ValueError: naming the file, when it is missing, is no such estimate, or is one of another
            object.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; `geopose estimate photo.jpg --json {path}` writes one"
        )
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON, expected what `geopose estimate --json` writes ({error})"
        ) from None
    kind = value.get("format") if isinstance(value, dict) else None
    if kind != FORMAT:
        raise ValueError(
            f"{path}: its format is {kind!r}, expected {FORMAT!r}, as `geopose estimate --json` writes it"
        )
    try:
        found = _from_json(value, model)
        name, content_hash = str(value["object"]["name"]), str(value["object"]["content_hash"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: does not hold what pose_estimate.schema.json describes: {why}") from None
    if content_hash != model.content_hash:
        raise ValueError(
            f"{path}: is of {name!r}, a mesh that differs from the {model.name!r} given; give its own"
        )
    return found


def _from_json(value: Mapping[str, Any], model: CadModel) -> PoseEstimate:
    c, pose, covariance = value["camera"], value["cam_from_obj"], value["covariance_rho_m_phi_rad"]
    fx, fy, cx, cy = (float(c[name]) for name in ("fx", "fy", "cx", "cy"))
    camera = Camera(fx, fy, cx, cy, tuple(c["size_wh"]), tuple(c["distortion"]), float(c["focal_rel_std"]))
    count = len(value["keypoints"].get("points_px", ()))
    shapes = {"points_px": (count, 2), "cov_px": (count, 2, 2), "points_obj": (count, 3)}
    keypoints: dict[str, NDArray[Any]] = {}
    if count:
        keypoints = {name: _numbers(value["keypoints"][name], name, shape) for name, shape in shapes.items()}
        keypoints["inliers"] = _numbers(value["keypoints"]["inliers"], "inliers", (count,)).astype(bool)
    nowhere = np.full((6, 6), np.nan)
    dof = value.get("covariance_dof")
    return PoseEstimate(
        pose=None if pose is None else _pose(pose["matrix_m"]),
        covariance=None if covariance is None else _numbers(covariance, "covariance_rho_m_phi_rad", (6, 6)),
        status=str(value["status"]),
        reasons=tuple(map(str, value["reasons"])),
        confidence=float(value["confidence"]),
        keypoints=keypoints,
        box=None if value["box_px"] is None else _numbers(value["box_px"], "box_px", (4,)),
        alternatives=tuple(
            Alternative(_pose(a["matrix_m"]), nowhere, _numbers(a["weight"], "weight", ()), np.array(np.nan))
            for a in value["alternatives"]
        ),
        timings={str(stage): float(seconds) for stage, seconds in value["timings_s"].items()},
        camera=camera,
        model=model,
        covariance_dof=np.inf if dof is None else float(dof),
    )


def _numbers(value: Any, name: str, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value, float)  # null becomes NaN
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape}, expected {shape}")
    return array


def _pose(matrix: Any) -> Pose:
    pose = Pose.from_matrix(_numbers(matrix, "matrix_m", (4, 4)))
    if np.isfinite(pose.R).all() and not (
        np.allclose(pose.R @ pose.R.T, np.eye(3), atol=1e-6) and np.linalg.det(pose.R) > 0
    ):
        raise ValueError(f"matrix_m holds no rotation: {np.asarray(pose.R).tolist()}")
    return pose
