"""Training: the loop, its schedule and resumption, the lock, calibration, and whole trainings of a toy."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor, nn
from torch.utils.data import Dataset

from geopose import calibrate, checkpoint, distributed, fit, train_report, train_state
from geopose.cad.model import CadModel
from geopose.checkpoint import find_model, load_model, load_nets
from geopose.geometry.metrics import share_inside
from geopose.geometry.pose import Pose
from geopose.nets import build_keypoint_net
from geopose.result import PoseEstimate
from geopose.train import TrainOptions, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


class Blobs(Dataset[Any]):
    """Pictures of one bright pixel; the target is where it is, in [0, 1]."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([5, index])
        image = np.zeros((3, 8, 8), np.uint8)
        x, y = rng.integers(0, 8, 2)
        image[:, y, x] = 255
        return {"image": image, "at": np.float32([x / 8, y / 8]), "index": np.int64(index)}


class Dying(Blobs):
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index > 20:
            os._exit(9)
        return super().__getitem__(index)


class StepClock(fit.Clock):
    """Time that passes one second per look: the same schedule on every run."""

    def __init__(self, before: float = -1.0) -> None:
        self.now = before

    def elapsed(self) -> float:
        self.now += 1.0
        return self.now


def blob_learner() -> fit.Learner:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    return fit.Learner("blob", layers, 3e-2, begun_s=0.0)


def blob_loss(out: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return (out - batch["at"]).square().mean(), {}


def run_blobs(
    learner: fit.Learner, until: float, clock: fit.Clock, total: float | None = None
) -> list[float]:
    """Trains until `until`, on the schedule of a training that ends at `total`."""
    losses: list[float] = []
    loader = fit.endless_loader(Blobs(), 16, 0, learner.samples)

    class Enough(Exception):
        pass

    def note(_learner: fit.Learner, loss: float) -> None:
        losses.append(loss)
        if learner.step >= until:
            raise Enough

    try:
        fit.learn(learner, loader, blob_loss, clock, total or until, CPU, note)
    except Enough:
        pass
    return losses


def test_indices_are_endless_disjoint_and_resume() -> None:
    def first(count: int, *args: int) -> list[int]:
        return [i for i, _ in zip(fit.IndexStream(*args), range(count), strict=False)]

    assert first(3, 5) == [5, 6, 7]
    assert sorted(first(4, 10, 0, 2) + first(4, 10, 1, 2)) == list(range(10, 18))


def test_replayed_pictures_are_those_that_came() -> None:
    def mark(batch: fit.Batch, generator: torch.Generator) -> fit.Batch:
        return batch | {"again": torch.randint(9, (4,), generator=generator)}

    def first(count: int, times: int, kept: int) -> list[fit.Batch]:
        loader = fit.endless_loader(Blobs(), 4, 0, 0)
        made = fit.replayed(loader, times, kept, mark, seed=1)
        return [batch for batch, _ in zip(made, range(count), strict=False)]

    once = first(3, 1, 100)
    assert [b["index"].tolist() for b in once] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    thrice = first(60, 3, 16)
    fresh, again = thrice[::3], [b for n, b in enumerate(thrice) if n % 3]
    assert [i for b in fresh for i in b["index"].tolist()] == list(range(80))
    assert not any("again" in b for b in fresh)
    assert all("again" in b for b in again)
    for place, batch in enumerate(again):
        assert max(batch["index"].tolist()) < 4 * (place // 2 + 1)  # it came before
        for image, at, index in zip(batch["image"], batch["at"], batch["index"], strict=True):
            torch.testing.assert_close(image, torch.from_numpy(Blobs()[int(index)]["image"]))
            torch.testing.assert_close(at, torch.from_numpy(Blobs()[int(index)]["at"]))
    assert (
        len({int(i) for b in again[-6:] for i in b["index"]}) <= 16 + 2 * 4
    )  # 16 are kept; two batches came since
    assert [b["index"].tolist() for b in first(60, 3, 16)] == [b["index"].tolist() for b in thrice]


def test_split_indices_cover_everything_once() -> None:
    shares = [distributed.split_indices(11, rank, 3) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(11))
    assert distributed.split_indices(3) == range(3)
    with pytest.raises(ValueError, match="count"):
        distributed.split_indices(-1)
    with pytest.raises(ValueError, match="rank"):
        distributed.split_indices(3, 2, 2)


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.rank_world() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.rank_world() == (1, 4)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match="RANK='4'"):
        distributed.rank_world()


def test_unknown_devices_are_refused() -> None:
    assert distributed.pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="device: got 'abacus'"):
        distributed.pick_device("abacus")


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [fit.rate_at(f) for f in np.linspace(0, 1, 101)]
    assert rates[5] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(rates[:6]))
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert fit.rate_at(2.0) == pytest.approx(0.0, abs=1e-12)


