"""Bits by measured sensitivity."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.targets.coreml import load
from exporter.targets.coreml.compression import COMPRESSED_KEY
from exporter.targets.coreml.package import open_package
from exporter.targets.coreml.palettes import PALETTE_BITS
from exporter.targets.coreml.sensitivity import recipe, sqnr
from tests.targets.coreml.conftest import export

LEVELS = st.lists(st.floats(0, 60), min_size=len(PALETTE_BITS), max_size=len(PALETTE_BITS)).map(sorted)


def mean(chosen: dict[str, int], sizes: dict[str, int]) -> float:
    return sum(bits * sizes[name] for name, bits in chosen.items()) / sum(sizes.values())


@given(
    levels=st.lists(LEVELS, min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 1000), min_size=8, max_size=8),
    average=st.floats(1, 8),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_a_recipe_keeps_to_its_budget(levels: list[list[float]], sizes: list[int], average: float) -> None:
    found = {f"w{i}": dict(zip(PALETTE_BITS, by_bits, strict=True)) for i, by_bits in enumerate(levels)}
    numbers = {name: sizes[i] for i, name in enumerate(found)}
    chosen = recipe(found, numbers, average)
    assert set(chosen) == set(found) and set(chosen.values()) <= set(PALETTE_BITS)
    assert mean(chosen, numbers) <= average + 1e-9


def test_the_sensitive_get_more_bits() -> None:
    robust = dict(zip(PALETTE_BITS, (20.0, 30.0, 40.0, 50.0, 60.0), strict=True))
    fragile = dict(zip(PALETTE_BITS, (1.0, 5.0, 12.0, 22.0, 31.0), strict=True))
    sizes = {"robust": 100, "fragile": 100}
    chosen = recipe({"robust": robust, "fragile": fragile}, sizes, 4.5)
    assert chosen["fragile"] > chosen["robust"] and mean(chosen, sizes) <= 4.5
    assert recipe({"robust": robust, "fragile": fragile}, sizes, 8) == {"robust": 8, "fragile": 8}
    assert recipe({"robust": robust, "fragile": fragile}, sizes, 1) == {"robust": 1, "fragile": 1}


def test_sqnr_is_no_number_where_nothing_can_be_compared() -> None:
    ones = torch.ones(4)
    assert sqnr(ones, ones) == math.inf
    assert math.isclose(sqnr(ones * 1.1, ones), 20.0, rel_tol=1e-5)
    assert math.isnan(sqnr(ones * math.nan, ones))
    broken = {"a": dict.fromkeys(PALETTE_BITS, math.nan)}
    assert recipe(broken, {"a": 10}, 4)["a"] in PALETTE_BITS


def test_a_package_has_the_bits_that_were_measured(tiny: Path, tmp_path: Path) -> None:
    made = export(tiny, tmp_path, ("text_encoder",), palettize=["mixed:4"])
    record = made.records["text_encoder"]
    details = record.details["compression"]
    assert record.dtype == "palette-mixed" and details["scheme"] == "palette-mixed4"
    assert 1 <= details["average_bits"] <= 4
    assert set(details["sensitivity"]) == set(details["weights"])
    for by_bits in details["sensitivity"].values():
        assert by_bits["1"] < by_bits["4"] < by_bits["8"]
    noted = json.loads(open_package(made.package("text_encoder")).metadata[COMPRESSED_KEY])
    assert {name: each["how"] for each in noted.values() for name in each["weights"]} == details["weights"]
    kinds = [step.kind for step in load(made.package("text_encoder")).program.steps]
    assert kinds.count("constexpr_lut_to_dense") == len(noted)
