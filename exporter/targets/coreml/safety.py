"""The safety checker as Apple's runners ask it, and the cases on which its decision is clear.

From apple/ml-stable-diffusion (commit e12202c): `torch2coreml.convert_safety_checker` names the tensors,
`pipeline.run_safety_checker` and `SafetyChecker.swift` give and read them.

- The package blackens: it takes the picture (0 to 1, channels last) beside what the checker looks at, and
  gives it back. Swift gives zeros of 512×512 instead and reads the flag.
- `adjustment` is added to the special scores only; 0 asks what the library asks.
- Scores are compared with 0 unrounded, where the library rounds to three decimals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord

NAME = "safety_checker"
LOOK, IMAGES, ADJUSTMENT = "clip_input", "images", "adjustment"
FILTERED, FLAG, CONCEPTS = "filtered_images", "has_nsfw_concepts", "concept_scores"
"""Apple's names, said here: whoever only opens a package needs nothing of `architectures`."""
DOMINANT = 4.0
"""An adjustment that no special score outweighs: cosines are within ±1, thresholds within ±2."""
CLEAR = 0.02
"""How far from 0 the largest concept score of a judged case is: far above what float16 rounds."""
STEPS, STEP = 40, 0.02
"""At most so many steps of that root mean square, on the way to a clear case."""
SWIFT_SIDE = 512
"""Of the picture that Swift gives beside what the checker looks at."""


def as_apple(component: Component) -> Component:
    """The checker with Apple's inputs and outputs; any other component as it is."""
    if component.name != NAME or any(spec.name == IMAGES for spec in component.inputs):
        return component
    from exporter.architectures.base import TensorSpec
    from exporter.architectures.safety_checker import COUNTS

    picture = ("batch", "height", "width", 3)
    return replace(
        component,
        inputs=(
            *component.inputs,
            TensorSpec(IMAGES, "float32", picture),
            TensorSpec(ADJUSTMENT, "float32", (1,)),
        ),
        outputs=(
            TensorSpec(FILTERED, "float32", picture),
            TensorSpec(FLAG, "float32", ("batch", 1, 1, 1)),
            TensorSpec(CONCEPTS, "float32", ("batch", COUNTS[CONCEPTS])),
        ),
        adapt=_filtering,
        situations=situations,
    )


def _filtering(inner: nn.Module) -> nn.Module:
    from exporter.targets.coreml._safety import Filtered

    return Filtered(inner)


def situations(
    component: Component, tensors: dict[str, torch.Tensor], height: int, width: int
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Of one look at a picture four cases, in words and tensors: found and not found, each with the special
    concepts found and not found.

    The look is changed by gradient steps until the largest score is `CLEAR` of 0, so that no rounding turns
    the decision; where the thresholds cannot be reached, it stays as it is.

    Args:
        tensors: With `clip_input`: `[batch, 3, pixels, pixels]` float32.
        height / width: Of the pictures to be filtered, pixels.
    """
    import torch

    look = tensors[LOOK]
    noise = torch.Generator().manual_seed(0)
    images = torch.rand((look.shape[0], height, width, 3), generator=noise)
    module = component.reference_module()
    for above in (True, False):
        # the special concepts raise each score a little, so these adjustments make the push the harder
        hardest = torch.tensor([-DOMINANT if above else DOMINANT])
        pushed = _pushed(module, look, images, hardest, above)
        told = "thresholds out of reach" if pushed is None else f"pushed {'above' if above else 'below'}"
        seen = look if pushed is None else pushed
        for sign, special in ((-1, "no special concept"), (1, "special concepts")):
            case = {
                LOOK: seen,
                IMAGES: images,
                ADJUSTMENT: torch.tensor([sign * DOMINANT]),
            }
            yield f"{told}, {special}", case


def _pushed(
    module: nn.Module, look: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor, above: bool
) -> torch.Tensor | None:
    """The look after as few steps as make the largest concept score of each picture clear of 0; None where
    `STEPS` do not."""
    import torch

    sign, now = (1.0 if above else -1.0), look
    for _ in range(STEPS + 1):
        with torch.enable_grad():
            asked = now.detach().clone().requires_grad_(True)
            largest = sign * module(asked, images, adjustment)[2].amax(dim=1)
            far = largest.detach() >= CLEAR
            if bool(far.all()):
                return now
            (slope,) = torch.autograd.grad(largest.sum(), asked)
        size = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        step = STEP * slope / size.clamp_min(torch.finfo(torch.float32).tiny)
        now = torch.where(far[:, None, None, None], now, now + step)
    return None


def other_side(records: list[ComponentRecord]) -> list[str]:
    """What Swift cannot ask of a checker for pictures of another size than it gives, in a sentence."""
    for record in records:
        picture = next((spec.dims for spec in record.inputs if spec.name == IMAGES), None)
        if picture is not None and list(picture[1:3]) != [SWIFT_SIDE, SWIFT_SIDE]:
            size = "×".join(str(side) for side in picture[1:3])
            return [
                f"Swift asks a safety checker with pictures of {SWIFT_SIDE}×{SWIFT_SIDE} whatever it paints; "
                f"this one takes {size}: leave SafetyChecker.mlmodelc away there, or convert it with "
                f"--component {NAME} --static 1x{SWIFT_SIDE}x{SWIFT_SIDE}."
            ]
    return []
