"""Artifacts compiled for a device of this machine, so that opening them is quick.

What is compiled lies in the artifact's folder `compiled/DEVICE-HINT/`, is no part of the artifact (it is
not published and not in the manifest), and is used only where it fits: the same bytes of the artifact, the
same device, driver and runtime. Otherwise the artifact is opened as ever, and the reason is told.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from exporter.architectures.base import origin
from exporter.artifact import (
    Artifact,
    ComponentRecord,
    FileRecord,
    Record,
    TensorRecord,
    check_inside,
    hash_files,
    now,
    write_text_atomic,
)
from exporter.errors import ArtifactError, UnsupportedError
from exporter.hashing import sha256_of
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    import numpy as np

    from exporter.targets import RunOptions, Target

FOLDER = "compiled"
NOTE = "compiled.json"
LIMIT = 1e-3
"""Largest relative L2 difference to the artifact opened as ever: same kernels, so as a rule none at all."""
SIZES = {
    "batch": 2, "sequence": 77, "latent_height": 16, "latent_width": 16, "height": 128, "width": 128,
    "frames": 9, "latent_frames": 2, "video_tokens": 32,
}  # fmt: skip
"""Of dims that are dynamic, when the two are compared."""


class CompiledPart(Record):
    """One compiled component.

    Attributes:
        entry: The file of the artifact it was made of: one of several where there are several sizes.
        path: The file to open, relative to the artifact.
        seconds / opened / plain: Of compiling, of opening the result, and of opening the artifact's own file.
        difference: Largest relative L2 difference between the outputs of the two.
    """

    component: str
    entry: str
    path: str
    files: list[FileRecord]
    seconds: float
    opened: float
    plain: float
    difference: float


class Compiled(Record):
    """`compiled.json`.

    Attributes:
        digest: Of the artifact: `Manifest.digest()`.
        runtime: What `Target.runtime` said when it was made.
    """

    kind: Literal["exporter-compiled"] = "exporter-compiled"
    created: str = Field(default_factory=now)
    target: str
    digest: str
    precision_hint: str
    runtime: dict[str, str]
    parts: list[CompiledPart] = Field(default_factory=list)


def compile_artifact(
    source: str | Path,
    *,
    device: str | None = None,
    precision_hint: str | None = None,
    progress: Progress | None = None,
) -> tuple[Compiled, Path]:
    """Compile every component for a device, compare it with the artifact, and keep it beside it.

    Args:
        source: The artifact's folder.
        device: As the runtime names it; None is its default.
        precision_hint: `f32`, `bf16`, `f16` or `default`; None takes what the artifact was made for.

    Returns:
        What was made, and its folder.

    Raises:
        ArtifactError: It is no artifact, is damaged, or computes something else when compiled.
        BackendMissing: There is no such device.
        UnsupportedError: The format has nothing to compile.
    """
    from exporter.pipeline import run_options
    from exporter.targets import get_target

    report = progress or NullProgress()
    artifact = Artifact.open(source)
    target = get_target(artifact.manifest.target)
    records = _entries(artifact)
    first = run_options(records[0], device, precision_hint, False)
    runtime = target.runtime(first)
    if not runtime:
        raise UnsupportedError(
            f"A {target.title} artifact has nothing to compile.", hint="OpenVINO and ONNX artifacts have."
        )
    result = Compiled(
        target=target.name,
        digest=artifact.manifest.digest(),
        precision_hint=first.precision_hint,
        runtime=runtime,
    )
    folder = artifact.root / FOLDER / name_of(runtime, first)
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for record in records:
            report.start(f"compiling {record.entry}")
            options = run_options(record, device, precision_hint, False)
            place = staging / record.name / Path(record.entry).stem
            place.mkdir(parents=True)
            result.parts.append(_compile(target, artifact, record, options, place, folder))
            report.done()
        write_text_atomic(staging / NOTE, result.model_dump_json(indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return result, folder


def name_of(runtime: Mapping[str, str], options: RunOptions) -> str:
    """`CPU-f32`: the folder of a device and hint."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", runtime["device"]) + f"-{options.precision_hint}"


def _entries(artifact: Artifact) -> list[ComponentRecord]:
    """The records to compile: one for each file a runtime opens."""
    found: dict[str, ComponentRecord] = {}
    for record in artifact.manifest.components:
        for view in [record, *(record.at(size.static) for size in record.sizes)]:
            found.setdefault(view.entry, view)
    return list(found.values())


