"""Every command as a user types it: what it prints and writes, its exit code, and what it says when it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import subprocess
import sys
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from flights import xwing_frames
from helpers import data_path
from PIL import Image
from scipy.spatial.transform import Rotation

import geopose
from geopose import cli, cli_figures, cli_pictures, demo
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import CadModel, load_cad
from geopose.cad.symmetry import Symmetries
from geopose.checkpoint import model_of, read_metadata
from geopose.cli_options import add_options, options_from
from geopose.data.bop import read_bop
from geopose.data.bop_results import read_results
from geopose.data.bop_write import BopWriter
from geopose.data.sample import ViewSpace, projected_box
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.result import PoseEstimate
from geopose.train import TrainOptions

Captured = pytest.CaptureFixture[str]


class OneHot(torch.nn.Module):
    """A network whose heatmaps peak somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"heatmaps": torch.eye(32).expand(len(image), 16, 32, 32) * 9}


class Oracle:
    """An estimator that knows the pose, but for an error of one degree and a status of its choice."""

    crop_scale, crop_size = 1.5, 128

    def __init__(self, truths: list[Pose], status: str = "ok") -> None:
        self.truths, self.status = iter(truths), status
        self.model = load_cad("xwing")
        self.keypoints = choose_keypoints(self.model, 16)
        self.nets = {"keypoints": OneHot()}

    def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
        camera = camera or Camera(500.0, 500.0, 159.5, 119.5, (320, 240))
        truth = next(self.truths)
        pose = Pose(np.eye(3), truth.t) @ Pose.from_rvec_tvec(np.deg2rad([0.0, 0, 1]), np.zeros(3))
        pose = Pose(pose.R @ truth.R, truth.t)
        keypoints = {
            "points_px": camera.project(pose.apply(self.keypoints)),
            "cov_px": np.tile(np.eye(2), (16, 1, 1)),
            "inliers": np.ones(16, bool),
            "points_obj": self.keypoints,
        }
        given = projected_box(self.model.vertices, pose, camera) if box is None else np.asarray(box)
        reasons = () if self.status == "ok" else ("because",)
        return PoseEstimate(
            pose, 1e-4 * np.eye(6), self.status, reasons, 0.9, keypoints, given, (), {"total": 0.01}, camera, self.model
        )  # fmt: skip


AHEAD = Pose.from_rvec_tvec(np.array([1.2, 0.4, 0.1]), np.array([1.0, 2.0, 40.0]))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((240, 320, 3), 60, np.uint8)).save(path)
    return path


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    known = Oracle([AHEAD])
    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None, **_: known)
    return known


@pytest.fixture
def stl(tmp_path: Path) -> Path:
    path = tmp_path / "brick.stl"
    trimesh.creation.box((40.0, 30.0, 20.0)).export(path)
    return path


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))


