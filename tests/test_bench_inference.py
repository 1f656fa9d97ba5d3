"""The comparison of torch and onnxruntime, on a handful of crops."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import load_script

from geopose.nets.eight import has_fast_bytes


def test_both_runtimes_see_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = load_script("benchmarks", "inference.py"), tmp_path / "inference.json"
    monkeypatch.setattr(sys, "argv", ["inference.py", "--count", "6", "--json", str(out)])
    script.main()
    said = json.loads(out.read_text())
    errors, size = said["errors_px"], said["bytes"]
    assert errors["onnxruntime"] == pytest.approx(errors["torch"], abs=1e-3)
    assert errors["onnxruntime, 8 bits"]["median"] == pytest.approx(errors["torch"]["median"], rel=0.25)
    assert size["onnxruntime, 8 bits"] < 0.4 * size["onnxruntime"]
    table = capsys.readouterr().out.splitlines()
    assert len([line for line in table if line.count("|") == 6]) == 5 + has_fast_bytes()
    few = {"torch, 8 bits"} if has_fast_bytes() else set()
    if few:
        assert errors["torch, 8 bits"]["median"] == pytest.approx(errors["torch"]["median"], rel=0.25)
    assert set(said["others"]) >= {"locator, 320x256", "refiner, 256x256"}
    assert all(set(times) == {"torch", "onnxruntime", *few} for times in said["others"].values())
