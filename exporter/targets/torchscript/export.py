"""Traces one component, as Diffusers' guide on tracing does, and measures which shapes the trace baked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.architectures.base import KNOBS, knobs_of
from exporter.errors import UnsupportedError
from exporter.graph.masks import plain_masks
from exporter.graph.places import places_by_number
from exporter.graph.positions import positions_at_any_size
from exporter.progress import Progress
from exporter.targets.base import Estimate, ExportedComponent
from exporter.targets.torch_module import (
    DECLARATION,
    GRANULE,
    ITEM_BYTES,
    MB,
    SAME,
    Declaration,
    cast_at_border,
    declaration_text,
    one_line,
    prepare,
    quiet,
    records,
    trace_size,
)
from exporter.targets.torchscript.options import TorchScriptOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.base import Component, Size

ENTRY = "model.pt"
OVERHEAD_DISK = 4 * MB
OVERHEAD_MEMORY = 900 * MB
"""torch and diffusers themselves."""
PREFIX = "exporter_module_"
"""Names of values in the graph that are a module's output."""


def estimate(component: Component, options: TorchScriptOptions) -> Estimate:
    """Disk: the weights. Memory: the weights, as mapped, cast or copied, and the activations of a real
    forward pass at the traced size, which a trace cannot do without."""
    size = trace_size(component, options.static)
    weights = component.parameters * ITEM_BYTES[options.dtype]
    channels = _widest(component)
    cells = size.height * size.width
    if component.name == "unet":
        cells //= size.factor**2
    activations = size.batch * cells * channels * 4 * 6
    return Estimate(
        disk=weights + OVERHEAD_DISK,
        memory=weights * (2 if options.freeze or options.channels_last else 1)
        + activations
        + OVERHEAD_MEMORY,
    )


def _widest(component: Component) -> int:
    """Channels at full resolution; text is small beside them."""
    blocks = component.config.get("block_out_channels")
    return int(blocks[0]) if blocks else 0


def export(
    component: Component, options: TorchScriptOptions, staging: Path, progress: Progress
) -> ExportedComponent:
    """Write `<component>/model.pt` below `staging`.

    Raises:
        UnsupportedError: torch cannot trace the module, or the trace computes something else.
        CheckpointError: Weights are missing or do not fit the config.
    """
    import torch

    component = component.fused()
    progress.start(f"{component.name}: tracing")
    size = trace_size(component, options.static)
    module = prepare(component, options.dtype)
    if options.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = cast_at_border(module, component, options.dtype)
    example = component.example_inputs(size)
    with torch.no_grad(), quiet():
        for _ in range(options.warm_up):
            module(*example.values())
        with (
            naming(module) as modules, positions_at_any_size(table=False), places_by_number(fold=False),
            plain_masks(),
        ):  # fmt: skip
            try:
                traced = torch.jit.trace(module, tuple(example.values()), check_trace=False).eval()
            except Exception as error:  # torch raises dozens of types here
                raise UnsupportedError(
                    f"torch.jit.trace cannot trace the {component.name} ({component.class_name}): "
                    f"{one_line(error)}"
                ) from error
        # One graph: the names of its values survive storing, those of nested calls do not.
        torch._C._jit_pass_inline(traced.graph)
        follow_device(traced.graph)
        if options.freeze:
            traced = torch.jit.freeze(traced)
        progress.done()
        free = set() if options.static else free_symbols(component, module, traced, size, options, progress)
        if not agrees(component, module, traced, size, SAME[options.dtype]):
            raise UnsupportedError(
                f"The trace of the {component.name} ({component.class_name}) computes something else than "
                "the module it was made from, even at the traced size."
            )
    declaration = Declaration(
        inputs=records(component.inputs, size, free),
        outputs=records(component.outputs, size, free),
        dtype=options.dtype,
        modules=modules,
        optimize=options.optimize_for_inference,
    )
    progress.start(f"{component.name}: writing {ENTRY}")
    entry = staging / component.name / ENTRY
    entry.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.save(traced, str(entry), _extra_files={DECLARATION: declaration_text(declaration)})
    progress.done()
    return ExportedComponent(
        entry=entry,
        files=(entry,),
        inputs=tuple(declaration.inputs),
        outputs=tuple(declaration.outputs),
        details={
            "arithmetic": options.dtype,
            "call": [spec.name for spec in component.inputs],
            "traced_at": {spec.name: list(spec.shape(size)) for spec in component.inputs},
            "baked": sorted({d for s in component.inputs for d in s.dims if isinstance(d, str)} - free),
            "channels_last": options.channels_last,
            "frozen": options.freeze,
            "optimize_for_inference": options.optimize_for_inference,
        },
    )


