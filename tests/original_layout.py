"""Writes a diffusers folder as one file in its authors' layout: the inverse of what exporter reads.

Written on its own, from diffusers' names to the original's, so that one mistake in both directions
cannot hide itself. The original's structure is that of CompVis' `openaimodel.py`, `model.py` and of
OpenCLIP's `transformer.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def read(folder: Path, part: str) -> tuple[State, dict]:
    """Weights and config of one component."""
    (path,) = (folder / part).glob("*.safetensors")
    return load_file(path), json.loads((folder / part / "config.json").read_text())


def unet(state: State, config: dict) -> State:
    """`model.diffusion_model.…`"""
    layers = config["layers_per_block"]
    levels = len(config["block_out_channels"])
    crossed_up = [kind.startswith("Cross") for kind in config["up_block_types"]]

    def resnet(rest: str) -> str:
        for new, old in (
            ("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("time_emb_proj.", "emb_layers.1."),
            ("norm2.", "out_layers.0."), ("conv2.", "out_layers.3."), ("conv_shortcut.", "skip_connection."),
        ):  # fmt: skip
            if rest.startswith(new):
                return old + rest[len(new) :]
        raise AssertionError(rest)

    def rename(name: str) -> str:
        for new, old in (
            ("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
            ("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."),
            ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
            ("mid_block.attentions.0.", "middle_block.1."),
        ):  # fmt: skip
            if name.startswith(new):
                return old + name[len(new) :]
        if m := re.match(r"mid_block\.resnets\.([01])\.(.+)", name):
            return f"middle_block.{2 * int(m[1])}.{resnet(m[2])}"
        if m := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
            number = int(m[1]) * (layers + 1) + int(m[3]) + 1
            is_resnet = m[2] == "resnets"
            return f"input_blocks.{number}.{0 if is_resnet else 1}.{resnet(m[4]) if is_resnet else m[4]}"
        if m := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.+)", name):
            return f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op.{m[2]}"
        if m := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
            number = int(m[1]) * (layers + 1) + int(m[3])
            is_resnet = m[2] == "resnets"
            return f"output_blocks.{number}.{0 if is_resnet else 1}.{resnet(m[4]) if is_resnet else m[4]}"
        m = re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.+)", name)
        assert m and int(m[1]) < levels - 1, name
        number = int(m[1]) * (layers + 1) + layers
        return f"output_blocks.{number}.{2 if crossed_up[int(m[1])] else 1}.conv.{m[2]}"

    return {f"model.diffusion_model.{rename(n)}": t for n, t in state.items()}


def vae(state: State, config: dict, prefix: str = "first_stage_model.") -> State:
    """`first_stage_model.…`"""
    top = len(config["block_out_channels"]) - 1
    result = {}
    for name, tensor in state.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{top - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1")
            for theirs, old in (
                ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
            ):  # fmt: skip
                new = new.replace(f"attn_1.{theirs}.", f"attn_1.{old}.")
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
        result[prefix + new] = tensor
    return result


def clip(state: State, prefix: str = "cond_stage_model.transformer.") -> State:
    """transformers' own names below a prefix, and the buffer that old files carry."""
    length = state["text_model.embeddings.position_embedding.weight"].shape[0]
    ids = {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}
    return {prefix + name: tensor for name, tensor in state.items()} | ids


def openclip(state: State, prefix: str = "cond_stage_model.model.", *, spare: int = 0) -> State:
    """OpenCLIP's layout; `spare` layers more at the end, as Stable Diffusion 2 has one too many."""
    result: State = {}
    embeddings = "text_model.embeddings."
    result["token_embedding.weight"] = state[f"{embeddings}token_embedding.weight"]
    result["positional_embedding"] = state[f"{embeddings}position_embedding.weight"]
    width = result["token_embedding.weight"].shape[1]
    projection = state.get("text_projection.weight")
    result["text_projection"] = torch.eye(width) if projection is None else projection.T
    for kind in ("weight", "bias"):
        result[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
    count = 1 + max(int(m[1]) for n in state if (m := re.search(r"encoder\.layers\.(\d+)\.", n)))
    for layer in range(count + spare):
        old = f"text_model.encoder.layers.{min(layer, count - 1)}"
        new = f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            both = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = torch.cat(both)
            for theirs, ours in (
                ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
            ):  # fmt: skip
                result[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return {prefix + name: tensor for name, tensor in result.items()}


def stable_diffusion_1(folder: Path) -> State:
    """Everything of a Stable Diffusion 1 file, with some of the litter that real ones carry."""
    state = unet(*read(folder, "unet")) | vae(*read(folder, "vae")) | clip(read(folder, "text_encoder")[0])
    state["alphas_cumprod"] = torch.linspace(1, 0, 10)
    state["model_ema.decay"] = torch.tensor(0.9999)
    return state


def save(state: State, path: Path, *, resolution: int | None = None) -> Path:
    metadata = {"format": "pt"}
    if resolution is not None:
        metadata["modelspec.resolution"] = f"{resolution}x{resolution}"
    save_file({n: t.contiguous().clone() for n, t in state.items()}, path, metadata=metadata)
    return path
