"""From a plan to a verified artifact."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import cache
from exporter.adoption import adopt as take
from exporter.adoption import check_taken, left, own_files
from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    FileRecord,
    Manifest,
    SourceRecord,
    TechniqueRecord,
    hash_files,
    write_text_atomic,
)
from exporter.background import aside, on_failure
from exporter.calibration import captured_for
from exporter.float16 import Safety, decide, resized
from exporter.planning import Plan, make_plan, tool_versions
from exporter.progress import NullProgress, Progress
from exporter.staging import Staging, check_destination
from exporter.trust import remember

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.targets import ExportedComponent
    from exporter.targets.base import Calibration


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
        afterwards: What is left to be done on another system, line by line.
        resumed: Components an earlier, interrupted run had finished.
    """

    artifact: Artifact
    verdict: str | None
    summary: str
    report: Path | None
    seconds: float
    resumed: tuple[str, ...] = ()
    verify_seconds: float = 0.0
    afterwards: tuple[str, ...] = ()


def convert(
    plan: Plan,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    verify_settings: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    recipe: Mapping[str, Any] | None = None,
    adopt: Sequence[Path] = (),
    part: bool = False,
) -> Conversion:
    """Carry out a plan: export, write the manifest, verify in a fresh process, move into place.

    Args:
        overwrite: Replace an artifact that stands at the destination.
        verify_settings: Keyword arguments of `exporter.parity.verify` (k, steps, samples …).
        recipe: Kept in the manifest, so that the artifact can be made again from it.
        use_cache: Take graphs from, and keep them in, the user's cache; the bytes written are the same.
        adopt: Folders of parts whose components are taken as they are (`exporter.adoption`).
        part: Make such a part: without scheduler, tokenizers and whatever else belongs to no component.

    Raises:
        PartRefused: A part is damaged, or not what this plan would make.
        DestinationError: The destination exists, cannot be written, or is being written.
        ResourceError: Not enough disk or memory.
        UnsupportedError: Part of the model has no route; finished components are kept for a retry.
    """
    report_progress = progress or NullProgress()
    started = time.monotonic()
    with on_failure(plan._checkpoint.stop_hashing):
        check_destination(plan.output, overwrite=overwrite)
        if not adopt:
            plan.check_resources()
        with Staging(plan.output, plan.digest, overwrite=overwrite) as staging:
            hashed = aside(lambda: _source_files(plan, part))
            taken = take(adopt, plan, hashed.result(), staging) if adopt else {}
            chosen = decide(plan, verify_settings or {}, report_progress)
            left(resized(plan, chosen), taken).check_resources()
            calibration = captured_for(plan, staging.completed, report_progress)
            with cache.off(not use_cache):
                whole = _complete_groups(plan._components, staging)
                check_taken(adopt, taken, whole)
                records, resumed = _export_all(plan, chosen, calibration, staging, whole, report_progress)
            notes = [safety.note for safety in chosen.values() if safety.note is not None]
            shared = [] if part else _finish(plan, staging.root)
            manifest = Manifest(
                target=plan.target,
                source=_source_record(plan, hashed, notes, report_progress),
                options=plan.options,
                techniques=[TechniqueRecord.model_validate(each) for each in plan.techniques],
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
        afterwards=tuple(plan._target.afterwards(manifest)),
    )


def _export_all(
    plan: Plan,
    chosen: Mapping[str, Safety],
    calibration: Calibration | None,
    staging: Staging,
    whole: Mapping[str, ComponentRecord],
    progress: Progress,
) -> tuple[list[ComponentRecord], list[str]]:
    """Export what is not complete. A component is hashed and flushed while the next one is being exported;
    also when that one fails: leaving the executor waits."""
    records: list[Future[ComponentRecord]] = []
    resumed = []
    waiting: dict[str, tuple[Component, ExportedComponent, float]] = {}  # for those that go beside it
    digests: dict[Path, Future[str]] = {}  # of all so far: two components may share files
    with ThreadPoolExecutor(1) as second:
        for component in plan._components:
            record = whole.get(component.name)
            if record is not None:
                progress.start(f"{component.name}: complete already")
                progress.done()
                resumed.append(component.name)
                records.append(second.submit(lambda record: record, record))
                continue
            began = time.monotonic()
            safety = chosen[component.name]
            if calibration is None:
                exported = plan._target.export(component, safety.options, staging.root, progress)
            else:
                exported = plan._target.export_calibrated(
                    component, safety.options, staging.root, progress, calibration
                )
            seconds = round(time.monotonic() - began, 3)
            first = waiting.get(component.beside or "")
            if first is not None:
                suffix = component.name.removeprefix(f"{component.beside}_")
                exported = plan._target.share(first[1], exported, suffix, staging.root)
            digests |= exported.digests
            waiting[component.name] = (component, exported, seconds)
            follows = any(other.beside == component.name for other in plan._components)
            for name in () if follows else [component.beside, component.name]:
                if name in waiting:
                    done = (*waiting.pop(name), dict(digests))
                    records.append(second.submit(_complete, plan, chosen[name], staging, *done))
            gc.collect()
        progress.start("flushing to disk")
        finished = [record.result() for record in records]
        progress.done()
    return finished, resumed


def _source_files(plan: Plan, part: bool) -> list[FileRecord]:
    return own_files(plan._checkpoint, plan._components) if part else plan._checkpoint.files


def _finish(plan: Plan, root: Path) -> list[Path]:
    """What belongs to no single component."""
    from exporter.architectures import generic, is_generic

    files = plan._target.finish(plan._checkpoint, plan._components, plan._options, root)
    return [*files, generic.write(plan._checkpoint, root)] if is_generic(plan._checkpoint) else files


def _complete_groups(components: Sequence[Component], staging: Staging) -> dict[str, ComponentRecord]:
    """What an earlier run finished: of components that share files all, or none."""
    found = {c.name: staging.completed(c.name) for c in components}
    groups: dict[str, list[str]] = {}
    for component in components:
        groups.setdefault(component.beside or component.name, []).append(component.name)
    return {
        name: record
        for names in groups.values()
        if all(found[n] is not None for n in names)
        for name in names
        if (record := found[name]) is not None
    }


def _complete(
    plan: Plan,
    safety: Safety,
    staging: Staging,
    component: Component,
    exported: ExportedComponent,
    seconds: float,
    digests: Mapping[Path, Future[str]],
) -> ComponentRecord:
    record = ComponentRecord(
        name=component.name,
        entry=exported.entry.relative_to(staging.root).as_posix(),
        files=hash_files(exported.files, staging.root, digests),
        inputs=list(exported.inputs),
        outputs=list(exported.outputs),
        parameters=component.parameters,
        dtype=exported.dtype or safety.options.dtype,
        seconds=seconds,
        details={**exported.details, **safety.details},
        sizes=list(exported.sizes),
    )
    if plan._target.executable:
        remember(record)
    staging.mark_complete(record)
    return record


def _source_record(
    plan: Plan, hashed: Future[list[FileRecord]], notes: list[str], progress: Progress
) -> SourceRecord:
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
        notes=[*plan.notes, *notes],
        **plan._checkpoint.opened_with,
    )


__all__ = ["Conversion", "Plan", "convert", "make_plan"]
