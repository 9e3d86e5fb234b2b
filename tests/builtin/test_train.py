"""Training from nothing: seeded, resumable by stage, and exact where it claims to be."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.builtin.models import SCALING, fold_latent_scale, make_unet, make_vae, parameter_count
from exporter.builtin.settings import Settings, learning_rate
from exporter.builtin.train import SMOKE, main, train
from tests.builtin.scoring import load, paint


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(SMOKE, folder)
    return folder


@pytest.mark.full
def test_a_second_run_gives_the_same_bytes_also_when_done_in_stages(trained: Path, tmp_path: Path) -> None:
    out, vae = tmp_path / "out", tmp_path / "vae"
    for stage in ("vae", "diffusion"):
        main(["--smoke", "--stage", stage, "--vae", str(vae), "--out", str(out)])
    assert digests(out) == digests(trained)
    (picture,) = paint(load(out), ["a red star"], steps=2)
    assert picture.size == (128, 128)


def test_another_seed_gives_other_weights_and_the_same_layout(trained: Path, tmp_path: Path) -> None:
    train(replace(SMOKE, seed=1), tmp_path)
    one, other = digests(trained), digests(tmp_path)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] == other[name]) == (not name.endswith(".safetensors")), name


@torch.no_grad()
def test_folding_the_scale_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    vae = make_vae().double().eval()
    vae.quant_conv.bias.uniform_(-1, 1)
    pictures = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    before = vae.encode(pictures).latent_dist
    painted = vae.decode(before.mode()).sample
    mean = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    std = torch.tensor([2.0, 0.1, 1.0, 30.0], dtype=torch.float64)
    fold_latent_scale(vae, mean, std)
    after = vae.encode(pictures).latent_dist
    shape = (1, 4, 1, 1)
    factor = 1 / (SCALING * std.view(shape))
    torch.testing.assert_close(after.mean, (before.mean - mean.view(shape)) * factor)
    torch.testing.assert_close(after.std, before.std * factor)
    torch.testing.assert_close(vae.decode(after.mode()).sample, painted)


def test_the_sizes_that_were_planned() -> None:
    assert parameter_count(make_vae()) == 2_190_175
    assert parameter_count(make_unet()) == 4_599_012


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(1.0, step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (149, 150)
    assert 0 < rates[-1] < 0.02
    assert rates[0] < 0.01


def test_the_defaults_are_those_of_the_model_card() -> None:
    from exporter.builtin import path

    card = (path() / "MODEL_CARD.md").read_text(encoding="utf-8")
    settings = Settings()
    assert f"| {settings.vae_steps} | {settings.vae_batch} |" in card
    assert f"| {settings.steps} | {settings.batch} |" in card
