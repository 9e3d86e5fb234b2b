"""Weights shard by shard, each tensor straight to its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from exporter.errors import UsageError
from exporter.techniques.base import Technique, Undo

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.checkpoints import Checkpoint


class ShardedLoading(Technique):
    """Attributes:
    dtype: Of the weights; `float32` gives the bits that loading without this gives, `stored` is the files'.

    It acts while a checkpoint is read (`exporter.load(SOURCE, techniques=["sharded-loading"])`, recipes,
    `exporter bench`): component by component and shard by shard a tensor is mapped, cast, moved to the device
    and its part of the file handed back, so that no more than one tensor is there twice. On the CPU, weights
    that are stored as they are asked for stay in the file until they are used. The library reads a whole
    component before it casts, and everything on the CPU before it moves it to a GPU.
    """

    name: ClassVar[str] = "sharded-loading"
    does: ClassVar[str] = "Reads the weights shard by shard, each tensor straight to its dtype and device."
    source: ClassVar[str] = (
        "https://huggingface.co/docs/diffusers/training/distributed_inference#model-sharding"
    )
    effect: ClassVar = "rounding"
    how_much: ClassVar[str] = "With `float32` the same bits; 16 bits as with `precision`."
    stage: ClassVar[int] = 0

    dtype: Literal["stored", "float32", "float16", "bfloat16"] = "float32"

    def parts(self, checkpoint: Checkpoint, device: torch.device) -> dict[str, nn.Module]:
        """The networks of a checkpoint with their weights on a device, by the folder of each.

        Raises:
            UsageError: The checkpoint is of a pipeline without a module of its own.
            CheckpointError: Weights are missing, or their shapes do not fit the config.
        """
        import torch

        from exporter.architectures import components_of, is_generic
        from exporter.architectures.base import whole_module

        if is_generic(checkpoint):
            raise UsageError(
                f"The technique {self.name} does not know the parts of a {checkpoint.pipeline_class}."
            )
        made: dict[str, nn.Module] = {}
        for component in components_of(checkpoint):
            if component.folder in made:  # an autoencoder is several components
                continue
            stored = max(component.weights.values(), key=lambda tensor: tensor.nbytes).torch_dtype
            dtype = stored if self.dtype == "stored" else getattr(torch, self.dtype)
            made[component.folder] = whole_module(component, dtype, device)
        return made

    def apply(self, pipeline: Any) -> Undo:
        if getattr(pipeline, "exporter_sharded", None) != self:
            raise UsageError(
                f"The technique {self.name} acts while a checkpoint is read, and this pipeline has been.",
                hint='exporter.load(SOURCE, techniques=["sharded-loading"]) reads one with it.',
            )
        return lambda: None  # the weights are the same ones
