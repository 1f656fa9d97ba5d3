"""The whole way from a photograph to a pose, through the model that comes with the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from flights import xwing_frames
from PIL import Image

from geopose import demo, stages
from geopose import estimate as estimating
from geopose.cad.model import CadModel, load_cad
from geopose.cad.symmetry import Symmetries
from geopose.checkpoint import model_of
from geopose.compare import Compared, compare
from geopose.data.picture import SyntheticOptions
from geopose.data.sample import ViewSpace
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator, estimate_pose
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import add, rotation_error
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.result import distinct
from geopose.stages import Candidate, calibrated, cut


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    return PoseEstimator.load(model_of("xwing"))


@pytest.fixture(scope="module")
def scenes(estimator: PoseEstimator) -> list[tuple[np.ndarray, Camera, Pose, np.ndarray]]:
    """Six renders of a seed that no training used, the X-wing clearly in view."""
    view = ViewSpace(elevation_deg=(-40, 40), roll_deg=(-40, 40))
    options = SyntheticOptions(view=view, clutter=0.0, occluders=0.0, scene_range=(140.0, 300.0))
    data = SyntheticDataset(
        load_cad("xwing"), estimator.keypoints, estimator.symmetries, options, 777, "scene"
    )
    out = []
    for i in (0, 1, 2, 7, 8, 9):
        item = data[i]
        camera = Camera.from_matrix(item["K"], options.scene_wh)
        out.append((item["image"].transpose(1, 2, 0).copy(), camera, Pose(item["R"], item["t"]), item["box"]))
    return out


def test_poses_are_near_the_truth_and_unsure_ones_say_so(estimator: PoseEstimator, scenes: list) -> None:
    """Bounds of the model as it is: far from exact, far from lost (a random rotation is 126 degrees off)."""
    model = load_cad("xwing")
    accepted = 0
    for image, camera, truth, _ in scenes:
        found = estimator.estimate(image, camera)
        assert found.pose is not None
        assert rotation_error(found.pose, truth) < np.deg2rad(20)
        assert np.linalg.eigvalsh(found.covariance).min() > 0
        assert (found.status == "ok") == (found.confidence >= 0.8)
        if found.status == "ok":
            assert add(found.pose, truth, model.vertices) < 0.4 * model.diameter
            accepted += 1
        else:
            assert found.reasons
    assert accepted >= 1


@pytest.mark.parametrize("box", [{"x": 1}, "a", [[0, 0], [1]], None, torch.ones(4, requires_grad=True)])
def test_what_is_no_box_is_refused(box: Any) -> None:
    with pytest.raises(ValueError, match="box: expected four finite numbers"):
        stages.candidate_of(box)


def test_a_model_or_device_that_is_none_is_named() -> None:
    for model in (5, b"x"):
        with pytest.raises(ValueError, match="model: got .*, expected a PoseEstimator"):
            estimate_pose(np.zeros((48, 64, 3), np.uint8), "xwing", model=model)  # type: ignore[arg-type]
    for device in ("meta", 1.5, "cuda:99"):
        with pytest.raises(ValueError, match=f"device: got {device!r}"):
            PoseEstimator.load("none.geopose", device)  # type: ignore[arg-type]


def test_one_thread_looks_at_a_picture(estimator: PoseEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wait for one another wherever the cores are busy; `threads` asks for more."""
    counts: list[int] = []
    old = estimating.glances
    monkeypatch.setattr(
        estimating, "glances", lambda *a, **k: counts.append(torch.get_num_threads()) or old(*a, **k)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for wanted in (1, 2):
            monkeypatch.setattr(estimator, "threads", wanted)
            estimator.estimate(np.zeros((48, 64, 3), np.uint8))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert sorted(set(counts)) == [1, 2]


@pytest.mark.parametrize(
    ("confidence", "good", "looked"), [(0.1, False, 2), (0.3, False, 1), (0.7, False, 1), (0.81, True, 1)]
)
def test_a_pose_that_is_only_probable_is_not_called_good(
    estimator: PoseEstimator,
    scenes: list,
    monkeypatch: pytest.MonkeyPatch,
    confidence: float,
    good: bool,
    looked: int,
) -> None:
    """But nothing better is looked for in a finer picture."""
    image, camera, _, box = scenes[0]
    turns: list[int] = []

    def counted(net: Any, picture: Any, top: int) -> Iterator[list[Candidate]]:
        for places in [
            [Candidate(box.reshape(2, 2).mean(0), float(np.ptp(box.reshape(2, 2), 0).max()), 0.9)],
            [],
        ]:
            turns.append(len(places))
            yield places

    monkeypatch.setattr("geopose.estimate.glances", counted)
    monkeypatch.setattr(estimator, "confident", lambda features, pose: confidence)
    monkeypatch.delitem(estimator.calibration, "answers", raising=False)
    found = estimator.estimate(image, camera)
    assert (found.status == "ok") is good
    assert good or f"confidence {confidence:.2f}" in found.reasons[0]
    assert found.pose is not None
    assert turns == [1, 0][:looked]


def test_a_given_box_is_used(estimator: PoseEstimator, scenes: list) -> None:
    image, camera, truth, box = scenes[0]
    found = estimator.estimate(image, camera, box=box)
    assert found.pose is not None
    assert np.linalg.norm(found.pose.t - truth.t) < 0.1 * np.linalg.norm(truth.t)
    elsewhere = (box + 320) % [560, 400, 560, 400]
    elsewhere = np.concatenate([elsewhere[:2], elsewhere[:2] + 60])
    away = estimator.estimate(image, camera, box=elsewhere)
    assert away.status != "ok" or np.linalg.norm(away.pose.t - truth.t) < 0.1 * np.linalg.norm(truth.t)


def test_boxes_far_too_small_do_not_lose_the_object(estimator: PoseEstimator, scenes: list) -> None:
    """A locator's sizes may be a third off, and its crop then cuts the object off."""
    right = 0
    for image, camera, truth, box in scenes:
        middle, half = 0.5 * (box[:2] + box[2:]), 0.5 * (box[2:] - box[:2])
        small = np.concatenate([middle - 0.45 * half, middle + 0.45 * half])
        found = estimator.estimate(image, camera, box=small)
        near = add(found.pose, truth, estimator.model.vertices) < 0.1 * estimator.model.diameter
        assert near or found.status != "ok"
        right += near and found.status == "ok"
    assert right >= 5


def test_the_answer_is_repeatable_and_goes_to_json(estimator: PoseEstimator, scenes: list) -> None:
    image, camera, _, _ = scenes[1]
    one, two = estimator.estimate(image, camera), estimator.estimate(image, camera)
    np.testing.assert_array_equal(one.pose.matrix, two.pose.matrix)
    value = json.loads(one.to_json())
    assert value["status"] == one.status
    np.testing.assert_allclose(value["cam_from_obj"]["matrix_m"], one.pose.matrix)
    assert np.shape(value["covariance_rho_m_phi_rad"]) == (6, 6)
    assert value["covariance_dof"] == estimator.calibration.get("pose_dof")
    assert 0 < one.region(0.5) < one.region(0.9) < one.region(0.99)
    with pytest.raises(ValueError, match="share: expected a probability between 0 and 1, got 90"):
        one.region(90)
    drawn = one.overlay(image)
    assert drawn.shape == image.shape
    assert (drawn != image).any()


def test_a_picture_without_the_object_is_refused(estimator: PoseEstimator) -> None:
    rng = np.random.default_rng(0)
    flat = np.full((240, 320, 3), 90, np.uint8)
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    for picture in (flat, noise):
        found = estimator.estimate(picture)
        assert found.status == "not_found"
        assert found.reasons
    assert json.loads(estimator.estimate(flat).to_json())["cam_from_obj"] is None


def test_only_what_keypoints_promise_is_compared(
    estimator: PoseEstimator, scenes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best place alone; where that does not convince, all others in one pass, all in other crops in another, and
    the three best of these are drawn; what expects to be far off never is, but one, so that there is an answer."""
    image, camera, truth, box = scenes[0]
    compared: list[Pose] = []
    crops: list[int] = []
    places = [Candidate(np.array([40.0 + 90 * i, 30.0]), 70.0, 0.6) for i in range(3)]
    places.insert(1, Candidate(box.reshape(2, 2).mean(0), float(np.ptp(box.reshape(2, 2), 0).max()), 0.6))

    def counted(net: Any, picture: Any, camera: Any, pose: Pose, *more: Any) -> Compared:
        compared.append(pose)
        return compare(net, picture, camera, pose, *more)

    def read(net: Any, picture: Any, looks: list[Candidate], *more: Any) -> Any:
        crops.append(len(looks))
        return stages.read_crops(net, picture, looks, *more)

    monkeypatch.setattr("geopose.estimate.compare", counted)
    monkeypatch.setattr("geopose.estimate.read_crops", read)
    monkeypatch.setattr("geopose.estimate.glances", lambda *_: [places, []])
    found = estimator.estimate(image, camera)
    assert found.status == "ok"
    assert len(compared) == 1
    assert crops == [1, 3, 0]  # its own keypoints say that the first is not the one
    for far, most in ((np.inf, 3), (0.0, 1)):
        compared.clear()
        crops.clear()
        monkeypatch.setattr("geopose.estimate._NEAR", 0.0)
        monkeypatch.setattr("geopose.estimate._FAR", far)
        found = estimator.estimate(image, camera)
        assert 1 <= len(compared) <= most
        assert crops[:2] == [1, 3]
        assert 4 <= crops[2] <= 7  # wider, and some closer
        near = add(found.pose, truth, estimator.model.vertices) < 0.1 * estimator.model.diameter
        assert near  # what expects to be nearest goes first


def test_a_finer_picture_is_looked_at_where_the_coarse_one_misleads(
    estimator: PoseEstimator, scenes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locator is sure of a place where nothing is; the object is seen at the second glance alone."""
    image, camera, truth, _ = scenes[0]
    looks: list[int] = []
    peaks = stages._peaks

    def misled(net: Any, picture: Any, side: int, top: int) -> list[Candidate]:
        looks.append(side)
        wrong = Candidate(np.array([620.0, 20.0]), 60.0, 0.9)
        return [wrong] if side == stages.LOCATOR_SIDE else [wrong, *peaks(net, picture, side, top)]

    monkeypatch.setattr(stages, "_peaks", misled)
    found = estimator.estimate(image, camera)
    assert looks == [stages.LOCATOR_SIDE, 2 * stages.LOCATOR_SIDE]
    assert found.status == "ok"
    assert float(add(found.pose, truth, estimator.model.vertices)) < 0.1 * estimator.model.diameter


def test_places_are_weighed_by_both_looks_where_one_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is plain at once is taken; of several the best at once, then those which the finer picture
    confirms, where they lie in it; it has its own, too."""
    picture = np.zeros((480, 640, 3), np.uint8)

    def at(x: float, score: float) -> Candidate:
        return Candidate(np.array([x, 200.0]), 50.0, score)

    def glances(*looks: list[Candidate]) -> tuple[list[list[tuple[float, float]]], int]:
        waiting = list(looks)
        monkeypatch.setattr(stages, "_peaks", lambda *_: waiting.pop(0))
        turns = [
            [(float(c.centre[0]), round(c.score, 9)) for c in places]
            for places in stages.glances(None, picture, 6)
        ]
        return turns, len(waiting)

    plain, doubtful = [at(100, 0.9), at(300, 0.44)], [at(100, 0.8), at(300, 0.6), at(400, 0.3)]
    unclear = [at(100, 0.45), at(300, 0.4)]
    for coarse in plain, doubtful, unclear:
        monkeypatch.setattr(
            stages,
            "_peaks",
            lambda _, of, side, top, coarse=coarse: coarse if side == 320 else pytest.fail("not yet"),
        )
        assert next(iter(next(stages.glances(None, picture, 6)))) == coarse[0]
    finer = [at(302, 0.9), at(500, 0.5), at(101, 0.3)]
    assert glances(plain, finer) == ([[(100.0, 0.9)], [(302.0, 0.67), (500.0, 0.25)]], 0)
    turns, _ = glances(doubtful, finer)
    # What is less than half as good as the best of both, in a turn of its own.
    assert turns == [[(100.0, 0.8), (302.0, 0.75)], [(500.0, 0.25), (400.0, 0.15)]]
    turns, _ = glances(unclear, [at(302, 0.9), at(101, 0.55)])
    assert turns == [[(100.0, 0.45), (302.0, 0.65), (101.0, 0.5)], []]  # each where it was seen best
    turns, _ = glances(doubtful, [at(102, 0.9)])
    assert turns == [
        [(100.0, 0.8), (102.0, 0.85)],
        [(300.0, 0.3), (400.0, 0.15)],
    ]  # a second time, where it is finer
    assert glances([], []) == ([[], []], 0)
    assert glances([at(100, 0.3)], []) == ([[(100.0, 0.3)], []], 0)
    picture = picture[:300, :400]  # has no more to show
    assert glances(doubtful, finer) == ([[(100.0, 0.8), (300.0, 0.6)], [(400.0, 0.3)]], 1)


def test_pictures_of_other_things_are_not_found(estimator: PoseEstimator) -> None:
    for name in ("car", "iss"):
        other = load_cad(name)
        scenes = SyntheticDataset(other, np.zeros((1, 3)), Symmetries.none(), SyntheticOptions(), 7, "scene")
        for index in range(2):
            picture = np.ascontiguousarray(scenes[index]["image"].transpose(1, 2, 0))
            every = estimator.estimate_all(picture)
            assert [found.status for found in every] == ["not_found"]
            assert every[0].confidence < 0.05
            assert every[0].reasons
    given = estimator.estimate(picture, box=(100, 100, 300, 300))  # whoever gives a box says that it is there
    assert given.status not in ("ok", "not_found")


def test_estimate_pose_finds_its_model_and_guesses_the_camera(scenes: list, tmp_path: Path) -> None:
    image = scenes[0][0]
    Image.fromarray(image).save(tmp_path / "photo.png")
    found = estimate_pose(tmp_path / "photo.png", "xwing")
    assert any("focal length" in reason for reason in found.reasons)
    assert found.camera.focal_rel_std == pytest.approx(0.2)
    known = estimate_pose(image, "xwing", camera=scenes[0][1])
    assert np.sqrt(found.covariance[2, 2]) > 3 * np.sqrt(known.covariance[2, 2])


def test_several_instances_are_asked_for(estimator: PoseEstimator, scenes: list) -> None:
    image, camera, _, _ = scenes[2]
    found = estimator.estimate_all(image, camera, max_instances=4)
    assert 1 <= len(found) <= 4
    confidences = [f.confidence for f in found if f.status == "ok"]
    assert confidences == sorted(confidences, reverse=True)


@pytest.fixture(scope="module")
def formation() -> tuple[np.ndarray, Camera, list[Pose]]:
    """Three ships before stars: a large one, and two that are small beside it."""
    camera, (pose,), _ = xwing_frames([0])
    rng, ship = np.random.default_rng(0), load_cad("xwing")
    picture, poses = demo.star_field(rng, demo.SIZE_WH), []
    for x, y, z in ((-5.0, 2.0, 26.0), (14.0, -8.0, 52.0), (16.0, 10.0, 60.0)):
        poses.append(Pose(pose.R, np.array([x, y, z])))
        picture = demo.photograph(ship, camera, poses[-1], picture, rng)
    return picture, camera, poses


def test_all_of_several_instances_are_found(estimator: PoseEstimator, formation: tuple) -> None:
    picture, camera, poses = formation
    ship = load_cad("xwing")
    found = [f for f in estimator.estimate_all(picture, camera, max_instances=3) if f.status == "ok"]
    assert len(found) == 3
    for pose in poses:
        assert min(add(f.pose, pose, ship.vertices) for f in found) < 0.1 * ship.diameter


def test_every_place_is_looked_at_for_several_instances(
    estimator: PoseEstimator, formation: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is far clearer than the others ends the search for one instance, not that for several."""
    picture, camera, poses = formation
    peaks = [
        Candidate(camera.project(p.t[None])[0], 90.0, s) for p, s in zip(poses, (0.95, 0.4, 0.4), strict=True)
    ]
    monkeypatch.setattr(stages, "_peaks", lambda *_: peaks)
    looked: list[int] = []
    old = PoseEstimator._read
    monkeypatch.setattr(
        PoseEstimator, "_read", lambda self, p, looks: looked.append(len(looks)) or old(self, p, looks)
    )
    estimator.estimate_all(picture, camera, max_instances=3)
    assert looked[0] == 3


def test_one_thing_is_counted_once_wherever_its_origin_is(estimator: PoseEstimator, scenes: list) -> None:
    """Two answers a few degrees apart, of a part that lies ten diameters off the origin of its file."""
    image, camera, _, box = scenes[0]
    found = estimator.estimate(image, camera, box=box)
    far = 10 * found.model.diameter
    model = replace(found.model, vertices=found.model.vertices + np.float32([far, 0, 0]))
    middle = model.bounds.mean(0)
    first = Pose(np.eye(3), np.array([0, 0, 50.0]) - middle)
    R = np.asarray(exp_so3(np.array([0, 0, np.deg2rad(3)])))
    second = Pose(R, np.array([0, 0, 50.0]) - R @ middle)
    third = Pose(np.eye(3), first.t + [0.5 * model.diameter, 0, 0])
    answers = [replace(found, pose=pose, model=model) for pose in (first, second, third)]
    assert [f.pose for f in distinct(answers)] == [first, third]


def test_bad_arguments_are_named(estimator: PoseEstimator, scenes: list) -> None:
    image, camera, _, _ = scenes[0]
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"max_instances: got {count}"):
            estimator.estimate_all(image, camera, max_instances=count)
    with pytest.raises(ValueError, match="camera"):
        estimator.estimate(image[:100], camera)
    with pytest.raises(ValueError, match="box"):
        estimator.estimate(image, camera, box=(10, 10, 5, 20))
    with pytest.raises(ValueError, match="box"):
        estimator.estimate(image, camera, box=(1, 2, 3))
    with pytest.raises(ValueError, match="camera"):
        estimator.estimate(image, camera=np.eye(3))
    with pytest.raises(ValueError, match="trained on"):
        estimate_pose(image, "car", model=estimator)


def test_an_untrained_mesh_is_told_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    path = tmp_path / "part.stl"
    trimesh.creation.box((10, 20, 35)).export(path)
    with pytest.raises(FileNotFoundError, match=r"geopose train .*part\.stl --unit mm"):
        estimate_pose(np.zeros((48, 64, 3), np.uint8), path)
    with pytest.raises(FileNotFoundError, match="geopose train brick --minutes"):
        model_of(CadModel.from_trimesh(trimesh.creation.box((1, 2, 3)), "brick"))
    spaced = tmp_path / "my part.stl"  # as small as metres are
    trimesh.creation.box((0.1, 0.2, 0.35)).export(spaced)
    with pytest.raises(FileNotFoundError, match=r"geopose train '.*my part\.stl' --unit m --minutes"):
        estimate_pose(np.zeros((48, 64, 3), np.uint8), spaced)
    with pytest.raises(FileNotFoundError, match=r"--unit in --minutes"):
        model_of(spaced, "in")
    with pytest.raises(FileNotFoundError, match="no trained model of 'mesh'"):
        estimate_pose(np.zeros((48, 64, 3), np.uint8), trimesh.creation.box((1, 2, 3)))


def test_a_crop_shows_what_its_camera_sees() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:24, 30:34] = 255  # centre at (31.5, 21.5)
    for box, size in (
        ((10.5, 0.5, 50.5, 40.5), 80),
        ((-0.5, -0.5, 59.5, 59.5), 30),
        ((28.0, 18.0, 36.0, 26.0), 64),
    ):
        crop = cut(image, np.array(box), (size, size))[..., 0].astype(float)
        y, x = np.mgrid[:size, :size]
        centre = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
        camera = Camera(1.0, 1.0, 0.0, 0.0, (80, 60)).crop_resize(np.array(box), (size, size))
        assert not crop[0].any()
        np.testing.assert_allclose(centre, camera.project(np.array([[31.5, 21.5, 1.0]]))[0], atol=0.3)


def test_calibration_scales_and_widens() -> None:
    cov = np.tile(np.diag([1.0, 4.0]), (2, 3, 1, 1))
    out = calibrated(cov, {"scale": [1.0, 2.0, 3.0], "floor_px": [0.0, 0.5, 1.0]})
    np.testing.assert_allclose(out[1, 1], np.diag([2.25, 8.25]))
    np.testing.assert_allclose(out[0, 2], np.diag([4.0, 13.0]))
