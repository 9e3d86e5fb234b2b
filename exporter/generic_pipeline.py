"""RUN: a pipeline that no module is written for, from what was recorded of its calls."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Resampling

from exporter.architectures.generic import FILE, Recording
from exporter.checkpoints.checkpoint import read_json
from exporter.errors import ArtifactError, UsageError
from exporter.safety_checker import note_withheld
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
    routes.pipeline.exporter_baked = recording.baked(
        {name: {spec.name: spec.dims for spec in runner.inputs} for name, runner in runners.items()}
    )
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
    negative_prompt: str | None = None,
    image: Image | None = None,
    strength: float | None = None,
    **others: Any,
) -> list[Image]:
    """Paint each prompt from the same seed.

    Args:
        prompts: What the pipeline takes for one: words, a class by number or name, or nothing that matters.
        guidance: The pipeline's own scale when None.
        height / width: Pixels; of a pipeline that is given a picture, what that is scaled to. When None, the
            picture's own size to the nearest that fits, or the native one.
        image: The picture to change, enlarge or measure.
        strength: How much of it is taken away first; the pipeline's own when None.
        others: Settings that only families with a module have; one that is given is an error.

    Raises:
        UsageError: A setting that the pipeline has not, a picture that it wants or does not take, or a result
            that is no picture.
    """
    from exporter.architectures.generic.ports import arguments

    known = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    odd = next((name for name, value in others.items() if value is not None), None)
    if odd is not None:
        raise UsageError(
            f"A {kind} is run by the generic route, which has no --{odd.replace('_', '-')}.",
            hint="Call diffusers' own pipeline in Python: exporter.load(...) returns it.",
        )
    if negative_prompt is not None and "negative_prompt" not in known:
        raise UsageError(f"A {kind} takes no negative prompt.", hint="Leave out --negative-prompt.")
    if strength is not None and not {"strength", "image"} <= set(known):
        raise UsageError(f"A {kind} has no strength.", hint="Leave out --strength.")
    high, wide = _size(pipeline, known, image, height, width)
    shown = () if image is None else (image.convert("RGB").resize((wide, high), Resampling.LANCZOS),)
    further: dict[str, Any] = {"output_type": "np" if "prediction" in _results(pipeline) else "pil"}
    further |= {"negative_prompt": [negative_prompt]} if negative_prompt is not None else {}
    further |= {"strength": strength} if strength is not None else {}
    painted: list[Image] = []
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    for prompt, one in zip(prompts, seeds, strict=True):
        progress.start(f"painting “{prompt}”", None)
        result = pipeline(
            **arguments(
                pipeline,
                prompts=[prompt],
                height=high,
                width=wide,
                steps=steps,
                generators=[torch.Generator("cpu").manual_seed(one)],
                guidance=guidance,
                pictures=shown,
                further=further,
            )
        )
        progress.done()
        note_withheld(pipeline, result, len(painted), 1)
        painted.append(_picture(result, kind))
    return painted


def _size(
    pipeline: Any, known: Mapping[str, Any], image: Image | None, height: int | None, width: int | None
) -> tuple[int, int]:
    """(height, width) to be painted, or of the picture that is given."""
    from exporter.architectures.generic import MULTIPLE
    from exporter.architectures.generic.ports import native_size, takes_picture

    kind = type(pipeline).__name__
    if image is not None and not takes_picture(pipeline):
        raise UsageError(f"A {kind} takes no picture.", hint="Leave out --image.")
    if image is None and takes_picture(pipeline):
        raise UsageError(f"A {kind} starts from a picture.", hint="Give it one with --image FILE.")
    if image is None and not {"height", "width"} <= set(known) and (height or width):
        raise UsageError(f"A {kind} paints in one size only; leave out --height and --width.")
    high, wide, factor = native_size(pipeline)
    baked = getattr(pipeline, "exporter_baked", None)
    if baked is not None:
        if (height or baked[0], width or baked[1]) != baked:
            raise UsageError(
                f"This artifact was baked for {baked[0]}×{baked[1]} pixels.",
                hint="Leave out --height and --width, or convert without --static.",
            )
        return baked
    if image is not None:
        step = factor * MULTIPLE
        high, wide = (max(1, round(side / step)) * step for side in (image.height, image.width))
    return height or high, width or wide


def _results(pipeline: Any) -> tuple[str, ...]:
    """What the pipeline's result has, as far as its class says so."""
    return ("prediction",) if hasattr(pipeline, "decode_prediction") else ()


def _picture(result: Any, kind: str) -> Image:
    """The first picture of a result; a map (of depths) in shades of grey, which show it from 0 to 1."""
    if hasattr(result, "images"):
        return result.images[0]
    if not hasattr(result, "prediction"):
        raise UsageError(f"A {kind} gives no picture but {', '.join(result)}.")
    from PIL import Image

    values = np.asarray(result.prediction)[0]
    values = values[..., 0] if values.shape[-1] == 1 else values[..., :3] / 2 + 0.5  # normals: -1 to 1
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
