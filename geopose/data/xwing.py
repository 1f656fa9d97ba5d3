"""The pictures of the X-wing tracking task: its files, read, and a small rendered set written in the same layout.

A folder with pictures `N.jpg`, beside each `N_mat.json`, the 4x4 model matrix of the ship, and `camera_info.json` with
`model_view_matrix` (the view alone: the inverse of the camera's place) and `projection_matrix`. All are OpenGL's, for
column vectors: a point is seen at projection @ view @ model @ point. The projection measures both axes in half widths
of the picture, f = 1.94444 on both (a lens of 35 mm before a sensor of 36 mm), so that fx = fy = 1.94444 W/2; the K
that circulates with the task (497.78, 746.67 for 512 pixels) has fy wrong by a factor of 1.5. The keypoints are the
corners of the ship's box.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path
from geopose.cad.model import load_cad
from geopose.data.annotated import AnnotatedSet, read_rgb, whole_picture
from geopose.data.picture import PictureMaker, SyntheticOptions
from geopose.data.sample import ViewSpace, sample_pose
from geopose.data.space import add_stars
from geopose.geometry.camera import Camera
from geopose.geometry.frames import camera_from_opengl, camera_to_opengl, pose_from_opengl, pose_to_opengl
from geopose.geometry.pose import Pose

Array = NDArray[np.float64]

CAMERA_FILE = "camera_info.json"
FOCAL_HALF_WIDTHS = 35 / 18
BOX_POINTS = np.array([(x, y, z) for z in (-0.032, 0.034) for y in (-0.182, 0.163) for x in (-0.156, 0.156)])
"""(8, 3) corners of the ship's box in the task's own frame and unit: x across the wings, the nose towards -y, z up."""

_MIDDLE = 0.5 * (BOX_POINTS[0] + BOX_POINTS[-1])
_SHIP_LENGTH = 12.5  # metres, of the built-in X-wing
_VIEW = np.array(
    [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5], [0, 0, 0, 1]]
)  # the camera of a rendered set
_SHOWN = 5  # broken files that a message names


def read_xwing(root: str | Path, camera_file: str | Path | None = None) -> AnnotatedSet:
    """The pictures of a folder as an `AnnotatedSet` with the eight `BOX_POINTS`, in the task's unit; what is looked at
    is the whole picture.

    Args:
        camera_file: `root`/camera_info.json by default.
    Raises:
        FileNotFoundError: when the folder has no camera or no pictures.
        ValueError: naming the files that are broken: no matrix, one that is no rigid motion, a picture without one.
    """
    root = Path(root)
    names = sorted((p.name for p in root.glob("*.jpg") if p.stem.isdecimal()), key=lambda n: int(n[:-4]))
    if not names:
        raise FileNotFoundError(f"{root}: no pictures 0.jpg, 1.jpg, ...")
    path = Path(camera_file) if camera_file is not None else root / CAMERA_FILE
    info = _json(path)
    view, projection = (_matrix(info, key, path) for key in ("model_view_matrix", "projection_matrix"))
    height, width = read_rgb(root / names[0]).shape[:2]
    try:
        camera = camera_from_opengl(projection, (width, height), half_widths=True)
    except ValueError as error:
        raise ValueError(f"{path}: projection_matrix: {error}") from None
    models, broken = [], []
    for name in names:
        file = root / f"{name[:-4]}_mat.json"
        try:
            models.append(_rigid(_matrix({"matrix": _json(file)}, "matrix", file), file))
        except (ValueError, FileNotFoundError) as error:
            broken.append(str(error))
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError("; ".join(broken[:_SHOWN]) + more)
    pose = pose_from_opengl(_rigid(view, path) @ np.stack(models))
    boxes = np.tile(whole_picture((width, height)), (len(names), 1))
    keypoints = np.asarray(camera.project(pose.apply(BOX_POINTS)))

    def read(name: str) -> NDArray[np.uint8]:
        picture = read_rgb(root / name)
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"{root / name}: expected {width} x {height} pixels as in {names[0]}, got {picture.shape[1::-1]}"
            )
        return picture

    return AnnotatedSet(tuple(names), BOX_POINTS, keypoints, boxes, camera, read, pose)


def box_points_of_ship() -> Array:
    """(8, 3) `BOX_POINTS` around the built-in X-wing in its own frame, metres: poses found from them are that ship's.

    Its wings are as wide as the task's ship, but half as high again, for they stand open: they stick out of the box.
    """
    return (BOX_POINTS - _MIDDLE) @ np.linalg.inv(_task_from_ship()).T + load_cad("xwing").bounds.mean(0)


def _task_from_ship() -> Array:
    """(3, 3) from the built-in ship's axes (x ahead, y left, z up, metres) to the task's."""
    scale = (BOX_POINTS[-1, 1] - BOX_POINTS[0, 1]) / _SHIP_LENGTH
    return scale * np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def write_xwing(
    root: str | Path, count: int = 400, seed: int = 0, side: int = 256, view: ViewSpace | None = None
) -> Path:
    """The folder `root` with `count` rendered pictures of the built-in X-wing in the task's layout, half of them before
    stars.

    The same arguments write the same pictures; older files of the same names are replaced.

    Args:
        side: pixels of the square pictures.
        view: from where the ship is seen; from above and behind, banked by up to 40 degrees, by default. `up` is the
            axis of the built-in ship; azimuth 180 is behind it.
    Raises:
        ValueError: on a count below one.
    """
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1")
    root = Path(root)
    view = view or ViewSpace((0.0, 60.0), (110.0, 250.0), (-40.0, 40.0), distance=(1.4, 3.0))
    ship = load_cad("xwing")
    maker = PictureMaker(ship, SyntheticOptions(clutter=0.0, occluders=0.0))
    f = FOCAL_HALF_WIDTHS * side / 2
    camera = Camera(f, f, (side - 1) / 2, (side - 1) / 2, (side, side))
    task_from_ship = _task_from_ship()
    scale = np.cbrt(np.linalg.det(task_from_ship))
    points, middle = box_points_of_ship(), ship.bounds.mean(0, keepdims=True)
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        while True:
            ray = np.array([*np.tan(generator.normal(0, np.deg2rad(9), 2)), 1.0])
            pose = sample_pose(generator, view, maker.centre, maker.diameter, ray)
            seen = np.asarray(camera.project(pose.apply(points)))
            if ((seen > 0) & (seen < side - 1)).all():
                break
        image = _picture(generator, maker, camera, pose)
        # The same picture in the task's frame: everything nearer and smaller by `scale`.
        R = pose.R @ (task_from_ship / scale).T
        t = scale * pose.apply(middle)[0] - R @ _MIDDLE
        model = np.linalg.inv(_VIEW) @ pose_to_opengl(Pose(R, t))
        _write_json(root / f"{number}_mat.json", model.tolist())
        with atomic_path(root / f"{number}.jpg") as temporary:
            cv2.imwrite(str(temporary), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    projection = np.asarray(camera_to_opengl(camera, 0.1, 100.0))
    _write_json(
        root / CAMERA_FILE, {"model_view_matrix": _VIEW.tolist(), "projection_matrix": projection.tolist()}
    )
    return root


def _picture(
    generator: np.random.Generator, maker: PictureMaker, camera: Camera, pose: Pose
) -> NDArray[np.uint8]:
    """(H, W, 3) the ship before anything, or as often before stars."""
    picture = maker.make(generator, camera, pose, pose)
    if generator.random() < 0.5:
        return picture.image
    sky = np.zeros_like(picture.image, np.float32)
    add_stars(generator, sky.reshape(-1, 3))
    stars = np.clip(255 * sky + 0.5, 0, 255).astype(np.uint8)
    return np.where(picture.visible[..., None] > 0, picture.image, stars)


def _write_json(path: Path, value: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def _matrix(info: Any, key: str, path: Path) -> Array:
    """The 4x4 matrix under a key, with finite entries."""
    try:
        matrix = np.array(info[key] if isinstance(info, Mapping) else None, float)
    except (KeyError, TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"{path}: expected a 4x4 matrix of numbers{'' if key == 'matrix' else f' {key!r}'}")
    return matrix


def _rigid(matrix: Array, path: Path) -> Array:
    """The matrix if it is a rigid motion of column vectors."""
    R = matrix[:3, :3]
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise ValueError(f"{path}: expected the last row (0, 0, 0, 1); is the matrix transposed?")
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
        raise ValueError(f"{path}: expected a rotation and a shift, without scale")
    return matrix
