"""The kinds of fault: how each is planted into an artifact, and how into PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tests.mutation.files import change_weight
from tests.mutation.formats import Format, blobs, format_of, part
from tests.mutation.patches import Patch, at
from tests.mutation.workshop import Workshop, capturing, elsewhere, rehash, sharing_graphs

if TYPE_CHECKING:
    from torch import nn

Choose = Callable[["nn.Module"], str]
"""Picks a module of the library's model by its path."""


def named(path: str) -> Choose:
    return lambda inner: path


def first(kind: str, ending: str = "", *, under: str = "") -> Choose:
    """The first module of a class (or of `A|B`) whose path ends so and begins with `under`."""

    def choose(inner: nn.Module) -> str:
        return next(
            name
            for name, module in inner.named_modules()
            if type(module).__name__ in kind.split("|") and name.startswith(under) and name.endswith(ending)
        )

    return choose


@dataclass(frozen=True)
class Fault:
    """One entry of the catalogue.

    Attributes:
        name: Unique, for the command line.
        title: For people.
        component: Where it is planted.
        by_sight: Whether it is one that no measurement is needed for (a name, a shape, a dtype, a NaN):
            it must be found whatever its size.
        at_native: The artifact is exported at the checkpoint's native size, so that other gates, which
            look at the traced shape only, are asked about that one.
        stale: The manifest's hashes stay as they were.
    """

    name: str
    title: str
    component: str
    by_sight: bool = field(default=False, kw_only=True)
    at_native: bool = field(default=False, kw_only=True)
    stale: bool = field(default=False, kw_only=True)
    place: ClassVar[str] = ""

    def why_not(self, known: Format) -> str | None:
        """Why the fault cannot be made in a format; None where it can."""
        if self.name in known.excluded:
            return known.excluded[self.name]
        return None if self.name in known.edits else self._why_not(known)

    def _why_not(self, known: Format) -> str | None:
        return "no file of the format says this"

    def plant(self, shop: Workshop, target: str) -> Path:
        """A faulty artifact on disk whose manifest is otherwise true.

        Args:
            target: Name of a `Format`. If it knows an edit of its files for this fault, that is made.
        """
        edit = format_of(target).edits.get(self.name)
        if edit is None:
            return self._plant(shop, target)
        root = shop.copy(target, self.component, self.name)
        edit(shop, root)
        if not self.stale:
            rehash(root)
        return root

    def _plant(self, shop: Workshop, target: str) -> Path:
        raise LookupError(f"{self.name} cannot be planted into {target}")

    def module(self, shop: Workshop) -> str | None:
        """The module that holds the fault, where there is one."""
        return None

    def named_in(self, shop: Workshop, known: Format) -> str | None:
        """The module that bisection ought to name in a format."""
        module = self.module(shop)
        return module.rpartition(".")[0] if module is not None and self.name in known.folded else module

    def in_torch(self, shop: Workshop) -> Callable[[nn.Module], None] | None:
        """The same fault as a change of the reference module, where it can be expressed."""
        return None


@dataclass(frozen=True)
class CaptureFault(Fault):
    """The exporter captures another module than the reference: its patch is wrong.

    Attributes:
        patch: Applied to the module at the chosen path, or at `inside` where the fault is planted in a
            module around the one whose output shows it first.
        options: Of the export, by target.
    """

    patch: Patch
    choose: Choose
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inside: str | None = field(default=None, kw_only=True)
    place: ClassVar[str] = "exporter's capture"

    def _why_not(self, known: Format) -> str | None:
        return None if known.captures else "it stores weights and no graph"

    def _plant(self, shop: Workshop, target: str) -> Path:
        root = shop.copy(target, self.component, self.name)
        with capturing(self.in_torch(shop)), sharing_graphs(self.name):
            shop.export(root, shop.components[self.component], self.options.get(target))
        return root

    def module(self, shop: Workshop) -> str | None:
        return self.choose(shop.inner(self.component)) or None

    def in_torch(self, shop: Workshop) -> Callable[[nn.Module], None]:
        path = self.choose(shop.inner(self.component)) if self.inside is None else self.inside
        return lambda module: self.patch(module, path)


