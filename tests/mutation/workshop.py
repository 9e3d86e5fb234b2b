"""Where faults are planted and judged: honest artifacts, copies with a fault, and what a fault costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import Artifact, ComponentRecord, hash_files
from exporter.errors import InputError
from tests.mutation.formats.base import folder_of

if TYPE_CHECKING:
    from torch import nn

    from exporter.architectures import Component
    from exporter.parity import Report

SETTINGS: dict[str, Any] = {
    "steps": 2, "samples": 2, "prompts": ["a red star"], "pipeline": False, "precision_hint": "f32",
    # A program with a fault in it was not made here any more, and would be refused for that.
    "trust": True,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the verifier said of one artifact.

    Attributes:
        verdict: PASS, FAIL, INCONCLUSIVE, or REFUSED where `verify` raised.
        detected: FAIL or refused.
        ratio: The largest error ÷ limit of any measurement; None where nothing was measured.
        blamed: The module that bisection named.
        reason: The first reason in words.
    """

    verdict: str
    detected: bool
    ratio: float | None
    blamed: str | None
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a fault changes in exact arithmetic, in multiples of the noise floor and of the limit."""

    floors: float
    limits: float


class Workshop:
    """One checkpoint, its honest artifacts (converted once), and one cache of truths.

    Args:
        folder: Everything is written below it.
        source: The checkpoint.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self.truths = folder / "truths"
        self._honest: dict[tuple[str, str], Report] = {}

    @cached_property
    def components(self) -> dict[str, Component]:
        from exporter.architectures import components_of
        from exporter.checkpoints import resolve

        return {c.name: c for c in components_of(resolve(self.source))}

    def inner(self, component: str) -> nn.Module:
        """The library's module of a component, without weights: for choosing paths in it."""
        module: nn.Module = self.components[component].meta_module().get_submodule("inner")
        return module

    def weight(self, component: str, name: str) -> np.ndarray:
        """A weight of the checkpoint by its name in the library's module, float32."""
        array: np.ndarray = self.components[component].weights[f"inner.{name}"].load().float().numpy()
        return array

    def honest(self, target: str) -> Path:
        """The artifact of all components, converted by the real command's code, verification off.

        Args:
            target: Name of a `Format`, here and below.
        """
        from filelock import FileLock

        from exporter.conversion import convert, make_plan
        from tests.mutation.formats import format_of

        known = format_of(target)
        root = self.folder / f"honest-{target}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{target}.lock"):  # several processes may fill one folder
            if not root.exists():
                with sharing_graphs():
                    convert(make_plan(self.source, known.target, root, known.options, verify=False))
        return root

    def copy(self, target: str, component: str, name: str) -> Path:
        """A copy of the honest artifact with only one component in it."""
        from tests.mutation.formats import format_of

        source = self.honest(target)
        root = self.folder / "planted" / f"{target}-{name}"
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        if format_of(target).whole:
            shutil.copytree(source, root)
        else:
            where = folder_of(Artifact.open(source).manifest.component(component))
            shutil.copytree(source / where, root / where)
            shutil.copy(source / "exporter.json", root)
        artifact = Artifact.open(root)
        artifact.manifest.components = [artifact.manifest.component(component)]
        artifact.manifest.shared_files = []
        artifact.save()
        return root

    def export(
        self, root: Path, component: Component, options: Mapping[str, Any] | None = None
    ) -> ComponentRecord:
        """Export a component again into a copy, by the options in its manifest unless others are given, and
        bring the manifest up to date."""
        from exporter.planning import parse_options
        from exporter.progress import NullProgress
        from exporter.targets import get_target

        artifact = Artifact.open(root)
        target = get_target(artifact.manifest.target)
        parsed = parse_options(target, artifact.manifest.options | dict(options or {}))
        shutil.rmtree(root / folder_of(artifact.manifest.component(component.name)))
        with sharing_graphs():
            exported = target.export(component, parsed, root, NullProgress())
        old = artifact.manifest.component(component.name)
        record = ComponentRecord(
            name=component.name,
            entry=exported.entry.relative_to(root).as_posix(),
            files=hash_files(exported.files, root),
            inputs=list(exported.inputs),
            outputs=list(exported.outputs),
            parameters=old.parameters,
            dtype=exported.dtype or parsed.dtype,
            details=dict(exported.details),
        )
        artifact.manifest.components = [record]
        artifact.manifest.options = parsed.model_dump(mode="json")
        artifact.save()
        return record

    def verify(self, root: Path, **settings: Any) -> Report:
        """The verifier's report of every component of an artifact, from its bytes on disk.

        Raises:
            InputError: The verifier refuses it.
        """
        from exporter.parity import verify

        return verify(
            root,
            against=self.source,
            components=[c.name for c in Artifact.open(root).manifest.components],
            cache=self.truths,
            report_dir=root.parent / f"{root.name}-report",
            **(SETTINGS | settings),
        )

    def judge(self, root: Path, *, bisect: bool = True, **settings: Any) -> Outcome:
        """What the verifier says, in short."""
        import time

        began = time.perf_counter()
        try:
            report = self.verify(root, bisect=bisect, **settings)
        except InputError as error:
            return Outcome("REFUSED", True, None, None, error.message, time.perf_counter() - began)
        part = next((c for c in report.components if c.verdict == report.verdict), report.components[0])
        ratios = [c.worst.ratio for c in report.components if c.worst is not None]
        return Outcome(
            verdict=report.verdict,
            detected=report.verdict == "FAIL",
            ratio=max(ratios, default=None),
            blamed=part.bisection.first_bad if part.bisection is not None else None,
            reason=(part.reasons or [part.summary])[0],
            seconds=time.perf_counter() - began,
        )

    def report(self, component: str, floors_from: str) -> tuple[Report, Path]:
        """The report of the honest artifact's component (cases and floors), and its folder of inputs."""
        from filelock import FileLock

        from exporter.parity import verify

        folder = self.folder / f"floors-{floors_from}-{component}"
        key = floors_from, component
        if key not in self._honest:
            with FileLock(self.folder / f"{folder.name}.lock"):
                self._honest[key] = verify(
                    self.honest(floors_from), components=[component], cache=self.truths,
                    report_dir=folder, **SETTINGS,
                )  # fmt: skip
        return self._honest[key], folder

    def cost(self, component: str, plant: Callable[[nn.Module], None], floors_from: str = "onnx") -> Cost:
        """The fault's effect in float64 PyTorch against the same limits, by formulas of this file's own.

        No runtime and no metric of the verifier takes part: only its inputs and its limits do.

        Args:
            floors_from: The format whose honest artifact lends these.
        """
        from safetensors.torch import load_file

        from exporter.parity.arithmetic import Reference
        from exporter.parity.verdict import METRICS, judge_metric, typical_floors

        report, folder = self.report(component, floors_from)
        run = report.components[0].runs[0]
        inputs = load_file(folder / "inputs.safetensors")
        typical = typical_floors(run)
        floors = limits = 0.0
        part = self.components[component]
        with (
            Reference(part, arithmetic="float64") as right,
            Reference(part, arithmetic="float64") as wrong,
        ):
            plant(wrong.module)
            for case in run.cases:
                prefix = f"{component}/{case.id}/"
                given = {n.removeprefix(prefix): t for n, t in inputs.items() if n.startswith(prefix)}
                truth, faulty = right(given), wrong(given)
                for output in case.outputs:
                    t, f = truth[output.name].numpy(), faulty[output.name].numpy()
                    if t.shape != f.shape or not np.isfinite(f).all():
                        return Cost(np.inf, np.inf)
                    size = {
                        "relative_l2": float(np.linalg.norm(f - t) / np.linalg.norm(t)),
                        "max_abs": float(np.abs(f - t).max()),
                    }
                    for metric in METRICS:
                        judged = judge_metric(run, case, output, metric, typical, report.settings.k)
                        floors = max(floors, size[metric] / judged.floor)
                        limits = max(limits, size[metric] / judged.limit)
        return Cost(floors, limits)


