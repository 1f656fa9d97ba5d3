"""PoseNet: the network, its losses, weights from pickles, and the way from a folder of pictures to median errors."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import load_script
from PIL import Image
from scipy.spatial.transform import Rotation

from geopose.data.cambridge import read_cambridge
from geopose.data.courtyard import write_courtyard
from geopose.fit import Learner
from geopose.nets.places import load_places, read_arrays
from geopose.nets.posenet import PoseLossOptions, PoseNet, build_posenet, posenet_loss, reprojection
from geopose.posenet_train import (
    MEAN,
    NETWORK,
    RETRIEVAL,
    PoseNetModel,
    PoseNetOptions,
    evaluate_posenet,
    train_posenet,
)

SMALL: dict[str, Any] = {"width": 0.125, "size": 80}
TRUTH = {
    "xyz": torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
    "wpqr": torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0]]),
}


def _heads(*rows: list[float]) -> dict[str, Any]:
    return {"heads": [torch.tensor([row, row]) for row in rows]}


# The network


def test_the_trunk_is_googlenet() -> None:
    """6,998,552 weights has Caffe's bvlc_googlenet, 1,025,000 of them in its classifier of 1,000 classes."""
    net = PoseNet()
    trunk = sum(p.numel() for n, p in net.named_parameters() if "conv" in n or "inception" in n)
    auxiliary = sum(
        p.numel() for n, p in net.named_parameters() if n.startswith(("layers.loss1/", "layers.loss2/"))
    )
    trunk -= sum(p.numel() for n, p in net.named_parameters() if "loss" in n and "conv" in n)
    assert trunk == 6_998_552 - 1_025_000
    # 1x1 convolution to 128, 4x4 of these to 1024, then 3 and 4
    assert auxiliary == (512 + 528 + 2) * 128 + 2 * ((2048 + 1) * 1024 + 1025 * 7)
    last = sum(p.numel() for n, p in net.named_parameters() if n.startswith("layers.loss3/"))
    assert last == 1025 * 2048 + 2049 * 7


def test_maps_have_the_sizes_of_the_paper() -> None:
    """Szegedy et al., table 1: output sizes at 224 pixels."""
    net, seen = PoseNet(auxiliary=False).eval(), {}
    for name, layer in net.layers.items():
        layer.register_forward_hook(
            lambda _m, given, out, name=name: seen.update({name: (given[0].shape, out.shape)})
        )
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224))
    assert seen["conv1/7x7_s2"][1] == (1, 64, 112, 112)
    assert seen["conv2/3x3"][1] == (1, 192, 56, 56)
    given = {"3a": (192, 28), "3b": (256, 28), "4a": (480, 14), "4b": (512, 14), "4c": (512, 14), "4d": (512, 14),
             "4e": (528, 14), "5a": (832, 7), "5b": (832, 7)}  # fmt: skip
    for block, (channels, side) in given.items():
        for branch in ("1x1", "3x3_reduce", "5x5_reduce", "pool_proj"):
            assert seen[f"inception_{block}/{branch}"][0] == (1, channels, side, side)
    assert seen["loss3/fc"] == ((1, 1024), (1, 2048))


def test_local_response_normalisation_is_that_of_caffe() -> None:
    """x / (1 + alpha / n sum of squares over n channels) ^ beta, with n = 5, alpha = 1e-4, beta = 0.75."""
    x = 100 * torch.randn(1, 9, 2, 2)
    want = x.clone()
    for c in range(9):
        want[:, c] = x[:, c] / (1 + 1e-4 / 5 * (x[:, max(c - 2, 0) : c + 3] ** 2).sum(1)) ** 0.75
    torch.testing.assert_close(PoseNet(**SMALL).lrn(x), want)


