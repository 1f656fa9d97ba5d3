"""What a network learns in equal minutes: encoders, frozen layers, crop sizes, batch sizes, dense heads.

    python benchmarks/learning_speed.py --minutes 3 --json learning.json       # every variant, one after the
    other python benchmarks/learning_speed.py --only base plain                      # some of them

Each variant trains the keypoint network from the same seed for the same wall time, rendering included, with
one process that renders beside it, and is then judged on the same fresh crops of a seed of their own. The
error is the median distance of the keypoints inside the crop, in percent of the crop's side, so that crop
sizes can be compared; "within 4 %" is the share nearer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import default_collate

from geopose.bench.common import write_json
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import load_cad
from geopose.cad.symmetry import find_symmetries
from geopose.checkpoint import build_net
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.fit import Clock, Learner, cores_shared_with, endless_loader, learn
from geopose.nets.backbone import keep_freed_memory
from geopose.nets.losses import keypoint_loss
from geopose.stages import keypoints_of

BASE: dict[str, Any] = {
    "pretrained": True, "frozen_stride": 4, "frozen_5x5": True, "dense": True, "crop": 128, "batch": 16, "rate": 1e-3,
    "view": ViewSpace((-47, 47), roll_deg=(-47, 47)),
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "plain encoder": {"pretrained": False, "frozen_stride": 0, "frozen_5x5": False},
    "nothing frozen": {"frozen_stride": 0, "frozen_5x5": False},
    "5x5 filters not frozen": {"frozen_5x5": False},
    "frozen to stride 8": {"frozen_stride": 8},
    "no dense heads": {"dense": False},
    "96 px": {"crop": 96},
    "192 px": {"crop": 192},
    "batch 32": {"batch": 32},
    "batch 8, rate 2.5e-3": {"batch": 8, "rate": 2.5e-3},
    "whole sphere": {"view": ViewSpace()},
}


def run(cad: str, unit: str | None, minutes: float, changes: dict[str, Any]) -> dict[str, float]:
    """Trains one variant and judges it."""
    o = {**BASE, **changes}
    model = load_cad(cad, unit)
    symmetries = find_symmetries(model)
    keypoints = choose_keypoints(model, 16, symmetries)
    pictures = SyntheticOptions(view=o["view"], crop_size=o["crop"])
    data = SyntheticDataset(model, keypoints, symmetries, pictures, 0, "crop")
    torch.manual_seed(0)
    options = {k: o[k] for k in ("pretrained", "frozen_stride", "frozen_5x5", "dense")}
    net = build_net("keypoints", {"kind": "unet", "num_keypoints": 16, **options}, weights=True)
    learner = Learner("keypoints", net.to(memory_format=torch.channels_last), o["rate"])
    cpu = torch.device("cpu")
    with cores_shared_with(1):
        data[0]
        loader = endless_loader(data, o["batch"], 1, 0)
        learn(learner, loader, keypoint_loss, Clock(), 60 * minutes, cpu, lambda *_: None)
        learner.finish()
        judged = SyntheticDataset(model, keypoints, symmetries, replace(pictures), 99, "crop")
        errors = []
        for start in range(0, 256, 32):
            batch = default_collate([judged[i] for i in range(start, start + 32)])
            with torch.inference_mode():
                points, _ = keypoints_of(net(batch["image"].float() / 255)["heatmaps"], o["crop"], 3.0)
            distance = (points - batch["keypoints_px"][:, 0]).norm(dim=-1)
            errors.append(distance[batch["inside"][:, 0]])
    error = torch.cat(errors) / o["crop"]
    return {
        "images": learner.samples,
        "images_per_second": learner.samples / (60 * minutes),
        "median_percent": 100 * float(error.median()),
        "within_4_percent": float((error < 0.04).float().mean()),
    }


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cad", default="xwing")
    parser.add_argument("--unit")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json")
    args = parser.parse_args()
    keep_freed_memory()
    rows = {}
    print("| variant | images/s | images | median error, % of the crop | within 4 % |\n|---|---|---|---|---|")
    for name in args.only:
        row = rows[name] = run(args.cad, args.unit, args.minutes, VARIANTS[name])
        print(
            f"| {name} | {row['images_per_second']:.0f} | {row['images']:.0f} | {row['median_percent']:.1f} "
            f"| {100 * row['within_4_percent']:.0f} % |",
            flush=True,
        )
        write_json(args.json, {"cad": args.cad, "minutes": args.minutes, "variants": rows})


if __name__ == "__main__":
    main()
