"""Camera files: our JSON, BOP, OpenCV and COLMAP; every error names the file and the field."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from geopose._io import atomic_path
from geopose.geometry.camera import Camera

_JSON_NUMBERS = ("fx", "fy", "cx", "cy", "width", "height")
_JSON_KNOWN = (*_JSON_NUMBERS, "distortion", "focal_rel_std", "depth_scale")
_MATRIX_KEYS = ("camera_matrix", "K", "cameraMatrix", "Camera_Matrix", "intrinsic_matrix", "M1")
_DISTORTION_KEYS = (
    "distortion_coefficients", "dist", "distCoeffs", "dist_coeffs", "Distortion_Coefficients", "D", "D1",
    "distortion_coeffs", "distortion", "dist_coeff", "distCoeff", "dist_coefs",
)  # fmt: skip
_LIKE_DISTORTION = re.compile(r"(lens_?)?dist(?!ance)\w*", re.IGNORECASE)  # a name that is not passed over
_WIDTH_KEYS = ("image_width", "image_Width", "imageWidth", "width")
_HEIGHT_KEYS = ("image_height", "image_Height", "imageHeight", "height")
_DEEPEST = 50  # levels of a YAML or XML file
# COLMAP's parameters by name; f stands for fx = fy. Its distortion terms mean what OpenCV's mean.
_COLMAP = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
}


def load_camera(path: str | os.PathLike[str], camera_id: int | None = None) -> Camera:
    """The camera in `path`; see `Camera.load`."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path: expected a camera file, got {path!r}")
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return _from_json(path)
        if suffix in (".yml", ".yaml", ".xml"):
            return _from_opencv(path)
        if suffix == ".txt":
            return _from_colmap(path, camera_id)
        raise ValueError(
            f"expected .json, .yml, .yaml, .xml or COLMAP's cameras.txt, got {suffix or 'no suffix'!r}"
        )
    except (ValueError, OverflowError, RecursionError, cv2.error) as error:
        said = f"OpenCV cannot read a value ({error.err})" if isinstance(error, cv2.error) else error
        raise ValueError(f"camera file {path}: {said}") from error


def save_camera(camera: Camera, path: str | os.PathLike[str]) -> None:
    """Write one camera as our JSON, which BOP's tools read as well."""
    camera = camera.numpy()
    if np.ndim(camera.fx) or np.ndim(camera.distortion) > 1:
        raise ValueError(
            f"camera: expected one camera to save, got a batch {camera.batch_shape}; index it first"
        )
    fields: dict[str, Any] = {name: float(getattr(camera, name)) for name in ("fx", "fy", "cx", "cy")}
    fields |= {"width": camera.size_wh[0], "height": camera.size_wh[1]}
    fields |= {"distortion": [float(v) for v in camera.distortion], "focal_rel_std": camera.focal_rel_std}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"field {name!r}: expected a number, got {value!r}")
    return float(value)


def _from_json(path: Path) -> Camera:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(
            f"expected a JSON object with {', '.join(_JSON_NUMBERS)}, got a {type(fields).__name__}"
        )
    missing = [name for name in _JSON_NUMBERS if name not in fields]
    unknown = sorted(set(fields) - set(_JSON_KNOWN))
    if missing or unknown:
        problem = f"field {missing[0]!r} is missing" if missing else f"field {unknown[0]!r} is not known"
        raise ValueError(f"{problem}; expected {', '.join(_JSON_KNOWN)}")
    fx, fy, cx, cy, width, height = (_number(name, fields[name]) for name in _JSON_NUMBERS)
    distortion = fields.get("distortion", [])
    if not isinstance(distortion, list):
        raise ValueError(f"field 'distortion': expected a list of numbers, got {distortion!r}")
    return Camera(
        fx, fy, cx, cy, (width, height),  # type: ignore[arg-type]  # checked to be whole there
        tuple(_number("distortion", v) for v in distortion),
        _number("focal_rel_std", fields.get("focal_rel_std", 0)),
    )  # fmt: skip


def _find(storage: cv2.FileStorage, names: tuple[str, ...]) -> cv2.FileNode | None:
    return next((node for node in map(storage.getNode, names) if not node.empty()), None)


