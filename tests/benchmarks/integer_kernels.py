"""What OpenVINO's integer kernels keep of a tiny random model, beside PyTorch with the same roundings.

    python -m tests.benchmarks.integer_kernels

`--weights int8 --activations int8`, with half of the codes (as it is exported) and with the whole range,
which saturates on processors without VNNI. Decibels against the model with the file's weights; three seeds of
inputs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from exporter.conversion import convert, make_plan
from exporter.targets import RunOptions
from exporter.targets.openvino import OpenVinoTarget, compression
from tests.targets.openvino.conftest import arrays
from tests.targets.quantised_weights import decibels_kept
from tests.tiny import make_tiny

COMPONENTS = ["text_encoder", "unet", "vae_decoder"]
OPTIONS: dict[str, Any] = {
    "weights": "int8", "activations": "int8", "calibration_steps": 2, "calibration_samples": 2,
}  # fmt: skip
_planned = compression.planned


def _whole_range(held: Any, component: Any, options: Any, rounded: Any) -> Any:
    return _planned(held, component, options)


def main() -> None:
    print("| codes | component | PyTorch, dB | OpenVINO, dB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = make_tiny(Path(folder) / "tiny")
        for codes, planned in {"half": _planned, "whole": _whole_range}.items():
            plan = make_plan(
                str(source), "openvino", Path(folder) / codes, OPTIONS, components=COMPONENTS, verify=False
            )
            with mock.patch.object(compression, "planned", planned):
                artifact = convert(plan).artifact
            for component in plan._components:
                record = artifact.manifest.component(component.name)
                with OpenVinoTarget().open(artifact.root, record, RunOptions(threads=1)) as runner:
                    drawn = [component.example_inputs(component.native, seed) for seed in (3, 4, 5)]
                    kept = [decibels_kept(component, runner, x, arrays(runner, x)) for x in drawn]
                sides = [f"{min(side):.1f} to {max(side):.1f}" for side in zip(*kept, strict=True)]
                print(f"| {codes} | {component.name} | {' | '.join(sides)} |", flush=True)


if __name__ == "__main__":
    main()
