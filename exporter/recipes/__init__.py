"""A YAML file that says what to convert, how, how to judge it and where to put it.

>>> from exporter import recipes
>>> recipe = recipes.read("recipes/onnx/float32.yaml")
>>> recipes.run(recipe).rows[0].verdict
"""

from exporter.recipes.again import differences, from_artifact, from_manifest, to_yaml
from exporter.recipes.matrix import Cell, cells
from exporter.recipes.model import Recipe, json_schema
from exporter.recipes.reading import read
from exporter.recipes.running import RecipeResult, Row, check, entrants, plan, run
from exporter.recipes.shelf import find, shelf

__all__ = [
    "Cell", "Recipe", "RecipeResult", "Row", "cells", "check", "differences",
    "entrants", "find", "from_artifact", "from_manifest",
    "json_schema", "plan", "read", "run", "shelf", "to_yaml",
]  # fmt: skip
