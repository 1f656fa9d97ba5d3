"""Networks as ONNX graphs: to take elsewhere, and for onnxruntime, which is faster with them on most processors."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 17
OUTPUTS = {"locator": ("maps",), "keypoints": ("heatmaps", "mask"), "refiner": ("flow",)}
"""What the networks of each role return, by the names of the graph."""

_SIDE = 64  # of the picture that shows the way through the network; the graph takes other sizes


class Exported(nn.Module):
    """A network for evaluation on the CPU, by onnxruntime: the same numbers but for rounding, in two thirds of torch's
    time where a processor has AVX2 alone (`benchmarks/inference.py`). Making it takes a third of a second.

    It returns what `OUTPUTS` names of the network's role; a float32 picture, any batch and size that the network takes.
    """

    def __init__(self, net: nn.Module, role: str) -> None:
        super().__init__()
        self.net, self.role = net, role
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.onnx"
            self.names, self.graph = write_onnx(net, role, file), file.read_bytes()
        self.sessions: dict[int, Any] = {}  # by the number of threads

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """The outputs by name, or the only one."""
        threads = torch.get_num_threads()
        if threads not in self.sessions:
            self.sessions[threads] = session(self.graph, threads)
        found = self.sessions[threads].run(None, {"image": x.contiguous().numpy()})
        out = dict(zip(self.names, map(torch.from_numpy, found), strict=True))
        return out if self.role == "keypoints" else out[self.names[0]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sessions": {}}  # they cannot be copied


def write_onnx(net: nn.Module, role: str, file: Path, side: int | None = None) -> tuple[str, ...]:
    """The names of the outputs of the ONNX graph written to `file`: float32 throughout, `image` in, of any batch.

    side: of the only pictures that it takes, which are square; None takes all that the network takes.

    Notes:
        Written by torch's tracing exporter, which wants the package `onnx` there, and of which the networks use nothing
        but convolutions, resizing and concatenation.
    """
    net = copy.deepcopy(net).cpu().eval()
    net.mixed = False  # type: ignore[assignment]
    example = torch.zeros(2, 9 if role == "refiner" else 3, side or _SIDE, side or _SIDE)
    with torch.inference_mode():
        out = net(example)
    names = tuple(n for n in OUTPUTS[role] if n in out) if isinstance(out, dict) else OUTPUTS[role]
    axes = {name: {0: "batch"} for name in ("image", *names)}
    if side is None:
        for name, fraction in {
            "image": "",
            **dict.fromkeys(names, "_8" if role == "locator" else "_4"),
        }.items():
            axes[name] |= {2: f"height{fraction}", 3: f"width{fraction}"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes are traced as constants, on purpose
        torch.onnx.export(
            _Outputs(net, names), (example,), str(file), input_names=["image"], output_names=list(names),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    return names


class _Outputs(nn.Module):
    """A network that returns a tuple of its outputs by name."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The named outputs, or the only one."""
        out = self.net(image)
        return tuple(out[name] for name in self.names) if isinstance(out, dict) else (out,)


def session(graph: bytes, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` of an ONNX graph on the CPU that says nothing, on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # threads that wait for work stay quiet
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
