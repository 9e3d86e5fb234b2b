"""The Core ML interpreter against PyTorch eager: the same UNet, the same input, in turn, in one process.

    python -m tests.benchmarks.coreml_interpreter [--work DIR] [--checkpoint DIR] [--full] [--attention KIND]

Without `--full` a UNet of two levels (160 and 320 channels) at 32×32 latents; with it that of Stable
Diffusion 1.5 at 64×64. The package is float16, as `--to coreml` makes it; eager computes in float32 on
memory-mapped float32 weights. Every round runs each side once, eager first; the ratio is that of the medians
of the rounds after one that does not count. Modes: `exact` runs a float32 package in float32, `unrounded`
and `emulate` the float16 one. Memory is the peak resident set while one side runs (`VmHWM`, reset before it;
Linux only), with whatever the other side left mapped; the part no file backs stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.full_size import _write_weights, make_full_size
from tests.benchmarks.process import status_mb

GOAL = 2.0
DTYPES = {"exact": "float32", "unrounded": "float16", "emulate": "float16"}


def make_middle(folder: Path) -> Path:
    """A UNet between the tests' and the full size, of random weights, with what an export asks for."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from exporter.architectures.weightless import no_weights

    with no_weights():
        unet = UNet2DConditionModel(
            sample_size=32, block_out_channels=(160, 320), layers_per_block=2, cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            sample_size=256, block_out_channels=(32, 32, 32, 32), latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=1, intermediate_size=768))
    generator = np.random.default_rng(0)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.39.0",
        "scheduler": ["diffusers", "PNDMScheduler"],
    }  # fmt: skip
    for name, part, stem in (
        ("unet", unet, "diffusion_pytorch_model"), ("vae", vae, "diffusion_pytorch_model"),
        ("text_encoder", text, "model"),
    ):  # fmt: skip
        (folder / name).mkdir(parents=True, exist_ok=True)
        if name == "text_encoder":
            part.config.architectures = ["CLIPTextModel"]
            part.config.save_pretrained(folder / name)
        else:
            part.save_config(folder / name)
        _write_weights(part, folder / name / f"{stem}.safetensors", generator)
        index[name] = ["transformers" if name == "text_encoder" else "diffusers", type(part).__name__]
    PNDMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def package(checkpoint: Path, work: Path, dtype: str, attention: str) -> Path:
    """The UNet's package, converted by a process of its own unless it is there already."""
    root = work / f"{checkpoint.name}-{dtype}-{attention}"
    if not root.exists():
        command = [
            sys.executable, "-m", "exporter", "convert", str(checkpoint), "--to", "coreml", "-o", str(root),
            "--component", "unet", "--dtype", dtype, "--attention", attention, "--no-verify",
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return next(root.glob("*_unet.mlpackage"))


def peak_of(run: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds, and the peaks of resident memory and of the part no file backs while it ran, in MB."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    return seconds, status_mb("VmHWM"), status_mb("RssAnon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep checkpoint and packages here")
    parser.add_argument("--checkpoint", type=Path, help="of --full; made when it is not given")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--attention", default="split_einsum")
    parser.add_argument("--mode", action="append", choices=sorted(DTYPES), default=[])
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="show the time of each kind of operation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, options.work or Path(scratch))


def measure(options: argparse.Namespace, work: Path) -> None:
    from exporter.architectures import Size, components_of
    from exporter.checkpoints import resolve
    from exporter.targets.base import RunOptions
    from exporter.targets.coreml.runner import CoremlRunner

    checkpoint: Path = options.checkpoint or work / ("sd15" if options.full else "middle")
    if not (checkpoint / "model_index.json").is_file():
        make_full_size(checkpoint) if options.full else make_middle(checkpoint)
    modes = options.mode or ["unrounded", "emulate", *(() if options.full else ("exact",))]
    paths = {m: package(checkpoint, work, DTYPES[m], options.attention) for m in modes}
    component = next(c for c in components_of(resolve(str(checkpoint))) if c.name == "unet")
    native = component.native
    size = Size(2, native.height, native.width, native.sequence, native.factor)
    tensors = component.example_inputs(size, 1)
    given = {name: tensor.numpy() for name, tensor in tensors.items()}
    module = component.reference_module(torch.float32)

    def eager() -> Any:
        with torch.no_grad():
            return module(**tensors)

    truth = eager()[0].double().numpy()
    print(f"{torch.get_num_threads()} threads, {component.parameters:,} parameters, {options.attention}")
    for mode in modes:
        hint = "f16" if mode == "emulate" else "f32"
        runner = CoremlRunner(paths[mode], "unet", RunOptions(device="interpreter", precision_hint=hint))
        result = runner.run(given)["out_sample"]
        error = np.linalg.norm(result - truth) / np.linalg.norm(truth)
        sides: dict[str, Callable[[], Any]] = {"eager": eager, mode: lambda: runner.run(given)}  # noqa: B023
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        for number in range((options.rounds or (2 if options.full else 5)) + 1):
            for name, run in sides.items():
                found = peak_of(run)
                if number:
                    taken[name].append(found)
        medians = {name: statistics.median(t for t, _, _ in values) for name, values in taken.items()}
        ratio = medians[mode] / medians["eager"]
        peak = {name: max(p for _, p, _ in values) for name, values in taken.items()}
        own = {name: max(a for _, _, a in values) for name, values in taken.items()}
        print(
            f"{mode:10} {medians[mode]:6.2f} s, eager {medians['eager']:6.2f} s: {ratio:.2f} times "
            f"({'within' if ratio <= GOAL else 'over'} {GOAL:g}); peak {peak[mode]:.0f} MB "
            f"({own[mode]:.0f} anonymous after it), eager {peak['eager']:.0f} MB; off by {error:.1e}"
        )
        if options.profile:
            profile(runner, given)
        runner.close()


def profile(runner: Any, given: Any) -> None:
    """Time by operation, on the terminal."""
    seconds: dict[str, float] = {}
    program = runner._model.program
    compute, settle = program._compute, program._settle

    def timed(key: Callable[[Any], str], function: Any) -> Any:
        def call(step: Any, *rest: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(step, *rest)
            finally:
                seconds[key(step)] = seconds.get(key(step), 0) + time.perf_counter() - began

        return call

    program._compute = timed(lambda step: step.kind, compute)
    program._settle = timed(lambda step: "(declarations and rounding)", settle)
    began = time.perf_counter()
    runner.run(given)
    print(f"  in all {time.perf_counter() - began:.2f} s, {len(program.steps)} operations")
    for kind, taken in sorted(seconds.items(), key=lambda item: -item[1])[:14]:
        count = sum(step.kind == kind for step in program.steps)
        print(f"  {taken:7.3f} s  {kind} ({count})")


if __name__ == "__main__":
    main()
