"""The objects and pictures of the other renderer: the house, the comparison and, where Mitsuba is there, a picture."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from helpers import load_script

from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import render
from geopose.cad.symmetry import find_symmetries
from geopose.data.bop import read_bop
from geopose.data.sample import look_at
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

SMALL = Camera(150.0, 150.0, 79.5, 59.5, (160, 120))


@pytest.fixture(scope="module", name="script")
def loaded() -> ModuleType:
    return load_script("benchmarks", "independent.py")


@pytest.fixture(scope="module")
def house(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "house.glb"
    script.house().export(path)
    return path


def pose_of(model: CadModel, azimuth: float, elevation: float = 0.5) -> Pose:
    R = look_at(elevation, azimuth, 0.2)
    return Pose(R, np.array([0.0, 0.0, 2.5 * model.diameter]) - R @ model.bounds.mean(0))


def test_the_house_is_closed_painted_and_looks_different_from_every_side(house: Path) -> None:
    model = load_cad(house)
    assert model.warnings == ()
    assert model.is_watertight
    assert model.extents == pytest.approx([0.126, 0.096, 0.12], abs=1e-6)
    assert len(model.faces) <= 2500  # what training keeps: more would blur the paint
    assert not find_symmetries(model).is_symmetric
    views = [render(model, SMALL, pose_of(model, 0.5 * np.pi * i)) for i in range(4)]
    colors = np.array([v.color[v.mask].mean(0) for v in views])
    assert min(np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]) > 0.02


def test_the_panels_stand_upright(script: ModuleType, house: Path) -> None:
    """The front has a green door at its foot; the texture's first row is at the top."""
    model = load_cad(house)
    seen = render(model, SMALL, pose_of(model, -0.5 * np.pi, 0.0))
    door = np.array([30, 90, 60]) / 255
    rows = np.nonzero((np.abs(seen.color - door) < 0.02).all(-1) & seen.mask)
    assert len(rows[0]) > 20
    assert seen.xyz[rows][:, 2].max() < 0.03
    assert seen.xyz[rows][:, 1] == pytest.approx(-0.04, abs=1e-6)


def test_the_comparison_sees_a_shift_and_a_depth(
    script: ModuleType, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_cad(house)
    pose = pose_of(model, 0.7)
    monkeypatch.setattr(script, "CAMERA", SMALL)
    fine = render(model, SMALL.crop_resize(np.array([-0.5, -0.5, 159.5, 119.5]), (640, 480)), pose)
    whole = cv2.resize(fine.mask.astype(np.float32), (160, 120), interpolation=cv2.INTER_AREA)
    depth = render(model, SMALL, pose).depth
    found = script.compare(model, pose, whole, depth + np.float32(0.002))
    assert found["iou"] > 0.97
    assert [found["x"], found["y"]] == pytest.approx([0, 0], abs=0.05)
    assert found["depth_mm"] == pytest.approx(2, abs=1e-3)
    shifted = script.compare(model, pose, np.roll(whole, (1, -2), (0, 1)), depth)
    assert [shifted["x"] - found["x"], shifted["y"] - found["y"]] == pytest.approx([2, -1], abs=1e-4)


def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "manifold3d", None)
    with pytest.raises(SystemExit, match="manifold3d is missing: pip install mitsuba manifold3d"):
        script.bracket()


def test_the_bracket_is_one_closed_part_without_symmetry(script: ModuleType) -> None:
    pytest.importorskip("manifold3d", reason="pip install manifold3d")
    mesh = script.bracket()
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert 1500 < len(mesh.faces) < 4000
    assert mesh.extents[:2] == pytest.approx([96, 60], abs=0.1)
    assert not find_symmetries(load_cad(mesh, "mm")).is_symmetric


def test_mitsuba_and_we_mean_the_same_by_a_pose(
    script: ModuleType, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set is read back as users read it."""
    pytest.importorskip("mitsuba", reason="pip install mitsuba")
    monkeypatch.setattr(script, "CAMERA", SMALL)
    monkeypatch.setattr(script, "VIEW", replace(script.VIEW, distance=(1.9, 2.2)))
    script.main(["pictures", str(house), "--count", "1", "--samples", "2", "--out", str(tmp_path / "set")])
    dataset = read_bop(tmp_path / "set")
    (frame,) = dataset.target_frames(1)
    image, camera = frame.load()
    assert camera.size_wh == (160, 120)
    model = load_cad(house)
    seen = cv2.imread(str(frame.scene / "mask" / "000000_000000.png"), cv2.IMREAD_GRAYSCALE)
    assert seen is not None
    ours = render(model, camera, frame.instances[0].pose).mask
    assert (ours & (seen > 0)).sum() / (ours | (seen > 0)).sum() > 0.96
    assert dataset.objects[1].diameter == pytest.approx(model.diameter, rel=1e-6)
    assert (tmp_path / "set" / "check.png").is_file()
