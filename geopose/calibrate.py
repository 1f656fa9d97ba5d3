"""Honest uncertainty: how far off the keypoints are, and how often the poses are right, on renders never trained on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from geopose.result import PoseEstimate
from geopose.stages import keypoints_of

Array = NDArray[np.float64]
WINDOWS: tuple[float | None, ...] = (None, 2.0, 3.0, 6.0)  # heatmap cells
LEAST_CONFIDENCE = 0.8  # below it a pose is not called good; docs/uncertainty.md has what that costs
SURE = 0.85  # of `confidence_of`, at which an estimate looks at nothing else
BEST_FEATURES = ("locator", "inliers", "precision", "agreement", "fit", "contour", "flow")
PRIOR: dict[str, Any] = {  # of the confidence, before renders taught it
    "weights": {
        "locator": 2,
        "inliers": 5,
        "precision": 5,
        "agreement": 5,
        "fit": 2,
        "contour": 4,
        "flow": 4,
    },
    "bias": -13.0,
}
_DEGREES = 4.0  # of freedom: between Gaussian and Cauchy
_PULL = 8.0  # keypoints' worth of belief that all keypoints are alike


@dataclass(frozen=True)
class Readings:
    """Keypoints read from N crops, in crop pixels: cov (N, K, 2, 2), error (N, K, 2) of the points read, and counted
    (N, K), where the true point lies inside the crop."""

    cov: Tensor
    error: Tensor
    counted: Tensor


def read_renders(
    net: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    count: int,
    until: float,
    windows: Sequence[float | None] = WINDOWS,
) -> dict[float | None, Readings]:
    """What the network reads in `count` fresh crops (fewer when `time.monotonic()` passes `until`), by
    window.

    Among the rows of a symmetric object that with the least error counts. `windows` as in `soft_argmax`.
    """
    rows: dict[float | None, list[tuple[Tensor, Tensor, Tensor]]] = {w: [] for w in windows}
    done = 0
    for batch in batches:
        image = batch["image"].to(device).float().div_(255)
        with torch.inference_mode():
            logits = net(image.contiguous(memory_format=torch.channels_last))["heatmaps"].double().cpu()
        truth, inside = batch["keypoints_px"].double(), batch["inside"].bool()
        for window in windows:
            points, cov = keypoints_of(logits, image.shape[-1], window)
            error = points - truth.transpose(0, 1)  # (Sym, B, K, 2)
            counted = inside.transpose(0, 1)
            far = torch.where(counted, error.norm(dim=-1), torch.zeros(())).sum(-1) / counted.sum(
                -1
            ).clamp_min(1)
            best = torch.where(counted.any(-1), far, torch.inf).argmin(0)
            each = torch.arange(len(best))
            rows[window].append((cov, error[best, each], counted[best, each]))
        done += len(image)
        if done >= count or time.monotonic() > until:
            break
    return {w: Readings(*(torch.cat(part)[:count] for part in zip(*r, strict=True))) for w, r in rows.items()}


def fit_covariance(readings: Readings, steps: int = 250) -> tuple[dict[str, Any], float]:
    """({"scale": (K,), "floor_px": (K,)}, mean negative log-likelihood per keypoint) of honest covariances.

    The calibrated covariance is a_k cov + b_k^2 I, crop pixels^2, with a_k = scale and b_k = floor_px for
    each keypoint.

    Notes:
        Maximum likelihood of the errors under a bivariate Student t with 4 degrees of freedom, whose scale
        matrix is the calibrated covariance: a few wild keypoints (another one's peak, a hidden side) do not
        blow up the rest, and RANSAC and the robust kernel take care of them. A weak prior draws each keypoint
        to the mean of all.
    """
    cov, error, counted = readings.cov, readings.error, readings.counted.double()
    keypoints = cov.shape[1]
    logs = torch.zeros(2, keypoints, dtype=torch.float64, requires_grad=True)  # log a, log b
    optimiser = torch.optim.Adam([logs], lr=0.05)
    eye = torch.eye(2, dtype=torch.float64)
    nll = torch.zeros(())
    for _ in range(steps):
        a, b = logs.clamp(-5.0, 5.0).exp()
        sigma = cov * a[:, None, None] + (b * b + 1e-4)[:, None, None] * eye
        det = sigma[..., 0, 0] * sigma[..., 1, 1] - sigma[..., 0, 1] ** 2
        x, y = error.unbind(-1)
        distance = (sigma[..., 1, 1] * x * x - 2 * sigma[..., 0, 1] * x * y + sigma[..., 0, 0] * y * y) / det
        each = 0.5 * det.log() + (_DEGREES + 2) / 2 * torch.log1p(distance / _DEGREES)
        nll = (each * counted).sum() / counted.sum().clamp_min(1)
        pull = (logs - logs.mean(1, keepdim=True)).square().sum() + 0.05 * logs.mean(1).square().sum()
        loss = nll + 0.5 * _PULL * pull / counted.sum().clamp_min(1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    a, b = logs.detach().clamp(-5.0, 5.0).exp()
    return {"scale": a.numpy(), "floor_px": (b * b + 1e-4).sqrt().numpy()}, float(nll.detach())


def calibrate_keypoints(
    by_window: Mapping[float | None, Readings],
) -> tuple[dict[str, Any], dict[str, float]]:
    """(calibration: window, scale, floor_px; figures: errors in crop pixels) with the window that is likeliest."""
    fits = {w: fit_covariance(r) for w, r in by_window.items()}
    window = min(fits, key=lambda w: fits[w][1])
    readings = by_window[window]
    error = readings.error.norm(dim=-1)[readings.counted]
    figures = {
        "crops": len(readings.error),
        "keypoint_median_crop_px": float(error.median()) if len(error) else float("nan"),
        "keypoint_mean_crop_px": float(error.mean()) if len(error) else float("nan"),
        "keypoint_nll": fits[window][1],
    }
    return {"window": window, **fits[window][0]}, figures


def confidence_of(features: Mapping[str, float], calibration: Mapping[str, Any]) -> float:
    """Probability that the pose is right: a logistic function of the features."""
    fitted = calibration.get("confidence") or PRIOR
    z = fitted["bias"] + sum(float(fitted["weights"].get(name, 0)) * features[name] for name in BEST_FEATURES)
    return float(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def fit_confidence(
    features: Sequence[Mapping[str, float]],
    right: Sequence[bool],
    prior: Mapping[str, Any],
    strength: float = 0.02,
) -> dict[str, Any]:
    """{"weights": by feature, all >= 0; "bias"} of the logistic function that tells right poses from wrong
    ones.

    Args:
        features: of N poses; right: whether each was.
        prior: weights and bias to stay near where the data say little.
        strength: of that, per unit of squared difference, against the N log-likelihoods.
    """
    names = list(prior["weights"])
    start = np.array([*(float(prior["weights"][n]) for n in names), float(prior["bias"])])
    x = np.array([[*(f[n] for n in names), 1.0] for f in features], float).reshape(len(features), len(start))
    bounds = [(0.0, 60.0)] * len(names) + [(-60.0, 60.0)]
    best = _fit_logistic(x, right, start, strength, bounds)
    return {"weights": dict(zip(names, best[:-1].tolist(), strict=True)), "bias": float(best[-1])}


def answer_confidence(confidence: float, calibration: Mapping[str, Any]) -> float:
    """Probability that an answer is right, of which `confidence_of` says `confidence`.

    Where that is sure the estimate ends; where not, the best of many places is answered, which promises more than it
    keeps: a line in the log odds for each of the two, which meet. A calibration without these leaves it as it is.
    """
    fitted = calibration.get("answers")
    if fitted is None or not 0 < confidence < 1:
        return confidence
    beyond = _log_odds(confidence) - _log_odds(SURE)
    z = fitted["at"] + fitted["below" if beyond < 0 else "above"] * beyond
    return float(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def as_answer(found: PoseEstimate, calibration: Mapping[str, Any]) -> PoseEstimate:
    """The estimate with its `answer_confidence` for the confidence, and not `ok` below `LEAST_CONFIDENCE`."""
    answer = replace(found, confidence=answer_confidence(found.confidence, calibration))
    if answer.status != "ok" or answer.confidence >= LEAST_CONFIDENCE:
        return answer
    return replace(
        answer, status="no_consensus", reasons=(unexplained(found.confidence, calibration), *found.reasons)
    )


def unexplained(confidence: float, calibration: Mapping[str, Any]) -> str:
    """Why an answer is not believed, of which `confidence_of` says `confidence`."""
    share = answer_confidence(confidence, calibration)
    return f"the pose does not explain the picture (confidence {share:.2f})"


def fit_answers(
    confidences: Sequence[float], right: Sequence[bool], strength: float = 0.05
) -> dict[str, float]:
    """{"at", "below", "above"}: log odds at `SURE`, and the slopes, >= 0, of `answer_confidence`.

    Args:
        confidences: of N answers, by `confidence_of`; right: whether each was. strength: of the belief that these
            need no change, per unit of squared difference, against the N log-likelihoods.

    What `confidence_of` does not have at `LEAST_CONFIDENCE` does not come to it here, either.
    """
    knot, least = _log_odds(SURE), _log_odds(LEAST_CONFIDENCE)
    beyond = _log_odds(np.clip(np.asarray(confidences, float), 1e-9, 1 - 1e-9)) - knot
    x = np.stack([np.ones_like(beyond), np.minimum(beyond, 0), np.maximum(beyond, 0)], axis=1)
    bounds = [(-30.0, 30.0), (0.0, 30.0), (0.0, 30.0)]
    at, below, above = map(float, _fit_logistic(x, right, np.array([knot, 1.0, 1.0]), strength, bounds))
    return {"at": min(at, float(least + below * (knot - least))), "below": below, "above": above}


def _fit_logistic(
    x: Array, right: Sequence[bool], start: Array, strength: float, bounds: Sequence[tuple[float, float]]
) -> Array:
    """(W,) weights of rows (N, W), within bounds, for log odds of being right: likely ones, near `start`."""
    sign = np.where(np.asarray(right, bool), 1.0, -1.0)

    def cost(w: Array) -> tuple[float, Array]:
        z = sign * (x @ w)
        slope = -sign / (1.0 + np.exp(np.clip(z, -500, 500)))
        away = w - start
        return float(np.logaddexp(0, -z).sum() + strength * away @ away), slope @ x + 2 * strength * away

    return minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x


def _log_odds(p: Any) -> Any:
    return np.log(p) - np.log1p(-p)


def fit_tails(distances: Sequence[float]) -> dict[str, float]:
    """{"pose_scale", "pose_dof"}: the factor on covariances and the degrees of freedom that make them those of a
    Student t, from squared Mahalanobis distances (6 numbers) of true poses; those that are not finite do not count.

    Notes:
        Maximum a posteriori; distances over six have the F distribution with (6, dof) degrees of freedom (see
        `geometry.metrics.share_inside`). The prior, a unit normal in the logarithms of scale and of dof - 3, speaks of
        four degrees of freedom, as the keypoints have, and of networks that know their own scale; at 3 the covariance
        still exists.
    """
    from scipy.stats import f as f_distribution  # takes half a second to import

    known = np.array([d for d in distances if np.isfinite(d)]) / 6

    def cost(at: Array) -> float:
        scale, dof = np.exp(at[0]), 3 + np.exp(at[1])
        likelihood = f_distribution.logpdf(known / scale, 6, dof) - at[0]
        return float(0.5 * at @ at - likelihood.sum())

    log_scale, log_more = minimize(cost, np.zeros(2), method="Nelder-Mead").x
    dof = 3 + float(np.exp(log_more))
    return {"pose_scale": float(np.exp(log_scale)) * dof / (dof - 2), "pose_dof": dof}
