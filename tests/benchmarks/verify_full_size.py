"""Convert and verify a full-size random SD 1.5: time, peak memory, verdict.

    python -m tests.benchmarks.verify_full_size [--work DIR] [--target onnx] [--component unet …]

Each step is a process of its own; memory is what the operating system counted for it (`ru_maxrss`
of the finished child, so mapped weight files are included).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.full_size import make_full_size


@dataclass(frozen=True)
class Measured:
    """Exit code, wall seconds, peak resident bytes, and what was printed on stdout."""

    code: int
    seconds: float
    peak: int
    stdout: str


def measured(command: list[str], environment: dict[str, str] | None = None) -> Measured:
    """Run a command and ask the kernel what it took."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=out, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        out.seek(0)
        return Measured(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024, out.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="keep checkpoint and artifact here")
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--component", action="append", default=[])
    parser.add_argument("--steps", default="2")
    parser.add_argument("--samples", default="1")
    parser.add_argument("--prompts", help="file, one prompt a line")
    parser.add_argument("--no-pipeline", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        checkpoint = work / "sd15"
        if not (checkpoint / "model_index.json").is_file():
            make_full_size(checkpoint)
        artifact = work / f"sd15-{options.target}"
        program = [sys.executable, "-m", "exporter", "--json"]
        chosen = [part for name in options.component for part in ("--component", name)]
        if not artifact.exists():
            plan = ["convert", checkpoint, "--to", options.target, "-o", artifact, "--no-verify"]
            result = measured([*program, *map(str, plan), *chosen])
            print(f"convert: {result.seconds:.0f} s, peak {result.peak / 1e9:.2f} GB, exit {result.code}")
        asked = ["verify", artifact, "--steps", options.steps, "--samples", options.samples]
        asked += chosen
        asked += ["--prompts", options.prompts] if options.prompts else []
        asked += ["--no-pipeline"] if options.no_pipeline else []
        result = measured([*program, *map(str, asked)])
        report = json.loads(result.stdout)
        weights = (checkpoint / "unet/diffusion_pytorch_model.safetensors").stat().st_size
        print(f"verify: {result.seconds:.0f} s, peak {result.peak / 1e9:.2f} GB, exit {result.code}")
        print(f"peak / float32 weights of the UNet ({weights / 1e9:.2f} GB): {result.peak / weights:.2f}")
        print(report.get("verdict"), report.get("summary") or report.get("error"))


if __name__ == "__main__":
    main()
