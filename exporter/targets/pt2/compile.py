"""AOTInductor: a program compiled ahead of time for one kind of machine."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ArtifactError, BackendMissing, UnsupportedError
from exporter.targets.torch_module import no_tf32, one_line, quiet

if TYPE_CHECKING:
    import torch

BASELINE = "baseline"
SOURCE = "// Compiled into the library beside this file; the loader asks for the name only.\n"


def compiler_names() -> list[str]:
    """The C++ compilers that torch would look for: `CXX`, or the platform's own."""
    import torch._inductor.config as config

    wanted = config.cpp.cxx
    return [name for name in (wanted if isinstance(wanted, tuple | list) else [wanted]) if name]


def check_compiler() -> None:
    """
    Raises:
        BackendMissing: torch would find no C++ compiler.
    """
    names = compiler_names()
    if not any(shutil.which(name) for name in names):
        raise BackendMissing(
            f"--compile needs a C++ compiler, and there is no {' or '.join(names)} here.",
            hint="Install g++ (apt install g++, dnf install gcc-c++), or name another compiler in CXX; "
            "without --compile none is needed.",
        )


def compiled_for(device: torch.device) -> dict[str, str]:
    """What a package that is compiled now will need of the machine it runs on."""
    import torch

    found = {"device": device.type, "machine": platform.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        return found | {"isa": _compute_capability(device)}
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    flags = pick_vec_isa().build_arch_flags()
    words = [flag[2:].replace("-", "") for flag in flags.split() if flag.startswith("-m") and "=" not in flag]
    if "+sve" in flags:
        words.append("sve")
    return found | {"isa": " ".join(dict.fromkeys(words)) or BASELINE}


def lacking(isa: str, device: torch.device) -> list[str]:
    """The instruction sets out of `isa` that this processor has not. Needs no compiler."""
    import torch

    if device.type == "cuda":
        return [] if isa == _compute_capability(device) else [isa]
    known = torch.cpu.get_capabilities()
    here = {name.replace("_", "") for name, value in known.items() if value is True}
    here |= {"fma"} if "fma3" in here else set()
    here |= {BASELINE}
    return [word for word in isa.split() if word not in here]


def check_machine(made_for: Mapping[str, str], where: str, device: torch.device) -> None:
    """Refuse before any of the machine code is loaded.

    Raises:
        ArtifactError: The package was compiled by another torch, whose ABI may differ.
        BackendMissing: It was compiled for another device, architecture or instruction set.
    """
    import torch

    again = "Convert again with --compile on this machine, or without it for a portable program."
    if made_for.get("torch") != torch.__version__:
        raise ArtifactError(
            f"{where} was compiled by torch {made_for.get('torch')}; this is torch {torch.__version__}.",
            hint=again,
        )
    if made_for.get("device") != device.type:
        raise BackendMissing(
            f"{where} was compiled for the device {made_for.get('device')}, not for {device.type}.",
            hint="Convert again for that device: --compile, or --compile --option device=cuda.",
        )
    if made_for.get("machine") != platform.machine():
        raise BackendMissing(
            f"{where} was compiled for {made_for.get('machine')}; this machine is {platform.machine()}.",
            hint=again,
        )
    isa = made_for.get("isa", "")
    missing = lacking(isa, device)
    if missing:
        raise BackendMissing(
            f"{where} was compiled for {isa}; this {device.type} has no {', '.join(missing)}.", hint=again
        )


def _compute_capability(device: torch.device) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def compile_package(
    program: torch.export.ExportedProgram, entry: Path, extra: Mapping[str, str], name: str
) -> None:
    """Compile and write a package with its declaration beside the machine code.

    Everything the compiler leaves, weights among it, lies in a folder that is deleted afterwards. No
    `-march=native`: the package then needs no more of a processor than the vector instructions it
    was made for, and these are recorded. The number of threads is taken when it runs.

    Raises:
        UnsupportedError: The compiler refused.
    """
    from torch._inductor import aot_compile
    from torch.export.pt2_archive._package import package_pt2

    arguments, keywords = program.example_inputs
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=entry.parent) as folder:
        try:
            with quiet(), no_tf32():
                files = aot_compile(
                    program.module(check_guards=False),  # type: ignore[arg-type]
                    arguments,
                    keywords,
                    options={
                        "aot_inductor.package": True,
                        "aot_inductor.output_path": folder,
                        "aot_inductor.enable_line_tables": False,  # paths of this machine
                        "cpp.dynamic_threads": True,
                        "cpp.march": "",
                    },
                )
                for path in Path(folder).glob("*.cpp"):
                    path.write_text(SOURCE)  # code that nobody reads, with folders of this machine
                package_pt2(str(entry), aoti_files=files, extra_files=dict(extra))  # type: ignore[arg-type]
        except Exception as error:  # torch and the compiler raise dozens of types
            raise UnsupportedError(f"AOTInductor cannot compile the {name}: {one_line(error)}") from error
