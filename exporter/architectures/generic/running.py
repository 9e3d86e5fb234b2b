"""A pipeline of recorded calls, each made by whatever computes the component of that name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.generic.ports import SCAFFOLD, build, named_arguments, port
from exporter.architectures.generic.recording import Call, Recording
from exporter.architectures.generic.trees import Strange, Tree, put_together, take_apart
from exporter.checkpoints.checkpoint import read_json
from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import nn

Compute = Callable[[str, dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""Computes the component of that name: inputs by name → outputs by name."""
ADDED = ("use_cache",)
"""Constants of a recorded call that are this route's and not the pipeline's (`observing`)."""


class Routes:
    """The library's pipeline, whose modules pass their calls on.

    Args:
        root: Folder with `model_index.json`, the configs and the small files: a checkpoint, or an artifact.
        index: The parsed `model_index.json`.
        source: For messages.
        recording: What the pipeline's calls are.
        compute: Makes them.

    Attributes:
        pipeline: The pipeline, ready to be called.
    """

    def __init__(
        self, root: Path, index: Mapping[str, Any], source: str, recording: Recording, compute: Compute
    ) -> None:
        self.compute = compute
        self.calls = {(call.folder, call.method): call for call in recording.calls}
        self.modules: dict[str, nn.Module] = {}
        for call in recording.calls:
            if call.folder not in self.modules:
                config = _config(root, call)
                self.modules[call.folder] = port(
                    call.folder, call.library, call.class_name, config, self._route
                )
        self.classes = {call.folder: call.class_name for call in recording.calls}
        held = {
            key: [None, None] if _is_idle(root, key, value, self.modules) else value
            for key, value in index.items()
        }
        self.pipeline = build(root, held, source, self.modules)

    def _route(self, folder: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.calls.get((folder, str(method)))  # type: ignore[arg-type]
        if call is None:
            raise UnsupportedError(
                f"The pipeline calls {folder}.{method}, which it did not do when it was observed.",
                hint=SCAFFOLD,
            )
        named = named_arguments(type(self.modules[folder]), method, args, kwargs)
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, float] = {}
        try:
            tree = take_apart(named, "", tensors, numbers)
        except Strange as error:
            raise UnsupportedError(f"The pipeline gives {folder} something new: {error}.") from error
        inputs: dict[str, torch.Tensor] = {}
        self._match(call, call.arguments, tree, tensors, numbers, inputs, "")
        kinds = {tensor.name: getattr(torch, tensor.dtype) for tensor in call.inputs}
        inputs = {t.name: inputs[t.name].detach().to(kinds[t.name]) for t in call.inputs}
        outputs = self.compute(call.name, inputs)
        given = {t.name: outputs[t.name].to(getattr(torch, t.dtype)) for t in call.outputs}
        return put_together(call.returns, given)

    def _match(
        self,
        call: Call,
        wanted: Tree,
        found: Tree,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, float],
        inputs: dict[str, torch.Tensor],
        place: str,
    ) -> None:
        """Take the inputs of a recorded call from one that is made, and check that the rest is the same."""

        def differ(what: str) -> UnsupportedError:
            return UnsupportedError(
                f"The pipeline calls {call.folder}.{call.method} with {place or 'arguments'} {what}, and the "
                "artifact was made for another call.",
                hint="Run it with the settings that the checkpoint's pipeline has by default.",
            )

        if "tensor" in wanted:
            if "tensor" in found:
                inputs[wanted["tensor"]] = tensors[found["tensor"]]
            elif "number" in found:
                inputs[wanted["tensor"]] = torch.tensor(numbers[found["number"]])
            else:
                raise differ(f"= {found.get('value')!r}")
        elif "value" in wanted:
            value = numbers[found["number"]] if "number" in found else found.get("value", found)
            if value != wanted["value"]:
                raise differ("of other values" if isinstance(value, dict) else f"= {value!r}")
        elif "named" in wanted:
            mine, theirs = wanted["named"], found.get("named", {})
            odd = sorted((set(mine) - set(ADDED)) ^ (set(theirs) - set(ADDED)))
            if odd:
                raise differ(f"that {'lack' if odd[0] in mine else 'hold'} {odd[0]!r}")
            for key, one in theirs.items():
                where = f"{place}.{key}" if place else key
                self._match(call, mine[key], one, tensors, numbers, inputs, where)
        else:
            kind = "list" if "list" in wanted else "tuple"
            mine_each, each = wanted[kind], found.get(kind)
            if each is None or len(each) != len(mine_each):
                raise differ("of another length")
            for number, (a, b) in enumerate(zip(mine_each, each, strict=True)):
                self._match(call, a, b, tensors, numbers, inputs, f"{place}.{number}")

    @contextmanager
    def after_every_step(self, tell: Callable[[Any, torch.Tensor], None]) -> Iterator[None]:
        """Inside, `tell(timestep, latents)` is called after every step of the scheduler."""
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step"):
            yield
            return
        step = scheduler.step

        def told(model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(model_output, timestep, *args, **kwargs)
            tell(timestep, result[0])
            return result

        scheduler.step = told
        try:
            yield
        finally:
            del scheduler.step


def _config(root: Path, call: Call) -> dict[str, Any]:
    """Of a part: in its own folder, or in that of the component (an artifact's `vae_decoder`)."""
    for folder in (call.folder, call.name):
        path = root / folder / "config.json"
        if path.is_file():
            return read_json(path)
    return read_json(root / call.folder / "config.json")


def _is_idle(root: Path, name: str, value: Any, modules: Mapping[str, Any]) -> bool:
    """A part with weights that the pipeline never calls: it is left out."""
    is_part = isinstance(value, list | tuple) and len(value) == 2
    return is_part and name not in modules and (root / name / "config.json").is_file()
