"""Where the files of a component lie, and what they are called.

transformers.js looks for `onnx/NAME` + a suffix for the dtype + `.onnx`, and for the weights in a file of
that name + `_data` (its guide on dtypes; the suffixes: `DEFAULT_DTYPE_SUFFIX_MAPPING`). NAME is what is
given as `model_file_name`; for a pipeline of several models that is the component. Which files have their
weights outside it reads from `transformers.js_config.use_external_data_format` in `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exporter.targets.base import Static, size_text
from exporter.targets.layout import write_json

if TYPE_CHECKING:
    from exporter.architectures.base import Component

Naming = Literal["diffusers", "transformers.js"]
FOLDER = "onnx"
SUFFIXES = {
    ("float32", None): "", ("float16", None): "_fp16",
    ("float32", "int8"): "_quantized", ("float16", "int8"): "_quantized",
    ("float32", "int4"): "_q4", ("float16", "int4"): "_q4f16",
}  # fmt: skip


def model_path(
    component: str, naming: Naming, dtype: str, further: Static | None = None, weights: str | None = None
) -> Path:
    """The graph file of a component, relative to the artifact.

    Args:
        weights: The integers that weights were asked to be stored as, if any.
        further: A size after the first, where several were baked.
    """
    size = f"_{size_text(further)}" if further is not None else ""
    if naming == "diffusers":
        return Path(component) / f"model{size}.onnx"
    return Path(FOLDER) / f"{component}{size}{SUFFIXES[dtype, weights]}.onnx"


def write_web_config(staging: Path, components: Sequence[Component], pipeline_class: str) -> Path:
    """`config.json` for transformers.js: which of the graph files have weights in a file beside them."""
    held = {component.name for component in components}
    files = [path for path in sorted((staging / FOLDER).glob("*.onnx")) if _component(path, held)]
    outside = {path.name: True for path in files if path.with_name(f"{path.name}_data").is_file()}
    settings: dict[str, Any] = {"use_external_data_format": outside}
    return write_json(
        staging / "config.json", {"_class_name": pipeline_class, "transformers.js_config": settings}
    )


def _component(path: Path, held: set[str]) -> bool:
    return any(path.stem == name or path.stem.startswith(f"{name}_") for name in held)
