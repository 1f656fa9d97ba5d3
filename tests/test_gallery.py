"""The built-in objects: size, colour, tessellation, keypoints, and that no pose looks like another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from geopose.cad.gallery import car, iss, xwing
from geopose.cad.gallery.parts import box, chamfered, divided, loft, revolve, tube
from geopose.cad.model import CadModel, load_cad

MAKERS = {"car": car, "iss": iss, "xwing": xwing}
LENGTHS = {
    "car": (4.5, 2.0, 1.5),
    "iss": (73.8, 109.0, 24.5),
    "xwing": (12.5, 11.6, 3.8),
}  # metres along x, y, z


@pytest.fixture(scope="module", params=sorted(MAKERS))
def model(request: pytest.FixtureRequest) -> CadModel:
    return MAKERS[request.param]()


def corners(model: CadModel) -> NDArray[np.float64]:
    return model.vertices[model.faces]


def distance_to_surface(model: CadModel, point: NDArray[np.float64]) -> float:
    """Distance of a point to the nearest triangle, by projection onto each plane or edge."""
    a, b, c = corners(model).transpose(1, 0, 2)
    n = np.cross(b - a, c - a)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    height = ((point - a) * n).sum(1)
    foot = point - height[:, None] * n
    inside = np.ones(len(a), dtype=bool)
    best = np.inf
    for p, q in ((a, b), (b, c), (c, a)):
        inside &= (np.cross(q - p, foot - p) * n).sum(1) >= 0
        s = np.clip(((point - p) * (q - p)).sum(1) / ((q - p) ** 2).sum(1), 0, 1)
        best = min(best, float(np.linalg.norm(p + s[:, None] * (q - p) - point, axis=1).min()))
    return min(best, float(np.abs(height[inside]).min(initial=np.inf)))


def test_size_is_true_and_origin_is_inside_the_box(model: CadModel) -> None:
    np.testing.assert_allclose(model.extents, LENGTHS[model.name], rtol=0.02)
    assert (model.bounds[0] < 0).all()
    assert (model.bounds[1] > 0).all()
    assert model.unit == "m"


def test_a_few_thousand_coloured_faces_without_warnings(model: CadModel) -> None:
    assert 2000 <= len(model.faces) <= 5000
    assert model.colors is not None
    assert len(np.unique(model.colors, axis=0)) >= 8
    assert model.warnings == ()
    assert model.is_watertight


def test_no_needles(model: CadModel) -> None:
    a, b, c = corners(model).transpose(1, 0, 2)
    edges = np.stack([np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))])
    doubled = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    aspect = edges.max(0) ** 2 / doubled
    assert np.median(aspect) < 4
    assert np.quantile(aspect, 0.95) < 20
    assert aspect.max() < 40


def test_no_coplanar_overlap(model: CadModel) -> None:
    points, face = model.sample_surface(1500, np.random.default_rng(0))
    a, b, c = corners(model).transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for start in range(0, len(points), 100):
        p, n = points[start : start + 100, None], normal[face[start : start + 100]]
        near = (np.abs(((p - a) * normal).sum(-1)) < 1e-4 * model.diameter) & (n @ normal.T > 0.999)
        near[np.arange(len(n)), face[start : start + 100]] = False
        row, other = np.nonzero(near)
        margin = np.full(len(row), np.inf)
        for u, v in ((a, b), (b, c), (c, a)):
            edge = v[other] - u[other]
            side = (np.cross(edge, p[row, 0] - u[other]) * normal[other]).sum(-1)
            margin = np.minimum(margin, side / np.linalg.norm(edge, axis=1))
        assert (margin <= 1e-3 * model.diameter).all(), points[start + row[np.argmax(margin)]]


def test_named_keypoints_lie_on_the_surface_and_are_spread(model: CadModel) -> None:
    points = np.array(list(model.named_keypoints.values()))
    assert len(points) >= 12
    assert max(distance_to_surface(model, p) for p in points) < 1e-5
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert gaps.min() > 0.005 * model.diameter
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    assert spread[2] > 0.05 * spread[0]


def test_left_keypoints_have_right_partners(model: CadModel) -> None:
    named = model.named_keypoints
    left = [key for key in named if key.endswith(("left", "port")) and key != "docking_port"]
    assert len(left) >= 4
    for key in left:
        x, y, z = named[key]
        assert y > 0
        partner = key.replace("left", "right").replace("port", "starboard")
        np.testing.assert_allclose(named[partner], (x, -y, z), atol=1e-5)


def test_no_turn_maps_the_object_onto_itself(model: CadModel) -> None:
    """Half and quarter turns about the axes move the colours or the surface of a good part of the object."""
    colors = np.asarray(model.colors)
    points, face = model.sample_surface(1200, np.random.default_rng(1))
    color = colors[model.faces[face]].mean(axis=1)
    for turn in ((-1, -1, 1), (-1, 1, -1), (1, -1, -1), (1, -1, 1)):
        moved = points * np.array(turn)
        gap = np.linalg.norm(moved[:, None] - points[None], axis=-1)
        nearest = gap.argmin(axis=1)
        other = np.linalg.norm(color - color[nearest], axis=1) > 0.25
        assert np.mean(other | (gap.min(axis=1) > 0.03 * model.diameter)) > 0.08, turn


def test_same_model_every_time(model: CadModel) -> None:
    assert load_cad(model.name).content_hash == model.content_hash


def test_xwing_content_hash_is_the_trained_one() -> None:
    assert xwing().content_hash == ("79e185fac8008a4bc0e70c0928cd2bc20b4e3b4f712b718e34d33c1eec3840f2")


def test_car_family_differs_in_paint_and_proportions() -> None:
    base = car()
    red = car(paint=(0.7, 0.05, 0.05), stripe=None)
    van = car(length=4.9, width=1.95, height=1.9, wheelbase=3.0, cabin_stations=(0.14, 0.26, 0.93, 0.985))
    assert len({base.content_hash, red.content_hash, van.content_hash}) == 3
    np.testing.assert_array_equal(red.bounds, base.bounds)
    np.testing.assert_allclose(van.extents, (5.0, 2.17, 1.95), rtol=0.02)
    wheels = [van.named_keypoints[f"wheel_{row}_left"][0] for row in ("front", "rear")]
    assert wheels[0] - wheels[1] == pytest.approx(3.0)
    assert van.warnings == ()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"length": -1.0}, "lengths"),
        ({"height": float("nan")}, "lengths"),
        ({"cabin_stations": (0.5, 0.4, 0.7, 0.9)}, "cabin"),
        ({"wheel_radius": 0.6}, "wheel_radius"),
        ({"wheelbase": 4.0}, "wheelbase"),
    ],
)
def test_car_refuses_what_is_not_a_car(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        car(**options)


def test_loft_and_revolve_make_closed_shells_of_the_right_volume() -> None:
    white = (1.0, 1.0, 1.0)
    cone = revolve([(0.0, 0.0, white), (2.0, 1.0, white), (2.0, 0.0, white)], 64, step=0.25)
    solids = {
        2 * np.pi / 3: cone,
        6.0: box((1.0, 2.0, 3.0), (5.0, 0.0, 0.0), white, step=0.5).mirrored(0),
        3.0: loft([chamfered(x, 0.5, 0.0, 1.0, 0.0, 0.0) for x in (0.0, 1.0, 3.0)], white),
        np.pi * 0.25 * np.sqrt(3): tube((1, 0, 0), (0, 1, 1), 0.5, white, sides=64, cuts=3),
    }
    for volume, part in solids.items():
        a, b, c = part.vertices[part.faces].transpose(1, 0, 2)
        assert np.einsum("ij,ij->", np.cross(a, b), c) / 6 == pytest.approx(volume, rel=5e-3)
        edges = np.concatenate([part.faces[:, [0, 1]], part.faces[:, [1, 2]], part.faces[:, [2, 0]]])
        assert {tuple(e) for e in edges} == {tuple(e[::-1]) for e in edges}


def test_divided_keeps_the_stations() -> None:
    np.testing.assert_allclose(divided((3.0, 2.0, 1.9), 0.5), (3.0, 2.5, 2.0, 1.9))


def test_loft_refuses_rings_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match="sections"):
        loft(np.zeros((1, 4, 3)), (0.0, 0.0, 0.0))
