"""HOW: acceleration techniques by name, applied to a diffusers pipeline in the right order.

>>> from exporter import pipeline, techniques
>>> painter = pipeline.load("builtin:shapes")
>>> undo = techniques.apply(painter, ["channels-last", {"deep-cache": {"interval": 3}}])
>>> undo()
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from exporter.errors import ArtifactError, UsageError
from exporter.techniques.base import Technique, Undo, together

if TYPE_CHECKING:
    from exporter.artifact import Manifest
    from exporter.checkpoints import Checkpoint

Named = str | Mapping[str, Mapping[str, Any]]
WHERE = {
    "sharded-loading": "sharded_loading:ShardedLoading",
    "precision": "precision:Precision",
    "tf32": "tf32:TensorFloat32",
    "cudnn-benchmark": "cudnn_benchmark:CudnnBenchmark",
    "device-map": "device_map:DeviceMap",
    "layerwise-casting": "layerwise_casting:LayerwiseCasting",
    "channels-last": "channels_last:ChannelsLast",
    "attention-backend": "attention_backend:AttentionBackend",
    "xformers": "xformers_attention:XformersAttention",
    "fused-qkv": "fused_qkv:FusedQkv",
    "token-merging": "token_merging:TokenMerging",
    "deep-cache": "deep_cache:DeepCache",
    "t-gate": "t_gate:TGate",
    "first-block-cache": "first_block_cache:FirstBlockCache",
    "attention-broadcast": "attention_broadcast:AttentionBroadcast",
    "faster-cache": "faster_cache:FasterCache",
    "taylor-seer": "taylor_seer:TaylorSeer",
    "vae-slicing": "vae_slicing:VaeSlicing",
    "vae-tiling": "vae_tiling:VaeTiling",
    "int8": "int8:DynamicInt8",
    "fp8": "fp8:Float8",
    "trace": "trace:Trace",
    "compile": "compiled:Compiled",
    "context-parallel": "context_parallel:ContextParallel",
    "model-offload": "model_offload:ModelOffload",
    "sequential-offload": "sequential_offload:SequentialOffload",
    "group-offload": "group_offload:GroupOffload",
    "cuda-graph": "cuda_graph:CudaGraph",
    "xdit": "xdit:Xdit",
    "para-attention": "para_attention:ParaAttention",
}
"""Name → module and class below this package. Nothing is imported before it is asked for."""


ONE_OF = frozenset({"token-merging", "deep-cache", "t-gate"})
"""Of these an artifact carries one: each replaces the denoiser's graph by its own."""


def names() -> list[str]:
    """All techniques."""
    return list(WHERE)


