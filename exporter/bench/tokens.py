"""The length of the text where artifacts were baked for one: all competitors paint with the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from exporter.architectures.stable_diffusion_3 import PIPELINES, t5_tokens
from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints.published import local_folder
from exporter.errors import ExporterError, UsageError

if TYPE_CHECKING:
    from exporter.bench import Entrant

CLIP_TOKENS = 77
"""Where the tokenizer does not say, as diffusers has it."""


def common_tokens(entrants: Iterable[Entrant]) -> int | None:
    """Tokens of T5 that the artifacts of Stable Diffusion 3 among the competitors were baked for.

    Their manifests tell, so nothing is opened for it.

    Returns:
        None where any length does: every pipeline then takes its own.

    Raises:
        UsageError: Two were baked for different lengths.
    """
    found: tuple[str, int] | None = None
    for entrant in entrants:
        tokens = _baked(entrant)
        if tokens is None:
            continue
        if found is not None and found[1] != tokens:
            raise UsageError(
                f"{found[0]} was baked for {found[1]} tokens of T5 and {entrant.title} for {tokens}: they "
                "cannot paint the same picture.",
                hint="Measure each against the checkpoint in a run of its own.",
            )
        found = found or (entrant.title, tokens)
    return None if found is None else found[1]


def text_tokens(pipeline: object, tokens: int | None) -> int | None:
    """What a competitor's pipeline is to take of it: others than Stable Diffusion 3's take their own."""
    return tokens if type(pipeline).__name__.startswith(PIPELINES) else None


def _baked(entrant: Entrant) -> int | None:
    """None also of what cannot be opened, which says so when its turn comes."""
    try:
        root = local_folder(entrant.source)
        if root is None or not (root / MANIFEST).is_file():
            return None
        manifest = Artifact.open(root).manifest
    except ExporterError:
        return None
    if not manifest.source.pipeline_class.startswith(PIPELINES):
        return None
    try:
        told = json.loads((root / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
        clip = int(told["model_max_length"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        clip = CLIP_TOKENS
    return t5_tokens({record.name: record.inputs for record in manifest.components}, clip)
