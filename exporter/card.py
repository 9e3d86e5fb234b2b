"""The model card of a published artifact: what it is, how to run it in each client, what was proven."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import Artifact
from exporter.techniques import spelled

if TYPE_CHECKING:
    from exporter.artifact import SourceRecord
    from exporter.parity.schema import Report

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
LICENSE_KEYS = ("license", "license_name", "license_link")
FLAGS = {
    "task": "--task", "vae": "--vae", "controlnet": "--controlnet", "ip_adapter": "--ip-adapter",
    "textual_inversion": "--textual-inversion", "lora": "--lora", "scheduler": "--scheduler",
}  # fmt: skip
"""Kind of an overlay → the flag of `exporter convert` that lays it."""


@dataclass(frozen=True)
class ParityRow:
    """One component in the table of the card, as text."""

    name: str
    verdict: str
    arithmetic: str
    error: str
    limit: str
    share: str


def make_card(artifact: Artifact, repo: str) -> str:
    """Markdown with front matter, for `README.md`.

    Args:
        artifact: Open; its stored report gives the figures.
        repo: `org/name` that the code in it names.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from exporter.planning import human

    manifest = artifact.manifest
    verdict = artifact.verified()
    report = stored_report(artifact)
    license_fields = source_license(artifact)
    hub_source = _hub_source(manifest.source.source)
    front: dict[str, Any] = {
        **license_fields,
        "library_name": "diffusers",
        "pipeline_tag": hub_task(manifest.source.pipeline_class),
        "tags": ["exporter", manifest.target],
    }
    if hub_source:
        front["base_model"] = hub_source
        front["base_model_relation"] = "quantized"
    environment = Environment(
        loader=PackageLoader("exporter", "."), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["human"] = human
    from exporter.targets import get_target

    target = get_target(manifest.target, require_backend=False)
    return environment.get_template("card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False).strip(),
        repo=repo,
        title=repo.split("/")[-1],
        format=target.title,
        manifest=manifest,
        source=shown_source(manifest.source.source),
        license=license_fields.get("license"),
        verdict=verdict,
        record=manifest.verification,
        report=report,
        rows=parity_rows(report) if report else [],
        paintings=paintings(report) if report else [],
        clients=target.clients(repo, manifest),
        program=target.executable,
        command=command(artifact),
        size=sum(file.bytes for file in manifest.all_files()),
    )


def hub_task(pipeline_class: str) -> str:
    """What the Hub lists a pipeline under; it has no inpainting."""
    from exporter.checkpoints.overlays.task import GROUPS, HOLE, IMAGE, TEXT

    tasks = {name: task for group in GROUPS for task, name in group.items()}
    found = tasks.get(pipeline_class, TEXT)
    return IMAGE if found == HOLE else found


def stored_report(artifact: Artifact) -> Report | None:
    """The report beside the artifact, if the recorded verdict rests on it."""
    from exporter.errors import ExporterError
    from exporter.parity.schema import Report

    record = artifact.manifest.verification
    if record is None or record.report is None:
        return None
    try:
        report = Report.load(artifact.path(record.report))
    except ExporterError:
        return None
    return report if report.digest == artifact.manifest.digest() else None


def parity_rows(report: Report) -> list[ParityRow]:
    """A row for each component: its largest error beside its limit."""
    rows = []
    for part in report.components:
        worst = part.worst
        arithmetic = ", ".join(dict.fromkeys(run.arithmetic for run in part.runs))
        if worst is None:
            rows.append(ParityRow(part.name, part.verdict, arithmetic, "–", "–", "–"))
            continue
        numbers = (f"{worst.value:.2e}", f"{worst.limit:.2e}", f"{worst.ratio:.0%}")
        rows.append(ParityRow(part.name, part.verdict, arithmetic, *numbers))
    return rows


def paintings(report: Report) -> list[dict[str, str]]:
    """Whole pictures of the report: prompt, PSNR, and the paths of reference, artifact and difference."""
    found = []
    for run in report.pipeline.runs if report.pipeline else ():
        for painting in run.paintings:
            if {"reference", "artifact", "difference"} <= set(painting.pictures) and run.mode == "graph":
                psnr = "identical" if painting.psnr_db is None else f"{painting.psnr_db:.1f} dB"
                found.append({"prompt": painting.prompt, "psnr": psnr, **painting.pictures})
    return found


def command(artifact: Artifact) -> str:
    """The command that makes the artifact again."""
    manifest = artifact.manifest
    parts = ["exporter", "convert", shown_source(manifest.source.source), "--to", manifest.target]
    if manifest.source.revision:
        parts += ["--revision", manifest.source.revision]
    if manifest.source.variant:
        parts += ["--variant", manifest.source.variant]
    parts += _intake(manifest.source)
    for name, value in manifest.options.items():
        if value in (None, False, [], {}):
            continue
        text = str(value)
        if isinstance(value, list):  # a size, or names
            text = ("x" if all(isinstance(one, int) for one in value) else ",").join(map(str, value))
        parts += ["--option", f"{name}={text}"]
    for each in manifest.techniques:
        parts += ["--technique", spelled(each.name, each.options)]
    return shlex.join(parts)


def _intake(source: SourceRecord) -> list[str]:
    """The flags that say how the source was opened, and what was laid over it."""
    parts = []
    for flag, value in (("config", source.config), ("tokenizer", source.tokenizer), ("base", source.base)):
        parts += [f"--{flag}", shown_source(value)] if value is not None else []
    parts += ["--allow-pickle"] if source.pickle else []
    for each in source.overlays:
        place, colon, inside = each.source, "", ""
        if each.kind == "ip_adapter":  # perhaps SOURCE:FILE
            place, colon, inside = each.source.partition(":")
        scale = "" if each.scale is None else f":{each.scale!r}"
        parts += [FLAGS[each.kind], f"{shown_source(place)}{colon}{inside}{scale}"]
    return parts


def shown_source(source: str) -> str:
    """A source without the folders of somebody's machine."""
    return source if _hub_source(source) or source.startswith("builtin:") else Path(source).name


def _hub_source(source: str) -> str | None:
    from exporter.checkpoints.hub import is_hub_id

    return source if is_hub_id(source) and not Path(source).exists() else None


def source_license(artifact: Artifact) -> dict[str, str]:
    """The licence fields of the source's own card; empty when it names none."""
    source = artifact.manifest.source.source
    if source.startswith("builtin:"):
        return {"license": "apache-2.0"}
    text = _source_card(source, artifact.manifest.source.revision)
    found = FRONT_MATTER.match(text) if text else None
    if found is None:
        return {}
    import yaml

    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    if not isinstance(fields, Mapping):
        return {}
    return {key: str(fields[key]) for key in LICENSE_KEYS if fields.get(key)}


def _source_card(source: str, revision: str | None) -> str | None:
    path: Path | None = Path(source).expanduser() / CARD
    if _hub_source(source):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            path = Path(hf_hub_download(source, CARD, revision=revision))
        except (HfHubHTTPError, OSError, ValueError):  # no card, or nobody to ask: the card then says nothing
            path = None
    try:
        return path.read_text(encoding="utf-8") if path is not None else None
    except (OSError, UnicodeDecodeError):
        return None
