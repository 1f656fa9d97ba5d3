"""Commands that print figures: evaluate, benchmark."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopose.cli_options import (
    SUCCESS,
    Arguments,
    add_json,
    add_options,
    options_from,
    output_file,
    output_folder,
    report,
)

if TYPE_CHECKING:
    from geopose.summary import Evaluation, Evaluations


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="folder of the data set")
    parser.add_argument(
        "--format", choices=("bop",), default="bop", help="of the data set (default: %(default)s)"
    )
    parser.add_argument(
        "--obj",
        type=int,
        action="append",
        metavar="ID",
        help="object of the set (default: its only one); again for each further one",
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="FILE",
        help="checkpoint; again for each further object, in their order",
    )
    parser.add_argument("--split", help="folder of the split (default: the test split)")
    parser.add_argument(
        "--boxes", choices=("none", "gt"), default="none", help='"gt": the true boxes are given'
    )
    parser.add_argument(
        "--visib", type=float, default=0.6, help="visible share of the first column (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=output_file,
        help="write the BOP challenge's results file, which is to be named METHOD_DATASET-SPLIT.csv",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=output_file, help="write an HTML report with pictures, of one object"
    )
    parser.add_argument("--device", help='"cpu", "cuda", ... (default: a GPU when there is one)')
    add_json(parser)


def evaluate(arguments: Arguments) -> int:
    from geopose.distributed import rank_world
    from geopose.estimate import PoseEstimator
    from geopose.evaluate import evaluate_bop, evaluate_bop_objects

    objects, models = arguments.obj or [None], arguments.model
    if len(objects) != len(models) or len(set(objects)) < len(objects):
        raise ValueError(
            f"--obj, --model: got objects {arguments.obj} and checkpoints {models}, "
            "expected each object once, and a checkpoint for each"
        )
    if len(objects) > 1 and arguments.report:
        raise ValueError(f"--report: got {len(objects)} objects, expected one: run it once for each")
    names = ("split", "boxes", "visib", "csv", "limit")
    options = {name: getattr(arguments, name) for name in names} | {"progress": sys.stderr.isatty()}
    loaded = {i: PoseEstimator.load(m, arguments.device) for i, m in zip(objects, models, strict=True)}
    evaluation: Evaluation | Evaluations
    if len(objects) == 1:
        evaluation = evaluate_bop(
            arguments.dir, objects[0], loaded[objects[0]], report=arguments.report, **options
        )
    else:
        evaluation = evaluate_bop_objects(arguments.dir, loaded, **options)
    if rank_world()[0] == 0:
        report(arguments, str(evaluation), evaluation.to_json())
    return SUCCESS


BENCHMARKS = {  # name: help, what --out is, its check
    "pnp": ("solvers of PnP against one another", "JSON file", output_file),
    "regression": ("networks that regress the pose, against keypoints and PnP", "folder", output_folder),
    "speed": (
        "time of each stage of an estimate, and of the import, on this machine",
        "JSON file",
        output_file,
    ),
}


class _Late(argparse.ArgumentParser):
    """A parser that gets its arguments when it is asked to parse, so that only one benchmark is imported."""

    fill: Callable[[], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.fill is not None:
            self.fill()
            self.fill = None
        return super().parse_known_args(args, namespace)


def benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT", parser_class=_Late)
    for name, (text, out, check) in BENCHMARKS.items():
        sub = kinds.add_parser(name, help=text, description=text)
        sub.add_argument("--out", type=check, metavar="PATH", help=f"{out} to write the figures to")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        add_json(sub)
        sub.fill = partial(_add_benchmark, sub, name)


def _add_benchmark(parser: argparse.ArgumentParser, name: str) -> None:
    add_options(parser, importlib.import_module(f"geopose.bench.{name}").Options)


def benchmark(arguments: Arguments) -> int:
    module = importlib.import_module(f"geopose.bench.{arguments.kind}")
    out = None if arguments.out is None else Path(arguments.out)
    result = module.run(options_from(arguments, module.Options), out)
    report(arguments, result.get("table") or json.dumps(result, indent=1, default=str), result)
    return SUCCESS
