"""The reference is the one the artifact was made from, or the verifier says what differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from exporter.artifact import Manifest, SourceRecord
from exporter.checkpoints import resolve
from exporter.errors import ArtifactError
from exporter.parity.sources import check_same

THEN, NOW = "a" * 40, "b" * 40


def made_from(**differences: object) -> Manifest:
    fields = {"source": "org/name", "revision": THEN, "pipeline_class": "StableDiffusionPipeline"}
    return Manifest(target="onnx", source=SourceRecord.model_validate(fields | differences))


def test_a_source_of_another_revision_is_refused(tiny: Path) -> None:
    checkpoint = dataclasses.replace(resolve(tiny), revision=NOW)
    with pytest.raises(
        ArtifactError, match=f"made from revision {THEN[:12]} of org/name, this is revision {NOW[:12]}"
    ) as raised:
        check_same(made_from(), checkpoint)
    assert raised.value.hint and raised.value.exit_code == 3
    check_same(made_from(revision=NOW), checkpoint)
    check_same(made_from(revision=None), checkpoint)  # it was a folder, which has none


def test_a_source_of_another_family_is_refused(tiny: Path) -> None:
    with pytest.raises(ArtifactError, match="made from a StableDiffusionXLPipeline"):
        check_same(made_from(pipeline_class="StableDiffusionXLPipeline"), resolve(tiny))