def _compile(
    target: Target, artifact: Artifact, record: ComponentRecord, options: RunOptions, place: Path, final: Path
) -> CompiledPart:
    began = time.perf_counter()
    path = target.compile(artifact.root, record, options, place)
    seconds = time.perf_counter() - began
    inputs = probe(record)
    plain, expected = _opened(target, artifact, record, options, inputs)
    opened, got = _opened(target, artifact, record, replace(options, compiled=path), inputs)
    difference = _difference(got, expected)
    if not (difference <= LIMIT):
        raise ArtifactError(
            f"The compiled {record.name} computes something else than the artifact does: relative difference "
            f"{difference:.2g}.",
            hint="Nothing was kept. The runtime or its driver is at fault; run it without compiling.",
        )
    root, staging = artifact.root, final.with_name(f".{final.name}.new")
    files = [
        record.model_copy(update={"path": (final / record.path).relative_to(root).as_posix()})
        for record in hash_files([p for p in place.rglob("*") if p.is_file()], staging)
    ]
    return CompiledPart(
        component=record.name,
        entry=record.entry,
        path=(final / path.relative_to(staging)).relative_to(root).as_posix(),
        files=files,
        seconds=round(seconds, 3),
        opened=round(opened, 3),
        plain=round(plain, 3),
        difference=difference,
    )


def _opened(
    target: Target,
    artifact: Artifact,
    record: ComponentRecord,
    options: RunOptions,
    inputs: dict[str, np.ndarray],
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds to open, and the outputs."""
    began = time.perf_counter()
    with target.open(artifact.root, record, options) as runner:
        return time.perf_counter() - began, runner.run(inputs)


def probe(record: ComponentRecord) -> dict[str, np.ndarray]:
    """Inputs of plausible range for the comparison."""
    import numpy as np

    rng = np.random.default_rng(0)

    def made(spec: TensorRecord) -> np.ndarray:
        shape = [dim if isinstance(dim, int) else _size(dim) for dim in spec.dims]
        if spec.name == "timestep":
            return np.full(shape, 501, spec.dtype)
        if "int" in spec.dtype:
            return rng.integers(1, 200, shape).astype(spec.dtype)
        return rng.standard_normal(shape).astype(spec.dtype)

    return {spec.name: made(spec) for spec in record.inputs}


def _size(dim: str) -> int:
    base, share = origin(dim)
    return -(-SIZES.get(base, 2) // share)


def _difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    import numpy as np

    if set(got) != set(expected):
        return float("inf")
    worst = 0.0
    for name, value in expected.items():
        truth = value.astype(np.float64)
        size = float(np.linalg.norm(truth)) or 1.0
        error = float(np.linalg.norm(got[name].astype(np.float64) - truth)) / size
        worst = error if not (error <= worst) else worst  # a NaN stays
    return worst


class _DoesNotFit(Exception):
    """Why a compiled component is not used."""


class Store:
    """What was compiled of an artifact for one device and hint, and why it is not used where it is not.

    Attributes:
        reasons: One sentence for each thing that did not fit.
    """

    def __init__(self, artifact: Artifact, target: Target) -> None:
        self.artifact, self.target = artifact, target
        self.reasons: list[str] = []

    @cached_property
    def _any(self) -> bool:
        return (self.artifact.root / FOLDER).is_dir()

    def find(self, record: ComponentRecord, options: RunOptions) -> Path | None:
        """The compiled file of a component; None where there is none that fits."""
        if not self._any:
            return None
        runtime = self.target.runtime(options)
        if not runtime:
            return None
        folder = self.artifact.root / FOLDER / name_of(runtime, options)
        if not (folder / NOTE).is_file():
            return None
        try:
            return self._fitting(folder, record, runtime)
        except _DoesNotFit as reason:
            self.refused(str(reason))
            return None

    def _fitting(self, folder: Path, record: ComponentRecord, runtime: Mapping[str, str]) -> Path:
        try:
            compiled = Compiled.model_validate_json((folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError, ValidationError) as error:
            raise _DoesNotFit(f"{folder.name}/{NOTE} is damaged") from error
        if compiled.digest != self.artifact.manifest.digest():
            raise _DoesNotFit("it was compiled from other bytes than the artifact has now")
        for key in sorted({*compiled.runtime, *runtime}):
            then, here = compiled.runtime.get(key, "none"), runtime.get(key, "none")
            if then != here:
                raise _DoesNotFit(f"it was compiled for {key} {then}, and here is {here}")
        part = next((part for part in compiled.parts if part.entry == record.entry), None)
        if part is None:
            raise _DoesNotFit(f"{record.entry} is not among what was compiled")
        for file in part.files:
            check_inside(file.path)
            path = self.artifact.root / file.path
            if not path.is_file() or path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                raise _DoesNotFit(f"{path.name} of {part.component} is not as it was written")
        check_inside(part.path)
        return self.artifact.root / part.path

    def refused(self, reason: str) -> None:
        """Remember why something was not used."""
        text = f"The compiled artifact is not used: {reason.removesuffix('.')}."
        if text not in self.reasons:
            self.reasons.append(text)
