"""From one photograph and a trained model to a pose that can be trusted, or to the reason why there is
none."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import nn

from geopose import checkpoint
from geopose.align import align, keypoint_term, silhouette
from geopose.cad.model import CadModel, CadWarning, load_cad
from geopose.cad.symmetry import Symmetries
from geopose.data.sample import box_centre_size, projected_box
from geopose.distributed import pick_device
from geopose.geometry.camera import Camera
from geopose.geometry.pnp import PnPOptions, PnPResult, solve_pnp
from geopose.geometry.pose import Pose
from geopose.image import guessed_camera, load_image
from geopose.result import PoseEstimate
from geopose.stages import Candidate, Reading, locate, read_crops

Array = NDArray[np.float64]

CANDIDATES = 3
_DRAWN_FACES = 2000  # of the silhouette that is laid over the picture
LEAST_CONFIDENCE = 0.5  # below it a pose is more likely wrong than right
BEST_FEATURES = ("locator", "inliers", "precision", "agreement", "fit", "contour")
PRIOR: dict[str, Any] = {  # of the confidence, before renders taught it
    "weights": {"locator": 2, "inliers": 5, "precision": 5, "agreement": 5, "fit": 2, "contour": 4}, "bias": -13.0,
}  # fmt: skip


class PoseEstimator:
    """A trained model, ready to look at photographs. Make it with `PoseEstimator.load(path)`."""

    def __init__(self, nets: Mapping[str, nn.Module], meta: Mapping[str, Any], device: torch.device) -> None:
        self.nets, self.meta, self.device = dict(nets), dict(meta), device
        self.keypoints = np.asarray(meta["keypoints"], float)
        self.symmetries = Symmetries.from_json(meta["symmetries"])
        self.model = _light_model(meta)
        self.drawn = self.model.simplified(_DRAWN_FACES)
        self.crop_size = int(meta["options"]["crop_size"])
        self.crop_scale = float(meta["options"].get("crop_scale", 1.5))
        self.calibration = dict(meta.get("calibration") or {})
        self.options = PnPOptions()

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> PoseEstimator:
        """The estimator of a checkpoint file.

        Raises:
            FileNotFoundError, ValueError: when the file is missing or not a geopose checkpoint.
        """
        where = pick_device(device)
        nets, meta = checkpoint.load_nets(path, where)
        return cls(nets, meta, where)

    def estimate(self, img: Any, camera: Camera | None = None, box: Any = None) -> PoseEstimate:
        """The best instance in the photograph.

        Args:
            img: path, PIL image, uint8 RGB array (H, W, 3) or float tensor (3, H, W) in [0, 1]. camera: None
                takes EXIF's focal length, else a stated guess whose uncertainty enters the covariance. box:
                (4,) x0, y0, x1, y1 pixels around the whole object; None finds it.
        Raises:
            ValueError: on input that cannot be right, naming the argument.
        """
        return self.estimate_all(img, camera, max_instances=1, box=box)[0]

    def estimate_all(
        self, img: Any, camera: Camera | None = None, max_instances: int = 8, *, box: Any = None
    ) -> list[PoseEstimate]:
        """All instances, best first; one "not_found" when there is none. Arguments as in `estimate`."""
        started = time.perf_counter()
        picture, camera, notes = _opened(img, camera)
        timings = {"read": time.perf_counter() - started}
        clock = time.perf_counter()
        if box is None:
            candidates = locate(self.nets["locator"], picture, max(CANDIDATES, 2 * max_instances))
        else:
            candidates = [_given(box)]
        timings["locate"] = time.perf_counter() - clock
        if not candidates:
            timings["total"] = time.perf_counter() - started
            reason = "the locator saw the object nowhere in the picture"
            return [self._nothing(camera, (reason, *notes), timings)]
        clock = time.perf_counter()
        limit = CANDIDATES if max_instances == 1 else len(candidates)
        best = candidates[0].score
        chosen = [c for c in candidates if c.score >= 0.4 * best][:limit]
        readings = self._read(picture, chosen)
        timings["keypoints"] = time.perf_counter() - clock
        clock = time.perf_counter()
        found = [self._solve(picture, r, c, camera) for r, c in zip(readings, chosen, strict=True)]
        found = self._look_again(picture, camera, found, chosen, max_instances)
        timings["pose"] = time.perf_counter() - clock
        timings["total"] = time.perf_counter() - started
        found = [replace(f, reasons=(*f.reasons, *notes), timings=timings) for f in found]
        return found[:max_instances]

    def _read(self, picture: NDArray[np.uint8], candidates: list[Candidate]) -> list[Reading]:
        net = self.nets["keypoints"]
        return read_crops(net, picture, candidates, self.crop_size, self.crop_scale, self.calibration)

    def _solve(
        self, picture: NDArray[np.uint8], reading: Reading, candidate: Candidate, camera: Camera
    ) -> PoseEstimate:
        generator = torch.Generator().manual_seed(0)
        result = solve_pnp(
            self.keypoints,
            reading.points_px,
            camera,
            cov_px=reading.cov_px,
            options=self.options,
            generator=generator,
        )
        keypoints = {
            "points_px": reading.points_px,
            "cov_px": reading.cov_px,
            "inliers": np.asarray(result.inliers),
            "points_obj": self.keypoints,
        }
        status, reasons = str(result.status), (result.reason,) if result.reason else ()
        pose = result.pose if np.isfinite(result.pose.t).all() and np.isfinite(result.pose.R).all() else None
        covariance, contour = (result.covariance if pose is not None else None), 0.0
        if pose is not None and status == "ok":
            known = keypoint_term(self.keypoints, reading, result.inliers, camera)
            aligned = align(picture, camera, pose, self.drawn, reading, known)
            contour = aligned.agreement
            if aligned.covariance is not None:
                pose, covariance = aligned.pose, aligned.covariance
                result = replace(result, pose=pose, covariance=covariance)
        features = self.features(result, pose, reading, candidate, camera, contour)
        confidence = confidence_of(features, self.calibration)
        if status == "ok" and confidence < float(self.calibration.get("least_confidence", LEAST_CONFIDENCE)):
            status = "no_consensus"
            reasons = (f"the pose does not explain the picture (confidence {confidence:.2f})", *reasons)
        if covariance is not None:
            covariance = covariance * float(self.calibration.get("pose_scale", 1.0))
        box = projected_box(self.model.vertices, pose, camera) if pose is not None else None
        return PoseEstimate(
            pose, covariance, status, reasons,
            confidence if pose is not None else 0.0, keypoints, box, tuple(result.alternatives), {}, camera, self.model,
        )  # fmt: skip

    def features(
        self, result: PnPResult, pose: Pose | None, reading: Reading, candidate: Candidate, camera: Camera,
        contour: float,
    ) -> dict[str, float]:  # fmt: skip
        """What the confidence is read from, each about in [0, 1], larger is better."""
        if pose is None:
            return dict.fromkeys(BEST_FEATURES, 0.0)
        spread = np.sqrt(max(float(np.trace(result.covariance[:3, :3])), 0)) / (0.1 * self.model.diameter)
        return {
            "locator": candidate.score,
            "inliers": float(np.mean(result.inliers)),
            "precision": float(1 / (1 + spread)),
            "agreement": self._agreement(pose, reading, camera),
            "fit": float(1 / (1 + np.nan_to_num(result.rms_px, nan=1e6) / (0.02 * candidate.size))),
            "contour": contour,
        }

    def _agreement(self, pose: Pose, reading: Reading, camera: Camera) -> float:
        """How much of the predicted mask lies inside the pose's silhouette, in [0, 1]."""
        cells = reading.mask.shape[-1]
        view = replace(camera, distortion=()).crop_resize(reading.box, (cells, cells))
        drawn = silhouette(view, pose, self.model)[0].ravel()
        mask = reading.mask.ravel() > 0.5
        if not mask.any() or not drawn.any():
            return 0.0
        inside = float(drawn[mask].mean())
        # A pose whose silhouette dwarfs the mask is as wrong as one that misses it.
        return inside * min(1.0, 4 * float(mask.sum()) / float(drawn.sum()))

    def _look_again(
        self,
        picture: NDArray[np.uint8],
        camera: Camera,
        found: list[PoseEstimate],
        candidates: list[Candidate],
        max_instances: int,
    ) -> list[PoseEstimate]:
        """Crop once more, around the pose found, or the keypoints; keep what became more confident. Best first."""
        order = sorted(range(len(found)), key=lambda i: (found[i].status != "ok", -found[i].confidence))
        order = order[: max_instances if max_instances > 1 else 1]
        again = []
        for i in order:
            box = found[i].box
            if found[i].status != "ok" or box is None or not np.isfinite(box).all():
                points = found[i].keypoints["points_px"]
                box = np.concatenate([points.min(0), points.max(0)])
            centre, size = box_centre_size(box)
            if 0.3 < size / candidates[i].size < 3 and np.linalg.norm(centre - candidates[i].centre) < size:
                again.append((i, Candidate(centre, size, candidates[i].score)))
        if again:
            second = self._read(picture, [c for _, c in again])
            for (i, c), reading in zip(again, second, strict=True):
                better = self._solve(picture, reading, c, camera)
                if (better.status == "ok", better.confidence) >= (
                    found[i].status == "ok",
                    0.9 * found[i].confidence,
                ):
                    found[i] = better
        rest = sorted(found, key=lambda f: (f.status != "ok", -f.confidence))
        return _distinct(rest) if max_instances > 1 else rest

    def _nothing(self, camera: Camera, reasons: tuple[str, ...], timings: dict[str, float]) -> PoseEstimate:
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
    estimator = model if isinstance(model, PoseEstimator) else PoseEstimator.load(model, device)
    content_hash = load_cad(cad, None if _has_unit(cad) else estimator.meta["unit"]).content_hash
    if content_hash != estimator.meta["content_hash"]:
        raise ValueError(
            f"model: was trained on {estimator.meta['name']!r}, a mesh that differs from cad={cad!r}"
        )
    return estimator.estimate(img, camera, box)


