"""`python -m tests.benchmarks.quantisation_loss`: what quantised weights cost, in dB, by scheme.

The stated limits of `exporter verify` rest on this table: least SQNR of any output of each component, and
least PSNR of any picture, against the unquantised model; the embedded trained model and random tiny ones.
The steps that are compared are spread over a picture's, the first and the last one among them.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SCHEMES: dict[str, dict[str, Any]] = {
    "int8 asymmetric": {"weights": "int8"},
    "int8 symmetric": {"weights": "int8", "symmetric": True},
    "int4 asymmetric": {"weights": "int4"},
    "int4 symmetric": {"weights": "int4", "symmetric": True},
    "int4 asymmetric, groups of 32": {"weights": "int4", "group_size": 32},
    "int4 asymmetric, ratio 0.5": {"weights": "int4", "ratio": 0.5},
}
OPENVINO: dict[str, dict[str, Any]] = {
    "int8, activations too": {"weights": "int8", "activations": "int8"},
}
CORE_ML: dict[str, dict[str, Any]] = {
    "palette of 2 bits": {"palettize": "2"},
    "palette of 4 bits": {"palettize": "4"},
    "palette of 6 bits": {"palettize": "6"},
    "palette of 8 bits": {"palettize": "8"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4", "deployment_target": "iOS18"},
}
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--to", default="onnx", choices=["onnx", "openvino", "coreml"])
    parser.add_argument("--seeds", type=int, default=3, help="random tiny models")
    parser.add_argument("--schemes", help="numbers of the list, separated by commas; all by default")
    args = parser.parse_args()
    schemes = CORE_ML if args.to == "coreml" else SCHEMES | (OPENVINO if args.to == "openvino" else {})
    chosen = list(schemes)
    if args.schemes:
        chosen = [chosen[int(number)] for number in args.schemes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        print("| model | weights | " + " | ".join(COMPONENTS) + " | pictures | bytes | verdict |")
        print("|---|---|" + "---|" * (len(COMPONENTS) + 3))
        for source in ("builtin:shapes", *_tiny(Path(folder), args.seeds)):
            for name in chosen:
                print(_row(source, name, schemes[name], args.to, Path(folder)), flush=True)


def _tiny(folder: Path, seeds: int) -> list[str]:
    from tests.tiny import make_tiny

    return [str(make_tiny(folder / f"tiny-{seed}", seed=seed)) for seed in range(seeds)]


def _row(source: str, scheme: str, options: dict[str, Any], target: str, folder: Path) -> str:
    from exporter.conversion import convert, make_plan
    from exporter.parity import verify

    root = folder / "artifact"
    convert(make_plan(source, target, root, options, verify=False))
    builtin = source.startswith("builtin:")
    settings: dict[str, Any] = {} if builtin else {"steps": 3, "samples": 3}
    report = verify(root, precision_hint="f32", bisect=False, **settings)
    size = sum(component.bytes for component in report.components)
    shutil.rmtree(root)
    worst = {c.name: c.compression.sqnr_db for c in report.components if c.compression is not None}
    found = [
        p.original_psnr_db for r in (report.pipeline.runs if report.pipeline else []) for p in r.paintings
    ]
    psnr = min((x for x in found if x is not None), default=math.nan)
    cells = [f"{worst.get(name) or math.nan:.1f}" for name in COMPONENTS]
    model = source if builtin else Path(source).name
    return f"| {model} | {scheme} | {' | '.join(cells)} | {psnr:.1f} | {size} | {report.verdict} |"


if __name__ == "__main__":
    main()
