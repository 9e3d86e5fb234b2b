"""The artifact: a folder on disk with a manifest that describes and hashes every byte.

Written to a staging folder beside the destination, one component at a time, each marked
complete with its hashes, and renamed into place at the end; see `Staging`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import ArtifactError
from exporter.hashing import sha256_of, sha256_of_all

MANIFEST = "exporter.json"
SCHEMA_VERSION = 1
SAFETENSORS = ".safetensors"
MAX_MANIFEST = 64_000_000
MAX_NAME = 200
"""Characters of one part of a path; file systems take 255 bytes."""

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Record(BaseModel):
    """Base of everything in the manifest: unknown fields are errors, so typing mistakes show."""

    model_config = ConfigDict(extra="forbid")


class FileRecord(Record):
    """One file: POSIX path relative to the artifact (or checkpoint) root, sha256 hex, bytes."""

    path: str
    sha256: str
    bytes: int


class TensorRecord(Record):
    """One input or output: numpy dtype name, dims as sizes or symbols (`batch`, `latent_height`)."""

    name: str
    dtype: str
    dims: list[int | str]


Baked = tuple[int, int, int] | tuple[int, int, int, int]
"""`(pictures, height, width)` in pixels, and of a video model the frames."""


class SizeRecord(Record):
    """One of several sizes that a component was baked for.

    Attributes:
        static: `(pictures, height, width)` in pixels, and of a video model the frames.
        entry: The file a runtime opens for it. Sizes whose shapes are equal share one.
        function: Which part of the file, where one file holds several sizes (Core ML).
    """

    static: Baked
    entry: str
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    function: str | None = None


class ComponentRecord(Record):
    """One exported component.

    Attributes:
        name: `unet`, `text_encoder`, …
        entry: The file a runtime opens, relative to the artifact root.
        files: Every file of the component with its hash.
        parameters: Number of weights.
        dtype: Dtype the weights are stored in.
        seconds: Export time.
        details: What the target wants to remember (opset, precision hint, quantisation, …).
        sizes: Every size it was baked for, where there are several; `entry` is the first one's.
    """

    name: str
    entry: str
    files: list[FileRecord]
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    parameters: int
    dtype: str
    seconds: float = 0.0
    details: dict[str, Any] = Field(default_factory=dict)
    sizes: list[SizeRecord] = Field(default_factory=list)

    def at(self, static: Baked) -> ComponentRecord:
        """The record of one of its sizes; itself where it has only one."""
        found = next((size for size in self.sizes if size.static == static), None)
        if found is None:
            return self
        same = {"entry": found.entry, "inputs": found.inputs, "outputs": found.outputs}
        details = self.details | ({"function": found.function} if found.function else {})
        return self.model_copy(update={**same, "details": details})


class OverlayRecord(Record):
    """Something laid over the source before the export.

    Attributes:
        kind: `lora`, `vae`, `textual_inversion`, `scheduler`, `controlnet`, `ip_adapter` or `task`.
        source: As the user named it: a file, a folder, a Hub id, the name of a scheduler or a task.
        scale: Of a LoRA.
        files: What it was read from, with hashes; paths relative to the source (a file: its name).
        details: What else is worth remembering (the tokens of a textual inversion …).
    """

    kind: Literal["lora", "vae", "textual_inversion", "scheduler", "controlnet", "ip_adapter", "task"]
    source: str
    scale: float | None = None
    files: list[FileRecord] = Field(default_factory=list)
    details: dict[str, Any] = Field(default_factory=dict)


class SourceRecord(Record):
    """Where the weights came from.

    Attributes:
        config / tokenizer: Folders that told what a single file does not (`--config`, `--tokenizer`).
        base: Checkpoint that gave the parts a single file lacks (`--base`); its weights are among `files`.
        pickle: The source is a pickle, opened because the user asked for it.
        overlays: What was laid over it, in order.
        notes: What was assumed or left out.
    """

    source: str
    revision: str | None = None
    variant: str | None = None
    pipeline_class: str
    files: list[FileRecord] = Field(default_factory=list)
    config: str | None = None
    tokenizer: str | None = None
    base: str | None = None
    pickle: bool = False
    overlays: list[OverlayRecord] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class TechniqueRecord(Record):
    """An acceleration technique that the artifact carries (`exporter.techniques`), with all its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class PeakRecord(Record):
    """The value of a component that came closest to what its dtype holds (`targets.base.Peak`)."""

    value: str
    operation: str
    module: str | None = None
    peak: float | None
    limit: float | None = None


