"""Two made-up objects, and pictures of them by a renderer that is not ours: Mitsuba 3.

    pip install mitsuba manifold3d        # for this script alone
    python benchmarks/independent.py parts --out parts         # bracket.stl (millimetres) and house.glb (metres)
    geopose train parts/bracket.stl --unit mm --minutes 20 --elevation -5 90 --roll -45 45 --out bracket.geopose
    python benchmarks/independent.py pictures parts/bracket.stl --unit mm --out bracket_pictures
    geopose evaluate bracket_pictures --model bracket.geopose --report bracket.html

The bracket is an untextured part as a CAD program would hand it on, the house a painted toy. They stand on a table
among simple things, under a surrounding light and a lamp that casts shadows, seen from 10 to 75 degrees above, rolled
by up to 25 degrees. `pictures` writes a data set in the BOP format and checks that both renderers mean the same by a
pose: it compares silhouettes and depths of the first pictures, and check.png shows our outlines on Mitsuba's pictures.
It takes any mesh with at most one texture. Without a texture, every picture gets another metal, paint or plastic.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from geopose._io import atomic_path
from geopose.bench.common import write_json
from geopose.cad.model import UNITS, CadModel, load_cad
from geopose.cad.render import render
from geopose.cad.symmetry import find_symmetries
from geopose.data.bop_write import BopWriter
from geopose.data.sample import ViewSpace, box_centre_size, projected_box, sample_pose, square
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose
from geopose.visualize import draw_pose, save_image, sheet

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Picture32 = NDArray[np.float32]
CAMERA = Camera(600.0, 600.0, 319.5, 239.5, (640, 480))
VIEW = ViewSpace((10.0, 75.0), roll_deg=(-25.0, 25.0), distance=(2.3, 8.5))  # 70 to 260 pixels large
MITSUBA_FROM_CV = np.diag([-1.0, -1.0, 1.0, 1.0])  # camera axes: Mitsuba's x is left, its y is up
VISIBLE = 0.3  # least share of the silhouette that a picture shows
MASK_SAMPLES = 16
CHECKED = 8
TURN = 48  # facets of a full turn of the bracket
ATLAS, CELLS = 1024, 4  # pixels and cells along a side of the house's texture


def tool(name: str) -> Any:
    """The module of that name, which only this script needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} is missing: pip install mitsuba manifold3d") from error


def bracket() -> trimesh.Trimesh:
    """A bearing bracket, millimetres: plate with bolt holes and a slot, web with boss and bore, ribs, a nipple."""
    solids = tool("manifold3d")
    CrossSection, Manifold = solids.CrossSection, solids.Manifold

    def rod(height: float, radius: float, at: Sequence[float], along_x: bool = False) -> Any:
        upright = Manifold.cylinder(height, radius, radius, TURN)
        return (upright.rotate((0, 90, 0)) if along_x else upright).translate(at)

    def rib(run: float, rise: float, thick: float, at: Sequence[float], turn: float) -> Any:
        flat = CrossSection([[(0, 0), (run, 0), (0, rise)]]).extrude(thick)
        return flat.rotate((90, 0, 0)).rotate((0, 0, turn)).translate(at)

    outline = CrossSection.square((84, 48), True).offset(6, solids.JoinType.Round, circular_segments=TURN)
    plate = outline.extrude(10)
    for x, y in ((-38, -21), (-38, 21), (38, -21)):
        plate -= rod(20, 3.5, (x, y, -5)) + rod(10, 6.5, (x, y, 6))
    plate -= Manifold.batch_hull([rod(20, 4, (37, 8, -5)), rod(20, 4, (37, 22, -5))])
    foot = Manifold.cube((14, 56, 6)).translate((-20, -28, 8))
    web = Manifold.batch_hull([foot, rod(14, 19, (-20, 4, 50), True)])
    body = plate + web + rod(34, 15, (-24, 4, 50), True) + rod(8, 17, (6, 4, 50), True)
    body += rib(36, 34, 7, (-7, -8, 9), 0) + rib(17, 22, 7, (-19, 14, 9), 180)
    body += Manifold.cylinder(9, 4.5, 3, TURN).rotate((-25, 0, 0)).translate((-13, 10, 66))
    body -= rod(80, 9.5, (-50, 4, 50), True) + rod(6, 12, (9, 4, 50), True)
    body -= rod(80, 2, (-13, 11, 52))
    mesh = body.to_mesh()
    return trimesh.Trimesh(np.array(mesh.vert_properties)[:, :3], np.array(mesh.tri_verts), process=False)


