"""The mapping of the authors' layouts: against an inverse of our own, and against diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import builtin
from exporter.architectures import components_of
from exporter.checkpoints import StoredTensor, resolve
from exporter.checkpoints.derived import held
from exporter.checkpoints.original import families, text, unet, vae
from exporter.checkpoints.single_file import part, text_weights
from exporter.errors import CheckpointError
from tests import original_layout
from tests.checkpoints.conftest import Judge
from tests.families import make
from tests.tiny_sdxl import make_tiny_sdxl

SD1_UNET: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD2_UNET = SD1_UNET | {
    "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
    "sample_size": 96,
}  # fmt: skip
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
REFINER_UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": [384, 768, 1536, 1536], "layers_per_block": 2,
    "cross_attention_dim": 1280, "attention_head_dim": [6, 12, 24, 24], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 4, 4, 4], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
"""As published: the sizes that a reading of the shapes must find again."""

VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "sample_size": 512,
}  # fmt: skip


def on_meta(kind: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes of a published model, without a byte of weights."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if kind.startswith("CLIP"):
            module = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
        else:
            module = getattr(diffusers, kind)(**config)
    return module.state_dict()


def stored(state: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    return {name: held(name, tensor, Path("x")) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("config", "heads"),
    [(SD1_UNET, 8), (SD2_UNET, None), (SDXL_UNET, None), (REFINER_UNET, None)],
    ids=["sd1", "sd2", "sdxl", "refiner"],
)
def test_a_published_unet_is_found_again(config: dict[str, Any], heads: int | None) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    state = on_meta("UNet2DConditionModel", config)
    original = original_layout.unet(state, config)
    tensors = part(stored(original), families.UNET)
    found = unet.infer(tensors, heads=heads, sample_size=config["sample_size"])
    assert {key: found[key] for key in config} == config
    assert found["in_channels"] == found["out_channels"] == 4 and found["norm_num_groups"] == 32
    mapped = unet.weights(tensors, found)
    assert {n: t.shape for n, t in mapped.items()} == {n: tuple(t.shape) for n, t in state.items()}
    theirs = convert_ldm_unet_checkpoint(dict(original), config=found)
    assert set(theirs) == set(mapped)
    assert all(mapped[name].load() is theirs[name] for name in theirs), "the very same tensors"


def test_a_published_autoencoder_is_found_again() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state = on_meta("AutoencoderKL", VAE)
    original = original_layout.vae(state, VAE)
    tensors = part(stored(original), families.VAE)
    found = vae.infer(tensors, sample_size=512, scaling={"scaling_factor": 0.18215})
    assert {key: found[key] for key in VAE} == VAE
    assert found["norm_num_groups"] == 32 and found["use_quant_conv"] and found["mid_block_add_attention"]
    mapped = vae.weights(tensors, found)
    assert {n: t.shape for n, t in mapped.items()} == {n: tuple(t.shape) for n, t in state.items()}
    theirs = convert_ldm_vae_checkpoint(dict(original), config=found)
    assert {n: tuple(t.shape) for n, t in theirs.items()} == {n: t.shape for n, t in mapped.items()}


OPENCLIP: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2,
    "vocab_size": 40, "max_position_embeddings": 9, "hidden_act": "gelu", "projection_dim": 128,
}  # fmt: skip


@pytest.mark.parametrize("projected", [False, True], ids=["sd2", "sdxl"])
def test_openclip_is_found_again(projected: bool) -> None:
    """Values, not names only: query, key and value are cut out of one matrix."""
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    state = kind(CLIPTextConfig(**OPENCLIP)).state_dict()
    encoder = (families.SDXL if projected else families.SD2).texts[-1]
    original = original_layout.openclip(state, encoder.prefix, spare=encoder.unused)
    mapped = text_weights(stored(original), encoder)
    assert len({tensor.name for tensor in mapped.values()}) == len(mapped), "a graph tells weights by name"
    config = text.infer(mapped, activation=encoder.activation, projected=projected)
    config["num_hidden_layers"] -= encoder.unused
    assert {key: config[key] for key in OPENCLIP} == OPENCLIP
    for name, tensor in state.items():
        assert torch.equal(mapped[name].load(), tensor), name
    theirs = convert_open_clip_checkpoint(
        SimpleNamespace(config=SimpleNamespace(hidden_size=128)), dict(original), prefix=encoder.prefix
    )
    assert all(torch.equal(mapped[n].load(), t) for n, t in theirs.items() if n in mapped)
    assert set(state) <= set(theirs)


def test_the_embedded_checkpoint_in_the_original_layout(tmp_path: Path) -> None:
    """A real file: every tensor is the stored one, and stays where it lies (nothing is made on the way)."""
    folder = builtin.path()
    path = tmp_path / "shapes.safetensors"
    original_layout.save(original_layout.stable_diffusion_1(folder), path, resolution=128)
    single, theirs = resolve(path, tokenizer=str(folder / "tokenizer")), resolve(folder)
    for name in ("unet", "vae", "text_encoder"):
        mine, reference = single.stored(name), single.reference_stored(name)
        wanted = theirs.stored(name)
        assert set(mine) == set(wanted) <= set(reference)
        assert all(type(tensor) is StoredTensor for tensor in mine.values()), "streams from the file"
        for key, tensor in wanted.items():
            assert torch.equal(mine[key].load(), tensor.load()), key
            assert torch.equal(reference[key].load(), tensor.load()), key
        for key in set(single.config(name)) - {"num_attention_heads"}:
            assert single.config(name)[key] == theirs.config(name).get(key), (name, key)
    assert single.config("text_encoder")["num_attention_heads"] == 2, "no shape shows that these are 8"
    assert "8 attention heads" in " ".join(single.notes)
    assert resolve(path, config=str(folder)).config("text_encoder")["num_attention_heads"] == 8
    assert resolve(path, config=str(folder)).notes == ()


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.diffusion_model.input_blocks.1.", "some of its input blocks are missing"),
        ("model.diffusion_model.out.2.", "it has no 'out.2.weight'"),
        ("first_stage_model.", "no autoencoder"),
        ("first_stage_model.encoder.down.1.block.0.conv1", "autoencoder is incomplete"),
        ("cond_stage_model.transformer.text_model.embeddings.token", "text encoder is incomplete"),
        ("cond_stage_model.", "no text encoder"),
    ],
)
def test_what_is_missing_is_named(tiny: Path, tmp_path: Path, drop: str, message: str) -> None:
    state = original_layout.stable_diffusion_1(tiny)
    kept = {n: t for n, t in state.items() if not n.startswith(drop)}
    with pytest.raises(CheckpointError, match=message):
        resolve(original_layout.save(kept, tmp_path / "x.safetensors"), tokenizer=str(tiny / "tokenizer"))


def test_a_tensor_without_a_place_is_named(tiny: Path, tmp_path: Path) -> None:
    state = original_layout.stable_diffusion_1(tiny)
    state["model.diffusion_model.input_blocks.1.0.surprise.weight"] = torch.zeros(3)
    path = original_layout.save(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"surprise\.weight', which no model of this kind has"):
        resolve(path, config=str(tiny)).validate()


def openclip_file(tiny: Path, path: Path, prefix: str, *, spare: int, more: dict[str, torch.Tensor]) -> Path:
    """The tiny checkpoint with its text encoder in OpenCLIP's layout."""
    state = original_layout.unet(*original_layout.read(tiny, "unet"))
    state |= original_layout.vae(*original_layout.read(tiny, "vae"))
    encoder = original_layout.read(tiny, "text_encoder")[0]
    return original_layout.save(
        state | original_layout.openclip(encoder, prefix, spare=spare) | more, path, resolution=64
    )