def free_symbols(
    component: Component,
    module: nn.Module,
    traced: Callable[..., Any],
    size: Size,
    options: TorchScriptOptions,
    progress: Progress,
) -> set[str]:
    """The dims at whose other sizes the traced module really computes what the eager one does.

    Each is changed alone, then all that were right together; if that is wrong, none counts as free.
    """
    used = {d for s in (*component.inputs, *component.outputs) for d in s.dims if isinstance(d, str)}

    def of_kind(kind: str) -> set[str]:
        return {dim for dim in used if kind in knobs_of(dim)}

    changes = other_sizes(size)
    limit = SAME[options.dtype]
    progress.start(f"{component.name}: trying other shapes", len(changes) + 1)
    right: dict[str, dict[str, int]] = {}
    for number, (kind, values) in enumerate(changes.items()):
        if of_kind(kind) and all(
            agrees(component, module, traced, replace(size, **{kind: value}), limit) for value in values
        ):
            right[kind] = {kind: values[-1]}
        progress.update(number + 1, kind)
    together = {kind: value for found in right.values() for kind, value in found.items()}
    if len(right) > 1 and not agrees(component, module, traced, replace(size, **together), limit):
        right = {}
    progress.done()
    baked = {dim for kind in KNOBS if kind not in right for dim in of_kind(kind)}
    return {dim for kind in right for dim in of_kind(kind)} - baked


def other_sizes(size: Size) -> dict[str, list[int]]:
    """Sizes the trace did not see. Pictures change by what every level of the UNet divides."""
    step = GRANULE * size.factor
    return {
        "batch": [1, size.batch + 1],
        "height": [size.height - step if size.height >= 2 * step else size.height + step],
        "width": [size.width - step if size.width >= 2 * step else size.width + step],
        "frames": [size.frames + size.temporal],
        "sequence": [max(size.sequence * 2 // 3, 2)],
    }


def agrees(
    component: Component, module: nn.Module, traced: Callable[..., Any], size: Size, limit: float
) -> bool:
    """Whether the traced module gives what the eager one does: shape, and values within `limit`."""
    inputs = tuple(component.example_inputs(size, seed=1).values())
    expected = module(*inputs)
    try:
        found = traced(*inputs)
    except RuntimeError:  # the interpreter's only type: a baked shape does not fit
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and float((a - b).double().norm() / b.double().norm()) <= limit
        for a, b in zip(found, expected, strict=True)
    )


def follow_device(graph: Any) -> None:
    """Make tensors where the inputs are: a trace bakes in the device it was made on, so that a text encoder's
    mask would stay on the CPU whatever the program is loaded on."""
    import torch

    baked = [
        (node, value)
        for node in nodes_of(graph)
        for value in node.inputs()
        if value.node().kind() == "prim::Constant" and value.type().kind() == "DeviceObjType"
    ]
    if not baked:
        return
    _, first, *_ = graph.inputs()  # after the module itself
    here = graph.create("prim::device", [first])
    here.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(here)
    for node, value in baked:
        node.replaceInputWith(value, here.output())


def nodes_of(block: Any) -> Iterator[Any]:
    """The nodes of a graph, those inside branches and loops too."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes_of(inner)


@contextmanager
def naming(module: nn.Module) -> Iterator[dict[str, str]]:
    """While a trace runs inside, the value that is a module's output is named in the graph.

    Yields:
        Module path (as the library names it) → name of the value, filled by the trace. A module that
        passes on another one's value shares its name; one that runs twice is left out.
    """
    import torch

    names: dict[int, str] = {}
    found: dict[str, str] = {}
    seen: set[str] = set()

    def hook(path: str) -> Callable[..., None]:
        def note(owner: nn.Module, given: Any, output: Any) -> None:
            tensor = single_tensor(output)
            if not torch._C._is_tracing() or tensor is None:
                return
            if path in seen:
                found.pop(path, None)
                return
            seen.add(path)
            value = torch._C._get_value_trace(tensor)  # type: ignore[attr-defined]
            if value.unique() not in names:
                names[value.unique()] = f"{PREFIX}{len(names)}"
                value.setDebugName(names[value.unique()])
            found[path] = names[value.unique()]

        return note

    inner = module.get_submodule("inner")
    handles = [each.register_forward_hook(hook(path)) for path, each in inner.named_modules() if path]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def single_tensor(output: Any) -> torch.Tensor | None:
    """A module's output where it is one floating tensor, or the only one of a tuple."""
    import torch

    if isinstance(output, tuple | list):
        tensors = [item for item in output if isinstance(item, torch.Tensor)]
        output = tensors[0] if len(tensors) == 1 else None
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() else None
