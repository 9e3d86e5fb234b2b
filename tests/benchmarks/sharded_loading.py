"""Peak memory of loading a Stable Diffusion 1.5 in 16 bits, as the library loads it and shard by shard.

    python -m tests.benchmarks.sharded_loading [--source DIR] [--work DIR] [--rounds N] [--device cuda]

The source is a full-size checkpoint of random weights in float16, in files of 500 MB (2 GB, made first where
`--source` is not given). Every run is a process of its own, in turn within each round, the page cache warmed
before it: it loads, reads every weight once, and says how long loading took and what the kernel counted.
`peak` has the pages of mapped files in it, `own` (`RssAnon`, sampled) has not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from exporter.artifact import MANIFEST
from tests.benchmarks.process import measure, warm

RUNS: dict[str, tuple[Any, ...]] = {
    "float32, plain": (),
    "float32, sharded-loading": ("sharded-loading",),
    "float16, plain": ({"precision": {"dtype": "float16"}},),
    "float16, sharded-loading": ({"sharded-loading": {"dtype": "float16"}},),
}
CHILD = """
import json, sys, time
import exporter
from exporter.techniques.base import modules
import torch
began = time.perf_counter()
painter = exporter.load(sys.argv[1], device=sys.argv[2], techniques=json.loads(sys.argv[3]))
loaded = time.perf_counter() - began
total = 0
for part in modules(painter):
    for weight in part.parameters():
        weight.sum()
        total += weight.nbytes
print(json.dumps({"loaded": loaded, "weights": total}))
"""


def make(work: Path) -> Path:
    """A random SD 1.5 in float16, in several files."""
    from tests.benchmarks.full_size import make_full_size

    whole, halves = work / "float32", work / "float16"
    make_full_size(whole)
    subprocess.run(
        [sys.executable, "-m", "exporter", "convert", str(whole), "--to", "safetensors", "--dtype", "float16",
         "--max-shard-size", "500MB", "--no-verify", "-o", str(halves), "--quiet"],
        check=True,
    )  # fmt: skip
    (halves / MANIFEST).unlink()  # it is to be read as a checkpoint
    return halves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        source = arguments.source or make(work)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for name, given in RUNS.items():
                warm(source)
                command = [sys.executable, "-c", CHILD, str(source), arguments.device, json.dumps(given)]
                ran = measure(name, command, work / "run")
                if ran.code:
                    raise SystemExit(f"{name}: exit code {ran.code}")
                said = json.loads((work / "run.log").read_text().splitlines()[-1])
                found.setdefault(name, []).append({**said, "peak": ran.peak_mb, "own": ran.anonymous_mb})
    print(f"{'':28}{'load s':>8}{'weights MB':>12}{'peak MB':>9}{'own MB':>9}")
    for name, rounds in found.items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(
            f"{name:28}{middle['loaded']:8.1f}{middle['weights'] / 2**20:12.0f}{middle['peak']:9.0f}"
            f"{middle['own']:9.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
