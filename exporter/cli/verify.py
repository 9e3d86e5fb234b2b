"""`exporter verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import table, verdict_code
from exporter.cli._trust_flag import trust_flag
from exporter.cli._types import Finite
from exporter.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.parity.schema import ComponentReport, PipelineReport, Report, Worst


@click.command(
    "verify",
    cls=Command,
    examples=(
        ("Judge an artifact against the checkpoint it was made from", "exporter verify shapes-onnx"),
        ("Judge another tool's export folder", "exporter verify ./optimum-export --against ./my-model"),
        ("Judge an artifact that somebody published on the Hub", "exporter verify org/shapes-onnx"),
        ("Only check that no byte changed since the verdict", "exporter verify shapes-onnx --check-hashes"),
        (
            "Judge a stored report again under a tighter limit; runs nothing",
            "exporter verify --rejudge shapes-onnx/verification/report.json --k 2",
        ),
    ),
)
@click.argument("artifact", type=click.Path(path_type=Path), metavar="ARTIFACT|ORG/NAME", required=False)
@click.option("--against", metavar="SOURCE", help="Reference checkpoint.  [default: the artifact's source]")
@click.option(
    "--k",
    type=Finite(above=0),
    default=4.0,
    show_default=True,
    metavar="K",
    help="Allowed error in multiples of PyTorch's own error at that precision.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts of the reference run, one a line; lines that begin with # are skipped.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Scheduler steps of the reference run.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Denoising steps per prompt whose inputs are replayed.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise.")
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME",
    help="Judge only this component; repeatable. The recorded verdict then stays, unless this is a FAIL.",
)
@click.option(
    "--precision-hint",
    type=click.Choice(["f32", "bf16", "f16", "default"]),
    help="Arithmetic for runtimes that choose it.  [default: exact, then as the artifact is run]",
)
@click.option(
    "--min-sqnr", type=Finite(), metavar="DB",
    help="Quantised artifacts: least SQNR of an output against the unquantised model.  [default: by scheme]",
)  # fmt: skip
@click.option(
    "--min-psnr", type=Finite(), metavar="DB",
    help="Quantised artifacts: least PSNR of a picture against the unquantised one.  [default: by scheme]",
)  # fmt: skip
@click.option("--no-pipeline", is_flag=True, help="Judge the components only; paint no whole pictures.")
@click.option(
    "--rejudge",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Judge this stored report again under --k; needs no ARTIFACT.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Open a reference that is a pickle, as for `exporter convert`."
)
@click.option("--check-hashes", is_flag=True, help="Only compare every file with its recorded hash.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the report goes.  [default: verification/ in the artifact]",
)
@trust_flag
@click.pass_obj
def command(
    output: Output,
    /,
    artifact: Path | None,
    k: float,
    prompts: Path | None,
    components: tuple[str, ...],
    no_pipeline: bool,
    rejudge: Path | None,
    check_hashes: bool,
    report: Path | None,
    min_sqnr: float | None,
    min_psnr: float | None,
    **settings: Any,
) -> int:
    """Judge ARTIFACT against the PyTorch reference: PASS, FAIL or INCONCLUSIVE.

    The reference is the unpatched model in float32; the limit is K times the error PyTorch itself
    makes at the artifact's precision, measured against a float64 truth. The exit code is the
    verdict: 0 PASS, 1 FAIL, 5 INCONCLUSIVE.
    """
    if check_hashes and rejudge is not None:
        raise click.UsageError("--check-hashes and --rejudge exclude each other.")
    if artifact is None and rejudge is None:
        raise click.UsageError("Missing argument 'ARTIFACT|ORG/NAME'.")
    from exporter import parity

    if rejudge is not None:
        judged = parity.rejudge(rejudge, k=k, min_sqnr=min_sqnr, min_psnr=min_psnr)
        folder = None
    else:
        assert artifact is not None
        from exporter.checkpoints.published import artifact_folder

        given = read_prompts(prompts) if prompts is not None else None
        with output.progress() as progress:
            local = artifact_folder(artifact, progress=progress)
            if check_hashes:
                return _check_hashes(output, local)
            judged = parity.verify(
                local,
                shown_path=str(artifact),
                k=k,
                prompts=given,
                components=list(components) or None,
                pipeline=not no_pipeline,
                report_dir=report,
                min_sqnr=min_sqnr,
                min_psnr=min_psnr,
                progress=progress,
                **settings,
            )
        folder = report or local / "verification"
    output.result(judged, human=lambda console: _show(console, judged, folder), quiet=judged.verdict)
    return verdict_code(judged.verdict)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 text file: one a line, blank lines and lines that begin with # left out.

    Raises:
        UsageError: The file cannot be read as text, or holds no prompt.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"The prompts file {path} cannot be read: {why}.") from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"The prompts file {path} holds no prompt.", hint="Write one prompt a line.")
    return prompts


def _check_hashes(output: Output, path: Path) -> int:
    from exporter.artifact import Artifact
    from exporter.inspection import hash_state

    state = hash_state(Artifact.open(path))

    def show(console: Console) -> None:
        for name in state.changed:
            console.print(f"changed: {name}", soft_wrap=True)
        console.print(state.sentence, soft_wrap=True)

    output.result(state, human=show, quiet=state.verdict or "unverified")
    return verdict_code(state.verdict) if state.verdict else 5


def _show(console: Console, report: Report, folder: Path | None) -> None:
    rows = [row for c in report.components for row in _rows(c)]
    if report.pipeline is not None:
        rows.append(("whole pipeline", report.pipeline.verdict, "", "", "", _pictures(report.pipeline)))
    rows += [(f"all at {size.static}", size.verdict, "", "", "", "") for size in report.sizes]
    console.print(table(("", "verdict", "error>", "limit>", "of limit>", "measured"), rows))
    console.print(f"{report.verdict}: {report.summary}", soft_wrap=True)
    parts = [(c.name, c.verdict, c.reasons) for c in report.components]
    if report.pipeline is not None:
        parts.append(("whole pipeline", report.pipeline.verdict, report.pipeline.reasons))
    for name, verdict, reasons in parts:
        for reason in reasons if verdict != "PASS" else ():
            console.print(f"  {name}: {reason}", soft_wrap=True)
    for size in report.sizes:
        if size.verdict != "PASS":
            console.print(f"  {size.static}: {size.summary}", soft_wrap=True)
    for component in report.components:
        if component.bisection is not None:
            console.print(f"  {component.name}: {component.bisection.explanation}", soft_wrap=True)
    if folder is not None and (folder / "report.html").is_file():
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _rows(component: ComponentReport) -> list[tuple[str, ...]]:
    """The component, and below it each way of running it where there is more than one."""
    rows: list[tuple[str, ...]] = [(component.name, component.verdict, *_worst(component.worst))]
    for run in component.runs if len(component.runs) > 1 else ():
        aside = "" if run.gates else " (not decisive)"
        rows.append((f"  {run.title}", f"{run.verdict}{aside}", *_worst(run.worst)))
    return rows


def _worst(worst: Worst | None) -> tuple[str, str, str, str]:
    if worst is None:
        return "", "", "", ""
    what = f"{worst.metric} of {worst.output}, {worst.case} ({worst.mode})"
    return f"{worst.value:.2e}", f"{worst.limit:.2e}", f"{worst.ratio:.0%}", what


def _pictures(pipeline: PipelineReport) -> str:
    found = [
        painting.psnr_db
        for run in pipeline.runs
        for painting in run.paintings
        if painting.psnr_db is not None
    ]
    return f"worst picture {min(found):.1f} dB PSNR" if found else ""
