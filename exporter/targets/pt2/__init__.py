"""PyTorch's own `.pt2`: `<component>/model.pt2`, an ExportedProgram or an AOTInductor package.

The successor of TorchScript. Both kinds are programs: see `exporter.trust`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import Progress
from exporter.targets.base import Client, Estimate, ExportedComponent, Options, Runner, RunOptions, Target
from exporter.targets.pt2.options import Pt2Options

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["Pt2Options", "Pt2Target"]


class Pt2Target(Target):
    """Writes `.pt2` by `torch.export` and opens it in PyTorch."""

    name: ClassVar[str] = "pt2"
    title: ClassVar[str] = "PyTorch .pt2"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    options_type: ClassVar[type[Options]] = Pt2Options
    apart: ClassVar[bool] = True
    executable: ClassVar[bool] = True

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.pt2.export import estimate

        return estimate(component, Pt2Options.of(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.pt2.export import export

        return export(component, Pt2Options.of(options), staging, progress)

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
        name = manifest.components[-1].name if manifest.components else "vae_decoder"
        load = "torch._inductor.aoti_load_package(path)"
        if not manifest.options.get("compile"):
            load = "torch.export.load(path).module()"
        code = (
            "import torch\nfrom huggingface_hub import hf_hub_download\n\n"
            f'path = hf_hub_download("{repo}", "{name}/model.pt2")\n'
            f"{name} = {load}  # takes and gives float32 tensors, see exporter.json"
        )
        return [Client("PyTorch", "pip install torch", "python", code), *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.trust import require

        options = options or RunOptions()
        require(root, [component], trust=options.trust)
        from exporter.targets.pt2.runner import open_runner

        return open_runner(root / component.entry, options)
