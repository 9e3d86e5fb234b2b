"""The UNet of SD 1.5 as StableHLO in JAX, beside PyTorch eager and compiled, on one GPU.

    python -m tests.benchmarks.stablehlo_on_cuda export FOLDER   # anywhere, no weights: two programs of 2 MB
    python tests/benchmarks/stablehlo_on_cuda.py run FOLDER [--json FILE] [--only jax] [--device cpu]

Programs and weights are apart, so the weights are drawn where they are used, by their names and shapes: the
same on both sides. `run` needs JAX, PyTorch, diffusers and numpy, not exporter; each row is a process of its
own. Batch 2, 64×64 latents, 77 tokens.

- `step`: one call, waited for, median of `--runs`; least and most beside it.
- `first`: the first call, `compiling` of it what later calls do not take (JAX: lowering and XLA; PyTorch: the
  first call less a later one).
- `steady`: device memory of a call with its weights (JAX: what XLA plans; PyTorch: the allocator's peak);
  `peak`: the most that the process held, compiling included.
- `off`: the largest difference from eager float32, as a share of its largest number.

TF32 is off in PyTorch, for float32 artifacts ask for float32 products; `tf32` rows have it on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BATCH, TOKENS, WARM_UPS = 2, 77, 3
ROWS = (
    ("float32", "eager"), ("bfloat16", "jax"), ("bfloat16", "eager"), ("bfloat16", "compile"),
    ("bfloat16", "compile-graphs"), ("float32", "jax"), ("float32", "compile"), ("float32", "compile-graphs"),
    ("tf32", "eager"), ("tf32", "compile-graphs"),
)  # fmt: skip
"""In the order of interest, the yardstick first: time may run out."""


def export(folder: Path, *, tiny: bool) -> None:
    """Write `config.json` and a program for each dtype, as the target does, from weights that are holes."""
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve
    from exporter.targets.stablehlo.capture import captured
    from exporter.targets.stablehlo.options import PLATFORMS
    from exporter.targets.stablehlo.program import lower
    from tests.benchmarks.full_size import make_full_size
    from tests.tiny import make_tiny

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = make_tiny(Path(scratch)) if tiny else make_full_size(Path(scratch), hollow=True)
        (unet,) = (part for part in components_of(resolve(str(root))) if part.name == "unet")
        (folder / "config.json").write_bytes((root / "unet" / "config.json").read_bytes())
        for dtype in ("float32", "bfloat16"):
            began = time.perf_counter()
            program = lower(unet, captured(unet, None, dtype), None, dtype, PLATFORMS).serialize()
            (folder / f"{dtype}.stablehlo").write_bytes(bytes(program))
            print(f"{dtype}: {len(program):,} bytes in {time.perf_counter() - began:.1f} s", flush=True)


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name, float32, the same for the same name and shape; activations stay in range."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            return noise / np.float32(math.sqrt(math.prod(shape[1:])))
        return noise * np.float32(0.05) + np.float32(not name.endswith("bias"))

    with ThreadPoolExecutor() as pool:
        return dict(zip(shapes, pool.map(draw, shapes, shapes.values()), strict=True))


def inputs_of(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    noise, side = np.random.default_rng(7), config["sample_size"]
    text = (BATCH, TOKENS, config["cross_attention_dim"])
    return {
        "sample": noise.standard_normal((BATCH, config["in_channels"], side, side), dtype=np.float32),
        "timestep": np.float32(501),
        "encoder_hidden_states": noise.standard_normal(text, dtype=np.float32),
    }


def timed(call: Callable[[], None], runs: int) -> dict[str, Any]:
    """Seconds of calls that wait for their result, after a first one."""
    for _ in range(WARM_UPS):
        call()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return {"step": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def in_jax(folder: Path, dtype: str, device: str, runs: int) -> tuple[dict[str, Any], np.ndarray]:
    """The program, as anyone calls it."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_PLATFORMS"] = device
    import jax

    (place,) = jax.devices(device)[:1]
    program = jax.export.deserialize(bytearray((folder / f"{dtype}.stablehlo").read_bytes()))
    (wanted,), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    given = jax.device_put(inputs_of(json.loads((folder / "config.json").read_text())), place)
    began = time.perf_counter()
    compiled = jax.jit(program.call).lower(wanted, **given).compile()
    compiling = time.perf_counter() - began
    values = drawn({name: aval.shape for name, aval in wanted.items()})
    weights = {
        name: jax.device_put(values.pop(name).astype(aval.dtype), place) for name, aval in wanted.items()
    }
    jax.block_until_ready(weights)
    began = time.perf_counter()
    found = np.asarray(compiled(weights, **given)["out_sample"])
    row = {"first": compiling + time.perf_counter() - began, "compiling": compiling}
    row |= timed(lambda: jax.block_until_ready(compiled(weights, **given)), runs)
    plan = compiled.memory_analysis()
    row["steady"] = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    row["peak"] = (place.memory_stats() or {}).get("peak_bytes_in_use")
    row["on"] = f"jax {jax.__version__}, {place.device_kind}"
    return row, found


