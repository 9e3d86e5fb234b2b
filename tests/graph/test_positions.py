"""Positions of patches: what a graph computes is what the library computes, at any size, without float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from exporter.graph.positions import positions_at_any_size


def patches(sample: int, patch: int, scale: float) -> nn.Module:
    from diffusers.models.embeddings import PatchEmbed

    torch.manual_seed(0)
    return PatchEmbed(sample, sample, patch, 4, 96, interpolation_scale=scale).eval()


@pytest.mark.parametrize(("sample", "patch", "scale"), [(128, 2, 2), (64, 2, 1), (256, 2, 4), (9, 1, 1.5)])
@torch.no_grad()
def test_equals_the_library(sample: int, patch: int, scale: float) -> None:
    module = patches(sample, patch, scale)
    for height, width in ((sample // patch, sample // patch), (sample // 3, sample), (1, 5)):
        x = torch.randn(2, 4, height * patch, width * patch)
        expected = module(x)
        with positions_at_any_size():
            looked_up = module(x)
        with positions_at_any_size(table=False):
            computed = module(x)
        assert torch.equal(computed, expected)
        trained = height == width == sample // patch and scale != 1.5
        limit = 0.0 if trained else 4e-6  # the library's places are rounded to float32, unless they are exact
        assert float((looked_up - expected).abs().max()) <= limit


def test_one_program_for_all_sizes_without_float64() -> None:
    from torch.export import Dim

    module = patches(8, 2, 2)
    axes = {"latent": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    given = {"latent": torch.randn(2, 4, 8, 20)}

    def export() -> tuple[Callable[..., torch.Tensor], set[torch.dtype]]:
        program = torch.export.export(module, (), given, dynamic_shapes=axes, strict=False)
        values = [n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        return program.module(), {value.dtype for value in values}  # type: ignore[return-value]

    assert torch.float64 in export()[1]
    with positions_at_any_size(), torch.no_grad():
        program, kinds = export()
    assert torch.float64 not in kinds
    for shape in ((1, 4, 16, 16), (3, 4, 10, 8)):
        x = torch.randn(shape)
        assert torch.allclose(program(latent=x), module(x), atol=2e-6)


def test_the_library_is_as_it_was_afterwards() -> None:
    from diffusers.models.embeddings import PatchEmbed

    before = PatchEmbed.forward
    with pytest.raises(ZeroDivisionError), positions_at_any_size():
        assert PatchEmbed.forward is not before
        _ = 1 / 0
    assert PatchEmbed.forward is before


@torch.no_grad()
def test_other_positions_stay_the_librarys() -> None:
    """SD3 crops a table of its own; Sana's small models have no positions."""
    from diffusers.models.embeddings import PatchEmbed

    x = torch.randn(1, 4, 8, 12)
    for options in ({"pos_embed_max_size": 48}, {"pos_embed_type": None}):
        module = PatchEmbed(8, 8, 2, 4, 32, **options)
        expected = module(x)
        with positions_at_any_size():
            assert torch.equal(module(x), expected)
