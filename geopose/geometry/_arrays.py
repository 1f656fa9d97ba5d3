"""One implementation for numpy and torch: compute in torch, hand back what was handed in."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

# A numpy array or a torch tensor. Functions under `either` see tensors only.
Array: TypeAlias = Any
F = TypeVar("F", bound=Callable[..., Any])


def namespace(x: Array) -> Any:
    """The module, numpy or torch, whose functions take `x`."""
    return torch if isinstance(x, torch.Tensor) else np


def is_array(value: Any) -> bool:
    """True for a numpy array, a numpy scalar or a torch tensor."""
    return isinstance(value, (np.ndarray, np.generic, Tensor))


def as_float_array(value: Any) -> Array:
    """`value` as a floating-point array of its own kind; lists and numbers become numpy float64.

    So do long doubles, which torch does not have; a foreign byte order becomes native.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.to(torch.float64)
    array = np.asarray(value)
    known = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    return array.astype(array.dtype.newbyteorder("=") if known else np.float64, copy=False)


def as_numbers(name: str, value: Any, expected: str = "numbers") -> Array:
    """`as_float_array` of an argument; raises ValueError that names it unless it holds real numbers."""
    try:
        if isinstance(value, (int, float)):
            return np.float64(value)
        array = value if isinstance(value, Tensor) else np.asarray(value)
        odd = array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "cSU"
        if value is not None and not odd:
            return as_float_array(array)
    except (TypeError, ValueError, OverflowError):
        pass
    got = f"{value.dtype} {tuple(value.shape)}" if is_array(value) else reprlib.repr(value)
    raise ValueError(f"{name}: expected {expected}, got {got}")


def to_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """`value` as a floating-point tensor; one without a dtype of its own takes that of `like`."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.to(torch.float64)
    typed = isinstance(value, (np.ndarray, np.generic))
    tensor = torch.from_numpy(np.array(as_float_array(value), order="C", copy=True))
    if like is None:
        return tensor
    return tensor.to(like.device) if typed else tensor.to(like)


def back_to_numpy(value: Any) -> Any:
    """`value` with every tensor in it (also inside tuples and geometry types) as a numpy array."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, tuple):
        return tuple(back_to_numpy(v) for v in value)
    return value.numpy() if hasattr(value, "_array_leaves") else value


def _leaves(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        found += value._array_leaves() if hasattr(value, "_array_leaves") else [value]
    return found


def _is_pose(value: Any) -> bool:
    return hasattr(value, "_array_leaves") and hasattr(value, "torch")


@functools.cache
def _of_torch(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _dtypes(values: Iterable[Any]) -> set[torch.dtype]:
    """Of the tensors and poses among `values`, numbers aside."""
    arrays = _leaves(v for v in values if isinstance(v, Tensor) or _is_pose(v))
    return {x.dtype if isinstance(x, Tensor) else _of_torch(x.dtype) for x in arrays if x.ndim}


def either(function: F) -> F:
    """`function`, written for tensors, taking numpy arrays and lists as well.

    Any tensor among the arguments (or inside a Pose or Camera) makes the result torch, otherwise it is numpy.
    Arrays and poses of several precisions all take the highest of them; integers count as float64.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        like = next((x for x in _leaves(given) if isinstance(x, Tensor)), None)

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return to_tensor(value)
            if isinstance(value, (np.ndarray, np.generic)) and value.dtype != bool:
                return to_tensor(value, like)
            if isinstance(value, list):
                return to_tensor(value, like)
            return value

        given = [convert(v) for v in given]
        dtypes = _dtypes(given)
        if len(dtypes) > 1:
            dtype = functools.reduce(torch.promote_types, dtypes)
            given = [v.to(dtype) if isinstance(v, Tensor) and v.ndim else v for v in given]
            dtypes = {dtype}
        given = [v.torch(*dtypes, None if like is None else like.device) if _is_pose(v) else v for v in given]
        result = function(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
        return result if like is not None else back_to_numpy(result)

    return wrapper  # type: ignore[return-value]


def check_last(name: str, array: Any, *shape: int | None) -> None:
    """Raise ValueError unless the last dimensions of `array` are `shape` (None: any length)."""
    got = tuple(getattr(array, "shape", ()))
    tail = got[-len(shape) :] if len(got) >= len(shape) else None
    if tail is None or any(want is not None and have != want for have, want in zip(tail, shape, strict=True)):
        expected = ", ".join("N" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: expected shape (..., {expected}), got {got or type(array).__name__}")


def as_problems(
    points_obj: Tensor, xy: Tensor, weights: Tensor | None, least: int
) -> tuple[tuple[int, ...], Tensor, Tensor, Tensor]:
    """Leading dimensions, and in float64 the points (B, N, 3), image (B, N, 2) and weights (B, N) of so many problems.

    Raises ValueError on shapes that do not match and fewer than `least` points.
    """
    check_last("points_obj", points_obj, None, 3)
    check_last("xy", xy, None, 2)
    n = points_obj.shape[-2]
    if xy.shape[-2] != n or n < least:
        got = f"{n} and {xy.shape[-2]}"
        raise ValueError(f"points_obj, xy: expected the same number (>= {least}) of points, got {got}")
    lead = torch.broadcast_shapes(points_obj.shape[:-2], xy.shape[:-2])
    points = points_obj.double().expand(*lead, n, 3).reshape(-1, n, 3)
    image = xy.double().expand(*lead, n, 2).reshape(-1, n, 2)
    w = torch.ones_like(points[..., 0])
    if weights is not None:
        check_last("weights", weights, n)
        w = weights.double().expand(*lead, n).reshape(-1, n)
    return lead, points, image, w
