"""The code of model cards: Core ML in Apple's clients (on a Mac), and what can be looked at anywhere."""

from __future__ import annotations

from pathlib import Path

from exporter.artifact import Manifest
from exporter.targets.base import PROMPT, Client
from exporter.targets.coreml.layout import kind_of
from exporter.targets.coreml.names import CONTROLNET_PREFIX, compiled_name
from exporter.targets.coreml.sd3 import PIPELINES, other_widths

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
    nets = [record.entry for record in manifest.components if kind_of(record.name) == "controlnet"]
    pictures = "".join(f" edges_{number}.png" for number in range(1, len(nets) + 1))
    names = " ".join(str(compiled_name(entry)).rpartition("/")[2] for entry in nets)
    swift_nets = f" --controlnet {names} --controlnet-inputs{pictures}" if nets else ""
    ids = " ".join(Path(entry).stem.removeprefix(CONTROLNET_PREFIX) for entry in nets)
    python_nets = f" --controlnet {ids} --controlnet-inputs{pictures}" if nets else ""
    if manifest.source.pipeline_class.startswith(PIPELINES):
        if other_widths(manifest.components):
            return []
        swift_nets = " --sd3"
    swift = (
        f"{fetch}\nsh model/Resources/compile.sh\n"
        "git clone https://github.com/apple/ml-stable-diffusion && cd ml-stable-diffusion\n"
        f'swift run StableDiffusionSample "{PROMPT}" --resource-path ../model/Resources --seed 7{swift_nets}'
    )
    clients = [Client("Swift (ml-stable-diffusion)", "", "sh", swift, system="macOS")]
    if manifest.source.pipeline_class.startswith(PIPELINES):
        return clients  # the Python runner knows no such pipeline
    source = manifest.source.source
    # the Python runner opens a UNet in one package only, and reads the inputs of a package of one size
    swift_only = bool(manifest.options.get("chunk")) or bool(manifest.sizes())
    if not source.startswith("builtin:") and "/" in source and not swift_only:
        python = (
            f"{fetch}\n"
            f'python -m python_coreml_stable_diffusion.pipeline --prompt "{PROMPT}" -i model -o . '
            f"--model-version {source} --seed 7{python_nets}"
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
