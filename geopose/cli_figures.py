"""Commands that print figures: evaluate."""

from __future__ import annotations

import argparse
import sys

from geopose.cli_options import SUCCESS, Arguments, add_json, report


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
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
    add_json(parser)


def evaluate(arguments: Arguments) -> int:
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
        report(arguments, str(evaluation), evaluation.to_json())
    return SUCCESS
