"""Every reader of files on damaged files: good ones, made small, and ways to break them.

`test_fuzz.py` takes a few hundred drawn with a seed. Run as a program, this searches on with coverage as its guide
(needs `pip install atheris`; stops at the first finding, or after the time given):

    python tests/fuzz_readers.py [READER] -max_total_time=60
"""

from __future__ import annotations

import json
import pickle
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import trimesh
from torch import nn

from geopose import checkpoint, train_state
from geopose.cad.model import CadModel, load_cad
from geopose.data.bop import read_bop
from geopose.data.bop_results import BopResult, read_results, write_results
from geopose.data.bop_write import BopWriter
from geopose.data.cambridge import Views, read_cambridge, read_points, write_cambridge, write_points
from geopose.data.iss_docking import read_labels
from geopose.data.semantic import read_semantic
from geopose.data.xwing import CAMERA_FILE, read_xwing
from geopose.geometry.camera import Camera
from geopose.geometry.frames import camera_to_opengl
from geopose.geometry.pose import Pose
from geopose.image import load_image
from geopose.nets.places import read_arrays
from geopose.opencv_yaml import read_opencv_pose, write_opencv
from geopose.result import PoseEstimate
from geopose.saved import read_estimate

REFUSALS = (ValueError, FileNotFoundError)
CAMERA = Camera(60.0, 61.0, 31.0, 23.5, (64, 48), (0.1, 0.0, 0.0, 0.01))


@dataclass(frozen=True)
class Reader:
    """make: writes good files below a folder; files: those to be damaged; read: reads them."""

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]


def _bop(root: Path) -> None:
    brick = CadModel.from_trimesh(trimesh.creation.box((0.1, 0.06, 0.04)), "brick")
    with BopWriter(root, split="test", scene_id=7) as writer:
        writer.add_model(4, brick)
        for _ in range(2):
            masks = np.ones((1, 48, 64), bool)
            picture, depth = np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 0.5, np.float32)
            writer.add(
                picture,
                Camera(60.0, 61.0, 31.0, 23.5, (64, 48)),
                [(4, Pose(np.eye(3), np.array([0.0, 0.0, 0.5])))],
                depth,
                masks,
                masks,
            )
    targets = [{"scene_id": 7, "im_id": 1, "obj_id": 4, "inst_count": 1}]
    (root / "test_targets_bop19.json").write_text(json.dumps(targets))


def _xwing(root: Path) -> None:
    matrix = np.eye(4)
    matrix[2, 3] = -3.0
    (root / "0_mat.json").write_text(json.dumps(matrix.tolist()))
    cv2.imwrite(str(root / "0.jpg"), np.zeros((48, 64, 3), np.uint8))
    projection = np.asarray(camera_to_opengl(Camera(60.0, 60.0, 31.5, 23.5, (64, 48)), 0.1, 100.0))
    info = {"model_view_matrix": np.eye(4).tolist(), "projection_matrix": projection.tolist()}
    (root / CAMERA_FILE).write_text(json.dumps(info))


