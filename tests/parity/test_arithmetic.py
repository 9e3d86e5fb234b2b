"""The float64 truth is float64, the floors are what they say, and memory stays bounded."""

from __future__ import annotations

import pytest
import torch

from exporter.architectures import Component, components_of
from exporter.checkpoints import Checkpoint
from exporter.parity import arithmetic
from exporter.parity.arithmetic import Exact, Reference, convolve_in_strips
from exporter.parity.budget import evaluate, layouts_of
from exporter.parity.cases import Inputs

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def components(checkpoint: Checkpoint) -> dict[str, Component]:
    return {c.name: c for c in components_of(checkpoint)}


def double(component: Component, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The module converted to float64 the plain way; its timestep embedding stays float32."""
    torch.set_default_dtype(torch.float64)
    try:
        module = component.reference_module(torch.float64)
        given = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        with torch.no_grad():
            outputs = module(**given)
    finally:
        torch.set_default_dtype(torch.float32)
    return {s.name: o for s, o in zip(component.outputs, outputs, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_truth_is_float64(components: dict[str, Component], name: str) -> None:
    component = components[name]
    inputs = component.example_inputs(component.native)
    with Reference(component, arithmetic="float64") as reference:
        truth = reference(inputs)
    assert torch.get_default_dtype() == torch.float32
    for output, expected in double(component, inputs).items():
        error = (truth[output] - expected).norm() / expected.norm()
        assert truth[output].dtype == torch.float64
        assert error < (1e-5 if name == "unet" else 1e-13)


def test_timestep_frequencies_are_exact_too(components: dict[str, Component]) -> None:
    """float32 frequencies times 999 are wrong in the fifth digit: the truth must not have that error."""
    from diffusers.models.embeddings import get_timestep_embedding

    steps = torch.tensor([999.0])
    with torch.no_grad(), Exact():
        exact = get_timestep_embedding(steps, 64, downscale_freq_shift=0)
    half = torch.arange(32, dtype=torch.float64)
    angle = 999.0 * torch.exp(-torch.log(torch.tensor(10000.0, dtype=torch.float64)) * half / 32)
    expected = torch.cat([torch.sin(angle), torch.cos(angle)])
    assert exact.dtype == torch.float64
    assert (exact[0] - expected).abs().max() < 1e-11
    plain = get_timestep_embedding(steps, 64, downscale_freq_shift=0).double()
    assert (plain[0] - expected).abs().max() > 1e-6


@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 1, 3), (2, 0, 3), (1, 0, 1), (2, 1, 4)])
def test_strips_change_nothing(
    monkeypatch: pytest.MonkeyPatch, stride: int, padding: int, kernel: int
) -> None:
    monkeypatch.setattr(arithmetic, "_STRIP_BYTES", 40_000)
    x = torch.randn(2, 8, 21, 17, dtype=torch.float64)
    weight, bias = torch.randn(5, 8, kernel, kernel, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, weight, bias, stride, padding)
    found = convolve_in_strips(x, weight, bias, [stride, stride], [padding, padding])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_floors_are_ordered_by_precision(components: dict[str, Component], name: str) -> None:
    component = components[name]
    inputs = component.example_inputs(component.native)

    def error(**how: str) -> float:
        with Reference(component, **how) as reference:
            outputs = reference(inputs)
        first = component.outputs[0].name
        return float((outputs[first].double() - truth[first]).norm() / truth[first].norm())

    with Reference(component, arithmetic="float64") as reference:
        truth = reference(inputs)
    single = error()
    rounded = error(weights="float16")
    half, brain = error(weights="float16", arithmetic="float16"), error(arithmetic="bfloat16")
    assert 0 < single < 1e-5 < rounded < 5e-3
    assert rounded < half < brain < 0.2
    if layouts_of(component) != ("contiguous",):
        other = error(layout="channels_last")
        assert 0 < other < 1e-5


def test_stored_results_are_used_and_damaged_ones_are_not(
    components: dict[str, Component], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = components["text_encoder"]
    case = Inputs("c", "captured", "c", component.example_inputs(component.native))
    how = {"weights": "float32", "arithmetic": "float64", "cache": tmp_path}
    first = evaluate(component, [case], **how)[0]
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    with monkeypatch.context() as patch:
        patch.setattr("exporter.parity.budget.Reference", None)
        again = evaluate(component, [case], **how)[0]
    assert all(torch.equal(first[n], again[n]) for n in first)
    files[0].write_bytes(files[0].read_bytes()[:50])
    mended = evaluate(component, [case], **how)[0]
    assert all(torch.equal(first[n], mended[n]) for n in first)


def test_a_float16_convolution_is_rounded_as_pytorch_rounds_it() -> None:
    """Against PyTorch's own loop over float16, and a convolution in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 9, 8, generator=generator).half()
    weight, bias = (
        torch.randn(8, 16, 3, 3, generator=generator).half(),
        torch.randn(8, generator=generator).half(),
    )
    truth = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    slow = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    with torch.no_grad(), arithmetic._FastHalfConvolutions():
        fast = torch.nn.functional.conv2d(x, weight, bias, padding=1)
        assert torch.nn.functional.conv2d(x.float(), weight.float(), padding=1).dtype == torch.float32
    assert fast.dtype == torch.float16 and fast.shape == slow.shape
    errors = [float((result.double() - truth).norm() / truth.norm()) for result in (fast, slow)]
    assert 1e-5 < errors[0] < 4e-4 and errors[0] == pytest.approx(errors[1], rel=0.05)
    assert float((fast.double() - slow.double()).abs().max()) < 2 * 2.0**-10 * float(truth.abs().max())
