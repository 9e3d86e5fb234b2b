"""The blocks of token merging, so written that their graph has no size baked in. Needs PyTorch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from exporter.architectures._adapters import UNet
from exporter.architectures.baked.deciding import DECIDES
from exporter.errors import UnsupportedError

LOOKED_FOR = "BasicTransformerBlock"


class MergingUNet(UNet):
    """A `UNet` whose transformer blocks merge tokens before self-attention.

    Args:
        share: (numerator, denominator) of the tokens that are merged away.
        deepest: Factor by which the sides of the last level with merging are smaller than the latents'.
    """

    def __init__(self, inner: nn.Module, share: tuple[int, int], deepest: int) -> None:
        super().__init__(inner)
        self.sides: list[Any] = [0, 0]
        for path, factor in merging_blocks(inner, deepest):
            block = inner.get_submodule(path)
            block.add_module(DECIDES, Decided())
            block.forward = merging_forward(block, self.sides, factor, share)  # type: ignore[method-assign]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor]:
        self.sides[:] = sample.shape[2:]
        return super().forward(sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond)


class Decided(nn.Module):
    """A module, so that exported graphs name what it gives: the source of every token of the picture."""

    def forward(self, sources: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return sources.index_select(1, places)


def merging_blocks(unet: nn.Module, deepest: int) -> list[tuple[str, int]]:
    """(path, factor) of the transformer blocks down to a level."""
    found = [name for name, block in unet.named_modules() if type(block).__name__ == LOOKED_FOR]
    return [(path, factor) for path in found if (factor := factor_of(unet, path)) <= deepest]


def factor_of(unet: Any, path: str) -> int:
    """How much smaller than the latents' the sides are where a module of a UNet works."""
    levels = len(unet.down_blocks)
    room, _, rest = path.partition(".")
    number = int(rest.split(".")[0]) if room in ("down_blocks", "up_blocks") else levels - 1
    return int(2 ** (levels - 1 - number if room == "up_blocks" else number))


def merging_forward(
    block: Any, sides: list[Any], factor: int, share: tuple[int, int]
) -> Callable[..., torch.Tensor]:
    """The forward of a transformer block with merging around its first attention.

    Raises:
        UnsupportedError: A block that normalises or attends in another way than Stable Diffusion's.
    """
    if block.norm_type != "layer_norm" or block.only_cross_attention or block.pos_embed is not None:
        raise UnsupportedError("Token merging is for transformer blocks as Stable Diffusion has them.")

    def forward(
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        matching = Matching(hidden_states, sides[1] // factor, share)
        attended = block.attn1(matching.merge(block.norm1(hidden_states)))
        hidden_states = matching.unmerge(attended, getattr(block, DECIDES)) + hidden_states
        if block.attn2 is not None:
            normed = block.norm2(hidden_states)
            hidden_states = block.attn2(normed, encoder_hidden_states=encoder_hidden_states) + hidden_states
        return block.ff(block.norm3(hidden_states)) + hidden_states

    return forward


class Matching:
    """Which tokens of a level become one.

    The top left token of every square is kept. Each of the others has one of these that it resembles most;
    the share with the highest resemblances is merged into theirs.

    Tokens are named by their place in the picture, row by row, and lists of places are counted, not cut: what
    `torch.export` has to prove of a size stays `height * width` and parts of it.

    Args:
        tokens: What resemblance is taken of, `[batch, height * width, channels]`.
        width: Of the picture, even as its height is.
    """

    def __init__(self, tokens: torch.Tensor, width: Any, share: tuple[int, int]) -> None:
        self.count = tokens.shape[1]
        self.merged = self.count * share[0] // share[1]
        quarter, half = self.count // 4, width // 2
        self.alone = 3 * quarter - self.merged
        square, below = self._numbers(tokens, quarter), self._numbers(tokens, 2 * quarter)
        self.kept = square // half * (2 * width) + square % half * 2
        self.others = torch.cat([self.kept + 1, below // width * (2 * width) + width + below % width])
        length = tokens / tokens.norm(dim=-1, keepdim=True)
        likeness = length.index_select(1, self.others) @ length.index_select(1, self.kept).transpose(-1, -2)
        best, self.partner = likeness.max(dim=-1)
        self.order = best.argsort(dim=-1, descending=True)

    @staticmethod
    def _numbers(tokens: torch.Tensor, count: Any) -> torch.Tensor:
        return torch.arange(count, device=tokens.device)

    def merge(self, tokens: torch.Tensor) -> torch.Tensor:
        """Those that stay alone, the least alike last, then the kept ones: means of all merged into each."""
        others, kept = tokens.index_select(1, self.others), tokens.index_select(1, self.kept)
        away = self.order.index_select(1, self._numbers(tokens, self.merged))
        rest = self.order.index_select(1, self._numbers(tokens, self.alone) + self.merged)
        target = self.partner.gather(1, away)
        moved = others.gather(1, _along(away, others)).float()  # ONNX Runtime adds no float16 up by number
        total = kept.float().scatter_add(1, _along(target, kept), moved)
        count = torch.ones_like(total[..., :1]).scatter_add(
            1, target[..., None], torch.ones_like(moved[..., :1])
        )
        mean = (total / count).to(kept.dtype)
        return torch.cat([others.gather(1, _along(rest, others)), mean], dim=1)

    def unmerge(self, tokens: torch.Tensor, decided: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Every token of the picture again: those that were merged are all what became of them.

        Args:
            decided: Of where each token that may go and each kept one lies now, and their numbers in order of
                the picture, the same in that order.
        """
        place = self._numbers(tokens, self.others.shape[0]).expand_as(self.order)
        rank = torch.zeros_like(self.order).scatter(1, self.order, place)
        others = torch.where(rank < self.merged, self.partner + self.alone, rank - self.merged)
        kept = self._numbers(tokens, self.kept.shape[0]) + self.alone
        both = torch.cat([others, kept.expand(others.shape[0], -1)], dim=1)
        stood = torch.cat([self.others, self.kept])
        numbers = self._numbers(tokens, self.count)
        back = torch.zeros_like(numbers).scatter(0, stood, self._numbers(tokens, stood.shape[0]))
        source = decided(both, back)
        return tokens.gather(1, _along(source, tokens))


def _along(index: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An index of tokens, for each of their channels."""
    return index[..., None].expand(-1, -1, tokens.shape[-1])
