"""Where arrays lie: on one device, or a batch's rows on several. Needs JAX and nothing of PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXIS = "prompt"
BATCH = "batch"
"""Name of the dim whose rows are shared."""


class Placement:
    """Devices, and which arrays lie whole on each of them.

    Args:
        devices: One or more of a kind. Each holds the weights and computes its own rows.

    Attributes:
        rows: An array's first dim is shared by the devices, in order.
        whole: Every device has the whole array.
    """

    def __init__(self, devices: Sequence[Any]) -> None:
        self.devices = list(devices)
        self.rows: Sharding = SingleDeviceSharding(self.devices[0])
        self.whole: Sharding = self.rows
        if len(self.devices) > 1:
            mesh = Mesh(np.asarray(self.devices), (AXIS,))
            self.rows = NamedSharding(mesh, PartitionSpec(AXIS))
            self.whole = NamedSharding(mesh, PartitionSpec())

    def share(self, inputs: Mapping[str, Any], batched: Collection[str]) -> tuple[dict[str, jax.Array], bool]:
        """Put inputs where they are used.

        Args:
            batched: Names of inputs that have a row for each of the batch. Where the devices do not divide
                these rows, every device gets, and computes, all of them.

        Returns:
            The arrays by name, and whether rows are shared.
        """
        counts = {np.shape(value)[0] for name, value in inputs.items() if name in batched}
        shared = bool(counts) and not any(count % len(self.devices) for count in counts)
        return {
            name: jax.device_put(value, self.rows if shared and name in batched else self.whole)
            for name, value in inputs.items()
        }, shared


def batched_inputs(dims: Mapping[str, Sequence[Any]]) -> frozenset[str]:
    """Names of inputs with a row for each of the batch, by what their dims are called; none where baked."""
    return frozenset(name for name, labels in dims.items() if list(labels[:1]) == [BATCH])
