"""The way through Core ML itself, as far as it can be walked without a Mac.

Core ML is the one thing that is not here. The calls are held against coremltools' own signatures, and what
stands around them (names, dtypes, choices) is run with the interpreter behind coremltools' classes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import BackendMissing
from exporter.targets import RunOptions
from exporter.targets.coreml import CoremlTarget, load, native
from exporter.targets.coreml.native import compute_units, use_core_ml
from exporter.targets.coreml.package import open_package
from tests.targets.coreml.conftest import Exported
from tests.targets.coreml.inference import ct
from tests.targets.coreml.test_runner import arrays, unet_inputs


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Pretends to be a Mac: coremltools' classes compute in the interpreter. What was opened is noted."""
    opened: list[tuple[str, str]] = []

    class Standing:
        signature = inspect.signature(ct.models.MLModel.predict)

        def __init__(self, *given: Any, **named: Any) -> None:
            bound = self.opens.bind(None, *given, **named).arguments
            path = Path(next(bound[name] for name in ("model", "path") if name in bound))
            assert isinstance(bound["compute_units"], ct.ComputeUnit)
            opened.append((path.name, bound["compute_units"].name))
            package = (
                next(path.parent.parent.glob("*_unet.mlpackage")) if path.suffix != ".mlpackage" else path
            )
            self.model = load(package, mode="emulate", function=bound.get("function_name"))

        def predict(self, *given: Any, **named: Any) -> dict[str, np.ndarray]:
            data = self.signature.bind(self, *given, **named).arguments["data"]
            return self.model.predict(data)

    class Package(Standing):
        opens = inspect.signature(ct.models.MLModel.__init__)

    class Compiled(Standing):
        opens = inspect.signature(ct.models.CompiledMLModel.__init__)
        signature = inspect.signature(ct.models.CompiledMLModel.predict)

    monkeypatch.setattr(native.sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", Package)
    monkeypatch.setattr(ct.models, "CompiledMLModel", Compiled)
    return opened


@pytest.mark.parametrize("hint", ["f16", "default"])
def test_float16_is_computed_by_core_ml(half: Exported, mac: list[tuple[str, str]], hint: str) -> None:
    given = arrays(unet_inputs(half))
    with half.open("unet", precision_hint=hint, peaks=True) as runner:
        outputs = runner.run(given)
        assert runner.precision == "float16"
        assert outputs["out_sample"].dtype == np.float32
        assert len(runner.peaks()) > 100, "the interpreter tells them"
        assert runner.intermediates(given, ["conv_in"])["conv_in"].shape == (2, 32, 8, 8)
    with half.open("unet", precision_hint="f16", device="interpreter") as runner:
        assert np.array_equal(runner.run(given)["out_sample"], outputs["out_sample"])
    assert mac == [(half.package("unet").name, "ALL")]


def test_the_graph_is_computed_by_the_interpreter(half: Exported, mac: list[tuple[str, str]]) -> None:
    with half.open("unet", precision_hint="f32") as runner:
        assert runner.run(arrays(unet_inputs(half))) and runner.precision == "float32"
    assert [units for _, units in mac] == []


def test_the_compiled_model_is_run_where_there_is_one(
    half: Exported, mac: list[tuple[str, str]], tmp_path: Path
) -> None:
    import shutil

    record = half.records["unet"]
    shutil.copytree(half.package("unet"), tmp_path / record.entry)
    (tmp_path / "Resources" / "Unet.mlmodelc").mkdir(parents=True)
    (tmp_path / "Resources" / "SafetyChecker.mlmodelc").mkdir()
    target = CoremlTarget()
    with target.open(tmp_path, record, RunOptions(precision_hint="f16", device="cpu")) as runner:
        assert runner.run(arrays(unet_inputs(half)))
    assert mac == [("Unet.mlmodelc", "CPU_ONLY")]
    assert set(target.unchecked(tmp_path)) == {"Resources/SafetyChecker.mlmodelc"}


def test_off_a_mac_every_compiled_model_is_left(tmp_path: Path) -> None:
    (tmp_path / "Resources" / "Unet.mlmodelc").mkdir(parents=True)
    (tmp_path / "Resources" / "note.mlmodelc").write_text("a file")
    ((name, why),) = CoremlTarget().unchecked(tmp_path).items()
    assert name == "Resources/Unet.mlmodelc" and "copy the artifact to a Mac" in why
    assert CoremlTarget().unchecked(tmp_path / "nosuch") == {}


def test_units(half: Exported) -> None:
    package = open_package(half.package("unet"))
    for device, units in (
        (None, "ALL"), ("gpu", "CPU_AND_GPU"), ("cpu_and_ne", "CPU_AND_NE"), ("CPU_ONLY", "CPU_ONLY"),
    ):  # fmt: skip
        assert compute_units(package, RunOptions(device=device)) == units
        assert units in ct.ComputeUnit.__members__
    with pytest.raises(BackendMissing, match="'tpu'; it has: all, cpu, gpu, ne"):
        compute_units(package, RunOptions(device="tpu"))
    assert not use_core_ml(RunOptions()) and not use_core_ml(RunOptions(device="interpreter"))


def test_an_output_that_core_ml_does_not_give(half: Exported, mac: list[tuple[str, str]]) -> None:
    package = open_package(half.package("unet"))
    model = native.CoreMl(package, "unet", RunOptions())
    model.outputs.append("more")
    feeds = {f.name: np.zeros(f.shape, f.dtype) for f in load(package.path).inputs}
    with pytest.raises(RuntimeError, match="no output 'more'"):
        model.predict(feeds)
    with pytest.raises(RuntimeError, match="between input and output"):
        model.predict(feeds, keep=["x"])


def test_resources_are_compiled_on_a_mac(
    half: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a compiler of our own on the path: what the script does with its output is what is tested."""
    tools = tmp_path / "bin"
    tools.mkdir()
    compiler = tools / "xcrun"
    compiler.write_text(
        '#!/bin/sh\nset -e\n[ "$1 $2" = "coremlcompiler compile" ]\n[ -d "$3" ]\n'
        'made="$4$(basename "$3" .mlpackage).mlmodelc"\nmkdir -p "$made"\necho x > "$made/model.mil"\n'
    )
    compiler.chmod(0o755)
    import os
    import shutil

    from exporter.targets.coreml.resources import write_resources

    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(native.sys, "platform", "darwin")
    for name in ("unet", "vae_decoder"):
        shutil.copytree(half.package(name), tmp_path / "artifact" / half.records[name].entry)
    parts = [half.components[name] for name in ("unet", "vae_decoder")]
    files = write_resources(parts[0].checkpoint, parts, tmp_path / "artifact")
    names = {path.relative_to(tmp_path / "artifact").as_posix() for path in files}
    assert {"Resources/Unet.mlmodelc/model.mil", "Resources/VAEDecoder.mlmodelc/model.mil"} <= names
