"""The code of model cards: Core ML in Apple's clients (on a Mac), and what can be looked at anywhere."""

from __future__ import annotations

from exporter.artifact import Manifest
from exporter.targets.base import PROMPT, Client

SPECIFICATION = """\
from pathlib import Path

import coremltools
from huggingface_hub import snapshot_download

for package in sorted(Path(snapshot_download("{repo}")).glob("*.mlpackage")):
    description = coremltools.utils.load_spec(str(package)).description
    for function in description.functions or [description]:  # a function a size
        print(package.name, getattr(function, "name", ""))
        for feature in (*function.input, *function.output):
            print("  ", feature.name, list(feature.type.multiArrayType.shape))"""


def apple(repo: str, manifest: Manifest) -> list[Client]:
    """Apple's Swift and Python runners. They need a Mac, so the commands have not been run here."""
    fetch = f"hf download {repo} --local-dir model"
    swift = (
        f"{fetch}\nsh model/Resources/compile.sh\n"
        "git clone https://github.com/apple/ml-stable-diffusion && cd ml-stable-diffusion\n"
        f'swift run StableDiffusionSample "{PROMPT}" --resource-path ../model/Resources --seed 7'
    )
    clients = [Client("Swift (ml-stable-diffusion)", "", "sh", swift, system="macOS")]
    source = manifest.source.source
    # the Python runner opens a UNet in one package only, and reads the inputs of a package of one size
    swift_only = bool(manifest.options.get("chunk")) or bool(manifest.sizes())
    if not source.startswith("builtin:") and "/" in source and not swift_only:
        python = (
            f"{fetch}\n"
            f'python -m python_coreml_stable_diffusion.pipeline --prompt "{PROMPT}" -i model -o . '
            f"--model-version {source} --seed 7"
        )
        install = "pip install git+https://github.com/apple/ml-stable-diffusion"
        clients.append(Client("Python (ml-stable-diffusion)", install, "sh", python, system="macOS"))
    return clients


def specification(repo: str) -> Client:
    """What the packages take and give, on any system."""
    return Client(
        "coremltools, to look inside", "pip install coremltools huggingface_hub", "python",
        SPECIFICATION.format(repo=repo),
    )  # fmt: skip
