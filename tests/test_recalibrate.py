"""A model calibrated anew: the same weights to the byte, another calibration, and its history told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from safetensors import safe_open

from geopose import cli
from geopose.cad.model import CadModel, load_cad
from geopose.calibrate import BEST_FEATURES
from geopose.checkpoint import load_model, model_of, read_metadata, rewrite
from geopose.data.synthetic import SyntheticDataset
from geopose.recalibrate import recalibrate


@pytest.fixture(scope="module")
def trained() -> Path:
    return model_of("xwing")


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key).tobytes() for key in file.keys()}


def test_only_what_renders_say_of_it_changes(trained: Path, tmp_path: Path) -> None:
    before, whole = read_metadata(trained), trained.read_bytes()
    out = recalibrate(trained, tmp_path / "again.geopose", 0.02, seed=7, workers=0, device="cpu", quiet=True)
    assert trained.read_bytes() == whole
    assert tensors(out) == tensors(trained)
    after = read_metadata(out)
    told = {"calibration", "figures", "command"}
    assert {k: v for k, v in after.items() if k not in told} == {
        k: v for k, v in before.items() if k not in told
    }
    assert set(after["calibration"]) == set(before["calibration"])
    assert set(after["calibration"]["confidence"]["weights"]) == set(BEST_FEATURES)
    assert after["calibration"]["pose_dof"] > 3
    assert after["calibration"]["scale"] != before["calibration"]["scale"]  # other pictures
    assert after["figures"]["images"] >= 4
    command = "geopose calibrate xwing.geopose --out again.geopose --minutes 0.02 --seed 7"
    assert after["command"] == f"{before['command']} && {command}"


def test_covariances_alone_can_be_calibrated(trained: Path, tmp_path: Path) -> None:
    before = read_metadata(trained)
    out = recalibrate(
        trained,
        tmp_path / "b.geopose",
        0.02,
        seed=8,
        workers=0,
        device="cpu",
        covariance_only=True,
        quiet=True,
    )
    after = read_metadata(out)
    spread = {"pose_scale", "pose_dof"}
    kept = {k: v for k, v in before["calibration"].items() if k not in spread}
    assert {k: v for k, v in after["calibration"].items() if k not in spread} == kept
    assert spread < set(after["calibration"])
    assert after["figures"]["keypoint_nll"] == before["figures"]["keypoint_nll"]
    assert after["command"].endswith("--minutes 0.02 --seed 8 --covariance-only")


def test_things_may_differ_from_their_mesh(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    class Watched(SyntheticDataset):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            asked.append(self.options.mesh_error)

    monkeypatch.setattr("geopose.recalibrate.SyntheticDataset", Watched)
    out = tmp_path / "c.geopose"
    for error in (None, 0.02):
        recalibrate(trained, out, 0.01, workers=0, device="cpu", mesh_error=error, quiet=True)
    assert asked == [0.0] * 3 + [0.02] * 3
    assert read_metadata(out)["command"].endswith("--minutes 0.01 --seed 12 --mesh-error 0.02")


def test_the_whole_mesh_is_rendered_where_it_is_given(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the colour of the training, and no other mesh."""
    whole = trimesh.creation.icosphere(subdivisions=5, radius=0.05)
    whole.apply_scale((1.0, 0.6, 0.3))
    whole.export(tmp_path / "pebble.stl")
    part = load_cad(tmp_path / "pebble.stl", "m")
    meta = load_model(trained)[1] | {"content_hash": part.content_hash, "unit": "m", "name": "pebble"}
    meta["options"] = meta["options"] | {"color": "gold"}
    monkeypatch.setattr("geopose.recalibrate.checkpoint.load_model", lambda _: ({}, meta))
    rendered: list[CadModel] = []

    def stop(model: CadModel, *_: object) -> None:
        rendered.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr("geopose.recalibrate.SyntheticDataset", stop)
    for cad in (None, tmp_path / "pebble.stl"):
        with pytest.raises(KeyboardInterrupt):
            recalibrate(trained, tmp_path / "d.geopose", 0.01, workers=0, cad=cad, quiet=True)
    light, full = rendered
    assert len(full.faces) == len(whole.faces) != len(light.faces)
    assert full.colors is not None
    assert np.allclose(full.colors[0], [1, 215 / 255, 0], atol=1e-6)
    with pytest.raises(ValueError, match="was trained on 'pebble', a mesh that differs from cad='car'"):
        recalibrate(trained, tmp_path / "d.geopose", 0.01, cad="car")


def test_the_command_replaces_the_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "xwing.geopose"
    model.write_bytes(trained.read_bytes())
    options = ["--cad", "xwing", "--minutes", "0.01", "--workers", "0", "--device", "cpu"]
    assert cli.main(["calibrate", str(model), *options]) == 0
    said = capsys.readouterr().out
    assert "found" in said
    assert "add 01d" in said
    assert read_metadata(model)["command"].endswith("--minutes 0.01 --seed 12 --cad xwing")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["xwing.geopose"]


def test_one_that_is_stopped_leaves_the_model_as_it_was(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    model = tmp_path / "xwing.geopose"
    model.write_bytes(trained.read_bytes())
    monkeypatch.setattr("geopose.train_report.judge_scenes", stop)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, None, 0.01, workers=0, device="cpu", quiet=True)
    assert model.read_bytes() == trained.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["xwing.geopose"]


def test_what_cannot_be_right_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes: got 0, expected a positive number of minutes"):
        recalibrate(trained, minutes=0)
    with pytest.raises(ValueError, match="seed: got -1, expected a number >= 0"):
        recalibrate(trained, seed=-1)
    with pytest.raises(ValueError, match="mesh_error: got 0.5, expected diameters, 0 to 0.1"):
        recalibrate(trained, mesh_error=0.5)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        recalibrate(tmp_path / "none.geopose")


def test_damaged_metadata_are_named(trained: Path, tmp_path: Path) -> None:
    damaged = rewrite(trained, tmp_path / "damaged.geopose", {"options": {"minutes": 1}})
    with pytest.raises(
        ValueError, match=r"damaged\.geopose: not the checkpoint of a pose model: .*'crop_size'"
    ):
        recalibrate(damaged)
