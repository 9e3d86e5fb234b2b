"""Our export against optimum-cli's: one checkpoint, one machine, in turn.

    python -m tests.benchmarks.export_vs_optimum [--to onnx|openvino|both]
                                                 [--family sd15|sdxl|sd3|sdxl-unet|flux]
                                                 [--source DIR] [--work DIR] [--keep] [--json FILE]

Each side is a process of its own; see `tests.benchmarks.process` for what is measured. The page cache is
warmed before each run by reading the checkpoint once, and what earlier steps wrote is flushed. Our first run
begins with an empty cache of graphs, the second (`again`) finds them there: it stands for the second
fine-tune of an architecture, and is compared with copying the same bytes on the same disk. Verification is
off on our side, as optimum-cli's OpenVINO export has none; its ONNX export validates at the traced shape,
which cannot be turned off.

`--family sdxl` and `--family sd3` (the transformer and autoencoder of SD3 medium, text encoders of one layer)
do the same with random float16 checkpoints; for optimum's side they need more than twice the memory of the
float32 model (32 GB and 23 GB), and 60 GB of disk. A side that fails ends the run with exit code 1, without
ratios. `--family sdxl-unet` converts only the UNet of SDXL (2.6 billion parameters) and has no other side:
its goal is a limit of memory. `--family flux` re-shards and converts the transformer of FLUX.1 (11.9 billion
parameters in bfloat16, 24 GB; needs 50 GB of disk) and has no other side either: optimum-cli would hold it in
memory. ONNX Runtime has no bfloat16 on a CPU, so that file is float16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.process import Measured, copy_seconds, measure, warm

GOALS: dict[str, dict[str, float]] = {
    "onnx": {"seconds": 1 / 3, "peak_mb": 1 / 10},
    "openvino": {"seconds": 0.6, "peak_mb": 1 / 2, "anonymous_mb": 1 / 6},
}
"""Target → what to stay below, as parts of optimum's."""
AGAIN_GOAL = 2.0
"""Of the time to copy the bytes: a conversion to ONNX whose graphs are in the cache."""
SDXL_UNET_GOAL_MB = 1500.0
SIDES = ("exporter", "again", "optimum", "safetensors")


def own_command(target: str, source: Path, output: Path, *more: str) -> list[str]:
    """Ours, writing the default of the format: ONNX in float32, OpenVINO with float16 weights."""
    command = [sys.executable, "-m", "exporter", "convert", str(source), "--to", target, "-o", str(output)]
    dtype = "float16" if target == "openvino" else "float32"
    return [*command, "--no-verify", *([] if "--dtype" in more else ["--dtype", dtype]), *more]


def optimum_command(target: str, source: Path, output: Path) -> list[str]:
    """optimum-cli's, writing the same."""
    command = [str(Path(sys.executable).parent / "optimum-cli"), "export", target, "--model", str(source)]
    weights = ["--weight-format", "fp16"] if target == "openvino" else []
    return [*command, "--task", "text-to-image", *weights, str(output)]


def compare(target: str, source: Path, work: Path, *, keep: bool) -> dict[str, Any]:
    """Ours, ours again, the copy, and optimum's."""
    ours, again, theirs = work / f"ours-{target}", work / f"again-{target}", work / f"optimum-{target}"
    cache = {"EXPORTER_CACHE": str(work / f"cache-{target}")}
    warm(source)
    first = measure("exporter", own_command(target, source, ours), ours, cache)
    copied = copy_seconds(ours, work / "copy") if ours.is_dir() else float("nan")
    warm(source)
    second = measure("exporter again", own_command(target, source, again), again, cache)
    shutil.rmtree(again, ignore_errors=True)
    warm(source)
    other = measure("optimum-cli", optimum_command(target, source, theirs), theirs)
    if not keep:
        for folder in (ours, theirs):
            shutil.rmtree(folder, ignore_errors=True)
    show(f"{target}: {source.name}", [first, second, other])
    print(f"{'copy':16}{copied:10.1f}")
    failed = [run.what for run in (first, second, other) if run.code]
    if failed:
        print(f"no ratios: {', '.join(failed)} failed", flush=True)
        return {
            "target": target, "exporter": asdict(first), "again": asdict(second), "optimum": asdict(other),
        }  # fmt: skip
    ratios = {
        name: getattr(first, name) / getattr(other, name) for name in ("cpu_seconds", *GOALS["openvino"])
    }
    for name, ratio in ratios.items():
        say(f"{name:13} of optimum's", ratio, GOALS[target].get(name))
    say("again, of the time to copy", second.seconds / copied, AGAIN_GOAL if target == "onnx" else None)
    return {
        "target": target, "exporter": asdict(first), "again": asdict(second), "optimum": asdict(other),
        "copy_seconds": copied, "ratios": ratios, "again_ratio": second.seconds / copied,
        "goals": GOALS[target],
    }  # fmt: skip


