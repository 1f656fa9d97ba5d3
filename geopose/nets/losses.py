"""Losses: heatmaps against keypoints under symmetry, dense heads, the locator's maps, the refiner's flow and pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from geopose.geometry.heatmap import gaussian_heatmaps, soft_argmax
from geopose.geometry.rotation import exp_so3, log_so3
from geopose.nets.locator import SIZE_UNIT_PX
from geopose.nets.locator import STRIDE as LOCATOR_STRIDE
from geopose.nets.refiner import information

STRIDE = 4
"""Crop pixels per heatmap cell."""

_SCORE_SIGMA = 0.22  # object sizes
_POSE_WEIGHT = 0.2  # of the pose's likelihood beside the flow's


@dataclass(frozen=True)
class LossOptions:
    """Weights of the parts of `keypoint_loss`.

    Attributes:
        loss: "ce", cross-entropy of a spatial softmax (calibrated probabilities), or "mse", squared error to
            Gaussians of peak one (the literature's recipe; such maps are no logits).
        sigma: standard deviation of the Gaussian target, in heatmap cells of 4 crop pixels.
        nll: weight of the negative log-likelihood of the soft-argmax under its covariance ("ce" only).
        outside: weight of the uniform target that keypoints outside of the crop get ("ce" only).
        mask: weight of the visible mask, where the network predicts one.
        xyz: weight of the object coordinates, where the network predicts them.
    """

    loss: str = "ce"
    sigma: float = 1.0
    nll: float = 0.02
    outside: float = 0.1
    mask: float = 0.5
    xyz: float = 0.25

    def __post_init__(self) -> None:
        if self.loss not in ("ce", "mse"):
            raise ValueError(f"loss: got {self.loss!r}, expected 'ce' or 'mse'")
        if not self.sigma > 0:
            raise ValueError(f"sigma: got {self.sigma!r}, expected a positive number of cells")


def cells_from_px(points_px: Tensor, stride: int = STRIDE) -> Tensor:
    """Heatmap coordinates of crop pixels: `(x + 0.5) / stride - 0.5`."""
    return (points_px + 0.5) / stride - 0.5


def keypoint_loss(
    out: Mapping[str, Any], targets: Mapping[str, Tensor], options: LossOptions | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss (a scalar with gradient) and its parts (detached, unweighted).

    Args:
        out: what `UNet` or `Hourglass` returns; with `stacks`, each stack is trained.
        targets: collated crop samples: `keypoints_px` (B, Sym, K, 2) crop pixels, `inside` (B, Sym, K), and
            for dense heads `mask` (B, S/4, S/4) and `xyz` (B, 3, S/4, S/4); `present` (B,) if some crops are
            empty.
        options: weights; `LossOptions()` by default.
    Raises:
        ValueError: on shapes that do not match.
    Notes:
        One symmetric row is chosen per sample: that with the smallest mean loss over its keypoints inside of
        the crop (the last stack decides). The object coordinates know only row 0: they are trained where it
        was chosen. With the network at the optimum of "ce", each softmax is the posterior of the keypoint
        convolved with the Gaussian of `sigma`; `posterior_covariance` takes that Gaussian out again.
    """
    options = options or LossOptions()
    stacks: list[Tensor] = out.get("stacks") or [out["heatmaps"]]
    points = cells_from_px(targets["keypoints_px"].float())
    heatmaps = stacks[-1]
    if points.ndim != 4 or heatmaps.ndim != 4 or points.shape[::2] != heatmaps.shape[:2]:
        raise ValueError(
            f"keypoints_px: got {tuple(points.shape)} beside heatmaps {tuple(heatmaps.shape)}, "
            "expected (B, Sym, K, 2) beside (B, K, H, W)"
        )
    present = targets.get("present", torch.ones(len(points), dtype=torch.bool, device=points.device))
    inside = targets["inside"].to(torch.bool) & present[:, None, None]
    errors = _squared_error if options.loss == "mse" else _cross_entropy

    log_p = [_log_softmax(h) if options.loss == "ce" else h.float() for h in stacks]
    per_point = [errors(h, points, options.sigma) for h in log_p]  # each (B, Sym, K)
    row = _best_row(per_point[-1].detach(), inside)  # (B,)
    batch = torch.arange(len(row), device=row.device)
    seen = inside[batch, row].float()  # (B, K)
    heat = torch.stack([_mean(e[batch, row], seen) for e in per_point]).sum()
    total, parts = heat, {"heatmaps": heat.detach()}

    if options.loss == "ce":
        unseen = (present[:, None] & (seen == 0)).float()
        flat = torch.stack([_mean(_uniform_cross_entropy(h), unseen) for h in log_p]).sum()
        nll = _mean(_negative_log_likelihood(heatmaps, points[batch, row], options.sigma), seen)
        total = total + options.outside * flat + options.nll * nll
        parts |= {"outside": flat.detach(), "nll": nll.detach()}
    if "mask" in out:
        mask = F.binary_cross_entropy_with_logits(out["mask"][:, 0].float(), targets["mask"].float())
        total, parts["mask"] = total + options.mask * mask, mask.detach()
    if "xyz" in out:
        where = (targets["mask"] > 0.5) & ((row == 0) & present)[:, None, None]
        error = F.smooth_l1_loss(out["xyz"].float(), targets["xyz"].float(), reduction="none", beta=0.1)
        xyz = _mean(error.sum(1), where.float())
        total, parts["xyz"] = total + options.xyz * xyz, xyz.detach()
    parts["total"] = total.detach()
    return total, parts


def _log_softmax(logits: Tensor) -> Tensor:
    """The logarithm of the spatial softmax of maps (B, K, H, W)."""
    return F.log_softmax(logits.float().flatten(2), -1).unflatten(-1, logits.shape[-2:])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean, zero where no weight is; values without weight may be anything finite."""
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def _best_row(errors: Tensor, inside: Tensor) -> Tensor:
    """(B,) the row with the smallest mean `errors` (B, Sym, K) over `inside`; rows without any come last."""
    count = inside.sum(-1)
    mean = (errors * inside).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.inf).argmin(1)


def _axis_targets(points: Tensor, height: int, width: int, sigma: float) -> tuple[Tensor, Tensor]:
    """The Gaussian target as a product: log-probabilities of rows (B, Sym, K, H), columns (B, Sym, K, W)."""
    axes = []
    for coordinate, size in ((points[..., 1], height), (points[..., 0], width)):
        cells = torch.arange(size, device=points.device, dtype=points.dtype)
        distance = (cells - coordinate.clamp(-4.0 * sigma, size - 1 + 4.0 * sigma)[..., None]) / sigma
        axes.append(F.log_softmax(-0.5 * distance.square(), -1))
    return axes[0], axes[1]


def _cross_entropy(log_p: Tensor, points: Tensor, sigma: float) -> Tensor:
    """(B, Sym, K) divergence from the Gaussian target to softmax maps (B, K, H, W): zero where they agree."""
    log_y, log_x = _axis_targets(points, log_p.shape[-2], log_p.shape[-1], sigma)
    y, x = log_y.exp(), log_x.exp()
    rows = torch.einsum("bkhw,bskw->bskh", log_p, x)
    negative_entropy = (y * log_y).sum(-1) + (x * log_x).sum(-1)
    return negative_entropy - (rows * y).sum(-1)


def _squared_error(heatmaps: Tensor, points: Tensor, sigma: float) -> Tensor:
    """(B, Sym, K) sum over cells of the squared difference to Gaussians of peak one."""
    drawn = gaussian_heatmaps(points, (heatmaps.shape[-2], heatmaps.shape[-1]), sigma)
    return (heatmaps[:, None] - drawn).square().sum((-2, -1))


def _uniform_cross_entropy(log_p: Tensor) -> Tensor:
    """(B, K) divergence from the uniform distribution to softmax maps (B, K, H, W)."""
    cells = log_p.shape[-2] * log_p.shape[-1]
    return -log_p.mean((-2, -1)) - torch.log(torch.tensor(float(cells)))


def posterior_covariance(covariance: Tensor, sigma: float, floor: float = 0.1) -> Tensor:
    """Covariance (..., 2, 2) in cells^2 of a keypoint, from that of a softmax trained with `sigma`.

    The target's own variance is taken out of each eigenvalue, which stays above `floor`^2.
    """
    mean = 0.5 * (covariance[..., 0, 0] + covariance[..., 1, 1])
    half = 0.5 * (covariance[..., 0, 0] - covariance[..., 1, 1])
    radius = (half.square() + covariance[..., 0, 1].square() + 1e-12).sqrt()
    taken = sigma**2 + floor**2
    large = floor**2 + F.softplus(mean + radius - taken, beta=100.0)
    small = floor**2 + F.softplus(mean - radius - taken, beta=100.0)
    eye = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    slope = (large - small) / (2.0 * radius)
    centre, outer = 0.5 * (large + small), covariance - mean[..., None, None] * eye
    return centre[..., None, None] * eye + slope[..., None, None] * outer


def _negative_log_likelihood(logits: Tensor, points: Tensor, sigma: float) -> Tensor:
    """(B, K) robust negative log-likelihood of `points` (B, K, 2) cells under the soft-argmax of `logits`.

    A bivariate Student t with 4 degrees of freedom: one wild keypoint does not drown the others.
    """
    mean, covariance, _ = soft_argmax(logits.float())
    covariance = posterior_covariance(covariance, sigma)
    a, b, d = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    det = (a * d - b * b).clamp_min(1e-8)
    x, y = (points - mean).unbind(-1)
    mahalanobis = (d * x * x - 2.0 * b * x * y + a * y * y) / det
    return 3.0 * torch.log1p(mahalanobis / 4.0) + 0.5 * det.log()


def locator_loss(out: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss (a scalar with gradient) of `Locator` maps, and its parts (detached, unweighted).

    Args:
        out: (B, 5, H, W).
        targets: collated window samples: `centre_px` (B, 2), `size_px` (B,), `visib_fract` (B,), `present`
            (B,) bool; values of absent objects are not read. A centre outside of the picture counts in the
            nearest cell.
    Raises:
        ValueError: on another shape.
    Notes:
        The score wanted of a cell falls off around the centre as a Gaussian of 0.22 sizes; cells within it learn
        centre, size and visibility, each as much as its score. The score's loss is that of Li et al., "Generalized
        Focal Loss", NeurIPS 2020, eq. 1 (beta = 2), per object; the rest is Zhou, Wang, Kraehenbuehl, "Objects as
        Points", 2019, with every cell of the object learning in place of the one at its centre.
    """
    if out.ndim != 4 or out.shape[1] != 5 or targets["centre_px"].shape != (len(out), 2):
        raise ValueError(
            f"out: got {tuple(out.shape)} beside centre_px {tuple(targets['centre_px'].shape)}, "
            "expected (B, 5, H, W) beside (B, 2)"
        )
    out = out.float()
    present = targets["present"].to(torch.bool)
    centre = torch.where(present[:, None], targets["centre_px"].float(), 0.0)[..., None, None]
    size = torch.where(present, targets["size_px"].float(), SIZE_UNIT_PX).clamp_min(1.0)[:, None, None]
    rows = (torch.arange(out.shape[-2], device=out.device)[:, None] + 0.5) * LOCATOR_STRIDE - 0.5
    columns = (torch.arange(out.shape[-1], device=out.device) + 0.5) * LOCATOR_STRIDE - 0.5
    to_x, to_y = centre[:, 0] - columns, centre[:, 1] - rows  # (B, H, W) pixels from each cell to the centre
    sigma = (_SCORE_SIGMA * size).clamp_min(0.8 * LOCATOR_STRIDE)
    wanted = torch.exp(-0.5 * (to_x.square() + to_y.square()) / sigma.square()) * present[:, None, None]

    cells = wanted.sum((1, 2)).clamp_min(1.0)
    # A picture without the object counts like one with an object of the batch's mean size.
    cells = torch.where(present, cells, _mean(cells, present.float()).clamp_min(1.0))
    scores = F.binary_cross_entropy_with_logits(out[:, 0], wanted, reduction="none")
    far = (wanted - out[:, 0].detach().sigmoid()).square()
    focal = ((scores * far).sum((1, 2)) / cells).mean()

    weight = wanted * (wanted > 0.1)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(
        1.0
    )  # objects count alike, whatever their size
    log_size = _mean((out[:, 1] - torch.log2(size / SIZE_UNIT_PX)).abs(), weight)
    offset = _mean(((out[:, 2] - to_x).abs() + (out[:, 3] - to_y).abs()) / size, weight)
    fraction = torch.where(present, targets["visib_fract"].float(), 0.0).clamp(0.0, 1.0)
    seen = fraction[:, None, None].expand_as(weight)
    visible = _mean(F.binary_cross_entropy_with_logits(out[:, 4], seen, reduction="none"), weight)
    total = 4.0 * focal + log_size + 2.0 * offset + 0.1 * visible
    parts = {"centre": focal, "size": log_size, "offset": offset, "visible": visible, "total": total}
    return total, {name: part.detach() for name, part in parts.items()}


def refiner_loss(out: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss (a scalar with gradient) of a `Refiner`'s flow and pose, and its parts (detached, unweighted).

    Args:
        out: (B, 6, H, W). targets: collated pairs: `flow` (B, 2, H, W) cells, `drawn` (B, H, W), 1 where the guide
            shows the object, and for the pose `points`, `centre`, `turn`, `shift` and `focal` (see
            `SyntheticDataset`).
    Raises:
        ValueError: on shapes that do not match.
    Notes:
        Flow: negative log-likelihood of independent Laplace distributions; every sample counts alike. Pose: see
        `pose_nll`.
    """
    flow, drawn = targets["flow"].float(), targets["drawn"].float()
    if out.ndim != 4 or out.shape[1] != 6 or flow.shape != (len(out), 2, *out.shape[2:]):
        raise ValueError(
            f"out: got {tuple(out.shape)} beside flow {tuple(flow.shape)}, expected (B, 6, H, W) beside (B, 2, H, W)"
        )
    error = (out[:, :2].float() - flow).abs().sum(1)
    log_b = out[:, 2].float()
    weight = drawn / drawn.sum((1, 2), keepdim=True).clamp_min(1.0)
    nll = ((error * torch.exp(-log_b) + 2.0 * log_b) * weight).sum() / len(out)
    far = (error.detach() * weight).sum() / len(out)
    pose = pose_nll(out.flatten(2).float(), targets).mean()
    total = nll + _POSE_WEIGHT * pose
    return total, {"nll": nll.detach(), "flow": far, "pose": pose.detach(), "total": total.detach()}


def pose_nll(out: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """(B,) negative log-likelihood of the true pose under the one that least squares make of a flow.

    Args:
        out: (B, 6, M) of a `Refiner`. targets: as for `refiner_loss`.
    Notes:
        Two Gauss-Newton steps from the guess, with gradient, as in Teed and Deng's and Lipson et al.'s work (see
        `information`), held by a wide prior. xi (6,) is what is left to the truth, H the information of the steps; the
        density is proportional to |H|^(1/2) exp(-(6 xi' H xi)^(1/2)), whose tails are those of a Laplace distribution:
        errors that the flow's cells share, such as a wrong size of the outline, count in full.
    """
    drawn, points, centre = targets["drawn"].flatten(1), targets["points"].flatten(2), targets["centre"]
    focal = targets["focal"][:, None]
    known = out.detach()
    w00, w10, w11 = information(torch.cat((out[:, :2], known[:, 2:3], out[:, 3:]), 1), drawn).unbind(1)
    start = points + centre[..., None]
    z = torch.where(drawn > 0, start[:, 2], torch.ones_like(drawn))
    goal = focal[..., None] * start[:, :2] / z[:, None] + out[:, :2]
    deviation = torch.stack(
        [
            *(torch.full_like(centre[:, 2], 0.15),) * 2,
            0.15 * centre[:, 2],
            *(torch.full_like(z[:, 0], 0.25),) * 3,
        ],
        1,
    )
    prior = deviation.double() ** -2
    R = torch.eye(3, device=out.device).expand(len(out), 3, 3)
    t = torch.zeros_like(centre)
    for _ in range(2):
        turned = R @ points
        x, y, z = (turned + (centre + t)[..., None]).unbind(1)
        z = torch.where(drawn > 0, z, torch.ones_like(z)).clamp_min(1e-2)
        px, py, pz = turned.unbind(1)
        u, v, scale = x / z, y / z, focal / z
        du = torch.stack(
            (
                scale,
                torch.zeros_like(u),
                -u * scale,
                -u * py * scale,
                scale * pz + u * px * scale,
                -scale * py,
            ),
            1,
        )
        dv = torch.stack(
            (
                torch.zeros_like(u),
                scale,
                -v * scale,
                -scale * pz - v * py * scale,
                v * px * scale,
                scale * px,
            ),
            1,
        )
        eu, ev = goal[:, 0] - focal * u, goal[:, 1] - focal * v
        J = torch.cat((w00[:, None] * du, w10[:, None] * du + w11[:, None] * dv), 2).double()
        r = torch.cat((w00 * eu, w10 * eu + w11 * ev), 1).double()
        H = J @ J.mT + torch.diag_embed(prior)
        gone = torch.cat((t, log_so3(R)), 1).double()
        step = torch.linalg.solve(H, (J @ r[..., None])[..., 0] - prior * gone).float()
        R, t = exp_so3(step[:, 3:]) @ R, t + step[:, :3]
    xi = torch.cat((targets["shift"] - t, log_so3(targets["turn"] @ R.mT)), 1).double()
    far = torch.einsum("bi,bij,bj->b", xi, H, xi)
    return ((6.0 * far + 1e-4).sqrt() - 0.5 * torch.linalg.slogdet(H)[1]).float()
