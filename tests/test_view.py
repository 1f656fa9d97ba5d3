"""The scene in space holds what the estimate says, and the ellipsoid the truths that it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flights import xwing_frames
from PIL import Image

from geopose import cli
from geopose.estimate import PoseEstimator, model_of
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.view import build_scene, ellipsoid


def test_the_ellipsoid_holds_its_share_of_the_truths() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) * [0.01, 0.02, 0.03, 0.004, 0.003, 0.002]
    covariance, point = root.T @ root, np.array([0.3, -0.2, 2.0])
    axes, directions = ellipsoid(covariance, point)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    assert np.linalg.det(directions) == pytest.approx(1)
    xi = rng.multivariate_normal(np.zeros(6), covariance, 20_000)
    moved = exp_so3(xi[:, 3:]) @ point + xi[:, :3]  # the first order of exp(xi) p
    inside = (((moved - point) @ directions / axes) ** 2).sum(1) < 1
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


@pytest.fixture(scope="module")
def flown() -> tuple[Camera, Pose, np.ndarray]:
    camera, poses, pictures = xwing_frames((75,))
    return camera, poses[0], pictures[0]


def test_the_scene_is_built(flown: tuple[Camera, Pose, np.ndarray]) -> None:
    viser = pytest.importorskip("viser", reason="viser is not installed (extra [view])")
    camera, truth, picture = flown
    estimate = PoseEstimator.load(model_of("xwing"), "cpu").estimate(picture, camera)
    assert estimate.pose is not None
    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    try:
        parts = build_scene(server, estimate, picture)
        assert {"/camera", "/object", "/axes", "/rays", "/doubt"} <= set(parts)
        assert {n for n in parts if n.startswith("/alternatives/")} == {
            f"/alternatives/{i}{more}" for i in range(len(estimate.alternatives)) for more in ("", "/weight")
        }
        np.testing.assert_allclose(parts["/object"].position, estimate.pose.t)
        np.testing.assert_allclose(parts["/object"].wxyz, estimate.pose.quat_wxyz)
        assert parts["/camera"].fov == pytest.approx(2 * np.arctan(0.5 * camera.size_wh[1] / camera.fy))
        lines = parts["/rays"].points
        assert lines.shape == (len(estimate.keypoints["points_px"]), 2, 3)
        np.testing.assert_allclose(camera.project(lines[:, 1]), estimate.keypoints["points_px"], atol=1e-2)
        assert np.linalg.norm(parts["/doubt"].position - truth.t) < 0.1 * truth.t[2]
    finally:
        server.stop()


def test_the_command(
    flown: tuple[Camera, Pose, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.fromarray(flown[2]).save(tmp_path / "a.png")
    words = ["view", str(tmp_path / "a.png"), "--model", str(model_of("xwing")), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "viser", None)
        assert cli.main(words) == 1
        assert "geopose[view]" in capsys.readouterr().err
    pytest.importorskip("viser", reason="viser is not installed (extra [view])")
    flown[0].save(tmp_path / "c.json")
    assert cli.main([*words, "--camera", str(tmp_path / "c.json"), "--port", "0", "--seconds", "0.2"]) == 0
    assert "look at http://127.0.0.1:" in capsys.readouterr().out
