"""Azimuths: one convention from pose to class, pictures that keep it, both networks, and a training from end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import trimesh
from helpers import load_script
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from geopose.azimuth_report import (
    HISTORY,
    AzimuthScores,
    draw_compass,
    judge,
    judge_geometry,
    judge_points,
    predict,
    save_confusion,
    save_curves,
)
from geopose.azimuth_train import CIRCULAR, CLASSIFIER, _learner, load_azimuth, train_azimuth
from geopose.cad.gallery.car import Shape
from geopose.cad.model import CadModel, load_cad
from geopose.cad.render import render
from geopose.checkpoint import jsonable, save_model
from geopose.data import azimuth as module
from geopose.data.azimuth import (
    AzimuthDataset,
    AzimuthOptions,
    azimuth_of,
    built_in_cars,
    class_centre,
    class_of,
    mirrored,
    random_car,
    read_cars,
    split_cars,
    wrapped,
)
from geopose.data.sample import ViewSpace, look_at, projected_box, sample_pose
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3, random_rotation
from geopose.nets.azimuth import (
    AzimuthClassifier,
    CircularNet,
    build_azimuth_net,
    circle,
    circular_loss,
    classifier_loss,
    potential,
)
from geopose.nets.unet import UNet

EXAMPLE = Path(__file__).parents[1] / "examples" / "car_azimuth.py"
SMALL = AzimuthOptions(size=64)


@pytest.fixture(scope="module")
def cars() -> list[CadModel]:
    return built_in_cars(4, seed=5)


# The convention


@pytest.mark.parametrize(
    ("up", "eye", "degrees"),
    [
        ("+z", (5, 0, 1), 0), ("+z", (0, 3, 1), 90), ("+z", (-4, 0, 0), 180), ("+z", (0, -2, 9), -90),
        ("+z", (3, 3, 1), 45), ("-z", (0, 3, 1), -90), ("+y", (0, 1, 5), 0), ("+y", (4, 1, 0), 90),
        ("+x", (0, 2, 0), 0), ("+x", (1, 0, 2), 90),
    ],
)  # fmt: skip
def test_azimuth_is_where_the_camera_stands(
    up: str, eye: tuple[float, ...], degrees: float, rng: np.random.Generator
) -> None:
    """However the camera is turned, and wherever the object's centre lies."""
    centre = rng.normal(0, 1, 3)
    R = np.asarray(exp_so3(rng.normal(0, 1, (6, 3))))
    t = -(R @ (np.array(eye, float) + centre))
    np.testing.assert_allclose(
        wrapped(azimuth_of(Pose(R, t), up, centre) - np.deg2rad(degrees)), 0, atol=1e-12
    )


@pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "+z", "-z"])
def test_azimuth_agrees_with_look_at_and_sampled_poses(up: str, rng: np.random.Generator) -> None:
    for azimuth in rng.uniform(-np.pi, np.pi, 8):
        elevation, roll = rng.uniform(-1.4, 1.4), rng.uniform(-3, 3)
        pose = Pose(look_at(elevation, azimuth, roll, up), np.array([0.0, 0.0, 3.0]))
        assert azimuth_of(pose, up) == pytest.approx(azimuth, abs=1e-12)
        degrees = float(np.rad2deg(azimuth))
        view = ViewSpace((-60.0, 60.0), (degrees, degrees), up=up)
        centre, ray = rng.normal(0, 2, 3), np.array([rng.normal(0, 0.4), rng.normal(0, 0.4), 1.0])
        off_axis = sample_pose(rng, view, centre, 3.0, ray)
        assert azimuth_of(off_axis, up, centre) == pytest.approx(azimuth, abs=1e-9)


def test_azimuth_of_a_batch_of_tensors_is_that_of_each() -> None:
    R = random_rotation((2, 3), torch.Generator().manual_seed(1))
    poses = Pose(R, torch.ones(2, 3, 3, dtype=R.dtype))
    batch = azimuth_of(poses)
    assert batch.shape == (2, 3)
    assert batch[1, 2] == pytest.approx(float(azimuth_of(poses[1, 2])))
    assert np.isnan(azimuth_of(Pose(np.eye(3), np.full(3, np.nan))))
    with pytest.raises(ValueError, match=r"up: expected one of .* got 'z'"):
        azimuth_of(poses, "z")


