"""Another scheduler in the place of the checkpoint's own."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.overlays.base import Overlaid
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import CheckpointError, UsageError

DIFFUSION = (
    "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "DPMSolverMultistep", "DPMSolverSinglestep", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep",
    "UniPCMultistep", "LCM", "TCD",
)  # fmt: skip
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
ASSUMED = {"skip_prk_steps": True}
"""As Stable Diffusion is published, where the old class has no word for it: PNDM without Runge-Kutta."""
SILENT = re.compile(r"[^a-z0-9]|scheduler|discrete|multistep")
"""What need not be typed: `euler-ancestral`, `dpm-solver` and `unipc` are enough."""


@dataclass(frozen=True, kw_only=True)
class WithScheduler(Overlaid):
    """A checkpoint whose small files name another scheduler; its weights are not touched."""


def with_scheduler(checkpoint: Checkpoint, name: str) -> WithScheduler:
    """Put the scheduler `name` in the place of the checkpoint's, with the settings of the old one.

    Args:
        name: A class of diffusers, in full or short (`EulerDiscreteScheduler`, `euler`).

    Raises:
        UsageError: No such scheduler, or one that does not go with what the model predicts.
        CheckpointError: The checkpoint has no scheduler.
    """
    import diffusers

    if "scheduler" not in checkpoint.component_classes:
        raise CheckpointError(f"{checkpoint.source} has no scheduler that --scheduler could replace.")
    class_name = class_of(name)
    old_name, old = checkpoint.component_classes["scheduler"][1], checkpoint.config("scheduler")
    check_kind(checkpoint, old_name, class_name)
    kind = getattr(diffusers, class_name)
    made = kind.from_config({**ASSUMED, **old})
    predicts = str(old.get("prediction_type", "flow" if is_flow(class_name) else "epsilon"))
    check_prediction(made, predicts)
    index = {**checkpoint.index, "scheduler": ["diffusers", class_name]}
    small = read_folder(checkpoint.root, list(checkpoint.component_classes))
    small = {path: data for path, data in small.items() if not path.startswith("scheduler/")}
    small["scheduler/scheduler_config.json"] = as_json(settings_of(made))
    small["model_index.json"] = as_json(index)
    record = OverlayRecord(
        kind="scheduler", source=class_name, details={"replaces": old_name, "prediction_type": predicts}
    )
    return WithScheduler.over(checkpoint, (record,), root=folder_of(small), index=index)


def class_of(name: str) -> str:
    """The class that a name means.

    Raises:
        UsageError: None; the message lists them.
    """
    wanted = SILENT.sub("", name.lower())
    known = {SILENT.sub("", each.lower()): each for each in (*DIFFUSION, *FLOW)}
    known |= {"eulera": "EulerAncestralDiscrete"}
    if wanted not in known:
        raise UsageError(
            f"There is no scheduler {name!r}; there is: {', '.join((*DIFFUSION, *FLOW))}.",
            hint="Short names do too: euler, euler-ancestral, dpm-solver, unipc.",
        )
    return f"{known[wanted]}Scheduler"


def is_flow(class_name: str) -> bool:
    """Whether a scheduler is for models that predict the velocity of a flow, not noise."""
    return class_name.startswith("FlowMatch")


def check_kind(checkpoint: Checkpoint, old: str, new: str) -> None:
    """
    Raises:
        UsageError: One is for flows and the other for noise, or the pipeline knows one scheduler only.
    """
    if is_flow(old) != is_flow(new):
        kinds = ("the velocity of a flow", "noise") if is_flow(old) else ("noise", "the velocity of a flow")
        raise UsageError(
            f"{new} does not go with {checkpoint.source}: the model predicts {kinds[0]}, the scheduler wants "
            f"{kinds[1]}.",
            hint=f"Take one of: {', '.join(FLOW if is_flow(old) else DIFFUSION)}.",
        )
    if checkpoint.pipeline_class.startswith("LatentConsistency") and new != "LCMScheduler":
        raise UsageError(f"A {checkpoint.pipeline_class} works with LCMScheduler only, not with {new}.")


def check_prediction(scheduler: Any, predicts: str) -> None:
    """Take one step with numbers of no meaning: a scheduler says by itself what it cannot turn into one.

    Raises:
        UsageError: It does not know this kind of prediction.
    """
    import torch

    name = type(scheduler).__name__
    refusal = UsageError(
        f"{name} does not go with a model that predicts {predicts!r}.",
        hint="DDIM, EulerDiscrete, LMSDiscrete and PNDM take epsilon and v_prediction.",
    )
    if predicts not in ("epsilon", "flow") and "prediction_type" not in settings_known(scheduler):
        raise refusal
    scheduler.set_timesteps(4)
    sample = torch.zeros(1, 4, 8, 8)
    first = scheduler.timesteps[0]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(sample, first)
    more = {"generator": torch.Generator().manual_seed(0)}
    takes = inspect.signature(scheduler.step).parameters
    try:
        scheduler.step(sample, first, sample, **(more if "generator" in takes else {}))
    except (ValueError, NotImplementedError) as error:
        raise refusal from error


def settings_known(scheduler: Any) -> set[str]:
    """Names of the settings that its class takes."""
    return set(inspect.signature(type(scheduler).__init__).parameters)


def settings_of(scheduler: Any) -> dict[str, Any]:
    """Its `scheduler_config.json`, without what belonged to the old class only."""
    import diffusers

    known = settings_known(scheduler)
    config = {key: value for key, value in scheduler.config.items() if key in known}
    config = {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}
    head = {"_class_name": type(scheduler).__name__, "_diffusers_version": diffusers.__version__}
    return {**head, **config}