def node_values(name: str, node: cv2.FileNode) -> np.ndarray:
    """Numbers of an OpenCV matrix or of a {rows, cols, data} map as ROS writes it (rows, cols), or of a list (N,).

    They are read one by one: `node.mat()` writes beyond its memory where a file says other sizes than it holds.
    """
    shape = None
    if node.isMap():
        sizes = [node.getNode(size) for size in ("rows", "cols")]
        shape = tuple(int(size.real()) for size in sizes if size.isInt())
        node = node.getNode("data")
    if not node.isSeq():
        raise ValueError(f"field {name!r}: expected a matrix or a list of numbers")
    items = [node.at(i) for i in range(node.size())]
    if any(item.isSeq() for item in items):
        values = np.concatenate([node_values(name, item) for item in items])
    elif not all(item.isReal() or item.isInt() for item in items):
        raise ValueError(f"field {name!r}: expected numbers")
    else:
        values = np.array([item.real() for item in items], np.float64)
    if shape and (len(shape) != 2 or min(shape) < 0 or np.prod(shape, dtype=float) != values.size):
        raise ValueError(f"field {name!r}: {values.size} numbers do not fill {shape} rows and columns")
    return values.reshape(shape) if shape else values


def opencv_storage(path: Path) -> cv2.FileStorage:
    """The open storage of a YAML or XML file.

    Raises ValueError where OpenCV cannot read it, and where it is nested so deeply that OpenCV's parser, which calls
    itself at each level, would run out of stack.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    depth = deepest = 0
    for mark in re.findall(r"[\[{]|[\]}]|</|/>|<\w|^[ \t]{99}|(?:- ){9}", text, re.MULTILINE):
        depth += -1 if mark in ("]", "}", "</", "/>") else _DEEPEST if len(mark) > 2 else 1
        deepest = max(deepest, depth)
    try:
        if deepest < _DEEPEST:
            storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
            if storage.isOpened():
                return storage
    except (cv2.error, SystemError):
        pass
    raise ValueError("OpenCV cannot read it as YAML or XML")


def _from_opencv(path: Path) -> Camera:
    storage = opencv_storage(path)
    try:
        model = storage.getNode("distortion_model")
        if not model.empty() and model.string() not in ("plumb_bob", "rational_polynomial", "opencv", ""):
            raise ValueError(f"field 'distortion_model': {model.string()!r} is not supported")
        if storage.getNode("fisheye_model").real():
            raise ValueError(
                "field 'fisheye_model': fisheye lenses are not supported; undistort the pictures first"
            )
        found = {}
        for names in (_MATRIX_KEYS, _WIDTH_KEYS, _HEIGHT_KEYS):
            node = _find(storage, names)
            if node is None:
                raise ValueError(f"field {names[0]!r} is missing (also looked for {', '.join(names[1:])})")
            found[names[0]] = node
        K = node_values("camera_matrix", found["camera_matrix"])
        if K.size != 9:
            raise ValueError(f"field 'camera_matrix': expected 9 numbers, got {K.size}")
        size = tuple(found[name].real() for name in ("image_width", "image_height"))
        node = _find(storage, _DISTORTION_KEYS)
        if node is None:
            for name in filter(_LIKE_DISTORTION.fullmatch, storage.root().keys()):
                if name != "distortion_model":
                    raise ValueError(
                        f"field {name!r} is not known; expected one of {', '.join(_DISTORTION_KEYS)}"
                    )
        distortion = () if node is None else tuple(node_values("distortion_coefficients", node).ravel())
    finally:
        storage.release()
    return Camera.from_matrix(K.reshape(3, 3), size, distortion)  # type: ignore[arg-type]  # whole: checked there


def _from_colmap(path: Path, camera_id: int | None) -> Camera:
    rows: dict[int, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) < 5 or not words[0].lstrip("-").isdigit():
            raise ValueError(f"line {number}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS..., got {line!r}")
        rows[int(words[0])] = words
    if camera_id is None and len(rows) != 1:
        raise ValueError(f"CAMERA_ID: holds the cameras {sorted(rows)}; pass camera_id to choose one")
    chosen = next(iter(rows)) if camera_id is None else camera_id
    if chosen not in rows:
        raise ValueError(f"CAMERA_ID: no camera {chosen}; there are {sorted(rows)}")
    model, width, height, *words = rows[chosen][1:]
    if model not in _COLMAP:
        raise ValueError(f"MODEL: {model!r} is not supported; expected one of {', '.join(_COLMAP)}")
    names = _COLMAP[model].split()
    if len(words) != len(names):
        raise ValueError(f"PARAMS: {model} expects {len(names)} ({' '.join(names)}), got {len(words)}")
    try:
        p = {name: float(word) for name, word in zip(names, words, strict=True)}
        size = (float(width), float(height))
    except ValueError:
        raise ValueError(f"PARAMS: expected numbers, got {[width, height, *words]}") from None
    order = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    count = 0 if "k1" not in p else 8 if "k6" in p else 4
    distortion = tuple(p.get(name, 0.0) for name in order[:count])
    fx, fy = p.get("fx", p.get("f", 0.0)), p.get("fy", p.get("f", 0.0))
    # COLMAP counts pixels from the corner of the image: the first centre is at 0.5.
    return Camera(fx, fy, p["cx"] - 0.5, p["cy"] - 0.5, size, distortion)  # type: ignore[arg-type]
