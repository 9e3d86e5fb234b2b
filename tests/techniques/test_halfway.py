"""A technique that fails in the middle of its own work leaves nothing of itself on the pipeline."""

from __future__ import annotations

import gc
import inspect
import sys
from types import FrameType
from typing import Any

import pytest
import torch

from exporter import pipeline, techniques
from exporter.techniques.base import Technique
from tests.techniques.split_over_processes import latents_of, tiny_flux
from tests.techniques.test_techniques import HERE, PROMPT

CACHES = ["first-block-cache", "attention-broadcast", "faster-cache", "taylor-seer"]
AT = (0.3, 0.6, 0.85, 1.0)
"""Where it breaks: the share of the calls that its `apply` makes, down into the libraries."""


class Broke(Exception):
    pass


class Breaking:
    """Counts the calls below `apply`, and breaks at one of them. It does not break what cleans up, nor what
    clears up after a break: nobody could then put anything back."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count, self.broke = at, 0, False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        name, place = frame.f_code.co_name, frame.f_code.co_filename
        generator = frame.f_code.co_flags & inspect.CO_GENERATOR  # being closed, it swallows what is raised
        cleaning = name.startswith("__") or "contextlib" in place
        if event != "call" or cleaning or generator or "logging" in place:  # loggers swallow it, too
            return
        self.count += 1
        if self.at is not None and self.count >= self.at and not self.broke:
            self.broke = True
            raise Broke(f"at call {self.count}, {name}")


def apply(painter: Any, given: Any, breaking: Breaking, monkeypatch: pytest.MonkeyPatch) -> Any:
    (technique,) = techniques.parse([given])
    inner = type(technique).apply

    def traced(self: Technique, pipe: Any) -> Any:
        before = sys.gettrace()
        gc.disable()  # what other tests left is not cleared up in here: finalisers swallow what is raised
        sys.settrace(breaking)  # type: ignore[arg-type]
        try:
            return inner(self, pipe)
        finally:
            sys.settrace(before)
            gc.enable()

    with monkeypatch.context() as patch:
        patch.setattr(type(technique), "apply", traced)
        return techniques.apply(painter, [given])


def breaks_everywhere(painter: Any, given: Any, bits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(painter, given, Breaking(), monkeypatch)()  # whatever is imported and looked up once
    counted = Breaking()
    apply(painter, given, counted, monkeypatch)()
    plain = bits()
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), type(m), set(vars(m))) for m in parts(painter)
    ]
    for at in sorted({max(1, round(counted.count * share)) for share in AT}):
        with pytest.raises(Broke):
            apply(painter, given, Breaking(at), monkeypatch)
        assert torch.equal(bits(), plain), f"after a break at call {at} of {counted.count}"
        now = [
            (len(m._forward_hooks), len(m._forward_pre_hooks), type(m), set(vars(m))) for m in parts(painter)
        ]
        assert now == hooks, f"after a break at call {at} of {counted.count}"


def parts(painter: Any) -> list[Any]:
    networks = [part for part in painter.components.values() if isinstance(part, torch.nn.Module)]
    return [module for network in networks for module in network.modules()]


@pytest.fixture(scope="module")
def painter() -> Any:
    return pipeline.load("builtin:shapes")


@pytest.mark.parametrize("name", [*HERE, "compile"])
def test_of_a_unet(name: str, painter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in techniques.kind(name).packages:
        pytest.importorskip(package)

    def bits() -> torch.Tensor:
        import numpy as np

        (picture,) = pipeline.paint(painter, [PROMPT], steps=4, guidance=4.0)
        return torch.from_numpy(np.asarray(picture).copy())

    options = {**HERE, "compile": {"regional": True}}[name]
    breaks_everywhere(painter, {name: options}, bits, monkeypatch)


@pytest.mark.parametrize("name", [*CACHES, "layerwise-casting", "fused-qkv"])
def test_of_a_transformer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flux = tiny_flux()

    breaks_everywhere(flux, name, lambda: latents_of(flux, 4), monkeypatch)


def test_those_that_were_applied_before_are_undone_too(painter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that breaks is put back first, then the undo of the one before finds what it left."""
    kind = techniques.kind("fused-qkv")
    inner = kind.apply

    def late(self: Technique, pipe: Any) -> Any:
        inner(self, pipe)
        raise Broke

    monkeypatch.setattr(kind, "apply", late)
    weights = {name: tensor.clone() for name, tensor in painter.unet.state_dict().items()}
    with pytest.raises(Broke):
        techniques.apply(painter, ["channels-last", {"precision": {"dtype": "bfloat16"}}, "fused-qkv"])
    now = painter.unet.state_dict()
    assert now.keys() == weights.keys() and painter.unet.dtype == torch.float32
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert not any(getattr(part, "fused_projections", False) for part in painter.unet.modules())