def sdxl_unet(source: Path, work: Path, *, keep: bool) -> dict[str, Any]:
    """The UNet of SDXL alone, float16 to ONNX in float16, with the graph to make and with it in the cache."""
    runs = alone(source, work, (("onnx", "float16"),) * 2, "unet", keep=keep)
    show("onnx: the UNet of SDXL", runs)
    peak = max(run.peak_mb for run in runs)
    met = "met" if peak <= SDXL_UNET_GOAL_MB else "missed"
    print(f"peak {peak:.0f} MB, goal {SDXL_UNET_GOAL_MB:.0f} MB: {met}")
    return {"target": "onnx", "exporter": asdict(runs[0]), "again": asdict(runs[1])}


def flux(source: Path, work: Path, *, keep: bool) -> dict[str, Any]:
    """The transformer of FLUX.1 alone: new shards, then ONNX, each beside the time to copy the bytes."""
    copied = copy_seconds(source / "transformer", work / "copy")
    targets = (("safetensors", "bfloat16"), ("onnx", "float16"))
    runs = alone(source, work, targets, "transformer", keep=keep)
    show("the transformer of FLUX.1, bfloat16, as safetensors and as ONNX in float16", runs)
    print(f"{'copy':16}{copied:10.1f}")
    return {"target": "onnx", "safetensors": asdict(runs[0]), "exporter": asdict(runs[1]), "copy": copied}


def alone(
    source: Path, work: Path, targets: Sequence[tuple[str, str]], component: str, *, keep: bool
) -> list[Measured]:
    """Ours only, one component, to one (target, dtype) after the other; each is deleted before the next."""
    runs: list[Measured] = []
    for number, (target, dtype) in enumerate(targets):
        warm(source)
        output = work / f"ours-{number}-{target}"
        what = f"{target} again" if (target, dtype) in targets[:number] else target
        command = own_command(target, source, output, "--component", component, "--dtype", dtype)
        runs.append(measure(what, command, output, {"EXPORTER_CACHE": str(work / "cache")}))
        if not keep:
            shutil.rmtree(output, ignore_errors=True)
    return runs


def show(title: str, runs: list[Measured]) -> None:
    """A table of runs."""
    print(f"\n{title}")
    print(
        f"{'':16}{'seconds':>10}{'cpu s':>10}{'peak MB':>10}{'anonymous MB':>14}{'written MB':>12}{'exit':>6}"
    )
    for run in runs:
        print(
            f"{run.what:16}{run.seconds:10.1f}{run.cpu_seconds:10.1f}{run.peak_mb:10.0f}"
            f"{run.anonymous_mb:14.0f}{run.written_mb:12.0f}{run.code:6}"
        )


def say(what: str, ratio: float, goal: float | None) -> None:
    """A ratio beside its goal; NaN misses every goal."""
    verdict = "" if goal is None else f", goal {goal:.3f}: {'met' if ratio <= goal else 'missed'}"
    print(f"{what} {ratio:.3f}{verdict}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", choices=[*GOALS, "both"], default="both")
    parser.add_argument("--family", choices=["sd15", "sdxl", "sd3", "sdxl-unet", "flux"], default="sd15")
    parser.add_argument(
        "--source", type=Path, help="a checkpoint folder; default: a random one of the family, made first"
    )
    parser.add_argument("--work", type=Path, help="where to write (needs 20 GB); default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep what was written")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="export-vs-optimum-", dir=given.work))
    try:
        results: list[dict[str, Any]] = []
        if given.family == "sdxl-unet":
            from tests.benchmarks.full_families import make_sdxl

            source = given.source or make_sdxl(work / "sdxl")
            results.append(sdxl_unet(source, work, keep=given.keep))
        elif given.family == "flux":
            from tests.benchmarks.full_families import make_flux

            source = given.source or make_flux(work / "flux")
            results.append(flux(source, work, keep=given.keep))
        else:
            from tests.benchmarks.full_families import make_sd3, make_sdxl
            from tests.benchmarks.full_size import make_full_size

            make = {"sd15": make_full_size, "sdxl": make_sdxl, "sd3": make_sd3}[given.family]
            source = given.source or make(work / given.family)
            targets = list(GOALS) if given.to == "both" else [given.to]
            results += [compare(target, source, work, keep=given.keep) for target in targets]
        if given.json:
            given.json.write_text(json.dumps(results, indent=2) + "\n")
        if given.keep:
            print(f"kept in {work}")
        return int(any(run.get(side, {}).get("code") for run in results for side in SIDES))
    finally:
        if not given.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