def in_torch(
    folder: Path, dtype: str, side: str, device: str, runs: int
) -> tuple[dict[str, Any], np.ndarray]:
    """diffusers' module: as it is, compiled, or compiled for CUDA graphs with channels last."""
    import torch
    from diffusers import UNet2DConditionModel

    tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    config, kind = json.loads((folder / "config.json").read_text()), torch.float32
    if dtype == "bfloat16":
        kind = torch.bfloat16
    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(config)
    values = drawn({name: tuple(value.shape) for name, value in module.named_parameters()})
    module.load_state_dict({name: torch.from_numpy(v) for name, v in values.items()}, assign=True)
    module.to(device, kind).eval()
    given = {name: torch.as_tensor(value).to(device) for name, value in inputs_of(config).items()}
    given |= {name: value.to(kind) for name, value in given.items() if value.dim()}
    cuda = device == "cuda"
    if side == "compile-graphs":
        module.to(memory_format=torch.channels_last)
    modes = {"compile": "default", "compile-graphs": "reduce-overhead"}
    forward = torch.compile(module, mode=modes[side], fullgraph=True) if side in modes else module

    @torch.no_grad()
    def call() -> torch.Tensor:
        found = forward(**given, return_dict=False)[0]
        if cuda:
            torch.cuda.synchronize()
        return found

    began = time.perf_counter()
    found = call().float().cpu().numpy()
    first = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if cuda else None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    row = {"first": first, **timed(call, runs)}
    row["compiling"] = max(first - row["step"], 0) if side in modes else 0
    row["steady"] = torch.cuda.max_memory_allocated() if cuda else None
    row["peak"] = max(peak, row["steady"]) if cuda else None
    row["on"] = f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'cpu'}"
    return row, found


def one(arguments: argparse.Namespace) -> None:
    """A row, in this process: figures to standard output, the outputs into a file."""
    dtype, side = arguments.one
    if side == "jax":
        row, found = in_jax(arguments.folder, dtype, arguments.device, arguments.runs)
    else:
        row, found = in_torch(arguments.folder, dtype, side, arguments.device, arguments.runs)
    np.save(arguments.found, found)
    print(json.dumps(row))


def run(arguments: argparse.Namespace) -> int:
    """All rows, each in a process of its own; exit code 1 where one failed or is not finite."""
    ends, rows, truth, failed = time.monotonic() + arguments.seconds, [], None, False
    head = (
        f"{'':24}{'step ms':>9}{'least–most':>16}{'first s':>9}{'compiling':>10}{'steady':>8}{'peak GB':>9}"
    )
    print(f"{head}{'off':>9}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for dtype, side in ROWS:
            name = f"{dtype}, {side}"
            if arguments.only and (dtype, side) != ROWS[0] and not any(one in name for one in arguments.only):
                continue
            left, place = ends - time.monotonic(), Path(scratch) / "found.npy"
            command = [sys.executable, __file__, "run", str(arguments.folder), "--device", arguments.device]
            command += ["--runs", str(arguments.runs), "--one", dtype, side, "--found", str(place)]
            try:
                if left < 5:
                    raise TimeoutError("no time left")
                ran = subprocess.run(command, capture_output=True, text=True, timeout=left)
                if ran.returncode:
                    raise RuntimeError(" ".join(ran.stderr.strip().splitlines()[-3:])[-400:])
            except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                failed = True
                print(f"{name:24} {type(error).__name__}: {error}", flush=True)
                continue
            row, found = json.loads(ran.stdout.strip().splitlines()[-1]), np.load(place).astype(np.float64)
            truth = found if truth is None else truth
            row |= {
                "dtype": dtype,
                "side": side,
                "off": float(np.abs(found - truth).max() / np.abs(truth).max()),
            }
            failed |= not math.isfinite(row["off"])
            rows.append(row)
            print(line(name, row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return int(failed)


def line(name: str, row: Mapping[str, Any]) -> str:
    spread = f"{1000 * row['least']:.2f}–{1000 * row['most']:.2f}"
    memory = [f"{row[key] / 1e9:.2f}" if row[key] else "–" for key in ("steady", "peak")]
    said = f"{name:24}{1000 * row['step']:9.2f}{spread:>16}{row['first']:9.1f}{row['compiling']:10.1f}"
    return f"{said}{memory[0]:>8}{memory[1]:>9}{row['off']:9.1e}  {row['on']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["export", "run"])
    parser.add_argument("folder", type=Path, help="where the programs and config.json are")
    parser.add_argument("--tiny", action="store_true", help="export: a UNet of two levels, to try this out")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--only", action="append", help="rows with this in their name; repeatable")
    parser.add_argument("--seconds", type=float, default=560, help="stop after this long")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.folder, tiny=arguments.tiny)
        return 0
    if arguments.one:
        one(arguments)
        return 0
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
