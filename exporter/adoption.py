"""Components that other processes have converted, taken into an artifact as they are.

A part is an artifact of some of the components (`convert(…, part=True)`), without what belongs to none of
them. The conversion that adopts it reads every byte again, and goes on as if it had written the files itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import Artifact, ComponentRecord, FileRecord, TechniqueRecord
from exporter.errors import ArtifactError, ExporterError
from exporter.planning import Plan, tool_versions
from exporter.trust import remember

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.checkpoints import Checkpoint
    from exporter.staging import Staging


class PartRefused(ArtifactError):
    """A part is damaged, or was made of another source or by other tools.

    Attributes:
        part: Its folder.
    """

    def __init__(self, part: Path, why: str) -> None:
        super().__init__(
            f"The part {part.name} {why}, so it is not taken.",
            hint="Run the same command again: the part is made anew. All machines need the same versions.",
        )
        self.part = part


def own_files(checkpoint: Checkpoint, components: Sequence[Component]) -> list[FileRecord]:
    """Hashes of what some components are read from; of the whole source where folders do not tell that."""
    from exporter.checkpoints import Checkpoint

    if type(checkpoint) is not Checkpoint:
        return checkpoint.files
    return checkpoint.files_of({component.folder for component in components})


def adopt(
    parts: Sequence[Path], plan: Plan, source: Sequence[FileRecord], staging: Staging
) -> dict[str, ComponentRecord]:
    """Take the components of parts into a staging folder, each marked complete.

    Args:
        parts: Their folders.
        plan: Of the artifact that takes them.
        source: Hashes of its source as this process sees it.

    Returns:
        What was taken, by name. `Staging.completed` still has to find the hashes true.

    Raises:
        PartRefused: A part is not what this plan would make.
    """
    taken: dict[str, ComponentRecord] = {}
    known = {(file.path, file.sha256) for file in source}
    for part in parts:
        try:
            artifact = Artifact.open(part)
        except ExporterError as error:
            raise PartRefused(part, f"cannot be opened ({error.message.rstrip('.')})") from error
        other = _differences(artifact, plan, known)
        if other:
            raise PartRefused(part, f"was made otherwise (other {', '.join(other)})")
        for record in artifact.manifest.components:
            staging.adopt(artifact, record)
            if plan._target.executable:
                remember(record)
            taken[record.name] = record
    return taken


def check_taken(parts: Sequence[Path], taken: Mapping[str, ComponentRecord], whole: Collection[str]) -> None:
    """After their bytes were read: every component that was taken is whole.

    Raises:
        PartRefused: Its files differ from their hashes.
    """
    for part in parts:
        names = [record.name for record in Artifact.open(part).manifest.components]
        lost = [name for name in names if name in taken and name not in whole]
        if lost:
            raise PartRefused(part, f"is damaged: files of {lost[0]} differ from their hashes")


def left(plan: Plan, taken: Collection[str]) -> Plan:
    """The plan with only what is still to be exported counted: what was taken lies on the disk already."""
    if not taken:
        return plan
    rest = [component for component in plan.components if component.name not in taken]
    return replace(plan, disk=sum(c.disk for c in rest), memory=max((c.memory for c in rest), default=0))


def _differences(artifact: Artifact, plan: Plan, source: Collection[tuple[str, str]]) -> list[str]:
    manifest, names = artifact.manifest, {component.name for component in plan.components}
    same = {
        "target": manifest.target == plan.target,
        "options": manifest.options == plan.options,
        "techniques": manifest.techniques == [TechniqueRecord.model_validate(t) for t in plan.techniques],
        "tools": manifest.tools == tool_versions(),
        "revision": manifest.source.revision == plan.revision,
        "overlays": manifest.source.overlays == list(plan._checkpoint.overlays),
        "source files": all((file.path, file.sha256) in source for file in manifest.source.files),
        "components": all(record.name in names for record in manifest.components),
    }
    return [name for name, equal in same.items() if not equal]
