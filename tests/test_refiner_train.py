"""Made-up things, and a refiner that learns from them; no accuracy is asserted after a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geopose import refiner_train
from geopose.cad.model import BUILT_IN
from geopose.checkpoint import build_net, load_model, model_of, save_model
from geopose.data.things import made_up, thing
from geopose.nets.losses import refiner_loss
from geopose.refiner_train import PairsOfThings, RefinerOptions, judge, train_refiner


def test_made_up_things_are_sound_and_differ() -> None:
    things = [made_up(np.random.default_rng([3, i])) for i in range(24)]
    for model in things:
        assert 0.5 < model.extents.max() < 3
        assert model.extents.min() > 0.01
        assert 100 < len(model.faces) < 6000
        assert np.isfinite(model.vertices).all()
        assert np.isfinite(model.normals).all()
    assert len({model.content_hash for model in things}) == len(things)
    assert len({model.colors is None for model in things}) == 2, "most are painted, some are not"
    assert made_up(np.random.default_rng([3, 5])).content_hash == things[5].content_hash


def test_some_things_are_of_the_gallery() -> None:
    names = [thing(4, number).name for number in range(40)]
    assert 0 < sum(name in BUILT_IN for name in names) < 15


def test_pairs_depend_on_seed_and_index_alone() -> None:
    first, second = PairsOfThings(7), PairsOfThings(7)
    a, b = first[100], second[100]
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert not np.array_equal(a["image"], PairsOfThings(8)[100]["image"])


def test_things_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    class Fake:
        def _pair(self, _: np.random.Generator) -> dict[str, int]:
            return {}

    monkeypatch.setattr(refiner_train, "_pairs", lambda _, number: numbers.append(number) or Fake())
    pairs = PairsOfThings(0)
    for index in range(3000):
        pairs[index]
    assert np.mean(numbers[:500]) < np.mean(numbers[-500:])
    assert len(set(numbers[:500])) > 200


def test_a_refiner_is_trained_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refiner_train, "JUDGED", 16)
    start, out = model_of("xwing"), tmp_path / "things.geopose"
    options = RefinerOptions(minutes=0.05, seed=2, start=str(start), batch_size=2, workers=0, quiet=True)
    assert train_refiner(out, options) == out
    weights, meta = load_model(out)
    before = load_model(start)[0]["refiner"]
    assert sorted(weights) == ["refiner"]
    assert {k: v.shape for k, v in weights["refiner"].items()} == {k: v.shape for k, v in before.items()}
    assert any(not torch.equal(v, before[k]) for k, v in weights["refiner"].items())
    assert meta["command"].endswith(f"--minutes 0.05 --seed 2 --start {Path(start).name}")
    assert set(meta["figures"]) == {"left", "nll", "flow", "pose", "total"}
    assert meta["images"]["refiner"] > load_model(start)[1]["images"]["refiner"]
    assert not list(tmp_path.glob("*.state"))
    assert (tmp_path / "things_training.png").exists()


def test_a_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refiner_train, "JUDGED", 16)
    out, options = (
        tmp_path / "r.geopose",
        RefinerOptions(0.05, 2, str(model_of("xwing")), 2, workers=0, quiet=True),
    )

    def killed(*_: object, **__: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refiner_train, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            train_refiner(out, options)
    assert (tmp_path / "r.geopose.state").exists()
    with pytest.raises(ValueError, match="seed: was 2, now 3"):
        train_refiner(out, RefinerOptions(0.05, 3, str(model_of("xwing")), 2, workers=0, quiet=True))
    with monkeypatch.context() as patch:
        patch.setattr(refiner_train, "endless_loader", None)  # nothing is left to learn
        train_refiner(out, options)
    assert load_model(out)[1]["minutes"] > load_model(model_of("xwing"))[1]["minutes"]


def test_a_judgement_is_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refiner_train, "JUDGED", 32)
    net = refiner_train._learner(RefinerOptions(start=str(model_of("xwing"))))[0].net.eval()
    pairs = PairsOfThings(5)
    found = judge(net, pairs, torch.device("cpu"), quiet=True)
    wanted = []
    for i in range(32):
        batch = {k: torch.from_numpy(np.asarray(v))[None] for k, v in pairs[i].items()}
        with torch.inference_mode():
            wanted.append(float(refiner_loss(net(batch.pop("image").float() / 255), batch)[0]))
    assert found["total"] == pytest.approx(np.mean(wanted), abs=2e-2)


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes: got 0, expected a number above 0"):
        RefinerOptions(minutes=0)
    with pytest.raises(ValueError, match="batch_size: got 1, expected a number above 1"):
        RefinerOptions(batch_size=1)
    out = tmp_path / "r.geopose"
    out.write_bytes(b"x")
    with pytest.raises(ValueError, match="which is the start"):
        train_refiner(out, RefinerOptions(start=str(out)))
    assert out.read_bytes() == b"x"


def test_the_command_says_what_is_wrong_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["refiner_train", "--out", str(tmp_path / "r.geopose"), "--minutes", "0"])
    with pytest.raises(SystemExit) as left:
        refiner_train.main()
    assert left.value.code == 2
    assert "minutes: got 0.0, expected a number above 0" in capsys.readouterr().err

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refiner_train, "train_refiner", stopped)
    monkeypatch.setattr("sys.argv", ["refiner_train", "--out", str(tmp_path / "r.geopose")])
    with pytest.raises(SystemExit) as left:
        refiner_train.main()
    assert left.value.code == 130
    assert "r.geopose.state" in capsys.readouterr().err


def test_a_true_flow_leaves_nothing() -> None:
    pair = next(p for p in (PairsOfThings(6)[i] for i in range(50)) if np.abs(p["flow"]).max() < 4)
    flow = pair["flow"].reshape(2, -1).astype(float)
    weight = np.stack([np.ones(flow.shape[1]), np.zeros(flow.shape[1]), np.ones(flow.shape[1])])
    assert refiner_train._left(pair, flow, weight) < 1e-4
    assert refiner_train._left(pair, 0 * flow, weight) == pytest.approx(
        np.linalg.norm(
            (pair["turn"] - np.eye(3)) @ pair["points"].reshape(3, -1)[:, pair["drawn"].ravel() > 0]
            + pair["shift"][:, None],
            axis=0,
        ).mean()
    )


def test_a_start_without_a_refiner_is_refused(tmp_path: Path) -> None:
    start = save_model(tmp_path / "s.geopose", {"locator": build_net("locator", {})}, {"name": "s"})
    with pytest.raises(ValueError, match="expected a refiner"):
        train_refiner(tmp_path / "r.geopose", RefinerOptions(start=str(start), quiet=True))
