"""Stable Diffusion 3 and 3.5 as `StableDiffusion3Pipeline` of Apple's Swift package reads them.

From apple/ml-stable-diffusion (commit e12202c), below `swift/StableDiffusion/pipeline`:
`StableDiffusion3Pipeline.swift` (and `…+Resources.swift`), `MultiModalDiffusionTransformer.swift`,
`TextEncoderT5.swift`, `Encoder.swift`:

- The text of the transformer is CLIP's 77 tokens (both encoders side by side, zeros up to T5's width) and the
  first 77 of T5's; zeros where there is no `TextEncoderT5`. diffusers makes the same numbers of a prompt with
  `max_sequence_length=77`.
- T5 gets `input_ids`, words, an end and padding to the tokens of the model, as diffusers pads them, and an
  `attention_mask`. diffusers gives none: T5 reads the padding. So does the T5 made here, which has no such
  input; a Core ML model leaves unread what it has no input for (Swift's chunks of a UNet rely on it).
- Widths stand in the code: 768 and 1280 channels of CLIP, 4096 of T5.
- `Encoder.encode` takes the first four channels for the mean and the next four for the log-variance, so no
  encoder of 16 channels serves it; and `DiscreteFlowScheduler` fills no `alphasCumProd`,
  which `addNoise` reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord

CLASS, PIPELINES = "SD3Transformer2DModel", "StableDiffusion3"
PARTS = ("transformer", "text_encoder_3")
"""Components that Swift knows of no other family."""
CLIP_TOKENS, T5_TOKENS = 77, 77
TOKENS = CLIP_TOKENS + T5_TOKENS
"""Of the text that Swift gives the transformer."""
WIDTHS = {"text_encoder": 768, "text_encoder_2": 1280, "text_encoder_3": 4096, "transformer": 4096}
"""Channels of each component's text: of what an encoder gives, of what the transformer takes."""
MEANS = 4
"""Channels of latents that Swift's `Encoder` draws."""
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
"""Of T5; without one of them Swift takes zeros for T5's text."""


def reads(component: Component) -> bool:
    """Whether a component is the transformer or the T5 of a Stable Diffusion 3."""
    of_family = component.checkpoint.pipeline_class.startswith(PIPELINES)
    return of_family and component.name in PARTS


def check(component: Component) -> None:
    """That Swift can run it.

    Raises:
        UnsupportedError: Its latents are not those that are decoded, or Swift finds no tokenizer for it.
    """
    if component.name == "transformer":
        taken, given = component.inputs[0].dims[1], component.outputs[0].dims[1]
        if taken != given:
            raise UnsupportedError(
                "Swift's runner gives the transformer latents and nothing beside them; this one takes "
                f"{taken} channels and gives {given}.",
                hint="Convert it --to onnx, openvino, torchscript, pt2 or safetensors.",
            )
        return
    folder = component.checkpoint.root / "tokenizer_3"
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise UnsupportedError(
            f"Swift's runner reads tokenizer_3/{missing[0]}, which {component.checkpoint.source} lacks; "
            "without it, it would leave T5 out and not say so.",
            hint="Save the tokenizer again with transformers' T5TokenizerFast, or name every component but "
            "text_encoder_3 with --component.",
        )


def sized(component: Component) -> Component:
    """The component with the tokens that Swift gives it; of another family as it is."""
    if not reads(component):
        return component
    tokens = TOKENS if component.name == "transformer" else T5_TOKENS
    return replace(component, native=replace(component.native, sequence=tokens))


def is_compiled(component: Component) -> bool:
    """Whether a package belongs among those that Swift opens: not an autoencoder's encoder that it would read
    wrongly. Without one Swift says that it cannot start from a picture; with it, it would crash."""
    of_family = component.checkpoint.pipeline_class.startswith(PIPELINES)
    return not (of_family and component.name == "vae_encoder" and component.outputs[0].dims[1] != 2 * MEANS)


def other_widths(records: Iterable[ComponentRecord]) -> list[str]:
    """Components whose text has another width than Swift's code says, in words; none of the published models
    has."""
    faults = []
    for record in records:
        side = record.inputs if record.name == "transformer" else record.outputs
        found = next((spec.dims[2] for spec in side if len(spec.dims) == 3), None)
        wanted = WIDTHS.get(record.name)
        if wanted is not None and found is not None and found != wanted:
            faults.append(f"the text of {record.name} has {found} channels instead of {wanted}")
    return faults
