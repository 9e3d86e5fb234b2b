"""ONNX: `<component>/model.onnx` and `model.onnx_data`, in the folder that optimum's pipelines open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    only_ours,
)
from exporter.targets.onnx.options import OnnxOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["OnnxOptions", "OnnxTarget"]


WITHOUT_OPTIMUM = (
    "CogView3PlusPipeline", "FluxFillPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline",
    "HunyuanDiTPipeline", "LTXImageToVideoPipeline", "LTXPipeline", "PixArtAlphaPipeline",
    "PixArtSigmaPipeline", "SanaPipeline",
)  # fmt: skip
"""Pipelines that optimum has no ONNX Runtime class for, or (Sana) none that it gives by its name."""


class OnnxTarget(Target):
    """Writes ONNX and opens it in ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    options_type: ClassVar[type[Options]] = OnnxOptions
    apart: ClassVar[bool] = True

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.onnx.export import estimate

        return estimate(component, options)

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.onnx.export import export

        return export(component, OnnxOptions.of(options), staging, progress)

    def share(
        self, first: ExportedComponent, other: ExportedComponent, suffix: str, staging: Path
    ) -> ExportedComponent:
        from exporter.targets.onnx.sharing import share_data

        if first.sizes or first.entry.parent == other.entry.parent:  # several have one; transformers.js
            return other
        path = first.entry.with_name(f"{first.entry.stem}_{suffix}.onnx")
        data = share_data(first.entry, other.entry, path)
        return replace(other, entry=path, files=(path, data))

    def computes_in_float16(self, options: Options) -> bool:
        return options.dtype == "float16"

    def keep_finite(self, component: Component, options: Options, peak: float) -> Options:
        return options.model_copy(update={"dtype": "float32"})

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files

        files = write_diffusers_files(checkpoint, components, staging)
        if OnnxOptions.of(options).naming == "transformers.js":
            from exporter.targets.onnx.names import write_web_config

            files.append(write_web_config(staging, components, checkpoint.pipeline_class))
        return files

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        if manifest.options.get("naming") == "transformers.js":  # optimum wants a folder a component
            return super().clients(repo, manifest)
        kind = manifest.source.pipeline_class
        if kind in WITHOUT_OPTIMUM or "ControlNet" in kind or "Adapter" in kind or only_ours(manifest):
            return super().clients(repo, manifest)
        code = diffusers_code("optimum.onnxruntime", "ORT", kind, repo)
        optimum = Client("optimum", 'pip install "optimum-onnx[onnxruntime]"', "python", code)
        return [optimum, *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.onnx.runner import OnnxRunner

        return OnnxRunner(root / component.entry, options or RunOptions())

    def runtime(self, options: RunOptions) -> dict[str, str]:
        from exporter.targets.onnx.compiled import runtime

        return runtime(options)

    def compile(self, root: Path, component: ComponentRecord, options: RunOptions, folder: Path) -> Path:
        from exporter.targets.onnx.compiled import compile_graph

        return compile_graph(root / component.entry, options, folder)
