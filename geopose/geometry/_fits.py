"""Fits to a given set of points: what both starts lead to, when one is given up, what cost is plausible."""

from __future__ import annotations

from typing import Any

import numpy as np

from geopose.geometry._arrays import Array, namespace
from geopose.geometry._pnp_options import PnPOptions
from geopose.geometry.pose import Pose
from geopose.geometry.refine import (
    JacobianFn,
    LMResult,
    Reprojection,
    StopFn,
    fast_pose,
    levenberg_marquardt,
)

FIRST_STEPS = 8  # steps after which a fit to all points must look plausible
RIVAL = 40.0  # squared standard deviations; a pose this much worse is no rival (e^-20)
TIE = 1e-6  # squared standard deviations; costs nearer than this are equal
HYPOTHESES, OPTIMISE_STEPS = 8, 15  # three-point poses looked at more closely, and steps for each
SETTLED = 1.0  # squared standard deviations; a shorter step than this no longer changes the picture


def first_look(problem: Reprojection, starts: Pose, limit: Array, options: PnPOptions) -> LMResult:
    """Both starts (2, B) refined on all points, as if there were no outliers.

    A start is given up once the other one has settled at a plausible cost that it is far from; both are, for the
    search among outliers to take over, once even the linear model expects no plausible cost.
    """
    xp, spread = namespace(limit), spread_of(problem)

    def run(pose: Pose, first: int, last: int, items: Array | slice) -> LMResult:
        those, limits, spreads = problem.item(items), limit[items], spread[items]

        def part(here: Array | slice) -> tuple[JacobianFn, StopFn]:
            def give_up(steps: int, cost: Array, length: Array, expected: Array) -> Array:
                settled = ((length < SETTLED) & (cost < these)).any(0)
                lost = (expected > hopeless_cost(first + steps, these, spreads[here])).all(0)
                return settled & (cost > these + RIVAL) | lost

            these = limits[here]
            return those.item(here).linearise, give_up

        linearise, give_up = part(slice(None))
        return levenberg_marquardt(
            None,
            linearise,
            pose,
            max_iterations=last - first,
            tolerance=options.tolerance,
            stop_fn=give_up,
            part_fn=part,
        )

    found = run(starts, 0, min(FIRST_STEPS, options.max_iterations), slice(None))
    open_ = (~found.converged & (found.cost < limit + RIVAL)).any(0)
    if bool(open_.any()) and options.max_iterations > FIRST_STEPS:
        items = open_.nonzero()[0] if xp is np else open_.nonzero()[:, 0]
        start = fast_pose(found.pose.R[:, items], found.pose.t[:, items])
        more = run(start, FIRST_STEPS, options.max_iterations, items)
        k, i = (
            (~found.converged[:, items]).nonzero() if xp is np else (~found.converged[:, items]).nonzero().T
        )
        for name in ("cost", "information", "converged"):
            getattr(found, name)[k, items[i]] = getattr(more, name)[k, i]
        found.pose.R[k, items[i]], found.pose.t[k, items[i]] = more.pose.R[k, i], more.pose.t[k, i]
    return found


def spread_of(problem: Reprojection) -> Array:
    """(...) squared standard deviations of the image points about their mean, off-diagonal terms left out."""
    w = problem.whiten[..., ::2, :]
    here = w[..., :1, :] > 0
    number = here.sum(-1)[..., None]
    xp = namespace(w)
    xy = problem.xy * here
    off = (xy - xy.sum(-1)[..., None] / xp.where(number > 0, number, 1)) * w
    return (off * off).sum((-1, -2))


def hopeless_cost(steps: int, limit: Any, spread: Any) -> Any:
    """The cost that a linear model must not expect after so many steps where all points are inliers.

    On 10,000 problems without outliers at 3 to 10 object sizes, noise of 0.01 to 5 px, none lay above.
    """
    return 10.0 * limit + (0.03, 0.001, 0.0)[min(steps, 3) - 1] * spread


def refine_all(problem: Reprojection, starts: Pose, options: PnPOptions, kernel: str) -> LMResult:
    def give_up(steps: int, cost: Array, length: Array, expected: Array) -> Array:
        xp = namespace(cost)
        return cost > xp.amin(xp.where((length < SETTLED) & xp.isfinite(cost), cost, xp.inf), 0) + RIVAL

    return levenberg_marquardt(
        None,
        problem.linearise,
        starts,
        kernel=kernel,
        scale=options.kernel_sigma,
        max_iterations=options.max_iterations,
        tolerance=options.tolerance,
        stop_fn=give_up,
        part_fn=lambda items: (problem.item(items).linearise, give_up),
    )


def chi2_limit(dof: Array) -> Array:
    """About the 99.997 % quantile of chi-square (Wilson and Hilferty), 1e-6 where nothing is left to vary."""
    xp = namespace(dof)
    d = 2 / (9 * xp.clip(dof, 1.0, None))
    return xp.where(dof > 0, dof * (1 - d + 4 * xp.sqrt(d)) ** 3, 1e-6)


def beyond_doubt(options: PnPOptions) -> float:
    """The logarithm of false alarms a million times rarer than asked for."""
    return float(np.log(1e-6 * options.max_false_alarms))
