"""The comparison of geometry and regression, in a form of seconds, and the parts it rests on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import random_poses

from geopose.bench import regression
from geopose.bench.regression import Options, run
from geopose.bench.regression_data import CONDITIONS, Pictures, Target, from_view, to_view, view_of
from geopose.bench.regression_methods import (
    CEILING,
    LEARNED,
    RETRIEVAL,
    PoseRegressor,
    regressor_loss,
    true_keypoints,
)
from geopose.bench.regression_report import PART, fill_tables, summarise, values_of
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3

MARKS = [f"<!-- {PART}: {end} -->" for end in ("begin", "end")]

TINY = Options(
    objects=("car",), minutes=0.01, train=10, val=4, test=3, sizes=(6,), picture=96, keypoints=6, batch_size=4,
    timed=1, workers=0, quiet=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.of("car", 6)


def crops(rng: np.random.Generator, poses: Pose, size: int = 96) -> Camera:
    """A camera for each pose whose middle is near the object, as crops have."""
    n = len(poses.t)
    focal = rng.uniform(300, 600, n)
    middle = -poses.t[:, :2] / poses.t[:, 2:] * focal[:, None] + (size - 1) / 2 + rng.normal(0, 6, (n, 2))
    return Camera(focal, focal, middle[:, 0], middle[:, 1], (size, size))


def test_views_look_through_the_middle_of_the_crop(rng: np.random.Generator) -> None:
    poses = random_poses(rng, 20, distance=8.0)
    camera = crops(rng, poses)
    turns, focal = view_of(camera)
    ahead = turns[..., 2] * 5.0  # a point on the view's axis, in the camera
    np.testing.assert_allclose(camera.project(ahead[:, None])[:, 0], 47.5, atol=1e-9)
    assert (focal >= camera.fx / 96 - 1e-12).all()


def test_places_and_attitudes_bring_the_pose_back(rng: np.random.Generator, target: Target) -> None:
    poses = random_poses(rng, 30, distance=12.0)
    camera = crops(rng, poses)
    place, attitude = to_view(poses, camera, target)
    again = from_view(place, attitude, camera, target)
    np.testing.assert_allclose(again.R, poses.R, atol=1e-12)
    np.testing.assert_allclose(again.t, poses.t, atol=1e-9)


def test_places_do_not_depend_on_where_the_crop_was_cut(target: Target) -> None:
    """The same thing seen off the axis by a camera of twice the focal length and twice as far away."""
    near = Pose(np.asarray(exp_so3(np.array([0.2, 0.4, -0.1]))), np.array([0.0, 0.0, 9.0]))
    middle = near.apply(target.centre[None])[0]
    turn = np.asarray(exp_so3(np.array([0.1, -0.25, 0.0])))
    far = Pose(turn @ near.R, 2 * turn @ middle - turn @ near.R @ target.centre)
    at = far.apply(target.centre[None])[0]
    seen = middle[:2] / middle[2]
    first = Camera(400.0, 400.0, 47.5 - 400 * seen[0], 47.5 - 400 * seen[1], (96, 96))
    length = np.linalg.norm(at / at[2]) / np.linalg.norm(middle / middle[2])
    focal = 800.0 / length
    second = Camera(focal, focal, 47.5 - focal * at[0] / at[2], 47.5 - focal * at[1] / at[2], (96, 96))
    places = []
    for pose, camera in ((near, first), (far, second)):
        batch = Camera(*(np.array([v]) for v in (camera.fx, camera.fy, camera.cx, camera.cy)), (96, 96))
        places.append(to_view(Pose(pose.R[None], pose.t[None]), batch, target)[0][0])
    np.testing.assert_allclose(places[0][:2], 0, atol=1e-9)
    np.testing.assert_allclose(places[1], places[0], atol=1e-9)


def test_the_regressor_starts_upright_and_learns_a_picture() -> None:
    torch.manual_seed(0)
    net = PoseRegressor(96, 16, 32, pretrained=False).train()
    image = torch.rand(4, 3, 96, 96)
    out = net(image)
    assert out["place"].shape == (4, 3)
    torch.testing.assert_close(
        out["attitude"] @ out["attitude"].mT, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0
    )
    truth = {"place": out["place"].detach(), "attitude": out["attitude"].detach()}
    same, _ = regressor_loss(out, truth)
    assert float(same.detach()) == pytest.approx(1e-4, abs=1e-5), "only the root's own offset is left"
    turn = torch.from_numpy(np.asarray(exp_so3(np.array([0.0, 0.0, 0.3])))).float()
    _, parts = regressor_loss(out, {"place": truth["place"] + 0.5, "attitude": truth["attitude"] @ turn})
    assert float(parts["place"]) == pytest.approx(1.5)
    assert float(parts["attitude"]) == pytest.approx(2 * np.sqrt(2) * np.sin(0.15), abs=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    page = out.parent / "page.md"
    page.write_text("\n".join(MARKS))
    results = run(replace(TINY, page=str(page)), out)
    assert "What they cost" in results["table"]
    return out


def test_a_comparison_from_end_to_end(folder: Path) -> None:
    results = json.loads((folder / "regression.json").read_text())
    rows = results["objects"]["car"]["methods"]
    names = {CEILING, RETRIEVAL, *LEARNED}
    smaller = names - {"place and distance"}
    assert {(r["method"], r["size"]) for r in rows} == {(n, 10) for n in names} | {(n, 6) for n in smaller}
    by_name = {r["method"]: r for r in rows if r["size"] == 10}
    ceiling = by_name[CEILING]
    assert ceiling["easy"]["add_01d"] == 1
    assert ceiling["easy"]["rotation_deg_median"] < 5
    assert by_name["place and distance"]["easy"]["rotation_deg_median"] is None, "it says no attitude"
    assert by_name["place and distance"]["easy"]["translation_median"] > 0
    for name in LEARNED:
        assert by_name[name]["parameters"] > 1e5
        assert by_name[name]["images"] >= 4
        assert by_name[name]["seconds"] > 0
    for file in ("regression_pictures.jpg", "regression_errors.png", "regression_distance.png"):
        picture = cv2.imread(str(folder / file))
        assert picture is not None
        assert picture.std() > 5
    table = (folder / "table.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert "10 pictures of 96 pixels" in table
    page = (folder.parent / "page.md").read_text()
    assert table.strip() in page
    assert (folder.parent / "regression_errors.png").is_file()


def test_the_conditions_differ_as_they_say(folder: Path) -> None:
    with np.load(folder / "car" / "train.npz") as file:
        train = Pictures({k: file[k] for k in file.files})
    assert len(train) == 10
    assert train.size == 96
    sharp = {}
    for condition in CONDITIONS:
        with np.load(folder / "car" / f"{condition.replace(' ', '_')}.npz") as file:
            assert file["image"].shape == (3, 3, 96, 96)
            grey = file["image"].mean(1)
            sharp[condition] = np.abs(np.diff(grey, axis=2)).mean()
            if condition == "occluded":
                assert file["visib_fract"].min() < 0.97
    assert sharp["far"] < sharp["easy"], "few pixels"
    camera = train.camera
    seen = camera.project(train.pose.apply(Target.of("car", 6).keypoints))
    np.testing.assert_allclose(seen, train["keypoints_px"][:, 0], atol=0.02)


def test_what_has_finished_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    before = json.loads((folder / "regression.json").read_text())
    monkeypatch.setattr(regression, "_train", refuse)
    run(TINY, folder)
    after = json.loads((folder / "regression.json").read_text())
    for old, new in zip(before["objects"]["car"]["methods"], after["objects"]["car"]["methods"], strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}
    with pytest.raises(ValueError, match=r"heatmaps_PnP-10.json: holds results of other options"):
        run(replace(TINY, minutes=0.02), folder)
    with pytest.raises(ValueError, match=r"train.npz: holds pictures made with other options"):
        run(replace(TINY, seed=1), folder)
    (folder / "car" / "PoseNet-10.json").unlink()
    with pytest.raises(AssertionError, match="trained again"):
        run(TINY, folder)


def test_figures_of_a_method_by_hand() -> None:
    errors = {
        "rotation_deg": [1.0, 2.0, None, 4.0], "translation": [0.1, 0.2, 0.3, 0.4], "add": [0.05, 0.2, None, 0.09],
        "found": [1.0, 1.0, 0.0, 1.0], "nearest_deg": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    row = {"object": "car", "method": CEILING, "size": 5, "errors": dict.fromkeys(CONDITIONS, errors)}
    np.testing.assert_array_equal(values_of(row, "easy", "add"), [0.05, 0.2, np.inf, 0.09])
    figures = summarise(row)
    for condition in ("easy", "far", "hard"):
        assert figures[condition]["rotation_deg_median"] == 4, "of an even number the upper of the middle two"
        assert figures[condition]["rotation_deg_p90"] == np.inf
        assert figures[condition]["translation_p90"] == 0.4
        assert figures[condition]["add_01d"] == 0.5
        assert figures[condition]["found"] == 0.75


def test_the_true_keypoints_bring_the_true_pose(folder: Path, target: Target) -> None:
    with np.load(folder / "car" / "easy.npz") as file:
        easy = Pictures({k: file[k] for k in file.files})
    exact = true_keypoints(target, easy, 0.0, 0)
    np.testing.assert_allclose(exact.pose.R, easy.pose.R, atol=1e-3)
    np.testing.assert_allclose(exact.middle, easy.pose.apply(target.centre[None])[:, 0], rtol=1e-3, atol=1e-3)
    assert exact.found.all()


def test_a_page_takes_tables_and_figures(tmp_path: Path) -> None:
    table, figure, page = (tmp_path / n for n in ("a/table.md", "a/one.png", "page.md"))
    table.parent.mkdir()
    table.write_text("| new |\n")
    figure.write_bytes(b"picture")
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    fill_tables(page, table, [figure])
    assert page.read_text() == f"before\n{MARKS[0]}\n\n| new |\n\n![one](one.png)\n\n{MARKS[1]}\nafter\n"
    assert (tmp_path / "one.png").read_bytes() == b"picture"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        run(replace(TINY, page=str(page)), tmp_path / "b")
    assert not (tmp_path / "b").exists(), "said before anything is rendered"


def test_the_trainings_share_the_minutes() -> None:
    options = Options(objects=("car", "iss"), sizes=(100, 300, 100), total_minutes=28.0)
    every = list(LEARNED)
    turning = [n for n in every if n != "place and distance"]
    assert options.plan(0) == [(3000, every), (300, turning), (100, turning)]
    assert options.plan(1) == [(3000, every)]
    assert options.shared() == replace(options, minutes=2.0, total_minutes=None)
    assert TINY.shared() is TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minutes": 0}, "minutes: got 0"), ({"sizes": (3000,)}, r"sizes: got \(3000,\)"),
        ({"picture": 100}, "picture: got 100"), ({"objects": ()}, r"objects: got \(\)"),
        ({"total_minutes": 0}, "total_minutes: got 0"),
    ],
)  # fmt: skip
def test_bad_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Options(), **change)  # type: ignore[arg-type]
