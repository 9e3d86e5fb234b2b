"""A LoRA in a Core ML package: it is in the weights, and those are what is compressed and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.conversion import Conversion, convert, make_plan
from exporter.parity import verify
from exporter.targets.coreml.package import open_package
from tests.checkpoints import conftest as loras
from tests.checkpoints.conftest import LAYERS, pairs, write

QUICK = {"steps": 1, "samples": 1, "prompts": ["a red star"], "pipeline": False}
MODULES = ("text_encoder", "unet")


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    folder = tmp_path_factory.mktemp("lora")
    file = write(folder / "style.safetensors", loras.kohya(pairs()))
    plan = make_plan(
        str(tiny), "coreml", folder / "out", {"palettize": "6"},
        components=list(MODULES), intake={"loras": [f"{file}:0.5"]}, verify=False,
    )  # fmt: skip
    return convert(plan)


def test_it_is_judged_as_what_it_is(made: Conversion, truths: Path) -> None:
    """Nearest codes, and the graph with its own weights. What six bits cost a random model is not asked."""
    report = verify(made.artifact.root, cache=truths, min_sqnr=3, **QUICK)  # type: ignore[arg-type]
    assert report.verdict == "PASS", report.summary
    for component in report.components:
        assert {run.truth for run in component.runs} == {"float32"}, "its weights are sums, rounded"
        checked = {check.name for check in component.compression.weights} if component.compression else set()
        assert {f"{name}.weight" for name in LAYERS[component.name] if large(component.name, name)} <= checked


def large(component: str, name: str) -> bool:
    """Weights of fewer than 2048 numbers are left as they are."""
    import math

    return math.prod(LAYERS[component][name]) >= 2048


def test_nothing_is_computed_beside_the_weights(made: Conversion, half: object) -> None:
    """As many operations as without a LoRA, and the layers it changes are among those that are compressed."""
    for record in made.artifact.manifest.components:
        mine = open_package(made.artifact.root / record.entry)
        plain = open_package(half.package(record.name))  # type: ignore[attr-defined]
        kinds = [
            sorted(op.type.replace("constexpr_lut_to_dense", "const") for op in operations(p))
            for p in (mine, plain)
        ]
        assert kinds[0] == kinds[1], record.name
        assert json.loads(mine.metadata["exporter.modules"]).keys() == json.loads(
            plain.metadata["exporter.modules"]
        ).keys()  # fmt: skip


def operations(package: object):
    function = package.spec.mlProgram.functions["main"]  # type: ignore[attr-defined]
    return function.block_specializations[function.opset].operations
