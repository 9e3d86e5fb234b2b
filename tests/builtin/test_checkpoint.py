"""The embedded checkpoint is Stable Diffusion 1 in shape, small, and paints what it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open

from exporter.builtin import path
from exporter.builtin.prompts import held_out, sample_scenes
from exporter.builtin.render import SceneTensors, draw
from tests.builtin.scoring import load, paint, score
from tests.judge import judge

WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


def config(name: str, file: str = "config.json") -> dict:
    return json.loads((path() / name / file).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load(path())


def test_it_is_small_and_stored_in_float16() -> None:
    assert sorted(str(f.relative_to(path())) for f in path().rglob("*.safetensors")) == list(WEIGHTS)
    assert sum(file.stat().st_size for file in path().rglob("*") if file.is_file()) < 16_000_000
    for name in WEIGHTS:
        with safe_open(path() / name, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                tensor = weights.get_tensor(key)
                assert tensor.dtype == torch.float16, key
                assert tensor.isfinite().all(), key


def test_model_index_is_stable_diffusions() -> None:
    index = config(".", "model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    assert index["requires_safety_checker"] is False


def test_numbers_that_clients_hard_code() -> None:
    vae, unet, text = config("vae"), config("unet"), config("text_encoder")
    scheduler = config("scheduler", "scheduler_config.json")
    assert len(vae["block_out_channels"]) == 4
    assert (vae["latent_channels"], vae["scaling_factor"], vae["sample_size"]) == (4, 0.18215, 128)
    assert vae["down_block_types"] == ["DownEncoderBlock2D"] * 4
    assert (unet["in_channels"], unet["out_channels"], unet["sample_size"]) == (4, 4, 16)
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert unet["attention_head_dim"] == 8
    assert unet["cross_attention_dim"] == text["hidden_size"]
    assert (text["max_position_embeddings"], text["hidden_act"]) == (77, "quick_gelu")
    assert (text["bos_token_id"], text["eos_token_id"]) == (text["vocab_size"] - 2, text["vocab_size"] - 1)
    assert scheduler["beta_schedule"] == "scaled_linear"
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert (scheduler["steps_offset"], scheduler["set_alpha_to_one"]) == (1, False)
    assert (scheduler["clip_sample"], scheduler["prediction_type"]) == (False, "epsilon")


def test_no_file_names_a_machine() -> None:
    for file in path().rglob("*"):
        if file.suffix in {".json", ".md", ".txt"}:
            text = file.read_text(encoding="utf-8")
            assert "_name_or_path" not in text
            assert not any(root in text for root in ("/tmp", "/home", "/root", "/work")), file


def drawn(count: int) -> torch.Tensor:
    scenes = sample_scenes(count, seed=7)
    rng = torch.Generator().manual_seed(7)
    return draw(SceneTensors.of(scenes, torch.device("cpu")), torch.arange(len(scenes)), 128, rng)


@torch.no_grad()
def test_latents_have_unit_variance_at_the_scale(pipeline: StableDiffusionPipeline) -> None:
    vae: AutoencoderKL = pipeline.vae
    pictures = drawn(100)
    latents = vae.encode(pictures).latent_dist.sample(torch.Generator().manual_seed(0))
    scaled = latents * vae.config.scaling_factor
    assert scaled.shape == (len(pictures), 4, 16, 16)
    assert scaled.std(dim=(0, 2, 3)).numpy() == pytest.approx(1.0, abs=0.12)
    assert scaled.mean(dim=(0, 2, 3)).numpy() == pytest.approx(0.0, abs=0.15)
    painted = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
    psnr = 10 * torch.log10(4 / (painted - pictures).square().mean()).item()
    assert psnr > 33


def test_it_paints_what_it_is_asked(pipeline: StableDiffusionPipeline) -> None:
    unseen = sample_scenes(6, seed=5, only_held_out=True)
    scenes = unseen + [s for s in sample_scenes(12, seed=6) if s not in held_out()][:6]
    assert len(scenes) == 12
    prompts = [scene.prompt for scene in scenes]
    verdicts = [
        judge(picture, prompt) for picture, prompt in zip(paint(pipeline, prompts), prompts, strict=True)
    ]
    assert sum(verdict.ok for verdict in verdicts) >= 11, list(zip(prompts, verdicts, strict=True))


def test_the_prompt_decides(pipeline: StableDiffusionPipeline) -> None:
    """The same noise under two prompts gives two pictures, each right for its own alone."""
    prompts = (
        "a large red circle at the left on a white background",
        "a small blue square at the right on a yellow background",
    )
    for prompt, other in (prompts, prompts[::-1]):
        (picture,) = paint(pipeline, [prompt], seed=11)
        assert judge(picture, prompt).ok
        assert set(judge(picture, other).wrong) == {"background", "colour", "shape", "place", "size"}


def test_prompts_may_leave_attributes_out(pipeline: StableDiffusionPipeline) -> None:
    prompts = ["a red star on a blue background", "a yellow ring", "a large green cross"]
    pictures = paint(pipeline, prompts, seed=3)
    verdicts = [judge(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    assert sum(verdict.ok for verdict in verdicts) >= 2, verdicts


@pytest.mark.parametrize(("height", "width"), [(128, 192), (192, 128)])
def test_other_aspects_run(pipeline: StableDiffusionPipeline, height: int, width: int) -> None:
    image = pipeline(
        "a large red circle in the center on a white background",
        height=height,
        width=width,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    pixels = np.asarray(image)
    assert pixels.shape == (height, width, 3)
    assert pixels.std() > 10


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("only_held_out", "least"), [(False, 0.95), (True, 0.90)])
def test_full_score(
    pipeline: StableDiffusionPipeline, only_held_out: bool, least: float, tmp_path: Path
) -> None:
    result = score(pipeline, 200, only_held_out=only_held_out, sheet=tmp_path / "sheet.png")
    assert result["right"] >= least, result