def test_layers_after_the_encoder_learn_three_times_as_fast() -> None:
    net = build_keypoint_net({"num_keypoints": 2, "frozen_stride": 4})
    learner = fit.Learner("keypoints", net, 1e-3)
    factor = {id(p): g["factor"] for g in learner.optimiser.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in learner.optimiser.param_groups for p in g["params"]}
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert set(factor) == {id(p) for p in trained.values()}
    for name, p in trained.items():
        assert factor[id(p)] == (1.0 if name.startswith("encoder.") else 3.0), name
        assert (decay[id(p)] > 0) == (p.ndim > 1), name


def test_learning_learns_and_keeps_the_average() -> None:
    learner = blob_learner()
    losses = run_blobs(learner, 200, StepClock())
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:10])
    assert learner.samples == 16 * learner.step == 16 * 200
    averaged = {k: v.clone() for k, v in learner.average.state.items()}
    learner.finish()
    for name, tensor in learner.net.state_dict().items():
        torch.testing.assert_close(tensor, averaged[name], rtol=0, atol=0)
    assert {k.split("/")[1] for k in learner.tensors()} == {"average"}


def test_a_training_cut_in_two_ends_bit_for_bit_like_one_in_one_piece(tmp_path: Path) -> None:
    whole = blob_learner()
    run_blobs(whole, 40, StepClock())
    half = blob_learner()
    run_blobs(half, 17, StepClock(), total=40)
    train_state.write_state(tmp_path / "s", {"blob": half.meta()}, half.tensors())
    meta, tensors = train_state.read_state((tmp_path / "s").read_bytes(), tmp_path / "s")
    again = blob_learner()
    again.restore(meta["blob"], tensors)
    assert again.step == 17
    run_blobs(again, 40, StepClock(16.0))
    assert again.step == whole.step
    for name, tensor in whole.average.state.items():
        torch.testing.assert_close(again.average.state[name], tensor, rtol=0, atol=0)


def test_bad_losses_are_skipped_and_then_reported() -> None:
    learner = blob_learner()
    before = {k: v.clone() for k, v in learner.net.named_parameters()}

    def nan_loss(out: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return out.sum() * float("nan"), {}

    loader = fit.endless_loader(Blobs(), 4, 0, 0)
    with pytest.raises(RuntimeError, match="not finite"):
        fit.learn(learner, loader, nan_loss, StepClock(), 1e4, CPU, lambda *_: None)
    for name, tensor in learner.net.named_parameters():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_the_death_of_a_worker_is_put_in_words() -> None:
    loader = fit.endless_loader(Dying(), 4, 1, 0)
    with pytest.raises(RuntimeError, match="a process that renders training pictures died"):
        fit.learn(blob_learner(), loader, blob_loss, StepClock(), 1e4, CPU, lambda *_: None)


def test_a_death_that_torch_reports_twice_is_put_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pipe, and by a signal handler that raises in the midst of what looks at the pipe's error."""

    def broken_pipe(*_: object) -> None:
        raise ConnectionResetError("Connection reset by peer")

    def signalled(_: Exception) -> bool:
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly with exit code 9.")

    monkeypatch.setattr(fit, "_steps", broken_pipe)
    monkeypatch.setattr(fit, "_is_lost_device", signalled)
    loader = fit.endless_loader(Blobs(), 4, 1, 0)
    with pytest.raises(RuntimeError, match="a process that renders training pictures died"):
        fit.learn(blob_learner(), loader, blob_loss, StepClock(), 1e4, CPU, lambda *_: None)


def test_only_one_training_per_file(tmp_path: Path) -> None:
    out = tmp_path / "part.geopose"
    with train_state.training_lock(out) as lock:
        assert lock.exists()
        with pytest.raises(RuntimeError, match=f"process {os.getpid()}"), train_state.training_lock(out):
            pass
        assert lock.exists()
    assert not lock.exists()


@pytest.mark.parametrize("owner", ["dead", "reused", "garbage"])
def test_stale_locks_are_taken_over(tmp_path: Path, owner: str) -> None:
    import socket

    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    pid = int(child.stdout) if owner == "dead" else os.getpid()
    lock = tmp_path / "part.geopose.lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": pid, "started": 1}))
    if owner == "garbage":
        lock.write_text("{")
        os.utime(lock, (1e9, 1e9))
    with train_state.training_lock(tmp_path / "part.geopose") as taken:
        assert json.loads(taken.read_text())["pid"] == os.getpid()


