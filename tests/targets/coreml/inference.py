"""coremltools' own evaluation of an operation over constants: a source independent of the interpreter."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813

from exporter.targets.coreml.interpreter.machine import OPERATIONS  # noqa: E402

TARGET = ct.target.iOS18


def infer(kind: str, opset: Any = TARGET, **inputs: Any) -> Any:
    """What coremltools computes for constant inputs: an array, a tuple of arrays, or None where it cannot."""
    found: list[Any] = []

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=opset)
    def program(x: Any) -> Any:
        found.append(getattr(mb, kind)(**inputs))
        return mb.identity(x=x)

    (result,) = found
    if isinstance(result, tuple | list):
        return tuple(output.val for output in result)
    return result.val


def ours(kind: str, **inputs: Any) -> Any:
    """What the interpreter computes for the same inputs."""
    result = OPERATIONS[kind](**{name: tensor(value) for name, value in inputs.items()})
    return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()


def tensor(value: Any) -> Any:
    """An input as the interpreter gets it: tensors, strings, tuples of tensors."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) or (isinstance(value, list) and value and isinstance(value[0], np.ndarray)):
        return tuple(tensor(item) for item in value)
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def assert_same(mine: Any, theirs: Any, limit: float = 2e-6) -> None:
    """Shapes equal, and values within `limit` relative to the largest."""
    assert theirs is not None, "coremltools cannot evaluate this; compare with something else"
    if isinstance(theirs, tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b, limit)
        return
    truth = np.asarray(theirs)
    assert mine.shape == truth.shape
    if truth.dtype.kind in "biu":
        assert np.array_equal(mine.astype(np.int64), truth.astype(np.int64))
        return
    assert np.isfinite(truth).all()
    error = np.abs(mine.astype(np.float64) - truth.astype(np.float64)).max(initial=0)
    assert error <= limit * max(1.0, float(np.abs(truth).max(initial=0)))