@dataclass(frozen=True)
class WeightFault(Fault):
    """A weight in the artifact's data file is overwritten."""

    choose: Choose
    change: Callable[[np.ndarray], np.ndarray]
    parameter: str = "weight"
    place: ClassVar[str] = "data file"

    def _why_not(self, known: Format) -> str | None:
        return None if known.blobs is not None else "where it keeps its weights is not written down here"

    def _plant(self, shop: Workshop, target: str) -> Path:
        root = shop.copy(target, self.component, self.name)
        name = f"{self.choose(shop.inner(self.component))}.{self.parameter}"
        change_weight(blobs(root), shop.weight(self.component, name), self.change)
        rehash(root)
        return root

    def module(self, shop: Workshop) -> str:
        return self.choose(shop.inner(self.component))

    def in_torch(self, shop: Workshop) -> Callable[[nn.Module], None]:
        import torch

        path = self.choose(shop.inner(self.component))

        def plant(module: nn.Module) -> None:
            weight = getattr(at(module, path), self.parameter)
            weight.data = torch.from_numpy(np.array(self.change(weight.data.numpy().copy())))

        return plant


@dataclass(frozen=True)
class CheckpointFault(Fault):
    """What is exported is not the checkpoint that the manifest names.

    Attributes:
        change: (name, tensor) → tensor, for every weight of the component's file.
        only_data: The graph is the right one; only its data file is of the other export.
    """

    change: Callable[[str, np.ndarray], np.ndarray]
    only_data: bool = False
    place: ClassVar[str] = "checkpoint"

    def _why_not(self, known: Format) -> str | None:
        return "graph and weights are one file" if self.only_data and not known.graph else None

    def _plant(self, shop: Workshop, target: str) -> Path:
        component = shop.components[self.component]
        root = shop.copy(target, self.component, self.name)
        keep = shop.folder / "kept" / root.name
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(part(root), keep)
        shop.export(root, elsewhere(component, self._changed(shop)))
        if self.only_data:
            for file in keep.rglob("*"):
                if file.suffix in format_of(target).graph:
                    shutil.copy(file, part(root) / file.relative_to(keep))
            rehash(root)
        return root

    def _changed(self, shop: Workshop) -> Path:
        from safetensors.torch import load_file, save_file

        part = shop.components[self.component]
        folder = shop.folder / "sources" / self.name
        if not folder.exists():
            shutil.copytree(part.checkpoint.root, folder)
            for file in folder.joinpath(part.folder).glob("*.safetensors"):
                save_file(self._tensors(load_file(file)), file)
        return folder

    def _tensors(self, tensors: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {
            name: torch.from_numpy(np.ascontiguousarray(self.change(name, tensor.float().numpy().copy()))).to(
                tensor.dtype
            )
            if tensor.is_floating_point()
            else tensor
            for name, tensor in tensors.items()
        }

    def in_torch(self, shop: Workshop) -> Callable[[nn.Module], None]:
        def plant(module: nn.Module) -> None:
            weights = dict(module.named_parameters())
            for name, tensor in self._tensors(
                {n: t.load() for n, t in shop.components[self.component].weights.items()}
            ).items():
                if name in weights:
                    weights[name].data = tensor.float()

        return plant


@dataclass(frozen=True)
class FileFault(Fault):
    """A file of the artifact is edited: graph, declaration, or bytes. How, each `Format` knows.

    Attributes:
        patch / choose: The same fault in PyTorch, where it can be expressed.
    """

    patch: Patch | None = None
    choose: Choose | None = None
    place: ClassVar[str] = "graph file"

    def module(self, shop: Workshop) -> str | None:
        return (self.choose(shop.inner(self.component)) or None) if self.choose is not None else None

    def in_torch(self, shop: Workshop) -> Callable[[nn.Module], None] | None:
        if self.patch is None:
            return None
        patch, path = self.patch, self.module(shop) or ""
        return lambda module: patch(module, path)
