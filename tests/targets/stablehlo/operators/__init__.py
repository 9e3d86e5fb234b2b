"""Arguments for every operator that has a lowering: shapes, dtypes and attributes drawn by hypothesis."""

from tests.targets.stablehlo.operators import elementwise, layout, products
from tests.targets.stablehlo.operators.drawing import CASES

__all__ = ["CASES", "elementwise", "layout", "products"]
