"""Networks evaluated by onnxruntime: what torch says, but for rounding, and only where it pays."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from flights import xwing_frames
from torch import Tensor

from geopose import estimate
from geopose.checkpoint import load_nets, model_of
from geopose.geometry.metrics import rotation_error, translation_error
from geopose.nets import Locator, build_keypoint_net, fold_batchnorm
from geopose.nets.exported import Exported


def outputs(found: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return found if isinstance(found, dict) else {"only": found}


@pytest.mark.parametrize(
    ("role", "shapes"),
    [
        ("locator", [(1, 3, 64, 96), (1, 3, 224, 320), (2, 3, 64, 64)]),
        ("keypoints", [(1, 3, 128, 128), (5, 3, 128, 128)]),
        ("refiner", [(1, 9, 128, 128), (1, 9, 192, 192), (2, 9, 64, 64)]),
    ],
)
def test_it_says_what_torch_says(role: str, shapes: list[tuple[int, ...]]) -> None:
    net = load_nets(model_of("xwing"))[0][role]
    net.mixed = False  # float32 throughout, also where the processor has bfloat16
    quick = Exported(net, role)
    for shape in shapes:
        x = torch.rand(shape)
        with torch.inference_mode():
            wanted, found = outputs(net(x)), outputs(quick(x))
        assert set(found) == set(wanted) - {"xyz"}
        for name, value in found.items():
            assert value.shape == wanted[name].shape
            assert torch.allclose(value, wanted[name], atol=2e-3), name


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "hourglass", "num_keypoints": 5, "features": 32, "depth": 2},
        {"num_keypoints": 5, "encoder": "b0", "dense": False},
    ],
)
def test_every_keypoint_network_can_be_exported(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = fold_batchnorm(build_keypoint_net(options)).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        wanted, found = net(x), Exported(net, "keypoints")(x)
    assert set(found) == {"heatmaps"}
    assert torch.allclose(found["heatmaps"], wanted["heatmaps"], atol=1e-4)


def test_it_survives_copies_and_a_change_of_threads() -> None:
    torch.manual_seed(0)
    quick = Exported(fold_batchnorm(Locator()).eval(), "locator")
    x = torch.rand(1, 3, 64, 64)
    wanted, before = quick(x), torch.get_num_threads()
    for other in (copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        assert torch.equal(other(x), wanted)
    try:
        torch.set_num_threads(before + 1)
        assert torch.allclose(quick(x), wanted, atol=1e-5)
    finally:
        torch.set_num_threads(before)
    assert set(quick.sessions) == {before, before + 1}


def test_estimators_for_many_pictures_are_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture gives the same answer each time, and but for rounding that of an estimator for one."""
    monkeypatch.setattr(estimate, "has_fast_bytes", lambda: False)
    camera, _, pictures = xwing_frames((40,))
    many, one = (estimate.PoseEstimator.load(model_of("xwing"), many=many) for many in (True, False))
    assert all(isinstance(net, Exported) for net in many.nets.values())
    assert not any(isinstance(net, Exported) for net in one.nets.values())
    first, again, alone = (each.estimate(pictures[0], camera) for each in (many, many, one))
    np.testing.assert_array_equal(again.pose.matrix, first.pose.matrix)
    assert first.status == alone.status == "ok"
    assert first.confidence == pytest.approx(alone.confidence, abs=0.02)
    assert translation_error(first.pose, alone.pose) < 0.005 * many.model.diameter
    assert rotation_error(first.pose, alone.pose) < np.radians(0.2)
