"""What a mesh looks like: scenes merged, materials and textures made vertex colours or one texture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopose.cad import mesh

GREY = 0.7  # of a part without colour among coloured ones
MAX_TEXTURE = 8192  # pixels along a side of an atlas


@dataclass
class _Part:
    """One mesh of a scene in place; at most one of `colors`, `flat` and `skin` is set."""

    vertices: NDArray
    faces: NDArray
    colors: NDArray | None = None  # (V, 3) in [0, 1]
    flat: NDArray | None = None  # (3,) in [0, 1]
    skin: tuple[NDArray, NDArray] | None = None  # image (H, W, 3) uint8, uv (V, 2)


Merged = tuple[NDArray, NDArray, "NDArray | None", "NDArray | None", "NDArray | None"]


def merge(geometry: trimesh.Trimesh | trimesh.Scene, label: str, notes: list[str]) -> Merged:
    """One mesh from all of `geometry`: (vertices, faces, colors or None, uv or None, texture or None).

    Equal vertices are welded. One image for all parts stays as it is; several, or images beside plain
    colours, become one atlas when no texture repeats; otherwise everything is baked into vertex colours, with
    a note.
    """
    parts = [_part(m, t, label) for m, t in _meshes(geometry, notes) if len(m.faces)]
    if not parts:
        raise ValueError(f"{label}: holds no faces" + (f" ({'; '.join(notes)})" if notes else ""))
    textured = any(p.skin for p in parts)
    coloured = any(p.colors is not None or p.flat is not None for p in parts)
    uv = texture = colors = None
    if textured and (problem := _no_atlas(parts)):
        notes.append(f"textures were baked into vertex colours, because {problem}")
        for part in parts:
            if part.skin:
                part.colors, part.skin = sample_texture(*part.skin), None
        textured, coloured = False, True
    if textured:
        texture, uv = _atlas(parts)
    elif coloured:
        colors = np.concatenate([_part_colors(p) for p in parts]).astype(np.float32)
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    vertices = np.concatenate([p.vertices for p in parts]).astype(np.float64)
    faces = np.concatenate([p.faces + o for p, o in zip(parts, offsets, strict=True)]).astype(np.int64)
    rows = np.column_stack([a for a in (vertices, colors, uv) if a is not None])
    same = mesh.weld(rows)
    first = np.zeros(int(same.max()) + 1, np.int64)
    first[same[::-1]] = np.arange(len(same))[::-1]
    colors, uv = (None if a is None else a[first].astype(np.float32) for a in (colors, uv))
    return vertices[first], same[faces], colors, uv, texture


def _meshes(
    geometry: trimesh.Trimesh | trimesh.Scene, notes: list[str]
) -> list[tuple[trimesh.Trimesh, NDArray]]:
    """Every triangle mesh of a scene with its 4x4 transform; what is no mesh is counted in `notes`."""
    if isinstance(geometry, trimesh.Trimesh):
        return [(geometry, np.eye(4))]
    found, other = [], 0
    for node in geometry.graph.nodes_geometry:
        transform, name = geometry.graph[node]
        item = geometry.geometry[name]
        if isinstance(item, trimesh.Trimesh):
            found.append((item, np.asarray(transform, np.float64)))
        else:
            other += 1
    if other:
        notes.append(f"{other} parts that are points or lines, not faces, were left out")
    return found


def _part(item: trimesh.Trimesh, transform: NDArray, label: str) -> _Part:
    """One mesh moved to its place, with its look."""
    vertices, faces = np.asarray(item.vertices, np.float64), np.asarray(item.faces, np.int64)
    if faces.min() < 0 or faces.max() >= len(vertices):
        wrong = int(((faces < 0) | (faces >= len(vertices))).any(axis=1).sum())
        raise ValueError(
            f"{label}: {wrong} faces name vertices that do not exist (there are {len(vertices)})"
        )
    if not np.array_equal(transform, np.eye(4)):
        vertices = vertices @ transform[:3, :3].T + transform[:3, 3]
        if np.linalg.det(transform[:3, :3]) < 0.0:
            faces = faces[:, ::-1]
    part = _Part(vertices, faces)
    visual = item.visual
    if visual.kind == "vertex":
        part.colors = np.asarray(visual.vertex_colors)[:, :3] / 255.0
    elif visual.kind == "face":
        corner = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255.0, 3, axis=1)
        source, part.faces, part.colors = split_by_color(faces, corner)
        part.vertices = vertices[source]
    elif visual.kind == "texture":
        _material_look(part, visual)
    return part


def _material_look(part: _Part, visual: trimesh.visual.TextureVisuals) -> None:
    """Sets the look of `part` from a material: its base colour image, else its plain base colour."""
    material, uv = visual.material, visual.uv
    image = getattr(material, "baseColorTexture", None)
    factor = getattr(material, "baseColorFactor", None)
    tint = np.ones(3)
    if factor is not None:  # glTF: linear; everything here is sRGB
        tint = srgb_from_linear(
            np.asarray(factor, np.float64)[:3] / (255.0 if np.asarray(factor).dtype == np.uint8 else 1.0)
        )
    if image is None:
        image = getattr(material, "image", None)
    if image is not None and _is_placeholder(material, image):
        return
    if image is not None and uv is not None and len(uv) == len(part.vertices):
        pixels = np.asarray(image.convert("RGB"), np.float64)
        part.skin = np.round(pixels * tint).astype(np.uint8), np.asarray(uv, np.float64)
    elif factor is not None:
        part.flat = tint
    elif getattr(material, "diffuse", None) is not None:
        part.flat = np.asarray(material.diffuse, np.float64)[:3] / 255.0
    extra = visual.vertex_attributes.get("color")
    if extra is not None and part.skin is None and len(extra) == len(part.vertices):
        scale = np.iinfo(extra.dtype).max if np.issubdtype(extra.dtype, np.integer) else 1.0
        base = np.ones(3) if part.flat is None else part.flat
        part.colors, part.flat = np.asarray(extra, np.float64)[:, :3] / scale * base, None


def _is_placeholder(material: object, image: object) -> bool:
    """Whether this is the 2x2 grey that trimesh puts where a material is missing."""
    return getattr(image, "size", None) == (2, 2) and not getattr(material, "kwargs", True)


def srgb_from_linear(linear: NDArray) -> NDArray:
    """sRGB transfer function of values in [0, 1] (IEC 61966-2-1)."""
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _part_colors(part: _Part) -> NDArray:
    """Vertex colours (V, 3) of a part without texture."""
    if part.colors is not None:
        return part.colors
    return np.broadcast_to(np.full(3, GREY) if part.flat is None else part.flat, part.vertices.shape)


def _no_atlas(parts: list[_Part]) -> str:
    """Why the looks of `parts` cannot be put into one texture, or ''."""
    skins = [p.skin for p in parts if p.skin]
    images = _distinct([image for image, _ in skins])
    if len(images) == 1 and len(skins) == len(parts):
        return ""
    if any(p.colors is not None for p in parts):
        return "other parts have colours by vertex"
    if any(uv.min() < -1e-3 or uv.max() > 1.001 for _, uv in skins):
        return "there are several looks and one texture repeats"
    width = sum(image.shape[1] for image in images) + 4 * (len(parts) - len(skins))
    if max(width, *(image.shape[0] for image in images)) > MAX_TEXTURE:
        return f"side by side they exceed {MAX_TEXTURE} pixels"
    return ""


def _distinct(images: list[NDArray]) -> list[NDArray]:
    """The different ones among `images`, in order."""
    kept: list[NDArray] = []
    for image in images:
        if not any(np.array_equal(image, other) for other in kept):
            kept.append(image)
    return kept


def _atlas(parts: list[_Part]) -> tuple[NDArray, NDArray]:
    """All images side by side and coordinates (V, 2) into them; plain colours become patches of 4x4."""
    skins = [p.skin or _plain(p) for p in parts]
    images = _distinct([image for image, _ in skins])
    if len(images) == 1:
        return images[0], np.concatenate([uv for _, uv in skins])
    height, width = max(i.shape[0] for i in images), sum(i.shape[1] for i in images)
    lefts = np.cumsum([0] + [i.shape[1] for i in images[:-1]])
    atlas = np.zeros((height, width, 3), np.uint8)
    for image, left in zip(images, lefts, strict=True):
        atlas[: image.shape[0], left : left + image.shape[1]] = image
    coordinates = []
    for image, uv in skins:
        h, w = image.shape[:2]
        left = next(at for at, other in zip(lefts, images, strict=True) if np.array_equal(image, other))
        x = np.clip(uv[:, 0] * w, 0.5, w - 0.5) + left
        y = np.clip((1.0 - uv[:, 1]) * h, 0.5, h - 0.5)
        coordinates.append(np.column_stack([x / width, 1.0 - y / height]))
    return atlas, np.concatenate(coordinates)


def _plain(part: _Part) -> tuple[NDArray, NDArray]:
    """A small image of the plain colour of a part, and coordinates (V, 2) of its middle."""
    color = np.full(3, GREY) if part.flat is None else part.flat
    image = np.broadcast_to(np.round(255 * color).astype(np.uint8), (4, 4, 3))
    return image, np.full((len(part.vertices), 2), 0.5)


def sample_texture(texture: NDArray, uv: NDArray) -> NDArray[np.float32]:
    """Colours (N, 3) in [0, 1] of a texture (H, W, 3) uint8 at uv (N, 2): bilinear, repeating, v upward."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1.0 - uv[:, 1]) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]

    def at(row: NDArray, column: NDArray) -> NDArray:
        return texture[row % height, column % width].astype(np.float64)

    top = at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx
    bottom = at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx
    return ((top * (1 - fy) + bottom * fy) / 255.0).astype(np.float32)


