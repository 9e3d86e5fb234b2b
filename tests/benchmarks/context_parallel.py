"""FLUX.1-dev over several GPUs of one host, split by tokens, against one GPU with the same recipe.

    torchrun --nproc-per-node 2 -m tests.benchmarks.context_parallel [--runs N] [--profile] [--json FILE]

A random full-size transformer in bfloat16 on every GPU, 1024×1024 pixels (4096 + 512 tokens), the
pipeline's own loop as in `techniques_on_gpu`. On one GPU every process paints the same picture by itself,
at the same time; in parallel all of them paint one. Three warm-up runs, then `--runs`; the slowest process
counts, median. `distance` is the relative L2 distance of the last latents from those of one GPU, eager.

`--profile` says what limits the speed-up: first the collectives, products and attention of a step by
themselves, at the whole size and at a process's share, then for each row where the first process's GPU spends
a step. `--tiny` runs a tiny model, also without a GPU (over gloo), to see that the script works.

Needs torch, diffusers, transformers and pydantic; rows of xDiT and ParaAttention need those.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.gpu_rows import BF16
from tests.benchmarks.kernels import profiled
from tests.benchmarks.techniques_on_gpu import (
    CUDA,
    DEVICE,
    STEPS,
    applied,
    flux_pipeline,
    paint,
    settle,
)

CUDNN: list[Any] = [{"attention-backend": {"backend": "cudnn"}}] if CUDA else []
COMPILE: dict[str, Any] = {"compile": {"regional": True}}
ULYSSES: dict[str, Any] = {"context-parallel": {"kind": "ulysses"}}
RING: dict[str, Any] = {"context-parallel": {"kind": "ring"}}
ROWS: dict[str, tuple[str | None, list[Any]]] = {
    "one GPU": (None, [BF16, *CUDNN]),
    "ulysses": ("one GPU", [BF16, *CUDNN, ULYSSES]),
    "ring": ("one GPU", [BF16, *CUDNN, RING]),
    "one GPU, compile": (None, [BF16, *CUDNN, COMPILE]),
    "ulysses, compile": ("one GPU, compile", [BF16, *CUDNN, ULYSSES, COMPILE]),
    "ring, compile": ("one GPU, compile", [BF16, *CUDNN, RING, COMPILE]),
    "ParaAttention": ("one GPU", [BF16, *CUDNN, "para-attention"]),
    "ParaAttention, compile": ("one GPU, compile", [BF16, *CUDNN, "para-attention", COMPILE]),
    "ParaAttention, ring": ("one GPU", [BF16, *CUDNN, {"para-attention": {"kind": "ring"}}]),
    "xDiT": ("one GPU", [BF16, "xdit"]),
    "xDiT, compile": ("one GPU, compile", [BF16, "xdit", COMPILE]),
    "xDiT, ring": ("one GPU", [BF16, {"xdit": {"kind": "ring"}}]),
}
"""Row → the row on one GPU with the same recipe, and the techniques. xDiT takes cuDNN's attention itself."""


def slowest(seconds: float) -> float:
    """Of all processes."""
    value = torch.tensor([seconds], device=DEVICE)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def measure(
    pipeline: Any, given: list[Any], runs: int, profile: bool
) -> tuple[float, float, int, torch.Tensor, list[str]]:
    """Median and first seconds of a picture, bytes on the GPU at most, latents, lines of the profile."""
    with applied(pipeline, given):
        times, lines = [], []
        for _ in range(3 + runs):
            dist.barrier()
            began = time.perf_counter()
            latents = paint(pipeline, "flux")
            times.append(slowest(time.perf_counter() - began))
        if profile:
            dist.barrier()
            lines = list(profiled(lambda: paint(pipeline, "flux")).rows(STEPS["flux"]))
        memory = torch.cuda.max_memory_reserved() if CUDA else 0
        return statistics.median(times[3:]), times[0], memory, latents, lines


def timed(call: Callable[[], object], calls: int = 50) -> float:
    """Median seconds of a call among five rows of calls, of the slowest process."""
    call()
    times = []
    for _ in range(5):
        dist.barrier()
        settle()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        settle()
        times.append((time.perf_counter() - began) / calls)
    return slowest(statistics.median(times))