def test_a_stable_diffusion_2_file_is_judged(tiny: Path, tmp_path: Path, judge_export: Judge) -> None:
    path = openclip_file(tiny, tmp_path / "sd2.safetensors", families.SD2.texts[0].prefix, spare=1, more={})
    single = resolve(path, tokenizer=str(tiny / "tokenizer"))
    config = single.config("text_encoder")
    assert (config["num_hidden_layers"], config["hidden_act"]) == (2, "gelu")
    assert single.config("scheduler")["prediction_type"] == "v_prediction"
    wanted = resolve(tiny).stored("text_encoder")
    assert set(single.stored("text_encoder")) == set(wanted), "the layer that is not used is left out"
    report = judge_export(single, "text_encoder", "unet")
    assert report.verdict == "PASS", report.summary


def test_a_stable_diffusion_xl_file_is_read_as_such(tiny: Path, tmp_path: Path) -> None:
    first, second = families.SDXL.texts
    encoder = original_layout.read(tiny, "text_encoder")[0]
    more = original_layout.clip(encoder, first.prefix)
    more |= {"v_pred": torch.ones(()), "ztsnr": torch.ones(())}
    path = openclip_file(tiny, tmp_path / "xl.safetensors", second.prefix, spare=0, more=more)
    single = resolve(path, tokenizer=str(tiny / "tokenizer"))
    assert single.pipeline_class == "StableDiffusionXLPipeline"
    for folder in ("text_encoder", "text_encoder_2"):
        mine, reference = single.stored(folder), single.reference_stored(folder)
        for name, tensor in encoder.items():
            assert torch.equal(mine[name].load(), tensor) and torch.equal(reference[name].load(), tensor)
    assert set(single.stored("text_encoder_2")) - set(encoder) == {"text_projection.weight"}
    scheduler = single.config("scheduler")
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]


