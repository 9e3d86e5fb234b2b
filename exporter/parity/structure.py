"""What must be right before any metric: names, shapes, dtypes, finite values. Each fault is a FAIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.parity.arithmetic import UNIT_ROUNDOFF

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord, TensorRecord
    from exporter.targets.base import Runner


def declared_faults(component: Component, record: ComponentRecord, runner: Runner) -> list[str]:
    """Compares three declarations, the component's, the manifest's and the file's own, and the dtype
    of the weights."""
    faults = []
    stored = runner.weights
    # A manifest that claims less precision than the file has would earn a wider limit.
    if stored is not None and record.dtype in UNIT_ROUNDOFF and record.dtype != stored:
        faults.append(f"the weights are {stored} in the file, the manifest says {record.dtype}")
    for side, specs, claimed, real in (
        ("input", component.inputs, record.inputs, runner.inputs),
        ("output", component.outputs, record.outputs, runner.outputs),
    ):
        wanted = [spec.name for spec in specs]
        for who, tensors in (("manifest", claimed), ("file", real)):
            names = [t.name for t in tensors]
            faults += [f"the {who} has no {side} {n!r}" for n in wanted if n not in names]
            faults += [f"the {who} has an extra {side} {n!r}" for n in names if n not in wanted]
            if sorted(names) == sorted(wanted) and names != wanted:  # some clients go by position
                place = next(i for i, (n, w) in enumerate(zip(names, wanted, strict=True)) if n != w)
                faults.append(f"{side} {place} of the {who} is {names[place]!r}, {wanted[place]!r} expected")
        of_file = {t.name: t for t in real}
        for tensor in claimed:
            actual = of_file.get(tensor.name)
            if actual is not None:
                faults += _disagreements(side, tensor, actual)
    return faults


def _disagreements(side: str, claimed: TensorRecord, actual: TensorRecord) -> list[str]:
    faults = []
    if claimed.dtype != actual.dtype:
        faults.append(
            f"{side} {claimed.name!r} is {actual.dtype} in the file, the manifest says {claimed.dtype}"
        )
    if len(claimed.dims) != len(actual.dims):
        faults.append(
            f"{side} {claimed.name!r} has {len(actual.dims)} dims in the file, the manifest says "
            f"{len(claimed.dims)}"
        )
    elif side == "input":
        for position, (said, is_) in enumerate(zip(claimed.dims, actual.dims, strict=True)):
            if isinstance(said, str) and isinstance(is_, int):
                faults.append(
                    f"input {claimed.name!r}: dim {position} ({said}) is baked in as {is_}, the manifest "
                    "says it is dynamic"
                )
            elif isinstance(said, int) and isinstance(is_, int) and said != is_:
                faults.append(
                    f"input {claimed.name!r}: dim {position} is {is_} in the file, the manifest says {said}"
                )
    return faults


def output_faults(
    outputs: Mapping[str, np.ndarray], declared: Sequence[TensorRecord], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Faults of one run's outputs.

    Args:
        declared: Names and dtypes the outputs must have.
        shapes: The reference's shapes for this case.
    """
    import numpy as np

    faults = [f"output {name!r} is missing" for name in shapes if name not in outputs]
    faults += [f"there is an extra output {name!r}" for name in outputs if name not in shapes]
    dtypes = {record.name: record.dtype for record in declared}
    for name, array in outputs.items():
        if name not in shapes:
            continue
        if tuple(array.shape) != tuple(shapes[name]):
            faults.append(f"{name} has shape {list(array.shape)}, the reference gives {list(shapes[name])}")
        if str(array.dtype) != dtypes.get(name):
            faults.append(f"{name} has dtype {array.dtype}, declared is {dtypes.get(name)}")
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            first = np.argwhere(~np.isfinite(array))[0]
            value = array[tuple(first)]
            faults.append(
                f"{name} has {bad} values that are not finite, first {value} at {list(map(int, first))}"
            )
    return faults
