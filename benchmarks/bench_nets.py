"""Images per second of training steps and milliseconds of single pictures, for every network worth choosing.

    python benchmarks/bench_nets.py --json nets.json          # all variants, interleaved; some minutes
    python benchmarks/bench_nets.py --only unet-pretrained-128 locator-320x240

Each variant is built once; the rounds go through all of them in turn, so that a disturbance meets them all.
`cpu` columns count processor time instead of the clock: on a busy machine only those can be compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geopose.nets import Locator, build_keypoint_net, keep_freed_memory, keypoint_loss, locator_loss
from geopose.nets.backbone import has_fast_bfloat16

PRETRAINED = {"kind": "unet", "num_keypoints": 16, "pretrained": True}
TRAINING: dict[str, tuple[dict[str, Any], int]] = {
    "unet-random-128": ({"kind": "unet", "num_keypoints": 16}, 128),
    "unet-pretrained-96": (PRETRAINED, 96),
    "unet-pretrained-128": (PRETRAINED, 128),
    "unet-pretrained-192": (PRETRAINED, 192),
    "unet-pretrained-128-float32": ({**PRETRAINED, "bfloat16": False}, 128),
    "unet-pretrained-128-no-dense": ({**PRETRAINED, "dense": False}, 128),
    "unet-pretrained-128-frozen-4": ({**PRETRAINED, "frozen_stride": 4}, 128),
    "unet-pretrained-128-frozen-8": ({**PRETRAINED, "frozen_stride": 8}, 128),
    "unet-pretrained-128-frozen-5x5": ({**PRETRAINED, "frozen_5x5": True}, 128),
    "unet-pretrained-128-frozen-4-5x5": ({**PRETRAINED, "frozen_stride": 4, "frozen_5x5": True}, 128),
    "unet-pretrained-96-frozen-4-5x5": ({**PRETRAINED, "frozen_stride": 4, "frozen_5x5": True}, 96),
    "hourglass-128": ({"kind": "hourglass", "num_keypoints": 16}, 128),
}


def training_step(options: dict[str, Any], size: int, batch: int) -> Callable[[], None]:
    """A function that does one step of a keypoint network on random crops."""
    net = build_keypoint_net(options).train()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4, foreach=True)
    x = torch.rand(batch, 3, size, size)
    targets = {
        "keypoints_px": torch.rand(batch, 1, 16, 2) * size,
        "inside": torch.ones(batch, 1, 16, dtype=torch.bool),
        "mask": (torch.rand(batch, size // 4, size // 4) > 0.5).float(),
        "xyz": torch.rand(batch, 3, size // 4, size // 4) * 2 - 1,
    }

    def step() -> None:
        optimiser.zero_grad()
        keypoint_loss(net(x), targets)[0].backward()
        optimiser.step()

    return step


def locator_step(size: int, batch: int) -> Callable[[], None]:
    """A function that does one step of a locator on random windows."""
    net = Locator(pretrained=True).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4, foreach=True)
    x = torch.rand(batch, 3, size, size)
    targets = {
        "centre_px": torch.rand(batch, 2) * size, "size_px": torch.full((batch,), 50.0),
        "visib_fract": torch.ones(batch), "present": torch.ones(batch, dtype=torch.bool),
    }  # fmt: skip

    def step() -> None:
        optimiser.zero_grad()
        locator_loss(net(x), targets)[0].backward()
        optimiser.step()

    return step


def single(net: torch.nn.Module, height: int, width: int) -> Callable[[], Tensor]:
    """A function that runs `net` on one picture without gradients."""
    x = torch.rand(1, 3, height, width)
    net = net.eval()
    return torch.inference_mode()(lambda: net(x))


def variants(batch: int) -> dict[str, tuple[int, Callable[[], Callable[[], Any]]]]:
    """Pictures per call and how to build the call, by name."""
    found: dict[str, tuple[int, Callable[[], Callable[[], Any]]]] = {
        name: (batch, lambda o=options, s=size: training_step(o, s, batch))  # type: ignore[misc]
        for name, (options, size) in TRAINING.items()
    }
    found["locator-train-128"] = (batch, lambda: locator_step(128, batch))
    found["locator-320x240"] = (1, lambda: single(Locator(pretrained=True), 240, 320))
    found["unet-one-128"] = (1, lambda: single(build_keypoint_net(PRETRAINED), 128, 128))
    return found


def main() -> None:
    """Print the table; with --json also write it with the machine's data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kept = keep_freed_memory()
    chosen = {n: v for n, v in variants(args.batch).items() if not args.only or n in args.only}
    calls = {name: build() for name, (_, build) in chosen.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for index in range(args.rounds + 1):
        for name, call in calls.items():
            gc.collect()
            call()
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            if index:
                times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    rows = []
    print(f"{'variant':36s} {'img/s':>7s} {'best':>7s} {'spread':>7s} {'ms/img':>7s} {'cpu ms/img':>10s}")
    for name, samples in times.items():
        pictures = chosen[name][0]
        clock = [t / pictures for t, _ in samples]
        median = statistics.median(clock)
        row = {
            "variant": name, "images_per_s": 1 / median, "best_images_per_s": 1 / min(clock),
            "spread": (max(clock) - min(clock)) / median, "ms": 1e3 * median,
            "cpu_ms": 1e3 * min(c for _, c in samples) / pictures,
        }  # fmt: skip
        rows.append(row)
        print(f"{name:36s} {row['images_per_s']:7.1f} {row['best_images_per_s']:7.1f} {row['spread']:7.0%} "
              f"{row['ms']:7.1f} {row['cpu_ms']:10.1f}", flush=True)  # fmt: skip
    machine = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": args.threads,
        "bfloat16": has_fast_bfloat16(), "keep_freed_memory": kept, "batch": args.batch, "rounds": args.rounds,
    }  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**machine, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
