"""What the commands share: arguments made from a dataclass of options, so that each is defined once; results as text or
JSON; exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopose.cad.model import CadModel
    from geopose.geometry.camera import Camera

Arguments = argparse.Namespace
SUCCESS, FAILURE, USAGE, NO_POSE, INTERRUPTED = 0, 1, 2, 3, 130
UNITS = ("m", "cm", "mm", "in")
INPUTS = (  # arguments that name files or folders to read; `train --start` is not among them: --out may replace it
    "photo", "part", "source", "dir", "cad", "camera", "model", "estimate", "backgrounds", "objects", "page",
)  # fmt: skip
OUTPUTS = ("out", "overlay", "csv", "report", "json")
_REPLACES = ("calibrate", "out", "model")


def add_options(parser: argparse.ArgumentParser, options: type, names: Iterable[str] | None = None) -> None:
    """One argument for every field (or those named) of a dataclass: type, default and help are the field's own."""
    hints = typing.get_type_hints(options)
    helps = _field_help(options)
    for field in dataclasses.fields(options):
        if names is not None and field.name not in names:
            continue
        kind = _plain_type(hints[field.name])
        extra: dict[str, Any] = {"type": kind}
        if kind is bool:
            extra = {"action": argparse.BooleanOptionalAction}
        elif typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is Ellipsis:
            extra = {"type": typing.get_args(kind)[0], "nargs": "*"}
        elif typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)
            extra = {"type": inner[0], "nargs": len(inner), "metavar": ("LOW", "HIGH")}
            if field.name.endswith("_wh"):
                extra["metavar"] = ("WIDTH", "HEIGHT")
        if field.name == "unit":
            extra["choices"] = UNITS
        default = field.default
        shown = "" if default is None or kind is bool else f" (default: {_shown(default)})"
        text = helps.get(field.name, field.name.replace("_", " ")).rstrip(".") + shown
        flag = "--" + field.name.removesuffix("_deg").replace("_", "-")
        parser.add_argument(flag, dest=field.name, default=default, help=text.replace("%", "%%"), **extra)


def _plain_type(hint: Any) -> Any:
    """`float` for `float | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _shown(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value}"
    return " ".join(f"{v:g}" if isinstance(v, float) else f"{v}" for v in value) or "none"


def _field_help(options: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field: `name: text` or `name, name: text`."""
    text = " ".join((options.__doc__ or "").split())
    name = "|".join(field.name for field in dataclasses.fields(options))
    found = re.split(rf"\b((?:(?:{name}), )*(?:{name})): ", text)
    pairs = zip(found[1::2], found[2::2], strict=True)
    return {each: re.sub(r"[;.,]?\s*$", "", said) for names, said in pairs for each in names.split(", ")}


def options_from(arguments: argparse.Namespace, options: type, **more: Any) -> Any:
    """The dataclass from the arguments that `add_options` made."""
    values = {
        f.name: getattr(arguments, f.name) for f in dataclasses.fields(options) if hasattr(arguments, f.name)
    }
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return options(**{**values, **more})


