"""load_cad and CadModel: units, colours, repairs, refusals."""

from __future__ import annotations

import json
import os
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial.distance import pdist

from geopose.cad import CadModel, CadWarning, load_cad, mesh
from geopose.cad.appearance import sample_texture

DATA = Path(os.environ.get("GEOPOSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
TETRA = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def box(extents: tuple[float, float, float] = (0.2, 0.3, 0.4)) -> trimesh.Trimesh:
    return trimesh.creation.box(extents)


def quiet(*arguments: object, **options: object) -> CadModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CadWarning)
        return load_cad(*arguments, **options)  # type: ignore[arg-type]


# Units


@pytest.mark.parametrize("suffix", ["stl", "obj", "ply", "off"])
def test_a_file_without_unit_asks_for_one_and_names_extent_and_likely_unit(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"part.{suffix}"
    box((40, 60, 25)).export(path)
    with pytest.raises(ValueError, match=r"40 x 60 x 25; likely mm.*unit='mm' \(--unit mm\)") as caught:
        load_cad(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("unit", "metres"), [("m", 1.0), ("cm", 0.01), ("mm", 0.001), ("in", 0.0254)])
def test_vertices_are_metres(tmp_path: Path, unit: str, metres: float) -> None:
    path = tmp_path / "part.stl"
    box((4, 6, 2)).export(path)
    model = load_cad(path, unit)
    np.testing.assert_allclose(model.extents, np.array([4, 6, 2]) * metres, rtol=1e-6)
    assert model.unit == unit
    assert model.diameter == pytest.approx(np.sqrt(56) * metres, rel=1e-6)


def test_gltf_is_in_metres_and_another_unit_is_used_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "part.glb"
    box().export(path)
    assert load_cad(path).unit == "m"
    np.testing.assert_allclose(load_cad(path).extents, [0.2, 0.3, 0.4], rtol=1e-6)
    with pytest.warns(CadWarning, match="declares the unit 'm'"):
        model = load_cad(path, "cm")
    np.testing.assert_allclose(model.extents, [0.002, 0.003, 0.004], rtol=1e-6)


def test_3mf_says_its_unit(tmp_path: Path) -> None:
    pytest.importorskip("lxml", reason="3MF needs lxml")
    pytest.importorskip("networkx", reason="3MF needs networkx")
    path, part = tmp_path / "part.3mf", box((40, 60, 25))
    part.units = "mm"
    part.export(path)
    model = load_cad(path)
    assert model.unit == "mm"
    np.testing.assert_allclose(model.extents, [0.04, 0.06, 0.025], rtol=1e-6)


def test_unknown_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unit: got 'furlong', expected one of m, cm, mm, in"):
        load_cad(box(), "furlong")


@pytest.mark.parametrize(("size", "unit"), [(0.1, "mm"), (2000.0, "m")])
def test_absurd_scale_is_a_stated_warning(size: float, unit: str) -> None:
    with pytest.warns(CadWarning, match="diameter"):
        model = load_cad(box((size, size, size)), unit)
    assert any("the unit is probably another" in text for text in model.warnings)


def test_the_object_is_never_recentred() -> None:
    part = box()
    part.apply_translation([1.0, -2.0, 3.0])
    np.testing.assert_allclose(load_cad(part, "m").bounds.mean(axis=0), [1.0, -2.0, 3.0], atol=1e-12)


# What may be given


def test_a_model_is_returned_as_it_is() -> None:
    model = load_cad(box(), "m")
    assert load_cad(model) is model


def test_a_trimesh_object_needs_a_unit_or_carries_one() -> None:
    part = box()
    with pytest.raises(ValueError, match="no unit"):
        load_cad(part)
    part.units = "mm"
    assert quiet(part).unit == "mm"


def test_a_bare_built_in_name_is_the_built_in_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("xwing").write_text("not a mesh")
    model = load_cad("xwing")
    assert model.name == "xwing"
    assert model.unit == "m"
    assert model.named_keypoints
    with pytest.raises(ValueError, match="'xwing' is in metres"):
        load_cad("xwing", "mm")


# Refusals


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.obj", "", "the file is empty"),
        ("empty.stl", "", "the file is empty"),
        ("comment.obj", "# nothing here\n", "holds no faces"),
        ("points.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n", "holds no faces"),
        ("noise.glb", bytes(range(1, 200)), "cannot be read as GLB"),
        ("noise.stl", b"\xff\xfe\x00\x01" * 40, "noise.stl"),
        ("nan.obj", TETRA.replace("v 1 0 0", "v nan 0 0"), "1 vertices have coordinates that are not finite"),
        ("inf.obj", TETRA.replace("v 1 0 0", "v 1 inf 0"), "not finite"),
        ("line.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no face has an area"),
        ("far.obj", TETRA + "f 1 2 9\n", "far.obj"),
        ("part.docx", "hello", "no reader for '.docx'"),
        ("part", "hello", "file without suffix"),
    ],
)
def test_an_unusable_file_is_refused_by_name_and_reason(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        load_cad(path, "m")
    assert str(path) in str(caught.value)


def counted(count: int) -> bytes:
    """A binary STL of the twelve faces of a box whose header announces `count`."""
    content = box().export(file_type="stl")
    return content[:80] + count.to_bytes(4, "little") + content[84:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (counted(12)[:-1], "12 faces announced, 11 there"),
        (counted(12)[:84], "12 faces announced, 0 there"),
        (counted(13), "13 faces announced, 12 there"),
        (bytes(70), "70 bytes, expected 84 and more"),
    ],
)
def test_a_binary_stl_that_is_cut_short_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"short\.stl: cut short: {words}"):
        load_cad(write(tmp_path / "short.stl", content), "m")


