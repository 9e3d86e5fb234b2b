"""Opening OpenVINO files: strict inputs, the arithmetic told truly, module outputs, damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import Size
from exporter.errors import ArtifactError, BackendMissing, UsageError
from exporter.targets import RunOptions
from exporter.targets.openvino import OpenVinoTarget
from tests.targets.openvino.conftest import NAMES, Exported, arrays, errors, relative

SIZE = Size(batch=2, height=64, width=64, sequence=77, factor=8)


def has_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_computes_in_float32_unless_told_otherwise(exported: Exported, half: Exported) -> None:
    for artifact in (exported, half):
        record = artifact.records["unet"]
        with OpenVinoTarget().open(artifact.root, record) as runner:
            assert runner.precision == "float32"


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("name", NAMES)
def test_says_when_openvino_chooses_bfloat16(exported: Exported, name: str) -> None:
    for hint in ("default", "bf16"):
        with exported.open(name, precision_hint=hint) as runner:
            assert runner.precision == "bfloat16"
    coarse = max(errors(exported, name, SIZE, precision_hint="bf16"))
    assert coarse > 100 * max(errors(exported, name, SIZE))


@pytest.fixture(scope="module")
def inputs(exported: Exported) -> dict[str, np.ndarray]:
    with exported.open("unet") as runner:
        return arrays(runner, exported.components["unet"].example_inputs(SIZE))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sample": None}, ValueError),
        ({"more": np.zeros(1, np.float32)}, ValueError),
        ({"sample": np.zeros((2, 4, 8, 8), np.float16)}, ValueError),
        ({"sample": np.zeros((2, 4, 8, 8), np.float64)}, ValueError),
        ({"timestep": np.zeros(1, np.float32)}, ValueError),
        ({"timestep": np.zeros(1, np.int32)}, ValueError),
        ({"timestep": np.zeros((), np.int64)}, RuntimeError),
        ({"timestep": np.zeros(2, np.int64)}, RuntimeError),
        ({"sample": np.zeros((2, 3, 8, 8), np.float32)}, RuntimeError),
        ({"encoder_hidden_states": np.zeros((2, 77, 31), np.float32)}, RuntimeError),
        ({"encoder_hidden_states": np.zeros((3, 77, 32), np.float32)}, RuntimeError),
    ],
    ids=lambda v: str(next(iter(v))) if isinstance(v, dict) else v.__name__,
)
def test_refuses_inputs_other_than_declared(
    exported: Exported, inputs: dict[str, np.ndarray], change: dict[str, Any], error: type[Exception]
) -> None:
    wrong = {k: v for k, v in {**inputs, **change}.items() if v is not None}
    with exported.open("unet") as runner:
        with pytest.raises(error):
            runner.run(wrong)
        assert np.isfinite(runner.run(inputs)["out_sample"]).all()  # and is not the worse for it


def test_results_are_not_overwritten_by_the_next_run(
    exported: Exported, inputs: dict[str, np.ndarray]
) -> None:
    with exported.open("unet") as runner:
        first = runner.run(inputs)["out_sample"]
        kept = first.copy()
        runner.run({**inputs, "timestep": np.array([1], np.int64)})
        assert np.array_equal(first, kept)
        view = np.asfortranarray(inputs["sample"])
        assert np.array_equal(runner.run({**inputs, "sample": view})["out_sample"], kept)


@pytest.mark.parametrize("name", NAMES)
def test_module_outputs_equal_those_of_pytorch(exported: Exported, name: str) -> None:
    component = exported.components[name]
    tensors = component.example_inputs(SIZE)
    module = component.reference_module()
    seen: dict[str, Any] = {}
    for path, part in module.named_modules():
        if path.startswith("inner."):
            key = path.removeprefix("inner.")
            part.register_forward_hook(lambda m, i, out, key=key: seen.__setitem__(key, out))
    with torch.no_grad():
        module(**tensors)
    with exported.open(name) as runner:
        names = runner.module_names()
        values = runner.intermediates(arrays(runner, tensors), names)
    leaves = {path for path in seen if any(True for _ in module.inner.get_submodule(path).parameters())}
    assert len(leaves - set(names)) <= 0.05 * len(leaves), sorted(leaves - set(names))
    assert list(values) == names
    for path in names:
        assert relative(values[path], first_tensor(seen[path])) <= 1e-4, path


def first_tensor(output: Any) -> torch.Tensor:
    """The tensor a module returns, alone or first in a tuple or an output object."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def test_modules_come_in_order_of_execution(exported: Exported) -> None:
    with exported.open("unet") as runner:
        names = runner.module_names()
    wanted = ["conv_in", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv1", "conv_norm_out"]
    assert [names.index(n) for n in wanted] == sorted(names.index(n) for n in wanted)


def test_running_still_works_after_looking_inside(exported: Exported, inputs: dict[str, np.ndarray]) -> None:
    with exported.open("unet") as runner:
        before = runner.run(inputs)["out_sample"]
        assert runner.intermediates(inputs, []) == {}
        inside = runner.intermediates(inputs, ["conv_in", "conv_in"])
        assert list(inside) == ["conv_in"]
        assert np.array_equal(runner.run(inputs)["out_sample"], before)
        with pytest.raises(ValueError, match="no_such_module"):
            runner.intermediates(inputs, ["no_such_module"])


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Exported:
    folder = tmp_path / "copy"
    shutil.copytree(exported.root / "text_encoder", folder / "text_encoder")
    return Exported(folder, exported.components, exported.records)


@pytest.mark.parametrize("file", ["openvino_model.xml", "openvino_model.bin"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damaged_files_give_one_sentence(copy: Exported, file: str, damage: str) -> None:
    path = copy.root / "text_encoder" / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 2000 if damage == "truncated" else 0])
    with pytest.raises(ArtifactError) as caught:
        copy.open("text_encoder")
    assert "openvino_model" in caught.value.message
    assert ".cpp" not in caught.value.message
    assert "\n" not in caught.value.message


def test_damaged_module_notes_are_said(copy: Exported) -> None:
    path = copy.root / "text_encoder" / "openvino_model.xml"
    text = path.read_text()
    assert "<modules value=" in text
    path.write_text(text.replace('<modules value="', '<modules value="['))
    with pytest.raises(ArtifactError, match="modules"):
        copy.open("text_encoder")


def test_file_of_another_maker_has_no_modules_but_runs(copy: Exported) -> None:
    import openvino

    path = copy.root / "text_encoder" / "openvino_model.xml"
    text = path.read_text()
    start, end = text.index("<exporter>"), text.index("</exporter>") + len("</exporter>")
    path.write_text(text[:start] + text[end:])
    record = copy.records["text_encoder"].model_copy(update={"inputs": [], "outputs": []})
    with OpenVinoTarget().open(copy.root, record, RunOptions(threads=1)) as runner:
        assert runner.module_names() == []
        assert [spec.dims for spec in runner.inputs] == [["input_ids_dim_0", "input_ids_dim_1"]]
        ids = np.zeros((1, 7), np.int64)
        assert runner.run({"input_ids": ids})["last_hidden_state"].shape == (1, 7, 32)
    assert openvino.Core().read_model(path) is not None


def test_unknown_device_and_threads(exported: Exported) -> None:
    with pytest.raises(BackendMissing, match="NPU9"):
        exported.open("text_encoder", device="NPU9")
    record = exported.records["text_encoder"]
    with pytest.raises(UsageError, match="0 threads"):
        OpenVinoTarget().open(exported.root, record, RunOptions(threads=0))
