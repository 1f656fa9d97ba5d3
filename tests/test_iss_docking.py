"""The ISS docking data: its files, pictures and pixels; a set made in its form; network, training and figures."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import load_script
from PIL import Image
from scipy import stats

from geopose import docking_train
from geopose.cad.model import load_cad
from geopose.data import iss_docking_write
from geopose.data.iss_docking import (
    DockingDataset,
    Labels,
    cut,
    docking_answer,
    picture_path,
    radius2,
    read_labels,
    second_look,
    split_ids,
    to_size,
    write_ids,
    write_labels,
)
from geopose.data.iss_docking_write import (
    DockingPictures,
    DockingScenes,
    read_truth,
    write_iss_docking,
)
from geopose.docking_report import (
    Prediction,
    calibrated,
    errors,
    evaluate,
    fit_uncertainty,
    in_words,
    marked,
    plot_errors,
    rows,
)
from geopose.docking_train import (
    DockingModel,
    DockingOptions,
    predict,
    predict_pictures,
    train_docking,
)
from geopose.fit import Clock
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.nets.docking import DockingNet, build_docking, docking_loss, read_docking

ROOT = Path(__file__).parents[1]
TABLE = 'ImageID,distance,location\n0,351,"[215, 158]"\n7,61,"[4, 511]"\n'


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_iss_docking(tmp_path_factory.mktemp("iss") / "set", (8, 6, 3))


def test_tables_are_read_and_written_in_the_original_form(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode() + b"\r\n")
    labels = read_labels(path)
    assert labels.ids.tolist() == [0, 7]
    assert labels.distance.tolist() == [351, 61]
    assert labels.location.tolist() == [[215, 158], [4, 511]]
    exact = Labels(labels.ids, labels.distance + 0.4, labels.location - 0.3)
    assert write_labels(tmp_path / "submission.csv", exact).read_text() == TABLE
    path.write_text('location,note,ImageID,distance\n"[215.5,158]",x,3,9.25\n')
    labels = read_labels(path)
    assert (labels.ids[0], labels.distance[0], *labels.location[0]) == (3, 9.25, 215.5, 158)
    with pytest.raises(ValueError, match="finite"):
        write_labels(path, replace(labels, distance=np.array([np.nan])))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('1,far,"[1, 2]"', "distance: got 'far'"),
        ('1,-3,"[1, 2]"', "positive"),
        ('1,nan,"[1, 2]"', "positive"),
        ('1,5,"[1, 2, 3]"', "location: got"),
        ('1,5,"[1, NaN]"', "location: got"),
        ('1,5,"[true, 2]"', "location: got"),
        ("1,5," + "[" * 90_000, "location: got"),
        ("1,5,\"[print('here'), 2]\"", "location: got"),
        ('../1,5,"[1, 2]"', "ImageID: got '../1'"),
        ('99999999999999999999,5,"[1, 2]"', "ImageID: got '99999999999999999999'"),
        ("1,5", "got 2 cells, expected 3"),
        ('0,5,"[1, 2]"', "ImageID 0 is also in line 2"),
    ],
)
def test_broken_rows_are_named_with_file_and_line(
    tmp_path: Path, row: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.csv"
    path.write_text(TABLE + row + "\n")
    with pytest.raises(ValueError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert said in str(caught.value)
    assert capsys.readouterr().out == ""


def test_all_kinds_of_broken_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text(TABLE + "x,1,2\n" * 7)
    with pytest.raises(ValueError) as caught:
        read_labels(path)
    said = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in said[:5]] == ["4", "5", "6", "7", "8"]
    assert said[5:] == ["and 2 more"]
    for content in (
        b"ImageID,distance\n1,2\n",
        b"",
        b"\xff\xfe\n",
        b'ImageID,distance,location\n1,2,"[1, 2]',
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"val\.csv"):
            read_labels(path)
    with pytest.raises(FileNotFoundError, match="test"):
        split_ids(tmp_path, "test")
    with pytest.raises(ValueError, match="split"):
        split_ids(tmp_path, "all")


def test_pictures_for_test_need_no_table(tmp_path: Path) -> None:
    for number in (10, 2):
        path = picture_path(tmp_path, "test", number)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (512, 512)).save(path)
    assert DockingDataset(tmp_path, "test", 64).ids.tolist() == [2, 10]
    assert set(DockingDataset(tmp_path, "test", 64)[1]) == {"image", "id"}
    write_ids(tmp_path / "test.csv", np.array([10, 3]))
    with pytest.raises(ValueError, match=r"3\.jpg: no such picture \(1 of 2 are missing\)"):
        DockingDataset(tmp_path, "test", 64)
    picture_path(tmp_path, "test", 3).write_bytes(b"no picture")
    pictures = DockingDataset(tmp_path, "test", 64)
    assert pictures.ids.tolist() == [10, 3]
    with pytest.raises(ValueError, match=r"3\.jpg: expected a picture"):
        pictures[1]
    Image.new("RGB", (512, 500)).save(picture_path(tmp_path, "test", 10))
    with pytest.raises(ValueError, match=r"10\.jpg: expected a square picture, got 512 x 500"):
        pictures[0]


def centroid(image: np.ndarray, channel: int) -> np.ndarray:
    weight = np.asarray(image[channel], float)
    weight = np.where(weight > 40, weight, 0)
    y, x = np.indices(weight.shape)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def write_dots(root: Path, location: tuple[int, int], apart: int) -> None:
    """A picture with a red dot at the location, a green one `apart` pixels right of it, and its table."""
    picture = np.zeros((512, 512, 3), np.uint8)
    x, y = location
    cv2.circle(picture, (x, y), 9, (255, 0, 0), -1)
    cv2.circle(picture, (x + apart, y), 9, (0, 255, 0), -1)
    (root / "train").mkdir()
    Image.fromarray(picture).save(root / "train" / "0.jpg", quality=98, subsampling=0)
    write_labels(root / "train.csv", Labels(np.array([0]), np.array([200.0]), np.array([[x, y]], float)))


def test_location_and_distance_follow_the_picture(tmp_path: Path) -> None:
    write_dots(tmp_path, (300, 170), 60)
    plain = DockingDataset(tmp_path, "train", 256)[0]
    np.testing.assert_allclose(plain["location_px"], [149.75, 84.75])
    np.testing.assert_allclose(plain["location_px"], centroid(plain["image"], 0), atol=0.1)
    assert plain["distance"] == 200
    pictures = DockingDataset(tmp_path, "train", 256, augment=4, near=80.0)
    shares = []
    for index in range(24):
        item = pictures[index]
        red = centroid(item["image"], 0)
        np.testing.assert_allclose(item["location_px"], red, atol=0.4)
        apart = np.linalg.norm(centroid(item["image"], 1) - red) / np.linalg.norm(
            centroid(plain["image"], 1) - centroid(plain["image"], 0)
        )
        np.testing.assert_allclose(item["distance"], 200 / apart, rtol=0.02)
        assert item["radius2"] == pytest.approx(((300 - 255.5) ** 2 + (170 - 255.5) ** 2) / 512**2)
        shares.append(float(item["distance"]) / 200)
    assert min(shares) < 0.5 < 1.0 < max(shares)  # both kinds of windows


def test_augmentation_repeats_and_takes_each_picture_once_a_turn(small_set: Path) -> None:
    pictures, again = (DockingDataset(small_set, "train", 64, augment=3) for _ in range(2))
    for index in (0, 5, 1234567):
        one, two = pictures[index], again[index]
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(
        pictures[0]["image"], DockingDataset(small_set, "train", 64, augment=4)[0]["image"]
    )
    turns = [[int(pictures[8 * turn + i]["id"]) for i in range(8)] for turn in range(2)]
    assert sorted(turns[0]) == sorted(turns[1]) == list(range(8))
    assert turns[0] != turns[1]
    with pytest.raises(ValueError, match="augment"):
        DockingDataset(small_set, "test", 64, augment=1)


def test_a_window_moves_pixels_as_a_camera_does() -> None:
    camera = Camera(600.0, 600.0, 255.5, 255.5, (512, 512))
    points = np.array([[0.3, -0.2, 2.0], [-0.4, 0.1, 3.0]])
    crop = camera.crop_resize(np.array([99.5, 49.5, 299.5, 249.5]), (64, 64))
    moved = to_size(camera.project(points) - [100, 50], 200, 64)
    np.testing.assert_allclose(moved, crop.project(points), atol=1e-9)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    window = cut(picture, (-3, 35), 10, 10)
    np.testing.assert_array_equal(window[:5, 3:], picture[35:, :7])
    assert not window[5:].any()
    assert not window[:, :3].any()
    assert not cut(picture, (100, -70), 8, 8).any()


def test_a_second_look_is_centred_and_never_farther() -> None:
    corner, width = second_look((300.0, 40.0), 440.0, 110.0, 512)
    assert width == 128
    np.testing.assert_allclose(corner + 63.5, (300, 40), atol=0.5)
    assert second_look((300.0, 40.0), 90.0, 110.0, 512)[1] == 512
    assert second_look((300.0, 40.0), np.nan, 110.0, 512)[1] == 512
    assert second_look((300.0, 40.0), 1e9, 110.0, 512)[1] == round(0.15 * 512)
    assert radius2((255.5, 511.5), 512) == 0.25


def test_a_pose_answers_where_and_how_far() -> None:
    camera = Camera(618.0, 618.0, 255.5, 255.5, (512, 512))
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    poses = Pose(np.stack([np.eye(3), turn]), np.array([[30.0, -40.0, 1200.0], [0, 0, -5]]))
    location, distance = docking_answer(poses, camera, (10.0, 0.0, 0.0), unit_m=2.5)
    np.testing.assert_allclose(location[0], [255.5 + 618 * 40 / 1200, 255.5 - 618 * 40 / 1200])
    np.testing.assert_allclose(distance, [np.sqrt(40**2 + 40**2 + 1200**2) / 2.5, np.hypot(10, 5) / 2.5])
    assert np.isnan(location[1]).all()  # behind the camera
    location, distance = docking_answer(poses[0], camera, (10.0, 0.0, 0.0))
    assert location.shape == (2,)
    assert distance.shape == ()


def test_a_rendered_set_has_the_original_layout(small_set: Path) -> None:
    found = sorted(str(p.relative_to(small_set)) for p in small_set.rglob("*") if p.is_file())
    tables = ["test.csv", "train.csv", "truth.json", "val.csv"]
    counts = {"train": 8, "val": 6, "test": 3}
    assert found == sorted(tables + [f"{s}/{i}.jpg" for s, c in counts.items() for i in range(c)])
    assert (small_set / "test.csv").read_text() == "ImageID\n0\n1\n2\n"
    with Image.open(small_set / "val" / "5.jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (512, 512))
    lines = (small_set / "train.csv").read_text().splitlines()
    assert lines[0] == "ImageID,distance,location"
    number, distance, rest = lines[1].split(",", 2)
    assert (number, distance.isdecimal(), rest[:2], rest[-2:]) == ("0", True, '"[', ']"')
    truth = read_truth(small_set)
    for split in ("train", "val"):
        labels, exact = read_labels(small_set / f"{split}.csv"), truth[split][0]
        assert np.abs(labels.distance - exact.distance).max() <= 0.5
        assert np.abs(labels.location - exact.location).max() <= 0.5
        assert ((exact.distance >= 61) & (exact.distance <= 491)).all()


def test_rendered_stations_are_where_the_tables_say(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = read_truth(small_set)
    station = load_cad("iss")
    K = np.asarray(truth["camera"].K)
    # OpenCV projects the middle of the bounding box to the location, and its distance is the vector's length.
    labels, poses = truth["test"]
    middle = 0.5 * (station.bounds[0] + station.bounds[1])
    for i in range(len(labels)):
        rvec = cv2.Rodrigues(poses.R[i])[0]
        px = cv2.projectPoints(middle.reshape(1, 1, 3), rvec, poses.t[i], K, None)[0].reshape(2)
        np.testing.assert_allclose(px, labels.location[i], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(poses.R[i] @ middle + poses.t[i]) / 2.5, labels.distance[i])
    # Before black, what is bright lies within the projected mesh, and fills most of its box.
    monkeypatch.setattr(iss_docking_write, "BACKGROUNDS", {"black": 1.0})
    write_iss_docking(tmp_path, (3, 0, 0), DockingScenes(seed=2))
    poses = read_truth(tmp_path)["train"][1]
    for i in range(3):
        rvec = cv2.Rodrigues(poses.R[i])[0]
        px = cv2.projectPoints(station.vertices[:, None], rvec, poses.t[i], K, None)[0][:, 0]
        low, high = px.min(0).clip(0, 511), px.max(0).clip(0, 511)
        picture = np.asarray(Image.open(tmp_path / "train" / f"{i}.jpg").convert("L"))
        bright = cv2.medianBlur(picture, 3) > 30
        y, x = np.nonzero(bright)
        assert (x.min() >= low[0] - 3) & (x.max() <= high[0] + 3)
        assert (y.min() >= low[1] - 3) & (y.max() <= high[1] + 3)
        assert np.prod(high - low) < 4 * (np.ptp(x) + 1) * (np.ptp(y) + 1)


def test_an_interrupted_set_goes_on_and_never_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_iss_docking(tmp_path / "a", (2, 1, 0))
    monkeypatch.setattr(DockingPictures, "picture", dying(DockingPictures.picture, 1))
    with pytest.raises(KeyboardInterrupt):
        write_iss_docking(tmp_path / "b", (2, 1, 0))
    names = sorted(p.name for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert names == ["0.jpg", "truth.json"]  # no table before its pictures
    monkeypatch.undo()
    (tmp_path / "b" / "train" / "0.jpg").write_bytes((whole / "train" / "0.jpg").read_bytes())
    write_iss_docking(tmp_path / "b", (2, 1, 0))
    for path in whole.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(whole)).read_bytes()
    before = (whole / "train.csv").read_text()
    for other in (DockingScenes(seed=1), DockingScenes(target="docking_port")):
        with pytest.raises(ValueError, match=r"truth\.json: this folder holds a set made otherwise"):
            write_iss_docking(whole, (2, 1, 0), other)
    assert (whole / "train.csv").read_text() == before


def dying(method, pictures: int):  # type: ignore[no-untyped-def]
    """`method`, interrupted after it was called this often."""
    calls = itertools.count()

    def wrapped(*args: object) -> object:
        if next(calls) >= pictures:
            raise KeyboardInterrupt
        return method(*args)

    return wrapped


def test_pictures_depend_on_seed_split_and_number_alone() -> None:
    one, two = DockingPictures(), DockingPictures()
    np.testing.assert_array_equal(one.picture("val", 3), two.picture("val", 3))
    assert not np.allclose(one.pose("val", 3).t, one.pose("train", 3).t)
    assert not np.allclose(
        one.pose("val", 3).t, DockingPictures(None, DockingScenes(seed=1)).pose("val", 3).t
    )
    port = DockingPictures(None, DockingScenes(target="docking_port"))
    assert port.target.tolist() == list(load_cad("iss").named_keypoints["docking_port"])
    attitudes = np.stack([one.pose("train", i).R for i in range(400)])
    assert np.abs(attitudes.mean(0)).max() < 0.12  # every direction as often as its opposite


@pytest.mark.parametrize(
    ("options", "said"),
    [({"target": "sun"}, "target"), ({"unit_m": 0.0}, "unit_m"), ({"distance": (9, 3)}, "distance"),
     ({"margin": 0.7}, "margin"), ({"unit_m": 1.0}, "farthest point")],
)  # fmt: skip
def test_scenes_that_cannot_be_are_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        write_iss_docking(tmp_path, (1, 0, 0), DockingScenes(**options))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts"):
        write_iss_docking(tmp_path, (0, 0, 0))
    (tmp_path / "truth.json").write_text('{"made_of": []}')
    with pytest.raises(ValueError, match=r"truth\.json"):
        read_truth(tmp_path)


def small_net(**options: object) -> DockingNet:
    torch.manual_seed(0)
    return DockingNet(**{"width": 16, "bfloat16": False, **options})  # type: ignore[arg-type]


def test_the_network_is_rebuilt_from_its_options() -> None:
    net = small_net(log_distance=(5.0, 0.4), frozen_5x5=True).eval()
    again = build_docking(json.loads(json.dumps(net.options)), weights=False).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    picture = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    one, two = net(picture), again(picture)
    assert one["heatmaps"].shape == (2, 1, 8, 12)
    assert all(one[k].shape == (2,) for k in ("log_distance", "log_scale", "bend"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    for bad in ({"width": 16, "depth": 3}, {"log_distance": (5.0, 0.0)}):
        with pytest.raises(ValueError):
            build_docking(bad)


def test_the_location_is_read_where_the_heatmap_peaks() -> None:
    at = torch.tensor([[101.0, 38.5], [17.25, 90.0]], dtype=torch.float64)
    cells = (at + 0.5) / 8 - 0.5
    grid = torch.arange(16, dtype=torch.float64)
    distance2 = (grid - cells[:, :1, None]) ** 2 + (grid[:, None] - cells[:, 1:, None]) ** 2
    for sigma in (1.0, 1.2):
        location, cov = read_docking({"heatmaps": (-distance2 / (2 * sigma**2))[:, None]})
        torch.testing.assert_close(location, at, atol=0.3, rtol=0)
        # The location's own variance is what that of the peak, cut at 3 cells, exceeds the training target's by.
        own = sigma**2 * stats.truncnorm(-3 / sigma, 3 / sigma).var() - 1
        assert float(cov[0, 0, 0]) == pytest.approx(64 * max(own, 0.1**2), rel=0.15, abs=1.0)


def test_the_loss_is_the_likelihood_it_says() -> None:
    out = {
        "heatmaps": torch.zeros(2, 1, 8, 8, requires_grad=True),
        "log_distance": torch.tensor([5.0, 4.0]),
        "log_scale": torch.tensor([-1.0, 0.5]),
        "bend": torch.tensor([0.8, 0.8]),
    }
    targets = {
        "location_px": torch.tensor([[10.0, 20.0], [63.0, 1.0]]),
        "distance": torch.tensor([200.0, 61.0]),
        "radius2": torch.tensor([0.25, 0.0]),
    }
    _, parts = docking_loss(out, targets)
    means = np.array([5.0 + 0.8 * 0.25, 4.0])
    density = stats.laplace.logpdf(np.log([200.0, 61.0]), means, np.exp([-1.0, 0.5]))
    assert float(parts["distance_nll"]) == pytest.approx(-density.mean() - np.log(2), rel=1e-5)
    with pytest.raises(ValueError, match="location_px"):
        docking_loss(out, {**targets, "location_px": torch.zeros(3, 2)})


def test_every_weight_that_may_learn_does() -> None:
    net = small_net(frozen_stride=4).train()
    items = {
        "location_px": torch.tensor([[30.0, 40.0], [10.0, 20.0]]),
        "distance": torch.tensor([90.0, 300.0]),
        "radius2": torch.tensor([0.01, 0.2]),
    }
    loss, _ = docking_loss(net(torch.rand(2, 3, 64, 64)), items)
    loss.backward()
    still = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    assert all(p.grad is None for p in net.encoder.layers[0].parameters())


def simulated(count: int, seed: int) -> tuple[Prediction, Labels]:
    """Predictions whose errors have exactly the distributions that they claim."""
    rng = np.random.default_rng(seed)
    labels = Labels(np.arange(count), rng.uniform(61, 491, count), rng.uniform(0, 511, (count, 2)))
    root = rng.normal(0, 4, (count, 2, 2)) + 6 * np.eye(2)
    cov = root @ root.mT
    wild = np.sqrt(4 / rng.chisquare(4, (count, 1)))
    off = (root @ rng.normal(size=(count, 2, 1)))[..., 0] * wild
    scale = np.exp(rng.uniform(-4, -2, count))
    distance = labels.distance * np.exp(rng.laplace(0, scale))
    return Prediction(labels.ids, labels.location + off, cov, distance, scale), labels


def test_figures_and_levels_are_those_of_the_errors() -> None:
    labels = Labels(np.array([4, 9]), np.array([100.0, 200.0]), np.array([[10.0, 20], [30, 40]]))
    answers = Prediction(
        np.array([9, 4, 1]), np.array([[33.0, 44], [10, 21], [0, 0]]), np.stack([4 * np.eye(2)] * 3),
        np.array([190.0, 104, 1]), np.array([0.1, 0.1, 0.1]),
    )  # fmt: skip
    found = errors(answers, labels)
    np.testing.assert_allclose(found["location_px"], [1, 5])
    np.testing.assert_allclose(found["distance_percent"], [4, -5])
    assert found["distance_level"][0] == pytest.approx(1 - np.exp(-np.log(1.04) / 0.1))
    figures = evaluate(answers, labels)
    assert (figures["location_median_px"], figures["distance_median_percent"]) == (3, pytest.approx(4.5))
    assert figures["location_p90_px"] == pytest.approx(1 + 0.9 * 4)
    assert "3.0 px" in in_words(figures)
    assert "4.5 %" in in_words(figures)
    with pytest.raises(ValueError, match="ImageID 5"):
        evaluate(answers, replace(labels, ids=np.array([4, 5])))
    honest = evaluate(*simulated(4000, 1))
    for kind, share in itertools.product(("location", "distance"), (50, 90)):
        assert honest[f"{kind}_inside_{share}"] == pytest.approx(share / 100, abs=0.025)


def test_uncertainties_are_made_honest() -> None:
    truthful, labels = simulated(3000, 2)
    claimed = replace(
        truthful, location_cov=truthful.location_cov / 9, distance_scale=truthful.distance_scale * 2.5
    )
    fitted = fit_uncertainty(claimed, labels)
    assert fitted["location_scale"] == pytest.approx(9, rel=0.15)
    assert fitted["distance_factor"] == pytest.approx(1 / 2.5, rel=0.06)
    others, other_labels = simulated(3000, 3)
    claimed = replace(
        others, location_cov=others.location_cov / 9, distance_scale=others.distance_scale * 2.5
    )
    figures = evaluate(calibrated(claimed, fitted), other_labels)
    assert figures["location_inside_90"] == pytest.approx(0.9, abs=0.02)
    assert figures["distance_inside_50"] == pytest.approx(0.5, abs=0.03)
    json.dumps(fitted)


def test_pictures_of_answers_and_errors(tmp_path: Path) -> None:
    answers, labels = simulated(60, 4)
    answers = replace(answers, location=np.full((60, 2), 100.0), location_cov=np.stack([25 * np.eye(2)] * 60))
    picture = np.full((256, 256, 3), 90, np.uint8)
    drawn = marked(picture, answers, 0, ([200.0, 150.0], 300.0))
    assert picture.min() == picture.max() == 90  # the one given is left alone
    assert drawn[100, 100].tolist() == [70, 255, 130]
    assert drawn[150, 200].tolist() == [255, 70, 70]
    # 0.9 of a bivariate t with 4 degrees of freedom: 1 - (1 + r^2 / 4)^-2, solved for r, times 5 pixels
    reach = 5 * np.sqrt(4 * (0.1**-0.5 - 1))
    assert np.abs(drawn[100, round(100 + reach)].astype(int) - [70, 255, 130]).max() < 90
    below = marked(picture, answers, 0)[round(100 + reach) + 4 :]
    assert below.min() == below.max() == 90
    path = plot_errors(answers, labels, tmp_path / "errors.png", "title")
    with Image.open(path) as figure:
        assert np.asarray(figure.convert("RGB")).std() > 20


class StepClock(Clock):
    """Time that passes one second a look: the same number of steps on every machine."""

    def __init__(self) -> None:
        self.now = -1.0

    def elapsed(self) -> float:
        self.now += 1.0
        return self.now


def tiny_training(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Path:
    monkeypatch.setattr(docking_train, "Clock", StepClock)
    chosen = {"minutes": 0.5, "size": 64, "batch_size": 4, "pretrained": False, "workers": 0, "quiet": True}
    return train_docking(root, out, DockingOptions(**{**chosen, **options}))  # type: ignore[arg-type]


def test_a_training_leaves_a_model_that_answers(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_training(small_set, tmp_path / "iss.geopose", monkeypatch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iss.geopose", "iss_training.png"]
    model = DockingModel.load(path)
    assert model.meta["images"] >= 40
    assert model.meta["figures"]["pictures"] == 3
    assert 61 < model.near < 491
    answers = predict(model, small_set, "test")
    assert answers.ids.tolist() == [0, 1, 2]
    assert np.isfinite(answers.location).all()
    assert (np.linalg.eigvalsh(answers.location_cov) > 0).all()
    assert (answers.distance > 0).all()
    assert (answers.distance_scale > 0).all()
    # One by one and by path, the same; val figures are those in the file.
    files = [str(picture_path(small_set, "test", i)) for i in range(3)]
    single = predict_pictures(model, files)
    np.testing.assert_allclose(single.location, answers.location, atol=0.05)
    np.testing.assert_allclose(single.distance, answers.distance, rtol=1e-3)
    labels = read_labels(small_set / "val.csv")
    figures = evaluate(rows(predict(model, small_set, "val"), np.s_[3:]), rows(labels, np.s_[3:]))
    assert figures["location_median_px"] == pytest.approx(model.meta["figures"]["location_median_px"])
    table = read_labels(write_labels(tmp_path / "submission.csv", answers.labels))
    np.testing.assert_allclose(table.distance, answers.distance, atol=0.5)
    with pytest.raises(ValueError, match="square"):
        predict_pictures(model, [np.zeros((64, 50, 3), np.uint8)])
    again = tiny_training(small_set, tmp_path / "again.geopose", monkeypatch)
    assert np.array_equal(predict(DockingModel.load(again), small_set, "test").distance, answers.distance)


def test_a_second_look_answers_for_the_whole_picture(small_set: Path) -> None:
    """A network that says the same of every window: what comes out is that of the window it looked at."""

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = torch.full((len(x), 1, 8, 8), -9.0)
            logits[:, 0, 2, 5] = 9.0  # cell (5, 2)
            values = torch.ones(len(x))
            return {
                "heatmaps": logits,
                "log_distance": np.log(400.0) * values,
                "log_scale": -2.0 * values,
                "bend": 0.5 * values,
            }

    meta = {"options": {"size": 64}, "near": 110.0, "calibration": {}}
    model = DockingModel(Fixed(), meta, torch.device("cpu"))
    found = predict_pictures(model, [np.zeros((512, 512, 3), np.uint8)])
    first = (np.array([5.5, 2.5]) * 8 - 0.5 + 0.5) * 8 - 0.5
    whole = 400 * np.exp(0.5 * radius2(first, 512))
    width = round(512 * 110 / whole)
    corner = np.rint(first - (width - 1) / 2)
    second = corner + np.array([5.5, 2.5]) * 8 * width / 64 - 0.5
    np.testing.assert_allclose(found.location[0], second, atol=0.5)
    expected = 400 * np.exp(0.5 * radius2(second, 512)) * 512 / width
    np.testing.assert_allclose(found.distance[0], expected, rtol=1e-3)
    np.testing.assert_allclose(found.distance_scale, np.exp(-2.0))


def test_bad_options_and_files_are_refused(small_set: Path, tmp_path: Path) -> None:
    for options in ({"minutes": 0.0}, {"size": 100}, {"batch_size": 0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DockingOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        train_docking(tmp_path, tmp_path / "x.geopose")
    (tmp_path / "train.csv").write_text("ImageID,distance,location\n")
    with pytest.raises(ValueError, match=r"train\.csv: expected at least one picture"):
        train_docking(tmp_path, tmp_path / "x.geopose")
    write_dots(tmp_path, (50, 60), 40)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.jpg").write_bytes((tmp_path / "train" / "0.jpg").read_bytes())
    (tmp_path / "val.csv").write_bytes((tmp_path / "train.csv").read_bytes())
    with pytest.raises(ValueError, match=r"val\.csv: expected two pictures"):
        train_docking(tmp_path, tmp_path / "x.geopose")
    built_in = Path(docking_train.__file__).parent / "weights" / "xwing.geopose"
    with pytest.raises(ValueError, match="docking"):
        DockingModel.load(built_in)


def test_the_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ROOT / "examples" / "iss_docking.py"
    assert len(source.read_text().splitlines()) < 80
    command = ["iss_docking.py", "--out", str(tmp_path), "--minutes", "0.02", "--count", "6"]
    monkeypatch.setattr(sys, "argv", command)
    load_script("examples", "iss_docking.py").main()
    written = {p.name for p in tmp_path.iterdir()}
    assert {"answers.png", "errors.png", "iss.geopose", "submission.csv"} <= written
    assert len(read_labels(tmp_path / "submission.csv")) == 4
    said = capsys.readouterr().out
    assert "4 pictures not trained on" in said
    assert "geometry" in said
