"""Tokenizers as OpenVINO models, for clients without Python (OpenVINO GenAI)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import CheckpointError, UnsupportedError
from exporter.targets.layout import tokenizer_folders

if TYPE_CHECKING:
    import openvino

    from exporter.checkpoints import Checkpoint

TOKENIZER = "openvino_tokenizer.xml"
DETOKENIZER = "openvino_detokenizer.xml"


def write_tokenizers(checkpoint: Checkpoint, staging: Path) -> list[Path]:
    """Convert every tokenizer of the checkpoint into its folder below `staging`.

    The tokenizer truncates to the text encoder's length as `transformers` does with
    `truncation=True`; it does not pad (GenAI pads by itself).

    Returns:
        The files written.

    Raises:
        CheckpointError: The tokenizer's files cannot be read.
        UnsupportedError: OpenVINO has no counterpart of the tokenizer.
    """
    files: list[Path] = []
    for folder in tokenizer_folders(checkpoint):
        tokenizer, detokenizer = _convert(checkpoint, folder)
        for model, name in ((tokenizer, TOKENIZER), (detokenizer, DETOKENIZER)):
            files += _save(model, staging / folder / name)
    return files


def _convert(checkpoint: Checkpoint, folder: str) -> tuple[openvino.Model, openvino.Model]:
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer, CLIPTokenizerFast

    path = checkpoint.root / folder
    clip = str(checkpoint.config(folder).get("tokenizer_class", "")).startswith("CLIPTokenizer")
    try:
        # A folder of a tokenizer alone has no model type from which AutoTokenizer could tell.
        loader = CLIPTokenizerFast if clip else AutoTokenizer
        tokenizer = loader.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The tokenizer {folder!r} of {checkpoint.source} cannot be opened: {error}."
        ) from error
    try:
        both = convert_tokenizer(tokenizer, with_detokenizer=True, truncation=True)
    except Exception as error:  # the converter raises whatever its parsers do
        raise UnsupportedError(
            f"OpenVINO cannot represent the tokenizer {folder!r} "
            f"({type(tokenizer).__name__}): {str(error).splitlines()[0] if str(error) else error!r}."
        ) from error
    tokenizer_model, detokenizer_model = both
    return tokenizer_model, detokenizer_model


def _save(model: openvino.Model, path: Path) -> list[Path]:
    import openvino

    from exporter.targets.openvino.model import name_nodes

    name_nodes(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]
