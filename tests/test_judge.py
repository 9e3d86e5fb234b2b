"""The judge is judged: right pictures pass, each wrong attribute is named, rubbish is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.judge import ATTRIBUTES, COLOURS, PLACES, SHAPES, SIZES, judge, read_prompt

WHERE = {
    "left": (0.29, 0.5),
    "right": (0.71, 0.5),
    "top": (0.5, 0.29),
    "bottom": (0.5, 0.71),
    "center": (0.5, 0.5),
}
RIGHT = {
    "size": "large",
    "colour": "red",
    "shape": "star",
    "place": "left",
    "background": "blue",
}


def sentence(size: str, colour: str, shape: str, place: str, background: str) -> str:
    where = "in the center" if place == "center" else f"at the {place}"
    return f"a {size} {colour} {shape} {where} on a {background} background"


def drawn(
    size: str,
    colour: str,
    shape: str,
    place: str,
    background: str,
    canvas: tuple[int, int] = (128, 128),
) -> Image.Image:
    """A picture drawn at four times its size with PIL, then reduced."""
    width, height = canvas
    picture = Image.new("RGB", (4 * width, 4 * height), COLOURS[background])
    pen = ImageDraw.Draw(picture)
    radius = (0.23 if size == "large" else 0.12) * 4 * min(canvas)
    cx, cy = WHERE[place][0] * 4 * width, WHERE[place][1] * 4 * height
    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    fill = COLOURS[colour]

    def polygon(corners: list[tuple[float, float]]) -> None:
        pen.polygon([(cx + x * radius, cy + y * radius) for x, y in corners], fill=fill)

    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "ring":
        pen.ellipse(box, fill=fill)
        pen.ellipse(tuple(c + d * radius / 2 for c, d in zip(box, (1, 1, -1, -1), strict=True)),
                    fill=COLOURS[background])  # fmt: skip
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        polygon([(0, -0.9), (1, 0.9), (-1, 0.9)])
    elif shape == "cross":
        for x, y in ((1.0, 0.33), (0.33, 1.0)):
            polygon([(-x, -y), (x, -y), (x, y), (-x, y)])
    elif shape == "star":
        angles = [k * np.pi / 5 for k in range(10)]
        reach = [1.05 if k % 2 == 0 else 0.45 for k in range(10)]
        polygon([(r * np.sin(a), 0.1 - r * np.cos(a)) for a, r in zip(angles, reach, strict=True)])
    return picture.resize(canvas, Image.LANCZOS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_right_pictures_pass(shape: str, size: str, place: str) -> None:
    scene = {"size": size, "colour": "orange", "shape": shape, "place": place}
    for background in ("white", "purple"):
        verdict = judge(drawn(**scene, background=background), sentence(**scene, background=background))
        assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("colour", "background"),
    [pair for pair in itertools.permutations(COLOURS, 2) if pair[0] != "gray"],
)
def test_every_pair_of_colours_is_read(colour: str, background: str) -> None:
    scene = {**RIGHT, "colour": colour, "background": background}
    verdict = judge(drawn(**scene), sentence(**scene))
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("attribute", "other"),
    [("size", v) for v in SIZES if v != RIGHT["size"]]
    + [("colour", v) for v in COLOURS if v not in (RIGHT["colour"], RIGHT["background"])]
    + [("shape", v) for v in SHAPES if v != RIGHT["shape"]]
    + [("place", v) for v in PLACES if v != RIGHT["place"]]
    + [("background", v) for v in COLOURS if v not in (RIGHT["colour"], RIGHT["background"])],
)
def test_one_wrong_attribute_is_named_alone(attribute: str, other: str) -> None:
    verdict = judge(drawn(**{**RIGHT, attribute: other}), sentence(**RIGHT))
    assert verdict.wrong == (attribute,)
    assert getattr(verdict, attribute) == other


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_never_taken_for_another(shape: str) -> None:
    for size, other in itertools.product(SIZES, SHAPES):
        scene = {**RIGHT, "shape": shape, "size": size}
        verdict = judge(drawn(**scene), sentence(**{**scene, "shape": other}))
        assert verdict.ok == (shape == other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_soft_edges_and_a_little_noise_are_forgiven(shape: str, size: str) -> None:
    scene = {**RIGHT, "shape": shape, "size": size}
    soft = np.asarray(drawn(**scene).filter(ImageFilter.GaussianBlur(0.9))).astype(float)
    noisy = soft + np.random.default_rng(0).normal(0, 4, soft.shape)
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    verdict = judge(picture, sentence(**scene))
    assert verdict.ok, verdict


@pytest.mark.parametrize("canvas", [(128, 192), (192, 128), (256, 256), (64, 64)])
def test_other_sizes_of_picture(canvas: tuple[int, int]) -> None:
    for place in PLACES:
        scene = {**RIGHT, "place": place}
        verdict = judge(drawn(**scene, canvas=canvas), sentence(**scene))
        assert verdict.ok, verdict


def _noise() -> np.ndarray:
    return np.random.default_rng(0).random((128, 128, 3))


def _blurred_noise() -> np.ndarray:
    image = Image.fromarray((_noise() * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(6)))


def _array() -> np.ndarray:
    return np.asarray(drawn(**RIGHT)).astype(np.float32) / 255


def _with_nan() -> np.ndarray:
    pixels = _array()
    pixels[3, 4, 1] = np.nan
    return pixels


def _two() -> np.ndarray:
    pixels = _array()
    return np.where(pixels[:, ::-1, :1] > 0.5, pixels[:, ::-1], pixels)


def _striped() -> np.ndarray:
    pixels = _array()
    pixels[60:70:2, 20:50] = 1.0
    return pixels


def _scratched() -> np.ndarray:
    pixels = _array()
    pixels[:, 100:106] = 1.0
    return pixels


def _faded() -> np.ndarray:
    return 0.97 * np.asarray([40, 90, 220]) / 255 + 0.03 * _array()


RUBBISH = {
    "noise": _noise,
    "blurred noise": _blurred_noise,
    "black": lambda: np.zeros((128, 128, 3)),
    "white": lambda: np.ones((128, 128, 3)),
    "background only": lambda: np.full((128, 128, 3), (40, 90, 220), np.uint8),
    "NaN": _with_nan,
    "all NaN": lambda: np.full((128, 128, 3), np.nan),
    "Inf": lambda: _array() + np.inf,
    "out of range": lambda: _array() * 3,
    "empty": lambda: np.zeros((0, 0, 3)),
    "tiny": lambda: np.zeros((8, 8, 3)),
    "four channels": lambda: np.zeros((128, 128, 4)),
    "two shapes": _two,
    "striped": _striped,
    "scratched": _scratched,
    "faded": _faded,
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_rejected(kind: str) -> None:
    picture = RUBBISH[kind]()
    for prompt in (sentence(**RIGHT), "a star", "a large red star at the left"):
        assert not judge(picture, prompt).ok


@pytest.mark.parametrize("kind", ["noise", "blurred noise", "all NaN", "black", "white"])
def test_rubbish_reads_as_no_shape_and_no_colour(kind: str) -> None:
    verdict = judge(RUBBISH[kind](), sentence(**RIGHT))
    assert set(verdict.wrong) == set(ATTRIBUTES)
    assert verdict.reason


def test_a_float_picture_of_pil_is_refused() -> None:
    assert not judge(Image.fromarray(np.full((128, 128), np.nan, np.float32)), "a star").ok


def test_damage_to_a_right_picture_is_seen() -> None:
    """The faults a broken export shows: mirrored, transposed, channels swapped, negative."""
    good = np.asarray(drawn(**RIGHT))
    prompt = sentence(**RIGHT)
    assert judge(good, prompt).ok
    for wrong in (good[:, ::-1], good.transpose(1, 0, 2), good[..., ::-1], 255 - good):
        assert not judge(np.ascontiguousarray(wrong), prompt).ok
    upside_down = drawn(**{**RIGHT, "shape": "triangle"}).transpose(Image.FLIP_TOP_BOTTOM)
    assert judge(upside_down, sentence(**{**RIGHT, "shape": "triangle"})).wrong == ("shape",)


def test_a_prompt_that_names_less_asks_less() -> None:
    picture = drawn(**RIGHT)
    assert judge(picture, "a star").ok
    assert judge(picture, "a red star on a blue background").ok
    assert judge(picture, "a small red star").wrong == ("size",)


def test_reading_a_prompt() -> None:
    assert read_prompt("A large RED star in the centre on a grey background.") == {
        "size": "large",
        "colour": "red",
        "shape": "star",
        "place": "center",
        "background": "gray",
    }
    with pytest.raises(ValueError, match="no shape"):
        read_prompt("a photo of a cat")


def test_corners_have_no_name() -> None:
    picture = Image.new("RGB", (128, 128), COLOURS["blue"])
    ImageDraw.Draw(picture).ellipse((10, 10, 64, 64), fill=COLOURS["red"])
    verdict = judge(picture, "a large red circle at the left on a blue background")
    assert verdict.place is None
    assert "place" in verdict.wrong
