"""What a conversion will take, known before any work: the request checked, sizes, memory, identity."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter.background import aside, on_failure
from exporter.errors import ResourceError, UsageError
from exporter.frames import baked_note, check_baked
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets import Options, Target
    from exporter.techniques import Named

TOOLS = (
    "torch", "diffusers", "transformers", "numpy", "onnx", "onnxscript", "onnx-ir", "onnxruntime",
    "openvino", "openvino-tokenizers", "nncf", "coremltools", "jax", "jaxlib",
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
        techniques: What is baked in: each with its options.
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
    techniques: list[dict[str, Any]]
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


def make_plan(
    source: str,
    target: str,
    output: Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    components: list[str] | None = None,
    safety_checker: bool = True,
    verify: bool = True,
    progress: Progress | None = None,
    intake: Mapping[str, Any] | None = None,
    hash_source: bool = False,
    techniques: Sequence[Named] = (),
) -> Plan:
    """Check a request and say what it will take. A checkpoint of the Hub is downloaded for that.

    Args:
        components: Only these; all when None.
        safety_checker: Without it, one that the checkpoint has is left out.
        progress: Told of the download.
        intake: Further keyword arguments of `exporter.checkpoints.open_source`: how the source is opened
            and what is laid over it (allow_pickle, config, tokenizer, base, vae, loras …).
        hash_source: Begin to hash the source's files aside at once, for the conversion that follows.
        techniques: Accelerations that the artifact is to carry, as in a recipe (`exporter.techniques`).

    Raises:
        UsageError: Unknown target, option, component or destination, or a technique that cannot be there.
        BackendMissing: The target's backend is not installed.
        CheckpointError: The source is missing or damaged.
        UnsupportedError: The target has no place for a component.
    """
    from exporter.targets import get_target

    backend = get_target(target)
    parsed = parse_options(backend, options or {})

    from exporter.checkpoints import open_source
    from exporter.checkpoints.lacking import check_whole

    checkpoint = open_source(
        source, revision=revision, variant=variant, progress=progress, **dict(intake or {})
    )
    check_whole(checkpoint, components)
    checkpoint.validate()
    if techniques:
        from exporter.techniques import bake

        checkpoint = bake(techniques, target, checkpoint)
    if hash_source:
        aside(lambda: checkpoint.files)
    from exporter.architectures import components_of, notes_of
    from exporter.architectures.safety_checker import NAME as SAFETY_CHECKER
    from exporter.checking import told

    with on_failure(checkpoint.stop_hashing):
        available = components_of(checkpoint)
        chosen = select_components(available, components, source)
        if not safety_checker:
            chosen = [component for component in chosen if component.name != SAFETY_CHECKER]
        check_static(parsed, chosen)
        planned = []
        for component in chosen:
            backend.check(component)
            estimate = backend.estimate(component, parsed)
            planned.append(
                PlannedComponent(
                    component.name, component.class_name, component.parameters, estimate.disk, estimate.memory
                )
            )
        more = [o.source for o in checkpoint.overlays if o.kind == "task"]
        more += [name for name, _ in checkpoint.techniques]
        usual = DEFAULT_OUTPUT / default_name(source, target, parsed, more)
        return Plan(
            source=source,
            revision=checkpoint.revision,
            variant=variant,
            pipeline_class=checkpoint.pipeline_class,
            target=target,
            output=output or usual,
            options=parsed.model_dump(mode="json"),
            components=planned,
            disk=sum(c.disk for c in planned),
            memory=max(c.memory for c in planned),
            free_disk=free_disk(output or usual),
            free_memory=free_memory(),
            verify=_what_is_verified(chosen, parsed, checkpoint) if verify else [],
            digest=_digest(checkpoint, backend, parsed, chosen),
            overlays=[o.model_dump(mode="json") for o in checkpoint.overlays],
            notes=[
                *checkpoint.notes,
                *notes_of(checkpoint),
                *backend.remarks(checkpoint, parsed),
                *told(checkpoint, available, chosen, backend),
                *baked_note(parsed.sizes(), chosen),
            ],
            techniques=[{"name": name, "options": dict(given)} for name, given in checkpoint.techniques],
            allow_pickle=bool((intake or {}).get("allow_pickle")),
            _checkpoint=checkpoint,
            _components=chosen,
            _target=backend,
            _options=parsed,
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
        option = f"--{name} of target" if first["loc"] else "Target"
        raise UsageError(f"{option} {target.name}: {reason}.") from error


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
        UsageError: A static picture size that the VAE's factor, or a transformer's patches, do not divide; or
            frames that no latents stand for; or a component that is given other lengths from one call to
            the next.
    """
    from exporter.targets.options import size_text

    patch = max((c.multiple for c in components if c.name == "transformer"), default=1)
    for component in components if options.sizes() else ():
        if component.varying:
            raise UsageError(
                f"--static: the {component.name} of a {component.checkpoint.pipeline_class} is given prompts "
                "of several lengths, of which one would be baked.",
                hint="Leave out --static, or the component, by naming the others with --component.",
            )
    for static in options.sizes() if components else ():
        batch, height, width, *frames = static
        check_baked(static, components)
        factor = components[0].native.factor * patch
        if height % factor or width % factor:
            nearest = (batch, _round(height, factor), _round(width, factor), *frames)
            raise UsageError(
                f"--static {size_text(static)}: height and width must be multiples of {factor}.",
                hint=f"Try {'x'.join(map(str, nearest))}.",
            )


def _round(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)


def default_name(source: str, target: str, options: Options, more: Sequence[str] = ()) -> str:
    """`shapes-onnx`, `shapes-onnx-float16-1x128x128`, `shapes-onnx-deep-cache` …"""
    base = source.removeprefix("builtin:").rstrip("/").split("/")[-1] or "model"
    for suffix in (".safetensors", ".ckpt"):
        base = base.removesuffix(suffix)
    parts = [base, target]
    if options.dtype != type(options).model_fields["dtype"].default:
        parts.append(options.dtype)
    weights = getattr(options, "weights", None)
    if weights:
        parts += [weights, *(["sym"] if getattr(options, "symmetric", None) else [])]
    if getattr(options, "activations", None):
        parts.append("activations")
    parts += more
    parts += ["x".join(map(str, size)) for size in options.sizes()]
    return "-".join(parts)


def _what_is_verified(components: list[Component], options: Options, checkpoint: Checkpoint) -> list[str]:
    lines = [f"{c.name} against PyTorch in float32, limit by a float64 truth" for c in components]
    if getattr(options, "weights", None):
        lines.append("every integer is the nearest to its weight; the graph computes with those integers")
        lines.append("outputs and pictures against the unquantised model, by a stated limit in dB")
    if getattr(options, "activations", None):
        lines.append("the range of every rounded activation is what its calibration gives")
    if options.static is None:
        lines.append("every dynamic dimension at sizes the export did not trace")
    if len(options.sizes()) > 1:
        lines.append(f"all of that at each of the {len(options.sizes())} sizes")
    if len(components) > 1:
        lines.append("whole pipeline: final picture and error after every step")
    if checkpoint.techniques:
        names = ", ".join(name for name, _ in checkpoint.techniques)
        lines.append(f"all of that against PyTorch with {names}, whose own loss is measured beside it")
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
        "techniques": [(name, dict(given)) for name, given in checkpoint.techniques],
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
