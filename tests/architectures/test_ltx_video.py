"""LTX-Video: components are the library's own modules, places of tokens too, and misfits are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import Size, components_of
from exporter.architectures.ltx_video import FRAMES
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError, UnsupportedError, UsageError
from exporter.graph.places import places_by_number
from exporter.parity.clips import frames_of, in_one, strip
from exporter.planning import make_plan
from exporter.targets.base import component_size
from tests.architectures.test_families import changed, named
from tests.families import VIDEO, make

SIZE = Size(batch=2, height=96, width=64, sequence=20, factor=32, frames=17, temporal=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("video")
    return {family: make(family, root / family) for family in VIDEO}


@pytest.mark.parametrize("family", VIDEO)
def test_components_give_what_they_declare(folders: dict[str, Path], family: str) -> None:
    parts = named(folders[family])
    assert list(parts) == ["text_encoder", "transformer", "vae_decoder", "vae_encoder"]
    for size in (SIZE, replace(SIZE, batch=1, frames=1, width=96)):
        for component in parts.values():
            with torch.no_grad():
                outputs = component.reference_module()(**component.example_inputs(size, seed=5))
            assert [tuple(o.shape) for o in outputs] == [s.shape(size) for s in component.outputs]
            assert all(bool(o.isfinite().all()) for o in outputs)
    decoder = [spec.name for spec in parts["vae_decoder"].inputs]
    assert decoder == ["latent_sample", *(["timestep"] if family == "ltx_095" else [])]


def test_the_transformer_is_the_librarys_bit_for_bit(folders: dict[str, Path]) -> None:
    from diffusers import LTXVideoTransformer3DModel

    component = named(folders["ltx"])["transformer"]
    inputs = component.example_inputs(SIZE, seed=3)
    theirs = LTXVideoTransformer3DModel.from_pretrained(folders["ltx"] / "transformer")
    numbers: dict[str, Any] = {n: int(inputs[n]) for n in ("num_frames", "height", "width")}
    numbers["rope_interpolation_scale"] = tuple(float(n) for n in inputs["rope_interpolation_scale"])
    with torch.no_grad():
        expected = theirs(**(inputs | numbers)).sample
        assert torch.equal(component.reference_module()(**inputs)[0], expected)
        for name, other in {
            "height": inputs["width"], "encoder_attention_mask": inputs["encoder_attention_mask"].flip(1),
            "rope_interpolation_scale": inputs["rope_interpolation_scale"] * 2,
        }.items():  # fmt: skip
            given = inputs | {name: other}
            if name == "height":
                given["width"] = inputs["height"]
            assert not torch.equal(component.reference_module()(**given)[0], expected), name


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dim", [2048, 32])
@pytest.mark.parametrize("cells", [(1, 1, 1), (3, 4, 6), (5, 16, 22)])
def test_places_by_number_are_the_librarys_bit_for_bit(
    fold: bool, dim: int, cells: tuple[int, int, int]
) -> None:
    from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed

    frames, height, width = cells
    module = LTXVideoRotaryPosEmbed(dim)
    states = torch.zeros(2, frames * height * width, 4)
    scale = torch.tensor([8 / 25, 32.0, 32.0])
    expected = module(states, frames, height, width, tuple(scale.tolist()))
    with places_by_number(fold=fold):
        found = module(states, torch.tensor(frames), torch.tensor(height), torch.tensor(width), scale)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one.expand_as(other), other)
    assert module(states, frames, height, width, tuple(scale.tolist()))[0].shape[0] == 2, "put back"


def test_statistics_of_latents_are_published(folders: dict[str, Path]) -> None:
    numbers = named(folders["ltx"])["vae_decoder"].published()
    assert numbers["latents_mean_data"] == pytest.approx(torch.linspace(-0.5, 0.5, 8).tolist())
    assert numbers["latents_std_data"] == pytest.approx(torch.linspace(0.5, 1.5, 8).tolist())


def test_clients_find_the_scale_that_the_autoencoder_has(folders: dict[str, Path]) -> None:
    decoder = named(folders["ltx_095"])["vae_decoder"]
    assert decoder.config["spatio_temporal_scaling"] == [True] * 4 and decoder.native.factor == 32
    assert decoder.published()["spatio_temporal_scaling"] == [True, True, True, False]
    assert "spatio_temporal_scaling" not in named(folders["ltx"])["vae_decoder"].published()


def test_what_genai_cannot_open_is_said(folders: dict[str, Path]) -> None:
    pytest.importorskip("openvino")
    said = {f: make_plan(str(folders[f]), "openvino").notes for f in VIDEO}
    assert any("GenAI opens no decoder that takes a timestep" in note for note in said["ltx_095"])
    assert not any("GenAI" in note for note in said["ltx"])


def test_a_baked_size_has_the_pipelines_frames_where_none_are_given(folders: dict[str, Path]) -> None:
    parts = named(folders["ltx"])
    assert component_size(parts["transformer"], (1, 64, 96)).frames == FRAMES
    size = component_size(parts["transformer"], (1, 64, 96, 9))
    assert (size.batch, size.resolve("latent_frames"), size.resolve("video_tokens")) == (2, 2, 2 * 2 * 3)
    assert component_size(parts["vae_decoder"], (1, 64, 96, 9)).batch == 1


def test_what_is_said_of_frames_in_static(folders: dict[str, Path]) -> None:
    source = str(folders["ltx"])
    (note,) = [n for n in make_plan(source, "onnx", options={"static": "1x64x96"}).notes if "frames" in n]
    assert "clips of 161 are baked" in note
    assert not any("frames" in n for n in make_plan(source, "onnx", options={"static": "1x64x96x9"}).notes)
    with pytest.raises(UsageError, match=r"clips of 8k \+ 1 frames, not of 10") as error:
        make_plan(source, "onnx", options={"static": "1x64x96x10"})
    assert error.value.hint == "Try 9 or 17."
    with pytest.raises(UsageError, match="multiples of 32") as error:
        make_plan(source, "onnx", options={"static": "1x60x96x9"})
    assert error.value.hint == "Try 1x64x96x9."
    with pytest.raises(UsageError, match="is not BATCHxHEIGHTxWIDTH"):
        make_plan(source, "onnx", options={"static": "1x64x96x9x2"})


def test_a_picture_model_has_no_frames(tiny: Path) -> None:
    with pytest.raises(UsageError, match="a model of pictures has no frames") as error:
        make_plan(str(tiny), "onnx", options={"static": "1x64x64x9"})
    assert error.value.hint == "Try 1x64x64."


@pytest.mark.parametrize("part", [None, "transformer", "vae_decoder", "text_encoder"])
def test_core_ml_is_refused_by_name(folders: dict[str, Path], part: str | None) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(UnsupportedError, match="make no clips, as a LTXPipeline does"):
        make_plan(str(folders["ltx"]), "coreml", components=[part] if part else None)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("transformer/config.json", {"patch_size": 2}, "patch_size is 2; diffusers' own pipeline"),
        ("transformer/config.json", {"in_channels": 16}, "wants 16 channels .* the VAE's latents .* give 8"),
        ("transformer/config.json", {"caption_channels": 48}, "wants 48 channels .* text_encoder .* give 32"),
        ("vae/config.json", {"decoder_inject_noise": [True] + [False] * 4}, "the decoder adds noise itself"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "vae is a AutoencoderKL"),
        ("model_index.json", {"transformer": [None, None]}, "without a transformer"),
    ],
)
def test_parts_that_do_not_fit(
    folders: dict[str, Path], tmp_path: Path, file: str, values: dict[str, Any], said: str
) -> None:
    copy = changed(folders["ltx"], tmp_path / "copy", file, **values)
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))


def test_a_strip_shows_first_middle_and_last() -> None:
    clip = torch.arange(5.0).view(1, 5, 1, 1).expand(3, 5, 2, 4)
    assert frames_of(clip) == 5 and frames_of(clip[:, 0]) == 1
    whole = in_one(clip)
    assert whole.shape == (3, 10, 4) and torch.equal(whole[0, 2:4], torch.ones(2, 4))
    shown = strip(whole.permute(1, 2, 0).numpy(), 5)
    assert shown.shape == (2, 12, 3) and shown[0, ::4, 0].tolist() == [0.0, 2.0, 4.0]
