"""The report: what was run, what was measured, what was concluded. Written as `report.json`.

Measurements are stored raw and apart from the verdict, so `verdict.judge` can be applied again with
another `k` without running anything. Non-finite numbers are stored as the strings JSON allows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from exporter.artifact import SourceRecord, Verdict, now, write_text_atomic
from exporter.errors import ArtifactError, VerificationFailed, VerificationInconclusive
from exporter.parity.parts import Bisection as Bisection
from exporter.parity.parts import Compression, Part
from exporter.parity.parts import DecisionMeasurement as DecisionMeasurement
from exporter.parity.parts import ModuleRow as ModuleRow
from exporter.parity.parts import SizeReport as SizeReport

REPORT_VERSION = 1
REPORT_NAME = "report.json"
REPORT_FOLDER = "verification"

Judged = Literal["relative_l2", "max_abs"]


class Metrics(Part):
    """One output against its truth; formulas and edge rules are in `metrics.py`.

    Attributes:
        max_abs: Largest |a - t|.
        relative_l2: ||a - t|| / ||t||.
        cosine: In [-1, 1].
        sqnr_db: Signal to noise in dB.
        worst_index: Where `max_abs` lies, with both values.
        histogram: Counts of |a - t|: zero, below 1e-12, two bins to a decade up to 1e4, above.
    """

    max_abs: float
    relative_l2: float
    cosine: float
    sqnr_db: float
    worst_index: list[int]
    worst_actual: float
    worst_truth: float
    truth_max: float
    truth_norm: float
    elements: int
    histogram: list[int]


class OutputMeasurement(Part):
    """One output of one case.

    Attributes:
        artifact: The artifact against the float64 truth.
        floors: PyTorch at the artifact's precision against the same truth, by memory layout.
        unit: Unit roundoff of the dtype the output is delivered in (2^-24 for float32).
        original: Of a quantised artifact: against the truth with the checkpoint's weights.
    """

    name: str
    artifact: Metrics
    floors: dict[str, Metrics]
    unit: float
    original: Metrics | None = None

    @property
    def floor(self) -> Metrics:
        """The noisier of the layouts, by relative error."""
        return max(self.floors.values(), key=lambda m: m.relative_l2)

    def noise(self, metric: Judged) -> float:
        """The larger of the layouts' errors in one metric; NaN if there is none."""
        return max((float(getattr(m, metric)) for m in self.floors.values()), default=math.nan)


class Case(Part):
    """One set of inputs, replayed.

    Attributes:
        id: Unique within the component.
        kind: `captured` from the reference run, or what the export did not trace (`batch`, `aspect` …).
        inputs: Name → `dtype[shape]`.
        conversions: What had to be cast for the artifact, in words.
        problems: Structural faults (names, shapes, dtypes, NaN, a refusal): each one is a FAIL.
        not_checked: Why nothing could be measured; never a PASS.
        decisions: What the artifact decided by comparing numbers; truth and floors decide alike.
    """

    id: str
    kind: str
    label: str
    inputs: dict[str, str] = Field(default_factory=dict)
    conversions: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    not_checked: str | None = None
    outputs: list[OutputMeasurement] = Field(default_factory=list)
    decisions: list[DecisionMeasurement] = Field(default_factory=list)
    seconds: float = 0.0


class Worst(Part):
    """The measurement closest to (or furthest beyond) its limit."""

    mode: str
    case: str
    output: str
    metric: Judged
    value: float
    floor: float
    limit: float
    ratio: float
    index: list[int]


class PeakRow(Part):
    """The largest magnitude of one value over all cases; fields as in `targets.base.Peak`."""

    value: str
    operation: str
    module: str | None = None
    peak: float
    limit: float | None = None


class Run(Part):
    """All cases of a component in one way of running it, and the verdict on this way alone.

    Attributes:
        mode: `graph`: arithmetic as exact as the runtime offers. `default`: as clients run it.
        precision_hint: What was asked of the runtime.
        weights / arithmetic: Dtypes the noise floor was measured at.
        truth: What the weights of the float64 truth were rounded to; `float32` leaves them as they are.
        gates: Whether an excess decides the verdict (structural faults always do). Not so for a runtime's
            own default where the manifest names another precision: that is reported beside it.
        stated: Activations are rounded to integers, which no noise floor explains: the stated limit decides.
        note: What a reader should know about this run.
        peaks: Largest magnitudes in order of execution, where the format shows them.
        problems: Faults of this run that belong to no case: an overflow.
        verdict / worst: As `verdict.judge` found them; of a run that does not gate, what it would say.
    """

    mode: Literal["graph", "default"]
    precision_hint: str
    weights: str
    arithmetic: str
    truth: str = "float32"
    gates: bool = True
    stated: bool = False
    cases: list[Case] = Field(default_factory=list)
    note: str | None = None
    peaks: list[PeakRow] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    verdict: Verdict = "INCONCLUSIVE"
    worst: Worst | None = None

    @property
    def title(self) -> str:
        """What was run, in words: `the graph: float32 arithmetic on float16 weights`."""
        how = "the graph" if self.mode == "graph" else "as it runs by default"
        weights = "" if self.weights == self.arithmetic else f" on {self.weights} weights"
        exact = f"{how}: {self.arithmetic} arithmetic{weights}"
        return exact if not self.stated else f"as it runs: activations in int8, the rest in {self.arithmetic}"

    @property
    def largest(self) -> PeakRow | None:
        """The peak closest to what its dtype holds; NaN counts as beyond it."""
        bounded = [row for row in self.peaks if row.limit is not None]
        return max(
            bounded or self.peaks, key=lambda r: math.inf if math.isnan(r.peak) else r.peak, default=None
        )


