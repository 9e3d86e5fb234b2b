"""Every acceleration technique on one CUDA GPU, alone and combined, against eager float16 PyTorch.

    python -m tests.benchmarks.techniques_on_gpu [--family sd15|sdxl|flux] [--only NAME] [--json FILE]
    python -m tests.benchmarks.techniques_on_gpu --only "by hand" --alone --profile --each 240

Full-size denoisers with random weights (speed does not depend on them): Stable Diffusion 1.5 at batch 2 and
64×64 latents, SDXL at batch 2 and 128×128, FLUX.1-dev at batch 1, 4096 + 512 tokens in bfloat16. A row is a
run of several scheduler steps from noise to latents in the pipeline's own loop, so that caches and gates do
what they do in use; `step` is the time of a step. Three warm-up runs (the first, compilation in it, is told
apart), then `--runs`, median; memory is what PyTorch reserved at most.

`distance` is the relative L2 distance of the last latents from eager ones of the same weights (float32; for
FLUX bfloat16). For lossy techniques random weights say little about pictures: those are judged on the trained
model (`exporter bench builtin:shapes --recipe pytorch/deep-cache …`).

Rows "by hand" let the compiler make kernels and record them with the technique `cuda-graph`. `--alone` leaves
out the loop and the memory and times the UNet by itself; `--profile` says which kernels its time went to.
`--each` is a limit of seconds for a row: one that a compiler does not end in time is told and left. `--tiny`
runs tiny models, also without a GPU, to see that the script works.

Roofline: the FLOP of a step, counted by PyTorch's own counter, over 790 TFLOP/s, which large matrix products
in bfloat16 reach on an H100.

Needs torch, diffusers, transformers and pydantic only, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from exporter import techniques
from tests.benchmarks.gpu_rows import FLUX, UNET
from tests.benchmarks.kernels import profiled

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PEAK = 790e12
IN_LOOP = {
    "deep-cache",
    "t-gate",
    "trace",
    "group-offload",
    "model-offload",
    "sequential-offload",
    "device-map",
}
"""Techniques that count on the loop around the denoiser, or keep no module to call."""
STEPS = {"sd15": 20, "sdxl": 10, "flux": 8}


class OutOfTime(BaseException):
    """A row took longer than it may. No Exception, so that no compiler takes it for its own."""


def unet_pipeline(family: str, tiny: bool = False) -> Any:
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
    with torch.device(DEVICE):
        if tiny:
            unet = UNet2DConditionModel(
                sample_size=16, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            )  # fmt: skip
        elif family == "sd15":
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


def flux_pipeline(tiny: bool = False) -> Any:
    """A pipeline around a random FLUX.1-dev transformer, made in bfloat16 on the GPU (24 GB)."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    small: dict[str, Any] = {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    try:
        with torch.device(DEVICE):
            transformer = FluxTransformer2DModel(guidance_embeds=True, **(small if tiny else {}))
    finally:
        torch.set_default_dtype(before)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16,
    )  # fmt: skip
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=vae,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    made.default_sample_size = 16 if tiny else 128
    return made


def texts(pipeline: Any, family: str, dtype: torch.dtype) -> dict[str, Any]:
    """Random text embeddings, as the family's encoders would give them."""
    noise = torch.Generator(DEVICE).manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise, device=DEVICE).to(dtype)

    if family == "flux":
        sizes = pipeline.transformer.config
        tokens = 512 if sizes.joint_attention_dim == 4096 else 16
        return {
            "prompt_embeds": draw(1, tokens, sizes.joint_attention_dim),
            "pooled_prompt_embeds": draw(1, sizes.pooled_projection_dim),
        }
    width = pipeline.unet.config.cross_attention_dim
    given = {"prompt_embeds": draw(1, 77, width), "negative_prompt_embeds": draw(1, 77, width)}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": draw(1, 1280), "negative_pooled_prompt_embeds": draw(1, 1280)}
    return given


