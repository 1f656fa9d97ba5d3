"""The robust parts: samples, scores, significance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geopose.geometry.pose import Pose
from geopose.geometry.ransac import (
    chance_of_distance,
    hypothesise,
    log_false_alarms,
    optimise,
    sample_triplets,
    squared_residuals,
    truncated_cost,
)
from geopose.geometry.refine import Reprojection
from geopose.geometry.rotation import geodesic_angle, random_rotation


def _problem(
    rng: np.random.Generator, batch: int = 3, n: int = 16, outliers: int = 6
) -> tuple[Reprojection, Pose]:
    points = rng.uniform(-0.5, 0.5, (batch, n, 3))
    pose = Pose(random_rotation((batch,), rng), rng.uniform(-0.2, 0.2, (batch, 3)) + [0, 0, 4])
    cam = pose.apply(points)
    xy = cam[..., :2] / cam[..., 2:] + rng.standard_normal((batch, n, 2)) / 800
    xy[:, :outliers] = rng.uniform(-0.4, 0.4, (batch, outliers, 2))
    return Reprojection(points.mT, xy.mT, np.tile([[800.0], [0], [800]], (batch, 1, n))), pose


@pytest.mark.parametrize(("count", "most"), [(3, 100), (9, 1000), (12, 50), (100, 64)])
def test_triplets_are_distinct_points_and_exhaustive_when_few(count: int, most: int) -> None:
    triplets = sample_triplets(count, most, 0)
    assert len(triplets) == min(most, math.comb(count, 3))
    assert triplets.min() >= 0
    assert triplets.max() < count
    assert all(len(set(t)) == 3 for t in triplets.tolist())
    if math.comb(count, 3) <= most:
        assert len({tuple(sorted(t)) for t in triplets.tolist()}) == math.comb(count, 3)
    np.testing.assert_array_equal(triplets, sample_triplets(count, most, 0))


def test_the_best_hypotheses_are_near_the_truth_and_sorted(rng: np.random.Generator) -> None:
    problem, truth = _problem(rng)
    pose, cost = hypothesise(problem, 5.0, 1000, 8, seed=0)
    assert pose.R.shape == (8, 3, 3, 3)
    assert (np.diff(cost, axis=0) >= 0).all()
    np.testing.assert_allclose(cost, truncated_cost(problem, pose, 5.0))
    refined, better = optimise(problem, pose, 5.0, 15)
    assert (better.min(0) <= cost.min(0)).all()
    assert geodesic_angle(refined.R[0], truth.R).max() < 0.05
    inliers = squared_residuals(problem, Pose(refined.R[0], refined.t[0])) < 25
    assert inliers[:, 6:].all()


def test_hypotheses_depend_on_the_seed_and_the_item_only(rng: np.random.Generator) -> None:
    problem, _ = _problem(rng)
    whole = hypothesise(problem, 5.0, 1000, 4, seed=7)
    again = hypothesise(problem, 5.0, 1000, 4, seed=7)
    alone = hypothesise(problem.item(slice(2, 3)), 5.0, 1000, 4, seed=7)
    np.testing.assert_array_equal(whole[0].R, again[0].R)
    np.testing.assert_array_equal(whole[0].R[:, 2], alone[0].R[:, 0])
    tensors = Reprojection(*(torch.from_numpy(a) for a in (problem.points, problem.xy, problem.whiten)))
    ours = hypothesise(tensors, 5.0, 1000, 4, seed=7)
    np.testing.assert_allclose(whole[1], ours[1].numpy(), rtol=1e-6)


def test_missing_points_are_never_drawn(rng: np.random.Generator) -> None:
    problem, truth = _problem(rng, outliers=0)
    missing = np.zeros((3, 16), bool)
    missing[0, ::2] = missing[1, :3] = True
    part = problem.select(~missing)
    part.xy[np.broadcast_to(missing[:, None], part.xy.shape)] = 0
    pose, cost = hypothesise(part, 5.0, 1000, 1, seed=0)
    assert geodesic_angle(pose.R[0], truth.R).max() < 0.05
    assert (cost < 25 * 3).all()


def test_false_alarms_count_subsets(rng: np.random.Generator) -> None:
    chance, yes = np.array([0.0, 0.0, 0.0, 1e-3, 1.0]), np.ones(5, bool)
    four = math.log(2 * math.comb(5, 4) * 1e-3)
    assert log_false_alarms(chance, chance < 0.5, yes) == pytest.approx(four)
    assert log_false_alarms(chance, yes, yes) == pytest.approx(min(four, math.log(2 * 1.001**2 / 2)))
    assert log_false_alarms(chance, np.arange(5) < 3, yes) == math.inf
    missing = np.append(yes, False)  # a missing point counts for nothing
    assert log_false_alarms(np.append(chance, 0.0), missing, missing) == log_false_alarms(chance, yes, yes)


def test_chance_is_the_share_of_the_area(rng: np.random.Generator) -> None:
    n = 4001
    xy = rng.uniform(-1, 1, (1, 2, n))
    problem = Reprojection(np.zeros((1, 3, n)), xy, np.tile([[10.0], [0], [20]], (1, 1, n)))
    chance = chance_of_distance(problem, np.full((1, n), 9.0), np.ones((1, n), bool))
    np.testing.assert_allclose(chance, math.pi * 9 / 200 / 4, rtol=0.1)
    xy[..., :400] *= 1e4  # far outliers make nothing more significant
    far = chance_of_distance(problem, np.full((1, n), 9.0), np.ones((1, n), bool))
    np.testing.assert_allclose(far, chance, rtol=0.4)
