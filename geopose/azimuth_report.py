"""How well headings are told: answers, their scores, and the figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geopose._io import atomic_path
from geopose.cad.model import CadModel
from geopose.data.azimuth import AzimuthDataset, azimuth_of, class_centre, class_of, wrapped
from geopose.fit import endless_loader
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import solve_pnp
from geopose.geometry.pose import Pose
from geopose.nets.azimuth import AzimuthNet
from geopose.visualize import GREEN, YELLOW, Color, Picture, save_image, sheet

HISTORY = ("seconds", "pictures", "loss", "accuracy", "test loss", "test accuracy")
"""Columns of a training's history; the first two losses are of the pictures learned from, as they came."""

_QUARTERS = ("front", "left", "rear", "right")


class PoseSource(Protocol):
    """What `judge_geometry` needs of a PoseEstimator."""

    @property
    def model(self) -> CadModel: ...
    def estimate(self, img: Any, camera: Camera | None = None) -> Any: ...


@dataclass(frozen=True)
class AzimuthScores:
    """Azimuths (P,) of P pictures and those that were answered (P,), radians; NaN where there was no answer."""

    azimuth: NDArray[np.float64]
    answered: NDArray[np.float64]

    def errors_deg(self) -> NDArray[np.float64]:
        """(P,) degrees between truth and answer, 0 to 180; 180 where there was none."""
        return np.nan_to_num(np.rad2deg(np.abs(wrapped(self.answered - self.azimuth))), nan=180.0)

    def accuracy(self, classes: int) -> float:
        """Share of the pictures whose answer lies in the true class."""
        return float(np.mean(class_of(self.azimuth, classes) == class_of(self.answered, classes)))

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """(N, N) pictures of each true class (row) that were answered with each class (column)."""
        out = np.zeros((classes, classes), np.int64)
        known = np.isfinite(self.answered)
        truth, answer = class_of(self.azimuth[known], classes), class_of(self.answered[known], classes)
        np.add.at(out, (truth, answer), 1)
        return out

    def figures(self, classes: int) -> dict[str, float]:
        """The figures by name: accuracy for `classes`, for 4 and for 36 classes; median and 90th percentile of the
        error in degrees; share of the pictures answered; how many there were."""
        errors = self.errors_deg()
        accuracies = {f"accuracy_{n}": self.accuracy(n) for n in sorted({4, classes, 36})}
        return {
            **accuracies,
            "median_deg": float(np.median(errors)),
            "p90_deg": float(np.percentile(errors, 90)),
            "answered": float(np.isfinite(self.answered).mean()),
            "pictures": len(errors),
        }


def most_likely(net: AzimuthNet, out: Tensor) -> Tensor:
    """The likeliest azimuths (B,), radians in [0, 2 pi), of a network's output."""
    angles, p = net.distribution(out)
    return angles[p.argmax(1)]


