"""How well refiners compare: pairs of a mesh drawn at a wrong pose and of a fresh render, one comparison each.

    python benchmarks/comparing.py                                         # made-up things, and the X-wing
    python benchmarks/comparing.py duck.ply can.ply --unit mm --elevation -5 90 --roll -60 60 --mesh-error 0.01
    python benchmarks/comparing.py duck.ply --unit mm --refiner duck.geopose

Of each refiner, first the one that every training begins with: how far the drawn points are from where they belong
after one comparison and its least squares, in percent of the diameter, median; the guesses are some degrees and percent
off. And the mean log-likelihood of the true pose, natural logarithm: higher is sharper, and honest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from geopose import checkpoint, refiner_train
from geopose.bench.common import write_json
from geopose.cad.model import load_cad
from geopose.cad.symmetry import Symmetries
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.refiner_train import PairsOfThings, judge
from geopose.train_options import ALIKE


def refiner_of(path: str | Path) -> torch.nn.Module:
    """The refiner in a checkpoint. Raises ValueError where it holds none."""
    nets = checkpoint.load_nets(path)[0]
    if "refiner" not in nets:
        raise ValueError(f"refiner: {path} holds {sorted(nets)}, expected a refiner")
    return nets["refiner"]


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cad", nargs="*", help="mesh files or built-in names; default: made-up things and xwing"
    )
    parser.add_argument("--unit", help="of the mesh files")
    parser.add_argument(
        "--refiner", action="append", default=[], metavar="FILE", help="checkpoints to compare with"
    )
    parser.add_argument("--elevation", type=float, nargs=2, default=(-90.0, 90.0), help="degrees")
    parser.add_argument("--roll", type=float, nargs=2, default=(-180.0, 180.0))
    parser.add_argument("--mesh-error", type=float, default=0.0, help="of the things' surfaces, diameters")
    parser.add_argument("--seed", type=int, default=20261123, help="none that a training used")
    parser.add_argument("--json")
    args = parser.parse_args()

    files = [checkpoint.TRANSFERRED, *map(Path, args.refiner)]
    refiners = {str(path): refiner_of(path) for path in files}
    view = ViewSpace(tuple(args.elevation), (-180.0, 180.0), tuple(args.roll))
    options = SyntheticOptions(view=view, alike=ALIKE, mesh_error=args.mesh_error)
    sets: dict[str, Dataset[Any]] = {} if args.cad else {"made-up things": PairsOfThings(args.seed)}
    for cad in args.cad or ["xwing"]:
        model = load_cad(cad, None if Path(cad).suffix == "" else args.unit)
        none = np.zeros((1, 3)), Symmetries.none()
        sets[model.name] = SyntheticDataset(model, *none, options, args.seed, "pair")
    table: dict[str, dict[str, Any]] = {}
    print(f"{'':24}{'refiner':>24}{'left, %':>10}{'log-likelihood':>16}")
    for name, pairs in sets.items():
        table[name] = {}
        shown = [
            pairs[i] for i in tqdm(range(refiner_train.JUDGED), name, unit="pair")
        ]  # rendered once for all
        for path, net in refiners.items():
            found = judge(net, shown, torch.device("cpu"))
            table[name][Path(path).name] = found
            print(
                f"{name:24}{Path(path).name:>24}{100 * found['left']:10.2f}{-found['pose']:16.2f}", flush=True
            )
    write_json(args.json, {"options": vars(args), "sets": table})


if __name__ == "__main__":
    main()
