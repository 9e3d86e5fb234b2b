"""`report.html`: one self-contained page. Pictures travel inside it; no request leaves it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import write_text_atomic

if TYPE_CHECKING:
    from exporter.parity.schema import Case, ComponentReport, OutputMeasurement, Painting, Report, Run

HTML_NAME = "report.html"
HERE = Path(__file__).resolve().parent
BAR_LIMIT = 2 / 3
"""Where on its bar a limit stands; beyond three halves of it a bar is simply full."""


def style() -> str:
    """The style sheet that report and demo page share."""
    return (HERE / "style.css").read_text(encoding="utf-8")


def write_html(report: Report, folder: Path) -> Path:
    """Write `report.html` beside the pictures in `folder`."""
    path = folder / HTML_NAME
    write_text_atomic(path, render(report, folder))
    return path


def render(report: Report, folder: Path) -> str:
    """The page as text; pictures named in the report are read from `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "sci": lambda v: "–" if v is None else f"{v:.2e}",
        "db": lambda v: "–" if v is None else "identical" if v == math.inf else f"{v:.1f} dB",
        "fixed": lambda v: "–" if v is None else f"{v:.6f}",
        "ratio": lambda v: "–" if v is None else f"{v:.2f}" if v < 1000 else f"{v:.1e}",
        "seconds": lambda v: f"{v:.0f} s" if v < 120 else f"{v / 60:.1f} min",
        "size": size,
        "count": lambda v: f"{v:,}".replace(",", " "),
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        title=Path(report.artifact).name or report.artifact,
        style=Markup(style()),
        components=[_component(part, report.settings.k) for part in report.components],
        pictures=list(_pictures(report, folder)),
        environment=list(_environment(report.environment)),
    )


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _component(part: ComponentReport, k: float) -> dict[str, Any]:
    fields = {name: getattr(part, name) for name in type(part).model_fields}
    return fields | {"runs": [_run(run, k) for run in part.runs]}


def _run(run: Run, k: float) -> dict[str, Any]:
    from exporter.parity.metrics import histogram_edges
    from exporter.parity.report.svg import histogram
    from exporter.parity.stated import kept

    outputs = [output for case in run.cases for output in case.outputs]
    return {
        "title": run.title[0].upper() + run.title[1:],
        "verdict": run.verdict,
        "gates": run.gates,
        "stated": run.stated,
        "kept": kept(run) if run.stated else [],
        "problems": run.problems,
        "peaks": sorted(run.peaks, key=lambda r: math.inf if math.isnan(r.peak) else r.peak, reverse=True),
        "note": run.note,
        "arithmetic": run.arithmetic,
        "cases": run.cases,
        "rows": [_row(run, case, k) for case in run.cases],
        "histogram": histogram(
            histogram_edges(),
            _total([o.artifact.histogram for o in outputs]),
            _total([o.floor.histogram for o in outputs]),
        )
        if outputs
        else "",
    }


def _row(run: Run, case: Case, k: float) -> dict[str, Any]:
    from exporter.parity.verdict import METRICS, judge_metric, typical_floors

    if case.problems or not case.outputs:
        hint = (case.problems or [case.not_checked or "not measured"])[0]
        return {"label": case.label, "ratio": None, "hint": hint}
    typical = typical_floors(run)

    def judged(output: OutputMeasurement) -> Any:
        return max((judge_metric(run, case, output, m, typical, k) for m in METRICS), key=lambda w: w.ratio)

    worst = max((judged(output) for output in case.outputs), key=lambda w: w.ratio)
    return {
        "label": case.label,
        "ratio": worst.ratio,
        "over": not (worst.ratio <= 1),
        "width": round(100 * min(1.0, worst.ratio * BAR_LIMIT), 2) if math.isfinite(worst.ratio) else 100,
        "hint": f"{worst.output}: {worst.metric} {worst.value:.3g}, limit {worst.limit:.3g}",
    }


def _total(histograms: list[list[int]]) -> list[int]:
    return [sum(counts) for counts in zip(*histograms, strict=True)]


def _pictures(report: Report, folder: Path) -> Iterable[dict[str, Any]]:
    from exporter.parity.report.svg import curve

    for run in report.pipeline.runs if report.pipeline else []:
        how = "graph" if run.mode == "graph" else "as run by default"
        how = "as it runs, activations in int8" if run.stated else how
        for painting in run.paintings:
            twin = _running_maximum([step.twin for step in painting.steps])
            yield {
                **painting.model_dump(exclude={"pictures", "steps"}),
                "title": f"{how}, {run.arithmetic}",
                "images": _images(painting, folder),
                "curve": curve(
                    [
                        ("limit", [] if run.stated else [report.settings.k * v for v in twin]),
                        ("twin", [step.twin for step in painting.steps]),
                        ("artifact", [step.artifact for step in painting.steps]),
                    ]
                ),
            }


def _running_maximum(values: list[float]) -> list[float]:
    return [max(values[: i + 1]) for i in range(len(values))]


def _images(painting: Painting, folder: Path) -> list[dict[str, str]]:
    captions = {
        "plain": "PyTorch, without the technique",
        "original": "PyTorch, weights unquantised",
        "reference": "PyTorch, weights as quantised" if painting.original_psnr_db else "PyTorch reference",
        "artifact": "artifact",
        "difference": f"difference × {painting.amplification:g}",
    }
    images = []
    for kind, caption in captions.items():
        name = painting.pictures.get(kind)
        if name and Path(name).name == name and (folder / name).is_file():
            data = base64.b64encode((folder / name).read_bytes()).decode()
            images.append({"uri": f"data:image/png;base64,{data}", "caption": caption})
    return images


def _environment(values: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield key, ", ".join(f"{name} {version}" for name, version in value.items())
        else:
            yield key, str(value)