def kind(name: str) -> type[Technique]:
    """The class of a technique.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in WHERE:
        import difflib

        close = difflib.get_close_matches(name, WHERE, n=1)
        raise UsageError(
            f"There is no technique {name!r}.",
            hint=f"Did you mean {close[0]}?" if close else f"There are: {', '.join(WHERE)}.",
        )
    module, _, cls = WHERE[name].partition(":")
    found: type[Technique] = getattr(import_module(f"exporter.techniques.{module}"), cls)
    return found


def parse(given: Sequence[Named]) -> list[Technique]:
    """Techniques as a recipe writes them: a name, or a name with its options.

    Returns:
        In the order in which they are applied.

    Raises:
        UsageError: An unknown name or option, one named twice, or two that exclude each other.
    """
    found: list[Technique] = []
    for item in given:
        if isinstance(item, str):
            name, options = item, dict[str, Any]()
        elif len(item) == 1:
            ((name, given_options),) = item.items()
            options = dict(given_options or {})
        else:
            raise UsageError("A technique is a name, or one name with its options.")
        try:
            found.append(kind(name)(**options))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            known = ", ".join(kind(name).model_fields) or "none"
            raise UsageError(
                f"The technique {name}: {key or 'its options'}: {reason[:1].lower()}{reason[1:]}.",
                hint=f"Its options: {known}.",
            ) from error
    _compatible(found)
    return sorted(found, key=lambda each: each.stage)


def _compatible(found: Sequence[Technique]) -> None:
    seen = [each.name for each in found]
    for each in found:
        if seen.count(each.name) > 1:
            raise UsageError(f"The technique {each.name} is named twice.")
        clash = sorted(each.excludes & set(seen))
        if clash:
            raise UsageError(f"The techniques {each.name} and {clash[0]} cannot be combined.")


def check(
    given: Sequence[Named],
    target: str,
    components: Collection[str],
    pipeline_class: str,
    device: str | None = None,
) -> list[Technique]:
    """As `parse`, and whether each can be on this target, family and machine. Raises as `Technique.check`."""
    found = parse(given)
    for each in found:
        each.check(target, components, pipeline_class, device)
    return found


def bake(given: Sequence[Named], target: str, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, to be exported with techniques in its components.

    Args:
        given: As a recipe names them; none leaves the checkpoint as it is.

    Raises:
        UsageError, BackendMissing: As `check`.
    """
    if not given:
        return checkpoint
    found = check(given, target, checkpoint.component_classes, checkpoint.pipeline_class)
    several = [each.name for each in found if each.name in ONE_OF]
    if len(several) > 1:
        raise UsageError(f"An artifact carries one of {' and '.join(several)}, not both.")
    return checkpoint.exported_with((each.name, each.model_dump(mode="json")) for each in found)


def carried(manifest: Manifest) -> list[tuple[str, dict[str, Any]]]:
    """The techniques of an artifact, with all their options.

    Raises:
        ArtifactError: One that this version does not know.
    """
    try:
        found = parse([{each.name: each.options} for each in manifest.techniques])
    except UsageError as error:
        raise ArtifactError(
            f"The artifact carries a technique that this version does not know: {error.message}",
            hint="Update exporter, or convert again.",
        ) from error
    return [(each.name, each.model_dump(mode="json")) for each in found]


def named(text: str) -> Named:
    """A technique as the command line writes it: `deep-cache` or `deep-cache:interval=3,branch=0`.

    Raises:
        UsageError: Something else.
    """
    import yaml

    name, colon, rest = text.partition(":")
    options = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise UsageError(f"{text!r} is not NAME or NAME:KEY=VALUE,KEY=VALUE.")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{value!r} in {text!r} is no value.") from error
    return {name: options} if options else name


def spelled(name: str, options: Mapping[str, Any]) -> str:
    """What `named` reads: `deep-cache:interval=3,branch=0`."""
    return name + (":" if options else "") + ",".join(f"{key}={value}" for key, value in options.items())


def described(name: str, options: Mapping[str, Any]) -> str:
    """`deep-cache (interval 3, branch 0), lossy`."""
    numbers = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name}{f' ({numbers})' if numbers else ''}, {kind(name).effect}"


def apply(pipeline: Any, given: Sequence[Named]) -> Undo:
    """Apply techniques to a diffusers pipeline, in the right order.

    Returns:
        What takes all of them away again.

    Raises:
        UsageError, BackendMissing: As `check`. Whatever is raised, also by a technique in the middle of its
            own work, the pipeline is as it was.
    """
    from exporter.techniques._before import remember
    from exporter.techniques.base import device_of

    found = check(
        given, "pytorch", [n for n, part in pipeline.components.items() if part is not None],
        type(pipeline).__name__, str(device_of(pipeline)),
    )  # fmt: skip
    undos: list[Undo] = []
    try:
        for each in found:
            before = remember(pipeline)
            try:
                undos.append(each.apply(pipeline))
            except BaseException:
                undos.append(before)
                raise
    except BaseException:
        together(undos)()
        raise
    return together(undos)


__all__ = [
    "Named", "Technique", "Undo",
    "apply", "bake", "carried", "check", "described", "kind", "named", "names", "parse", "spelled",
]  # fmt: skip
