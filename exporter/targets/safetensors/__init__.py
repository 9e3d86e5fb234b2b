"""Safetensors: the checkpoint's own layout, sharded and cast, as diffusers opens it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import NullProgress, Progress
from exporter.targets.base import (
    Client,
    Estimate,
    ExportedComponent,
    Options,
    Runner,
    RunOptions,
    Target,
    diffusers_code,
)
from exporter.targets.safetensors.options import SafetensorsOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["SafetensorsOptions", "SafetensorsTarget"]


class SafetensorsTarget(Target):
    """Writes safetensors and opens them with diffusers and transformers."""

    name: ClassVar[str] = "safetensors"
    title: ClassVar[str] = "Safetensors"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("safetensors", "diffusers", "transformers")
    options_type: ClassVar[type[Options]] = SafetensorsOptions
    apart: ClassVar[bool] = True
    checked: ClassVar[str | None] = None
    keeps_others: ClassVar[bool] = True

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.safetensors.export import estimate

        return estimate(component, SafetensorsOptions.of(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.safetensors.export import export

        return export(component, SafetensorsOptions.of(options), staging, progress)

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.architectures import components_of
        from exporter.targets.safetensors.export import finish

        every = components_of(checkpoint)
        return finish(checkpoint, components, SafetensorsOptions.of(options), staging, every, NullProgress())

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        variant = manifest.options.get("output_variant")
        arguments = f', variant="{variant}"' if variant else ""
        code = diffusers_code("diffusers", "", manifest.source.pipeline_class, repo, arguments)
        diffusers = Client("diffusers", "pip install diffusers transformers accelerate", "python", code)
        return [diffusers, *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.safetensors.runner import SafetensorsRunner

        return SafetensorsRunner(root, component, options or RunOptions())