def test_what_follows_the_faces_of_a_binary_stl_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "long.stl", counted(12) + b"made by hand")
    with pytest.warns(CadWarning, match="12 bytes after the 12 faces announced were left out"):
        model = load_cad(path, "m")
    assert len(model.faces) == 12
    np.testing.assert_allclose(model.extents, [0.2, 0.3, 0.4], rtol=1e-6)
    fewer = quiet(write(tmp_path / "ten.stl", counted(10)), "m")
    assert len(fewer.faces) == 10
    assert fewer.warnings[0] == "100 bytes after the 10 faces announced were left out"
    with pytest.raises(
        ValueError, match=r"holds no faces \(600 bytes after the 0 faces announced were left out\)"
    ):
        load_cad(write(tmp_path / "none.stl", counted(0)), "m")
    text = trimesh.exchange.stl.export_stl_ascii(box())
    assert len(load_cad(write(tmp_path / "text.stl", text), "m").faces) == 12


def test_faces_of_missing_vertices_are_refused(tmp_path: Path) -> None:
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    path = write(tmp_path / "wild.ply", header + "0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n")
    with pytest.raises(ValueError, match=r"1 faces name vertices that do not exist \(there are 3\)"):
        load_cad(path, "m")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.stl: no such file.*xwing, iss, car"):
        load_cad(tmp_path / "nothing.stl", "mm")
    with pytest.raises(ValueError, match="is a folder"):
        load_cad(tmp_path, "mm")
    with pytest.raises(ValueError, match="path_or_name: got a int"):
        load_cad(3, "mm")  # type: ignore[arg-type]


def test_nothing_is_fetched_from_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    gltf = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"uri": "http://example.invalid/mesh.bin", "byteLength": 36}],
    }
    path = write(tmp_path / "remote.gltf", json.dumps(gltf))
    with pytest.raises(ValueError, match=r"remote\.gltf"):
        load_cad(path)
    with pytest.raises(FileNotFoundError):
        load_cad("http://example.invalid/part.stl", "mm")
    assert asked == []


