"""From a source and a target to a verified artifact: the plan, then the work."""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter import cache
from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    FileRecord,
    Manifest,
    SourceRecord,
    hash_files,
    write_text_atomic,
)
from exporter.background import aside
from exporter.errors import ResourceError, UsageError
from exporter.progress import NullProgress, Progress
from exporter.staging import Staging, check_destination
from exporter.trust import remember

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets import ExportedComponent, Options, Target

TOOLS = (
    "torch", "diffusers", "transformers", "numpy", "onnx", "onnxscript", "onnx-ir", "onnxruntime",
    "openvino", "openvino-tokenizers", "nncf", "coremltools",
)  # fmt: skip
DISK_MARGIN = 1.05
DEFAULT_OUTPUT = Path("artifacts")


@dataclass(frozen=True)
class PlannedComponent:
    """One component of a plan; sizes in bytes."""

    name: str
    class_name: str
    parameters: int
    disk: int
    memory: int


@dataclass(frozen=True)
class Plan:
    """What `convert` will do, known before any work.

    Attributes:
        source / revision / variant: What to read.
        target: Name of the format.
        output: The destination folder.
        options: The target's options, validated, as JSON values.
        components: In the order of work.
        disk: Bytes the artifact will take.
        memory: Peak bytes of the export (one component at a time).
        free_disk / free_memory: Bytes free now.
        verify: What will be verified, in words; empty when verification is off.
        digest: Identity of the request, for resuming.
        overlays: What is laid over the source, as the manifest will record it.
        notes: What was assumed about the source, and what of an overlay was left out.
        allow_pickle: Whether the user allowed pickles to be opened.
    """

    source: str
    revision: str | None
    variant: str | None
    pipeline_class: str
    target: str
    output: Path
    options: dict[str, Any]
    components: list[PlannedComponent]
    disk: int
    memory: int
    free_disk: int
    free_memory: int
    verify: list[str]
    digest: str
    overlays: list[dict[str, Any]]
    notes: list[str]
    allow_pickle: bool
    _checkpoint: Checkpoint = field(repr=False, compare=False)
    _components: list[Component] = field(repr=False, compare=False)
    _target: Target = field(repr=False, compare=False)
    _options: Options = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON values of the public fields."""
        result = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        result["output"] = str(self.output)
        result["components"] = [vars(c) for c in self.components]
        return result

    def check_resources(self) -> None:
        """
        Raises:
            ResourceError: The artifact does not fit the disk, or the export not the memory.
        """
        if self.free_disk < self.disk * DISK_MARGIN:
            largest = max(self.components, key=lambda component: component.disk)
            alone = f" ({human(largest.disk)} of it the {largest.name})" if len(self.components) > 1 else ""
            raise ResourceError(
                f"Not enough disk: the artifact takes {human(self.disk)}{alone}, {self.output.parent} has "
                f"{human(self.free_disk)} free.",
                hint="Free some space, choose another disk with -o, or store less with --dtype float16.",
            )
        if self.free_memory < self.memory:
            raise ResourceError(
                f"Not enough memory: the export peaks at about {human(self.memory)}, "
                f"{human(self.free_memory)} are free.",
                hint="Close other programs, or convert one component at a time with --component.",
            )


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        artifact: The folder, open.
        verdict: PASS, FAIL, INCONCLUSIVE, or None when verification was off.
        summary: The verdict in words.
        report: The report's HTML page, if one was written.
        seconds: Wall time in all.
        verify_seconds: The part of it that verification took.
        resumed: Components an earlier, interrupted run had finished.
    """

    artifact: Artifact
    verdict: str | None
    summary: str
    report: Path | None
    seconds: float
    resumed: tuple[str, ...] = ()
    verify_seconds: float = 0.0


