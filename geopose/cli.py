"""The command `geopose`. The only place that sets up logging and warnings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopose
from geopose.cli_options import UNITS, add_options, options_from

if TYPE_CHECKING:
    from geopose.cad.model import CadModel
    from geopose.result import PoseEstimate

Arguments = argparse.Namespace
SUCCESS, FAILURE, USAGE, NO_POSE, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Command:
    """One subcommand; its arguments are added, and its modules imported, only when it is called."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 on success, 1 on an error, 2 on wrong usage, 3 when no pose can be vouched for."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    for noisy in ("matplotlib", "PIL", "trimesh"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _show_warning
            arguments = _parser(argv).parse_args(argv)
            return COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        print("geopose: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone; nothing is left to flush
        return FAILURE
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"geopose: error: {_in_one_line(error)}", file=sys.stderr)
        return FAILURE


def _in_one_line(error: Exception) -> str:
    advice = geopose.import_advice(error) if isinstance(error, ImportError) else None
    text = " ".join((advice or str(error)).split()) or type(error).__name__
    expected = isinstance(error, (ValueError, OSError, ImportError)) or type(error) is RuntimeError
    return text if expected else f"{type(error).__name__}: {text} (--debug shows where)"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"geopose: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geopose",
        description="From a CAD file to a calibrated 6-DoF pose, learned from nothing but renders.",
        epilog="`geopose COMMAND --help` tells about each. Exit code: 0 success, 1 error, 2 wrong usage, "
        "3 no pose that can be vouched for.",
    )
    parser.add_argument("--version", action="version", version=f"geopose {geopose.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument(
            "--debug", action="store_true", help="log what happens; show the traceback of an error"
        )
        if name == asked:
            command.add_arguments(sub)
    return parser


# ------------------------------------------------------------------------------------- arguments


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print the result as JSON, or write it to FILE"
    )


def _report(arguments: Arguments, text: str, value: Any) -> None:
    """Prints `text`; with --json the JSON instead, or both when that goes into a file."""
    from geopose._io import atomic_path
    from geopose.checkpoint import jsonable

    if arguments.json != "-":
        print(text)
    if arguments.json is None:
        return
    encoded = value if isinstance(value, str) else json.dumps(jsonable(value), indent=2, allow_nan=False)
    if arguments.json == "-":
        print(encoded)
        return
    with atomic_path(arguments.json) as temporary:
        temporary.write_text(encoded + "\n", encoding="utf-8")


def _load_part(arguments: Arguments) -> CadModel:
    from geopose.cad.model import load_cad

    return load_cad(arguments.part, arguments.unit)


# -------------------------------------------------------------------------------------- commands


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="geopose-demo", metavar="DIR", help="where to write (default: %(default)s)"
    )
    parser.add_argument("--model", metavar="FILE", help="another checkpoint of the X-wing")
    parser.add_argument(
        "--frames", type=int, default=48, help="pictures of the flight (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of stars and noise (default: %(default)s)")
    _add_json(parser)


def _demo(arguments: Arguments) -> int:
    from geopose.demo import run_demo
    from geopose.estimate import PoseEstimator

    estimator = PoseEstimator.load(arguments.model) if arguments.model else None
    result = run_demo(arguments.out, estimator, arguments.frames, arguments.seed)
    _report(arguments, result.table(), dataclasses.asdict(result))
    return SUCCESS


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from geopose.train import TrainOptions

    parser.add_argument("part", help="mesh file (.stl .obj .ply .glb ...) or built-in name (xwing, iss, car)")
    parser.add_argument(
        "--out", metavar="FILE", help="checkpoint (default: the cache, where `estimate` finds it)"
    )
    add_options(parser, TrainOptions)


def _train(arguments: Arguments) -> int:
    from geopose.checkpoint import cached_path
    from geopose.train import TrainOptions, train

    options = options_from(arguments, TrainOptions)
    model = _load_part(arguments)
    out = arguments.out or cached_path(model.name, model.content_hash)
    print(train(model, out, options))
    return SUCCESS


def _estimate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", help="picture file")
    parser.add_argument(
        "--cad", metavar="FILE", help="mesh file or built-in name: takes the model trained for it"
    )
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--model", metavar="FILE", help="checkpoint; with it, --cad is not needed")
    parser.add_argument(
        "--camera", metavar="FILE", help="own JSON, BOP camera.json, OpenCV YAML/XML, COLMAP cameras.txt"
    )
    parser.add_argument(
        "--fov", type=float, metavar="DEG", help="horizontal field of view, instead of --camera"
    )
    box = ("X0", "Y0", "X1", "Y1")
    parser.add_argument(
        "--box", type=float, nargs=4, metavar=box, help="pixels around the object: do not search it"
    )
    parser.add_argument("--overlay", metavar="FILE", help="write the picture with the pose drawn on it")
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    _add_json(parser)


def _estimate(arguments: Arguments) -> int:
    import numpy as np

    from geopose.cad.model import load_cad
    from geopose.estimate import PoseEstimator, estimate_pose, model_of
    from geopose.geometry.camera import Camera
    from geopose.image import load_image
    from geopose.visualize import save_image

    if not (arguments.cad or arguments.model):
        raise ValueError("one of --cad and --model is needed")
    if arguments.camera and arguments.fov:
        raise ValueError("--camera and --fov: only one of them, please")
    camera = Camera.load(arguments.camera) if arguments.camera else None
    if arguments.fov:
        picture = load_image(arguments.photo)[0]
        camera = Camera.from_fov(float(np.deg2rad(arguments.fov)), (picture.shape[1], picture.shape[0]))
    path = arguments.model or model_of(arguments.cad, arguments.unit)
    estimator = PoseEstimator.load(path, arguments.device)
    if arguments.cad:
        cad = load_cad(arguments.cad, arguments.unit) if arguments.unit else arguments.cad
        estimate = estimate_pose(arguments.photo, cad, camera=camera, box=arguments.box, model=estimator)
    else:
        estimate = estimator.estimate(arguments.photo, camera, arguments.box)
    if arguments.overlay:
        save_image(estimate.overlay(arguments.photo), arguments.overlay)
    _report(arguments, _estimate_text(estimate), estimate.to_json())
    return SUCCESS if estimate.status == "ok" else NO_POSE


