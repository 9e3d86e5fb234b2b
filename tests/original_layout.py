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


PREFIX = "model.diffusion_model."


def flux(state: State, config: dict, prefix: str = PREFIX) -> State:
    """Black Forest Labs' layout, as their `model.py` and `layers.py` name the modules."""
    left = dict(state)
    result: State = {}

    def put(old: str, *new: str, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{name}.{kind}") for name in new]
            if swap:  # diffusers: scale, shift; the original: shift, scale
                scale, shift = parts[0].chunk(2)
                parts = [shift, scale]
            result[f"{old}.{kind}"] = torch.cat(parts)

    def scale(old: str, new: str) -> None:
        result[f"{old}.scale"] = left.pop(f"{new}.weight")

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    embedders = [("time_in", "timestep"), ("vector_in", "text")]
    for old, new in [*embedders, *([("guidance_in", "guidance")] if config["guidance_embeds"] else [])]:
        put(f"{old}.in_layer", f"time_text_embed.{new}_embedder.linear_1")
        put(f"{old}.out_layer", f"time_text_embed.{new}_embedder.linear_2")
    for i in range(config["num_layers"]):
        new, old = f"transformer_blocks.{i}", f"double_blocks.{i}"
        put(f"{old}.img_mod.lin", f"{new}.norm1.linear")
        put(f"{old}.txt_mod.lin", f"{new}.norm1_context.linear")
        put(f"{old}.img_attn.qkv", *(f"{new}.attn.to_{part}" for part in "qkv"))
        put(f"{old}.txt_attn.qkv", *(f"{new}.attn.add_{part}_proj" for part in "qkv"))
        put(f"{old}.img_attn.proj", f"{new}.attn.to_out.0")
        put(f"{old}.txt_attn.proj", f"{new}.attn.to_add_out")
        for stream, ff, added in (("img", "ff", ""), ("txt", "ff_context", "added_")):
            scale(f"{old}.{stream}_attn.norm.query_norm", f"{new}.attn.norm_{added}q")
            scale(f"{old}.{stream}_attn.norm.key_norm", f"{new}.attn.norm_{added}k")
            put(f"{old}.{stream}_mlp.0", f"{new}.{ff}.net.0.proj")
            put(f"{old}.{stream}_mlp.2", f"{new}.{ff}.net.2")
    for i in range(config["num_single_layers"]):
        new, old = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        put(f"{old}.modulation.lin", f"{new}.norm.linear")
        put(f"{old}.linear1", *(f"{new}.attn.to_{part}" for part in "qkv"), f"{new}.proj_mlp")
        put(f"{old}.linear2", f"{new}.proj_out")
        scale(f"{old}.norm.query_norm", f"{new}.attn.norm_q")
        scale(f"{old}.norm.key_norm", f"{new}.attn.norm_k")
    put("final_layer.linear", "proj_out")
    put("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    assert not left, sorted(left)
    return {prefix + name: tensor for name, tensor in result.items()}


def sd3(state: State, config: dict, prefix: str = PREFIX) -> State:
    """Stability's layout, as the `mmditx.py` of sd3.5 names the modules."""
    left = dict(state)
    result: State = {}
    last = config["num_layers"] - 1

    def put(old: str, *new: str, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            whole = torch.cat([left.pop(f"{name}.{kind}") for name in new])
            result[f"{old}.{kind}"] = torch.cat(whole.chunk(2)[::-1]) if swap else whole

    def norms(old: str, *new: str) -> None:
        if config["qk_norm"]:
            for kind, name in zip(("ln_q", "ln_k"), new, strict=True):
                result[f"{old}.{kind}.weight"] = left.pop(f"{name}.weight")

    result["pos_embed"] = left.pop("pos_embed.pos_embed")
    put("x_embedder.proj", "pos_embed.proj")
    put("context_embedder", "context_embedder")
    for old, new in (("t_embedder", "timestep"), ("y_embedder", "text")):
        put(f"{old}.mlp.0", f"time_text_embed.{new}_embedder.linear_1")
        put(f"{old}.mlp.2", f"time_text_embed.{new}_embedder.linear_2")
    for i in range(last + 1):
        new, x, context = (
            f"transformer_blocks.{i}",
            f"joint_blocks.{i}.x_block",
            f"joint_blocks.{i}.context_block",
        )
        put(f"{x}.adaLN_modulation.1", f"{new}.norm1.linear")
        put(f"{x}.attn.qkv", *(f"{new}.attn.to_{part}" for part in "qkv"))
        put(f"{x}.attn.proj", f"{new}.attn.to_out.0")
        norms(f"{x}.attn", f"{new}.attn.norm_q", f"{new}.attn.norm_k")
        put(f"{x}.mlp.fc1", f"{new}.ff.net.0.proj")
        put(f"{x}.mlp.fc2", f"{new}.ff.net.2")
        if i in config["dual_attention_layers"]:
            put(f"{x}.attn2.qkv", *(f"{new}.attn2.to_{part}" for part in "qkv"))
            put(f"{x}.attn2.proj", f"{new}.attn2.to_out.0")
            norms(f"{x}.attn2", f"{new}.attn2.norm_q", f"{new}.attn2.norm_k")
        put(f"{context}.adaLN_modulation.1", f"{new}.norm1_context.linear", swap=i == last)
        put(f"{context}.attn.qkv", *(f"{new}.attn.add_{part}_proj" for part in "qkv"))
        norms(f"{context}.attn", f"{new}.attn.norm_added_q", f"{new}.attn.norm_added_k")
        if i < last:
            put(f"{context}.attn.proj", f"{new}.attn.to_add_out")
            put(f"{context}.mlp.fc1", f"{new}.ff_context.net.0.proj")
            put(f"{context}.mlp.fc2", f"{new}.ff_context.net.2")
    put("final_layer.linear", "proj_out")
    put("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    assert not left, sorted(left)
    return {prefix + name: tensor for name, tensor in result.items()}


def text(state: State, name: str) -> State:
    """A text encoder under transformers' names, as ComfyUI and Stability store it, with their litter."""
    prefix = f"text_encoders.{name}."
    return {f"{prefix}transformer.{n}": t for n, t in state.items()} | {
        f"{prefix}logit_scale": torch.tensor(4.6)
    }
