"""Pictures of SD 1.5 at full size as StableHLO on one GPU and on several: pictures a second.

    python -m tests.benchmarks.stablehlo_on_gpus export FOLDER              # anywhere, with exporter[jax]
    python -m tests.benchmarks.stablehlo_on_gpus run FOLDER --devices 2     # where the GPUs are

`export` converts a checkpoint whose weights are holes and keeps of each weights' file what comes before the
numbers: 2 MB for everything. `run` writes random numbers behind it (bfloat16, by name and shape; in float32
with `--dtype float32` at `export`) and paints 512 × 512 pixels, 25 steps with guidance, a picture on each
device at a time. Each row is a process of its own:

- `painter`: `exporter.targets.stablehlo.painter.Painter`; needs JAX, tokenizers and pydantic, no PyTorch.
- `run`: what `exporter run --pictures N` does, diffusers' pipeline around the components; needs all of
  exporter but may be left out (`--only painter`).

`each`: seconds from the call to all pictures, median of `--runs`; least and most beside it. `compiling`: what
the first call took besides. `scaling`: pictures a second, against the same on one device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = "a lighthouse on a cliff"
WEIGHTS = "weights.safetensors"
KINDS = {"F32": "float32", "BF16": "bfloat16"}


def export(folder: Path, *, dtype: str, tiny: bool) -> None:
    """The artifact, each weights' file cut behind its header."""
    from exporter.conversion import convert, make_plan
    from tests.benchmarks.full_size import make_full_size
    from tests.tiny import make_tiny

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = Path(scratch) / "source"
        root = make_tiny(source) if tiny else make_full_size(source, hollow=True)
        wanted = ["text_encoder", "unet", "vae_decoder"]
        began = time.perf_counter()
        plan = make_plan(
            str(root), "stablehlo", folder, {"dtype": dtype}, components=wanted, verify=False
        )  # fmt: skip
        convert(plan)
        print(f"converted in {time.perf_counter() - began:.1f} s", flush=True)
    for name in wanted:
        with (folder / name / WEIGHTS).open("r+b") as file:
            file.truncate(8 + int.from_bytes(file.read(8), "little"))


def fill(folder: Path) -> None:
    """Random numbers for every weight, of the size that keeps activations in range."""
    import ml_dtypes  # JAX's own

    from tests.benchmarks.stablehlo_on_cuda import drawn

    for path in sorted(folder.glob(f"*/{WEIGHTS}")):
        with path.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = {k: v for k, v in json.loads(file.read(size)).items() if k != "__metadata__"}
            values = drawn({name: tuple(entry["shape"]) for name, entry in header.items()})
            for name, entry in header.items():
                kind = ml_dtypes.bfloat16 if KINDS[entry["dtype"]] == "bfloat16" else np.float32
                file.seek(8 + size + entry["data_offsets"][0])
                file.write(values.pop(name).astype(kind).tobytes())


def painter(
    folder: Path, device: str, count: int, steps: int
) -> tuple[Callable[[], Any], Callable[[], float]]:
    from exporter.targets.stablehlo.painter import Painter

    made = Painter(folder, device)
    import jax

    keys = jax.random.split(jax.random.key(0), count)
    if len(made.devices) not in (1, count):
        raise SystemExit(f"{len(made.devices)} devices are seen, {count} were asked for")
    return lambda: np.asarray(made([PROMPT] * count, keys, steps=steps)), lambda: made.compile_seconds


def run_verb(
    folder: Path, device: str, count: int, steps: int
) -> tuple[Callable[[], Any], Callable[[], float]]:
    from exporter import pipeline, several

    loaded = pipeline.load(folder, device=device, spread=count > 1)
    if several.devices(loaded) != count:
        raise SystemExit(f"{several.devices(loaded)} devices are seen, {count} were asked for")

    def paint() -> np.ndarray:
        painted = several.paint(loaded, [PROMPT] * count, steps=steps)
        return np.stack([np.asarray(each) / 255 for each in painted])

    return paint, lambda: pipeline.compile_seconds(loaded)


