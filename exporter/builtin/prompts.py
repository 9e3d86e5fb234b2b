"""What the checkpoint can paint: every scene, its prompt, and which scenes training never sees."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from itertools import product

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLACES = {
    "left": "at the left",
    "right": "at the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
BACKGROUNDS = ("white", "black", "gray", "yellow", "green", "blue", "purple")
HELD_OUT_FRACTION = 0.1


@dataclass(frozen=True)
class Scene:
    """One combination of the five attributes; the colour is never the background's."""

    size: str
    colour: str
    shape: str
    place: str
    background: str

    @property
    def prompt(self) -> str:
        """The full sentence, such as "a large red star at the left on a blue background"."""
        return self.partial(frozenset(("size", "colour", "place", "background")))

    def partial(self, keep: frozenset[str]) -> str:
        """The sentence with only the attributes in `keep`; the shape is always named."""
        words = [getattr(self, name) for name in ("size", "colour") if name in keep]
        words.append(self.shape)
        text = f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
        if "place" in keep:
            text += f" {PLACES[self.place]}"
        if "background" in keep:
            text += f" on a {self.background} background"
        return text


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene, in a fixed order (3000 of them)."""
    return tuple(
        Scene(size, colour, shape, place, background)
        for size, colour, shape, place, background in product(SIZES, COLOURS, SHAPES, PLACES, BACKGROUNDS)
        if colour != background
    )


@cache
def held_out() -> frozenset[Scene]:
    """The tenth of all scenes that training never sees.

    The rule needs no random generator: scenes are ranked by the SHA-256 of their prompt and the
    first tenth is held out, so it is the same on every machine and every Python.
    """
    ranked = sorted(all_scenes(), key=lambda s: hashlib.sha256(s.prompt.encode()).hexdigest())
    return frozenset(ranked[: round(len(ranked) * HELD_OUT_FRACTION)])


@cache
def training_scenes() -> tuple[Scene, ...]:
    """Every scene that is not held out, in the order of `all_scenes`."""
    return tuple(scene for scene in all_scenes() if scene not in held_out())


def sample_scenes(count: int, seed: int = 0, *, only_held_out: bool = False) -> list[Scene]:
    """`count` different scenes chosen by `seed`, from all of them or from the held-out ones."""
    pool = [s for s in all_scenes() if not only_held_out or s in held_out()]
    return random.Random(seed).sample(pool, count)


def words() -> tuple[str, ...]:
    """Every word that a prompt can hold; the tokenizer has one token for each."""
    seen: dict[str, None] = {}
    for scene in all_scenes():
        for keep in (frozenset(("size", "colour", "place", "background")), frozenset(("colour",))):
            seen.update(dict.fromkeys(scene.partial(keep).split()))
    return tuple(seen)
