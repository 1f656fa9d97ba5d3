"""GoogLeNet's weights for PoseNet, read from the pickle in which they circulate, with nothing in it executed.

The file is a Python-2 pickle of a dict: Caffe's layer names plus `_0` (weights) or `_1` (biases), as byte strings, to
numpy arrays. A pickle is a program for a stack machine that may call anything. The machine here knows only what such
a file needs: numbers, strings, tuples, a dict, and four names that it never looks up, but answers itself. Everything
else ends in a ValueError that says what was found.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from geopose.nets.posenet import PoseNet

MAX_BYTES = 512_000_000  # of a file, and of all its arrays; Places' GoogLeNet has 54 MB of float32
_MAX_DIMENSIONS = 8
_MAX_LINE = 64  # characters of a number or a name
_MAX_STEPS = 1_000_000  # GoogLeNet takes some thousand
_ADMITTED = {
    (b"numpy.core.multiarray", b"_reconstruct"): "reconstruct",
    (b"numpy._core.multiarray", b"_reconstruct"): "reconstruct",
    (b"numpy", b"ndarray"): "ndarray",
    (b"numpy", b"dtype"): "dtype",
    (b"_codecs", b"encode"): "encode",
}
_CODES = (b"f2", b"f4", b"f8", b"i1", b"i2", b"i4", b"i8", b"u1", b"u2", b"u4", b"u8")
_ORDERS = (b"<", b">", b"|", b"=")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """Stands for one of the admitted names; nothing can be done with it but what `_reduce` does."""

    role: str


@dataclass
class _Dtype:
    """A plain numeric dtype; complete once its byte order is known."""

    code: str
    order: str = ""


@dataclass
class _Array:
    """An array; complete once it has its values."""

    values: NDArray[Any] | None = None


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a pickled dict, by key; read-only, in the machine's byte order.

    Admits pickle protocols 0 to 4, as Python 2 and 3 write them, of a dict from ASCII strings to numpy arrays of plain
    integers and floats.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the file, the place and what was found, for everything else than that, for a file cut short,
            and for more than 512 MB.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    return _Machine(path.read_bytes(), str(path)).run()


class _Machine:
    """A stack machine for the few opcodes that a dict of arrays takes. It calls nothing by name."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at, self.begin = data, where, 0, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes = 0  # of all arrays so far

    def run(self) -> dict[str, NDArray[Any]]:
        """The arrays by key."""
        for _ in range(_MAX_STEPS):
            self.begin = self.at
            code = self._take(1)
            if code == b".":
                break
            act = _OPCODES.get(code)
            if act is None:
                known = {op.code: op.name for op in pickletools.opcodes}
                self._fail(f"the opcode {known.get(code.decode('latin-1'), code)}")
            act(self)
        else:
            self._fail(f"more than {_MAX_STEPS} opcodes")
        top = self._pop()
        if not isinstance(top, dict):
            self._fail(f"{_word(top)} at the top")
        out: dict[str, NDArray[Any]] = {}
        for key, value in top.items():
            if value.values is None or not key.isascii():
                self._fail(f"{_word(value)} without values, or not ASCII, under the key {_word(key)}")
            out[key.decode()] = value.values
        return out

    def _fail(self, found: str) -> NoReturn:
        raise ValueError(
            f"{self.where}: found {found} at byte {self.begin}; expected a pickled dict of numeric numpy arrays and "
            "nothing else"
        )

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            self._fail(f"only {len(self.data) - self.at} of {count} bytes (the file is cut short)")
        self.at += count
        return self.data[self.at - count : self.at]

    def _line(self, most: int = _MAX_LINE) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            self._fail("a line without an end (the file is cut short)")
        if end - self.at > most:
            self._fail(f"a line of {end - self.at} bytes")
        return self._take(end + 1 - self.at)[:-1]

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self._fail("an empty stack")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        self._fail("no mark on the stack")

    def _number(self, text: bytes) -> int:
        try:
            return int(text.decode("ascii"))
        except ValueError:
            self._fail(f"{text!r} for a number")

    def _push_int(self) -> None:
        text = self._line()
        self.stack.append(text == b"01" if text in (b"00", b"01") else self._number(text))

    def _push_string(self) -> None:
        text = self._line(len(self.data))
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            self._fail("a string without quotes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of escapes that there are none of
                self.stack.append(codecs.escape_decode(text[1:-1])[0])
        except (ValueError, Warning):
            self._fail("a broken string")

    def _push_text(self, data: bytes, encoding: str) -> None:
        try:
            self.stack.append(data.decode(encoding))
        except UnicodeDecodeError:
            self._fail(f"text that is not {encoding}")

    def _push_tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _put(self, place: int) -> None:
        self.memo[place] = self._pop()
        self.stack.append(self.memo[place])

    def _get(self, place: int) -> None:
        if place not in self.memo:
            self._fail(f"nothing in memory at {place}")
        self.stack.append(self.memo[place])

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop()
        if not isinstance(target, dict) or len(items) % 2:
            self._fail(f"items for {_word(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = _encoded(key)
            if not isinstance(key, bytes) or not isinstance(value, _Array):
                self._fail(f"{_word(value)} under a key that is {_word(key)}")
            target[key] = value
        self.stack.append(target)

    def _push_dict(self) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set_items(items)

    def _push_pair(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _push_name(self, module: Any, name: Any) -> None:
        module, name = _encoded(module), _encoded(name)
        if not isinstance(module, bytes) or not isinstance(name, bytes):
            self._fail(f"a name of {_word(module)} and {_word(name)}")
        if (module, name) not in _ADMITTED:
            self._fail(f"the name {b'.'.join((module, name))[:120].decode('latin-1')!r}")
        self.stack.append(_Name(_ADMITTED[module, name]))

    def _push_stack_name(self) -> None:
        name = self._pop()
        self._push_name(self._pop(), name)

    def _reduce(self) -> None:
        """What the four names would do when called."""
        given, called = self._pop(), self._pop()
        role = called.role if isinstance(called, _Name) else ""
        given = tuple(map(_encoded, given)) if isinstance(given, tuple) else ()
        if role == "dtype" and len(given) == 3 and given[1:] == (0, 1):  # not aligned, a copy
            if given[0] not in _CODES:
                self._fail(f"the dtype {_word(given[0])}")
            self.stack.append(_Dtype(given[0].decode()))
        elif role == "reconstruct" and given == (_Name("ndarray"), (0,), b"b"):
            self.stack.append(_Array())
        elif role == "encode" and len(given) == 2 and given[1] == b"latin1":  # how Python 3 writes bytes
            try:
                self.stack.append(given[0].decode().encode("latin-1"))
            except (AttributeError, UnicodeError):
                self._fail("text that is not latin-1")
        else:
            self._fail(f"a call of {_word(called)} with {', '.join(map(_word, given)) or 'nothing'}")

    def _build(self) -> None:
        """Completes a dtype or an array from its state."""
        state, target = self._pop(), self._pop()
        if isinstance(target, _Dtype) and not target.order:
            # state: version, byte order, subarray, names, fields, size, alignment, flags
            order = _encoded(state[1]) if isinstance(state, tuple) and len(state) == 8 else None
            if order not in _ORDERS or state[2:] != (None, None, None, -1, -1, 0):
                self._fail("a dtype that is no plain number")
            target.order = order.decode()
        elif isinstance(target, _Array) and target.values is None:
            target.values = self._values(state)
        else:
            self._fail(f"a state for {_word(target)}")
        self.stack.append(target)

    def _values(self, state: Any) -> NDArray[Any]:
        """The array of numpy's state: version, shape, dtype, whether columns come first, bytes."""
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
            self._fail(f"the state of an array that is {_word(state)}")
        _, shape, dtype, by_columns, data = state
        sizes = shape if isinstance(shape, tuple) and len(shape) <= _MAX_DIMENSIONS else (-1,)
        if not all(type(n) is int and n >= 0 for n in sizes) or not isinstance(data, bytes):
            self._fail(f"an array of shape {_word(shape)} and values that are {_word(data)}")
        if not isinstance(dtype, _Dtype) or not dtype.order or by_columns not in (0, 1):
            self._fail(f"an array of {_word(dtype)}")
        kind = np.dtype(dtype.order + dtype.code)
        if math.prod(sizes) * kind.itemsize != len(data):
            self._fail(f"{len(data)} bytes for an array of shape {sizes} of {kind}")
        self.bytes += len(data)
        if self.bytes > MAX_BYTES:
            self._fail(f"more than {MAX_BYTES} bytes of arrays")
        values = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
        values = values.reshape(sizes, order="F" if by_columns else "C")
        values.flags.writeable = False
        return values


def _encoded(value: Any) -> Any:
    """`value`, a text as bytes: Python 2 wrote the one where Python 3 writes the other."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _word(value: Any) -> str:
    """What a value on the stack is, in a word or two, never at length."""
    if isinstance(value, (bytes, str)):
        return f"{value[:40]!r}"
    if isinstance(value, _Name):
        return f"the name {value.role!r}"
    if value is None or isinstance(value, (bool, int)):
        return repr(value)[:40]
    return {"_Array": "an array", "_Dtype": "a dtype"}.get(type(value).__name__, f"a {type(value).__name__}")


_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m._unsigned(1) <= 4 or m._fail("a newer pickle protocol than 4"),
    b"\x95": lambda m: m._take(8),  # FRAME
    b"(": lambda m: m.stack.append(_MARK),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": _Machine._push_int,
    b"L": lambda m: m.stack.append(m._number(m._line().removesuffix(b"L"))),
    b"J": lambda m: m.stack.append(int.from_bytes(m._take(4), "little", signed=True)),
    b"K": lambda m: m.stack.append(m._unsigned(1)),
    b"M": lambda m: m.stack.append(m._unsigned(2)),
    b"\x8a": lambda m: m.stack.append(int.from_bytes(m._take(m._unsigned(1)), "little", signed=True)),
    b"S": _Machine._push_string,
    b"T": lambda m: m.stack.append(m._take(int.from_bytes(m._take(4), "little", signed=True))),
    b"U": lambda m: m.stack.append(m._take(m._unsigned(1))),
    b"B": lambda m: m.stack.append(m._take(m._unsigned(4))),
    b"C": lambda m: m.stack.append(m._take(m._unsigned(1))),
    b"V": lambda m: m._push_text(m._line(len(m.data)), "raw-unicode-escape"),
    b"X": lambda m: m._push_text(m._take(m._unsigned(4)), "utf-8"),
    b"\x8c": lambda m: m._push_text(m._take(m._unsigned(1)), "utf-8"),
    b"t": lambda m: m.stack.append(tuple(m._pop_to_mark())),
    b")": lambda m: m.stack.append(()),
    b"\x85": lambda m: m._push_tuple(1),
    b"\x86": lambda m: m._push_tuple(2),
    b"\x87": lambda m: m._push_tuple(3),
    b"}": lambda m: m.stack.append({}),
    b"d": _Machine._push_dict,
    b"s": _Machine._push_pair,
    b"u": lambda m: m._set_items(m._pop_to_mark()),
    b"p": lambda m: m._put(m._number(m._line())),
    b"q": lambda m: m._put(m._unsigned(1)),
    b"r": lambda m: m._put(m._unsigned(4)),
    b"\x94": lambda m: m._put(len(m.memo)),
    b"g": lambda m: m._get(m._number(m._line())),
    b"h": lambda m: m._get(m._unsigned(1)),
    b"j": lambda m: m._get(m._unsigned(4)),
    b"c": lambda m: m._push_name(m._line(), m._line()),
    b"\x93": _Machine._push_stack_name,
    b"R": _Machine._reduce,
    b"b": _Machine._build,
}


@torch.no_grad()
def load_places(net: PoseNet, path: str | Path) -> tuple[str, ...]:
    """The parameters of `net` for which the file had nothing and which stay as they were; the others now hold its
    weights.

    Caffe's network sees blue, green, red in 0 to 255 minus the mean picture; the first layer is rewritten for what
    `PoseNet` makes of its input, so that it answers the same.

    Args:
        net: of width 1 with `norm="lrn"`: changed in place, or not at all.
        path: the pickle; see `read_arrays`.
    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: as `read_arrays`; where a shape differs; where a value is not finite; where nothing fits at all.
    """
    if net.options["norm"] != "lrn":
        raise ValueError(
            f"net: got norm={net.options['norm']!r}, expected 'lrn', as the weights were trained"
        )
    arrays = read_arrays(path)
    found: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    for name, parameter in net.named_parameters():
        layer, _, leaf = name.removeprefix("layers.").rpartition(".")
        key = f"{layer}_{'0' if leaf == 'weight' else '1'}"
        if key not in arrays:
            missing.append(name)
            continue
        shape, values = tuple(parameter.shape), arrays[key]
        if (
            values.shape[-len(shape) :] != shape or values.size != parameter.numel()
        ):  # old Caffe has 1s in front
            raise ValueError(f"{path}: {key!r} has shape {values.shape}, expected {shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {key!r} holds values that are not finite")
        found[name] = torch.from_numpy(values.astype(np.float32).reshape(shape))
    if not found:
        raise ValueError(f"{path}: none of its {len(arrays)} arrays bears the name of a layer of GoogLeNet")
    weight, bias = (f"layers.conv1/7x7_s2.{leaf}" for leaf in ("weight", "bias"))
    if weight in found and bias in found:
        # 127.5 (x + 1) is the grey level minus the mean, where x is what the first layer is given
        found[bias] = found[bias] + 127.5 * found[weight].sum((1, 2, 3))
        found[weight] = 127.5 * found[weight].flip(1)
    parameters = dict(net.named_parameters())
    for name, tensor in found.items():
        parameters[name].copy_(tensor)
    return tuple(missing)
