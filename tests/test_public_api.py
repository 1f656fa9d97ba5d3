"""The public names and their signatures, checked in: a change here is a change for every user."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geopose

PUBLIC = [
    "CadModel",
    "Camera",
    "PnPOptions",
    "PnPResult",
    "Pose",
    "PoseEstimate",
    "PoseEstimator",
    "Rendering",
    "Symmetries",
    "TrackOptions",
    "Tracker",
    "TrainOptions",
    "choose_keypoints",
    "estimate_pose",
    "find_symmetries",
    "load_cad",
    "render",
    "solve_pnp",
    "train",
]
SIGNATURES = {
    "load_cad": ["path_or_name", "unit"],
    "Camera": ["fx", "fy", "cx", "cy", "size_wh", "distortion"],
    "Pose": ["R", "t"],
    "solve_pnp": ["points_obj", "points_px", "camera", "*cov_px", "*options", "*generator"],
    "estimate_pose": ["img", "cad", "*camera", "*box", "*model", "*device"],
    "train": ["cad", "out", "options"],
    "Tracker": ["estimator", "camera", "options"],
    "Tracker.update": ["self", "frame"],
    "PoseEstimator.load": ["path", "device"],
    "PoseEstimator.estimate": ["self", "img", "camera", "box"],
    "PoseEstimator.estimate_all": ["self", "img", "camera", "max_instances"],
}
MEMBERS = {
    "Camera": ["from_matrix", "from_fov", "load", "save", "project", "unproject", "crop_resize", "K"],
    "Pose": ["matrix", "inverse", "apply", "from_matrix", "from_rvec_tvec", "from_quat_wxyz", "__matmul__"],
    "PoseEstimate": ["overlay", "to_json"],
}


def _resolve(dotted: str) -> object:
    found: object = geopose
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def test_inventory() -> None:
    assert geopose.__all__ == ["__version__", *PUBLIC]
    assert dir(geopose) == sorted(geopose.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(geopose, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__module__.startswith("geopose.")
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    """Listed parameters come first and in this order; a star marks keyword-only ones; more may follow."""
    value = _resolve(name)
    parameters = inspect.signature(value).parameters.values()  # type: ignore[arg-type]
    found = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]
    expected = SIGNATURES[name]
    if name == "PoseEstimator.load":
        found = [p for p in found if p != "cls"]
    assert found[: len(expected)] == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_members(name: str) -> None:
    assert [m for m in MEMBERS[name] if not hasattr(getattr(geopose, name), m)] == []


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _resolve("nonsense")


@pytest.mark.parametrize("first", ["import geopose.train", "from geopose import train"])
def test_train_is_the_function_whoever_imports_first(first: str) -> None:
    code = (
        f"{first}\nimport geopose, geopose.train\nfrom geopose import train\nassert train is geopose.train\n"
    )
    code += "from geopose.train import train as function\nassert train is function and callable(train)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("libGL.so.1: cannot open shared object file: No such file or directory", "libgl1"),
        ("libgthread-2.0.so.0: cannot open shared object file: No such file or directory", "libglib2.0-0"),
        ("libstrange+1.so.7.2: cannot open shared object file: No such file", "apt-file search"),
    ],
)
def test_missing_system_library_is_named(message: str, package: str) -> None:
    advice = geopose.import_advice(ImportError(message))
    assert advice is not None
    assert advice.endswith(package) or package in advice
    assert message.split(":")[0] in advice


def test_other_import_errors_pass_unchanged() -> None:
    assert geopose.import_advice(ImportError("No module named 'cv2'")) is None


def test_opencv_without_its_library_gives_the_advice(tmp_path: Path) -> None:
    """A cv2 that fails like the real one does on a bare server."""
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({message!r})\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport geopose\ngeopose.render"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "apt-get install libgl1" in done.stderr.splitlines()[-1]


def test_changelog_knows_this_version() -> None:
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", changelog.read_text(), flags=re.MULTILINE)
    assert versions[0] == geopose.__version__