class ComponentReport(Part):
    """One component: raw runs, and the verdict that `verdict.judge` gave them.

    Attributes:
        same_by_default: The runtime computes in the same arithmetic when nobody asks for one, so
            the graph's run speaks for both.
        problems: Faults that belong to no case: declarations, a file that does not open.
        warnings: Excesses of runs that do not gate.
        compression: Of a quantised component.
    """

    name: str
    class_name: str = ""
    entry: str = ""
    parameters: int = 0
    bytes: int = 0
    runs: list[Run] = Field(default_factory=list)
    same_by_default: bool = False
    problems: list[str] = Field(default_factory=list)
    not_checked: str | None = None
    seconds: float = 0.0
    verdict: Verdict = "INCONCLUSIVE"
    summary: str = ""
    reasons: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    worst: Worst | None = None
    worst_by_mode: list[Worst] = Field(default_factory=list)
    bisection: Bisection | None = None
    compression: Compression | None = None


class Step(Part):
    """Relative L2 of the latents after one step: the artifact's, and the PyTorch twin's."""

    step: int
    artifact: float | None
    twin: float


class Painting(Part):
    """One picture painted by reference, twin and artifact from the same noise.

    Attributes:
        steps: Divergence from the reference after every step.
        image_error / twin_image_error: Root mean square over the picture, values in [0, 1].
        psnr_db / ssim: Artifact against reference; the twin's beside them.
        pictures: PNG files beside the report: reference, artifact, difference.
        original_psnr_db: Of a quantised artifact: against the picture of the unquantised model.
        plain_psnr_db: Of an artifact that carries a lossy technique: against the model's without it.
    """

    prompt: str
    seed: int
    steps: list[Step] = Field(default_factory=list)
    image_error: float | None = None
    twin_image_error: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    twin_psnr_db: float | None = None
    twin_ssim: float | None = None
    original_psnr_db: float | None = None
    plain_psnr_db: float | None = None
    amplification: float = 1.0
    pictures: dict[str, str] = Field(default_factory=dict)


class PipelineRun(Part):
    """The whole pipeline in one way of running the artifact; `stated` as in `Run`, `not_checked` as of a part
    that nothing here can run."""

    mode: Literal["graph", "default"]
    arithmetic: str
    gates: bool = True
    stated: bool = False
    paintings: list[Painting] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    not_checked: str | None = None
    seconds: float = 0.0


class PipelineReport(Part):
    """The whole pipeline: same noise, same scheduler.

    Attributes:
        given: What the runs were given besides their prompts, in words: the drawings that ControlNets follow.
        techniques: Those that the artifact carries.
    """

    pipeline_class: str
    scheduler: str
    steps: int
    guidance: float
    exported: list[str]
    given: str | None = None
    runs: list[PipelineRun] = Field(default_factory=list)
    not_checked: str | None = None
    verdict: Verdict = "INCONCLUSIVE"
    reasons: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    scheme: str | None = None
    min_psnr: float | None = None
    techniques: list[str] = Field(default_factory=list)


class Settings(Part):
    """What `verify` was asked; with the source and the artifact it reproduces the report. Limits in dB are
    those of quantised artifacts; None is the scheme's default."""

    k: float
    prompts: list[str]
    steps: int
    samples: int
    seed: int
    components: list[str] | None = None
    precision_hint: str | None = None
    pipeline: bool = True
    bisect: bool = True
    min_sqnr: float | None = None
    min_psnr: float | None = None


class Report(Part):
    """`report.json`.

    Attributes:
        digest: `Manifest.digest()` of the bytes that were judged.
        complete: Every component of the artifact was asked for (not a subset).
        sizes: The artifact's further sizes; `components` and `pipeline` are of the first.
    """

    kind: Literal["exporter-parity-report"] = "exporter-parity-report"
    schema_version: int = REPORT_VERSION
    created: str = Field(default_factory=now)
    artifact: str
    target: str
    source: SourceRecord
    digest: str
    settings: Settings
    complete: bool = True
    verdict: Verdict = "INCONCLUSIVE"
    summary: str = ""
    components: list[ComponentReport] = Field(default_factory=list)
    pipeline: PipelineReport | None = None
    sizes: list[SizeReport] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0
    peak_memory: int | None = None

    def save(self, folder: Path) -> Path:
        """Write `report.json` and `report.html` into `folder`; returns the JSON's path."""
        from exporter.parity.report.html import write_html

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / REPORT_NAME
        write_text_atomic(path, self.model_dump_json(indent=1) + "\n")
        write_html(self, folder)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """Read a stored report (the file, or the folder that holds it).

        Raises:
            ArtifactError: Not there, written by a newer exporter, or not a report.
        """
        file = Path(path).expanduser()
        if file.is_dir():
            file = file / REPORT_NAME
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactError(f"There is no report at {path}.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{file} cannot be read as JSON: {error}.") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > REPORT_VERSION:
            raise ArtifactError(
                f"{file} was written by a newer exporter (report schema {version}, this one reads up to "
                f"{REPORT_VERSION}).",
                hint="Update exporter.",
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            raise ArtifactError(f"{file} is not a parity report: {where}: {first['msg']}.") from error

    def raise_for_verdict(self) -> None:
        """Nothing on PASS.

        Raises:
            VerificationFailed: FAIL.
            VerificationInconclusive: INCONCLUSIVE.
        """
        if self.verdict == "PASS":
            return
        kind = VerificationFailed if self.verdict == "FAIL" else VerificationInconclusive
        raise kind(self.summary)
