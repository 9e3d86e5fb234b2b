"""T-GATE: no text after the first steps.

Our own: the package of the paper's authors replaces the pipeline's `__call__`, one copy per family, so its
other features (callbacks, starting pictures, masks) go. This wraps the denoiser alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from exporter.errors import UsageError
from exporter.techniques.base import GRAPHS, PYTORCH, Technique, Undo, denoiser, set_forward, together


class TGate(Technique):
    """Attributes:
    gate: From this step on (0 is the first), cross-attention gives what it gave at the step before, the mean
        of the guided and the unguided half, and guidance stops.
    """

    name: ClassVar[str] = "t-gate"
    does: ClassVar[str] = (
        "Keeps the output of cross-attention after some steps, and drops guidance from there on."
    )
    source: ClassVar[str] = (
        "Zhang et al. 2024, Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models "
        "(arXiv:2404.02747)"
    )
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet"})
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion",)
    targets: ClassVar[frozenset[str]] = PYTORCH | GRAPHS
    effect: ClassVar = "lossy"
    how_much: ClassVar[str] = "Falls with a later gate; the first steps settle the composition."
    stage: ClassVar[int] = 3
    excludes: ClassVar[frozenset[str]] = frozenset({"trace"})

    gate: int = Field(default=10, ge=1)

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        attentions = [part for path, part in module.named_modules() if path.endswith("attn2")]
        if not attentions:
            raise UsageError(f"The UNet of this {type(pipeline).__name__} has no cross-attention.")
        state = _Gate(self.gate)
        before = module.forward

        def forward(sample: Any, timestep: Any, *arguments: Any, **named: Any) -> Any:
            state.enter(_position(pipeline.scheduler.timesteps, timestep))
            # Under guidance both halves are the same latents; only the text told them apart. The pipeline
            # cannot be asked: one that starts from a picture is another object with the same parts.
            rows = sample.shape[0]
            if not (
                state.closed and rows % 2 == 0 and bool((sample[: rows // 2] == sample[rows // 2 :]).all())
            ):
                return before(sample, timestep, *arguments, **named)
            state.halve(rows)
            arguments, named = _half(arguments, rows), _half(named, rows)
            return _doubled(before(sample[rows // 2 :], timestep, *arguments, **named))

        def attention(original: Any, key: int) -> Any:
            def run(*arguments: Any, **named: Any) -> Any:
                if state.closed:
                    return state.kept[key]
                output = original(*arguments, **named)
                if state.step == state.gate - 1:
                    state.kept[key] = output
                return output

            return run

        undos = [set_forward(part, attention(part.forward, number)) for number, part in enumerate(attentions)]
        return together([*undos, set_forward(module, forward)])


class _Gate:
    """Where a picture is: the step, and what cross-attention gave last."""

    def __init__(self, gate: int) -> None:
        self.gate, self.step = gate, 0
        self.kept: dict[int, Any] = {}

    def enter(self, step: int) -> None:
        if step == 0:
            self.kept = {}
        self.step = step

    def halve(self, rows: int) -> None:
        """Of what was kept of `rows` rows, the mean of both halves."""
        for key, value in self.kept.items():
            if value.shape[0] == rows:
                self.kept[key] = sum(value.chunk(2)) / 2

    @property
    def closed(self) -> bool:
        return self.step >= self.gate and bool(self.kept)


def _position(timesteps: Any, timestep: Any) -> int:
    """The number of a timestep in the schedule; a scheduler of second order has each twice."""
    return int((timesteps == timestep).nonzero()[0])


def _half(value: Any, rows: int) -> Any:
    """The second half of every tensor that has a row for each row of the batch."""
    if isinstance(value, dict):
        return {key: _half(part, rows) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_half(part, rows) for part in value)
    shape = getattr(value, "shape", None)
    return value[rows // 2 :] if shape and shape[0] == rows else value


def _doubled(output: Any) -> Any:
    """A denoiser's output for both halves."""
    import torch

    if isinstance(output, tuple):
        return (torch.cat([output[0], output[0]]), *output[1:])
    return type(output)(sample=torch.cat([output.sample, output.sample]))
