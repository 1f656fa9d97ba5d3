"""The International Space Station in true proportions: 109 m across the solar arrays.

Sizes are facts, metres: 109 across and 73 from array tip to array tip, array wings 34 x 12 (112 x 39 ft),
truss S0 13.4, S1 and P1 13.7 long and 4.6 wide, Destiny 8.5 x 4.3, Harmony 7.2 x 4.4, Unity 5.5 x 4.3,
Tranquility 6.7 x 4.5, Columbus 6.9 x 4.5, Kibo 11.2 x 4.4, Zarya 12.6 x 4.1, Zvezda 13.1 x 4.2 with 29.7 over
its arrays, Nauka 13.1 x 4.3, heat radiators 23.3 x 3.4 (NASA, "Reference Guide to the International Space
Station", NP-2010-09-682-HQ, 2010; Nauka: ESA fact sheet). What stands between these figures (gaps, masts, the
place of each joint) is drawn by eye.
"""

from __future__ import annotations

import numpy as np

from geopose.cad.gallery.parts import Part, Point, Rgb, assemble, box, divided, extrude, loft, revolve, tube
from geopose.cad.model import CadModel

WHITE: Rgb = (0.92, 0.92, 0.91)
METAL: Rgb = (0.74, 0.75, 0.77)
SILVER: Rgb = (0.60, 0.62, 0.66)
GREY: Rgb = (0.42, 0.43, 0.46)
DARK: Rgb = (0.13, 0.13, 0.15)
RUSSIAN: Rgb = (0.56, 0.58, 0.47)
OLIVE: Rgb = (0.38, 0.41, 0.31)
CELLS: Rgb = (0.09, 0.13, 0.33)
CELLS_LIGHT: Rgb = (0.13, 0.19, 0.43)
KAPTON: Rgb = (0.84, 0.53, 0.16)
KAPTON_DARK: Rgb = (0.72, 0.42, 0.11)
RED: Rgb = (0.78, 0.10, 0.10)
GREEN: Rgb = (0.10, 0.58, 0.26)

PORT, STARBOARD = 1, -1
SIDES = {"port": PORT, "starboard": STARBOARD}
AXIS_Z = -4.5  # of the row of modules below the truss
INNER, OUTER = 33.0, 48.7  # distance of the array wings from the middle
TURNS = {
    "fore": ((0, 0, 1), 0.0), "aft": ((0, 0, 1), np.pi), "port": ((0, 0, 1), np.pi / 2),
    "starboard": ((0, 0, 1), -np.pi / 2), "zenith": ((0, 1, 0), -np.pi / 2), "nadir": ((0, 1, 0), np.pi / 2),
}  # fmt: skip


def module(
    start: Point, way: str, length: float, diameter: float, rgb: Rgb, end: Rgb = GREY, band: Rgb | None = None
) -> Part:
    """Pressurised cylinder with conical ends, from `start` along `way`, a key of `TURNS`."""
    radius, cone = diameter / 2, 0.16 * diameter
    profile = [(0.0, 0.0, end), (0.0, 0.55 * radius, end), (cone, radius, rgb)]
    if band is not None:
        profile += [(0.40 * length, radius, band), (0.60 * length, radius, rgb)]
    profile += [(length - cone, radius, end), (length, 0.55 * radius, end), (length, 0.0, end)]
    part = revolve(profile, 10, step=6.5)
    axis, angle = TURNS[way]
    return part.rotated(axis, angle).moved(start)


def truss() -> Part:
    """Hexagonal beam along y, a lattice of light and dark triangles; port end red, starboard green."""
    joints = (0.0, 6.7, 20.4, 34.1, 37.5, 51.2)
    depth = {0.0: 2.3, 20.4: 2.3, 20.5: 1.7, 34.1: 1.7, 34.2: 1.2, 37.5: 1.2, 37.6: 1.6, 51.2: 1.6}
    half = divided((*joints[:2], 20.4, 20.5, 34.1, 34.2, 37.5, 37.6, 50.2, 51.2), 2.8)
    y = np.concatenate([-half[:0:-1], half])
    reach = np.interp(np.abs(y), list(depth), list(depth.values()))
    angle = np.deg2rad(60) * np.arange(6)
    rings = np.zeros((len(y), 6, 3))
    rings[..., 0] = reach[:, None] * np.cos(angle)
    rings[..., 1] = y[:, None]
    rings[..., 2] = 0.85 * reach[:, None] * np.sin(angle)
    beam = loft(rings, METAL)
    corner = beam.vertices[beam.faces]
    lower = (corner[..., 1] <= corner[..., 1].mean(axis=1, keepdims=True)).sum(axis=1) == 2
    beam = beam.painted(GREY, lower)
    side = beam.centroids[:, 1]
    return beam.painted(RED, side > 50.2).painted(GREEN, side < -50.2)


