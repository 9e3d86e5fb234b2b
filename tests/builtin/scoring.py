"""Paints prompts with the checkpoint and lets the judge score them.

`python -m tests.builtin.scoring` prints the full score as JSON (200 prompts from all scenes, and
200 held-out ones); `--device cuda` makes it a matter of seconds.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from exporter.builtin import path
from exporter.builtin.prompts import sample_scenes
from tests.judge import Judgement, judge

STEPS = 25
GUIDANCE = 7.5  # the default of the pipeline and of its clients


def load(folder: Path, device: str = "cpu") -> StableDiffusionPipeline:
    """The checkpoint as any client loads it: float16 on disk, float32 at work."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def paint(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch: int = 50,
) -> list[Image.Image]:
    """One picture a prompt; prompt i starts from seed + i, however prompts are batched."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(chunk))
        pictures += pipeline(
            chunk,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        ).images
    return pictures


def rate(judgements: Sequence[Judgement]) -> dict[str, object]:
    """Share of right pictures, and how often each attribute was wrong."""
    wrong = Counter(name for judgement in judgements for name in judgement.wrong)
    right = sum(judgement.ok for judgement in judgements)
    return {"right": right / len(judgements), "of": len(judgements), "wrong": dict(wrong)}


def score(
    pipeline: StableDiffusionPipeline,
    count: int,
    *,
    only_held_out: bool,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    sheet: Path | None = None,
) -> dict[str, object]:
    """Score `count` different prompts; `sheet` gets the pictures, wrong ones first."""
    scenes = sample_scenes(count, seed=1, only_held_out=only_held_out)
    prompts = [scene.prompt for scene in scenes]
    pictures = paint(pipeline, prompts, guidance=guidance, steps=steps, seed=1000)
    judged = [judge(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    for prompt, judgement in zip(prompts, judged, strict=True):
        if not judgement.ok:
            print(f"# {prompt}: {judgement}", flush=True)
    if sheet:
        order = sorted(range(count), key=lambda i: judged[i].ok)
        contact_sheet([pictures[i] for i in order]).save(sheet)
    return rate(judged)


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 16) -> Image.Image:
    """All pictures in one, two pixels apart."""
    width, height = (side + 2 for side in pictures[0].size)
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=path())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--sheets", type=Path, help="folder for the contact sheets")
    given = parser.parse_args()
    pipeline = load(given.folder, given.device)
    result: dict[str, object] = {"guidance": given.guidance, "steps": given.steps}
    for name, only in (("all", False), ("held_out", True)):
        sheet = given.sheets / f"{name}-{given.guidance:g}.png" if given.sheets else None
        result[name] = score(
            pipeline,
            given.count,
            only_held_out=only,
            guidance=given.guidance,
            steps=given.steps,
            sheet=sheet,
        )
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
