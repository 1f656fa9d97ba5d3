"""ONNX files against torch, and a pose from them without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from flights import xwing_frames

from geopose import cli
from geopose.checkpoint import load_nets, model_of, save_model
from geopose.data.sample import box_centre_size
from geopose.estimate import PoseEstimator
from geopose.export import export_onnx
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import rotation_error, translation_error
from geopose.geometry.pnp import solve_pnp
from geopose.geometry.pose import Pose
from geopose.nets import Locator, build_keypoint_net
from geopose.stages import locate, read_crops

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_pose.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "xwing"
    assert cli.main(["export", str(model_of("xwing")), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def flown() -> tuple[Camera, list[Pose], list[np.ndarray]]:
    return xwing_frames((40, 75, 110))


def test_the_files_are_there(folder: Path) -> None:
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["keypoints.onnx", "locator.onnx", "model.json", "refiner.onnx"]


@pytest.mark.parametrize(
    ("role", "shapes"),
    [
        ("locator", [(1, 3, 96, 128), (1, 3, 224, 320), (3, 3, 64, 64)]),
        ("keypoints", [(1, 3, 128, 128), (5, 3, 128, 128)]),
        ("refiner", [(1, 9, 128, 128), (3, 9, 128, 128)]),
    ],
)
def test_onnxruntime_says_what_torch_says(folder: Path, role: str, shapes: list[tuple[int, ...]]) -> None:
    net = load_nets(model_of("xwing"))[0][role]
    net.mixed = False  # type: ignore[assignment]
    session = onnxruntime.InferenceSession(str(folder / f"{role}.onnx"))
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        x = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            out: Any = net(x)
        expected = [out[name] for name in ("heatmaps", "mask")] if isinstance(out, dict) else [out]
        found = session.run(None, {"image": x.numpy()})
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-3, rtol=1e-3)


def test_the_json_holds_what_the_estimator_uses(folder: Path) -> None:
    said = json.loads((folder / "model.json").read_text())
    estimator = PoseEstimator.load(model_of("xwing"))
    np.testing.assert_allclose(said["keypoints_m"], estimator.keypoints)
    assert said["crop"] == {"size_px": estimator.crop_size, "scale": estimator.crop_scale}
    assert said["covariance"]["scale"] == estimator.calibration["scale"]
    assert said["covariance"]["floor_px"] == estimator.calibration["floor_px"]
    assert said["diameter_m"] == pytest.approx(estimator.model.diameter)
    np.testing.assert_allclose(said["bounds_m"], estimator.model.bounds, atol=1e-5)


def test_an_hourglass_and_a_model_without_refiner(tmp_path: Path) -> None:
    torch.manual_seed(1)
    hourglass = build_keypoint_net({"kind": "hourglass", "num_keypoints": 4, "stacks": 2, "features": 16})
    meta = {
        "name": "toy", "unit": "m", "content_hash": "0", "diameter": 1.0, "keypoints": np.eye(4, 3), "symmetries": {},
        "options": {"crop_size": 64}, "mesh": {"vertices": np.eye(3), "faces": [[0, 1, 2]]},
    }  # fmt: skip
    path = save_model(tmp_path / "toy.geopose", {"keypoints": hourglass, "locator": Locator()}, meta)
    assert cli.main(["export", str(path), "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out/model.json").read_text())
    assert said["networks"]["keypoints"]["outputs"] == ["heatmaps"]
    assert sorted(said["networks"]) == ["keypoints", "locator"]
    x = torch.rand(2, 3, 64, 64)
    net = load_nets(path)[0]["keypoints"]
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "out/keypoints.onnx")).run(
        None, {"image": x.numpy()}
    )
    with torch.inference_mode():
        np.testing.assert_allclose(found, net(x)["heatmaps"].numpy(), atol=1e-3, rtol=1e-3)


def test_what_is_no_checkpoint_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.geopose").write_text("nothing")
    assert cli.main(["export", str(tmp_path / "bad.geopose"), "--out", str(tmp_path / "out")]) == 1
    assert "bad.geopose" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["symmetries", "content_hash"])
def test_damaged_metadata_are_named_before_anything_is_written(tmp_path: Path, name: str) -> None:
    nets, meta = load_nets(model_of("xwing"))
    damaged = save_model(tmp_path / "damaged.geopose", nets, {k: v for k, v in meta.items() if k != name})
    with pytest.raises(ValueError, match=rf"damaged\.geopose: not the checkpoint .* hold no '{name}'"):
        export_onnx(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_example_finds_the_keypoints_pose(
    folder: Path, tmp_path: Path, flown: tuple[Camera, list[Pose], list[np.ndarray]]
) -> None:
    """The same keypoints, another solver; and nothing of torch or geopose is imported."""
    camera, truths, pictures = flown
    estimator = PoseEstimator.load(model_of("xwing"))
    code = (
        "import sys, numpy as np\nsys.path.insert(0, sys.argv[1])\nimport cv2, json, onnx_pose\n"
        "K = np.array(json.loads(sys.argv[3]))\n"
        "rules = json.load(open(sys.argv[2] + '/model.json'))\nout = []\n"
        "for path in sys.argv[4:]:\n"
        "    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)\n"
        "    rvec, t, which = onnx_pose.pose(sys.argv[2], image, K)\n"
        "    points = onnx_pose.keypoints(sys.argv[2], image, rules)[0]\n"
        "    out.append([rvec.ravel().tolist(), t.ravel().tolist(), points.tolist()])\n"
        "assert not {'torch', 'geopose'} & set(sys.modules)\nprint(json.dumps(out))"
    )
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    K = json.dumps(np.asarray(camera.K).tolist())
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE.parent), str(folder), K, *paths],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for (rvec, t, points), picture, truth in zip(json.loads(done.stdout), pictures, truths, strict=True):
        best = locate(estimator.nets["locator"], picture, 1)
        reading = read_crops(
            estimator.nets["keypoints"], picture, best, estimator.crop_size, estimator.crop_scale,
            estimator.calibration,
        )[0]  # fmt: skip
        own = solve_pnp(estimator.keypoints, reading.points_px, camera, cov_px=reading.cov_px)
        size = box_centre_size(reading.box)[1] / estimator.crop_scale
        assert np.median(np.linalg.norm(np.array(points) - reading.points_px, axis=1)) < 0.02 * size
        found = Pose.from_rvec_tvec(np.array(rvec), np.array(t))
        assert rotation_error(found, own.pose) < np.deg2rad(5)
        assert translation_error(found, own.pose) < 0.05 * truth.t[2]
        assert rotation_error(found, truth) < np.deg2rad(12)


def test_the_example_is_short_and_runs_as_a_script(
    folder: Path, tmp_path: Path, flown: tuple[Camera, list[Pose], list[np.ndarray]]
) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60
    camera, _, pictures = flown
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(pictures[0], cv2.COLOR_RGB2BGR))
    words = [sys.executable, str(EXAMPLE), str(folder), str(tmp_path / "a.png"), str(camera.fx)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[" in done.stdout
    done = subprocess.run(words[:3], capture_output=True, text=True)
    assert done.returncode == 1
    assert "onnx_pose.py part_onnx photo.jpg 800" in done.stderr
