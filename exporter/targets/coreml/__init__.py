"""Core ML: `Stable_Diffusion_version_…_<component>.mlpackage`, as Apple's ml-stable-diffusion opens it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.errors import UnsupportedError
from exporter.progress import Progress
from exporter.targets.base import Client, Estimate, ExportedComponent, Options, Runner, RunOptions, Target
from exporter.targets.coreml.options import CoremlOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets.coreml.interpreter import Model

__all__ = ["CoremlOptions", "CoremlTarget", "load"]


class CoremlTarget(Target):
    """Writes Core ML packages, and runs them in a reference interpreter or, on macOS, in Core ML."""

    name: ClassVar[str] = "coreml"
    title: ClassVar[str] = "Core ML"
    extra: ClassVar[str] = "coreml"
    packages: ClassVar[tuple[str, ...]] = ("coremltools",)
    options_type: ClassVar[type[Options]] = CoremlOptions
    apart: ClassVar[bool] = True
    checked: ClassVar[str | None] = None  # Apple's runners show it each picture, as `exporter run` does

    def shipped(self, component: Component) -> Component:
        from exporter.targets.coreml.layout import as_apple

        return as_apple(component)

    def check(self, component: Component) -> None:
        from exporter.architectures import is_generic
        from exporter.targets.coreml.layout import as_apple, bindings

        if is_generic(component.checkpoint):
            raise UnsupportedError(
                f"Core ML has no place for the {component.name} of a {component.checkpoint.pipeline_class}: "
                "its packages are named and shaped for the families that Apple's runners know.",
                hint="Take another format: --to onnx, openvino, torchscript …",
            )
        bindings(as_apple(component))

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.coreml.export import estimate

        return estimate(component, options)

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.coreml.export import export

        return export(component, CoremlOptions.of(options), staging, progress)

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.coreml.resources import write_resources
        from exporter.targets.layout import write_diffusers_files

        files = write_diffusers_files(checkpoint, components, staging)
        return files + write_resources(checkpoint, components, staging)

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        from exporter.targets.coreml.clients import apple, specification

        return [*apple(repo, manifest), *super().clients(repo, manifest), specification(repo)]

    def afterwards(self, manifest: Manifest) -> list[str]:
        from exporter.targets.coreml.safety import other_side
        from exporter.targets.coreml.sd3 import PIPELINES, other_widths

        compiled = [record.details.get("compiled", {}) for record in manifest.components]
        commands = [str(c["command"]) for c in compiled if c.get("verdict") == "INCONCLUSIVE"]
        if not commands or sys.platform == "darwin":
            return []
        lines = [line for command in commands for line in command.split(" && ")]
        if manifest.source.pipeline_class.startswith(PIPELINES):
            odd = other_widths(manifest.components)
            lines += [f"Swift's widths are those of the published models: {odd[0]}."] if odd else []
        lines += other_side(manifest.components)
        return [
            "Swift opens compiled models, which a Mac with Xcode makes: sh Resources/compile.sh runs",
            *lines,
        ]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.coreml.runner import CoremlRunner

        function = component.details.get("function")
        chosen = function if isinstance(function, str) else None
        return CoremlRunner(root / component.entry, component.name, options or RunOptions(), chosen)

    def unchecked(self, root: Path) -> dict[str, str]:
        from exporter.targets.coreml.native import unchecked

        return unchecked(root)


def load(path: str | Path, **options: Any) -> Model:
    """Open a package in the reference interpreter: `load(path).predict(inputs)`.

    Args:
        path: An `.mlpackage`.
        options: `mode` and `function`, as in `exporter.targets.coreml.interpreter.load`.
    """
    from exporter.targets.coreml.interpreter import load

    return load(path, **options)
