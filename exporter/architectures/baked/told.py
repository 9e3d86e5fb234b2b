"""The library's UNet under `tomesd`, told which tokens to merge. Needs PyTorch at import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from exporter.architectures._adapters import UNet


class ToldUNet(UNet):
    """→ (`out_sample`, one likeness for each of `paths`), as `deciding.Decisions` describes them.

    Args:
        inner: Patched by `tomesd`.
        paths: Names of decisions: a transformer block's path and one more word.
    """

    def __init__(self, inner: nn.Module, paths: Sequence[str]) -> None:
        super().__init__(inner)
        self.paths = tuple(paths)
        self.running = ""
        self.decided: dict[str, torch.Tensor] = {}
        self.likeness: dict[str, torch.Tensor] = {}
        for path in self.paths:
            block = inner.get_submodule(path.rpartition(".")[0])
            block.register_forward_pre_hook(partial(self._enter, path))

    def _enter(self, path: str, module: nn.Module, inputs: Any) -> None:
        self.running = path

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        **decided: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        self.decided, self.likeness = decided, {}
        with self._listening():
            (out,) = super().forward(
                sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
            )
        nothing = torch.zeros(sample.shape[0], 3, 0, dtype=out.dtype)
        return (out, *(self.likeness.get(path, nothing) for path in self.paths))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """The package's matching takes the decisions that are given."""
        import tomesd

        rules: Any = tomesd.merge
        original: Callable[..., Any] = rules.bipartite_soft_matching_random2d

        def told(metric: torch.Tensor, w: int, h: int, sx: int, sy: int, r: int, **more: Any) -> Any:
            with _Told(self.decided.get(self.running), r) as mode:
                found = original(metric, w, h, sx, sy, r, **more)
            if mode.best is not None:
                self.likeness[self.running] = mode.likeness()
            return found

        rules.bipartite_soft_matching_random2d = told
        try:
            yield
        finally:
            rules.bipartite_soft_matching_random2d = original


class _Told(TorchFunctionMode):
    """Inside `bipartite_soft_matching_random2d`: what its two comparisons answer.

    It sorts three numbers: first places (those that stay, then those that may go), then of each of the latter
    the highest resemblance (a maximum, which says with whom), then these.

    Args:
        source: The decision; None leaves it to the package.
        merged: Tokens that go.
    """

    def __init__(self, source: torch.Tensor | None, merged: int) -> None:
        super().__init__()
        self.source, self.merged = source, merged
        self.places: torch.Tensor | None = None
        self.best: torch.Tensor | None = None
        self.chosen: torch.Tensor | None = None
        self.gone: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        kind = getattr(func, "__name__", "")
        if kind == "argsort" and self.places is None:
            self.places = found[0, :, 0]
        elif kind == "max":
            return self._partners(args[0], *found)
        elif kind == "argsort":
            return self._order(found)
        return found

    def likeness(self) -> torch.Tensor:
        assert self.best is not None and self.chosen is not None and self.gone is not None
        return torch.stack([self.best, self.chosen, self.gone.to(self.best.dtype)], dim=1)

    def _partners(
        self, scores: torch.Tensor, best: torch.Tensor, partner: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.best = self.chosen = best
        if self.source is None:
            return best, partner
        assert self.places is not None
        others, kept = scores.shape[1:]
        self.merged = min(self.merged, others)
        stay, go = self.places[:kept], self.places[kept:]
        if not self._is_decision(scores.shape[0], stay, go):
            self.chosen, self.source = torch.full_like(best, torch.nan), None
            return best, partner
        became = self.source[:, go] - (others - self.merged)
        self.gone = became >= 0
        in_order = stay.argsort()  # the package's number of the one that is n-th in the picture
        partner = torch.where(self.gone, in_order[became.clamp(min=0)], partner)
        self.chosen = torch.where(self.gone, scores.gather(-1, partner[..., None])[..., 0], best)
        return best, partner

    def _order(self, order: torch.Tensor) -> torch.Tensor:
        if self.source is not None and self.gone is not None:
            return (~self.gone).long().argsort(dim=-1, stable=True)
        self.gone = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, : self.merged], True)
        return order

    def _is_decision(self, rows: int, stay: torch.Tensor, go: torch.Tensor) -> bool:
        """Every token that stays is itself; as many go as should, each into one of those; the others are
        alone, each in a place of its own."""
        assert self.source is not None
        others, kept = len(go), len(stay)
        alone = others - self.merged
        if self.source.shape != (rows, others + kept):
            return False
        of_stay, of_go = self.source[:, stay.sort().values], self.source[:, go].sort(dim=-1).values
        themselves = torch.equal(of_stay, (torch.arange(kept) + alone).expand(rows, -1))
        apart = torch.equal(of_go[:, :alone], torch.arange(alone).expand(rows, -1))
        into = of_go[:, alone:]
        return themselves and apart and bool(((into >= alone) & (into < alone + kept)).all())
