"""Damaged files: every reader takes them or refuses them in words, within seconds, and leaves nothing behind."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuzz_readers import READERS, Reader, damaged, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geopose.geometry.camera import Camera


@contextmanager
def seconds(most: int) -> Iterator[None]:
    """An error where the block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {most} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(most)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=sorted(READERS))
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Reader, Path]:
    reader = READERS[request.param]
    reader.make(tmp_path)
    return reader, tmp_path


def test_damage_is_taken_or_refused_in_words(prepared: tuple[Reader, Path]) -> None:
    reader, root = prepared
    assert refusal(reader, root) is None, "the good files are read"
    good = {name: (root / name).read_bytes() for name in reader.files}
    there = sorted(root.rglob("*"))
    refused = 0

    @settings(
        derandomize=True,
        database=None,
        max_examples=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.randoms(use_true_random=True), name=st.sampled_from(sorted(good)))
    def attack(draw: random.Random, name: str) -> None:
        nonlocal refused
        (root / name).write_bytes(damaged(good[name], draw))
        try:
            with seconds(30):
                error = refusal(reader, root)
        finally:
            (root / name).write_bytes(good[name])
        if error is not None:
            refused += 1
            assert str(root) in str(error), f"it does not name the file: {error}"
        assert sorted(root.rglob("*")) == there

    attack()
    assert refused >= 5


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 64, random.Random(1).randbytes(300), b"{" * 5000, b"[" * 100_000, b"\xef\xbb\xbf"]
)
def test_other_content_is_refused(prepared: tuple[Reader, Path], data: bytes) -> None:
    reader, root = prepared
    for name in reader.files:
        good = (root / name).read_bytes()
        (root / name).write_bytes(data)
        with seconds(30):
            error = refusal(reader, root)
        if data or name != "r.csv":  # an empty table holds no results
            assert error is not None
            assert str(root) in str(error)
        (root / name).write_bytes(good)


@pytest.mark.parametrize(
    "sizes", ["rows: 3000000\n   cols: 3", "rows: 3\n   cols: 4", "rows: -1\n   cols: -9"]
)
def test_a_matrix_that_says_another_size_than_it_has(tmp_path: Path, sizes: str) -> None:
    """OpenCV's own reader of matrices writes beyond its memory here."""
    good = READERS["camera_yml"]
    good.make(tmp_path)
    text = (tmp_path / "c.yml").read_text()
    changed = text.replace("rows: 3\n   cols: 3", sizes, 1)
    assert changed != text
    (tmp_path / "c.yml").write_text(changed)
    with pytest.raises(ValueError, match=r"c\.yml.*do not fill"):
        Camera.load(tmp_path / "c.yml")
