"""What stands behind a spacecraft in low orbit: stars, and the sunlit Earth with its limb."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.data.sample import turned_to
from geopose.data.textures import fractal

F32 = NDArray[Any]  # float32
Array = NDArray[np.float64]

_EARTH_KM, _ALTITUDE_KM = 6371.0, 410.0
_HORIZON = np.arcsin(_EARTH_KM / (_EARTH_KM + _ALTITUDE_KM))  # from the direction straight down
_BANK = 512
_SEA, _GREEN, _SAND, _CLOUD, _HAZE, _AIR = np.array(
    [[0.012, 0.04, 0.11], [0.05, 0.075, 0.03], [0.25, 0.19, 0.12], [0.62, 0.63, 0.65], [0.16, 0.30, 0.58],
     [0.30, 0.50, 0.95]], np.float32,
)  # fmt: skip
_AIR_KM = np.array([14, 19, 30], np.float32)  # in which the glow of the limb falls to 1/e, by colour


def direction_down(generator: np.random.Generator, limb: bool) -> Array:
    """(3,) direction of the Earth's centre in the camera frame, so that its limb or its face is in the picture."""
    tilt = _HORIZON + np.deg2rad(generator.uniform(-14, 16)) if limb else generator.uniform(0, 0.6)
    around = generator.uniform(0, 2 * np.pi)
    return np.array([np.sin(tilt) * np.cos(around), np.sin(tilt) * np.sin(around), np.cos(tilt)])


def add_stars(generator: np.random.Generator, image: F32) -> None:
    """Stars, few of them bright, added to the pixels (N, 3) in place."""
    count = int(generator.integers(80, 700))
    where = generator.integers(0, len(image), count)
    bright = (0.08 + 0.10 * generator.pareto(1.8, count)).clip(0, 1)
    tint = 1 + np.outer(generator.normal(0, 0.12, count), [1, 0, -1])
    image[where] += (bright[:, None] * tint).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _weather() -> tuple[F32, ...]:
    """Clouds, land and fine structure, (512, 512) each in [0, 1], the same in every process."""
    generator = np.random.default_rng(20_240_815)
    return tuple(fractal(generator, _BANK, roughness) for roughness in (0.62, 0.5, 0.75))


def _looked_up(field: F32, at_km: F32, tile_km: float, shift: Array) -> F32:
    """(N,) values of a tile, mirrored for ever, at (N, 2) places on the ground."""
    at = at_km * np.float32(_BANK / tile_km) + shift.astype(np.float32)
    rows = np.zeros((-(-len(at) // _BANK) * _BANK, 2), np.float32)  # remap takes no long rows
    rows[: len(at)] = at
    x, y = rows.reshape(-1, _BANK, 2).transpose(2, 0, 1)
    values = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return values.reshape(-1)[: len(at)]


def earth(generator: np.random.Generator, rays: F32, sun: F32, down: F32) -> F32:
    """(N, 3) linear light along rays (N, 3): the sunlit Earth with sea, land, clouds and haze, and the air that shines
    above its limb."""
    light = np.zeros((len(rays), 3), np.float32)
    height = np.float32(_EARTH_KM + _ALTITUDE_KM)
    cosine = rays @ down
    nearest = height * np.sqrt(np.maximum(1 - cosine * cosine, 0))  # of the ray to the Earth's centre, km
    hit = (cosine > 0) & (nearest < _EARTH_KM)
    seen = np.flatnonzero(hit)
    depth = height * cosine[seen] - np.sqrt(np.float32(_EARTH_KM**2) - nearest[seen] ** 2)
    normal = (rays[seen] * depth[:, None] - height * down) / np.float32(_EARTH_KM)
    side = turned_to(down.astype(float)).astype(np.float32)[:, :2]  # two axes along the ground
    at_km = normal @ side * np.float32(_EARTH_KM)
    fields, shifts = _weather(), generator.uniform(0, 4 * _BANK, (4, 2))
    cover = 0.65 * _looked_up(fields[0], at_km, 1900, shifts[0])
    cover += 0.35 * _looked_up(fields[2], at_km, 480, shifts[1])
    cloud = np.clip((cover - generator.uniform(0.40, 0.62)) * 4.5, 0, 1)[:, None]
    land = _looked_up(fields[1], at_km, 2600, shifts[2])
    soil = _looked_up(fields[2], at_km, 700, shifts[3])[:, None]
    ground = _GREEN + (_SAND - _GREEN) * soil
    coast = np.clip((land - generator.uniform(0.35, 0.8)) * 30, 0, 1)[:, None]
    color = _SEA * (1 - coast) + ground * coast
    color = color * (1 - cloud) + _CLOUD * cloud
    upright = np.maximum(-np.einsum("ni,ni->n", normal, rays[seen]), 0)[:, None]
    haze = np.float32(0.08) + np.float32(0.75) * (1 - upright) ** 4
    color = color * (1 - haze) + _HAZE * haze
    day = np.clip(normal @ sun + 0.08, 0, 1)[:, None]
    light[seen] = color * day * np.float32(1.1)
    air = np.flatnonzero(~hit & (cosine > 0) & (nearest < _EARTH_KM + 250))
    high = (nearest[air] - np.float32(_EARTH_KM))[:, None]
    lit = (rays[air] * (height * cosine[air])[:, None] - height * down) / nearest[air][:, None]
    day = np.clip(lit @ sun + 0.12, 0, 1)[:, None]
    glow = _AIR * np.exp(-high / _AIR_KM)
    light[air] += day * glow.astype(np.float32)
    return light
