"""IP-Adapter: a picture beside the prompt. An encoder looks at it once; the UNet attends to what that gives.

Which one a UNet has stands in its config under `KEY`, where `checkpoints.overlays.ip_adapter` puts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from exporter.architectures._parts import adapter, expect_class
from exporter.architectures._text import rename_text
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.checkpoints import Checkpoint
from exporter.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

KEY = "ip_adapter"
"""In the UNet's config: `kind` (`plain`, `plus`, `full`), `embed` (channels of what the encoder gives),
`tokens` (what the UNet attends to) and of `plus` `hidden` and `heads`."""
NAME = "image_encoder"
CLASS = "CLIPVisionModelWithProjection"
EMBEDS, SCALE = "image_embeds", "ip_adapter_scale"
"""The UNet's inputs: what the encoder gives of one picture for each row, and how much it counts."""


def image_encoders(checkpoint: Checkpoint, native: Size) -> list[Component]:
    """The encoder of a checkpoint whose UNet has an IP-Adapter; none where it has none.

    Raises:
        CheckpointError: There is no encoder, or it gives something else than the adapter takes.
    """
    settings = checkpoint.config("unet").get(KEY)
    if settings is None:
        return []
    expect_class(checkpoint, NAME, (CLASS,))
    config = checkpoint.config(NAME)
    pixels, hidden, layers = vision_shape(config)
    found = embedded(config, settings["kind"])
    if found != settings["embed"]:
        raise CheckpointError(
            f"{checkpoint.source}, component {NAME!r}: the encoder gives {found} channels, the IP-Adapter "
            f"takes {settings['embed']}."
        )
    output = TensorSpec(EMBEDS, "float32", ("batch", found))
    if settings["kind"] != "plain":
        patches = (pixels // int(config.get("patch_size", 32))) ** 2
        output = TensorSpec(f"hidden_states.{layers - 1}", "float32", ("batch", patches + 1, hidden))

    def construct() -> Any:
        import transformers

        return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig.from_dict(config))

    component = Component(
        name=NAME,
        folder=NAME,
        checkpoint=checkpoint,
        class_name=CLASS,
        inputs=(
            TensorSpec(
                "pixel_values", "float32", ("batch", int(config.get("num_channels", 3)), pixels, pixels)
            ),
        ),
        outputs=(output,),
        native=native,
        construct=construct,
        adapt=adapter("ImageEncoder", room="_ip_adapter", states=settings["kind"] != "plain"),
        renames=rename_text,
    )
    return [component]


def vision_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Pixels of a side, channels and layers of a CLIP vision model; the library's own where it names none."""
    return (
        int(config.get("image_size", 224)),
        int(config.get("hidden_size", 768)),
        int(config.get("num_hidden_layers", 12)),
    )


def embedded(config: Mapping[str, Any], kind: str) -> int:
    """Channels of what an IP-Adapter of that kind takes of a vision model: the projection, or the tokens of
    the last but one layer."""
    return int(config.get("projection_dim", 512)) if kind == "plain" else vision_shape(config)[1]


def picture_inputs(checkpoint: Checkpoint, encoders: list[Component]) -> tuple[TensorSpec, ...]:
    """What the UNet takes besides its usual inputs; nothing where it has no IP-Adapter.

    Raises:
        UsageError: A technique is to be baked in as well.
    """
    if not encoders:
        return ()
    from exporter.architectures.baked import IN_THE_RUNNER

    named = next((name for name, _ in checkpoint.techniques if name not in IN_THE_RUNNER), None)
    if named is not None:
        raise UsageError(
            f"{named} changes the UNet's attention, and so does an IP-Adapter; this version converts no "
            "model with both.",
            hint="Leave out the technique or --ip-adapter.",
        )
    return (
        TensorSpec(EMBEDS, "float32", ("batch", 1, *encoders[0].outputs[0].dims[1:])),
        TensorSpec(SCALE, "float32", ()),
    )


def scale(spec: TensorSpec, size: Size, generator: torch.Generator) -> torch.Tensor:
    """A number of 0.5 to 1.5."""
    import torch

    return torch.rand((), generator=generator) + 0.5


def looks(pipeline: Any) -> bool:
    """Whether a pipeline's UNet has an IP-Adapter: the library's own, one without weights, or a stand-in."""
    projection = getattr(getattr(pipeline, "unet", None), "encoder_hid_proj", None)
    return hasattr(projection, "image_projection_layers")


def pictured(given: Mapping[str, Any], unet: Any) -> dict[str, Any]:
    """Arguments of a UNet's call: of the list of what was encoded its one entry, and the scale that the
    library keeps inside the UNet.

    Raises:
        UsageError: Several pictures, or a scale of its own for some layers.
    """
    if EMBEDS not in given:
        return dict(given)
    embeds = given[EMBEDS]
    if len(embeds) != 1 or embeds[0].shape[1] != 1:
        raise UsageError("What was exported looks at one picture for each prompt.", hint="Give it one.")
    import torch

    return {**given, EMBEDS: embeds[0], SCALE: torch.tensor(scale_of(unet), dtype=torch.float32)}


def processors(unet: Any) -> list[Any]:
    """What attends to the picture inside a UNet."""
    return [each for each in unet.attn_processors.values() if hasattr(each, "to_k_ip")]


def scale_of(unet: Any) -> float:
    """How much the picture counts.

    Raises:
        UsageError: Not the same everywhere.
    """
    found = {float(getattr(each.scale[0], "value", each.scale[0])) for each in processors(unet)}
    if len(found) != 1:
        raise UsageError("What was exported has one IP-Adapter scale for all of its layers.")
    return found.pop()


def set_scale(pipeline: Any, value: float) -> None:
    """Let the picture count so much, in every layer: as diffusers' `set_ip_adapter_scale`."""
    for each in processors(pipeline.unet):
        each.scale = [value]


def encoded(named: Mapping[str, torch.Tensor]) -> Any:
    """What a pipeline reads of an encoder's output: `image_embeds`, or `hidden_states[-2]`."""
    states = [value for name, value in named.items() if name.startswith("hidden_states.")]
    return SimpleNamespace(image_embeds=named.get(EMBEDS), hidden_states=(*states, None))
