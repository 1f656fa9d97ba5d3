"""A passenger car whose paint and proportions are parameters: one function, a family of cars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geopose.cad.gallery.parts import Array, Part, Point, Rgb, assemble, box, divided, loft, revolve
from geopose.cad.model import CadModel

BLUE: Rgb = (0.07, 0.30, 0.68)
IVORY: Rgb = (0.93, 0.92, 0.86)
GLASS: Rgb = (0.10, 0.13, 0.17)
TRIM: Rgb = (0.09, 0.09, 0.10)
UNDER: Rgb = (0.17, 0.17, 0.18)
TYRE: Rgb = (0.06, 0.06, 0.07)
ALLOY: Rgb = (0.74, 0.75, 0.77)
CHROME: Rgb = (0.88, 0.89, 0.91)
HEAD: Rgb = (0.99, 0.98, 0.92)
TAIL: Rgb = (0.82, 0.04, 0.05)
PLATE_FRONT: Rgb = (0.96, 0.96, 0.96)
PLATE_REAR: Rgb = (0.96, 0.80, 0.18)

STRIPE = (0.14, 0.48)  # inner and outer edge of the stripe over half the width


@dataclass(frozen=True)
class Shape:
    """Proportions, metres, the ground at z = 0; stations are fractions of the length from the front."""

    length: float
    width: float
    height: float
    wheelbase: float
    wheel_radius: float
    cabin: tuple[
        float, float, float, float
    ]  # foot of windscreen, front and rear of roof, foot of rear window

    def __post_init__(self) -> None:
        """Refuse what is not a car."""
        sizes = (self.length, self.width, self.height, self.wheelbase, self.wheel_radius)
        if not all(np.isfinite(v) and v > 0 for v in sizes):
            raise ValueError(f"car: lengths must be positive and finite, got {sizes}")
        if not (len(self.cabin) == 4 and (np.diff([0.0, *self.cabin, 1.0]) > 0).all()):
            raise ValueError(f"cabin: expected four increasing fractions between 0 and 1, got {self.cabin}")
        if self.wheel_radius > 0.3 * self.height:
            raise ValueError(f"wheel_radius: expected at most 0.3 of the height, got {self.wheel_radius}")
        if not 4 * self.wheel_radius < self.wheelbase < 0.68 * self.length:
            raise ValueError(f"wheelbase: expected 4 wheel radii to 0.68 of the length, got {self.wheelbase}")

    @property
    def belt(self) -> float:
        """Height of the shoulder below the side windows."""
        return 0.63 * self.height

    @property
    def axles(self) -> tuple[float, float]:
        """x of the front and of the rear axle; the overhangs are as 0.48 to 0.52."""
        front = 0.5 * self.length - 0.48 * (self.length - self.wheelbase)
        return front, front - self.wheelbase

    def x(self, fraction: float) -> float:
        """x of the station at `fraction` of the length behind the front bumper."""
        return (0.5 - fraction) * self.length


def body(shape: Shape, paint: Rgb, stripe: Rgb | None) -> Part:
    """Lower body: open wheel arches, corners rounded in plan, falling bonnet, lamps in its corners."""
    half, arch = 0.5 * shape.length, 1.14 * shape.wheel_radius
    stations = [half * s for s in (1.0, 0.992, 0.975, 0.93, 0.88, -0.9, -0.94, -0.975, -0.992, -1.0)]
    for axle in shape.axles:
        stations += [axle + arch * c for c in np.cos(np.linspace(0.0, np.pi, 10))]
        stations += [axle + 1.12 * arch, axle - 1.12 * arch]
    x = divided(sorted(stations, reverse=True), 0.2)
    s = x / half
    plan = np.interp(np.abs(s), (0, 0.6, 0.88, 0.93, 0.975, 0.992, 1), (1, 1, 0.96, 0.92, 0.83, 0.76, 0.68))
    cowl = 1 - 2 * shape.cabin[0]
    knots = (-1.0, -0.992, -0.975, -0.9, 0.0, cowl, 0.88, 0.93, 0.975, 0.992, 1.0)
    rise = (0.84, 0.92, 0.955, 0.98, 1.0, 0.98, 0.86, 0.83, 0.78, 0.75, 0.69)
    top = shape.belt * np.interp(s, knots, rise)
    sill = shape.height * np.interp(np.abs(s), (0, 0.8, 0.95, 1), (0.125, 0.13, 0.16, 0.21))
    gap = np.abs(x[:, None] - np.array(shape.axles)).min(axis=1)
    opening = shape.wheel_radius + np.sqrt(np.maximum(arch**2 - gap**2, 0.0))
    low = np.where(gap <= arch + 1e-9, opening, sill)
    rings = [_section(*row) for row in zip(x, 0.5 * shape.width * plan, low, top, strict=True)]
    return _paint(loft(rings, paint), shape, stripe)


def _section(x: float, half_width: float, low: float, top: float) -> Array:
    """Ring (18, 3) of the lower body at `x`: floor, bulging side, shoulder, bonnet with its stripe."""
    w, rise = half_width, top - low
    left = [(0.55 * w, low), (0.95 * w, low), (0.985 * w, low + 0.15 * rise), (w, low + 0.52 * rise),
            (0.975 * w, low + 0.80 * rise), (0.89 * w, top), (STRIPE[1] * w, top + 0.02),
            (STRIPE[0] * w, top + 0.026)]  # fmt: skip
    yz = [(0.0, low), *left, (0.0, top + 0.028), *((-y, z) for y, z in reversed(left))]
    return np.array([(x, y, z) for y, z in yz])


def _paint(part: Part, shape: Shape, stripe: Rgb | None) -> Part:
    """The body with its stripe, dark floor and sills, white lamps ahead and red ones behind."""
    along, side = part.centroids[:, 0] / (0.5 * shape.length), np.arange(len(part.faces)) // 2 % 18
    wall = np.abs(part.normals[:, 0]) < 0.9999
    part = part.painted(UNDER, wall & np.isin(side, (0, 1, 16, 17)))
    part = part.painted(TRIM, wall & np.isin(side, (2, 15)))
    lamp = wall & (np.abs(along) > 0.93) & np.isin(side, (4, 5, 12, 13))
    part = part.painted(HEAD, lamp & (along > 0)).painted(TAIL, lamp & (along < 0))
    return part if stripe is None else part.painted(stripe, wall & (side == 7))


def cabin(shape: Shape, paint: Rgb, stripe: Rgb | None) -> Part:
    """Glasshouse: raked windows between painted pillars, roof with the stripe of the body."""
    foot, front, rear, tail = (shape.x(f) for f in shape.cabin)
    middle = 0.5 * (front + rear) + 0.04 * shape.length
    quarter = rear + 0.35 * (tail - rear)
    pillars = (middle + 0.04, middle - 0.04, rear + 0.12, rear)
    x = divided((foot, front + 0.10, front, *pillars, quarter, tail), 0.3)
    base = shape.belt - 0.13
    up = np.interp(
        -x, (-foot, -front - 0.10, -front, -0.5 * (front + rear), -rear, -tail), (0, 0.93, 0.97, 1, 0.96, 0)
    )
    roof = base + 0.11 + (shape.height - 0.14 - base) * up
    w = 0.5 * shape.width * (0.87 - 0.18 * up)
    inner, outer = (0.5 * shape.width * edge for edge in STRIPE)
    rings = []
    for at, half, top in zip(x, w, roof, strict=True):
        left = [(0.87 * 0.5 * shape.width, base), (half + 0.01, top - 0.075), (half - 0.07, top - 0.012),
                (outer, top + 0.01), (inner, top + 0.022)]  # fmt: skip
        yz = [(0.0, base), *left, (0.0, top + 0.025), *((-y, z) for y, z in reversed(left))]
        rings.append([(at, y, z) for y, z in yz])
    part = loft(rings, paint)
    at, strip = part.centroids[:, 0], np.arange(len(part.faces)) // 2 % 12
    window = np.isin(strip, (1, 10)) & (at < foot) & (at > rear)
    post = (at < pillars[0]) & (at > pillars[1]) | (at < pillars[2])
    part = part.painted(GLASS, window & ~post)
    top_strips = np.isin(strip, (3, 4, 5, 6, 7, 8))
    if stripe is not None:
        part = part.painted(stripe, (strip == 4) & (at < front) & (at > rear))
    return part.painted(GLASS, top_strips & ((at > front) | (at < rear)))


def wheel(radius: float, width: float = 0.21) -> Part:
    """Wheel about the y axis with its outer face at y = 0: five spokes of alloy in a black tyre."""
    rim = 0.68 * radius
    part = revolve(
        [
            (-0.01, 0.0, CHROME), (-0.01, 0.16 * radius, ALLOY), (-0.04, rim - 0.02, ALLOY),
            (-0.01, rim, TYRE), (0.0, 0.80 * radius, TYRE), (-0.03, radius, TYRE),
            (0.03 - width, radius, TYRE),
            (-width, 0.85 * radius, TYRE), (-width, 0.0, TYRE),
        ],
        20,
    ).rotated((0, 0, 1), np.pi / 2)  # fmt: skip
    x, y, z = part.centroids.T
    sector = np.round(np.arctan2(x, z) / (2 * np.pi / 20)).astype(int) % 4
    ring = (np.hypot(x, z) > 0.17 * radius) & (np.hypot(x, z) < rim - 0.03) & (y > -0.05)
    return part.painted(TRIM, ring & (sector >= 2))


def _fittings(shape: Shape, paint: Rgb) -> dict[str, Part]:
    """Grille, badge, plates, mirrors, handles, fin, and on the right side the fuel flap and the exhaust."""
    half, w, h = 0.5 * shape.length, 0.5 * shape.width, shape.height
    disc = revolve([(0.0, 0.0, CHROME), (0.0, 0.055, CHROME), (-0.06, 0.06, CHROME)], 12)
    mirror_x = shape.x(shape.cabin[0]) - 0.32
    front, rear = shape.axles
    pipe = revolve([(0.12, 0.04, TRIM), (-0.03, 0.04, CHROME), (-0.03, 0.03, TRIM), (0.1, 0.0, TRIM)], 10)
    tub = (front - rear + 0.7, 2 * w - 0.6, 0.26 * h)
    parts = {
        "grille": box((0.06, 0.95 * w, 0.10 * h), (half - 0.01, 0.0, 0.345 * h), TRIM),
        "badge": disc.moved((half + 0.045, 0.0, 0.355 * h)),
        "plate_front": box((0.05, 0.52, 0.11), (half + 0.01, 0.0, 0.235 * h), PLATE_FRONT),
        "lip_front": box((0.05, 1.25 * w, 0.06 * h), (half - 0.01, 0.0, 0.225 * h), TRIM),
        "lip_rear": box((0.05, 1.25 * w, 0.09 * h), (-half + 0.01, 0.0, 0.245 * h), TRIM),
        "plate_rear": box((0.05, 0.52, 0.11), (-half - 0.005, 0.0, 0.40 * h), PLATE_REAR),
        "fin": box((0.16, 0.03, 0.07), (shape.x(shape.cabin[2]) + 0.25, 0.0, h + 0.01), TRIM),
        "flap": box((0.16, 0.07, 0.14), (rear - 1.65 * shape.wheel_radius, -0.94 * w, 0.5 * h), CHROME),
        "exhaust": pipe.moved((-half - 0.02, -0.55 * w, 0.17 * h)),
        "tub": box(tub, (0.5 * (front + rear), 0.0, 0.27 * h), UNDER, step=0.6),
    }
    for side, sign in (("left", 1), ("right", -1)):
        parts[f"mirror_{side}"] = box((0.13, 0.28, 0.13), (mirror_x, 0.965 * w * sign, 0.685 * h), paint)
        for row, at in (("front", 0.477), ("rear", 0.70)):
            handle = box((0.19, 0.03, 0.035), (shape.x(at), 0.985 * w * sign, 0.555 * h), CHROME)
            parts[f"handle_{row}_{side}"] = handle
        for row, at in (("front", front), ("rear", rear)):
            turned = wheel(shape.wheel_radius).moved((at, w - 0.005, shape.wheel_radius))
            parts[f"wheel_{row}_{side}"] = turned if sign > 0 else turned.mirrored(1)
    return parts


def car(
    paint: Rgb = BLUE,
    stripe: Rgb | None = IVORY,
    length: float = 4.4,
    width: float = 1.8,
    height: float = 1.45,
    wheelbase: float = 2.65,
    wheel_radius: float = 0.33,
    cabin_stations: tuple[float, float, float, float] = (0.29, 0.45, 0.76, 0.94),
) -> CadModel:
    """A car, metres; x ahead, y to the left, z up, origin in the middle of its length, width and height.

    Args:
        paint: sRGB in [0, 1] of the body.
        stripe: sRGB of the stripe left of the middle, which tells left from right; None: no stripe.
        length, width, height, wheelbase, wheel_radius: metres.
        cabin_stations: foot of the windscreen, front and rear edge of the roof and foot of the rear window,
            as fractions of the length from the front.
    Raises:
        ValueError: a length that is not positive, stations that do not increase, wheels that do not fit.
    """
    shape = Shape(length, width, height, wheelbase, wheel_radius, cabin_stations)
    lower, upper, fittings = body(shape, paint, stripe), cabin(shape, paint, stripe), _fittings(shape, paint)
    parts = {"body": lower, "cabin": upper, **fittings}
    parts = {name: part.moved((0.0, 0.0, -0.5 * height)) for name, part in parts.items()}
    half, w, h = 0.5 * length, 0.5 * width, 0.5 * height

    def at(name: str, x: float, y: float, z: float) -> Point:
        return parts[name].nearest((x, y, z))

    points = {
        "badge": at("badge", half + 1, 0.0, -0.29 * h),
        "plate_front": at("plate_front", half + 1, 0.0, -0.53 * h),
        "plate_rear": at("plate_rear", -half - 1, 0.0, -0.2 * h),
        "fin": at("fin", 0.0, 0.0, 2 * h),
    }
    for side, sign in (("left", 1), ("right", -1)):
        points[f"roof_front_{side}"] = at("cabin", shape.x(cabin_stations[1]), 0.62 * w * sign, h)
        points[f"roof_rear_{side}"] = at("cabin", shape.x(cabin_stations[2]), 0.62 * w * sign, h)
        points[f"mirror_{side}"] = at(f"mirror_{side}", 9.0, 9.0 * sign, h)
        points[f"head_lamp_{side}"] = at("body", 0.975 * half, 0.8 * w * sign, 0.0)
        points[f"tail_lamp_{side}"] = at("body", -0.975 * half, 0.8 * w * sign, 0.1 * h)
        for row, axle in zip(("front", "rear"), shape.axles, strict=True):
            hub = (axle, w * sign, wheel_radius - h)
            points[f"wheel_{row}_{side}"] = at(f"wheel_{row}_{side}", *hub)
    return assemble("car", list(parts.values()), points)
