"""A fast part of the mutation suite: planted faults are found and named, honest artifacts pass.

`make mutation` runs the whole catalogue, shows it to other gates, and writes the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.mutation import honest
from tests.mutation.blob import Blob
from tests.mutation.catalogue import BY_NAME, CATALOGUE
from tests.mutation.faults import CaptureFault
from tests.mutation.formats import FORMATS, available, blobs, format_of, part
from tests.mutation.formats.common import plain
from tests.mutation.formats.onnx import edit_onnx
from tests.mutation.formats.torchscript import EDITS as TORCHSCRIPT
from tests.mutation.honest import AT_LEAST, plan
from tests.mutation.table import BEGIN, END, PARITY_README, README, ROOT_README, Results
from tests.mutation.workshop import Workshop, capturing, rehash

TARGETS = available()
FAST = (
    "element-x1.001", "nan", "tanh-gelu", "padding", "output-renamed", "changed-byte",
    "says-float16", "names-exchanged",
)  # fmt: skip
DEEP = ("transposed", "int8", "eps-group", "positions")
"""Faults inside blocks of three components, planted in weights and in what the exporter captures."""


def made(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(target, fault) of those that can be made."""
    return [(t, n) for t in TARGETS for n in names if BY_NAME[n].why_not(format_of(t)) is None]


def tiered(cases: list[Any], slow: Callable[[Any], bool]) -> list[Any]:
    """The slow ones are for `make test-full`: compiling them takes minutes. The tests of those formats judge
    an honest artifact and a faulty one too."""
    return [pytest.param(case, marks=[pytest.mark.full] if slow(case) else []) for case in cases]


