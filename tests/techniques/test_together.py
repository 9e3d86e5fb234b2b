"""Undoing several techniques."""

import pytest

from exporter.techniques.base import together


def test_one_undo_that_raises_leaves_none_of_the_others_on() -> None:
    done: list[str] = []

    def fails() -> None:
        done.append("second")
        raise RuntimeError("broken")

    undo = together([lambda: done.append("first"), fails, lambda: done.append("third")])
    with pytest.raises(RuntimeError, match="broken"):
        undo()
    assert done == ["third", "second", "first"]
