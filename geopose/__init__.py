"""From a CAD file to a calibrated 6-DoF pose, learned from nothing but renders, on a laptop's CPU.

The names below are the public ones. Each is imported when it is first used, so that `import geopose` is fast and
does nothing else.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopose.cad.keypoints import choose_keypoints as choose_keypoints
    from geopose.cad.model import CadModel as CadModel
    from geopose.cad.model import load_cad as load_cad
    from geopose.cad.render import Rendering as Rendering
    from geopose.cad.render import render as render
    from geopose.cad.symmetry import Symmetries as Symmetries
    from geopose.cad.symmetry import find_symmetries as find_symmetries
    from geopose.estimate import PoseEstimate as PoseEstimate
    from geopose.estimate import PoseEstimator as PoseEstimator
    from geopose.estimate import estimate_pose as estimate_pose
    from geopose.geometry.camera import Camera as Camera
    from geopose.geometry.pnp import PnPOptions as PnPOptions
    from geopose.geometry.pnp import PnPResult as PnPResult
    from geopose.geometry.pnp import solve_pnp as solve_pnp
    from geopose.geometry.pose import Pose as Pose
    from geopose.track import Tracker as Tracker
    from geopose.track import TrackOptions as TrackOptions
    from geopose.train import TrainOptions as TrainOptions
    from geopose.train import train as train

__version__ = "0.1.0"

_HOME_OF = {
    "CadModel": "geopose.cad.model",
    "Camera": "geopose.geometry.camera",
    "PnPOptions": "geopose.geometry.pnp",
    "PnPResult": "geopose.geometry.pnp",
    "Pose": "geopose.geometry.pose",
    "PoseEstimate": "geopose.estimate",
    "PoseEstimator": "geopose.estimate",
    "Rendering": "geopose.cad.render",
    "Symmetries": "geopose.cad.symmetry",
    "TrackOptions": "geopose.track",
    "Tracker": "geopose.track",
    "TrainOptions": "geopose.train",
    "choose_keypoints": "geopose.cad.keypoints",
    "estimate_pose": "geopose.estimate",
    "find_symmetries": "geopose.cad.symmetry",
    "load_cad": "geopose.cad.model",
    "render": "geopose.cad.render",
    "solve_pnp": "geopose.geometry.pnp",
    "train": "geopose.train",
}

__all__ = ["__version__", *sorted(_HOME_OF)]

# Debian and Ubuntu packages of the system libraries that OpenCV's wheel expects to find.
_PACKAGE_OF_LIBRARY = {
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
    "libgthread-2.0.so": "libglib2.0-0",
    "libglib-2.0.so": "libglib2.0-0",
    "libxcb.so": "libxcb1",
    "libSM.so": "libsm6",
    "libICE.so": "libice6",
    "libX11.so": "libx11-6",
    "libXext.so": "libxext6",
    "libXrender.so": "libxrender1",
}


def import_advice(error: ImportError) -> str | None:
    """Which system package to install when `error` is a shared library that is missing, else None."""
    found = re.search(r"((lib[\w+.-]+?\.so)[\w.]*): cannot open shared object file", str(error))
    if found is None:
        return None
    package = _PACKAGE_OF_LIBRARY.get(found[2])
    remedy = f"apt-get install {package}" if package else "apt-file search it, then install its package"
    return f"the system library {found[1]} is missing; on Debian or Ubuntu: {remedy}"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'geopose' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    except ImportError as error:
        advice = import_advice(error)
        if advice is None:
            raise
        raise ImportError(advice) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package: `geopose.train` stays the function, whoever imports the file `geopose/train.py` first.

    Python binds a freshly imported file to the name of its package; where file and function share a name, the
    outcome would hang on the order of imports.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME_OF and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
