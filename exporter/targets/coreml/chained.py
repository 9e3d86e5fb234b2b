"""Two packages run as one component: the chunks of a UNet, as the Swift package chains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from exporter.errors import ArtifactError
from exporter.targets.base import RunOptions
from exporter.targets.coreml.chunks import PARTS, second_of
from exporter.targets.coreml.interpreter import Model
from exporter.targets.coreml.interpreter.peaks import Peaks
from exporter.targets.coreml.native import CoreMl
from exporter.targets.coreml.package import Package, open_package


def packages(path: Path, function: str | None = None) -> list[Package]:
    """The package of a component, or both where it is the first of two.

    Args:
        function: Of several; None is the default one.

    Raises:
        ArtifactError: One is missing or damaged, or they do not belong together.
    """
    first = open_package(path, function)
    other = second_of(path)
    if other is None:
        return [first]
    second = open_package(other, first.function)
    given = {feature.name: feature for feature in first.spec.description.output}
    taken = {feature.name: feature for feature in second.spec.description.input}
    for name, feature in given.items():
        if name not in taken or taken[name].type != feature.type:
            raise ArtifactError(
                f"{first.path.name} hands on {name!r}, which {second.path.name} does not take as it is.",
                hint="The two packages are of different models; convert again.",
            )
    return [first, second]


class Chained:
    """Looks like a `Model`: what the first gives goes to the second, beside what was given.

    Attributes:
        inputs: Of both, without what is handed on.
        outputs: Of the second.
    """

    def __init__(self, first: Model, second: Model) -> None:
        self.first, self.second, self.mode, self.package = first, second, first.mode, first.package
        carried = {feature.name for feature in first.outputs}
        own = [f for f in second.inputs if f.name not in carried]
        names = {feature.name for feature in first.inputs}
        self.inputs = (*first.inputs, *(f for f in own if f.name not in names))
        self.outputs = second.outputs
        self.program = SimpleNamespace(steps=[*first.program.steps, *second.program.steps])

    def predict(
        self, inputs: Mapping[str, np.ndarray], *, keep: Sequence[str] = (), peaks: Peaks | None = None
    ) -> dict[str, np.ndarray]:
        """One forward pass through both; arguments and errors are those of `Model.predict`."""
        declared = {feature.name for feature in self.inputs}
        missing = [name for name in declared if name not in inputs]
        unknown = [name for name in inputs if name not in declared]
        if missing or unknown:
            raise ValueError(f"inputs are {sorted(declared)}; missing {missing}, unknown {unknown}")
        values = dict(inputs)
        for model in (self.first, self.second):
            takes = [feature.name for feature in model.inputs]
            values |= model.predict({name: values[name] for name in takes}, keep=keep, peaks=peaks)
        return {name: values[name] for name in (*(f.name for f in self.outputs), *keep) if name in values}


class ChainedCoreMl:
    """Two packages in Core ML itself, one after the other. Like `CoreMl`, it has not been run."""

    def __init__(self, parts: Sequence[Package], component: str, options: RunOptions) -> None:
        self.stages = [
            ([f.name for f in part.spec.description.input], CoreMl(part, f"{component}{name}", options))
            for part, name in zip(parts, PARTS, strict=True)
        ]

    def predict(
        self, inputs: Mapping[str, np.ndarray], *, keep: Sequence[str] = (), peaks: Peaks | None = None
    ) -> dict[str, np.ndarray]:
        """One forward pass; arguments and errors are those of `CoreMl.predict`."""
        values = dict(inputs)
        found: dict[str, np.ndarray] = {}
        for names, model in self.stages:
            found = model.predict({name: values[name] for name in names}, keep=keep, peaks=peaks)
            values |= found
        return found
