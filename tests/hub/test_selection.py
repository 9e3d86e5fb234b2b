"""One format, one precision, nothing twice."""

from __future__ import annotations

import pytest

from exporter.checkpoints.selection import select_files
from exporter.errors import CheckpointError

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
HUB = [
    "model_index.json", "README.md", ".gitattributes", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt",
    "scheduler/scheduler_config.json",
    "unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_flax_model.msgpack", "unet/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors", "safety_checker/model.safetensors", "unet/evil.py",
]  # fmt: skip
PLAIN = {
    "model_index.json", "README.md", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
}  # fmt: skip


def test_plain_weights_and_nothing_else() -> None:
    assert set(select_files(HUB, INDEX)) == PLAIN


def test_a_variant_replaces_the_plain_weights() -> None:
    chosen = {name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN}
    assert set(select_files(HUB, INDEX, "fp16")) == chosen


def test_a_component_without_the_variant_gives_its_plain_weights() -> None:
    names = [name for name in HUB if name != "text_encoder/model.fp16.safetensors"]
    assert "text_encoder/model.safetensors" in select_files(names, INDEX, "fp16")


def test_an_unknown_variant_is_refused_with_those_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"variants there are: fp16, non_ema"):
        select_files(HUB, INDEX, "bf16")


def test_the_only_variant_serves_when_there_are_no_plain_weights() -> None:
    names = [n for n in HUB if n not in PLAIN or n.endswith("json")]
    names.remove("unet/diffusion_pytorch_model.non_ema.safetensors")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in select_files(names, INDEX)


def test_two_variants_without_plain_weights_have_to_be_chosen_from() -> None:
    names = [n for n in HUB if n != "unet/diffusion_pytorch_model.safetensors"]
    with pytest.raises(CheckpointError, match="several variants"):
        select_files(names, INDEX)


@pytest.mark.parametrize(
    "shards",
    [
        [
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        ],
        [
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
            "diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
        ],
    ],
)
def test_shards_of_a_variant_come_with_their_index(shards: list[str]) -> None:
    inside = [f"unet/{n}" for n in shards]
    chosen = select_files([*HUB, *inside], INDEX, "fp16")
    assert set(inside) <= set(chosen)
    assert not set(inside) & set(select_files([*HUB, *inside], INDEX))


def test_pickles_alone_are_refused() -> None:
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        select_files(names, INDEX)
