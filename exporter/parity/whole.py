"""The whole pipeline: artifact, reference and twin paint the same pictures from the same noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from exporter.architectures.base import DENOISERS
from exporter.errors import BackendMissing, ExporterError
from exporter.parity import decisions
from exporter.parity.clips import frames_of, strip
from exporter.parity.metrics import NotComparable, psnr_db, ssim
from exporter.parity.paint_cache import cached_paint
from exporter.parity.painting import Painted, Plan, paint
from exporter.parity.schema import Painting, PipelineRun, Step
from exporter.parity.twin import artifact_backend, reference_backend, twin_backend

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint
    from exporter.targets.base import Runner

OpenRunner = Callable[[], AbstractContextManager["Runner"]]


def compare_pipelines(
    checkpoint: Checkpoint,
    components: Sequence[Component],
    plan: Plan,
    reference: Painted,
    runners: dict[str, OpenRunner],
    precisions: dict[str, tuple[str, str]],
    *,
    mode: Literal["graph", "default"],
    folder: Path | None,
    cache: Path | None,
    tick: Callable[[str], None],
    original: Painted | None = None,
    plain: Painted | None = None,
) -> PipelineRun:
    """Paint with the twin and with the artifact, and measure both against the reference.

    Args:
        runners: How to open each exported component; what one decides is among what it gives.
        precisions: (weights, arithmetic) of each, for the twin.
        folder: Where the pictures go; None keeps none.
        cache: Folder of stored runs of the twin.
        original: What the unquantised model paints, where the reference has quantised weights.
        plain: What the model paints without the techniques that the artifact carries.
    """
    started = time.perf_counter()
    by_name = {c.name: c for c in components}
    chosen = next((n for n in (*DENOISERS, *precisions) if n in precisions), None)
    arithmetic = precisions[chosen][1] if chosen is not None else "float32"
    run = PipelineRun(mode=mode, arithmetic=arithmetic)
    made: decisions.Made = {}
    artifact: Painted | None = None
    try:
        backends = decisions.heard(artifact_backend(by_name, runners), made)
        artifact = paint(checkpoint, components, plan, backends, tick)
    except BackendMissing as error:  # made for other hardware: no fault, and no proof
        run.not_checked = error.message.rstrip(".")
    except (
        Exception
    ) as error:  # whatever a runtime throws is the artifact's fault, not a crash of the verifier
        run.problems.append(f"the artifact could not paint: {_first_line(error)}")
    told = {n: c.decides.told(c) if c.decides and n in made else c for n, c in by_name.items()}

    def paint_twin() -> Painted:
        backends = decisions.repeated(twin_backend(told, precisions, plan.seed), made)
        return paint(checkpoint, components, plan, backends, tick)

    if made and artifact is not None:  # truth and twin decide as the artifact did
        backends = decisions.repeated(reference_backend(told), made)
        reference = paint(checkpoint, components, plan, backends, tick)
        twin = paint_twin()
    else:
        made.clear()
        twin = cached_paint(cache, checkpoint, components, plan, precisions, "twin", paint_twin)
    for g, group in enumerate(plan.groups()):
        for row, prompt in enumerate(group):
            number = g * plan.batch + row
            if number >= len(plan.prompts):
                break
            painting = _painting(reference, twin, artifact, g, row, plan.prompts[prompt], plan.seed + number)
            if original is not None and artifact is not None:
                _, painting.original_psnr_db, _ = _picture(artifact, original.pictures(g, row), g, row)
            if plain is not None and artifact is not None:
                _, painting.plain_psnr_db, _ = _picture(artifact, plain.pictures(g, row), g, row)
            if folder is not None:
                stem = f"{mode}-{number + 1}"
                _save_pictures(painting, reference, artifact, g, row, folder, stem)
                if original is not None:
                    whole = strip(original.pictures(g, row), frames_of(original.images[g][row]))
                    _save(painting, "original", whole, folder, stem)
                if plain is not None:
                    _save(painting, "plain", plain.pictures(g, row), folder, stem)
            run.paintings.append(painting)
    run.seconds = time.perf_counter() - started
    return run


def _painting(
    reference: Painted, twin: Painted, artifact: Painted | None, g: int, row: int, prompt: str, seed: int
) -> Painting:
    painting = Painting(prompt=prompt, seed=seed)
    for s, truth in enumerate(reference.latents[g]):
        other = divergence(twin.latents[g][s][row], truth[row])
        mine = divergence(artifact.latents[g][s][row], truth[row]) if artifact else None
        painting.steps.append(Step(step=s + 1, artifact=mine, twin=math.inf if other is None else other))
    truth_picture = reference.pictures(g, row)
    painting.twin_image_error, painting.twin_psnr_db, painting.twin_ssim = _picture(
        twin, truth_picture, g, row
    )
    if artifact is not None:
        painting.image_error, painting.psnr_db, painting.ssim = _picture(artifact, truth_picture, g, row)
    return painting


def divergence(latents: torch.Tensor, truth: torch.Tensor) -> float | None:
    """||latents - truth|| / ||truth||, or None when either is not finite or the truth is zero."""
    error = (latents.double() - truth.double()).norm().item()
    size = truth.double().norm().item()
    return error / size if math.isfinite(error) and math.isfinite(size) and size > 0 else None


def _picture(
    painted: Painted, truth: np.ndarray, g: int, row: int
) -> tuple[float | None, float | None, float | None]:
    picture = painted.pictures(g, row)
    if picture.shape != truth.shape or not bool(torch.isfinite(painted.images[g][row]).all()):
        return None, None, None
    error = float(np.sqrt(np.mean((picture - truth) ** 2)))
    try:
        return error, psnr_db(picture, truth), ssim(picture, truth)
    except NotComparable:
        return error, None, None


def _save_pictures(
    painting: Painting,
    reference: Painted,
    artifact: Painted | None,
    g: int,
    row: int,
    folder: Path,
    stem: str,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    frames = frames_of(reference.images[g][row])
    truth = reference.pictures(g, row)
    _save(painting, "reference", strip(truth, frames), folder, stem)
    if artifact is None or artifact.images[g][row].shape != reference.images[g][row].shape:
        return
    picture = artifact.pictures(g, row)
    _save(painting, "artifact", strip(picture, frames), folder, stem)
    difference = np.abs(np.nan_to_num(picture) - truth)
    largest = float(difference.max())
    # A power of ten that makes the largest difference visible without saturating everything.
    painting.amplification = 10.0 ** max(0, min(7, math.floor(-math.log10(largest)))) if largest > 0 else 1.0
    _save(painting, "difference", strip(difference * painting.amplification, frames), folder, stem)


def _save(painting: Painting, kind: str, values: np.ndarray, folder: Path, stem: str) -> None:
    from PIL import Image

    name = f"{stem}-{kind}.png"
    Image.fromarray((np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)).save(folder / name)
    painting.pictures[kind] = name


def _first_line(error: BaseException) -> str:
    if isinstance(error, ExporterError):
        return error.message.rstrip(".")
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line[:300]}"
