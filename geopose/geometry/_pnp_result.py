"""What `solve_pnp` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from geopose.geometry._arrays import Array
from geopose.geometry.pose import Pose


@dataclass(frozen=True)
class Alternative:
    """Another local optimum: pose, covariance (..., 6, 6), posterior probability `weight` (...), rms_px.

    In a batch, items without one hold NaN and weight 0.
    """

    pose: Pose
    covariance: Array
    weight: Array
    rms_px: Array


@dataclass(frozen=True)
class PnPResult:
    """What `solve_pnp` found.

    pose: `cam_from_obj`, batch (...), NaN where there is none. covariance: (..., 6, 6) in the order (rho,
    phi), metres and radians, left (camera-frame) tangent. inliers: (..., N) bool. status, reason: strings,
    for a batch arrays of strings (...). rms_px: (...) root mean square pixel distance of the inliers.
    alternatives: other local optima, likeliest first; their weights and that of `pose` sum to one. swapped:
    (..., P) bool, the pairs of `swaps` whose pixels were exchanged, None where none were given; `inliers` then
    are of the object points.
    """

    pose: Pose
    covariance: Array
    inliers: Array
    status: Any
    reason: Any
    rms_px: Array
    alternatives: tuple[Alternative, ...]
    swapped: Array | None = None
