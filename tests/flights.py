"""Pictures that several test files look at: a few frames of the X-wing's loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geopose import demo
from geopose.cad.model import load_cad
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

FPS = 30.0


def xwing_frames(numbers: Sequence[int], seconds: float = 5.0) -> tuple[Camera, list[Pose], list[np.ndarray]]:
    """The camera, the true poses and the pictures of some frames of a loop that takes `seconds`, `FPS` a second."""
    ship, rng = load_cad("xwing"), np.random.default_rng(0)
    camera = Camera.from_fov(float(np.deg2rad(50)), demo.SIZE_WH)
    sky = demo.star_field(rng, demo.SIZE_WH)
    loop = demo.flight(round(FPS * seconds))
    truths = [loop[number] for number in numbers]
    return camera, truths, [demo.photograph(ship, camera, truth, sky, rng) for truth in truths]