@torch.inference_mode()
def predict(net: AzimuthNet, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The likeliest azimuths (B,), radians in [-pi, pi), and how sure the network (put into evaluation mode) is: the
    mean resultant length (B,) of its distribution, from 0 (all round alike) to 1 (no doubt).

    Args:
        images: (B, 3, H, W) uint8 RGB of the size that the network was trained with.
    Notes:
        Mardia and Jupp, "Directional statistics", 2000, section 2.3.1.
    """
    net.eval()
    device = next(net.parameters()).device
    angles, p = net.distribution(net(images.to(device)).float())
    length = torch.hypot(p @ angles.cos(), p @ angles.sin())
    return wrapped(angles[p.argmax(1)].cpu().double()), length.cpu().double().numpy()


def judge(
    net: AzimuthNet, dataset: AzimuthDataset, count: int, batch_size: int = 32, workers: int = 0
) -> AzimuthScores:
    """The scores of a network on the first `count` pictures of a dataset."""
    truth, answers = [], []
    for batch in endless_loader(dataset, min(batch_size, count), workers, 0):
        truth.append(batch["azimuth"].double().numpy())
        answers.append(predict(net, batch["image"])[0])
        if sum(map(len, truth)) >= count:
            break
    return AzimuthScores(np.concatenate(truth)[:count], np.concatenate(answers)[:count])


def judge_geometry(estimator: PoseSource, dataset: AzimuthDataset, count: int) -> AzimuthScores:
    """The scores of an estimator of poses on the same question: the azimuth of the pose it finds in each of the first
    `count` pictures, whole picture in; the best pose counts even where the estimator is not sure of it, as the
    networks have to answer too.

    Args:
        estimator: a `PoseEstimator` of the one car that the dataset shows.
    """
    truth, answers = np.zeros(count), np.full(count, np.nan)
    centre = estimator.model.bounds.mean(0)
    for i in range(count):
        item = dataset[i]
        image = np.ascontiguousarray(item["image"].transpose(1, 2, 0))
        found = estimator.estimate(image, Camera.from_matrix(item["K"], (image.shape[1], image.shape[0])))
        truth[i] = item["azimuth"]
        if found.pose is not None:
            answers[i] = azimuth_of(found.pose, dataset.options.view.up, centre)
    return AzimuthScores(truth, answers)


def judge_points(
    dataset: AzimuthDataset, points_obj: Mapping[str, ArrayLike], count: int, noise_px: float
) -> AzimuthScores:
    """The scores of the poses that `solve_pnp` finds from known points (3,) of the one car that the dataset shows, each
    `noise_px` off where it truly is: what a detector of points so good could say at best. All points take part, those
    on the far side too.

    Raises ValueError for fewer than four points.
    """
    points = np.array(list(points_obj.values()), float).reshape(-1, 3)
    if len(points) < 4:
        raise ValueError(f"points_obj: got {len(points)} points, expected at least 4")
    items = [dataset[i] for i in range(count)]
    truth = Pose(np.stack([i["R"] for i in items]), np.stack([i["t"] for i in items]))
    K, size = np.stack([i["K"] for i in items]), items[0]["image"].shape[-1]
    camera = Camera(K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], (size, size))
    noise = np.random.default_rng(0).normal(0, noise_px, (count, len(points), 2))
    cov = np.broadcast_to(max(noise_px, 1e-3) ** 2 * np.eye(2), (*noise.shape, 2))
    found = solve_pnp(points, np.asarray(camera.project(truth.apply(points))) + noise, camera, cov_px=cov)
    centre = dataset.makers[0].centre
    answers = azimuth_of(found.pose, dataset.options.view.up, centre)
    return AzimuthScores(np.array([float(i["azimuth"]) for i in items]), answers)


def draw_compass(image: Picture, truth: float, answer: float | None = None) -> Picture:
    """The picture with a compass in its lower right corner: the ground as the camera sees it, itself at the bottom;
    arrows show which way the car points, green in truth and yellow as answered (radians)."""
    out = image.copy()
    side = min(out.shape[:2])
    radius = 0.13 * side
    middle = np.array([out.shape[1], out.shape[0]]) - 1.25 * radius
    disc = cv2.circle(
        np.zeros(out.shape[:2], np.float32), _px(middle), round(1.12 * radius), 1.0, -1, cv2.LINE_AA
    )
    out = np.clip(out * (1 - 0.62 * disc[..., None]), 0, 255).astype(np.uint8)
    cv2.circle(out, _px(middle), round(1.12 * radius), (235, 235, 235), 1, cv2.LINE_AA)
    cv2.circle(
        out, _px(middle + [0, 1.12 * radius]), max(round(0.012 * side), 2), (235, 235, 235), -1, cv2.LINE_AA
    )
    arrows: list[tuple[float | None, Color, float]] = [(truth, GREEN, 0.022), (answer, YELLOW, 0.01)]
    for angle, color, width in arrows:
        if angle is not None and np.isfinite(angle):
            way = radius * np.array([-np.sin(angle), np.cos(angle)])
            thick = max(round(width * side), 1)
            cv2.arrowedLine(
                out, _px(middle - 0.8 * way), _px(middle + way), color, thick, cv2.LINE_AA, tipLength=0.35
            )
    return out


def _px(point: NDArray[np.floating]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def save_pictures(
    net: AzimuthNet,
    dataset: AzimuthDataset,
    path: str | Path,
    count: int = 20,
    columns: int = 5,
    side: int = 224,
) -> Path:
    """The path of a sheet of the first `count` pictures of a dataset, each with its compass and the two azimuths in
    degrees, green the true one, yellow the network's."""
    items = [dataset[i] for i in range(count)]
    answers, _ = predict(net, torch.from_numpy(np.stack([item["image"] for item in items])))
    pictures = []
    for item, answer in zip(items, answers, strict=True):
        picture = np.asarray(item["image"].transpose(1, 2, 0), np.uint8)
        picture = np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
        picture = draw_compass(picture, float(item["azimuth"]), float(answer))
        x = 6
        for angle, color in ((item["azimuth"], GREEN), (answer, YELLOW)):
            text = f"{np.rad2deg(angle):.0f}"
            for paint, thickness in (((0, 0, 0), 3), (color, 1)):
                cv2.putText(
                    picture, text, (x, side - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, paint, thickness, cv2.LINE_AA
                )
            x += 48
        pictures.append(picture)
    return save_image(sheet(pictures, columns), path)


def save_curves(histories: dict[str, Sequence[Sequence[float]]], path: str | Path) -> Path:
    """The path of a figure with loss and accuracy over the minutes of each training (rows: `HISTORY`), on the pictures
    learned from and on unseen cars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4 * len(histories)), layout="constrained")
    grid = figure.subplots(len(histories), 2, squeeze=False)
    for axes, (name, rows) in zip(grid, histories.items(), strict=True):
        values = np.asarray(rows, float).reshape(-1, len(HISTORY))
        minutes = values[:, 0] / 60
        for axis, column, what in ((axes[0], 2, "loss (nats)"), (axes[1], 3, "accuracy (%)")):
            scale = 100 if column == 3 else 1
            axis.plot(minutes, scale * values[:, column], lw=1.2, label="learned from")
            axis.plot(minutes, scale * values[:, column + 2], lw=1.6, label="unseen cars, averaged weights")
            axis.set(title=name, xlabel="training time (minutes)", ylabel=what)
            axis.grid(alpha=0.3)
        axes[1].set_ylim(0, 102)
        axes[0].legend()
    return _saved(figure, path)


def save_confusion(scores: dict[str, AzimuthScores], classes: int, path: str | Path) -> Path:
    """The path of a figure with one confusion matrix for each of the scores, rows in percent of the true class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(scores), 4.6), layout="constrained")
    names = (
        _QUARTERS if classes == 4 else [f"{v:.0f}" for v in np.rad2deg(class_centre(range(classes), classes))]
    )
    step = max(classes // 12, 1)
    for axis, (name, score) in zip(
        figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True
    ):
        counts = score.confusion(classes)
        truth = np.bincount(class_of(score.azimuth, classes), minlength=classes)
        percent = 100 * counts / np.maximum(truth, 1)[:, None]
        axis.imshow(percent, vmin=0, vmax=100, cmap="Blues")
        for row, column in np.ndindex(*counts.shape) if classes <= 12 else ():
            color = "white" if percent[row, column] > 55 else "black"
            axis.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=color)
        figures = score.figures(classes)
        axis.set(
            title=f"{name}: {100 * score.accuracy(classes):.1f} % right\nmedian error {figures['median_deg']:.1f} deg",
            xlabel="answered",
            ylabel="true",
            xticks=range(0, classes, step),
            yticks=range(0, classes, step),
        )
        axis.set_xticklabels(names[::step], rotation=90 if classes > 12 else 0)
        axis.set_yticklabels(names[::step])
    return _saved(figure, path)


def _saved(figure: Any, path: str | Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)
