"""The scene in space holds what the estimate says, and the ellipsoid the truths that it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flights import xwing_frames
from PIL import Image

from geopose import cli
from geopose.cad.model import load_cad
from geopose.checkpoint import model_of
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.result import PoseEstimate
from geopose.view import build_scene, ellipsoid, straightened


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
    longer = np.sqrt(2 / rng.chisquare(4.0, (20_000, 1)))  # a Student t of the same covariance
    axes = ellipsoid(covariance, point, dof=4.0)[0]
    moved = (
        exp_so3(longer * xi[:, 3:] / 10) @ point + longer * xi[:, :3] / 10
    )  # small enough for the first order
    inside = (((moved - point) @ directions / (axes / 10)) ** 2).sum(1) < 1
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
        names = {"/camera", "/camera/picture", "/object", "/object/solid", "/rays", "/points", "/doubt"}
        assert names <= set(parts)
        assert {n for n in parts if n.startswith("/alternatives/")} == {
            f"/alternatives/{i}{more}" for i in range(len(estimate.alternatives)) for more in ("", "/weight")
        }
        np.testing.assert_allclose(parts["/object"].position, estimate.pose.t)
        np.testing.assert_allclose(parts["/object"].wxyz, estimate.pose.quat_wxyz)
        corners = parts["/camera"].points[:4, 1]
        np.testing.assert_allclose(camera.project(corners)[2], np.array(camera.size_wh) - 0.5, atol=1e-3)
        behind = estimate.pose.apply(estimate.model.vertices)[:, 2].max()
        assert (parts["/camera"].points[:4, 1, 2] > behind).all(), "the picture hides nothing of the object"
        np.testing.assert_allclose(parts["/camera/picture"].position, corners.mean(0))
        np.testing.assert_allclose(
            camera.project(parts["/points"].points),
            camera.project(estimate.pose.apply(estimate.keypoints["points_obj"])),
            atol=1e-2,
        )
        lines = parts["/rays"].points
        assert lines.shape == (len(estimate.keypoints["points_px"]), 2, 3)
        np.testing.assert_allclose(camera.project(lines[:, 1]), estimate.keypoints["points_px"], atol=1e-2)
        start = server.initial_camera
        eye = Pose.from_matrix(_looking(start.position, start.look_at))
        seen = np.vstack([corners, np.zeros((1, 3)), estimate.pose.apply(estimate.model.vertices)])
        px = Camera.from_fov(start.fov, (1400, 900), axis="y").project(eye.apply(seen))
        assert ((px > 0) & (px < [1400, 900])).all(), "at first, all of it is in the window"
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
    shown = ["--port", "0", "--seconds", "0.2"]
    assert cli.main([*words, "--camera", str(tmp_path / "c.json"), *shown]) == 0
    first = capsys.readouterr().out
    assert "look at http://127.0.0.1:" in first
    saved = str(tmp_path / "pose.json")
    assert cli.main(["estimate", *words[1:], "--camera", str(tmp_path / "c.json"), "--json", saved]) == 0
    capsys.readouterr()
    for mesh in (["--cad", "xwing"], ["--model", str(model_of("xwing"))]):
        assert cli.main(["view", words[1], *mesh, "--estimate", saved, *shown]) == 0
        assert capsys.readouterr().out.split("std. dev.")[0] == first.split("std. dev.")[0], "no other answer"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--estimate", "pose.json"], "--estimate: one of --cad and --model"),
        (["--estimate", "pose.json", "--cad", "xwing", "--fov", "50"], "leave out --camera, --fov and --box"),
        (["--estimate", "pose.json", "--cad", "xwing"], "pose.json: no such file; `geopose estimate"),
        (["--fov", "50"], "one of --cad and --model is needed"),
    ],
)
def test_the_command_says_what_is_wrong(
    flown: tuple[Camera, Pose, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    pytest.importorskip("viser", reason="viser is not installed (extra [view])")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(flown[2]).save("a.png")
    assert cli.main(["view", "a.png", *more]) == 1
    assert message in capsys.readouterr().err


def test_a_picture_of_another_size_is_refused() -> None:
    viser = pytest.importorskip("viser", reason="viser is not installed (extra [view])")
    camera = Camera(500, 500, 32, 24, (64, 48))
    estimate = PoseEstimate(None, None, "not_found", (), 0.0, {}, None, (), {}, camera, load_cad("car"))
    server = viser.ViserServer("127.0.0.1", 0, verbose=False)
    try:
        with pytest.raises(ValueError, match="img: got a picture of 48x64, .* from one of 64x48"):
            build_scene(server, estimate, np.zeros((64, 48, 3), np.uint8))
        assert set(build_scene(server, estimate)) == {"/camera", "/camera/label"}
    finally:
        server.stop()


def test_a_straightened_picture_is_that_of_a_camera_without_distortion() -> None:
    """Where a straight camera sees a point, its picture is as bright as the bent one where that sees the point."""
    bent = Camera(300, 310, 150.0, 120.0, (320, 240), (-0.3, 0.1, 0.001, 0.0))
    rows, columns = np.mgrid[:240, :320]
    picture = np.stack([columns * 0.7, rows, 0 * rows], -1).astype(np.uint8)  # brightness tells the place
    points = np.array([[0.0, 0.0, 1.0], [0.3, 0.2, 1.0], [-0.35, -0.3, 1.0]])
    straight = Camera(300, 310, 150.0, 120.0, (320, 240))
    flat = straightened(picture, bent)
    for there, here in zip(np.rint(straight.project(points)).astype(int), bent.project(points), strict=True):
        np.testing.assert_allclose(flat[there[1], there[0], :2] / [0.7, 1.0], here, atol=2.0)


def _looking(position: np.ndarray, look_at: np.ndarray) -> np.ndarray:
    """(4, 4) into the frame of a looker whose up is -y."""
    forward = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    out[:3, 3] = -out[:3, :3] @ position
    return out
