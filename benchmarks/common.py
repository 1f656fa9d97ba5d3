"""What every benchmark says about itself: the machine, medians with their spread, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import geopose
from geopose.train_report import machine


def about() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    return {
        "machine": machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "geopose": geopose.__version__,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(np.asarray(values, float), [10, 50, 90])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def write_json(path: str | Path | None, results: Mapping[str, Any]) -> None:
    """Writes the results beside what they were measured on; nothing without a path."""
    if path is not None:
        Path(path).write_text(json.dumps({"about": about(), **results}, indent=2, default=float) + "\n")
