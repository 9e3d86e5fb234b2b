"""Tables of one format written into a page that has those of others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutation import pages
from tests.mutation.catalogue import BY_NAME
from tests.mutation.formats import FORMATS, format_of
from tests.mutation.honest import HonestRow
from tests.mutation.suite import Calm, Row
from tests.mutation.table import BEGIN, END, README, Results


def row(fault: str, target: str, ratio: float, **changes: object) -> Row:
    found = Row(
        fault=fault, title=BY_NAME[fault].title, component="unet", place="file", target=target,
        by_sight=False, floors=70.0, limits=17.0, verdict="FAIL", detected=True, ratio=ratio, module="a.b",
        blamed="a.b", reason="", peers={"allclose": False},
    )  # fmt: skip
    return replace(found, **changes)


def results(target: str, ratio: float, *, faults: tuple[str, ...] = ("element-x1.001", "nan")) -> Results:
    label = f"{target}-unet-float32-seed0"
    return Results(
        [row(fault, target, ratio) for fault in faults],
        [Calm("unet", target, "PASS", {"allclose": False}, {})],
        [HonestRow(label, target, "unet", "PASS", {"graph": 0.5}, "", 1.0)],
    )


def page(of: Results) -> str:
    return f"{of.markdown()}\n\n```\n{of.summary()}\n```"


def test_two_runs_give_the_page_of_one_run_of_both() -> None:
    """Whichever was first, and with a fault that only one of them can have."""
    one, other = (
        results("onnx", 4.2, faults=("element-x1.001", "nan", "tanh-gelu")),
        results("stablehlo", 4.1),
    )
    both = Results([*one.faults, *other.faults], [*one.calm, *other.calm], [*one.honest, *other.honest])
    for first, second in ((one, other), (other, one)):
        written = pages.whole(page(first), second)
        assert set(written.splitlines()) == set(page(both).splitlines())
        assert pages.totals("\n".join(first.totals()), second) == "\n".join(both.totals())


def test_what_the_page_says_of_other_formats_stays() -> None:
    """On the real page: nothing is lost by writing a format's results once more without conversions."""
    old = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    again = replace(results("onnx", 4.2), honest=[])
    with pytest.raises(ValueError, match="run every format together"):
        pages.whole(old, again)
    lines = pages.totals(old.split("\n\n")[0], again).splitlines()
    kept = [
        line for line in old.split("\n\n")[0].splitlines() if f"| {format_of('onnx').title} |" not in line
    ]
    others = [line for line in lines if f"| {format_of('onnx').title} |" not in line]
    assert sorted(others) == sorted(kept)


def test_a_missed_fault_is_not_hidden() -> None:
    bad = results("stablehlo", 4.1)
    bad.faults[0] = replace(bad.faults[0], detected=False, verdict="PASS")
    bad.honest[0] = replace(bad.honest[0], verdict="FAIL")
    written = pages.whole(page(results("onnx", 4.2)), bad)
    assert "**missed**" in written and "MISSED: " in written and "FALSE ALARM: " in written
    assert "| **exporter** | StableHLO | 1 of 2 (50 %) | 1 of 2 |" in written


def test_every_format_has_its_place() -> None:
    assert [format_of(name).title for name in FORMATS] == pages.TITLES
