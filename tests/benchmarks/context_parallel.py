"""FLUX.1-dev over several GPUs of one host by context parallelism, against one GPU with the same recipe.

    torchrun --nproc-per-node 2 -m tests.benchmarks.context_parallel [--runs N] [--json FILE]

A random full-size transformer in bfloat16 on every GPU, 1024×1024 pixels (4096 + 512 tokens), the
pipeline's own loop as in `techniques_on_gpu`. On one GPU every process paints the same picture by itself,
at the same time; in parallel all of them paint one. Three warm-up runs, then `--runs`; the slowest process
counts, median. `distance` is the relative L2 distance of the last latents from those of one GPU, eager.

Needs torch, diffusers, transformers and pydantic only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.techniques_on_gpu import BF16, STEPS, applied, flux_pipeline, paint

CUDNN: dict[str, Any] = {"attention-backend": {"backend": "cudnn"}}
COMPILE: dict[str, Any] = {"compile": {"regional": True}}
ULYSSES: dict[str, Any] = {"context-parallel": {"kind": "ulysses"}}
RING: dict[str, Any] = {"context-parallel": {"kind": "ring"}}
ROWS: dict[str, tuple[str | None, list[Any]]] = {
    "one GPU": (None, [BF16, CUDNN]),
    "ulysses": ("one GPU", [BF16, CUDNN, ULYSSES]),
    "ring": ("one GPU", [BF16, CUDNN, RING]),
    "one GPU, compile": (None, [BF16, CUDNN, COMPILE]),
    "ulysses, compile": ("one GPU, compile", [BF16, CUDNN, ULYSSES, COMPILE]),
    "ring, compile": ("one GPU, compile", [BF16, CUDNN, RING, COMPILE]),
}
"""Row → the row on one GPU with the same recipe, and the techniques."""


def slowest(seconds: float) -> float:
    """Of all processes."""
    value = torch.tensor([seconds], device="cuda")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def measure(pipeline: Any, given: list[Any], runs: int) -> tuple[float, float, int, torch.Tensor]:
    """Median and first seconds of a picture, bytes on the GPU at most, latents."""
    with applied(pipeline, given):
        times = []
        for _ in range(3 + runs):
            dist.barrier()
            began = time.perf_counter()
            latents = paint(pipeline, "flux")
            times.append(slowest(time.perf_counter() - began))
        return statistics.median(times[3:]), times[0], torch.cuda.max_memory_reserved(), latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    first = dist.get_rank() == 0
    torch.manual_seed(0)
    pipeline = flux_pipeline().to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    if first:
        print(f"{dist.get_world_size()} × {torch.cuda.get_device_name()}, torch {torch.__version__}")
        print(f"{'':20}{'step ms':>9}{'speed-up':>10}{'first s':>9}{'GB':>7}{'distance':>10}")
    truth, rows = None, {}
    for name, (base, given) in ROWS.items():
        try:
            median, start, memory, latents = measure(pipeline, given, arguments.runs)
        except Exception as error:  # every process raises it, or the launcher ends them all
            if first:
                print(f"{name:20}{type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        truth = latents if truth is None else truth
        distance = float((latents - truth).norm() / truth.norm())
        gain = rows[base]["seconds"] / median if base in rows else None
        rows[name] = {"seconds": median, "first": start, "memory": memory, "distance": distance, "gain": gain}
        if first:
            said = f"{name:20}{1000 * median / STEPS['flux']:9.1f}{f'{gain:.2f}×' if gain else '':>10}"
            print(f"{said}{start:9.1f}{memory / 1e9:7.2f}{distance:10.1e}", flush=True)
    if first and arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
