"""What is laid over a checkpoint before it is exported: another task, another autoencoder, ControlNets, an
IP-Adapter, tokens, LoRAs, a scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.artifact import OverlayRecord
from exporter.checkpoints.checkpoint import Checkpoint
from exporter.checkpoints.overlays.base import Overlaid
from exporter.checkpoints.overlays.controlnet import with_controlnets
from exporter.checkpoints.overlays.ip_adapter import with_ip_adapter
from exporter.checkpoints.overlays.lora import LoraRequest, with_loras
from exporter.checkpoints.overlays.scheduler import with_scheduler
from exporter.checkpoints.overlays.task import with_task
from exporter.checkpoints.overlays.textual_inversion import with_tokens
from exporter.checkpoints.overlays.vae import with_vae
from exporter.errors import ArtifactError, CheckpointError

__all__ = ["LoraRequest", "Overlaid", "lay_again", "lay_over"]


def lay_over(
    checkpoint: Checkpoint,
    *,
    vae: str | None = None,
    textual_inversions: Sequence[str] = (),
    loras: Sequence[str] = (),
    scheduler: str | None = None,
    allow_pickle: bool = False,
    controlnets: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    task: str | None = None,
) -> Checkpoint:
    """The checkpoint with everything laid over it.

    Args:
        vae: Folder of an `AutoencoderKL`, a whole checkpoint that has one, or a single file.
        textual_inversions: Files with embeddings of new tokens.
        loras: `FILE` or `FILE:SCALE` each.
        scheduler: Name of a class of diffusers.
        allow_pickle: Open pickled embeddings, autoencoders, ControlNets and IP-Adapters.
        controlnets: Folders, Hub ids or checkpoints of ControlNets; laid after the autoencoder.
        ip_adapters: One `SOURCE[:PATH]` of an IP-Adapter; laid after the ControlNets.
        task: What the artifact is for, where a model does several things (`task.tasks_of`); the first of all.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the checkpoint.
        UsageError: A scale is no finite number, the scheduler does not go with the model, or the model does
            not do that task.
    """
    if task is not None:
        checkpoint = with_task(checkpoint, task)
    if vae is not None:
        checkpoint = with_vae(checkpoint, vae, allow_pickle=allow_pickle)
    if controlnets:
        checkpoint = with_controlnets(checkpoint, controlnets, allow_pickle=allow_pickle)
    if ip_adapters:
        checkpoint = with_ip_adapter(checkpoint, ip_adapters, allow_pickle=allow_pickle)
    for file in textual_inversions:
        checkpoint = with_tokens(checkpoint, file, allow_pickle=allow_pickle)
    if loras:
        checkpoint = with_loras(checkpoint, [LoraRequest.parse(text) for text in loras])
    if scheduler is not None:
        checkpoint = with_scheduler(checkpoint, scheduler)
    return checkpoint


def lay_again(
    checkpoint: Checkpoint, records: Sequence[OverlayRecord], *, allow_pickle: bool = False
) -> Checkpoint:
    """Lay over a checkpoint what a manifest recorded, and see that it is the same.

    Raises:
        ArtifactError: An overlay is missing, or has changed since.
    """
    task = next((r.source for r in records if r.kind == "task"), None)
    vae = next((r.source for r in records if r.kind == "vae"), None)
    nets = [r.source for r in records if r.kind == "controlnet"]
    pictures = [r.source for r in records if r.kind == "ip_adapter"]
    tokens = [r.source for r in records if r.kind == "textual_inversion"]
    loras = [r for r in records if r.kind == "lora"]
    scheduler = next((r.source for r in records if r.kind == "scheduler"), None)
    try:
        result = lay_over(
            checkpoint, vae=vae, textual_inversions=tokens, allow_pickle=allow_pickle, controlnets=nets,
            ip_adapters=pictures, task=task,
        )  # fmt: skip
        if loras:
            requests = [LoraRequest(r.source, 1.0 if r.scale is None else r.scale) for r in loras]
            result = with_loras(result, requests)
        if scheduler is not None:
            result = with_scheduler(result, scheduler)
    except CheckpointError as error:
        raise ArtifactError(
            f"The artifact was made with an overlay that cannot be laid again: {error.message}",
            hint="Put the file back where it was, or convert again.",
        ) from error
    for then, now in zip(records, result.overlays, strict=True):
        if (then.kind, [f.sha256 for f in then.files]) != (now.kind, [f.sha256 for f in now.files]):
            raise ArtifactError(
                f"The {then.kind.replace('_', ' ')} {then.source} is not what the artifact was made with: it "
                "has changed since.",
                hint="Put the old file back, or convert again.",
            )
    return result
