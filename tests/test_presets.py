"""The two recipes: what they say, how they learn, the pose that weighs keypoints, the pictures, and the examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import load_script, random_poses, toy_points
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from geopose.cad.model import load_cad
from geopose.checkpoint import load_model, save_model
from geopose.data.annotated import AnnotatedSet, Augmentation, CropDataset, whole_picture
from geopose.data.semantic import read_semantic, write_semantic
from geopose.data.xwing import read_xwing, write_xwing
from geopose.fit import Clock
from geopose.geometry.camera import Camera
from geopose.nets.unet import UNet, build_keypoint_net
from geopose.preset_report import draw_found, heatmap_sheet, mesh_model, panels, pursuit
from geopose.presets import (
    ROLE,
    SEMANTIC,
    XWING,
    XWING_B0,
    Reading,
    Recipe,
    RecipeModel,
    _learner,
    _Watch,
    argmax_px,
    peaks_px,
    recipe_loss,
    train_recipe,
    weighted_pose,
)
from geopose.visualize import GREEN, RED

EXAMPLES = Path(__file__).parents[1] / "examples"
CAMERA = Camera(400.0, 400.0, 159.5, 119.5, (320, 240))
QUICK = replace(
    SEMANTIC, network={"kind": "hourglass", "stacks": 2, "features": 8, "depth": 2}, size=64, sigma=1.0,
    learning_rate=2e-3, batch_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnnotatedSet, AnnotatedSet]:
    """Rendered cars to train on and to judge with."""
    root = write_semantic(tmp_path_factory.mktemp("cars"), (6, 3), size_wh=(96, 72))
    return read_semantic(root), read_semantic(root, "valid")


def bumps(points: np.ndarray, height: float = 1.0, cells: int = 24, sigma: float = 2.0) -> torch.Tensor:
    """Heatmaps (K, cells, cells) with a Gaussian at each of K crop pixels; a cell is four pixels wide."""
    y, x = 4 * np.mgrid[:cells, :cells] + 1.5
    square = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return torch.from_numpy(height * np.exp(-square / (2 * (4 * sigma) ** 2))).float()


# The recipes


def test_the_recipes_are_those_of_the_literature() -> None:
    assert (XWING.optimiser, XWING.learning_rate, XWING.batch_size) == ("adam", 1e-3, 16)
    assert XWING.size == 256
    assert XWING.plateau is not None
    assert isinstance(build_keypoint_net({**XWING.network, "num_keypoints": 8}, weights=False), UNet)
    assert replace(XWING_B0, name=XWING.name, network=XWING.network) == XWING
    assert build_keypoint_net({**XWING_B0.network, "num_keypoints": 8}).options["encoder"] == "b0"
    assert (SEMANTIC.optimiser, SEMANTIC.learning_rate, SEMANTIC.batch_size) == ("rmsprop", 2.5e-4, 8)
    assert SEMANTIC.augmentation.rotation_deg > 0
    assert SEMANTIC.augmentation.scale[0] < 1 < SEMANTIC.augmentation.scale[1]
    net = build_keypoint_net({**SEMANTIC.network, "num_keypoints": 3})
    with torch.inference_mode():
        out = net.eval()(torch.zeros(1, 3, SEMANTIC.size, SEMANTIC.size))
    assert out["heatmaps"].shape == (1, 3, 64, 64), "256 pixels to K x 64 x 64"
    assert len(out["stacks"]) == 2


@pytest.mark.parametrize(
    "change",
    [{"optimiser": "sgd"}, {"size": 100}, {"learning_rate": 0.0}, {"batch_size": 1}, {"sigma": -1.0}],
)
def test_bad_recipes(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}.*: got"):
        replace(XWING, **change)


@pytest.mark.parametrize(("recipe", "kind"), [(XWING, torch.optim.Adam), (SEMANTIC, torch.optim.RMSprop)])
def test_optimisers_are_those_of_the_recipe(recipe: Recipe, kind: type) -> None:
    learner = _learner(recipe, torch.nn.Conv2d(1, 1, 1))
    assert type(learner.optimiser) is kind
    (group,) = learner.optimiser.param_groups
    assert (group["lr"], group["weight_decay"], group["factor"]) == (recipe.learning_rate, 0, 1)
    assert {learner.schedule(share) for share in (0.0, 0.5, 1.0)} == {1.0}, "no schedule by the clock"


def test_the_rate_falls_where_the_error_does_not(cars: tuple[AnnotatedSet, AnnotatedSet]) -> None:
    recipe = replace(QUICK, plateau=(0.1, 2))
    net = build_keypoint_net({**QUICK.network, "num_keypoints": 12})
    watch = _Watch(_learner(recipe, net), recipe, cars[1], Clock(), 60.0, torch.device("cpu"), True)
    rates = []
    for error in (3.0, 2.0, 2.5, 2.1, 1.0, 1.0, 1.0):
        watch.loss = lambda out, batch, e=error: (torch.tensor(e), {})  # type: ignore[method-assign,misc,assignment]
        watch._lower(0.1, 2)
        rates.append(watch.learner.schedule(0.5))
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_the_loss_is_the_mean_squared_error_of_drawn_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.rand((2, 3, 24, 24), generator=generator)
    points = torch.tensor(
        [[[30.0, 20.0], [40.0, 50.0], [5.0, 5.0]], [[60.0, 60.0], [1.0, 2.0], [33.0, 44.0]]]
    )
    inside = torch.tensor([[True, True, False], [True, True, True]])
    batch = {"keypoints_px": points[:, None], "inside": inside[:, None]}
    wanted = torch.stack([bumps(p.numpy(), sigma=1.5) for p in points])
    by_hand = (found - wanted).square().mean((2, 3))[inside].mean()
    loss, _ = recipe_loss({"heatmaps": found}, batch, 1.5)
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-4)
    twice, _ = recipe_loss({"heatmaps": found, "stacks": [found, found]}, batch, 1.5)
    assert float(twice) == pytest.approx(2 * float(by_hand), rel=1e-4)


def test_peaks_between_the_cells(rng: np.random.Generator) -> None:
    points = rng.uniform(4, 91, (40, 2))
    maps = bumps(points, height=0.7)
    np.testing.assert_allclose(peaks_px(maps), points, atol=0.4)
    np.testing.assert_allclose(argmax_px(maps), 4 * np.rint((points - 1.5) / 4) + 1.5)


# The pose


def test_the_weighted_pose_is_the_least_squares_optimum(rng: np.random.Generator) -> None:
    """Of the sum of confidence times squared pixels over R and t, as SciPy finds it."""
    points, truth = toy_points(rng, 10), random_poses(rng, 1)[0]
    confidence = rng.uniform(0.1, 1.0, 10)
    seen = (
        np.asarray(CAMERA.project(truth.apply(points)))
        + rng.normal(0, 1, (10, 2)) / np.sqrt(confidence)[:, None]
    )

    def residual(x: np.ndarray) -> np.ndarray:
        at = points @ Rotation.from_rotvec(x[:3]).as_matrix().T + x[3:]
        pixels = at[:, :2] / at[:, 2:] * 400 + [159.5, 119.5]
        return ((pixels - seen) * np.sqrt(confidence)[:, None]).ravel()

    start = np.concatenate([Rotation.from_matrix(truth.R).as_rotvec(), truth.t])
    best = least_squares(residual, start, xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    found = weighted_pose(points, seen, confidence, CAMERA)
    assert found.status == "ok"
    np.testing.assert_allclose(found.pose.R, Rotation.from_rotvec(best[:3]).as_matrix(), atol=1e-4)
    np.testing.assert_allclose(found.pose.t, best[3:], atol=1e-3)
    even = weighted_pose(points, seen, np.ones(10), CAMERA)
    assert np.abs(even.pose.R - found.pose.R).max() > 1e-3, "confidence matters"


def test_points_without_confidence_hardly_pull(rng: np.random.Generator) -> None:
    points, truth = toy_points(rng, 10), random_poses(rng, 1)[0]
    seen = np.asarray(CAMERA.project(truth.apply(points)))
    seen[:2] += 6.0
    confidence = np.array([0.0] * 2 + [1.0] * 8)
    pose = weighted_pose(points, seen, confidence, CAMERA).pose
    even = weighted_pose(points, seen, np.ones(10), CAMERA).pose
    assert np.linalg.norm(pose.t - truth.t) < 0.2 * np.linalg.norm(even.t - truth.t)


# Training


def test_training_from_end_to_end(tmp_path: Path, cars: tuple[AnnotatedSet, AnnotatedSet]) -> None:
    out = train_recipe(QUICK, *cars, tmp_path / "runs" / "car.geopose", 0.02, workers=0, quiet=True)
    assert {p.name for p in out.parent.iterdir()} == {"car.geopose", "car_training.png"}
    model = RecipeModel.load(out)
    assert model.size == 64
    assert model.meta["recipe"]["optimiser"] == "rmsprop"
    assert model.meta["images"] >= 4
    np.testing.assert_allclose(model.meta["points_obj"], cars[0].points_obj)
    reading = model.read(cars[1])
    assert reading.points_px.shape == (3, 12, 2)
    assert reading.heatmaps.shape == (3, 12, 16, 16)
    assert ((reading.confidence >= 0) & (reading.confidence <= 1)).all()
    assert reading.nmae == pytest.approx(model.meta["figures"]["nmae_argmax"])
    blind = replace(cars[1], keypoints_px=np.full((3, 12, 2), np.nan))
    again = model.read(blind)
    np.testing.assert_array_equal(again.points_px, reading.points_px)
    assert np.isnan(again.nmae)


def test_a_network_learns_pictures_by_heart() -> None:
    """Discs of three colours on grey: after some steps each is found in crops that were never turned so."""
    rng = np.random.default_rng(0)
    at = rng.uniform(20, 76, (12, 3, 2))
    images = {}
    for i, points in enumerate(at):
        picture = np.full((96, 96, 3), 100, np.uint8)
        for k, p in enumerate(points):
            color = [0, 0, 0]
            color[k] = 255
            cv2.circle(picture, np.rint(p).astype(int).tolist(), 6, color, -1)
        images[str(i)] = picture
    data = AnnotatedSet(
        tuple(images),
        np.eye(3),
        np.rint(at),
        np.tile(whole_picture((96, 96)), (12, 1)),
        CAMERA,
        images.__getitem__,
    )
    torch.manual_seed(0)
    net = build_keypoint_net(
        {"kind": "hourglass", "stacks": 1, "features": 16, "depth": 2, "num_keypoints": 3}
    )
    recipe = replace(QUICK, size=96, sigma=1.5, augmentation=Augmentation(20.0, scale=(0.9, 1.2)))
    learner = _learner(replace(recipe, learning_rate=3e-3), net.train())
    crops = CropDataset(data, 96, recipe.augmentation)
    for step in range(60):
        batch = torch.utils.data.default_collate([crops[8 * step + i] for i in range(8)])
        loss, _ = recipe_loss(net(batch["image"]), batch, recipe.sigma)
        learner.optimiser.zero_grad()
        loss.backward()
        learner.optimiser.step()
    reading = RecipeModel(net, {"recipe": {"size": 96}}, torch.device("cpu")).read(data)
    assert reading.nmae < 0.05
    assert np.median(np.linalg.norm(reading.points_px - data.keypoints_px, axis=-1)) < 3


def test_training_refuses(tmp_path: Path, cars: tuple[AnnotatedSet, AnnotatedSet]) -> None:
    with pytest.raises(ValueError, match="minutes: got 0"):
        train_recipe(QUICK, *cars, tmp_path / "a.geopose", 0)
    other = replace(cars[1], points_obj=np.zeros((2, 3)), keypoints_px=np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match="unseen: got 2 keypoints, expected 12"):
        train_recipe(QUICK, cars[0], other, tmp_path / "a.geopose", 0.1)
    foreign = save_model(tmp_path / "b.geopose", {ROLE: UNet(4)}, {})
    assert list(load_model(foreign)[0]) == [ROLE]
    with pytest.raises(ValueError, match=r"b.geopose: .* expected one made by train_recipe"):
        RecipeModel.load(foreign)


# Pictures


@pytest.fixture
def truthful(cars: tuple[AnnotatedSet, AnnotatedSet]) -> Reading:
    """What a network would see that finds every keypoint."""
    crops = CropDataset(cars[1], 96)
    items = [crops[i] for i in range(3)]
    maps = np.stack([bumps(item["keypoints_px"][0]) for item in items])
    matrices = np.stack([item["crop_from_image"] for item in items])
    return Reading(cars[1].keypoints_px, np.ones((3, 12)), maps, matrices, 0.0)


def share_of(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - color).max(-1) < 40).mean())


def test_heatmaps_and_keypoints_are_drawn(cars: tuple[AnnotatedSet, AnnotatedSet], truthful: Reading) -> None:
    drawn = heatmap_sheet(cars[1], truthful, [0, 2], side=96)
    assert drawn.shape[0] > 2 * 96
    assert drawn.shape[1] > 13 * 96
    right = draw_found(cars[1], truthful, 0)
    wrong = draw_found(cars[1], replace(truthful, points_px=truthful.points_px + 8.0), 0)
    assert share_of(right, GREEN) > 0
    assert share_of(wrong, RED) > share_of(right, RED), "annotations show where they are not covered"


def test_four_panels_tell_of_a_pose(cars: tuple[AnnotatedSet, AnnotatedSet], truthful: Reading) -> None:
    found = weighted_pose(cars[1].points_obj, truthful.points_px, truthful.confidence, cars[1].camera)
    assert (found.status == "ok").all()
    model = mesh_model(cars[1])
    np.testing.assert_allclose(model.bounds, load_cad("car").bounds)
    four = panels(cars[1], truthful, 1, found.pose[1], model)
    assert list(four) == ["true keypoints", "heatmaps", "keypoints found", "the CAD model aligned"]
    plain = cars[1].read(cars[1].names[1])
    assert np.abs(four["the CAD model aligned"].astype(int) - plain).mean() > 1
    with pytest.raises(ValueError, match="pictures: the set holds no mesh"):
        mesh_model(replace(cars[1], mesh=None))


def test_the_pursued_ship_is_seen_from_behind() -> None:
    poses = pursuit(24, 20.0)
    assert len(poses) == 24
    ahead = np.stack([pose.R[:, 0] for pose in poses])  # the nose, camera frame
    assert (ahead[:, 2] > 0.2).all(), "it flies away"
    assert ((15 < np.stack([p.t for p in poses])[:, 2]) & (np.stack([p.t for p in poses])[:, 2] < 25)).all()


# Examples


def run_example(name: str, words: str) -> None:
    path = EXAMPLES / name
    assert len(path.read_text().splitlines()) < 80
    load_script("examples", name).main(words.split())


def test_the_xwing_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("xwing.py", f"--out {tmp_path} --minutes 0.02 --count 6 --frames 3 --workers 0")
    printed = capsys.readouterr().out
    assert "1 pictures not trained on: normalised mean absolute argmax error 0." in printed
    assert "PnP gives a pose in" in printed
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "set", "xwing.geopose", "xwing_training.png", "heatmaps.png", "keypoints.png", "animation.gif"
    }  # fmt: skip
    assert len(read_xwing(tmp_path / "set")) == 6


def test_the_semantic_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("semantic_keypoints.py", f"--out {tmp_path} --minutes 0.02 --count 6 --workers 0")
    printed = capsys.readouterr().out
    assert "3 pictures not trained on" in printed
    assert "the CAD keypoints lie" in printed
    assert {"semantic.geopose", "semantic_training.png", "keypoints.png"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_examples_take_original_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The full recipe, on a folder in the original's layout."""
    root = write_xwing(tmp_path / "data", 17, side=64)
    run_example("xwing.py", f"{root} --out {tmp_path / 'out'} --minutes 0.001 --frames 2 --workers 0")
    assert "1 pictures not trained on" in capsys.readouterr().out
    assert RecipeModel.load(tmp_path / "out" / "xwing.geopose").size == 256
    assert not (tmp_path / "out" / "set").exists()