def test_classes_and_their_borders() -> None:
    degrees = [0, 44.9, 45.1, 90, 134.9, 135.1, 180, -180, -134.9, -90, -45.1, -44.9, 359, 725, np.nan]
    expected = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0, -1]
    assert class_of(np.deg2rad(degrees), 4).tolist() == expected
    assert class_of(np.deg2rad([0, 4.9, 5.1, -4.9, -5.1, 176, 90]), 36).tolist() == [0, 0, 1, 0, 35, 18, 9]
    assert class_of(np.pi / 4, 4) == 1, "the lower border belongs to the class"
    np.testing.assert_allclose(np.rad2deg(class_centre(range(4), 4)), [0, 90, -180, -90])
    for function in (class_of, class_centre):
        with pytest.raises(ValueError, match="classes: got 1"):
            function(0.3, 1)


@given(st.integers(2, 90), st.integers(0, 89), st.floats(-0.499, 0.499), st.integers(-3, 3))
def test_a_class_holds_what_is_near_its_centre(classes: int, label: int, off: float, turns: int) -> None:
    label %= classes
    azimuth = class_centre(label, classes) + 2 * np.pi * (off / classes + turns)
    assert class_of(azimuth, classes) == label
    assert wrapped(azimuth) == pytest.approx(np.angle(np.exp(1j * azimuth)), abs=1e-9) or off == 0


# Cars and pictures


def test_cars_differ_and_repeat(cars: list[CadModel]) -> None:
    again = built_in_cars(2, seed=5)
    assert [c.content_hash for c in again] == [c.content_hash for c in cars[:2]]
    assert len({c.content_hash for c in cars}) == 4
    assert len({tuple(c.extents) for c in cars}) == 4


def test_every_random_car_is_a_car(monkeypatch: pytest.MonkeyPatch) -> None:
    """2000 of them keep the rules of `Shape`, which raises otherwise; the paint is a colour."""

    def check(paint: Sequence[float], stripe: Any, length: float, *rest: Any) -> float:
        Shape(length, *rest)
        assert len(paint) == 3
        assert all(0 <= v <= 1 for v in paint)
        return length

    monkeypatch.setattr(module, "car", check)
    lengths = [random_car(np.random.default_rng(i)) for i in range(2000)]
    assert np.ptp(lengths) > 0.8  # type: ignore[call-overload]


def test_meshes_of_a_folder(tmp_path: Path) -> None:
    for i in range(5):
        target = tmp_path / f"{i}" / "models"
        target.mkdir(parents=True)
        trimesh.creation.box((4 + i, 2, 1)).export(target / "model.obj")
    (tmp_path / "notes.txt").write_text("no mesh")
    assert [round(c.extents[0]) for c in read_cars(tmp_path, "m")] == [4, 5, 6, 7, 8]
    assert [round(c.extents[0]) for c in read_cars(tmp_path, "m", most=3)] == [4, 6, 8]
    with pytest.raises(ValueError, match=r"0/models/model.obj: no unit given"):
        read_cars(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="meshes: no mesh"):
        read_cars(tmp_path / "empty", "m")
    with pytest.raises(ValueError, match="expected a folder"):
        read_cars(tmp_path / "notes.txt", "m")


def test_cars_for_judging_are_not_learned_from(cars: list[CadModel]) -> None:
    learned, unseen = split_cars(cars * 3)
    assert (len(learned), len(unseen)) == (9, 3)
    assert {id(c) for c in unseen} == {id(cars[3])}
    assert not {id(c) for c in unseen} & {id(c) for c in learned}
    assert split_cars(cars[:3]) == (cars[:3], cars[:3])


