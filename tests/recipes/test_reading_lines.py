"""Complaints about a recipe that once lacked their line, or were no sentence at all."""

import re

import pytest

from exporter.recipes import Recipe, cells, json_schema
from exporter.recipes.reading import RecipeError, parse

HEAD = "name: a\nmodel: builtin:shapes\ntarget: onnx\n"


def test_unknown_variable_has_its_line() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml line 5: \$\{nope\} is no variable"):
        parse(HEAD + "# ${nope} in a comment\noutput: artifacts/${nope}\n", "r.yaml")


def test_what_was_set_by_hand_is_told_by_its_key() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml, --set output: \$\{nope\} is no variable"):
        parse(HEAD, "r.yaml", ["output=${nope}"])
    with pytest.raises(RecipeError, match=r"r\.yaml, --set mdel: there is no key 'mdel'") as raised:
        parse(HEAD, "r.yaml", ["mdel=x"])
    assert raised.value.hint is not None and raised.value.hint.startswith("Did you mean model?")
    with pytest.raises(RecipeError, match=r"r\.yaml, `set` verify\.k: verify\.k: input should be greater"):
        parse(HEAD, "r.yaml", ["verify.k=-1"], by="`set`")


def test_a_misspelt_key_is_told_before_the_one_that_is_then_missing() -> None:
    with pytest.raises(RecipeError, match=r"r line 2: there is no key 'modle'") as raised:
        parse(HEAD.replace("model", "modle"), "r")
    assert raised.value.hint is not None and raised.value.hint.startswith("Did you mean model?")


TYPED = HEAD + "variables:\n  k: 3\n  judged: true\nverify:\n  k: ${k}\n  enabled: ${judged}\n"


def test_a_variable_may_stand_for_a_number() -> None:
    (cell,) = cells(parse(TYPED, "r.yaml"))
    assert (cell.recipe.verify.k, cell.recipe.verify.enabled) == (3.0, True)
    (cell,) = cells(parse(TYPED, "r.yaml", ["k=7.5"]))
    assert cell.recipe.verify.k == 7.5


def test_the_schema_for_editors_admits_variables() -> None:
    k = json_schema()["$defs"]["Verify"]["properties"]["k"]
    number, variable = k["anyOf"]
    assert (number["type"], number["exclusiveMinimum"], k["default"]) == ("number", 0, 4.0)
    assert re.search(variable["pattern"], "${k}") and not re.search(variable["pattern"], "4")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (TYPED, ["k=-1"], r"r line 8: verify\.k: .* greater than 0; \$\{k\} is -1 \(r, --set k\)\.$"),
        (TYPED.replace("3", "x"), [], r"r line 8: verify\.k: .*number; \$\{k\} is 'x' \(r line 5\)\.$"),
        (
            TYPED + "matrix:\n  target: [onnx]\n  k: [1, -2]\n", [],
            r"r line 8: verify\.k: .*; \$\{k\} is -2 \(r line 12\)\.$",
        ),
        (TYPED, ["verify.k=${judged}x"], r"r, --set verify\.k: verify\.k: input should be a valid number"),
        (TYPED + 'vae: "${k}"\n', [], r"r line 10: vae: input should be a valid string; \$\{k\} is 3"),
        (TYPED, ["k=[1]"], r"r, --set k: variables\.k: a variable is one word"),
        (TYPED, ["k=${judged}", "judged=${k}"], r"r, --set k: the variable k is made of itself"),
        (HEAD + "matrix:\n  model: ['']\n", [], r"r line 5: model: string should have at least 1"),
        (HEAD + "output: out/{taget}\n", [], r"r line 4: \{taget\} in 'out/\{taget\}' is no key"),
        (
            HEAD + 'variables: {n: 3}\noptions: "${n}"\nmatrix:\n  dtype: [float32]\n', [],
            r"r line 5: options: input should be a valid dictionary; \$\{n\} is 3 \(r line 4\)",
        ),
        (HEAD + "publish:\n  repo: me/{x}\n", [], r"r line 5: \{x\} in 'me/\{x\}' is no key"),
        (HEAD + "output: o\nmatrix:\n  dtype: [float32, float16]\n", [], r"r line 4: .* would both be"),
        ("name: a\nmodel: x\n", [], r"r line 1: the recipe a names no target"),
        (
            HEAD + "matrix:\n" + "".join(f"  v{n}: {list(range(11))}\n" for n in range(3)), [],
            "r line 4: the matrix makes more than 1000",
        ),
    ],
)  # fmt: skip
def test_errors_after_variables_are_filled_in_have_a_place(
    text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        cells(parse(text, "r", overrides))


@pytest.mark.parametrize(("key", "kind"), [("on", "bool"), ("no", "bool"), ("1", "int"), ("~", "null")])
def test_keys_that_yaml_reads_as_something_else(key: str, kind: str) -> None:
    with pytest.raises(RecipeError, match=rf"r line 5: not YAML: YAML reads the key {key} as {kind}: put it"):
        parse(HEAD + f"variables:\n  {key}: x\n", "r")


def test_variables_in_variables_and_in_the_matrix() -> None:
    text = (
        "name: n\nmodel: x\ntarget: onnx\nvariables:\n  base: ./m\n  deep: ${base}/deep\n"
        "output: out/{model}\nmatrix:\n  model: ['${base}/a', '${deep}/b']\n"
    )
    found = cells(parse(text, "n", ["base=/models"]))
    assert [cell.recipe.model for cell in found] == ["/models/a", "/models/deep/b"]
    assert [cell.label for cell in found] == ["/models/a", "/models/deep/b"]
    # What the manifest keeps stands by itself: no key of a matrix that is not there any more.
    assert [cell.recipe.output for cell in found] == ["out/models-a", "out/models-deep-b"]


def test_a_recipe_made_in_python_is_called_by_its_name() -> None:
    with pytest.raises(RecipeError, match=r"^Recipe a: the recipe a names no target"):
        cells(Recipe(name="a", model="x"))
    assert Recipe(name="a", model="x") == parse("name: a\nmodel: x\n", "r.yaml")


@pytest.mark.parametrize("key", ["? [a, b]\n: c", "? {a: b}\n: c", "{[a]: b}"])
def test_key_that_is_no_word(key: str) -> None:
    nested = "options:\n  " + key.replace("\n", "\n  ")
    with pytest.raises(RecipeError, match=r"r\.yaml line 5: not YAML: a key is one word"):
        parse(HEAD + nested + "\n", "r.yaml")
