"""How two artifacts, or an artifact and a checkpoint, differ: from manifests, headers and reports alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from exporter.artifact import Artifact, ComponentRecord
from exporter.errors import UsageError
from exporter.inspection import is_artifact
from exporter.techniques import spelled

if TYPE_CHECKING:
    from exporter.checkpoints import Checkpoint


class Entry(BaseModel):
    """One difference.

    Attributes:
        area: `source`, `option`, `tool`, `component`, `file`, `tensor`, `verdict` or `metric`.
        what: Which one, for instance `unet` or `dtype`.
        a / b: On either side, as JSON values; None where it is not there.
    """

    area: str
    what: str
    a: Any = None
    b: Any = None


class Difference(BaseModel):
    """Everything that differs, in a fixed order; empty `entries` mean that nothing does."""

    a: str
    b: str
    entries: list[Entry] = Field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.entries


@dataclass(frozen=True)
class _Side:
    name: str
    artifact: Artifact | None
    checkpoint: Checkpoint | None


def compare(a: str, b: str) -> Difference:
    """
    Args:
        a / b: Artifacts (folders or Hub ids); one of them may be a checkpoint.

    Raises:
        UsageError: Both are checkpoints.
        ArtifactError, CheckpointError, NetworkError: One of them cannot be read.
    """
    left, right = _open(a), _open(b)
    entries: Iterator[Entry]
    if left.artifact is not None and right.artifact is not None:
        entries = _artifacts(left.artifact, right.artifact)
    elif left.artifact is not None and right.checkpoint is not None:
        entries = _with_checkpoint(left.artifact, right.checkpoint)
    elif right.artifact is not None and left.checkpoint is not None:
        turned = _with_checkpoint(right.artifact, left.checkpoint)
        entries = (Entry(area=e.area, what=e.what, a=e.b, b=e.a) for e in turned)
    else:
        raise UsageError(f"{a} and {b} are both checkpoints; at least one has to be an artifact.")
    return Difference(a=a, b=b, entries=list(entries))


def _open(source: str) -> _Side:
    from exporter.checkpoints import resolve
    from exporter.checkpoints.published import local_folder

    folder = local_folder(source)
    if folder is not None and is_artifact(folder):
        return _Side(source, Artifact.open(folder), None)
    return _Side(source, None, resolve(source))


def _artifacts(a: Artifact, b: Artifact) -> Iterator[Entry]:
    one, two = a.manifest, b.manifest
    for name in ("source", "revision", "variant", "pipeline_class"):
        yield from _value("source", name, getattr(one.source, name), getattr(two.source, name))
    yield from _hashes("source", _by_path(one.source.files), _by_path(two.source.files))
    yield from _value("target", "target", one.target, two.target)
    yield from _mapping("option", one.options, two.options)
    carried = [" ".join(spelled(t.name, t.options) for t in m.techniques) for m in (one, two)]
    yield from _value("option", "techniques", *carried)
    yield from _mapping("tool", one.tools, two.tools)
    left, right = ({c.name: c for c in m.components} for m in (one, two))
    for name in dict.fromkeys([*left, *right]):
        if name not in left or name not in right:
            yield Entry(area="component", what=name, a=name in left, b=name in right)
        else:
            yield from _components(left[name], right[name])
    yield from _hashes("file", _by_path(one.shared_files), _by_path(two.shared_files))
    yield from _value("verdict", "whole", a.verified(), b.verified())
    yield from _mapping("metric", _metrics(a), _metrics(b))


def _components(a: ComponentRecord, b: ComponentRecord) -> Iterator[Entry]:
    for name in ("dtype", "parameters"):
        yield from _value("component", f"{a.name}.{name}", getattr(a, name), getattr(b, name))
    for kind in ("inputs", "outputs"):
        one, two = ({t.name: f"{t.dtype} {t.dims}" for t in getattr(c, kind)} for c in (a, b))
        yield from _mapping("tensor", one, two, prefix=f"{a.name}.{kind}.")
    yield from _mapping("component", a.details, b.details, prefix=f"{a.name}.")
    yield from _hashes("file", _by_path(a.files), _by_path(b.files))


def _with_checkpoint(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[Entry]:
    """The artifact on the left, what the checkpoint is today on the right."""
    source = artifact.manifest.source
    yield from _value("source", "pipeline_class", source.pipeline_class, checkpoint.pipeline_class)
    if source.revision and checkpoint.revision:
        yield from _value("source", "revision", source.revision, checkpoint.revision)
    yield from _hashes("source", _by_path(source.files), _by_path(checkpoint.files))
    from exporter.architectures import components_of

    there = {c.name: c for c in components_of(checkpoint)}
    converted = {c.name: c for c in artifact.manifest.components}
    for name in dict.fromkeys([*there, *converted]):
        if name not in there or name not in converted:
            yield Entry(area="component", what=name, a=name in converted, b=name in there)
            continue
        stored = there[name].weights.values()
        dtypes = sorted({tensor.torch_dtype for tensor in stored}, key=str)
        words = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        yield from _value("component", f"{name}.dtype", converted[name].dtype, words)
        yield from _value(
            "component", f"{name}.parameters", converted[name].parameters, there[name].parameters
        )


def _metrics(artifact: Artifact) -> dict[str, float]:
    """Component → largest error ÷ limit, from the stored report."""
    from exporter.card import stored_report

    report = stored_report(artifact)
    if report is None:
        return {}
    return {c.name: round(c.worst.ratio, 4) for c in report.components if c.worst is not None}


def _by_path(files: Any) -> dict[str, str]:
    return {file.path: file.sha256 for file in files}


def _hashes(area: str, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Entry]:
    short = ({path: sha256[:16] for path, sha256 in side.items()} for side in (a, b))
    yield from _mapping(area, *short)


def _mapping(area: str, a: Mapping[str, Any], b: Mapping[str, Any], *, prefix: str = "") -> Iterator[Entry]:
    for name in dict.fromkeys([*a, *b]):
        yield from _value(area, f"{prefix}{name}", a.get(name), b.get(name))


def _value(area: str, what: str, a: Any, b: Any) -> Iterator[Entry]:
    if a != b:
        yield Entry(area=area, what=what, a=a, b=b)


__all__ = ["Difference", "Entry", "compare"]
