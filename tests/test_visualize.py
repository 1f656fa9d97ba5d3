from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from numpy.testing import assert_array_equal
from PIL import Image

from geopose import visualize
from geopose.cad.model import CadModel, load_cad
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

SIZE = 1.0
CAMERA = Camera(200.0, 200.0, 79.5, 59.5, (160, 120))
POSE = Pose(np.eye(3), np.array([0.0, 0.0, 4.5]))


@pytest.fixture(scope="module")
def box() -> CadModel:
    """A box whose front face is a square of one metre at z = 4 in `POSE`: 50 pixels wide, 55 ... 105 by 35 ... 85."""
    return load_cad(trimesh.creation.box((SIZE, SIZE, SIZE)), unit="m")


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((120, 160, 3), 100, np.uint8)


def test_outline_lies_on_the_projected_edges(box: CadModel) -> None:
    lines = visualize.outline(box, CAMERA, POSE)
    assert lines.shape == (120, 160)
    ys, xs = np.nonzero(lines > 0.2)
    distance = np.minimum(np.abs(np.abs(xs - 79.5) - 25), np.abs(np.abs(ys - 59.5) - 25))
    assert distance.max() <= 1.0
    assert (np.abs(xs - 79.5).max(), np.abs(ys - 59.5).max()) == (25.5, 25.5)
    # every row of the square has its left and its right side
    assert (lines[40:80, 53:57].max(1) > 0.4).all()
    assert (lines[40:80, 103:107].max(1) > 0.4).all()
    assert lines[40:80, 60:100].max() == 0, "a flat face has no lines"


def test_outline_shows_creases_inside_of_the_silhouette(box: CadModel) -> None:
    turn = Pose.from_rvec_tvec(np.array([0.0, np.pi / 4, 0.0]), np.array([0.0, 0.0, 4.5]))
    lines = visualize.outline(box, CAMERA, turn)
    assert (lines[45:75, 78:82].max(1) > 0.4).all(), "the edge towards the camera"
    assert lines[45:75, 65:75].max() == 0


def test_outline_shows_steps_in_depth() -> None:
    far = trimesh.creation.box((2.0, 2.0, 0.1), trimesh.transformations.translation_matrix((0, 0, 1)))
    near = trimesh.creation.box((0.5, 0.5, 0.1))
    both = load_cad(trimesh.util.concatenate([far, near]), unit="m")
    lines = visualize.outline(both, CAMERA, POSE)
    side = 79.5 + 0.25 * 200 / 4.45
    assert (lines[55:65, int(side) - 1 : int(side) + 3].max(1) > 0.4).all()


def test_outline_of_nothing_is_empty(box: CadModel) -> None:
    behind = Pose(np.eye(3), np.array([0.0, 0.0, -5.0]))
    lines = visualize.outline(box, CAMERA, behind)
    assert lines.shape == (120, 160)
    assert lines.max() == 0


def test_drawings_leave_their_input_alone(box: CadModel, grey: np.ndarray) -> None:
    points = np.array([[20.0, 30.0]])
    drawings = [
        visualize.draw_pose(grey, box, CAMERA, POSE),
        visualize.draw_axes(grey, CAMERA, POSE, 1.0),
        visualize.draw_keypoints(grey, points, np.eye(2)[None]),
        visualize.draw_box(grey, np.array([10.0, 10, 50, 50])),
        visualize.draw_text(grey, ["text"]),
        visualize.draw_glow(grey, np.array([[[10.0, 10], [90, 90]]]), visualize.RED, 2.0),
        visualize.heat_overlay(grey, np.eye(8)),
    ]
    assert (grey == 100).all()
    for drawing in drawings:
        assert drawing.shape == grey.shape
        assert drawing.dtype == np.uint8
        assert (drawing != grey).any()


def test_drawn_pose_is_green_on_the_outline_and_untouched_far_from_it(
    box: CadModel, grey: np.ndarray
) -> None:
    drawing = visualize.draw_pose(grey, box, CAMERA, POSE, tint=0.0)
    red, green, blue = drawing[60, 102:108].astype(int).T
    assert (green - np.maximum(red, blue)).max() > 50
    assert_array_equal(drawing[:20], grey[:20])
    assert_array_equal(drawing[50:70, 70:90], grey[50:70, 70:90])


