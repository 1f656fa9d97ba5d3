"""Commands about models and their data: train, calibrate, render, export, info."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from geopose.cli_options import (
    SUCCESS,
    UNITS,
    Arguments,
    add_folder,
    add_json,
    add_options,
    load_part,
    options_from,
    output_file,
    report,
)

_VIEW_FIELDS = ("elevation_deg", "azimuth_deg", "roll_deg", "up", "distance")
_SCENE_FIELDS = (
    "scene_wh",
    "scene_range",
    "scene_fov_deg",
    "clutter",
    "occluders",
    "mesh_error",
    "backgrounds",
    "max_faces",
)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    from geopose.train import TrainOptions

    parser.add_argument("part", help="mesh file (.stl .obj .ply .glb ...) or built-in name (xwing, iss, car)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=output_file,
        help="checkpoint (default: the cache, where `estimate` finds it)",
    )
    add_options(parser, TrainOptions)


def train(arguments: Arguments) -> int:
    from geopose.checkpoint import cached_path
    from geopose.distributed import rank_world
    from geopose.train import TrainOptions, train

    options = options_from(arguments, TrainOptions)
    model = load_part(arguments)
    out = arguments.out or _into_cache(cached_path(model.name, model.content_hash))
    path = train(model, out, options)
    if rank_world()[0] == 0:
        print(path)
    return SUCCESS


def _into_cache(path: Path) -> Path:
    try:
        return Path(output_file(str(path)))
    except argparse.ArgumentTypeError as error:
        advice = "give --out FILE, or another cache folder in $GEOPOSE_CACHE"
        raise ValueError(f"--out: not given, and the cache: {error}; {advice}") from None


def render_arguments(parser: argparse.ArgumentParser) -> None:
    from geopose.data.picture import SyntheticOptions
    from geopose.data.sample import ViewSpace
    from geopose.train_options import ALIKE, SCATTERED

    parser.add_argument("part", help="mesh file or built-in name (xwing, iss, car)")
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--color", help="of an unpainted mesh: gold, #e8b820, ... (default: any)")
    parser.add_argument("--count", type=int, default=32, help="how many pictures (default: %(default)s)")
    add_folder(parser, "folder of the set, made where missing")
    parser.add_argument(
        "--format", choices=("bop",), default="bop", help="of the data set (default: %(default)s)"
    )
    parser.add_argument("--split", default="train_pbr", help="folder of the split (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    add_options(parser, ViewSpace, _VIEW_FIELDS)
    add_options(parser, SyntheticOptions, _SCENE_FIELDS)
    default = "(default: %(default)s, as in training)"
    text = f"most other things that stand anywhere in the picture, not only at the object {default}"
    parser.add_argument("--scattered", type=int, default=SCATTERED, help=text)
    text = f"share of the other things that have its colours {default}"
    parser.add_argument("--alike", type=float, default=ALIKE, help=text)


def render(arguments: Arguments) -> int:
    from geopose.data.picture import SyntheticOptions
    from geopose.data.sample import ViewSpace
    from geopose.distributed import rank_world
    from geopose.render_set import render_set

    if arguments.backgrounds and not Path(arguments.backgrounds).is_dir():
        raise ValueError(f"--backgrounds: expected a folder, got {arguments.backgrounds!r}")
    if arguments.scattered < 0:
        raise ValueError(f"--scattered: expected at least 0, got {arguments.scattered}")
    if not 0 <= arguments.alike <= 1:
        raise ValueError(f"--alike: expected a share between 0 and 1, got {arguments.alike:g}")
    options = options_from(arguments, SyntheticOptions, view=options_from(arguments, ViewSpace))
    model = load_part(arguments).painted(arguments.color)
    progress = sys.stderr.isatty()
    out = render_set(
        model, arguments.out, arguments.count, options, arguments.seed, arguments.split, progress
    )
    if rank_world()[0] == 0:
        print(out)
    return SUCCESS


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint (.geopose)")
    parser.add_argument(
        "--out", metavar="FILE", type=output_file, help="checkpoint to write (default: the same, replaced)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of this machine (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of the renders (default: that of the training)")
    parser.add_argument("--workers", type=int, help="rendering processes (default: one for two cores)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument(
        "--covariance-only",
        action="store_true",
        help="keypoints and confidence stay, and so what is answered",
    )
    parser.add_argument(
        "--mesh-error", type=float, metavar="DIAMETERS",
        help="how far the real thing's surface is from its mesh: 0.01 for a scan (default: as in training)",
    )  # fmt: skip
    parser.add_argument(
        "--cad", metavar="FILE", help="its mesh, to be rendered (default: the light one in the model)"
    )
    add_json(parser)


def calibrate(arguments: Arguments) -> int:
    from geopose.describe import checkpoint_facts, facts_text
    from geopose.recalibrate import recalibrate

    if arguments.workers is not None and arguments.workers < 0:
        raise ValueError(f"--workers: got {arguments.workers}, expected a number >= 0")
    out = recalibrate(
        arguments.model, arguments.out, arguments.minutes, arguments.seed, arguments.workers, arguments.device,
        arguments.covariance_only, arguments.mesh_error, arguments.cad,
    )  # fmt: skip
    figures = checkpoint_facts(out)["figures"]
    report(arguments, facts_text({"figures": figures}), {"file": out, "figures": figures})
    return SUCCESS


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint (.geopose)")
    add_folder(parser, "folder of the files, made where missing")
    add_json(parser)


def export(arguments: Arguments) -> int:
    from geopose.export import export_onnx

    files = export_onnx(arguments.model, arguments.out)
    report(arguments, "\n".join(str(path) for path in files), {"files": files})
    return SUCCESS


def info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", help="mesh file, built-in name, or checkpoint (.geopose)")
    parser.add_argument("--unit", choices=UNITS, help="of the mesh, where the file does not say")
    parser.add_argument("--keypoints", type=int, default=16, help="how many to choose (default: %(default)s)")
    add_json(parser)


def info(arguments: Arguments) -> int:
    from geopose.describe import checkpoint_facts, facts_text, mesh_facts

    if _is_checkpoint(arguments.part):
        facts = checkpoint_facts(arguments.part)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are among the facts
            facts = mesh_facts(load_part(arguments), arguments.keypoints)
    report(arguments, facts_text(facts), facts)
    return SUCCESS


def _is_checkpoint(part: str) -> bool:
    """Whether a file without the suffix of a mesh is one of safetensors, or shall be a checkpoint by its name."""
    from trimesh import available_formats

    from geopose.cad.model import BUILT_IN
    from geopose.checkpoint import SUFFIX

    suffix = Path(part).suffix.lower()
    if suffix == SUFFIX or suffix[1:] in available_formats() or part in BUILT_IN or not Path(part).is_file():
        return suffix == SUFFIX
    with Path(part).open("rb") as file:
        return file.read(9)[8:] == b"{"  # the length of a JSON header, and the header
