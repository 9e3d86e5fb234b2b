"""What this machine has: packages, targets, hardware; and the command that adds what is missing.

Imports no backend to learn whether it is there; only the devices of OpenVINO and CUDA are asked
from the libraries themselves, and a library that breaks when asked is reported, not raised.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from exporter import __version__

CORE = "core"
ENABLES = {
    CORE: "everything",
    "onnx": "`convert --to onnx`, and verifying and running ONNX artifacts",
    "openvino": "`convert --to openvino`, and verifying and running OpenVINO artifacts",
    "genai": "opening OpenVINO artifacts with OpenVINO GenAI",
    "coreml": "writing Core ML models (running them needs a Mac)",
    "techniques": "the acceleration techniques of recipes (ToMe, DeepCache, T-GATE, torchao)",
    "xdit": "the technique xdit: a picture over several CUDA GPUs",
    "para-attention": "the technique para-attention: a picture over several GPUs",
    "cluster": "spreading recipe jobs over a Ray cluster",
    "jax": "StableHLO for JAX: export, verify, run",
    "video": "clips as MP4",
}
"""What the packages of each extra are for. `all` is their sum and `dev` is no one's but ours."""

CPU_FEATURES = {
    "avx2": ("avx2",),
    "fma": ("fma",),
    "f16c": ("f16c",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_tile": ("amx_tile",),
    "amx_bf16": ("amx_bf16",),
    "amx_int8": ("amx_int8",),
    "neon": ("asimd", "neon"),
    "bf16": ("bf16",),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}
"""Feature → the flags of the operating system that mean it (x86, then ARM)."""

BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Package:
    """One dependency.

    Attributes:
        name: As pip knows it.
        extras: The extras that ask for it (`core` for the plain install).
        required: The versions they accept, such as `>=2.1`; empty is any.
        version: What is installed, or None.
        fits: Installed in an accepted version.
    """

    name: str
    extras: tuple[str, ...]
    required: str
    version: str | None
    fits: bool


@dataclass(frozen=True)
class Extra:
    """One pip extra.

    Attributes:
        enables: What it is for.
        missing: Its packages that are not installed in an accepted version.
        install: The command that installs it.
    """

    name: str
    enables: str
    missing: tuple[str, ...]
    install: str


@dataclass(frozen=True)
class TargetState:
    """One registered target: `missing` names the packages it lacks; `problem` why it cannot load."""

    name: str
    title: str
    missing: tuple[str, ...] = ()
    problem: str | None = None
    install: str | None = None


@dataclass(frozen=True)
class Hardware:
    """The machine; sizes in bytes.

    Attributes:
        cpu: Model name.
        cores: Logical cores this process may use.
        features: CPU features out of `CPU_FEATURES`, in that order.
        memory / free_memory: Of the machine, or of the container's limit where that is lower.
        free_disk: On the disk of the working directory.
        openvino_devices: Name → full name; empty without OpenVINO.
        cuda: Names of the CUDA devices PyTorch sees.
        mps: PyTorch can use Apple's GPU.
        compiler: The C++ compiler that `--to pt2 --compile` would use.
        notes: What follows from it.
    """

    system: str
    cpu: str
    architecture: str
    cores: int
    features: tuple[str, ...]
    memory: int | None
    free_memory: int | None
    free_disk: int
    openvino_devices: dict[str, str] = field(default_factory=dict)
    cuda: tuple[str, ...] = ()
    mps: bool = False
    compiler: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The whole picture; `ok` is whether the core packages are there."""

    exporter: str
    python: str
    packages: list[Package]
    extras: list[Extra]
    targets: list[TargetState]
    hardware: Hardware
    ok: bool


def examine() -> Diagnosis:
    """Look at this machine. Raises nothing for what is missing."""
    packages = find_packages()
    extras = [_extra(name, packages) for name in ENABLES]
    return Diagnosis(
        exporter=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        packages=packages,
        extras=extras,
        targets=find_targets(),
        hardware=find_hardware(),
        ok=all(package.version is not None for package in packages if CORE in package.extras),
    )


def find_packages() -> list[Package]:
    """Every package that exporter or one of its extras asks for, from the installed metadata."""
    from packaging.requirements import Requirement

    wanted: dict[str, tuple[set[str], set[str]]] = {}
    for line in requires("exporter") or []:
        requirement = Requirement(line)
        name = requirement.name.lower()
        if name == "exporter":  # `all` refers to the other extras
            continue
        extras = _extras_of(requirement)
        if extras:
            names, limits = wanted.setdefault(name, (set(), set()))
            names.update(extras)
            limits.update(str(requirement.specifier).split(",") if str(requirement.specifier) else ())
    order = list(ENABLES)
    found = [_package(name, extras, limits) for name, (extras, limits) in wanted.items()]
    return sorted(found, key=lambda p: (min(order.index(e) for e in p.extras), p.name))


def _extras_of(requirement: object) -> set[str]:
    marker = getattr(requirement, "marker", None)
    if marker is None:
        return {CORE}
    if marker.evaluate({"extra": ""}):
        return {CORE}
    return {name for name in ENABLES if name != CORE and marker.evaluate({"extra": name})}


def _package(name: str, extras: set[str], limits: set[str]) -> Package:
    from packaging.specifiers import SpecifierSet

    required = ",".join(sorted(limits))
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        installed = None
    fits = installed is not None and SpecifierSet(required).contains(installed, prereleases=True)
    ordered = tuple(extra for extra in ENABLES if extra in extras)
    return Package(name, ordered, required, installed, fits)


def _extra(name: str, packages: list[Package]) -> Extra:
    missing = tuple(p.name for p in packages if name in p.extras and not p.fits)
    install = "pip install exporter" if name == CORE else f'pip install "exporter[{name}]"'
    return Extra(name, ENABLES[name], missing, install)


def find_targets() -> list[TargetState]:
    """Every registered target and what it lacks."""
    from exporter.targets.registry import get_target, target_names

    found = []
    for name in target_names():
        try:
            target = get_target(name, require_backend=False)
        except Exception as error:  # a third party's target may fail in any way
            hint = getattr(error, "hint", None)
            found.append(TargetState(name, name, problem=str(error), install=hint))
            continue
        missing = tuple(target.missing())
        install = f'pip install "exporter[{target.extra}]"' if missing else None
        found.append(TargetState(name, target.title, missing, install=install))
    return found


def find_hardware() -> Hardware:
    """The processor, memory, disk and accelerators."""
    features = cpu_features()
    total, free = _memory()
    devices, problems = openvino_devices()
    cuda, mps, torch_problems = _torch_devices()
    notes = [*problems, *torch_problems]
    if BF16_FEATURES & set(features):
        notes.append(
            "This CPU computes in bfloat16: OpenVINO uses it unless told otherwise "
            "(`--precision-hint f32`); `exporter verify` judges both."
        )
    if platform.system() != "Darwin":
        notes.append(
            "Core ML packages are written here and run in a reference interpreter; Core ML needs a Mac."
        )
    compiler = cpp_compiler()
    if compiler is None:
        notes.append("There is no C++ compiler: `convert --to pt2 --compile` needs one (g++, or CXX).")
    return Hardware(
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu_model(),
        architecture=platform.machine(),
        cores=_usable_cores(),
        features=features,
        memory=total,
        free_memory=free,
        free_disk=shutil.disk_usage(Path.cwd()).free,
        openvino_devices=devices,
        cuda=cuda,
        mps=mps,
        compiler=compiler,
        notes=tuple(notes),
    )


def cpu_model() -> str:
    """The processor's name as the system gives it, or the architecture."""
    for line in _cpuinfo():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The features of `CPU_FEATURES` this processor has, as far as the system tells."""
    flags: set[str] = set()
    for line in _cpuinfo():
        if line.lower().startswith(("flags", "features")):
            flags = set(line.partition(":")[2].lower().split())
            break
    if platform.system() == "Darwin":
        text = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower()
        flags = set(text.split())
        if platform.machine() == "arm64":
            flags |= {"asimd"} | ({"bf16"} if _sysctl("hw.optional.arm.FEAT_BF16") == "1" else set())
    return tuple(name for name, marks in CPU_FEATURES.items() if flags & set(marks))


def cpp_compiler() -> str | None:
    """Where the compiler that torch would take lies: the one of `CXX`, else the platform's usual one."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def openvino_devices() -> tuple[dict[str, str], list[str]]:
    """OpenVINO's devices (name → full name), and what went wrong in asking."""
    from importlib.util import find_spec

    if find_spec("openvino") is None:
        return {}, []
    try:
        import openvino

        core = openvino.Core()
        return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}, []
    except Exception as error:  # a broken driver or install can fail in any way
        return {}, [f"OpenVINO is installed but does not answer: {_first_line(error)}"]


def _torch_devices() -> tuple[tuple[str, ...], bool, list[str]]:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return (), False, []
    try:
        import torch

        cuda = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return cuda, torch.backends.mps.is_available(), []
    except Exception as error:
        return (), False, [f"PyTorch is installed but does not answer: {_first_line(error)}"]


def _memory() -> tuple[int | None, int | None]:
    try:
        import psutil
    except ImportError:
        return None, None
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no cgroup, or no limit ("max")
        limit = int((group / "memory.max").read_text())
        total = min(total, limit)
        free = min(free, limit - int((group / "memory.current").read_text()))
    return total, max(free, 0)


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
