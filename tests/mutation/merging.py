"""Faults of merged tokens: of what is merged, of the merging itself, and beside it.

The checkpoint is one whose tokens hardly differ, so that an honest artifact decides otherwise than PyTorch in
many places: a verifier that took every difference for a fault would fail it, and one that let every
difference pass would let these pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.architectures.baked import merging
from exporter.artifact import Artifact, hash_files

FACTORS = {"proj_in.weight": 3e-4, "attn1.to_q.weight": 300.0, "attn1.to_v.weight": 30.0}
"""In front of merging blocks biases rule, so that tokens are much the same; attention makes much of what
is left."""


def make_alike(folder: Path) -> Path:
    """A tiny checkpoint whose tokens are much the same wherever they are merged."""
    from safetensors.torch import load_file, save_file

    from tests.tiny import make_tiny

    make_tiny(folder)
    (path,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(path)
    for name in weights:
        for ending, factor in FACTORS.items():
            if name.endswith(ending) and not name.startswith("mid_block"):
                weights[name] = weights[name] * factor
    save_file(weights, path, metadata={"format": "pt"})
    return folder


class LeastAlike(merging.Matching):
    """Those go that resemble theirs least."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # `flip` of a free size becomes a remainder that ONNX's translator does not take.
        number = self.others.shape[0]
        self.order = self.order.index_select(1, -(self._numbers(args[0], number) - (number - 1)))


class NextBest(merging.Matching):
    """Every token that goes becomes part of its neighbour in the list, not of the one it resembles most."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.partner = (self.partner + 1) % (self.count // 4)


class OfOtherTokens(merging.Matching):
    """Resemblance is taken of normed tokens."""

    def __init__(self, tokens: torch.Tensor, *args: Any) -> None:
        super().__init__(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]), *args)


class OneFewer(merging.Matching):
    """One token that should go stays alone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.merged, self.alone = self.merged - 1, self.alone + 1


class Sums(merging.Matching):
    """What is merged is summed up."""

    def merge(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [super().merge(tokens)[:, : self.alone], 2 * super().merge(tokens)[:, self.alone :]], 1
        )


class ShowsOthers(merging.Matching):
    """It uses other sources than it shows."""

    def unmerge(self, tokens: torch.Tensor, decided: Callable[..., torch.Tensor]) -> torch.Tensor:
        return super().unmerge(torch.cat([tokens[:, -1:], tokens[:, :-1]], 1), decided)


IN_THE_DECISION = {"least-alike": LeastAlike, "next-best": NextBest, "one-fewer": OneFewer}
"""Found by how good the decisions are."""
IN_WHAT_FOLLOWS = {"sums": Sums, "shows-others": ShowsOthers}
"""Found by the outputs, given the decisions."""


def scale_weight(root: Path, ending: str, factor: float) -> None:
    """Multiply one weight of an ONNX UNet, by a value in the graph file, and make the manifest agree."""
    import onnx

    artifact = Artifact.open(root)
    record = artifact.manifest.component("unet")
    path = root / record.entry
    model = onnx.load(path, load_external_data=False)
    whole = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    place, name = next((i, t.name) for i, t in enumerate(model.graph.initializer) if t.name.endswith(ending))
    values = onnx.numpy_helper.to_array(whole[name]) * np.float32(factor)
    model.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(values, name))
    path.write_bytes(model.SerializeToString())
    record.files = hash_files([root / file.path for file in record.files], root)
    artifact.save()


def forget_modules(root: Path) -> None:
    """Take the names of modules out of an ONNX UNet, as a file has none that others made."""
    import onnx

    artifact = Artifact.open(root)
    record = artifact.manifest.component("unet")
    path = root / record.entry
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    record.files = hash_files([root / file.path for file in record.files], root)
    artifact.save()
