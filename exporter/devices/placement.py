"""Where parts go: whole ones as diffusers' `device_map="balanced"` puts them, blocks as accelerate does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exporter.errors import UsageError
from exporter.storage import parse_size

if TYPE_CHECKING:
    from torch import nn

Device = int | str
"""The number of a GPU, or `cpu`."""
CPU = "cpu"
EXAMPLE = "0=8GB,1=8GB,cpu=16GB"


def parse_budgets(text: str) -> dict[Device, int]:
    """`0=8GB,1=8GB,cpu=16GB` as bytes by device.

    Raises:
        UsageError: It is not of that form, names a device twice, or names none.
    """
    budgets: dict[Device, int] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, size = (piece.strip() for piece in item.partition("="))
        known = name == CPU or (name.isascii() and name.isdigit() and len(name) <= 4)
        if not separator or not known:
            raise UsageError(f"--max-memory {item!r} is not DEVICE=SIZE; write it as {EXAMPLE}.")
        device: Device = CPU if name == CPU else int(name)
        if device in budgets:
            raise UsageError(f"--max-memory names the device {device} twice.")
        try:
            budgets[device] = parse_size(size)
        except ValueError as error:
            raise UsageError(f"--max-memory {item}: {error}.") from error
    if not budgets:
        raise UsageError("--max-memory names no device.", hint=f"For example --max-memory {EXAMPLE}.")
    order: list[Device] = [*sorted(device for device in budgets if isinstance(device, int))]
    order += [CPU] if CPU in budgets else []
    return {device: budgets[device] for device in order}


def balanced(sizes: Mapping[str, int], budgets: Mapping[Device, int]) -> dict[str, Device | None]:
    """What `DiffusionPipeline.from_pretrained(device_map="balanced", max_memory=…)` does with whole parts.

    As diffusers 0.39 has it: the largest part first, devices there and back again beginning with the
    roomiest, main memory never counted. A part that does not fit the device whose turn it is goes to `cpu`,
    from where it is streamed to run on a GPU; only the last such part is remembered.

    Returns:
        Part → device. None: diffusers forgets it; it is loaded into main memory and nothing moves its inputs.
        Without a GPU among the budgets everything is on `cpu`.
    """
    gpus = {d: n for d, n in budgets.items() if d != CPU}
    if not gpus:
        return dict.fromkeys(sizes, CPU)
    order = sorted(gpus, key=lambda d: gpus[d], reverse=True)
    cycle = order + order[::-1]
    result: dict[str, Device | None] = {}
    offloaded: str | None = None
    turn = 0
    for name in sorted(sizes, key=lambda n: sizes[n], reverse=True):
        device = cycle[turn % len(cycle)]
        if sizes[name] > gpus[device]:
            if offloaded is not None:
                result[offloaded] = None
            offloaded, result[name] = name, CPU
            continue
        gpus[device] -= sizes[name]
        result[name] = device
        turn += 1
    return result


def blocks(module: nn.Module, budgets: Mapping[Device, int], dtype: str) -> dict[str, Device] | None:
    """Where accelerate puts the blocks of one part: `from_pretrained(device_map="auto", max_memory=…)`.

    Returns:
        Module path → device (`disk` for what fits nowhere); None where the class says nothing about what
        may be split.
    """
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = getattr(module, "_no_split_modules", None)
    if whole is None:
        return None
    wanted = getattr(torch, dtype)
    with _silent():
        memory = get_balanced_memory(
            module, max_memory=dict(budgets), no_split_module_classes=list(whole), dtype=wanted
        )
        found = infer_auto_device_map(
            module, max_memory=memory, no_split_module_classes=list(whole), dtype=wanted
        )
    return dict(found)


def size_of(module: nn.Module, dtype: str) -> int:
    """Bytes of a module's parameters and buffers in a dtype, as diffusers counts them."""
    import torch
    from accelerate.utils import compute_module_sizes

    return int(compute_module_sizes(module, dtype=getattr(torch, dtype))[""])


def sizes_of_blocks(module: nn.Module, places: Mapping[str, Device], dtype: str) -> dict[Device, int]:
    """Bytes by device of a part that was split."""
    import torch
    from accelerate.utils import compute_module_sizes

    sizes = compute_module_sizes(module, dtype=getattr(torch, dtype))
    result: dict[Device, int] = {}
    for path, device in places.items():
        result[device] = result.get(device, 0) + int(sizes.get(path, 0))
    return result


def largest_layer(module: nn.Module, dtype: str) -> int:
    """Bytes of the largest module without children: what offloading layer by layer needs on the GPU."""
    import torch
    from accelerate.utils import compute_module_sizes

    sizes = compute_module_sizes(module, dtype=getattr(torch, dtype))
    leaves = [name for name, each in module.named_modules() if not list(each.children())]
    return max((int(sizes.get(name, 0)) for name in leaves), default=0)


@contextmanager
def _silent() -> Iterator[None]:
    """accelerate warns that the GPUs of the question are not in this machine."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
