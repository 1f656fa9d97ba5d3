"""The benchmark of accuracy: run once, small and crowded, and what it says against what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_script

from geopose.estimate import PoseEstimator
from geopose.stages import Candidate


def test_crowded_pictures_say_where_the_locator_has_the_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("benchmarks", "accuracy.py")
    command = ["accuracy.py", "--count", "3", "--crowded", "8", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    said, wrote = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert len(wrote["rows"]) == 3
    assert all(45 < row["size_px"] < 155 for row in wrote["rows"])
    assert 1 <= len(wrote["ranks"]) <= 3
    first = sum(rank == 1 for rank in wrote["ranks"])
    assert f"true place     among the first 1: {first}, 3: " in said
    assert f"right          {sum(row['add'] < 0.1 for row in wrote['rows'])} of 3" in said


def test_the_rank_is_that_of_the_first_place_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("benchmarks", "accuracy.py")
    places = [((10, 10), 40), ((100, 80), 15), ((112, 80), 50), ((100, 80), 40)]
    found = [Candidate(np.array(centre, float), float(size), 0.5) for centre, size in places]
    monkeypatch.setattr(script, "locate", lambda *_: found)
    estimator = SimpleNamespace(nets={"locator": None})
    scene = {"image": torch.zeros(1, 3, 90, 160), "box": torch.tensor([[80.0, 60.0, 120.0, 100.0]])}
    assert script.rank(estimator, scene) == 3
    found.clear()
    assert script.rank(estimator, scene) == script.PLACES[-1] + 1


def test_the_refiner_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("benchmarks", "accuracy.py")
    judge, networks = script.judge_scenes, set()

    def noted(estimator: PoseEstimator, *rest: Any) -> Any:
        networks.update(estimator.nets)
        return judge(estimator, *rest)

    monkeypatch.setattr(script, "judge_scenes", noted)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--count", "1", "--without-refiner"])
    script.main()
    assert networks == {"locator", "keypoints"}
    assert "of 1 whatever is said of them" in capsys.readouterr().out
