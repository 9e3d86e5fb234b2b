"""What the suite knows of one format: where weights lie, which faults its files can be given, how.

A further format is one `Format` in a module of its own here, named in `__init__.py`. A target that is
registered with exporter and has none is still covered by what needs no knowledge of its files
(`plain`). A compressed form of a format (`--weights int8`) is `dataclasses.replace` of that format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from exporter.artifact import Artifact, ComponentRecord

if TYPE_CHECKING:
    from tests.mutation.blob import Blob
    from tests.mutation.workshop import Workshop

Edit = Callable[["Workshop", Path], None]
"""Changes a copy of an artifact (its root is given) that holds one component."""


@dataclass(frozen=True)
class Format:
    """One column of the table.

    Attributes:
        name: Unique; the target's name, or that with a form behind it (`onnx-int8`).
        title: For people.
        target: `--to`.
        options: Of the honest artifact that faults are planted into.
        edits: Fault → how it is planted into the files. Takes precedence over the exporter's capture.
        blobs: The stored tensors of a component's folder; None where nobody has written that down.
        captures: Whether the exporter captures a module, so that a wrong patch can be planted there.
        graph: Suffixes of the files that hold the graph and no weights; empty where one file is both.
        whole: A component opens only with the artifact's other files around it.
        honest: Options of honest conversions.
        folded: Faults whose module's own value is a constant there, so that its parent is named.
        excluded: Fault → why it cannot be made there.
        floors_from: The format whose honest artifact lends the limits that faults are sized by: a compressed
            one has limits of its own.
    """

    name: str
    title: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    edits: Mapping[str, Edit] = field(default_factory=dict)
    blobs: Callable[[Path], list[Blob]] | None = None
    captures: bool = True
    graph: tuple[str, ...] = ()
    whole: bool = False
    honest: Sequence[Mapping[str, Any]] = ({},)
    folded: frozenset[str] = frozenset()
    excluded: Mapping[str, str] = field(default_factory=dict)
    floors_from: str = "onnx"


FORMATS: dict[str, Format] = {}


def register(known: Format) -> Format:
    FORMATS[known.name] = known
    return known


def folder_of(record: ComponentRecord) -> str:
    """A component's folder in its artifact: that of its entry; a Core ML package is one itself."""
    return (
        record.entry if record.entry.endswith(".mlpackage") else PurePosixPath(record.entry).parent.as_posix()
    )


def part(root: Path) -> Path:
    """The folder of the only component of a copy."""
    return root / folder_of(Artifact.open(root).manifest.components[0])


def at(root: Path) -> Format:
    """The format of an artifact's files; its plain form, if it is compressed."""
    from tests.mutation.formats import format_of

    return format_of(Artifact.open(root).manifest.target)


def blobs(root: Path) -> list[Blob]:
    """The stored tensors of the only component of a copy.

    Raises:
        LookupError: Nobody has written down where this format has them.
    """
    known = at(root)
    if known.blobs is None:
        raise LookupError(f"where {known.name} keeps its weights is not known")
    return known.blobs(part(root))
