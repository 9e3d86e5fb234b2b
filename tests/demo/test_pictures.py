from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from exporter.demo.pictures import AMPLIFICATION, compare, data_uri
from tests.demo.pages import read


def flat(level: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def test_equal_pictures_are_infinitely_close() -> None:
    found = compare(flat(90), flat(90))
    assert found.psnr == math.inf
    assert found.largest == 0
    assert not np.asarray(found.difference).any()


@pytest.mark.parametrize("truth", [0, 1, 128, 254])
def test_one_level_everywhere_is_48_db(truth: int) -> None:
    """10 log10(255² / 1) = 48.13 dB, also where the truth is all black."""
    assert compare(flat(truth + 1), flat(truth)).psnr == pytest.approx(48.1308, abs=1e-3)


def test_difference_is_amplified_and_clipped() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = (1, 3, 200)
    found = compare(Image.fromarray(pixels), flat(0))
    assert np.asarray(found.difference)[0, 0].tolist() == [AMPLIFICATION, 3 * AMPLIFICATION, 255]
    assert np.asarray(found.difference).sum() == 4 * AMPLIFICATION + 255
    assert found.largest == 200


def test_darker_counts_as_much_as_brighter() -> None:
    assert compare(flat(10), flat(13)).largest == compare(flat(13), flat(10)).largest == 3


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(flat(0, (8, 8)), flat(0, (8, 16)))


def test_data_uri_holds_the_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    html = f'<img alt="x" src="{data_uri(Image.fromarray(pixels))}">'
    ((alt, picture),) = read(html).images
    assert alt == "x"
    assert np.array_equal(np.asarray(picture), pixels)
