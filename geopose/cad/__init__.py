"""A mesh, and everything that can be computed from it alone."""

from __future__ import annotations

from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import CadModel, CadWarning, load_cad
from geopose.cad.symmetry import Symmetries, find_symmetries, mirror_pairs

__all__ = [
    "CadModel",
    "CadWarning",
    "Symmetries",
    "choose_keypoints",
    "find_symmetries",
    "load_cad",
    "mirror_pairs",
]
