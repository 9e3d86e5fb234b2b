"""HOW: what every acceleration technique of a recipe is.

A technique changes a diffusers pipeline in place and hands back what takes the change away again. Its
options are its fields, so that a recipe's YAML is validated by the technique itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from exporter.errors import BackendMissing, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

Undo = Callable[[], None]
Effect = Literal["exact", "rounding", "lossy"]
PYTORCH = frozenset({"pytorch"})
GRAPHS = frozenset({"onnx", "openvino"})
"""Formats whose graphs a technique of several graphs, or of sorting and gathering, is written for."""


class Technique(BaseModel, ABC):
    """One way to make inference faster or smaller.

    Attributes:
        name: In recipes.
        does: One sentence.
        source: Where it comes from: a paper, or the library's page.
        denoisers: Kinds of denoiser it works on: `unet`, `transformer`.
        pipelines: Prefixes of the pipeline classes it works on; empty is any.
        targets: Formats that carry it; `pytorch` is the diffusers pipeline itself.
        packages: Import names it needs, besides torch and diffusers.
        baked_packages: Those that an artifact with it is made and judged with.
        never_baked: Why a format cannot carry it, where there is more to say than that none does.
        device: `cuda` when it does nothing, or nothing good, elsewhere.
        effect: `exact` gives the same numbers, `rounding` the same up to the arithmetic's precision,
            `lossy` other pictures.
        how_much: What that means in figures, with where they were measured.
        stage: Techniques are applied in this order: 0 dtype and placement of weights, 1 layout, 2 the graph,
            3 caches, 4 quantisation, 5 compilation, 6 offloading.
        excludes: Names of techniques that cannot be combined with this one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    does: ClassVar[str]
    source: ClassVar[str]
    denoisers: ClassVar[frozenset[str]] = frozenset({"unet", "transformer"})
    pipelines: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[frozenset[str]] = PYTORCH
    packages: ClassVar[tuple[str, ...]] = ()
    baked_packages: ClassVar[tuple[str, ...]] = ()
    never_baked: ClassVar[str] = ""
    extra: ClassVar[str] = "techniques"
    device: ClassVar[Literal["any", "cuda"]] = "any"
    effect: ClassVar[Effect]
    how_much: ClassVar[str]
    stage: ClassVar[int]
    excludes: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def apply(self, pipeline: Any) -> Undo:
        """Change a diffusers pipeline in place.

        Returns:
            What takes the change away again: the pipeline then gives the bits it gave before.

        Raises:
            UsageError: The pipeline has no part that this works on.
        """

    def check(
        self, target: str, components: Collection[str], pipeline_class: str, device: str | None = None
    ) -> None:
        """Refuse what cannot be, before any work.

        Args:
            target: A format's name, or `pytorch`.
            components: Names of the checkpoint's parts.
            device: Where it is to run; None leaves that open.

        Raises:
            UsageError: The technique does not work on this target or family, or there.
            BackendMissing: A package or the hardware is not there.
        """
        if target not in self.targets:
            carried = ", ".join(sorted(self.targets))
            raise UsageError(
                f"The technique {self.name} cannot be carried by the target {target}; "
                f"it works on: {carried}.",
                hint=self.never_baked or None,
            )
        found = {"unet", "transformer"} & set(components)
        family = not self.pipelines or pipeline_class.startswith(self.pipelines)
        if not (found & self.denoisers and family):
            kinds = " or ".join(sorted(self.denoisers))
            only = f" of {', '.join(p + '…' for p in self.pipelines)}" if self.pipelines else ""
            raise UsageError(
                f"The technique {self.name} works on a {kinds}{only}, not on a {pipeline_class}."
            )
        needed = self.packages if target in PYTORCH else self.baked_packages
        missing = [p for p in needed if find_spec(p) is None]
        if missing:
            raise BackendMissing(
                f"The technique {self.name} needs {', '.join(missing)}.",
                hint=f'pip install "exporter[{self.extra}]"' if self.extra else None,
            )
        if self.device == "cuda" and device is not None and not device.startswith("cuda"):
            raise UsageError(f"The technique {self.name} needs a CUDA device, not {device}.")
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise BackendMissing(
                    f"The technique {self.name} needs a CUDA device, and there is none here.",
                    hint="`exporter doctor` lists what there is.",
                )


def denoiser(pipeline: Any) -> nn.Module:
    """The UNet or transformer of a pipeline.

    Raises:
        UsageError: It has none.
    """
    for name in ("transformer", "unet"):
        module = getattr(pipeline, name, None)
        if module is not None:
            return module
    raise UsageError(f"A {type(pipeline).__name__} has neither a UNet nor a transformer.")


def modules(pipeline: Any) -> list[nn.Module]:
    """Every network of a pipeline, in its own order."""
    from torch import nn

    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def device_of(pipeline: Any) -> torch.device:
    """Where the denoiser's weights lie."""
    return next(denoiser(pipeline).parameters()).device


def originals(parts: Iterable[nn.Module]) -> Undo:
    """Remember the weights and buffers of modules, to be put back.

    The tensors themselves are kept, not copies of them: whoever casts, moves or quantises a module replaces
    its tensors, so this costs the memory that they had.
    """
    kept = [
        (owner, store, name, tensor)
        for part in parts
        for owner in part.modules()
        for store in ("_parameters", "_buffers")
        for name, tensor in getattr(owner, store).items()
        if tensor is not None
    ]
    data = [(tensor, tensor.data) for _, _, _, tensor in kept]

    def undo() -> None:
        for tensor, values in data:
            tensor.data = values
        for owner, store, name, tensor in kept:
            getattr(owner, store)[name] = tensor

    return undo


def set_forward(module: Any, forward: Callable[..., Any]) -> Undo:
    """Give one module another `forward`.

    The undo leaves the module without one of its own where it had none: one left behind, even the class's,
    would hide the `forward` of what changes the module's class later.
    """
    own = vars(module).get("forward")
    module.forward = forward

    def undo() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            module.forward = own

    return undo


def without_own_forward(module: Any, name: str) -> None:
    """Take away a leftover `forward` of the module's own, so that its class's is called.

    Raises:
        UsageError: It is no leftover: something else has given the module another one.
    """
    own = vars(module).get("forward")
    if own is None:
        return
    if getattr(own, "__func__", None) is not type(module).forward:
        raise UsageError(
            f"The technique {name} takes the place of the model's forward, which something else replaced.",
            hint=f"Apply {name} without the technique that did.",
        )
    del module.forward


def together(undos: list[Undo]) -> Undo:
    """One undo out of several, last first; one that raises does not keep the others from running."""

    def undo() -> None:
        with ExitStack() as stack:
            for each in undos:
                stack.callback(each)

    return undo
