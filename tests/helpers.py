"""What several test files share: the data folder, poses, a toy object."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from geopose.geometry.pose import Pose
from geopose.geometry.rotation import exp_so3

_ROOT = Path(__file__).resolve().parents[1]
_DATA = Path(os.environ.get("GEOPOSE_DATA") or _ROOT.parent / "shared" / "data")


def data_path(*parts: str) -> Path:
    """The path of a data file; the calling test is skipped where it is absent."""
    path = _DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in the data folder (set GEOPOSE_DATA)")
    return path


def load_script(*parts: str) -> ModuleType:
    """The module of a file of the repository that no package holds: `load_script("examples", "xwing.py")`."""
    path = _ROOT.joinpath(*parts)
    spec = importlib.util.spec_from_file_location(f"{parts[0]}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rotation_vectors(rng: np.random.Generator, count: int, kind: str = "uniform") -> np.ndarray:
    """Rotation vectors (count, 3): "uniform" in angle, "tiny" (1e-7) or "near_pi" (pi - 1e-7)."""
    axis = rng.standard_normal((count, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = {"uniform": rng.uniform(0, np.pi, (count, 1)), "tiny": 1e-7, "near_pi": np.pi - 1e-7}[kind]
    return axis * angle


def random_poses(rng: np.random.Generator, count: int, kind: str = "uniform", distance: float = 4.0) -> Pose:
    """Poses of an object about `distance` metres in front of the camera."""
    t = rng.uniform(-0.5, 0.5, (count, 3)) + [0.0, 0.0, distance]
    return Pose(exp_so3(rotation_vectors(rng, count, kind)), t)


def toy_points(rng: np.random.Generator, count: int = 12) -> np.ndarray:
    """Model points (count, 3) in a cube of one metre around the origin."""
    return rng.uniform(-0.5, 0.5, (count, 3))