def test_a_picture_depends_on_seed_and_index_alone(cars: list[CadModel]) -> None:
    one, two = AzimuthDataset(cars, SMALL, 3), AzimuthDataset(cars, SMALL, 3)
    for key, value in one[5].items():
        np.testing.assert_array_equal(value, two[5][key], err_msg=key)
    assert (one[5]["image"] != one[6]["image"]).any()
    assert (one[5]["image"] != AzimuthDataset(cars, SMALL, 4)[5]["image"]).any()


def test_labels_pose_and_place_agree(cars: list[CadModel]) -> None:
    options = replace(SMALL, classes=36, fill=(0.5, 0.8))
    data = AzimuthDataset(cars[:1], options, 0)
    items = [data[i] for i in range(40)]
    for item in items:
        assert item["image"].shape == (3, 64, 64)
        assert item["image"].dtype == np.uint8
        pose, camera = Pose(item["R"], item["t"]), Camera.from_matrix(item["K"], (64, 64))
        box = projected_box(cars[0].vertices, pose, camera)
        assert (box[:2] > -0.5 - 1e-6).all()
        assert (box[2:] < 63.5 + 1e-6).all()
        assert 0.5 * 64 - 1e-6 <= (box[2:] - box[:2]).max() <= 0.8 * 64 + 1e-6
        eye = -pose.R.T @ pose.t - cars[0].bounds.mean(0)
        azimuth = np.arctan2(eye[1], eye[0])
        assert item["azimuth"] == pytest.approx(azimuth, abs=1e-6)
        assert item["label"] == round(np.rad2deg(azimuth) / 10) % 36
        assert -0.001 <= np.arcsin(eye[2] / np.linalg.norm(eye)) <= np.deg2rad(20) + 0.001
        # Which plate is nearer, and on which side of the picture the nose is.
        front, rear = (np.array(cars[0].named_keypoints[f"plate_{end}"]) for end in ("front", "rear"))
        (u_front, u_rear), (z_front, z_rear) = (
            camera.project(pose.apply(np.stack([front, rear])))[:, 0],
            pose.apply(np.stack([front, rear]))[:, 2],
        )
        if abs(abs(azimuth) - np.pi / 2) > 0.4:
            assert (z_front < z_rear) == (abs(azimuth) < np.pi / 2), "0 sees the front"
        if 0.5 < abs(azimuth) < np.pi - 0.5:
            assert (u_front < u_rear) == (azimuth > 0), (
                "90 degrees sees the left side: the nose is at the left"
            )
    azimuths = np.array([item["azimuth"] for item in items])
    assert (np.bincount(class_of(azimuths, 4), minlength=4) >= 3).all(), "all round"
    batch = torch.utils.data.default_collate(items[:3])
    assert batch["image"].shape == (3, 3, 64, 64)
    assert batch["label"].dtype == torch.int64


def test_the_car_is_where_its_pose_says(cars: list[CadModel]) -> None:
    """Before a plain background, what differs from the background is the silhouette of the mesh at that pose."""
    data = AzimuthDataset(cars[:1], replace(SMALL, clutter=0.0, occluders=0.0), 1)
    data.makers[0].background = lambda generator, size_wh: np.full((*size_wh, 3), 128, np.uint8)
    contrast = []
    for i in range(12):
        item = data[i]
        camera = Camera.from_matrix(item["K"], (64, 64))
        mask = render(cars[0], camera, Pose(item["R"], item["t"])).mask
        grey = item["image"].mean(0)
        off = np.abs(grey - np.median(grey[~mask]))
        contrast.append(off[mask].mean() / off[~mask].mean())
    assert np.median(contrast) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 16}, "size: got 16"),
        ({"classes": 1}, "classes: got 1"),
        ({"fill": (0.9, 0.5)}, "fill: got"),
        ({"fill": (0.5, 1.2)}, "fill: got"),
        ({"least_visible": 1.0}, "least_visible: got 1.0"),
    ],
)
def test_bad_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AzimuthOptions(**change)


def test_a_set_needs_cars() -> None:
    with pytest.raises(ValueError, match="cars: got none"):
        AzimuthDataset([], SMALL, 0)


