"""Writing data sets in the BOP format, one picture at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from geopose._io import atomic_path, is_folder_name
from geopose.cad.model import CadModel
from geopose.cad.symmetry import Symmetries
from geopose.data.bop import MM, read_json
from geopose.data.sample import projected_box
from geopose.geometry.camera import Camera
from geopose.geometry.pose import Pose

FLUSH_EVERY = 100
_PAINTED_FACES = 10_000  # of a model, at most, when its texture becomes colours


class BopWriter:
    """Writes a scene of pictures with known poses; use it as a context manager.

    Pictures go to disk as they come; the scene's JSON files are replaced, whole, every hundred pictures and
    at the end, so that a killed run leaves a readable set. Ranks write scenes of their own: `scene_id=rank`.

    Args:
        root: folder of the data set, made where missing.
        split: name of the split's folder.
        scene_id: number of the scene.
        depth_scale: millimetres per unit of the 16-bit depth pictures.
        suffix: ".png" or ".jpg".
        append: continue a scene that exists; otherwise one that exists is an error.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train_pbr",
        scene_id: int = 0,
        depth_scale: float = 0.1,
        suffix: str = ".png",
        append: bool = False,
    ) -> None:
        if suffix not in (".png", ".jpg"):
            raise ValueError(f"suffix must be '.png' or '.jpg', got {suffix!r}")
        if not is_folder_name(split):
            raise ValueError(f"split: expected the name of a folder, got {split!r}")
        if not depth_scale > 0:
            raise ValueError(f"depth_scale must be positive, got {depth_scale}")
        self.root, self.depth_scale, self.suffix = Path(root), depth_scale, suffix
        self.scene = self.root / split / f"{scene_id:06d}"
        self._tables: dict[str, dict[str, Any]] = {name: {} for name in ("camera", "gt", "gt_info")}
        if (self.scene / "scene_camera.json").exists():
            if not append:
                raise ValueError(
                    f"{self.scene} holds a scene already; choose another folder or split (in Python, append=True "
                    "continues the scene)"
                )
            self._tables = {name: read_json(self._table(name)) for name in self._tables}
        self.count = 1 + max((int(k) for k in self._tables["camera"]), default=-1)
        self._points: dict[int, NDArray[np.float64]] = {}

    def __enter__(self) -> BopWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None or self._tables["camera"]:  # what failed before its first picture leaves no scene
            self.flush()

    def _table(self, name: str) -> Path:
        return self.scene / f"scene_{name}.json"

    def add_model(self, obj_id: int, model: CadModel, symmetries: Symmetries | None = None) -> None:
        """Write `models/obj_XXXXXX.ply` in millimetres and the object's line of models_info.json, which stays as it is
        where both are there.

        Raises:
            ValueError: where another mesh has that number already; nothing is written then.
        """
        folder = self.root / "models"
        mesh = model.baked(_PAINTED_FACES).trimesh()  # models of the format have colours, no textures
        mesh.apply_scale(1 / MM)
        file, data = folder / f"obj_{obj_id:06d}.ply", mesh.export(file_type="ply")
        known = file.exists()
        if known and file.read_bytes() != data:
            raise ValueError(
                f"{file} is another mesh than {model.name!r}; choose another folder for this set"
            )
        self._points[obj_id] = model.vertices
        path = folder / "models_info.json"
        table = read_json(path) if path.exists() else {}
        if known and str(obj_id) in table:  # perhaps with what somebody knows better
            return
        with atomic_path(file) as temporary:
            temporary.write_bytes(data)
        low, size = model.bounds[0] / MM, model.extents / MM
        info: dict[str, Any] = {"diameter": model.diameter / MM}
        info |= {f"min_{a}": float(v) for a, v in zip("xyz", low, strict=True)}
        info |= {f"size_{a}": float(v) for a, v in zip("xyz", size, strict=True)}
        if symmetries is not None:
            info |= symmetries_info(symmetries)
        _write_table(path, table | {str(obj_id): info})

    def add(
        self,
        image: NDArray[np.uint8],
        camera: Camera,
        instances: Sequence[tuple[int, Pose]],
        depth: NDArray[np.floating[Any]] | None = None,
        masks: NDArray[np.bool_] | None = None,
        masks_visib: NDArray[np.bool_] | None = None,
        px_count_all: Sequence[int] | None = None,
    ) -> int:
        """The im_id under which a picture was written.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: of this picture; without distortion, which the format cannot hold.
            instances: (obj_id, cam_from_obj) of each object in it.
            depth: (H, W) metres, zero or not finite where there is nothing.
            masks, masks_visib: (len(instances), H, W), silhouette within the picture and visible part.
            px_count_all: (len(instances),) pixels of the whole silhouettes, beyond the picture's border, too, of which
                visib_fract is a share; None: nothing reaches beyond it, they are those of `masks`.

        Raises:
            ValueError: for another shape or type, distortion, a depth that 16 bits of `depth_scale` do not hold, or a
                px_count_all smaller than its mask.
        """
        _check(image, camera, instances, depth, masks, masks_visib, px_count_all)
        im_id, camera = self.count, camera.numpy()
        units = None if depth is None else self._units(depth)
        self._picture("rgb", f"{im_id:06d}{self.suffix}", image[..., ::-1])
        if units is not None:
            self._picture("depth", f"{im_id:06d}.png", units)
        for folder, stack in (("mask", masks), ("mask_visib", masks_visib)):
            for i, mask in enumerate(stack if stack is not None else ()):
                self._picture(folder, f"{im_id:06d}_{i:06d}.png", mask.astype(np.uint8) * 255)
        key = str(im_id)
        self._tables["camera"][key] = {"cam_K": np.ravel(camera.K).tolist(), "depth_scale": self.depth_scale}
        self._tables["gt"][key] = [_gt(obj_id, pose.numpy()) for obj_id, pose in instances]
        self._tables["gt_info"][key] = [
            _info(
                self._points.get(obj_id),
                pose.numpy(),
                camera,
                None if masks is None else masks[i],
                None if masks_visib is None else masks_visib[i],
                None if px_count_all is None else int(px_count_all[i]),
            )
            for i, (obj_id, pose) in enumerate(instances)
        ]
        if not (self.root / "camera.json").exists():
            self._write_camera(camera)
        self.count += 1
        if self.count % FLUSH_EVERY == 0:
            self.flush()
        return im_id

    def flush(self) -> None:
        """Write the scene's JSON files."""
        for name in ("gt_info", "gt", "camera"):
            _write_table(self._table(name), self._tables[name])

    def _units(self, depth: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
        """(H, W), as the format has it."""
        units = np.round(np.where(np.isfinite(depth), depth, 0) / (self.depth_scale * MM))
        if units.min() < 0 or units.max() > 65535:
            reach = 65535 * self.depth_scale * MM
            raise ValueError(
                f"depth: expected 0 to {reach:.3g} m, which 16 bits of {self.depth_scale:g} mm (depth_scale) hold, "
                f"got {np.nanmin(depth):.3g} to {units.max() * self.depth_scale * MM:.3g} m"
            )
        return units.astype(np.uint16)

    def _picture(self, folder: str, name: str, picture: NDArray[Any]) -> None:
        with atomic_path(self.scene / folder / name) as temporary:
            if not cv2.imwrite(str(temporary), np.ascontiguousarray(picture)):
                raise OSError(f"{self.scene / folder / name} could not be written")

    def _write_camera(self, camera: Camera) -> None:
        w, h = camera.size_wh
        values = {name: float(getattr(camera, name)) for name in ("cx", "cy", "fx", "fy")}
        values |= {"depth_scale": self.depth_scale, "width": w, "height": h}
        with atomic_path(self.root / "camera.json") as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")


def symmetries_info(symmetries: Symmetries) -> dict[str, Any]:
    """The symmetry entries of models_info.json, millimetres, without the identity."""
    info: dict[str, Any] = {}
    discrete = np.array(symmetries.discrete, np.float64)[1:]
    if len(discrete):
        discrete[:, :3, 3] /= MM
        info["symmetries_discrete"] = [np.ravel(m).tolist() for m in discrete]
    if symmetries.continuous:
        info["symmetries_continuous"] = [
            {"axis": np.ravel(axis).tolist(), "offset": (np.ravel(point) / MM).tolist()}
            for axis, point in symmetries.continuous
        ]
    return info


def _write_table(path: Path, table: Mapping[str, Any]) -> None:
    """JSON with one key a line, as the data sets of the challenge have it."""
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in table.items())
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def _gt(obj_id: int, pose: Pose) -> dict[str, Any]:
    R, t = np.ravel(pose.R), np.ravel(pose.t) / MM
    return {"cam_R_m2c": R.tolist(), "cam_t_m2c": t.tolist(), "obj_id": int(obj_id)}


