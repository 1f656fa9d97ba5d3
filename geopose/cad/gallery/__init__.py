"""Built-in objects made in code."""

from __future__ import annotations

from geopose.cad.gallery.iss import iss
from geopose.cad.gallery.xwing import xwing

__all__ = ["iss", "xwing"]
