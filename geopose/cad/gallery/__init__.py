"""Built-in objects made in code: `xwing`, `iss` and `car`, real size, x ahead, y to the left, z up."""

from __future__ import annotations

from geopose.cad.gallery.car import car
from geopose.cad.gallery.iss import iss
from geopose.cad.gallery.xwing import xwing

__all__ = ["car", "iss", "xwing"]