def house() -> trimesh.Trimesh:
    """A painted toy house, metres: body, roof and chimney as blocks of six panels, one texture for all."""
    w, d, eaves = 0.055, 0.04, (-0.063, 0.063, -0.048, 0.048)
    stack = (0.02, 0.036, 0.0, 0.018)
    blocks = (  # (x0, x1, y0, y1) below and above, heights, number of the first panel, squares along a panel
        ((-w, w, -d, d), (-w, w, -d, d), (0.0, 0.06), 0, (11, 9)),
        (eaves, (-0.035, 0.03, -0.008, 0.012), (0.06, 0.1), 5, (9, 7)),
        (stack, stack, (0.07, 0.12), 10, (4, 5)),
    )
    vertices, faces, uv = np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 2))
    for low, high, heights, first, squares in blocks:
        for number, corners in enumerate(_panels(low, high, heights)):
            place = first + min(number, 4)  # top and bottom share their paint
            across, along = squares if number < 4 else squares[:1] * 2
            u, v = np.meshgrid(np.linspace(0, 1, across + 1), np.linspace(0, 1, along + 1))
            weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], -1).reshape(-1, 4)
            corner = np.arange(v.size).reshape(v.shape)
            a, b, c, e = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
            pairs = np.stack([a, b, c, a, c, e], -1).reshape(-1, 3)  # two triangles of each square
            faces = np.vstack([faces, pairs + len(vertices)])
            vertices = np.vstack([vertices, weights @ corners])
            cell = [place % CELLS, CELLS - 1 - place // CELLS]
            uv = np.vstack([uv, (np.add(cell, 0.02) + 0.96 * np.stack([u, v], -1).reshape(-1, 2)) / CELLS])
    image = Image.fromarray(_paint())
    paint = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0)
    visual = trimesh.visual.TextureVisuals(uv, material=paint)
    return trimesh.Trimesh(vertices, faces, visual=visual, process=False)


def _panels(low: Sequence[float], high: Sequence[float], heights: Sequence[float]) -> list[Array]:
    """The six sides of a block, (4, 3) each, anticlockwise from the bottom left seen from outside; the bottom last."""
    (x0, x1, y0, y1), (a0, a1, b0, b1), (z, h) = low, high, heights
    below = np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])
    above = np.array([(a0, b0, h), (a1, b0, h), (a1, b1, h), (a0, b1, h)])
    sides = [np.stack([below[i], below[i - 3], above[i - 3], above[i]]) for i in range(4)]
    return [*sides, above, below[::-1]]


