"""The runner contract over the interpreter: names, refusals, intermediates, peaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.architectures import Size
from exporter.errors import BackendMissing, UsageError
from exporter.targets.coreml.interpreter import load
from exporter.targets.coreml.interpreter.peaks import Peaks
from tests.targets.coreml.conftest import Exported


def unet_inputs(exported: Exported, seed: int = 1) -> dict[str, torch.Tensor]:
    native = exported.components["unet"].native
    size = Size(2, native.height, native.width, native.sequence, native.factor)
    return exported.components["unet"].example_inputs(size, seed)


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_it_declares_the_component_s_own_tensors(half: Exported) -> None:
    for name, component in half.components.items():
        with half.open(name) as runner:
            assert list(runner.inputs) == half.records[name].inputs
            assert list(runner.outputs) == half.records[name].outputs
            assert [spec.name for spec in runner.inputs] == [spec.name for spec in component.inputs]


def test_wrong_inputs_are_refused(half: Exported) -> None:
    given = arrays(unet_inputs(half))
    with half.open("unet") as runner:
        with pytest.raises(ValueError, match="missing"):
            runner.run({n: a for n, a in given.items() if n != "timestep"})
        with pytest.raises(ValueError, match="unknown"):
            runner.run(given | {"extra": given["sample"]})
        with pytest.raises(ValueError, match="declared float32"):
            runner.run(given | {"sample": given["sample"].astype(np.float64)})
        with pytest.raises(RuntimeError, match="baked"):
            runner.run(given | {"sample": given["sample"][:1]})


def test_only_a_mac_has_core_ml(half: Exported) -> None:
    with pytest.raises(BackendMissing, match="'gpu'"):
        half.open("unet", device="gpu")
    with pytest.raises(UsageError, match="bfloat16"):
        half.open("unet", precision_hint="bf16")
    with half.open("unet", device="interpreter") as runner:
        assert runner.run(arrays(unet_inputs(half)))


@pytest.mark.parametrize("kind", ["half", "single"])
def test_every_module_output_is_the_module_s(kind: str, request: pytest.FixtureRequest) -> None:
    """Each value that bisection will compare, against a hook on the reference."""
    exported: Exported = request.getfixturevalue(kind)
    tensors = unet_inputs(exported)
    with exported.open("unet") as runner:
        names = runner.module_names()
        values = runner.intermediates(arrays(tensors), names)
        with pytest.raises(ValueError, match="no module"):
            runner.intermediates(arrays(tensors), ["nosuch"])
    module = exported.components["unet"].reference_module()
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_: object, __: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                seen[name] = output
            elif isinstance(output, tuple) and isinstance(output[0], torch.Tensor) and len(output) == 1:
                seen[name] = output[0]

        return hook

    inner = module.get_submodule("inner")
    for name in names:
        inner.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        module(**tensors)
    limit = 5e-6 if kind == "single" else 5e-3
    compared = 0
    for name in names:
        if name in seen:
            truth, mine = seen[name].double().numpy(), values[name]
            assert mine.size == truth.size, name
            error = np.linalg.norm(mine.reshape(truth.shape) - truth) / np.linalg.norm(truth)
            assert error < limit, f"{name}: {error}"
            compared += 1
    everything = [n for n, _ in inner.named_modules() if n]
    assert compared > 0.6 * len(everything)
    wanted = ("conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0", "mid_block.resnets.0.norm1")
    assert set(wanted) <= set(names)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" in names


def test_modes_differ_only_by_rounding(half: Exported) -> None:
    """Emulated float16 and float16 as torch computes it are both near the unrounded graph, and not it."""
    path, given = half.package("unet"), unet_inputs(half)
    text = given["encoder_hidden_states"].numpy().transpose(0, 2, 1)[:, :, None]
    feeds = {
        "sample": given["sample"].numpy().astype(np.float16),
        "timestep": np.full(2, float(given["timestep"]), np.float16),
        "encoder_hidden_states": text.astype(np.float16),
    }
    results = {}
    for mode in ("exact", "emulate", "unrounded"):
        results[mode] = load(path, mode=mode).predict(feeds)["noise_pred"].astype(np.float64)  # type: ignore[arg-type]
    size = np.linalg.norm(results["unrounded"])
    for mode in ("exact", "emulate"):
        assert 1e-5 < np.linalg.norm(results[mode] - results["unrounded"]) / size < 5e-3


def test_peaks_name_what_float16_cannot_hold(half: Exported) -> None:
    given = arrays(unet_inputs(half))
    with half.open("unet", precision_hint="f16", peaks=True) as runner:
        assert runner.peaks() == []
        plain = runner.run(given)
        found = runner.peaks()
        louder = runner.run(given | {"sample": given["sample"] * 50})
        later = {peak.value: peak for peak in runner.peaks()}
    with half.open("unet", precision_hint="f16") as runner:
        assert runner.run(given)["out_sample"].tobytes() == plain["out_sample"].tobytes()
        assert runner.peaks() == []
    assert len(found) > 100 and all(np.isfinite(peak.peak) for peak in found)
    assert {"conv", "einsum", "softmax", "silu"} <= {peak.operation for peak in found}
    assert not {"reshape", "transpose", "concat"} & {peak.operation for peak in found}
    assert {peak.limit for peak in found} == {None, 65504.0}  # the sine of the timestep stays float32
    assert (
        all(later[peak.value].peak >= peak.peak for peak in found) and np.isfinite(louder["out_sample"]).all()
    )
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    owners = {peak.operation for peak in found if peak.module == attention}
    assert {"einsum", "softmax"} <= owners
    assert {peak.operation for peak in found if peak.module == f"{attention}.to_q"} == {"conv"}
    softmax = [peak.peak for peak in found if peak.operation == "softmax"]
    assert all(0 < peak <= 1 for peak in softmax)


def test_peaks_are_noted_over_runs() -> None:
    noted = Peaks()
    noted.note("a", "mul", "float16", torch.tensor([1.0, -70000.0]))
    noted.note("a", "mul", "float16", torch.tensor([3.0]))
    noted.note("b", "add", "float16", torch.tensor([float("nan")]))
    noted.note("b", "add", "float16", torch.tensor([1.0]))
    noted.note("c", "add", "float16", torch.tensor([65504.0]))
    noted.note("d", "add", "float32", torch.tensor([70000.0]))
    noted.note("e", "reshape", "float16", torch.tensor([70000.0]))
    assert [found.value for found in noted.overflowing()] == ["a", "b"]
    assert noted.values["a"].peak == 70000.0 and "e" not in noted.values


def test_read_only_arrays_are_taken(half: Exported) -> None:
    given = arrays(unet_inputs(half))
    for array in given.values():
        array.flags.writeable = False
    with half.open("unet") as runner:
        assert runner.run(given)