def test_axes_end_where_they_project(grey: np.ndarray) -> None:
    """At 4.5 m, 0.5 m along x are 22 pixels to the right; y points down."""
    drawing = visualize.draw_axes(grey, CAMERA, POSE, 0.5)
    assert tuple(drawing[60, 100]) == visualize.AXES[0]
    assert tuple(drawing[80, 80]) == visualize.AXES[1]
    assert_array_equal(drawing[60, 106:], grey[60, 106:])


def test_ellipse_has_the_axes_of_the_covariance(grey: np.ndarray) -> None:
    cov = np.array([[[100.0, 0.0], [0.0, 4.0]]])
    drawing = visualize.draw_keypoints(grey, np.array([[80.0, 60.0]]), cov, sigmas=2.0)
    ys, xs = np.nonzero((drawing != grey).any(-1))
    assert abs(xs.max() - 100) <= 1
    assert abs(xs.min() - 60) <= 1
    assert abs(ys.max() - 64) <= 1


def test_keypoints_that_are_not_finite_are_left_out(grey: np.ndarray) -> None:
    points = np.array([[np.nan, 3.0], [np.inf, 1.0]])
    assert_array_equal(visualize.draw_keypoints(grey, points, np.full((2, 2, 2), np.nan)), grey)


def test_outliers_are_red(grey: np.ndarray) -> None:
    points = np.array([[40.0, 60.0], [120.0, 60.0]])
    drawing = visualize.draw_keypoints(grey, points, None, np.array([True, False]))
    assert tuple(drawing[60, 40]) == visualize.GREEN
    assert tuple(drawing[60, 120]) == visualize.RED


@pytest.mark.parametrize("status", ["ok", "not_found"])
def test_estimates_without_a_pose_can_be_drawn(box: CadModel, grey: np.ndarray, status: str) -> None:
    pose = POSE if status == "ok" else None
    estimate = SimpleNamespace(pose=pose, status=status, keypoints={}, box=None, camera=CAMERA, model=box)
    assert (visualize.draw_estimate(grey, estimate) != grey).any()


def test_heatmap_glows_where_it_peaks() -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[4, 12] = 0.01
    drawing = visualize.heat_overlay(np.zeros((64, 64, 3), np.uint8), heat).sum(-1)
    y, x = np.unravel_index(drawing.argmax(), drawing.shape)
    assert abs(y - 17.5) <= 2
    assert abs(x - 49.5) <= 2


def test_sheet_places_pictures_in_rows() -> None:
    pictures = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    out = visualize.sheet(pictures, columns=3, gap=2)
    assert out.shape == (10, 22, 3)
    assert out[0, 0, 0] == 0
    assert out[0, 8, 0] == 1
    assert out[6, 8, 0] == 4
    assert out[6, 16, 0] == 255


@pytest.mark.parametrize("sizes", [[], [(4, 6), (6, 4)]])
def test_sheet_refuses_pictures_of_several_sizes(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="images: expected pictures of one size"):
        visualize.sheet([np.zeros((*size, 3), np.uint8) for size in sizes], 2)


def test_gif_keeps_frames_order_and_rare_colours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for i in range(5):
        frame = rng.integers(0, 40, (60, 80, 3)).astype(np.uint8)
        frame[20:24, 10 * i : 10 * i + 4] = (255, 40, 30)
        frames.append(frame)
    path = visualize.save_gif(frames, tmp_path / "a" / "b.gif", fps=10)
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) == 5
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        for i in range(5):
            gif.seek(i)
            pixel = np.asarray(gif.convert("RGB"))[22, 10 * i + 2].astype(int)
            assert np.abs(pixel - (255, 40, 30)).max() < 30
    assert [p.name for p in path.parent.iterdir()] == ["b.gif"]


def test_gif_needs_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames"):
        visualize.save_gif([], tmp_path / "a.gif")


def test_images_and_panels_are_written(tmp_path: Path, grey: np.ndarray) -> None:
    path = visualize.save_image(grey, tmp_path / "grey.png")
    assert_array_equal(np.asarray(Image.open(path)), grey)
    panels = visualize.save_panels({"one": grey, "two": grey, "three": grey}, tmp_path / "panels.png")
    with Image.open(panels) as figure:
        assert figure.width > 1000
        assert figure.height > 800