def test_a_mirrored_car_is_one_seen_from_the_opposite_azimuth(cars: list[CadModel]) -> None:
    camera = Camera.from_fov(0.7, (96, 96))  # its centre is the middle of the picture
    azimuths = np.deg2rad(np.arange(-170, 180, 20))
    pictures = []
    for azimuth in azimuths:
        R = look_at(0.2, azimuth, 0.0)
        pose = Pose(R, np.array([0.0, 0.0, 12.0]) - R @ cars[0].bounds.mean(0))
        mask = render(cars[0], camera, pose).mask
        pictures.append(np.repeat(np.uint8(255) * mask[None], 3, 0))
    batch = {
        "image": torch.from_numpy(np.stack(pictures)),
        "azimuth": torch.from_numpy(azimuths.astype(np.float32)),
        "label": torch.from_numpy(class_of(azimuths, 4)),
        "K": torch.zeros(len(azimuths), 3, 3),
    }
    made = mirrored(batch, 4, torch.Generator().manual_seed(0))
    assert set(made) == {"image", "azimuth", "label"}
    turned = made["azimuth"] != batch["azimuth"]
    assert 4 < int(turned.sum()) < 14
    np.testing.assert_array_equal(made["label"], class_of(made["azimuth"].numpy(), 4))
    for image, azimuth in zip(made["image"], made["azimuth"], strict=True):
        same = int(np.abs(wrapped(azimuths - float(azimuth))).argmin())  # the set holds the opposite of each
        ours, seen = image[0].numpy() > 0, pictures[same][0] > 0
        assert (ours & seen).sum() / (ours | seen).sum() > 0.97


# Networks


def test_the_classifier_is_the_original() -> None:
    net = AzimuthClassifier()
    convolutions = [(3, 32, 49), (32, 64, 9), (64, 64, 9), (64, 128, 9), (128, 128, 9), (128, 256, 9)]
    dense = [(256, 4096), (4096, 1024), (1024, 256), (256, 4)]  # 224 -> 109 -> 53 -> 25 -> 11 -> 4 -> 1 pixel
    expected = sum(i * o * k + o for i, o, k in convolutions) + sum(i * o + o for i, o in dense)
    assert sum(p.numel() for p in net.parameters()) == expected
    rates = [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.4] * 6 + [0.25] * 3
    first = net.layers[0].weight
    limit = (6 / (49 * (3 + 32))) ** 0.5  # Glorot's, as in Keras
    assert 0.95 * limit < float(first.detach().abs().max()) <= limit
    logits = net.eval()(torch.rand(2, 3, 224, 224))
    assert logits.shape == (2, 4)


def test_both_networks_answer_with_distributions() -> None:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for options in (
        {"kind": "classifier", "classes": 36, "size": 64, "channels": [4, 8], "dense": [16]},
        {"kind": "circular", "harmonics": 3, "hidden": 32},
    ):
        torch.manual_seed(1)
        net = build_azimuth_net(options).eval()
        out = net(image)
        torch.testing.assert_close(out, net(image.float() / 255))
        angles, p = net.distribution(out)
        assert p.shape == (2, len(angles))
        torch.testing.assert_close(p.sum(1), torch.ones(2))
        again = build_azimuth_net(json.loads(json.dumps(net.options)))
        again.load_state_dict(net.state_dict())
        torch.testing.assert_close(again.eval()(image), out)
        azimuth, length = predict(net, image)
        np.testing.assert_allclose(wrapped(azimuth - angles[p.argmax(1)].numpy()), 0, atol=1e-6)
        assert ((length >= 0) & (length <= 1)).all()
    assert net.distribution(net(image))[0].shape == (720,)
    centres = class_centre(range(36), 36)
    np.testing.assert_allclose(wrapped(circle(36, out.double()).numpy() - centres), 0, atol=1e-12)


