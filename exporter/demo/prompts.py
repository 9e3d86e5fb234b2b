"""What the demo paints."""

from __future__ import annotations

EMBEDDED = (
    "a large red star at the right on a blue background",
    "a large yellow cross in the center on a black background",
    "a large orange ring at the bottom on a white background",
    "a small white circle at the left on a green background",
)
"""Scenes that the embedded model never saw in training (`exporter.builtin.prompts.held_out`). No two
share a shape, a colour, a place or a background, so the pictures show that the sentence was read."""

OTHERS = (
    "a lighthouse on a cliff at dusk",
    "a bowl of oranges on a wooden table",
    "a fox asleep in fresh snow",
    "a red bicycle leaning against a white wall",
)


def choose_prompts(source: str) -> tuple[list[str], str]:
    """The prompts for a checkpoint, and a clause that says what they are."""
    if source == "builtin:shapes":
        return list(EMBEDDED), "four scenes the model never saw in training"
    return list(OTHERS), "four fixed prompts"
