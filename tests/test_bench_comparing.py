"""The benchmark of comparing: the whole command once, small, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from helpers import load_script

from geopose import refiner_train
from geopose.checkpoint import TRANSFERRED, build_net, model_of, save_model


@pytest.fixture(scope="module", name="script")
def loaded() -> ModuleType:
    return load_script("benchmarks", "comparing.py")


def test_every_refiner_is_judged_on_every_set(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(refiner_train, "JUDGED", 16)
    out, own = tmp_path / "out.json", str(model_of("xwing"))
    monkeypatch.setattr(
        "sys.argv", ["comparing.py", "--refiner", own, "--roll", "-50", "50", "--json", str(out)]
    )
    script.main()
    table = json.loads(out.read_text())["sets"]
    assert list(table) == ["made-up things", "xwing"]
    for row in table.values():
        assert list(row) == [TRANSFERRED.name, "xwing.geopose"]
        assert all(0 < found["left"] < 0.5 for found in row.values())
    assert table["xwing"]["xwing.geopose"] != table["xwing"][TRANSFERRED.name]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert f"{100 * table['xwing']['xwing.geopose']['left']:.2f}" in lines[-1]


def test_a_checkpoint_without_a_refiner_is_named(script: ModuleType, tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain.geopose", {"locator": build_net("locator", {})}, {"name": "plain"})
    with pytest.raises(ValueError, match=r"plain.geopose holds \['locator'\], expected a refiner"):
        script.refiner_of(plain)
