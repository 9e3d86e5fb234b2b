"""`Resources/`: the folder that Apple's Swift package reads, as far as it can be made off a Mac."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.coreml.chunks import PARTS
from exporter.targets.coreml.export import compile_command
from exporter.targets.coreml.layout import RESOURCE_NAMES, RESOURCES, model_id, package_name
from exporter.targets.coreml.native import compiled_models, has_core_ml

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

TOKENIZER_FILES = ("vocab.json", "merges.txt")
SCRIPT = "compile.sh"


def write_resources(checkpoint: Checkpoint, components: Sequence[Component], staging: Path) -> list[Path]:
    """Write `Resources/`: the tokenizer's two files and the script that compiles the packages.

    On macOS the script is also run, and the compiled models are listed.

    Returns:
        The files written.
    """
    folder = staging / RESOURCES
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in TOKENIZER_FILES:
        # of SDXL's two tokenizers only the padding differs, which Swift knows; a refiner has the second one
        folders = [checkpoint.root / folder / name for folder in ("tokenizer", "tokenizer_2")]
        source = next((path for path in folders if path.is_file()), None)
        if source is not None:
            files.append(Path(shutil.copyfile(source, folder / name)))
    script = folder / SCRIPT
    names = list(packages_in(staging, model_id(checkpoint), [c.name for c in components]))
    script.write_text(compile_script(model_id(checkpoint), names), encoding="utf-8")
    files.append(script)
    if has_core_ml():
        subprocess.run(["/bin/sh", str(script)], check=True)
        for compiled in compiled_models(staging).values():
            files += sorted(path for path in compiled.rglob("*") if path.is_file())
    return files


def packages_in(staging: Path, model: str, components: Sequence[str]) -> Iterator[str]:
    """What the packages of these components end in: a chunked UNet has two."""
    for name in components:
        parts = [f"{name}{part}" for part in PARTS]
        chunked = (staging / package_name(model, parts[0])).is_dir()
        yield from parts if chunked else (name,)


def compile_script(model: str, names: Sequence[str]) -> str:
    """A shell script for a Mac with Xcode: compiles each package under the name that Swift looks for.

    Args:
        names: What the packages' names end in (`unet`, `unet_chunk1` …).

    `ResourceURLs` in apple/ml-stable-diffusion names them; the compiler names its output after the
    package, so it is renamed.
    """
    lines = ["#!/bin/sh", "# Needs a Mac with Xcode. Run it anywhere.", "set -e", 'cd "$(dirname "$0")/.."']
    for name in names:
        package = package_name(model, name)
        compiled = package.removesuffix(".mlpackage") + ".mlmodelc"
        if name in RESOURCE_NAMES:
            final = f"{RESOURCES}/{RESOURCE_NAMES[name]}.mlmodelc"
            lines += [
                compile_command(package),
                f"rm -rf {final}",
                f"mv {RESOURCES}/{compiled} {final}",
            ]
    return "\n".join(lines) + "\n"