@pytest.mark.parametrize(("channels", "kind"), [(9, "Inpaint"), (8, "InstructPix2Pix")])
def test_other_inputs_are_another_pipeline(tiny: Path, tmp_path: Path, channels: int, kind: str) -> None:
    state = original_layout.stable_diffusion_1(tiny)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    state[first] = torch.zeros(state[first].shape[0], channels, 3, 3)
    path = original_layout.save(state, tmp_path / "x.safetensors")
    single = resolve(path, tokenizer=str(tiny / "tokenizer"))
    assert single.config("unet")["in_channels"] == channels
    assert single.pipeline_class == f"StableDiffusion{kind}Pipeline"
    unet = next(c for c in components_of(single) if c.name == "unet")
    assert unet.inputs[0].dims[1] == channels


def test_a_stable_diffusion_xl_file_is_judged(tmp_path: Path, judge_export: Judge) -> None:
    folder = make_tiny_sdxl(tmp_path / "tiny-sdxl")
    first, second = families.SDXL.texts
    state = original_layout.unet(*original_layout.read(folder, "unet"))
    state |= original_layout.vae(*original_layout.read(folder, "vae"))
    state |= original_layout.clip(original_layout.read(folder, "text_encoder")[0], first.prefix)
    state |= original_layout.openclip(original_layout.read(folder, "text_encoder_2")[0], second.prefix)
    single = resolve(original_layout.save(state, tmp_path / "xl.safetensors"), config=str(folder))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, wanted = single.stored(name), resolve(folder).stored(name)
        assert set(mine) == set(wanted)
        assert all(torch.equal(mine[key].load(), tensor.load()) for key, tensor in wanted.items())
    report = judge_export(single, "text_encoder_2", "unet")
    assert all(c.verdict == "PASS" for c in report.components), report.summary


def test_a_refiner_file_is_judged(tmp_path: Path, judge_export: Judge) -> None:
    """One text encoder, the second one, under the first one's number; an aesthetic score among the sizes."""
    folder = make("sdxl_refiner", tmp_path / "tiny-refiner")
    (encoder,) = families.REFINER.texts
    state = original_layout.unet(*original_layout.read(folder, "unet"))
    state |= original_layout.vae(*original_layout.read(folder, "vae"))
    state |= original_layout.openclip(original_layout.read(folder, "text_encoder_2")[0], encoder.prefix)
    path = original_layout.save(state, tmp_path / "refiner.safetensors")
    single = resolve(path, config=str(folder))
    assert single.pipeline_class == "StableDiffusionXLImg2ImgPipeline"
    assert (
        single.index["requires_aesthetics_score"] is True and "text_encoder" not in single.component_classes
    )
    for name in ("unet", "vae", "text_encoder_2"):
        mine, wanted = single.stored(name), resolve(folder).stored(name)
        assert set(mine) == set(wanted)
        assert all(torch.equal(mine[key].load(), tensor.load()) for key, tensor in wanted.items())
    report = judge_export(single, "text_encoder_2", "unet")
    assert all(c.verdict == "PASS" for c in report.components), report.summary