def _info(
    points: NDArray[np.float64] | None,
    pose: Pose,
    camera: Camera,
    mask: NDArray[np.bool_] | None,
    visible: NDArray[np.bool_] | None,
    whole_px: int | None,
) -> dict[str, Any]:
    """Boxes [x, y, w, h], pixel counts and the visible fraction, as far as they are known."""
    info: dict[str, Any] = {}
    box = None if points is None else projected_box(points, pose, camera)
    if box is not None and np.isfinite(box).all():
        info["bbox_obj"] = [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
    elif mask is not None:
        info["bbox_obj"] = _mask_box(mask)
    if visible is not None:
        info["bbox_visib"] = _mask_box(visible)
        info["px_count_visib"] = int(visible.sum())
    if mask is not None:
        info["px_count_valid"] = int(mask.sum())
        whole_px = info["px_count_valid"] if whole_px is None else whole_px
    if whole_px is not None:
        info["px_count_all"] = whole_px
        if visible is not None:
            info["visib_fract"] = float(visible.sum() / max(whole_px, 1))
    return info


def _mask_box(mask: NDArray[np.bool_]) -> list[int]:
    y, x = np.nonzero(mask)
    if len(x) == 0:
        return [-1, -1, -1, -1]
    return [int(x.min()), int(y.min()), int(x.max() - x.min()), int(y.max() - y.min())]


def _check(
    image: NDArray[np.uint8],
    camera: Camera,
    instances: Sequence[tuple[int, Pose]],
    depth: NDArray[Any] | None,
    masks: NDArray[Any] | None,
    masks_visib: NDArray[Any] | None,
    px_count_all: Sequence[int] | None,
) -> None:
    w, h = camera.size_wh
    if image.shape != (h, w, 3) or image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 of shape {(h, w, 3)}, got {image.dtype} {image.shape}")
    if np.any(np.asarray(camera.distortion, np.float64)):
        raise ValueError("camera: the BOP format holds no distortion; undistort the picture first")
    for name, value, shape in (
        ("depth", depth, (h, w)),
        ("masks", masks, (len(instances), h, w)),
        ("masks_visib", masks_visib, (len(instances), h, w)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    if px_count_all is None:
        return
    least = np.zeros(len(instances), int)
    for stack in (masks, masks_visib):
        if stack is not None:
            least = np.maximum(least, stack.sum((1, 2)))
    counts = np.asarray(px_count_all)
    if counts.shape != least.shape or (counts < least).any():
        raise ValueError(
            f"px_count_all: expected {len(least)} counts of at least {least.tolist()} pixels, got {counts.tolist()}"
        )