def _semantic(root: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    rows = {"center": np.full((2, 2), 20.0), "scale": np.ones(2), "part": np.full((2, 4, 2), 9.0)}
    np.savez(root / "train_data.npz", imgname=np.array([b"a.jpg", b"b.jpg"]), **rows)  # type: ignore[arg-type]
    np.savez(root / "images.npz", **{"a.jpg": picture, "b.jpg": picture})  # type: ignore[arg-type]
    np.savez(root / "misc_data.npz", K=CAMERA.K, vertices=np.eye(3), faces=np.array([[0, 1, 2]]))
    np.save(root / "kpt.npy", np.arange(12.0).reshape(4, 3))


def _views(root: Path) -> Views:
    return Views(root, ("a/0.png", "a/1.png"), np.ones((2, 3)), np.eye(4)[:2])


def _nvm(root: Path) -> None:
    write_points(_views(root), 400.0, np.eye(3), np.ones((2, 3, 2)))


def _mesh(name: str) -> Reader:
    def make(root: Path) -> None:
        box = trimesh.creation.box((0.1, 0.06, 0.04))
        box.visual.vertex_colors = np.full((8, 4), 99, np.uint8)
        if name == "text.stl":
            (root / name).write_text(trimesh.exchange.stl.export_stl_ascii(box))
        elif name == "text.ply":
            (root / name).write_bytes(trimesh.exchange.ply.export_ply(box, encoding="ascii"))
        else:
            box.export(root / name)

    return Reader(make, (name,), lambda root: load_cad(root / name, "m"))


def _picture(name: str) -> Reader:
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    return Reader(
        lambda root: cv2.imwrite(str(root / name), picture), (name,), lambda root: load_image(root / name)
    )


def _opencv(name: str) -> Reader:
    def both(root: Path) -> None:
        Camera.load(root / name)
        read_opencv_pose(root / name)

    pose = Pose(np.eye(3), np.array([0.0, 0.0, 0.5]))
    return Reader(lambda root: write_opencv(root / name, CAMERA, pose, np.eye(6)), (name,), both)


def _estimate() -> PoseEstimate:
    pose, rows = Pose(np.eye(3), np.array([0.0, 0.0, 4.0])), np.ones((4, 2))
    keypoints = {
        "points_px": rows,
        "cov_px": np.ones((4, 2, 2)),
        "inliers": rows[:, 0] > 0,
        "points_obj": np.ones((4, 3)),
    }
    return PoseEstimate(
        pose,
        np.eye(6),
        "ok",
        ("so",),
        0.9,
        keypoints,
        np.arange(4.0),
        (),
        {"total": 0.1},
        CAMERA,
        load_cad("car"),
    )


READERS: Mapping[str, Reader] = {
    "camera_json": Reader(
        lambda r: CAMERA.save(r / "c.json"), ("c.json",), lambda r: Camera.load(r / "c.json")
    ),
    "camera_yml": _opencv("c.yml"),
    "camera_xml": _opencv("c.xml"),
    "camera_colmap": Reader(
        lambda r: (r / "c.txt").write_text("# rows\n1 OPENCV 64 48 60 61 31.5 24 0.1 0 0 0.01\n"),
        ("c.txt",),
        lambda r: Camera.load(r / "c.txt"),
    ),
    "bop": Reader(
        _bop,
        (
            "test/000007/scene_camera.json", "test/000007/scene_gt.json", "test/000007/scene_gt_info.json",
            "models/models_info.json", "test_targets_bop19.json",
        ),
        read_bop,
    ),
    "bop_results": Reader(
        lambda r: write_results(r / "r.csv", [BopResult(1, 2, 5, 0.7, Pose(np.eye(3), np.ones(3)), 0.1)]),
        ("r.csv",),
        lambda r: read_results(r / "r.csv"),
    ),
    "checkpoint": Reader(
        lambda r: checkpoint.save_model(
            r / "m.geopose",
            {"locator": nn.Linear(3, 3)},
            {"name": "toy", "networks": {"locator": {"width": 32}}, "mesh": {"vertices": np.eye(3)}},
        ),
        ("m.geopose",),
        lambda r: checkpoint.load_model(r / "m.geopose"),
    ),
    "state": Reader(
        lambda r: train_state.write_state(r / "m.state", {"a": [1, 2]}, {"w": torch.ones(7)}),
        ("m.state",),
        lambda r: train_state.read_state((r / "m.state").read_bytes(), r / "m.state"),
    ),
    **{f"mesh_{n}": _mesh(n) for n in ("a.stl", "text.stl", "a.obj", "a.ply", "text.ply", "a.off", "a.glb")},
    "cambridge": Reader(lambda r: write_cambridge(_views(r)), ("dataset_train.txt",), read_cambridge),
    "cambridge_points": Reader(_nvm, ("reconstruction.nvm",), lambda r: read_points(_views(r))),
    "places": Reader(
        lambda r: (r / "w.npy").write_bytes(
            pickle.dumps({"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, 2)
        ),
        ("w.npy",),
        lambda r: read_arrays(r / "w.npy"),
    ),
    "xwing": Reader(_xwing, ("0_mat.json", CAMERA_FILE, "0.jpg"), read_xwing),
    "semantic": Reader(
        _semantic, ("train_data.npz", "images.npz", "misc_data.npz", "kpt.npy"), read_semantic
    ),
    "iss_docking": Reader(
        lambda r: (r / "t.csv").write_text('ImageID,distance,location\n0,351,"[215, 158]"\n7,61,"[4, 511]"\n'),
        ("t.csv",),
        lambda r: read_labels(r / "t.csv"),
    ),
    "saved": Reader(
        lambda r: (r / "e.json").write_text(_estimate().to_json()),
        ("e.json",),
        lambda r: read_estimate(r / "e.json", load_cad("car")),
    ),
    "picture_png": _picture("p.png"),
    "picture_jpg": _picture("p.jpg"),
}  # fmt: skip

_ODD = [
    b"nan", b"-1", b"1e999", b"99999999999999999999", b"null", b"[]", b"{}", b'"', b"\x00", b"\xff\xfe", b"\n", b",",
    b"true", b"0", b"%s", b"../../etc/passwd", b"[" * 200, b"2147483648", b"-inf", b"1.5",
]  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    """`data` after one to four accidents: bytes flipped, cut, doubled, moved, or replaced by something odd."""
    for _ in range(draw.randint(1, 4)):
        a, b = sorted(draw.randint(0, len(data)) for _ in range(2))
        b = min(b, a + draw.choice([1, 4, 16, 400]))
        kind = draw.randrange(7)
        if kind == 0 and data:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:a]
        elif kind == 2:
            data = data[:a] + data[b:]
        elif kind == 3:
            data = data[:b] + data[a:b] * draw.choice([1, 2, 50]) + data[b:]
        elif kind == 4:
            data = data[:a] + draw.choice(_ODD) + data[b:]
        elif kind == 5:
            data = _number_changed(data, draw)
        else:
            data = _tree_changed(data, draw)
    return data


def _number_changed(data: bytes, draw: random.Random) -> bytes:
    """One of the words that begin with a digit replaced, so that the rest stays well formed."""
    starts = [
        i for i, c in enumerate(data) if chr(c).isdigit() and (i == 0 or not chr(data[i - 1]).isalnum())
    ]
    if not starts:
        return data
    start = draw.choice(starts)
    end = start
    while end < len(data) and chr(data[end]) in "0123456789.eE":
        end += 1
    return data[:start] + draw.choice(_ODD) + data[end:]


def _tree_changed(data: bytes, draw: random.Random) -> bytes:
    """JSON with one value replaced or taken out; other data as they are."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    node = tree
    while isinstance(node, (dict, list)) and node:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if draw.random() < 0.3 or not isinstance(node[key], (dict, list)):
            if draw.random() < 0.3:
                del node[key]
            else:
                node[key] = draw.choice([None, [], {}, "x", -1, 1e300, float("nan"), True, [[1]], 10**30])
            break
        node = node[key]
    return json.dumps(tree).encode()


def refusal(reader: Reader, root: Path) -> Exception | None:
    """What the reader says of the files below `root`, None if it takes them; other errors than refusals are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(root)
        except REFUSALS as error:
            return error
    return None


def _search(names: list[str]) -> None:
    import atheris

    for name in [n for n in sys.modules if n.split(".")[0] == "geopose"]:
        del sys.modules[name]  # imported again, this time watched
    with atheris.instrument_imports(include=["geopose"]):
        import fuzz_readers
    readers = fuzz_readers.READERS
    folder = Path(tempfile.mkdtemp())
    for name in names:
        (folder / name).mkdir()
        readers[name].make(folder / name)
    good = {(n, f): (folder / n / f).read_bytes() for n in names for f in readers[n].files}

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        name, file = provider.PickValueInList(list(good))
        draw = random.Random(provider.ConsumeInt(4))
        rest = provider.ConsumeBytes(sys.maxsize)
        path = folder / name / file
        path.write_bytes(rest if draw.random() < 0.5 else damaged(good[name, file], draw))
        try:
            refusal(readers[name], folder / name)
        finally:
            path.write_bytes(good[name, file])

    atheris.Setup([sys.argv[0], *(a for a in sys.argv[1:] if a.startswith("-"))], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _search([a for a in sys.argv[1:] if not a.startswith("-")] or list(READERS))
