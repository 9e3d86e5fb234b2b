"""The run of a pipeline that no module is written for: in one piece, with every component open at once.

What is known of it are its calls (`exporter.architectures.generic`), not its stages. So it needs the memory
of all components together, where `painting` opens one stage at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.generic import recording_of
from exporter.architectures.generic.observing import PICTURES
from exporter.architectures.generic.ports import arguments, from_picture, takes_picture
from exporter.architectures.generic.running import Routes
from exporter.parity.given import start
from exporter.parity.painting import Backend, Call, OpenBackend, Painted, Plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint


def paint(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    open_backend: OpenBackend,
    tick: Callable[[str], None] = lambda text: None,
) -> Painted:
    """Run the pipeline once for every group of prompts; guidance is the pipeline's own.

    Raises:
        UnsupportedError: The pipeline makes a call that was not observed.
    """
    painted = Painted()
    where: tuple[str, tuple[int, int]] = ("", (0, 0))
    opened: dict[str, Backend] = {}

    def compute(name: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        painted.calls.setdefault(name, []).append(Call(inputs, *where))
        return opened[name](inputs)

    routes = Routes(checkpoint.root, checkpoint.index, checkpoint.source, recording_of(checkpoint), compute)
    pipeline, picture = routes.pipeline, to_pil(start(plan, 1))
    with torch.no_grad(), ExitStack() as stack:
        for component in components:
            opened[component.name] = stack.enter_context(open_backend(component.name))
        for g, group in enumerate(plan.groups()):
            states: list[torch.Tensor] = []
            times: list[float] = []

            def after_step(
                timestep: Any, latents: torch.Tensor, g: int = g, states: list = states, times: list = times
            ) -> None:
                states.append(latents.detach().float().clone())
                times.append(float(timestep))
                nonlocal where
                where = (f"prompt {g + 1}, step {len(states) + 1}", (g, len(states)))
                tick(f"prompt {g + 1}, step {len(states)}")

            where = (f"prompt {g + 1}, step 1", (g, 0))
            tick("start")
            shown = [picture] * len(group) if takes_picture(pipeline) else []
            with routes.after_every_step(after_step):
                result = pipeline(
                    **arguments(
                        pipeline,
                        prompts=[plan.prompts[i] for i in group],
                        height=plan.height,
                        width=plan.width,
                        steps=plan.steps,
                        generators=[
                            torch.Generator().manual_seed(plan.seed + g * plan.batch + row)
                            for row in range(len(group))
                        ],
                        pictures=shown,
                        further=from_picture(pipeline, plan.steps),
                    )
                )
            painted.latents.append([state[: len(group)] for state in states])
            painted.timesteps.append(times)
            painted.images.append(pictures_of(result))
            tick("pictures")
    return painted


def to_pil(values: torch.Tensor) -> Image:
    """The first of `[batch, 3, height, width]` in [0, 1]: what every pipeline reads alike."""
    from PIL import Image

    return Image.fromarray((values[0].permute(1, 2, 0) * 255).round().byte().numpy(), "RGB")


def pictures_of(result: Any) -> torch.Tensor:
    """What a pipeline gave as `np`, as `[batch, 3, height, width]` float32 in [-1, 1].

    The frames of a video stand side by side.
    """
    import numpy as np

    found = next(getattr(result, name) for name in PICTURES if hasattr(result, name))
    values = torch.from_numpy(np.asarray(found)).float()
    if values.dim() == 5:
        batch, frames, height, width, channels = values.shape
        values = values.permute(0, 2, 1, 3, 4).reshape(batch, height, frames * width, channels)
    values = values.permute(0, 3, 1, 2)
    return (values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1)) * 2 - 1
