"""What a checkpoint or an artifact holds, read from headers and manifests; no weight is loaded.

Works for families that cannot be converted too: their components are listed by folder. A part
that is damaged is listed with its problem instead of hiding the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from exporter.artifact import MANIFEST, Artifact, TensorRecord, Verdict
from exporter.errors import ArtifactError, CheckpointError, ExporterError, UsageError
from exporter.techniques import spelled

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint, StoredTensor

NUMPY_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Safetensors' dtype names as numpy and PyTorch write them."""


class InspectedComponent(BaseModel):
    """One component.

    Attributes:
        name: As in artifacts (`vae_decoder`), or the folder's name in an unknown family.
        class_name: The library's class; None in an artifact, which does not record it.
        parameters: Number of stored weights; None where they cannot be read.
        dtypes: Stored dtype → number of weights in it.
        bytes: Bytes of the weights (checkpoint) or of the files (artifact).
        inputs / outputs: With dtype and dims; empty in an unknown family.
        entry: The file a runtime opens (artifact).
        problem: Why it cannot be used, in one sentence, or None.
    """

    name: str
    class_name: str | None = None
    parameters: int | None = None
    dtypes: dict[str, int] = Field(default_factory=dict)
    bytes: int | None = None
    inputs: list[TensorRecord] = Field(default_factory=list)
    outputs: list[TensorRecord] = Field(default_factory=list)
    entry: str | None = None
    problem: str | None = None


class HashState(BaseModel):
    """Whether a verdict still speaks of the bytes on disk.

    Attributes:
        verdict: The recorded verdict if it holds, else None: unverified.
        recorded: What the manifest says, whether or not it still holds.
        changed: Files that are missing or differ from the manifest.
        rehashed: Every file was read and hashed; otherwise only sizes were compared.
        when: UTC time of the recorded verdict.
        sentence: All of it in words.
    """

    verdict: Verdict | None
    recorded: Verdict | None
    changed: list[str]
    rehashed: bool
    when: str | None = None
    sentence: str


class Inspection(BaseModel):
    """A checkpoint or an artifact.

    Attributes:
        kind: `checkpoint` or `artifact`.
        source: As it was asked for; of an artifact its folder.
        made_from: The checkpoint an artifact was made from.
        pipeline_class: The diffusers pipeline.
        convertible: Whether this version has a family for that pipeline (checkpoint).
        tasks: What `--task` may be, the one that it is as it lies first (checkpoint).
        parts: Components without weights (tokenizer, scheduler) → class.
        lacking: Parts that a file does not hold and `--base` could give → in words.
        bytes: Of all components together.
        state: Verification state (artifact).
        techniques: That an artifact carries, as after `--technique`.
        program: Of an artifact that is a program: whether it is opened here.
    """

    kind: str
    source: str
    pipeline_class: str
    revision: str | None = None
    variant: str | None = None
    made_from: str | None = None
    target: str | None = None
    options: dict[str, object] = Field(default_factory=dict)
    techniques: list[str] = Field(default_factory=list)
    tools: dict[str, str] = Field(default_factory=dict)
    created: str | None = None
    convertible: bool | None = None
    tasks: list[str] = Field(default_factory=list)
    components: list[InspectedComponent]
    parts: dict[str, str] = Field(default_factory=dict)
    lacking: dict[str, str] = Field(default_factory=dict)
    bytes: int
    parameters: int
    state: HashState | None = None
    program: str | None = None

    @property
    def problems(self) -> list[str]:
        """One sentence for every component that cannot be used, and for changed files."""
        found = [f"{c.name}: {c.problem}" for c in self.components if c.problem]
        if self.state is not None and self.state.changed:
            found.append(self.state.sentence)
        return found


