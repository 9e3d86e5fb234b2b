"""A ControlNet and the UNet it gives to are the library's own, and sizes of deeper levels follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.architectures.base import origin
from exporter.architectures.controlnet import control_argument, is_controlnet, numbered
from exporter.checkpoints import resolve
from exporter.parity.given import control_note, edges
from exporter.parity.painting import Plan, used
from tests.families import make

ODD = Size(2, 72, 104, 20)
"""9×13 latents: the next level has 5×7, rounded up."""


@pytest.fixture(scope="module", params=["controlnet", "sdxl_controlnet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tmp_path_factory.mktemp("control") / request.param)


def split(component: Component, size: Size) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs at a size, and those of SDXL apart from the others."""
    given = component.example_inputs(size, seed=2)
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
    return given, added


def test_both_are_the_librarys_bit_for_bit(folder: Path) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    parts = {c.name: c for c in components_of(resolve(folder))}
    given, added = split(parts["controlnet"], ODD)
    theirs = ControlNetModel.from_pretrained(folder / "controlnet")
    with torch.no_grad():
        down, middle = theirs(**given, added_cond_kwargs=added, return_dict=False)
        mine = parts["controlnet"].reference_module()(**given, **added)
    assert all(torch.equal(a, b) for a, b in zip(mine, (*down, middle), strict=True))
    assert [tuple(m.shape) for m in mine] == [s.shape(ODD) for s in parts["controlnet"].outputs]

    given, added = split(parts["unet"], ODD)
    residuals = {name: given.pop(name) for name in list(given) if "_residual" in name}
    *others, last = residuals
    assert len(others) == len(down) and all(bool(value.any()) for value in residuals.values())
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        expected = unet(
            **given, added_cond_kwargs=added,
            down_block_additional_residuals=tuple(residuals[name] for name in others),
            mid_block_additional_residual=residuals[last], return_dict=False,
        )[0]  # fmt: skip
        module = parts["unet"].reference_module()
        assert torch.equal(module(**given, **added, **residuals)[0], expected)
        for name in residuals:
            other = residuals | {name: residuals[name] + 1}
            assert not torch.equal(module(**given, **added, **other)[0], expected), name


def test_the_scale_is_an_input(folder: Path) -> None:
    component = next(c for c in components_of(resolve(folder)) if c.name == "controlnet")
    inputs = component.example_inputs(component.native)
    module = component.reference_module()
    single = module(**inputs)
    double = module(**inputs | {"conditioning_scale": inputs["conditioning_scale"] * 2})
    assert all(torch.allclose(b, 2 * a) for a, b in zip(single, double, strict=True))


def test_sizes_of_deeper_levels() -> None:
    assert origin("latent_height_4") == ("latent_height", 4)
    assert origin("image_tokens") == ("image_tokens", 1)
    assert [ODD.resolve(f"latent_width{share}") for share in ("", "_2", "_4", "_8")] == [13, 7, 4, 2]


def test_names_that_tell() -> None:
    assert [is_controlnet(n) for n in ("controlnet", "controlnet_12", "controlnet_x", "unet")] == [1, 1, 0, 0]
    assert control_argument({"image", "controlnet_conditioning_scale"}) == "image"
    assert control_argument({"image", "control_image", "controlnet_conditioning_scale"}) == "control_image"
    assert control_argument({"image", "strength"}) is None
    given = numbered({"sample": 1, "down_block_additional_residuals": (2, 3)})
    assert given == {
        "sample": 1, "down_block_additional_residuals_0": 2, "down_block_additional_residuals_1": 3,
    }  # fmt: skip


def test_only_a_run_that_starts_from_a_picture_encodes(folder: Path) -> None:
    names = [c.name for c in components_of(resolve(folder))]
    assert used(resolve(folder), names) == [name for name in names if name != "vae_encoder"]


def test_what_is_followed_is_drawn_always_the_same_and_another_for_each() -> None:
    plan = Plan(("a",), steps=1, seed=0, height=96, width=64)
    first, second, third = (edges(plan, number) for number in range(3))
    assert first.shape == (1, 3, 96, 64) and set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(first, edges(plan, 0)) and 0.02 < float(first.mean()) < 0.4
    assert not torch.equal(first, second) and not torch.equal(first, third)
    note = control_note(plan, ["text_encoder", "controlnet", "controlnet_1", "unet"])
    assert note is not None and "at scale 0.9, 0.6" in note and "96×64" in note
    assert control_note(plan, ["unet"]) is None