def paint(pipeline: Any, family: str) -> torch.Tensor:
    """Noise to latents."""
    dtype = (pipeline.transformer if family == "flux" else pipeline.unet).dtype
    side = pipeline.default_sample_size if family == "flux" else pipeline.unet.config.sample_size
    size = side * pipeline.vae_scale_factor
    result = pipeline(
        **texts(pipeline, family, torch.float16 if dtype.itemsize == 1 else dtype), height=size, width=size,
        num_inference_steps=STEPS[family], guidance_scale=7.5 if family != "flux" else 3.5,
        generator=torch.Generator(DEVICE).manual_seed(0), output_type="latent",
    ).images  # fmt: skip
    settle()
    return result.double()


def settle() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def single(pipeline: Any, family: str) -> Any:
    """A call of the UNet by itself, given what the pipeline gives it."""
    unet = pipeline.unet
    side = unet.config.sample_size
    dtype = torch.bfloat16 if unet.dtype.itemsize == 1 else unet.dtype
    text = texts(pipeline, family, dtype)
    noise = torch.Generator(DEVICE).manual_seed(2)
    sample = torch.randn(2, 4, side, side, generator=noise, device=DEVICE).to(dtype)
    added = None
    if family == "sdxl":
        sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * 2, device=DEVICE).to(dtype)
        added = {"text_embeds": text["pooled_prompt_embeds"].repeat(2, 1), "time_ids": sizes}
    given = {
        "encoder_hidden_states": text["prompt_embeds"].repeat(2, 1, 1), "timestep_cond": None,
        "cross_attention_kwargs": None, "added_cond_kwargs": added, "return_dict": False,
    }  # fmt: skip
    timestep = torch.tensor(501, device=DEVICE)

    @torch.no_grad()
    def call() -> torch.Tensor:
        return unet(sample, timestep, **given)[0]

    return call


def alone(pipeline: Any, family: str) -> tuple[float, float]:
    """Median and first seconds of the UNet by itself, the median over 50 calls."""
    call, times = single(pipeline, family), []
    for _ in range(53):
        settle()
        began = time.perf_counter()
        call()
        settle()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:]), times[0]