# Repairs


def test_faces_without_area_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.obj", TETRA + "f 1 1 2\nf 1 2 2\n")
    with pytest.warns(CadWarning, match="2 faces without area were dropped, 4 remain"):
        model = load_cad(path, "m")
    assert len(model.faces) == 4
    assert model.is_watertight


def test_an_open_mesh_is_a_stated_warning() -> None:
    part = box()
    part.update_faces(np.arange(10))
    with pytest.warns(CadWarning, match=r"open \(4 boundary edges\)"):
        model = load_cad(part, "m")
    assert not model.is_watertight


def test_a_mesh_turned_inside_out_is_turned_back() -> None:
    part = box()
    part.invert()
    with pytest.warns(CadWarning, match="looked inward"):
        model = load_cad(part, "m")
    assert mesh.signed_volume(model.vertices, model.faces) == pytest.approx(0.2 * 0.3 * 0.4)
    assert (np.einsum("vi,vi->v", model.normals, model.vertices) > 0).all()


def test_a_sound_mesh_has_no_warnings(tmp_path: Path) -> None:
    path = tmp_path / "sound.stl"
    box().export(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_cad(path, "m")
    assert model.warnings == ()
    assert model.is_watertight  # an STL repeats its vertices: they are welded


def test_scenes_are_merged_with_their_transforms(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    scene.add_geometry(ball, transform=trimesh.transformations.translation_matrix([1, 0, 0]))
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    mirror[1, 3] = 2.0
    scene.add_geometry(box(), transform=mirror)
    path = tmp_path / "two.glb"
    scene.export(path)
    model = load_cad(path)
    np.testing.assert_allclose(model.bounds, [[-0.1, -0.1, -0.2], [1.1, 2.15, 0.2]], atol=1e-6)
    volume = mesh.signed_volume(model.vertices, model.faces)
    assert volume == pytest.approx(
        ball.volume + box().volume, rel=1e-5
    )  # the mirrored part is not inside out


# Normals


def test_a_box_shades_flat_and_a_ball_smooth() -> None:
    model = load_cad(box(), "m")
    assert model.vertices.shape == (24, 3)
    np.testing.assert_allclose(np.sort(np.abs(model.normals), axis=1), np.tile([0, 0, 1], (24, 1)), atol=1e-6)
    ball = load_cad(trimesh.creation.icosphere(subdivisions=3, radius=0.5), "m")
    assert len(ball.vertices) == 642
    np.testing.assert_allclose(ball.normals, ball.vertices / 0.5, atol=5e-3)


@pytest.mark.parametrize(("sections", "per_corner"), [(8, 3), (10, 2)])
def test_a_prism_is_creased_above_forty_degrees(sections: int, per_corner: int) -> None:
    """Faces of a prism meet at 45 degrees with 8 sides and at 36 with 10; the caps always at 90."""
    model = load_cad(trimesh.creation.cylinder(0.1, 0.3, sections=sections), "m")
    assert len(model.vertices) == 2 * (sections * per_corner + 1)


# Colours


def test_vertex_colours_of_a_ply(tmp_path: Path) -> None:
    part = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    rgb = np.random.default_rng(0).integers(0, 256, (len(part.vertices), 3)).astype(np.uint8)
    part.visual.vertex_colors = rgb
    part.export(tmp_path / "ball.ply")
    model = load_cad(tmp_path / "ball.ply", "m")
    assert model.colors is not None
    index = np.linalg.norm(model.vertices[:, None] - part.vertices[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.round(255 * model.colors), rgb[index])


def test_face_colours_end_at_sharp_lines() -> None:
    part = box()
    part.visual.face_colors = np.repeat(np.eye(3)[[0, 1, 2, 0, 1, 2]] * 255, 2, axis=0).astype(np.uint8)
    model = load_cad(part, "m")
    assert model.colors is not None
    corner = model.colors[model.faces]
    np.testing.assert_array_equal(corner, np.repeat(corner[:, :1], 3, axis=1))
    np.testing.assert_array_equal(corner[:, 0], np.asarray(part.visual.face_colors)[:, :3] / 255)


def square(folder: Path, material: str, suffix: str = "") -> Path:
    """A closed, flat box whose top carries the unit square of the texture."""
    text = f"mtllib m{suffix}.mtl\n"
    text += "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv .5 .5 -1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl skin\n"
    text += "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 2/2 1/1 5/1\nf 3/3 2/2 5/1\nf 4/4 3/3 5/1\nf 1/1 4/4 5/1\n"
    write(folder / f"m{suffix}.mtl", f"newmtl skin\n{material}\n")
    return write(folder / f"square{suffix}.obj", text)


def test_an_obj_keeps_its_texture_with_v_upward(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8], pixels[:4, 8:], pixels[4:, :8], pixels[4:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 90
    Image.fromarray(pixels).save(tmp_path / "skin.png")
    model = load_cad(square(tmp_path, "Kd 1 1 1\nmap_Kd skin.png"), "m")
    assert model.colors is None
    assert model.texture is not None
    assert model.uv is not None
    np.testing.assert_array_equal(model.texture, pixels)
    top = model.vertices[:, 2] == 0
    np.testing.assert_allclose(model.uv[top], model.vertices[top, :2], atol=1e-6)  # on top, uv = xy
    spots = np.array([[0.1, 0.9], [0.9, 0.9], [0.1, 0.1], [0.9, 0.1], [1.1, 0.9], [0.1, -0.1]])
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90], [255, 0, 0], [255, 0, 0]]) / 255
    np.testing.assert_allclose(sample_texture(model.texture, spots), expected, atol=1e-6)
    baked = model.baked()
    assert baked.colors is not None
    assert baked.texture is None


def test_missing_materials_and_textures_are_stated(tmp_path: Path) -> None:
    with pytest.warns(CadWarning, match=r"the texture 'gone\.png' is missing"):
        model = load_cad(square(tmp_path, "Kd 0.2 0.4 0.6\nmap_Kd gone.png"), "m")
    assert model.colors is not None
    np.testing.assert_allclose(model.colors, np.tile([0.2, 0.4, 0.6], (len(model.colors), 1)), atol=1 / 255)
    path = square(tmp_path, "", "2")
    (tmp_path / "m2.mtl").unlink()
    with pytest.warns(CadWarning, match=r"the material file 'm2\.mtl' is missing"):
        assert load_cad(path, "m").colors is None


@pytest.mark.parametrize("name", ["-s 1 1 1 skin.png", "sub\\skin.png"])
def test_names_of_textures_that_are_not_understood_are_stated(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, tmp_path / "sub"):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (255, 0, 0)).save(folder / "skin.png")
    with pytest.warns(CadWarning, match=r"the texture '.*skin\.png' was not understood"):
        model = load_cad(square(tmp_path, f"Kd 0.2 0.4 0.6\nmap_Kd {name}"), "m")
    assert model.texture is None
    assert not any("missing" in text for text in model.warnings)


