"""A place to get lost in: a walk through a built courtyard, written as Cambridge Landmarks are.

No photographs of such a set can be shipped. This one has what makes the task what it is: facades that repeat
themselves, landmarks that do not, sequences walked on different ways at different hours, tests on ways not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geopose._io import atomic_path
from geopose.cad.mesh import sample_surface
from geopose.cad.render import Fragments, facing, rasterize
from geopose.cad.shading import Lighting, Material, encode, shade
from geopose.data import textures
from geopose.data.cambridge import SPLITS, Views, write_cambridge, write_points
from geopose.data.courtyard_site import COURT, Place, build_courtyard
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Picture = NDArray[np.uint8]

FOV_DEG = 66.0  # horizontal, about that of King's College's phone camera
_NEAR = 0.15  # metres
_STEPS = 600  # of a walk, of which pictures are taken at some
_MATT = Material(1.0, 0.0, 8.0, 0.0, 0.0)
# Sequence, split, size of the round, way round (1: counter-clockwise), degrees that the gaze turns left of the way.
_WALKS = (
    (1, "train", 0.84, 1, 65), (2, "test", 0.74, 1, 45), (3, "train", 0.62, -1, -60), (4, "train", 0.80, -1, 0),
    (5, "train", 0.52, 1, 10), (6, "test", 0.68, -1, -20), (7, "train", 0.70, 1, 30), (8, "train", 0.74, -1, -35),
)  # fmt: skip
# What is walked around: x, y, radius in metres.
_OBSTACLES = (
    (0.5, 0.2, 4.2), (-10.2, 6.8, 2.6), (-13, -6.5, 1.4), (-6, -8.5, 1.2), (14.5, 7.5, 1.5), (7.5, 9, 1.1),
    (9, -4.5, 1.1), (-18.5, -11.5, 3.6), (19.2, -12.3, 2.0),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Weather:
    """The light of one sequence: direction (3,) to the sun, its linear colour (3,), the sky's (3,), the panorama
    (h, w, 3) of the upper half of the sky in [0, 1], and what the sun sees: its Camera, pose and depth map."""

    sun: Array
    sunlight: F32
    skylight: F32
    panorama: F32
    eye: Camera
    eye_from_world: Pose
    depth: F32


def random_weather(place: Place, generator: np.random.Generator) -> Weather:
    """The weather of an hour of a day."""
    azimuth, height = generator.uniform(-2.6, -0.6), np.deg2rad(generator.uniform(35, 60))
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    bright, warm = generator.uniform(0.55, 0.95), generator.uniform(0.0, 0.12)
    clouds = textures.fractal(generator, 512, 0.55, 3)
    clouds = np.clip((np.concatenate([clouds, clouds[:, ::-1]], 1) - generator.uniform(0.35, 0.6)) * 3, 0, 1)
    up = np.linspace(1, 0, 512)[:, None, None]
    blue = (1 - up) * [0.80, 0.86, 0.92] + up * [0.32, 0.52, 0.82]
    panorama = blue + clouds[..., None] * (0.95 - blue) * np.minimum(3 * up, 1)
    hills = np.arange(512)[:, None] > 470 + 14 * textures.fractal(generator, 512, 0.4, 6)[0].repeat(2)
    panorama[hills] = 0.5 * panorama[hills] + np.array([0.18, 0.22, 0.21])
    sky = np.array([0.42, 0.47, 0.55]) * generator.uniform(0.85, 1.1)
    sunlight = (bright * np.array([1.0 + warm, 1.0, 1.0 - warm])).astype(np.float32)
    eye, pose, depth = _seen_by_sun(place, sun)
    return Weather(sun, sunlight, sky.astype(np.float32), panorama.astype(np.float32), eye, pose, depth)


def _seen_by_sun(place: Place, sun: Array, resolution: int = 1024) -> tuple[Camera, Pose, F32]:
    """A camera far up along `sun`, its pose, and its depth map, as `cad.shading.cast_shadow` makes one for each
    picture; this one serves a whole sequence."""
    middle = 0.5 * (place.vertices.min(0) + place.vertices.max(0))
    radius = float(np.linalg.norm(place.vertices - middle, axis=1).max())
    pose = look_along(middle + 20 * radius * sun, -sun)
    focal, centre = 0.48 * resolution * 20, 0.5 * (resolution - 1)
    eye = Camera(focal, focal, centre, centre, (resolution, resolution))
    fragments = rasterize(pose.apply(place.vertices), place.faces, eye, radius)
    depth = np.full(resolution * resolution, np.inf, np.float32)
    depth[fragments.pixel] = fragments.depth
    return eye, pose, depth.reshape(resolution, resolution)


def _sunlit(points_world: Array, weather: Weather) -> F32:
    """(N,) share of the sun that reaches points (N, 3), from the four cells of the depth map around each.

    Reeves, Salesin, Cook, "Rendering antialiased shadows with depth maps", SIGGRAPH 1987.
    """
    seen = weather.eye_from_world.apply(points_world)
    px = np.asarray(weather.eye.project(seen))
    last = weather.depth.shape[0] - 2
    x, y = np.clip(np.floor(px), 0, last).astype(np.int64).T
    lit = np.zeros(len(seen), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - (px[:, 0] - x)) * np.abs(1 - dy - (px[:, 1] - y))
            lit += weight * (seen[:, 2] < weather.depth[y + dy, x + dx] + 0.25)
    return lit.clip(0, 1)


def look_along(eye: Array, direction: Array, roll: float = 0.0) -> Pose:
    """The pose `cam_from_world` of a camera at `eye` (3,) that looks along `direction` (3,), upright but for `roll`
    radians; not straight up or down."""
    forward = direction / np.linalg.norm(direction)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c, s = np.cos(roll), np.sin(roll)
    R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.stack([right, np.cross(forward, right), forward])
    return Pose(R, -R @ eye)


def photograph(place: Place, camera: Camera, cam_from_world: Pose, weather: Weather) -> tuple[Picture, F32]:
    """The picture (H, W, 3) that a camera takes of the place, and the depth (H, W) in metres, infinite for the sky."""
    R = cam_from_world.R
    fragments = rasterize(cam_from_world.apply(place.vertices), place.faces, camera, _NEAR)
    rays = np.asarray(camera.unproject(_pixels(camera.size_wh))).astype(np.float32)
    image = _sky(rays @ R.astype(np.float32), weather)
    normals = facing(fragments.interpolate(place.normals @ R.T, place.faces), rays[fragments.pixel])
    color = _painted(place, fragments, camera, normals, rays[fragments.pixel])
    points = cam_from_world.inverse().apply(fragments.points(camera).astype(float))
    none = np.zeros((0, 4), np.float32)
    light = Lighting(
        (R @ weather.sun).astype(np.float32)[None], weather.sunlight[None], R[:, 2].astype(np.float32),
        weather.skylight, 0.55 * weather.skylight, none, none[:, :3],
    )  # fmt: skip
    lit = shade(color, normals, rays[fragments.pixel], light, _MATT, _sunlit(points, weather))
    image[fragments.pixel] = encode(lit)
    depth = np.full(len(image), np.inf, np.float32)
    depth[fragments.pixel] = fragments.depth
    shape = camera.size_wh[::-1]
    return (255 * image.reshape(*shape, 3) + 0.5).astype(np.uint8), depth.reshape(shape)


def _pixels(size_wh: tuple[int, int]) -> Array:
    y, x = np.mgrid[: size_wh[1], : size_wh[0]]
    return np.stack([x.ravel(), y.ravel()], 1).astype(float)


def _sky(rays_world: F32, weather: Weather) -> F32:
    """(N, 3) what is seen along rays (N, 3) that meet nothing."""
    azimuth = np.arctan2(rays_world[:, 1], rays_world[:, 0]) / (2 * np.pi) + 0.5
    height = np.arctan2(rays_world[:, 2], np.hypot(rays_world[:, 0], rays_world[:, 1])) / (np.pi / 2)
    rows, columns = weather.panorama.shape[:2]
    row = ((1 - height.clip(0, 1)) * (rows - 1)).astype(np.int64)
    return weather.panorama[row, (azimuth * columns).astype(np.int64) % columns]


def _painted(place: Place, fragments: Fragments, camera: Camera, normals: F32, rays: F32) -> F32:
    """(N, 3) colours of the surface; far and slanting textures are looked up in their smaller copies."""
    uv = fragments.interpolate(place.uv, place.faces)
    slant = np.abs(np.einsum("ni,ni->n", normals, rays)) / np.sqrt(np.einsum("ni,ni->n", rays, rays))
    footprint = (
        place.density[fragments.face] * fragments.depth / np.float32(camera.fx) / np.sqrt(slant.clip(0.05, 1))
    )
    level = np.rint(np.log2(footprint.clip(1, 1e6))).astype(np.int64)
    group = 32 * place.material[fragments.face] + level
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    color = np.empty((len(uv), 3), np.float32)
    for rows in np.split(order, starts[1:]):
        material, at = divmod(int(group[rows[0]]), 32)
        copies = place.textures[material]
        color[rows] = _looked_up(copies[min(at, len(copies) - 1)], uv[rows])
    return color


def _looked_up(texture: Picture, uv: F32) -> F32:
    """Colours (N, 3) in [0, 1] as `cad.appearance.sample_texture` finds them, some ten times as fast."""
    height, width = texture.shape[:2]
    count, columns = len(uv), 1024  # OpenCV wants less than 32,768 rows and columns
    x, y = np.zeros((2, -(-count // columns) * columns), np.float32)
    x[:count] = (uv[:, 0] % 1) * width - 0.5
    y[:count] = ((1 - uv[:, 1]) % 1) * height - 0.5
    x, y = x.reshape(-1, columns), y.reshape(-1, columns)
    found = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return found.reshape(-1, 3)[:count] / np.float32(255)


def walk(generator: np.random.Generator, frames: int, size: float, way: int, gaze_deg: float) -> list[Pose]:
    """The poses `cam_from_world` of a camera carried once around the court at eye height.

    size: of the round, 1 being along the facades; way: 1 counter-clockwise, -1 clockwise; gaze_deg: how far the camera
    looks to the left of where it goes. Pace, round and gaze sway.
    """

    def sway(strength: float, waves: float = 3.0) -> Array:
        phase, rate = generator.uniform(0, 2 * np.pi, 3), generator.uniform(0.5, 1.5, 3) * waves
        return strength * np.sin(phase + once[:, None] * rate).mean(1)

    once = np.linspace(0, 2 * np.pi, _STEPS, endpoint=False)
    angle = generator.uniform(0, 2 * np.pi) + way * (once + sway(0.15))
    rim = size + sway(0.12)
    # between an ellipse and the rectangle of the court
    spot = np.stack([np.cos(angle), np.sin(angle)], 1)
    spot *= (rim * 0.92 / (np.abs(spot) ** 3).sum(1) ** (1 / 3))[:, None] * COURT
    for x, y, radius in _OBSTACLES:
        off = spot - (x, y)
        distance = np.linalg.norm(off, axis=1, keepdims=True)
        spot += off / distance * radius * np.exp(-((distance / radius) ** 2))
    step = np.gradient(spot, axis=0)
    heading = np.arctan2(step[:, 1], step[:, 0]) + np.deg2rad(gaze_deg) + sway(0.5)
    pitch, roll, height = 0.06 + sway(0.1), sway(0.05), 1.6 + sway(0.1, 8)
    ahead = np.stack([np.cos(heading), np.sin(heading), np.tan(pitch)], 1)
    eye = np.column_stack([spot, height])
    return [look_along(eye[i], ahead[i], roll[i]) for i in np.arange(frames) * _STEPS // frames]


def write_courtyard(
    root: str | Path,
    frames: tuple[int, int] = (300, 80),
    seed: int = 0,
    size_wh: tuple[int, int] = (480, 270),
) -> Path:
    """The folder `root` with a walk through the courtyard in the layout of Cambridge Landmarks.

    Eight sequences, `seq1/frame00001.png` and so on, six to train on and two (`seq2`, `seq6`) to test on, each walked
    on a way of its own at an hour of its own; `dataset_train.txt`, `dataset_test.txt`, and `reconstruction.nvm` with
    points of the place. The same arguments write the same bytes; what lies there is replaced.

    Args:
        frames: pictures to train on and to test on, in all.
        size_wh: pixels of a picture.
    """
    for name, count, least in (("training", frames[0], 6), ("test", frames[1], 2)):
        if count < least:
            raise ValueError(
                f"frames: got {count} {name} pictures, expected at least {least}, one for each sequence"
            )
    root = Path(root)
    place, camera = build_courtyard(seed), Camera.from_fov(float(np.deg2rad(FOV_DEG)), size_wh)
    points, _, _ = sample_surface(place.vertices, place.faces, 4000, np.random.default_rng([seed, 0]))
    names: list[str] = []
    splits: list[str] = []
    poses: list[Pose] = []
    px: list[Array] = []
    for sequence, split, size, way, gaze_deg in _WALKS:
        generator = np.random.default_rng([seed, sequence])
        weather = random_weather(place, generator)
        for number, pose in enumerate(
            walk(generator, _share(frames, sequence, split), size, way, gaze_deg), 1
        ):
            picture, depth = photograph(place, camera, pose, weather)
            names.append(f"seq{sequence}/frame{number:05d}.png")
            with atomic_path(root / names[-1]) as temporary:
                Image.fromarray(picture).save(temporary, compress_level=3)
            splits.append(split)
            poses.append(pose)
            px.append(_visible(points, pose, camera, depth))
    views = Views.from_poses(root, names, Pose.stack(poses))
    write_points(views, float(camera.fx), points, np.stack(px) - (camera.cx, camera.cy))
    for split in SPLITS:
        write_cambridge(views[np.array(splits) == split], split)
    return root


def _share(frames: tuple[int, int], sequence: int, split: str) -> int:
    """How many pictures of its split a sequence takes: as many as the others, to within one."""
    others = [walk[0] for walk in _WALKS if walk[1] == split]
    total, place = frames[SPLITS.index(split)], others.index(sequence)
    return (place + 1) * total // len(others) - place * total // len(others)


def _visible(points: Array, cam_from_world: Pose, camera: Camera, depth: F32) -> Array:
    """Pixels (M, 2) of the points (M, 3) that a picture of this depth shows, NaN of those that it does not."""
    local = cam_from_world.apply(points)
    px = np.asarray(camera.project(local))
    at = np.nan_to_num(np.rint(px), nan=-1).clip(-1, max(camera.size_wh)).astype(np.int64)
    inside = ((at >= 0) & (at < camera.size_wh)).all(1)
    x, y = np.where(inside[:, None], at, 0).T
    return np.where((inside & (local[:, 2] < 1.02 * depth[y, x] + 0.05))[:, None], px, np.nan)


def plan_view(seed: int = 0, pixels: int = 900) -> tuple[Picture, tuple[float, float, float, float]]:
    """The courtyard from above (pixels, pixels, 3), north at the top, and the x at its left and right edge and the y at
    its lower and upper one."""
    place, half = build_courtyard(seed), 24.0
    weather = random_weather(place, np.random.default_rng(seed))
    height = 40 * half  # so far up that walls are lines
    R = np.diag([1.0, -1.0, -1.0])
    focal, centre = 0.5 * pixels * height / half, 0.5 * (pixels - 1)
    camera = Camera(focal, focal, centre, centre, (pixels, pixels))
    picture, _ = photograph(place, camera, Pose(R, -R @ np.array([0, 0, height])), weather)
    return picture, (-half, half, -half, half)
