"""From one photograph and a trained model to a pose that can be trusted, or to the reason why there is
none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geopose import checkpoint
from geopose.align import align, keypoint_term, mask_agreement
from geopose.cad.symmetry import Symmetries
from geopose.calibrate import BEST_FEATURES, LEAST_CONFIDENCE, SURE, as_answer, confidence_of, unexplained
from geopose.checkpoint import model_of
from geopose.compare import compare
from geopose.data.sample import box_centre_size, projected_box
from geopose.distributed import pick_device, torch_threads
from geopose.focal import with_focal
from geopose.geometry.camera import Camera
from geopose.geometry.metrics import expected_distance
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp, warm_up
from geopose.geometry.pose import Pose
from geopose.image import picture_and_camera
from geopose.nets.eight import eight_bits, has_fast_bytes
from geopose.nets.exported import Exported
from geopose.result import PoseEstimate, distinct
from geopose.stages import Candidate, Clock, Reading, candidate_of, glances, read_crops

Array = NDArray[np.float64]

CANDIDATES = 6
_THERE = 0.2  # confidence at which no finer picture, no other crop and nothing that promised less is
_PROBABLE = 0.5  # confidence at which a crop around the pose is read, but not compared anew
_NEAR = 0.25  # diameters; keypoints that expect to be so near are compared with the photograph at once
_PURSUED, _FAR = 3, 0.6  # the most of the others that are compared, and none that expects to be farther off
_WIDER = 1.4  # all others are also looked at in so much wider a crop: a locator's sizes are 15 % off, or more
_DOUBTFUL = ("no_consensus", "not_converged")  # a pose that the photograph may confirm
_ABSENT = 0.05  # confidence below which what was looked at is taken for something else
_DRAWN_FACES = 2500  # of the mesh that is laid over the picture


@dataclass(frozen=True)
class _Draft:
    """What the keypoints of one crop say. away: how far from the truth their pose is expected to be, diameters."""

    result: PnPResult
    pose: Pose | None
    reading: Reading
    candidate: Candidate
    away: float

    @property
    def ok(self) -> bool:
        return self.pose is not None and str(self.result.status) == "ok"


@dataclass(frozen=True)
class _Rest:
    """A pose after the comparison; seen: the feature that this gave, by name."""

    pose: Pose | None
    covariance: Any
    seen: Mapping[str, float]


class PoseEstimator:
    """A trained model, ready to look at photographs. Make it with `PoseEstimator.load(path)`."""

    def __init__(self, nets: Mapping[str, nn.Module], meta: Mapping[str, Any], device: torch.device) -> None:
        self.nets, self.meta, self.device = dict(nets), dict(meta), device
        self.keypoints = np.asarray(meta["keypoints"], float)
        self.symmetries = Symmetries.from_json(meta["symmetries"])
        self.model = checkpoint.light_model(meta)
        self.drawn = self.model.simplified(_DRAWN_FACES)
        self.crop_size = int(meta["options"]["crop_size"])
        self.crop_scale = float(meta["options"].get("crop_scale", 1.5))
        self.calibration = dict(meta.get("calibration") or {})
        self.options = PnPOptions()
        self.threads = 1  # of torch, while it looks at a picture

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, *, many: bool = True) -> PoseEstimator:
        """The estimator of a checkpoint file. On a CPU that multiplies bytes in hardware the locator computes in them.

        Args:
            many: for many pictures: on a CPU onnxruntime evaluates the networks, in two thirds of torch's time, which
                takes a second or two to prepare. Otherwise torch does, on a CPU with fast bytes in these.
        Raises:
            FileNotFoundError, ValueError: when the file is missing or not a geopose checkpoint.
        """
        where = pick_device(device)
        nets, meta = checkpoint.load_nets(path, where)
        if where.type == "cpu":
            small = [role for role in nets if has_fast_bytes() and (role == "locator" or not many)]
            nets |= {role: eight_bits(nets[role]) for role in small}
            nets |= {role: Exported(net, role) for role, net in nets.items() if many and role not in small}
        with checkpoint.pose_model(path, meta):
            estimator = cls(nets, meta, where)
        warm_up()
        return estimator

    def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
        """The best instance in the photograph.

        Args:
            img: path, PIL image, uint8 RGB array (H, W, 3) or float tensor (3, H, W) in [0, 1]. camera: None
                takes EXIF's focal length, else a stated guess; their uncertainty enters covariance and confidence.
                box: (4,) x0, y0, x1, y1 pixels around the whole object; None finds it.
        Raises:
            ValueError: on input that cannot be right, naming the argument.
        """
        return self.estimate_all(img, camera, max_instances=1, box=box)[0]

    def estimate_all(
        self, img: Any, camera: Camera | None = None, max_instances: int = 8, *, box: Any = None
    ) -> list[PoseEstimate]:
        """All instances, best first; one "not_found" when there is none. Arguments as in `estimate`.

        max_instances: at least 1; more than one takes longer, since every place is looked at.
        """
        if not isinstance(max_instances, (int, np.integer)) or max_instances < 1:
            raise ValueError(f"max_instances: got {max_instances!r}, expected a whole number of at least 1")
        with torch_threads(self.threads):
            return self._all(img, camera, max_instances, box)

    def check(self, cad: Any) -> None:
        """Raises ValueError where the model was trained on another mesh than `cad`, which is as in `estimate_pose`."""
        checkpoint.full_model(self.meta, cad)

    def _all(self, img: Any, camera: Camera | None, max_instances: int, box: Any) -> list[PoseEstimate]:
        clock = Clock()
        picture, given, notes = picture_and_camera(img, camera)
        camera = replace(given, focal_rel_std=0.0)  # until the end
        clock.add("read")
        found: list[PoseEstimate] = []
        most = max(CANDIDATES, 2 * max_instances)
        seen = glances(self.nets["locator"], picture, most) if box is None else [[candidate_of(box)]]
        if max_instances > 1:
            found = self._each(picture, camera, list(islice(chain.from_iterable(seen), most)), clock)
        else:
            for places in seen:
                clock.add("locate")
                more, convinced = self._best(picture, camera, islice(places, CANDIDATES), clock)
                found += more
                if convinced:
                    break
        timings = clock.timings()
        if not found:
            return [self._nothing(given, notes, timings)]
        found.sort(key=lambda f: (f.status != "ok", -f.confidence))
        found = distinct(found)[:max_instances]
        if box is None:
            found = [_seen(f) for f in found]
            found = [f for f in found if f.status != "not_found"] or found[:1]
        found = [with_focal(as_answer(f, self.calibration), given, self.keypoints) for f in found]
        return [replace(f, reasons=(*f.reasons, *notes), timings=timings) for f in found]

    def _each(
        self, picture: NDArray[np.uint8], camera: Camera, places: list[Candidate], clock: Clock
    ) -> list[PoseEstimate]:
        """What each of the places turns out to be; those that do not convince are also looked at in wider crops."""
        found: list[PoseEstimate] = []
        clock.add("locate")
        drafts = self._drafts(picture, camera, places, clock)
        wider = []
        for draft in drafts:
            seen = self._compared(picture, camera, draft, clock) if draft.away < _NEAR else []
            found += seen
            if not any(map(_there, seen)):
                wider.append(replace(draft.candidate, size=_WIDER * draft.candidate.size))
        drafts += self._drafts(picture, camera, wider, clock)
        rest = sorted((d for d in drafts[len(places) :] if d.away < _FAR), key=lambda d: d.away)
        for draft in rest or ([] if found else sorted(drafts, key=lambda d: d.away)[:1]):
            found.append(self._judge(draft, self._compare(picture, camera, draft), camera))
            clock.add("compare")
        return found

    def _best(
        self, picture: NDArray[np.uint8], camera: Camera, places: Iterable[Candidate], clock: Clock
    ) -> tuple[list[PoseEstimate], bool]:
        """(What the likeliest of the places turn out to be, whether that will do.) The first is looked at alone, all
        others in one pass; where keypoints expect to be near, they are compared with the photograph, until one is sure.
        If that convinces nowhere, the rest are looked at in other crops, too, and the best of them compared."""
        found: list[PoseEstimate] = []
        read: list[_Draft] = []
        places = iter(places)
        for group in (islice(places, 1), places):
            looks = list(group)
            clock.add("locate")
            drafts = self._drafts(picture, camera, looks, clock)
            read += drafts
            for draft in drafts:
                if draft.away < _NEAR:
                    found += self._compared(picture, camera, draft, clock)
                    if _sure(found[-1]):
                        return found, True
        if any(map(_there, found)):
            return found, True
        waiting = sorted((d for d in read if d.away >= _NEAR), key=lambda d: d.away)
        closer = [self._closer(d, self._box(d.pose, camera)) for d in waiting[:_PURSUED]]
        wider = [replace(d.candidate, size=_WIDER * d.candidate.size) for d in read]
        waiting += self._drafts(picture, camera, [*(c for c in closer if c is not None), *wider], clock)
        waiting.sort(key=lambda d: d.away)
        for draft in [d for d in waiting[:_PURSUED] if d.away < _FAR] or waiting[: not found]:
            found.append(self._judge(draft, self._compare(picture, camera, draft), camera))
            clock.add("compare")
            if _there(found[-1]):
                return found, True
        return found, False

    def _compared(
        self, picture: NDArray[np.uint8], camera: Camera, draft: _Draft, clock: Clock
    ) -> list[PoseEstimate]:
        """The draft compared with the photograph, and if it is not sure then, what a crop around that pose says of it,
        or, if it is not even probable, of its own pose."""
        rest = self._compare(picture, camera, draft)
        found = [self._judge(draft, rest, camera)]
        clock.add("compare")
        look = None if _sure(found[0]) else self._closer(draft, found[0].box)
        for again in self._drafts(picture, camera, [] if look is None else [look], clock):
            if found[0].confidence < _PROBABLE:
                rest = self._compare(picture, camera, again)
            found.append(self._judge(again, rest, camera))
            clock.add("compare")
        return found

    def _drafts(
        self, picture: NDArray[np.uint8], camera: Camera, looks: list[Candidate], clock: Clock
    ) -> list[_Draft]:
        """The poses of the crops' keypoints, which the network reads in one pass."""
        readings = self._read(picture, looks)
        clock.add("keypoints")
        drafts = [self._solve(reading, look, camera) for reading, look in zip(readings, looks, strict=True)]
        clock.add("pose")
        return drafts

    def _read(self, picture: NDArray[np.uint8], looks: list[Candidate]) -> list[Reading]:
        net = self.nets["keypoints"]
        return read_crops(net, picture, looks, self.crop_size, self.crop_scale, self.calibration)

    def _solve(self, reading: Reading, candidate: Candidate, camera: Camera) -> _Draft:
        """The pose of a crop's keypoints."""
        generator = torch.Generator().manual_seed(0)
        result = solve_pnp(
            self.keypoints,
            reading.points_px,
            camera,
            cov_px=reading.cov_px,
            options=self.options,
            generator=generator,
        )
        known = np.isfinite(result.pose.t).all() and np.isfinite(result.pose.R).all()
        pose = result.pose if known else None
        away = self._away(result.covariance, pose) if pose is not None else np.inf
        return _Draft(result, pose, reading, candidate, away)

    def _compare(self, picture: NDArray[np.uint8], camera: Camera, draft: _Draft) -> _Rest:
        """Where the draft's pose comes to rest in the photograph."""
        result, pose, reading = draft.result, draft.pose, draft.reading
        net = self.nets.get("refiner")
        if pose is None or str(result.status) not in ("ok", *(_DOUBTFUL if net is not None else ())):
            return _Rest(pose, result.covariance if pose is not None else None, {})
        known = keypoint_term(self.keypoints, reading, result.inliers, camera)
        if net is not None:
            crop = (self.crop_size, self.crop_scale)
            moved: Any = compare(
                net, picture, camera, pose, self.drawn, known, crop, self.device.type == "cpu"
            )
        else:
            moved = align(picture, camera, pose, self.drawn, reading, known)
        seen = {"contour" if net is None else "flow": moved.agreement}
        if moved.covariance is None:
            return _Rest(pose, result.covariance, seen)
        return _Rest(moved.pose, moved.covariance, seen)

    def _judge(self, draft: _Draft, rest: _Rest, camera: Camera) -> PoseEstimate:
        """The pose that rests, and whether to believe it."""
        result, reading, pose, covariance = draft.result, draft.reading, rest.pose, rest.covariance
        status, reasons = str(result.status), (result.reason,) if result.reason else ()
        confidence = self.confident(self.features(draft, pose, covariance, camera, rest.seen), pose)
        believed = confidence >= LEAST_CONFIDENCE
        if status == "ok" and not believed:
            status = "no_consensus"
            reasons = (unexplained(confidence, self.calibration), *reasons)
        elif status in _DOUBTFUL and "refiner" in self.nets and believed:
            status, reasons = "ok", ()  # the keypoints disagreed, the photograph does not
        if covariance is not None:
            covariance = covariance * float(self.calibration.get("pose_scale", 1.0))
        keypoints = {
            "points_px": reading.points_px,
            "cov_px": reading.cov_px,
            "inliers": np.asarray(result.inliers),
            "points_obj": self.keypoints,
        }
        box = self._box(pose, camera)
        return PoseEstimate(
            pose, covariance, status, reasons,
            confidence if pose is not None else 0.0, keypoints, box, tuple(result.alternatives), {}, camera, self.model,
            float(self.calibration.get("pose_dof", np.inf)),
        )  # fmt: skip

    def confident(self, features: Mapping[str, float], pose: Pose | None) -> float:
        """Probability that a pose with these features is right."""
        return confidence_of(features, self.calibration) if pose is not None else 0.0

    def features(
        self, draft: _Draft, pose: Pose | None, covariance: Any, camera: Camera, seen: Mapping[str, float]
    ) -> dict[str, float]:
        """What the confidence is read from, each about in [0, 1], larger is better; `seen`: by the comparison."""
        if pose is None:
            return dict.fromkeys(BEST_FEATURES, 0.0)
        result = draft.result
        distance = 10 * self._away(covariance, pose)
        return {
            "locator": draft.candidate.score,
            "inliers": float(np.mean(result.inliers)),
            "precision": 1 / (1 + distance),
            "agreement": mask_agreement(pose, draft.reading, camera, self.model),
            "fit": float(1 / (1 + np.nan_to_num(result.rms_px, nan=1e6) / (0.02 * draft.candidate.size))),
            "contour": 0.0,
            "flow": 0.0,
            **seen,
        }

    def _away(self, covariance: Any, pose: Pose) -> float:
        """How far, on average over the keypoints, a pose of this covariance is expected to be off, diameters."""
        distance = float(expected_distance(covariance, pose, self.keypoints)) / self.model.diameter
        return float(np.nan_to_num(distance, nan=1e5))

    def _box(self, pose: Pose | None, camera: Camera) -> Array | None:
        return projected_box(self.model.vertices, pose, camera) if pose is not None else None

    def _closer(self, draft: _Draft, box: Array | None) -> Candidate | None:
        """A crop around the box of the pose, or around the keypoints where there is none; None if that is elsewhere."""
        first = draft.candidate
        if box is None or not draft.ok or not np.isfinite(box).all():
            points = draft.reading.points_px
            box = np.concatenate([points.min(0), points.max(0)])
        centre, size = box_centre_size(box)
        near = 0.3 < size / first.size < 3 and np.linalg.norm(centre - first.centre) < size
        return Candidate(centre, size, first.score) if near else None

    def _nothing(self, camera: Camera, notes: tuple[str, ...], timings: dict[str, float]) -> PoseEstimate:
        reasons = ("the locator saw the object nowhere in the picture", *notes)
        return PoseEstimate(None, None, "not_found", reasons, 0.0, {}, None, (), timings, camera, self.model)


