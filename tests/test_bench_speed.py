"""The benchmark of speed: what it measures is there and adds up; how fast it is, is no test."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch

from geopose.bench import speed


def test_every_stage_is_timed_with_every_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 2)
    before = torch.get_num_threads(), cv2.getNumThreads()
    options = speed.Options(images=1, rounds=1, size_wh=(320, 240), imports=0)
    result = speed.run(options, tmp_path / "deep" / "speed.json")
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    stages = [*speed.STAGES, "box given", "crop", "network"]
    assert [(row["threads"], row["stage"]) for row in result["rows"]] == [
        (t, s) for t in (1, 2) for s in stages
    ]
    for threads in (1, 2):
        ms = {row["stage"]: row["ms"]["median"] for row in result["rows"] if row["threads"] == threads}
        assert all(value >= 0 for value in ms.values())
        parts = sum(ms[name] for name in speed.STAGES if name != "total")
        assert 0.9 * ms["total"] < parts <= 1.001 * ms["total"]
        assert ms["network"] > 0
    assert "320x240" in result["table"]
    stored = json.loads((tmp_path / "deep" / "speed.json").read_text())
    assert stored["rows"] == result["rows"]
    assert stored["machine"]


def test_imports_are_timed_in_fresh_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "IMPORTS", {"json": ("json", "time"), "nothing": ("time", "time")})
    seconds = speed.import_seconds(2)
    assert 0 <= seconds["nothing"]["median"] < seconds["json"]["median"] < 60
    assert speed.import_seconds(0) == {}


@pytest.mark.parametrize("name", ["images", "rounds"])
def test_options_that_cannot_be_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        speed.Options(**{name: 0})
