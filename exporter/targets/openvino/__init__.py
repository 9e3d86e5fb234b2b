"""OpenVINO IR: `<component>/openvino_model.xml` and `.bin`, as optimum-intel and OpenVINO GenAI open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent, Options, Runner, RunOptions, Target
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

        return estimate(component, _checked(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.openvino.export import export

        return export(component, _checked(options), staging, progress)

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files
        from exporter.targets.openvino.tokenizers import write_tokenizers

        return [
            *write_diffusers_files(checkpoint, components, staging),
            *write_tokenizers(checkpoint, staging),
        ]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(root / component.entry, component, options or RunOptions())


def _checked(options: Options) -> OpenVinoOptions:
    if isinstance(options, OpenVinoOptions):
        return options
    return OpenVinoOptions.model_validate(options.model_dump())
