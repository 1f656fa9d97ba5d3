"""The benchmark of calibration: its figures against closed forms and SciPy, and the whole command once, small."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import load_script
from scipy.stats import chi2

from geopose.cad.gallery import xwing
from geopose.data.synthetic import SyntheticDataset
from geopose.estimate import PoseEstimator
from geopose.geometry.pose import Pose
from geopose.scores import ScoredObject

ROOT = Path(__file__).resolve().parents[1]
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


def gaussian(pose: Pose | None, covariance: Any) -> SimpleNamespace:
    return SimpleNamespace(pose=pose, covariance=covariance, covariance_dof=np.inf)


@pytest.fixture(scope="module", name="script")
def loaded() -> ModuleType:
    return load_script("benchmarks", "calibration.py")


def test_errors_drawn_from_the_covariance_are_covered_as_they_should_be(
    script: ModuleType, rng: np.random.Generator
) -> None:
    """Also where the true pose is another of a symmetric object's: the nearest counts."""
    pose = Pose.from_rvec_tvec(np.array([0.4, -0.3, 0.2]), np.array([0.2, -0.1, 1.5]))
    target = ScoredObject(rng.uniform(-0.1, 0.1, (8, 3)), 0.3, np.stack([np.eye(4), HALF_TURN]))
    spread = rng.standard_normal((6, 6)) * [[0.004], [0.004], [0.01], [0.02], [0.02], [0.01]]
    cov = spread @ spread.T
    middle = np.array([0.03, 0.01, -0.02])
    rows, half = [], []
    for i, xi in enumerate(rng.multivariate_normal(np.zeros(6), cov, 1000)):
        truth = Pose.exp(xi) @ pose @ Pose.from_matrix(target.symmetries[i % 2])
        rows.append(script.how_far_out(gaussian(pose, cov), truth, target, middle))
        half.append(script.how_far_out(gaussian(pose, cov / 2), truth, target, middle))
    covered = script.coverage(rows)
    for part in ("whole", "position", "rotation"):
        for level in (0.5, 0.9, 0.99):
            found = covered[part][f"{level:g}"]
            assert found["of"] == 1000
            assert found["share"] == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / 1000))
    assert np.mean([r["whole"] for r in rows]) == pytest.approx(0.5, abs=0.04)
    assert script.coverage(half)["whole"]["0.9"]["share"] == pytest.approx(
        chi2.cdf(chi2.ppf(0.9, 6) / 2, 6), abs=0.05
    )


def test_a_missing_pose_or_covariance_is_not_counted(script: ModuleType) -> None:
    target = ScoredObject(np.eye(3), 1.0)
    pose = Pose.from_rvec_tvec(np.zeros(3), np.array([0, 0, 1.0]))
    cases = [(None, None), (pose, None), (pose, np.full((6, 6), np.nan)), (pose, np.zeros((6, 6)))]
    rows = [script.how_far_out(gaussian(p, c), pose, target, np.zeros(3)) for p, c in cases]
    assert all(np.isnan(d) for row in rows for d in row.values())
    found = script.coverage(rows)["whole"]["0.9"]
    assert (found["of"], found["share"]) == (0, None)


def test_reliability_in_closed_form(script: ModuleType) -> None:
    found = script.reliability([0.05, 0.05, 0.95, 0.95, 0.95, 1.0], [False, True, True, True, False, True])
    assert [(b["of"], b["share"]) for b in found["bins"]] == [(2, 0.5), (4, 0.75)]
    assert found["bins"][1]["predicted"] == pytest.approx(0.9625)
    assert found["ece"] == pytest.approx((2 * 0.45 + 4 * 0.2125) / 6)
    assert found["brier"] == pytest.approx((2 * 0.95**2 + 3 * 0.05**2) / 6)
    assert found["brier_constant"] == pytest.approx(4 / 6 * 2 / 6)
    assert script.reliability([], [])["ece"] is None


def test_a_higher_limit_answers_less_and_errs_less(script: ModuleType) -> None:
    rows = script.limits([0.4, 0.6, 0.7, 0.85, 0.96, 0.99], [9.0, 0.3, 0.15, 0.05, 0.11, 0.01])
    assert [row["limit"] for row in rows] == [0.5, 0.7, 0.8, 0.9, 0.95]
    assert [row["answered"] for row in rows] == [5, 4, 3, 2, 2]
    assert [row["right"] for row in rows] == [2, 2, 2, 1, 1]
    assert [row["gross"] for row in rows] == [1, 0, 0, 0, 0]


def test_an_interval_as_wilson_wrote_it(script: ModuleType) -> None:
    p, n, z = 0.03, 100, 1.959964
    middle, half = (p + z * z / (2 * n)), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = script.share(3, 100)
    assert [found["low"], found["high"]] == pytest.approx(
        [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)], abs=1e-6
    )


def test_every_second_empty_render_is_a_scene_whose_object_was_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = xwing()
    options = script.SyntheticOptions(scene_range=(50.0, 80.0), scene_wh=(160, 120))
    scenes = SyntheticDataset(model, np.zeros((1, 3)), script.Symmetries.none(), options, 5, "scene")
    shown = []
    make = scenes.maker.make

    def watched(generator: Any, camera: Any, pose: Any, where: Any) -> Any:
        shown.append((pose, where))
        return make(generator, camera, pose, where)

    monkeypatch.setattr(scenes.maker, "make", watched)
    made = list(script.empty_renders(model, scenes, 4, 5))
    assert [kind for kind, _, _ in made] == ["renders without any object", "renders of other objects"] * 2
    assert [pose is None for pose, _ in shown] == [False, True, False, True]
    for (_, there), (_, gone) in zip(shown[::2], shown[1::2], strict=True):
        np.testing.assert_allclose(there.matrix, gone.matrix, atol=1e-7)
    for _, image, camera in made:
        assert image.shape == (120, 160, 3)
        assert camera.size_wh == (160, 120)


def test_the_command_writes_its_three_files(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(ROOT / "geopose" / "weights" / "xwing.geopose")
    (tmp_path / "photos" / "below").mkdir(parents=True)
    grey = np.full((120, 160, 3), 128, np.uint8)
    for name in ("a.png", "below/b.JPG"):
        assert cv2.imwrite(str(tmp_path / "photos" / name), grey)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no picture"):
        script.main([weights, "--images", "1", "--without", str(tmp_path / "none"), "--out", str(tmp_path)])

    out = tmp_path / "deep" / "out"
    script.main([weights, "--images", "2", "--without", str(tmp_path / "photos"), "--out", str(out)])
    stored = json.loads((out / "calibration.json").read_text())
    assert stored["about"]["machine"]
    assert stored["without"]["photos"]["answered_ok"]["of"] == 2
    assert sum(stored["without"]["photos"]["statuses"].values()) == 2
    rows = stored["renders"]["rows"]
    assert [row["index"] for row in rows] == [0, 1]
    bins = stored["renders"]["reliability"]["bins"]
    assert sum(b["of"] for b in bins) == stored["renders"]["poses"]
    text = (out / "calibration.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| photos | 2 | " in text
    picture = cv2.imread(str(out / "reliability.png"))
    assert picture is not None
    assert picture.std() > 5


def test_another_mesh_is_refused(script: ModuleType) -> None:
    estimator = PoseEstimator.load(ROOT / "geopose" / "weights" / "xwing.geopose")
    assert script.mesh_of(estimator, None, None).content_hash == xwing().content_hash
    with pytest.raises(ValueError, match="was trained on 'xwing', a mesh that differs from cad='car'"):
        script.mesh_of(estimator, "car", None)
