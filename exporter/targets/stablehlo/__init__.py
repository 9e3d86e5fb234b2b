"""StableHLO for JAX: `<component>/model.stablehlo`, a `jax.export` program, beside its weights.

One artifact for CPUs, NVIDIA GPUs and TPUs. Runs without PyTorch: see the room's README.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from exporter.artifact import ComponentRecord, Manifest
from exporter.progress import Progress
from exporter.targets.base import Client, Estimate, ExportedComponent, Options, Runner, RunOptions, Target
from exporter.targets.clients import PROMPT
from exporter.targets.stablehlo.options import PAINTED, StableHloOptions

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

__all__ = ["StableHloOptions", "StableHloTarget"]


class StableHloTarget(Target):
    """Lowers `torch.export` programs to StableHLO and opens them in JAX."""

    name: ClassVar[str] = "stablehlo"
    title: ClassVar[str] = "StableHLO"
    extra: ClassVar[str] = "jax"
    packages: ClassVar[tuple[str, ...]] = ("jax", "flatbuffers")
    options_type: ClassVar[type[Options]] = StableHloOptions
    apart: ClassVar[bool] = True

    def estimate(self, component: Component, options: Options) -> Estimate:
        from exporter.targets.stablehlo.export import estimate

        return estimate(component, StableHloOptions.of(options))

    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        from exporter.targets.stablehlo.export import export

        return export(component, StableHloOptions.of(options), staging, progress)

    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        from exporter.targets.layout import write_diffusers_files

        return write_diffusers_files(checkpoint, components, staging)

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        """Pictures over all devices, where that needs no PyTorch; else one component in plain JAX."""
        parts = {component.name for component in manifest.components}
        if manifest.source.pipeline_class in PAINTED and parts >= {"text_encoder", "unet", "vae_decoder"}:
            code = (
                "import jax\nfrom exporter.targets.stablehlo.painter import Painter\n"
                "from huggingface_hub import snapshot_download\n\n"
                f'painter = Painter(snapshot_download("{repo}"))  # on every device there is\n'
                f'prompts = ["{PROMPT}"] * len(painter.devices)\n'
                "keys = jax.random.split(jax.random.key(0), len(prompts))\n"
                "for number, picture in enumerate(painter.images(painter(prompts, keys))):\n"
                '    picture.save(f"picture-{number}.png")'
            )
            install = 'pip install "exporter[jax]"'
            return [Client("JAX", install, "python", code), *super().clients(repo, manifest)]
        name = manifest.components[-1].name if manifest.components else "vae_decoder"
        code = (
            "import jax\nfrom huggingface_hub import hf_hub_download\n"
            "from safetensors.flax import load_file\n\n"
            f'program = hf_hub_download("{repo}", "{name}/model.stablehlo")\n'
            f'weights = load_file(hf_hub_download("{repo}", "{name}/weights.safetensors"))\n'
            f'{name} = jax.jit(jax.export.deserialize(bytearray(open(program, "rb").read())).call)\n'
            f"# {name}(weights, **inputs) takes and gives arrays by name, see exporter.json"
        )
        install = "pip install jax flatbuffers safetensors huggingface_hub"
        return [Client("JAX", install, "python", code), *super().clients(repo, manifest)]

    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        from exporter.targets.stablehlo.runner import StableHloRunner

        return StableHloRunner(root / component.entry, options or RunOptions())