@pytest.fixture(scope="session")
def shop(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mutation"), str(tiny))


@pytest.mark.parametrize("target", tiered(TARGETS, lambda target: target == "stablehlo"))
def test_the_honest_artifact_passes(shop: Workshop, target: str) -> None:
    outcome = shop.judge(shop.honest(target), trust=False)
    assert outcome.verdict == "PASS", outcome.reason
    assert outcome.ratio is not None and 0 < outcome.ratio <= 1


def test_a_safetensors_artifact_of_one_component_passes(tmp_path: Path) -> None:
    """Its index names that one alone; what the family needs besides is known by the configs beside it."""
    rows = list(honest.run(tmp_path, plan(["safetensors"])[:4]))
    assert {row.component for row in rows} == set(honest.COMPONENTS)
    assert [row.verdict for row in rows] == ["PASS"] * 4, [row.reason for row in rows]


@pytest.mark.parametrize(
    "case",
    tiered(made(FAST), lambda case: case[0] == "stablehlo" and case[1] != "changed-byte"),
    ids="-".join,
)
def test_a_planted_fault_is_found_and_named(shop: Workshop, case: tuple[str, str]) -> None:
    target, name = case
    fault = BY_NAME[name]
    outcome = shop.judge(fault.plant(shop, target))
    assert outcome.detected, f"{fault.title}: {outcome.verdict}, error ÷ limit {outcome.ratio}"
    module = fault.named_in(shop, format_of(target))
    if module is not None:
        assert outcome.blamed == module, outcome.reason


@pytest.mark.parametrize("target", tiered(TARGETS, lambda target: target in ("stablehlo", "pt2")))
def test_bisection_ends_at_the_module_that_holds_the_fault(shop: Workshop, target: str) -> None:
    """By its diffusers path, in every format."""
    known = format_of(target)
    faults = [BY_NAME[name] for _, name in made(DEEP) if _ == target]
    assert faults or target not in FORMATS
    for fault in faults:
        outcome = shop.judge(fault.plant(shop, target))
        assert outcome.verdict == "FAIL", f"{fault.title}: {outcome.reason}"
        assert outcome.blamed == fault.named_in(shop, known), f"{fault.title}: {outcome.reason}"


def test_a_program_with_a_fault_in_it_is_not_opened_untrusted(shop: Workshop) -> None:
    """Its bytes were not made here, whatever the manifest says of them."""
    root = BY_NAME["element-x1.001"].plant(shop, "torchscript")
    outcome = shop.judge(root, bisect=False, trust=False)
    assert outcome.verdict == "REFUSED" and "was not made by this installation" in outcome.reason


def test_a_program_that_gives_another_dtype_than_it_declares(shop: Workshop) -> None:
    """Where it computes in float16, rounding the output to that lies within the limit: only looking tells."""
    root = shop.copy("torchscript", "unet", "half-output")
    shop.export(root, shop.components["unet"], {"dtype": "float16"})
    assert shop.judge(root, bisect=False).verdict == "PASS"
    TORCHSCRIPT["output-dtype"](shop, root)
    rehash(root)
    outcome = shop.judge(root, bisect=False)
    assert outcome.verdict == "FAIL" and "as float16, float32 is declared" in outcome.reason


def test_numbers_are_found_where_the_formats_keep_them(shop: Workshop) -> None:
    """Every weight of the checkpoint, read from the artifact's bytes without the format's library."""
    from safetensors.numpy import load_file

    wanted = load_file(Path(shop.source) / "unet" / "diffusion_pytorch_model.safetensors")
    for target in ("safetensors", "torchscript"):
        stored: list[Blob] = blobs(shop.copy(target, "unet", "read"))
        assert {(b.shape, b.read().tobytes()) for b in stored} == {
            (w.shape, w.tobytes()) for w in wanted.values()
        }


def test_a_fault_that_was_not_planted_is_an_error() -> None:
    with pytest.raises(LookupError, match="no module was captured"), capturing(lambda module: None):
        pass


def test_every_target_is_covered() -> None:
    """One that nobody described here still gets every fault that needs no knowledge of its files."""
    from exporter.targets import target_names

    assert {known.target for known in map(format_of, TARGETS)} <= set(target_names())
    assert all(sum(f.why_not(format_of(t)) is None for f in CATALOGUE) >= 35 for t in FORMATS)
    unknown = plain("onnx")
    can = [fault for fault in CATALOGUE if fault.why_not(unknown) is None]
    assert {"changed-byte", "cut-short", "says-float16", "other-seed"} <= {fault.name for fault in can}
    assert sum(isinstance(fault, CaptureFault) for fault in can) >= 15


@pytest.mark.parametrize("target", sorted(FORMATS))
def test_enough_honest_conversions_of_each(target: str) -> None:
    conversions = plan([target])
    assert len(conversions) >= AT_LEAST >= 50
    assert len({conversion.label for conversion in conversions}) == len(conversions)
    assert len({conversion.seed for conversion in conversions}) >= 3
    assert len({str(conversion.options.get("dtype")) for conversion in conversions}) >= 2


def test_data_outside_the_folder_is_refused(shop: Workshop) -> None:
    root = shop.copy("onnx", "vae_encoder", "outside")
    data = root / "vae_encoder" / "model.onnx_data"
    (root.parent / "elsewhere").write_bytes(data.read_bytes())

    def point(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../../elsewhere"

    edit_onnx(part(root), point)
    rehash(root)
    outcome = shop.judge(root)
    assert outcome.detected and "outside its folder" in outcome.reason


@pytest.mark.parametrize("name", ["element-x1.001", "tanh-gelu", "eps-group"])
def test_what_a_fault_costs_is_what_the_verifier_measures(shop: Workshop, name: str) -> None:
    """Two ways to one number: float64 PyTorch with the fault, and the faulty artifact."""
    fault = BY_NAME[name]
    plant = fault.in_torch(shop)
    assert plant is not None
    cost = shop.cost(fault.component, plant)
    measured = shop.judge(fault.plant(shop, "onnx"), bisect=False).ratio
    assert measured is not None and cost.limits > 1
    assert measured == pytest.approx(cost.limits, rel=0.25)


def test_nothing_changed_costs_nothing(shop: Workshop) -> None:
    cost = shop.cost("unet", lambda module: None)
    assert (cost.floors, cost.limits) == (0.0, 0.0)


def test_the_project_shows_the_totals_of_the_same_run() -> None:
    def written(path: Path) -> str:
        return path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()

    totals = written(ROOT_README)
    assert "**exporter**" in totals and totals in written(README)
    assert totals == written(PARITY_README)
    assert "MISSED" not in written(README) and "FALSE ALARM" not in written(README)
    for target in FORMATS:
        title = format_of(target).title
        assert f"| **exporter** | {title} | " in totals, target


def test_what_does_not_apply_is_said_and_why() -> None:
    results = Results([], [], [])
    assert not results.sound, "nothing was looked at"
    for target in FORMATS:
        for name, fault in BY_NAME.items():
            reason = fault.why_not(format_of(target))
            assert reason is None or len(reason.split()) >= 4, (target, name)


def test_every_fault_is_told_apart() -> None:
    assert len({fault.title for fault in CATALOGUE}) == len(CATALOGUE)
    assert len(CATALOGUE) >= 40
