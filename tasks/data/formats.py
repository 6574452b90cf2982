"""File formats of published sets: MNIST's IDX, and CIFAR's pickles, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from winnow.tasks.errors import BadInput

__all__ = ["read_idx", "read_pickle"]


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file of uint8 or int32.

    Two zero bytes, element type, number of dimensions, each length as a big-endian int32, then the elements.

    Raises:
        BadInput: it has another format, or is cut off.
    """
    head = np.fromfile(file, np.uint8, 4)
    kinds: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
    if len(head) < 4 or head[0] or head[1] or head[2] not in kinds or head[3] != dimensions:
        raise BadInput(
            f"{file} is not an IDX file of {dimensions} dimensions.", remedy="delete it to fetch it again"
        )
    shape = np.fromfile(file, ">i4", dimensions, offset=4)
    kind = kinds[int(head[2])]
    start = 4 + 4 * dimensions
    expected = start + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    size = file.stat().st_size
    if len(shape) < dimensions or (shape < 0).any() or size != expected:
        raise BadInput(
            f"{file} has {size:,} bytes, its header announces {expected:,}: it was cut off.",
            remedy="delete it to fetch it again",
        )
    return np.fromfile(file, kind, offset=start).reshape(shape)


def read_pickle(file: Path, key: str) -> dict[str, Any]:
    """The dict in a pickle of arrays, lists, strings and numbers, written by Python 2 or 3.

    Raises:
        BadInput: it is damaged, holds anything else, or lacks ``key``.
    """
    try:
        with open(file, "rb") as stream:
            content = _PlainUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly every built-in exception
        raise BadInput(
            f"{file} cannot be read: {type(error).__name__}: {error}.", remedy="delete it to fetch it again"
        ) from error
    if not isinstance(content, dict) or key not in content:
        raise BadInput(f"{file} does not hold {key!r}.", remedy="delete it to fetch it again")
    return {name: value.array if isinstance(value, _Array) else value for name, value in content.items()}


class _Type:
    """Stands in for ``numpy.dtype``: types of plain numbers and characters."""

    def __init__(self, name: str, *flags: bool) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biufSU":
            raise pickle.UnpicklingError(f"it holds an array of {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``, whose ``__setstate__`` can be made to take bytes for pointers."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if isinstance(content, str):  # Python 2's bytes
            content = content.encode("latin1")
        self.array = _array(content, kind, shape, "F" if fortran else "C")


def _array(content: bytes, kind: _Type, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order).copy()


class _PlainUnpickler(pickle.Unpickler):
    """Builds arrays, lists, strings and numbers, and refuses all else, since a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        stand_ins: dict[str, Any] = {
            "ndarray": "ndarray",  # an argument of _reconstruct; it cannot be called
            "dtype": _Type,
            "_reconstruct": lambda *_: _Array(),
            "_frombuffer": _array,
            "scalar": lambda kind, content: _array(content, kind, (1,))[0],
        }
        if module.partition(".")[0] == "numpy" and name in stand_ins:
            return stand_ins[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a number")
