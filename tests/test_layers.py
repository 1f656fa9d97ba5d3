"""The plan of the house: who imports whom, how long files and functions are, and that imports do no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geopose

PACKAGE = Path(geopose.__file__).parent
LAYER_OF = {
    "_io": 0,
    "geometry": 0,
    "cad": 1,
    "nets": 1,
    "opencv_yaml": 1,
    "data": 2,
    "checkpoint": 3,
    "distributed": 3,
    "train": 3,
    "train_options": 3,
    "train_state": 3,
    "align": 3,
    "compare": 3,
    "posenet_train": 3,
    "refiner_train": 3,
    "docking_train": 3,
    "docking_report": 3,
    "azimuth_train": 3,
    "azimuth_report": 3,
    "presets": 3,
    "preset_report": 3,
    "image": 3,
    "result": 3,
    "focal": 3,
    "saved": 3,
    "stages": 3,
    "estimate": 3,
    "track": 3,
    "video": 3,
    "export": 3,
    "fit": 3,
    "train_report": 3,
    "recalibrate": 3,
    "calibrate": 3,
    "render_set": 3,
    "describe": 3,
    "report": 3,
    "scores": 3,
    "summary": 3,
    "evaluate": 4,
    "sharpness": 3,
    "view": 4,
    "diagnose": 4,
    "diagnose_page": 4,
    "visualize": 2,  # draws from mesh, camera and numbers alone, so that train and estimate can draw
    "demo": 4,
    "bench": 4,
    "cli": 5,
    "cli_options": 5,
    "cli_models": 5,
    "cli_pictures": 5,
    "cli_figures": 5,
    "__main__": 6,
}
STRANGERS = {("cad", "nets"), ("nets", "cad")}  # same layer, and nothing to say to each other
NESTED_FOLDERS = {"cad/gallery", "weights"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _part(module: str) -> str:
    """The first-level part of a dotted name: `cad` for `geopose.cad.render`."""
    return module.split(".")[1]


def _imported_names(node: ast.AST, package: str) -> list[str]:
    """Dotted names that an import statement brings in; public names of the package count as their home."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        up = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*up, base]).rstrip(".")
    if base == "geopose":
        return [geopose._HOME_OF.get(alias.name, f"geopose.{alias.name}") for alias in node.names]
    return [f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names]


def _is_module(dotted: str) -> bool:
    path = PACKAGE.joinpath(*dotted.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import from geopose in a file, wherever it stands."""
    package = ".".join(["geopose", *path.relative_to(PACKAGE).parent.parts])
    for node in ast.walk(ast.parse(path.read_text())):
        for name in _imported_names(node, package):
            if name.startswith("geopose.") and not name.startswith("geopose.__"):
                yield getattr(node, "lineno", 0), name


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in LAYER_OF, f"{_name(path)} has no layer: plan it in LAYER_OF"
    for line, name in _imports(path):
        other = _part(name)
        where = f"{_name(path)}:{line} imports {name}"
        assert other in LAYER_OF, f"{where}, which is no part of the plan"
        assert LAYER_OF[other] <= LAYER_OF[own], f"{where}: layer {LAYER_OF[own]} imports {LAYER_OF[other]}"
        assert (own, other) not in STRANGERS, where


def test_the_reader_of_imports_sees_every_spelling() -> None:
    source = "import geopose.cad\nfrom . import x\nfrom ..nets import y\nfrom geopose import train, evaluate"
    found = [_imported_names(node, "geopose.data") for node in ast.parse(source).body]
    assert found == [
        ["geopose.cad"],
        ["geopose.data"],
        ["geopose.nets"],
        ["geopose.train", "geopose.evaluate"],
    ]


def test_no_import_cycles() -> None:
    """Between files, counting only imports that run when the file is imported."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        parts = ["geopose", *path.relative_to(PACKAGE).with_suffix("").parts]
        package = ".".join(parts[:-1])
        dotted = package if parts[-1] == "__init__" else ".".join(parts)
        body = ast.parse(path.read_text()).body
        names = {name for node in body for name in _imported_names(node, package)}
        graph[dotted] = {name for name in names if name.startswith("geopose.") and name != dotted}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph.get(start, ()))
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo.extend(graph.get(name, ()))
        return seen

    assert [name for name in graph if name in reachable(name)] == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text()
    lines = len(source.splitlines())
    assert lines <= MAX_FILE_LINES, f"{_name(path)} has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{_name(path)}: {node.name} has {length} lines"


def test_folders_are_one_deep() -> None:
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES} - {"."}
    assert {folder for folder in folders if "/" in folder} <= NESTED_FOLDERS


def _statements_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module that do something, beyond naming things."""
    quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        ):
            continue
        if not isinstance(statement, quiet):
            yield statement


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_modules_only_define(path: Path) -> None:
    found = [
        ast.unparse(statement)[:80] for statement in _statements_at_import(ast.parse(path.read_text()).body)
    ]
    assert found == [], f"{_name(path)} does work at import"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "cv2", "scipy", "matplotlib", "trimesh", "kornia")
    assert _run(f"import sys, geopose; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_importing_every_module_changes_no_global_state() -> None:
    code = """
import logging, os, pkgutil, importlib
import numpy, torch, cv2, matplotlib, kornia
import geopose
def state():
    return (torch.get_num_threads(), torch.get_rng_state().sum().item(), str(numpy.random.get_state()),
            cv2.getNumThreads(), dict(os.environ), logging.root.handlers[:], torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), dict(matplotlib.rcParams))
before = state()
names = [m.name for m in pkgutil.walk_packages(geopose.__path__, 'geopose.') if m.name != 'geopose.__main__']
for name in names:
    importlib.import_module(name)
assert state() == before
"""
    assert _run(code) == "", "an import printed something"
