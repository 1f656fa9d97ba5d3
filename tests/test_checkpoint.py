"""The model file: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from geopose import checkpoint
from geopose.estimate import PoseEstimator


def tiny_meta(**more: object) -> dict[str, object]:
    return {
        "name": "toy",
        "unit": "mm",
        "content_hash": "ab" * 32,
        "keypoints": np.arange(12.0).reshape(4, 3),
        "figures": {"found": 0.5, "rotation_median_deg": float("nan")},
        "mesh": {"vertices": np.eye(3), "faces": np.array([[0, 1, 2]]), "colors": None},
        **more,
    }


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    net(torch.rand(2, 3, 8, 8))
    return net


def test_weights_and_metadata_come_back(tmp_path: Path) -> None:
    net = tiny_net()
    path = checkpoint.save_model(tmp_path / "deep" / "a.geopose", {"keypoints": net}, tiny_meta())
    states, meta = checkpoint.load_model(path)
    for name, tensor in net.state_dict().items():
        stored = states["keypoints"][name]
        assert stored.dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(stored, expected, rtol=0, atol=0)
    assert meta["unit"] == "mm"
    assert meta["keypoints"] == np.arange(12.0).reshape(4, 3).tolist()
    assert meta["figures"] == {"found": 0.5, "rotation_median_deg": None}
    np.testing.assert_array_equal(meta["mesh"]["vertices"], np.eye(3))
    assert meta["mesh"]["faces"].dtype == np.int32
    assert "colors" not in meta["mesh"]
    assert os.listdir(path.parent) == ["a.geopose"]


def test_large_weights_take_a_byte_and_lose_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nn.Conv2d(32, 64, 3)
    with torch.no_grad():
        net.weight[3] = 0
        net.weight[5] *= 1e3  # another channel's size does not matter
    path = checkpoint.save_model(tmp_path / "a.geopose", {"keypoints": net}, tiny_meta())
    stored = checkpoint.load_model(path)[0]["keypoints"]["weight"]
    step = net.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((stored - net.weight).abs() <= 0.5001 * step).all()
    assert path.stat().st_size < net.weight.numel() + 4000


@pytest.mark.parametrize(
    ("role", "options"),
    [
        ("keypoints", {"kind": "unet", "num_keypoints": 5}),
        ("keypoints", {"kind": "hourglass", "num_keypoints": 5, "stacks": 1, "features": 16}),
        ("refiner", {"widths": [8, 16, 16]}),
        ("locator", {}),
    ],
)
def test_networks_are_rebuilt_and_answer_alike(tmp_path: Path, role: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = checkpoint.build_net(role, options).eval()
    path = checkpoint.save_model(tmp_path / "a.geopose", {role: net}, tiny_meta())
    assert path.stat().st_size < checkpoint.MAX_BYTES
    nets, _ = checkpoint.load_nets(path)
    assert not nets[role].training
    picture = torch.rand(1, 9 if role == "refiner" else 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = net(picture), nets[role](picture)
    ours, theirs = (o["heatmaps"] if role == "keypoints" else o for o in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_weights_that_float16_cannot_hold_are_kept_whole(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, 1e6)
    states, _ = checkpoint.load_model(checkpoint.save_model(tmp_path / "a.geopose", {"x": net}, {}))
    assert states["x"]["weight"][0, 0] == 1e6


def test_saving_refuses_what_cannot_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.geopose"
    with pytest.raises(ValueError, match="12 MB"):
        checkpoint.save_model(path, {"x": nn.Linear(3500, 3500)}, {})
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.bias, float("nan"))
    with pytest.raises(ValueError, match=r"x\.bias are not finite"):
        checkpoint.save_model(path, {"x": broken}, {})
    with pytest.raises(ValueError, match="cannot store a object"):
        checkpoint.save_model(path, {"x": nn.Linear(2, 2)}, {"odd": object()})
    assert os.listdir(tmp_path) == []


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = checkpoint.save_model(tmp_path / "a.geopose", {"x": tiny_net()}, tiny_meta()).read_bytes()
    cut = tmp_path / "cut.geopose"
    for length in [0, 4, 8, 100, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.geopose: not a geopose checkpoint"):
            checkpoint.load_model(cut)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch " + str(_Bomb.target),)

    target = Path("unset")


def test_foreign_files_are_refused_and_never_executed(tmp_path: Path) -> None:
    _Bomb.target = tmp_path / "executed"
    path = tmp_path / "a.geopose"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="not a geopose checkpoint"):
        checkpoint.load_model(path)
    torch.save({"a": _Bomb()}, path)
    with pytest.raises(ValueError, match="not a geopose checkpoint"):
        checkpoint.load_model(path)
    assert not _Bomb.target.exists()
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a geopose checkpoint"):
        checkpoint.load_model(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        checkpoint.load_model(tmp_path / "missing.geopose")


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        "{}",
        '{"format_version": true, "roles": []}',
        '{"format_version": 1}',
        '{"format_version": 1, "roles": [{}]}',
        '{"format_version": 1, "roles": [["a"]]}',
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.geopose", metadata={"geopose": text})
    with pytest.raises(ValueError, match="metadata"):
        checkpoint.load_model(tmp_path / "a.geopose")


def test_a_newer_format_asks_for_a_newer_geopose(tmp_path: Path) -> None:
    text = json.dumps({"format_version": checkpoint.FORMAT_VERSION + 1, "roles": []})
    save_file({"net/x/a": torch.zeros(1)}, tmp_path / "a.geopose", metadata={"geopose": text})
    with pytest.raises(ValueError, match="newer geopose"):
        checkpoint.load_model(tmp_path / "a.geopose")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = checkpoint.build_net("locator", {})
    meta = tiny_meta(networks={"locator": {"width": 32}})
    path = checkpoint.save_model(tmp_path / "a.geopose", {"locator": net}, meta)
    with pytest.raises(ValueError, match="'locator' does not fit"):
        checkpoint.load_nets(path)


@pytest.fixture(scope="module")
def xwing_meta() -> dict[str, Any]:
    return checkpoint.load_model(checkpoint.model_of("xwing"))[1]


NEEDED = ("name", "unit", "content_hash", "diameter", "keypoints", "symmetries", "options")
WRONG: list[tuple[str, Any, str]] = [
    *((name, None, name if name in NEEDED[:3] else "") for name in NEEDED),
    ("mesh", None, "mesh"),
    ("roles", ["keypoints"], "roles"),
    ("named_keypoints", "x", ""),
    ("symmetries", {"discrete": []}, ""),
    ("diameter", 0, "diameter"),
    ("diameter", 1e300, "diameter"),
    ("diameter", "NaN", "diameter"),
    ("keypoints", np.eye(3).tolist(), "keypoints"),
    ("keypoints", np.zeros((16, 2)).tolist(), "keypoints"),
    ("keypoints", np.full((16, 3), None).tolist(), "keypoints"),
    ("calibration", "x", ""),
    ("calibration", {"pose_scale": None}, "pose_scale"),
    ("calibration", {"scale": [1.0, 2.0]}, "scale"),
    ("calibration", {"answers": {"at": None, "below": 1.0, "above": 1.0}}, "answers"),
    ("calibration", {"confidence": {"weights": {"fit": "x"}, "bias": 0.0}}, ""),
    ("options", {"crop_size": 10**6}, "crop_size"),
    ("options", {"crop_size": 0}, "crop_size"),
    ("options", {"crop_size": "x"}, "crop_size"),
    ("options", {"crop_size": 128, "crop_scale": 0}, "crop_scale"),
    ("options", {"crop_size": 128, "crop_scale": "NaN"}, "crop_scale"),
    ("options", {}, "no 'crop_size'"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_metadata_that_no_pose_model_has_are_refused(
    xwing_meta: dict[str, Any], name: str, value: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"^a\.geopose: not the checkpoint of a pose model: .*{words}"):
        with checkpoint.pose_model("a.geopose", {**xwing_meta, name: value}):
            PoseEstimator({}, {**xwing_meta, name: value}, torch.device("cpu"))


@pytest.mark.parametrize("name", NEEDED)
def test_metadata_that_are_missing_are_named(xwing_meta: dict[str, Any], name: str) -> None:
    meta = {k: v for k, v in xwing_meta.items() if k != name}
    with pytest.raises(ValueError, match=rf"^a\.geopose: .*metadata hold no '{name}'"):
        with checkpoint.pose_model("a.geopose", meta):
            PoseEstimator({}, meta, torch.device("cpu"))


def test_an_estimator_names_the_file_with_wrong_metadata(tmp_path: Path) -> None:
    out = tmp_path / "wrong.geopose"
    checkpoint.rewrite(checkpoint.model_of("xwing"), out, {"symmetries": None})
    with pytest.raises(ValueError, match=r"wrong\.geopose: not the checkpoint of a pose model"):
        PoseEstimator.load(out, "cpu", many=False)
    with pytest.raises(ValueError, match="path: got 5, expected the path"):
        PoseEstimator.load(5)  # type: ignore[arg-type]


def test_models_are_found_by_content_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    assert checkpoint.cache_dir() == tmp_path
    (tmp_path / "gone.geopose").symlink_to("nowhere.geopose")
    (tmp_path / "folder.geopose").mkdir()
    assert checkpoint.find_model("ab" * 32) is None
    (tmp_path / "junk.geopose").write_bytes(b"junk")
    path = checkpoint.cached_path("my part/1", "ab" * 32)
    assert path.parent == tmp_path
    checkpoint.save_model(path, {"x": nn.Linear(2, 2)}, tiny_meta())
    assert checkpoint.find_model("ab" * 32) == path
    assert checkpoint.find_model("cd" * 32) is None
    newer = checkpoint.save_model(tmp_path / "newer.geopose", {"x": nn.Linear(2, 2)}, tiny_meta())
    os.utime(path, (1e9, 1e9))
    assert checkpoint.find_model("ab" * 32) == newer
