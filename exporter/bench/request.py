"""What is to be measured: who takes part, and what everyone paints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.errors import ExporterError

if TYPE_CHECKING:
    from exporter.techniques import Named


@dataclass(frozen=True)
class Settings:
    """What is painted.

    Attributes:
        runs: Pictures that count, after `warm_up` that do not.
        steps: Scheduler steps of a picture.
        height / width: Pixels; the native size when None.
        frames: Of a clip, where a video model makes the pictures; its pipeline's own number when None.
        device / precision_hint: As of `exporter run`; None is what each artifact was made for.
        trust: Open artifacts that are programs although they were not made here.
        image / mask / control / ip_adapter_image: Files of pictures, as of `exporter run`; a model that wants
            one that is not named is given the verifier's drawing.
        strength / control_scale / ip_adapter_scale: As of `exporter run`.
        tokens: Of T5, where artifacts of Stable Diffusion 3 were baked for a number; found by `run`.
    """

    prompt: str
    runs: int = 5
    warm_up: int = 1
    steps: int = 10
    seed: int = 0
    guidance: float = 7.5
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    device: str | None = None
    precision_hint: str | None = None
    trust: bool = False
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    control: tuple[str, ...] = ()
    control_scale: tuple[float, ...] = ()
    ip_adapter_image: str | None = None
    ip_adapter_scale: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Entrant:
    """What takes part.

    Attributes:
        source: An artifact, or a checkpoint for the PyTorch pipeline.
        name: In tables; the source itself when empty.
        techniques: Applied to the PyTorch pipeline (`exporter.techniques`).
        intake: Of a checkpoint: further arguments of `exporter.pipeline.load` (revision, loras …).
        error: Why it cannot take part, where that is known before.
    """

    source: str
    name: str = ""
    techniques: tuple[Named, ...] = ()
    intake: dict[str, Any] = field(default_factory=dict)
    error: ExporterError | None = None

    @property
    def title(self) -> str:
        return self.name or self.source