def array_wing(y: float, ahead: int) -> dict[str, Part]:
    """One of the eight array wings, 34 x 12 m: two blankets, blue above and gold below, mast, two bars."""
    root, tip = 3.2 * ahead, 36.4 * ahead
    parts = {"mast": tube((1.6 * ahead, y, 0.0), (tip, y, 0.0), 0.42, SILVER, sides=4, cuts=5)}
    parts["base"] = box((1.0, 10.8, 0.7), (root - 0.4 * ahead, y, 0.0), METAL)
    parts["bar"] = box((0.5, 11.6, 0.5), (tip - 0.15 * ahead, y, 0.0), WHITE if ahead > 0 else GREY, step=3.9)
    for name, offset in (("left", 3.25), ("right", -3.25)):
        stations = divided((root, tip), 7.0)
        across = y + offset + np.array([2.5, 0.0, -2.5, -2.5, 0.0, 2.5])
        height = 0.2 * np.array([1, 1, 1, -1, -1, -1])
        blanket = loft([np.stack([np.full(6, x), across, height], 1) for x in stations], CELLS)
        x, cell_y, _ = blanket.centroids.T
        odd = ((np.floor((x - root) / (tip - root) * (len(stations) - 1)) + (cell_y > y + offset)) % 2) > 0
        below = blanket.normals[:, 2] < -0.5
        blanket = blanket.painted(CELLS_LIGHT, odd & ~below).painted(KAPTON, below)
        parts[name] = blanket.painted(KAPTON_DARK, below & odd)
    return parts


def radiators(side: int, tilt: float) -> list[Part]:
    """Three heat radiators of one side, 23.3 x 3.4 m, aft of the truss and tilted by `tilt` radians."""
    panels = [
        box((23.3, 3.4, 0.3), (-14.2, (13.5 + k * 3.9) * side, 0.0), WHITE, step=6.0) for k in (-1, 0, 1)
    ]
    beam = box((1.2, 11.4, 0.7), (-2.4, 13.5 * side, 0.0), GREY, step=3.8)
    return [p.rotated((0, 1, 0), tilt, (-1.6, 0.0, 0.0)) for p in (*panels, beam)]


def docking_port() -> Part:
    """Forward docking port: dark cone, white ring, face of black and white sectors, the topmost red."""
    port = revolve(
        [
            (0.0, 0.95, GREY), (0.0, 1.25, DARK), (1.5, 0.85, METAL), (1.7, 1.15, WHITE), (2.3, 1.15, WHITE),
            (2.3, 0.70, DARK), (1.95, 0.62, WHITE), (1.95, 0.0, WHITE),
        ],
        16,
        step=1.2,
        phase=0.0,
    )  # fmt: skip
    x, y, z = port.centroids.T
    sector = np.floor(np.arctan2(z, y) / (np.pi / 4)).astype(int) % 8
    face = (x > 2.29) | (np.abs(x - 1.95) < 1e-6)
    port = port.painted(DARK, face & (sector % 2 == 0))
    return port.painted(RED, (x > 2.2) & face & ((sector == 1) | (sector == 2))).moved((11.4, 0.0, AXIS_Z))


def modules() -> dict[str, Part]:
    """Pressurised modules: the American row with Columbus and Kibo ahead, the Russian row behind."""
    z = AXIS_Z
    return {
        "destiny": module((-4.3, 0.0, z), "fore", 8.6, 4.3, METAL),
        "harmony": module((4.25, 0.0, z), "fore", 7.2, 4.4, METAL, band=SILVER),
        "unity": module((-4.25, 0.0, z), "aft", 5.5, 4.3, SILVER),
        "columbus": module((8.0, -1.9, z), "starboard", 7.2, 4.5, SILVER, band=METAL),
        "kibo": module((8.0, 1.9, z), "port", 11.5, 4.4, WHITE, end=METAL),
        "kibo_store": module((8.0, 11.0, z + 1.9), "zenith", 4.2, 4.4, WHITE, end=METAL),
        "tranquility": module((-7.0, 1.9, z), "port", 7.0, 4.5, METAL, band=SILVER),
        "leonardo": module((-4.9, 6.8, z), "fore", 6.6, 4.4, WHITE, end=GREY).moved((0.2, 0.0, -0.3)),
        "quest": module((-7.0, -1.9, z), "starboard", 5.8, 4.0, WHITE, end=DARK),
        "mating": module((-9.6, 0.0, z), "aft", 2.1, 2.9, DARK, end=DARK),
        "zarya": module((-11.6, 0.0, z), "aft", 12.6, 4.1, RUSSIAN, end=OLIVE, band=OLIVE),
        "zvezda": module((-24.2, 0.0, z), "aft", 13.1, 4.2, RUSSIAN, end=OLIVE),
        "poisk": module((-26.3, 0.0, z + 1.8), "zenith", 4.4, 2.5, OLIVE, end=OLIVE),
        "rassvet": module((-14.0, 0.0, z - 1.7), "nadir", 6.0, 2.4, OLIVE, end=OLIVE),
        "nauka": module((-26.3, 0.0, z - 1.8), "nadir", 13.0, 4.3, RUSSIAN, end=OLIVE, band=WHITE),
        "spine": module((-7.0, 0.0, z + 1.8), "zenith", 3.6, 3.0, GREY),
    }


