"""Training pictures per second and core, for a mesh of 2,500 faces.

    python benchmarks/bench_render.py                    # the X-wing, 128x128 crops, one process
    python benchmarks/bench_render.py --cad part.stl --unit mm --json render.json

The rounds go through the kinds of work in turn; the first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from geopose.bench.common import spread, write_json
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import load_cad
from geopose.cad.render import render
from geopose.cad.symmetry import find_symmetries
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import look_at
from geopose.data.synthetic import SyntheticDataset
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cad", default="xwing")
    parser.add_argument("--unit")
    parser.add_argument("--faces", type=int, default=2500)
    parser.add_argument("--pictures", type=int, default=100, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    model = load_cad(args.cad, args.unit)
    light = model.baked().simplified(args.faces)
    symmetries = find_symmetries(model)
    keypoints = choose_keypoints(model, 16, symmetries)
    options = SyntheticOptions(max_faces=args.faces)
    crops = SyntheticDataset(model, keypoints, symmetries, options, 0, "crop")
    windows = SyntheticDataset(model, keypoints, symmetries, options, 0, "window")
    focal = 128 * 4.0
    camera = Camera(focal, focal, 63.5, 63.5, (128, 128))
    centre = np.array([0, 0, 5.0 * model.diameter])

    def draw(i: int) -> None:
        render(light, camera, Pose(look_at(0.4, 0.7 * i, 0.1 * i), centre))

    work: dict[str, tuple[Callable[[int], object], int]] = {
        "rendering alone, 128x128 (colour, depth, normals, coordinates)": (draw, args.pictures),
        "finished crop, 128x128": (crops.__getitem__, args.pictures),
        "finished locator window, 160x160": (windows.__getitem__, args.pictures),
    }
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(args.rounds + 1):
        for name, (make, count) in work.items():
            began = time.perf_counter()
            for i in range(turn * count, (turn + 1) * count):
                make(i)
            if turn:
                speeds[name].append(count / (time.perf_counter() - began))
    print(f"{model.name}, {len(light.faces)} faces, one process, one thread; pictures per second")
    rows = {name: spread(values) for name, values in speeds.items()}
    for name, row in rows.items():
        print(f"{row['median']:8.1f}  ({row['p10']:.1f} to {row['p90']:.1f})  {name}")
    write_json(args.json, {"faces": len(light.faces), "pictures_per_second": rows})


if __name__ == "__main__":
    main()
