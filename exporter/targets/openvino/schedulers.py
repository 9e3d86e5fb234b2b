"""Which schedulers OpenVINO GenAI has, and what comes nearest to one that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.checkpoints import Checkpoint

SUPPORTED = (
    "LCMScheduler", "DDIMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "PNDMScheduler",
)  # fmt: skip
"""The names that OpenVINO GenAI 2026.4 reads from `scheduler_config.json`."""
NEAREST = {
    # DDIM is the first order of DPM-Solver and of UniPC (Lu et al., DPM-Solver, 2022, section 4.1).
    "DPMSolverMultistepScheduler": "DDIMScheduler",
    "DPMSolverSinglestepScheduler": "DDIMScheduler",
    "DEISMultistepScheduler": "DDIMScheduler",
    "UniPCMultistepScheduler": "DDIMScheduler",
    "DDPMScheduler": "EulerAncestralDiscreteScheduler",
    # Of the same equation and sigmas, at order one instead of two (Karras et al., 2022, algorithm 1).
    "HeunDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler": "EulerDiscreteScheduler",
    "EDMEulerScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "EulerAncestralDiscreteScheduler",
    "DPMSolverSDEScheduler": "EulerAncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "TCDScheduler": "LCMScheduler",
}


def scheduler_remark(checkpoint: Checkpoint) -> str | None:
    """What GenAI will say of the checkpoint's scheduler, or None where it takes it."""
    kind = checkpoint.component_classes.get("scheduler", ("", ""))[1]
    if not kind or kind in SUPPORTED:
        return None
    flow = kind.startswith("FlowMatch")
    nearest = NEAREST.get(kind, "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler")
    return (
        f"OpenVINO GenAI has no {kind}, so it cannot open this artifact (exporter run and optimum can); the "
        f"nearest that it has is {nearest}: convert with --scheduler {nearest}"
    )
