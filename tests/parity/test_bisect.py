"""A planted fault is named by its diffusers path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from exporter.parity import bisect as bisection
from exporter.parity.bisect import first_bad
from exporter.parity.schema import ModuleRow
from tests.parity.conftest import JudgeTorch

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"


def weight_of(path: str, factor: float = 1.01) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        target = module.inner.get_submodule(path)
        target.weight.data = target.weight.data * factor

    return plant


def tanh_gelu(module: nn.Module) -> None:
    gate = module.inner.get_submodule(f"{ATTENTION}.ff.net.0")
    gate.gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")


def no_scale(module: nn.Module) -> None:
    attention = module.inner.get_submodule(f"{ATTENTION}.attn2")
    processor = attention.processor

    class Unscaled:
        def __call__(self, attn: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
            weight = attn.to_q.weight
            attn.to_q.weight = nn.Parameter(weight * 1.0)
            hook = attn.to_k.register_forward_hook(lambda m, i, o: o)
            original = torch.nn.functional.scaled_dot_product_attention
            torch.nn.functional.scaled_dot_product_attention = lambda *a, **k: original(*a, **k, scale=1.0)
            try:
                return processor(attn, *args, **kwargs)
            finally:
                torch.nn.functional.scaled_dot_product_attention = original
                hook.remove()

    attention.processor = Unscaled()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (weight_of("conv_in"), "conv_in"),
        (weight_of("time_embedding.linear_2"), "time_embedding.linear_2"),
        (weight_of("down_blocks.0.resnets.0.conv1"), "down_blocks.0.resnets.0.conv1"),
        (weight_of(f"{ATTENTION}.attn1.to_k"), f"{ATTENTION}.attn1.to_k"),
        (weight_of("conv_out"), "conv_out"),
        (tanh_gelu, f"{ATTENTION}.ff.net.0"),
        (no_scale, f"{ATTENTION}.attn2"),
    ],
)
def test_the_fault_is_named(judge_torch: JudgeTorch, fault: object, named: str) -> None:
    report = judge_torch(components=["unet"], faults={"unet": fault})
    found = report.components[0].bisection
    assert report.verdict == "FAIL" and found is not None
    assert found.first_bad == named, found.explanation
    assert named in report.summary
    assert any(row.module == named or row.module.startswith(named) for row in found.rows)
    assert any(row.state == "ok" for row in found.rows) or named == "conv_in"


def test_an_activation_without_a_value_of_its_own_is_mentioned(judge_torch: JudgeTorch) -> None:
    def relu(module: nn.Module) -> None:
        module.inner.get_submodule("down_blocks.0.resnets.0").nonlinearity = nn.ReLU()

    found = judge_torch(components=["unet"], faults={"unet": relu}).components[0].bisection
    assert found is not None and found.first_bad == "down_blocks.0.resnets.0.conv1"
    assert "down_blocks.0.resnets.0.nonlinearity, which runs several times" in found.explanation


def test_narrowing_in_rounds_finds_the_same(judge_torch: JudgeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisection, "ROUND_BYTES", 200_000)
    fault = weight_of("up_blocks.1.resnets.0.conv2")
    report = judge_torch(components=["unet"], faults={"unet": fault})
    found = report.components[0].bisection
    assert found is not None and found.first_bad == "up_blocks.1.resnets.0.conv2"
    whole = judge_torch(components=["unet"], faults={"unet": fault}).components[0]
    assert found.modules_compared < 100
    assert whole.verdict == "FAIL"


def test_a_single_noisy_module_is_not_blamed() -> None:
    states = ["ok", "off", "ok", "ok", "ok", "off", "off", "ok", "off", "off"]
    rows = {
        str(i): ModuleRow(module=str(i), relative_l2=0.0, floor=0.0, ratio=0.0, state=s)
        for i, s in enumerate(states)
    }
    assert first_bad(list(rows), rows) == "5"
