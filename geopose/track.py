"""A video: the estimator's poses, carried through time.

The last poses tell where to look next, so the locator rests; a filter (`geopose.geometry.motion`) weighs what a frame
says against where the motion leads; an object that is lost is searched for in the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from geopose.data.sample import projected_box
from geopose.estimate import PoseEstimator
from geopose.focal import with_focal
from geopose.geometry.camera import Camera
from geopose.geometry.motion import Motion, leap, predict, start, update
from geopose.geometry.pose import Pose
from geopose.geometry.rotation import geodesic_angle
from geopose.image import picture_and_camera
from geopose.result import PoseEstimate

Array = NDArray[np.float64]

_ASTRAY = 0.3  # object sizes: a prediction less sure than this does not aim a crop


@dataclass(frozen=True)
class TrackOptions:
    """How poses are carried through time.

    independent: look at every frame on its own, exactly as `PoseEstimator.estimate` does;
    linear_noise: how much the velocity changes at random in one second, object diameters per s^1.5;
    angular_noise: how much the spin changes at random in one second, rad per s^1.5;
    start_speed: standard deviation of the velocity before it is known, object diameters per second;
    start_spin: the same of the spin, rad per second;
    gate: share of the right measurements that pass as such;
    patience: frames in a row without a good measurement after which the object counts as lost;
    alike: frames that count as one, because the errors of neighbouring frames are alike;
    frame_s: seconds between frames, where their times are not given.
    """

    independent: bool = False
    linear_noise: float = 2.0
    angular_noise: float = 4.0
    start_speed: float = 2.0
    start_spin: float = 2.0
    gate: float = 0.999
    patience: int = 3
    alike: float = 3.0
    frame_s: float = 1 / 30

    def __post_init__(self) -> None:
        for name in ("linear_noise", "angular_noise", "start_speed", "start_spin", "frame_s"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 < self.gate < 1:
            raise ValueError(f"gate: expected a probability between 0 and 1, got {self.gate}")
        if self.patience < 1:
            raise ValueError(f"patience: expected at least 1 frame, got {self.patience}")
        if not self.alike >= 1:
            raise ValueError(f"alike: expected at least 1 frame, got {self.alike}")


class Tracker:
    """One object of a video, frame by frame.

    Args:
        estimator: the trained model. camera: of all frames; None: EXIF's or a stated guess, as in `estimate`.
        options: see `TrackOptions`.

    `searched` counts the frames that were looked at as a whole.
    """

    def __init__(
        self,
        estimator: PoseEstimator,
        camera: Camera | None = None,
        options: TrackOptions = TrackOptions(),
    ) -> None:
        self.estimator, self.camera, self.options = estimator, camera, options
        self.searched = 0
        self._motion: Motion | None = None
        self._time = -np.inf
        self._misses = 0
        self._about = estimator.model.bounds.mean(0)
        self._symmetries = Pose.from_matrix(estimator.symmetries.expand())

    @property
    def lost(self) -> bool:
        """Whether the next frame is searched as a whole."""
        return self._motion is None

    def update(self, frame: Any, time: float | None = None) -> PoseEstimate:
        """The PoseEstimate of the next frame.

        With status "ok" its pose and covariance are those of the filter, from this frame and the earlier ones. With
        another status the frame itself gave no pose to be trusted, the reasons say why, and the pose, if there is one,
        is the prediction from earlier frames with its grown covariance.

        Args:
            frame: a picture as in `PoseEstimator.estimate`. time: seconds, later than that of the last frame; None:
                `options.frame_s` after it.
        Raises:
            ValueError: on input that cannot be right, naming the argument.
        """
        step = self.options.frame_s
        if time is not None:
            step = time - self._time if np.isfinite(self._time) else step
            if not (np.isfinite(time) and step > 0):
                raise ValueError(f"time: expected seconds after {self._time:g}, got {time}")
        picture, given, notes = picture_and_camera(frame, self.camera)  # raises: such a frame takes no time
        self._time = time if time is not None else (self._time + step if np.isfinite(self._time) else 0.0)
        if self.options.independent:
            self.searched += 1
            return self.estimator.estimate(frame, self.camera)
        # The same wrong focal length errs alike in all frames: no number of them averages it away.
        found = self._carry(picture, replace(given, focal_rel_std=0.0), step)
        found = with_focal(found, given, self.estimator.keypoints)
        return replace(found, reasons=(*found.reasons, *notes))

    def _carry(self, frame: Any, camera: Camera, step: float) -> PoseEstimate:
        """The estimate from the predicted place, or from the whole picture."""
        if self._motion is None:
            return self._search(frame, camera)
        scale = self.estimator.model.diameter
        self._motion = predict(
            self._motion, step, self.options.linear_noise * scale, self.options.angular_noise
        )
        return self._follow(frame, camera, self._motion)

    def _search(self, frame: Any, camera: Camera) -> PoseEstimate:
        """The estimate from the whole picture; a good one starts the track anew."""
        self.searched += 1
        found = self.estimator.estimate(frame, camera)
        self._motion, self._misses = None, 0
        if found.status == "ok" and found.pose is not None:
            speed = self.options.start_speed * self.estimator.model.diameter
            covariance = self.options.alike * np.asarray(found.covariance)
            self._motion = start(found.pose, covariance, self._about, speed, self.options.start_spin)
            self._seen_by = found.camera
        return found

    def _follow(self, frame: Any, camera: Camera, motion: Motion) -> PoseEstimate:
        """The estimate from the predicted place, or from the whole picture where that fails for too long."""
        box = self._aim(motion)
        if box is None:
            return self._search(frame, camera)
        found = self.estimator.estimate(frame, camera, box)
        gate = float(chdtri(6, 1 - self.options.gate))
        reasons = found.reasons
        if found.status == "ok" and found.pose is not None:
            measured = self._nearest(found.pose, motion)
            covariance = self.options.alike * np.asarray(found.covariance)
            away = leap(motion, measured, covariance)
            if away <= gate:
                self._motion, self._misses = update(motion, measured, covariance), 0
                return self._answer(found, self._motion, "ok", reasons, found.confidence)
            reasons = (
                f"the pose leaps away from where the motion leads (squared distance {away:.0f}, gate {gate:.0f})",
                *reasons,
            )
        self._misses += 1
        if self._misses >= self.options.patience:
            return self._search(frame, camera)
        reasons = (*reasons, "the pose is predicted from earlier frames")
        if found.status == "ok":  # if that one is right, the prediction is wrong
            return self._answer(found, motion, "no_consensus", reasons, 1 - found.confidence)
        return self._answer(found, motion, found.status, reasons, found.confidence)

    def _aim(self, motion: Motion) -> Array | None:
        """The box (4,) of the predicted pose; None where it is too uncertain, or out of the picture."""
        size, P = self.estimator.model.diameter, motion.covariance
        across, along = np.sqrt(np.linalg.eigvalsh(P[:2, :2])[-1]), np.sqrt(P[2, 2])
        if motion.centre[2] <= 0 or across > _ASTRAY * size or along > _ASTRAY * motion.centre[2]:
            return None
        box = projected_box(self.estimator.model.vertices, motion.pose, self._seen_by)
        width, height = self._seen_by.size_wh
        inside = np.isfinite(box).all() and (box[2:] > 0).all() and (box[:2] < [width - 1, height - 1]).all()
        return box if inside and (box[2:] > box[:2]).all() else None

    def _nearest(self, pose: Pose, motion: Motion) -> Pose:
        """Of all poses that look the same the one with the rotation nearest to the prediction."""
        same = pose @ self._symmetries
        return same[int(np.argmin(geodesic_angle(same.R, motion.R[None])))]

    def _answer(
        self, found: PoseEstimate, motion: Motion, status: str, reasons: tuple[str, ...], confidence: float
    ) -> PoseEstimate:
        box = projected_box(self.estimator.model.vertices, motion.pose, found.camera)
        return replace(
            found, pose=motion.pose, covariance=motion.pose_covariance, status=status,
            reasons=reasons, confidence=confidence, box=box, covariance_dof=np.inf,
        )  # fmt: skip
