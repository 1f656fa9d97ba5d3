"""What is learned and judged from renders, with an estimator whose errors are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.stats import chi2
from scipy.stats import f as f_distribution

from geopose import train_report
from geopose.cad.model import CadModel
from geopose.cad.symmetry import find_symmetries
from geopose.calibrate import BEST_FEATURES, PRIOR, answer_confidence, confidence_of, fit_tails
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import share_inside
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import hat
from geopose.train_report import Lessons, finish_model, judge_scenes, learn_from_scenes, summary

CAMERA = Camera(600.0, 600.0, 319.5, 239.5, (640, 480))
SIGMA = np.array([3e-4, 3e-4, 2e-3, *np.deg2rad([1.0, 1.0, 1.0])])


@pytest.fixture
def cans(rng: np.random.Generator) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """An estimator of a cylinder whose errors are what its covariances say, about any turn around the axis; scenes."""
    model = CadModel.from_trimesh(trimesh.creation.cylinder(0.03, 0.12, sections=64), "can")
    symmetries = find_symmetries(model)
    assert len(symmetries.continuous) == 1
    scenes, found = [], []
    for _ in range(60):
        truth = Pose.from_rvec_tvec(rng.normal(0, 1, 3), np.array([0.0, 0, 0.8]))
        about = np.eye(6)
        about[:3, 3:] = hat(truth.t)  # turns about the can, not about the camera
        turned = truth @ Pose.from_rvec_tvec(np.array([0, 0, rng.uniform(0, 2 * np.pi)]), np.zeros(3))
        pose = turned.retract(about @ (rng.standard_normal(6) * SIGMA))
        points = CAMERA.project(pose.apply(model.vertices[:8]))
        found.append(
            SimpleNamespace(
                pose=pose, status="ok", confidence=1.0, keypoints={"points_px": points},
                covariance=about @ np.diag(SIGMA**2) @ about.T, covariance_dof=np.inf,
            )
        )  # fmt: skip
        values = {
            "R": truth.R,
            "t": truth.t,
            "K": CAMERA.K,
            "box": np.array([0.0, 0, 90, 90]),
            "visib_fract": 1.0,
        }
        scene = {k: torch.as_tensor(np.asarray(v))[None] for k, v in values.items()}
        scenes.append(scene | {"image": torch.zeros(1, 3, 480, 640, dtype=torch.uint8)})
    answers = iter(found)
    estimator = SimpleNamespace(
        symmetries=symmetries, model=model, keypoints=model.vertices[:8], meta={"diameter": model.diameter}
    )

    class Estimator(SimpleNamespace):
        def confident(self, values: Any, pose: Pose) -> float:
            return 1.0

        def estimate(self, image: Any, camera: Camera) -> Any:
            answer = next(answers)
            self.confident({}, answer.pose)
            return answer

    return Estimator(**vars(estimator)), scenes


def test_an_honest_covariance_about_an_axis_of_symmetry_stays_honest(cans: tuple[Any, list[Any]]) -> None:
    """Five numbers are left of six where any turn about the axis is right."""
    estimator, scenes = cans
    lessons = learn_from_scenes(estimator, scenes, len(scenes), float("inf"))
    d2 = [d for _, right, d in lessons.answered if right]
    assert len(d2) == len(scenes)
    assert all(right for _, right in lessons.considered)
    assert np.mean(d2) == pytest.approx(5, abs=3 * np.sqrt(2 * 5 / len(d2)))


def test_the_rotation_about_an_axis_of_symmetry_is_no_error(cans: tuple[Any, list[Any]]) -> None:
    """What is left are two angles of one degree each: the median of their length is sqrt(2 ln 2)."""
    estimator, scenes = cans
    rows = judge_scenes(estimator, scenes, len(scenes), float("inf"))
    assert np.median([r["rotation_deg"] for r in rows]) == pytest.approx(np.sqrt(2 * np.log(2)), abs=0.3)
    assert max(r["keypoint_px"] for r in rows) < 3
    assert all(r["found"] and r["add"] < 0.1 for r in rows)


def test_the_figures_say_how_many_are_wrong_and_where_the_truth_is(cans: tuple[Any, list[Any]]) -> None:
    estimator, scenes = cans
    rows = judge_scenes(estimator, scenes, len(scenes), float("inf"))
    figures = summary(rows)
    assert figures["wrong_among_found"] == 0
    d2 = chi2(5)  # a turn about the axis is free, while the regions are those of six numbers
    for level in (0.5, 0.9, 0.99):
        wanted = d2.cdf(chi2(6).ppf(level))
        spread = np.sqrt(wanted * (1 - wanted) / len(rows))
        assert figures["coverage"][f"{level:g}"] == pytest.approx(wanted, abs=3 * spread + 1e-9)
    wrong = [{**r, "add": 0.2, "found": float(i < 3)} for i, r in enumerate(rows[:4])]
    assert summary([*rows[:3], *wrong])["wrong_among_found"] == 0.5
    assert np.isnan(summary([{**rows[0], "found": 0.0}])["wrong_among_found"])
    assert np.isnan(summary([{**rows[0], "found": 0.0}])["coverage"]["0.9"])


def test_the_confidence_of_a_first_round_is_in_force_while_the_tails_are_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An estimate looks the longer the less it believes, and so its errors are those of one confidence."""
    estimator = SimpleNamespace(nets={"keypoints": None}, calibration={})
    rounds: list[tuple[dict[str, Any], list[int]]] = []

    def learn(estimator: Any, scenes: Any, count: int, until: float) -> Lessons:
        seen = [next(scenes) for _ in range(count)]
        rounds.append((dict(estimator.calibration), seen))
        seen_so = [dict.fromkeys(BEST_FEATURES, float(i % 2)) for i in seen]
        far = 4.0 if len(rounds) == 1 else 40.0
        answered = [(values, values["fit"] > 0, far * (1 + i % 7)) for i, values in enumerate(seen_so)]
        return Lessons([(values, values["fit"] > 0) for values in seen_so], answered)

    monkeypatch.setattr(train_report.PoseEstimator, "load", lambda *_: estimator)
    monkeypatch.setattr(train_report, "learn_from_scenes", learn)
    monkeypatch.setattr(train_report, "judge_scenes", lambda *_: [])
    monkeypatch.setattr(train_report, "read_renders", lambda *_: {})
    monkeypatch.setattr(train_report, "calibrate_keypoints", lambda _: ({"window": None}, {}))
    endless = type("Endless", (), {"__iter__": lambda self: iter(range(1000))})()
    arguments = Path("x"), torch.device("cpu"), [], endless, [], 0.0, 60.0
    calibration, _ = finish_model(*arguments, (10, 100, 10))
    (first, before), (second, after) = rounds
    assert "confidence" not in first
    assert second["confidence"]["weights"].keys() == calibration["confidence"]["weights"].keys()
    assert before + after == list(range(100))  # no scene twice
    assert 5 < calibration["pose_scale"] < 80  # of the second round
    rounds.clear()
    kept, _ = finish_model(*arguments, (10, 50, 10), calibration)
    assert len(rounds) == 1
    assert rounds[0][0]["confidence"] == kept["confidence"] == calibration["confidence"]
    assert rounds[0][0]["answers"] == kept["answers"] == calibration["answers"]