def test_a_lock_of_another_machine_holds_while_it_is_touched(tmp_path: Path) -> None:
    lock = tmp_path / "part.geopose.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1}))
    with (
        pytest.raises(RuntimeError, match="on elsewhere"),
        train_state.training_lock(tmp_path / "part.geopose"),
    ):
        pass
    os.utime(lock, (time.time() - 3600,) * 2)
    with train_state.training_lock(tmp_path / "part.geopose"):
        pass


def test_other_settings_and_foreign_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    train_state.check_same_run(path, {"a": [1, 2]}, {"a": (1, 2)})
    with pytest.raises(ValueError, match=r"minutes: was 5\.0, now 6\.0.*--restart"):
        train_state.check_same_run(path, {"minutes": 5.0, "seed": 0}, {"minutes": 6.0, "seed": 0})
    with pytest.raises(ValueError, match=r"not the state of a geopose training.*--restart"):
        train_state.read_state(b"hello, this is not safetensors", path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minutes", 0.0),
        ("minutes", float("nan")),
        ("network", "resnet"),
        ("crop_size", 100),
        ("num_keypoints", 3),
        ("batch_size", 1),
        ("backgrounds", "/no/such/folder"),
        ("elevation_deg", (80.0, -80.0)),
        ("up", "z"),
    ],
)
def test_bad_options_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TrainOptions(**{name: value})  # type: ignore[arg-type]


def test_calibration_recovers_known_errors() -> None:
    rng = np.random.default_rng(0)
    count, keypoints = 4000, 3
    scale, floor = np.array([0.5, 2.0, 4.0]), np.array([1.0, 0.3, 2.0])
    basis = rng.normal(size=(count, keypoints, 2, 2))
    cov = basis @ basis.swapaxes(-1, -2) + 0.1 * np.eye(2)
    true = scale[:, None, None] * cov + (floor**2)[:, None, None] * np.eye(2)
    gauss = np.linalg.cholesky(true) @ rng.normal(size=(count, keypoints, 2, 1))
    error = gauss[..., 0] * np.sqrt(4.0 / rng.chisquare(4.0, (count, keypoints, 1)))
    counted = torch.from_numpy(rng.random((count, keypoints)) < 0.9)
    error[~counted.numpy()] = 1e3  # must not be looked at
    fitted, _ = calibrate.fit_covariance(
        calibrate.Readings(torch.from_numpy(cov), torch.from_numpy(error), counted), 400
    )
    np.testing.assert_allclose(fitted["scale"], scale, rtol=0.12)
    np.testing.assert_allclose(fitted["floor_px"], floor, rtol=0.25)


def test_confidence_tells_right_from_wrong_and_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    prior = {"weights": {"a": 2.0, "b": 2.0}, "bias": -2.0}
    x = rng.random((4000, 2))
    right = rng.random(4000) < 1 / (1 + np.exp(-(8 * x[:, 0] - 5)))
    features = [{"a": float(a), "b": float(b)} for a, b in x]
    fitted = calibrate.fit_confidence(features, right.tolist(), prior)
    assert fitted["weights"]["a"] == pytest.approx(8.0, rel=0.1)
    assert fitted["weights"]["b"] == pytest.approx(0.0, abs=0.4)
    nothing = calibrate.fit_confidence([], [], prior)
    assert nothing["weights"] == pytest.approx(prior["weights"])


