"""Recipes are read strictly, and every complaint names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import recipes
from exporter.errors import InputError, UsageError
from exporter.recipes.reading import RecipeError, parse

GOOD = """\
name: r
model: builtin:shapes
target: onnx
variables:
  size: 1x128x128
options:
  static: ${size}
verify:
  k: 3
"""


def test_a_good_one() -> None:
    recipe = parse(GOOD, "r.yaml")
    assert (recipe.target, recipe.verify.k, recipe.verify.steps) == ("onnx", 3.0, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("  k: 3", "  kk: 3"), r"r\.yaml line 9: there is no key 'verify.kk'"),
        (GOOD.replace("  k: 3", "  k: -3"), r"r\.yaml line 9: verify\.k: input should be greater than 0"),
        (GOOD.replace("  k: 3", "  k: .nan"), r"r\.yaml line 9: verify\.k"),
        (GOOD.replace("name: r\n", ""), r"the key 'name' is missing"),
        (GOOD.replace("name: r", "name: ../r"), r"r\.yaml line 1: name"),
        (GOOD + "matrix:\n  target: []\n", r"r\.yaml line 10: matrix: the axis 'target' has no values"),
        (GOOD + "matrix:\n  target: [onnx, onnx]\n", "names a value twice"),
        (GOOD + "matrix:\n  target: [[onnx]]\n", r"r\.yaml line 11: matrix\.target"),
        (GOOD + "name: again\n", r"r\.yaml line 10: not YAML: the key 'name' stands twice"),
        (GOOD.replace("${size}", "${sise}"), r"\$\{sise\} is no variable of the recipe; there are: size"),
        ("name: [", r"r\.yaml line 1: not YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(6)
        ), "too large for a recipe"),
    ],
)  # fmt: skip
def test_bad_ones(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text, "r.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        recipes.read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="no recipe 'nothing'"):
        recipes.find("nothing")


def test_overrides() -> None:
    recipe = parse(GOOD, "r", ["model=./mine", "options.dtype=float16", "size=2x64x64", "verify.steps=2"])
    (cell,) = recipes.cells(recipe)
    assert cell.recipe.model == "./mine" and cell.recipe.verify.steps == 2
    assert cell.recipe.options == {"static": "2x64x64", "dtype": "float16"}
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse(GOOD, "r", ["model"])
    with pytest.raises(UsageError, match="nothing inside 'name'"):
        parse(GOOD, "r", ["name.x=1"])
    with pytest.raises(RecipeError, match=r"no key 'verify\.kk'"):
        parse(GOOD, "r", ["verify.kk=1"])


def test_an_override_takes_the_place_of_an_axis() -> None:
    text = (
        GOOD.replace("target: onnx\n", "")
        + "matrix:\n  target: [onnx, openvino]\n  dtype: [float32, float16]\n"
    )
    assert len(recipes.cells(parse(text, "r"))) == 4
    assert {c.target for c in recipes.cells(parse(text, "r", ["target=onnx"]))} == {"onnx"}
    assert len(recipes.cells(parse(text, "r", ["options.dtype=float16"]))) == 2


def test_the_matrix_is_every_combination_in_order() -> None:
    text = "name: m\nmodel: x\noutput: out/{name}-{target}-{dtype}\nmatrix:\n"
    recipe = parse(text + "  target: [onnx, openvino]\n  dtype: [float32, float16]\n", "m")
    found = recipes.cells(recipe)
    assert [c.label for c in found] == [
        "onnx float32",
        "onnx float16",
        "openvino float32",
        "openvino float16",
    ]
    assert str(found[1].output) == "out/m-onnx-float16"
    assert found[3].recipe.options == {"dtype": "float16"}


@pytest.mark.parametrize(
    ("output", "message"),
    [("out/{name}", "would both be written"), ("out/{colour}", r"\{colour\} in .* is no key")],
)
def test_outputs_that_clash_or_are_misspelt(output: str, message: str) -> None:
    text = f"name: m\nmodel: x\noutput: {output}\nmatrix:\n  target: [onnx, openvino]\n"
    with pytest.raises(RecipeError, match=message):
        recipes.cells(parse(text, "m"))


def test_a_value_cannot_leave_its_folder() -> None:
    text = "name: m\nmodel: x\ntarget: onnx\noutput: out/{v}\nvariables:\n  v: ../../etc\n"
    (cell,) = recipes.cells(parse(text, "m"))
    assert cell.output is not None and ".." not in cell.output.parts


def test_no_target() -> None:
    with pytest.raises(RecipeError, match="names no target"):
        recipes.cells(parse("name: m\nmodel: x\n", "m"))


def test_the_schema_describes_the_keys() -> None:
    schema = recipes.json_schema()
    assert {"name", "model", "target", "matrix", "verify"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    json.dumps(schema)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        parse(text, "fuzz")
    except InputError as error:
        assert error.message
