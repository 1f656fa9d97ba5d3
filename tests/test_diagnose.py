"""Each cause of a bad pose is named on a rendered case of it, and nothing is named where all is well."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from flights import xwing_frames
from PIL import Image

from geopose import cli, demo
from geopose.cad.model import load_cad
from geopose.checkpoint import model_of
from geopose.data.sample import look_at, projected_box
from geopose.diagnose import Diagnosis, diagnose
from geopose.diagnose_page import write_page
from geopose.estimate import PoseEstimator
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3
from geopose.sharpness import edge_width

SIZE = demo.SIZE_WH
WIDE = Camera.from_fov(float(np.deg2rad(80)), SIZE)


@pytest.fixture(scope="module")
def estimator() -> PoseEstimator:
    return PoseEstimator.load(model_of("xwing"))


@pytest.fixture(scope="module")
def photograph() -> Callable[..., np.ndarray]:
    """The X-wing before stars, at a place, seen from its upper left."""
    ship, sky = load_cad("xwing"), demo.star_field(np.random.default_rng(0), SIZE)

    def picture(camera: Camera, x: float, y: float, z: float) -> np.ndarray:
        pose = Pose(look_at(0.35, 0.7, 0.1), np.array([x, y, z]))
        return demo.photograph(ship, camera, pose, sky, np.random.default_rng(1))

    return picture


@pytest.fixture(scope="module")
def near(photograph: Callable[..., np.ndarray]) -> np.ndarray:
    return photograph(WIDE, 0.0, 0.0, 20.0)


@pytest.fixture(scope="module")
def well() -> tuple[Camera, np.ndarray]:
    camera, _, pictures = xwing_frames((75,))
    return camera, pictures[0]


def causes(found: Diagnosis) -> list[str]:
    return [check.cause for check in found.causes]


def test_nothing_is_wrong_where_all_is_well(
    estimator: PoseEstimator, near: np.ndarray, well: tuple[Camera, np.ndarray]
) -> None:
    for camera, picture in ((WIDE, near), well):
        found = diagnose(estimator, picture, camera)
        assert found.estimate.status == "ok"
        assert causes(found) == []
        assert found.verdict == "nothing wrong was found"
        assert {c.cause for c in found.checks} == {
            "image resized without K", "wrong K", "too small", "not in view", "out of focus", "distortion ignored",
            "mirrored", "wrong unit",
        }  # fmt: skip


def test_a_focal_length_that_is_far_too_short(estimator: PoseEstimator, near: np.ndarray) -> None:
    found = diagnose(estimator, near, replace(WIDE, fx=0.4 * WIDE.fx, fy=0.4 * WIDE.fy))
    assert causes(found)[0] == "wrong K"
    assert "times the focal length" in found.causes[0].found


def test_a_focal_length_in_millimetres_and_one_unlike_exif(
    estimator: PoseEstimator, near: np.ndarray, tmp_path: Path
) -> None:
    found = diagnose(estimator, near, Camera(4.2, 4.2, WIDE.cx, WIDE.cy, SIZE))
    assert causes(found)[0] == "wrong K"
    assert "not in millimetres" in found.verdict
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.fromarray(near).save(tmp_path / "a.jpg", quality=95, exif=exif)
    focal = 26 * np.hypot(*SIZE) / 43.27
    found = diagnose(estimator, tmp_path / "a.jpg", Camera(2 * focal, 2 * focal, WIDE.cx, WIDE.cy, SIZE))
    assert causes(found)[0] == "wrong K"
    assert "EXIF" in found.causes[0].found


def test_a_picture_that_was_resized(estimator: PoseEstimator, near: np.ndarray) -> None:
    double = WIDE.crop_resize(
        np.array([-0.5, -0.5, SIZE[0] - 0.5, SIZE[1] - 0.5]), (2 * SIZE[0], 2 * SIZE[1])
    )
    found = diagnose(estimator, near, double)
    assert causes(found)[0] == "image resized without K"
    np.testing.assert_allclose(found.camera.K, WIDE.K, atol=1e-9)
    assert found.estimate.status == "ok", "the camera was scaled, and all is well"
    found = diagnose(estimator, near, replace(double, size_wh=SIZE))  # the file had no size of its own
    assert causes(found)[0] == "image resized without K"
    assert "2 times as large" in found.verdict
    cut = diagnose(estimator, near, replace(WIDE, size_wh=(SIZE[0], SIZE[0])))
    assert causes(cut)[0] == "image resized without K"
    assert "cut" in cut.verdict


def test_too_small(estimator: PoseEstimator, photograph: Callable[..., np.ndarray]) -> None:
    camera = xwing_frames(())[0]
    found = diagnose(estimator, photograph(camera, 5.0, -8.0, 300.0), camera)
    assert causes(found)[0] == "too small"


def test_not_in_view(estimator: PoseEstimator, photograph: Callable[..., np.ndarray]) -> None:
    camera = xwing_frames(())[0]
    nothing = diagnose(estimator, photograph(camera, 0.0, 300.0, 40.0), camera)
    assert causes(nothing)[0] == "not in view"
    half = diagnose(estimator, photograph(camera, 11.0, 0.0, 22.0), camera)
    assert causes(half)[0] == "not in view"
    assert "part" in half.verdict


@pytest.mark.parametrize("sigma", [6.0, 9.0])
def test_out_of_focus(estimator: PoseEstimator, well: tuple[Camera, np.ndarray], sigma: float) -> None:
    camera, picture = well
    found = diagnose(estimator, cv2.GaussianBlur(picture, (0, 0), sigma), camera)
    assert found.estimate.status != "ok"
    assert causes(found)[0] == "out of focus"


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0, 7.0])
def test_the_width_of_an_edge_is_measured(sigma: float) -> None:
    """A step, blurred by a Gaussian, with a camera's noise."""
    picture = np.zeros((120, 160, 3), np.float32)
    picture[:, 80:] = 200
    picture[60:] *= 0.7
    picture = cv2.GaussianBlur(picture, (0, 0), sigma) + np.random.default_rng(0).normal(
        0, 1.5, picture.shape
    )
    assert edge_width(np.clip(picture, 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.25)
    assert np.isnan(edge_width(np.zeros((50, 50, 3), np.uint8)))


def test_a_wrong_unit(estimator: PoseEstimator, near: np.ndarray) -> None:
    assert causes(diagnose(estimator, near, WIDE, distance=18.0)) == []
    found = diagnose(estimator, near, WIDE, distance=0.021)
    assert causes(found)[0] == "wrong unit"
    assert "--unit mm" in found.verdict
    with pytest.raises(ValueError, match="distance"):
        diagnose(estimator, near, WIDE, distance=-1.0)


# an object without any symmetry, seen by a network that knows the colours of its keypoints


COLOURS = np.array(
    [cv2.cvtColor(np.array([[[h, 255, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0] for h in range(0, 180, 15)],
    float,
)


class ColourNet(torch.nn.Module):
    """Heatmaps that are high where the picture has the colour of a keypoint."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = torch.nn.Parameter(torch.tensor(COLOURS / 255, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        cells = torch.nn.functional.avg_pool2d(x, 4)
        off = (cells[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return {"heatmaps": 40.0 * (1 - 6 * off).clamp_min(0), "mask": 20 * cells.amax(1, keepdim=True) - 5}


@pytest.fixture(scope="module")
def dots() -> PoseEstimator:
    points = np.random.default_rng(4).uniform(-0.5, 0.5, (len(COLOURS), 3))
    hull = trimesh.convex.convex_hull(points)
    meta = {
        "name": "dots", "unit": "m", "content_hash": "0", "diameter": 1.2, "keypoints": points,
        "symmetries": {"discrete": np.eye(4)[None].tolist(), "continuous": []},
        "mesh": {"vertices": np.asarray(hull.vertices), "faces": np.asarray(hull.faces)},
        "options": {"crop_size": 256, "crop_scale": 1.5}, "calibration": {"scale": 1.0, "floor_px": 0.5},
    }  # fmt: skip
    return PoseEstimator({"keypoints": ColourNet().eval()}, meta, torch.device("cpu"))


ROOM = Camera.from_fov(float(np.deg2rad(75)), (640, 480))


def dotted(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture of the dots, near and in a corner, and the box around them."""
    pose = Pose(exp_so3(np.array([0.5, -0.6, 0.3])), np.array([0.55, 0.3, 1.35]))
    picture = np.full((480, 640, 3), 12, np.uint8)
    for point, colour in zip(np.asarray(camera.project(pose.apply(points))), COLOURS, strict=True):
        cv2.circle(
            picture, np.rint(16 * point).astype(int).tolist(), 7 << 4, colour.tolist(), -1, cv2.LINE_AA, 4
        )
    return picture, projected_box(points, pose, camera)


def test_dots_are_read_well(dots: PoseEstimator) -> None:
    picture, box = dotted(ROOM, dots.keypoints)
    found = diagnose(dots, picture, ROOM, box)
    assert found.result is not None
    assert found.result.inliers.sum() >= 11
    assert not {"wrong K", "mirrored", "distortion ignored"} & set(causes(found))


def test_a_mirrored_picture(dots: PoseEstimator) -> None:
    picture, box = dotted(ROOM, dots.keypoints)
    flipped = np.ascontiguousarray(picture[:, ::-1])
    found = diagnose(dots, flipped, ROOM, (639 - box[2], box[1], 639 - box[0], box[3]))
    assert causes(found)[0] == "mirrored"


def test_a_lens_whose_distortion_is_ignored(dots: PoseEstimator) -> None:
    bent = replace(ROOM, distortion=(-0.3, 0.0, 0.0, 0.0))
    picture, box = dotted(bent, dots.keypoints)
    assert "distortion ignored" not in causes(diagnose(dots, picture, bent, box))
    found = diagnose(dots, picture, ROOM, box)
    assert causes(found)[0] == "distortion ignored"
    assert "k1 = -0.3" in found.causes[0].found


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_focal_length_near_by(dots: PoseEstimator, factor: float) -> None:
    picture, box = dotted(ROOM, dots.keypoints)
    found = diagnose(dots, picture, replace(ROOM, fx=factor * ROOM.fx, fy=factor * ROOM.fy), box)
    assert causes(found)[0] == "wrong K"
    said = float(re.search(r"best with ([\d.]+) times", found.causes[0].found)[1])  # type: ignore[index]
    assert said * factor == pytest.approx(1.0, rel=0.2)


# the page


def test_the_command_writes_a_page(
    near: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(near).save(tmp_path / "a.png")
    words = ["diagnose", str(tmp_path / "a.png"), "--model", str(model_of("xwing")), "--fov", "80"]
    page = tmp_path / "deep" / "page.html"
    assert cli.main([*words, "--out", str(page), "--json", str(tmp_path / "r.json")]) == 0
    assert "nothing wrong was found" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") >= 6
    assert not re.search(r"(src|href)='(?!data:)", text), "needs no other file"
    for words_ in ("Where it was located", "heatmaps", "2-sigma", "alternative", "Evidence", "std. dev."):
        assert words_ in text
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["status"] == "ok"
    assert not any(check["failed"] for check in said["evidence"])


def test_a_page_without_anything_found(estimator: PoseEstimator, tmp_path: Path) -> None:
    found = diagnose(estimator, np.full((240, 320, 3), 90, np.uint8))
    text = write_page(found, tmp_path / "p.html", "a <grey> wall").read_text()
    assert "Likely cause: not in view" in text
    assert "a &lt;grey&gt; wall" in text
    assert "<meta name='viewport' content='width=device-width" in text, "a telephone does not shrink it"
