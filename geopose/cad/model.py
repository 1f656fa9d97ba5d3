"""CadModel: a triangle mesh in metres with its colours; load_cad: from a file, a name or a trimesh object."""

from __future__ import annotations

import importlib
import os
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from trimesh import Scene, Trimesh
from trimesh.visual import TextureVisuals

from geopose.cad import appearance, mesh
from geopose.cad._mesh_files import missing_files, read_scene

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
_SPELLINGS = {
    "meter": 1.0, "meters": 1.0, "metre": 1.0, "metres": 1.0, "centimeter": 0.01, "centimeters": 0.01,
    "millimeter": 0.001, "millimeters": 0.001, "inch": 0.0254, "inches": 0.0254, "ft": 0.3048, "foot": 0.3048,
    "feet": 0.3048, "micron": 1e-6, "microns": 1e-6, "um": 1e-6,
}  # fmt: skip
_SHORT = {long: short for long, size in _SPELLINGS.items() for short, same in UNITS.items() if size == same}
BUILT_IN = ("xwing", "iss", "car")
CREASE_DEG = 40.0
SMALLEST, LARGEST = 1e-3, 1e3  # metres; a diameter outside is suspicious


class CadWarning(UserWarning):
    """Something about a mesh that its owner should know; also kept in `CadModel.warnings`."""


