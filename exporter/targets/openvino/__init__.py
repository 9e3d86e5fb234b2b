"""OpenVINO IR: `<component>/openvino_model.xml` and `.bin`, as optimum-intel and OpenVINO GenAI open it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.frames import VIDEO_PIPELINES
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

AMX = (
    "OpenVINO's kernels for AMX do that with some models, "
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 does without them"
)
WITHOUT_OPTIMUM = (
    "CogView3PlusPipeline",
    "HunyuanDiTPipeline",
    "LTXImageToVideoPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
)
"""Pipelines that optimum-intel has no class for."""
WITHOUT_GENAI = (*WITHOUT_OPTIMUM, "SanaPipeline")
"""Pipelines that OpenVINO GenAI has no program for."""


class OpenVinoTarget(Target):
    """Writes and opens OpenVINO IR."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO IR"
    extra: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "openvino_tokenizers", "onnx", "onnxscript")
    options_type: ClassVar[type[Options]] = OpenVinoOptions
    apart: ClassVar[bool] = True
    crashes: ClassVar[Mapping[int, str]] = {signal.SIGFPE: AMX}

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
        from exporter.architectures import is_generic
        from exporter.targets.openvino.schedulers import scheduler_remark

        found = super().remarks(checkpoint, options)
        if checkpoint.pipeline_class in WITHOUT_GENAI or is_generic(checkpoint):  # whatever its scheduler is
            return found
        remark = scheduler_remark(checkpoint)
        found += [] if remark is None else [remark]
        if checkpoint.pipeline_class in VIDEO_PIPELINES and checkpoint.config("vae").get(
            "timestep_conditioning"
        ):
            found.append(
                "OpenVINO GenAI opens no decoder that takes a timestep (timestep_conditioning), as this one "
                "does; optimum-intel and `exporter run` do"
            )
        return found

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        if only_ours(manifest):
            return super().clients(repo, manifest)
        kind = manifest.source.pipeline_class
        if (
            "ControlNet" in kind or "Adapter" in kind
        ):  # neither optimum-intel nor GenAI has a pipeline with one
            return super().clients(repo, manifest)
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
        if kind in VIDEO_PIPELINES:
            genai = (
                "import openvino_genai\n"
                "from huggingface_hub import snapshot_download\n"
                "from PIL import Image\n\n"
                f'folder = snapshot_download("{repo}")\n'
                'pipeline = openvino_genai.Text2VideoPipeline(folder, "CPU")\n'
                f'clip = pipeline.generate("{PROMPT}", num_inference_steps=25).video.data[0]\n'
                "frames = [Image.fromarray(frame) for frame in clip]\n"
                'frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=40)'
            )
        others = [Client("OpenVINO GenAI", "pip install openvino-genai", "python", genai)]
        if "Img2Img" in kind or "Inpaint" in kind or kind in WITHOUT_GENAI:  # the code starts from noise
            others = []
        if kind not in WITHOUT_OPTIMUM:
            install = 'pip install "optimum-intel[openvino]"'
            others.insert(0, Client("optimum-intel", install, "python", optimum))
        return [*others, *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(root / component.entry, component, options or RunOptions())

    def runtime(self, options: RunOptions) -> dict[str, str]:
        from exporter.targets.openvino.compiled import runtime

        return runtime(options)

    def compile(self, root: Path, component: ComponentRecord, options: RunOptions, folder: Path) -> Path:
        from exporter.targets.openvino.compiled import compile_blob

        return compile_blob(root / component.entry, component, options, folder)
