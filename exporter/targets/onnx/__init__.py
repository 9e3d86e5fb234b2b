"""ONNX: `<component>/model.onnx` and `model.onnx_data`, in the folder that optimum's pipelines open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import Progress
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
from exporter.targets.onnx.options import OnnxOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["OnnxOptions", "OnnxTarget"]


class OnnxTarget(Target):
    """Writes ONNX and opens it in ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    options_type: ClassVar[type[Options]] = OnnxOptions

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.onnx.export import estimate

        return estimate(component, options)

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.onnx.export import export

        return export(component, _checked(options), staging, progress)

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files

        return write_diffusers_files(checkpoint, components, staging)

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        code = diffusers_code("optimum.onnxruntime", "ORT", manifest.source.pipeline_class, repo)
        optimum = Client("optimum", 'pip install "optimum-onnx[onnxruntime]"', "python", code)
        return [optimum, *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.onnx.runner import OnnxRunner

        return OnnxRunner(root / component.entry, options or RunOptions())


def _checked(options: Options) -> OnnxOptions:
    if isinstance(options, OnnxOptions):
        return options
    return OnnxOptions.model_validate(options.model_dump())
