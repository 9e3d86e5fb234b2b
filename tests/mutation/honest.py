"""False alarms: honest conversions of many kinds, each judged as a user's would be. None may fail."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation import compressed
from tests.mutation.formats import format_of
from tests.mutation.workshop import Workshop

SEEDS = 5
COMPONENTS = ("unet", "text_encoder", "vae_decoder", "vae_encoder")
AT_LEAST = 52
"""Conversions of every format: where it has fewer forms, they come again with further seeds."""

SHOWN = {
    "static": "static", "max_shard_size": "sharded", "freeze": "frozen", "channels_last": "channels_last",
}  # fmt: skip
"""Options whose value says nothing in a label."""


@dataclass(frozen=True)
class Conversion:
    """One component of one checkpoint in one form."""

    seed: int
    target: str
    component: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        kinds = "-".join(SHOWN.get(name, str(v)) for name, v in self.options.items())
        return f"{self.target}-{self.component}-{kinds or 'default'}-seed{self.seed}"


@dataclass
class HonestRow:
    """What the verifier said of one; `ratios` are the largest error ÷ limit by way of running it,
    of those that decide the verdict."""

    label: str
    target: str
    component: str
    verdict: str
    ratios: dict[str, float]
    reason: str
    seconds: float


def plan(targets: Sequence[str], count: int | None = None) -> list[Conversion]:
    """Every dtype × dynamic or static × form of attention × component, seeds in turn.

    Args:
        count: Only so many, spread evenly over the list.
    """
    found = [conversion for target in targets for conversion in _of(target)]
    found += [
        Conversion((f + c) % SEEDS, target, component, options)
        for f, (target, options) in enumerate(compressed.forms(targets))
        for c, component in enumerate(COMPONENTS)
    ]
    if count is None or count >= len(found):
        return found
    return [found[i * len(found) // count] for i in range(count)]


def _of(target: str) -> list[Conversion]:
    found: list[Conversion] = []
    for turn in range(SEEDS):
        for f, options in enumerate(format_of(target).honest):
            for c, component in enumerate(COMPONENTS):
                # Only a UNet has a timestep; elsewhere the form would be the same conversion twice.
                if component != "unet" and "timestep" in options:
                    continue
                if turn and len(found) >= AT_LEAST:
                    return found
                found.append(Conversion((f + c + turn) % SEEDS, target, component, dict(options)))
    return found


def checkpoint(folder: Path, seed: int) -> Path:
    """A tiny checkpoint of a seed, made once."""
    from tests.tiny import make_tiny

    path = folder / f"tiny-{seed}"
    if not (path / "model_index.json").is_file():
        make_tiny(path, seed=seed)
    return path


def run(
    folder: Path, conversions: Sequence[Conversion], say: Callable[[str], None] = print
) -> Iterator[HonestRow]:
    """Convert and judge each, under `f32` and as it runs by default."""
    for conversion in conversions:
        began = time.perf_counter()
        source = checkpoint(folder, conversion.seed)
        shop = Workshop(folder / f"seed{conversion.seed}", str(source))
        root = convert(shop, conversion)
        report = shop.verify(root, bisect=False, precision_hint=None, trust=False)
        part = report.components[0]
        row = HonestRow(
            label=conversion.label,
            target=conversion.target,
            component=conversion.component,
            verdict=report.verdict,
            ratios={
                worst.mode: worst.ratio
                for worst in part.worst_by_mode
                if any(run.gates and run.mode == worst.mode for run in part.runs)
            },
            reason=part.summary,
            seconds=round(time.perf_counter() - began, 1),
        )
        shutil.rmtree(root)
        say(f"{row.label:58s} {row.verdict:6s} {ratios(row.ratios)} {row.seconds:6.1f} s")
        yield row


def convert(shop: Workshop, conversion: Conversion) -> Path:
    """The component alone, by the code that the command runs."""
    from exporter.conversion import convert as work
    from exporter.conversion import make_plan
    from tests.mutation.workshop import sharing_graphs

    root = shop.folder / "honest" / conversion.label
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Quantising changes the graph, so it is not shared with conversions that do not.
    with sharing_graphs(conversion.label if "weights" in conversion.options else None):
        work(
            make_plan(
                shop.source,
                format_of(conversion.target).target,
                root,
                conversion.options,
                components=[conversion.component],
                verify=False,
            )
        )
    return root


def ratios(found: dict[str, float]) -> str:
    return " ".join(f"{mode} {ratio:.3f}" for mode, ratio in found.items())
