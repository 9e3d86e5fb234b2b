"""Complaints about a recipe that once lacked their line, or were no sentence at all."""

import pytest

from exporter.recipes.reading import RecipeError, parse

HEAD = "name: a\nmodel: builtin:shapes\ntarget: onnx\n"


def test_unknown_variable_has_its_line() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml line 5: \$\{nope\} is no variable"):
        parse(HEAD + "# ${nope} in a comment\noutput: artifacts/${nope}\n", "r.yaml")


def test_unknown_variable_by_override_has_no_line() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: \$\{nope\} is no variable"):
        parse(HEAD, "r.yaml", ["output=${nope}"])


@pytest.mark.parametrize("key", ["? [a, b]\n: c", "? {a: b}\n: c", "{[a]: b}"])
def test_key_that_is_no_word(key: str) -> None:
    nested = "options:\n  " + key.replace("\n", "\n  ")
    with pytest.raises(RecipeError, match=r"r\.yaml line 5: not YAML: a key is one word"):
        parse(HEAD + nested + "\n", "r.yaml")
