"""Scores, summaries and whole evaluations, with estimators that know the truth and spoil it in known ways."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from helpers import data_path, random_poses
from numpy.typing import NDArray

from geopose.cad.model import CadModel
from geopose.cad.symmetry import Symmetries
from geopose.data.bop import read_bop
from geopose.data.bop_results import read_results
from geopose.data.bop_write import BopWriter
from geopose.evaluate import evaluate_bop, evaluate_bop_objects
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.report import write_report
from geopose.scores import Score, ScoredObject, Truth, box_iou, mahalanobis2, match, score
from geopose.summary import evaluate_renders, evaluation_of, reliability_bins, summarise

CAMERA = Camera(600.0, 600.0, 319.5, 239.5, (640, 480))
BRICK = trimesh.creation.box((0.1, 0.06, 0.04))
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])
PLAIN = ScoredObject(np.asarray(BRICK.vertices), 0.1233)
SOLID = ScoredObject(PLAIN.points, PLAIN.diameter, faces=np.asarray(BRICK.faces))
TWOFOLD = ScoredObject(PLAIN.points, PLAIN.diameter, np.stack([np.eye(4), HALF_TURN]))


@dataclass
class Estimate:
    """What an estimator returns, as far as evaluation looks at it."""

    pose: Pose | None
    status: str = "ok"
    confidence: float = 1.0
    covariance: NDArray[np.float64] | None = None
    box: NDArray[np.float64] | None = None
    keypoints: dict[str, Any] = field(default_factory=dict)

    def overlay(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return 255 - img


def at(x: float = 0.0, y: float = 0.0, z: float = 1.0, rvec: Any = (0.3, -0.5, 0.2)) -> Pose:
    return Pose.from_rvec_tvec(np.array(rvec, float), np.array([x, y, z]))


def with_box(pose: Pose, **more: Any) -> Estimate:
    px = CAMERA.project(pose.apply(PLAIN.points))
    return Estimate(pose, box=np.concatenate([px.min(0), px.max(0)]), **more)


def one(estimate: Estimate, truth: Pose, target: ScoredObject = PLAIN) -> Score:
    return score([estimate], [Truth(truth, CAMERA)], target)[0]


@pytest.mark.parametrize("target", [PLAIN, TWOFOLD])
def test_errors_against_brute_force(rng: np.random.Generator, target: ScoredObject) -> None:
    for _ in range(10):
        gt = at(*rng.uniform(-0.1, 0.1, 2), 0.8, rng.standard_normal(3))
        est = Pose.exp(np.concatenate([rng.normal(0, 0.01, 3), rng.normal(0, 0.1, 3)])) @ gt
        if rng.random() < 0.5:
            est = est @ Pose.from_matrix(HALF_TURN)
        row = one(with_box(est), gt, target)

        def points(matrix: np.ndarray) -> np.ndarray:
            return target.points @ matrix[:3, :3].T + matrix[:3, 3]

        def pixels(cam: np.ndarray) -> np.ndarray:
            return np.array(cv2.projectPoints(cam, np.zeros(3), np.zeros(3), CAMERA.K, None)[0])[:, 0]

        moved = points(est.matrix)
        options = [points(gt.matrix @ s) for s in target.symmetries]
        assert row.mssd == pytest.approx(
            min(np.linalg.norm(moved - o, axis=1).max() for o in options), rel=1e-9
        )
        assert row.mspd == pytest.approx(
            min(np.linalg.norm(pixels(moved) - pixels(o), axis=1).max() for o in options), rel=1e-6
        )
        assert row.add == pytest.approx(np.linalg.norm(moved - options[0], axis=1).mean(), rel=1e-9)
        nearest = [np.linalg.norm(moved - p, axis=1).min() for p in options[0]]
        assert row.add_s == pytest.approx(np.mean(nearest), rel=1e-9)
        assert row.add_or_s == (row.add_s if len(target.symmetries) > 1 else row.add)
        angles = [
            np.arccos(np.clip((np.trace(est.R.T @ gt.R @ s[:3, :3]) - 1) / 2, -1, 1))
            for s in target.symmetries
        ]
        assert row.rotation_deg == pytest.approx(np.rad2deg(min(angles)), abs=1e-4)
        hits = [row.mssd < f * target.diameter for f in np.arange(1, 11) * 0.05]
        assert row.mssd_hits == pytest.approx(np.mean(hits))
        assert row.mspd_hits == pytest.approx(np.mean([row.mspd < t for t in range(5, 51, 5)]))


def test_a_shift_has_errors_in_closed_form() -> None:
    row = one(with_box(at(x=0.009)), at())
    assert [row.add, row.mssd, row.translation] == pytest.approx([0.009] * 3)
    assert row.rotation_deg == pytest.approx(0, abs=1e-5)
    assert row.mssd_hits == pytest.approx(0.9)  # 0.009 / 0.1233 = 0.073: all thresholds but 0.05
    assert row.correct
    assert row.failure == ""


def test_truth_scores_perfectly_and_so_does_truth_under_a_symmetry() -> None:
    gt = at(rvec=(1.0, 0.4, -0.3))
    for est in (gt, gt @ Pose.from_matrix(HALF_TURN)):
        row = one(with_box(est), gt, TWOFOLD)
        assert row.mssd == pytest.approx(0, abs=1e-12)
        assert row.mspd == pytest.approx(0, abs=1e-9)
        assert (row.mssd_hits, row.mspd_hits) == (1, 1)
        assert row.rotation_deg < 1e-5
    assert one(with_box(gt @ Pose.from_matrix(HALF_TURN)), gt, PLAIN).mssd > 0.1


def test_failures_are_told_apart() -> None:
    gt = at()
    flipped = gt @ Pose.from_matrix(np.diag([1.0, -1, -1, 1]))
    cases = {
        "": at(x=0.005),
        "not located": at(x=0.3),
        "flipped": flipped,
        "imprecise": at(z=1.05),
        "wrong keypoints": gt @ at(z=0, rvec=(0, 1.3, 0)),
    }
    assert {name: one(with_box(pose), gt).failure for name, pose in cases.items()} == {n: n for n in cases}
    assert one(Estimate(None, "not_found", 0), gt).failure == "not located"
    assert score([], [Truth(gt, CAMERA)], PLAIN)[0].status == "none"


def test_the_place_is_that_of_the_keypoints_where_there_are_any() -> None:
    gt = at()
    seen = CAMERA.project(gt.apply(PLAIN.points))
    seen[0] = np.nan
    lost = with_box(at(x=0.4, z=1.2), keypoints={"points_px": seen})
    assert one(lost, gt).failure == "wrong keypoints"
    refused = Estimate(None, "no_consensus", 0.1, keypoints={"points_px": seen})
    assert one(refused, gt).failure == "wrong keypoints"


def test_a_pose_that_is_not_finite_is_no_pose() -> None:
    row = one(Estimate(Pose(np.full((3, 3), np.nan), np.zeros(3))), at())
    assert row.mssd == np.inf
    assert row.mssd_hits == 0


def test_poses_behind_the_camera_score_nothing_in_the_picture() -> None:
    row = one(Estimate(at(z=-1.0)), at())
    assert row.mspd == np.inf
    assert row.mspd_hits == 0
    assert row.estimate == 0


def test_assignment_goes_by_confidence_at_every_threshold() -> None:
    errors = np.array([[0.3, 0.9], [0.1, 0.2]])
    assert match(errors, np.inf).tolist() == [0, 1]
    assert match(errors, 0.25).tolist() == [
        1,
        -1,
    ]  # the first has no instance within reach; the second takes its nearest
    assert match(np.array([[0.3, 0.9], [0.1, 0.2]]), 0.05).tolist() == [-1, -1]
    assert match(np.full((1, 2), np.inf), np.inf).tolist() == [0, -1]
    truths = [Truth(at(x=-0.2), CAMERA), Truth(at(x=0.2), CAMERA)]
    estimates = [
        with_box(at(x=0.201), confidence=0.5),
        with_box(at(x=-0.202), confidence=0.9),
        with_box(at(), confidence=0.1),
    ]
    rows = score(estimates, truths, PLAIN)
    assert [r.estimate for r in rows] == [1, 0]
    assert [r.add for r in rows] == pytest.approx([0.002, 0.001])
    alone = score(estimates[:1], truths, PLAIN)
    assert [r.status for r in alone] == ["none", "ok"]


def test_only_as_many_estimates_as_instances_count() -> None:
    estimates = [with_box(at(x=0.1), confidence=0.9), with_box(at(), confidence=0.8)]
    row = score(estimates, [Truth(at(), CAMERA)], PLAIN)[0]
    assert row.add == pytest.approx(0.1)


def test_mahalanobis_distance_has_the_distribution_it_should(rng: np.random.Generator) -> None:
    mix = rng.standard_normal((6, 6))
    cov = (
        np.diag([1e-3, 1e-3, 1e-2, 0.02, 0.02, 0.02])
        @ (np.eye(6) + 0.1 * mix @ mix.T)
        @ np.diag([1e-3, 1e-3, 1e-2, 0.02, 0.02, 0.02])
    )
    factor = np.linalg.cholesky(cov)
    rows = []
    for i in range(300):
        est = random_poses(rng, 1, distance=1.0)[0]
        gt = Pose.exp(factor @ rng.standard_normal(6)) @ est
        symmetry = Pose.from_matrix(TWOFOLD.symmetries[i % 2])
        rows.append(one(with_box(est, covariance=cov), gt @ symmetry, TWOFOLD))
    summary = summarise(rows)
    assert summary.coverage_count == 300
    for level, share in summary.coverage.items():
        expected = float(level)
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 300)
    xi = np.array([1e-3, 0, 0, 0, 0, 0])
    assert mahalanobis2(Pose.identity(), Pose.exp(xi), np.diag([1e-8] * 6), np.eye(4)[None]) == pytest.approx(
        100
    )
    assert np.isnan(mahalanobis2(Pose.identity(), Pose.identity(), np.zeros((6, 6)), np.eye(4)[None]))


def test_box_overlap() -> None:
    assert box_iou(np.array([0.0, 0, 2, 2]), np.array([1.0, 0, 3, 2])) == pytest.approx(1 / 3)
    assert box_iou(np.array([0.0, 0, 1, 1]), np.array([2.0, 0, 3, 1])) == 0
    assert box_iou(np.full(4, np.nan), np.array([2.0, 0, 3, 1])) == 0


def test_summary_counts_trust_and_refusal_apart() -> None:
    gt = at()
    rows = [
        one(with_box(gt), gt),
        one(with_box(at(x=0.1)), gt),
        one(with_box(gt, status="no_consensus", confidence=0.1), gt),
        one(Estimate(None, "not_found", 0), gt),
    ]
    summary = summarise(rows)
    assert summary.count == 4
    assert (summary.found, summary.trusted, summary.add_recall["0.1"]) == (0.5, 0.25, 0.5)
    assert (summary.false_accept, summary.false_refuse) == (0.5, 0.5)
    assert summary.statuses == {"ok": 2, "no_consensus": 1, "not_found": 1}
    assert summary.failures["not located"] == 2
    assert summary.ar_mssd == pytest.approx(0.5)
    assert np.isnan(summary.coverage["0.5"])
    nothing = summarise([])
    assert nothing.count == 0
    assert np.isnan(nothing.found)
    assert "-" in str(evaluation_of("none", []))


def test_calibration_error_of_the_poses_given(tmp_path: Path) -> None:
    gt, wrong = at(), at(x=0.1)
    rows = [one(with_box(pose, confidence=0.96), gt) for pose in (gt, gt, gt, wrong)]
    rows += [one(with_box(wrong, status="no_consensus", confidence=c), gt) for c in (0.3, 0.36)]
    rows += [one(with_box(gt, confidence=1.0), gt), one(Estimate(None, "not_found", 0.0), gt)]
    bins = reliability_bins(rows)
    assert [(tenth, count) for tenth, *_, count in bins] == [(3, 2), (9, 5)], "nothing given counts in no bin"
    expected = (2 * 0.33 + 5 * abs((4 * 0.96 + 1.0) / 5 - 4 / 5)) / 7
    assert summarise(rows).calibration_error == pytest.approx(expected)
    assert np.isnan(summarise(rows[-1:]).calibration_error)
    evaluation = evaluation_of("seven poses", rows)
    assert re.search(r"calibration error of confidence +21\.4 %", str(evaluation))
    page = write_report(tmp_path / "r.html", evaluation, []).read_text()
    svg = page[page.rindex("<svg") :]
    assert re.findall(r">(\d+)</text>", svg)[-2:] == ["2", "5"]
    places = [tuple(map(float, c)) for c in re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'", svg)]
    x, y, size, _ = (
        float(v) for v in re.search(r"<rect x='(\d+)' y='(\d+)' width='(\d+)' height='(\d+)'", svg).groups()
    )
    expected_places = [(0.33, 0.0), (0.968, 0.8)]
    for place, (said, right) in zip(places, expected_places, strict=True):
        assert place == pytest.approx((x + said * size, y + (1 - right) * size), abs=0.051)


# Whole data sets.


@pytest.fixture
def bop(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Six pictures; the second has two bricks, the third one hidden by two thirds. im_id is in every pixel."""
    root = tmp_path / "toys"
    model = CadModel.from_trimesh(BRICK, "brick")
    with BopWriter(root, split="test", scene_id=3) as writer:
        writer.add_model(1, model, Symmetries(TWOFOLD.symmetries))
        for i in range(6):
            count = 2 if i == 1 else 1
            poses = [at(-0.2 + 0.4 * k, 0.02 * i, 1, rng.standard_normal(3)) for k in range(count)]
            masks = np.zeros((count, 480, 640), bool)
            masks[:, :30, :30] = True
            visible = masks.copy()
            visible[:, 10:] = i != 2
            image = np.full((480, 640, 3), i, np.uint8)
            writer.add(image, CAMERA, [(1, p) for p in poses], masks=masks, masks_visib=visible & masks)
    return root