def make_plan(
    source: str,
    target: str,
    output: Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    components: list[str] | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    intake: Mapping[str, Any] | None = None,
) -> Plan:
    """Check a request and say what it will take. A checkpoint of the Hub is downloaded for that.

    Args:
        progress: Told of the download.
        intake: Further keyword arguments of `exporter.checkpoints.open_source`: how the source is opened
            and what is laid over it (allow_pickle, config, tokenizer, vae, textual_inversions, loras).

    Raises:
        UsageError: Unknown target, option, component or destination.
        BackendMissing: The target's backend is not installed.
        CheckpointError: The source is missing or damaged.
    """
    from exporter.targets import get_target

    backend = get_target(target)
    parsed = parse_options(backend, options or {})

    from exporter.architectures import components_of
    from exporter.checkpoints import open_source

    checkpoint = open_source(
        source, revision=revision, variant=variant, progress=progress, **dict(intake or {})
    )
    checkpoint.validate()
    chosen = select_components(components_of(checkpoint), components, source)
    check_static(parsed, chosen)
    planned = []
    for component in chosen:
        estimate = backend.estimate(component, parsed)
        planned.append(
            PlannedComponent(
                component.name, component.class_name, component.parameters, estimate.disk, estimate.memory
            )
        )
    destination = output if output is not None else DEFAULT_OUTPUT / default_name(source, target, parsed)
    return Plan(
        source=source,
        revision=checkpoint.revision,
        variant=variant,
        pipeline_class=checkpoint.pipeline_class,
        target=target,
        output=destination,
        options=parsed.model_dump(mode="json"),
        components=planned,
        disk=sum(c.disk for c in planned),
        memory=max(c.memory for c in planned),
        free_disk=free_disk(destination),
        free_memory=free_memory(),
        verify=_what_is_verified(chosen, parsed) if verify else [],
        digest=_digest(checkpoint, backend, parsed, chosen),
        overlays=[o.model_dump(mode="json") for o in checkpoint.overlays],
        notes=list(checkpoint.notes),
        allow_pickle=bool((intake or {}).get("allow_pickle")),
        _checkpoint=checkpoint,
        _components=chosen,
        _target=backend,
        _options=parsed,
    )


