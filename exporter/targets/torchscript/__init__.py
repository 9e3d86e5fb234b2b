"""TorchScript: `<component>/model.pt`, a traced program that libtorch runs without Python.

Deprecated by PyTorch in favour of `torch.export`. An artifact is a program: see `exporter.trust`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import Progress
from exporter.targets.base import Client, Estimate, ExportedComponent, Options, Runner, RunOptions, Target
from exporter.targets.torchscript.options import TorchScriptOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["TorchScriptOptions", "TorchScriptTarget"]


class TorchScriptTarget(Target):
    """Writes TorchScript by tracing and opens it in PyTorch."""

    name: ClassVar[str] = "torchscript"
    title: ClassVar[str] = "TorchScript"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    options_type: ClassVar[type[Options]] = TorchScriptOptions
    executable: ClassVar[bool] = True

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.torchscript.export import estimate

        return estimate(component, TorchScriptOptions.of(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.torchscript.export import export

        return export(component, TorchScriptOptions.of(options), staging, progress)

    def computes_in_float16(self, options: Options) -> bool:
        return options.dtype == "float16"

    def keep_finite(self, component: Component, options: Options, peak: float) -> Options:
        return options.model_copy(update={"dtype": "float32"})

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files

        return write_diffusers_files(checkpoint, components, staging)

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        from exporter.targets.torchscript.clients import pytorch

        return [pytorch(repo, manifest), *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.trust import require

        options = options or RunOptions()
        require(root, [component], trust=options.trust)
        from exporter.targets.torchscript.runner import TorchScriptRunner

        return TorchScriptRunner(root / component.entry, options)
