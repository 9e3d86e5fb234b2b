"""The command line: one module per verb, loaded when the verb is used. It holds no logic of its own."""

from __future__ import annotations

import os
from typing import NoReturn

from exporter.cli._group import Verb, VerbGroup

__all__ = ["cli", "main"]

cli = VerbGroup(
    name="exporter",
    verbs=(
        Verb("convert", "Convert a checkpoint and verify what was written."),
        Verb("verify", "Judge an artifact against the PyTorch reference."),
        Verb("run", "Paint one picture with an artifact or a checkpoint."),
        Verb("compile", "Compile an artifact for a device of this machine."),
        Verb("bench", "Measure artifacts and PyTorch side by side."),
        Verb("inspect", "List the components of a checkpoint or an artifact."),
        Verb("plan-devices", "Say which part goes on which device, before a download."),
        Verb("cache", "Show or clear what earlier runs keep to be faster."),
        Verb("download", "Fetch what a pipeline needs from the Hub."),
        Verb("recipe", "List, show, check, run or compare recipes."),
        Verb("batch", "Convert many models with many recipes, here or on a cluster."),
        Verb("push", "Publish a verified artifact on the Hub, with a model card."),
        Verb("diff", "Say how two artifacts, or an artifact and a checkpoint, differ."),
        Verb("doctor", "Show what is installed, what is missing, and the hardware."),
        Verb("new-architecture", "Begin the module of a pipeline family and its tests."),
        Verb("demo", "Convert, verify and paint the embedded model; write a page."),
    ),
    help=(
        "Convert diffusion checkpoints to ONNX, OpenVINO and more, and prove each artifact against "
        "PyTorch.\n\n"
        "SOURCE is `builtin:shapes` (embedded, needs no network), a folder in diffusers layout, or "
        "`org/name` of the Hugging Face Hub. ARTIFACT is a folder that `exporter convert` wrote."
    ),
    examples=(
        (
            "Convert the embedded model and verify it",
            "exporter convert builtin:shapes --to onnx -o star-onnx",
        ),
        (
            "Paint with the result",
            'exporter run star-onnx "a large red star at the left on a blue background" -o star.png',
        ),
        ("See what this machine can do", "exporter doctor"),
    ),
)
"""The root command; `tests` and the reference drive it directly."""


def main() -> NoReturn:
    """Entry point of the `exporter` script: runs the verb in `sys.argv`, exits with a code of the table."""
    # OpenMP reads it when torch is loaded. Without it, threads that wait for each other spin: on a busy
    # machine a picture then takes ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cli.main()
    raise AssertionError("VerbGroup.main() exits")
