"""What an artifact is judged on: captures of a real run, shapes never traced, explicit conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter.architectures import Component, components_of
from exporter.artifact import TensorRecord
from exporter.checkpoints import Checkpoint
from exporter.parity.cases import Inputs, captured, convert_inputs, spread, untraced
from exporter.parity.paint_cache import load, save
from exporter.parity.painting import Painted, Plan, paint
from exporter.parity.twin import one_rounding_away, reference_backend


@pytest.fixture(scope="module")
def components(checkpoint: Checkpoint) -> dict[str, Component]:
    return {c.name: c for c in components_of(checkpoint)}


PLAN = Plan(("a red star", "a blue ring"), steps=5, seed=3, height=64, width=64)


@pytest.fixture(scope="module")
def painted(checkpoint: Checkpoint, components: dict[str, Component]) -> Painted:
    return paint(checkpoint, list(components.values()), PLAN, reference_backend(components))


def test_the_capture_is_what_diffusers_does(checkpoint: Checkpoint, painted: Painted, tiny: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(PLAN.prompts):
        generator = torch.Generator().manual_seed(PLAN.seed + number)
        picture = pipeline(
            prompt, num_inference_steps=5, guidance_scale=7.5, generator=generator, height=64, width=64,
            output_type="np",
        ).images[0]  # fmt: skip
        assert np.abs(picture - painted.pictures(number, 0)).max() < 1e-5


def test_samples_are_spread_over_the_trajectory(components: dict[str, Component], painted: Painted) -> None:
    cases = captured(components["unet"], painted, 3)
    times = [float(c.tensors["timestep"]) for c in cases]
    assert times == [painted.timesteps[g][s] for g in (0, 1) for s in (0, 2, 4)]
    assert all(c.tensors["sample"].shape == (2, 4, 8, 8) for c in cases)  # both halves of guidance
    texts = captured(components["text_encoder"], painted, 3)
    assert len(texts) == 3  # two prompts and the empty one, once
    assert [c.tensors["sample"].shape for c in captured(components["vae_encoder"], painted, 3)] == [
        (1, 3, 64, 64)
    ] * 2


def test_two_runs_are_the_same(
    checkpoint: Checkpoint, components: dict[str, Component], painted: Painted, tmp_path: Path
) -> None:
    again = paint(checkpoint, list(components.values()), PLAN, reference_backend(components))
    save(again, tmp_path / "p.safetensors")
    stored = load(tmp_path / "p.safetensors")
    assert stored is not None
    for other in (again, stored):
        for name, component in components.items():
            ours = [(c.label, c.digest()) for c in captured(component, painted, 9)]
            assert ours == [(c.label, c.digest()) for c in captured(component, other, 9)], name
        assert all(torch.equal(a[-1], b[-1]) for a, b in zip(painted.latents, other.latents, strict=True))
    (tmp_path / "p.safetensors").write_bytes(b"broken")
    assert load(tmp_path / "p.safetensors") is None


@given(st.integers(1, 60), st.integers(1, 70))
def test_spread(count: int, samples: int) -> None:
    found = spread(count, samples)
    assert found == sorted(set(found)) and all(0 <= i < count for i in found)
    assert len(found) == min(count, samples)
    assert samples == 1 or (found[0], found[-1]) == (0, count - 1)


def records(component: Component, **fixed: int) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=s.name, dtype=s.dtype, dims=[fixed.get(d, d) if isinstance(d, str) else d for d in s.dims]
        )
        for s in component.inputs
    ]


def test_only_what_is_claimed_is_varied(components: dict[str, Component], painted: Painted) -> None:
    unet = components["unet"]
    cases = captured(unet, painted, 2)
    kinds = [c.kind for c in untraced(unet, cases, records(unet))]
    assert kinds == ["batch", "batch", "aspect", "sequence", "timestep"]
    static = records(unet, batch=2, latent_height=8, latent_width=8, sequence=77)
    assert [c.kind for c in untraced(unet, cases, static)] == ["timestep"]
    whole = records(unet)
    whole[1] = TensorRecord(name="timestep", dtype="int64", dims=[])
    assert "timestep" not in [c.kind for c in untraced(unet, cases, whole)]
    for case in untraced(unet, cases, records(unet)):
        changed = {n for n, t in case.tensors.items() if t.shape != cases[1].tensors[n].shape}
        assert changed or case.kind == "timestep"
        assert (case.kind == "sequence") == (changed == {"encoder_hidden_states"})


def test_conversions_are_said_and_never_lose_a_timestep(
    components: dict[str, Component], painted: Painted
) -> None:
    case = captured(components["unet"], painted, 1)[0]
    declared = records(components["unet"])
    declared[0] = TensorRecord(name="sample", dtype="float16", dims=declared[0].dims)
    declared[1] = TensorRecord(name="timestep", dtype="int64", dims=[1])
    arrays, notes = convert_inputs(case, declared)
    assert [str(a.dtype) for a in arrays.values()] == ["float16", "int64", "float32"]
    assert arrays["timestep"].shape == (1,)
    assert notes == ["sample: float32 → float16", "timestep: scalar → [1]", "timestep: float32 → int64"]
    half = Inputs("x", "timestep", "x", case.tensors | {"timestep": torch.tensor(7.5)})
    with pytest.raises(ValueError, match=r"cannot hold 7\.5"):
        convert_inputs(half, declared)
    with pytest.raises(ValueError, match="no input 'timestep'"):
        convert_inputs(case, [declared[0], declared[2]])
    extra = TensorRecord(name="guidance", dtype="float32", dims=[])
    with pytest.raises(ValueError, match="wants an input 'guidance'"):
        convert_inputs(case, [*declared, extra])


def test_one_rounding_error_is_one() -> None:
    values = torch.randn(1000)
    moved = one_rounding_away({"x": values}, "float32", torch.Generator().manual_seed(0))["x"]
    steps = (moved.view(torch.int32) - values.view(torch.int32)).abs()
    assert steps.max() <= 2 and (steps > 0).float().mean() > 0.9


def test_the_vocabulary_is_swept(components: dict[str, Component], painted: Painted) -> None:
    from exporter.parity import vocabulary as module
    from exporter.parity.vocabulary import vocabulary

    text = components["text_encoder"]
    cases = captured(text, painted, 2)
    size = text.config["vocab_size"]
    for fixed, number in ({}, 1), ({"batch": 2, "sequence": 77}, 4):
        swept = vocabulary(text, cases, records(text, **fixed))
        seen = {int(i) for c in [*cases, *swept] for i in c.tensors["input_ids"].unique()}
        assert len(swept) == number and seen == set(range(size))
        assert {c.label for c in swept} == {"every token"}
    nearly_all = Inputs("all", "captured", "", {"input_ids": torch.arange(size - 3)[None]})
    (rest,) = vocabulary(text, [nearly_all], records(text))  # three tokens have to fill a long row
    assert set(range(size - 3, size)) <= {int(i) for i in rest.tensors["input_ids"].unique()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLOPS", 1.0)
        (part,) = vocabulary(text, cases, records(text))
    assert part.tensors["input_ids"].shape == (2, 77) and part.label.endswith(f"of {size} tokens")
    assert vocabulary(components["unet"], captured(components["unet"], painted, 2), []) == []
