"""Every acceleration technique on one CUDA GPU, alone and combined, against eager float16 PyTorch.

    python -m tests.benchmarks.techniques_on_gpu [--family sd15|sdxl|flux] [--only NAME] [--json FILE]

Full-size denoisers with random weights (speed does not depend on them): Stable Diffusion 1.5 at batch 2 and
64×64 latents, SDXL at batch 2 and 128×128, FLUX.1-dev at batch 1, 4096 + 512 tokens in bfloat16. A row is a
run of several scheduler steps from noise to latents in the pipeline's own loop, so that caches and gates do
what they do in use; `step` is the time of a step. Three warm-up runs (the first, compilation in it, is told
apart), then `--runs`, median; memory is what PyTorch reserved at most.

`distance` is the relative L2 distance of the last latents from eager ones of the same weights (float32; for
FLUX bfloat16). For lossy techniques random weights say little about pictures: those are judged on the trained
model (`exporter bench builtin:shapes --recipe pytorch/deep-cache …`).

Roofline: the FLOP of a step, counted by PyTorch's own counter, over 790 TFLOP/s, which large matrix products
in bfloat16 reach on an H100.

Needs torch, diffusers, transformers and pydantic only, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from exporter import techniques

PEAK = 790e12
IN_LOOP = {"deep-cache", "t-gate", "trace", "group-offload", "model-offload"}
"""Techniques that count on the loop around the denoiser, or keep no module to call."""
STEPS = {"sd15": 20, "sdxl": 10, "flux": 8}
FP16: dict[str, Any] = {"precision": {"dtype": "float16"}}
BF16: dict[str, Any] = {"precision": {"dtype": "bfloat16"}}
UNET: dict[str, list[Any]] = {
    "float32": [],
    "tf32": ["tf32"],
    "float16": [FP16],
    "bfloat16": [BF16],
    "channels-last": [FP16, "channels-last"],
    "attention: flash": [FP16, {"attention-backend": {"backend": "flash"}}],
    "attention: cudnn": [FP16, {"attention-backend": {"backend": "cudnn"}}],
    "attention: math": [FP16, {"attention-backend": {"backend": "math"}}],
    "fused-qkv": [FP16, "fused-qkv"],
    "token-merging 0.5": [FP16, "token-merging"],
    "deep-cache 3": [FP16, "deep-cache"],
    "t-gate 10": [FP16, {"t-gate": {"gate": 10}}],
    "trace": [FP16, "channels-last", "trace"],
    "trace, frozen": [FP16, "channels-last", {"trace": {"freeze": True}}],
    "compile, regional": [FP16, "channels-last", {"compile": {"regional": True}}],
    "compile": [FP16, "channels-last", {"compile": {"fullgraph": True}}],
    "compile, reduce-overhead": [
        FP16, "channels-last", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "compile, max-autotune + fused-qkv": [
        FP16, "channels-last", "fused-qkv", {"compile": {"mode": "max-autotune", "fullgraph": True}},
    ],
    "compile, reduce-overhead + cudnn": [
        FP16, "channels-last", {"attention-backend": {"backend": "cudnn"}},
        {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "tuned: cudnn-benchmark + reduce-overhead": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}},
        {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "tuned: the same, fused-qkv, 1×1 as products": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}}, "fused-qkv",
        {"compile": {"mode": "reduce-overhead", "fullgraph": True, "tuned": True}},
    ],
    "tuned: the same, max-autotune": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}}, "fused-qkv",
        {"compile": {"mode": "max-autotune", "fullgraph": True, "tuned": True}},
    ],
    "fp8 + compile, reduce-overhead": [
        BF16, "fp8", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "int8 + compile, reduce-overhead": [
        BF16, "int8", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "int8 + compile": [BF16, "int8", {"compile": {"fullgraph": True}}],
    "fp8 + compile": [BF16, "fp8", {"compile": {"fullgraph": True}}],
    "layerwise-casting": [FP16, "layerwise-casting"],
    "model-offload": [FP16, "model-offload"],
    "group-offload": [FP16, "group-offload"],
}  # fmt: skip
FLUX: dict[str, list[Any]] = {
    "bfloat16": [BF16],
    "attention: cudnn": [BF16, {"attention-backend": {"backend": "cudnn"}}],
    "fused-qkv": [BF16, "fused-qkv"],
    "first-block-cache": [BF16, "first-block-cache"],
    "attention-broadcast": [BF16, "attention-broadcast"],
    "faster-cache": [BF16, "faster-cache"],
    "taylor-seer": [BF16, "taylor-seer"],
    "compile, regional": [BF16, {"compile": {"regional": True, "fullgraph": True}}],
    "fp8 + compile, regional": [BF16, "fp8", {"compile": {"regional": True, "fullgraph": True}}],
    "int8 + compile, regional": [BF16, "int8", {"compile": {"regional": True, "fullgraph": True}}],
    "layerwise-casting": [BF16, "layerwise-casting"],
    "group-offload": [BF16, {"group-offload": {"kind": "block"}}],
}


def unet_pipeline(family: str) -> Any:
    """A pipeline of diffusers around a random full-size UNet; the text is given as embeddings."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with torch.device("cuda"):
        if family == "sd15":
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        else:
            unet = UNet2DConditionModel(
                sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
                use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )  # fmt: skip
    if family == "sd15":
        made = StableDiffusionPipeline(
            vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    else:
        made = StableDiffusionXLPipeline(
            vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
            scheduler=scheduler, add_watermarker=False,
        )  # fmt: skip
    return made


def flux_pipeline() -> Any:
    """A pipeline around a random FLUX.1-dev transformer, made in bfloat16 on the GPU (24 GB)."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            transformer = FluxTransformer2DModel(guidance_embeds=True)
    finally:
        torch.set_default_dtype(before)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=vae,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip


def texts(family: str, dtype: torch.dtype) -> dict[str, Any]:
    """Random text embeddings, as the family's encoders would give them."""
    noise = torch.Generator("cuda").manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise, device="cuda").to(dtype)

    if family == "flux":
        return {"prompt_embeds": draw(1, 512, 4096), "pooled_prompt_embeds": draw(1, 768)}
    width = 768 if family == "sd15" else 2048
    given = {"prompt_embeds": draw(1, 77, width), "negative_prompt_embeds": draw(1, 77, width)}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": draw(1, 1280), "negative_pooled_prompt_embeds": draw(1, 1280)}
    return given


