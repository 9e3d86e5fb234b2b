"""A file of Stable Diffusion 3 or FLUX.1, as if it were a folder in diffusers layout.

What the file lacks (text encoders, autoencoder, T5's tokenizer) is taken from a base: another checkpoint of
the same family. Without one it is a checkpoint of the parts that are there. What it is judged against goes
another way: there diffusers' own conversion names and cuts the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from exporter.artifact import FileRecord
from exporter.checkpoints.checkpoint import Checkpoint, read_json
from exporter.checkpoints.derived import held
from exporter.checkpoints.one_file import OneFileCheckpoint, Tensors
from exporter.checkpoints.original import tables, theirs, vae
from exporter.checkpoints.original.flow import Flow, TextPart
from exporter.checkpoints.safetensors_file import StoredTensor
from exporter.checkpoints.safety import check_folder
from exporter.checkpoints.single_configs import part
from exporter.checkpoints.single_flow_configs import FlowConfigs, text_weights
from exporter.checkpoints.small_files import folder_of
from exporter.errors import CheckpointError
from exporter.hashing import sha256_of


@dataclass(frozen=True, kw_only=True)
class FlowFileCheckpoint(OneFileCheckpoint):
    """Attributes:
    flow: What it holds.
    base: Where the parts in `borrowed` come from.
    absent: Parts that come from nowhere: folder → in words.
    """

    flow: Flow
    base: Checkpoint | None = None
    borrowed: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def lacking(self) -> Mapping[str, str]:
        return self.absent

    @property
    def advice(self) -> str:
        return (
            f"Add --base SOURCE: a folder in diffusers layout or a Hub id that has them, such as "
            f"{self.flow.published}. Or convert what is there: --component transformer."
        )

    def expected(self, folder: str) -> Mapping[str, Any]:
        return self.flow.latents if folder == "vae" else {}

    def _read_files(self, stop: Event) -> list[FileRecord]:
        """The small files, the file itself, and the weights that the base gives."""
        lent = [
            FileRecord(path=f"{folder}/{p.name}", sha256=sha256_of(p, stop), bytes=p.stat().st_size)
            for folder in self.borrowed
            for p in self._lender.weight_files(folder)
        ]
        return [*super()._read_files(stop), *lent]

    @property
    def _lender(self) -> Checkpoint:
        assert self.base is not None, "only a base makes a part a borrowed one"
        return self.base

    def weight_files(self, folder: str) -> list[Path]:
        return self._lender.weight_files(folder) if folder in self.borrowed else super().weight_files(folder)

    def stored(self, folder: str) -> dict[str, StoredTensor]:
        return self._lender.stored(folder) if folder in self.borrowed else super().stored(folder)

    def reference_stored(self, folder: str) -> dict[str, StoredTensor]:
        return (
            self._lender.reference_stored(folder)
            if folder in self.borrowed
            else super().reference_stored(folder)
        )

    def _encoder(self, folder: str) -> TextPart:
        for encoder in self.flow.texts:
            if encoder.folder == folder and folder in self.component_classes:
                return encoder
        raise CheckpointError(f"{self.source} has no component {folder!r}.")

    def _mapped(self, folder: str) -> dict[str, StoredTensor]:
        if folder == "transformer":
            own = self.flow.transformer(self.tensors)
            return tables.weights(own, self.flow.table(self.flow.infer(own)), folder)
        if folder == "vae" and folder in self.component_classes:
            return vae.weights(part(self.tensors, self.flow.vae), self.config("vae"))
        return text_weights(self.tensors, self._encoder(folder))

    def _converted(self, folder: str) -> dict[str, StoredTensor]:
        from diffusers.loaders import single_file_utils

        if folder == "transformer":
            own = self.flow.transformer(self.tensors)
            return theirs.in_blocks(own, theirs.converter(self.flow.transformer_class))
        if folder == "vae":
            given = {n: t.load() for n, t in self.tensors.items() if n.startswith(self.flow.vae)}
            found = single_file_utils.convert_ldm_vae_checkpoint(given, config=self.config("vae"))
        else:
            encoder = self._encoder(folder)
            given = {n: t.load() for n, t in self.tensors.items() if n.startswith(encoder.prefix)}
            if encoder.t5:
                found = single_file_utils.convert_sd3_t5_checkpoint_to_diffusers(given)
            else:
                found = single_file_utils.convert_ldm_clip_checkpoint(given, encoder.prefix)
            if encoder.identity:  # as diffusers does where it makes the module
                import torch

                found["text_projection.weight"] = torch.eye(int(self.config(folder)["hidden_size"]))
        return {n: held(n, t, self.path) for n, t in found.items()}


def open_flow(
    source: str, path: Path, tensors: Tensors, flow: Flow, *, given: Path | None, tokenizer: str | None,
    base: Checkpoint | None, extras: Mapping[str, Any],
) -> FlowFileCheckpoint:  # fmt: skip
    """Open a file that `flow.detect` knows.

    Args:
        source: As the user typed it.
        given: Folder in diffusers layout whose configs, scheduler and tokenizers are taken first.
        tokenizer: Folder of a tokenizer, or with `tokenizer`, `tokenizer_2` … in it.
        base: Gives the parts that the file lacks.
        extras: How it was opened.

    Raises:
        CheckpointError: A part is incomplete, or something that was given does not fit.
    """
    maker = FlowConfigs(source, tensors, flow, given, tokenizer, base)
    root = folder_of(maker.files())
    index = read_json(root / "model_index.json")
    check_folder(source, root, [name for name in index if not name.startswith("_")])
    return FlowFileCheckpoint(
        source=source, root=root, index=index, path=path, flow=flow, tensors=tensors, base=base,
        borrowed=tuple(maker.borrowed), absent=maker.lacking, assumed=tuple(maker.assumed), extras=extras,
    )  # fmt: skip
