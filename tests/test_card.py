"""The card's command makes the artifact again: with everything that was laid over the source."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import exporter
from exporter.architectures import FAMILIES
from exporter.artifact import Artifact, OverlayRecord
from exporter.card import FLAGS, command, hub_task, make_card
from tests import ip_adapters
from tests.cli.runner import invoke
from tests.families import make

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def laid(root: Path, tiny: Path) -> Artifact:
    """The encoder alone: what was laid over the source is the point."""
    source = make("sd2", root / "source")
    parts = {"lora_A": torch.randn(4, 32), "lora_B": torch.randn(32, 4)}
    save_file({f"{LAYER}.{part}.weight": value for part, value in parts.items()}, root / "style.safetensors")
    ip_adapters.write(source / "unet", root / "look")
    made = exporter.convert(
        str(source), "onnx", root / "artifact", components=["vae_encoder"], verify=False,
        task="image-to-image", vae=str(tiny), scheduler="euler",
        loras=[(str(root / "style.safetensors"), 0.12345678)],
        ip_adapters=[f"{root / 'look'}:{ip_adapters.WEIGHTS}"],
    )  # fmt: skip
    return made.artifact


def test_the_command_asks_for_the_same_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = laid(tmp_path, tiny)
    written = command(artifact)
    assert str(tmp_path) not in written, "somebody's folders"
    (tmp_path / tiny.name).symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    plan = invoke("--json", *shlex.split(written)[1:], "--dry-run").document
    assert plan["pipeline_class"] == "StableDiffusionImg2ImgPipeline"

    def told(records: list[OverlayRecord]) -> list[tuple[str, float | None, list[str]]]:
        return [(each.kind, each.scale, [file.sha256 for file in each.files]) for each in records]

    again = [OverlayRecord.model_validate(each) for each in plan["overlays"]]
    assert told(again) == told(artifact.manifest.source.overlays)
    assert [each.kind for each in again] == ["task", "vae", "ip_adapter", "lora", "scheduler"]


def test_every_kind_of_overlay_has_its_flag() -> None:
    shown = invoke("convert", "--help").stdout
    assert set(FLAGS) == set(OverlayRecord.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]
    assert all(f"  {flag} " in shown for flag in FLAGS.values())


def test_the_hub_lists_it_under_its_task(tmp_path: Path) -> None:
    assert {hub_task(name) for name in FAMILIES} == {
        "text-to-image", "image-to-image", "text-to-video", "image-to-video",
    }  # fmt: skip
    assert hub_task("FluxFillPipeline") == "image-to-image" and hub_task("DDPMPipeline") == "text-to-image"
    made = exporter.convert(
        str(make("ltx", tmp_path / "ltx")), "onnx", tmp_path / "artifact", components=["text_encoder"],
        verify=False, task="image-to-video",
    )  # fmt: skip
    card = make_card(made.artifact, "org/name")
    assert "pipeline_tag: image-to-video" in card and "--task image-to-video" in card
    assert "--image start.png" in card
