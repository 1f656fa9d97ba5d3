"""The two looks of the networks: over the whole picture for where, into a square of it for the keypoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geopose.data.sample import box_centre_size, square
from geopose.data.synthetic import PADDING
from geopose.geometry.camera import crop_affine
from geopose.geometry.heatmap import soft_argmax
from geopose.nets.locator import decode
from geopose.nets.losses import LossOptions, posterior_covariance

Array = NDArray[np.float64]
Picture = NDArray[Any]  # uint8

LOCATOR_SIDE = 320  # the longer side of the picture that the locator sees first
FOUND = 0.25  # least score of a candidate
CLEAR = 0.5  # score with which a finer picture is not looked at
NEARLY = 0.5  # of the best candidate's score; others wait for a second turn


@dataclass(frozen=True)
class Candidate:
    centre: Array  # image pixels
    size: float
    score: float


@dataclass(frozen=True)
class Reading:
    """What the keypoint network says about one crop, in image pixels."""

    points_px: Array
    cov_px: Array
    mask: NDArray[np.float32]
    box: Array  # of the crop


class Clock:
    """Seconds by stage, all instances together."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def add(self, stage: str) -> None:
        """Counts the time since the last call to `stage`."""
        now = time.perf_counter()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._last
        self._last = now

    def timings(self) -> dict[str, float]:
        return {**self._stages, "total": time.perf_counter() - self._begun}


def candidate_of(box: Any) -> Candidate:
    """The place that a user's box names; ValueError if it names none."""
    try:
        values = np.asarray(box, float)
    except (TypeError, ValueError, RuntimeError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"box: expected four finite numbers x0, y0, x1, y1 in pixels, got {box!r}")
    if not (values[2] > values[0] and values[3] > values[1]):
        raise ValueError(f"box: expected x0 < x1 and y0 < y1, got {values.tolist()}")
    centre, size = box_centre_size(values)
    return Candidate(centre, size, 1.0)


def locate(net: nn.Module, picture: Picture, top: int) -> list[Candidate]:
    """Candidates, best first: in the picture made `LOCATOR_SIDE` large, and where they are not `plain`, finer, too."""
    coarse = _peaks(net, picture, LOCATOR_SIDE, top)
    return coarse if plain(coarse) else _closer(net, picture, top, coarse)


def glances(net: nn.Module, picture: Picture, top: int) -> Iterator[Iterable[Candidate]]:
    """Candidates worth a look, best first, and in a second turn all others. First comes the best of the coarse picture;
    where it is not `plain`, those follow that are nearly as good as the best of both pictures together: the finer one
    is looked at when they are asked for, which takes as long as four other looks."""
    coarse = _peaks(net, picture, LOCATOR_SIDE, top)
    first, rest = coarse[:1], []

    def likely() -> Iterator[Candidate]:
        yield from first
        both = _closer(net, picture, 2 * top, coarse)
        near = [c for c in both[:top] if c.score >= NEARLY * both[0].score]
        rest.extend(both[len(near) :][:top])  # the second turn, which is asked for after this one
        yield from (c for c in near if not any(c.centre is k.centre for k in first))

    if plain(coarse):
        yield first
        yield elsewhere(_closer(net, picture, top, coarse), first)
    else:
        yield likely()
        yield rest


def plain(candidates: list[Candidate]) -> bool:
    """Whether there is one place, and hardly another."""
    best = candidates[0].score if candidates else 0.0
    return best > CLEAR and all(c.score < NEARLY * best for c in candidates[1:])


def _closer(net: nn.Module, picture: Picture, top: int, coarse: list[Candidate]) -> list[Candidate]:
    """Places in the picture twice as large, and the `coarse` ones: scores are means of both looks, half its own where
    one saw nothing. Small pictures have no more to show."""
    if 2 * LOCATOR_SIDE > 1.5 * max(picture.shape[:2]):
        return coarse
    found, left = [], list(coarse)
    for c in _peaks(net, picture, 2 * LOCATOR_SIDE, top):
        same = [k for k in left if not elsewhere([k], [c])]
        if same:
            left = [k for k in left if k is not same[0]]
            better = max(c, same[0], key=lambda each: each.score)
            found.append(replace(better, score=0.5 * (c.score + same[0].score)))
        else:
            found.append(replace(c, score=0.5 * c.score))
    found += [replace(k, score=0.5 * k.score) for k in left]
    return elsewhere(sorted(found, key=lambda c: -c.score), [])[:top]


