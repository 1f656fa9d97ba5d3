"""The command `geopose`. The only place that sets up logging and warnings."""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import geopose
from geopose import cli_figures, cli_models, cli_pictures
from geopose.cli_options import FAILURE, INTERRUPTED, USAGE, Arguments, file_named_twice


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
            arguments = _parsed(argv)
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


_ADVICE = {
    errno.EISDIR: "it is a folder, give the name of a file",
    errno.EEXIST: "it is in the way, choose another name",
    errno.ENOTDIR: "a file is where a folder should be, choose another place",
    errno.ENOENT: "look at the name and its folder",
    errno.EACCES: "you have no right to do that there, choose another place or have its rights changed",
    errno.EROFS: "choose a place where you may write",
    errno.ENOSPC: "make room, then run the same command again",
}


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _ADVICE and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}: {_ADVICE[error.errno]}"
    advice = geopose.import_advice(error) if isinstance(error, ImportError) else None
    text = " ".join((advice or str(error)).split()) or type(error).__name__
    expected = isinstance(error, (ValueError, OSError, ImportError)) or type(error) is RuntimeError
    return text if expected else f"{type(error).__name__}: {text} (--debug shows where)"


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"geopose: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parsed(argv: Sequence[str]) -> Arguments:
    """The arguments; wrong usage ends the program with what was probably meant."""
    parser, subparsers = _parser(argv)
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(USAGE)
    asked = _command(argv)
    if asked is not None and asked not in COMMANDS:
        parser.error(f"no command {asked!r}{_meant(asked, COMMANDS)}; there are {', '.join(COMMANDS)}")
    arguments, unknown = parser.parse_known_args(argv)
    unknown = [word.split("=")[0] for word in unknown if word != "--debug"]  # which main() has seen to
    sub = subparsers[arguments.command]
    if unknown:
        word = next((w for w in unknown if w.startswith("-")), unknown[0])
        wrong = f"no argument {word!r}{_meant(word, sub._option_string_actions)}"
        said = wrong if word.startswith("-") else f"{word!r} is one too many"
        sub.error(f"{said}; `{sub.prog} --help` lists what there is")
    twice = file_named_twice(arguments, [action.dest for action in sub._get_positional_actions()])
    if twice is not None:
        sub.error(twice)
    return arguments


def _command(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parser(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands, of which only the one that is asked for knows its arguments."""
    parser = argparse.ArgumentParser(
        prog="geopose",
        description="From a CAD file to a calibrated 6-DoF pose, learned from nothing but renders.",
        epilog="`geopose COMMAND --help` tells about each. Exit code: 0 success, 1 error, 2 wrong usage, "
        "3 no pose that can be vouched for.",
    )
    parser.add_argument("--version", action="version", version=f"geopose {geopose.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = _command(argv)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument(
            "--debug", action="store_true", help="log what happens; show the traceback of an error"
        )
        if name == asked:
            command.add_arguments(sub)
    return parser, commands.choices


COMMANDS = {
    "demo": Command(
        "the X-wing: poses of a short flight, overlay.png, animation.gif",
        cli_pictures.demo_arguments,
        cli_pictures.demo,
    ),
    "train": Command("learn a mesh from renders of it", cli_models.train_arguments, cli_models.train),
    "estimate": Command(
        "the pose of a trained object in a photograph", cli_pictures.estimate_arguments, cli_pictures.estimate
    ),
    "track": Command("a trained object through a video", cli_pictures.track_arguments, cli_pictures.track),
    "diagnose": Command(
        "why a photograph gives no good pose, as a page",
        cli_pictures.diagnose_arguments,
        cli_pictures.diagnose,
    ),
    "view": Command(
        "the pose in a photograph, to be turned in a browser", cli_pictures.view_arguments, cli_pictures.view
    ),
    "evaluate": Command(
        "figures over a data set with known poses", cli_figures.evaluate_arguments, cli_figures.evaluate
    ),
    "benchmark": Command(
        "figures of this machine: pnp, regression or speed",
        cli_figures.benchmark_arguments,
        cli_figures.benchmark,
    ),
    "render": Command(
        "a data set of random pictures of a mesh", cli_models.render_arguments, cli_models.render
    ),
    "calibrate": Command(
        "calibrate and judge a trained model anew", cli_models.calibrate_arguments, cli_models.calibrate
    ),
    "export": Command("a model as ONNX and JSON files", cli_models.export_arguments, cli_models.export),
    "info": Command("what a mesh or a checkpoint holds", cli_models.info_arguments, cli_models.info),
}
