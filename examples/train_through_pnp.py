"""A network trained end to end through the pose: it sees pictures, and its loss is how far off the pose is.

    python examples/train_through_pnp.py                     # about a minute on one core
    python examples/train_through_pnp.py --steps 1000

Eight lights on a box, each of its own colour, some of them out, in noise. The network draws a heatmap for each,
soft-argmax makes points and covariances of them, and `solve_pnp` a pose. First it learns the heatmaps, then nothing but
the pose: the gradient comes back through the optimum (implicit function theorem). It teaches the covariances too, for
which there is no label.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from geopose import Camera, PnPOptions, Pose, solve_pnp
from geopose.geometry.heatmap import gaussian_heatmaps, soft_argmax
from geopose.geometry.rotation import random_rotation

SIZE = 32
CAMERA = Camera(60, 60, (SIZE - 1) / 2, (SIZE - 1) / 2, (SIZE, SIZE))
BOX = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.4, 0.4) for z in (-0.3, 0.3)])
COLORS = np.array([[x, y, z] for x in (0.2, 1.0) for y in (0.2, 1.0) for z in (0.2, 1.0)])
OPTIONS = PnPOptions(gate_sigma=8.0, max_samples=100)


def pictures(rng: np.random.Generator, count: int) -> tuple[Tensor, Pose]:
    """Pictures (count, 3, H, W) of the lights and the true poses."""
    t = np.stack([*rng.uniform(-0.25, 0.25, (2, count)), rng.uniform(3.0, 4.0, count)], -1)
    pose = Pose(random_rotation((count,), rng), t)
    px = CAMERA.project(pose.apply(BOX))
    spots = gaussian_heatmaps(px, (SIZE, SIZE), 1.2) * (rng.uniform(size=(count, 8, 1, 1)) > 0.1)
    image = np.einsum("bkhw,kc->bchw", spots, COLORS) + rng.normal(0, 0.1, (count, 3, SIZE, SIZE))
    return torch.from_numpy(image).float(), pose


def network() -> nn.Module:
    def block(into: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 5, padding=2), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(*block(3, 24), *block(24, 24), *block(24, 24), nn.Conv2d(24, 8, 1))


def points_of(net: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B, 8, 2) and covariances (B, 8, 2, 2), pixels; float64."""
    mean, cov, _ = soft_argmax(net(image).double(), window=5)
    return mean, cov + 0.05 * torch.eye(2, dtype=torch.float64)


def pose_loss(pose: Pose, truth: Pose) -> Tensor:
    """The mean distance of the corners to where they are, metres, of the items that have a pose."""
    found = torch.isfinite(pose.t).all(-1)
    box = torch.from_numpy(BOX)
    moved = pose.R[found] @ box.T + pose.t[found][..., None]
    true = torch.from_numpy(truth.apply(BOX)).mT[found]
    distance = (moved - true).norm(dim=1).mean(-1)
    return distance.clamp(max=0.5).mean()


def test(net: nn.Module) -> tuple[float, float]:
    """Median corner distance, metres, and share of `ok` over new pictures."""
    image, truth = pictures(np.random.default_rng(1), 300)
    net.eval()
    with torch.no_grad():
        px, cov = points_of(net, image)
        found = solve_pnp(torch.from_numpy(BOX), px, CAMERA, cov_px=cov, options=OPTIONS)
    net.train()
    off = np.linalg.norm(found.pose.numpy().apply(BOX) - truth.apply(BOX), axis=-1).mean(-1)
    return float(np.median(np.nan_to_num(off, nan=np.inf))), float((found.status == "ok").mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--warm-up", type=int, default=200, help="steps on heatmaps (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="steps on the pose (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step (default: %(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    net = network()
    for phase, steps, rate in (("heatmaps", args.warm_up, 3e-3), ("the pose", args.steps, 1e-3)):
        optimiser = torch.optim.Adam(net.parameters(), rate)
        for _ in range(steps):
            image, truth = pictures(rng, args.batch)
            if phase == "heatmaps":
                target = torch.from_numpy(CAMERA.project(truth.apply(BOX)))
                drawn = gaussian_heatmaps(target, (SIZE, SIZE), 1.0).flatten(-2)
                drawn = drawn / drawn.sum(-1, keepdim=True).clamp_min(1e-9)
                loss = -(drawn * net(image).double().flatten(-2).log_softmax(-1)).sum(-1).mean()
            else:
                px, cov = points_of(net, image)
                found = solve_pnp(torch.from_numpy(BOX), px, CAMERA, cov_px=cov, options=OPTIONS)
                loss = pose_loss(found.pose, truth)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        off, ok = test(net)
        print(
            f"after {steps} steps on {phase}: corners off by {100 * off:.1f} cm (median), {ok:.0%} ok",
            flush=True,
        )


if __name__ == "__main__":
    main()