@pytest.mark.parametrize("concentration", [0.01, 1.0, 30.0, 1000.0])
def test_one_harmonic_is_von_mises(concentration: float, rng: np.random.Generator) -> None:
    mean, truth = rng.uniform(-3, 3, 5), rng.uniform(-3, 3, 5)
    out = torch.tensor(concentration * np.stack([np.cos(mean), np.sin(mean)], -1))[:, None]
    loss, _ = circular_loss(out, {"azimuth": torch.tensor(truth)})
    expected = -stats.vonmises.logpdf(truth, concentration, loc=mean).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    net = CircularNet(harmonics=1)
    angles, p = net.distribution(out)
    length = torch.hypot(p @ angles.cos(), p @ angles.sin()).numpy()
    np.testing.assert_allclose(length, special.i1e(concentration) / special.i0e(concentration), rtol=1e-9)
    np.testing.assert_allclose(wrapped(angles[p.argmax(1)].numpy() - mean), 0, atol=np.pi / 720 + 1e-9)


def test_harmonics_by_hand() -> None:
    parameters = torch.tensor([[[0.3, -0.2], [1.0, 0.5]]], dtype=torch.float64)
    for a in (0.0, 0.4, -2.0):
        by_hand = 0.3 * np.cos(a) - 0.2 * np.sin(a) + np.cos(2 * a) + 0.5 * np.sin(2 * a)
        assert float(potential(parameters, torch.tensor([a], dtype=torch.float64))) == pytest.approx(by_hand)
    both_ends = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]])  # front or rear, nobody knows
    angles, p = CircularNet(harmonics=2).distribution(both_ends)
    assert float(p[0, 0]) == pytest.approx(float(p[0, 360]))
    assert float(p[0][(angles.cos().abs() > 0.9)].sum()) > 0.95


def test_losses_of_one_who_knows_nothing_and_their_gradients() -> None:
    out = torch.zeros(3, 4, 2, dtype=torch.float64, requires_grad=True)
    truth = {"azimuth": torch.tensor([0.1, 2.0, -3.0]), "label": torch.tensor([0, 1, 2])}
    loss, _ = circular_loss(out, truth)
    assert float(loss.detach()) == pytest.approx(np.log(2 * np.pi))
    some = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: circular_loss(x, truth)[0], some)
    assert float(classifier_loss(torch.zeros(3, 36), truth)[0]) == pytest.approx(np.log(36))


def test_networks_refuse() -> None:
    with pytest.raises(ValueError, match="size: got 180 pixels, of which 6 convolutions leave nothing"):
        AzimuthClassifier(size=180)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 224, 224\)"):
        AzimuthClassifier(4)(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="multiples of 32"):
        CircularNet()(torch.zeros(1, 3, 100, 100))
    with pytest.raises(ValueError, match="harmonics: got 0"):
        CircularNet(harmonics=0)
    with pytest.raises(ValueError, match="kind: got 'vgg'"):
        build_azimuth_net({"kind": "vgg"})
    with pytest.raises(ValueError, match="options: got"):
        build_azimuth_net({"kind": "circular", "classes": 4})