def output_file(text: str) -> str:
    """The argument, where a file can be written there: said before any work is done, not after."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, expected the name of a file to write")
    _check_place(text, path.parent)
    return text


def output_folder(text: str) -> str:
    """The argument, where files can be written into such a folder."""
    _check_place(text, Path(text))
    return text


def _check_place(text: str, folder: Path) -> None:
    there = next((p for p in (folder, *folder.parents) if os.path.exists(p)), Path())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {str(there)!r} is a file, not a folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: no right to write into {str(there.resolve())!r}, choose another place"
        )


def file_named_twice(arguments: Arguments, positional: Collection[str]) -> str | None:
    """What is wrong where a command would write onto what it reads, or two outputs into one file; else None.

    positional: arguments that are named without dashes.
    """
    for output, other in product(OUTPUTS, (*INPUTS, *OUTPUTS)):
        if output == other or (arguments.command, output, other) == _REPLACES:
            continue
        for file, taken in product(_files(arguments, output), _files(arguments, other)):
            if _same_file(file, taken):
                what = "written twice" if other in OUTPUTS else "overwritten"
                name = other if other in positional else f"--{other}"
                return f"{name} and --{output}: both are {file!r}, which would be {what}; choose another name"
    return None


def _files(arguments: Arguments, name: str) -> list[str]:
    """The files that an argument names, of an input those that are there."""
    value = getattr(arguments, name, None)
    files = [file for file in (value if isinstance(value, (list, tuple)) else [value]) if file is not None]
    if name in OUTPUTS:
        return [file for file in files if file != "-"]
    return [file for file in files if os.path.exists(file) and not _built_in(name, file)]


def _built_in(name: str, text: str) -> bool:
    """Whether the argument is a built-in mesh, whatever file has its name, too."""
    from geopose.cad.model import BUILT_IN

    return name in ("part", "cad", "objects") and text in BUILT_IN


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def add_folder(parser: argparse.ArgumentParser, text: str, default: str | None = None) -> None:
    """--out DIR, required where there is no default."""
    needed = default is None
    parser.add_argument(
        "--out", required=needed, default=default, metavar="DIR", type=output_folder, help=text
    )


def check_input(argument: str, path: str, expected: str) -> None:
    """Nothing, where a file is there to be read.

    Raises:
        FileNotFoundError, ValueError: naming the argument, what came and what was expected.
    """
    if os.path.isdir(path):
        raise ValueError(f"{argument}: {path!r} is a folder, expected {expected}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{argument}: no such file {path!r}, expected {expected}")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", type=output_file,
        help="print the result as JSON, or write it to FILE",
    )  # fmt: skip


def report(arguments: Arguments, text: str, value: Any) -> None:
    """Prints `text`; with --json the JSON instead, or both when that goes into a file."""
    from geopose._io import atomic_path
    from geopose.checkpoint import jsonable

    if arguments.json != "-":
        print(text)
    if arguments.json is None:
        return
    encoded = value if isinstance(value, str) else json.dumps(jsonable(value), indent=2, allow_nan=False)
    if arguments.json == "-":
        print(encoded, flush=True)
        return
    with atomic_path(arguments.json) as temporary:
        temporary.write_text(encoded + "\n", encoding="utf-8")


def load_part(arguments: Arguments) -> CadModel:
    from geopose.cad.model import load_cad

    return load_cad(arguments.part, arguments.unit)


def add_camera(parser: argparse.ArgumentParser) -> None:
    """--camera, --camera-id and --fov; see `camera_from`."""
    parser.add_argument(
        "--camera", metavar="FILE", help="own JSON, BOP camera.json, OpenCV YAML/XML, COLMAP cameras.txt"
    )
    parser.add_argument(
        "--camera-id", type=int, metavar="N", help="which of several cameras in COLMAP's cameras.txt"
    )
    parser.add_argument(
        "--fov", type=float, metavar="DEG", help="horizontal field of view, instead of --camera"
    )


def camera_from(arguments: Arguments, size_wh: Callable[[], tuple[int, int]]) -> Camera | None:
    """The camera that the arguments tell of; `size_wh` is asked for the picture's size where only --fov is known."""
    from geopose.geometry.camera import Camera

    if arguments.camera and arguments.fov is not None:
        raise ValueError("--camera and --fov: only one of them, please")
    if arguments.fov is not None and not 0 < arguments.fov < 180:
        raise ValueError(f"--fov: expected degrees between 0 and 180, got {arguments.fov:g}")
    if arguments.camera_id is not None and not (arguments.camera or "").lower().endswith(".txt"):
        raise ValueError(f"--camera-id: expected --camera cameras.txt with it, got {arguments.camera!r}")
    if arguments.camera:
        check_input("--camera", arguments.camera, "a camera file (.json, .yml, .xml, cameras.txt)")
        try:
            return Camera.load(arguments.camera, arguments.camera_id)
        except ValueError as error:
            raise ValueError(str(error).replace("pass camera_id", "give --camera-id N")) from error
    return None if arguments.fov is None else Camera.from_fov(math.radians(arguments.fov), size_wh())


def add_box(parser: argparse.ArgumentParser) -> None:
    """--box."""
    box = ("X0", "Y0", "X1", "Y1")
    parser.add_argument(
        "--box", type=float, nargs=4, metavar=box, help="pixels around the object: do not search it"
    )
