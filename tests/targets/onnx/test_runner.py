"""The runner is strict, refuses what is damaged, and gives the output of each module."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporter.architectures import Size
from exporter.errors import ArtifactError, BackendMissing, UsageError
from exporter.targets import RunOptions
from exporter.targets.onnx.runner import OnnxRunner
from tests.targets.onnx.conftest import NAMES, Exported, reference, relative

SIZE = Size(2, 64, 64, 77)


def test_declares_what_was_exported(exported: Exported) -> None:
    for name, record in exported.records.items():
        with exported.open(name) as runner:
            assert list(runner.inputs) == record.inputs
            assert list(runner.outputs) == record.outputs
            assert runner.precision == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_are_what_torch_hooks_see(exported: Exported, name: str) -> None:
    component = exported.components[name]
    module = component.reference_module()
    seen: dict[str, np.ndarray] = {}

    def hook(path: str) -> Any:
        def record(module: object, arguments: object, output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            seen[path] = first.numpy()

        return record

    with exported.open(name) as runner:
        names = runner.module_names()
        assert len(names) >= 29
        for path, each in module.named_modules():
            if path.removeprefix("inner.") in names:
                each.register_forward_hook(hook(path.removeprefix("inner.")))
        inputs = component.example_inputs(SIZE, seed=7)
        with torch.no_grad():
            expected = module(**inputs)[0].numpy()
        arrays = {key: value.numpy() for key, value in inputs.items()}
        results = runner.intermediates(arrays, names)
        assert list(results) == names and set(seen) == set(names)
        for path, truth in seen.items():
            assert results[path].shape == truth.shape, path
            assert relative(results[path], truth) <= 2e-5, path
        after = runner.run(arrays)[runner.outputs[0].name]  # the plain session comes back
        assert relative(after, expected) <= 2e-5


def test_some_intermediates_in_the_order_asked(exported: Exported) -> None:
    inputs, _ = reference(exported.components["unet"], SIZE, seed=1)
    with exported.open("unet") as runner:
        names = runner.module_names()
        some = [names[40], names[3], names[40]]
        results = runner.intermediates(inputs, some)
        assert set(results) == set(some)
        assert runner.intermediates(inputs, []) == {}
        with pytest.raises(ValueError, match="no_such_block"):
            runner.intermediates(inputs, ["no_such_block"])


def test_intermediates_leave_no_file_behind(exported: Exported) -> None:
    inputs, _ = reference(exported.components["vae_encoder"], SIZE, seed=1)
    folder = exported.root / "vae_encoder"
    before = sorted(folder.iterdir())
    with exported.open("vae_encoder") as runner:
        runner.intermediates(inputs, runner.module_names()[:3])
    assert sorted(folder.iterdir()) == before


def test_inputs_are_neither_cast_nor_reshaped(exported: Exported) -> None:
    inputs, _ = reference(exported.components["unet"], SIZE, seed=1)
    with exported.open("unet") as runner:
        with pytest.raises(ValueError, match="missing \\['timestep'\\]"):
            runner.run({k: v for k, v in inputs.items() if k != "timestep"})
        with pytest.raises(ValueError, match="unknown \\['mask'\\]"):
            runner.run({**inputs, "mask": inputs["sample"]})
        with pytest.raises(ValueError, match="'sample' is declared float32, got float16"):
            runner.run({**inputs, "sample": inputs["sample"].astype(np.float16)})
        with pytest.raises(ValueError, match="'timestep' is declared float32, got int64"):
            runner.run({**inputs, "timestep": np.array(3)})
        with pytest.raises(RuntimeError, match="'timestep' is declared"):
            runner.run({**inputs, "timestep": inputs["timestep"].reshape(1)})
        with pytest.raises(RuntimeError, match="'sample' is declared"):
            runner.run({**inputs, "sample": inputs["sample"][:, :3]})


def test_arrays_that_are_not_contiguous_are_taken(exported: Exported) -> None:
    inputs, expected = reference(exported.components["unet"], SIZE, seed=1)
    inputs["sample"] = np.asfortranarray(inputs["sample"])
    with exported.open("unet") as runner:
        assert relative(runner.run(inputs)["out_sample"], expected["out_sample"]) <= 2e-5


def test_a_device_that_is_not_there(exported: Exported) -> None:
    with pytest.raises(BackendMissing, match=r"no device 'dml'.*cpu"):
        exported.open("vae_encoder", device="dml")
    with pytest.raises(UsageError, match="0 threads"):
        OnnxRunner(exported.root / "vae_encoder" / "model.onnx", RunOptions(threads=0))


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of one component that a test may damage: the path of its graph."""
    shutil.copytree(exported.root / "vae_encoder", tmp_path / "art" / "vae_encoder")
    return tmp_path / "art" / "vae_encoder" / "model.onnx"


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        OnnxRunner(path, RunOptions(threads=1))


def test_files_that_are_missing_or_cut_off(copied: Path) -> None:
    data = copied.with_name("model.onnx_data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-64])
    refuse(copied, "is said to end at byte")
    data.unlink()
    refuse(copied, "data file model.onnx_data is missing")
    data.write_bytes(whole)
    graph = copied.read_bytes()
    copied.write_bytes(graph[: len(graph) // 2])
    refuse(copied, "is not an ONNX model")
    copied.write_bytes(b"")
    refuse(copied, "is not an ONNX model")
    copied.unlink()
    refuse(copied, "is missing")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "..\\secret", "C:secret", ""])
def test_data_outside_the_folder_is_refused(copied: Path, location: str) -> None:
    (copied.parent.parent / "secret").write_bytes(copied.with_name("model.onnx_data").read_bytes())
    model = onnx.load(copied, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    copied.write_bytes(model.SerializeToString())
    refuse(copied, "outside its folder")


def test_a_link_out_of_the_folder_is_refused(copied: Path) -> None:
    data = copied.with_name("model.onnx_data")
    data.rename(copied.parent.parent / "elsewhere")
    data.symlink_to(copied.parent.parent / "elsewhere")
    refuse(copied, "outside its folder")


def test_a_graph_the_runtime_does_not_know(copied: Path) -> None:
    model = onnx.load(copied, load_external_data=False)
    model.graph.node[0].op_type = "Frobnicate"
    copied.write_bytes(model.SerializeToString())
    refuse(copied, "ONNX Runtime cannot open vae_encoder/model.onnx")


def test_a_file_of_someone_else_has_no_modules(copied: Path) -> None:
    model = onnx.load(copied, load_external_data=False)
    del model.metadata_props[:]
    copied.write_bytes(model.SerializeToString())
    with OnnxRunner(copied, RunOptions(threads=1)) as runner:
        assert runner.module_names() == []