class VerificationRecord(Record):
    """The last verdict. Valid only for the bytes whose hashes stand in the manifest.

    Attributes:
        digest: `Manifest.digest()` at the time of verification: any later change voids it.
        peaks: By component, of its run in the lowest precision; only of formats that show their values.
            A `peak` of None was not finite.
    """

    verdict: Verdict
    report: str | None = None
    when: str
    digest: str
    summary: str = ""
    components: dict[str, Verdict] = Field(default_factory=dict)
    peaks: dict[str, PeakRecord] = Field(default_factory=dict)


class Manifest(Record):
    """`exporter.json`."""

    kind: Literal["exporter-artifact"] = "exporter-artifact"
    schema_version: int = SCHEMA_VERSION
    created: str = Field(default_factory=lambda: now())
    target: str
    source: SourceRecord
    options: dict[str, Any] = Field(default_factory=dict)
    techniques: list[TechniqueRecord] = Field(default_factory=list)
    recipe: dict[str, Any] | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    components: list[ComponentRecord] = Field(default_factory=list)
    shared_files: list[FileRecord] = Field(default_factory=list)
    verification: VerificationRecord | None = None
    verification_skipped: bool = False

    def all_files(self) -> list[FileRecord]:
        """Each file once, though two components may share one (a VAE's halves, in safetensors)."""
        files = [f for c in self.components for f in c.files] + self.shared_files
        return list({(f.path, f.sha256): f for f in files}.values())

    def digest(self) -> str:
        """sha256 over the sorted (path, sha256) pairs of all files: the identity of the bytes."""
        pairs = sorted((f.path, f.sha256) for f in self.all_files())
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def sizes(self) -> list[Baked]:
        """Every size it was baked for, where there are several."""
        return list(dict.fromkeys(size.static for c in self.components for size in c.sizes))

    def at(self, static: Baked) -> Manifest:
        """As if it had been baked for one of its sizes only."""
        options = {**self.options, "static": list(static), "more_sizes": []}
        return self.model_copy(
            update={"options": options, "components": [c.at(static) for c in self.components]}
        )

    def component(self, name: str) -> ComponentRecord:
        """
        Raises:
            ArtifactError: No such component.
        """
        for record in self.components:
            if record.name == name:
                return record
        have = ", ".join(c.name for c in self.components)
        raise ArtifactError(f"The artifact has no component {name!r}; it has: {have}.")


