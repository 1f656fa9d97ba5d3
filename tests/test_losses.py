"""Losses: smallest at the truth, symmetric choice, masks, calibration, and a tiny batch that is learned."""

from __future__ import annotations

import math

import pytest
import torch

from geopose.nets import Locator, LossOptions, build_keypoint_net, keypoint_loss, locator_loss
from geopose.nets.losses import cells_from_px, posterior_covariance

B, SYM, K, S = 3, 2, 4, 64


def crop_targets(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "keypoints_px": 12 + (S - 24) * torch.rand(B, SYM, K, 2, generator=generator),
        "inside": torch.ones(B, SYM, K, dtype=torch.bool),
        "mask": (torch.rand(B, S // 4, S // 4, generator=generator) > 0.5).float(),
        "xyz": torch.rand(B, 3, S // 4, S // 4, generator=generator) * 2 - 1,
        "present": torch.ones(B, dtype=torch.bool),
    }


def gaussian_logits(points_px: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """Logits (B, K, S/4, S/4) whose softmax is the Gaussian at `points_px` (B, K, 2)."""
    centre = (points_px[:, :, None, None] + 0.5) / 4 - 0.5
    cells = torch.stack(torch.meshgrid(torch.arange(S // 4), torch.arange(S // 4), indexing="xy"), -1)
    return -0.5 * (cells - centre).square().sum(-1) / sigma**2


def perfect(targets: dict[str, torch.Tensor], row: int = 0) -> dict[str, torch.Tensor]:
    return {
        "heatmaps": gaussian_logits(targets["keypoints_px"][:, row]),
        "mask": (targets["mask"][:, None] * 2 - 1) * 20,
        "xyz": targets["xyz"].clone(),
    }


def test_pixel_of_a_cell() -> None:
    assert cells_from_px(torch.tensor([1.5, 5.5, -0.5])).tolist() == [0.0, 1.0, -0.5]


@pytest.mark.parametrize("row", [0, 1])
def test_truth_costs_nothing(row: int) -> None:
    targets = crop_targets()
    _, parts = keypoint_loss(perfect(targets, row), targets)
    for name in ("heatmaps", "mask", "xyz", "outside"):
        assert abs(float(parts[name])) < 1e-5, name


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_truth_is_the_minimum(loss: str) -> None:
    targets = crop_targets()
    wanted = targets["keypoints_px"][:, 0]

    def cost(shift: float) -> float:
        logits = gaussian_logits(wanted + shift)
        return float(
            keypoint_loss({"heatmaps": logits if loss == "ce" else logits.exp()}, targets, LossOptions(loss))[
                0
            ]
        )

    costs = {shift: cost(shift) for shift in (-2.0, -0.5, 0.0, 0.5, 2.0)}
    assert min(costs, key=costs.__getitem__) == 0.0
    assert costs[2.0] > costs[0.5]
    assert costs[-2.0] > costs[-0.5]


def test_divergence_of_a_shifted_gaussian_is_the_closed_form() -> None:
    targets = crop_targets()
    shift_cells = 0.75
    targets["keypoints_px"] = targets["keypoints_px"][:, :1].clamp(28, 36)
    targets["inside"] = targets["inside"][:, :1]
    logits = gaussian_logits(targets["keypoints_px"][:, 0] + torch.tensor([4 * shift_cells, 0.0]))
    _, parts = keypoint_loss({"heatmaps": logits}, targets)
    assert float(parts["heatmaps"]) == pytest.approx(shift_cells**2 / 2, rel=1e-3)


def test_each_sample_chooses_its_own_row() -> None:
    targets = crop_targets()
    rows = [0, 1, 1]
    points = torch.stack([targets["keypoints_px"][b, row] for b, row in enumerate(rows)])
    _, parts = keypoint_loss({"heatmaps": gaussian_logits(points)}, targets)
    assert abs(float(parts["heatmaps"])) < 1e-5
    # not per keypoint: half of the keypoints from either row is no pose, and costs
    mixed = torch.cat((targets["keypoints_px"][:, 0, :2], targets["keypoints_px"][:, 1, 2:]), 1)
    _, parts = keypoint_loss({"heatmaps": gaussian_logits(mixed)}, targets)
    assert float(parts["heatmaps"]) > 1.0


def test_coordinates_count_only_where_row_zero_was_chosen() -> None:
    targets = crop_targets()
    out = perfect(targets, row=1)
    out["xyz"] = out["xyz"] + 1.0
    assert float(keypoint_loss(out, targets)[1]["xyz"]) == 0.0
    out["heatmaps"] = gaussian_logits(targets["keypoints_px"][:, 0])
    assert float(keypoint_loss(out, targets)[1]["xyz"]) == pytest.approx(3 * (1 - 0.05))


def test_coordinates_count_only_inside_the_mask() -> None:
    targets = crop_targets()
    out = perfect(targets)
    out["xyz"] = torch.where(targets["mask"][:, None] > 0.5, out["xyz"], 9.0)
    assert float(keypoint_loss(out, targets)[1]["xyz"]) == 0.0


def test_keypoints_outside_are_taught_to_be_flat() -> None:
    targets = crop_targets()
    targets["inside"][:, :, 1] = False
    out = {"heatmaps": gaussian_logits(targets["keypoints_px"][:, 0]).requires_grad_()}
    total, parts = keypoint_loss(out, targets)
    assert abs(float(parts["heatmaps"])) < 1e-5
    assert float(parts["outside"]) > 1.0
    total.backward()
    out["heatmaps"].data[:, 1] = 0.0
    assert abs(float(keypoint_loss(out, targets)[1]["outside"])) < 1e-4
    without = LossOptions(outside=0.0, nll=0.0)
    out["heatmaps"].grad = None
    keypoint_loss(out, targets, without)[0].backward()
    assert float(out["heatmaps"].grad[:, 1].abs().max()) == 0.0


def test_empty_crops_teach_only_their_mask() -> None:
    targets = crop_targets()
    targets["present"][:] = False
    targets["keypoints_px"][:] = 1e4
    out = perfect(targets)
    out["heatmaps"].requires_grad_()
    total, parts = keypoint_loss(out, targets)
    total.backward()
    assert torch.isfinite(total)
    assert float(out["heatmaps"].grad.abs().max()) == 0.0
    assert float(parts["xyz"]) == 0.0


def test_stacks_are_all_trained() -> None:
    targets = crop_targets()
    stacks = [torch.zeros(B, K, S // 4, S // 4, requires_grad=True) for _ in range(3)]
    for options in (LossOptions(), LossOptions("mse")):
        keypoint_loss({"heatmaps": stacks[-1], "stacks": stacks}, targets, options)[0].backward()
        assert all(float(s.grad.abs().max()) > 0 for s in stacks)


def test_covariance_term_prefers_the_honest_width() -> None:
    targets = crop_targets()
    wanted = targets["keypoints_px"][:, 0].clamp(24, 40)
    generator = torch.Generator().manual_seed(5)
    error_px = 4 * 0.8 * torch.randn(wanted.shape, generator=generator)  # 0.8 cells on either axis
    targets["keypoints_px"] = (wanted + error_px)[:, None]
    targets["inside"] = targets["inside"][:, :1]

    def nll(extra: float) -> float:  # the posterior's standard deviation, cells, beside the target's own 1
        logits = gaussian_logits(wanted, math.hypot(1.0, extra))
        return float(keypoint_loss({"heatmaps": logits}, targets)[1]["nll"])

    assert nll(0.8) < min(nll(0.15), nll(3.0))


def test_posterior_covariance_takes_the_target_out() -> None:
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    posterior = turn @ torch.diag(torch.tensor([4.0, 0.7])) @ turn.T
    found = posterior_covariance(posterior + 1.5**2 * torch.eye(2), sigma=1.5)
    torch.testing.assert_close(found, posterior, atol=1e-3, rtol=1e-3)
    narrow = posterior_covariance(torch.eye(2) * 0.2, sigma=1.0, floor=0.1)
    assert bool((torch.linalg.eigvalsh(narrow) >= 0.01 - 1e-6).all())


def test_wrong_shapes_and_options_are_refused() -> None:
    targets = crop_targets()
    with pytest.raises(ValueError, match="keypoints_px"):
        keypoint_loss({"heatmaps": torch.zeros(B, K + 1, 16, 16)}, targets)
    with pytest.raises(ValueError, match="loss"):
        LossOptions("l2")
    with pytest.raises(ValueError, match="sigma"):
        LossOptions(sigma=0.0)
    with pytest.raises(ValueError, match="centre_px"):
        locator_loss(torch.zeros(2, 5, 4, 4), window_targets())


@pytest.mark.parametrize("options", [{}, {"kind": "hourglass", "features": 16, "stacks": 1}])
def test_a_tiny_batch_is_learned(options: dict) -> None:
    torch.manual_seed(0)
    net = build_keypoint_net({"num_keypoints": K, **options}).train()
    targets = crop_targets()
    x = torch.rand(B, 3, S, S, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        total, parts = keypoint_loss(net(x), targets)
        total.backward()
        optimiser.step()
        losses.append(float(parts["heatmaps"]))
    assert losses[-1] < 0.5 * losses[0]


def window_targets() -> dict[str, torch.Tensor]:
    return {
        "centre_px": torch.tensor([[20.0, 33.0], [-50.0, 90.0], [float("nan"), 0.0]]),
        "size_px": torch.tensor([40.0, 100.0, float("nan")]),
        "visib_fract": torch.tensor([1.0, 0.3, float("nan")]),
        "present": torch.tensor([True, True, False]),
    }


def perfect_maps() -> torch.Tensor:
    """What a locator should say to `window_targets` of 64x64 pictures: scores fall off within 0.22 sizes."""
    out = torch.zeros(3, 5, 8, 8)
    out[:, 0] = -20.0
    truths = ((0, 40.0, (20.0, 33.0), 20.0), (1, 100.0, (-50.0, 90.0), math.log(0.3 / 0.7)))
    for i, size, (x, y), visible in truths:
        cells = torch.arange(8, dtype=torch.float64) * 8 + 3.5
        squared = (x - cells) ** 2 + (y - cells)[:, None] ** 2
        out[i, 0] = torch.special.logit(torch.exp(-0.5 * squared / (0.22 * size) ** 2), eps=1e-9)
        out[i, 1], out[i, 4] = math.log2(size / 32), visible
        out[i, 2], out[i, 3] = x - cells, (y - cells)[:, None]
    return out


def test_locator_truth_is_the_minimum() -> None:
    targets, truth = window_targets(), perfect_maps()
    best, parts = locator_loss(truth, targets)
    for name in ("centre", "size", "offset"):
        assert float(parts[name]) == pytest.approx(0.0, abs=1e-5), name
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 5.0):
        noise = scale * torch.randn(truth.shape, generator=generator)
        assert float(locator_loss(truth + noise, targets)[0]) > float(best) + 0.05


def test_locator_hits_and_false_alarms_cost() -> None:
    targets, truth = window_targets(), perfect_maps()
    missed, alarm = truth.clone(), truth.clone()
    missed[0, 0] = -20.0
    alarm[2, 0, 3, 3] = 20.0
    assert float(locator_loss(missed, targets)[1]["centre"]) > 2.0
    assert float(locator_loss(alarm, targets)[1]["centre"]) > 0.3


def test_absent_objects_train_nothing_but_absence() -> None:
    targets = {name: value[2:] for name, value in window_targets().items()}
    out = torch.zeros(1, 5, 8, 8, requires_grad=True)
    total, _ = locator_loss(out, targets)
    total.backward()
    assert torch.isfinite(total)
    assert float(out.grad[:, 1:].abs().max()) == 0.0
    assert bool((out.grad[:, 0] > 0).all())


def test_a_tiny_batch_is_located() -> None:
    torch.manual_seed(0)
    net = Locator().train()
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        total, _ = locator_loss(net(x), window_targets())
        total.backward()
        optimiser.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.5 * losses[0]
