"""Thirteen photographs of a chessboard through a distorting lens: our poses against those of OpenCV's calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.stats import chi2

from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPOptions, solve_pnp
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle

CORNERS, SQUARE = (9, 6), 0.025  # inner corners; metres
_FINDER_PX = 0.3  # of a corner, first guess


def board() -> np.ndarray:
    """(54, 3) corners of the chessboard, metres."""
    x, y = np.meshgrid(np.arange(CORNERS[0]) * SQUARE, np.arange(CORNERS[1]) * SQUARE)
    return np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)


def corners_of(path: Path) -> np.ndarray:
    """(54, 2) corners found in a photograph, pixels; raises ValueError where there are none."""
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    found, corners = (False, None) if gray is None else cv2.findChessboardCorners(gray, CORNERS)
    if gray is None or corners is None or not found:
        raise ValueError(f"{path}: expected a photograph of a chessboard with {CORNERS} inner corners")
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 30, 0.01)
    return np.asarray(cv2.cornerSubPix(gray, corners, (5, 5), (-1, -1), stop).reshape(-1, 2), float)


def photographs(folder: Path) -> list[dict[str, Any]]:
    """By photograph: how our pose differs from the given one, and whether that is within 99 % of its covariance.

    The noise of a photograph's corners is taken from its own residuals. `squared` is the Mahalanobis distance of the
    given pose, `rms_px` and `given_rms_px` what each pose leaves.
    """
    file = folder / "left_intrinsics.yml"
    camera = Camera.load(file)
    store = cv2.FileStorage(str(file), cv2.FILE_STORAGE_READ)
    given = np.asarray(store.getNode("extrinsic_parameters").mat())
    paths = sorted(folder.glob("left*.jpg"))
    if len(paths) != len(given):
        raise ValueError(f"{folder}: expected {len(given)} photographs left*.jpg, got {len(paths)}")
    points, rows = board(), []
    for path, pose6 in zip(paths, given, strict=True):
        px, truth = corners_of(path), Pose.from_rvec_tvec(pose6[:3], pose6[3:])
        first = solve_pnp(points, px, camera, options=PnPOptions(noise_px=_FINDER_PX, gate_sigma=20))
        noise = float(first.rms_px * np.sqrt(len(px) / (2 * len(px) - 6)))  # per axis, six parameters fitted
        found = solve_pnp(points, px, camera, options=PnPOptions(noise_px=noise))
        xi = (truth @ found.pose.inverse()).log()
        squared = float(xi @ np.linalg.solve(found.covariance, xi))
        off = camera.project(truth.apply(points)) - px
        rows.append({
            "name": path.stem,
            "status": found.status,
            "noise_px": noise,
            "rms_px": float(found.rms_px),
            "given_rms_px": float(np.sqrt((off**2).sum(-1).mean())),
            "rotation_deg": float(np.degrees(geodesic_angle(found.pose.R, truth.R))),
            "translation_mm": 1e3 * float(np.linalg.norm(found.pose.t - truth.t)),
            "squared": squared,
            "inside": bool(squared < chi2.ppf(0.99, 6)),
        })  # fmt: skip
    return rows