def by_themselves(pipeline: Any) -> list[str]:
    """The parts of a step: collectives at the sizes of this split, products and attention whole and split."""
    import torch.nn.functional as F

    sizes, world = pipeline.transformer.config, dist.get_world_size()
    heads, width = sizes.num_attention_heads, sizes.attention_head_dim
    inner = heads * width
    side = pipeline.default_sample_size // 2
    tokens = side * side + (512 if sizes.joint_attention_dim == 4096 else 16)
    share = tokens // world
    blocks = sizes.num_layers + sizes.num_single_layers

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)

    lines = [f"of a step's {blocks} blocks, {tokens} tokens, {heads} heads of {width}, {world} processes:"]

    def say(what: str, seconds: float, count: int, sent: int = 0) -> None:
        rate = f"{sent / seconds / 1e9:8.1f} GB/s out of a GPU" if sent else ""
        lines.append(
            f"  {what:44}{1e6 * seconds:9.1f} µs × {count:4} = {1000 * seconds * count:7.2f} ms{rate}"
        )

    part = draw(share * inner)
    for what, source, count in (
        ("all-to-all of one tensor (q, k, v or output)", part, 4 * blocks),
        ("all-to-all of q, k and v together", part.repeat(3), blocks),
    ):
        into = torch.empty_like(source)
        seconds = timed(lambda a=source, b=into: dist.all_to_all_single(b, a))
        say(what, seconds, count, source.nbytes * (world - 1) // world)
    both = part.repeat(2)
    every = both.new_empty(world * both.numel())
    say(
        "all-gather of k and v (ring)",
        timed(lambda: dist.all_gather_into_tensor(every, both)),
        blocks,
        both.nbytes,
    )
    rows = (("whole", tokens), ("a share", share))
    weight = draw(4 * inner, inner)
    for what, length in rows:
        hidden = draw(length, inner)
        say(f"product {inner}→{4 * inner}, {what}", timed(lambda h=hidden: F.linear(h, weight)), blocks)
    for what, length, some in (("whole", tokens, heads), ("a share of the heads", tokens, heads // world)):
        q, k, v = (draw(1, some, length, width) for _ in range(3))
        given = (q, k, v)
        say(f"attention, {what}", timed(lambda g=given: F.scaled_dot_product_attention(*g)), blocks)
    modulation = draw(1, inner)
    wide = draw(6 * inner, inner)
    say("modulation of one token (not split)", timed(lambda: F.linear(modulation, wide)), blocks)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--only", action="append", help="rows of this name and those on one GPU; repeatable")
    parser.add_argument("--seconds", type=float, default=500, help="begin no further row after this long")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit = timedelta(seconds=240)
    if CUDA:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", timeout=limit)  # bound to a device, xDiT's own groups fail
    else:
        dist.init_process_group("gloo", timeout=limit)
    began, first = time.monotonic(), dist.get_rank() == 0
    torch.manual_seed(0)
    pipeline = flux_pipeline(arguments.tiny).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    if first:
        device = torch.cuda.get_device_name() if CUDA else "CPU"
        print(f"{dist.get_world_size()} × {device}, torch {torch.__version__}")
    if arguments.profile:
        lines = by_themselves(pipeline)
        if first:
            print("\n".join(lines), flush=True)
    if first:
        print(f"{'':24}{'step ms':>9}{'speed-up':>10}{'first s':>9}{'GB':>7}{'distance':>10}")
    truth, rows = None, {}
    for name, (base, given) in ROWS.items():
        if arguments.only and base and name not in arguments.only:
            continue
        if slowest(time.monotonic() - began) > arguments.seconds:
            if first:
                print(f"{name:24}not run: no time left", flush=True)
            continue
        try:
            found = measure(pipeline, given, arguments.runs, arguments.profile)
        except Exception as error:  # every process raises it, or the launcher ends them all
            if first:
                print(f"{name:24}{type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
            continue
        median, start, memory, latents, lines = found
        truth = latents if truth is None else truth
        distance = float((latents - truth).norm() / truth.norm())
        gain = rows[base]["seconds"] / median if base in rows else None
        rows[name] = {
            "seconds": median, "first": start, "memory": memory, "distance": distance, "gain": gain,
            "profile": lines,
        }  # fmt: skip
        if first:
            said = f"{name:24}{1000 * median / STEPS['flux']:9.1f}{f'{gain:.2f}×' if gain else '':>10}"
            print(f"{said}{start:9.1f}{memory / 1e9:7.2f}{distance:10.1e}", flush=True)
            print("\n".join(lines), flush=True, end="\n" if lines else "")
    if first and arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