def _estimate_text(estimate: PoseEstimate) -> str:
    import numpy as np

    lines = [f"status     {estimate.status}, confidence {estimate.confidence:.2f}"]
    lines += [f"           {reason}" for reason in estimate.reasons]
    if estimate.pose is not None:
        t, quat = np.asarray(estimate.pose.t), np.asarray(estimate.pose.quat_wxyz)
        lines.append("position   x {:.4f}  y {:.4f}  z {:.4f} m (camera: right, down, forward)".format(*t))
        lines.append("rotation   w {:.5f}  x {:.5f}  y {:.5f}  z {:.5f} (cam_from_obj)".format(*quat))
    if estimate.covariance is not None:
        deviations = np.sqrt(np.diag(estimate.covariance))
        lines.append("std. dev.  {:.4f} {:.4f} {:.4f} m,".format(*deviations[:3]))
        lines[-1] += " {:.2f} {:.2f} {:.2f} deg about the camera's axes".format(*np.rad2deg(deviations[3:]))
    lines.append(f"time       {1000 * estimate.timings.get('total', float('nan')):.0f} ms")
    return "\n".join(lines)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="folder of the data set")
    parser.add_argument(
        "--format", choices=("bop",), default="bop", help="of the data set (default: %(default)s)"
    )
    parser.add_argument("--obj", type=int, metavar="ID", help="object of the set (default: its only one)")
    parser.add_argument("--model", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--split", help="folder of the split (default: the test split)")
    parser.add_argument(
        "--boxes", choices=("none", "gt"), default="none", help='"gt": the true boxes are given'
    )
    parser.add_argument(
        "--visib", type=float, default=0.6, help="visible share of the first column (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--csv", metavar="FILE", help="write the BOP challenge's results file")
    parser.add_argument("--report", metavar="FILE", help="write an HTML report with pictures")
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    _add_json(parser)


def _evaluate(arguments: Arguments) -> int:
    from geopose.distributed import rank_world
    from geopose.estimate import PoseEstimator
    from geopose.evaluate import evaluate_bop

    names = ("split", "boxes", "visib", "csv", "report", "limit")
    evaluation = evaluate_bop(
        arguments.dir,
        arguments.obj,
        PoseEstimator.load(arguments.model, arguments.device),
        progress=sys.stderr.isatty(),
        **{name: getattr(arguments, name) for name in names},
    )
    if rank_world()[0] == 0:
        _report(arguments, str(evaluation), evaluation.to_json())
    return SUCCESS


_VIEW_FIELDS = ("elevation_deg", "azimuth_deg", "roll_deg", "up", "distance")
_SCENE_FIELDS = (
    "scene_wh",
    "scene_range",
    "scene_fov_deg",
    "clutter",
    "occluders",
    "backgrounds",
    "max_faces",
)


def _render_arguments(parser: argparse.ArgumentParser) -> None:
    from geopose.data.picture import SyntheticOptions
    from geopose.data.sample import ViewSpace

    parser.add_argument("part", help="mesh file or built-in name (xwing, iss, car)")
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--count", type=int, default=32, help="how many pictures (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the set, made where missing")
    parser.add_argument(
        "--format", choices=("bop",), default="bop", help="of the data set (default: %(default)s)"
    )
    parser.add_argument("--split", default="train_pbr", help="folder of the split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    add_options(parser, ViewSpace, _VIEW_FIELDS)
    add_options(parser, SyntheticOptions, _SCENE_FIELDS)


def _render(arguments: Arguments) -> int:
    from geopose.data.picture import SyntheticOptions
    from geopose.data.sample import ViewSpace
    from geopose.render_set import render_set

    if arguments.backgrounds and not Path(arguments.backgrounds).is_dir():
        raise ValueError(f"--backgrounds: expected a folder, got {arguments.backgrounds!r}")
    options = options_from(arguments, SyntheticOptions, view=options_from(arguments, ViewSpace))
    model = _load_part(arguments)
    progress = sys.stderr.isatty()
    print(
        render_set(model, arguments.out, arguments.count, options, arguments.seed, arguments.split, progress)
    )
    return SUCCESS


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", help="mesh file, built-in name, or checkpoint (.geopose)")
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--keypoints", type=int, default=16, help="how many to choose (default: %(default)s)")
    _add_json(parser)


def _info(arguments: Arguments) -> int:
    from geopose.describe import checkpoint_facts, facts_text, mesh_facts

    if Path(arguments.part).suffix == ".geopose":
        facts = checkpoint_facts(arguments.part)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are among the facts
            facts = mesh_facts(_load_part(arguments), arguments.keypoints)
    _report(arguments, facts_text(facts), facts)
    return SUCCESS


COMMANDS = {
    "demo": Command(
        "the X-wing: poses of a short flight, overlay.png, animation.gif", _demo_arguments, _demo
    ),
    "train": Command("learn a mesh from renders of it", _train_arguments, _train),
    "estimate": Command("the pose of a trained object in a photograph", _estimate_arguments, _estimate),
    "evaluate": Command("figures over a data set with known poses", _evaluate_arguments, _evaluate),
    "render": Command("a data set of random pictures of a mesh", _render_arguments, _render),
    "info": Command("what a mesh or a checkpoint holds", _info_arguments, _info),
}
