"""What `solve_pnp` says about its poses: every status but `ok` and its reason are written here."""

from __future__ import annotations

import numpy as np

from geopose.geometry._arrays import Array, back_to_numpy
from geopose.geometry._correspondences import Problem
from geopose.geometry._pnp_options import PnPOptions

FEW = "{} finite correspondences of {}; three leave up to four poses, from four on a pose can be checked"
FAR = 1e8  # object sizes; a pose farther away comes from pixels that are all alike

KEY, SAME = (0.5377, 0.8339, 0.1237), 1e-9  # points nearer than this along the direction KEY are one


def screen(problem: Problem, variances: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Status and reason of what no solver can help, and the number of different object points."""
    valid = back_to_numpy(problem.valid)
    key = back_to_numpy(problem.pinhole.points)
    key = KEY[0] * key[..., 0, :] + KEY[1] * key[..., 1, :] + KEY[2] * key[..., 2, :]
    key = np.sort(np.where(valid, key, np.inf), -1)
    fresh = (key[..., 1:] - key[..., :-1] > SAME) & np.isfinite(key[..., 1:])
    number = valid.sum(-1)
    different = np.where(number > 0, 1 + fresh.sum(-1), 0)
    variances = back_to_numpy(variances)
    status, reason = np.full(len(valid), "ok", dtype="<U16"), np.full(len(valid), "", dtype=object)
    line = ~(variances[..., 1] > 1e-10 * variances[..., 2])
    for i in np.flatnonzero((number < 3) | line):
        few = number[i] < 3
        status[i] = "too_few_points" if few else "degenerate"
        reason[i] = (
            FEW.format(number[i], valid.shape[1])
            if few
            else f"the {different[i]} different object points lie on one line; the turn about it is not seen"
        )
    return status, reason, different


def judge(
    problem: Problem,
    items: np.ndarray,
    inlier: np.ndarray,
    log_nfa: np.ndarray,
    mirrored: np.ndarray,
    options: PnPOptions,
    status: np.ndarray,
    reason: np.ndarray,
    different: np.ndarray,
) -> None:
    """Write `no_consensus` where the inliers are no more than chance."""
    valid = back_to_numpy(problem.valid)[items]
    for i, item in enumerate(items):
        k, n = int(inlier[i].sum()), int(valid[i].sum())
        if different[item] == 3:
            if k < n:
                status[item], reason[item] = "no_consensus", "no pose fits the three different points"
            continue
        if mirrored[i]:
            status[item] = "no_consensus"
            reason[item] = "no pose fits all points, but one of their mirror image does: is an axis flipped?"
            continue
        if k == n or log_nfa[i] < np.log(options.max_false_alarms):
            continue
        status[item] = "no_consensus"
        reason[item] = (
            f"the best pose fits {k} of {n} points within {options.gate_sigma:g} standard deviations, "
            f"no more than chance: about {np.exp(min(log_nfa[i], 50)):.2g} sets of random pixels would fit as well"
        )


def last_words(
    status: np.ndarray,
    reason: np.ndarray,
    different: np.ndarray,
    weight: np.ndarray,
    variance: np.ndarray,
    cost: np.ndarray,
    t: np.ndarray,
    options: PnPOptions,
) -> None:
    """Write the statuses that the best pose earns, where nothing worse is written yet.

    weight: (K, B) of the candidates; of the best: variance (B, 6), cost (B,), infinite where there is none and NaN
    where it did not converge, t (B, 3) in object sizes.
    """
    turn = np.sqrt(variance[:, 3:].sum(-1))
    distance = np.sqrt((t * t).sum(-1))
    vague = ~(turn < 1.0) | ~(np.sqrt(variance[:, :3].sum(-1)) < distance) | ~(distance < FAR)
    rival = weight[1:].sum(0) >= options.ambiguous_weight
    odd = ~np.isfinite(cost) | vague | (different == 3) | rival
    for i in np.flatnonzero(odd & (status == "ok")):
        rivals = int((weight[1:, i] > 1e-4).sum())
        if np.isinf(cost[i]):
            status[i], reason[i] = "no_consensus", "no pose has the points in front of the camera"
        elif vague[i]:
            status[i] = "degenerate"
            reason[i] = (
                f"the pose is not determined: standard deviations are {np.degrees(turn[i]):.3g} degrees in rotation"
                f" and {np.sqrt(variance[i, :3].sum()) / distance[i]:.3g} of a distance of {distance[i]:.3g} sizes"
            )
        elif different[i] == 3:
            status[i] = "ambiguous" if rivals else "too_few_points"
            reason[i] = f"three different points: {rivals + 1} pose(s) fit and nothing is left to check by"
        elif np.isnan(cost[i]):
            status[i], reason[i] = "not_converged", f"no minimum within {options.max_iterations} steps"
        else:
            status[i] = "ambiguous"
            reason[i] = (
                f"{rivals + 1} poses explain the points about as well; "
                f"the returned one has probability {weight[0, i]:.2f}"
            )