def test_confidences_of_answers_are_mended_below_and_above_where_a_search_ends() -> None:
    rng = np.random.default_rng(2)
    knot = np.log(0.85 / 0.15)
    z = rng.normal(1.0, 2.0, 20_000)
    odds = 0.5 + np.where(z < knot, 0.7, 1.6) * (z - knot)
    right = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    said = 1 / (1 + np.exp(-z))
    fitted = {"answers": calibrate.fit_answers(said.tolist(), right.tolist())}
    assert fitted["answers"] == pytest.approx({"at": 0.5, "below": 0.7, "above": 1.6}, abs=0.12)
    for low, high in ((0.2, 0.3), (0.6, 0.7), (0.8, 0.9), (0.95, 1.0)):
        mended = np.array([calibrate.answer_confidence(c, fitted) for c in said])
        these = (mended >= low) & (mended < high)
        assert right[these].mean() == pytest.approx(mended[these].mean(), abs=0.035)
    assert np.all(np.diff(mended[np.argsort(said)]) >= 0)
    assert calibrate.answer_confidence(0.0, fitted) == 0.0  # without a pose
    assert calibrate.answer_confidence(0.7, {}) == 0.7
    nothing = {"answers": calibrate.fit_answers([], [])}
    assert calibrate.answer_confidence(0.7, nothing) == pytest.approx(0.7)
    always = {"answers": calibrate.fit_answers([0.6] * 500, [True] * 500)}
    assert 0.6 < calibrate.answer_confidence(0.7, always) <= calibrate.LEAST_CONFIDENCE + 1e-9


def test_an_answer_that_is_less_likely_right_than_it_looked_is_not_called_good() -> None:
    pose = Pose.identity()
    looked = PoseEstimate(pose, np.eye(6), "ok", ("a note",), 0.9, {}, None, (), {}, None, None)
    mended = calibrate.as_answer(looked, {"answers": {"at": 0.5, "below": 0.7, "above": 1.6}})
    assert mended.status == "no_consensus"
    assert mended.confidence == pytest.approx(1 / (1 + np.exp(-(0.5 + 1.6 * np.log(9 / (0.85 / 0.15))))))
    assert mended.reasons == ("the pose does not explain the picture (confidence 0.78)", "a note")
    assert mended.pose is pose
    assert calibrate.as_answer(looked, {}) == looked


