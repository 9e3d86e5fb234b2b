"""`Resources/`: the folder that Apple's Swift package reads, as far as it can be made off a Mac."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.coreml.export import compile_command, model_id
from exporter.targets.coreml.layout import RESOURCE_NAMES, RESOURCES, package_name
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
        source = checkpoint.root / "tokenizer" / name
        if source.is_file():
            files.append(Path(shutil.copyfile(source, folder / name)))
    script = folder / SCRIPT
    script.write_text(compile_script(model_id(checkpoint), [c.name for c in components]), encoding="utf-8")
    files.append(script)
    if has_core_ml():
        subprocess.run(["/bin/sh", str(script)], check=True)
        for compiled in compiled_models(staging).values():
            files += sorted(path for path in compiled.rglob("*") if path.is_file())
    return files


def compile_script(model: str, components: Sequence[str]) -> str:
    """A shell script for a Mac with Xcode: compiles each package under the name that Swift looks for.

    `ResourceURLs` in apple/ml-stable-diffusion names them; the compiler names its output after the
    package, so it is renamed.
    """
    lines = ["#!/bin/sh", "# Needs a Mac with Xcode. Run it anywhere.", "set -e", 'cd "$(dirname "$0")/.."']
    for name in components:
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
