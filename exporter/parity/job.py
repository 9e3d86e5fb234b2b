"""One judgement: an artifact at one size, component by component and as a whole, and its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from exporter.artifact import Artifact
from exporter.parity.keeping import Ticker, check_settings, command, record_of, save_inputs
from exporter.parity.schema import (
    REPORT_FOLDER,
    REPORT_NAME,
    ComponentReport,
    PipelineReport,
    Report,
    Run,
    Settings,
    SizeReport,
)
from exporter.parity.verdict import judge
from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord
    from exporter.checkpoints import Checkpoint
    from exporter.parity.arithmetic import Tensors
    from exporter.parity.cases import Inputs
    from exporter.parity.measure import Opened
    from exporter.parity.painting import Painted, Plan

SMALL = 50_000_000
"""Parameters below which one thread is used: more only wait for each other, worst on a busy machine."""
INPUTS_NAME = "inputs.safetensors"


class Job:
    def __init__(
        self, artifact: Artifact, settings: Settings, *, against: str | None, report_dir: Path | None,
        shown_path: str, record: bool, cache: Path | Literal["user"] | None, allow_pickle: bool, trust: bool,
        progress: Progress,
    ) -> None:  # fmt: skip
        from exporter.architectures import components_of
        from exporter.parity.budget import cache_folder
        from exporter.parity.reference import default_prompts
        from exporter.parity.sources import check_bytes, reference_for
        from exporter.targets import get_target
        from exporter.trust import require

        check_settings(settings)
        self.started = time.perf_counter()
        self.artifact, self.settings, self.progress = artifact, settings, progress
        self.against, self.shown_path, self.keeps_record = against, shown_path, record
        self.cache = cache_folder() if cache == "user" else cache
        self.inside = report_dir is None
        self.folder = report_dir or artifact.root / REPORT_FOLDER
        progress.start("hashing the artifact")
        check_bytes(artifact)
        self.digest = artifact.manifest.digest()
        self.target, self.trust = get_target(artifact.manifest.target), trust
        if getattr(self.target, "executable", False):
            require(artifact.root, artifact.manifest.components, trust=trust)
        self.checkpoint: Checkpoint = reference_for(artifact, against, allow_pickle=allow_pickle)
        self.components: list[Component] = components_of(self.checkpoint)
        self.records = self._chosen()
        if not settings.prompts:
            settings.prompts = default_prompts(self.checkpoint)
        self.threads = 1 if max(c.parameters for c in self.components) < SMALL else None
        self.plan: Plan = self._plan()
        self.paint_ticks = len(self.plan.groups()) * (self.plan.steps + 2)
        self.scratch = TemporaryDirectory(prefix="exporter-")
        self.judged: dict[str, Component] = {c.name: c for c in self.components}
        """What the artifact is judged against: of a quantised component, the one with its own weights."""
        self.followed: dict[tuple[str, str], tuple[Component, list[Inputs]]] = {}
        """By component and way of running it, what its truth was computed of: bisection follows that."""

    def run(self, sizes: Sequence[SizeReport] = ()) -> Report:
        """Measure and judge. `sizes` are the verdicts on the artifact's further sizes."""
        from exporter.parity.environment import environment, peak_memory
        from exporter.parity.unchecked import unchecked_parts

        painted, no_paint = self._paint_reference()
        self.folder.mkdir(parents=True, exist_ok=True)
        report = Report(
            artifact=self.shown_path,
            target=self.artifact.manifest.target,
            source=self.artifact.manifest.source,
            digest=self.digest,
            settings=self.settings,
            complete=self.settings.components is None,
            environment=environment(),
            sizes=list(sizes),
            hashes={f.path: f.sha256 for f in self.artifact.manifest.all_files()},
            command=command(self.shown_path, self.settings, self._named_reference()),
        )
        captured: dict[str, list[Inputs]] = {}
        openers: dict[str, dict[str, Opened]] = {}
        for record in self.records:
            component_report, cases, opened = self._component(record, painted)
            report.components.append(component_report)
            captured[record.name] = cases
            openers[record.name] = opened
        if self.settings.components is None:
            report.components += unchecked_parts(self.target, self.artifact.root)
        if self.settings.pipeline:
            default_runs = [r for c in report.components for r in c.runs if r.mode == "default"]
            report.pipeline = self._pipeline(painted, no_paint, openers, default_runs)
        save_inputs(captured, self.folder / INPUTS_NAME)
        limits = (self.settings.k, self.settings.min_sqnr, self.settings.min_psnr)
        report = judge(report, *limits)
        if self.settings.bisect and report.verdict == "FAIL":
            from exporter.parity.bisect import explain

            explain(report, openers, self.followed, self._task)
            report = judge(report, *limits)
        report.seconds = round(time.perf_counter() - self.started, 3)
        report.peak_memory = peak_memory()
        report.save(self.folder)
        self._record(report)
        self.progress.done()
        return report

    def _chosen(self) -> list[ComponentRecord]:
        manifest = self.artifact.manifest
        if self.settings.components is None:
            return list(manifest.components)
        return [manifest.component(name) for name in self.settings.components]

    def _plan(self) -> Plan:
        from exporter.parity.reference import plan_of

        static, s = self.artifact.manifest.options.get("static"), self.settings
        inputs = {record.name: record.inputs for record in self.artifact.manifest.components}
        return plan_of(self.checkpoint, static, prompts=s.prompts, steps=s.steps, seed=s.seed, inputs=inputs)

    def _paint_reference(
        self, components: Sequence[Component] | None = None, checkpoint: Checkpoint | None = None
    ) -> tuple[Painted | None, str | None]:
        """The reference's run; with `components`, of these; with `checkpoint`, of another one."""
        from exporter.parity.painting import supported
        from exporter.parity.reference import paint_reference

        if not supported(self.checkpoint):
            if self.checkpoint.lacking:
                missing = ", ".join(self.checkpoint.lacking)
                return None, f"{self.checkpoint.source} lacks {missing}, so it paints nothing"
            return None, f"this version cannot run a {self.checkpoint.pipeline_class} stage by stage"
        tick = self._task("reference run", self.paint_ticks)
        source = checkpoint or self.checkpoint
        return paint_reference(source, self.plan, cache=self.cache, tick=tick, components=components), None

    def _component(
        self, record: ComponentRecord, painted: Painted | None
    ) -> tuple[ComponentReport, list[Inputs], dict[str, Opened]]:
        from exporter.parity import decisions
        from exporter.parity.budget import evaluate, layouts_of
        from exporter.parity.cases import cases_of, untraced
        from exporter.parity.measure import Opened, Shapes, hints_of, measure, replay
        from exporter.parity.quantised import is_quantised, restore, rounds_activations
        from exporter.parity.vocabulary import vocabulary

        started = time.perf_counter()
        report = ComponentReport(
            name=record.name,
            entry=record.entry,
            parameters=record.parameters,
            bytes=sum(f.bytes for f in record.files),
        )
        full = next((c for c in self.components if c.name == record.name), None)
        if full is None:
            report.not_checked = (
                f"{self.checkpoint.source} has no component {record.name!r} to judge it against"
            )
            return report, [], {}
        component = self.target.shipped(full)
        report.class_name = component.class_name
        cases = cases_of(component, painted, self.settings.samples)
        cases += untraced(component, cases, record.inputs)
        cases += vocabulary(component, cases, record.inputs)
        hints = hints_of(record, self.settings.precision_hint)
        rounded = rounds_activations(record)
        tick = self._task(record.name, len(cases) * (1 + (1 + len(layouts_of(component))) * len(hints)))

        def truths_of(reference: Component) -> list[Tensors]:
            return evaluate(
                reference, cases, weights="float32", arithmetic="float64", tick=tick, cache=self.cache
            )

        deciding = component.decides is not None
        truths = [] if deciding and not is_quantised(record) else truths_of(component)
        originals = None
        if is_quantised(record):
            originals = truths
            opened = Opened(self.target, self.artifact.root, record, "f32", self.threads, self.trust)
            folder = Path(self.scratch.name) / record.name
            full = restore(full, record, opened, folder, report, self.checkpoint, self.cache, tick)
            self.judged[full.name] = full
            component = self.target.shipped(full)
            truths = [] if deciding else truths_of(component)
        shapes: list[Shapes] = [
            decisions.shapes_of(component, case) for case in cases
        ] if deciding else [{n: tuple(t.shape) for n, t in truth.items()} for truth in truths]  # fmt: skip
        openers: dict[str, Opened] = {}
        for mode, hint in hints.items():
            opened = Opened(
                self.target, self.artifact.root, record, hint, self.threads, self.trust,
                exact=rounded and mode == "graph",
            )  # fmt: skip
            skip = openers["graph"].arithmetic if mode == "default" else None
            played = replay(component, opened, cases, shapes, tick, skip_if=skip)
            if played.same_as:
                report.same_by_default = True
                break
            judged, asked = component, cases
            if component.decides is not None:
                judged = component.decides.told(component)
                asked = [decisions.told(case, d) for case, d in zip(cases, played.decisions, strict=False)]
                truths = evaluate(
                    judged, asked, weights="float32", arithmetic="float64", tick=tick, cache=self.cache
                )
            self.followed[record.name, mode] = judged, asked
            run = measure(
                judged, opened, played, asked, truths,
                mode=mode, cache=self.cache, tick=tick, originals=originals,
            )  # fmt: skip
            run.stated = rounded and mode == "default"
            run.gates = mode == "graph" or rounded or record.details.get("precision_hint") != "f32"
            report.runs.append(run)
            report.problems += [f for f in played.faults if f not in report.problems]
            report.not_checked = report.not_checked or played.not_checked
            openers[mode] = opened
        report.seconds = round(time.perf_counter() - started, 3)
        return report, cases, openers

    def _pipeline(
        self,
        painted: Painted | None,
        no_paint: str | None,
        openers: dict[str, dict[str, Opened]],
        default_runs: list[Run],
    ) -> PipelineReport:
        from exporter.parity.cost import plain_of
        from exporter.parity.given import control_note
        from exporter.parity.painting import used
        from exporter.parity.quantised import note_schemes
        from exporter.parity.whole import compare_pipelines

        report = PipelineReport(
            pipeline_class=self.checkpoint.pipeline_class,
            scheduler=str(self.checkpoint.component_classes.get("scheduler", ("", "none"))[1]),
            steps=self.plan.steps,
            guidance=self.plan.guidance,
            exported=used(self.checkpoint, openers),
            not_checked=no_paint,
        )
        if painted is None:
            return report
        report.given = control_note(self.plan, [component.name for component in self.components])
        by_default = any("default" in opened for opened in openers.values())
        modes: list[Literal["graph", "default"]] = ["graph", "default"] if by_default else ["graph"]
        gates = {"graph": True, "default": any(r.gates for r in default_runs)}
        original = None
        components = [self.judged[c.name] for c in self.components]
        if note_schemes(report, self.records):  # the graph is judged by a pipeline with the same weights
            original, (painted, _) = painted, self._paint_reference(components)
            assert painted is not None
        plain = plain_of(self.checkpoint, report, lambda other: self._paint_reference(None, other)[0])
        watched = {c.name: c.decides.paths if c.decides else () for c in components}
        for mode in modes:
            chosen = {n: openers[n].get(mode) or openers[n]["graph"] for n in report.exported if openers[n]}
            tick = self._task(f"pipeline ({mode})", 2 * self.paint_ticks)
            run = compare_pipelines(
                self.checkpoint,
                components,
                self.plan,
                painted,
                {n: partial(o, watch=watched[n]) for n, o in chosen.items()},
                {n: (o.weights, o.arithmetic) for n, o in chosen.items()},
                mode=mode,
                folder=self.folder,
                cache=self.cache,
                tick=tick,
                original=original,
                plain=plain,
            )
            run.gates = gates[mode]
            run.stated = mode == "default" and any(r.stated for r in default_runs)
            report.runs.append(run)
        return report

    def _record(self, report: Report) -> None:
        """Write the verdict into the manifest, bound to the bytes that were judged."""
        if not self.keeps_record or (not report.complete and report.verdict != "FAIL"):
            return
        where = f"{REPORT_FOLDER}/{REPORT_NAME}" if self.inside else None
        self.artifact.manifest.verification = record_of(report, where)
        self.artifact.save()

    def _named_reference(self) -> str | None:
        """The reference, where the command to do it again has to name it."""
        source = self.artifact.manifest.source.source
        return None if self.keeps_record and self.against == source else self.against

    def _task(self, label: str, total: float) -> Ticker:
        self.progress.start(label, total)
        return Ticker(self.progress)
