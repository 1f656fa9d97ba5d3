"""An X-wing starfighter, 12.5 m from nose to exhaust, built from lofts and solids of revolution."""

from __future__ import annotations

import numpy as np

from geopose.cad.gallery.parts import Array, Part, Rgb, assemble, box, chamfered, divided, loft, revolve
from geopose.cad.model import CadModel

HULL: Rgb = (0.83, 0.81, 0.76)
PANEL: Rgb = (0.70, 0.69, 0.66)
SHADE: Rgb = (0.60, 0.61, 0.62)
GREY: Rgb = (0.50, 0.51, 0.53)
BELLY: Rgb = (0.46, 0.45, 0.45)
NOSE: Rgb = (0.50, 0.52, 0.56)
DARK: Rgb = (0.17, 0.17, 0.19)
STEEL: Rgb = (0.50, 0.51, 0.54)
RED: Rgb = (0.74, 0.10, 0.08)
GLASS: Rgb = (0.09, 0.16, 0.26)
FRAME: Rgb = (0.62, 0.60, 0.56)
BLUE: Rgb = (0.10, 0.22, 0.66)
WHITE: Rgb = (0.93, 0.93, 0.95)
GLOW: Rgb = (1.0, 0.50, 0.24)
CORE: Rgb = (1.0, 0.86, 0.62)

OPEN_ANGLE = np.deg2rad(17.0)  # of each foil from the horizontal
HINGE_Y, HINGE_Z = 0.50, 0.14
SPAN = 5.3
SIDES = {"left": 1, "right": -1}
HEIGHTS = {"upper": 1, "lower": -1}

# x, half width, bottom, top, cut of the upper corners, cut of the lower corners
FUSELAGE = (
    (6.25, 0.10, -0.30, -0.16, 0.05, 0.05),
    (6.10, 0.24, -0.38, -0.06, 0.10, 0.10),
    (5.70, 0.34, -0.43, 0.03, 0.15, 0.14),
    (5.00, 0.40, -0.47, 0.11, 0.18, 0.16),
    (2.60, 0.56, -0.58, 0.36, 0.22, 0.22),
    (0.60, 0.69, -0.66, 0.50, 0.22, 0.28),
    (-0.20, 0.73, -0.68, 0.66, 0.26, 0.30),
    (-1.20, 0.76, -0.70, 0.72, 0.30, 0.32),
    (-4.90, 0.74, -0.68, 0.68, 0.30, 0.32),
    (-5.60, 0.60, -0.52, 0.52, 0.24, 0.26),
)


def fuselage() -> Part:
    """Hull from nose to tail plate: grey nose, dark belly, red flash left, three red bars right."""
    marks = (5.50, 4.60, 4.10, 3.95, 3.45, 3.30, 2.80, 2.65, 1.90)
    table = np.array(FUSELAGE)
    stations = divided(sorted({*table[:, 0], *marks}, reverse=True), 0.95)
    columns = [np.interp(-stations, -table[:, 0], table[:, k]) for k in range(1, 6)]
    hull = loft([chamfered(*row) for row in zip(stations, *columns, strict=True)], HULL)
    x, y, _ = hull.centroids.T
    up, side = hull.normals[:, 2], np.abs(hull.normals[:, 1])
    flank = (side > 0.9) & (y != 0)
    hull = hull.painted(PANEL, (x < -1.2) & (x > -2.7) & (side > 0.5)).painted(BELLY, up < -0.5)
    hull = hull.painted(NOSE, x > 5.5).painted(RED, (x < 5.0) & (x > 4.6) & (up > -0.5))
    hull = hull.painted(RED, flank & (y > 0) & (x < 4.1) & (x > 1.9))
    bars = ((x < 4.1) & (x > 3.95)) | ((x < 3.45) & (x > 3.3)) | ((x < 2.8) & (x > 2.65))
    hull = hull.painted(RED, flank & (y < 0) & bars)
    return hull.painted(DARK, (x < -5.5) & (hull.normals[:, 0] < -0.9))


