"""Light on surfaces: from the fragments of a rendering to a picture, with everything that can vary made
random.

The reflection model is Lambert plus Blinn-Phong (Blinn, "Models of light reflection for computer synthesized
pictures", SIGGRAPH 1977) under a hemisphere of sky and ground, a few directional lights and a soft mirror
image of bright areas around. Domain randomisation after Tobin et al., "Domain randomization for transferring
deep neural networks from simulation to the real world", IROS 2017: the real world should look like one more
draw. Light adds up in linear units; gamma is taken as 2, so that encoding is a square root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose.cad.render import Array, rasterize
from geopose.geometry.camera import Camera

F32 = NDArray[Any]  # float32
_THIRD = np.full(3, 1 / 3, np.float32)


@dataclass(frozen=True)
class Material:
    """How a surface answers light.

    diffuse, specular: strengths; shininess: Blinn-Phong exponent; mirror: strength of the reflected
    surroundings; metal: 0 (plastic: white highlights) to 1 (highlights take the surface's colour).
    """

    diffuse: float
    specular: float
    shininess: float
    mirror: float
    metal: float


@dataclass(frozen=True)
class Lighting:
    """Directional lights (L) towards `directions` (L, 3) with linear `colors` (L, 3), and `sky` and `ground`
    (3,) about `up` (3,).

    glow: (G, 4) bright areas of the surroundings: unit direction and sharpness; glow_colors: (G, 3).
    Everything is given in the camera frame.
    """

    directions: F32
    colors: F32
    up: F32
    sky: F32
    ground: F32
    glow: F32
    glow_colors: F32


def _unit(v: Array) -> F32:
    return (v / np.maximum(np.sqrt(np.einsum("...i,...i->...", v, v))[..., None], 1e-9)).astype(np.float32)


def _power(base: F32, exponent: float) -> F32:
    """base ** exponent, base > 0, twice as fast as numpy's: there are vector instructions for these two."""
    return np.exp(np.float32(exponent) * np.log(base))


def _tint(generator: np.random.Generator, amount: float, shape: tuple[int, ...] = ()) -> F32:
    """Random colours about white with mean one, mostly along the warm-cold axis of real lamps and
    daylight."""
    warm = generator.normal(0, amount, (*shape, 1)) * np.array([1.0, 0.1, -1.1])
    tint = np.exp(warm + generator.normal(0, 0.25 * amount, (*shape, 3)))
    return (tint / tint.mean(-1, keepdims=True)).astype(np.float32)


def random_material(generator: np.random.Generator) -> Material:
    """A Material: matt, plastic, glossy or metallic."""
    kind = generator.random()
    if kind < 0.35:  # matt
        return Material(float(generator.uniform(0.8, 1.0)), float(generator.uniform(0, 0.05)), 8.0, 0.0, 0.0)
    if kind < 0.85:  # plastic, paint, glaze
        shininess = float(np.exp(generator.uniform(np.log(8), np.log(200))))
        return Material(
            float(generator.uniform(0.7, 1.0)),
            float(generator.uniform(0.05, 0.7)),
            shininess,
            float(generator.uniform(0, 0.25)),
            0.0,
        )
    shininess = float(np.exp(generator.uniform(np.log(10), np.log(80))))
    return Material(
        float(generator.uniform(0.4, 0.8)),
        float(generator.uniform(0.3, 0.9)),
        shininess,
        float(generator.uniform(0.1, 0.5)),
        float(generator.uniform(0.3, 1)),
    )


def random_lighting(generator: np.random.Generator, up_cam: Array | None = None) -> Lighting:
    """A Lighting whose brightest surface is near one; the up direction is the scene's where it is known."""
    up = np.array([0.0, -1.0, 0.0]) if up_cam is None else np.asarray(up_cam, float)
    up = _unit(up + generator.normal(0, 0.25, 3))
    count = int(generator.integers(1, 5))
    directions = _unit(generator.normal(0, 1, (count, 3)) + 0.9 * up + np.array([0, 0, -0.5]))
    colors = _tint(generator, 0.12, (count,)) * generator.uniform(0.1, 1.0, (count, 1)).astype(np.float32)
    ambient = generator.uniform(0.15, 0.8)
    colors *= (
        (1.1 - ambient) * generator.uniform(0.8, 1.4) / max(float(colors.mean(1).sum()), 1e-3) * min(count, 2)
    )
    sky = _tint(generator, 0.08) * np.float32(ambient)
    ground = sky * np.float32(generator.uniform(0.2, 0.9)) * _tint(generator, 0.1)
    glows = int(generator.integers(1, 5))
    glow = np.concatenate(
        [_unit(generator.normal(0, 1, (glows, 3)) + 0.5 * up), generator.uniform(3, 40, (glows, 1))], axis=1
    )
    glow_colors = _tint(generator, 0.12, (glows,)) * generator.uniform(0.3, 2.0, (glows, 1))
    return Lighting(
        directions, colors, up, sky, ground, glow.astype(np.float32), glow_colors.astype(np.float32)
    )


def shade(
    color: F32, normals: F32, rays: F32, lighting: Lighting, material: Material, shadow: F32 | None = None
) -> F32:
    """(N, 3) linear light that leaves N surface points towards the camera.

    Args:
        color: (N, 3) surface colour, sRGB-like in [0, 1].
        normals: (N, 3) unit, towards the camera, camera frame.
        rays: (N, 3) from the camera to the surface, any length.
        shadow: (N,) how much of the first light arrives; None: all of it.
    """
    albedo = color * color
    view = rays / -np.sqrt(np.einsum("ni,ni->n", rays, rays))[:, None]
    slope = normals @ lighting.directions.T
    cosine = np.maximum(slope, 0)
    if shadow is not None:
        cosine[:, 0] *= shadow
    hemisphere = 0.5 + 0.5 * (normals @ lighting.up)[:, None]
    light = cosine @ lighting.colors + lighting.ground + (lighting.sky - lighting.ground) * hemisphere
    out = np.float32(material.diffuse) * albedo * light
    if material.specular < 0.02 and material.mirror < 0.02:
        return out
    tint = albedo * np.float32(material.metal) + np.float32(1 - material.metal)
    facing = np.einsum("ni,ni->n", view, normals)[:, None]
    half = np.sqrt(np.maximum(2 + 2 * view @ lighting.directions.T, 1e-9))  # of direction plus view
    lobe = _power(np.clip((slope + facing) / half, 1e-4, 1), material.shininess)  # a cosine, but for rounding
    lobe *= cosine > 0
    highlight = np.float32(material.specular) * (lobe @ lighting.colors)
    if material.mirror >= 0.02:
        targets = np.concatenate([lighting.glow[:, :3], lighting.up[None]]).T
        mirrored = 2 * facing * (normals @ targets) - view @ targets  # cosines of the mirrored view with each
        near = np.exp(lighting.glow[:, 3] * (mirrored[:, :-1] - 1))
        fresnel = 0.3 + 0.7 * (1 - np.clip(facing, 0, 1)) ** 3
        around = near @ lighting.glow_colors + lighting.sky * (0.5 + 0.5 * mirrored[:, -1:])
        highlight += np.float32(material.mirror) * fresnel * around
    return (out + tint * highlight).astype(np.float32)


def vary_color(generator: np.random.Generator, color: F32, xyz: F32) -> F32:
    """Colours (N, 3) as another copy of the object could have them: brightness, contrast, hue, saturation,
    stains.

    xyz: (N, 3) object coordinates in units of the object's size, for stains that stick to the surface.
    """
    grey = (color @ _THIRD)[:, None]  # numpy's mean over so short an axis takes twenty times as long
    out = grey + (color - grey) * np.float32(generator.uniform(0.5, 1.4))
    out = out @ (np.eye(3) + generator.normal(0, 0.05, (3, 3))).T.astype(np.float32)
    out = _power(np.maximum(out, 1e-3), np.exp(generator.normal(0, 0.25)))
    out = (
        out
        * np.float32(np.exp(generator.normal(0, 0.2)))
        * (1 + generator.normal(0, 0.05, 3)).astype(np.float32)
    )
    if generator.random() < 0.5:
        waves = generator.normal(0, 1, (3, 4)) * generator.uniform(2, 25)
        pattern = np.sin(
            xyz @ waves.astype(np.float32) + generator.uniform(0, 2 * np.pi, 4).astype(np.float32)
        ).prod(1)
        strength = generator.normal(0, 0.15, (1, 3)).astype(np.float32)
        out = out * (1 + strength * pattern[:, None])
    return np.clip(out, 0, 1).astype(np.float32)


def cast_shadow(
    points_cam: F32, direction: F32, vertices_cam: Array, faces: NDArray[np.integer], resolution: int = 96
) -> F32:
    """(N,) in [0, 1]: how much of a directional light reaches each point, through a shadow map.

    Williams, "Casting curved shadows on curved surfaces", SIGGRAPH 1978. The map is seen from far away along
    `direction` (3,), so that it is nearly orthographic; it is softened by a bilinear look-up.
    """
    centre = 0.5 * (vertices_cam.min(0) + vertices_cam.max(0))
    radius = float(np.linalg.norm(vertices_cam - centre, axis=1).max())
    side = np.array([1.0, 0, 0]) if abs(direction[0]) < 0.8 else np.array([0, 1.0, 0])
    x = _unit(np.cross(direction, side))
    R = np.stack([x, np.cross(-direction, x), -direction]).astype(np.float32)
    distance = 20 * radius
    t = np.array([0, 0, distance], np.float32) - R @ centre
    focal = 0.48 * resolution * distance / radius
    middle = 0.5 * (resolution - 1)
    camera = Camera(focal, focal, middle, middle, (resolution, resolution))
    fragments = rasterize(vertices_cam @ R.T + t, faces, camera, near=radius)
    depth = np.full(resolution * resolution, 1e6 * radius, np.float32)
    depth[fragments.pixel] = fragments.depth
    seen = points_cam @ R.T + t
    u = (focal * seen[:, 0] / seen[:, 2] + middle).astype(np.float32)
    v = (focal * seen[:, 1] / seen[:, 2] + middle).astype(np.float32)
    nearest = depth.reshape(resolution, resolution)[
        np.clip(np.rint(v), 0, resolution - 1).astype(np.intp),
        np.clip(np.rint(u), 0, resolution - 1).astype(np.intp),
    ]
    return np.clip(1 - (seen[:, 2] - nearest - 0.04 * radius) / (0.03 * radius), 0, 1).astype(np.float32)


def ground_shadow(generator: np.random.Generator, mask: F32) -> F32:
    """(H, W) factor on the background: the soft dark patch that a thing leaves on what it stands on or hangs
    before."""
    height, width = mask.shape
    small = cv2.resize(mask, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
    shift = generator.normal(0, 0.06, 2) * (small.shape[1], small.shape[0]) + (0, 0.04 * small.shape[0])
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    moved = cv2.warpAffine(small, matrix, (small.shape[1], small.shape[0]))
    soft = cv2.GaussianBlur(moved, (0, 0), float(generator.uniform(0.6, 4.0)))
    soft = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return 1 - np.float32(generator.uniform(0.1, 0.75)) * soft


def encode(light: F32) -> F32:
    """Linear light to picture values in [0, 1] (gamma 2, clipped as a sensor clips)."""
    return np.sqrt(np.clip(light, 0, 1))
