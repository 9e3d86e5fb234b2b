"""The safety checker of Stable Diffusion 1 and 2: it looks at what was painted; pipelines blacken what
it finds.

It is exported up to its scores, which are compared with 0 afterwards, in the runner: what the library rounds
there is no matter of an artifact's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter
from exporter.architectures._text import rename_text
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch

NAME = "safety_checker"
CLASS = "StableDiffusionSafetyChecker"
MODULE = "diffusers.pipelines.stable_diffusion.safety_checker"
"""Where that class is."""
EYES = "feature_extractor"
"""What makes of a picture the checker's input."""
LOOK = "clip_input"
"""The input: the picture as CLIP sees it."""
SPECIAL, CONCEPTS = "special_scores", "concept_scores"
"""The outputs: how far a picture is above the threshold of each concept (cosine − threshold)."""
COUNTS = {SPECIAL: 3, CONCEPTS: 17}
FLAG = "has_nsfw_concepts"
"""Output of a checker that decides inside its graph (Core ML's): 1 where a picture is to be withheld."""
STRICTER = 0.01
"""Added to the scores of the concepts where one of the special ones is found."""
DIGITS = 3
"""A score counts as found where it is above 0 after rounding to so many decimals."""


def safety_checkers(checkpoint: Checkpoint, native: Size) -> list[Component]:
    """The checker of a checkpoint; none where it has none that can be run."""
    if NAME not in checkpoint.component_classes or left_out(checkpoint) is not None:
        return []
    config = checkpoint.config(NAME)
    pixels = int((config.get("vision_config") or {}).get("image_size", 224))

    def construct() -> Any:
        import transformers

        return getattr(import_module(MODULE), CLASS)(transformers.CLIPConfig.from_dict(config))

    component = Component(
        name=NAME,
        folder=NAME,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(TensorSpec(LOOK, "float32", ("batch", 3, pixels, pixels)),),
        outputs=tuple(TensorSpec(name, "float32", ("batch", count)) for name, count in COUNTS.items()),
        native=native,
        construct=construct,
        adapt=adapter("Scores", room="_safety_checker"),
        renames=rename_text,
    )
    return [component]


def left_out(checkpoint: Checkpoint) -> str | None:
    """Why the checker that `model_index.json` names is not exported; None where it is."""
    if checkpoint.component_classes[NAME][1] != CLASS:
        return f"is a {checkpoint.component_classes[NAME][1]}"
    if not (checkpoint.root / NAME / "config.json").is_file():
        return "is named in model_index.json and not there"
    if not (checkpoint.root / EYES).is_dir():
        return f"has no {EYES}, which shows it the pictures"
    return None


def shown(checkpoint: Checkpoint, pictures: torch.Tensor) -> torch.Tensor:
    """What the checker is shown of pictures, as pipelines do it.

    Args:
        pictures: `[batch, 3, height, width]` float32 in [-1, 1].

    Returns:
        `clip_input`: `[batch, 3, pixels, pixels]` float32.
    """
    from diffusers.image_processor import VaeImageProcessor
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(checkpoint.root / EYES, local_files_only=True)
    painted = VaeImageProcessor().postprocess(pictures, output_type="pil")
    values: torch.Tensor = processor(painted, return_tensors="pt").pixel_values
    return values.float()


def found(special: Sequence[float], concepts: Sequence[float]) -> bool:
    """Whether a picture with these scores is to be withheld: as the library's checker decides it, which adds
    and rounds in float32 (Python's own `round` finds 0.00050000002, NumPy's does not)."""
    import numpy as np

    def over(scores: Any) -> bool:
        return bool(np.any(np.round(scores, DIGITS) > 0))

    stricter = np.float32(STRICTER if over(np.asarray(special, np.float32)) else 0.0)
    return over(np.asarray(concepts, np.float32) + stricter)