def canopy() -> list[Part]:
    """Dark glass between light frames, and the spine that carries the astromech."""

    def section(x: float, base: float, foot: float, roof: float, top: float) -> Array:
        right = [(-foot, base), (-0.5 * (foot + roof), 0.5 * (base + top)), (-roof, top)]
        yz = [(0.0, base), *((-y, z) for y, z in right), (0.0, top), *reversed(right)]
        return np.array([(x, y, z) for y, z in yz])

    rows = ((2.75, 0.20, 0.30, 0.22, 0.33), (1.55, 0.30, 0.50, 0.27, 0.86), (0.55, 0.36, 0.56, 0.31, 1.04),
            (-0.35, 0.40, 0.58, 0.33, 1.06))  # fmt: skip
    table = np.array(rows)
    stations = divided((2.75, 2.60, 1.62, 1.50, 0.60, 0.48, -0.22, -0.35), 0.6)
    columns = [np.interp(-stations, -table[:, 0], table[:, k]) for k in range(1, 5)]
    glass = loft([section(*row) for row in zip(stations, *columns, strict=True)], GLASS)
    x = glass.centroids[:, 0]
    bars = (x > 2.6) | ((x < 1.62) & (x > 1.5)) | ((x < 0.6) & (x > 0.48)) | (x < -0.22)
    glass = glass.painted(FRAME, bars)
    ridge = ((-0.30, 0.50, 1.02), (-0.9, 0.52, 0.98), (-1.6, 0.52, 0.94), (-2.5, 0.46, 0.88),
             (-3.4, 0.40, 0.82), (-4.7, 0.32, 0.72))  # fmt: skip
    back = loft([chamfered(x, width, 0.3, top, 0.16, 0.05) for x, width, top in ridge], HULL)
    return [glass, back.painted(PANEL, back.normals[:, 2] > 0.9)]


def astromech() -> Part:
    """Dome of the droid behind the cockpit: white with blue panels and one dark eye looking ahead."""
    rise = np.linspace(0, np.pi / 2, 6)
    profile = [(0.0, 0.34, STEEL), (0.20, 0.34, BLUE)]
    profile += [(0.20 + 0.34 * np.sin(a), 0.34 * np.cos(a), WHITE) for a in rise[1:]]
    dome = revolve(profile, 16).rotated((0, 1, 0), -np.pi / 2).moved((-1.05, 0.0, 0.84))
    x, y, z = (dome.centroids - (-1.05, 0.0, 0.84)).T
    azimuth = np.arctan2(y, x)
    band = (z > 0.29) & (z < 0.41)
    dome = dome.painted(BLUE, band & ((azimuth / np.pi * 4 + 0.25) % 2 < 1)).painted(BLUE, z > 0.51)
    return dome.painted(DARK, band & (np.abs(azimuth) < 0.19))


def foil(side: str) -> Part:
    """S-foil of the left or right side in its own frame: hinge along x at the origin, span along +y, flat.

    The left foils wear one broad red field, the right ones two narrow stripes.
    """
    edges = {"left": (1.1, 2.1, 3.5, 4.9), "right": (1.1, 2.1, 2.45, 3.6, 3.95, 4.9)}[side]
    span = divided((0.0, *edges, SPAN), 1.0)
    lead, trail = np.interp(span, (0.0, SPAN), (0.30, -1.35)), np.interp(span, (0.0, SPAN), (-3.55, -3.25))
    half = np.interp(span, (0.0, SPAN), (0.13, 0.07))
    chord = np.array([0.0, 0.10, 0.40, 0.70, 0.93, 1.0])
    bevel = np.array([0.25, 1.0, 1.0, 1.0, 1.0, 0.4])
    along = np.concatenate([chord, chord[::-1]])
    across = np.concatenate([bevel, -bevel[::-1]])
    rings = np.zeros((len(span), 12, 3))
    rings[..., 0] = lead[:, None] + (trail - lead)[:, None] * along
    rings[..., 1] = span[:, None]
    rings[..., 2] = half[:, None] * across
    part = loft(rings, HULL)
    x, y, _ = part.centroids.T
    place = (np.interp(y, (0.0, SPAN), (0.30, -1.35)) - x) / np.interp(y, (0.0, SPAN), (3.85, 1.90))
    part = part.painted(PANEL, (y > edges[0]) & (y < edges[1]) & (place > 0.40)).painted(STEEL, place > 0.93)
    part = part.painted(PANEL, (y > edges[-1]))
    for low, high in zip(edges[1:-1:2], edges[2:-1:2], strict=True):
        part = part.painted(RED, (y > low) & (y < high) & (place > 0.1) & (place < 0.93))
    return part


def engine() -> Part:
    """Engine along x, its intake at x = 0: fan behind a lip, fat barrel, thin thruster, glowing nozzle."""
    return revolve(
        [
            (-0.12, 0.0, STEEL), (-0.30, 0.16, DARK), (-0.30, 0.40, DARK), (0.0, 0.44, STEEL),
            (0.0, 0.53, HULL), (-0.20, 0.57, HULL), (-0.95, 0.57, STEEL), (-1.15, 0.57, HULL),
            (-2.20, 0.56, PANEL), (-2.65, 0.36, STEEL), (-4.55, 0.34, DARK), (-4.75, 0.40, STEEL),
            (-5.75, 0.36, DARK), (-5.75, 0.29, DARK), (-5.55, 0.27, GLOW), (-5.48, 0.13, CORE),
            (-5.44, 0.0, CORE),
        ],
        12,
        step=1.2,
    )  # fmt: skip