def inspect(
    source: str, *, revision: str | None = None, variant: str | None = None, **intake: Any
) -> Inspection:
    """Look into a checkpoint or an artifact.

    Args:
        source: A folder with `exporter.json`, the Hub id of a published one, or whatever `convert` takes.
        intake: Of a checkpoint: keyword arguments of `exporter.checkpoints.open_source` (loras, vae …).

    Raises:
        UsageError: Something to be laid over an artifact.
        CheckpointError, ArtifactError: It is not there, or its index cannot be read.
        NetworkError: A Hub id that is not cached, and the Hub cannot be reached.
    """
    from exporter.checkpoints import open_source
    from exporter.checkpoints.published import local_folder

    folder = local_folder(source, revision=revision)
    if folder is not None and is_artifact(folder):
        named = next((name for name, value in intake.items() if value), None)
        if named is not None:
            raise UsageError(f"{source} is an artifact: {named.replace('_', ' ')} is for a checkpoint.")
        return inspect_artifact(Artifact.open(folder))

    return inspect_checkpoint(open_source(source, revision=revision, variant=variant, **intake))


def is_artifact(source: str | Path) -> bool:
    """Whether there is a folder with our manifest."""
    return (Path(source).expanduser() / MANIFEST).is_file()


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """The components of a checkpoint: by its family when there is one, else by folder."""
    from exporter.architectures import FAMILIES
    from exporter.checkpoints.overlays.task import tasks_of

    convertible = checkpoint.pipeline_class in FAMILIES
    components: list[InspectedComponent] = []
    tasks: dict[str, str] = {}
    if convertible:
        try:
            components, tasks = _by_family(checkpoint), tasks_of(checkpoint)
        except (CheckpointError, KeyError, TypeError, ValueError):
            components = []  # a config is missing or malformed: the folders say which
    if not components:
        components = [_folder(checkpoint, name) for name in _model_folders(checkpoint)]
    weights = set(_model_folders(checkpoint))
    parts = {name: cls for name, (_, cls) in checkpoint.component_classes.items() if name not in weights}
    return Inspection(
        kind="checkpoint",
        source=checkpoint.source,
        revision=checkpoint.revision,
        variant=checkpoint.variant,
        pipeline_class=checkpoint.pipeline_class,
        convertible=convertible,
        tasks=sorted(tasks, key=lambda task: tasks[task] != checkpoint.pipeline_class),
        components=components,
        parts=parts,
        lacking=dict(checkpoint.lacking),
        bytes=sum(c.bytes or 0 for c in components),
        parameters=sum(c.parameters or 0 for c in components),
    )


def inspect_artifact(artifact: Artifact, *, rehash: bool = False) -> Inspection:
    """The components of an artifact as its manifest describes them, and whether the verdict holds."""
    manifest = artifact.manifest
    state = hash_state(artifact, rehash=rehash)
    changed = set(state.changed)
    components = []
    for record in manifest.components:
        bad = [file.path for file in record.files if file.path in changed]
        components.append(
            InspectedComponent(
                name=record.name,
                parameters=record.parameters,
                dtypes={record.dtype: record.parameters},
                bytes=sum(file.bytes for file in record.files),
                inputs=record.inputs,
                outputs=record.outputs,
                entry=record.entry,
                problem=f"missing or changed on disk: {', '.join(bad)}" if bad else None,
            )
        )
    return Inspection(
        kind="artifact",
        source=str(artifact.root),
        made_from=manifest.source.source,
        revision=manifest.source.revision,
        variant=manifest.source.variant,
        pipeline_class=manifest.source.pipeline_class,
        target=manifest.target,
        options=dict(manifest.options),
        techniques=[spelled(each.name, each.options) for each in manifest.techniques],
        tools=dict(manifest.tools),
        created=manifest.created,
        components=components,
        bytes=sum(file.bytes for file in manifest.all_files()),
        parameters=sum(record.parameters for record in manifest.components),
        state=state,
        program=program_state(artifact),
    )


def program_state(artifact: Artifact) -> str | None:
    """Of an artifact whose files are programs, whether it is opened here, in a sentence; else None."""
    from exporter.targets import get_target
    from exporter.trust import doubt

    try:
        executable = get_target(artifact.manifest.target, require_backend=False).executable
    except ExporterError:  # a target that is not installed
        return None
    if not executable:
        return None
    why = doubt(artifact.root, artifact.manifest.components, rehash=False)
    if why is None:
        return "It is a program, and was made here."
    return f"It is a program; opening it runs what its author wrote. {why}: it is only opened with --trust."