def convert(
    plan: Plan,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    verify_settings: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    recipe: Mapping[str, Any] | None = None,
) -> Conversion:
    """Carry out a plan: export, write the manifest, verify in a fresh process, move into place.

    Args:
        overwrite: Replace an artifact that stands at the destination.
        verify_settings: Keyword arguments of `exporter.parity.verify` (k, steps, samples …).
        recipe: Kept in the manifest, so that the artifact can be made again from it.
        use_cache: Take graphs from, and keep them in, the user's cache; the bytes written are the same.

    Raises:
        DestinationError: The destination exists, cannot be written, or is being written.
        ResourceError: Not enough disk or memory.
        UnsupportedError: Part of the model has no route; finished components are kept for a retry.
    """
    report_progress = progress or NullProgress()
    started = time.monotonic()
    check_destination(plan.output, overwrite=overwrite)
    plan.check_resources()
    with Staging(plan.output, plan.digest, overwrite=overwrite) as staging:
        hashed = aside(lambda: plan._checkpoint.files)
        with cache.off(not use_cache):
            records, resumed = _export_all(plan, staging, report_progress)
        shared = plan._target.finish(plan._checkpoint, plan._components, plan._options, staging.root)
        manifest = Manifest(
            target=plan.target,
            source=_source_record(plan, hashed, report_progress),
            options=plan.options,
            recipe=dict(recipe) if recipe is not None else None,
            tools=tool_versions(),
            components=records,
            shared_files=hash_files(shared, staging.root),
            verification_skipped=not plan.verify,
        )
        write_text_atomic(staging.root / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        verdict, summary, report = None, "not verified (--no-verify)", None
        verify_started = time.monotonic()
        if plan.verify:
            from exporter.verification import verify_in_fresh_process

            settings = dict(verify_settings or {})
            if plan.allow_pickle:
                settings["allow_pickle"] = True
            outcome = verify_in_fresh_process(
                staging.root, plan.output, plan.source, settings, report_progress
            )
            verdict, summary = outcome.verdict, outcome.summary
            report = plan.output / outcome.report if outcome.report else None
        verify_seconds = time.monotonic() - verify_started if plan.verify else 0.0
        staging.commit()
    return Conversion(
        artifact=Artifact.open(plan.output),
        verdict=verdict,
        summary=summary,
        report=report,
        seconds=time.monotonic() - started,
        resumed=tuple(resumed),
        verify_seconds=verify_seconds,
    )


def _export_all(plan: Plan, staging: Staging, progress: Progress) -> tuple[list[ComponentRecord], list[str]]:
    """Export what is not complete. A component is hashed and flushed while the next one is being exported;
    also when that one fails: leaving the executor waits."""
    records: list[Future[ComponentRecord]] = []
    resumed = []
    with ThreadPoolExecutor(1) as second:
        for component in plan._components:
            record = staging.completed(component.name)
            if record is not None:
                progress.start(f"{component.name}: complete from an earlier run")
                progress.done()
                resumed.append(component.name)
                records.append(second.submit(lambda record: record, record))
                continue
            began = time.monotonic()
            exported = plan._target.export(component, plan._options, staging.root, progress)
            seconds = round(time.monotonic() - began, 3)
            records.append(second.submit(_complete, plan, staging, component, exported, seconds))
            gc.collect()
        progress.start("flushing to disk")
        finished = [record.result() for record in records]
        progress.done()
    return finished, resumed


def _complete(
    plan: Plan, staging: Staging, component: Component, exported: ExportedComponent, seconds: float
) -> ComponentRecord:
    record = ComponentRecord(
        name=component.name,
        entry=exported.entry.relative_to(staging.root).as_posix(),
        files=hash_files(exported.files, staging.root),
        inputs=list(exported.inputs),
        outputs=list(exported.outputs),
        parameters=component.parameters,
        dtype=exported.dtype or plan._options.dtype,
        seconds=seconds,
        details=dict(exported.details),
    )
    if plan._target.executable:
        remember(record)
    staging.mark_complete(record)
    return record


def _source_record(plan: Plan, hashed: Future[list[FileRecord]], progress: Progress) -> SourceRecord:
    progress.start("hashing the source")
    files = hashed.result()
    progress.done()
    return SourceRecord(
        source=plan.source,
        revision=plan.revision,
        variant=plan.variant,
        pipeline_class=plan.pipeline_class,
        files=files,
        overlays=list(plan._checkpoint.overlays),
        notes=plan.notes,
        **plan._checkpoint.opened_with,
    )


def parse_options(target: Target, options: Mapping[str, Any]) -> Options:
    """Validate options by the target's own class.

    Raises:
        UsageError: Names the first option that is unknown or out of range.
    """
    try:
        return target.options_type.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            known = ", ".join(f"--{n.replace('_', '-')}" for n in target.options_type.model_fields)
            raise UsageError(f"The target {target.name} has no option --{name}; it has: {known}.") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--{name} of target {target.name}: {reason}.") from error


def select_components(available: list[Component], wanted: list[str] | None, source: str) -> list[Component]:
    """The components asked for, in pipeline order (all when `wanted` is None).

    Raises:
        UsageError: A name the checkpoint does not have.
    """
    if not wanted:
        return available
    names = [c.name for c in available]
    for name in wanted:
        if name not in names:
            raise UsageError(f"{source} has no component {name!r}; it has: {', '.join(names)}.")
    return [c for c in available if c.name in wanted]


def check_static(options: Options, components: list[Component]) -> None:
    """
    Raises:
        UsageError: A static picture size that the VAE's factor does not divide.
    """
    if options.static is None or not components:
        return
    factor = components[0].native.factor
    _, height, width = options.static
    if height % factor or width % factor:
        raise UsageError(
            f"--static {'x'.join(map(str, options.static))}: height and width must be multiples of {factor}.",
            hint=f"Try {options.static[0]}x{_round(height, factor)}x{_round(width, factor)}.",
        )


def _round(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)


def default_name(source: str, target: str, options: Options) -> str:
    """`shapes-onnx`, `shapes-onnx-float16-1x128x128` …"""
    base = source.removeprefix("builtin:").rstrip("/").split("/")[-1] or "model"
    for suffix in (".safetensors", ".ckpt"):
        base = base.removesuffix(suffix)
    parts = [base, target]
    if options.dtype != type(options).model_fields["dtype"].default:
        parts.append(options.dtype)
    if options.static:
        parts.append("x".join(map(str, options.static)))
    return "-".join(parts)


def _what_is_verified(components: list[Component], options: Options) -> list[str]:
    lines = [f"{c.name} against PyTorch in float32, limit by a float64 truth" for c in components]
    if options.static is None:
        lines.append("every dynamic dimension at sizes the export did not trace")
    if len(components) > 1:
        lines.append("whole pipeline: final picture and error after every step")
    return lines


def _digest(checkpoint: Checkpoint, target: Target, options: Options, components: list[Component]) -> str:
    """Identity of a request. Source files count by size and time here (hashing gigabytes before the
    work would double it); their sha256 stand in the manifest."""
    stats = []
    for folder in sorted({c.folder for c in components}):
        for path in checkpoint.weight_files(folder):
            stat = path.stat()
            stats.append((folder, path.name, stat.st_size, stat.st_mtime_ns))
    identity = {
        "root": str(checkpoint.root),
        "files": stats,
        "overlays": [o.model_dump(mode="json") for o in checkpoint.overlays],
        "target": target.name,
        "options": options.model_dump(mode="json"),
        "components": [c.name for c in components],
        "tools": tool_versions(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of everything that may change the bytes."""
    found = {"exporter": version("exporter"), "python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def free_disk(path: Path) -> int:
    """Free bytes on the disk that will hold `path` (which need not exist yet)."""
    existing = path.expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def free_memory() -> int:
    """Bytes a new process may take without swapping, the cgroup's limit included."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit_file, used_file = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with suppress(OSError, ValueError):  # no cgroup, or no limit ("max")
        free = min(free, int(limit_file.read_text()) - int(used_file.read_text()))
    return max(free, 0)


def human(size: float) -> str:
    """Bytes in decimal units, as disks are sold: `3.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


__all__ = ["Conversion", "Plan", "convert", "make_plan"]