def missed_texture(
    texture: NDArray, uv: NDArray, vertices: NDArray, faces: NDArray, probes: int = 6
) -> NDArray:
    """How much of the texture each face (F,) would lose to colours between its corners: the mean difference of sRGB
    times the root of the area; zero where the difference is below what can be seen."""
    i, j = (k.reshape(-1) for k in np.meshgrid(np.arange(probes), np.arange(probes), indexing="ij"))
    inside = i + j < probes
    weights = np.stack([i[inside], j[inside], probes - 1 - i[inside] - j[inside]], 1) / (probes - 1)  # (P, 3)
    corners = sample_texture(texture, uv)[faces]  # (F, 3, 3)
    between = np.einsum("pk,fkc->fpc", weights, corners)
    spots = np.einsum("pk,fkc->fpc", weights, uv[faces])
    seen = sample_texture(texture, spots.reshape(-1, 2)).reshape(between.shape)
    difference = np.abs(seen - between).mean(axis=(1, 2))
    area = mesh.face_areas_normals(vertices, faces)[0]
    return np.where(difference > 0.01, difference * np.sqrt(area), 0.0)


def split_by_color(faces: NDArray, corner_colors: NDArray) -> tuple[NDArray, NDArray, NDArray[np.float32]]:
    """Vertices split where corners (F, 3, 3) differ: (source (V',), faces (F, 3), colors (V', 3))."""
    corners = corner_colors.reshape(-1, 3)
    keys = np.column_stack([faces.reshape(-1), np.round(255.0 * corners).astype(np.int64)])
    label = mesh.weld(keys)
    first = np.zeros(int(label.max()) + 1, np.int64)
    first[label[::-1]] = np.arange(len(label))[::-1]
    return faces.reshape(-1)[first], label.reshape(-1, 3), corners[first].astype(np.float32)


