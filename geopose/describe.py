"""What there is to know about a mesh or a checkpoint, as plain values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geopose import checkpoint
from geopose.cad.keypoints import choose_keypoints
from geopose.cad.model import CadModel
from geopose.cad.symmetry import find_symmetries

_WIDTH = 14


def mesh_facts(model: CadModel, keypoints: int = 16) -> dict[str, Any]:
    """JSON-able facts about a mesh: size, surface, symmetries, the keypoints that training would choose."""
    symmetries = find_symmetries(model)
    appearance = (
        "texture" if model.texture is not None else "vertex colours" if model.colors is not None else "none"
    )
    facts: dict[str, Any] = {
        "name": model.name,
        "source": model.source,
        "content_hash": model.content_hash,
        "unit": model.unit,
        "vertices": len(model.vertices),
        "faces": len(model.faces),
        "extents_m": model.extents,
        "lowest_m": model.bounds[0],
        "highest_m": model.bounds[1],
        "diameter_m": model.diameter,
        "watertight": model.is_watertight,
        "colour": appearance,
        "symmetries": {
            "discrete": len(symmetries.discrete),
            "continuous_axes": [axis for axis, _ in symmetries.continuous],
        },
        "keypoints_m": choose_keypoints(model, keypoints, symmetries),
        "named_keypoints": sorted(model.named_keypoints),
        "warnings": list(model.warnings),
    }
    return dict(checkpoint.jsonable(facts))


def checkpoint_facts(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint, and the size of its file. Raises as `checkpoint.read_metadata` does."""
    meta = checkpoint.read_metadata(path)
    return {"file": str(path), "megabytes": round(Path(path).stat().st_size / 1e6, 2), **meta}


def facts_text(facts: Mapping[str, Any], indent: int = 0) -> str:
    """One line for each fact; long tables of numbers are only counted."""
    lines = []
    for name, value in facts.items():
        label = " " * indent + f"{name.replace('_', ' '):<{_WIDTH}}  "
        if isinstance(value, Mapping) and value:
            lines += [label.rstrip(), facts_text(value, indent + 2)]
        elif isinstance(value, (list, tuple)):
            lines.append(label + _list_text(value))
        else:
            lines.append(label + _scalar(value))
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        "-"
        if value is None or value == "" or value == {}
        else f"{value:.5g}"
        if isinstance(value, float)
        else str(value)
    )


def _list_text(value: Any) -> str:
    if not value:
        return "none"
    if isinstance(value[0], (list, tuple)):
        if len(value) > 4:
            return f"{len(value)} x {' x '.join(map(str, np.shape(value[0])))} numbers"
        return ", ".join(f"({_list_text(row)})" for row in value)
    if all(isinstance(v, str) for v in value):
        return "; ".join(value)
    if len(value) > 16 or isinstance(value[0], Mapping):
        return f"{len(value)} values"
    return " ".join(_scalar(v) for v in value)
