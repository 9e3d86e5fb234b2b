"""`exporter convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, seconds_text, table, verdict_code
from exporter.cli._source_flags import intake_of, source_flags
from exporter.cli._target_flags import target_flags, typed
from exporter.cli._types import Finite

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.conversion import Conversion, Plan


@click.command(
    "convert",
    cls=Command,
    examples=(
        (
            "The embedded model to ONNX, verified, into artifacts/",
            "exporter convert builtin:shapes --to onnx",
        ),
        (
            "A folder in half precision for OpenVINO",
            "exporter convert ./my-model --to openvino --dtype float16 -o my-ov",
        ),
        (
            "Fixed shapes: one picture of 128x128",
            "exporter convert builtin:shapes --to onnx --static 1x128x128",
        ),
        (
            "LTX-Video for clips that begin with a picture",
            "exporter convert ./my-ltx-video --to onnx --task image-to-video",
        ),
        (
            "See the plan: sizes, memory, what will be verified",
            "exporter convert builtin:shapes --to onnx --dry-run",
        ),
    ),
)
@click.argument("source")
@click.option("--to", "target", required=True, metavar="TARGET", help="Format: onnx, openvino, …")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="Destination folder; it must not exist.  [default: artifacts/NAME-TARGET]",
)  # fmt: skip
@target_flags
@click.option(
    "--option", "extras", multiple=True, metavar="NAME=VALUE",
    help="Any other option of the target, such as one of a third-party target; repeatable.",
)  # fmt: skip
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub repository.")
@click.option("--variant", metavar="NAME", help="Weight variant of the checkpoint, such as fp16.")
@source_flags
@click.option(
    "--component", "components", multiple=True, metavar="NAME",
    help="Convert only this component; repeatable.",
)  # fmt: skip
@click.option("--no-safety-checker", is_flag=True, help="Leave out the safety checker of Stable Diffusion.")
@click.option(
    "--technique", "techniques", multiple=True, metavar="NAME[:KEY=VALUE,…]",
    help="An acceleration that the artifact is to carry, such as fused-qkv, token-merging:ratio=0.4, "
    "deep-cache:interval=3 or t-gate:gate=10; repeatable.",
)  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not verify; the manifest records it.")
@click.option(
    "--k", type=Finite(above=0), metavar="K",
    help="Allowed error in multiples of PyTorch's own error at that precision.  [default: 4]",
)  # fmt: skip
@click.option(
    "--no-cache", is_flag=True, help="Trace every graph anew; see `exporter cache`. The bytes are the same."
)
@click.option("--overwrite", is_flag=True, help="Replace what stands at the destination.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.pass_obj
def command(
    output: Output,
    /,
    source: str,
    target: str,
    extras: tuple[str, ...],
    components: tuple[str, ...],
    no_safety_checker: bool,
    techniques: tuple[str, ...],
    revision: str | None,
    variant: str | None,
    no_verify: bool,
    k: float | None,
    no_cache: bool,
    overwrite: bool,
    dry_run: bool,
    **given: Any,
) -> int:
    """Convert SOURCE to another format and verify what was written.

    The artifact is built beside its destination and moved there when it is complete; an interrupted
    run is resumed by the same command. Unless --no-verify is given, a fresh process then judges the
    bytes on disk against PyTorch, and the exit code is the verdict: 0 PASS, 1 FAIL, 5 INCONCLUSIVE.
    """
    from exporter.conversion import convert, make_plan
    from exporter.techniques import named

    intake = intake_of(given)
    options = typed(given)
    options |= dict(_split(extra) for extra in extras)
    with output.progress() as progress:
        plan = make_plan(
            source,
            target,
            given["output"],
            options,
            revision=revision,
            variant=variant,
            components=list(components) or None,
            safety_checker=not no_safety_checker,
            verify=not no_verify,
            intake=intake,
            progress=progress,
            hash_source=not dry_run,
            techniques=[named(text) for text in techniques],
        )
    if dry_run:
        output.result(plan.as_dict(), human=lambda console: _show_plan(console, plan), quiet=str(plan.output))
        return 0
    settings = {} if k is None else {"k": k}
    with output.progress() as progress:
        result = convert(
            plan,
            overwrite=overwrite,
            progress=progress,
            verify_settings=settings,
            use_cache=not no_cache,
        )
    output.result(
        _document(result),
        human=lambda console: _show_result(console, result),
        quiet=str(result.artifact.root),
    )
    return verdict_code(result.verdict)


def _split(extra: str) -> tuple[str, str]:
    name, separator, value = extra.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{extra!r} is not NAME=VALUE.", param_hint="--option")
    return name.replace("-", "_"), value


def _document(result: Conversion) -> dict[str, Any]:
    manifest = result.artifact.manifest
    return {
        "artifact": result.artifact.root,
        "target": manifest.target,
        "source": manifest.source.source,
        "revision": manifest.source.revision,
        "verdict": result.verdict,
        "summary": result.summary,
        "report": result.report,
        "seconds": round(result.seconds, 3),
        "resumed": result.resumed,
        "afterwards": result.afterwards,
        "bytes": sum(file.bytes for file in manifest.all_files()),
        "components": [
            {
                "name": record.name,
                "bytes": sum(file.bytes for file in record.files),
                "seconds": record.seconds,
            }
            for record in manifest.components
        ],
    }


def _show_plan(console: Console, plan: Plan) -> None:
    from exporter.techniques import described

    console.print(f"{plan.source} ({plan.pipeline_class}) → {plan.target}: {plan.output}", soft_wrap=True)
    given = ", ".join(f"{name} {_value(value)}" for name, value in plan.options.items())
    console.print(f"options: {given}", soft_wrap=True)
    _show_intake(console, plan.overlays, plan.notes)
    for each in plan.techniques:
        console.print(f"technique: {described(each['name'], each['options'])}", soft_wrap=True)
    rows = [
        (c.name, c.class_name, f"{c.parameters:,}", bytes_text(c.disk), bytes_text(c.memory))
        for c in plan.components
    ]
    console.print(table(("component", "class", "parameters>", "on disk>", "peak memory>"), rows))
    console.print(f"disk: {bytes_text(plan.disk)} of {bytes_text(plan.free_disk)} free")
    console.print(f"memory: about {bytes_text(plan.memory)} of {bytes_text(plan.free_memory)} free")
    console.print("will be verified:" if plan.verify else "will not be verified (--no-verify)")
    for line in plan.verify:
        console.print(f"  - {line}", soft_wrap=True)


def _show_intake(console: Console, overlays: list[dict[str, Any]], notes: list[str]) -> None:
    for each in overlays:
        scale = f" at {each['scale']:g}" if each.get("scale") is not None else ""
        console.print(f"{each['kind'].replace('_', ' ')}: {each['source']}{scale}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def _value(value: Any) -> str:
    if value is None:
        return "default"
    if not isinstance(value, list | tuple):
        return str(value)
    return ("x" if all(isinstance(each, int) for each in value) else ", ").join(map(str, value))


def _show_result(console: Console, result: Conversion) -> None:
    manifest = result.artifact.manifest
    size = sum(file.bytes for file in manifest.all_files())
    console.print(
        f"{result.artifact.root}  {bytes_text(size)}, {seconds_text(result.seconds)}", soft_wrap=True
    )
    _show_intake(console, [], manifest.source.notes)
    if result.resumed:
        console.print(f"resumed: {', '.join(result.resumed)} had been finished by an earlier run")
    if result.verdict is None:
        console.print(result.summary, soft_wrap=True)
    else:
        console.print(f"{result.verdict}: {result.summary}", soft_wrap=True)
    if result.report is not None:
        page = result.report.with_suffix(".html")
        console.print(f"report: {page if page.is_file() else result.report}", soft_wrap=True)
    for line in result.afterwards:
        console.print(line, soft_wrap=True)
