"""A CUDA graph of the denoiser, recorded by hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field

from exporter.errors import UsageError
from exporter.techniques._caches import CACHES
from exporter.techniques.base import Technique, Undo, denoiser

WARM_UP = 3


class CudaGraph(Technique):
    """Attributes:
    kept: Sizes of input whose graphs are kept at a time; each holds the memory of one call.

    A step's thousands of launches become one. `compile` in a mode without graphs (`default`,
    `max-autotune-no-cudagraphs`) makes the kernels; `reduce-overhead` would record a graph inside this one.
    """

    name: ClassVar[str] = "cuda-graph"
    does: ClassVar[str] = "Records the denoiser's kernels at the first step and replays them at the others."
    source: ClassVar[str] = "https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"
    device: ClassVar = "cuda"
    effect: ClassVar = "exact"
    how_much: ClassVar[str] = "The same kernels on the same numbers."
    stage: ClassVar[int] = 6
    excludes: ClassVar[frozenset[str]] = CACHES | {
        "token-merging", "deep-cache", "t-gate", "trace", "context-parallel", "xdit", "para-attention",
        "device-map", "model-offload", "sequential-offload", "group-offload",
    }  # fmt: skip

    kept: int = Field(default=2, ge=1)

    def apply(self, pipeline: Any) -> Undo:
        module: Any = denoiser(pipeline)
        before = module._compiled_call_impl
        module._compiled_call_impl = _Recorder(before or module._call_impl, self.kept)

        def undo() -> None:
            module._compiled_call_impl = before

        return undo


class _Recorder:
    """Calls of one module, each size of input recorded once."""

    def __init__(self, call: Callable[..., Any], kept: int) -> None:
        self.call, self.kept = call, kept
        self.graphs: OrderedDict[Any, tuple[Any, list[Any], Any]] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from torch.utils import _pytree as pytree

        leaves, structure = pytree.tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if torch.is_grad_enabled() or not given or any(not tensor.is_cuda for tensor in given):
            return self.call(*args, **kwargs)
        key = (
            str(structure),
            tuple(
                (leaf.shape, leaf.dtype, leaf.stride()) if isinstance(leaf, torch.Tensor) else repr(leaf)
                for leaf in leaves
            ),
        )
        if key not in self.graphs:
            while len(self.graphs) >= self.kept:
                self.graphs.popitem(last=False)
            self.graphs[key] = self._record(leaves, structure)
        self.graphs.move_to_end(key)
        graph, inputs, output = self.graphs[key]
        torch._foreach_copy_(inputs, given)
        graph.replay()
        # What is handed on must not change at the next replay.
        return pytree.tree_map(lambda each: each.clone() if isinstance(each, torch.Tensor) else each, output)

    def _record(self, leaves: list[Any], structure: Any) -> tuple[Any, list[Any], Any]:
        import torch
        from torch.utils import _pytree as pytree

        own = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(own, structure)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.call(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = self.call(*args, **kwargs)
        except RuntimeError as error:
            raise UsageError(
                f"The denoiser's kernels cannot be recorded: {str(error).splitlines()[0]}",
                hint="Leave cuda-graph out, or give compile a mode without graphs.",
            ) from error
        return graph, [each for each in own if isinstance(each, torch.Tensor)], output