def flop(pipeline: Any, family: str) -> float:
    """FLOP of a whole run, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        paint(pipeline, family)
    return float(counter.get_total_flops())


@contextmanager
def applied(pipeline: Any, given: list[Any]) -> Iterator[None]:
    """Techniques on a pipeline for a while; peaks of memory are counted from the beginning.

    Besides techniques, `inductor` are settings of the compiler and `matmul` of PyTorch's matrix products.
    """
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    named, settings, products = sorted_out(given)
    with ExitStack() as stack:
        if settings:
            import torch._inductor.config as inductor

            stack.enter_context(inductor.patch(settings))
        for key, value in products.items():
            before = getattr(torch.backends.cuda.matmul, key)
            stack.callback(setattr, torch.backends.cuda.matmul, key, before)
            setattr(torch.backends.cuda.matmul, key, value)
        stack.callback(gc.collect)
        stack.callback(torch._dynamo.reset)
        stack.callback(techniques.apply(pipeline, named))
        yield


def sorted_out(given: list[Any]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Techniques, settings of the compiler, settings of matrix products."""
    settings, products, named = {}, {}, []
    for each in given:
        if isinstance(each, dict) and "inductor" in each:
            settings |= each["inductor"]
        elif isinstance(each, dict) and "matmul" in each:
            products |= each["matmul"]
        else:
            named.append(each)
    return named, settings, products


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in what takes longer. 0 is no limit."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def only_alone(pipeline: Any, family: str, given: list[Any], truth: torch.Tensor, profile: bool) -> list[str]:
    """A row of `--alone`: the UNet by itself, and how far what it gives is from eager float32."""
    with applied(pipeline, given):
        median, first = alone(pipeline, family)
        call = single(pipeline, family)
        found = call().double()
        lines = [f"{1000 * median:10.3f}{first:9.1f}{float((found - truth).norm() / truth.norm()):10.1e}"]
        if profile:
            lines += profiled(lambda: [call() for _ in range(10)], longest=20).rows(10)
        return lines


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
        names = {technique.name for technique in techniques.parse(sorted_out(given)[0])}
        by_itself = alone(pipeline, family)[0] if family != "flux" and not names & IN_LOOP else None
        memory = torch.cuda.max_memory_reserved() if CUDA else 0
        return {
            "alone": by_itself, "first": first, "median": statistics.median(times), "fastest": min(times),
            "slowest": max(times), "memory": memory, "latents": latents,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", choices=list(STEPS), default="sd15")
    parser.add_argument("--only", action="append", help="rows with this in their name; repeatable")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=540, help="begin no further row after this long")
    parser.add_argument("--each", type=float, default=0, help="give a row up after so many seconds")
    parser.add_argument("--alone", action="store_true", help="the UNet by itself only")
    parser.add_argument("--profile", action="store_true", help="with --alone: where its time goes")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    family, began = arguments.family, time.monotonic()
    if arguments.alone and family == "flux":
        parser.error("--alone is for UNets")
    tiny = arguments.tiny
    pipeline = flux_pipeline(tiny) if family == "flux" else unet_pipeline(family, tiny)
    pipeline.to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    name = torch.cuda.get_device_name() if CUDA else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    truth = single(pipeline, family)().double() if arguments.alone else paint(pipeline, family)
    total = flop(pipeline, family)
    bound = total / PEAK
    print(f"{family}: {STEPS[family]} steps, {total / STEPS[family] / 1e12:.2f} TFLOP a step, "
          f"roofline {1000 * bound / STEPS[family]:.2f} ms a step")  # fmt: skip
    table = FLUX if family == "flux" else UNET
    base, rows = None, []
    yardstick = "bfloat16" if family == "flux" else "float16"
    heads = f"{'step ms':>9}{'alone ms':>10}{'spread':>16}{'speed':>8}{'roofline':>9}"
    heads += f"{'first s':>9}{'GB':>7}{'distance':>10}"
    if arguments.alone:
        heads = f"{'alone ms':>10}{'first s':>9}{'distance':>10}"
    print(f"{'technique':46}{heads}")
    for name, given in table.items():
        if arguments.only and not any(part in name for part in arguments.only) and name != yardstick:
            continue
        if time.monotonic() - began > arguments.seconds:
            print(f"{name:46} not run: no time left")
            continue
        try:
            with limited(arguments.each):
                if arguments.alone:
                    lines = only_alone(pipeline, family, given, truth, arguments.profile)
                    print("\n".join([f"{name:46}{lines[0]}", *lines[1:]]), flush=True)
                    continue
                row = measure(pipeline, family, given, arguments.runs)
        except OutOfTime:
            print(f"{name:46} not ended within {arguments.each:.0f} s", flush=True)
            continue
        except Exception as error:  # libraries and compilers have types of their own
            print(f"{name:46} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        latents = row.pop("latents").to(truth.device)  # another GPU's, with a device map
        row |= {"name": name, "distance": float((latents - truth).norm() / truth.norm())}
        rows.append(row)
        base = row["median"] if name == yardstick else base
        count = STEPS[family] / 1000
        speed = f"{base / row['median']:.2f}×" if base else ""
        spread = f"{row['fastest'] / count:.1f}–{row['slowest'] / count:.1f}"
        by_itself = f"{1000 * row['alone']:.2f}" if row["alone"] else ""
        said = f"{name:46}{row['median'] / count:9.2f}{by_itself:>10}{spread:>16}{speed:>8}"
        said += f"{bound / row['median']:9.2f}"
        said += f"{row['first']:9.1f}{row['memory'] / 1e9:7.2f}{row['distance']:10.1e}"
        print(said, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"family": family, "flop": total, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