def test_a_missing_texture_of_a_ply_is_stated(tmp_path: Path) -> None:
    part = textured((250, 10, 10), 0.0)
    lines = [
        "ply",
        "format ascii 1.0",
        "comment TextureFile skin of it.png",
        f"element vertex {len(part.vertices)}",
    ]
    lines += [f"property float {k}" for k in ("x", "y", "z", "s", "t")]
    lines += [f"element face {len(part.faces)}", "property list uchar int vertex_indices", "end_header"]
    rows = np.column_stack([part.vertices, part.visual.uv])
    lines += [" ".join(map(str, row)) for row in rows.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in part.faces.tolist()]
    path = write(tmp_path / "part.ply", "\n".join(lines) + "\n")
    with pytest.warns(CadWarning, match=r"the texture 'skin of it\.png' is missing: plain colour instead"):
        assert load_cad(path, "m").texture is None
    Image.new("RGB", (4, 4), (250, 10, 10)).save(tmp_path / "skin of it.png")
    model = load_cad(path, "m")
    assert model.texture is not None
    assert model.warnings == ()


def textured(color: tuple[int, int, int], offset: float, repeat: float = 1.0) -> trimesh.Trimesh:
    part = box()
    part.apply_translation([offset, 0, 0])
    image = Image.fromarray(np.full((8, 8, 3), color, np.uint8))
    uv = repeat * (part.vertices[:, 1:] / [0.3, 0.4] + 0.5)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    part.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return part


