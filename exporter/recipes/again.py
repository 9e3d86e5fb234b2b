"""From an artifact back to the recipe that makes it; recipes as text, and side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter.errors import ArtifactError
from exporter.recipes.model import Recipe, Verify
from exporter.recipes.reading import path_of, reason_of

if TYPE_CHECKING:
    from exporter.artifact import Artifact, Manifest, SourceRecord


def from_manifest(manifest: Manifest) -> Recipe:
    """The recipe that makes an artifact again.

    Raises:
        ArtifactError: The manifest keeps a recipe that this version cannot read.
    """
    if manifest.recipe is not None:
        try:
            return Recipe.model_validate(manifest.recipe)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in path_of(first))
            raise ArtifactError(
                "The recipe that the manifest keeps is none that this version knows: "
                f"{key}: {reason_of(first)}.",
                hint="Update exporter; or take what `exporter inspect` shows and write a recipe by hand.",
            ) from error
    source = manifest.source
    base = source.source.removeprefix("builtin:").rstrip("/").split("/")[-1]
    options: Mapping[str, Any] = {k: v for k, v in manifest.options.items() if v is not None}
    sizes = [options["static"], *options.get("more_sizes", ())] if options.get("static") else []
    texts = ["x".join(map(str, size)) for size in sizes]
    options = {k: v for k, v in options.items() if k not in ("static", "more_sizes")}
    if texts:
        options = {**options, "static": texts if len(texts) > 1 else texts[0]}
    return Recipe.model_validate(
        {
            "name": "-".join(filter(None, (_word(base), manifest.target))),
            "description": f"Makes the {manifest.target} artifact of {source.source} again.",
            "model": source.source,
            "revision": source.revision,
            "variant": source.variant,
            **_intake_of(source),
            "target": manifest.target,
            "techniques": [{each.name: each.options} for each in manifest.techniques],
            "options": options,
            "components": [c.name for c in manifest.components],
            "verify": {"enabled": not manifest.verification_skipped},
        }
    )


def from_artifact(artifact: Artifact) -> Recipe:
    """As `from_manifest`; judged as strictly as the artifact was, which its report says.

    Raises:
        ArtifactError: As there.
    """
    manifest = artifact.manifest
    recipe = from_manifest(manifest)
    k = _judged_with(artifact) if manifest.recipe is None else None
    return (
        recipe
        if k is None
        else recipe.model_copy(update={"verify": recipe.verify.model_copy(update={"k": k})})
    )


def _judged_with(artifact: Artifact) -> float | None:
    """Of the last verdict; None where there is no report that can be read."""
    record = artifact.manifest.verification
    if record is None or record.report is None:
        return None
    try:
        k = json.loads((artifact.root / record.report).read_text(encoding="utf-8"))["settings"]["k"]
        return Verify(k=k).k
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _word(text: str) -> str:
    """Any text as part of the name of a recipe, which is one word; there may be nothing left."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")


def _intake_of(source: SourceRecord) -> dict[str, Any]:
    """The recipe's keys for how a source was opened and what was laid over it."""
    found: dict[str, Any] = {"config": source.config, "tokenizer": source.tokenizer}
    found |= {"base": source.base, "allow_pickle": source.pickle}
    for overlay in source.overlays:
        if overlay.kind == "lora":
            scale = "" if overlay.scale is None else f":{overlay.scale!r}"
            found.setdefault("loras", []).append(f"{overlay.source}{scale}")
        elif overlay.kind == "textual_inversion":
            found.setdefault("textual_inversions", []).append(overlay.source)
        elif overlay.kind == "controlnet":
            found.setdefault("controlnets", []).append(overlay.source)
        elif overlay.kind == "ip_adapter":
            found["ip_adapters"] = [overlay.source]
        elif overlay.kind == "vae":
            found["vae"] = overlay.source
        elif overlay.kind == "scheduler":
            found["scheduler"] = overlay.source
        elif overlay.kind == "task":
            found["task"] = overlay.source
    return found


def to_yaml(recipe: Recipe) -> str:
    """The recipe as a file, without what is as by default."""
    import yaml

    data = recipe.model_dump(mode="json", exclude_defaults=True, warnings=False)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, in a, in b) for every key that differs; None where it is not there. Names do not count."""
    one, two = (
        _flat(recipe.model_dump(mode="json", exclude={"name", "description"}, warnings=False))
        for recipe in (a, b)
    )
    keys = dict.fromkeys([*one, *two])
    return [(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        if isinstance(part, Mapping):
            flat |= _flat(part, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = part
    return flat
