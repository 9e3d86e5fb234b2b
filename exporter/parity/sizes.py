"""The further sizes of an artifact that was baked for several: each is judged like one of its own."""

from __future__ import annotations

from pathlib import Path

from exporter.artifact import Artifact, Baked, Verdict
from exporter.errors import ArtifactError
from exporter.parity.schema import REPORT_NAME, Report, SizeReport


def name_of(static: Baked) -> str:
    """`1x512x512`: of a size's folder in the report's."""
    return "x".join(map(str, static))


def further(artifact: Artifact) -> list[tuple[str, Artifact]]:
    """Name and view of every size after the first: the same files and digest, other entries."""
    sizes = artifact.manifest.sizes()[1:]
    return [(name_of(size), Artifact(artifact.root, artifact.manifest.at(size))) for size in sizes]


def as_part(name: str, report: Report) -> SizeReport:
    """What the first size's report keeps of another's."""
    return SizeReport(
        static=name,
        verdict=report.verdict,
        summary=report.summary,
        report=f"{name}/{REPORT_NAME}",
        components={c.name: c.verdict for c in report.components},
    )


def judged_again(
    folder: Path, part: SizeReport, k: float, min_sqnr: float | None = None, min_psnr: float | None = None
) -> SizeReport:
    """The stored report of a size under other limits; INCONCLUSIVE where it is not there."""
    from exporter.parity.verdict import judge

    try:
        return as_part(part.static, judge(Report.load(folder / part.static), k, min_sqnr, min_psnr))
    except ArtifactError as error:
        lost: Verdict = "INCONCLUSIVE"
        return part.model_copy(update={"verdict": lost, "summary": error.message})
