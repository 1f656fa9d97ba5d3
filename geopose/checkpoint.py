"""A trained model in one file: weights, keypoints, symmetries, units, a light mesh, and how well it did.

The file is safetensors (numbers and text: reading it never executes anything). Large weights are stored as bytes with
a float32 step for each output channel, which moves keypoints by a thousandth of the crop; other weights as float16,
vectors (biases, norms) as float32; everything else is JSON under the metadata key "geopose".
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from geopose import nets as nets_module
from geopose._io import atomic_path
from geopose.cad.model import CadModel, CadWarning, likely_unit, load_cad

FORMAT_VERSION = 2  # 1 had no bytes
MAX_BYTES = 12_000_000
SUFFIX = ".geopose"
_BUILT_IN = Path(__file__).parent / "weights"
TRANSFERRED = _BUILT_IN / f"refiner{SUFFIX}"  # with which trainings begin, see `refiner_train`
_METADATA_KEY = "geopose"
_LARGE = 4096  # weights of one tensor
_MESH_DTYPES = {"vertices": np.float32, "faces": np.int32, "colors": np.float32}
_WRONG = (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError)  # of wrong metadata
_LARGEST_CROP = 1024  # pixels; a dozen crops are read in one pass


def save_model(path: str | Path, nets: Mapping[str, nn.Module], meta: Mapping[str, Any]) -> Path:
    """The path of the checkpoint written; the file appears whole or not at all, even if the power fails.

    Args:
        path: where to write; folders are made.
        nets: networks by role, e.g. {"keypoints": ..., "locator": ...}; their `.options` are stored as
            meta["networks"].
        meta: JSON-able values (numpy arrays and tuples become lists; NaN and infinity become null); "mesh",
            if there, is a dict of arrays: vertices (V, 3) metres, faces (F, 3), colors (V, 3) in [0, 1] or
            None.
    Raises:
        ValueError: for weights that are not finite, metadata that JSON cannot hold, or a file above 12 MB.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    for role, net in nets.items():
        if not role or "/" in role:
            raise ValueError(f"nets: got the role {role!r}, expected a name without '/'")
        for name, tensor in net.state_dict().items():
            stored = _compact(tensor, f"{role}.{name}")
            tensors |= {f"{kind}/{role}/{name}": t for kind, t in stored.items()}
    meta = dict(meta)
    mesh = meta.pop("mesh", None)
    for name, dtype in _MESH_DTYPES.items():
        if mesh is not None and mesh.get(name) is not None:
            tensors[f"mesh/{name}"] = torch.from_numpy(np.array(mesh[name], dtype=dtype, order="C"))
    meta["format_version"] = FORMAT_VERSION
    meta["roles"] = sorted(nets)
    meta.setdefault("networks", {role: getattr(net, "options", {}) for role, net in nets.items()})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > MAX_BYTES:
        raise ValueError(f"nets: {size / 1e6:.1f} MB as stored, expected at most {MAX_BYTES / 1e6:.0f} MB")
    _write(path, tensors, meta)
    return path


