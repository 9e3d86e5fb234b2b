"""Programs on a CUDA device against PyTorch on the CPU: TorchScript, .pt2, and .pt2 compiled.

    python -m tests.benchmarks.artifacts_on_cuda

A tiny random SD 1.5 in float32. Printed is the largest error of every component's outputs, as a share of the
reference's largest value; more than 1e-4 is taken for wrong (TF32 is off). Exit code 1 then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

LIMIT = 1e-4
FORMS = {
    "torchscript": ("torchscript", {}),
    "pt2": ("pt2", {}),
    "pt2, compiled": ("pt2", {"compile": True, "device": "cuda"}),
}


def main() -> int:
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve
    from exporter.conversion import convert, make_plan
    from exporter.graph.capture import trace_size
    from exporter.parity.cases import Inputs, convert_inputs
    from exporter.targets import RunOptions, get_target
    from tests.tiny import make_tiny

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    wrong = 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "tiny"
        make_tiny(source)
        parts = {part.name: part for part in components_of(resolve(source))}
        for name, (target, options) in FORMS.items():
            try:
                out = Path(scratch) / name.replace(", ", "-")
                artifact = convert(make_plan(str(source), target, out, options, verify=False)).artifact
                for record in artifact.manifest.components:
                    part = parts[record.name]
                    inputs = part.example_inputs(trace_size(part), seed=7)
                    with torch.no_grad():
                        wanted = part.reference_module()(**inputs)[0].double()
                    settings = RunOptions(device="cuda", trust=True)
                    with get_target(target).open(artifact.root, record, settings) as runner:
                        given, _ = convert_inputs(
                            Inputs(record.name, "captured", "example", inputs), runner.inputs
                        )
                        found = torch.from_numpy(runner.run(given)[part.outputs[0].name]).double()
                    error = float((found - wanted).abs().max() / wanted.abs().max())
                    wrong += not (error <= LIMIT)
                    print(f"{name:16}{record.name:16}{error:.1e}", flush=True)
            except Exception as error:  # libraries and compilers have types of their own
                wrong += 1
                print(f"{name:16}{type(error).__name__}: {str(error).strip()[-300:]}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
