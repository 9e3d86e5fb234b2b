"""RUN: a pipeline that no module is written for, from what was recorded of its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.generic import FILE, Recording
from exporter.checkpoints.checkpoint import read_json
from exporter.errors import ArtifactError, UsageError
from exporter.stand_ins import ExportedModule

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.progress import Progress
    from exporter.targets import Runner


def is_recorded(root: Path) -> bool:
    """Whether an artifact carries a recording, so that its pipeline is put together by it."""
    return (root / FILE).is_file()


def assemble(root: Path, runners: Mapping[str, Runner]) -> Any:
    """The library's pipeline over the runners of an artifact.

    Raises:
        ArtifactError: A component that the pipeline calls is not among the runners.
    """
    from exporter.architectures.generic.running import Routes

    recording = Recording.read(root / FILE)
    missing = next((call.name for call in recording.calls if call.name not in runners), None)
    if missing is not None:
        raise ArtifactError(
            f"The artifact has no {missing}, so it cannot paint.", hint="Convert again without --component."
        )
    callers = {name: ExportedModule(runner, {}) for name, runner in runners.items()}

    def compute(name: str, inputs: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        runner = runners[name]
        values = callers[name].call(runner, **inputs)
        return {spec.name: value for spec, value in zip(runner.outputs, values, strict=True)}

    index = read_json(root / "model_index.json")
    routes = Routes(root, index, root.name, recording, compute)
    routes.pipeline.exporter_generic = recording
    return routes.pipeline


def paint(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int],
    steps: int,
    guidance: float | None,
    height: int | None,
    width: int | None,
    progress: Progress,
    **others: Any,
) -> list[Image]:
    """Paint each prompt from the same seed.

    Args:
        prompts: What the pipeline takes for one: words, a class by number or name, or nothing that matters.
        guidance: The pipeline's own scale when None.
        others: Settings that only families with a module have; one that is given is an error.

    Raises:
        UsageError: A setting that the pipeline has not, or a result that is no picture.
    """
    import inspect

    from exporter.architectures.generic.ports import arguments, native_size

    known = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    odd = next((name for name, value in others.items() if value is not None), None)
    if odd is not None:
        raise UsageError(
            f"A {kind} is run by the generic route, which has no --{odd.replace('_', '-')}.",
            hint="Call diffusers' own pipeline in Python: exporter.load(...) returns it.",
        )
    if not {"height", "width"} <= set(known) and (height or width):
        raise UsageError(f"A {kind} paints in one size only; leave out --height and --width.")
    high, wide, _ = native_size(pipeline)
    painted = []
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    for prompt, one in zip(prompts, seeds, strict=True):
        progress.start(f"painting “{prompt}”", None)
        result = pipeline(
            **arguments(
                pipeline,
                prompts=[prompt],
                height=height or high,
                width=width or wide,
                steps=steps,
                generators=[torch.Generator("cpu").manual_seed(one)],
                guidance=guidance,
                further={"output_type": "pil"},
            )
        )
        progress.done()
        if not hasattr(result, "images"):
            raise UsageError(f"A {kind} gives no picture but {', '.join(result)}.")
        painted.append(result.images[0])
    return painted