def paint(pipeline: Any, family: str) -> torch.Tensor:
    """Noise to latents."""
    dtype = (pipeline.transformer if family == "flux" else pipeline.unet).dtype
    size = 512 if family == "sd15" else 1024
    result = pipeline(
        **texts(family, torch.float16 if dtype.itemsize == 1 else dtype), height=size, width=size,
        num_inference_steps=STEPS[family], guidance_scale=7.5 if family != "flux" else 3.5,
        generator=torch.Generator("cuda").manual_seed(0), output_type="latent",
    ).images  # fmt: skip
    torch.cuda.synchronize()
    return result.double()


def alone(pipeline: Any, family: str) -> float:
    """Median seconds of the UNet by itself, given what the pipeline gives it, over 50 calls."""
    unet = pipeline.unet
    side = 64 if family == "sd15" else 128
    dtype = torch.bfloat16 if unet.dtype.itemsize == 1 else unet.dtype
    text = texts(family, dtype)
    sample = torch.randn(2, 4, side, side, device="cuda").to(dtype)
    added = None
    if family == "sdxl":
        sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * 2, device="cuda").to(dtype)
        added = {"text_embeds": text["pooled_prompt_embeds"].repeat(2, 1), "time_ids": sizes}
    given = {
        "encoder_hidden_states": text["prompt_embeds"].repeat(2, 1, 1), "timestep_cond": None,
        "cross_attention_kwargs": None, "added_cond_kwargs": added, "return_dict": False,
    }  # fmt: skip
    timestep = torch.tensor(501, device="cuda")
    times = []
    with torch.no_grad():
        for _ in range(53):
            torch.cuda.synchronize()
            began = time.perf_counter()
            unet(sample, timestep, **given)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def flop(pipeline: Any, family: str) -> float:
    """FLOP of a whole run, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        paint(pipeline, family)
    return float(counter.get_total_flops())


@contextmanager
def applied(pipeline: Any, given: list[Any]) -> Iterator[None]:
    """Techniques on a pipeline for a while; peaks of memory are counted from the beginning."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    undo = techniques.apply(pipeline, given)
    try:
        yield
    finally:
        undo()
        torch._dynamo.reset()
        gc.collect()


def measure(pipeline: Any, family: str, given: list[Any], runs: int) -> dict[str, Any]:
    with applied(pipeline, given):
        began = time.perf_counter()
        latents = paint(pipeline, family)
        first = time.perf_counter() - began
        for _ in range(2):
            paint(pipeline, family)
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            latents = paint(pipeline, family)
            times.append(time.perf_counter() - began)
        names = {technique.name for technique in techniques.parse(given)}
        single = alone(pipeline, family) if family != "flux" and not names & IN_LOOP else None
        return {
            "alone": single, "first": first, "median": statistics.median(times), "fastest": min(times),
            "slowest": max(times), "memory": torch.cuda.max_memory_reserved(), "latents": latents,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", choices=list(STEPS), default="sd15")
    parser.add_argument("--only", action="append", help="rows with this in their name; repeatable")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=540, help="begin no further row after this long")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    family, began = arguments.family, time.monotonic()
    pipeline = flux_pipeline() if family == "flux" else unet_pipeline(family)
    pipeline.to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    truth = paint(pipeline, family)
    total = flop(pipeline, family)
    bound = total / PEAK
    print(f"{family}: {STEPS[family]} steps, {total / STEPS[family] / 1e12:.2f} TFLOP a step, "
          f"roofline {1000 * bound / STEPS[family]:.2f} ms a step")  # fmt: skip
    table = FLUX if family == "flux" else UNET
    base, rows = None, []
    yardstick = "bfloat16" if family == "flux" else "float16"
    heads = f"{'step ms':>9}{'alone ms':>10}{'spread':>16}{'speed':>8}{'roofline':>9}"
    heads += f"{'first s':>9}{'GB':>7}{'distance':>10}"
    print(f"{'technique':44}{heads}")
    for name, given in table.items():
        if arguments.only and not any(part in name for part in arguments.only) and name != yardstick:
            continue
        if time.monotonic() - began > arguments.seconds:
            print(f"{name:44} not run: no time left")
            continue
        try:
            row = measure(pipeline, family, given, arguments.runs)
        except Exception as error:  # libraries and compilers have types of their own
            print(f"{name:44} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        latents = row.pop("latents")
        row |= {"name": name, "distance": float((latents - truth).norm() / truth.norm())}
        rows.append(row)
        base = row["median"] if name == yardstick else base
        count = STEPS[family] / 1000
        speed = f"{base / row['median']:.2f}×" if base else ""
        spread = f"{row['fastest'] / count:.1f}–{row['slowest'] / count:.1f}"
        single = f"{1000 * row['alone']:.2f}" if row["alone"] else ""
        said = f"{name:44}{row['median'] / count:9.2f}{single:>10}{spread:>16}{speed:>8}"
        said += f"{bound / row['median']:9.2f}"
        said += f"{row['first']:9.1f}{row['memory'] / 1e9:7.2f}{row['distance']:10.1e}"
        print(said, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"family": family, "flop": total, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
