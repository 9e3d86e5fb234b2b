"""One component over several devices: a prompt, or a few, on each. Needs JAX and nothing of PyTorch.

Every device holds the weights and computes its own rows. A UNet exchanges nothing between devices
(a test reads that off the compiled program); the text encoder's pooled output does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exporter.targets.stablehlo.devices import check_platform, find_devices, shared_evenly
from exporter.targets.stablehlo.runner import WEIGHTS, load_weights, read_program

AXIS = "prompt"


class Sharded:
    """A component whose rows are shared by devices.

    Args:
        path: `<component>/model.stablehlo`.
        devices: By JAX's names (`cpu`, `cuda`, `tpu`, `cuda:0`); None is every device of JAX's default kind.

    Attributes:
        devices: Those that are used.
        compile_seconds: What XLA took for the first call at each shape; not part of later calls.

    Raises:
        ArtifactError: A file is missing or damaged.
        BackendMissing: No such device here, or the program was not lowered for it.
    """

    def __init__(self, path: Path, devices: str | None = None) -> None:
        self._exported = read_program(path)
        self.devices = find_devices(devices)
        check_platform(self._exported.platforms, self.devices[0], f"{path.parent.name}/{path.name}")
        mesh = Mesh(np.asarray(self.devices), (AXIS,))
        self._rows, self._whole = (NamedSharding(mesh, PartitionSpec(*p)) for p in ((AXIS,), ()))
        self._weights = load_weights(path.with_name(WEIGHTS), self._whole)
        self._compiled: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        """
        Args:
            inputs: By name, float32 and int32; those with dims have a row per prompt first.

        Returns:
            Outputs by name, their rows on the devices that computed them.

        Raises:
            UsageError: The devices do not divide the rows.
        """
        given = {name: self.spread(value) for name, value in inputs.items()}
        key = tuple((name, value.shape) for name, value in sorted(given.items()))
        if key not in self._compiled:
            began = time.perf_counter()
            run = jax.jit(self._exported.call, out_shardings=self._rows)
            self._compiled[key] = run.lower(self._weights, **given).compile()
            self.compile_seconds += time.perf_counter() - began
        found: dict[str, jax.Array] = self._compiled[key](self._weights, **given)
        return found

    def spread(self, value: Any) -> jax.Array:
        """An array with its rows on the devices, in order; a number on all of them.

        Raises:
            UsageError: The devices do not divide the rows.
        """
        if not np.ndim(value):
            return jax.device_put(value, self._whole)
        shared_evenly(np.shape(value)[0], len(self.devices))
        return jax.device_put(value, self._rows)

    def noise(self, seed: int, rows: int, shape: Sequence[int]) -> jax.Array:
        """Unit noise (rows, *shape), float32, drawn where it is used: a key of its own for every row."""
        keys = self.spread(jax.random.split(jax.random.key(seed), rows))

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, tuple(shape))

        return jax.jit(jax.vmap(draw), out_shardings=self._rows)(keys)

    def program_text(self) -> list[str]:
        """What XLA made, for each shape so far."""
        return [compiled.as_text() for compiled in self._compiled.values()]
