"""The run of the reference pipeline whose inputs are captured: what is painted, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.artifact import TensorRecord
    from exporter.checkpoints import Checkpoint
    from exporter.parity.painting import Painted, Plan

BUILTIN = "builtin:"
"""What the name of an embedded model begins with."""
GENERIC_PROMPTS = ("a photograph of an astronaut riding a horse", "a watercolour of a harbour at dawn")
BUILTIN_PROMPTS = (
    "a large red star at the left on a blue background",
    "a small green circle at the top on a white background",
)


def default_prompts(checkpoint: Checkpoint) -> list[str]:
    """Two that fit the model, and one that speaks every token that was laid over it."""
    builtin = checkpoint.source.startswith(BUILTIN)
    return [*(BUILTIN_PROMPTS if builtin else GENERIC_PROMPTS), *token_prompts(checkpoint)]


def token_prompts(checkpoint: Checkpoint) -> list[str]:
    """A prompt that speaks every token that was laid over the checkpoint."""
    tokens = [t for o in checkpoint.overlays if o.kind == "textual_inversion" for t in o.details["tokens"]]
    return [f"a picture of {' '.join(map(str, tokens))}"] if tokens else []


def plan_of(
    checkpoint: Checkpoint,
    size: Sequence[int] | None,
    *,
    prompts: Sequence[str] | None,
    steps: int,
    seed: int,
    inputs: Mapping[str, Sequence[TensorRecord]] | None = None,
) -> Plan:
    """What is painted.

    Args:
        size: `(pictures, height, width)` where an artifact's shapes are baked, of a video model perhaps with
            frames; None is the native size.
        prompts: None or nothing takes `default_prompts`.
        steps: More are taken where a technique's graphs are not all called in so few.
        inputs: Component → its inputs as an artifact declares them: a text whose length is baked is as long.
    """
    from exporter.architectures import components_of
    from exporter.architectures.baked.driving import driver_of
    from exporter.architectures.stable_diffusion_3 import PIPELINES, t5_tokens
    from exporter.parity.painting import Plan

    components = components_of(checkpoint)
    native, clip = components[0].native, max(component.clip for component in components)
    batch, height, width, *rest = size or (1, native.height, native.width, native.frames)
    chosen = tuple(prompts or default_prompts(checkpoint))
    driver = driver_of(checkpoint.techniques)
    steps = max(steps, driver.least_steps if driver is not None else 1)
    frames = int(rest[0] if rest else clip)
    tokens = None
    if checkpoint.pipeline_class.startswith(PIPELINES):
        clip = next((c.native.sequence for c in components if c.name == "text_encoder"), 0)
        tokens = t5_tokens(inputs or {}, clip)
    return Plan(chosen, steps, seed, int(height), int(width), int(batch), frames=frames, tokens=tokens)


def paint_reference(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    cache: Path | Literal["user"] | None,
    tick: Callable[[str], None] = lambda text: None,
    components: Sequence[Component] | None = None,
) -> Painted:
    """The float32 reference's run, from the cache where it is there.

    Args:
        components: In the place of the checkpoint's own, where they have other weights.
    """
    from exporter.architectures import components_of
    from exporter.parity.budget import cache_folder
    from exporter.parity.paint_cache import cached_paint
    from exporter.parity.painting import paint
    from exporter.parity.twin import reference_backend

    components = components or components_of(checkpoint)
    by_name = {component.name: component for component in components}
    return cached_paint(
        cache_folder() if cache == "user" else cache,
        checkpoint,
        components,
        plan,
        {},
        "reference",
        lambda: paint(checkpoint, components, plan, reference_backend(by_name), tick),
    )
