"""OpenVINO IR: `<component>/openvino_model.xml` and `.bin`, as optimum-intel and OpenVINO GenAI open it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import Progress
from exporter.targets.base import (
    PROMPT,
    Calibration,
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
from exporter.targets.openvino.options import OpenVinoOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["OpenVinoOptions", "OpenVinoTarget"]


class OpenVinoTarget(Target):
    """Writes and opens OpenVINO IR."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO IR"
    extra: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "openvino_tokenizers", "onnx", "onnxscript")
    options_type: ClassVar[type[Options]] = OpenVinoOptions

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.openvino.export import estimate

        return estimate(component, OpenVinoOptions.of(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.openvino.export import export

        return export(component, OpenVinoOptions.of(options), staging, progress)

    def calibration(self, options: Options) -> Calibration | None:
        checked = OpenVinoOptions.of(options)
        if checked.activations is None:
            return None
        from exporter.targets.openvino import activations

        return Calibration(
            prompts=checked.calibration_prompts,
            steps=checked.calibration_steps or activations.STEPS,
            seed=activations.SEED if checked.calibration_seed is None else checked.calibration_seed,
            samples=checked.calibration_samples or activations.SAMPLES,
        )

    def export_calibrated(
        self,
        component: Component,
        options: Options,
        staging: Path,
        progress: Progress,
        calibration: Calibration,
    ) -> ExportedComponent:
        from exporter.targets.openvino.export import export

        return export(component, OpenVinoOptions.of(options), staging, progress, calibration)

    def share(
        self, first: ExportedComponent, other: ExportedComponent, suffix: str, staging: Path
    ) -> ExportedComponent:
        from exporter.targets.openvino.sharing import share_constants, weights_of

        if first.sizes:
            return other
        share_constants(first.entry, other.entry)
        path = first.entry.with_name(f"{first.entry.stem}_{suffix}.xml")
        other.entry.rename(path)
        other.entry.parent.rmdir()
        return replace(other, entry=path, files=(path, weights_of(path)))

    def computes_in_float16(self, options: Options) -> bool:
        checked = OpenVinoOptions.of(options)
        made_for = {checked.dtype, checked.precision_hint}
        return checked.activations_scale is None and bool(made_for & {"float16", "f16"})

    def keep_finite(self, component: Component, options: Options, peak: float) -> Options:
        from exporter.targets.openvino.export import scale_for

        return options.model_copy(update={"activations_scale": scale_for(peak)})

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files
        from exporter.targets.openvino.tokenizers import write_tokenizers

        return [
            *write_diffusers_files(checkpoint, components, staging),
            *write_tokenizers(checkpoint, staging),
        ]

    def remarks(self, checkpoint: Checkpoint, options: Options) -> list[str]:
        from exporter.targets.openvino.schedulers import scheduler_remark

        remark = scheduler_remark(checkpoint)
        return [] if remark is None else [remark]

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        if only_ours(manifest):
            return super().clients(repo, manifest)
        kind = manifest.source.pipeline_class
        optimum = diffusers_code("optimum.intel", "OV", kind, repo)
        genai = (
            "import openvino_genai\n"
            "from huggingface_hub import snapshot_download\n"
            "from PIL import Image\n\n"
            f'folder = snapshot_download("{repo}")\n'
            'pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU")\n'
            f'picture = pipeline.generate("{PROMPT}", num_inference_steps=25)\n'
            'Image.fromarray(picture.data[0]).save("picture.png")'
        )
        others = [Client("OpenVINO GenAI", "pip install openvino-genai", "python", genai)]
        if "Img2Img" in kind or "Inpaint" in kind:  # the code above starts from noise
            others = []
        return [
            Client("optimum-intel", 'pip install "optimum-intel[openvino]"', "python", optimum),
            *others,
            *super().clients(repo, manifest),
        ]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(root / component.entry, component, options or RunOptions())

    def runtime(self, options: RunOptions) -> dict[str, str]:
        from exporter.targets.openvino.compiled import runtime

        return runtime(options)

    def compile(self, root: Path, component: ComponentRecord, options: RunOptions, folder: Path) -> Path:
        from exporter.targets.openvino.compiled import compile_blob

        return compile_blob(root / component.entry, component, options, folder)
