"""`Resources/`: the folder that Apple's Swift package reads, as far as it can be made off a Mac."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.coreml.chunks import PARTS, part_name
from exporter.targets.coreml.export import compile_command
from exporter.targets.coreml.names import CONTROLNETS, RESOURCES, compiled_name, package_of
from exporter.targets.coreml.native import compiled_models, has_core_ml
from exporter.targets.coreml.sd3 import TOKENIZER_FILES as T5_FILES
from exporter.targets.coreml.sd3 import is_compiled

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

TOKENIZER_FILES = ("vocab.json", "merges.txt")
SCRIPT = "compile.sh"


def write_resources(checkpoint: Checkpoint, components: Sequence[Component], staging: Path) -> list[Path]:
    """Write `Resources/`: the tokenizer's two files, those of T5's where it is among the components, and the
    script that compiles the packages.

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
    if any(component.name == "text_encoder_3" for component in components):
        files += [Path(shutil.copyfile(checkpoint.root / "tokenizer_3" / n, folder / n)) for n in T5_FILES]
    script = folder / SCRIPT
    opened = [component for component in components if is_compiled(component)]
    script.write_text(compile_script(list(packages_in(staging, opened))), encoding="utf-8")
    files.append(script)
    if has_core_ml():
        subprocess.run(["/bin/sh", str(script)], check=True)
        for compiled in compiled_models(staging).values():
            files += sorted(path for path in compiled.rglob("*") if path.is_file())
    return files


def packages_in(staging: Path, components: Sequence[Component]) -> Iterator[str]:
    """File names of the packages of these components: a chunked UNet has two."""
    for component in components:
        package = package_of(component)
        parts = [part_name(package, part) for part in PARTS]
        yield from parts if (staging / parts[0]).is_dir() else (package,)


def compile_script(packages: Sequence[str]) -> str:
    """A shell script for a Mac with Xcode: compiles each package under the name that Swift looks for.

    Args:
        packages: File names.

    `ResourceURLs` in apple/ml-stable-diffusion names them; the compiler names its output after the
    package, so it is renamed.
    """
    lines = ["#!/bin/sh", "# Needs a Mac with Xcode. Run it anywhere.", "set -e", 'cd "$(dirname "$0")/.."']
    known = {package: name for package in packages if (name := compiled_name(package)) is not None}
    if any(name.startswith(f"{CONTROLNETS}/") for name in known.values()):
        lines.append(f"mkdir -p {RESOURCES}/{CONTROLNETS}")
    for package, name in known.items():
        final = Path(RESOURCES, f"{name}.mlmodelc")
        made = final.with_name(package.removesuffix(".mlpackage") + ".mlmodelc")
        lines += [compile_command(package), f"rm -rf {final.as_posix()}"]
        lines.append(f"mv {made.as_posix()} {final.as_posix()}")
    return "\n".join(lines) + "\n"