@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_three_heads_in_training_the_last_in_evaluation(norm: str) -> None:
    net = PoseNet(**SMALL, norm=norm, dropout=(0.0, 0.0), bfloat16=False)
    x = 0.3 * torch.randn(3, 3, 80, 80)
    out = net.train()(x)
    assert [h.shape for h in out["heads"]] == [(3, 7)] * 3
    assert "log_variances" not in out
    with torch.no_grad():
        last = net.eval()(x)
        assert last.shape == (3, 7)
        # one picture's answer does not depend on the others
        torch.testing.assert_close(net(x[1:2]), last[1:2], rtol=1e-4, atol=1e-5)
        small = net.without_auxiliary()
        torch.testing.assert_close(small(x), last)
    if norm == "lrn":
        torch.testing.assert_close(out["heads"][2].detach(), last, rtol=1e-4, atol=1e-5)
    assert not any("loss1" in name or "loss2" in name for name in small.state_dict())
    assert len(small.train()(x)["heads"]) == 1


def test_heads_start_at_the_pose_given() -> None:
    net = PoseNet(**SMALL, dropout=(0.0, 0.0))
    net.start_at(torch.tensor([10.0, -20.0, 1.5]), torch.tensor([0.5, 0.5, -0.5, 0.5]))
    for head in net.train()(torch.zeros(2, 3, 80, 80))["heads"]:
        want = torch.tensor([[10.0, -20.0, 1.5, 0.5, 0.5, -0.5, 0.5]]).expand(2, 7)
        torch.testing.assert_close(head.detach(), want, atol=0.3, rtol=0)


