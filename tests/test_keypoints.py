"""choose_keypoints: on the surface, spread, seen, distinctive, never flat, at home with symmetries."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from geopose.cad import CadModel, CadWarning, choose_keypoints, find_symmetries, load_cad
from geopose.cad.keypoints import _visibility
from geopose.cad.symmetry import front

DATA = Path(os.environ.get("GEOPOSE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def linemod(number: int) -> CadModel:
    path = DATA / "lmo" / "models_eval" / f"obj_{number:06d}.ply"
    if not path.is_file():
        pytest.skip(f"no LM-O model {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CadWarning)
        return load_cad(path, "mm")


def off_surface(model: CadModel, points: NDArray) -> float:
    """Largest distance of `points` to the mesh, by trimesh, in diameters."""
    mesh = model.trimesh()
    mesh.apply_scale(100.0 / model.diameter)  # trimesh compares with absolute tolerances
    distance = trimesh.proximity.closest_point(mesh, points * 100.0 / model.diameter)[1]
    return float(distance.max()) / 100.0


def separation(points: NDArray) -> float:
    """Smallest distance between two of `points`."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    return float(distance[np.triu_indices(len(points), 1)].min())


@pytest.mark.parametrize("name", ["xwing", "iss", "car"])
@pytest.mark.parametrize("count", [8, 16])
def test_keypoints_of_the_built_in_objects(name: str, count: int) -> None:
    model = load_cad(name)
    points = choose_keypoints(model, count)
    assert points.shape == (count, 3)
    assert points.dtype == np.float64
    assert off_surface(model, points) < 1e-9
    assert separation(points) > 0.08 * model.diameter
    thickness = np.linalg.svd(points - points.mean(axis=0))[1]
    assert thickness[2] > 0.05 * thickness[0]  # not coplanar
    np.testing.assert_array_equal(points, choose_keypoints(model, count))


@pytest.mark.parametrize("number", [1, 5, 9, 12])
def test_keypoints_of_linemod(number: int) -> None:
    """Sixteen points spread over an object of unit diameter keep a fifth of it between them."""
    model = linemod(number)
    points = choose_keypoints(model)
    assert points.shape == (16, 3)
    assert off_surface(model, points) < 1e-9
    assert separation(points) > 0.18 * model.diameter
    assert (np.ptp(points, axis=0) > 0.8 * model.extents).all()  # they span the object
    thickness = np.linalg.svd(points - points.mean(axis=0))[1]
    assert thickness[2] > 0.3 * thickness[0]


def test_the_corners_of_a_box_are_met_exactly() -> None:
    model = load_cad(trimesh.creation.box((0.2, 0.3, 0.4)), "m")
    corners = np.unique(model.vertices, axis=0)
    points = choose_keypoints(model, 8, find_symmetries(model))
    np.testing.assert_allclose(np.unique(points.round(9), axis=0), corners, atol=1e-9)
    alone = choose_keypoints(model, 8)
    met = np.linalg.norm(alone[:, None] - corners[None], axis=2).min(axis=1) == 0.0
    assert met.sum() >= 4


def test_the_tip_of_a_cone_is_a_keypoint() -> None:
    model = load_cad(trimesh.creation.cone(0.1, 0.4), "m")
    points = choose_keypoints(model, 6)
    assert np.linalg.norm(points - [0, 0, 0.4], axis=1).min() < 1e-9


def test_hidden_places_are_not_chosen() -> None:
    """A small box inside a larger one is surface too, but nobody sees it."""
    outer, inner = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((0.6, 0.6, 0.6))
    model = load_cad(trimesh.util.concatenate([outer, inner]), "m")
    points = choose_keypoints(model, 24)
    np.testing.assert_allclose(np.abs(points).max(axis=1), 0.5)


def test_visibility_of_a_ball_and_of_what_is_inside() -> None:
    """A place on a ball is seen from half of all directions, one inside of it from none."""
    ball = load_cad(trimesh.creation.icosphere(subdivisions=4, radius=0.5), "m")
    outside, _ = ball.sample_surface(20_000, np.random.default_rng(0))
    sight = _visibility(np.concatenate([outside, 0.5 * outside[:500]]), 1.0)
    assert 0.3 < sight[:-500].mean() < 0.5  # at grazing angles it does not count as seen
    assert sight[-500:].max() < 0.05