def test_several_textures_of_a_glb_become_one(tmp_path: Path) -> None:
    plain = box()
    plain.apply_translation([2, 0, 0])
    plain.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[0.5, 0.0, 1.0, 1.0])
    )
    scene = trimesh.Scene([textured((250, 10, 10), 0.0), textured((10, 250, 10), 1.0), plain])
    scene.export(tmp_path / "three.glb")
    model = load_cad(tmp_path / "three.glb")
    assert model.texture is not None
    assert model.warnings == ()
    colors = model.baked().colors
    assert colors is not None
    part = np.round(model.vertices[:, 0]).astype(int)
    # The factor of glTF is linear: 128 / 255 is 188 / 255 in sRGB.
    np.testing.assert_array_equal(
        np.round(255 * colors), np.array([(250, 10, 10), (10, 250, 10), (188, 0, 255)])[part]
    )


def test_textures_that_cannot_share_are_baked_with_a_warning() -> None:
    scene = trimesh.Scene([textured((250, 10, 10), 0.0, repeat=3.0), textured((10, 250, 10), 1.0)])
    with pytest.warns(CadWarning, match="baked into vertex colours, because .* repeats"):
        model = load_cad(scene, "m")
    assert model.texture is None
    assert model.colors is not None
    assert {tuple(c) for c in np.round(255 * model.colors)} == {(250, 10, 10), (10, 250, 10)}


def test_one_repeating_texture_stays() -> None:
    model = load_cad(textured((1, 2, 3), 0.0, repeat=3.0), "m")
    assert model.uv is not None
    assert model.uv.max() == pytest.approx(3.0)


# Measures


def test_diameter_is_the_largest_distance() -> None:
    points = np.random.default_rng(3).normal(size=(300, 3))
    assert mesh.diameter(points) == pytest.approx(pdist(points).max(), rel=1e-12)
    points[:, 2] = 1.0
    assert mesh.diameter(points) == pytest.approx(pdist(points).max(), rel=1e-12)
    points[:, 1] = 2.0
    assert mesh.diameter(points) == pytest.approx(np.ptp(points[:, 0]), rel=1e-12)


@pytest.mark.parametrize("number", [1, 5, 9, 10, 12])
def test_diameters_agree_with_the_bop_files(number: int) -> None:
    folder = DATA / "lmo"
    if not folder.is_dir():
        pytest.skip(f"no LM-O models in {folder}")
    info = json.loads((folder / "models_eval" / "models_info.json").read_text())[str(number)]
    model = quiet(folder / "models" / f"obj_{number:06d}.ply", "mm")
    assert 1000 * model.diameter == pytest.approx(info["diameter"], abs=2e-3)
    np.testing.assert_allclose(
        1000 * model.bounds[0], [info["min_x"], info["min_y"], info["min_z"]], atol=2e-3
    )
    np.testing.assert_allclose(
        1000 * model.extents, [info["size_x"], info["size_y"], info["size_z"]], atol=2e-3
    )


