"""ATen operators in `jax.numpy` and `lax`, by kind. `TABLE` has them all by name."""

from exporter.targets.stablehlo.lowering import elementwise, layout, linear, normalise, resample
from exporter.targets.stablehlo.lowering.registry import DTYPES, TABLE, dtype_of, lowers

__all__ = [
    "DTYPES", "TABLE", "dtype_of", "elementwise", "layout", "linear", "lowers", "normalise", "resample",
]  # fmt: skip
