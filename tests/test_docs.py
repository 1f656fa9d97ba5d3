"""The pages keep their word: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

import geopose
from geopose import cli
from geopose.demo import flight, photograph, star_field
from geopose.train import TrainOptions
from geopose.visualize import save_image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not here", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(path: Path, language: str) -> Iterator[tuple[int, str]]:
    """First line and text of the fenced blocks in a language."""
    text = path.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found[1] == language:
            yield text[: found.start(2)].count("\n") + 1, found[2]


def _with(language: str) -> list[Path]:
    return [path for path in PAGES if any(True for _ in _blocks(path, language))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of: photo.jpg of the X-wing, camera.json, part.stl."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    camera = geopose.Camera.from_fov(np.deg2rad(50), (640, 480))
    camera.save(folder / "camera.json")
    sky = star_field(generator, camera.size_wh)
    picture = photograph(geopose.load_cad("xwing"), camera, flight(12)[6], sky, generator)
    save_image(picture, folder / "photo.jpg")
    part = trimesh.creation.box((80, 50, 20))
    part.apply_translation((40, 25, 10))
    part.export(folder / "part.stl")
    return folder


def _checked_training(cad: Any, out: str | Path, options: TrainOptions | None = None) -> Path:
    """Stands for `train`, which takes minutes: the mesh is read with the options' unit, nothing is learned."""
    geopose.load_cad(cad, (options or TrainOptions()).unit)
    return Path(out)


@pytest.mark.filterwarnings("ignore::geopose.cad.model.CadWarning")
@pytest.mark.parametrize("path", _with("python"), ids=_name)
def test_python_of_a_page_runs(path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page, one after the other, as a reader would type them; trainings are only checked."""
    monkeypatch.chdir(files)
    for owner in (geopose, sys.modules["geopose.train"]):
        monkeypatch.setattr(owner, "train", _checked_training)
    names: dict[str, object] = {}
    for line, source in _blocks(path, "python"):
        code = compile("\n" * (line - 1) + source, str(path), "exec")
        exec(code, names)
    assert getattr(names.get("found"), "status", "ok") == "ok", (
        "the page shows an answer that it should not rely on"
    )


def _commands(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and words of the commands in a page's shell blocks, variables put in."""
    for first, block in _blocks(path, "sh"):
        variables: dict[str, str] = {}
        lines = block.replace("\\\n", "  ").splitlines()
        for number, line in enumerate(lines, first):
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line.strip()):
                variables[assigned[1]] = assigned[2]
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            for part in re.split(r"&&|;|\|", line):
                if words := shlex.split(part, comments=True):
                    yield number, words


def _arguments_of_geopose(words: list[str]) -> list[str] | None:
    """What follows `geopose`, `.venv/bin/geopose` or `torchrun ... -m geopose`; None for another command."""
    words = words[words[0] == "time" :]
    words = words[3:] if words[:2] == ["taskset", "-c"] else words
    if Path(words[0]).name == "geopose":
        return words[1:]
    starts = words.index("geopose") if "geopose" in words else 0
    return words[starts + 1 :] if starts and words[starts - 1] == "-m" else None


@pytest.mark.parametrize("path", _with("sh"), ids=_name)
def test_commands_of_a_page_parse(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real argument parser; scripts that are called exist."""
    for line, words in _commands(path):
        where = f"{_name(path)}:{line}: {' '.join(words)}"
        arguments = _arguments_of_geopose(words)
        for script in (w for w in words if w.endswith(".py")):
            assert (ROOT / script).is_file(), f"{where}: no such script"
        if arguments is None:
            continue
        try:
            cli._parsed(arguments)
        except SystemExit as stop:
            if stop.code != 0:  # 0: asked for --help
                pytest.fail(f"{where}: {capsys.readouterr().err}")


def test_the_reader_of_commands_sees_every_spelling(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```sh\nV="--elevation -5 90"\n.venv/bin/geopose train a.stl $V \\\n   --unit mm  # why\n'
        "true && torchrun --nproc_per_node 2 -m geopose info xwing\nls\ntime taskset -c 0 geopose demo\n```\n"
    )
    found = [_arguments_of_geopose(words) for _, words in _commands(page)]
    assert found == [
        ["train", "a.stl", "--elevation", "-5", "90", "--unit", "mm"],
        None,
        ["info", "xwing"],
        None,
        ["demo"],
    ]


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("gallery/"):  # the gallery is made by the build
            assert (path.parent / target).exists(), f"{_name(path)}: {target}"


def test_no_page_is_orphaned() -> None:
    listed = set(re.findall(r"^(?:[\w/-]+)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE))
    assert {p.stem for p in DOCS.glob("*.md")} - {"index"} <= listed


def test_every_public_name_is_in_the_reference() -> None:
    """Names of the package once each, and every module without an underscore; `geopose.train` is the function."""
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    names = re.findall(r"auto(?:function|class):: geopose\.(\w+)", text)
    assert sorted(names) == sorted(set(geopose.__all__) - {"__version__"})
    modules = re.findall(r"automodule:: ([\w.]+)\n(?:   :exclude-members: (.*))?", text)
    package = ROOT / "geopose"
    parts = [p.relative_to(package).with_suffix("").parts for p in package.rglob("*.py")]
    expected = {".".join(["geopose", *p]) for p in parts if not any(name.startswith("_") for name in p)}
    assert sorted(m for m, _ in modules) == sorted(expected - {"geopose.train"})
    left_out = {f"{module}.{name}" for module, names in modules if names for name in names.split(", ")}
    homes = {f"{home}.{name}" for name, home in geopose._HOME_OF.items() if home != "geopose.train"}
    assert left_out == {name for name in homes if name.rpartition(".")[0] in dict(modules)}


@pytest.mark.parametrize("path", TUTORIALS, ids=_name)
def test_tutorials_say_what_they_do(path: Path) -> None:
    """They are run by the build of the documentation; here: each has a title, a text, and only public imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title, line, *_ = (ast.get_docstring(tree) or "\n").splitlines()
    assert title
    assert set(line) <= {"="}
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        assert not any(part.startswith("_") for name in names for part in name.split("."))
