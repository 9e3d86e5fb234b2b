"""The prompts, the held-out split, the drawings and the tokenizer of the embedded checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, CLIPTokenizerFast

from exporter.builtin import path
from exporter.builtin.prompts import (
    Scene,
    all_scenes,
    held_out,
    sample_scenes,
    training_scenes,
    words,
)
from exporter.builtin.render import SceneTensors, draw
from exporter.builtin.tokenizer import write
from tests.judge import judge


def test_a_tenth_is_held_out_and_every_value_is_still_trained() -> None:
    assert len(all_scenes()) == len(set(all_scenes())) == 3000
    assert len(held_out()) == 300
    assert set(training_scenes()) | held_out() == set(all_scenes())
    assert not set(training_scenes()) & held_out()
    for name in ("size", "colour", "shape", "place", "background"):
        values = {getattr(scene, name) for scene in all_scenes()}
        assert {getattr(scene, name) for scene in training_scenes()} == values
        assert {getattr(scene, name) for scene in held_out()} == values
    assert all(scene.colour != scene.background for scene in all_scenes())


def test_the_split_never_moves() -> None:
    """Pinned: another split would turn held-out prompts of the shipped weights into seen ones."""
    assert (
        min(scene.prompt for scene in held_out())
        == "a large black circle at the bottom on a white background"
    )
    assert (
        max(scene.prompt for scene in held_out())
        == "a small yellow triangle in the center on a purple background"
    )
    assert sample_scenes(5, seed=3) == sample_scenes(5, seed=3)
    assert set(sample_scenes(300, only_held_out=True)) == held_out()


def test_prompts() -> None:
    scene = Scene("large", "orange", "star", "center", "blue")
    assert scene.prompt == "a large orange star in the center on a blue background"
    assert scene.partial(frozenset({"colour"})) == "an orange star"
    assert scene.partial(frozenset()) == "a star"


def test_drawings_are_what_their_prompts_say() -> None:
    scenes = all_scenes()[::49]
    rng = torch.Generator().manual_seed(0)
    pictures = draw(SceneTensors.of(scenes, torch.device("cpu")), torch.arange(len(scenes)), 128, rng)
    assert pictures.shape == (len(scenes), 3, 128, 128)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1.0
    levels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for scene, pixels in zip(scenes, levels, strict=True):
        verdict = judge(Image.fromarray(pixels), scene.prompt)
        assert verdict.ok, (scene.prompt, verdict)


@pytest.mark.parametrize("kind", [CLIPTokenizer, CLIPTokenizerFast])
def test_tokenizer_has_the_layout_of_clips(kind: type) -> None:
    tokenizer = kind.from_pretrained(path() / "tokenizer")
    size = len(tokenizer)
    assert tokenizer.model_max_length == 77
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (size - 2, size - 1)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == tokenizer.eos_token_id
    for scene in all_scenes()[::41]:
        ids = tokenizer(scene.prompt, padding="max_length", truncation=True).input_ids
        count = len(scene.prompt.split())
        assert len(ids) == 77
        assert ids[0] == tokenizer.bos_token_id
        assert set(ids[count + 1 :]) == {tokenizer.eos_token_id}
        assert tokenizer.eos_token_id not in ids[: count + 1]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == scene.prompt


def test_every_word_is_one_token_and_other_words_survive() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(path() / "tokenizer")
    fast = CLIPTokenizerFast.from_pretrained(path() / "tokenizer")
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    for text in ("a photo of an astronaut", "Größe 42!", "", "redder reds", "LARGE Red"):
        assert tokenizer(text).input_ids == fast(text).input_ids
    long = tokenizer("unknown words " * 40, truncation=True).input_ids
    assert len(long) == 77
    assert long[-1] == tokenizer.eos_token_id
    assert fast.decode(fast("astronaut").input_ids, skip_special_tokens=True) == "astronaut"


def test_the_tokenizer_in_the_checkpoint_is_the_one_the_code_writes(tmp_path: Path) -> None:
    write(tmp_path, words())
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    shipped = {file.name: file.read_bytes() for file in (path() / "tokenizer").iterdir()}
    assert written == shipped
    assert set(shipped) == {
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, exporter.builtin as b; assert b.NAMES == ('shapes',); assert b.path().is_dir();"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_refused() -> None:
    from exporter import builtin

    with pytest.raises(ValueError, match="shapes"):
        builtin.path("faces")
