"""Pictures that a recorded run is given: to start from, to repaint, to follow. Made here, always the same."""

from __future__ import annotations

import hashlib
import inspect
import math
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.controlnet import control_argument, controller, is_controlnet, scale_argument
from exporter.architectures.t2i_adapter import NAME as ADAPTER

if TYPE_CHECKING:
    from exporter.parity.painting import Plan

STRENGTH = 0.5
"""Of runs that start from a picture; they are given 1/STRENGTH times as many steps, so that all are run."""
SCALES = (0.9, 0.6)
"""How much the first ControlNet counts, and each further one: no number that could be left out."""


def given_to(pipeline: Any, plan: Plan, count: int) -> dict[str, Any]:
    """The arguments of a pipeline's call that follow from the task it was made for.

    Args:
        count: Pictures of the call.
    """
    known = inspect.signature(pipeline.__call__).parameters
    given: dict[str, Any] = {"height": plan.height, "width": plan.width, "num_inference_steps": plan.steps}
    given["num_frames"] = plan.frames
    control = control_argument(known)
    if "mask_image" in known:
        given |= {"image": start(plan, count), "mask_image": mask(plan), "strength": 1.0}
    elif "image" in known and control != "image":
        given |= {"image": start(plan, count), "strength": STRENGTH}
        given["num_inference_steps"] = math.ceil(plan.steps / STRENGTH)
    scale = scale_argument(known)
    if control is not None and scale is not None:
        follows = controller(pipeline)
        nets = getattr(follows, "nets", [follows])
        pictures = [edges(plan, number) for number in range(len(nets))]
        scales = [SCALES[min(number, 1)] for number in range(len(nets))]
        several = hasattr(follows, "nets")
        if scale.startswith("adapter"):  # a drawing for each picture, and grey for some
            pictures = [pictures[0][:, : follows.config.in_channels].repeat(count, 1, 1, 1)]
        given[control] = pictures if several else pictures[0]
        given[scale] = scales if several else scales[0]
    return {name: value for name, value in given.items() if name in known}


def control_note(plan: Plan, names: list[str]) -> str | None:
    """What the ControlNets of a run read, for the report; None where there is none."""
    count = sum(is_controlnet(name) or name == ADAPTER for name in names)
    if not count:
        return None
    hashes = [hashlib.sha256(edges(plan, n).numpy().tobytes()).hexdigest()[:16] for n in range(count)]
    scales = [f"{SCALES[min(n, 1)]:g}" for n in range(count)]
    return (
        f"Each ControlNet or T2I-Adapter follows a drawing of its own (edges made by exporter.parity.given "
        f"at {plan.height}×{plan.width}; sha256 of its float32 values begins {', '.join(hashes)}), "
        f"at scale {', '.join(scales)}."
    )


def start(plan: Plan, count: int) -> torch.Tensor:
    """Something to start from: smooth waves of three colours, `[count, 3, height, width]` in [0, 1]."""
    down = torch.linspace(0, 6.0, plan.height).view(-1, 1)
    across = torch.linspace(0, 4.0, plan.width).view(1, -1)
    waves = [torch.sin(down + phase) * torch.cos(across * (1 + phase)) for phase in (0.0, 1.0, 2.0)]
    return (torch.stack(waves) / 2 + 0.5).expand(count, -1, -1, -1).contiguous()


def mask(plan: Plan) -> torch.Tensor:
    """The left half is repainted: `[1, 1, height, width]`."""
    values = torch.zeros(1, 1, plan.height, plan.width)
    values[..., : plan.width // 2] = 1
    return values


def edges(plan: Plan, number: int) -> torch.Tensor:
    """White outlines on black, as an edge detector leaves them: `[1, 3, height, width]` of 0 and 1.

    A circle above the left, a box below the right, a line between them; every second one upside down and
    with another circle, so that two ControlNets that are exchanged show.
    """
    y = (torch.arange(plan.height) + 0.5).view(-1, 1) / plan.height
    x = (torch.arange(plan.width) + 0.5).view(1, -1) / plan.width
    y = 1 - y if number % 2 else y
    thin = 1.5 / min(plan.height, plan.width)
    radius = 0.22 - 0.03 * (number % 4)
    circle = (((y - 0.35) ** 2 + (x - 0.3) ** 2).sqrt() - radius).abs() < thin
    box = (torch.maximum((y - 0.65).abs() / 0.2, (x - 0.7).abs() / 0.25) - 1).abs() < 4 * thin
    line = ((x - y) / math.sqrt(2)).abs() < thin / 2
    return (circle | box | line).float().expand(1, 3, -1, -1).contiguous()
