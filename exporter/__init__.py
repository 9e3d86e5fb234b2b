"""Converts diffusion checkpoints to other formats and proves each artifact against PyTorch.

>>> import exporter
>>> result = exporter.convert("builtin:shapes", to="onnx", output="shapes-onnx")
>>> exporter.verify("shapes-onnx", against="builtin:shapes").raise_for_verdict()
>>> exporter.load("shapes-onnx")("a large red star at the left on a blue background").images[0]

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from exporter.conversion import Conversion
    from exporter.parity import Report
    from exporter.progress import Progress

__all__ = ["__version__", "convert", "inspect", "load", "verify"]


def convert(
    source: str,
    to: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    components: list[str] | None = None,
    verify: bool = True,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Convert a checkpoint and verify the result; see `exporter.conversion`.

    Args:
        source: `builtin:shapes`, a diffusers folder, or a Hub id.
        to: `onnx`, `openvino`, …
        allow_pickle: Open pickled weights, by PyTorch's restricted reader.
        output: Destination folder; below `artifacts/` when None.
        options: The target's options (`dtype`, `static`, …).

    Raises:
        exporter.errors.ExporterError: With the reason and the next thing to do. A FAIL does not
            raise: look at `.verdict`.
    """
    from exporter import conversion

    plan = conversion.make_plan(
        source,
        to,
        Path(output) if output is not None else None,
        options,
        revision=revision,
        variant=variant,
        components=components,
        verify=verify,
        allow_pickle=allow_pickle,
    )
    return conversion.convert(plan, overwrite=overwrite, progress=progress)


def verify(artifact: str | Path, *, against: str | None = None, **settings: Any) -> Report:
    """Judge an artifact against its PyTorch reference; see `exporter.parity.verify`."""
    from exporter import parity

    return parity.verify(artifact, against=against, **settings)


def load(source: str | Path, **options: Any) -> Any:
    """A diffusers pipeline that runs the exported components; see `exporter.pipeline.load`."""
    from exporter import pipeline

    return pipeline.load(source, **options)


def inspect(source: str | Path) -> Any:
    """What a checkpoint or an artifact holds; see `exporter.inspection.inspect`."""
    from exporter import inspection

    return inspection.inspect(str(source))
