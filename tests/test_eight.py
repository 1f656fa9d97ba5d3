"""Networks in eight bits: exact integers layer by layer, and nearly the same answers as in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from geopose import checkpoint
from geopose.cad.model import load_cad
from geopose.checkpoint import model_of
from geopose.data.picture import SyntheticOptions
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator
from geopose.nets import eight
from geopose.nets.backbone import ConvNorm
from geopose.nets.eight import eight_bits, has_fast_bytes
from geopose.nets.locator import decode
from geopose.stages import CLEAR, keypoints_of

needs_bytes = pytest.mark.skipif(
    not has_fast_bytes(), reason="this processor does not multiply bytes in hardware"
)


def layer_of(seed: int, kernel: int, stride: int, groups: int, act: str) -> ConvNorm:
    """A folded layer with 24 channels on both sides, 32 where it is not depthwise."""
    torch.manual_seed(seed)
    layer = ConvNorm(24, 24 if groups > 1 else 32, kernel, stride, groups, act).eval()
    layer.fold()
    with torch.no_grad():
        layer.conv.bias.normal_()  # type: ignore[union-attr]
    return layer


@needs_bytes
@pytest.mark.parametrize("zero", [0, 127, 128])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "act"),
    [(1, 1, 1, "relu6"), (1, 1, 1, "none"), (3, 1, 1, "relu"), (3, 2, 24, "relu6"), (5, 1, 24, "relu6")],
)
def test_a_layer_multiplies_bytes_exactly(kernel: int, stride: int, groups: int, act: str, zero: int) -> None:
    """The same integers, multiplied in float64; what lies beyond the border stands for zero."""
    layer = layer_of(1, kernel, stride, groups, act)
    small = eight._Bytes(layer, zero)
    x = torch.randint(0, 256, (2, 24, 13, 10), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    weight = small.whole.double() * small.step.double().view(-1, 1, 1, 1)
    assert (weight - layer.conv.weight).abs().max() < 0.51 * small.step.max()
    values = 0.02 * (x.double() - zero)
    wanted = nn.functional.conv2d(
        values,
        weight,
        layer.conv.bias.double(),
        stride,
        kernel // 2,
        groups=groups,  # type: ignore[union-attr]
    ).detach()
    if act == "relu":
        wanted = wanted.relu()
    assert torch.allclose(small(x, 0.02).double(), wanted, atol=1e-4)
    bytes_out = small(x, 0.02, 6 / 255)
    assert bytes_out.dtype == torch.uint8
    assert (
        bytes_out.double() * 6 / 255 - wanted.clamp(0, 6)
    ).abs().max() < 0.51 * 6 / 255  # ReLU6, for nothing


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 5, 7, 9)])
def test_bytes_are_worth_what_they_say(shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, shape).astype(np.float32))
    whole, scale = eight._as_bytes(x)
    assert scale == pytest.approx(float(x.abs().max()) / 127)
    assert ((whole.float() - 128) * scale - x).abs().max() <= 0.5 * scale * 1.001
    assert whole.shape == x.shape
    zero, scale = eight._as_bytes(torch.zeros(shape))
    assert scale > 0
    assert (zero == 128).all()


def test_a_pointwise_convolution_is_a_product_of_matrices() -> None:
    conv = nn.Conv2d(12, 5, 1)
    x = torch.randn(2, 12, 6, 7)
    assert torch.allclose(eight._Pointwise(conv)(x), conv(x), atol=1e-5)


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    """Six crops of the X-wing, (6, 3, 128, 128) in [0, 1]."""
    estimator = PoseEstimator.load(model_of("xwing"))
    options = SyntheticOptions(clutter=0.0, occluders=0.0, crop_range=(100.0, 280.0))
    data = SyntheticDataset(
        load_cad("xwing"), estimator.keypoints, estimator.symmetries, options, 4711, "crop"
    )
    return torch.from_numpy(np.stack([data[i]["image"] for i in range(6)])).float() / 255


@needs_bytes
def test_the_networks_answer_nearly_the_same(crops: torch.Tensor) -> None:
    plain, meta = checkpoint.load_nets(model_of("xwing"))
    small, _ = checkpoint.load_nets(model_of("xwing"))
    window = meta["calibration"].get("window")
    with torch.inference_mode():
        wanted, _ = keypoints_of(plain["keypoints"](crops)["heatmaps"], 128, window)
        found, _ = keypoints_of(eight_bits(small["keypoints"])(crops)["heatmaps"], 128, window)
        moved = (found - wanted).norm(dim=-1)
        assert 0 < float(moved.median()) < 1.0  # pixels of 128; the network's own error is three
        centre, size, score = (x[:, 0] for x in decode(plain["locator"](crops), 1))
        centre8, size8, score8 = (x[:, 0] for x in decode(eight_bits(small["locator"])(crops), 1))
        clear = score > CLEAR
        assert clear.sum() >= 3
        assert 0 < float((score8 - score).abs().max()) < 0.1
        assert (centre8 - centre)[clear].norm(dim=-1).max() < 1.0
        assert (size8 / size - 1)[clear].abs().max() < 0.03


@needs_bytes
def test_weights_are_packed_for_the_number_of_threads() -> None:
    """Those packed for another number would be packed again at every call, at ten times a layer's cost."""
    small = eight._Bytes(layer_of(1, 3, 1, 1, "relu"), 128)
    x = torch.zeros((1, 24, 8, 8), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            small(x, 0.1)
    finally:
        torch.set_num_threads(before)
    assert set(small.packed) == {(1, 1, 24, 8, 8), (2, 1, 24, 8, 8)}