def load_model(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(state dicts by role, float32 on the CPU; metadata) of a checkpoint; see `save_model`.

    metadata["mesh"] holds numpy arrays, or None.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a geopose checkpoint, is cut short, or was written by a newer geopose.
    """
    meta, path = read_metadata(path), Path(path)
    states: dict[str, dict[str, Tensor]] = {role: {} for role in meta["roles"]}
    mesh: dict[str, np.ndarray] = {}
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        for key in sorted(keys):
            kind, _, rest = key.partition("/")
            role, _, name = rest.partition("/")
            tensor = file.get_tensor(key)
            if kind == "mesh" and rest in _MESH_DTYPES:
                mesh[rest] = tensor.numpy()
            elif kind == "net" and role in states and name:
                step = f"step/{role}/{name}"
                if step in keys:
                    tensor = _widened(tensor, file.get_tensor(step), path)
                states[role][name] = tensor.float() if tensor.is_floating_point() else tensor
            elif kind == "step" and f"net/{role}/{name}" in keys:
                continue
            else:
                raise ValueError(f"{path}: unexpected tensor {key!r} in a geopose checkpoint")
    meta["mesh"] = mesh or None
    return states, meta


def rewrite(path: str | Path, out: str | Path, changes: Mapping[str, Any]) -> Path:
    """The path of the checkpoint `out`: `path` to the byte, but for these entries of its metadata. Raises as
    `load_model` and `save_model` do."""
    meta, out = read_metadata(path) | dict(changes), Path(out)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    _write(out, tensors, meta)
    return out


def _write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=True) as temporary:
        text = json.dumps(jsonable(meta), allow_nan=False)
        temporary.write_bytes(save(dict(tensors), metadata={_METADATA_KEY: text}))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without reading its weights. Raises as `load_model` does."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path: got {path!r:.60}, expected the path of a checkpoint")
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: is a folder, expected a checkpoint, the file that `geopose train --out` wrote"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; `geopose train part.stl --out {path}` makes one"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a geopose checkpoint, or cut short: copy it again ({error})") from None
    if text is None:
        raise ValueError(
            f"{path}: a safetensors file, but not a geopose checkpoint (no metadata key 'geopose')"
        )
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its geopose metadata is not JSON ({error})") from None
    version, roles = (
        (meta.get("format_version"), meta.get("roles")) if isinstance(meta, dict) else (None, None)
    )
    known = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    if not isinstance(version, int) or isinstance(version, bool) or not known:
        raise ValueError(f"{path}: its geopose metadata holds no format version or no list of networks")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {version}, this geopose reads up to {FORMAT_VERSION}: install a newer geopose"
        )
    return meta


def load_nets(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """(networks by role, folded, in evaluation mode on `device`; metadata) of a checkpoint written by
    `train`.

    Raises:
        ValueError: as `load_model`, and when the weights do not fit the networks that the metadata describes.
    """
    states, meta = load_model(path)
    nets: dict[str, nn.Module] = {}
    for role, state in states.items():
        try:
            net = build_net(role, meta["networks"][role])
            net.load_state_dict(state, strict=True)
        except (*_WRONG, RuntimeError) as error:
            raise ValueError(f"{path}: the network {role!r} does not fit its weights: {error}") from None
        net = nets_module.fold_batchnorm(net)
        nets[role] = net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return nets, meta


@contextmanager
def pose_model(path: str | Path, meta: Mapping[str, Any]) -> Iterator[None]:
    """Inside, an object is made of a pose model's metadata, which are checked first. Raises ValueError naming the file
    where they are missing or wrong."""
    try:
        _check(meta)
        yield
    except _WRONG as error:
        why = f"its metadata hold no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not the checkpoint of a pose model: {why}") from error


def _check(meta: Mapping[str, Any]) -> None:
    if not {"keypoints", "locator"} <= set(meta["roles"]):
        raise ValueError(f"roles: got {meta['roles']}, expected keypoints and locator")
    for name in ("name", "unit", "content_hash"):
        if not isinstance(meta[name], str):
            raise ValueError(f"{name}: got {meta[name]!r:.60}, expected text")
    keypoints = np.asarray(meta["keypoints"], float)
    count = meta["networks"]["keypoints"].get("num_keypoints", len(keypoints))
    if keypoints.shape != (count, 3) or count < 4 or not np.isfinite(keypoints).all():
        raise ValueError(
            f"keypoints: got shape {keypoints.shape}, expected ({count}, 3), finite, of at least 4"
        )
    if meta["mesh"] is None:
        raise ValueError("mesh: got none, expected vertices and faces")
    diameter, diagonal = (
        float(meta["diameter"]),
        float(np.linalg.norm(np.ptp(meta["mesh"]["vertices"], axis=0))),
    )
    if not 0.5 * diagonal < diameter < 2 * diagonal:  # a diagonal is up to 1.8 diameters
        raise ValueError(f"diameter: got {diameter:g} m of a mesh whose box has a diagonal of {diagonal:g} m")
    side, scale = meta["options"]["crop_size"], float(meta["options"].get("crop_scale", 1.5))
    if not isinstance(side, int) or side not in range(32, _LARGEST_CROP + 1, 32):
        raise ValueError(f"crop_size: got {side!r:.60}, expected a multiple of 32 up to {_LARGEST_CROP}")
    if not 0.1 < scale < 100:
        raise ValueError(f"crop_scale: got {scale:g}, expected object sizes, as 1.5")
    calibration = meta.get("calibration") or {}
    for name in ("scale", "floor_px", "pose_scale", "pose_dof"):
        values = np.asarray(calibration.get(name, 1.0), float)
        if values.shape not in ((), (count,)) or not ((values > 0) & np.isfinite(values)).all():
            raise ValueError(f"calibration: {name} is {calibration[name]!r:.60}, expected positive numbers")
    for name in ("confidence", "answers"):
        told = dict(calibration.get(name) or {})
        numbers = np.asarray([*dict(told.pop("weights", {})).values(), *told.values()], float)
        if not np.isfinite(numbers).all():
            raise ValueError(f"calibration: {name} is {calibration[name]!r:.60}, expected finite numbers")


def light_model(meta: Mapping[str, Any]) -> CadModel:
    """The light mesh in a checkpoint's metadata, under the identity of the mesh that it stands for."""
    mesh = meta["mesh"]
    colors = mesh.get("colors")
    geometry = trimesh.Trimesh(
        mesh["vertices"],
        mesh["faces"],
        vertex_colors=None if colors is None else np.round(255 * np.asarray(colors)).astype(np.uint8),
        process=False,
    )
    named = {k: tuple(v) for k, v in (meta.get("named_keypoints") or {}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CadWarning)  # said when it was trained
        model = CadModel.from_trimesh(geometry, meta["name"], named_keypoints=named)
    model = replace(model, content_hash=str(meta["content_hash"]), unit=str(meta["unit"]))
    model.__dict__["diameter"] = float(meta["diameter"])  # that of the full mesh
    return model


def full_model(meta: Mapping[str, Any], cad: Any) -> CadModel:
    """The mesh `cad`, as in `estimate_pose`, painted as in the training that a checkpoint's metadata tell of.

    Raises ValueError where the model was trained on another mesh.
    """
    model = load_cad(cad, None if has_unit(cad) else meta["unit"])
    if model.content_hash != meta["content_hash"]:
        raise ValueError(f"model: was trained on {meta['name']!r}, a mesh that differs from cad={cad!r}")
    return model.painted(meta["options"].get("color"))


def build_net(role: str, options: Mapping[str, Any], weights: bool = False) -> nn.Module:
    """A network for a role, "locator", "keypoints" or "refiner", from its JSON-able options.

    weights: whether pretrained weights may be looked for; False to load a checkpoint into it.
    """
    builders: dict[str, Callable[..., nn.Module]] = {
        "keypoints": nets_module.build_keypoint_net,
        "locator": nets_module.build_locator,
        "refiner": nets_module.build_refiner,
    }
    if role not in builders:
        raise ValueError(f"role: got {role!r}, expected one of {sorted(builders)}")
    return builders[role](dict(options), weights=weights)


def cache_dir() -> Path:
    """Folder of the user's own models: $GEOPOSE_CACHE, else the platform's cache folder (~/.cache/geopose)."""
    chosen = os.environ.get("GEOPOSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "geopose"
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "geopose"


def cached_path(name: str, content_hash: str) -> Path:
    """Where a model of this CAD belongs in the cache, so that `find_model` finds it."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40] or "model"
    return cache_dir() / f"{safe}-{content_hash[:12]}{SUFFIX}"


def find_model(content_hash: str) -> Path | None:
    """The checkpoint trained for the CAD with this content hash, or None.

    Looks in the user's cache first (newest file first: what was trained here on purpose), then among the
    models that come with the package. Files that are not readable checkpoints are passed over.
    """
    for folder in (cache_dir(), _BUILT_IN):
        dated = []
        for path in folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # a link to nothing, or one that another process has just replaced
                dated.append((-path.stat().st_mtime, path.name, path))
        for *_, path in sorted(dated):
            with suppress(ValueError, OSError):
                if read_metadata(path).get("content_hash") == content_hash:
                    return path
    return None


def has_unit(cad: Any) -> bool:
    """Whether nobody need say in which unit `cad` is: anything but a file, or a trimesh, of bare numbers."""
    if isinstance(cad, (str, Path)):
        return Path(cad).suffix.lower() in {"", ".glb", ".gltf", ".3mf"}
    return getattr(cad, "units", "m") is not None


def model_of(cad: Any, unit: str | None = None) -> Path:
    """The checkpoint of this CAD among the built-in and cached ones; without a unit, any unit that it was
    trained in.

    Raises:
        FileNotFoundError: when there is none; the message is the command that trains one.
    """
    known = unit is not None or has_unit(cad)
    for each in [unit] if known else ["mm", "cm", "in", "m"]:
        with warnings.catch_warnings():
            if not known:
                warnings.simplefilter("ignore", CadWarning)
            model = load_cad(cad, each)
        path = find_model(model.content_hash)
        if path is not None:
            return path
    file = str(cad) if isinstance(cad, (str, Path)) else model.source
    name = file if Path(file).is_file() or isinstance(cad, (str, Path)) else model.name
    spell = ""
    if Path(name).is_file() and not has_unit(name):  # the last unit tried leaves its numbers as they are
        spell = f" --unit {model.unit if known else likely_unit(float(model.extents.max()))}"
    raise FileNotFoundError(
        f"no trained model of {name!r}; train one: geopose train {shlex.quote(name)}{spell} --minutes 30"
    )


def jsonable(value: Any) -> Any:
    """`value` as plain JSON types: arrays, tensors and tuples as lists, paths as text, NaN and infinity as
    None.

    Raises:
        ValueError: for a type that has no such form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (np.ndarray, Tensor)):
        return jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"meta: cannot store a {type(value).__name__} ({value!r:.60}) as JSON")


def _compact(tensor: Tensor, name: str) -> dict[str, Tensor]:
    """How a tensor is stored: {"net": values} or {"net": bytes, "step": (C,) what one of them is worth}."""
    tensor = tensor.detach().cpu().contiguous().clone()
    if not tensor.is_floating_point():
        return {"net": tensor}
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"nets: the weights {name} are not finite")
    if tensor.ndim > 1 and tensor.numel() >= _LARGE:
        step = (tensor.float().flatten(1).abs().amax(1) / 127).clamp_min(1e-30)
        rounded = torch.round(tensor.float() / step.view(-1, *[1] * (tensor.ndim - 1)))
        return {"net": rounded.to(torch.int8), "step": step}
    half = tensor.half()
    exact = tensor.ndim <= 1 or not bool(torch.isfinite(half).all())
    return {"net": tensor.float() if exact else half}


def _widened(tensor: Tensor, step: Tensor, path: Path) -> Tensor:
    """float32 weights from their bytes (C, ...) and what one of them is worth in each channel (C,)."""
    if step.shape != tensor.shape[:1]:
        raise ValueError(f"{path}: steps {tuple(step.shape)} beside weights {tuple(tensor.shape)}")
    return tensor.float() * step.float().view(-1, *[1] * (tensor.ndim - 1))
