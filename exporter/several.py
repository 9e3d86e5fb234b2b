"""Several pictures in one run: one after another, or shared by the devices where a format can do that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.targets.sharing import shared_evenly

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.targets import Runner


def repeated(prompts: Sequence[str], pictures: int) -> list[str]:
    """Every prompt so many times, in order."""
    return [prompt for prompt in prompts for _ in range(pictures)]


def paths(picture: Path, count: int) -> list[Path]:
    """The file of one picture, or numbered files beside it: `star.png`, or `star-1.png`, `star-2.png` …"""
    if count == 1:
        return [picture]
    width = len(str(count))
    return [picture.with_stem(f"{picture.stem}-{number:0{width}}") for number in range(1, count + 1)]


def devices(pipeline: Any) -> int:
    """Devices that share the pictures of an artifact opened with `spread`; 1 where the format cannot."""
    runners: Mapping[str, Runner] = getattr(pipeline, "exporter_runners", {})
    return min((runner.shares for runner in runners.values()), default=1)


def paint(pipeline: Any, prompts: Sequence[str], *, seed: int = 0, **settings: Any) -> list[Image]:
    """Paint each prompt from a seed of its own, as many at once as there are devices.

    Picture k is what its prompt alone gives from seed + k, as far as the arithmetic of a batch allows.

    Args:
        pipeline: What `exporter.pipeline.load` gave.
        seed: Of the first picture.
        settings: As `exporter.pipeline.paint` takes them.

    Raises:
        UsageError: The devices do not divide the prompts; or as `exporter.pipeline.paint`.
    """
    from exporter.pipeline import paint as paint_prompts

    shared = devices(pipeline) if len(prompts) > 1 else 1
    shared_evenly(len(prompts), shared)
    seeds = [seed + number for number in range(len(prompts))]
    return paint_prompts(pipeline, prompts, seed=seeds, together=shared, **settings)
