"""diffusers' own conversion of a transformer, one block at a time: what exports are judged against.

Its functions take and give whole models in memory. Here they are run over shapes, with values for one block
only, as often as there are blocks, so that one block's weights are in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from exporter.checkpoints.derived import SAFETENSORS_NAMES, MadeTensor, made
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]
    Convert = Callable[[State], State]

Tensors = Mapping[str, StoredTensor]
FLUX_WIDTH = 3072
"""The only width that diffusers' conversion of FLUX knows."""
STRETCHED = ("attn.to_q.", "attn.to_k.", "attn.to_v.", "proj_mlp.")


def converter(transformer_class: str) -> Convert:
    """diffusers' conversion of the class."""
    from diffusers.loaders import single_file_utils as theirs

    if transformer_class == "FluxTransformer2DModel":
        return _flux
    return theirs.convert_sd3_transformer_checkpoint_to_diffusers  # type: ignore[no-any-return]


def _flux(given: State) -> State:
    """At another width than FLUX.1's own the one matrix that is cut by number gets every row several times,
    and its parts are thinned out again: which rows are whose stays diffusers' decision."""
    from diffusers.loaders import single_file_utils as theirs

    width = given["img_in.weight"].shape[0]
    times, rest = divmod(FLUX_WIDTH, width)
    if width == FLUX_WIDTH or rest:
        return theirs.convert_flux_transformer_checkpoint_to_diffusers(given)  # type: ignore[no-any-return]
    wide = {n: t.repeat_interleave(times, 0) if ".linear1." in n else t for n, t in given.items()}
    return {
        name: tensor[::times]
        if name.startswith("single_transformer_blocks.") and any(part in name for part in STRETCHED)
        else tensor
        for name, tensor in theirs.convert_flux_transformer_checkpoint_to_diffusers(wide).items()
    }


def block_of(name: str) -> str:
    """`double_blocks.3` of `double_blocks.3.img_attn.qkv.weight`; empty for what lies in no block."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else ""


def in_blocks(tensors: Tensors, convert: Convert) -> dict[str, StoredTensor]:
    """The converted tensors, each made when its values are asked for.

    Args:
        tensors: By the original's names, without prefix.
        convert: Takes and gives a state dict; it may only move, cut and join within a block.

    Raises:
        CheckpointError: It joins tensors of several blocks.
    """
    import torch

    blocks = sorted({block_of(name) for name in tensors})
    state = {n: torch.empty(t.shape, dtype=t.torch_dtype, device="meta") for n, t in tensors.items()}
    result: dict[str, StoredTensor] = {}
    cache = _Last(tensors, convert)
    kinds = {name: (tuple(t.shape), t.dtype) for name, t in convert(dict(state)).items()}
    example = {block_of(name): tensor for name, tensor in tensors.items()}
    for block in blocks:
        marked = {n: t.to(torch.float64 if block_of(n) == block else torch.float32) for n, t in state.items()}
        for name, tensor in convert(marked).items():
            if tensor.dtype == torch.float64:
                shape, dtype = kinds[name]
                stored = SAFETENSORS_NAMES[str(dtype).removeprefix("torch.")]
                result[name] = _made(name, stored, shape, example[block], cache, block)
    if set(result) != set(kinds):
        raise CheckpointError("diffusers' conversion makes tensors of nothing in the file.")
    return result


def _made(
    name: str, dtype: str, shape: tuple[int, ...], origin: StoredTensor, cache: _Last, block: str
) -> MadeTensor:
    return made(name, dtype, shape, origin, lambda: cache.of(block)[name])


class _Last:
    """The converted values of the block that was asked for last."""

    def __init__(self, tensors: Tensors, convert: Convert) -> None:
        self.tensors, self.convert = tensors, convert
        self.block: str | None = None
        self.values: dict[str, Any] = {}

    def of(self, block: str) -> dict[str, Any]:
        import torch

        if block != self.block:
            self.block, self.values = None, {}  # freed before the next one is made
            given = {
                name: tensor.load()
                if block_of(name) == block
                else torch.empty(tensor.shape, dtype=tensor.torch_dtype, device="meta")
                for name, tensor in self.tensors.items()
            }
            converted = self.convert(given)
            self.block, self.values = block, {n: t for n, t in converted.items() if not t.is_meta}
        return self.values