def cannon() -> Part:
    """Laser cannon along x, its tip at x = 0: muzzle, flash dish, long thin barrel, thick breech."""
    return revolve(
        [
            (0.0, 0.0, RED), (0.0, 0.06, RED), (-0.30, 0.06, DARK), (-0.55, 0.06, STEEL),
            (-0.52, 0.19, STEEL), (-0.64, 0.07, DARK), (-3.05, 0.08, STEEL), (-3.15, 0.16, HULL),
            (-4.40, 0.18, PANEL), (-4.60, 0.22, HULL), (-6.10, 0.22, STEEL), (-6.40, 0.12, DARK),
            (-6.40, 0.0, DARK),
        ],
        10,
        step=1.6,
    )  # fmt: skip


def _wing(side: str, height: str) -> dict[str, Part]:
    """Foil, engine and cannon of one of the four wings, placed in the object frame."""
    parts = {
        "foil": foil(side),
        "engine": engine().moved((-0.50, 0.72, 0.44)),
        "cannon": cannon().moved((2.75, SPAN, 0.0)),
        "rib": box((2.6, 0.16, 0.10), (-2.2, 1.55, 0.15), STEEL, step=0.9),
    }
    placed = {}
    for key, part in parts.items():
        part = part.rotated((1, 0, 0), OPEN_ANGLE).moved((0.0, HINGE_Y, HINGE_Z))
        part = part if SIDES[side] > 0 else part.mirrored(1)
        placed[key] = part if HEIGHTS[height] > 0 else part.mirrored(2)
    if HEIGHTS[height] < 0:
        lower = placed["foil"]
        placed["foil"] = lower.painted(SHADE, (lower.colors == HULL).all(axis=1)).painted(
            GREY, (lower.colors == PANEL).all(axis=1)
        )
    return placed


def _details() -> list[Part]:
    """Dark grooves along both flanks, torpedo tubes, belly keel and the plate at the tail."""
    parts = [loft([chamfered(x, 0.30, -0.80, -0.5, 0.05, 0.10) for x in divided((0.2, -3.9), 1.4)], DARK)]
    for sign in (1, -1):
        parts.append(box((3.6, 0.10, 0.16), (-2.6, 0.755 * sign, 0.0), DARK, step=0.9))
        tube = revolve([(0.0, 0.0, DARK), (0.0, 0.09, STEEL), (-0.5, 0.12, STEEL)], 10)
        parts.append(tube.moved((2.15, 0.62 * sign, -0.26)))
    tail = revolve([(0.4, 0.36, STEEL), (-0.06, 0.36, STEEL), (-0.12, 0.26, RED), (-0.12, 0.0, RED)], 12)
    return [*parts, tail.moved((-5.62, 0.0, 0.0))]


def xwing() -> CadModel:
    """X-wing with open S-foils, metres; x to the nose, y to the left, z up, origin at half length.

    The left side carries a red flash on the hull and a broad red field on each foil, the right side three
    bars and two stripes; the belly is dark, the nose grey, the canopy blue, the exhausts glow.
    """
    hull, (glass, spine), dome, details = fuselage(), canopy(), astromech(), _details()
    parts = [hull, glass, spine, dome, *details]
    points = {
        "nose": hull.nearest((6.25, 0.0, -0.23)),
        "canopy": glass.nearest((0.5, 0.0, 1.04)),
        "windshield": glass.nearest((2.7, 0.0, 0.33)),
        "astromech": dome.nearest((-1.05, 0.0, 1.4)),
        "tail": details[-1].nearest((-5.8, 0.0, 0.0)),
        "belly": hull.nearest((1.0, 0.0, -0.7)),
    }
    for side in SIDES:
        for height in HEIGHTS:
            wing = _wing(side, height)
            parts += wing.values()
            axis_y, axis_z = wing["engine"].vertices[:, 1:].mean(axis=0)
            tip_y, tip_z = wing["cannon"].vertices[:, 1:].mean(axis=0)
            points[f"cannon_tip_{height}_{side}"] = wing["cannon"].nearest((9.0, tip_y, tip_z))
            points[f"exhaust_{height}_{side}"] = wing["engine"].nearest((-5.9, axis_y, axis_z))
            points[f"intake_{height}_{side}"] = wing["engine"].nearest((-0.6, axis_y, axis_z))
    return assemble("xwing", parts, points)