def test_colour_attracts_keypoints() -> None:
    """On a smooth ball the border of a painted cap is the only place to tell from others."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    cap = ball.triangles_center[:, 2] > 0.3
    ball.visual.face_colors = np.where(cap[:, None], [255, 40, 0, 255], [60, 60, 60, 255]).astype(np.uint8)
    near = [
        (np.abs(choose_keypoints(model, 16)[:, 2] - 0.3) < 0.06).sum()
        for model in (
            load_cad(ball, "m"),
            load_cad(trimesh.creation.icosphere(subdivisions=5, radius=0.5), "m"),
        )
    ]
    assert near[0] >= 5
    assert near[0] > near[1]


@pytest.mark.parametrize("height", [0.02, 0.002])
def test_keypoints_of_a_plate_are_not_coplanar(height: float) -> None:
    """A slab with a small block on it: farthest points alone would all lie on the slab."""
    slab, block = trimesh.creation.box((1, 1, height)), trimesh.creation.box((0.1, 0.1, 0.3))
    block.apply_translation([0.1, 0.05, 0.15 + 0.5 * height])
    model = load_cad(trimesh.util.concatenate([slab, block]), "m")
    points = choose_keypoints(model, 6)
    centred = points - points.mean(axis=0)
    off_plane = np.abs(centred @ np.linalg.svd(centred)[2][2])
    assert off_plane.max() > 0.05


def test_a_flat_mesh_gives_flat_keypoints() -> None:
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    with pytest.warns(CadWarning, match="open"):
        model = load_cad(sheet, "m")
    points = choose_keypoints(model, 6)
    np.testing.assert_array_equal(points[:, 2], 0.0)
    assert separation(points) > 0.3


def images(points: NDArray, motion: NDArray) -> NDArray[np.int64]:
    """Index of the keypoint nearest to each moved one, which must be there."""
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    distance = np.linalg.norm(moved[:, None] - points[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6
    return distance.argmin(axis=1)


@pytest.mark.parametrize(
    ("part", "count"),
    [
        (trimesh.creation.box((0.2, 0.3, 0.4)), 16),
        (trimesh.creation.box((0.2, 0.2, 0.4)), 16),
        (trimesh.creation.box((0.3, 0.3, 0.3)), 8),
        (trimesh.creation.cylinder(0.1, 0.2, sections=6), 24),
    ],
)
def test_a_discrete_symmetry_only_renames_the_keypoints(part: trimesh.Trimesh, count: int) -> None:
    model = load_cad(part, "m")
    symmetries = find_symmetries(model)
    points = choose_keypoints(model, count, symmetries)
    assert points.shape == (count, 3)
    assert len(symmetries.discrete) > 1
    for motion in symmetries.discrete:
        np.testing.assert_array_equal(np.sort(images(points, motion)), np.arange(count))
    assert separation(points) > 0.08 * model.diameter


def test_the_egg_box_is_renamed_by_its_half_turn() -> None:
    model = linemod(10)
    symmetries = find_symmetries(model)
    points = choose_keypoints(model, 16, symmetries)
    renamed = images(points, symmetries.discrete[1])
    np.testing.assert_array_equal(renamed[renamed], np.arange(16))
    assert (renamed != np.arange(16)).all()
    assert off_surface(model, points) < 0.025  # the half turn is only as exact as the scan


def test_a_count_that_fits_no_orbit_is_still_met() -> None:
    model = load_cad(trimesh.creation.box((0.3, 0.3, 0.3)), "m")
    points = choose_keypoints(model, 11, find_symmetries(model))
    assert points.shape == (11, 3)
    assert separation(points) > 0.05
    assert off_surface(model, points) < 1e-6


def test_keypoints_of_a_solid_of_revolution_face_the_camera() -> None:
    model = load_cad(trimesh.creation.cylinder(0.1, 0.3), "m")
    symmetries = find_symmetries(model)
    points = choose_keypoints(model, 16, symmetries)
    axis, point = symmetries.continuous[0]
    toward = (points - point) @ front(axis)
    assert toward.min() > -0.02 * model.diameter
    assert toward.max() > 0.09
    sideways = (points - point) @ np.cross(axis, front(axis))
    assert sideways.min() < -0.08  # both silhouettes
    assert sideways.max() > 0.08
    for motion in symmetries.discrete:  # upside down keeps that side
        images(points, motion)


def test_keypoints_of_a_ball_face_the_camera() -> None:
    model = load_cad(trimesh.creation.icosphere(subdivisions=3, radius=0.1), "m")
    points = choose_keypoints(model, 12, find_symmetries(model))
    assert points[:, 2].max() < 0.01
    assert separation(points) > 0.05


@pytest.mark.parametrize("count", [3, 4.5, "a", None, 100_000])
def test_other_counts_are_refused(count: Any) -> None:
    with pytest.raises(ValueError, match=f"count: got {count!r}, expected 4 to 1024"):
        choose_keypoints(load_cad(trimesh.creation.box(), "m"), count)
