"""A mesh, and everything that can be computed from it alone."""

from __future__ import annotations

from geopose.cad.model import CadModel, CadWarning, load_cad

__all__ = ["CadModel", "CadWarning", "load_cad"]