def rehash(root: Path) -> None:
    """Bring the manifest's hashes up to date, so that the byte check does not catch the fault first."""
    artifact = Artifact.open(root)
    for record in artifact.manifest.components:
        record.files = hash_files([root / file.path for file in record.files], root)
    artifact.save()


def edit_record(root: Path, **changes: Any) -> None:
    """Change what the manifest says of its only component."""
    artifact = Artifact.open(root)
    artifact.manifest.components = [artifact.manifest.components[0].model_copy(update=changes)]
    artifact.save()


MAKERS = (
    ("exporter.graph.capture", "fake_weights"),
    ("exporter.targets.coreml.modules", "load_module"),
    ("exporter.targets.torch_module", "prepare"),
)
"""The functions that give targets the module to capture."""


@contextmanager
def capturing(plant: Callable[[nn.Module], None]) -> Iterator[None]:
    """Inside, the exporter captures every module with a fault planted in it.

    Without the cache of graphs: it holds honest ones, and must not come to hold others.

    Raises:
        LookupError: No module was captured, nor a graph shared of one that was, so nothing was planted.
    """
    from importlib import import_module

    from exporter import cache

    seen: list[nn.Module] = []
    shared = _SHARED[0]

    def faulty(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def made(*given: Any, **named: Any) -> nn.Module:
            module = make(*given, **named)
            if not any(module is one for one in seen):  # one maker may call another
                seen.append(module)
                plant(module)
            return module

        return made

    originals = [getattr(import_module(where), name) for where, name in MAKERS]
    swaps = [(original, faulty(original)) for original in originals]
    for original, replaced in swaps:
        _put(original, replaced)
    try:
        with cache.off():
            yield
    finally:
        for original, replaced in swaps:
            _put(replaced, original)
    if not seen and _SHARED[0] == shared:
        raise LookupError("no module was captured that a fault could be planted in")


def _put(old: Any, new: Any) -> None:
    """Replace a function in every module of exporter that holds it, whatever imported it by name."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("exporter"):
            for attribute in [n for n, value in vars(module).items() if value is old]:
                setattr(module, attribute, new)


_GRAPHS: dict[tuple, Any] = {}
_SHARED = [0]
"""How often a graph was taken from there."""


@contextmanager
def sharing_graphs(key: str | None = None) -> Iterator[None]:
    """Inside, targets that want the same graph of the same component get the same object.

    Two targets go through the graph room with equal arguments, and capturing is most of the work. The
    graph holds no weights, so sharing it changes no byte of what is written.

    Args:
        key: Of the fault that is planted while capturing; None is honest.
    """
    import exporter.graph as room

    original = room.build

    def build(component: Component, **options: Any) -> Any:
        named = tuple(sorted((n, str(v)) for n, v in options.items() if n != "progress"))
        wanted = (_KEY[-1] if _KEY else None, str(component.checkpoint.root), component.name, named)
        _SHARED[0] += wanted in _GRAPHS
        if wanted not in _GRAPHS:
            while len(_GRAPHS) >= 8:
                _GRAPHS.pop(next(iter(_GRAPHS)))
            _GRAPHS[wanted] = original(component, **options)
        return _GRAPHS[wanted]

    if key is not None:
        _KEY.append(key)
    patched = getattr(original, "shared", False)
    if not patched:
        build.shared = True  # type: ignore[attr-defined]
        room.build = build
    try:
        yield
    finally:
        if not patched:
            room.build = original
        if key is not None:
            _KEY.pop()


_KEY: list[str] = []


def elsewhere(component: Component, root: Path) -> Component:
    """The same component of a copy of its checkpoint."""
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve

    return next(c for c in components_of(resolve(root)) if c.name == component.name)
