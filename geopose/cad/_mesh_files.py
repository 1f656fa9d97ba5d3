"""Mesh files: what trimesh reads of them, put right where it takes colours for others, and what they lack."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trimesh import Scene, available_formats, load_scene
from trimesh.resolvers import FilePathResolver
from trimesh.visual import ColorVisuals

from geopose.cad.appearance import srgb_from_linear


def read_scene(path: Path, notes: list[str]) -> Scene:
    """The scene in `path`, nothing merged or repaired; only local files are touched. Findings go to `notes`.

    Raises:
        ValueError: no reader, or the file cannot be read; the message says why.
    """
    suffix = path.suffix.lower().lstrip(".")
    known = sorted(available_formats())
    if suffix not in known:
        raise ValueError(
            f"{path}: no reader for {path.suffix or 'a file without suffix'!r}; known: {', '.join(known)}"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    stl = _stl(path, notes) if suffix == "stl" else None
    try:
        if suffix in ("glb", "gltf"):
            return _gltf(path)
        scene = load_scene(stl or path, suffix, process=False, allow_remote=False)
        return _with_all_bits(scene) if suffix == "ply" else scene
    except Exception as error:  # trimesh lets any error of its readers through
        raise ValueError(
            f"{path}: cannot be read as {suffix.upper()} ({type(error).__name__}: {error})"
        ) from error


def _stl(path: Path, notes: list[str]) -> Path | BytesIO:
    """What trimesh can read of an STL: the file, without what follows the faces that a binary one announces."""
    with path.open("rb") as file:
        content = file.read()
    if b"\0" not in content[:84]:  # text
        return path
    if len(content) < 84:
        raise ValueError(f"{path}: cut short: {len(content)} bytes, expected 84 and more of a binary STL")
    count, there = int.from_bytes(content[80:84], "little"), (len(content) - 84) // 50
    if there < count:
        raise ValueError(f"{path}: cut short: {count} faces announced, {there} there")
    if extra := len(content) - 84 - 50 * count:
        notes.append(f"{extra} bytes after the {count} faces announced were left out")
    return BytesIO(content[: 84 + 50 * count])


def _gltf(path: Path) -> Scene:
    """A glTF's scene, its vertex colours made sRGB: in the file they are linear (glTF 2.0, section 3.7.2.1).

    Those that trimesh has written are sRGB. Primitives without a material get an empty one: trimesh keeps only eight of
    sixteen bits without, the lower ones.
    """
    content = path.read_bytes()
    binary = content[:4] == b"glTF"
    end = 20 + int.from_bytes(content[12:16], "little")
    header = json.loads(content[20:end] if binary else content)
    primitives = [p for m in header.get("meshes", []) for p in m.get("primitives", [])]
    bare = [p for p in primitives if "COLOR_0" in p.get("attributes", {}) and "material" not in p]
    if bare:
        header["materials"] = [*header.get("materials", []), {}]
        for primitive in bare:
            primitive["material"] = len(header["materials"]) - 1
    text = json.dumps(header).encode()
    if binary:
        text += b" " * (-len(text) % 4)
        chunk = len(text).to_bytes(4, "little") + content[16:20] + text + content[end:]
        text = content[:8] + (12 + len(chunk)).to_bytes(4, "little") + chunk
    scene = load_scene(
        BytesIO(text), path.suffix.lower().lstrip("."), resolver=FilePathResolver(str(path)), process=False,
        allow_remote=False,
    )  # fmt: skip
    for item in scene.geometry.values():
        looks = getattr(getattr(item, "visual", None), "vertex_attributes", {})
        if "color" in looks and "mikedh/trimesh" not in header.get("asset", {}).get("generator", ""):
            looks["color"] = srgb_from_linear(_shares(looks["color"]))
    return scene


def _with_all_bits(scene: Scene) -> Scene:
    """A PLY's scene with colours of more than eight bits, of which trimesh keeps the lower ones."""
    for item in scene.geometry.values():
        for kind, raw in item.metadata.get("_ply_raw", {}).items():
            if item.visual.kind == kind and raw["properties"].get("red", "u1")[-2:] not in ("u1", "f4", "f8"):
                rgb = np.column_stack([np.ravel(raw["data"][c]) for c in ("red", "green", "blue")])
                shares = rgb / 255 if rgb.max() <= 255 else _shares(rgb)
                item.visual = ColorVisuals(item, **{f"{kind}_colors": shares})
    return scene


def _shares(colors: NDArray) -> NDArray[np.float64]:
    """Colours as shares of full intensity."""
    full = np.iinfo(colors.dtype).max if np.issubdtype(colors.dtype, np.integer) else 1
    return np.asarray(colors, np.float64) / full


def missing_files(path: Path) -> list[str]:
    """Notes on material files and images that an OBJ or a PLY names but that are not there under this name."""
    if path.suffix.lower() == ".ply":
        return _missing_textures(path, r"comment\s+texturefile")
    if path.suffix.lower() != ".obj":
        return []
    notes = []
    for name in _named(path, "mtllib"):
        if (path.parent / name).is_file():
            notes += _missing_textures(path.parent / name, "map_kd")
        else:
            notes.append(f"the material file {name!r} {_why(name)}: no colours from it")
    return notes


def _missing_textures(path: Path, key: str) -> list[str]:
    """Notes on the images that follow `key` in a file and that are not there."""
    lost = sorted({name for name in _named(path, key) if not (path.parent / name).is_file()})
    return [f"the texture {name!r} {_why(name)}: plain colour instead" for name in lost]


def _why(name: str) -> str:
    odd = name.startswith("-") or "\\" in name  # what trimesh takes for a part of the name
    return "was not understood (options and backslashes are not)" if odd else "is missing"


def _named(path: Path, key: str) -> list[str]:
    """What follows `key`, a regular expression, at the beginning of lines of a text file or of the header of a PLY."""
    found = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() == "end_header":
                break
            if match := re.match(rf"\s*{key}\s+(\S.*)", line, re.IGNORECASE):
                found.append(match[1].strip())
    return found