class Oracle:
    """Estimates the truth, spoilt by `change(im_id, pose)`; finds the picture by its first pixel."""

    def __init__(self, root: Path, change: Any = lambda i, pose: pose, obj_id: int = 1) -> None:
        dataset = read_bop(root)
        self.truth = {f.im_id: [i.pose for i in f.instances if i.obj_id == obj_id] for f in dataset.frames}
        self.change, self.boxes, self.calls = change, [], 0

    def estimate_all(self, img: Any, camera: Any = None, max_instances: int = 8) -> list[Estimate]:
        assert camera.size_wh == (img.shape[1], img.shape[0])
        self.calls += 1
        poses = [self.change(int(img[0, 0, 0]), p) for p in self.truth[int(img[0, 0, 0])]]
        covariance = np.diag([1e-6] * 3 + [1e-4] * 3)
        found = [with_box(p, covariance=covariance, confidence=0.9) for p in poses if p is not None]
        return found[:max_instances] or [Estimate(None, "not_found", 0.0)]

    def estimate(self, img: Any, camera: Any = None, box: Any = None) -> Estimate:
        found = self.estimate_all(img, camera)
        if box is None:
            return found[0]
        self.boxes.append(box)
        return min(found, key=lambda e: np.linalg.norm(e.box - box))