def _paint() -> Picture:
    """(ATLAS, ATLAS, 3) RGB: the panels of the house, `CELLS` by `CELLS`, the first row on top."""
    side = ATLAS // CELLS
    rng = np.random.default_rng(3)
    atlas = np.zeros((ATLAS, ATLAS, 3), np.uint8)
    colors = [(226, 190, 120), (214, 120, 96), (232, 214, 178), (120, 160, 190), (150, 140, 130)]
    colors += [(150, 52, 44), (60, 84, 120), (170, 70, 40), (48, 110, 84), (90, 60, 50)]
    colors += [(176, 84, 60)] * 4 + [(40, 36, 36), (0, 0, 0)]
    for place, color in enumerate(colors):
        cell = np.full((side, side, 3), color, np.uint8)
        dark = tuple(int(0.72 * c) for c in color)
        if place < 4:  # walls: boards, windows, doors, a number
            for y in range(0, side, 16):
                cv2.line(cell, (0, y), (side, y), dark, 2)
            for x in [(30, 110, 190), (60, 160), (40,), (20, 90, 180)][place]:
                cv2.rectangle(cell, (x, 60), (x + 44, 125), (250, 246, 236), -1)
                cv2.rectangle(cell, (x + 6, 66), (x + 38, 119), (44, 66, 96), -1)
            if place in (0, 2):
                cv2.rectangle(cell, (110, 140), (165, side), (70, 40, 28) if place else (30, 90, 60), -1)
            if place == 1:
                cv2.putText(cell, "17", (88, 215), cv2.FONT_HERSHEY_SIMPLEX, 2.2, (250, 250, 250), 9)
        elif 5 <= place < 9:  # roof: tiles
            for y in range(0, side, 26):
                for x in range(-13 * (y // 26 % 2), side, 26):
                    shade = rng.uniform(0.75, 1.2) * np.array(color)
                    cv2.rectangle(cell, (x + 1, y + 1), (x + 24, y + 24), shade.tolist(), -1)
        elif place >= 10:  # chimney: bricks
            for y in range(0, side, 32):
                cv2.rectangle(cell, (64 * (y // 32 % 2) - 64, y), (side, y + 30), dark, 4)
        row, column = divmod(place, CELLS)
        atlas[row * side : (row + 1) * side, column * side : (column + 1) * side] = cell
    return atlas


class Studio:
    """Renders one mesh in made-up scenes; its frame is the world's, its lowest point is on the table."""

    def __init__(self, path: Path, unit: str | None, diameter: float, folder: Path, samples: int) -> None:
        self.mi, self.diameter, self.folder, self.samples = tool("mitsuba"), diameter, folder, samples
        self.mi.set_variant("scalar_rgb")  # the only one that needs no compiler
        mesh = trimesh.load_scene(path).to_mesh()
        mesh.apply_scale(UNITS[unit or "m"])
        self.bounds = np.asarray(mesh.bounds)
        self.centre = self.bounds.mean(0)
        image = getattr(getattr(mesh.visual, "material", None), "baseColorTexture", None)
        self.texture = None if image is None else np.array(image.convert("RGB"))
        uv = None if image is None else np.asarray(mesh.visual.uv) * [1, -1] + [0, 1]
        self.object = self.shape("object", mesh.vertices, mesh.faces, uv)

    def shape(self, name: str, vertices: Any, faces: Any, uv: Any = None) -> dict[str, Any]:
        """A Mitsuba shape with flat faces, through a PLY file; uv with its origin at the top left."""
        mesh = self.mi.Mesh(name, len(vertices), len(faces), has_vertex_texcoords=uv is not None)
        values, file = self.mi.traverse(mesh), str(self.folder / f"{name}.ply")
        values["vertex_positions"] = np.asarray(vertices, np.float32).ravel()
        values["faces"] = np.asarray(faces, np.uint32).ravel()
        if uv is not None:
            values["vertex_texcoords"] = np.asarray(uv, np.float32).ravel()
        values.update()
        mesh.write_ply(file)
        return {"type": "ply", "filename": file, "face_normals": True}

    def render(self, pose: Pose, parts: dict[str, Any], integrator: dict[str, Any], film: dict[str, Any],
               samples: int = MASK_SAMPLES, seed: int = 0) -> Picture32:  # fmt: skip
        """(H, W, C) what Mitsuba's camera sees from `pose`, cam_from_obj."""
        mi, (width, height) = self.mi, CAMERA.size_wh
        world_from_mitsuba = pose.inverse().matrix @ MITSUBA_FROM_CV  # its own inverse
        sensor = {
            "type": "perspective", "fov_axis": "x", "fov": float(np.rad2deg(2 * np.arctan(width / 2 / CAMERA.fx))),
            "near_clip": 0.01 * self.diameter, "far_clip": 100 * self.diameter,
            "to_world": mi.ScalarTransform4f(world_from_mitsuba.tolist()), "sampler": {"type": "independent"},
            "film": {"type": "hdrfilm", "width": width, "height": height, **film},
        }  # fmt: skip
        scene = mi.load_dict({"type": "scene", "sensor": sensor, "integrator": integrator, **parts})
        return np.array(mi.render(scene, spp=samples, seed=seed))

    def coverage(self, pose: Pose, others: dict[str, Any]) -> Picture32:
        """(H, W) the share of each pixel that shows the object: it alone shines."""
        black = {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.0}}
        light = {"type": "area", "radiance": {"type": "rgb", "value": 1.0}}
        parts = {name: {**part, "bsdf": black} for name, part in others.items()}
        parts["object"] = {**self.object, "bsdf": black, "emitter": light}
        film = {"pixel_format": "luminance", "rfilter": {"type": "box"}}
        return self.render(pose, parts, {"type": "path", "max_depth": 1}, film)[..., 0]

    def depth(self, pose: Pose) -> Picture32:
        """(H, W) metres along the camera's z axis of the object alone, mixed with zeros at its border."""
        places = {"type": "aov", "aovs": "p:position"}
        seen = self.render(pose, {"object": self.object}, places, {"rfilter": {"type": "box"}})
        return (seen[..., -3:] @ pose.R[2] + pose.t[2]).astype(np.float32)

    def material(self, rng: np.random.Generator, texture: Picture | None = None) -> dict[str, Any]:
        """Paint, plastic or metal of a random colour, or with a texture."""
        value = np.clip(rng.uniform(0.05, 0.8) + rng.normal(0, 0.12, 3), 0.02, 0.9).tolist()
        color, alpha = {"type": "rgb", "value": value}, float(rng.uniform(0.1, 0.45))
        if texture is not None:
            color = {"type": "bitmap", "bitmap": self.mi.Bitmap(np.ascontiguousarray(texture))}
        kinds: list[dict[str, Any]] = [
            {"type": "diffuse", "reflectance": color},
            {"type": "roughplastic", "diffuse_reflectance": color, "alpha": alpha},
            {"type": "roughconductor", "material": str(rng.choice(["Al", "Cr", "Cu", "W"])), "alpha": alpha},
        ]
        return kinds[rng.integers(3 if texture is None else 2)]

    def clutter(self, rng: np.random.Generator) -> dict[str, Any]:
        """The table, and three to seven simple things around the object, none inside its footprint; no materials."""
        size, floor = self.diameter, self.bounds[0, 2]
        reach = 0.5 * float(np.linalg.norm((self.bounds[1] - self.bounds[0])[:2]))
        half = size * rng.uniform(3, 8)
        corners = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]) * half
        corners = corners + [*self.centre[:2], floor - 1e-3 * size]
        on_it = 0.5 * (corners[:, :2] - self.centre[:2]) / half + 0.5
        parts = {"table": self.shape("table", corners, [[0, 1, 2], [0, 2, 3]], on_it)}
        for number in range(int(rng.integers(3, 8))):
            s = size * rng.uniform(0.2, 0.6, 3)
            thing = (
                trimesh.creation.box(s), trimesh.creation.cylinder(s[0] / 2, s[1], sections=40),
                trimesh.creation.icosphere(3, s[0] / 2), trimesh.creation.torus(0.35 * s[0], 0.12 * s[0]),
            )[rng.integers(4)]  # fmt: skip
            if rng.random() < 0.4:
                thing.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
            wide = float(np.linalg.norm(thing.vertices[:, :2], axis=1).max())
            angle, away = rng.uniform(0, 2 * np.pi), reach + wide + size * rng.uniform(0.02, 1.0)
            beside = self.centre[:2] + away * np.array([np.cos(angle), np.sin(angle)])
            at = np.append(beside, floor - thing.bounds[0, 2])
            parts[f"thing{number}"] = self.shape(f"thing{number}", thing.vertices + at, thing.faces)
        return parts

    def lights(self, rng: np.random.Generator) -> dict[str, Any]:
        """A surrounding with bright windows, and a lamp above."""
        mi = self.mi
        around = 0.35 * _cloud(rng, (64, 128), 5)[..., None] * _tint(rng) + rng.uniform(0.05, 0.5)
        for _ in range(int(rng.integers(1, 5))):
            y, x, h, w = rng.integers([4, 0, 4, 6], [28, 110, 14, 24])
            around[y : y + h, x : x + w] = rng.uniform(1, 6) * _tint(rng)
        turn = mi.ScalarTransform4f().rotate([0, 0, 1], rng.uniform(0, 360)).rotate([1, 0, 0], 90)  # z is up
        way = np.append(rng.normal(0, 0.7, 2), 1.0)
        away, half = self.diameter * rng.uniform(9, 14), self.diameter * rng.uniform(0.7, 2.5)
        place = self.centre + way / np.linalg.norm(way) * away
        strength = rng.uniform(0.5, 6) * (away / (2 * half)) ** 2
        aim = mi.ScalarTransform4f().look_at(place.tolist(), self.centre.tolist(), [0.0, 1.0, 0.1])
        shine = {"type": "area", "radiance": {"type": "rgb", "value": (strength * _tint(rng)).tolist()}}
        lamp = {"type": "rectangle", "to_world": aim @ mi.ScalarTransform4f().scale(half), "emitter": shine}
        sky = {"type": "envmap", "bitmap": mi.Bitmap(around.astype(np.float32)), "to_world": turn}
        return {"around": sky, "lamp": lamp}

    def picture(self, rng: np.random.Generator) -> tuple[Picture, Pose, Picture32, Picture32]:
        """A picture, cam_from_obj, and the coverage of the pixels by the object if nothing hid it and as it is."""
        while True:
            ray = np.asarray(CAMERA.unproject(rng.uniform(0.15, 0.85, (1, 2)) * CAMERA.size_wh))[0]
            pose = sample_pose(rng, VIEW, self.centre, self.diameter, ray)
            things = self.clutter(rng)
            whole, seen = self.coverage(pose, {}), self.coverage(pose, things)
            if seen.sum() >= VISIBLE * whole.sum() > 0:
                break
        parts = {name: {**part, "bsdf": self.material(rng)} for name, part in things.items()}
        parts["table"]["bsdf"] = self.material(rng, _table(rng))
        parts["object"] = {**self.object, "bsdf": self.material(rng, self.texture)}
        parts |= self.lights(rng)
        path, seed = {"type": "path", "max_depth": 5}, int(rng.integers(1 << 30))
        light = self.render(pose, parts, path, {}, self.samples, seed)
        exposed = np.clip(light * rng.uniform(0.35, 0.8) / np.quantile(light.mean(-1), 0.8), 0, 1)
        curve = np.where(exposed < 0.0031308, 12.92 * exposed, 1.055 * exposed ** (1 / 2.4) - 0.055)
        noisy = 255 * curve + rng.normal(0, rng.uniform(0.5, 3), curve.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), pose, whole, seen


def _tint(rng: np.random.Generator) -> Array:
    return 1 + rng.uniform(-0.2, 0.2) * np.array([1.0, 0.1, -1.0])


def _cloud(rng: np.random.Generator, shape: tuple[int, int], octaves: int) -> Picture32:
    """(H, W) smooth noise in [0, 1], as in clouds; stretched at random, as in wood."""
    out, stretch = np.zeros(shape, np.float32), rng.choice([1, 1, 6])
    for octave in range(octaves):
        cells = rng.random((2 + 2**octave, stretch * (2 + 2**octave))).astype(np.float32)
        out += np.float32(1.6**-octave) * cv2.resize(cells, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (out - out.min()) / (out.max() - out.min())


def _table(rng: np.random.Generator) -> Picture:
    """(512, 512, 3) RGB: two colours in a cloudy or a checked pattern."""
    first, second = np.clip(rng.uniform(30, 225, (2, 1)) + rng.normal(0, 20, (2, 3)), 5, 250)
    mix = _cloud(rng, (512, 512), 7)[..., None]
    if rng.random() < 0.3:
        y, x = np.mgrid[:512, :512] // int(rng.integers(12, 64))
        mix = 0.2 * mix + 0.8 * ((x + y) % 2)[..., None]
    return np.asarray(first + (second - first) * mix, np.uint8)


def compare(model: CadModel, pose: Pose, whole: Picture32, depth: Picture32) -> dict[str, float]:
    """How our rendering of the object alone differs from Mitsuba's.

    iou: of the silhouettes; x, y: of their centroids, ours minus Mitsuba's, pixels; depth_mm: median absolute
    difference where the pixels around are covered as well.
    """
    ours, theirs = render(model, CAMERA, pose), whole > 0.5
    inside = cv2.erode((whole > 0.99).astype(np.uint8), np.ones((3, 3))) > 0
    y, x = np.mgrid[: whole.shape[0], : whole.shape[1]]
    ours_at, theirs_at = (np.array([(x * w).sum(), (y * w).sum()]) / w.sum() for w in (ours.mask, whole))
    off, depth_off = ours_at - theirs_at, np.abs(ours.depth - depth)[inside & ours.mask]
    iou = (ours.mask & theirs).sum() / (ours.mask | theirs).sum()
    apart = {"x": float(off[0]), "y": float(off[1]), "depth_mm": 1e3 * float(np.median(depth_off))}
    return {"iou": float(iou), **apart}


def closeup(image: Picture, model: CadModel, pose: Pose, side: int = 320) -> Picture:
    """The object in the picture, enlarged; and once more under our outline at the true pose."""
    middle, size = box_centre_size(projected_box(model.vertices, pose, CAMERA))
    cut = square(middle, 1.35 * size)
    scale = side / (cut[2] - cut[0])
    move = np.array([[scale, 0, -scale * cut[0] - 0.5], [0, scale, -scale * cut[1] - 0.5]])
    part = np.asarray(cv2.warpAffine(image, move, (side, side), flags=cv2.INTER_LINEAR), np.uint8)
    return np.hstack([part, draw_pose(part, model, CAMERA.crop_resize(cut, (side, side)), pose, tint=0.0)])


def write_pictures(path: Path, unit: str | None, out: Path, count: int, samples: int, seed: int) -> None:
    """Writes the data set, check.png and pictures.json, and prints how far apart the two renderers are."""
    model = load_cad(path, unit)
    checks, shown, visible = [], [], []
    with tempfile.TemporaryDirectory() as folder, BopWriter(out, "test", scene_id=1) as writer:
        studio = Studio(path, unit, model.diameter, Path(folder), samples)
        writer.add_model(1, model, find_symmetries(model))
        for i in tqdm(range(count), unit="picture"):
            image, pose, whole, seen = studio.picture(np.random.default_rng([seed, i]))
            writer.add(image, CAMERA, [(1, pose)], masks=whole[None] > 0.5, masks_visib=seen[None] > 0.5)
            writer.flush()
            visible.append(float(seen.sum() / whole.sum()))
            if i < CHECKED:
                checks.append(compare(model, pose, whole, studio.depth(pose)))
                shown.append(closeup(image, model, pose))
                save_image(sheet(shown, 2), out / "check.png")
    means = {name: float(np.mean([c[name] for c in checks])) for name in checks[0]}
    renderer = f"mitsuba {version('mitsuba')}"
    settings = {"renderer": renderer, "object": model.name, "seed": seed, "samples": samples}
    found = {"visible": visible, "checks": checks, "check_means": means}
    write_json(out / "pictures.json", settings | found)
    print(
        f"{model.name}: {count} pictures by {renderer}, {100 * np.median(visible):.0f} % of the object in sight "
        f"(median)\nours against Mitsuba's, mean of {len(checks)}: silhouettes overlap by {100 * means['iou']:.2f} %, "
        f"centroids are {means['x']:+.3f} px to the right and {means['y']:+.3f} px down, depths differ by "
        f"{means['depth_mm']:.3f} mm"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the parts or the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("parts", help="write bracket.stl and house.glb")
    parts.add_argument("--out", required=True, type=Path)
    pictures = commands.add_parser("pictures", help="write a BOP data set of a mesh")
    pictures.add_argument("mesh", type=Path)
    pictures.add_argument("--unit", choices=UNITS, help="of the mesh; none for a GLB")
    pictures.add_argument("--count", type=int, default=50, help="of the pictures, default: %(default)s")
    pictures.add_argument("--samples", type=int, default=32, help="of a pixel, default: %(default)s")
    pictures.add_argument("--seed", type=int, default=1)
    pictures.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(arguments)
    if args.command == "pictures":
        return write_pictures(args.mesh, args.unit, args.out, args.count, args.samples, args.seed)
    for name, mesh in (("bracket.stl", bracket()), ("house.glb", house())):
        with atomic_path(args.out / name) as temporary:
            mesh.export(temporary)
        print(f"{args.out / name}: {len(mesh.faces)} faces")


if __name__ == "__main__":
    main()