def trust(source: str, *, rehash: bool = True) -> HashState | None:
    """Whether the artifact at `source` may be trusted; None when it is no artifact.

    Args:
        rehash: Read and hash every file (under a second per gigabyte) instead of comparing sizes.
    """
    from exporter.checkpoints.published import local_folder

    folder = local_folder(source)
    if folder is None or not is_artifact(folder):
        return None
    return hash_state(Artifact.open(folder), rehash=rehash)


@contextmanager
def blame_changes(state: HashState | None) -> Iterator[None]:
    """Turn whatever a library says about a damaged artifact into one sentence that names the damage.

    Raises:
        ArtifactError: Something failed inside, and files of the artifact are missing or changed.
    """
    try:
        yield
    except ExporterError:
        raise
    except Exception as error:
        if state is None or not state.changed:
            raise
        raise ArtifactError(
            f"The artifact could not be run, and its file {state.changed[0]} is missing or changed "
            f"({type(error).__name__}).",
            hint="Restore the artifact, or convert again with --overwrite.",
        ) from error


def hash_state(artifact: Artifact, *, rehash: bool = True) -> HashState:
    """Compare an artifact's files with its manifest and say what its verdict is worth now."""
    record = artifact.manifest.verification
    changed = artifact.changed_files() if rehash else artifact.other_sizes()
    recorded = record.verdict if record is not None else None
    holds = record is not None and not changed and record.digest == artifact.manifest.digest()
    verdict = recorded if holds else None
    if changed:
        count = len(changed)
        files = "1 file is" if count == 1 else f"{count} files are"
        sentence = (
            f"{artifact.root} is unverified: {files} missing, changed or added since it was written "
            f"({changed[0]}{', …' if count > 1 else ''})."
        )
    elif record is None:
        how = " (converted with --no-verify)" if artifact.manifest.verification_skipped else ""
        sentence = f"{artifact.root} has not been verified{how}."
    elif not holds:
        sentence = f"{artifact.root} is unverified: its manifest changed after the verdict {recorded}."
    elif recorded == "PASS":
        sentence = f"{artifact.root} is verified: PASS on {record.when}."
    else:
        sentence = f"{artifact.root} was verified with the verdict {recorded} on {record.when}."
    return HashState(
        verdict=verdict,
        recorded=recorded,
        changed=changed,
        rehashed=rehash,
        when=record.when if record is not None else None,
        sentence=sentence,
    )


def _model_folders(checkpoint: Checkpoint) -> list[str]:
    """Folders that hold (or should hold) weights: those of the libraries' model classes."""
    folders = []
    for name, (library, cls) in checkpoint.component_classes.items():
        folder = checkpoint.root / name
        weightless = cls.endswith(("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "Extractor"))
        if (folder / "config.json").is_file() or (
            not weightless and library in {"diffusers", "transformers"}
        ):
            folders.append(name)
    return folders


def _by_family(checkpoint: Checkpoint) -> list[InspectedComponent]:
    from exporter.architectures import components_of

    return [_component(component) for component in components_of(checkpoint)]


def _component(component: Component) -> InspectedComponent:
    result = InspectedComponent(
        name=component.name,
        class_name=component.class_name,
        inputs=[TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.inputs],
        outputs=[TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.outputs],
    )
    return _with_weights(result, lambda: component.weights.values())


def _folder(checkpoint: Checkpoint, name: str) -> InspectedComponent:
    class_name = checkpoint.component_classes[name][1]
    result = InspectedComponent(name=name, class_name=class_name)

    def weights() -> Iterable[StoredTensor]:
        checkpoint.config(name)  # without it the weights are of no use
        return checkpoint.stored(name).values()

    return _with_weights(result, weights)


def _with_weights(
    result: InspectedComponent, weights: Callable[[], Iterable[StoredTensor]]
) -> InspectedComponent:
    try:
        tensors = list(weights())
    except (CheckpointError, OSError) as error:
        return result.model_copy(update={"problem": getattr(error, "message", str(error))})
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        name = NUMPY_NAMES.get(tensor.dtype, tensor.dtype)
        dtypes[name] = dtypes.get(name, 0) + tensor.numel
    return result.model_copy(
        update={
            "parameters": sum(t.numel for t in tensors),
            "dtypes": dtypes,
            "bytes": sum(t.nbytes for t in tensors),
        }
    )
