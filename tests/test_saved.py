"""An estimate that was written as JSON comes back; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from geopose.cad.model import load_cad
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import Alternative
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.result import PoseEstimate
from geopose.saved import read_estimate


def an_estimate() -> PoseEstimate:
    """One with a bit of everything, NaN too."""
    rng = np.random.default_rng(0)
    pose = Pose(exp_so3(rng.normal(size=3)), np.array([0.1, -0.2, 3.0]))
    other = Pose(exp_so3(rng.normal(size=3)), np.array([0.1, -0.2, 3.5]))
    points_px = rng.uniform(0, 99, (5, 2))
    points_px[1] = np.nan
    keypoints = {
        "points_px": points_px,
        "cov_px": rng.uniform(0, 9, (5, 2, 2)),
        "inliers": np.array([True, False, True, True, True]),
        "points_obj": rng.normal(size=(5, 3)),
    }
    return PoseEstimate(
        pose, rng.normal(size=(6, 6)), "ambiguous", ("two poses", "a note"), 0.25, keypoints, np.arange(4.0),
        (Alternative(other, np.eye(6), np.array(0.4), np.array(1.0)),), {"total": 0.2},
        Camera(500.0, 510.0, 49.5, 40.0, (100, 80), (0.1, 0.0, 0.0, 0.0), 0.02), load_cad("car"),
    )  # fmt: skip


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    there = an_estimate()
    (tmp_path / "pose.json").write_text(there.to_json())
    back = read_estimate(tmp_path / "pose.json", load_cad("car"))
    assert json.loads(back.to_json()) == json.loads(there.to_json())
    assert back.pose is not None
    assert there.pose is not None
    np.testing.assert_array_equal(back.pose.matrix, there.pose.matrix)
    np.testing.assert_array_equal(back.keypoints["points_px"], there.keypoints["points_px"])
    assert back.keypoints["inliers"].dtype == bool


def test_an_estimate_of_nothing_comes_back(tmp_path: Path) -> None:
    camera = Camera(500, 500, 32, 24, (64, 48))
    there = PoseEstimate(None, None, "not_found", ("dark",), 0.0, {}, None, (), {}, camera, load_cad("car"))
    (tmp_path / "pose.json").write_text(there.to_json())
    assert read_estimate(tmp_path / "pose.json", load_cad("car")).to_json() == there.to_json()


def test_another_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pose.json").write_text(an_estimate().to_json())
    with pytest.raises(
        ValueError, match=r"pose\.json: is of 'car', a mesh that differs from the 'xwing' given"
    ):
        read_estimate(tmp_path / "pose.json", load_cad("xwing"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, car = tmp_path / "pose.json", load_cad("car")
    with pytest.raises(FileNotFoundError, match="`geopose estimate photo.jpg --json"):
        read_estimate(path, car)
    whole = json.loads(an_estimate().to_json())
    mirrored = {"matrix_m": np.diag([1.0, 1.0, -1.0, 1.0]).tolist()}
    for text, message in [
        ("{", "not JSON"),
        ("[]", "its format is None, expected 'geopose/pose_estimate/1'"),
        (json.dumps({**whole, "format": "other"}), "its format is 'other'"),
        (json.dumps({k: v for k, v in whole.items() if k != "camera"}), "no 'camera'"),
        (
            json.dumps({**whole, "covariance_rho_m_phi_rad": [1.0]}),
            r"covariance_rho_m_phi_rad of shape \(1,\)",
        ),
        (json.dumps({**whole, "cam_from_obj": mirrored}), "matrix_m holds no rotation"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            read_estimate(path, car)
        assert str(caught.value).startswith(f"{path}: ")
