"""`verify`: judge an artifact on disk against its PyTorch reference, step by step, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exporter.artifact import Artifact
from exporter.parity.job import Job
from exporter.parity.schema import (
    Report,
    Settings,
    SizeReport,
)
from exporter.progress import NullProgress, Progress
from exporter.threads import threads

if TYPE_CHECKING:
    from exporter.targets.base import PrecisionHint


def verify(
    artifact: str | Path | Artifact,
    *,
    against: str | None = None,
    k: float = 4.0,
    prompts: Sequence[str] | None = None,
    steps: int = 8,
    samples: int = 4,
    seed: int = 0,
    components: Sequence[str] | None = None,
    precision_hint: PrecisionHint | None = None,
    pipeline: bool = True,
    bisect: bool = True,
    min_sqnr: float | None = None,
    min_psnr: float | None = None,
    report_dir: Path | str | None = None,
    shown_path: str | None = None,
    cache: Path | Literal["user"] | None = "user",
    allow_pickle: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Judge an artifact.

    A folder without a manifest of ours (an optimum export) is judged too when `against` is given;
    nothing but the report is then written. Otherwise it writes `report.json`, `report.html`, the
    captured inputs and pictures, and records the verdict in the manifest.

    Args:
        artifact: The folder, or `org/name` of one that was published on the Hub.
        against: The reference checkpoint; None takes the source in the manifest.
        k: Allowed error in multiples of PyTorch's own at the artifact's precision.
        prompts: Of the reference run.
        steps: Scheduler steps of the reference run.
        samples: Denoising steps per prompt whose inputs are replayed.
        seed: Of the noise.
        components: Only these; the artifact's recorded verdict is then left as it is, except by a FAIL.
        precision_hint: How the artifact is run, for runtimes that choose their arithmetic. None
            judges the graph under `f32` and then as the artifact will be run by default.
        pipeline: Also paint whole pictures.
        bisect: Look for the first bad module of a component that fails.
        min_sqnr / min_psnr: Of quantised artifacts: what every output and every picture must reach against
            the unquantised model, in dB; None is the default of the scheme (`stated.STATED`).
        report_dir: Where the report goes; `verification` in the artifact when None.
        shown_path: The artifact's path as the report should show it.
        cache: Folder for truths and floors; `user` is the user's cache, None keeps nothing.
        allow_pickle: Open a reference that is a pickle, as for `convert`.
        trust: Open an artifact that is a program (TorchScript, .pt2) although it was not made here.
        progress: Told what is going on.

    Raises:
        ArtifactError: The artifact is damaged or changed, or the reference is not what it was made from.
        UntrustedArtifact: It is a program of unknown origin, and `trust` is off.
        CheckpointError: The reference cannot be read.
        UsageError: A setting makes no sense.
        BackendMissing: The target's runtime is not installed.
    """
    from exporter.checkpoints.published import artifact_folder
    from exporter.parity.foreign import describe, has_manifest
    from exporter.parity.sizes import as_part, further
    from exporter.parity.unchecked import is_compiled, unjudged

    shown_path = shown_path or str(artifact.root if isinstance(artifact, Artifact) else artifact)
    if not isinstance(artifact, Artifact):
        artifact = artifact_folder(artifact, progress=progress)
        if is_compiled(artifact):
            return unjudged(artifact, shown_path, Path(report_dir) if report_dir is not None else None)
    ours = isinstance(artifact, Artifact) or has_manifest(artifact)
    if isinstance(artifact, Artifact):
        opened = artifact
    elif ours:
        opened = Artifact.open(artifact)
    else:
        opened = describe(artifact, against, components)

    def job(view: Artifact, folder: Path | None, record: bool) -> Job:
        return Job(
            view,
            Settings(
                k=k,
                prompts=list(prompts or ()),
                steps=steps,
                samples=samples,
                seed=seed,
                components=list(components) if components is not None else None,
                precision_hint=precision_hint,
                pipeline=pipeline,
                bisect=bisect,
                min_sqnr=min_sqnr,
                min_psnr=min_psnr,
            ),
            against=against,
            report_dir=folder,
            shown_path=shown_path,
            record=record,
            cache=cache,
            allow_pickle=allow_pickle,
            trust=trust,
            progress=progress or NullProgress(),
        )

    def run(each: Job, sizes: Sequence[SizeReport] = ()) -> Report:
        with each.scratch:
            return each.run(sizes)

    first = job(opened, Path(report_dir) if report_dir is not None else None, ours)
    with threads(first.threads):
        parts = [as_part(n, run(job(v, first.folder / n, False))) for n, v in further(opened)]
        return run(first, parts)