def test_views_that_the_model_was_not_trained_for_are_counted(bop: Path) -> None:
    oracle = Oracle(bop)
    everywhere = {"elevation_deg": [-90, 90], "azimuth_deg": [-180, 180], "roll_deg": [-180, 180], "up": "+z"}
    for limits, words in (
        ({}, None),
        (
            {"elevation_deg": [89, 90], "roll_deg": [0, 0]},
            "7 of 7 objects are seen from where the model never saw",
        ),
    ):
        oracle.meta = {"options": everywhere | limits}
        notes = evaluate_bop(bop, None, oracle).notes
        assert bool(notes) == (words is not None)
        assert words is None or (words in notes[0] and "elevation 89 to 90" in notes[0])


def test_a_model_of_another_object_is_noted(bop: Path) -> None:
    known, oracle = read_bop(bop).objects[1], Oracle(bop)
    twofold, plain = Symmetries(TWOFOLD.symmetries).to_json(), Symmetries.none().to_json()
    for meta, words in (
        ({"diameter": 1.019 * known.diameter, "symmetries": twofold}, ()),
        ({"diameter": 1.03 * known.diameter, "symmetries": twofold}, ("diameter 127.0 mm",)),
        ({"diameter": 0.97 * known.diameter, "symmetries": plain}, ("diameter 119.6 mm", "the model none")),
        ({}, ()),
    ):
        oracle.meta = meta
        notes = evaluate_bop(bop, 1, oracle, limit=1).notes
        assert len(notes) == len(words)
        assert all(w in note for w, note in zip(words, notes, strict=True))


