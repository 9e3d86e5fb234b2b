"""What the artifact is for, where a model does more than its `model_index.json` says: another pipeline class.

LTX-Video's repositories say `LTXPipeline`, and their weights also begin a clip with a picture: another class
of diffusers, which calls the transformer in another way, so that it is another graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.overlays.base import OVER, Overlaid
from exporter.checkpoints.small_files import as_json, folder_of, read_folder
from exporter.errors import UsageError

TEXT, IMAGE, HOLE = "text-to-image", "image-to-image", "inpainting"
CLIP, BEGUN = "text-to-video", "image-to-video"
"""The Hub's names of tasks."""


def _pictures(stem: str, *, inpaint: bool = True) -> dict[str, str]:
    found = {TEXT: f"{stem}Pipeline", IMAGE: f"{stem}Img2ImgPipeline"}
    return found | ({HOLE: f"{stem}InpaintPipeline"} if inpaint else {})


GROUPS: tuple[Mapping[str, str], ...] = (
    _pictures("StableDiffusion"),
    _pictures("StableDiffusionControlNet"),
    _pictures("StableDiffusionXL"),
    _pictures("StableDiffusionXLControlNet"),
    _pictures("StableDiffusion3"),
    _pictures("Flux"),
    _pictures("LatentConsistencyModel", inpaint=False),
    {CLIP: "LTXPipeline", BEGUN: "LTXImageToVideoPipeline"},
    {HOLE: "FluxFillPipeline"},
    *(
        {TEXT: f"{stem}Pipeline"}
        for stem in (
            "CogView3Plus", "HunyuanDiT", "PixArtAlpha", "PixArtSigma", "Sana", "StableDiffusionAdapter",
            "StableDiffusionXLAdapter",
        )
    ),
)  # fmt: skip
"""Task → pipeline class, for the same weights; every class of `exporter.architectures.FAMILIES` is in one."""


@dataclass(frozen=True, kw_only=True)
class ForTask(Overlaid):
    """A checkpoint whose `model_index.json` names another pipeline; nothing else is touched."""


def with_task(checkpoint: Checkpoint, task: str) -> Checkpoint:
    """The checkpoint as the pipeline of a task; itself where it is that already.

    Args:
        task: One of `tasks_of`.

    Raises:
        UsageError: The model does not do that; the message lists what it does.
    """
    tasks, own = tasks_of(checkpoint), checkpoint.pipeline_class
    made = tasks.get(task)
    if made is None:
        does = f"it does {', '.join(tasks)}" if tasks else "this version knows no other task of that class"
        other = next((name for name in tasks if tasks[name] != own), None)
        raise UsageError(
            f"{checkpoint.source} ({own}) does not do {task!r}; {does}.",
            hint=f"Try --task {other}." if other else "Leave out --task.",
        )
    if made == own:
        return checkpoint
    index = {**checkpoint.index, "_class_name": made}
    small = read_folder(checkpoint.root, list(checkpoint.component_classes))
    small["model_index.json"] = as_json(index)
    record = OverlayRecord(kind="task", source=task, details={OVER: own})
    return ForTask.over(checkpoint, (record,), root=folder_of(small), index=index)


def tasks_of(checkpoint: Checkpoint) -> dict[str, str]:
    """What a checkpoint's weights do: task → pipeline class; empty of a class that is not known here."""
    own = checkpoint.pipeline_class
    group = next((each for each in GROUPS if own in each.values()), {})
    if len(group) > 1 and _takes_more_than_latents(checkpoint):
        return {task: name for task, name in group.items() if name == own}
    if checkpoint.index.get("requires_aesthetics_score"):  # a refiner begins with a picture
        return {task: name for task, name in group.items() if task != TEXT}
    return dict(group)


def _takes_more_than_latents(checkpoint: Checkpoint) -> bool:
    """Whether the UNet's input is wider than latents: nine channels, of an inpainting model."""
    parts = checkpoint.component_classes
    if not {"unet", "vae"} <= set(parts):
        return False
    latents = checkpoint.config("vae").get("latent_channels", 4)
    return checkpoint.config("unet").get("in_channels", latents) != latents