def estimate_pose(
    img: Any,
    cad: Any,
    *,
    camera: Camera | None = None,
    box: Any = None,
    model: PoseEstimator | str | Path | None = None,
    device: str | None = None,
) -> PoseEstimate:
    """The PoseEstimate of the best instance of `cad` in the photograph `img`.

    Args:
        img: path, PIL image, uint8 RGB array (H, W, 3), or float tensor (3, H, W) in [0, 1].
        cad: a CadModel, a built-in name, or a mesh file.
        camera: None takes EXIF's focal length, else a stated guess whose uncertainty enters the covariance.
        box: (4,) x0, y0, x1, y1 pixels around the whole object, None to find it.
        model: a PoseEstimator, a checkpoint's path, or None: the built-in or cached model of this very mesh.
    Raises:
        ValueError: on bad input; FileNotFoundError: no trained model of this CAD, with the command that
            trains one.
    """
    if model is None:
        model = model_of(cad)
    if not isinstance(model, (PoseEstimator, str, PathLike)):
        raise ValueError(f"model: got {model!r:.60}, expected a PoseEstimator or the path of a checkpoint")
    estimator = model if isinstance(model, PoseEstimator) else PoseEstimator.load(model, device, many=False)
    estimator.check(cad)
    return estimator.estimate(img, camera, box)


def _sure(found: PoseEstimate) -> bool:
    return found.status == "ok" and found.confidence >= SURE


def _there(found: PoseEstimate) -> bool:
    return found.status in ("ok", *_DOUBTFUL) and found.confidence >= _THERE


def _seen(found: PoseEstimate) -> PoseEstimate:
    """The estimate, or "not_found" where hardly anything speaks for it; its pose remains, as the best so far."""
    if found.status not in _DOUBTFUL or found.confidence >= _ABSENT:
        return found
    reason = "nothing in the picture looks like the object; the pose is that of the place that comes nearest"
    return replace(found, status="not_found", reasons=(reason, *found.reasons))
