"""A traced UNet against the eager one, by the method of Diffusers' guide on tracing.

    python tests/benchmarks/traced_vs_eager.py [--device cuda] [--json FILE]
    python tests/benchmarks/traced_vs_eager.py --device cpu --tiny

Full-size Stable Diffusion 1.5 UNet, float16, channels_last, batch 2 at 64×64 latents (512×512 pixels); random
weights, because speed does not depend on them. As in the guide ("Trace a model" of diffusers' docs on
memory and speed): 3 warm-ups, then 50 runs an experiment, 2 experiments a row, device synchronised around
every experiment. Rows: eager, traced, and traced + frozen + optimised for inference.

Every row's output is compared with float32 PyTorch on the same device. The script fails (exit code 1) when
a traced output is not finite or is further from float32 than 4 times the eager float16 output is.

Needs torch and diffusers only: no exporter, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARM_UPS, RUNS, EXPERIMENTS = 3, 50, 2
FACTOR = 4.0
"""A traced output may be this many times as far from float32 as the eager one: the verifier's own k."""
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
TINY = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 8,
}  # fmt: skip


class Positional(nn.Module):
    """A trace takes tensors and gives tensors: `return_dict` off."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


@dataclass(frozen=True)
class Row:
    """One way to run the UNet: mean milliseconds a run, in each experiment, and its error."""

    name: str
    prepare_seconds: float
    milliseconds: list[float]
    error: float

    @property
    def mean(self) -> float:
        return sum(self.milliseconds) / len(self.milliseconds)


def relative(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative L2 error in float64; NaN where anything is not finite."""
    a, b = value.double(), truth.double()
    return float((a - b).norm() / b.norm())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> list[float]:
    """Mean milliseconds of a run, one number an experiment."""
    found = []
    for _ in range(EXPERIMENTS):
        for _ in range(WARM_UPS):
            call()
        synchronise(device)
        began = time.perf_counter()
        for _ in range(RUNS):
            call()
        synchronise(device)
        found.append((time.perf_counter() - began) / RUNS * 1e3)
    return found


def inputs_of(unet: Any, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    config = unet.config
    size = config.sample_size
    sample = torch.randn(batch, config.in_channels, size, size, generator=generator)
    text = torch.randn(batch, 77, config.cross_attention_dim, generator=generator)
    return (
        sample.to(device, dtype, memory_format=torch.channels_last),
        torch.tensor(501.0, device=device),
        text.to(device, dtype),
    )


def trace(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """As the guide does it: warmed up first, checked by running (`check_trace` would run it again)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer warnings; the outputs are compared below
        for _ in range(WARM_UPS):
            module(*inputs)
        return torch.jit.trace(module, inputs, check_trace=False).eval()


def optimised(traced: Any) -> Any:
    return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def measure(device: torch.device, dtype: torch.dtype, batch: int, config: dict[str, Any]) -> list[Row]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    exact = Positional(UNet2DConditionModel(**config)).eval().requires_grad_(False).to(device)
    wide = inputs_of(exact.unet, batch, torch.float32, device)
    module = copy.deepcopy(exact).to(dtype=dtype, memory_format=torch.channels_last)
    inputs = inputs_of(exact.unet, batch, dtype, device)
    rows = []
    with torch.inference_mode():
        truth = exact(*wide).float().cpu()
    del exact

    def row(name: str, make: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        ready = make()
        for _ in range(WARM_UPS):  # a traced module is optimised during its first runs
            ready(*inputs)
        synchronise(device)
        prepared = time.perf_counter() - began
        error = relative(ready(*inputs).float().cpu(), truth)
        rows.append(Row(name, round(prepared, 2), timed(lambda: ready(*inputs), device), error))
        return ready

    with torch.inference_mode():
        row("eager", lambda: module)
        traced = row("traced", lambda: trace(module, inputs))
        row("traced, frozen, optimised", lambda: optimised(traced))
    return rows


def sound(rows: list[Row]) -> bool:
    """Every traced output is as close to float32 as the eager one is, within the factor."""
    return all(row.error <= FACTOR * max(rows[0].error, 1e-6) for row in rows)  # NaN is not


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a UNet of half a million weights, to try it")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; try --device cpu --tiny")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    rows = measure(device, getattr(torch, args.dtype), args.batch, TINY if args.tiny else SD15)

    import diffusers

    print(
        f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"{'tiny' if args.tiny else 'SD 1.5'} UNet, {args.dtype}, channels_last, batch {args.batch}; "
        f"{WARM_UPS} warm-ups, {RUNS} runs, {EXPERIMENTS} experiments"
    )
    print(f"{'':28s}{'ms a run':>18s}{'against eager':>15s}{'error to float32':>18s}{'prepared in':>13s}")
    for row in rows:
        each = " ".join(f"{value:.2f}" for value in row.milliseconds)
        print(
            f"{row.name:28s}{each:>18s}{rows[0].mean / row.mean:>14.2f}×{row.error:>18.2e}"
            f"{row.prepare_seconds:>11.1f} s"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) | {"mean": row.mean} for row in rows], indent=1))
    if not sound(rows):
        print(f"a traced output is more than {FACTOR:g} times as far from float32 as the eager one")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
