"""`geopose render`: its ground truth, its pictures by several processes, and that they are those of the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh

from geopose import cli
from geopose.cad.model import CadModel
from geopose.cad.symmetry import find_symmetries
from geopose.data.bop import read_bop
from geopose.data.picture import SyntheticOptions
from geopose.data.synthetic import SyntheticDataset
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.render_set import render_set
from geopose.train_options import TrainOptions


@pytest.fixture
def brick() -> CadModel:
    return CadModel.from_trimesh(trimesh.creation.box((0.1, 0.06, 0.04)), "brick")


@pytest.mark.parametrize("mesh_error", [0.0, 0.08])
def test_what_the_border_cuts_off_counts_as_hidden(
    tmp_path: Path, brick: CadModel, mesh_error: float
) -> None:
    options = SyntheticOptions(
        scene_wh=(160, 120), scene_range=(90.0, 160.0), occluders=0.0, mesh_error=mesh_error
    )
    render_set(brick, tmp_path, 8, options, seed=2, split="test")
    items = SyntheticDataset(brick, np.zeros((1, 3)), find_symmetries(brick), options, 2, kind="scene")
    table = json.loads((tmp_path / "test/000000/scene_gt_info.json").read_text())
    cut_off = 0
    for frame in read_bop(tmp_path, "test").frames:
        item, info = items[frame.im_id], table[str(frame.im_id)][0]
        assert info["visib_fract"] == pytest.approx(float(item["visib_fract"]), rel=1e-6)
        assert frame.instances[0].visib_fract == info["visib_fract"] <= 1
        assert info["px_count_valid"] == item["mask"].sum() <= info["px_count_all"]
        pose, camera = Pose(item["R"], item["t"]), Camera.from_matrix(item["K"], (160, 120))
        corners = np.asarray(camera.project(pose.apply(brick.vertices)), np.float32)
        area = cv2.contourArea(cv2.convexHull(corners))  # the outline of a box is convex
        assert info["px_count_all"] >= 0.97 * area
        assert mesh_error or info["px_count_all"] == pytest.approx(area, rel=0.03)
        x, y, width, height = info["bbox_obj"]
        np.testing.assert_allclose(
            [x, y, x + width, y + height], [*corners.min(0), *corners.max(0)], atol=1e-3
        )
        cut_off += info["px_count_valid"] < 0.8 * area
    assert cut_off >= 2


def test_depth_of_large_things_fits_into_the_file(tmp_path: Path) -> None:
    ship = CadModel.from_trimesh(trimesh.creation.box((10, 6, 4)), "ship")
    options = SyntheticOptions(scene_wh=(160, 120), scene_range=(20.0, 60.0), clutter=1.0, scattered=5)
    render_set(ship, tmp_path, 4, options, split="test")
    items = SyntheticDataset(ship, np.zeros((1, 3)), find_symmetries(ship), options, 0, kind="scene")
    for frame in read_bop(tmp_path, "test").frames:
        depth = items[frame.im_id]["depth"]
        assert depth.max() > 6.6, "beyond 16 bits of a tenth of a millimetre"
        np.testing.assert_allclose(frame.load_depth(), depth, atol=0.006)


def test_ranks_together_make_the_set_of_one(tmp_path: Path, brick: CadModel) -> None:
    brick.trimesh().export(tmp_path / "brick.stl")
    words = [
        sys.executable,
        "-m",
        "geopose",
        "render",
        str(tmp_path / "brick.stl"),
        "--unit",
        "m",
        "--count",
        "5",
    ]
    words += ["--scene-wh", "96", "72", "--scene-range", "40", "90", "--split", "test", "--out"]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    one, two = tmp_path / "one", tmp_path / "two"
    processes = [  # as they are started plainly, and by torchrun
        subprocess.Popen(
            [*words, str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | ranked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for out, ranked in (
            (one, {}),
            (two, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}),
            (two, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}),
        )
    ]
    printed = []
    try:
        for process in processes:
            out, said = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]
            printed.append(out)
    finally:
        for process in processes:
            process.kill()
    assert printed == [f"{one}\n", f"{two}\n", ""]
    for name in ("sheet.png", "models/models_info.json", "models/obj_000001.ply"):
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    single = one / "test" / "000000"
    for i in range(5):
        scene, number = two / "test" / f"{i % 2:06d}", i // 2
        for folder, end in (("rgb", ""), ("depth", ""), ("mask", "_000000"), ("mask_visib", "_000000")):
            written, expected = (
                scene / folder / f"{number:06d}{end}.png",
                single / folder / f"{i:06d}{end}.png",
            )
            assert written.read_bytes() == expected.read_bytes(), written
        for name in ("scene_gt.json", "scene_gt_info.json", "scene_camera.json"):
            tables = [json.loads((each / name).read_text()) for each in (scene, single)]
            assert tables[0][str(number)] == tables[1][str(i)], name


def test_only_rank_0_says_where_the_model_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import geopose.train  # noqa: F401  the module, not the function of that name

    monkeypatch.setattr(sys.modules["geopose.train"], "train", lambda cad, out, options: Path(out))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, printed in (("0", "a.geopose\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", "car", "--out", "a.geopose"]) == 0
        assert capsys.readouterr().out == printed


def test_pictures_are_those_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SyntheticOptions] = []

    def record(model: Any, out: str, count: int, options: SyntheticOptions, *_: Any) -> str:
        asked.append(options)
        return out

    monkeypatch.setattr("geopose.render_set.render_set", record)
    words = ["render", "car", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert cli.main([*words, "--scattered", "0", "--alike", "0.25"]) == 0
    assert asked[0] == TrainOptions().pictures()
    assert (asked[1].scattered, asked[1].alike) == (0, 0.25)


@pytest.mark.parametrize("words", [("--scattered", "-1"), ("--alike", "1.5"), ("--seed", "-1")])
def test_other_things_that_cannot_be_made(
    tmp_path: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", "car", "--out", str(tmp_path / "set"), *words]) == 1
    assert f"{words[0].lstrip('-')}: expected" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_second_set_in_a_folder_leaves_the_first_as_it_is(
    tmp_path: Path, brick: CadModel, capsys: pytest.CaptureFixture[str]
) -> None:
    brick.trimesh().export(tmp_path / "brick.stl")
    trimesh.creation.box((0.2, 0.06, 0.04)).export(tmp_path / "other.stl")
    more = ["--unit", "m", "--count", "1", "--out", str(tmp_path / "set"), "--scene-wh", "96", "72"]
    more += ["--scene-range", "40", "90", "--split"]
    brick_words, other_words = (
        ["render", str(tmp_path / name), *more] for name in ("brick.stl", "other.stl")
    )
    assert cli.main([*brick_words, "train_pbr"]) == 0

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}

    first = files()
    assert cli.main([*other_words, "test"]) == 1
    assert "obj_000001.ply is another mesh than 'other'; choose another folder" in capsys.readouterr().err
    assert files() == first
    assert not (tmp_path / "set" / "test").exists()
    assert cli.main([*brick_words, "test"]) == 0
    assert first.items() <= files().items()
    assert (tmp_path / "set" / "sheet_test.png").is_file()
    assert cli.main([*brick_words, "test"]) == 1
    assert "holds a scene already; choose another folder or split" in capsys.readouterr().err
    (tmp_path / "set" / "sheet_val.png").write_text("somebody's")
    second = files()
    assert cli.main([*brick_words, "val"]) == 1
    assert "sheet_val.png is there already" in capsys.readouterr().err
    assert files() == second
