"""Networks in eight bits: exact integers layer by layer, and nearly the same answers as in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geopose import checkpoint
from geopose.cad.model import load_cad
from geopose.cad.symmetry import Symmetries
from geopose.checkpoint import model_of
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import box_centre_size, projected_box
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.nets import eight
from geopose.nets.backbone import ConvNorm
from geopose.nets.eight import eight_bits, has_fast_bytes
from geopose.nets.exported import Exported
from geopose.nets.locator import decode
from geopose.stages import keypoints_of

needs_bytes = pytest.mark.skipif(
    not has_fast_bytes(), reason="this processor does not multiply bytes in hardware"
)


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="the system does not list what its processor can"
)
def test_a_processor_that_multiplies_bytes_is_known() -> None:
    """By what the kernel says of it; torch has given the question several names."""
    words = Path("/proc/cpuinfo").read_text().split()
    assert has_fast_bytes() == ("avx512_vnni" in words or "amx_tile" in words)


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


@needs_bytes
def test_the_networks_answer_as_well() -> None:
    """Bytes move keypoints by less than they are off, and places and sizes are no farther from the truth."""
    plain, meta = checkpoint.load_nets(model_of("xwing"))
    small = {role: eight_bits(net) for role, net in checkpoint.load_nets(model_of("xwing"))[0].items()}
    model, window = load_cad("xwing"), meta["calibration"].get("window")
    options = SyntheticOptions(clutter=0.0, occluders=0.0, crop_range=(100.0, 280.0))
    symmetries = Symmetries.from_json(meta["symmetries"])
    data = SyntheticDataset(model, np.asarray(meta["keypoints"]), symmetries, options, 4711, "crop", 24)
    made = [data[i] for i in range(24)]
    crops = torch.from_numpy(np.stack([m["image"] for m in made])).float() / 255
    true_centre, true_size = [], []
    for m in made:
        box = projected_box(model.vertices, Pose(m["R"], m["t"]), Camera.from_matrix(m["K"], (128, 128)))
        centre, size = box_centre_size(box)
        true_centre.append(centre)
        true_size.append(size)
    with torch.inference_mode():
        wanted, _ = keypoints_of(plain["keypoints"](crops)["heatmaps"], 128, window)
        found, _ = keypoints_of(small["keypoints"](crops)["heatmaps"], 128, window)
        assert 0 < float((found - wanted).norm(dim=-1).median()) < 1.0  # of 128; their own error is three
        off = {}
        for name, nets in (("plain", plain), ("small", small)):
            centre, size, score = (x[:, 0].double().numpy() for x in decode(nets["locator"](crops), 1))
            far = np.linalg.norm(centre - np.array(true_centre), axis=1)
            ratio = np.log(size / np.array(true_size))
            off[name] = np.sqrt([np.mean(far**2), np.mean(ratio**2)]), score
    assert (off["small"][0] < 1.1 * off["plain"][0]).all()
    assert 0 < np.abs(off["small"][1] - off["plain"][1]).max() < 0.1


@needs_bytes
def test_an_estimator_locates_in_bytes() -> None:
    """The places, whose networks gain most by it; for a single picture all, which spares the preparation."""
    many, one = (PoseEstimator.load(model_of("xwing"), many=many) for many in (True, False))
    for estimator, small in ((many, {"locator"}), (one, {"locator", "keypoints", "refiner"})):
        found = {
            r for r, net in estimator.nets.items() if any(isinstance(m, eight._Bytes) for m in net.modules())
        }
        assert found == small
    assert {r for r, net in many.nets.items() if isinstance(net, Exported)} == {"keypoints", "refiner"}


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