@dataclass(frozen=True, eq=False)
class CadModel:
    """A triangle mesh in the frame of its file, never recentred, in metres.

    Attributes:
        name: what to call it.
        vertices: (V, 3) float64, metres, object frame. A place appears several times where the surface has a
            crease or a seam of colour or texture.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        normals: (V, 3) float32, outward, smooth up to a fold of 40 degrees and sharp beyond.
        colors: (V, 3) float32 sRGB in [0, 1], or None when the mesh has no colour or a texture.
        uv: (V, 2) float32 texture coordinates, origin at the bottom left, repeating outside [0, 1]; or None.
        texture: (H, W, 3) uint8 sRGB, first row at the top (v = 1); or None.
        named_keypoints: points with a meaning, metres.
        unit: unit of the source, "m", "cm", "mm" or "in" (or what the file itself declares).
        content_hash: SHA-256 of the mesh in metres and its colours: the same mesh on every machine, whatever
            its name.
        source: where it came from.
        warnings: what was found wrong and repaired or left.
    """

    name: str
    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32]
    colors: NDArray[np.float32] | None = None
    uv: NDArray[np.float32] | None = None
    texture: NDArray[np.uint8] | None = None
    named_keypoints: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    unit: str = "m"
    content_hash: str = ""
    source: str = ""
    warnings: tuple[str, ...] = ()

    @cached_property
    def diameter(self) -> float:
        """Largest distance between two vertices, metres."""
        return mesh.diameter(self.vertices)

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """(2, 3): smallest and largest coordinates, metres."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])

    @property
    def extents(self) -> NDArray[np.float64]:
        """(3,): size of the bounding box along the axes, metres."""
        return self.bounds[1] - self.bounds[0]

    @cached_property
    def is_watertight(self) -> bool:
        """Whether every edge joins an even number of faces, seams and creases welded."""
        return mesh.boundary_edges(self.vertices, self.faces) == 0

    def sample_surface(
        self, n: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """`n` points uniform over the surface (n, 3), metres, and the face index (n,) of each."""
        points, face, _ = mesh.sample_surface(self.vertices, self.faces, n, generator)
        return points, face

    def painted(self, color: str | None) -> CadModel:
        """The unpainted model in one colour: a name of CSS such as "gold", or "#e8b820"; itself for None.

        The content hash stays that of the mesh: it is the same object.

        Raises:
            ValueError: for a colour that is none, or a mesh that has colours of its own.
        """
        if color is None:
            return self
        if self.colors is not None or self.texture is not None:
            raise ValueError(f"color: got {color!r}, but {self.name} has colours of its own, expected none")
        try:
            rgb = ImageColor.getrgb(color)[:3]
        except ValueError:
            raise ValueError(
                f"color: got {color!r}, expected a name such as 'gold' or six digits such as '#e8b820'"
            ) from None
        return replace(self, colors=np.full(self.vertices.shape, np.array(rgb) / 255, np.float32))

    def color_at(self, face: NDArray, weights: NDArray) -> NDArray | None:
        """sRGB colours (N, 3) in [0, 1] of places on the surface, or None for a plain mesh.

        Args:
            face: (N,) their faces; weights: (N, 3) barycentric, as `mesh.sample_surface` gives them.
        """
        corners = self.faces[face]
        if self.texture is not None and self.uv is not None:
            return appearance.sample_texture(self.texture, np.einsum("nk,nkc->nc", weights, self.uv[corners]))
        if self.colors is not None:
            return np.einsum("nk,nkc->nc", weights, self.colors[corners].astype(np.float64))
        return None

    def baked(self, max_faces: int = 0) -> CadModel:
        """The model with its texture turned into vertex colours; itself when it has no texture.

        max_faces: to as many faces at most, those are split in which colours between the corners would miss most of the
        texture: a label on a box has no corners of its own.
        """
        if self.texture is None or self.uv is None:
            return self
        vertices, uv, normals = self.vertices, self.uv, self.normals
        faces: NDArray = self.faces
        while len(faces) < max_faces:
            missed = appearance.missed_texture(self.texture, uv, vertices, faces)
            room = (max_faces - len(faces)) // 6  # a face becomes four, and each of its neighbours two
            worst = np.argsort(-missed, kind="stable")[: max(room, 0)]
            worst = worst[missed[worst] > 0]
            if len(worst) == 0:
                break
            ends, faces = mesh.split_faces(vertices, faces, worst)
            vertices, uv, normals = (
                np.concatenate([rows, rows[ends].mean(axis=1)]) for rows in (vertices, uv, normals)
            )
        length = np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return replace(
            self, vertices=vertices, faces=faces.astype(np.int32), normals=(normals / length).astype(np.float32),
            colors=appearance.sample_texture(self.texture, uv), uv=None, texture=None,
        )  # fmt: skip

    def simplified(self, max_faces: int) -> CadModel:
        """The model with about `max_faces` faces at most; itself when it has no more.

        Quadric edge collapse (Garland and Heckbert, SIGGRAPH 1997) by fast-simplification; the colours are
        those of the nearest place of the original surface that faces the same way. A texture is baked into
        them. The content hash stays that of the original: it is the same object.
        """
        if max_faces < 4:
            raise ValueError(f"max_faces: got {max_faces}, expected at least 4")
        if len(self.faces) <= max_faces:
            return self
        vertices, faces = mesh.decimate(self.vertices, self.faces, max_faces)
        colors = None
        if self.colors is not None or self.texture is not None:
            corner = appearance.transfer_colors(
                self.vertices, self.faces, self.color_at, vertices, faces, self.diameter
            )
            source, faces, colors = appearance.split_by_color(faces, corner)
            vertices = vertices[source]
        source, faces, normals = mesh.crease_normals(vertices, faces, CREASE_DEG)
        return replace(
            self, vertices=vertices[source], faces=faces.astype(np.int32), normals=normals,
            colors=None if colors is None else colors[source], uv=None, texture=None,
        )  # fmt: skip

    def trimesh(self) -> Trimesh:
        """A `trimesh.Trimesh` of the same arrays, metres, with vertex colours or the texture."""
        result = Trimesh(
            self.vertices.copy(), self.faces.copy(), vertex_normals=self.normals.copy(), process=False
        )
        if self.texture is not None:
            result.visual = TextureVisuals(self.uv, image=Image.fromarray(self.texture))
        elif self.colors is not None:
            result.visual.vertex_colors = np.round(255 * self.colors).astype(np.uint8)
        result.units = "m"
        return result

    @classmethod
    def from_trimesh(
        cls,
        geometry: Trimesh | Scene,
        name: str,
        unit: str = "m",
        named_keypoints: Mapping[str, tuple[float, float, float]] | None = None,
        source: str = "",
        notes: tuple[str, ...] = (),
    ) -> CadModel:
        """The model of a trimesh mesh or scene with coordinates in `unit`; named keypoints are in metres.

        Scenes are merged with their transforms; faces that have lost their area are dropped and counted.
        Everything worth knowing goes to `warnings` and to Python's `warnings` as a `CadWarning`.

        Raises:
            ValueError: no faces, a face that names a missing vertex, a coordinate that is not finite, no area,
                or an unknown unit; the message names `source`, or `name`.
        """
        label = source or name
        scale = _metres_per(unit)
        found = list(notes)
        vertices, faces, colors, uv, texture = appearance.merge(geometry, label, found)
        vertices = vertices * scale
        vertices, faces, keep = _checked(vertices, faces, label, found)
        colors, uv = (None if a is None else a[keep] for a in (colors, uv))
        digest = appearance.digest(vertices, faces, colors, uv, texture)
        source_index, faces, normals = mesh.crease_normals(vertices, faces, CREASE_DEG)
        colors, uv = (None if a is None else a[source_index] for a in (colors, uv))
        model = cls(
            name, vertices[source_index], faces.astype(np.int32), normals, colors, uv, texture,
            dict(named_keypoints or {}), unit, digest, source,
        )  # fmt: skip
        if not SMALLEST <= model.diameter <= LARGEST:
            found.append(
                f"the diameter is {model.diameter:.3g} m with unit={unit!r}: outside {SMALLEST:g} m to "
                f"{LARGEST:g} m, so the unit is probably another; pass the right one as unit= (--unit)"
            )
        for text in found:
            python_warnings.warn(f"{label}: {text}", CadWarning, stacklevel=3)
        return replace(model, warnings=tuple(found))


def load_cad(
    path_or_name: str | os.PathLike[str] | Trimesh | Scene | CadModel, unit: str | None = None
) -> CadModel:
    """The `CadModel` of a mesh file, of a built-in name, or of a trimesh object; in metres, never recentred.

    Args:
        path_or_name: "xwing", "iss" or "car" (a bare built-in name always means the built-in object: write
            "./car" for a file of that name); or a file that trimesh reads (STL, OBJ with its materials, PLY,
            GLB, glTF, OFF, 3MF...); or a `trimesh.Trimesh` or `trimesh.Scene`; or a `CadModel`, which is
            returned as it is.
        unit: "m", "cm", "mm" or "in". Needed where the file has no unit of its own (STL, OBJ, PLY, OFF). glTF
            is in metres by its specification and 3MF says its unit; a `unit` given here wins over both, with
            a warning.

    Raises:
        FileNotFoundError: no such file, nor a built-in name.
        ValueError: the unit is missing or unknown, or the file is no usable mesh; the message says what is
        wrong.
    """
    if isinstance(path_or_name, CadModel):
        return path_or_name
    if unit is not None:
        _metres_per(unit)
    if isinstance(path_or_name, (Trimesh, Scene)):
        name = str(path_or_name.metadata.get("name") or path_or_name.metadata.get("file_name") or "mesh")
        return CadModel.from_trimesh(path_or_name, name, _settle_unit(path_or_name, "", name, unit, []))
    if isinstance(path_or_name, str) and path_or_name in BUILT_IN:
        if unit not in (None, "m"):
            raise ValueError(f"unit: got {unit!r}, but the built-in object {path_or_name!r} is in metres")
        return getattr(importlib.import_module("geopose.cad.gallery"), path_or_name)()
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise ValueError(
            f"path_or_name: got a {type(path_or_name).__name__}, expected a path, a built-in name or a mesh"
        )
    path = Path(path_or_name)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a mesh file")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, and not one of the built-in objects {', '.join(BUILT_IN)}"
        )
    notes: list[str] = []
    scene = read_scene(path, notes)
    notes += missing_files(path)
    settled = _settle_unit(scene, path.suffix.lower(), str(path), unit, notes)
    return CadModel.from_trimesh(scene, path.stem, settled, source=str(path), notes=tuple(notes))


def _metres_per(unit: str) -> float:
    """Metres in one `unit`."""
    scale = UNITS.get(unit, _SPELLINGS.get(unit))
    if scale is None:
        raise ValueError(f"unit: got {unit!r}, expected one of {', '.join(UNITS)}")
    return scale


def likely_unit(longest: float) -> str:
    """The unit in which a mesh that is `longest` long was probably drawn."""
    return "mm" if longest > 10.0 else "m" if longest < 5.0 else "cm"


def _settle_unit(
    geometry: Trimesh | Scene, suffix: str, label: str, unit: str | None, notes: list[str]
) -> str:
    """The unit that counts: the caller's, else the file's own; ValueError when there is neither."""
    declared: str | None = geometry.units
    if declared is not None and declared not in UNITS and declared not in _SPELLINGS:
        notes.append(f"the unit {declared!r} declared in it is unknown and was not used")
        declared = None
    declared = _SHORT.get(declared or "", declared)
    if suffix in (".glb", ".gltf"):
        if declared not in (None, "m") and unit is None:
            notes.append(f"glTF is in metres, but this one declares the unit {declared!r}, which was used")
        declared = declared or "m"
    if unit is not None:
        if declared is not None and _metres_per(declared) != _metres_per(unit):
            notes.append(f"declares the unit {declared!r}; unit={unit!r} was asked for and used")
        return unit
    if declared is not None:
        return declared
    bounds = geometry.bounds
    if bounds is None or not np.isfinite(bounds).all():
        return "m"  # nothing to measure: the checks that follow say why
    extents = bounds[1] - bounds[0]
    longest = float(extents.max())
    likely = likely_unit(longest)
    size = " x ".join(f"{e:.4g}" for e in extents)
    raise ValueError(
        f"{label}: no unit given and none in the {suffix.lstrip('.').upper() or 'mesh'}. "
        f"Its extent is {size}; likely {likely} ({longest * UNITS[likely]:.3g} m long). "
        f"Say unit={likely!r} (--unit {likely}), or one of {', '.join(UNITS)}"
    )


def _checked(
    vertices: NDArray, faces: NDArray, label: str, found: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Vertices and faces without waste, and the indices of the vertices kept; findings go to `found`."""
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"{label}: expected three coordinates for each vertex, got {vertices.shape[1:]}")
    wrong = int((~np.isfinite(vertices[np.unique(faces)])).any(axis=1).sum())
    if wrong:
        raise ValueError(f"{label}: {wrong} vertices have coordinates that are not finite")
    area, _ = mesh.face_areas_normals(vertices, faces)
    corners = vertices[faces]
    longest = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2).max(axis=1)
    flat = area <= 1e-12 * longest**2
    if flat.all():
        raise ValueError(f"{label}: no face has an area (all of {len(faces)} are degenerate)")
    if flat.any():
        found.append(f"{int(flat.sum())} faces without area were dropped, {int((~flat).sum())} remain")
        faces = faces[~flat]
    keep, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3).astype(np.int64)
    vertices = vertices[keep]
    open_edges = mesh.boundary_edges(vertices, faces)
    if open_edges:
        found.append(
            f"the mesh is open ({open_edges} boundary edges): its inside can be seen, its volume is unknown"
        )
    elif mesh.signed_volume(vertices, faces) < 0.0:
        found.append("the faces looked inward and were turned round")
        faces = faces[:, ::-1].copy()
    return vertices, faces, keep