def said(capsys: Captured) -> str:
    """What came on stderr: one line, and nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_console_script_and_module_are_the_same_command() -> None:
    by_module = subprocess.run(
        [sys.executable, "-m", "geopose", "--version"], capture_output=True, text=True, check=True
    )
    assert by_module.stdout == f"geopose {geopose.__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom geopose.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert cli.COMMANDS[name].help.split(":")[0] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["info"], ["info", "a", "--wrong"], ["train", "a", "--minutes", "x"]]
)
def test_wrong_usage_is_exit_code_2(argv: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: geopose" in capsys.readouterr().err


# options


@dataclass(frozen=True)
class Options:
    """Options of a test.

    Attributes:
        width: of the thing, 100 % of it.
        name: what it is called; kept: whether it is.
        span_deg: low and high.
        first, last: ends of it.
        several: any number of them.
    """

    width: float = 1.5
    name: str | None = None
    kept: bool | None = None
    span_deg: tuple[float, float] = (-1.0, 1.0)
    count: int = 3
    first: int = 0
    last: int = 9
    several: tuple[int, ...] = (1, 2)


def parsed(*argv: str) -> Options:
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    found = options_from(parser.parse_args(argv), Options)
    assert isinstance(found, Options)
    return found


def test_options_default_to_those_of_the_dataclass() -> None:
    assert parsed() == Options()


def test_options_take_the_type_of_the_field() -> None:
    words = ["--width", "2", "--name", "7", "--no-kept", "--span", "-20", "5", "--count", "9"]
    assert parsed(*words) == Options(2.0, "7", False, (-20.0, 5.0), 9)


def test_options_are_explained_by_the_docstring(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--width WIDTH of the thing, 100 % of it (default: 1.5)" in text
    assert "--name NAME what it is called" in text
    assert "--span LOW HIGH low and high (default: -1 1)" in text
    assert "--first FIRST ends of it (default: 0) --last LAST ends of it (default: 9)" in text
    assert "any number of them (default: 1 2)" in text
    assert parsed("--several").several == ()
    assert parsed("--several", "4", "5", "6").several == (4, 5, 6)


@pytest.mark.parametrize("options", [TrainOptions, ViewSpace])
def test_every_real_option_is_explained(options: type) -> None:
    from geopose.cli_options import _field_help

    helps = _field_help(options)
    assert [f.name for f in fields(options) if not helps.get(f.name)] == []


# benchmark


@pytest.mark.parametrize("kind", cli_figures.BENCHMARKS)
def test_benchmarks_take_their_options_and_write(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    calls: list[Any] = []

    def run(options: Options, out: Path | None = None) -> dict[str, Any]:
        calls.append((options, out))
        return {"table": "a table", "value": 1.5}

    module = types.SimpleNamespace(Options=Options, run=run)
    monkeypatch.setitem(sys.modules, f"geopose.bench.{kind}", module)  # type: ignore[misc]
    words = [
        "benchmark",
        kind,
        "--count",
        "4",
        "--out",
        str(tmp_path / "o.json"),
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert cli.main(words) == 0
    assert calls == [(Options(count=4), tmp_path / "o.json")]
    assert capsys.readouterr().out == "a table\n"
    assert json.loads((tmp_path / "r.json").read_text())["value"] == 1.5


def test_a_benchmark_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys\nfrom geopose.cli import main\ntry: main(['benchmark', '--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in cli_figures.BENCHMARKS)


# info


def test_info_of_a_mesh(stl: Path, capsys: Captured) -> None:
    assert cli.main(["info", str(stl), "--unit", "mm", "--json", "--keypoints", "8"]) == 0
    facts = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(facts["extents_m"], [0.04, 0.03, 0.02], rtol=1e-6)
    np.testing.assert_allclose(facts["diameter_m"], np.sqrt(0.0029), rtol=1e-6)
    assert facts["watertight"] is True
    assert facts["faces"] == 12
    assert facts["symmetries"] == {"discrete": 4, "continuous_axes": []}
    assert np.shape(facts["keypoints_m"]) == (8, 3)


def test_info_as_text(stl: Path, capsys: Captured) -> None:
    assert cli.main(["info", str(stl), "--unit", "mm"]) == 0
    out = capsys.readouterr().out
    assert "watertight      yes" in out
    assert "keypoints m     16 x 3 numbers" in out


def test_a_mesh_without_unit_gets_advice(stl: Path, capsys: Captured) -> None:
    assert cli.main(["info", str(stl)]) == 1
    error = said(capsys)
    assert "unit" in error
    assert "40" in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["info", "missing.stl", "--unit", "mm"], "missing.stl"),
        (["info", "missing.geopose"], "missing.geopose"),
        (["estimate", "missing.png"], "--cad and --model"),
        (
            ["estimate", "a.png", "--model", "m", "--instances", "0"],
            "--instances: got 0, expected at least 1",
        ),
        (["estimate", "a.png", "--model", "missing.geopose"], "missing.geopose"),
        (["estimate", "a.png", "--model", "m", "--camera", "c.json", "--fov", "50"], "--camera and --fov"),
        (["estimate", "a.png", "--cad", "iss"], "geopose train iss"),
        (["evaluate", "missing", "--model", "missing.geopose"], "missing"),
        (
            ["evaluate", "d", "--obj", "1", "--obj", "5", "--model", "m"],
            "--obj, --model: got objects [1, 5] and checkpoints ['m']",
        ),
        (
            ["evaluate", "d", "--obj", "5", "--obj", "5", "--model", "m", "--model", "n"],
            "expected each object once",
        ),
        (
            ["evaluate", "d", "--model", "m", "--model", "n"],
            "--obj, --model: got objects None and checkpoints",
        ),
        (
            [
                "evaluate",
                "d",
                "--obj",
                "1",
                "--obj",
                "5",
                "--model",
                "m",
                "--model",
                "n",
                "--report",
                "r.html",
            ],
            "--report: got 2 objects, expected one",
        ),
        (["render", "xwing", "--out", "set", "--backgrounds", "missing"], "missing"),
        (["render", "xwing", "--out", "set", "--count", "0"], "count"),
        (["render", "xwing", "--out", "set", "--mesh-error", "-0.01"], "mesh_error"),
        (["render", "xwing", "--out", "set", "--elevation", "50", "-50"], "elevation_deg"),
        (["train", "xwing", "--minutes", "-1"], "minutes"),
        (["demo", "--frames", "0"], "frames"),
        (["track", "missing.mp4", "--model", "missing.geopose"], "missing.geopose"),
        (["diagnose", "a.png", "--model", "m", "--camera", "c.json", "--fov", "50"], "--camera and --fov"),
        (["benchmark", "speed", "--rounds", "0"], "rounds"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    argv: list[str], words: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 1
    error = said(capsys)
    assert error.startswith("geopose: error: ")
    assert words in error


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("", 2, "the X-wing: poses of a short flight"),
        ("estmate a.png", 2, "no command 'estmate' (did you mean 'estimate'?)"),
        ("estimate a.png --modle m", 2, "no argument '--modle' (did you mean '--model'?); `geopose estimate"),
        ("train a.stl --minuts=3", 2, "no argument '--minuts' (did you mean '--minutes'?)"),
        ("info a.stl b.stl", 2, "'b.stl' is one too many"),
        ("estimate none.png --model XWING", 1, "photo: no such file 'none.png', expected a picture"),
        ("estimate folder --model XWING", 1, "photo: 'folder' is a folder, expected a picture"),
        ("diagnose a.png --model folder", 1, "folder: is a folder, expected a checkpoint"),
        ("estimate a.png --model none", 1, "none: no such checkpoint; `geopose train"),
        ("estimate a.png --model m --camera none.json", 1, "--camera: no such file 'none.json'"),
        ("estimate a.png --model m --camera folder", 1, "--camera: 'folder' is a folder"),
        ("estimate a.png --model XWING --camera c.json", 1, "camera: is for pictures of 64x48, got one of 32"),
        ("estimate a.png --model m --camera nofx.json", 1, "field 'fx' is missing"),
        ("estimate a.png --model m --fov 500", 1, "--fov: expected degrees between 0 and 180, got 500"),
        ("estimate text --model XWING", 1, "is not a picture of a known format"),
        ("estimate a.png --model m --overlay o.psd", 2, "--overlay: 'o.psd' ends in '.psd', expected"),
        ("track v.mp4 --model m --out o.gif", 2, "--out: 'o.gif' ends in '.gif', expected one of .mp4"),
        ("estimate a.png --model m --overlay o.xyz", 2, "--overlay: 'o.xyz' ends in '.xyz', expected"),
        ("estimate a.png --model m --json folder", 2, "--json: 'folder' is a folder, expected the name"),
        ("evaluate d --model m --csv text/r.csv", 2, "--csv: 'text/r.csv' cannot be written: 'text' is"),
        ("evaluate d --model m --report folder", 2, "--report: 'folder' is a folder"),
        ("track v.mp4 --model m --csv folder", 2, "--csv: 'folder' is a folder"),
        ("diagnose a.png --model m --out folder", 2, "--out: 'folder' is a folder"),
        ("train xwing --out folder", 2, "--out: 'folder' is a folder"),
        ("render xwing --out text", 2, "--out: 'text' cannot be written: 'text' is a file, not a folder"),
        ("export m --out text/a", 2, "--out: 'text/a' cannot be written: 'text' is a file"),
        ("demo --out text", 2, "--out: 'text' cannot be written: 'text' is a file, not a folder"),
        ("render xwing --out a --count two", 2, "--count: invalid int value: 'two'"),
        ("info a.stl --unit km", 2, "--unit: invalid choice: 'km'"),
        ("info empty.stl --unit mm", 1, "empty.stl: holds no faces"),
        ("calibrate XWING --workers -2", 1, "--workers: got -2, expected a number >= 0"),
        ("benchmark pnp --out folder", 2, "--out: 'folder' is a folder, expected the name"),
        ("benchmark regression --out text", 2, "--out: 'text' cannot be written: 'text' is a file, not a"),
    ],
)  # fmt: skip
def test_a_newcomers_mistakes_are_named(
    argv: str, code: int, words: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which argument, what came, what was expected; before any work is done, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty.stl").write_text("solid x\nendsolid x\n")
    (tmp_path / "nofx.json").write_text('{"fy": 9, "cx": 1, "cy": 2, "width": 32, "height": 24}')
    Image.new("RGB", (32, 24)).save("a.png")
    Camera(50, 50, 32, 24, (64, 48)).save("c.json")
    before = sorted(tmp_path.rglob("*"))
    try:
        ended: object = cli.main([w.replace("XWING", str(model_of("xwing"))) for w in argv.split()])
    except SystemExit as stopped:
        ended = stopped.code
    out, err = capsys.readouterr()
    assert (ended, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ("estimate a.png --model m.geopose --overlay a.png", "photo and --overlay: both are 'a.png'"),
        ("estimate a.png --model m.geopose --overlay sub/../a.png", "photo and --overlay"),
        ("estimate a.png --model m.geopose --overlay link.png", "photo and --overlay"),
        ("estimate a.png --model m.geopose --camera c.json --json c.json", "--camera and --json"),
        ("estimate a.png --cad box.stl --json box.stl", "--cad and --json"),
        ("estimate a.png --model m.geopose --overlay o.png --json ./o.png", "written twice"),
        ("diagnose a.png --model m.geopose --out a.png", "photo and --out"),
        ("view a.png --model m.geopose --estimate c.json --json c.json", "--estimate and --json"),
        ("info box.stl --json box.stl", "part and --json"),
        ("info m.geopose --json m.geopose", "part and --json"),
        ("train box.stl --out box.stl", "part and --out"),
        ("track v.avi --model m.geopose --out v.avi", "source and --out"),
        ("track v.avi --model m.geopose --csv v.avi", "source and --csv"),
        ("track v.avi --model m.geopose --csv new --json new", "--json and --csv"),
        ("evaluate sub --model n --model m.geopose --csv m.geopose", "--model and --csv"),
        ("evaluate sub --model m.geopose --report m.geopose", "--model and --report"),
        ("evaluate sub --model m.geopose --json m.geopose", "--model and --json"),
        ("calibrate m.geopose --json m.geopose", "model and --json"),
        ("calibrate m.geopose --cad box.stl --out box.stl", "--cad and --out"),
        ("render car --backgrounds sub --out sub", "--backgrounds and --out"),
        ("demo --model m.geopose --json m.geopose", "--model and --json"),
        ("benchmark speed --model m.geopose --out m.geopose", "--model and --out"),
        ("benchmark pnp --out new --json new", "--json and --out"),
    ],
)  # fmt: skip
def test_what_is_read_is_not_written_onto(
    argv: str, names: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "c.json", "box.stl", "m.geopose", "v.avi"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    monkeypatch.setitem(cli.COMMANDS, argv.split()[0], _idle(argv.split()[0]))
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv.split())
    assert stopped.value.code == 2
    assert names in capsys.readouterr().err


def _idle(name: str) -> cli.Command:
    """The command with its arguments, that does nothing."""
    return dataclasses.replace(cli.COMMANDS[name], run=lambda _: 0)


@pytest.mark.parametrize(
    "argv",
    [
        "calibrate m.geopose",
        "calibrate m.geopose --out m.geopose",
        "train box.stl --unit mm --out m.geopose",
        "train box.stl --unit mm --start m.geopose --out m.geopose",
        "train car --out car",
        "estimate a.png --model m.geopose --json -",
        "track v.avi --model m.geopose --json",
    ],
)
def test_an_output_may_replace_what_is_no_input(
    argv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a model itself: calibrated, or trained further."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "box.stl", "m.geopose", "v.avi", "car", "-"):
        (tmp_path / name).write_text(name)
    monkeypatch.setitem(cli.COMMANDS, argv.split()[0], _idle(argv.split()[0]))
    assert cli.main(argv.split()) == 0


@pytest.mark.parametrize("link", [False, True])
def test_train_does_not_replace_the_mesh(stl: Path, tmp_path: Path, link: bool) -> None:
    before, out = stl.read_bytes(), stl
    if link:
        out = tmp_path / "link.stl"
        out.symlink_to(stl)
    with pytest.raises(ValueError, match=r"out: got .*stl, which is the mesh itself"):
        sys.modules["geopose.train"].train(stl, out, TrainOptions(minutes=1e-3, unit="mm", quiet=True))
    assert stl.read_bytes() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".stl"] * (1 + link)


def test_train_says_where_to_go_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "file" / "cache"))
    assert cli.main(["train", "xwing"]) == 1
    error = said(capsys)
    assert "--out: not given, and the cache: " in error
    assert "is a file, not a folder; give --out FILE, or another cache folder in $GEOPOSE_CACHE" in error


def test_debug_may_stand_before_the_command(capsys: Captured) -> None:
    assert cli.main(["--debug", "info", "missing.stl", "--unit", "mm"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_the_system_says_comes_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def full(_: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "a.csv")

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", lambda _: None, full))
    assert cli.main(["info"]) == 1
    assert said(capsys) == (
        "geopose: error: No space left on device: 'a.csv': make room, then run the same command again\n"
    )


def test_debug_shows_where(capsys: Captured) -> None:
    assert cli.main(["info", "missing.stl", "--unit", "mm", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("geopose: error: ")


def test_a_mistake_in_the_program_is_named_as_such(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def broken(_: argparse.Namespace) -> int:
        raise KeyError("lost")

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", lambda _: None, broken))
    assert cli.main(["info"]) == 1
    assert said(capsys) == "geopose: error: KeyError: 'lost' (--debug shows where)\n"


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stopped(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command("", lambda _: None, stopped))
    assert cli.main(["info"]) == 130
    assert said(capsys) == "geopose: interrupted\n"


@pytest.mark.parametrize("name", ["ship", "ship.GEOPOSE", "ship.safetensors", "ship.v2"])
def test_info_knows_a_checkpoint_by_what_it_holds(name: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / name
    path.write_bytes(model_of("xwing").read_bytes())
    assert cli.main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "xwing"


def test_info_of_neither_a_checkpoint_nor_a_mesh(tmp_path: Path, capsys: Captured) -> None:
    for name, data, words in (
        ("cut", model_of("xwing").read_bytes()[:5000], "not a geopose checkpoint, or cut short"),
        ("part.step", b"ISO-10303-21;", "no reader for '.step'"),
        ("short", b"", "no reader for 'a file without suffix'"),
    ):
        (tmp_path / name).write_bytes(data)
        assert cli.main(["info", str(tmp_path / name), "--unit", "mm"]) == 1
        assert words in said(capsys)


# render, evaluate, train, estimate, demo


def test_render_writes_a_set_that_can_be_read(tmp_path: Path, stl: Path, capsys: Captured) -> None:
    out = tmp_path / "set"
    words = [
        "render",
        str(stl),
        "--unit",
        "mm",
        "--count",
        "3",
        "--out",
        str(out),
        "--scene-wh",
        "160",
        "120",
    ]
    words += ["--split", "test", "--elevation", "10", "60", "--scene-range", "30", "90"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == str(out)
    frames = read_bop(out, "test").frames
    assert len(frames) == 3
    model = load_cad(stl, "mm")
    for frame in frames:
        image, camera = frame.load()
        assert image.shape == (120, 160, 3)
        pose = frame.instances[0].pose
        camera_in_obj = pose.inverse().t - model.bounds.mean(0)
        elevation = np.rad2deg(np.arcsin(camera_in_obj[2] / np.linalg.norm(camera_in_obj)))
        assert 9.9 < elevation < 60.1
        assert (camera.project(pose.apply(np.zeros((1, 3)))) < [160, 120]).all()
    assert Image.open(out / "sheet.png").width > 700
    assert cli.main(words) == 1, "a set is not overwritten"


def test_train_hands_on_its_options(monkeypatch: pytest.MonkeyPatch, stl: Path, capsys: Captured) -> None:
    calls: list[Any] = []

    def record(cad: Any, out: str, options: TrainOptions) -> Path:
        calls.append((cad, out, options))
        return Path(out)

    monkeypatch.setattr(sys.modules["geopose.train"], "train", record)
    words = ["train", str(stl), "--unit", "mm", "--out", "a.geopose", "--minutes", "3", "--roll", "-60", "60"]
    assert cli.main([*words, "--no-pretrained", "--crop-size", "96"]) == 0
    (model, out, options), *_ = calls
    assert out == "a.geopose"
    assert model.content_hash == load_cad(stl, "mm").content_hash
    assert options == TrainOptions(
        minutes=3.0, unit="mm", roll_deg=(-60.0, 60.0), pretrained=False, crop_size=96
    )
    assert capsys.readouterr().out == "a.geopose\n"


def test_train_without_out_goes_where_estimate_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    monkeypatch.setattr(sys.modules["geopose.train"], "train", lambda cad, out, options: out)
    assert cli.main(["train", "xwing"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == tmp_path / "cache"
    assert load_cad("xwing").content_hash[:12] in path.name


def test_estimate_prints_and_writes(oracle: Oracle, photo: Path, tmp_path: Path, capsys: Captured) -> None:
    overlay, result = tmp_path / "o.png", tmp_path / "deep" / "r.json"
    words = [
        "estimate",
        str(photo),
        "--model",
        "m",
        "--fov",
        "40",
        "--overlay",
        str(overlay),
        "--json",
        str(result),
    ]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "status     ok, confidence 0.90" in out
    assert "x 1.0000  y 2.0000  z 40.0000 m" in out
    assert "0.4006 0.4002 0.0245 m" in out  # 0.01 sqrt(1 + y^2 + z^2), ...: the turn moves it, too
    value = json.loads(result.read_text())
    assert value["status"] == "ok"
    np.testing.assert_allclose(value["camera"]["fx"], 160 / np.tan(np.deg2rad(20)), rtol=1e-9)
    assert (np.asarray(Image.open(overlay)) != np.asarray(Image.open(photo))).any()


def test_the_deviations_printed_are_those_of_the_position() -> None:
    """A turn by 0.01 rad about the camera's x axis moves what is 10 m ahead by 0.1 m."""
    covariance = np.diag([0, 0, 0, 1e-4, 0, 0])
    found = PoseEstimate(
        Pose(np.eye(3), np.array([0.0, 0.0, 10.0])), covariance, "ok", (), 1.0, {}, None, (), {},
        Camera(500, 500, 320, 240, (640, 480)), load_cad("car"),
    )  # fmt: skip
    assert "std. dev.  0.0000 0.1000 0.0000 m, 0.57 0.00 0.00 deg" in cli_pictures._estimate_text(found)


