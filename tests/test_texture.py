"""Paint that a mesh's corners do not have: labels in a texture, and the colour that its owner says."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geopose.cad import CadModel, choose_keypoints, find_symmetries, load_cad, mesh
from geopose.cad.render import render
from geopose.cli import main
from geopose.data.bop_write import BopWriter
from geopose.data.picture import PictureMaker, SyntheticOptions
from geopose.data.sample import look_at
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.train_options import TrainOptions

EXTENTS = np.array([0.06, 0.10, 0.04])


def labelled(paint: bool = True) -> CadModel:
    """A white box, corners white too, with a blue disk on one side and letters on two others."""
    box = trimesh.creation.box(EXTENTS)
    uv = np.zeros((12, 3, 2))
    for face, normal in enumerate(box.face_normals):
        axis = int(np.abs(normal).argmax())
        tile = 2 * axis + int(normal[axis] > 0)  # of an atlas of three times two sides
        across = [k for k in range(3) if k != axis]
        place = box.vertices[box.faces[face]][:, across] / EXTENTS[across] + 0.5
        uv[face] = (0.01 + 0.98 * place) * [1 / 3, 1 / 2] + [tile % 3 / 3, tile // 3 / 2]
    picture = np.full((400, 600, 3), 240, np.uint8)
    if paint:
        cv2.circle(picture, (300, 300), 55, (20, 90, 200), -1)
        cv2.putText(picture, "GEO", (15, 330), cv2.FONT_HERSHEY_SIMPLEX, 2.3, (200, 20, 20), 12)
        cv2.putText(picture, "12", (430, 120), cv2.FONT_HERSHEY_SIMPLEX, 2.3, (20, 120, 30), 12)
    skin = trimesh.visual.TextureVisuals(uv=uv.reshape(-1, 2), image=Image.fromarray(picture))
    corners = box.vertices[box.faces].reshape(-1, 3)
    return load_cad(trimesh.Trimesh(corners, np.arange(36).reshape(-1, 3), visual=skin, process=False), "m")


@pytest.fixture(scope="module")
def box() -> CadModel:
    return labelled()


def pictures(model: CadModel) -> np.ndarray:
    """The box from eight sides, unlit."""
    camera = Camera(200, 200, 63.5, 63.5, (128, 128))
    turns = [look_at(e, a, 0.0) for e in (0.6, -0.6) for a in (0.5, 2.1, 3.6, 5.2)]
    poses = Pose(np.stack(turns), np.tile([0.0, 0.0, 0.25], (8, 1)))
    return render(model, camera, poses).color.astype(float)


def test_only_a_box_without_labels_is_symmetric(box: CadModel) -> None:
    assert len(find_symmetries(labelled(paint=False)).discrete) == 4
    assert len(find_symmetries(box).discrete) == 1


def test_baked_paint_looks_like_the_texture(box: CadModel) -> None:
    expected = pictures(box)
    inside = expected.sum(-1) > 0
    for faces, most in ((1000, 0.015), (2500, 0.007)):
        baked = box.baked(faces)
        assert baked.texture is None
        assert len(baked.faces) <= faces
        assert baked.is_watertight
        assert baked.content_hash == box.content_hash
        area = mesh.face_areas_normals(baked.vertices, baked.faces)[0]
        assert area.sum() == pytest.approx(2 * sum(np.prod(EXTENTS) / EXTENTS), rel=1e-9)
        np.testing.assert_allclose(np.linalg.norm(baked.normals, axis=1), 1, atol=1e-5)
        lost = np.abs(pictures(baked) - expected)[inside].mean()
        assert lost < most
    plain = np.abs(pictures(box.baked()) - expected)[inside].mean()
    assert plain > 0.03  # nothing of the labels is on a corner
    assert len(box.baked().faces) == 12


def test_a_plain_texture_needs_no_more_faces() -> None:
    assert len(labelled(paint=False).baked(2500).faces) == 12


def test_it_leaves_as_a_trimesh_with_its_texture_and_as_a_bop_model_with_its_labels(
    box: CadModel, tmp_path: Path
) -> None:
    again = load_cad(box.trimesh(), "m")
    np.testing.assert_array_equal(again.texture, box.texture)
    np.testing.assert_allclose(pictures(again), pictures(box), atol=1e-3)
    with BopWriter(tmp_path / "set") as writer:
        writer.add_model(1, box, find_symmetries(box))
    (path,) = (tmp_path / "set").glob("models/*.ply")
    stored = load_cad(path, "mm")
    assert stored.colors is not None
    assert np.ptp(stored.colors, axis=0).min() > 0.5


def test_training_pictures_show_the_labels(box: CadModel) -> None:
    maker = PictureMaker(box, SyntheticOptions())
    assert maker.model.colors is not None
    assert 1000 < len(maker.model.faces) <= SyntheticOptions().max_faces
    assert np.ptp(maker.model.colors, axis=0).min() > 0.5


def test_keypoints_are_drawn_to_the_labels(box: CadModel) -> None:
    """Off the edges, where a plain box has none: the borders of the paint are places that can be told apart."""

    def on_walls(model: CadModel) -> int:
        points = np.asarray(choose_keypoints(model, 16))
        from_edges = np.sort(EXTENTS / 2 - np.abs(points), axis=1)[:, 1]  # to the second nearest wall
        return int((from_edges > 0.008).sum())

    assert on_walls(box) > on_walls(labelled(paint=False))


@given(st.sets(st.integers(0, 79), min_size=1, max_size=30), st.booleans())
def test_split_faces_leave_the_surface_as_it_is(chosen: set[int], seams: bool) -> None:
    ball = trimesh.creation.icosphere(subdivisions=1)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces)
    if seams:  # every face has corners of its own, in the same places
        vertices, faces = vertices[faces].reshape(-1, 3), np.arange(240).reshape(-1, 3)
    ends, cut = mesh.split_faces(vertices, faces, np.array(sorted(chosen)))
    more = np.concatenate([vertices, vertices[ends].mean(axis=1)])
    old_area, old_normal = mesh.face_areas_normals(vertices, faces)
    area, normal = mesh.face_areas_normals(more, cut)
    assert area.sum() == pytest.approx(old_area.sum())
    assert mesh.signed_volume(more, cut) == pytest.approx(mesh.signed_volume(vertices, faces))
    assert mesh.boundary_edges(more, cut) == 0
    assert ((normal @ old_normal.T).max(axis=1) > 1 - 1e-9).all()  # each piece lies in an old face
    small = np.isclose(area[:, None], old_area[sorted(chosen)] / 4).any(axis=1)
    assert small.sum() >= 4 * len(chosen)
    assert len(cut) <= len(faces) + 3 * len(chosen) + 3 * len(chosen)


def test_an_unpainted_mesh_takes_the_colour_that_is_said() -> None:
    part = load_cad(trimesh.creation.icosphere(subdivisions=1), "cm")
    assert part.painted(None) is part
    for name, expected in (("gold", (255, 215, 0)), ("#e8b820", (232, 184, 32))):
        gold = part.painted(name)
        assert gold.colors is not None
        np.testing.assert_allclose(255 * gold.colors, np.tile(expected, (len(part.vertices), 1)), atol=1e-4)
        assert gold.content_hash == part.content_hash
    with pytest.raises(ValueError, match="color: got 'goldish', expected a name such as"):
        part.painted("goldish")
    with pytest.raises(ValueError, match="color: got 'gold', but .* has colours of its own"):
        part.painted("red").painted("gold")


def test_the_colour_that_is_said_is_in_the_pictures(tmp_path: Path) -> None:
    trimesh.creation.annulus(10, 25, 30).export(tmp_path / "ring.stl")
    words = f"render {tmp_path / 'ring.stl'} --unit mm --color blue --count 6 --occluders 0 --clutter 0"
    assert main([*words.split(), "--out", str(tmp_path / "set")]) == 0
    shown = []
    for mask in sorted((tmp_path / "set").rglob("mask_visib/*.png")):
        picture = next((mask.parents[1] / "rgb").glob(mask.stem.split("_")[0] + ".*"))
        inside = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 0
        shown.append(cv2.imread(str(picture))[inside].mean(0))  # blue, green, red
    assert len(shown) == 6
    assert np.median([b - max(g, r) for b, g, r in shown]) > 30
    assert TrainOptions(color="blue").command("ring.stl", "r.geopose").endswith("--color blue")


# Colours in files


LINEAR = np.array([0.01, 0.2158605, 0.7])  # 0.0998, 0.5020 and 0.8544 in sRGB (IEC 61966-2-1)
SRGB = np.array([0.0998, 0.5020, 0.8544])


def write_gltf(path: Path, colors: np.ndarray, material: dict[str, Any] | None) -> Path:
    """A box in one colour for each vertex, as the specification has it, in a .glb, or in a .gltf and a .bin."""
    shape = trimesh.creation.box((0.1, 0.2, 0.3))
    parts = [shape.vertices.astype("<f4"), shape.faces.astype("<u4"), colors]
    ends = np.cumsum([0] + [p.nbytes for p in parts])
    code = {"uint8": 5121, "uint16": 5123, "float32": 5126}[colors.dtype.name]
    header: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "by hand"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 2}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 36, "type": "SCALAR"},
            {"bufferView": 2, "componentType": code, "count": 8, "type": "VEC4", "normalized": code != 5126},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": int(a), "byteLength": int(b - a)} for a, b in pairwise(ends)
        ],
        "buffers": [{"byteLength": int(ends[-1])}],
    }
    if material is not None:
        header["materials"] = [{"pbrMetallicRoughness": material}]
        header["meshes"][0]["primitives"][0]["material"] = 0
    blob = b"".join(p.tobytes() for p in parts)
    if path.suffix == ".gltf":
        header["buffers"][0]["uri"] = "box.bin"
        path.with_name("box.bin").write_bytes(blob)
        path.write_text(json.dumps(header))
        return path
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    sizes = (
        struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(blob)),
        struct.pack("<I4s", len(text), b"JSON"),
    )
    path.write_bytes(b"".join([*sizes, text, struct.pack("<I4s", len(blob), b"BIN\0"), blob]))
    return path


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
@pytest.mark.parametrize("material", [None, {"metallicFactor": 0.0}, {"baseColorFactor": [1, 1, 1, 1]}])
@pytest.mark.parametrize("dtype", ["<f4", "<u2", "<u1"])
def test_vertex_colours_of_a_gltf_are_linear(
    tmp_path: Path, suffix: str, material: dict[str, Any] | None, dtype: str
) -> None:
    kind = np.dtype(dtype)
    full = 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)
    shares = np.tile([*LINEAR, 1.0], (8, 1)) * full
    colors = (shares if kind.kind == "f" else np.round(shares)).astype(kind)
    model = load_cad(write_gltf(tmp_path / f"box{suffix}", colors, material))
    assert model.colors is not None
    step = 12.92 * 0.5 / full if full > 1 else 0.0  # half a step of the file, at its steepest
    np.testing.assert_allclose(model.colors, np.broadcast_to(SRGB, model.colors.shape), atol=step + 1e-3)


def test_colours_that_trimesh_has_written_come_back_as_they_were(tmp_path: Path) -> None:
    shape = trimesh.creation.box((0.1, 0.2, 0.3))
    shape.visual.vertex_colors = np.tile([10, 128, 250, 255], (8, 1)).astype(np.uint8)
    shape.export(tmp_path / "box.glb")
    colors = load_cad(tmp_path / "box.glb").colors
    np.testing.assert_allclose(colors, np.broadcast_to(np.array([10, 128, 250]) / 255, colors.shape))


@pytest.mark.parametrize(("top", "kind"), [(65535, "ushort"), (255, "ushort"), (255, "uchar"), (255, "int")])
def test_colours_of_a_ply_of_any_number_of_bits(tmp_path: Path, top: int, kind: str) -> None:
    rgb = " ".join(str(round(v * top)) for v in SRGB)
    names = "".join(f"property {kind} {c}\n" for c in ("red", "green", "blue"))
    places = ["0 0 0", "1 0 0", "0 1 0", "0 0 1"]
    (tmp_path / "part.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        f"{names}element face 4\nproperty list uchar int vertex_indices\nend_header\n"
        + "".join(f"{place} {rgb}\n" for place in places)
        + "3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
    )
    colors = load_cad(tmp_path / "part.ply", "m").colors
    np.testing.assert_allclose(colors, np.broadcast_to(SRGB, colors.shape), atol=0.5 / 255 + 1e-6)
