"""What is handed out: the source archive, the wheel made from it, and that the wheel works by itself. No network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import geopose

ROOT = Path(__file__).parents[1]
LARGEST = 20_000_000  # bytes; a data set that has slipped in is larger
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("the source tree is not here", allow_module_level=True)
pytest.importorskip("setuptools", "77", reason="setuptools comes with the extra [test]")


def _run(code: str, cwd: Path, **environment: str) -> str:
    names = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ, **names}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive of a copy of this tree, and the wheel of what is in that archive."""
    folder = tmp_path_factory.mktemp("dist")
    junk = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "_build", "gallery", "out", "runs", "geopose-demo"
    )
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=lambda path, names: junk(path, names) - _kept(path))
    (source / "docs" / "_build").mkdir()
    (source / "docs" / "_build" / "index.html").write_text("built")
    _run(f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", source)
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    unpacked = folder / "unpacked" / archive.name.removesuffix(".tar.gz")
    _run(f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})", unpacked)
    return folder


def _kept(path: str) -> set[str]:
    return {"gallery"} if Path(path).name == "cad" else set()


def _sources() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "geopose").rglob("*.py")}


PACKAGE_DATA = {
    "geopose/py.typed",
    "geopose/weights/refiner.geopose",
    "geopose/weights/xwing.geopose",
    "geopose/pose_estimate.schema.json",
}


def test_source_archive(built: Path) -> None:
    archive = next(built.glob("*.tar.gz"))
    assert archive.name == f"geopose-{geopose.__version__}.tar.gz"
    assert archive.stat().st_size < LARGEST
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames() if not file.getmember(name).isdir()}
    assert names >= _sources() | PACKAGE_DATA
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/conf.py", "tests/helpers.py"} <= names
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"geopose", "geopose.egg-info", "tests", "docs", "examples", "benchmarks"}
    assert not [name for name in names if name.startswith("docs/_build") or name.endswith(".pyc")]


def test_wheel(built: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert wheel.name == f"geopose-{geopose.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        entry_points = file.read(f"geopose-{geopose.__version__}.dist-info/entry_points.txt").decode()
    installed = {name for name in names if ".dist-info/" not in name}
    assert installed == _sources() | PACKAGE_DATA
    assert "geopose = geopose.cli:main" in entry_points


def test_the_wheel_works_by_itself(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as file:
        file.extractall(tmp_path / "site")
    code = (
        "import geopose; from geopose.checkpoint import model_of; from geopose.cli import main\n"
        "print(geopose.__file__); print(model_of('xwing')); main(['info', 'xwing'])"
    )
    cache = str(tmp_path / "cache")
    out = _run(code, tmp_path, PYTHONPATH=str(tmp_path / "site"), GEOPOSE_CACHE=cache).splitlines()
    assert out[0].startswith(str(tmp_path / "site"))
    assert out[1] == str(tmp_path / "site" / "geopose" / "weights" / "xwing.geopose")
    assert "diameter" in "\n".join(out[2:])


def test_only_tested_versions_of_python_are_declared() -> None:
    """The classifiers name the minor versions that the tests have been run with."""
    from setuptools.config.setupcfg import read_configuration

    metadata = read_configuration(ROOT / "setup.cfg")["metadata"]
    assert {c.split(" :: ")[-1] for c in metadata["classifiers"] if " :: 3." in c} == {"3.11"}
