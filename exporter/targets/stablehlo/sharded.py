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

from exporter.errors import UsageError
from exporter.targets.sharing import shared_evenly
from exporter.targets.stablehlo.devices import check_platform, find_devices
from exporter.targets.stablehlo.placement import Placement, batched_inputs
from exporter.targets.stablehlo.runner import WEIGHTS, declaration, load_weights, read_program
from exporter.targets.stablehlo.weights import read_header

WIDE = ("int64", "uint64", "float64")


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
        self._place = Placement(self.devices)
        held = path.with_name(WEIGHTS)
        dims = declaration(read_header(held)[0], held)["inputs"]
        self._batched = batched_inputs(dims) or frozenset(name for name, sizes in dims.items() if sizes)
        self._weights = load_weights(held, self._place.whole)
        self._compiled: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        """
        Args:
            inputs: By name, float32 and int32, a row for each prompt where the artifact has a batch.

        Returns:
            Outputs by name, their rows on the devices that computed them.

        Raises:
            UsageError: The devices do not divide the rows, or an array has 64 bits.
        """
        for name, value in inputs.items():
            if (kind := str(getattr(value, "dtype", ""))) in WIDE:
                raise UsageError(
                    f"Input {name!r} is {kind}, which JAX would cut off without a word.",
                    hint=f"Give {kind.replace('64', '32')}.",
                )
        for name in self._batched & inputs.keys():
            shared_evenly(np.shape(inputs[name])[0], len(self.devices))
        given, _ = self._place.share(inputs, self._batched)
        key = tuple((name, value.shape) for name, value in sorted(given.items()))
        if key not in self._compiled:
            began = time.perf_counter()
            run = jax.jit(self._exported.call, out_shardings=self._place.rows)
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
            return jax.device_put(value, self._place.whole)
        shared_evenly(np.shape(value)[0], len(self.devices))
        return jax.device_put(value, self._place.rows)

    def noise(self, seed: int, rows: int, shape: Sequence[int]) -> jax.Array:
        """Unit noise (rows, *shape), float32, drawn where it is used: a key of its own for every row."""
        keys = self.spread(jax.random.split(jax.random.key(seed), rows))

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, tuple(shape))

        return jax.jit(jax.vmap(draw), out_shardings=self._place.rows)(keys)

    def program_text(self) -> list[str]:
        """What XLA made, for each shape so far."""
        return [compiled.as_text() for compiled in self._compiled.values()]
