"""What the techniques that split one picture over processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from exporter.errors import BackendMissing, UsageError

SPLITTING = frozenset({"context-parallel", "xdit", "para-attention"})
"""Only one of them at a time: each splits the tokens and replaces attention."""
NOT_TOGETHER = frozenset(
    {"device-map", "trace", "cuda-graph", "model-offload", "sequential-offload", "group-offload"}
)

HOW_MUCH = "The same formula; another order of sums (`ulysses`) or a merged softmax (`ring`)."


def processes(name: str) -> int:
    """How many processes paint the picture together. A process that torchrun started joins its job.

    Raises:
        UsageError: No job of several processes was started.
    """
    import torch
    import torch.distributed as dist

    if dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError(
            f"The technique {name} runs in one process for each GPU.",
            hint="Start it with torchrun --nproc-per-node N.",
        )
    return dist.get_world_size()


def sharing_heads(name: str, module: Any, kind: str) -> int:
    """`processes`, over which `ulysses` has to split the module's attention heads evenly.

    Raises:
        UsageError: It cannot; or no job of several processes was started.
    """
    count, heads = processes(name), module.config.num_attention_heads
    if kind == "ulysses" and heads % count:
        raise UsageError(
            f"{heads} attention heads cannot be split over {count} processes.", hint="Take kind: ring."
        )
    return count


@contextmanager
def of_package(technique: str, distribution: str) -> Iterator[None]:
    """Say which versions do not work together, where a package breaks at import or at its own setup.

    Raises:
        BackendMissing: Instead of what the package raised.
    """
    try:
        yield
    except (ImportError, AttributeError, NotImplementedError) as error:
        raise BackendMissing(
            f"The technique {technique} does not work with what is installed ({versions(distribution)}): "
            f"{type(error).__name__}: {error}",
            hint="The page of the techniques lists the versions that were tried.",
        ) from error


def versions(distribution: str) -> str:
    """`xfuser 0.7.0, torch 2.13.0, diffusers 0.39.0`."""
    found = []
    for each in (distribution, "torch", "diffusers"):
        try:
            found.append(f"{each} {metadata.version(each)}")
        except metadata.PackageNotFoundError:
            found.append(f"{each} without a version")
    return ", ".join(found)
