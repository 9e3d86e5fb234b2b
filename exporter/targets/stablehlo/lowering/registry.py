"""One function per ATen operator, and what torch and JAX disagree about: promotion of dtypes, precision.

A lowering takes what the operator takes, with `jax.Array` for tensors, and gives what it gives. Sizes may be
symbols of `jax.export`. It is called while JAX is in 64-bit mode: int64 and float64 stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Lowering = Callable[..., Any]
TABLE: dict[str, Lowering] = {}
"""By the name of the overload: `aten.mm.default`."""

DTYPES: dict[str, Any] = {
    "bool": jnp.bool_, "uint8": jnp.uint8, "int8": jnp.int8, "int16": jnp.int16, "int32": jnp.int32,
    "int64": jnp.int64, "float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32,
    "float64": jnp.float64,
}  # fmt: skip
WIDE = {"float16": jnp.float32, "bfloat16": jnp.float32}
"""What torch accumulates narrow numbers in."""


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of these overloads."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            if name in TABLE:
                raise ValueError(f"{name} has a lowering already")
            TABLE[name] = function
        return function

    return register


def dtype_of(dtype: Any) -> Any:
    """torch's dtype (or its name) as JAX's."""
    return DTYPES[str(dtype).removeprefix("torch.")]


def is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def _category(dtype: Any) -> int:
    if dtype == jnp.bool_:
        return 0
    return 1 if jnp.issubdtype(dtype, jnp.integer) else 2


def result_dtype(*values: Any) -> Any:
    """The dtype torch gives an operation on these arrays and Python numbers.

    Arrays with dims decide; arrays without decide only by a higher kind (bool, integer, floating), and
    numbers after those. JAX's own rules differ (an int64 and a float are float64 there).
    """
    groups = (
        [value.dtype for value in values if is_array(value) and value.ndim],
        [value.dtype for value in values if is_array(value) and not value.ndim],
        [_number_dtype(value) for value in values if value is not None and not is_array(value)],
    )
    found: Any = None
    for group in groups:
        best: Any = None
        for dtype in group:
            best = dtype if best is None else _promoted(best, dtype)
        if found is None or (best is not None and _category(best) > _category(found)):
            found = best
    return found


def _promoted(one: Any, other: Any) -> Any:
    if _category(one) != _category(other):
        return max(one, other, key=_category)
    return jnp.promote_types(one, other)


def _number_dtype(value: Any) -> Any:
    if isinstance(value, bool):
        return jnp.dtype(jnp.bool_)
    return jnp.dtype(jnp.float32 if isinstance(value, float) else jnp.int64)


def as_dtype(value: Any, dtype: Any) -> Any:
    """An array or number (also a symbolic size) as an array of a dtype."""
    return lax.convert_element_type(value, dtype) if is_array(value) else jnp.asarray(value, dtype)


def together(*values: Any) -> list[Any]:
    """Arrays and numbers in their common dtype."""
    dtype = result_dtype(*values)
    return [as_dtype(value, dtype) for value in values]


def floating(value: Any) -> Any:
    """Integers and booleans as float32, as torch does before a sine or a division."""
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.float32)


def wide(value: Any) -> Any:
    """float16 and bfloat16 as float32; others as they are."""
    return value.astype(WIDE.get(str(value.dtype), value.dtype))


def precision_for(*values: Any) -> Any:
    """Of products. By default TPUs multiply float32 as bfloat16 and NVIDIA's GPUs as TF32."""
    narrow = all(str(value.dtype) in WIDE for value in values)
    return lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST


def axes_of(dims: Any, rank: int) -> tuple[int, ...]:
    """Dims as torch gives them (None, a number, a list; negative ones too) as axes; none named is all."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return tuple(range(rank))
    given = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(dim % rank if rank else 0 for dim in given)) if rank else ()