def one(arguments: argparse.Namespace) -> None:
    """A row, in this process."""
    side, count = arguments.one[0], int(arguments.one[1])
    kind = arguments.device
    os.environ["JAX_PLATFORMS"] = "cpu" if kind == "cpu" else f"{kind},cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    device = kind if count > 1 else f"{kind}:0"
    began = time.perf_counter()
    make = painter if side == "painter" else run_verb
    paint, compiling = make(arguments.folder, device, count, arguments.steps)
    loading = time.perf_counter() - began
    found = paint()
    seconds = []
    for _ in range(arguments.runs):
        began = time.perf_counter()
        found = paint()
        seconds.append(time.perf_counter() - began)
    import jax

    row = {
        "side": side, "devices": count, "each": statistics.median(seconds), "least": min(seconds),
        "most": max(seconds), "loading": loading, "compiling": compiling(), "steps": arguments.steps,
        "finite": bool(np.isfinite(found).all()), "spread": float(found.std()),
        "different": len({picture.tobytes() for picture in found}) == count,
        "pixels": list(found.shape[1:3]), "torch": "torch" in sys.modules,
        "on": f"{count} × {jax.devices(kind)[0].device_kind}, jax {jax.__version__}",
    }  # fmt: skip
    print(json.dumps(row))


def run(arguments: argparse.Namespace) -> int:
    """All rows; exit code 1 where one failed, or what was painted is not finite or all the same."""
    ends, rows, failed = time.monotonic() + arguments.seconds, [], False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(arguments.folder, Path(scratch) / "artifact"))
        began = time.perf_counter()
        fill(folder)
        print(f"weights drawn in {time.perf_counter() - began:.1f} s", flush=True)
        print(f"{'':20}{'each s':>8}{'least–most':>15}{'pictures/s':>12}{'scaling':>9}{'compiling':>11}")
        for side in ("painter", "run"):
            single = None
            for count in (1, arguments.devices):
                name = f"{side}, {count} device{'s' * (count > 1)}"
                if arguments.only and side not in arguments.only:
                    continue
                command = [sys.executable, "-m", "tests.benchmarks.stablehlo_on_gpus", "run", str(folder)]
                command += ["--one", side, str(count), "--device", arguments.device]
                command += ["--runs", str(arguments.runs), "--steps", str(arguments.steps)]
                try:
                    left = ends - time.monotonic()
                    if left < 10:
                        raise TimeoutError("no time left")
                    ran = subprocess.run(command, capture_output=True, text=True, timeout=left)
                    if ran.returncode:
                        raise RuntimeError(" ".join(ran.stderr.strip().splitlines()[-3:])[-400:])
                except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                    failed = True
                    print(f"{name:20} {type(error).__name__}: {error}", flush=True)
                    continue
                row = json.loads(ran.stdout.strip().splitlines()[-1])
                rate = count / row["each"]
                single = rate if count == 1 else single
                row |= {"pictures_per_second": rate, "scaling": rate / single if single else None}
                failed |= not (row["finite"] and row["spread"] > 0 and row["different"])
                rows.append(row)
                print(line(name, row), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2))
    return int(failed)


def line(name: str, row: dict[str, Any]) -> str:
    scaling = "–" if row["scaling"] is None else f"{row['scaling']:.2f}×"
    between = f"{row['least']:.3f}–{row['most']:.3f}"
    said = f"{name:20}{row['each']:8.3f}{between:>15}{row['pictures_per_second']:12.3f}{scaling:>9}"
    return f"{said}{row['compiling']:11.1f}  {row['on']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["export", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="export")
    parser.add_argument("--tiny", action="store_true", help="export: a tiny pipeline, to try this out")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--device", choices=["cuda", "tpu", "cpu"], default="cuda")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--only", action="append", choices=["painter", "run"])
    parser.add_argument("--seconds", type=float, default=200, help="stop after this long")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "export":
        export(arguments.folder, dtype=arguments.dtype, tiny=arguments.tiny)
        return 0
    if arguments.one:
        one(arguments)
        return 0
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