def _has_unit(cad: Any) -> bool:
    """Whether nobody need say in which unit `cad` is: anything but a file of bare numbers."""
    return not isinstance(cad, (str, Path)) or Path(cad).suffix.lower() in {"", ".glb", ".gltf", ".3mf"}


def model_of(cad: Any, unit: str | None = None) -> Path:
    """The checkpoint of this CAD among the built-in and cached ones; without a unit, any unit that it was
    trained in.

    Raises:
        FileNotFoundError: when there is none; the message is the command that trains one.
    """
    units = [unit] if unit is not None or _has_unit(cad) else ["mm", "m", "cm", "in"]
    for each in units:
        with warnings.catch_warnings():
            if len(units) > 1:
                warnings.simplefilter("ignore", CadWarning)
            path = checkpoint.find_model(load_cad(cad, each).content_hash)
        if path is not None:
            return path
    name = cad if isinstance(cad, (str, Path)) else cad.source if Path(cad.source).is_file() else cad.name
    spell = f" --unit {units[0] or cad.unit}" if Path(str(name)).is_file() and not _has_unit(name) else ""
    raise FileNotFoundError(
        f"no trained model of {str(name)!r}; train one: geopose train {name}{spell} --minutes 30"
    )


def confidence_of(features: Mapping[str, float], calibration: Mapping[str, Any]) -> float:
    """Probability that the pose is right: a logistic function of the features."""
    fitted = calibration.get("confidence") or PRIOR
    z = fitted["bias"] + sum(float(fitted["weights"][name]) * features[name] for name in BEST_FEATURES)
    return float(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def _light_model(meta: Mapping[str, Any]) -> CadModel:
    """The checkpoint's light mesh, under the identity of the mesh that it stands for."""
    mesh = meta["mesh"]
    colors = mesh.get("colors")
    geometry = trimesh.Trimesh(
        mesh["vertices"],
        mesh["faces"],
        vertex_colors=None if colors is None else np.round(255 * np.asarray(colors)).astype(np.uint8),
        process=False,
    )
    named = {k: tuple(v) for k, v in (meta.get("named_keypoints") or {}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CadWarning)  # said when it was trained
        model = CadModel.from_trimesh(geometry, meta["name"], named_keypoints=named)
    model = replace(model, content_hash=str(meta["content_hash"]), unit=str(meta["unit"]))
    model.__dict__["diameter"] = float(meta["diameter"])  # that of the full mesh
    return model


def _opened(img: Any, camera: Camera | None) -> tuple[NDArray[np.uint8], Camera, tuple[str, ...]]:
    picture, from_file = load_image(img)
    size = (picture.shape[1], picture.shape[0])
    if camera is None:
        if from_file is not None:
            return picture, from_file, (f"focal length {from_file.fx:.0f} px from EXIF, give or take 3 %",)
        guess = guessed_camera(size)
        note = f"no camera given: assumed a focal length of {guess.fx:.0f} px, give or take 20 %; distances suffer"
        return picture, guess, (note,)
    if not isinstance(camera, Camera):
        raise ValueError(f"camera: expected a Camera, got {type(camera).__name__}")
    if tuple(camera.size_wh) != size:
        raise ValueError(
            f"camera: is for pictures of {camera.size_wh[0]}x{camera.size_wh[1]}, got one of {size[0]}x{size[1]}; "
            "if the picture was resized, scale the camera with crop_resize"
        )
    return picture, camera.numpy(), ()


def _given(box: Any) -> Candidate:
    values = np.asarray(box, float)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"box: expected four finite numbers x0, y0, x1, y1 in pixels, got {box!r}")
    if not (values[2] > values[0] and values[3] > values[1]):
        raise ValueError(f"box: expected x0 < x1 and y0 < y1, got {values.tolist()}")
    centre, size = box_centre_size(values)
    return Candidate(centre, size, 1.0)


def _distinct(found: list[PoseEstimate]) -> list[PoseEstimate]:
    """Without the less confident of two estimates of one instance."""
    kept: list[PoseEstimate] = []
    for f in found:
        if f.pose is None:
            continue
        apart = 0.3 * f.model.diameter
        if all(k.pose is None or np.linalg.norm(f.pose.t - k.pose.t) > apart for k in kept):
            kept.append(f)
    return kept or found[:1]