def test_options_rebuild_the_network() -> None:
    net = PoseNet(0.125, norm="batch", size=96, dropout=(0.1, 0.2), learned_weights=True)
    again = build_posenet(json.loads(json.dumps(net.options)), weights=False)
    again.load_state_dict(net.state_dict(), strict=True)
    assert again.options == net.options
    assert net.log_variances.tolist() == [0.0, -3.0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": 0}, "width"),
        ({"norm": "group"}, "norm"),
        ({"size": 60}, "size"),
        ({"dropout": (0.5,)}, "dropout"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PoseNet(**options)
    with pytest.raises(ValueError, match=r"x: got shape \(1, 3, 80, 96\)"):
        PoseNet(**SMALL)(torch.zeros(1, 3, 80, 96))


# The losses


def test_the_loss_by_hand() -> None:
    """Distances are 2 and 3.75 m, 0.5 and sqrt(0.16 + 0.64) in quaternion space, means over two pictures."""
    row = [1.0, 2.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    position = (2.0 + np.sqrt(1 + 4 + 1)) / 2
    orientation = (0.5 + np.hypot(0.4, 0.3)) / 2
    far = [1.0, 2.0, 3.0, 1.0, 0.0, 0.0, 0.0]  # exact for the first picture
    far_position, far_orientation = np.sqrt(14) / 2, np.hypot(0.4, 0.8) / 2
    total, parts = posenet_loss(_heads(far, far, row), TRUTH, PoseLossOptions(beta=250.0))
    want = position + 250 * orientation + 2 * 0.3 * (far_position + 250 * far_orientation)
    np.testing.assert_allclose(float(total), want, rtol=1e-6)
    np.testing.assert_allclose(
        [float(parts["position"]), float(parts["orientation"])], [position, orientation], rtol=1e-6
    )
    assert PoseLossOptions().beta == 500.0


def test_learned_weights_settle_at_the_logarithms_of_the_losses() -> None:
    """L exp(-s) + s is least at s = log L; the quaternion counts normalised."""
    out = _heads([1.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0])
    position = float((2 + np.sqrt(1 + 4 + 1)) / 2)
    orientation = float(np.hypot(0.4, 0.8) / 2)
    out["log_variances"] = torch.tensor(np.log([position, orientation]), requires_grad=True)
    total, _ = posenet_loss(out, TRUTH, PoseLossOptions("learned", heads=(1.0,)))
    np.testing.assert_allclose(total.item(), 2 + np.log(position) + np.log(orientation), rtol=1e-6)
    total.backward()
    np.testing.assert_allclose(out["log_variances"].grad, 0, atol=1e-6)


def test_reprojection_agrees_with_opencv(rng: np.random.Generator) -> None:
    turn, off = Rotation.from_rotvec([0.2, -0.4, 1.0]), Rotation.from_rotvec([0.03, 0.02, -0.05])
    centre, said = np.array([3.0, -2.0, 1.6]), np.array([3.4, -2.1, 1.5])
    local = rng.uniform([-4, -3, 6], [4, 3, 20], (30, 3))
    points = turn.inv().apply(local) + centre

    def pixels(rotation: Rotation, at: np.ndarray) -> np.ndarray:
        R = rotation.as_matrix()
        return cv2.projectPoints(points, cv2.Rodrigues(R)[0], -R @ at, np.eye(3), None)[0][:, 0]

    want = np.abs(pixels(off * turn, said) - pixels(turn, centre)).sum(1).mean()
    targets = {
        "xyz": torch.tensor(centre)[None],
        "wpqr": torch.tensor(turn.as_quat(scalar_first=True))[None],
        "points": torch.tensor(np.concatenate([points, np.full((4, 3), np.nan)]))[None],
    }
    quat = 1.7 * (off * turn).as_quat(scalar_first=True)  # of any length
    head = torch.tensor(np.concatenate([said, quat]), dtype=torch.float32)[None].requires_grad_()
    error = reprojection(head, targets)
    np.testing.assert_allclose(error.item(), want, rtol=1e-4)
    error.backward()
    assert torch.isfinite(head.grad).all()
    total, parts = posenet_loss({"heads": [head]}, targets, PoseLossOptions("reprojection", heads=(0.5,)))
    np.testing.assert_allclose(total.item(), 0.5 * want, rtol=1e-4)
    np.testing.assert_allclose(parts["reprojection"].item(), want, rtol=1e-4)
    # a camera that looks away from everything is not as good as one near the truth, and has a gradient
    away = head.detach().clone()
    away[:, 3:] = torch.tensor((Rotation.from_rotvec([0, np.pi, 0]) * turn).as_quat(scalar_first=True))
    assert reprojection(away, targets) > 5 * error
    nothing = {**targets, "points": torch.full((1, 4, 3), torch.nan)}
    assert reprojection(head, nothing).item() == 0.0


def test_losses_say_what_they_lack() -> None:
    row = [0.0] * 7
    for out, options, named in (
        (_heads(row, row), None, "heads"),
        (_heads(row, row, row), PoseLossOptions("learned"), "log_variances"),
        (_heads(row, row, row), PoseLossOptions("reprojection"), "points"),
    ):
        with pytest.raises(ValueError, match=named):
            posenet_loss(out, TRUTH, options)
    with pytest.raises(ValueError, match="kind: got 'l2'"):
        PoseLossOptions("l2")
    with pytest.raises(ValueError, match="beta"):
        PoseLossOptions(beta=0)


def test_it_learns_two_pictures_by_heart() -> None:
    torch.manual_seed(1)
    net = PoseNet(**SMALL, norm="batch", dropout=(0.0, 0.0), learned_weights=True, bfloat16=False)
    learner = Learner("posenet", net, 3e-3)
    x = 0.3 * torch.randn(2, 3, 80, 80)
    losses = []
    for _ in range(60):
        loss, parts = posenet_loss(net.train()(x), TRUTH, PoseLossOptions("learned"))
        learner.optimiser.zero_grad()
        loss.backward()
        learner.optimiser.step()
        losses.append({k: float(v) for k, v in parts.items()})
    assert losses[-1]["position"] < 0.15 * losses[0]["position"]
    assert losses[-1]["orientation"] < 0.15 * losses[0]["orientation"]
    assert net.log_variances[0] != 0.0


# Weights from pickles of Python 2


def _py2(arrays: dict[bytes, np.ndarray], protocol: int) -> bytes:
    """What Python 2's `pickle.dumps` writes of a dict of byte strings to arrays: its opcodes, one by one."""
    memo = iter(range(10_000))

    def put() -> bytes:
        number = next(memo)
        if protocol == 0:
            return b"p%d\n" % number
        return b"q" + bytes([number]) if number < 256 else b"r" + number.to_bytes(4, "little")

    def text(value: bytes) -> bytes:
        if protocol == 0:
            return b"S" + repr(value)[1:].encode() + b"\n" + put()
        size = len(value)
        head = b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little")
        return head + value + put()

    def number(value: int) -> bytes:
        if protocol == 0:
            return b"I%d\n" % value
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return (
            b"M" + value.to_bytes(2, "little")
            if 0 <= value < 65536
            else b"J" + value.to_bytes(4, "little", signed=True)
        )

    def boolean(value: bool) -> bytes:
        return (b"\x88" if value else b"\x89") if protocol == 2 else b"I0%d\n" % value

    def of(*items: bytes) -> bytes:
        if not items:
            return b")" if protocol else b"(t"
        if protocol == 2 and len(items) <= 3:
            return b"".join(items) + bytes([0x84 + len(items)]) + put()
        return b"(" + b"".join(items) + b"t" + put()

    def name(module: bytes, attribute: bytes) -> bytes:
        return b"c" + module + b"\n" + attribute + b"\n" + put()

    def array(a: np.ndarray) -> bytes:
        kind = of(text(a.dtype.str[1:].encode()), number(0), number(1))
        order = b"<" if a.dtype.itemsize > 1 else b"|"
        order = b">" if a.dtype.str[0] == ">" else order
        state = of(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0))
        dtype = name(b"numpy", b"dtype") + kind + b"R" + put() + state + b"b"
        columns = a.ndim > 1 and a.flags.f_contiguous and not a.flags.c_contiguous
        data = text(a.tobytes("F" if columns else "C"))
        begin = name(b"numpy.core.multiarray", b"_reconstruct")
        begin += of(name(b"numpy", b"ndarray"), of(number(0)), text(b"b")) + b"R" + put()
        return begin + of(number(1), of(*map(number, a.shape)), dtype, boolean(columns), data) + b"b"

    pairs = [text(key) + array(a) for key, a in arrays.items()]
    if protocol == 0:
        return b"(d" + put() + b"".join(p + b"s" for p in pairs) + b"."
    head = b"\x80\x02" if protocol == 2 else b""
    return head + b"}" + put() + b"(" + b"".join(pairs) + b"u."


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "weights.pickle"
    path.write_bytes(data)
    return path


ARRAYS = {
    b"conv1/7x7_s2_0": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2),
    b"conv1/7x7_s2_1": np.array([0.25, -3.5], ">f8"),
    b"columns first": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    b"bytes": np.arange(256, dtype=np.uint8),
    b"empty": np.zeros((0, 3), np.float16),
    b"one": np.array(7.0, np.float32),
}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_pickles_of_python_2_are_read(protocol: int, tmp_path: Path) -> None:
    data = _py2(ARRAYS, protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has moved
        by_python = pickle.loads(data, encoding="bytes")  # our own bytes: are they what we mean?
    found = read_arrays(_write(tmp_path, data))
    assert list(found) == [k.decode() for k in ARRAYS] == [k.decode() for k in by_python]
    for key, want in ARRAYS.items():
        np.testing.assert_array_equal(by_python[key], want)
        native = want.astype(want.dtype.newbyteorder("="))
        np.testing.assert_array_equal(found[key.decode()], native, strict=True)
        assert found[key.decode()].dtype.isnative


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_python_3_are_read(protocol: int, tmp_path: Path) -> None:
    kept = {key: ARRAYS[key] for key in ARRAYS if ARRAYS[key].size}
    found = read_arrays(_write(tmp_path, pickle.dumps(kept, protocol)))
    for key, want in kept.items():
        native = want.astype(want.dtype.newbyteorder("="))
        np.testing.assert_array_equal(found[key.decode()], native, strict=True)


class _Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class _Subclass(np.ndarray):
    pass


def _hostile() -> dict[str, bytes]:
    good = _py2({b"a": np.ones(2, np.float32)}, 2)
    evil: dict[str, Any] = {
        "posix.system": {b"a": _Calls(os.system, "touch /tmp/geopose-was-here")},
        "__builtin__.eval": {b"a": _Calls(eval, "1 + 1")},
        "__builtin__.getattr": {b"a": _Calls(getattr, "x", "upper")},
        "dtype 'O8'|dtype b'O8'": {b"a": np.array([{}, None], object)},
        "dtype b'V": {b"a": np.zeros(2, [("x", "f4")])},
        "dtype b'U3'": {b"a": np.array(["abc"])},
        "dtype b'b1'": {b"a": np.array([True])},
        "_Subclass": {b"a": np.ones(2).view(_Subclass)},
        "scalar": {b"a": np.float32(1.0)},
        "builtins.list|EMPTY_LIST": {b"a": [1, 2]},
        "2 under a key": {b"a": 2},
        "3 under a key|LONG|under a key that is 3": {3: np.ones(2)},
        "at the top": np.ones(2),
        "a dict": {b"a": {b"b": np.ones(2)}},
        "OrderedDict": __import__("collections").OrderedDict(a=np.ones(2)),
    }
    out = {found: pickle.dumps(value, 2) for found, value in evil.items()}
    return out | {
        "opcode INST": b"(S'touch /tmp/geopose-was-here'\nios\nsystem\n.",
        "opcode OBJ": b"(cnumpy\nndarray\nK\x02o.",
        "opcode NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "opcode EXT1": b"\x80\x02\x82\x01.",
        "opcode PERSID": b"P1\n.",
        "opcode BINPERSID": b"K\x01Q.",
        "'os.system'": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        "'numpy.core.multiarray.fromstring'": b"cnumpy.core.multiarray\nfromstring\n.",
        "'numpy.ndarray.__reduce__'": b"cnumpy\nndarray.__reduce__\n.",
        "a state for the name 'dtype'": b"cnumpy\ndtype\n}b.",
        "a call of the name 'ndarray'": b"cnumpy\nndarray\n(K\x02tR.",
        "a call of the name 'reconstruct'": good.replace(b"cnumpy\nndarray", b"cnumpy\ndtype"),
        "a call of an array with nothing": good[:-2] + b")R.",
        "without values": b"}(U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Ru.",
        "8 bytes for an array of shape": good.replace(b"K\x02\x85", b"K\x03\x85"),
        "an array of shape": good.replace(b"K\x02\x85", b"J\xfe\xff\xff\xff\x85"),
        "no plain number": good.replace(b"NNNJ", b"N}NJ"),
        "of 2147483647 bytes": b"\x80\x02}T\xff\xff\xff\x7fabc",
        "newer pickle protocol": b"\x80\x05}.",
        "nothing in memory": b"\x80\x02h\x07.",
        "more than 1000000 opcodes": b"\x80\x02" + b"}" * 1_000_001 + b".",
        "empty stack": b".",
        "no mark": b"u.",
        "for a number": b"Inan\n.",
        "a line of": b"I" + b"9" * 5000 + b"\n.",
        "not latin-1": b"c_codecs\nencode\n(X\x03\x00\x00\x00\xe2\x82\xacU\x06latin1tR.",
        "a broken string": b"S'\\x1'\n.",
        "cut short": good[:-1],
    }


@pytest.mark.parametrize("found", list(_hostile()))
def test_hostile_pickles_are_refused_and_nothing_is_called(
    found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, _hostile()[found])

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle made a call")

    for module, name in (
        (os, "system"),
        (__import__("builtins"), "eval"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(module, name, never)
    with pytest.raises(ValueError, match=f"weights.pickle: found .*({found})"):
        read_arrays(path)
    assert not Path("/tmp/geopose-was-here").exists()


def test_broken_pickles_end_in_value_errors(tmp_path: Path, rng: np.random.Generator) -> None:
    """Every cut, and many random damages: a ValueError or arrays, nothing else."""
    arrays = {key: ARRAYS[key] for key in (b"conv1/7x7_s2_1", b"columns first")}
    for protocol in (0, 1, 2):
        data = _py2(arrays, protocol)
        for end in range(len(data)):
            with pytest.raises(ValueError, match="weights.pickle: found"):
                read_arrays(_write(tmp_path, data[:end]))
        for _ in range(400):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                broken[place] = rng.integers(256)
            try:
                found = read_arrays(_write(tmp_path, bytes(broken)))
            except ValueError as error:
                assert "weights.pickle" in str(error)  # noqa: PT017
            else:
                assert all(isinstance(a, np.ndarray) and a.dtype.kind in "fiu" for a in found.values())


def test_a_missing_file_of_weights_and_one_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        read_arrays(tmp_path / "none.pickle")
    path = _write(tmp_path, _py2(ARRAYS, 2))
    monkeypatch.setattr("geopose.nets.places.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="expected at most 100"):
        read_arrays(path)


def _caffe(net: PoseNet, rng: np.random.Generator) -> dict[bytes, np.ndarray]:
    """Random weights under Caffe's names for all layers of GoogLeNet that `net` has."""
    out = {}
    for name, parameter in net.named_parameters():
        layer, _, leaf = name.removeprefix("layers.").rpartition(".")
        if not layer.startswith("loss") or layer in ("loss1/conv", "loss2/conv", "loss1/fc", "loss2/fc"):
            key = f"{layer}_{int(leaf == 'bias')}".encode()
            out[key] = rng.normal(0, 0.1, tuple(parameter.shape)).astype(np.float32)
    return out


def test_weights_of_places_find_their_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    net = PoseNet(**SMALL, bfloat16=False)
    arrays = _caffe(net, rng)
    assert len(arrays) == 2 * (3 + 9 * 6 + 4)
    arrays[b"loss3/classifier_0"] = np.zeros((5, 7), np.float32)  # what PoseNet replaces
    arrays[b"inception_4b/5x5_1"] = arrays[b"inception_4b/5x5_1"][
        None, None, None
    ]  # as old Caffe stores biases
    del arrays[b"conv2/3x3_reduce_0"], arrays[b"conv2/3x3_reduce_1"]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    missing = load_places(net, _write(tmp_path, _py2(arrays, 2)))
    heads = [
        f"layers.loss{i}/{part}.{leaf}"
        for i in (1, 2, 3)
        for part in ("xyz", "wpqr")
        for leaf in ("weight", "bias")
    ]
    reduced = [f"layers.conv2/3x3_reduce.{leaf}" for leaf in ("weight", "bias")]
    assert set(missing) == {*heads, *reduced, "layers.loss3/fc.weight", "layers.loss3/fc.bias"}
    after = net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in missing)
    for key, layer in (
        (b"inception_5a/pool_proj_0", "inception_5a/pool_proj.weight"),
        (b"loss1/fc_0", "loss1/fc.weight"),
    ):
        np.testing.assert_array_equal(after[f"layers.{layer}"], arrays[key])
    np.testing.assert_array_equal(
        after["layers.inception_4b/5x5.bias"], arrays[b"inception_4b/5x5_1"].ravel()
    )


def test_the_first_layer_answers_as_in_caffe(tmp_path: Path, rng: np.random.Generator) -> None:
    """Caffe: blue, green, red, 0 to 255, minus the mean; padded with zeros."""
    net = PoseNet(**SMALL, bfloat16=False).eval()
    arrays = _caffe(net, rng)
    load_places(net, _write(tmp_path, _py2(arrays, 1)))
    seen: list[torch.Tensor] = []
    net.layers["conv1/7x7_s2"].register_forward_hook(lambda _m, _x, out: seen.append(out))
    grey = torch.from_numpy(
        rng.uniform(-200, 200, (2, 3, 80, 80)).astype(np.float32)
    )  # picture minus mean, RGB
    with torch.no_grad():
        net(grey / 255)
    weight, bias = (torch.from_numpy(arrays[f"conv1/7x7_s2_{i}".encode()]) for i in (0, 1))
    want = F.conv2d(grey[:, [2, 1, 0]], weight, bias, stride=2, padding=3)
    torch.testing.assert_close(seen[0], want, rtol=1e-4, atol=1e-2)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    net = PoseNet(**SMALL)
    arrays, before = _caffe(net, rng), {k: v.clone() for k, v in net.state_dict().items()}
    wrong = arrays | {b"inception_5b/1x1_0": np.zeros((3, 2, 1, 1), np.float32)}
    with pytest.raises(ValueError, match=r"'inception_5b/1x1_0' has shape \(3, 2, 1, 1\), expected \(48,"):
        load_places(net, _write(tmp_path, _py2(wrong, 2)))
    broken = arrays | {b"inception_5b/1x1_1": np.full(48, np.nan, np.float32)}
    with pytest.raises(ValueError, match="inception_5b/1x1_1' holds values that are not finite"):
        load_places(net, _write(tmp_path, _py2(broken, 2)))
    with pytest.raises(ValueError, match="none of its 1 arrays"):
        load_places(net, _write(tmp_path, _py2({b"a": np.ones(2, np.float32)}, 2)))
    with pytest.raises(ValueError, match="norm='batch'"):
        load_places(PoseNet(**SMALL, norm="batch"), tmp_path / "none")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# From a folder to median errors


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_courtyard(tmp_path_factory.mktemp("walk"), (12, 4), size_wh=(144, 81))


QUICK = PoseNetOptions(
    width=0.125,
    norm="batch",
    side=81,
    crop=80,
    dropout=(0.0, 0.0),
    batch_size=4,
    learning_rate=3e-3,
    quiet=True,
)


@pytest.mark.parametrize("loss", ["beta", "reprojection"])
def test_train_and_evaluate(loss: str, walked: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    out = train_posenet(walked, tmp_path / "net.geopose", 0.04, replace(QUICK, loss=loss))
    assert out.is_file()
    assert out.with_name("net_training.png").is_file()
    model = PoseNetModel.load(out)
    assert model.mean.shape == (81, 144, 3)
    assert model.meta["images"] > 0
    result = evaluate_posenet(model, walked)
    test, training = read_cambridge(walked, "test"), read_cambridge(walked)
    assert set(result.found) == {NETWORK, RETRIEVAL, MEAN}
    # errors, once more by hand
    for method, pose in result.found.items():
        metres, degrees = result.errors(method)
        for i, name in enumerate(test.names):
            centre = -pose.R[i].T @ pose.t[i]
            turn = Rotation.from_matrix(pose.R[i]) * Rotation.from_quat(test.wpqr[i], scalar_first=True).inv()
            assert metres[i] == pytest.approx(np.linalg.norm(centre - test.xyz[i])), name
            assert degrees[i] == pytest.approx(np.rad2deg(turn.magnitude())), name
        assert result.medians()[method] == pytest.approx((np.median(metres), np.median(degrees)))
    # what retrieval says is a training view
    offsets = np.linalg.norm(result.found[RETRIEVAL].inverse().t[:, None] - training.xyz, axis=-1)
    np.testing.assert_allclose(offsets.min(1), 0, atol=1e-6)
    # the same pictures through the other door
    said = model.locate([walked / name for name in test.names])
    np.testing.assert_allclose(said.t, result.found[NETWORK].t, atol=1e-4)
    with pytest.raises(ValueError, match=r"images\[0\]: picture: got 81x81 pixels, expected 144x81"):
        model.locate([np.zeros((81, 81, 3), np.uint8)])


def test_training_says_what_is_wrong(walked: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_train.txt: no such list"):
        train_posenet(tmp_path, tmp_path / "net.geopose", 0.01, QUICK)
    with pytest.raises(ValueError, match="minutes: got 0"):
        train_posenet(walked, tmp_path / "net.geopose", 0, QUICK)
    with pytest.raises(ValueError, match="batch_size"):
        PoseNetOptions(batch_size=1)
    with pytest.raises(ValueError, match="kind: got 'l1'"):
        PoseNetOptions(loss="l1")


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], walked: Path) -> None:
    load_script("examples", "kings_college.py").main(
        ["--out", str(tmp_path), "--minutes", "0.05", "--frames", "12", "4"]
    )
    text = capsys.readouterr().out
    assert "on the 4 test views" in text
    for words in (
        NETWORK,
        RETRIEVAL,
        "published, on King's College, another place than this",
        "1.92 m   5.40",
    ):
        assert words in text
    with Image.open(tmp_path / "plan.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 20