def test_samples_lie_on_the_surface_in_proportion_to_area() -> None:
    model = load_cad(box((1, 2, 3)), "m")
    points, face = model.sample_surface(4400, np.random.default_rng(0))
    side = np.abs(np.abs(points) - [0.5, 1.0, 1.5]) < 1e-12
    assert side.any(axis=1).all()
    np.testing.assert_allclose(side.sum(axis=0), [2400, 1200, 800], atol=12)  # 12 : 6 : 4 of 22 square metres
    normal = mesh.face_areas_normals(model.vertices, model.faces)[1][face]
    assert (np.einsum("ni,ni->n", points, normal) > 0).all()
    again, _ = model.sample_surface(4400, np.random.default_rng(0))
    np.testing.assert_array_equal(points, again)


# Content hash


def test_content_hash_is_the_same_everywhere(tmp_path: Path) -> None:
    model = load_cad(write(tmp_path / "a.obj", TETRA), "m")
    assert model.content_hash == "a0efb72725fa2559dfc44275555ffea65b584c97515263ce7e5a9f1282723d5f"
    assert load_cad(write(tmp_path / "b.obj", TETRA), "m").content_hash == model.content_hash
    scaled = TETRA.replace("1 0 0", "1000 0 0").replace("0 1 0", "0 1000 0").replace("0 0 1", "0 0 1000")
    assert load_cad(write(tmp_path / "c.obj", scaled), "mm").content_hash == model.content_hash
    assert load_cad(write(tmp_path / "d.obj", TETRA), "cm").content_hash != model.content_hash


def test_content_hash_sees_colours() -> None:
    plain, red, green = box(), box(), box()
    red.visual.face_colors = [255, 0, 0, 255]
    green.visual.face_colors = [0, 255, 0, 255]
    assert len({load_cad(part, "m").content_hash for part in (plain, red, green)}) == 3


# Simplification


def test_simplified_keeps_shape_and_borders_of_colour() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.1)
    upper = ball.triangles_center[:, 2] > 0
    ball.visual.face_colors = np.where(upper[:, None], [255, 0, 0, 255], [0, 0, 255, 255]).astype(np.uint8)
    model = load_cad(ball, "m")
    light = model.simplified(800)
    assert 700 <= len(light.faces) <= 800
    assert light.is_watertight
    assert light.diameter == pytest.approx(model.diameter, rel=0.01)
    assert light.content_hash == model.content_hash
    assert light.colors is not None
    height, corner = light.vertices[light.faces][:, :, 2], light.colors[light.faces]
    whole = (np.abs(height) > 0.005).all(axis=1) & (np.ptp(np.sign(height), axis=1) == 0)  # on one side
    assert whole.mean() > 0.8
    np.testing.assert_allclose(corner[whole][:, :, 0], height[whole] > 0, atol=0.02)
    assert (np.ptp(corner, axis=1).max(axis=1) > 0.5).mean() < 0.075  # few faces blend
    np.testing.assert_allclose(light.normals, light.vertices / 0.1, atol=0.25)


def test_simplified_returns_a_light_model_unchanged_and_bakes_textures() -> None:
    model = load_cad(textured((10, 200, 30), 0.0).subdivide().subdivide(), "m")
    assert model.simplified(1000) is model
    light = model.simplified(60)
    assert len(light.faces) <= 60
    assert light.texture is None
    assert light.colors is not None
    np.testing.assert_allclose(255 * light.colors, np.tile([10, 200, 30], (len(light.colors), 1)), atol=0.51)
    with pytest.raises(ValueError, match="max_faces: got 3"):
        model.simplified(3)


def test_trimesh_gives_the_same_arrays_in_metres() -> None:
    part = box()
    part.visual.face_colors = [10, 20, 30, 255]
    model = load_cad(part, "m")
    again = model.trimesh()
    np.testing.assert_array_equal(again.vertices, model.vertices)
    np.testing.assert_array_equal(again.faces, model.faces)
    np.testing.assert_array_equal(again.visual.vertex_colors[:, :3], np.tile([10, 20, 30], (24, 1)))
    assert load_cad(again).content_hash == load_cad(again, "m").content_hash
