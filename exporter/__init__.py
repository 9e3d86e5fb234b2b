"""Converts diffusion checkpoints to other formats and proves each artifact against PyTorch.

>>> import exporter
>>> result = exporter.convert("builtin:shapes", to="onnx", output="shapes-onnx")
>>> exporter.verify("shapes-onnx", against="builtin:shapes").raise_for_verdict()
>>> exporter.load("shapes-onnx")("a large red star at the left on a blue background").images[0]

Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from exporter.conversion import Conversion
    from exporter.difference import Difference
    from exporter.parity import Report
    from exporter.progress import Progress
    from exporter.publish import Pushed
    from exporter.techniques import Named

__all__ = ["__version__", "convert", "diff", "inspect", "load", "push", "verify"]


def convert(
    source: str,
    to: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    components: list[str] | None = None,
    safety_checker: bool = True,
    verify: bool = True,
    overwrite: bool = False,
    use_cache: bool = True,
    loras: Sequence[str | tuple[str, float]] = (),
    vae: str | None = None,
    scheduler: str | None = None,
    textual_inversions: Sequence[str] = (),
    controlnets: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    task: str | None = None,
    config: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    allow_pickle: bool = False,
    techniques: Sequence[Named] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Convert a checkpoint and verify the result; see `exporter.conversion`.

    Args:
        source: `builtin:shapes`, a diffusers folder, one `.safetensors` file, or a Hub id.
        to: `onnx`, `openvino`, …
        output: Destination folder; below `artifacts/` when None.
        safety_checker: Without it, one that the checkpoint has is left out.
        use_cache: Take graphs from the user's cache and keep them there; the bytes are the same.
        loras: `"FILE"`, `"FILE:SCALE"` or `(file, scale)` each; fused into the weights.
        scheduler: A scheduler of diffusers in the place of the source's: `euler`, `DDIMScheduler` …
        vae: Folder, checkpoint or file whose autoencoder takes the place of the source's.
        textual_inversions: Files with embeddings of new tokens.
        controlnets: Folders, checkpoints or Hub ids of ControlNets that the pictures will follow.
        ip_adapters: One IP-Adapter, `SOURCE[:PATH]`: the pictures will take after another one.
        task: What it is for, where a model does several things: `image-to-video` …
        config / tokenizer: Folders that tell what a single file does not say.
        base: Folder or Hub id that has the parts which a single file lacks (text encoders, VAE).
        allow_pickle: Open `.ckpt` files, by PyTorch's restricted reader.
        techniques: What the artifact is to carry: `"fused-qkv"`, `{"deep-cache": {"interval": 3}}` …
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
        safety_checker=safety_checker,
        verify=verify,
        progress=progress,
        intake={
            "loras": [each if isinstance(each, str) else f"{each[0]}:{each[1]}" for each in loras],
            "vae": vae,
            "scheduler": scheduler,
            "textual_inversions": list(textual_inversions),
            "controlnets": list(controlnets),
            "ip_adapters": list(ip_adapters),
            "task": task,
            "config": config,
            "tokenizer": tokenizer,
            "base": base,
            "allow_pickle": allow_pickle,
        },
        hash_source=True,
        techniques=techniques,
    )
    return conversion.convert(plan, overwrite=overwrite, progress=progress, use_cache=use_cache)


def verify(artifact: str | Path, *, against: str | None = None, **settings: Any) -> Report:
    """Judge an artifact against its PyTorch reference; see `exporter.parity.verify`."""
    from exporter import parity

    return parity.verify(artifact, against=against, **settings)


def push(artifact: str | Path, repo: str, **settings: Any) -> Pushed:
    """Publish an artifact on the Hub; see `exporter.publish.push`."""
    from exporter import publish

    return publish.push(artifact, repo, **settings)


def diff(a: str | Path, b: str | Path) -> Difference:
    """How two artifacts, or an artifact and a checkpoint, differ; see `exporter.difference.compare`."""
    from exporter.difference import compare

    return compare(str(a), str(b))


def load(source: str | Path, **options: Any) -> Any:
    """A diffusers pipeline that runs the exported components; see `exporter.pipeline.load`."""
    from exporter import pipeline

    return pipeline.load(source, **options)


def inspect(source: str | Path) -> Any:
    """What a checkpoint or an artifact holds; see `exporter.inspection.inspect`."""
    from exporter import inspection

    return inspection.inspect(str(source))
