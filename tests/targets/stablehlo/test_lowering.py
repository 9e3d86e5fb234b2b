"""Every lowering against PyTorch's own operator, over drawn shapes, dtypes and attributes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.targets.stablehlo.lowering import TABLE, dtype_of
from tests.targets.stablehlo.operators import CASES

LIMITS = {"float32": 2e-5, "bfloat16": 2e-2, "float64": 2e-5}
"""Of the largest number of a result: a few roundings of that dtype."""


def overload(name: str) -> Any:
    space, operator, kind = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), operator), kind)


def to_jax(value: Any) -> Any:
    if isinstance(value, list):
        return [to_jax(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return value
    plain = value.float() if value.dtype == torch.bfloat16 else value
    return jnp.asarray(plain.numpy(), dtype_of(value.dtype))


def agree(name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    expected = overload(name)(*arguments, **keywords)
    with jax.enable_x64(True):
        found = TABLE[name](*(to_jax(one) for one in arguments), **keywords)
    many = isinstance(expected, list | tuple)
    pairs = list(zip(found, expected, strict=True)) if many else [(found, expected)]
    # A norm's mean and rate are for the backward pass, and never part of what is exported.
    for value, wanted in pairs[:1] if "_norm" in name else pairs:
        kind = str(wanted.dtype).removeprefix("torch.")
        assert str(value.dtype) == kind, f"{value.dtype}, not {kind}"
        assert value.shape == tuple(wanted.shape)
        close(np.asarray(value.astype(jnp.float32)), wanted.float().numpy(), LIMITS.get(kind, 0.0))


def close(found: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    largest = max(np.abs(wanted[finite]).max(initial=0.0), 1e-3)
    assert np.abs(found[finite] - wanted[finite]).max(initial=0.0) <= limit * largest


def test_every_lowering_is_tested_here() -> None:
    assert set(CASES) == set(TABLE)


@pytest.mark.parametrize("name", sorted(CASES))
def test_as_pytorch(name: str) -> None:
    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        agree(name, *CASES[name](data.draw))

    check()


def test_an_id_beyond_the_table_is_no_other_token() -> None:
    """PyTorch raises, JAX cannot: what it gives must not look like an answer."""
    with jax.enable_x64(True):
        found = TABLE["aten.embedding.default"](jnp.ones((3, 2)), jnp.asarray([0, 3, -1]))
    assert np.isnan(np.asarray(found)).tolist() == [[False] * 2, [True] * 2, [True] * 2]


def test_a_row_that_is_masked_whole_is_zero() -> None:
    query = torch.randn(1, 1, 2, 4)
    mask = torch.tensor([[True, False], [False, False]])
    agree("aten.scaled_dot_product_attention.default", [query, query, query, mask], {})


def test_a_large_mean_is_not_lost_in_a_norm() -> None:
    """In one pass (the mean of squares less the square of the mean) a hundredth would be off."""
    value = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) + 1000
    truth = torch.nn.functional.layer_norm(value.double(), [64]).numpy()
    found = TABLE["aten.native_layer_norm.default"](to_jax(value), [64], None, None, 1e-5)[0]
    assert np.abs(np.asarray(found) - truth).max() <= 1e-4


def test_fewer_key_heads_than_query_heads() -> None:
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    agree("aten.scaled_dot_product_attention.default", [query, key, key], {"enable_gqa": True})