@pytest.mark.parametrize("kind", ["circular", "classifier"])
def test_networks_learn_a_few_pictures_by_heart(kind: str, cars: list[CadModel]) -> None:
    data = AzimuthDataset(cars, replace(SMALL, clutter=0.0, occluders=0.0), 9)
    batch = torch.utils.data.default_collate([data[i] for i in range(8)])
    torch.manual_seed(0)
    if kind == "circular":
        net, loss_fn, rate = build_azimuth_net(CIRCULAR), circular_loss, 5e-4
    else:
        options = {"size": 64, "channels": [8, 16, 16], "dense": [32], "dropout": 0.0, "dense_dropout": 0.0}
        net, loss_fn, rate = build_azimuth_net(CLASSIFIER | options), classifier_loss, 3e-3
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(40):
        loss, _ = loss_fn(net.train()(batch["image"]), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1  # nats
    scores = AzimuthScores(batch["azimuth"].numpy(), predict(net, batch["image"])[0])
    assert scores.accuracy(4) == 1
    if kind == "circular":
        assert scores.errors_deg().max() < 20


# Scores and figures


def test_scores_by_hand() -> None:
    scores = AzimuthScores(np.deg2rad([0, 179, 90, -90, 10]), np.deg2rad([40, -179, 80, 90, np.nan]))
    np.testing.assert_allclose(scores.errors_deg(), [40, 2, 10, 180, 180])
    assert scores.accuracy(4) == pytest.approx(3 / 5)
    assert scores.accuracy(36) == pytest.approx(1 / 5)
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[2, 2] = expected[1, 1] = expected[3, 1] = 1
    np.testing.assert_array_equal(scores.confusion(4), expected)
    figures = scores.figures(8)
    assert list(figures)[:3] == ["accuracy_4", "accuracy_8", "accuracy_36"]
    assert figures["median_deg"] == pytest.approx(40)
    assert figures["answered"] == pytest.approx(0.8)
    assert figures["pictures"] == 5


def test_geometry_answers_from_the_pose(cars: list[CadModel]) -> None:
    """An estimator that turns the true pose by 10 degrees about the car's up axis, and once finds nothing."""
    data = AzimuthDataset(cars[:1], SMALL, 2)
    turn = Pose(np.asarray(exp_so3(np.array([0.0, 0.0, np.deg2rad(10)]))), np.zeros(3))
    seen: list[Camera] = []

    class Estimator:
        model = cars[0]

        def estimate(self, img: Any, camera: Camera | None = None) -> Any:
            item = data[len(seen)]
            np.testing.assert_array_equal(img, item["image"].transpose(1, 2, 0))
            assert camera is not None
            seen.append(camera)
            pose = Pose(item["R"], item["t"]) @ turn
            return SimpleNamespace(pose=None if len(seen) == 3 else pose)

    scores = judge_geometry(Estimator(), data, 5)
    np.testing.assert_allclose(scores.errors_deg()[[0, 1, 3, 4]], 10, atol=0.01)
    assert scores.errors_deg()[2] == 180
    np.testing.assert_allclose(wrapped(scores.answered - scores.azimuth)[0], -np.deg2rad(10), atol=1e-4)
    np.testing.assert_allclose(seen[0].K, data[0]["K"])


def test_geometry_answers_from_points() -> None:
    car = load_cad("car")
    data = AzimuthDataset([car], replace(SMALL, clutter=0.0, occluders=0.0), 2)
    exact = judge_points(data, car.named_keypoints, 6, 0.0)
    assert exact.errors_deg().max() < 0.01
    np.testing.assert_allclose(exact.azimuth, [data[i]["azimuth"] for i in range(6)])
    noisy = judge_points(data, car.named_keypoints, 40, 0.5).errors_deg()
    assert 0.05 < np.median(noisy) < 5
    with pytest.raises(ValueError, match="points_obj: got 3 points"):
        judge_points(data, dict(list(car.named_keypoints.items())[:3]), 2, 1.0)


def test_the_compass_points_as_the_car_does() -> None:
    grey = np.full((200, 300, 3), 120, np.uint8)
    middle, radius = np.array([300, 200]) - 1.25 * 26, 26
    for degrees, way in ((0, (0, 1)), (90, (-1, 0)), (180, (0, -1)), (-90, (1, 0))):
        drawn = draw_compass(grey, float(np.deg2rad(degrees)))
        green = (drawn[..., 1] > 200) & (drawn[..., 0] < 120)
        y, x = np.nonzero(green)
        # The arrow's head holds more of its pixels than its tail.
        lean = (np.stack([x, y], 1) - middle).mean(0) @ np.array(way)
        assert lean > 0.1 * radius, degrees
        x, y = np.rint(middle + radius * np.array(way)).astype(int) - np.array(way)
        assert green[y, x]
    assert (grey == 120).all()
    assert (drawn[:130] == 120).all(), "only the corner is drawn on"
    yellow = draw_compass(grey, 0.0, np.pi / 2)
    assert ((yellow[..., 0] > 240) & (yellow[..., 2] < 100)).any()
    np.testing.assert_array_equal(draw_compass(grey, 0.0, np.nan), draw_compass(grey, 0.0))


def test_figures_are_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    truth = rng.uniform(-np.pi, np.pi, 300)
    scores = AzimuthScores(truth, truth + rng.normal(0, 0.3, 300))
    rows = np.column_stack([np.arange(5) * 60.0, np.arange(5), *rng.random((4, 5))]).tolist()
    assert len(rows[0]) == len(HISTORY)
    paths = [
        save_curves({"one": rows, "two": rows}, tmp_path / "a" / "curves.png"),
        save_confusion({"four": scores}, 4, tmp_path / "four.png"),
        save_confusion({"one": scores, "two": scores}, 36, tmp_path / "36.png"),
    ]
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 5


# Training


def test_the_classifier_has_adam_and_one_rate() -> None:
    net = build_azimuth_net(CLASSIFIER | {"size": 64, "channels": [4], "dense": [4]})
    learner = _learner(net, None)
    assert learner.learning_rate == 5e-5
    assert {(g["factor"], g["weight_decay"]) for g in learner.optimiser.param_groups} == {(1.0, 0.0)}
    circular = _learner(build_azimuth_net(CIRCULAR), None)
    assert {g["factor"] for g in circular.optimiser.param_groups} == {1.0, 3.0}


def test_training_from_end_to_end(tmp_path: Path, cars: list[CadModel]) -> None:
    options = replace(SMALL, classes=8)
    net = CLASSIFIER | {"channels": [4, 8], "dense": [16]}
    out = tmp_path / "runs" / "car.geopose"
    done = train_azimuth(
        out, 0.02, net=net, pictures=options, cars=cars, replays=2, test_pictures=12, workers=0, quiet=True
    )
    assert done.path == out
    assert len(done.scores.azimuth) == 12
    assert len(done.history[-1]) == len(HISTORY)
    assert done.history[-1][1] >= 16
    names = {p.name for p in out.parent.iterdir()}
    assert names == {"car.geopose", "car_curves.png", "car_confusion.png", "car_pictures.png"}
    loaded, meta = load_azimuth(out)
    assert meta["options"]["classes"] == 8
    assert meta["networks"]["azimuth"]["classes"] == 8
    assert meta["figures"] == jsonable(done.scores.figures(8))
    unseen = AzimuthDataset(cars[3:], options, 2)
    again = judge(loaded, unseen, 12)
    np.testing.assert_array_equal(again.answered, done.scores.answered)
    np.testing.assert_array_equal(again.azimuth, done.scores.azimuth)


def test_training_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: got the folder .* expected a file"):
        train_azimuth(tmp_path)
    with pytest.raises(ValueError, match="minutes: got 0"):
        train_azimuth(tmp_path / "a.geopose", 0)
    with pytest.raises(ValueError, match="replays: got 0"):
        train_azimuth(tmp_path / "a.geopose", 1, replays=0)
    with pytest.raises(ValueError, match="learning_rate: got 2"):
        train_azimuth(tmp_path / "a.geopose", 1, learning_rate=2)
    other = save_model(tmp_path / "b.geopose", {"keypoints": UNet(4)}, {})
    with pytest.raises(ValueError, match=r"b.geopose: holds the networks \['keypoints'\]"):
        load_azimuth(other)
    wrong = AzimuthClassifier(size=64, channels=(4,), dense=(4,))
    wrong.options["dense"] = [8]
    save_model(tmp_path / "c.geopose", {"azimuth": wrong}, {})
    with pytest.raises(ValueError, match=r"c.geopose: the network does not fit its weights"):
        load_azimuth(tmp_path / "c.geopose")


def test_the_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path / "cache"))
    assert len(EXAMPLE.read_text().splitlines()) < 80
    words = f"--out {tmp_path} --minutes 0.02 --cars 4 --count 8 --workers 0"
    load_script("examples", "car_azimuth.py").main(words.split())
    printed = capsys.readouterr().out
    assert "circular, unseen cars: right in" in printed
    assert "geometry, its true points, 2 px off: right in" in printed
    pictures = {p.name for p in tmp_path.glob("*.png")}
    assert {"curves.png", "confusion.png", "circular_pictures.png", "classifier_pictures.png"} <= pictures
