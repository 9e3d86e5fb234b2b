"""RUN: an artifact's safety checker, which blackens what it finds in a painted picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.architectures.safety_checker import CONCEPTS, EYES, FLAG, LOOK, SPECIAL, found
from exporter.architectures.safety_checker import NAME as NAME
from exporter.stand_ins import ExportedModule

if TYPE_CHECKING:
    from exporter.targets import Runner


class ExportedSafetyChecker(ExportedModule):
    """Stands for a `StableDiffusionSafetyChecker`."""

    def forward(self, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Blacken, in place, the pictures that are to be withheld.

        Args:
            clip_input: `[batch, 3, pixels, pixels]`.
            images: `[batch, …]`, an array or tensor, or one of either for each picture.

        Returns:
            The pictures, and of each whether it was blackened.
        """
        withheld = self.withheld(clip_input)
        for place, hide in enumerate(withheld):
            if hide:
                black = torch.zeros_like if torch.is_tensor(images[place]) else np.zeros_like
                images[place] = black(images[place])
        return images, withheld

    def withheld(self, clip_input: torch.Tensor) -> list[bool]:
        """Of each picture whether it is to be withheld: by its scores, or as an artifact says that decides it
        itself; the pictures (of its one size) and the adjustment that this one takes beside are zeros."""
        names = [spec.name for spec in self.runner.outputs]
        others = {}
        for spec in self.runner.inputs:
            if spec.name != LOOK:
                first, *rest = map(int, spec.dims)
                others[spec.name] = torch.zeros([len(clip_input), *rest] if rest else [first])
        values = self.call(self.runner, **{LOOK: clip_input}, **others)
        given = dict(zip(names, values, strict=True))
        if FLAG in given:
            return [bool(flag > 0.5) for flag in given[FLAG].flatten()]
        scores = zip(given[SPECIAL].tolist(), given[CONCEPTS].tolist(), strict=True)
        return [found(*each) for each in scores]


def checker_of(root: Path, runners: Mapping[str, Runner]) -> dict[str, Any]:
    """The pipeline's `safety_checker` and `feature_extractor`; empty where the artifact has none."""
    from transformers import CLIPImageProcessor

    if NAME not in runners:
        return {}
    config = json.loads((root / NAME / "config.json").read_text(encoding="utf-8"))
    processor = CLIPImageProcessor.from_pretrained(root / EYES, local_files_only=True)
    return {NAME: ExportedSafetyChecker(runners[NAME], config), EYES: processor}


def note_withheld(pipeline: Any, result: Any, first: int, count: int) -> None:
    """Note in a pipeline which of its pictures the checker blackened, for `withheld_from`.

    Args:
        result: Of the pipeline's call.
        first: Number of its first picture among those that were asked for; 0 begins anew.
        count: Of its pictures.
    """
    flags = getattr(result, "nsfw_content_detected", None) or [False] * count
    before = withheld_from(pipeline) if first else []
    pipeline.exporter_withheld = before + [first + place for place, hidden in enumerate(flags) if hidden]


def withheld_from(pipeline: Any) -> list[int]:
    """Numbers of those pictures, of the ones last painted, that the safety checker blackened."""
    return list(getattr(pipeline, "exporter_withheld", []))
