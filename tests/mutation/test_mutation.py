"""A fast part of the mutation suite: planted faults are found and named, honest artifacts pass.

`make mutation` runs the whole catalogue, shows it to other gates, and writes the table.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.mutation.catalogue import BY_NAME, CATALOGUE
from tests.mutation.files import edit_onnx
from tests.mutation.table import BEGIN, END, README, ROOT_README
from tests.mutation.workshop import Workshop, rehash

TARGETS = ("onnx", "openvino", "coreml")
FAST = (
    "element-x1.001", "transposed", "nan", "zero-bias", "eps-group", "tanh-gelu", "padding", "positions",
    "output-renamed", "changed-byte",
)  # fmt: skip

FOLDED = {("coreml", "positions")}
"""The lookup of fixed positions is a constant there, so what it enters is the first value there is."""


@pytest.fixture(scope="session")
def shop(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mutation"), str(tiny))


@pytest.mark.parametrize("target", TARGETS)
def test_the_honest_artifact_passes(shop: Workshop, target: str) -> None:
    outcome = shop.judge(shop.honest(target))
    assert outcome.verdict == "PASS", outcome.reason
    assert outcome.ratio is not None and 0 < outcome.ratio <= 1


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_fault_is_found_and_named(shop: Workshop, target: str, name: str) -> None:
    fault = BY_NAME[name]
    outcome = shop.judge(fault.plant(shop, target))
    assert outcome.detected, f"{fault.title}: {outcome.verdict}, error ÷ limit {outcome.ratio}"
    module = fault.module(shop)
    if (target, name) in FOLDED and module is not None:
        module = module.rpartition(".")[0]
    if module is not None:
        assert outcome.blamed == module, outcome.reason


def test_data_outside_the_folder_is_refused(shop: Workshop) -> None:
    root = shop.copy("onnx", "vae_encoder", "outside")
    data = root / "vae_encoder" / "model.onnx_data"
    (root.parent / "elsewhere").write_bytes(data.read_bytes())

    def point(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../../elsewhere"

    edit_onnx(root / "vae_encoder", point)
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
    assert "MISSED" not in written(README) and "FALSE ALARM" not in written(README)


def test_every_fault_is_told_apart() -> None:
    assert len({fault.title for fault in CATALOGUE}) == len(CATALOGUE)
    assert len(CATALOGUE) >= 40
