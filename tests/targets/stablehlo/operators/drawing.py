"""Arguments for every operator that has a lowering: shapes, dtypes and attributes drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

Call = tuple[list[Any], dict[str, Any]]
Draw = Callable[[st.SearchStrategy[Any]], Any]
CASES: dict[str, Callable[[Draw], Call]] = {}
FLOATS = (torch.float32, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32)
ANY = (*NUMBERS, torch.bool)


def case(*names: str) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    def register(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        for name in names:
            assert name not in CASES, name
            CASES[name] = make
        return make

    return register


def shape(draw: Draw, least: int = 0, most: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 5), min_size=least, max_size=most)))


def tensor(draw: Draw, size: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS) -> torch.Tensor:
    """Unit noise, or integers from -9 to 9."""
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if dtype == torch.bool:
        return torch.rand(size, generator=generator) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(-9, 10, size, generator=generator, dtype=dtype)
    return torch.randn(size, generator=generator).to(dtype)


def axis(draw: Draw, value: torch.Tensor) -> int:
    return draw(st.integers(-value.dim(), value.dim() - 1))


def broadcast(draw: Draw, size: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to this one."""
    kept = size[draw(st.integers(0, len(size))) :]
    return tuple(n if draw(st.booleans()) else 1 for n in kept)


def number(draw: Draw) -> Any:
    return draw(st.one_of(st.integers(1, 5), st.floats(0.25, 4, width=32)))


def two(draw: Draw, dtypes: tuple[torch.dtype, ...] = NUMBERS) -> list[torch.Tensor]:
    """Two tensors of dtypes of their own, one of which broadcasts to the other."""
    size = shape(draw)
    pair = [tensor(draw, size, dtypes), tensor(draw, broadcast(draw, size), dtypes)]
    return pair if draw(st.booleans()) else pair[::-1]


def dims(draw: Draw, value: torch.Tensor) -> list[int]:
    every = list(range(value.dim()))
    return sorted(draw(st.sets(st.sampled_from(every), min_size=1)))