def test_estimate_gives_several_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The model that comes with the package, and two ships."""
    ship, rng = load_cad("xwing"), np.random.default_rng(0)
    camera, (pose,), _ = xwing_frames([0])
    truths = [Pose(pose.R, np.array([x, 0.0, 30.0])) for x in (-8.0, 8.0)]
    picture = demo.star_field(rng, demo.SIZE_WH)
    for truth in truths:
        picture = demo.photograph(ship, camera, truth, picture, rng)
    Image.fromarray(picture).save(tmp_path / "two.png")
    camera.save(tmp_path / "cam.json")
    words = ["estimate", str(tmp_path / "two.png"), "--cad", "xwing", "--camera", str(tmp_path / "cam.json")]
    overlay, result = tmp_path / "o.png", tmp_path / "r.json"
    assert cli.main([*words, "--instances", "2", "--json", str(result), "--overlay", str(overlay)]) == 0
    out = capsys.readouterr().out
    assert "instance   1 of 2" in out
    assert "instance   2 of 2" in out
    found = json.loads(result.read_text())["instances"]
    assert [each["status"] for each in found] == ["ok", "ok"]
    at = sorted(each["cam_from_obj"]["t_m"][0] for each in found)
    np.testing.assert_allclose(at, [-8, 8], atol=0.1 * ship.diameter)
    changed = (np.asarray(Image.open(overlay)) != picture).any(-1)
    middle = changed.shape[1] // 2
    assert min(changed[:, :middle].sum(), changed[:, middle:].sum()) > 200


def test_estimate_json_alone_on_stdout(oracle: Oracle, photo: Path, capsys: Captured) -> None:
    words = ["estimate", str(photo), "--model", "m", "--box", "1", "2", "30", "40", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["box_px"] == [1, 2, 30, 40]


def test_estimate_reads_the_camera_file(
    oracle: Oracle, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    Camera(321.0, 322.0, 160.0, 120.0, (320, 240)).save(tmp_path / "cam.json")
    assert (
        cli.main(["estimate", str(photo), "--model", "m", "--camera", str(tmp_path / "cam.json"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["camera"]["fy"] == 322.0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "--camera cameras.txt",
            "cameras.txt: CAMERA_ID: holds the cameras [1, 2]; give --camera-id N to choose",
        ),
        ("--camera cameras.txt --camera-id 3", "no camera 3; there are [1, 2]"),
        ("--camera c.json --camera-id 1", "--camera-id: expected --camera cameras.txt with it, got 'c.json'"),
        ("--camera-id 1 --fov 50", "--camera-id: expected --camera cameras.txt with it, got None"),
        ("--camera cameras.txt --camera-id 2 --json", ""),
    ],
)
def test_one_of_several_colmap_cameras_is_chosen(
    oracle: Oracle,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    more: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cameras.txt").write_text("1 PINHOLE 640 480 500 510 320 240\n2 PINHOLE 320 240 250 255 160 120\n")
    Camera(321.0, 322.0, 160.0, 120.0, (320, 240)).save("c.json")
    assert cli.main(["estimate", str(photo), "--model", "m", *more.split()]) == bool(words)
    if words:
        assert words in said(capsys)
    else:
        camera = json.loads(capsys.readouterr().out)["camera"]
        assert [camera[name] for name in ("fx", "fy", "size_wh")] == [250, 255, [320, 240]]


def test_view_gives_its_estimate_as_json(
    oracle: Oracle, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    server = types.SimpleNamespace(get_port=lambda: 8080, stop=lambda: None)
    viser = types.SimpleNamespace(ViserServer=lambda *of, **more: server)
    monkeypatch.setitem(sys.modules, "viser", viser)  # type: ignore[misc]
    monkeypatch.setattr("geopose.view.build_scene", lambda *of: {})
    assert cli.main(["view", str(photo), "--model", "m", "--seconds", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cam_from_obj"]["t_m"] == [1, 2, 40]
    assert err == "look at http://127.0.0.1:8080 (Ctrl-C ends it)\n"


def test_calibrate_gives_its_figures_as_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    path, result = model_of("xwing"), tmp_path / "r.json"
    monkeypatch.setattr("geopose.recalibrate.recalibrate", lambda *of: path)
    value = {"file": str(path), "figures": read_metadata(path)["figures"]}
    assert cli.main(["calibrate", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == value
    assert cli.main(["calibrate", "m", "--json", str(result)]) == 0
    assert "found" in capsys.readouterr().out
    assert json.loads(result.read_text()) == value


def test_a_pose_that_is_not_sure_is_exit_code_3(oracle: Oracle, photo: Path, capsys: Captured) -> None:
    oracle.status = "no_consensus"
    assert cli.main(["estimate", str(photo), "--model", "m"]) == 3
    out = capsys.readouterr().out
    assert "no_consensus" in out
    assert "because" in out


def test_evaluate_prints_a_table_and_writes_the_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    root = data_path("lmo")
    known = Oracle([AHEAD] * 20)
    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None, **_: known)
    words = [
        "evaluate",
        str(root),
        "--obj",
        "9",
        "--model",
        "m",
        "--limit",
        "2",
        "--csv",
        str(tmp_path / "r.csv"),
    ]
    assert cli.main([*words, "--boxes", "gt", "--json", str(tmp_path / "r.json")]) == 0
    assert "ADD" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["summaries"][1]["found"] == 1.0
    assert (tmp_path / "r.csv").read_text().startswith("scene_id,im_id,obj_id,score,R,t,time")


def test_evaluate_takes_several_objects_with_a_model_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    brick = CadModel.from_trimesh(trimesh.creation.box((4.0, 3.0, 2.0)), "brick")
    masks = np.ones((2, 240, 320), bool)
    with BopWriter(tmp_path / "set", split="test", scene_id=1) as writer:
        for obj_id in (1, 5):
            writer.add_model(obj_id, brick, Symmetries.none())
        poses = [(1, AHEAD), (5, Pose(AHEAD.R, AHEAD.t + [1.0, 0, 0]))]
        camera = Camera(500.0, 500.0, 159.5, 119.5, (320, 240))
        writer.add(np.zeros((240, 320, 3), np.uint8), camera, poses, masks=masks, masks_visib=masks)
    loaded: list[Any] = []

    def load(path: str, device: str | None = None) -> Oracle:
        loaded.append(path)
        return Oracle([AHEAD] * 2)  # right for the first object, a quarter of the diameter off for the second

    monkeypatch.setattr(PoseEstimator, "load", load)
    csv, figures = tmp_path / "geopose_set-test.csv", tmp_path / "r.json"
    words = [
        "evaluate",
        "--obj",
        "5",
        "--model",
        "five",
        "--obj",
        "1",
        "--model",
        "one",
        str(tmp_path / "set"),
    ]
    assert cli.main([*words, "--csv", str(csv), "--json", str(figures)]) == 0
    assert loaded == ["five", "one"]
    out = capsys.readouterr().out
    assert out.index("object 5:") < out.index("object 1:") < out.index("objects 5, 1: means over the objects")
    written = json.loads(figures.read_text())
    assert [o["obj_id"] for o in written["objects"]] == [5, 1]
    assert [o["summaries"][1]["add_recall"]["0.1"] for o in written["objects"]] == [0, 1]
    assert written["mean"]["summaries"][1]["add_recall"]["0.1"] == 0.5
    results = read_results(csv)
    assert [r.obj_id for r in results] == [1, 5]
    assert results[0].time == results[1].time > 0


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.DemoResult, Path]:
    out = tmp_path_factory.mktemp("demo")
    truths = demo.flight(6)
    return demo.run_demo(out, Oracle(truths), frames=6), out  # type: ignore[arg-type]


def test_demo_writes_its_pictures(flown: tuple[demo.DemoResult, Path]) -> None:
    _, out = flown
    assert sorted(p.name for p in out.iterdir()) == ["animation.gif", "overlay.png"]
    with Image.open(out / "animation.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 6
        assert gif.size == demo.SIZE_WH
        gif.seek(0)
        red, green, _ = np.moveaxis(np.asarray(gif.convert("RGB")).astype(int), -1, 0)
    assert ((green - red) > 60).sum() > 100, "the outline"
    assert ((red - green) > 100).sum() > 20, "bolts"
    with Image.open(out / "overlay.png") as figure:
        assert figure.width > 1000


def test_demo_measures_against_the_truth(flown: tuple[demo.DemoResult, Path]) -> None:
    result, _ = flown
    assert [row["frame"] for row in result.rows] == list(range(6))
    np.testing.assert_allclose([row["rotation_error_deg"] for row in result.rows], 1.0, atol=1e-6)
    np.testing.assert_allclose([row["translation_error_m"] for row in result.rows], 0.0, atol=1e-9)
    assert result.summary["found"] == 1.0
    assert result.summary["right"] == 1.0
    assert "rotation 1.00 deg" in result.table()


def test_demo_shows_each_pose_above_the_true_one(flown: tuple[demo.DemoResult, Path]) -> None:
    result, _ = flown
    table = result.table(every=2)
    assert max(map(len, table.splitlines())) <= 110
    lines = [line.split() for line in table.splitlines()[3:9]]
    assert [line[:2] for line in lines[::2]] == [["0", "ok"], ["2", "ok"], ["4", "ok"]]
    turn = Rotation.from_rotvec([0, 0, 1], degrees=True)  # the oracle's error
    for found, true, pose in zip(lines[::2], lines[1::2], demo.flight(6)[::2], strict=True):
        assert true[0] == "truth"
        rotation = Rotation.from_matrix(pose.R)
        for numbers, expected in ((found[2:9], turn * rotation), (true[1:], rotation)):
            t, (w, *xyz) = np.array(numbers[:3], float), np.array(numbers[3:], float)
            np.testing.assert_allclose(t, pose.t, atol=6e-4)
            assert (Rotation.from_quat([*xyz, w]) * expected.inv()).magnitude() < 2e-4
        assert np.dot(np.array(found[5:9], float), np.array(true[4:], float)) > 0.99, "of one sign"
        assert found[9:11] == ["1.00", "deg"]


def test_demo_flight_stays_in_the_picture_and_before_the_camera() -> None:
    camera = Camera.from_fov(float(np.deg2rad(50)), demo.SIZE_WH)
    for pose in demo.flight(24):
        np.testing.assert_allclose(pose.R @ pose.R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose.R) > 0
        assert pose.t[2] > 20
        x, y = camera.project(pose.t[None])[0]
        assert 0.1 * 480 < x < 0.9 * 480
        assert 0.1 * 360 < y < 0.9 * 360


def test_demo_flies_nose_first() -> None:
    poses = demo.flight(400)
    for here, there in zip(poses[:-1:40], poses[1::40], strict=True):
        way = there.t - here.t
        assert here.R[:, 0] @ way / np.linalg.norm(way) > 0.99


def test_demo_photograph_shows_the_ship_where_it_projects() -> None:
    rng = np.random.default_rng(0)
    ship, pose = load_cad("xwing"), demo.flight(24)[5]
    camera = Camera.from_fov(float(np.deg2rad(50)), demo.SIZE_WH)
    black = np.zeros((360, 480, 3), np.uint8)
    ys, xs = np.nonzero(demo.photograph(ship, camera, pose, black, rng).max(-1) > 30)
    box = projected_box(ship.vertices, pose, camera)
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()], box, atol=6)


def test_demo_without_pose_still_ends(tmp_path: Path, capsys: Captured) -> None:
    class Blind(Oracle):
        def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
            assert camera is not None
            return PoseEstimate(None, None, "not_found", ("dark",), 0.0, {}, None, (), {}, camera, self.model)

    result = demo.run_demo(tmp_path, Blind([]), frames=2, progress=True)  # type: ignore[arg-type]
    bars = capsys.readouterr().err
    assert "flying: 100%" in bars
    assert "drawing: 100%" in bars
    assert result.summary["found"] == 0
    assert "not_found" in result.table()
    assert "nan" not in result.table()


def test_demo_gives_the_truth_as_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    truths = demo.flight(2)
    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None, **_: Oracle(truths))
    assert cli.main(["demo", "--frames", "2", "--out", str(tmp_path), "--json"]) == 0
    for row, truth in zip(json.loads(capsys.readouterr().out)["rows"], truths, strict=True):
        np.testing.assert_allclose(row["true_t_m"], truth.t)
        w, *xyz = row["true_quat_wxyz"]
        np.testing.assert_allclose(Rotation.from_quat([*xyz, w]).as_matrix(), truth.R, atol=1e-9)


def test_demo_that_finds_nothing_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    blind = Oracle(demo.flight(2), "no_consensus")
    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None, **_: blind)
    assert cli.main(["demo", "--frames", "2", "--out", str(tmp_path)]) == 3
    out = capsys.readouterr().out
    assert "in none of the pictures is there a pose that this model can vouch for" in out
    assert "nan" not in out


def test_demo_refuses_a_model_of_another_mesh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    stranger = Oracle(demo.flight(2))
    stranger.model = load_cad("car")
    monkeypatch.setattr(PoseEstimator, "load", lambda path, device=None, **_: stranger)
    out = tmp_path / "out"
    assert cli.main(["demo", "--model", "car.geopose", "--frames", "2", "--out", str(out)]) == 1
    assert "estimator (--model): was trained on 'car', expected a model of the 'xwing' flown" in said(capsys)
    assert not out.exists()