def transfer_colors(
    vertices: NDArray,
    faces: NDArray,
    color_at: Callable[[NDArray, NDArray], NDArray | None],
    new_vertices: NDArray,
    new_faces: NDArray,
    diameter: float,
) -> NDArray:
    """Corner colours (F', 3, 3) of a simplified mesh: of the nearest place of the old one that faces the same way.

    color_at: colours (N, 3) of faces (N,) of the old mesh at barycentric weights (N, 3).

    Corners around a vertex that nearly agree share their mean, so that gradients stay smooth and borders stay
    sharp.
    """
    count = int(np.clip(4 * len(faces), 20_000, 100_000))
    points, face, weights = mesh.sample_surface(vertices, faces, count, np.random.default_rng(0))
    sampled = np.asarray(color_at(face, weights), np.float64)
    reach = 0.03 * diameter  # a normal turned by 60 degrees counts like 3 % of the diameter
    tree = cKDTree(np.column_stack([points, reach * mesh.face_areas_normals(vertices, faces)[1][face]]))
    corners = new_vertices[new_faces]
    inner = 0.4 * corners + 0.6 * corners.mean(axis=1, keepdims=True)  # off the border, toward the face
    normals = np.repeat(mesh.face_areas_normals(new_vertices, new_faces)[1][:, None], 3, axis=1)
    _, nearest = tree.query(np.concatenate([inner, reach * normals], axis=2).reshape(-1, 6))
    found = sampled[nearest]
    index = new_faces.reshape(-1)
    number = np.maximum(np.bincount(index, minlength=len(new_vertices)), 1)[:, None]
    mean = np.column_stack([np.bincount(index, found[:, c], len(new_vertices)) for c in range(3)]) / number
    spread = np.zeros(len(new_vertices))
    np.maximum.at(spread, index, np.abs(found - mean[index]).max(axis=1))
    agree = spread[index] < 0.1
    return np.where(agree[:, None], mean[index], found).reshape(-1, 3, 3)


def digest(
    vertices: NDArray, faces: NDArray, colors: NDArray | None, uv: NDArray | None, texture: NDArray | None
) -> str:
    """Hex SHA-256 of the mesh in metres and what it looks like, in fixed types and byte order."""
    digest = hashlib.sha256(b"geopose-mesh-1")
    parts = {
        "v": vertices.astype("<f4") + np.float32(0.0),  # no negative zeros
        "f": faces.astype("<i4"),
        "c": None if colors is None else np.round(255.0 * colors).astype("u1"),
        "uv": None if uv is None else uv.astype("<f4") + np.float32(0.0),
        "t": texture,
    }
    for key, value in parts.items():
        if value is not None:
            digest.update(f"{key}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