def test_answers_are_judged_by_what_became_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten poses are right that have 0.9, and of answers, each the best of many, one."""
    estimator = SimpleNamespace(nets={"keypoints": None}, calibration={})
    values = dict.fromkeys(BEST_FEATURES, 0.5)
    considered = [(values, i % 10 > 0) for i in range(400)]
    answered = [(values, i % 10 == 0, np.inf if i % 10 else 1.0 + i % 7) for i in range(400)]
    monkeypatch.setattr(train_report.PoseEstimator, "load", lambda *_: estimator)
    monkeypatch.setattr(train_report, "learn_from_scenes", lambda *_: Lessons(considered, answered))
    monkeypatch.setattr(train_report, "judge_scenes", lambda *_: [])
    monkeypatch.setattr(train_report, "read_renders", lambda *_: {})
    monkeypatch.setattr(train_report, "calibrate_keypoints", lambda _: ({"window": None}, {}))
    calibration, _ = finish_model(Path("x"), torch.device("cpu"), [], [], [], 0.0, 60.0)
    said = confidence_of(values, calibration)
    assert said == pytest.approx(0.9, abs=0.01)
    assert answer_confidence(said, calibration) == pytest.approx(0.1, abs=0.02)
    assert {name: calibration[name] for name in ("pose_scale", "pose_dof")} == fit_tails(
        []
    )  # none is believed


def test_the_covariances_are_fitted_to_what_the_judgement_saw_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a call that goes on where another was interrupted; the figures are those of the fit before."""
    drawn = 3 * f_distribution.rvs(6, 8, size=900, random_state=0) * 6
    learned, then = drawn[:300].tolist(), drawn[300:]
    first = fit_tails(learned)
    estimator = SimpleNamespace(nets={"keypoints": None}, calibration={})
    rows = [{"found": 1.0, "add": 0.05, "distance2": d / first["pose_scale"]} for d in then]
    rows += [{"found": 0.0, "add": 0.05, "distance2": 1e9}, {"found": 1.0, "add": 0.5, "distance2": 1e9}]
    others = dict.fromkeys(["visib_fract", "rotation_deg", "translation", "keypoint_px", "seconds"], 1.0)
    for row in rows:
        row |= others
        row["inside"] = float(share_inside(row["distance2"], first["pose_dof"]))
    lessons = Lessons([], [(dict.fromkeys(BEST_FEATURES, 1.0), True, d) for d in learned])
    monkeypatch.setattr(train_report.PoseEstimator, "load", lambda *_: estimator)
    monkeypatch.setattr(train_report, "learn_from_scenes", lambda *_: lessons)
    monkeypatch.setattr(train_report, "judge_scenes", lambda *_: rows)
    arguments = Path("x"), torch.device("cpu"), [], [], [], 0.0, 60.0
    remembered: list[dict[str, Any]] = []
    kept = {"window": None, "confidence": PRIOR}
    calibration, figures = finish_model(*arguments, keep=kept, remember=remembered.append)
    for name, value in fit_tails([*learned, *then]).items():
        assert calibration[name] == pytest.approx(value)
    assert remembered[-1]["calibration"]["pose_scale"] == first["pose_scale"]
    inside = share_inside(then / first["pose_scale"], first["pose_dof"])
    assert figures["coverage"]["0.9"] == pytest.approx(float(np.mean([*(inside <= 0.9), False])))
    known = json.loads(json.dumps(remembered[-1]))
    assert finish_model(*arguments, keep=kept, known=known) == (calibration, figures)
