"""Settings of `solve_pnp`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from geopose.geometry._kernels import KERNELS


@dataclass(frozen=True)
class PnPOptions:
    """Settings of `solve_pnp`.

    noise_px: standard deviation, pixels per axis, of every point when no `cov_px` is given.
    gate_sigma: a point farther than this from its projection is an outlier, standard deviations
        (Mahalanobis). Five is generous: a Gaussian point is lost once in 270,000, because networks understate
        their covariances.
    kernel, kernel_sigma: robust kernel of the last fit to the inliers ("none", "huber", "cauchy",
        "geman_mcclure") and its scale in standard deviations. "none" is the most exact for Gaussian errors,
        "cauchy" for heavy tails.
    max_samples: three-point samples of the robust search; all triplets are tried where there are fewer.
    max_false_alarms: accept a pose with outliers when fewer poses than this, in expectation, would fit random
        pixels as well.
    ambiguous_weight: `ambiguous` when the alternatives together reach this posterior probability.
    max_iterations, tolerance: of Levenberg-Marquardt; it stops at a step this short, standard deviations of
        the pose.
    """

    noise_px: float = 1.0
    gate_sigma: float = 5.0
    kernel: str = "none"
    kernel_sigma: float = 3.0
    max_samples: int = 1000
    max_false_alarms: float = 0.015
    ambiguous_weight: float = 0.1
    max_iterations: int = 100
    tolerance: float = 1e-7

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {self.kernel!r}")
        for name in ("noise_px", "gate_sigma", "kernel_sigma", "max_false_alarms", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not float(value) > 0:
                raise ValueError(f"{name}: expected a number above zero, got {value!r}")
        if self.noise_px == math.inf:
            raise ValueError("noise_px: expected a finite number of pixels, got inf")
        for name in ("max_samples", "max_iterations"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: expected a whole number, at least 1, got {value!r}")