class Artifact:
    """An artifact on disk.

    Attributes:
        root: Its folder.
        manifest: The validated `exporter.json`.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read the manifest of a folder.

        Raises:
            ArtifactError: No folder, no manifest, a newer schema, or a manifest that does not
                validate or points outside its folder.
        """
        root = Path(path).expanduser()
        manifest_path = root / MANIFEST
        if not root.is_dir():
            raise ArtifactError(f"There is no artifact folder at {path}.")
        if not manifest_path.is_file():
            raise ArtifactError(
                f"{path} has no {MANIFEST}, so it was not made by exporter.",
                hint="Make one with `exporter convert SOURCE --to onnx -o DIR`.",
            )
        try:
            if manifest_path.stat().st_size > MAX_MANIFEST:
                raise ArtifactError(f"{manifest_path} has too many bytes for a manifest.")
            data = json.loads(manifest_path.read_text(encoding="utf-8"))
            version = data.get("schema_version") if isinstance(data, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise ArtifactError(
                    f"{path} was written by a newer exporter (manifest schema {version}, this one reads "
                    f"up to {SCHEMA_VERSION}).",
                    hint="Update exporter.",
                )
            manifest = Manifest.model_validate(data)
        except (OSError, ValueError, ValidationError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise ArtifactError(f"{manifest_path} is not a valid manifest: {first}.") from error
        for file in manifest.all_files():
            check_inside(file.path)
        for component in manifest.components:
            for entry in (component.entry, *(size.entry for size in component.sizes)):
                check_inside(entry)
        return cls(root, manifest)

    def path(self, relative: str) -> Path:
        """A path of the manifest as a path on this disk, refused if it leaves the folder."""
        check_inside(relative)
        return self.root / relative

    def save(self) -> None:
        """Write the manifest atomically."""
        write_text_atomic(self.root / MANIFEST, self.manifest.model_dump_json(indent=2) + "\n")

    def changed_files(self) -> list[str]:
        """Re-hash every file, several at once; the paths that are missing or differ from the manifest."""
        files = self.manifest.all_files()
        paths = {file.path: self.path(file.path) for file in files}
        # Of the right size; what is not need not be read.
        whole = list({file.path for file in files if _size(paths[file.path]) == file.bytes})
        found = dict(zip(whole, sha256_of_all([paths[name] for name in whole]), strict=True))
        return [file.path for file in files if found.get(file.path) != file.sha256] + self.added_files()

    def added_files(self) -> list[str]:
        """Weights and indices that lie beside listed weights and are not listed themselves. The libraries
        look for an index first, so one that is added decides what they load."""
        listed = {file.path for file in self.manifest.all_files()}
        folders = {self.path(path).parent for path in listed if path.endswith(SAFETENSORS)}
        beside = [p for folder in folders if folder.is_dir() for p in folder.iterdir() if _decides(p.name)]
        return sorted({p.relative_to(self.root).as_posix() for p in beside} - listed)

    def verified(self, *, rehash: bool = False) -> Verdict | None:
        """The recorded verdict if it still speaks of these bytes, else None (unverified).

        Args:
            rehash: Also read and hash every file (`python -m tests.benchmarks.check_hashes` tells how long
                that takes); otherwise sizes are compared.
        """
        record = self.manifest.verification
        if record is None or record.digest != self.manifest.digest():
            return None
        if rehash:
            return None if self.changed_files() else record.verdict
        return None if self.other_sizes() else record.verdict

    def other_sizes(self) -> list[str]:
        """Files that are missing, of another size, or added (`added_files`); nothing is read."""
        files = self.manifest.all_files()
        return [file.path for file in files if _size(self.path(file.path)) != file.bytes] + self.added_files()


def check_inside(relative: str) -> None:
    """Refuse a path that is absolute or climbs out of its folder.

    Raises:
        ArtifactError: It does.
    """
    pure = PurePosixPath(relative)
    bad = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in relative
    bad = bad or "\0" in relative or ":" in pure.parts[0] or max(map(len, pure.parts)) > MAX_NAME
    if bad or not relative.isprintable():
        raise ArtifactError(f"The manifest names a path outside the artifact ({relative!r}); refused.")


def _decides(name: str) -> bool:
    """Whether a file of that name, beside weights, may decide which of them are loaded."""
    return name.endswith(SAFETENSORS) or (name.endswith(".json") and ".index." in name)


def _size(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def hash_file(
    path: Path, root: Path, digest: Future[str] | None = None, stop: Event | None = None
) -> FileRecord:
    """The record of one file below `root`; `digest` is its hash, where that is known or being taken, and
    `stop` as in `sha256_of`."""
    sha256 = sha256_of(path, stop) if digest is None else digest.result()
    return FileRecord(path=path.relative_to(root).as_posix(), sha256=sha256, bytes=path.stat().st_size)


def hash_files(
    paths: Iterable[Path], root: Path, digests: Mapping[Path, Future[str]] | None = None
) -> list[FileRecord]:
    return [hash_file(path, root, (digests or {}).get(path)) for path in sorted(paths)]


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def now() -> str:
    """UTC time as ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
