"""Files of SD3 and FLUX.1 that are incomplete or something else, and requests that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.checkpoints import Checkpoint, resolve
from exporter.errors import CheckpointError, UsageError
from tests import original_layout
from tests.checkpoints.flow_files import State, everything, transformer


def without(*starts: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if not n.startswith(starts)}


def more(**tensors: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {n.replace("__", "."): t for n, t in tensors.items()}


ONE = torch.zeros(1)
P = original_layout.PREFIX


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("flux", without(f"{P}img_in.weight"), "incomplete: it lacks 'img_in.weight'"),
        ("flux", without(f"{P}double_blocks.0.txt_mlp.2"), r"lacks 'double_blocks.0.txt_mlp.2.weight', "),
        ("flux", without(f"{P}single_blocks.0."), "lacks 'single_blocks.0'"),
        ("flux", without(f"{P}single_blocks."), "lacks 'single_blocks.0'"),
        ("flux", without(f"{P}guidance_in.in_layer"), "lacks 'guidance_in.in_layer.weight'"),
        ("flux", without("text_encoders.t5xxl.transformer.shared"), "T5 encoder is incomplete"),
        (
            "flux",
            without("text_encoders.clip_l.transformer.text_model.embeddings"),
            "text encoder is incompl",
        ),
        ("flux", without("vae.encoder.conv_in"), "autoencoder is incomplete"),
        ("flux", more(model__diffusion_model__surprise=ONE), "'surprise', which no model of this kind has"),
        ("flux", more(model__diffusion_model__scaled_fp8=ONE), "float8 weights with scales beside them"),
        ("flux", more(**{f"{P}img_in.weight.absmax": ONE}), "weights in 4 or 8 bits"),
        ("flux", more(**{f"{P}img_in.weight": torch.zeros(32, 128)}), "takes 128 channels.*Depth and Canny"),
        (
            "flux",
            more(**{f"{P}img_in.weight": torch.zeros(32, 96)}),
            "takes 96 channels a token and gives 64",
        ),
        ("flux", more(**{f"{P}img_in.weight": torch.zeros(33, 64)}), "do not divide 33"),
        (
            "flux",
            more(**{f"{P}single_blocks.0.linear1.weight": torch.zeros(9, 32)}),
            r"odd 'single_blocks.0.l",
        ),
        ("flux", more(**{f"{P}distilled_guidance_layer.x": ONE}), "a Chroma model"),
        ("flux", more(**{f"{P}double_blocks.0.img_attn_qkv.weight": ONE}), "a HunyuanVideo model"),
        ("flux", more(**{f"{P}double_stream_modulation_img.lin.weight": ONE}), "a FLUX.2 model"),
        ("sd3", more(controlnet_blocks__0__weight=ONE), "a ControlNet"),
        (
            "sd3",
            without(f"{P}joint_blocks.1.context_block.attn.qkv"),
            "lacks 'joint_blocks.1.context_block.att",
        ),
        ("sd3", without(f"{P}pos_embed"), "lacks 'pos_embed'"),
        ("sd3", more(**{f"{P}pos_embed": torch.zeros(1, 7, 32)}), "do not go together"),
        (
            "sd35",
            without(f"{P}joint_blocks.1.x_block.attn2.ln_q"),
            r"lacks 'joint_blocks.1.x_block.attn2.ln_q",
        ),
        ("sd35", without(f"{P}joint_blocks.0.x_block.attn.ln_q"), "transformer"),
    ],
)
def test_bad_files(
    flow_folders: dict[str, Path], tmp_path: Path, family: str, change: Callable[[State], State], message: str
) -> None:
    path = original_layout.save(change(everything(flow_folders[family])), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve(path, base=str(flow_folders[family])).validate()
    assert caught.value.exit_code == 3


def test_bad_requests(flow_folders: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    folder = flow_folders["flux"]
    path = original_layout.save(transformer(folder), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="heads of 16 channels, and it does not say") as caught:
        resolve(path)
    assert "--base SOURCE" in str(caught.value.hint)
    with pytest.raises(
        CheckpointError, match=r"CLIPTextModelWithProjection as its text_encoder; FLUX\.1 dev needs"
    ):
        resolve(path, base=str(flow_folders["sd3"]), config=str(folder))
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(path, base="nowhere")
    with pytest.raises(UsageError, match="--base is for a checkpoint in one file"):
        resolve(folder, base=str(folder))
    old = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "sd1.safetensors")
    with pytest.raises(UsageError, match="--base is for files of SD3 and FLUX"):
        resolve(old, base=str(folder))
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a usable safetensors file"):
        resolve(tmp_path / "cut.safetensors", base=str(folder))
    torch.save(transformer(folder), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        resolve(tmp_path / "x.ckpt", base=str(folder))
    allowed = resolve(tmp_path / "x.ckpt", base=str(folder), allow_pickle=True)
    assert allowed.opened_with["pickle"]
    same_values(allowed, resolve(folder))
    state = {"transformer_blocks.0.attn.to_q.weight": ONE}
    with pytest.raises(CheckpointError, match="a transformer alone, under diffusers' names"):
        resolve(original_layout.save(state, tmp_path / "y.safetensors"))


def same_values(one: Checkpoint, other: Checkpoint) -> None:
    for name, tensor in other.stored("transformer").items():
        assert torch.equal(one.stored("transformer")[name].load(), tensor.load()), name