def elsewhere(candidates: list[Candidate], known: list[Candidate]) -> list[Candidate]:
    """Those that are not at the place of one before them, or of a `known` one."""
    kept: list[Candidate] = []
    for c in candidates:
        if all(np.linalg.norm(c.centre - k.centre) > 0.4 * max(c.size, k.size) for k in [*known, *kept]):
            kept.append(c)
    return kept


def _peaks(net: nn.Module, picture: Picture, side: int, top: int) -> list[Candidate]:
    """What the locator sees in the picture made `side` pixels large, best first."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    right, below = -size[0] % 32, -size[1] % 32
    grey = (round(255 * PADDING),) * 3
    small = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT, value=grey)
    with torch.inference_mode():
        centres, sizes, scores = decode(net(_tensor(small[None], net)), top=top)
    ratio = np.array([width / size[0], height / size[1]])
    rows = zip(centres[0].cpu().numpy(), sizes[0].tolist(), scores[0].tolist(), strict=True)
    peaks = [Candidate((c + 0.5) * ratio - 0.5, s * float(ratio.mean()), p) for c, s, p in rows if p >= FOUND]
    return elsewhere(peaks, [])


def _tensor(pictures: Picture, net: nn.Module) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1], where the network is."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(next(net.parameters()).device)
    return x.permute(0, 3, 1, 2).float().div_(255)


def keypoints_of(
    heatmaps: torch.Tensor, crop_size: int, window: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keypoints (B, K, 2) in crop pixels and their covariances (B, K, 2, 2) from logits (B, K, H, W).

    window: see `soft_argmax`. The width of the Gaussians that the network was taught is taken out of the covariance.
    """
    mean, cov, _ = soft_argmax(heatmaps.double(), window=window)
    cells = crop_size / heatmaps.shape[-1]
    return (mean + 0.5) * cells - 0.5, posterior_covariance(cov, LossOptions().sigma) * cells**2


def read_crops(
    net: nn.Module,
    picture: Picture,
    candidates: list[Candidate],
    crop_size: int,
    crop_scale: float,
    calibration: Mapping[str, Any],
) -> list[Reading]:
    """Keypoints of all candidates in one pass of the network.

    crop_size: pixels of the crop; crop_scale: its side over the object's size; calibration: see `calibrated`.
    """
    if not candidates:
        return []
    boxes = [square(c.centre, crop_scale * c.size) for c in candidates]
    crops = np.stack([cut(picture, box, (crop_size, crop_size)) for box in boxes])
    with torch.inference_mode():
        out = net(_tensor(crops, net))
        points_px, cov_px = keypoints_of(out["heatmaps"], crop_size, calibration.get("window"))
        shape = out["heatmaps"].shape[-2:]
        masks = out["mask"].sigmoid()[:, 0] if "mask" in out else torch.ones(len(crops), *shape)
    points, covs = points_px.cpu().numpy(), calibrated(cov_px.cpu().numpy(), calibration)
    readings = []
    for i, box in enumerate(boxes):
        scale = (box[2] - box[0]) / crop_size
        px = (points[i] + 0.5) * scale + box[:2]
        readings.append(Reading(px, covs[i] * scale**2, masks[i].float().cpu().numpy(), box))
    return readings


def cut(picture: Picture, box: Array, size_wh: tuple[int, int]) -> Picture:
    """(height, width, 3) crop of the `box`, of the same proportions; padded where it leaves the picture, smoothed
    where it shrinks."""
    scale = size_wh[0] / float(box[2] - box[0])
    if scale < 0.6:  # a warp alone would skip pixels
        height, width = picture.shape[:2]
        reduced = max(round(width * scale * 1.2), 1), max(round(height * scale * 1.2), 1)
        ratio = np.array([reduced[0] / width, reduced[1] / height] * 2)
        picture = cv2.resize(picture, reduced, interpolation=cv2.INTER_AREA)
        box = (box + 0.5) * ratio - 0.5
    matrix = np.asarray(crop_affine(box, size_wh))[:2].astype(np.float64)
    grey = (round(255 * PADDING),) * 3
    out = cv2.warpAffine(
        picture,
        matrix,
        size_wh,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=grey,
    )
    return np.asarray(out, np.uint8)


def calibrated(cov: Array, calibration: Mapping[str, Any]) -> Array:
    """Covariances (..., K, 2, 2) in crop pixels, as honest as renders could make them: a_k cov + b_k^2 I."""
    a = np.asarray(calibration.get("scale", 1.0), float)
    b = np.asarray(calibration.get("floor_px", 0.3), float)
    return cov * a[..., None, None] + (b**2)[..., None, None] * np.eye(2)
