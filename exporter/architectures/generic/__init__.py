"""The generic route: a pipeline that no module was written for, known by observing diffusers' own.

What was observed depends on configs and versions only, and is kept in the user's cache; an artifact carries
it as `generic.json`, so that its components can be called again without the checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import cache
from exporter.architectures.base import Component, Size, TensorSpec
from exporter.architectures.generic.recording import FILE, VERSION, Call, Recording
from exporter.artifact import write_text_atomic
from exporter.checkpoints import Checkpoint
from exporter.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["FILE", "Recording", "components", "note", "recording_of", "write"]
LOCAL = (
    "_name_or_path",
    "name_or_path",
    "_diffusers_version",
    "transformers_version",
    "dtype",
    "torch_dtype",
)
"""Keys of configs that do not change a call."""


def components(checkpoint: Checkpoint) -> list[Component]:
    """A component for every method of a module that the pipeline calls, in the order of the calls.

    Raises:
        CheckpointError: diffusers has no such pipeline, or a config is missing.
        UnsupportedError: The pipeline cannot be observed, or a call is more than tensors and constants.
    """
    recording = recording_of(checkpoint)
    return [_component(checkpoint, recording, call) for call in recording.calls]


def note(checkpoint: Checkpoint) -> list[str]:
    """For the manifest: that this route was taken, and what it baked."""
    return [
        f"generic: no module is written for a {checkpoint.pipeline_class}; inputs and sizes were learnt by "
        "observing diffusers' own pipeline",
        *(f"generic: {each}" for each in recording_of(checkpoint).notes),
    ]


def recording_of(checkpoint: Checkpoint) -> Recording:
    """What is known of the pipeline: from the artifact, from the cache, or observed now."""
    held = checkpoint.root / FILE
    if held.is_file():
        return Recording.read(held)
    key = _key(checkpoint)
    kept = _in_memory.get(key)
    if kept is None:
        kept = _from_cache(key) or _observe(checkpoint, key)
        _in_memory[key] = kept
    return kept


_in_memory: dict[str, Recording] = {}


def _from_cache(key: str) -> Recording | None:
    data = cache.read(cache.RECORDINGS, key) if cache.enabled() else None
    if data is None:
        return None
    try:
        return Recording.parse(data)
    except ArtifactError:
        cache.discard(cache.RECORDINGS, key)
        return None


def _observe(checkpoint: Checkpoint, key: str) -> Recording:
    from exporter.architectures.generic.describing import describe

    made = describe(checkpoint)
    if cache.enabled():
        cache.write(cache.RECORDINGS, key, made.model_dump_json().encode())
    return made


def write(checkpoint: Checkpoint, staging: Path) -> Path:
    """Put the recording into an artifact."""
    path = staging / FILE
    write_text_atomic(path, recording_of(checkpoint).model_dump_json(indent=1) + "\n")
    return path


def _key(checkpoint: Checkpoint) -> str:
    """Identity of what is observed: every small file of the pipeline, and the libraries."""
    import diffusers
    import torch
    import transformers

    from exporter.architectures.generic import describing, observing, ports

    small = {}
    for folder in sorted(checkpoint.component_classes):
        for path in sorted((checkpoint.root / folder).glob("*.json")):
            if ".index." in path.name:
                continue
            data = json.loads(path.read_text(encoding="utf-8"))
            kept = {k: v for k, v in data.items() if k not in LOCAL} if isinstance(data, dict) else data
            small[f"{folder}/{path.name}"] = hashlib.sha256(
                json.dumps(kept, sort_keys=True).encode()
            ).hexdigest()
    sources = [Path(str(m.__file__)).read_bytes() for m in (describing, observing, ports)]
    parts = [
        VERSION, checkpoint.pipeline_class, sorted(checkpoint.component_classes.items()), small,
        torch.__version__, diffusers.__version__, transformers.__version__,
        hashlib.sha256(b"".join(sources)).hexdigest(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _component(checkpoint: Checkpoint, recording: Recording, call: Call) -> Component:
    from exporter.architectures.generic.inputs import maker

    config = checkpoint.config(call.folder)
    rows = max(call.rows, 1)
    return Component(
        name=call.name,
        folder=call.folder,
        checkpoint=checkpoint,
        class_name=call.class_name,
        inputs=tuple(TensorSpec(t.name, t.dtype, tuple(t.dims)) for t in call.inputs),
        outputs=tuple(TensorSpec(t.name, t.dtype, tuple(t.dims)) for t in call.outputs),
        native=Size(
            batch=max(2, rows),
            height=recording.height,
            width=recording.width,
            sequence=call.sequence,
            factor=recording.factor,
        ),
        construct=_constructor(call.library, call.class_name, config),
        adapt=_adapter(call),
        used=tuple(call.used),
        make_inputs={tensor.name: maker(tensor) for tensor in call.inputs},
        renames=_Renames(call.library, call.class_name, config),
        rows=rows,
        multiple=MULTIPLE,
    )


MULTIPLE = 8
"""Latent cells that pictures are made multiples of: what three levels that halve divide by."""


def _constructor(library: str, class_name: str, config: dict[str, Any]) -> Callable[[], nn.Module]:
    def construct() -> nn.Module:
        from exporter.architectures.generic.ports import construct as build

        return build(library, class_name, config)

    return construct


def _adapter(call: Call) -> Callable[[nn.Module], nn.Module]:
    from exporter.architectures.generic.trees import places_of

    places = places_of(call.returns)
    settings = {
        "method": call.method,
        "arguments": call.arguments,
        "inputs": [tensor.name for tensor in call.inputs],
        "outputs": [places[tensor.name] for tensor in call.outputs],
    }

    def adapt(inner: nn.Module) -> nn.Module:
        from exporter.architectures.generic.module import Recorded

        return Recorded(inner, **settings)  # type: ignore[arg-type]

    return adapt


class _Renames:
    """Stored name → the module's, known once the module was built without weights."""

    def __init__(self, library: str, class_name: str, config: dict[str, Any]) -> None:
        self.make = functools.cache(_constructor(library, class_name, config))

    @functools.cached_property
    def rename(self) -> Callable[[str], str | None]:
        from exporter.architectures.generic.observing import renames
        from exporter.architectures.weightless import no_weights

        with no_weights():
            return renames(self.make())

    def __call__(self, name: str) -> str | None:
        from exporter.architectures._vae import rename_vae

        found = self.rename(name)
        return None if found is None else rename_vae(found)
