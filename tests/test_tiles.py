"""Large pictures in tiles: every cell is covered, what is local is exact, the rest is close."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import pipeline
from exporter.conversion import convert, make_plan
from exporter.stand_ins import ExportedVae
from exporter.targets import RunOptions, get_target
from exporter.tiles import in_tiles, starts


@given(length=st.integers(1, 400), tile=st.integers(1, 200), overlap=st.floats(0, 0.9))
def test_tiles_cover_a_length_and_overlap_as_asked(length: int, tile: int, overlap: float) -> None:
    begin = starts(length, tile, overlap)
    assert begin[0] == 0 and begin == sorted(set(begin))
    if tile >= length:
        assert begin == [0]
        return
    assert begin[-1] + tile == length
    steps = [second - first for first, second in itertools.pairwise(begin)]
    assert max(steps) <= max(1, int(tile * (1 - overlap)) + 1) and max(steps) <= tile


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40),
    tile=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_what_looks_at_one_cell_is_the_same_in_tiles(
    height: int, width: int, tile: tuple[int, int], seed: int
) -> None:
    value = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))

    def enlarge(part: torch.Tensor) -> torch.Tensor:
        assert part.shape[-2] == min(tile[0], height) and part.shape[-1] == min(tile[1], width)
        return part.repeat_interleave(4, -1).repeat_interleave(4, -2).sin()

    assert torch.allclose(in_tiles(enlarge, value, tile), enlarge_all(value), atol=1e-5)
    large = enlarge_all(value)
    tall = (4 * tile[0], 4 * tile[1])
    shrunk = in_tiles(lambda part: torch.nn.functional.avg_pool2d(part, 4), large, tall, 4)
    assert torch.allclose(shrunk, value.sin(), atol=1e-5)


def enlarge_all(value: torch.Tensor) -> torch.Tensor:
    return value.repeat_interleave(4, -1).repeat_interleave(4, -2).sin()


def test_a_size_between_two_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiples of 8"):
        in_tiles(lambda part: part, torch.zeros(1, 1, 20, 16), (16, 16), 8)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiles") / "out"
    return convert(make_plan("builtin:shapes", "onnx", out, {}, verify=False)).artifact.root


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of pictures of 0 to 255."""
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


def test_a_picture_in_tiles_is_close_to_one_without(shapes: Path) -> None:
    """As close as diffusers' own tiling of its own autoencoder, within 3 dB; and there are tiles."""
    asked = {"steps": 6, "seed": 2, "height": 192, "width": 256}
    found = {}
    for name, source in (("ours", shapes), ("theirs", "builtin:shapes")):
        for tiled in (False, True):
            loaded = pipeline.load(source)
            pipeline.spare_memory(loaded, tiling=tiled)
            found[name, tiled] = np.asarray(pipeline.paint(loaded, ["a red star"], **asked)[0])  # type: ignore[arg-type]
    assert distance(found["ours", False], found["theirs", False]) > 45
    own, reference = (distance(found[name, False], found[name, True]) for name in ("ours", "theirs"))
    assert not np.array_equal(found["ours", False], found["ours", True]), "it was tiled"
    assert own > reference - 3 and own > 25


def test_encoding_in_tiles_and_slices(shapes: Path) -> None:
    loaded = pipeline.load(shapes)
    vae: ExportedVae = loaded.vae
    picture = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = vae.encode(picture).latent_dist.mean
    loaded.enable_vae_slicing()
    assert torch.allclose(vae.encode(picture).latent_dist.mean, whole, atol=1e-5)
    loaded.enable_vae_tiling()
    tiled = vae.encode(picture).latent_dist.mean
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    loaded.disable_vae_tiling()
    loaded.disable_vae_slicing()
    assert torch.equal(vae.encode(picture).latent_dist.mean, whole)


def test_a_static_decoder_takes_its_own_size_as_the_tile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = make_plan(
        "builtin:shapes", "onnx", out, {"static": "1x64x96"}, components=["vae_decoder"], verify=False
    )
    record = convert(plan).artifact.manifest.component("vae_decoder")
    with get_target("onnx").open(out, record, RunOptions()) as runner:
        vae = ExportedVae(runner, None, {"block_out_channels": [1, 1, 1, 1], "sample_size": 512})
        vae.enable_tiling()
        assert vae.tile == (8, 12)
        assert vae.decode(torch.zeros(1, 4, 20, 30)).sample.shape == (1, 3, 160, 240)
