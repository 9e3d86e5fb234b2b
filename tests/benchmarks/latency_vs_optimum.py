"""Our artifact's speed and memory against optimum's: the same runtime, the same inputs, in turn.

    python -m tests.benchmarks.latency_vs_optimum WORK [--to onnx|openvino|both] [--rounds 3]
                                                  [--small] [--threads N]

WORK is a folder that `tests.benchmarks.export_vs_optimum --keep` left: `ours-onnx`, `optimum-onnx` and so on.
UNet (two rows of 64×64 latents), text encoder (two prompts of 77 tokens) and VAE decoder (one picture of
512×512) run at full SD 1.5 size in a process each, the sides alternating; a round gives the median of some
runs after one that does not count, the table the median of the rounds. Memory is the peak of the process
(`ru_maxrss`) and of its anonymous part, from opening the file to the last run.

`cpu s` is the processor time of a run, least of all: it counts the work without the waiting, so with
`--threads 1` it is steady on a busy machine. `--small` takes 2×32×32 latents for the UNet and 24×24 for the
decoder.

OpenVINO computes in float32 here (`INFERENCE_PRECISION_HINT=f32`): its default would make both sides faster
and less exact by the same amount.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.process import anonymous_mb

RUNS = {"unet": 3, "text_encoder": 10, "vae_decoder": 2}
SIZES = {
    "sample": (2, 4, 64, 64), "encoder_hidden_states": (2, 77, 768), "input_ids": (2, 77),
    "latent_sample": (1, 4, 64, 64), "timestep": (1,),
}  # fmt: skip
SMALL = {"sample": (2, 4, 32, 32), "latent_sample": (1, 4, 24, 24)}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
MEMORY_GOAL = 0.6
"""Of optimum's: memory of an ONNX Runtime process with the UNet, at the full size of the latents."""
SLACK = 1.05
"""Two medians on a shared machine differ by this much of themselves."""


def inputs_for(wanted: dict[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Fixed inputs by name, in the dtype and rank that a file asks for."""
    noise = np.random.default_rng(0)
    result = {}
    for name, (dtype, rank) in wanted.items():
        if name == "timestep":
            result[name] = np.full(SIZES[name][:rank], 801, dtype)
        elif name == "input_ids":
            result[name] = noise.integers(0, 49000, SIZES[name]).astype(dtype)
        else:
            result[name] = noise.standard_normal(SIZES[name]).astype(dtype)
    return result


def open_onnx(path: Path, threads: int) -> tuple[Callable[[], Any], int]:
    """A function that runs the model once, and the number of its nodes; 0 threads is the runtime's choice."""
    import onnx
    import onnxruntime

    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
    feed = inputs_for({i.name: (kinds[i.type], len(i.shape)) for i in session.get_inputs()})
    return lambda: session.run(None, feed), nodes


def open_openvino(path: Path, threads: int) -> tuple[Callable[[], Any], int]:
    """The same for OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    nodes = sum(node.get_type_name() not in ("Constant", "Convert") for node in model.get_ops())
    hints = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = core.compile_model(model, "CPU", hints)
    wanted = {
        i.get_any_name(): (i.get_element_type().to_dtype().name, len(i.get_partial_shape()))
        for i in compiled.inputs
    }
    feed = inputs_for(wanted)
    return lambda: [value.copy() for value in compiled(feed).values()], nodes


def child(target: str, path: Path, runs: int, threads: int) -> dict[str, float]:
    """Open a file, run it, tell what it took."""
    peak, ended = [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], anonymous_mb())

    watch = threading.Thread(target=sample, daemon=True)
    watch.start()
    begin = time.monotonic()
    run, nodes = (open_onnx if target == "onnx" else open_openvino)(path, threads)
    opened = time.monotonic() - begin
    outputs = run()
    taken, worked = [], []
    for _ in range(runs):
        begin, busy = time.monotonic(), time.process_time()
        run()
        taken.append(time.monotonic() - begin)
        worked.append(time.process_time() - busy)
    ended.set()
    watch.join()
    return {
        "seconds": statistics.median(taken),
        "cpu_seconds": min(worked),
        "open_seconds": opened,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "anonymous_mb": peak[0],
        "nodes": nodes,
        "finite": float(all(np.isfinite(value).all() for value in outputs)),
    }


def one(target: str, folder: Path, component: str, further: list[str]) -> dict[str, float]:
    """A run in a process of its own."""
    path = folder / component / FILES[target]
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        str(path),
        "--child",
        target,
        "--runs",
        str(RUNS[component]),
        *further,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"{path}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def over_rounds(name: str) -> Callable[..., float]:
    """What stands for several rounds."""
    return max if name.endswith("_mb") else min if name == "cpu_seconds" else statistics.median


def compare(
    target: str, work: Path, component: str, rounds: int, further: list[str]
) -> dict[str, dict[str, float]]:
    """Both sides, alternating; medians over the rounds, the largest of the peaks."""
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "optimum": []}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            sides[side].append(one(target, work / f"{side}-{target}", component, further))
    return {
        side: {name: over_rounds(name)(run[name] for run in runs) for name in runs[0]}
        for side, runs in sides.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--to", choices=[*FILES, "both"], default="both")
    parser.add_argument("--component", choices=list(RUNS), action="append", help="only these; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--child", choices=list(FILES), help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="fewer latents")
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; its own choice by default")
    given = parser.parse_args()
    if given.small:
        SIZES.update(SMALL)
    if given.child:
        print(json.dumps(child(given.child, given.work, given.runs, given.threads)))
        return 0
    further = ["--threads", str(given.threads), *(["--small"] if given.small else [])]
    results, missed = [], False
    print(f"{'':30}{'nodes':>8}{'open s':>8}{'run s':>8}{'cpu s':>8}{'peak MB':>9}{'anonymous MB':>14}")
    for target in list(FILES) if given.to == "both" else [given.to]:
        for component in given.component or list(RUNS):
            sides = compare(target, given.work, component, given.rounds, further)
            for side, run in sides.items():
                print(
                    f"{target + ' ' + component + ' ' + side:30}{run['nodes']:8.0f}{run['open_seconds']:8.2f}"
                    f"{run['seconds']:8.3f}{run['cpu_seconds']:8.3f}"
                    f"{run['peak_mb']:9.0f}{run['anonymous_mb']:14.0f}"
                    + ("" if run["finite"] else "  NOT FINITE")
                )
            ours, other = sides["ours"], sides["optimum"]
            ratios = {
                name: ours[name] / other[name] for name in ("nodes", "seconds", "cpu_seconds", "peak_mb")
            }
            good = ratios["seconds"] <= SLACK and ratios["nodes"] <= 1 and ours["finite"] == 1
            if (target, component) == ("onnx", "unet") and not given.small:
                good = good and ratios["peak_mb"] <= MEMORY_GOAL
            missed = missed or not good
            print(
                f"{'':30}of optimum's: nodes {ratios['nodes']:.2f}, latency {ratios['seconds']:.2f}, "
                f"processor {ratios['cpu_seconds']:.2f}, "
                f"memory {ratios['peak_mb']:.2f}: {'met' if good else 'missed'}",
                flush=True,
            )
            results.append({"target": target, "component": component, **sides})
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