def test_the_tails_of_errors_are_found_again() -> None:
    """Student t errors whose covariance is 0.7 times the one that was given: the factor, the degrees, and coverage."""
    rng = np.random.default_rng(0)

    def squared(dof: float, factor: float) -> np.ndarray:
        t = rng.normal(size=(6000, 6)) * np.sqrt((dof - 2) / rng.chisquare(dof, (6000, 1)))
        return factor * (t**2).sum(1)

    for dof in (4.0, 8.0):
        found = calibrate.fit_tails([*squared(dof, 0.7), float("nan")])
        assert found["pose_dof"] == pytest.approx(dof, rel=0.12)
        assert found["pose_scale"] == pytest.approx(0.7, rel=0.12)
        fresh = share_inside(squared(dof, 0.7) / found["pose_scale"], found["pose_dof"])
        for level in (0.5, 0.9, 0.99):
            assert (fresh <= level).mean() == pytest.approx(level, abs=0.015)
    honest = calibrate.fit_tails((rng.normal(size=(6000, 6)) ** 2).sum(1))
    assert honest["pose_scale"] == pytest.approx(1.0, rel=0.05)
    assert honest["pose_dof"] > 40
    assert calibrate.fit_tails([]) == pytest.approx({"pose_scale": 2.0, "pose_dof": 4.0}, rel=1e-3)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    rows = [[t, 10 * t, 1 / (1 + t)] for t in range(50)]
    path = train_report.plot_history({"locator": rows, "keypoints": []}, "toy", tmp_path / "plot.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def toy() -> CadModel:
    """An L of two boxes, a face of it red: no symmetry."""
    parts = [
        trimesh.creation.box((0.2, 0.06, 0.06)),
        trimesh.creation.box((0.06, 0.06, 0.12), trimesh.transformations.translation_matrix([0.07, 0, 0.09])),
    ]
    mesh = trimesh.util.concatenate(parts)
    mesh.visual.vertex_colors = np.where(
        mesh.vertices[:, :1] > 0.05, [[200, 40, 30, 255]], [[90, 120, 200, 255]]
    )
    return CadModel.from_trimesh(mesh, "toy")


TINY: dict[str, Any] = {
    "crop_size": 32, "window_size": 32, "batch_size": 2, "num_keypoints": 4, "pretrained": False, "workers": 0,
    "quiet": True, "device": "cpu",
}  # fmt: skip


def test_a_whole_training_writes_a_model_that_estimates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopose.estimate import PoseEstimator

    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    model = toy()
    out = train(model, tmp_path / "toy.geopose", TrainOptions(minutes=0.03, elevation_deg=(0, 45), **TINY))
    assert sorted(os.listdir(tmp_path)) == ["toy.geopose", "toy_training.png"]
    _, meta = load_nets(out)
    assert meta["content_hash"] == model.content_hash
    assert meta["options"]["elevation_deg"] == [0, 45]
    assert len(meta["keypoints"]) == 4
    assert len(meta["calibration"]["scale"]) == 4
    assert set(meta["calibration"]["confidence"]["weights"]) == set(train_report.PRIOR["weights"])
    assert meta["figures"]["images"] >= 4
    assert 0 <= meta["figures"]["found"] <= 1
    assert meta["images"]["keypoints"] >= 2
    assert meta["command"].startswith(
        "geopose train toy --out toy.geopose --minutes 0.03 --elevation 0 45 --no-pretrained"
    )
    assert find_model(model.content_hash) == out
    estimate = PoseEstimator.load(out, "cpu").estimate(np.full((64, 96, 3), 90, np.uint8))
    assert estimate.status != "ok"

    further = TrainOptions(minutes=0.01, learning_rate=1e-9, seed=1, start=str(out), **TINY)
    more, more_meta = load_model(train(model, tmp_path / "more.geopose", further))
    first, first_meta = load_model(out)
    assert more_meta["keypoints"] == meta["keypoints"]
    assert more_meta["options"]["start"] == "toy.geopose"  # no folder of this machine
    words = more_meta["command"].split(" && ")
    assert words[0] == first_meta["command"]
    assert "--start toy.geopose" in words[1]
    assert more_meta["minutes"] > first_meta["minutes"]
    assert more_meta["images"]["locator"] > first_meta["images"]["locator"]
    for role, state in first.items():  # at no learning rate it stays what it started from
        for name in (n for n in state if n.endswith((".weight", ".bias"))):
            torch.testing.assert_close(more[role][name], state[name], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="num_keypoints"):
        train(model, tmp_path / "five.geopose", replace(further, num_keypoints=5))
    with pytest.raises(ValueError, match="another mesh"):
        train("car", tmp_path / "car.geopose", further)
    with pytest.raises(ValueError, match=r"refiner\.geopose: not the checkpoint of a pose model"):
        train(model, tmp_path / "five.geopose", replace(further, start=str(checkpoint.TRANSFERRED)))


FAKE = """
import importlib, os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np, torch
torch.set_num_threads(1)
from test_train import TINY, StepClock, toy
module = importlib.import_module("geopose.train")
rank, kill_at = os.environ.get("RANK", "0"), int(os.environ.get("KILL_AT", "0"))

class Fake(torch.utils.data.Dataset):
    # noise instead of renders: cheap, and its indices are written down
    def __init__(self, model, keypoints, symmetries, options, seed, kind):
        self.kind = kind
    def __getitem__(self, index):
        with open({log!r} + rank, "a") as file:
            file.write(f"{{self.kind}} {{index}}\\n")
        rng = np.random.default_rng([index])
        if self.kind == "pair":
            flow, drawn = np.zeros((2, 8, 8), np.float32), np.ones((8, 8), np.float32)
            guess = dict(points=rng.uniform(-0.5, 0.5, (3, 8, 8)).astype(np.float32), centre=np.float32([0, 0, 4]))
            truth = dict(turn=np.eye(3, dtype=np.float32), shift=np.zeros(3, np.float32), focal=np.float32(100))
            return dict(image=rng.integers(0, 255, (9, 32, 32), np.uint8), flow=flow, drawn=drawn) | guess | truth
        out = dict(image=rng.integers(0, 255, (3, 32, 32), np.uint8), visib_fract=np.float32(1), present=np.bool_(True))
        if self.kind == "window":
            return out | dict(centre_px=np.float32([9, 9]), size_px=np.float32(16))
        return out | dict(keypoints_px=np.float32(rng.uniform(0, 31, (1, 4, 2))), inside=np.ones((1, 4), bool),
                          mask=np.ones((8, 8), np.float32), xyz=np.zeros((3, 8, 8), np.float32))

class Run(module._Run):
    def _after_step(self, learner, loss):
        super()._after_step(learner, loss)
        if learner.role == os.environ.get("KILL_IN", "keypoints") and learner.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def work(self):
        super().work()
        learner = self.learners[1]
        weights = torch.cat([p.detach().flatten() for p in learner.net.parameters()]).double()
        with open({log!r} + "_end" + rank, "w") as file:
            file.write(f"{{learner.samples}} {{weights.sum().item()!r}} {{weights.square().sum().item()!r}}")

module._Run, module.SyntheticDataset, module.Clock, module.SAVE_EVERY_S = Run, Fake, StepClock, 10.0
module.finish_model = lambda *a, **k: ({{}}, {{"add_01d": 0.0}})
module.train(toy(), {out!r}, module.TrainOptions(**TINY | dict(minutes=float(sys.argv[1]), quiet=False)))
"""


def run_fake(tmp_path: Path, minutes: float, *launcher: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A training of noise in processes of their own, on a clock that counts its readings."""
    script = tmp_path / "fake.py"
    names = {"root": str(ROOT), "tests": str(ROOT / "tests"), "log": str(tmp_path / "log")}
    script.write_text(FAKE.format(out=str(tmp_path / "toy.geopose"), **names))
    command = [sys.executable, *launcher, str(script), str(minutes)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env}
    )


def indices(tmp_path: Path, rank: int) -> list[int]:
    """The crops that a rank has seen; the first of each sitting is left out: it is made to warm up."""
    lines = (tmp_path / f"log{rank}").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("crop")][1:]


def test_after_kill_9_the_same_command_goes_on(tmp_path: Path) -> None:
    state, log = tmp_path / "toy.geopose.state", tmp_path / "log0"
    steps = 15
    killed = run_fake(tmp_path, 2.0, KILL_AT=str(steps))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "toy.geopose.lock").exists()
    kept, _ = train_state.read_state(state.read_bytes(), state)
    before, batch = kept["learners"]["keypoints"]["samples"], TINY["batch_size"]
    assert kept["learners"]["locator"]["done"]
    assert (steps - 10) * batch <= before < steps * batch

    other = run_fake(tmp_path, 3.0)
    assert other.returncode != 0
    assert "minutes: was 2.0, now 3.0" in other.stderr

    log.unlink()
    (tmp_path / ".toy.geopose-01234567.state").write_bytes(b"half a state, from a kill in mid-write")
    again = run_fake(tmp_path, 2.0)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    used, after = indices(tmp_path, 0), int((tmp_path / "log_end0").read_text().split()[0])
    assert after > steps * batch
    assert used[: after - before] == list(range(before, after))
    assert sorted(p.name for p in tmp_path.glob("*toy*")) == ["toy.geopose", "toy_training.png"]
    _, meta = load_nets(tmp_path / "toy.geopose")
    assert meta["images"]["keypoints"] == after


FINAL = """
import json, os, signal
import geopose.train_report as report
old = {{name: getattr(report, name) for name in ("read_renders", "learn_from_scenes", "judge_scenes")}}
for name, function in old.items():
    def called(*a, name=name, function=function, **k):
        with open({log!r} + "_final", "a") as file:
            file.write(name + "\\n")
        if name == os.environ.get("KILL_AT_CALL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*a, **k)
    setattr(report, name, called)
from test_train import TINY, toy
from geopose.train import TrainOptions, train
train(toy(), {out!r}, TrainOptions(**TINY | dict(minutes=0.05, quiet=False)))
"""


def test_a_kill_while_the_model_is_judged_repeats_no_calibration(tmp_path: Path) -> None:
    """And a model that was there before is there until the new one is whole."""
    out, script = tmp_path / "toy.geopose", tmp_path / "final.py"
    out.write_bytes(b"the model before")
    paths = f"import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}\n"
    script.write_text(paths + FINAL.format(out=str(out), log=str(tmp_path / "log")))
    calls = []
    for place in ("learn_from_scenes", "judge_scenes", ""):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_AT_CALL": place}
        run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
        calls.append((tmp_path / "log_final").read_text().split())
        (tmp_path / "log_final").unlink()
        assert run.returncode == (-signal.SIGKILL if place else 0), run.stderr
        assert (out.read_bytes() == b"the model before") == bool(place)
    assert calls == [
        ["read_renders", "learn_from_scenes"],
        ["learn_from_scenes", "learn_from_scenes", "judge_scenes"],
        ["judge_scenes"],
    ]
    _, meta = load_nets(out)
    assert {"window", "confidence", "pose_scale"} <= set(meta["calibration"])
    assert meta["figures"]["images"] >= 4
    assert meta["figures"]["crops"] > 0
    assert sorted(p.name for p in tmp_path.glob("*toy*")) == ["toy.geopose", "toy_training.png"]


@pytest.mark.parametrize("role", ["locator", "refiner"])
def test_a_kill_while_another_network_learns_loses_none(tmp_path: Path, role: str) -> None:
    killed = run_fake(tmp_path, 2.0, KILL_AT="6", KILL_IN=role)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept, _ = train_state.read_state(
        (tmp_path / "toy.geopose.state").read_bytes(), tmp_path / "toy.geopose.state"
    )
    assert kept["learners"][role]["samples"] > 0
    again = run_fake(tmp_path, 2.0)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    nets, _ = load_nets(tmp_path / "toy.geopose")
    assert set(nets) == {"locator", "keypoints", "refiner"}


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    done = run_fake(tmp_path, 0.5, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    assert done.returncode == 0, done.stderr
    ends = [(tmp_path / f"log_end{rank}").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1]  # the same number of samples, the same weights
    samples = int(ends[0].split()[0])
    assert samples >= 8
    for rank in (0, 1):
        assert indices(tmp_path, rank)[: samples // 2] == list(range(rank, samples, 2))
    _, meta = load_nets(tmp_path / "toy.geopose")
    assert meta["images"]["keypoints"] == samples


def test_a_training_begins_with_the_comparing_that_made_up_things_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(sys.modules["geopose.train"]._Run, "work", lambda run: runs.append(run))
    train(toy(), tmp_path / "toy.geopose", TrainOptions(minutes=0.01, **{**TINY, "pretrained": None}))
    begun = {learner.role: learner.net for learner in runs[0].learners}["refiner"].state_dict()
    known = load_model(checkpoint.TRANSFERRED)[0]["refiner"]
    assert begun.keys() == known.keys()
    for name in known:
        torch.testing.assert_close(begun[name], known[name])


@pytest.mark.parametrize(
    ("pretrained", "share", "rate"), [(None, 0.1, 0.2), (False, 0.3, 1.0)], ids=["taken over", "from nothing"]
)
def test_a_refiner_that_knows_comparing_learns_more_slowly_and_for_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool | None, share: float, rate: float
) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(sys.modules["geopose.train"]._Run, "work", lambda run: runs.append(run))
    options = TrainOptions(minutes=0.01, learning_rate=0.004, **{**TINY, "pretrained": pretrained})
    train(toy(), tmp_path / "toy.geopose", options)
    assert runs[0].options.refiner_share == share
    rates = {learner.role: learner.learning_rate for learner in runs[0].learners}
    assert rates == pytest.approx({"locator": 0.004, "keypoints": 0.004, "refiner": rate * 0.004})


def test_what_is_transferred_is_said_and_can_be_refused(tmp_path: Path) -> None:
    """By default with pretrained features alone; `command` makes the same network again."""
    options = TrainOptions(minutes=0.01, **{**TINY, "pretrained": None})
    meta = load_model(train(toy(), tmp_path / "toy.geopose", options))[1]
    assert meta["options"]["transfer"] is True
    assert "--transfer" in meta["command"]
    assert load_nets(tmp_path / "toy.geopose")[1]["options"]["pretrained"] is True
    meta = load_model(train(toy(), tmp_path / "plain.geopose", TrainOptions(minutes=0.01, **TINY)))[1]
    assert meta["options"]["transfer"] is False
    with pytest.raises(ValueError, match="transfer: got True"):
        TrainOptions(transfer=True, start="toy.geopose")


@pytest.mark.parametrize(
    ("minutes", "seconds"), [(0.1, 0.6), (5, 30), (10, 60), (25, 150), (60, 360), (600, 480)]
)
def test_a_tenth_of_a_training_calibrates_it(minutes: float, seconds: float) -> None:
    assert sys.modules["geopose.train"]._final_seconds(60 * minutes) == pytest.approx(seconds)


def test_the_solver_is_compiled_before_the_minutes_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first training on a machine would have no time left to judge itself."""
    order: list[str] = []

    class Stopped(Exception):
        pass

    def clock() -> None:
        order.append("clock")
        raise Stopped

    module = sys.modules["geopose.train"]  # the name in the package is the function
    monkeypatch.setattr(module, "warm_up", lambda: order.append("solver"))
    monkeypatch.setattr(module, "Clock", clock)
    with pytest.raises(Stopped):
        train("xwing", tmp_path / "a.geopose")
    assert order == ["solver", "clock"]
