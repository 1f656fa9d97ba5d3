"""What was read in pictures of the ISS, how far off that is, how honest its uncertainties are, and pictures of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as f_distribution

from geopose._io import atomic_path
from geopose.calibrate import Readings, fit_covariance
from geopose.data.iss_docking import Labels
from geopose.visualize import GREEN, RED, Picture, draw_keypoints, draw_text

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What was read in N pictures.

    ids: (N,); location: (N, 2) pixels of the picture as it came; location_cov: (N, 2, 2) scale matrices of a bivariate
    Student t with 4 degrees of freedom; distance: (N,) in the set's unit; distance_scale: (N,) scales of the Laplace
    distributions of the logarithms of the distances.
    """

    ids: NDArray[np.int64]
    location: Array
    location_cov: Array
    distance: Array
    distance_scale: Array

    @property
    def labels(self) -> Labels:
        """The answers alone, as `write_labels` takes them."""
        return Labels(self.ids, self.distance, self.location)


Table = TypeVar("Table", Prediction, Labels)


def rows(table: Table, index: Any) -> Table:
    """The rows at `index` of a Prediction or of Labels."""
    return replace(table, **{f.name: getattr(table, f.name)[index] for f in fields(table)})


def joined(parts: Sequence[Prediction]) -> Prediction:
    """One Prediction of the pictures of several."""
    names = [f.name for f in fields(Prediction)]
    return Prediction(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def matched(prediction: Prediction, labels: Labels) -> Prediction:
    """The rows of `prediction` in the order of `labels`. Raises ValueError when a label has none."""
    row_of = {int(image_id): row for row, image_id in enumerate(prediction.ids)}
    missing = [int(i) for i in labels.ids if int(i) not in row_of]
    if missing:
        raise ValueError(
            f"prediction: nothing for {len(missing)} of {len(labels)} pictures, such as ImageID {missing[0]}"
        )
    return rows(prediction, np.array([row_of[int(i)] for i in labels.ids], np.int64))


def fit_uncertainty(raw: Prediction, labels: Labels) -> dict[str, float]:
    """{"location_scale", "location_floor_px", "distance_factor"} that make the uncertainties of `raw` honest.

    Maximum likelihood: of the location as in `calibrate.fit_covariance`, of the distance that of a Laplace distribution
    with a common factor on its scale.
    """
    raw = matched(raw, labels)
    error = torch.from_numpy(raw.location - labels.location)[:, None]
    readings = Readings(torch.from_numpy(raw.location_cov)[:, None], error, torch.ones(len(error), 1).bool())
    found, _ = fit_covariance(readings)
    far = np.abs(np.log(raw.distance / labels.distance)) / raw.distance_scale
    return {
        "location_scale": float(found["scale"][0]),
        "location_floor_px": float(found["floor_px"][0]),
        "distance_factor": max(float(far.mean()), 1e-3),
    }


def calibrated(raw: Prediction, calibration: Mapping[str, float]) -> Prediction:
    """`raw` with honest uncertainties."""
    cov = calibration["location_scale"] * raw.location_cov
    return replace(
        raw,
        location_cov=cov + calibration["location_floor_px"] ** 2 * np.eye(2),
        distance_scale=calibration["distance_factor"] * raw.distance_scale,
    )


def errors(prediction: Prediction, labels: Labels) -> dict[str, Array]:
    """Errors (N,) in the order of `labels`: "location_px", "distance_percent" (with its sign), and "location_level",
    "distance_level", the probability of the region around the prediction that just holds the truth: uniform in [0, 1]
    where uncertainties are honest.

    Raises ValueError when a label has no prediction.
    """
    found = matched(prediction, labels)
    off = found.location - labels.location
    distance2 = np.einsum("ni,nij,nj->n", off, np.linalg.inv(found.location_cov), off)
    log_ratio = np.log(found.distance / labels.distance)
    return {
        "location_px": np.linalg.norm(off, axis=1),
        "distance_percent": 100 * (found.distance / labels.distance - 1),
        "location_level": f_distribution.cdf(distance2 / 2, 2, 4),  # of a Student t with 4 degrees of freedom
        "distance_level": -np.expm1(-np.abs(log_ratio) / found.distance_scale),
    }


def evaluate(prediction: Prediction, labels: Labels) -> dict[str, float]:
    """Figures: median and 90th percentile of the errors in pixels and percent, and the share of truths inside of the
    regions of 50 and 90 %. Raises ValueError when a label has no prediction."""
    found = errors(prediction, labels)
    out: dict[str, float] = {"pictures": len(labels)}
    for name in ("location_px", "distance_percent"):
        kind, unit = name.split("_")
        size = np.abs(found[name])
        out[f"{kind}_median_{unit}"] = float(np.median(size))
        out[f"{kind}_p90_{unit}"] = float(np.percentile(size, 90))
        for share in (50, 90):
            out[f"{kind}_inside_{share}"] = float(np.mean(found[f"{kind}_level"] <= share / 100))
    return out


def in_words(figures: Mapping[str, float]) -> str:
    """The figures of `evaluate` in a line."""
    parts = []
    for kind, unit, sign in (("location", "px", "px"), ("distance", "percent", "%")):
        median, tail = figures[f"{kind}_median_{unit}"], figures[f"{kind}_p90_{unit}"]
        inside = figures[f"{kind}_inside_90"]
        parts.append(
            f"{kind} off by {median:.1f} {sign} (9 of 10: {tail:.1f}; {inside:.0%} in the 90 % region)"
        )
    return ", ".join(parts)


def plot_errors(prediction: Prediction, labels: Labels, path: str | Path, title: str = "") -> Path:
    """The path of a figure: both errors over the true distance, how they are distributed, and how honest the
    uncertainties are."""
    from matplotlib.figure import Figure

    found = errors(prediction, labels)
    figure = Figure(figsize=(11, 8), layout="constrained")
    (over, ahead), (spread, honest) = figure.subplots(2, 2)
    for axis, name, label in ((over, "location_px", "location error (pixels)"),
                              (ahead, "distance_percent", "distance error (%)")):  # fmt: skip
        axis.scatter(labels.distance, found[name], s=9, alpha=0.5, lw=0)
        middle, typical = _running_median(labels.distance, np.abs(found[name]))
        axis.plot(middle, typical, color="C3", lw=2, marker=".", label="median size")
        axis.set(xlabel="true distance (the set's unit)", ylabel=label)
        axis.legend()
    over.set_yscale("log")
    share = (np.arange(len(labels)) + 0.5) / len(labels)
    for name, label, color in (("location_px", "location (pixels)", "C0"),
                               ("distance_percent", "distance (%)", "C1")):  # fmt: skip
        spread.plot(np.sort(np.abs(found[name])), 100 * share, label=label, color=color)
        level = np.sort(found[name.split("_")[0] + "_level"])
        honest.plot(100 * level, 100 * share, label=label.split(" ")[0], color=color)
    spread.set(xlabel="error", ylabel="pictures with less (%)", xscale="log", ylim=(0, 100))
    honest.plot([0, 100], [0, 100], color="grey", ls=":", label="honest")
    honest.set(xlabel="probability claimed (%)", ylabel="truths inside (%)", xlim=(0, 100), ylim=(0, 100))
    for axis in (over, ahead, spread, honest):
        axis.grid(alpha=0.3)
    spread.legend()
    honest.legend()
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _running_median(x: Array, y: Array) -> tuple[list[Any], list[Any]]:
    """Medians of x and y in groups of equal size along x."""
    order = np.array_split(np.argsort(x), max(min(len(x) // 12, 12), 1))
    return [np.median(x[o]) for o in order], [np.median(y[o]) for o in order]


def marked(
    image: Picture, prediction: Prediction, row: int = 0, truth: tuple[ArrayLike, float] | None = None
) -> Picture:
    """The picture with the location read in it, the ellipse that holds it nine times in ten and the distance, with the
    range that holds it as often, in green; the truth (location, distance), if given, in red."""
    location, cov = prediction.location[row][None], prediction.location_cov[row][None]
    out = draw_keypoints(image, location, cov, sigmas=float(np.sqrt(2 * f_distribution.ppf(0.9, 2, 4))))
    factor = (
        10 ** prediction.distance_scale[row]
    )  # a Laplace variable stays below ln 10 scales nine times in ten
    distance = prediction.distance[row]
    out[: len(out) // 11, : out.shape[1] // 2] //= 3  # letters are readable on dark ground only
    out = draw_text(
        out, [f"distance {distance:.0f} ({distance / factor:.0f} to {distance * factor:.0f})"], GREEN
    )
    if truth is None:
        return out
    out = draw_keypoints(out, np.asarray(truth[0], float)[None], inliers=np.zeros(1, bool))
    return draw_text(out, ["", f"truly {truth[1]:.0f}"], RED)
