"""find_symmetries: groups of known solids, approximate and coloured objects, and what breaks a symmetry."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from geopose.cad import CadModel, CadWarning, Symmetries, find_symmetries, load_cad, mirror_pairs
from geopose.cad.symmetry import even_rotations

DATA = Path(os.environ.get("GEOPOSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
PLACE = np.eye(4)
PLACE[:3, :3], PLACE[:3, 3] = Rotation.from_rotvec([0.5, -0.9, 1.4]).as_matrix(), (0.4, 0.1, -0.2)


def tetrahedron() -> trimesh.Trimesh:
    corners = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])


def octahedron() -> trimesh.Trimesh:
    return trimesh.convex.convex_hull(np.concatenate([np.eye(3), -np.eye(3)]))


def placed(part: trimesh.Trimesh) -> CadModel:
    """The part somewhere, turned anyhow: nothing is found only because it lies along the axes."""
    part = part.copy()
    part.apply_transform(PLACE)
    return quiet(part, "m")


def quiet(*arguments: object) -> CadModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CadWarning)
        return load_cad(*arguments)  # type: ignore[arg-type]


def in_group(matrix: NDArray, group: NDArray, tolerance: float = 1e-6) -> bool:
    return bool(np.abs(group - matrix).max(axis=(1, 2)).min() < tolerance)


SOLIDS = {
    "box": (trimesh.creation.box((1, 2, 3)), 4),
    "square prism": (trimesh.creation.box((1, 1, 3)), 8),
    "cube": (trimesh.creation.box((1, 1, 1)), 24),
    "tetrahedron": (tetrahedron(), 12),
    "octahedron": (octahedron(), 24),
    "icosahedron": (trimesh.creation.icosahedron(), 60),
    "triangular prism": (trimesh.creation.cylinder(1, 0.5, sections=3), 6),
    "pentagonal prism": (trimesh.creation.cylinder(1, 0.5, sections=5), 10),
    "hexagonal prism": (trimesh.creation.cylinder(1, 3, sections=6), 12),
    "hexagonal pyramid": (trimesh.creation.cone(1, 2, sections=6), 6),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_groups_of_solids(name: str) -> None:
    """Orders of the rotation groups of the textbook, exact and closed, the identity first."""
    part, order = SOLIDS[name]
    model = placed(part)
    found = find_symmetries(model)
    assert found.continuous == ()
    assert found.discrete.shape == (order, 4, 4)
    np.testing.assert_array_equal(found.discrete[0], np.eye(4))
    corners = np.unique(model.vertices.round(9), axis=0)
    for motion in found.discrete:
        moved = corners @ motion[:3, :3].T + motion[:3, 3]
        nearest = np.linalg.norm(moved[:, None] - corners[None], axis=2).min(axis=1)
        assert nearest.max() < 1e-5 * model.diameter
    products = np.einsum("aij,bjk->abik", found.discrete, found.discrete).reshape(-1, 4, 4)
    assert all(in_group(product, found.discrete) for product in products[:: max(1, len(products) // 60)])
    np.testing.assert_allclose(np.linalg.det(found.discrete[:, :3, :3]), 1.0)


ROUND = {
    "cylinder": (trimesh.creation.cylinder(1, 3), 2),
    "cylinder with the moments of a ball": (trimesh.creation.cylinder(1, 1.6), 2),
    "cone": (trimesh.creation.cone(1, 2), 1),
    "capsule": (trimesh.creation.capsule(1, 1), 2),
    "torus": (trimesh.creation.torus(1, 0.3), 2),
    "tube": (trimesh.creation.annulus(0.5, 1, 1), 2),
}


@pytest.mark.parametrize("name", ROUND)
def test_solids_of_revolution(name: str) -> None:
    part, discrete = ROUND[name]
    model = placed(part)
    found = find_symmetries(model)
    assert len(found.continuous) == 1
    axis, point = found.continuous[0]
    expected = PLACE[:3, 2]
    np.testing.assert_allclose(abs(axis @ expected), 1.0, atol=1e-5)
    assert np.linalg.norm(np.cross(point - PLACE[:3, 3], expected)) < 2e-3 * model.diameter
    assert len(found.discrete) == discrete
    if discrete == 2:  # upside down
        flip, middle = found.discrete[1], PLACE[:3, 3]
        np.testing.assert_allclose(flip[:3, :3] @ axis, -axis, atol=1e-9)
        np.testing.assert_allclose(flip[:3, :3] @ middle + flip[:3, 3], middle, atol=2e-3 * model.diameter)


def test_a_ball_has_three_axes() -> None:
    found = find_symmetries(placed(trimesh.creation.icosphere(subdivisions=4, radius=0.3)))
    assert len(found.continuous) == 3
    np.testing.assert_allclose([axis for axis, _ in found.continuous], np.eye(3))
    np.testing.assert_allclose(
        [point for _, point in found.continuous], np.tile(PLACE[:3, 3], (3, 1)), atol=1e-6
    )
    assert len(found.discrete) == 1


def test_an_object_without_symmetry() -> None:
    parts = [trimesh.creation.box((1, 2, 3)), trimesh.creation.box((0.3, 0.3, 1.5))]
    parts[1].apply_translation([0.6, 0.8, 1.2])
    found = find_symmetries(placed(trimesh.util.concatenate(parts)))
    assert not found.is_symmetric


def test_a_mirror_image_is_not_a_symmetry() -> None:
    """An isosceles wedge with a nose can be mirrored, but not turned onto itself."""
    hull = trimesh.convex.convex_hull([[0, -1, 0], [0, 1, 0], [3, 0, 0], [0, 0, 1.2], [1, 0, 1.0]])
    assert len(find_symmetries(placed(hull)).discrete) == 1


# Details and tolerance


@pytest.mark.parametrize(("height", "order"), [(0.02, 4), (0.3, 1)])
def test_a_knob_breaks_a_symmetry_when_it_can_be_seen(height: float, order: int) -> None:
    """The diameter is 3.7: 0.02 is 0.5 % of it and 0.3 is 8 %."""
    knob = trimesh.creation.box((0.3, 0.3, 2 * height))
    knob.apply_translation([0.25, 0.7, 1.5])
    part = trimesh.util.concatenate([trimesh.creation.box((1, 2, 3)), knob])
    assert len(find_symmetries(placed(part)).discrete) == order


@pytest.mark.parametrize("folder", ["models", "models_eval"])
@pytest.mark.parametrize("number", [1, 5, 9, 10, 12])
def test_objects_of_linemod(number: int, folder: str) -> None:
    """The egg box has the half turn of `models_info.json`, the others nothing, coloured or not."""
    path = DATA / "lmo" / folder / f"obj_{number:06d}.ply"
    if not path.is_file():
        pytest.skip(f"no LM-O model {path}")
    model = quiet(path, "mm")
    found = find_symmetries(model)
    assert found.continuous == ()
    info = json.loads((DATA / "lmo" / "models_eval" / "models_info.json").read_text())[str(number)]
    expected = np.asarray(info.get("symmetries_discrete", [])).reshape(-1, 4, 4)
    assert len(found.discrete) == 1 + len(expected)
    for motion in expected:
        motion[:3, 3] /= 1000.0
        apart = model.vertices @ (motion - found.discrete[1])[:3, :3].T + (motion - found.discrete[1])[:3, 3]
        assert (
            np.linalg.norm(apart, axis=1).max() < 0.04 * model.diameter
        )  # within the unevenness of the scan
        assert np.trace(found.discrete[1][:3, :3]) == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize("name", ["xwing", "iss", "car"])
def test_the_built_in_objects_have_none(name: str) -> None:
    model = load_cad(name)
    assert not find_symmetries(model).is_symmetric
    assert not find_symmetries(model, use_color=False).is_symmetric


# Colour


def painted(part: trimesh.Trimesh, where: NDArray) -> trimesh.Trimesh:
    part = part.copy()
    part.visual.face_colors = np.where(where[:, None], [220, 30, 30, 255], [90, 90, 90, 255]).astype(np.uint8)
    return part


def test_a_coloured_face_leaves_a_cube_four_turns() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    model = placed(painted(cube, cube.triangles_center[:, 2] > 0.49))
    found = find_symmetries(model)
    assert len(found.discrete) == 4
    axis = PLACE[:3, 2]
    np.testing.assert_allclose(found.discrete[:, :3, :3] @ axis, np.tile(axis, (4, 1)), atol=1e-6)
    assert len(find_symmetries(model, use_color=False).discrete) == 24


def test_a_cylinder_with_a_coloured_half_can_still_turn() -> None:
    cylinder = trimesh.creation.cylinder(1, 3, sections=48).subdivide().subdivide()
    found = find_symmetries(placed(painted(cylinder, cylinder.triangles_center[:, 2] > 0)))
    assert len(found.continuous) == 1
    assert len(found.discrete) == 1  # not upside down


def test_a_marking_on_its_side_leaves_a_cylinder_nothing() -> None:
    cylinder = trimesh.creation.cylinder(1, 3, sections=48).subdivide().subdivide()
    x, y, z = cylinder.triangles_center.T
    model = placed(painted(cylinder, (x > 0.8) & (np.abs(y) < 0.5) & (z > 0.2)))
    assert not find_symmetries(model).is_symmetric
    assert len(find_symmetries(model, use_color=False).continuous) == 1


def test_faint_differences_of_colour_are_shading() -> None:
    box = trimesh.creation.box((1, 2, 3))
    box.visual.face_colors = np.tile(np.linspace(100, 130, 12)[:, None], (1, 4)).astype(np.uint8)
    assert len(find_symmetries(placed(box)).discrete) == 4


# The type


def test_expand_turns_a_continuous_axis_in_steps() -> None:
    axis, point = np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 0.0])
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    flip[:3, 3] = [0.0, 4.0, 0.0]
    full = Symmetries(np.stack([np.eye(4), flip]), ((axis, point),)).expand(steps=8)
    assert full.shape == (16, 4, 4)
    np.testing.assert_array_equal(full[0], np.eye(4))
    np.testing.assert_allclose(full[:8, :3, :3] @ point + full[:8, :3, 3], np.tile(point, (8, 1)), atol=1e-12)
    quarter = full[2]
    np.testing.assert_allclose(quarter[:3, :3] @ [2, 2, 5] + quarter[:3, 3], [1, 3, 5], atol=1e-12)
    products = np.einsum("aij,bjk->abik", full, full).reshape(-1, 4, 4)
    assert all(in_group(product, full, 1e-9) for product in products)


def test_expand_covers_the_rotations_of_a_ball_evenly() -> None:
    around = tuple((axis, np.ones(3)) for axis in np.eye(3))
    full = Symmetries(np.eye(4)[None], around).expand(steps=24)
    assert full.shape == (576, 4, 4)
    np.testing.assert_array_equal(full[0], np.eye(4))
    np.testing.assert_allclose(full[:, :3, :3] @ np.ones(3) + full[:, :3, 3], np.ones((576, 3)), atol=1e-12)
    probes = Rotation.random(200, rng=np.random.default_rng(0)).as_matrix()
    trace = np.einsum("aij,bij->ab", probes, even_rotations(576)).max(axis=1)
    assert np.rad2deg(np.arccos((trace - 1) / 2)).max() < 35.0


def test_json_round_trip() -> None:
    found = find_symmetries(placed(trimesh.creation.cylinder(1, 3)))
    text = json.dumps(found.to_json())
    for again in (Symmetries.from_json(text), Symmetries.from_json(json.loads(text))):
        np.testing.assert_array_equal(again.discrete, found.discrete)
        np.testing.assert_array_equal(np.stack(again.continuous[0]), np.stack(found.continuous[0]))
    with pytest.raises(ValueError, match=r"discrete: got shape \(4, 4\)"):
        Symmetries.from_json({"discrete": np.eye(4).tolist(), "continuous": []})


def test_the_same_mesh_gives_the_same_bits() -> None:
    model = placed(trimesh.creation.cylinder(1, 3, sections=6))
    np.testing.assert_array_equal(find_symmetries(model).discrete, find_symmetries(model).discrete)


def test_mirror_pairs_name_left_and_right() -> None:
    wing, fin = trimesh.creation.box((1, 5, 0.2)), trimesh.creation.box((0.5, 0.2, 1.5))
    wing.apply_translation([-1, 0, 0])
    fin.apply_translation([-1.7, 0, 1])
    part = trimesh.util.concatenate([trimesh.creation.box((4, 1, 1)), wing, fin])
    keypoints = [[2, 0.0, 0.5], [-1, 2.5, 0], [-1.7, 0, 1.7], [-1, -2.5, 0], [1.5, 0.5, 0], [1.5, -0.5, 0]]
    assert mirror_pairs(load_cad(part, "m"), keypoints) == [(1, 3), (4, 5)]
