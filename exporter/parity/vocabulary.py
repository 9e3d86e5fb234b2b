"""Token ids that no prompt holds: a wrong row of an embedding table shows only where it is looked up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from exporter.parity.cases import Inputs

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.artifact import TensorRecord

FLOPS = 2e11
"""Work one evaluation may cost; a small model's whole vocabulary is far below, CLIP's is not."""
MAX_CASES = 8


def vocabulary(component: Component, cases: Sequence[Inputs], inputs: Sequence[TensorRecord]) -> list[Inputs]:
    """Cases whose ids sweep the tokens the other cases do not hold; the label says how many.

    Rows keep the layout of a prompt: the captured first and last id around the swept ones. Where
    the sweep would cost too much it takes tokens spread evenly over the vocabulary.

    Args:
        inputs: As the artifact declares them; a baked-in batch is kept.
    """
    size = component.config.get("vocab_size")
    if not size or not cases or set(cases[0].tensors) != {"input_ids"}:
        return []
    seen = {int(i) for case in cases for i in case.tensors["input_ids"].unique()}
    unseen = [i for i in range(int(size)) if i not in seen]
    pattern = cases[0].tensors["input_ids"][0]
    room = len(pattern) - 2
    if not unseen or room < 1:
        return []
    rows = min(math.ceil(len(unseen) / room), _affordable(component, len(pattern)))
    batch = next((r.dims[0] for r in inputs if r.name == "input_ids"), "batch")
    if isinstance(batch, int):
        rows = min(rows, batch * MAX_CASES)
    chosen = [unseen[i * len(unseen) // (rows * room)] for i in range(rows * room)]
    if rows * room >= len(unseen):
        chosen = [unseen[i % len(unseen)] for i in range(rows * room)]
    ids = pattern.repeat(rows, 1)
    ids[:, 1:-1] = torch.tensor(chosen, dtype=ids.dtype).view(rows, room)
    covered = len(seen | set(chosen))
    label = "every token" if covered >= int(size) else f"{covered} of {size} tokens"
    step = batch if isinstance(batch, int) else rows
    return [
        Inputs(
            f"vocabulary{n + 1}", "vocabulary", label, {"input_ids": _full(ids[start : start + step], step)}
        )
        for n, start in enumerate(range(0, rows, step))
    ]


def _affordable(component: Component, tokens: int) -> int:
    """Rows that fit the budget, counting two operations for every weight that is not looked up."""
    working = sum(w.numel for name, w in component.weights.items() if "embed" not in name)
    return max(2, int(FLOPS / max(2 * working * tokens, 1)))


def _full(ids: torch.Tensor, rows: int) -> torch.Tensor:
    """Filled up to `rows` by repeating the last one."""
    missing = rows - ids.shape[0]
    return torch.cat([ids, ids[-1:].repeat(missing, 1)]) if missing else ids.contiguous()
