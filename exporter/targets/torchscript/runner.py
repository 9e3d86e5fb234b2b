"""Opens a TorchScript archive in PyTorch and runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import ArtifactError
from exporter.targets.base import Runner, RunOptions
from exporter.targets.torch_module import (
    Declaration,
    majority,
    one_line,
    quiet,
    to_array,
    to_tensors,
    torch_device,
)
from exporter.threads import threads

if TYPE_CHECKING:
    import torch


class TorchScriptRunner(Runner):
    """A traced component, by default on the CPU. Opening one runs its author's program.

    TorchScript computes what it was traced in, so `precision_hint` changes nothing here.

    Args:
        path: `model.pt`.
        options: Device (`cpu`, `cuda`, …) and threads. Trust was checked by the target.

    Raises:
        ArtifactError: The file is missing, cut short, damaged, or says something else than it holds.
        BackendMissing: No such device here.
    """

    def __init__(self, path: Path, options: RunOptions) -> None:
        import torch

        self._path, self._threads = path, options.threads
        self._declaration = Declaration.read(path)
        self._device = torch_device(options.device)
        try:
            with quiet():
                module = torch.jit.load(str(path), map_location=self._device).eval()
        except Exception as error:  # the archive's reader raises several types
            raise ArtifactError(
                f"PyTorch cannot open {path.parent.name}/{path.name}: {one_line(error)}",
                hint="Damaged, or made by a newer PyTorch; `exporter verify --check-hashes` tells.",
            ) from error
        self.inputs = tuple(self._declaration.inputs)
        self.outputs = tuple(self._declaration.outputs)
        self._check_signature(module)
        self._graph = module.inlined_graph
        # What weights are stored in is what PyTorch computes in.
        self.precision = self.weights = majority([*module.parameters(), *constants(self._graph)])
        self._module: Any = module
        self._ready: Any = self._optimised(module) if self._declaration.optimize else module

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self._call(self._ready, inputs)
        if len(values) != len(self.outputs):
            raise RuntimeError(f"the program gave {len(values)} outputs, {len(self.outputs)} are declared")
        for spec, value in zip(self.outputs, values, strict=True):
            given = str(value.dtype).removeprefix("torch.")
            if given != spec.dtype:  # a cast here would hide it from whoever judges the file
                raise RuntimeError(f"the program gave {spec.name!r} as {given}, {spec.dtype} is declared")
        return {spec.name: to_array(value) for spec, value in zip(self.outputs, values, strict=True)}

    def module_names(self) -> list[str]:
        present = named_values(self._graph)
        return [path for path, name in self._declaration.modules.items() if name in present]

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run, by a copy of the graph that returns them.

        The copy is not optimised for inference, which would fuse modules into each other.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        import torch

        self.check_modules(modules)
        wanted = list(dict.fromkeys(self._declaration.modules[name] for name in modules))
        if not wanted:
            return {}
        graph = self._graph.copy()
        values = named_values(graph)
        while list(graph.outputs()):
            graph.eraseOutput(0)
        for name in wanted:
            graph.registerOutput(values[name])
        graph.makeMultiOutputIntoTuple()
        function = torch._C._create_function_from_graph("forward", graph)
        found = self._call(lambda *tensors: function(self._module, *tensors), inputs)
        by_name = dict(zip(wanted, (found,) if len(wanted) == 1 else found, strict=True))
        return {name: to_array(by_name[self._declaration.modules[name]]) for name in modules}

    def close(self) -> None:
        self._module = self._ready = self._graph = None

    def _call(self, call: Any, inputs: Mapping[str, np.ndarray]) -> Any:
        import torch

        self._declaration.check(inputs)
        tensors = to_tensors(inputs, self.inputs, self._device)
        with torch.no_grad(), threads(self._threads), quiet():
            try:
                return call(*tensors)
            except RuntimeError as error:
                raise RuntimeError(
                    f"TorchScript refused {self._path.parent.name}: {one_line(error)}"
                ) from error

    def _check_signature(self, module: Any) -> None:
        """The file's own words about itself agree with the program beside them."""
        named = [argument.name for argument in module.forward.schema.arguments[1:]]
        declared = [spec.name for spec in self.inputs]
        if named != declared:
            raise ArtifactError(
                f"{self._path.parent.name}/{self._path.name} declares the inputs {declared}, "
                f"its program takes {named}."
            )

    @staticmethod
    def _optimised(module: Any) -> Any:
        import torch

        with quiet(), torch.no_grad():
            frozen = torch.jit.freeze(module) if hasattr(module, "training") else module
            return torch.jit.optimize_for_inference(frozen)


def named_values(graph: Any) -> dict[str, Any]:
    """Value name → value; storing an archive appends a number behind a dot."""
    from exporter.targets.torchscript.export import PREFIX

    return {
        value.debugName().split(".")[0]: value
        for node in graph.nodes()
        for value in node.outputs()
        if value.debugName().startswith(PREFIX)
    }


def constants(graph: Any) -> list[torch.Tensor]:
    """The tensors that freezing put into the graph."""
    return [
        node.t("value")
        for node in graph.nodes()
        if node.kind() == "prim::Constant" and node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
