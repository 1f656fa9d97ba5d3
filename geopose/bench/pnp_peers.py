"""Other solvers of PnP, each as a function of points (N, 3) and pixels (N, 2); one that gives up returns NaN."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from geopose.bench.pnp_scenes import CAMERA, Floats, Scenes
from geopose.geometry.pose import Pose

Solver = Callable[[Floats, Floats], Pose]
NONE = Pose(np.full((3, 3), np.nan), np.full(3, np.nan))
_POSELIB_CAMERA = {"model": "PINHOLE", "width": 640, "height": 480, "params": [800.0, 800.0, 320.0, 240.0]}


def opencv(flag: int, polish: bool = True) -> Solver:
    """`cv2.solvePnP`, followed by OpenCV's Levenberg-Marquardt."""

    def solve(points: Floats, px: Floats) -> Pose:
        try:
            found, rvec, tvec = cv2.solvePnP(points, px, CAMERA.K, None, flags=flag)
            if polish:
                rvec, tvec = cv2.solvePnPRefineLM(points, px, CAMERA.K, None, rvec, tvec)
        except cv2.error:
            return NONE
        return Pose(cv2.Rodrigues(rvec)[0], tvec.ravel()) if found else NONE

    return solve


def opencv_robust(flag: int) -> Solver:
    """`cv2.solvePnPRansac` at three standard deviations of one pixel."""

    def solve(points: Floats, px: Floats) -> Pose:
        try:
            found, rvec, tvec, _ = cv2.solvePnPRansac(
                points, px, CAMERA.K, None, reprojectionError=3.0, flags=flag
            )
        except cv2.error:
            return NONE
        return Pose(cv2.Rodrigues(rvec)[0], tvec.ravel()) if found and tvec is not None else NONE

    return solve


def poselib(ransac: Mapping[str, Any], bundle: Mapping[str, Any]) -> Solver:
    """`poselib.estimate_absolute_pose`."""
    module = importlib.import_module("poselib")

    def solve(points: Floats, px: Floats) -> Pose:
        pose, _ = module.estimate_absolute_pose(px, points, _POSELIB_CAMERA, dict(ransac), dict(bundle))
        return Pose(np.asarray(pose.R), np.asarray(pose.t))

    return solve


def pycolmap() -> Solver:
    """`pycolmap.estimate_and_refine_absolute_pose`."""
    module = importlib.import_module("pycolmap")
    camera = module.Camera(
        model="PINHOLE", width=640, height=480, params=np.array([800.0, 800.0, 320.0, 240.0])
    )

    def solve(points: Floats, px: Floats) -> Pose:
        found = module.estimate_and_refine_absolute_pose(px, points, camera)
        if found is None:
            return NONE
        moved = found["cam_from_world"]
        return Pose(np.asarray(moved.rotation.matrix()), np.asarray(moved.translation))

    return solve


def installed(name: str) -> bool:
    """Whether an optional competitor can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def exact_peers(shape: str = "box") -> dict[str, Solver]:
    """Solvers for data without outliers, each with its best refinement."""
    found = {
        "SQPnP + LM": opencv(cv2.SOLVEPNP_SQPNP),
        "EPnP + LM": opencv(cv2.SOLVEPNP_EPNP),
        "ITERATIVE": opencv(cv2.SOLVEPNP_ITERATIVE, polish=False),
    }
    if shape == "planar":
        found["IPPE + LM"] = opencv(cv2.SOLVEPNP_IPPE)
    if installed("poselib"):
        found["PoseLib-LS"] = poselib(
            {"min_iterations": 10, "max_iterations": 10, "max_reproj_error": 1000.0}, {"loss_type": "TRIVIAL"}
        )
    return found


def robust_peers() -> dict[str, Solver]:
    """Solvers for data with outliers."""
    found = {
        "OpenCV RANSAC": opencv_robust(cv2.SOLVEPNP_ITERATIVE),
        "OpenCV MAGSAC": opencv_robust(cv2.USAC_MAGSAC),
    }
    if installed("poselib"):
        found["PoseLib"] = poselib({}, {})
        found["PoseLib, fast"] = poselib({"max_reproj_error": 4.0, "min_iterations": 100}, {})
    if installed("pycolmap"):
        found["pycolmap"] = pycolmap()
    return found


def all_of(solver: Solver, problem: Scenes) -> Pose:
    """The poses (B,) of a peer."""
    return Pose.stack([solver(p, q) for p, q in zip(problem.points, problem.px, strict=True)])


def from_truth(problem: Scenes) -> Pose:
    """The optimum that OpenCV's refinement reaches from the true pose: the maximum of likelihood near the truth, for
    noise that is the same everywhere."""
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 50, 1e-12)
    poses = []
    for i in range(len(problem)):
        rvec, t = cv2.Rodrigues(problem.truth.R[i])[0], problem.truth.t[i].reshape(3, 1).copy()
        rvec, t = cv2.solvePnPRefineLM(problem.points[i], problem.px[i], CAMERA.K, None, rvec, t, stop)
        poses.append(Pose(cv2.Rodrigues(rvec)[0], t.ravel()))
    return Pose.stack(poses)