def name_targets(root: Path, images: dict[int, int], obj_id: int = 1) -> None:
    """Writes the challenge's targets, {im_id: inst_count}, beside the set."""
    rows = [{"scene_id": 3, "im_id": i, "obj_id": obj_id, "inst_count": n} for i, n in images.items()]
    (root / "test_targets_bop19.json").write_text(json.dumps(rows))


def test_where_the_truth_is_withheld_the_poses_are_written(bop: Path, tmp_path: Path) -> None:
    oracle = Oracle(bop)
    name_targets(bop, {0: 1, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1})
    for name in ("scene_gt.json", "scene_gt_info.json"):
        (bop / "test" / "000003" / name).unlink()
    csv = tmp_path / "r.csv"
    for more, words in (
        ({}, "csv: the truth of object 1 is withheld in .*expected a file"),
        (
            {"csv": csv, "report": tmp_path / "r.html"},
            "report: got '.*r.html', but the truth of object 1 is withheld",
        ),
        ({"csv": csv, "boxes": "gt"}, 'boxes: got "gt", but the truth of object 1 is withheld'),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_bop(bop, None, oracle, **more)
    assert oracle.calls == 0, "said before the work begins"
    evaluation = evaluate_bop(bop, None, oracle, csv=csv, summary=tmp_path / "s.json")
    results = read_results(csv)
    assert [(r.scene_id, r.im_id, r.obj_id) for r in results] == [(3, i, 1) for i in (0, 1, 1, 2, 3, 4, 5)]
    for r, truth in zip(results, (p for i in range(6) for p in oracle.truth[i]), strict=True):
        np.testing.assert_allclose(r.pose.t, truth.t, atol=1e-9)
    assert (evaluation.summaries, evaluation.scores) == ((), ())
    assert evaluation.seconds_median > 0
    said = str(evaluation)
    assert f"the truth of 6 of 6 targets is withheld: no figures of them, only poses in {csv}" in said
    assert "ADD" not in said
    assert json.loads((tmp_path / "s.json").read_text())["summaries"] == []


def test_a_target_gets_as_many_lines_as_it_asks_for(bop: Path, tmp_path: Path) -> None:
    """Not as many as are annotated; a target without any truth, beside others, has its lines, too."""
    oracle = Oracle(bop)
    name_targets(bop, {0: 1, 1: 2, 2: 1})
    for name in ("scene_gt.json", "scene_gt_info.json"):
        path = bop / "test" / "000003" / name
        table = json.loads(path.read_text())
        path.write_text(json.dumps(table | {"1": table["1"][:1], "2": []}))
    evaluation = evaluate_bop(bop, 1, oracle, csv=tmp_path / "r.csv")
    assert [r.im_id for r in read_results(tmp_path / "r.csv")] == [0, 1, 1, 2]
    assert evaluation.summaries[1].count == 2
    assert any("the truth of 1 of 3 targets is withheld" in note for note in evaluation.notes)
    calls = oracle.calls
    assert evaluate_bop(bop, 1, oracle).summaries[1].count == 2
    assert oracle.calls - calls == 2 + 1, "without a file, nothing is estimated for nothing"


def test_targets_without_a_picture_are_noted(bop: Path) -> None:
    name_targets(bop, {0: 1, 1: 2, 2: 1} | dict.fromkeys(range(10, 17), 1))
    evaluation = evaluate_bop(bop, 1, Oracle(bop))
    words = "7 of 10 targets have no picture: they are not counted"
    assert evaluation.summaries[1].count == 4
    assert words in str(evaluation)
    assert any(words in note for note in evaluation.to_json()["notes"])
    name_targets(bop, dict.fromkeys(range(10, 17), 1))
    with pytest.raises(ValueError, match="none of the 7 targets of object 1 has a picture"):
        evaluate_bop(bop, 1, Oracle(bop))
    (bop / "test_targets_bop19.json").write_text("[]")
    with pytest.raises(ValueError, match="no targets: neither"):
        evaluate_bop(bop, 1, Oracle(bop))


@pytest.fixture
def pair(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Four pictures of brick 1; bricks 5 of twice its size stand in the last three."""
    root = tmp_path / "pair"
    with BopWriter(root, split="test", scene_id=3) as writer:
        writer.add_model(1, CadModel.from_trimesh(BRICK, "brick"), Symmetries.none())
        large = BRICK.copy().apply_scale(2.0)
        writer.add_model(5, CadModel.from_trimesh(large, "large"), Symmetries.none())
        for i in range(4):
            poses = [(1, at(-0.2, 0.02 * i)), (5, at(0.2, rvec=rng.standard_normal(3)))][: 1 + (i > 0)]
            masks = np.ones((len(poses), 480, 640), bool)
            writer.add(np.full((480, 640, 3), i, np.uint8), CAMERA, poses, masks=masks, masks_visib=masks)
    return root


def test_several_objects_share_a_file_and_a_mean(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("geopose.evaluate.time.perf_counter", lambda: clock[0])

    def change(seconds: float, lost: int = -1) -> Any:
        def slowly(i: int, pose: Pose) -> Pose | None:
            clock[0] += seconds
            return None if i == lost else pose

        return slowly

    oracles = {1: Oracle(pair, change(1.0)), 5: Oracle(pair, change(10.0, lost=2), obj_id=5)}
    csv, summary = tmp_path / "geopose_pair-test.csv", tmp_path / "s.json"
    found = evaluate_bop_objects(pair, oracles, csv=csv, summary=summary)
    lines = [(r.im_id, r.obj_id, r.time) for r in read_results(csv)]
    assert lines == [(0, 1, 1), (1, 1, 11), (1, 5, 11), (2, 1, 11), (3, 1, 11), (3, 5, 11)]
    assert found.seconds_median == 11
    assert list(found.objects) == [1, 5]
    assert found.objects[5].summaries[1].found == pytest.approx(2 / 3)
    alone = evaluate_bop(pair, 5, oracles[5])
    assert found.objects[5].to_json() == alone.to_json(), "each as if it were alone"
    visible, everything, alike = found.mean.summaries
    for group in (visible, everything):
        assert group.count == 7
        assert group.add_recall["0.1"] == group.found == group.ar_mssd == pytest.approx((1 + 2 / 3) / 2)
        assert group.failures["not located"] == 1
        assert group.statuses == {"ok": 6, "not_found": 1}
    assert alike.ar_mssd == alike.ar == pytest.approx(6 / 7), "as the challenge counts"
    assert np.isnan(everything.ar_vsd)
    written = json.loads(summary.read_text())
    assert [o["obj_id"] for o in written["objects"]] == [1, 5]
    assert {k: v for k, v in written["objects"][1].items() if k != "obj_id"} == alone.to_json()
    assert written["mean"]["summaries"][1]["found"] == pytest.approx(5 / 6)
    said = str(found)
    for words in (
        "object 1:",
        "object 5:",
        "objects 1, 5: means over the objects",
        "mean, all",
        "all instances alike",
    ):
        assert words in said
    with pytest.raises(ValueError, match="estimators: got none"):
        evaluate_bop_objects(pair, {})


def test_several_objects_without_truth(pair: Path, tmp_path: Path) -> None:
    oracles = {1: Oracle(pair), 5: Oracle(pair, obj_id=5)}
    (pair / "test_targets_bop19.json").write_text(
        json.dumps([{"scene_id": 3, "im_id": 1, "obj_id": i, "inst_count": 1} for i in (1, 5)])
    )
    (pair / "test" / "000003" / "scene_gt.json").unlink()
    (pair / "test" / "000003" / "scene_gt_info.json").unlink()
    found = evaluate_bop_objects(pair, oracles, csv=tmp_path / "r.csv")
    assert [(r.im_id, r.obj_id) for r in read_results(tmp_path / "r.csv")] == [(1, 1), (1, 5)]
    assert found.mean.summaries == ()
    assert "objects 1, 5: no truth is known of any" in str(found)


def test_an_oracle_is_perfect(bop: Path, tmp_path: Path) -> None:
    oracle = Oracle(bop)
    paths = {"csv": tmp_path / "r.csv", "summary": tmp_path / "s.json", "report": tmp_path / "r.html"}
    evaluation = evaluate_bop(bop, None, oracle, **paths)
    visible, everything = evaluation.summaries
    assert (visible.count, everything.count) == (6, 7)
    for s in evaluation.summaries:
        assert (s.found, s.trusted, s.ar, s.add_recall["0.02"], s.coverage["0.99"]) == (1, 1, 1, 1, 1)
        assert sum(s.failures.values()) == 0
    results = read_results(paths["csv"])
    assert [(r.scene_id, r.im_id) for r in results] == [(3, i) for i in (0, 1, 1, 2, 3, 4, 5)]
    assert results[1].time == results[2].time > 0
    np.testing.assert_allclose(results[0].pose.t, oracle.truth[0][0].t, atol=1e-9)
    figures = json.loads(paths["summary"].read_text())
    assert figures["summaries"][1]["add_recall"]["0.1"] == 1
    assert len(figures["scores"]) == 7
    page = paths["report"].read_text()
    assert page.count("<img") == 18
    assert "http" not in page.replace("http-equiv", "")
    assert "<meta name='viewport' content='width=device-width" in page, "a telephone does not shrink it"
    text = str(evaluation)
    assert "whole pictures, no box given" in text
    assert "100.0 %" in text


def test_known_spoilage_gives_known_figures(bop: Path, tmp_path: Path) -> None:
    def change(i: int, pose: Pose) -> Pose | None:
        shifts = {0: 0.0, 1: 0.011, 2: 0.0, 3: 0.02, 4: 0.3}  # metres; a tenth of the diameter is 0.0123
        return None if i == 5 else Pose(pose.R, pose.t + [shifts[i], 0, 0])

    report = tmp_path / "report.html"
    evaluation = evaluate_bop(bop, 1, Oracle(bop, change), report=report, visib=0.9)
    visible, everything = evaluation.summaries
    assert everything.count == 7
    assert everything.found == pytest.approx(6 / 7)
    assert visible.found == pytest.approx(5 / 6)
    errors = sorted(s.mssd for s in evaluation.scores)
    np.testing.assert_allclose(errors, [0, 0, 0.011, 0.011, 0.02, 0.3, np.inf], atol=1e-9)
    thresholds = np.arange(1, 11) * 0.05 * read_bop(bop).objects[1].diameter
    assert everything.ar_mssd == pytest.approx(np.mean([np.less(errors, t).mean() for t in thresholds]))
    assert everything.failures == {"not located": 2, "wrong keypoints": 0, "flipped": 0, "imprecise": 1}
    assert "failed: not located" in report.read_text()


def test_symmetric_objects_are_scored_by_add_s(bop: Path) -> None:
    evaluation = evaluate_bop(bop, 1, Oracle(bop, lambda i, p: p @ Pose.from_matrix(HALF_TURN)))
    assert evaluation.summaries[1].add_recall["0.02"] == 1
    assert evaluation.summaries[1].ar == 1
    assert min(s.add for s in evaluation.scores) > 0.05


def test_true_boxes_are_a_task_of_their_own(bop: Path, tmp_path: Path) -> None:
    oracle = Oracle(bop)
    evaluation = evaluate_bop(bop, 1, oracle, boxes="gt")
    assert evaluation.notes == ()
    assert evaluation.summaries[1].ar == 1
    assert "TRUE BOXES GIVEN" in evaluation.title
    assert len(oracle.boxes) == 7 + 1  # the first picture is looked at twice
    np.testing.assert_allclose(
        oracle.boxes[0], oracle.estimate_all(np.zeros((480, 640, 3)), CAMERA)[0].box, atol=1e-6
    )
    csv = tmp_path / "r.csv"
    said = str(evaluate_bop(bop, 1, oracle, boxes="gt", csv=csv))
    assert f"{csv} was made with TRUE BOXES: it is no submission" in said


def test_an_object_behind_the_camera_has_no_true_box(bop: Path) -> None:
    file = bop / "test" / "000003" / "scene_gt.json"
    table = json.loads(file.read_text())
    table["4"][0]["cam_t_m2c"][2] *= -1
    file.write_text(json.dumps(table))
    evaluation = evaluate_bop(bop, 1, Oracle(bop), boxes="gt")
    found = {(s.im_id, s.instance): s.estimate for s in evaluation.scores}
    assert found.pop((4, 0)) == -1
    assert set(found.values()) == {0, 1}
    assert evaluation.summaries[1].ar == pytest.approx(6 / 7)


def test_a_set_without_models_says_so(bop: Path) -> None:
    (bop / "models" / "models_info.json").unlink()
    with pytest.raises(ValueError, match=r"obj_id: .*models_info\.json, which .*toys lacks, got 1"):
        evaluate_bop(bop, 1, Oracle(bop))


def cast_depth(pose: Pose) -> NDArray[np.float64]:
    """Depth of the brick in CAMERA's picture, metres, by trimesh's ray caster, 0 where it is not."""
    y, x = np.mgrid[:480, :640]
    rays = np.stack([(x - 319.5) / 600, (y - 239.5) / 600, np.ones(x.shape)], -1).reshape(-1, 3)
    mesh = BRICK.copy().apply_transform(pose.matrix)
    px = CAMERA.project(mesh.vertices)
    low, high = px.min(0) - 2, px.max(0) + 2
    near = np.flatnonzero(
        ((rays[:, :2] * 600 + (319.5, 239.5) >= low) & (rays[:, :2] * 600 + (319.5, 239.5) <= high)).all(1)
    )
    places, index, _ = mesh.ray.intersects_location(np.zeros((len(near), 3)), rays[near], multiple_hits=False)
    depth = np.zeros(480 * 640)
    depth[near[index]] = places[:, 2]
    return depth.reshape(480, 640)


def bop_vsd(est: NDArray[Any], gt: NDArray[Any], test: NDArray[Any], diameter: float) -> list[float]:
    """VSD of BOP 2019 at its ten tolerances, on whole pictures."""
    y, x = np.mgrid[:480, :640]
    length = np.sqrt(((x - 319.5) / 600) ** 2 + ((y - 239.5) / 600) ** 2 + 1)
    est, gt, test = est * length, gt * length, test * length
    seen_gt = ((gt - test <= 0.015) | (test == 0)) & (gt > 0)
    seen = (((est - test <= 0.015) | (test == 0)) & (est > 0)) | (seen_gt & (est > 0))
    both, union = seen_gt & seen, (seen_gt | seen).sum()
    off = np.abs(est - gt)[both] / diameter
    return [((off >= tau).sum() + union - both.sum()) / union for tau in np.arange(1, 11) * 0.05]


def test_visible_surface_discrepancy_where_the_set_has_depth(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Against whole pictures by another renderer; a wall hides half of the second brick, and the third has no depth."""
    root = tmp_path / "deep"
    shifts = np.array([[0.006, 0, 0.01], [0, -0.004, 0.03], [0.01, 0, 0]])
    truths = [at(-0.1 + 0.1 * i, 0.02 * i, 1 + 0.3 * i, rng.standard_normal(3)) for i in range(3)]
    measured = []
    with BopWriter(root, split="test", scene_id=3) as writer:
        writer.add_model(1, CadModel.from_trimesh(BRICK, "brick"), Symmetries(PLAIN.symmetries))
        for i, pose in enumerate(truths):
            depth = cast_depth(pose)
            depth[depth == 0] = 2.0 * (i == 0)  # nothing is known of what lies behind the second
            if i == 1:
                ys, xs = np.nonzero(depth)
                depth[:, : int(xs.mean())] = 0.4
            measured.append(np.round(depth * 1e4) / 1e4)
            masks = np.ones((1, 480, 640), bool)
            writer.add(
                np.full((480, 640, 3), i, np.uint8),
                CAMERA,
                [(1, pose)],
                depth=depth,
                masks=masks,
                masks_visib=masks,
            )
    (root / "test" / "000003" / "depth" / "000002.png").unlink()
    evaluation = evaluate_bop(root, 1, Oracle(root, lambda i, p: Pose(p.R, p.t + shifts[i])))
    expected = []
    for pose, depth, shift in zip(truths[:2], measured, shifts, strict=False):
        errors = bop_vsd(cast_depth(Pose(pose.R, pose.t + shift)), cast_depth(pose), depth, PLAIN.diameter)
        expected.append(np.mean([[e < x for x in np.arange(1, 11) * 0.05] for e in errors]))
    assert [s.vsd_hits for s in evaluation.scores[:2]] == pytest.approx(
        expected, abs=0.0101
    )  # one pair on the edge
    assert 0.2 < expected[1] < expected[0] < 0.95
    assert np.isnan(evaluation.scores[2].vsd_hits)
    everything = evaluation.summaries[1]
    assert everything.ar_vsd == pytest.approx(np.mean(expected), abs=0.01)
    assert everything.ar_bop == pytest.approx(
        (everything.ar_mssd + everything.ar_mspd + everything.ar_vsd) / 3
    )
    assert "average recall, VSD" in str(evaluation)
    perfect = evaluate_bop(root, 1, Oracle(root))
    assert perfect.summaries[1].ar_bop == 1


def test_visible_surface_discrepancy_of_two_bricks_that_change_places(tmp_path: Path) -> None:
    """Estimates are given to the nearest truth; one that is nowhere near any scores nothing."""
    truths = [at(-0.2), at(0.2)]
    depth = np.zeros((480, 640), np.float32)
    rows = score(
        [with_box(truths[1], confidence=0.9), with_box(truths[0], confidence=0.8)],
        [Truth(t, CAMERA) for t in truths], SOLID, depth=depth,
    )  # fmt: skip
    assert [r.vsd_hits for r in rows] == [1, 1]
    astray = [Truth(at(y=0.3), CAMERA)]
    assert score([with_box(truths[0])], astray, SOLID, depth=depth)[0].vsd_hits == 0
    assert score([with_box(at(z=-1.0))], astray, SOLID, depth=depth)[0].vsd_hits == 0
    assert score([Estimate(None, "not_found", 0)], astray, SOLID, depth=depth)[0].vsd_hits == 0
    assert np.isnan(score([with_box(truths[0])], astray, PLAIN, depth=depth)[0].vsd_hits), (
        "no faces, nothing known"
    )


def test_without_depth_nothing_is_said_of_vsd(bop: Path) -> None:
    evaluation = evaluate_bop(bop, 1, Oracle(bop))
    assert np.isnan(evaluation.summaries[1].ar_vsd)
    assert "VSD" not in str(evaluation)
    assert evaluation.to_json()["summaries"][1]["ar_vsd"] is None


@pytest.mark.parametrize("damage", ["cut off", "another size", "colours"])
def test_broken_depth_is_named_and_costs_only_vsd(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "deep"
    with BopWriter(root, split="test", scene_id=3) as writer:
        writer.add_model(1, CadModel.from_trimesh(BRICK, "brick"), Symmetries(PLAIN.symmetries))
        masks = np.ones((1, 480, 640), bool)
        for i in range(2):
            image = np.full((480, 640, 3), i, np.uint8)
            writer.add(image, CAMERA, [(1, at())], depth=cast_depth(at()), masks=masks, masks_visib=masks)
    broken = root / "test" / "000003" / "depth" / "000001.png"
    if damage == "cut off":
        broken.write_bytes(broken.read_bytes()[:200])
    else:
        cv2.imwrite(str(broken), np.zeros((48, 64) if damage == "another size" else (480, 640, 3), np.uint16))
    evaluation = evaluate_bop(root, 1, Oracle(root))
    assert evaluation.summaries[1].count == 2
    assert evaluation.summaries[1].add_recall["0.02"] == 1
    assert evaluation.skipped == ()
    assert [s.vsd_hits for s in evaluation.scores] == pytest.approx([1, np.nan], nan_ok=True)
    (note,) = evaluation.notes
    assert "pictures without VSD, for their depth cannot be used: 1, first: " in note
    assert "000001.png" in note
    assert note in str(evaluation)


def test_broken_pictures_are_counted_and_left_out(bop: Path) -> None:
    broken = bop / "test" / "000003" / "rgb" / "000002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    evaluation = evaluate_bop(bop, 1, Oracle(bop))
    assert evaluation.summaries[1].count == 6
    assert len(evaluation.skipped) == 1
    assert "000002.png" in str(evaluation)


def test_bad_requests(bop: Path) -> None:
    with pytest.raises(ValueError, match=r"obj_id: expected one of \[1\], got 2"):
        evaluate_bop(bop, 2, Oracle(bop))
    with pytest.raises(ValueError, match="boxes"):
        evaluate_bop(bop, 1, Oracle(bop), boxes="all")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"limit: expected None or at least 1, got {wrong}"):
            evaluate_bop(bop, 1, Oracle(bop), limit=wrong)
        with pytest.raises(ValueError, match="limit: expected None or at least 1"):
            evaluate_bop_objects(bop, {1: Oracle(bop)}, limit=wrong)
    for share in (2.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"visib: expected a share between 0 and 1, got {share}"):
            evaluate_bop(bop, 1, Oracle(bop), visib=share)
        with pytest.raises(ValueError, match="visib: expected a share between 0 and 1"):
            evaluate_bop_objects(bop, {1: Oracle(bop)}, visib=share)
    assert (evaluate_bop(bop, 1, Oracle(bop), limit=1, visib=1.0)).summaries[1].count


RANKED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_evaluate import Oracle
from geopose.evaluate import evaluate_bop
from geopose.geometry.pose import Pose
root, out = Path(sys.argv[2]), Path(sys.argv[3])
oracle = Oracle(root, lambda i, p: Pose(p.R, p.t + [0.004 * i, 0, 0]))
evaluation = evaluate_bop(root, 1, oracle, csv=out / "r.csv", summary=out / "s.json", report=out / "r.html")
(out / f"calls_{evaluation.summaries[1].count}_{id(oracle)}.txt").write_text(str(oracle.calls))
"""


def test_ranks_share_the_pictures_and_merge(bop: Path, tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parent
    script = tmp_path / "ranked.py"
    script.write_text(RANKED)
    evaluate_bop(
        bop,
        1,
        Oracle(bop, lambda i, p: Pose(p.R, p.t + [0.004 * i, 0, 0])),
        summary=tmp_path / "a.json",
        report=tmp_path / "a.html",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [  # as torchrun starts them
        subprocess.Popen(
            [sys.executable, str(script), str(tests), str(bop), str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            said = process.communicate(timeout=300)[1]
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in ranks:
            process.kill()
    assert len(list(tmp_path.glob("calls_7_*.txt"))) == 2, "every rank returns the whole evaluation"
    assert [int(p.read_text()) for p in tmp_path.glob("calls_*.txt")] == [
        4,
        4,
    ]  # three pictures and a warm-up each
    together, single = (json.loads((tmp_path / name).read_text()) for name in ("s.json", "a.json"))
    for row in (*together["scores"], *single["scores"]):
        row.pop("seconds")
    assert together["scores"] == single["scores"]
    assert together["summaries"] == single["summaries"]
    assert len(read_results(tmp_path / "r.csv")) == 7
    images = re.findall("<img alt='([^']*)'", (tmp_path / "r.html").read_text())
    assert images == re.findall("<img alt='([^']*)'", (tmp_path / "a.html").read_text())
    assert len(images) >= 18


def test_renders(rng: np.random.Generator) -> None:
    class Renders:
        def __getitem__(self, index: int) -> dict[str, Any]:
            pose = at(rvec=np.random.default_rng(index).standard_normal(3))
            image = np.full((3, 480, 640), index, np.uint8)
            return {
                "image": image,
                "R": pose.R,
                "t": pose.t,
                "K": np.asarray(CAMERA.K),
                "visib_fract": index / 10,
            }

    class Knows:
        def estimate(self, img: NDArray[np.uint8], camera: Camera) -> Estimate:
            item = Renders()[int(img[0, 0, 0])]
            assert img.shape == (480, 640, 3)
            return with_box(Pose(item["R"], item["t"]))

    evaluation = evaluate_renders(Knows(), Renders(), PLAIN, 10)
    assert [s.count for s in evaluation.summaries] == [4, 10]
    assert evaluation.summaries[1].ar == 1


def test_lmo_with_noisy_truth() -> None:
    root = data_path("lmo")
    dataset = read_bop(root)

    class Noisy:
        """Truth of the picture that is asked for, turned by 3 degrees about the optical axis; nothing for the fifth."""

        def __init__(self) -> None:
            self.of = {f.load()[0].tobytes()[::997]: f for f in dataset.target_frames(10)[:10]}

        def estimate(self, img: NDArray[np.uint8], camera: Camera, box: Any = None) -> Estimate:
            frame = self.of[img.tobytes()[::997]]
            if frame.im_id == dataset.target_frames(10)[4].im_id:
                return Estimate(None, "not_found", 0.0)
            pose = next(i.pose for i in frame.instances if i.obj_id == 10)
            turn = Pose.from_rvec_tvec(np.array([0, 0, np.deg2rad(3)]), np.zeros(3))
            return with_box(Pose(turn.R @ pose.R, pose.t))

    evaluation = evaluate_bop(root, 10, Noisy(), limit=10)
    everything = evaluation.summaries[1]
    assert everything.count == 10
    assert everything.found == pytest.approx(0.9)
    assert everything.rotation_deg_median == pytest.approx(3, abs=1e-6)
    assert everything.add_recall["0.1"] == pytest.approx(0.9)
    # The vertex that is furthest from the axis of the turn moves by 2 sin(1.5 degrees) times its distance.
    known = dataset.objects[10]
    for row in evaluation.scores:
        if row.status == "ok":
            pose = next(
                i.pose for f in dataset.frames if f.im_id == row.im_id for i in f.instances if i.obj_id == 10
            )
            away = np.linalg.norm((known.points @ pose.R.T)[:, :2], axis=1).max()
            assert row.mssd == pytest.approx(2 * np.sin(np.deg2rad(1.5)) * away, rel=1e-6)
