"""What goes wrong around a program: a full disk, a kill at any instant, half a file, no right to write, a lost GPU."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import CPU, Blobs, StepClock, blob_learner, blob_loss
from torch import nn

from geopose import checkpoint, cli, fit, train_state
from geopose._io import atomic_path

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], Any], seconds: float = 30.0) -> int:
    """How a child process that does `work` ended: its exit code (0 well, 77 with an exception), or minus a signal."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(seconds))
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# a full disk


class FullDisk:
    """Path.write_bytes and write_text on a disk that holds so many bytes more; os.write is left alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        bytes_before = Path.write_bytes

        def write_bytes(path: Path, data: bytes) -> int:
            fits = bytes(data)[: self.room]
            bytes_before(path, fits)
            self.room -= len(fits)
            if len(fits) < len(data):
                raise OSError(
                    errno.ENOSPC, os.strerror(errno.ENOSPC)
                )  # as the system says it: without a name
            return len(data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        monkeypatch.setattr(
            Path, "write_text", lambda path, text, **_: write_bytes(path, text.encode()) and len(text)
        )


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save_model(tmp_path / "a.geopose", {"x": nn.Linear(9, 9)}, {"name": "old"})
    before = path.read_bytes()
    FullDisk(monkeypatch, 100)
    with pytest.raises(OSError, match=r"No space left.*a\.geopose") as caught:
        checkpoint.save_model(path, {"x": nn.Linear(9, 9)}, {"name": "new"})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path), "not the name of a file that nobody knows"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.geopose"]


@pytest.mark.parametrize("what", ["checkpoint", "state"])
def test_the_disk_holds_a_file_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = tmp_path / "a"
    writers: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: checkpoint.save_model(path, {"x": nn.Linear(9, 9)}, {"name": "toy"}),
        "state": lambda: train_state.write_state(path, {"step": 1}, {"w": torch.ones(99)}),
    }
    done: list[tuple[str, int, int]] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        sync(handle)
        done.append(("sync", os.fstat(handle).st_ino, os.fstat(handle).st_size))

    def rename(source: Path, target: Path) -> None:
        done.append(("rename", os.stat(source).st_ino, os.stat(source).st_size))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", rename)
        writers[what]()
    file, folder = path.stat(), tmp_path.stat()
    assert [(name, inode) for name, inode, _ in done] == [
        ("sync", file.st_ino), ("rename", file.st_ino), ("sync", folder.st_ino),
    ]  # fmt: skip
    assert done[0][2] == done[1][2] == file.st_size > 99, "the whole file, not its beginning"

    before = path.read_bytes()

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        writers[what]()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_while_training_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from test_train import TINY, toy

    train_module = importlib.import_module("geopose.train")
    monkeypatch.setattr(train_module, "SAVE_EVERY_S", 0.0)
    disk = FullDisk(monkeypatch, 0)
    steps = []

    class Run(train_module._Run):  # type: ignore[misc, name-defined]
        def _after_step(self, learner: fit.Learner, loss: float) -> None:
            super()._after_step(learner, loss)
            steps.append(self.state_file.exists())
            disk.room = 10**9 if len(steps) >= 2 else 0  # somebody makes room

    monkeypatch.setattr(train_module, "_Run", Run)
    monkeypatch.setattr(train_module, "Clock", StepClock)
    monkeypatch.setattr(train_module, "finish_model", lambda *_, **__: ({}, {"add_01d": 0.0}))
    options = train_module.TrainOptions(minutes=0.3, **TINY)
    with pytest.warns(UserWarning, match=r"training goes on.*No space left"):
        out = train_module.train(toy(), tmp_path / "toy.geopose", options)
    assert steps[:2] == [False, False]
    assert any(steps[2:]), "the state was saved once there was room"
    assert checkpoint.load_model(out)[1]["name"] == "toy"
    assert sorted(os.listdir(tmp_path)) == ["toy.geopose", "toy_training.png"]


# a kill at any instant of a write


def killed_after(instructions: int, work: Callable[[], Any]) -> tuple[int, int]:
    """How a child ended that is killed by SIGKILL before its n-th instruction of Python, and how many it has done."""
    count_r, count_w = os.pipe()

    def run() -> None:
        done = 0

        def trace(frame: Any, event: str, _argument: Any) -> Any:
            nonlocal done
            frame.f_trace_opcodes = True
            if event == "opcode":
                if done >= instructions:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
            return trace

        sys.settrace(trace)
        work()
        sys.settrace(None)
        os.write(count_w, str(done).encode())

    code = in_child(run)
    os.close(count_w)
    with os.fdopen(count_r) as file:
        return code, int(file.read() or instructions)


@posix
@pytest.mark.parametrize("kind", ["checkpoint", "state"])
def test_a_kill_at_any_instruction_leaves_the_old_file_or_the_new_one(tmp_path: Path, kind: str) -> None:
    path, tensors, net = tmp_path / "a.geopose", {"w": torch.ones(300)}, nn.Linear(2, 2)

    def write(name: str) -> None:
        if kind == "state":
            train_state.write_state(path, {"name": name}, tensors)
        else:
            checkpoint.save_model(path, {"x": net}, {"name": name})

    def read() -> str:
        if kind == "state":
            return str(train_state.read_state(path.read_bytes(), path)[0]["name"])
        return str(checkpoint.load_model(path)[1]["name"])

    write("old")
    code, count = killed_after(10**9, lambda: write("new"))
    assert code == 0
    assert count > 500
    write("old")
    moments = [*random.Random(0).sample(range(count), 25), *range(count - 250, count, 6)]
    seen = []
    for moment in moments:
        code, _ = killed_after(moment, lambda: write("new"))
        seen.append(read())
        assert code == -signal.SIGKILL or seen[-1] == "new"
        if seen[-1] == "new":
            write("old")
    assert set(seen) == {"old", "new"}
    train_state.clear_leftovers(path)
    assert os.listdir(tmp_path) == ["a.geopose"]


@posix
def test_a_kill_in_the_midst_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.geopose"
    checkpoint.save_model(path, {"x": nn.Linear(2, 2)}, {"name": "old"})

    def half(target: Path, data: bytes) -> None:
        with target.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        save = lambda: checkpoint.save_model(path, {"x": nn.Linear(2, 2)}, {"name": "new"})  # noqa: E731
        assert in_child(save) == -signal.SIGKILL
    assert checkpoint.load_model(path)[1]["name"] == "old"
    assert len(os.listdir(tmp_path)) == 2
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    assert checkpoint.find_model("00") is None, "half a model is passed over"


# half a file


def test_every_length_of_a_checkpoint_and_a_state_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save_model(tmp_path / "a.geopose", {"x": nn.Linear(3, 3)}, {"name": "toy"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.geopose: not a geopose checkpoint, or cut short"):
            checkpoint.load_model(path)
    train_state.write_state(path, {"a": 1}, {"w": torch.ones(7)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"not the state of a geopose training.*--restart"):
            train_state.read_state(whole[:length], path)


# two trainings into one folder


@posix
def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    """Six processes meet the lock of a dead one at the same moment; nobody leaves before all have tried."""
    lock = tmp_path / "a.geopose.lock"

    def contend(start: int, said: int, leave: int) -> None:
        os.read(start, 1)
        try:
            with train_state.training_lock(tmp_path / "a.geopose"):
                os.write(said, b"1")
                os.read(leave, 1)
        except RuntimeError:
            os.write(said, b"0")
            os.read(leave, 1)

    for _ in range(12):
        lock.write_text('{"host": "%s", "pid": %d, "started": 1}' % (os.uname().nodename, os.getpid()))  # noqa: UP031
        (start_r, start_w), (said_r, said_w), (leave_r, leave_w) = os.pipe(), os.pipe(), os.pipe()
        children = []
        for _child in range(6):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                contend(start_r, said_w, leave_r)
                os._exit(0)
            children.append(pid)
        os.write(start_w, b"s" * 6)
        said = b""
        while len(said) < 6:
            said += os.read(said_r, 6)
        os.write(leave_w, b"l" * 6)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        for end in (start_r, start_w, said_r, said_w, leave_r, leave_w):
            os.close(end)
        assert said.count(b"1") == 1
        assert os.listdir(tmp_path) == []


# no right to write


@posix
def test_without_the_right_to_write_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process without privileges, since root may write anywhere."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents]:
        if os.stat(parent).st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(os.stat(parent).st_mode | 0o011)

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        words = ["train", "car", "--out", str(folder / "car.geopose"), "--minutes", "60", "--device", "cpu"]
        os._exit(cli.main(words))

    assert in_child(run, 60) == 77, "SystemExit"
    said = capfd.readouterr().err
    assert f"'{folder / 'car.geopose'}' cannot be written: no right to write into '{folder}'" in said
    assert "Traceback" not in said
    assert os.listdir(folder) == []

    def write() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with atomic_path(folder / "a.csv") as temporary:
            temporary.write_text("x")

    assert in_child(write) == 77
    assert f"Permission denied: '{folder / 'a.csv'}'" in capfd.readouterr().err


def test_a_link_leads_to_the_new_file_and_rights_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "cur.json"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real.json")
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cur.json", "real.json"]


@posix
def test_pipes_are_written_into_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic_path(pipe) as place:
            place.write_text("said")
        assert os.read(reader, 100) == b"said"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


# a GPU that disappears


class AcceleratorError(RuntimeError):
    """As torch names what a lost GPU raises."""


@pytest.mark.parametrize("kind", [AcceleratorError, RuntimeError])
def test_a_lost_gpu_is_put_in_words_and_the_training_goes_on_later(kind: type[RuntimeError]) -> None:
    learner = blob_learner()
    loader = fit.endless_loader(Blobs(), 16, 0, 0)

    def lost(out: torch.Tensor, batch: Any) -> Any:
        if learner.step >= 3:
            raise kind("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")
        return blob_loss(out, batch)

    with pytest.raises(
        RuntimeError, match=r"the device cpu failed \(CUDA error: unspecified launch failure\)"
    ):
        fit.learn(learner, loader, lost, StepClock(), 1e4, CPU, lambda *_: None)
    assert learner.step == 3
    fit.learn(learner, loader, blob_loss, StepClock(), 20.0, CPU, lambda *_: None)
    assert learner.step > 3


def test_too_little_memory_is_no_lost_gpu() -> None:
    def full(_out: torch.Tensor, _batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        fit.learn(
            blob_learner(),
            fit.endless_loader(Blobs(), 16, 0, 0),
            full,
            StepClock(),
            9.0,
            CPU,
            lambda *_: None,
        )


# pictures


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 500), (12_000, 9000)])
def test_pictures_of_any_size_have_an_answer(size_wh: tuple[int, int]) -> None:
    from geopose.checkpoint import model_of
    from geopose.estimate import PoseEstimator

    picture = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PoseEstimator.load(model_of("xwing"), "cpu").estimate(picture)
    assert found.status == "not_found"
    assert found.reasons