def details() -> dict[str, Part]:
    """Kibo's terrace, cupola, Zvezda's own arrays, radiators of the arrays, post under the truss."""
    dome = [(0.0, 0.0, METAL), (0.0, 1.45, METAL), (0.7, 1.45, DARK), (1.5, 0.7, METAL), (1.5, 0.0, METAL)]
    cupola = revolve(dome, 12)
    parts = {
        "terrace": box((5.0, 5.4, 2.6), (8.0, 16.0, AXIS_Z - 0.6), SILVER, step=2.7),
        "cupola": cupola.rotated(*TURNS["nadir"]).moved((-7.0, 5.6, AXIS_Z - 2.1)),
        "post": extrude([(-1.2, -2.6), (1.2, -2.6), (1.8, -1.5), (-1.8, -1.5)], (-1.4, 1.4), GREY),
    }
    for name, side in SIDES.items():
        wing = box((3.2, 12.6, 0.25), (-31.5, 8.5 * side, AXIS_Z), CELLS, step=3.2)
        parts[f"zvezda_array_{name}"] = wing.painted(KAPTON, wing.normals[:, 2] < -0.5)
        for where, y in (("inner", 25.2), ("outer", 41.2)):
            parts[f"radiator_{where}_{name}"] = box((3.1, 0.25, 12.6), (0.0, y * side, -7.5), WHITE, step=3.2)
    return parts


def iss(port_tilt: float = np.deg2rad(-28.0), starboard_tilt: float = np.deg2rad(12.0)) -> CadModel:
    """The station, metres; x ahead (docking port), y to port, z to the zenith, origin mid truss.

    The arrays are blue above and gold below; the Russian half behind is green; Kibo stands out to
    port; the radiators of both sides are turned by `port_tilt` and `starboard_tilt` radians about the truss.
    """
    beam, dock, rooms, more = truss(), docking_port(), modules(), details()
    parts = [beam, dock, *rooms.values(), *more.values()]
    points = {
        "docking_port": dock.nearest((13.4, 0.0, AXIS_Z)),
        "zvezda_aft": rooms["zvezda"].nearest((-38.0, 0.0, AXIS_Z)),
        "nauka_nadir": rooms["nauka"].nearest((-26.3, 0.0, -20.0)),
        "kibo_terrace": more["terrace"].nearest((10.5, 18.7, AXIS_Z)),
        "columbus_end": rooms["columbus"].nearest((8.0, -9.5, AXIS_Z)),
        "quest_end": rooms["quest"].nearest((-7.0, -8.0, AXIS_Z)),
        "cupola": more["cupola"].nearest((-7.0, 5.6, AXIS_Z - 3.6)),
    }
    for name, side in SIDES.items():
        points[f"truss_end_{name}"] = beam.nearest((0.0, 52.0 * side, 0.0))
        points[f"zvezda_array_{name}"] = more[f"zvezda_array_{name}"].nearest(
            (-33.1, 15.0 * side, AXIS_Z + 0.2)
        )
        cooling = radiators(side, port_tilt if side == PORT else starboard_tilt)
        parts += cooling
        for where, y in (("inner", INNER), ("outer", OUTER)):
            for direction, ahead in (("fore", 1), ("aft", -1)):
                wing = array_wing(y * side, ahead)
                parts += wing.values()
                tip = (40.0 * ahead, (y + 6.0) * side, 1.0)
                points[f"array_tip_{where}_{direction}_{name}"] = wing["bar"].nearest(tip)
    return assemble("iss", parts, points)
