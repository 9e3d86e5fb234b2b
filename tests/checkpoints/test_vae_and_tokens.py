"""Another autoencoder, and new tokens: what is laid over is what is exported and what is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from exporter.architectures import components_of
from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints import open_source, resolve
from exporter.checkpoints.original import vae as original_vae
from exporter.checkpoints.overlays import textual_inversion
from exporter.errors import ArtifactError, CheckpointError
from exporter.parity.reference import token_prompts
from exporter.parity.sources import reference_for
from tests import original_layout
from tests.checkpoints import conftest as loras
from tests.checkpoints.conftest import Judge, pairs, write
from tests.parity.torch_target import make_artifact
from tests.tiny import make_tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with other weights."""
    return make_tiny(tmp_path_factory.mktemp("other") / "other", seed=9)


@pytest.mark.parametrize(
    "kind", ["its folder", "its file", "a checkpoint", "the original layout", "a whole file"]
)
def test_an_autoencoder_from_anywhere(tiny: Path, other: Path, tmp_path: Path, kind: str) -> None:
    state, config = original_layout.read(other, "vae")
    source = {"its folder": other / "vae", "its file": other / "vae" / WEIGHTS, "a checkpoint": other}.get(
        kind
    )
    if source is None:
        prefix = "" if kind == "the original layout" else "first_stage_model."
        source = original_layout.save(
            original_layout.vae(state, config, prefix), tmp_path / "vae.safetensors"
        )
    merged = open_source(tiny, vae=str(source))
    for stored in (merged.stored("vae"), merged.reference_stored("vae")):
        assert set(stored) == set(state)
        assert all(torch.equal(stored[name].load(), tensor) for name, tensor in state.items())
    assert merged.stored("unet") is merged.base.stored("unet")
    assert merged.config("vae")["block_out_channels"] == config["block_out_channels"]
    assert (merged.root / "tokenizer/vocab.json").is_file() and merged.root != tiny
    assert merged.overlays[0].kind == "vae" and merged.overlays[0].files[0].path.endswith(".safetensors")
    assert bool(merged.notes) == (kind in ("the original layout", "a whole file")), "what is assumed is said"


def test_a_wrong_mapping_of_the_autoencoder_is_found(
    tiny: Path, other: Path, tmp_path: Path, judge_export: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers maps the reference's tensors, so that a fault of our mapping is a FAIL."""
    path = original_layout.save(original_layout.stable_diffusion_1(other), tmp_path / "x.safetensors")
    honest = open_source(path, config=str(other))
    assert judge_export(honest, "vae_decoder").verdict == "PASS"
    swapped = original_vae.ATTENTION | {"q": "to_k", "k": "to_q"}
    monkeypatch.setattr(original_vae, "ATTENTION", swapped)
    report = judge_export(open_source(path, config=str(other)), "vae_decoder")
    assert report.verdict == "FAIL", report.summary


def test_a_wrong_mapping_of_the_text_encoder_is_found(
    tiny: Path, tmp_path: Path, judge_export: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporter.checkpoints import single_file

    path = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "x.safetensors")
    real = single_file.text_weights

    def swapped(tensors: Any, encoder: Any) -> Any:
        found = real(tensors, encoder)
        layer = "text_model.encoder.layers.{}.mlp.fc1.weight"
        return found | {layer.format(0): found[layer.format(1)], layer.format(1): found[layer.format(0)]}

    monkeypatch.setattr(single_file, "text_weights", swapped)
    report = judge_export(open_source(path, config=str(tiny)), "text_encoder")
    assert report.verdict == "FAIL", report.summary


def copy_vae(other: Path, tmp_path: Path, **changes: Any) -> Path:
    folder = Path(shutil.copytree(other / "vae", tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_autoencoders_that_do_not_fit(tiny: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="16 latent channels, the model works with 4"):
        open_source(tiny, vae=str(copy_vae(other, tmp_path, latent_channels=16)))
    with pytest.raises(CheckpointError, match="is a VQModel, not an AutoencoderKL or AutoencoderTiny"):
        shutil.rmtree(tmp_path / "vae")
        open_source(tiny, vae=str(copy_vae(other, tmp_path, _class_name="VQModel")))
    with pytest.raises(CheckpointError, match="one latent of 4×4 pixels, the model works with 8×8"):
        shutil.rmtree(tmp_path / "vae")
        open_source(tiny, vae=str(copy_vae(other, tmp_path, block_out_channels=[16, 16, 32])))
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor a model_index\.json"):
        open_source(tiny, vae=str(other / "tokenizer"))
    with pytest.raises(CheckpointError, match="does not exist"):
        open_source(tiny, vae="./nowhere")
    lora = write(tmp_path / "lora.safetensors", loras.kohya(pairs()))
    with pytest.raises(CheckpointError, match="holds no autoencoder"):
        open_source(tiny, vae=lora)
    (tmp_path / "vae" / "config.json").unlink()
    pickle = tmp_path / "vae.pt"
    torch.save(load_file(other / "vae" / WEIGHTS), pickle)
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_source(tiny, vae=str(pickle))


def vectors(count: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.randn((count, 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["diffusers", "web ui", "pickle", "web ui pickle"])
def test_new_tokens_in_every_style(tiny: Path, tmp_path: Path, kind: str) -> None:
    made = vectors()
    path = tmp_path / ("<cat>.pt" if "pickle" in kind else "<cat>.safetensors")
    if kind == "diffusers":
        write(path, {"<cat>": made})
    elif kind == "web ui":
        write(path, {"emb_params": made})
    else:
        torch.save(
            {"<cat>": made} if kind == "pickle" else {"string_to_param": {"*": made}, "name": "<cat>"}, path
        )
    merged = open_source(tiny, textual_inversions=[str(path)], allow_pickle="pickle" in kind)
    before = resolve(tiny).stored("text_encoder")[textual_inversion.TABLE].load()
    for stored in (merged.stored("text_encoder"), merged.reference_stored("text_encoder")):
        assert torch.equal(stored[textual_inversion.TABLE].load(), torch.cat([before, made]))
    assert merged.config("text_encoder")["vocab_size"] == 516
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    for loader in (CLIPTokenizer, CLIPTokenizerFast):
        tokenizer = loader.from_pretrained(merged.root / "tokenizer")
        assert tokenizer.convert_tokens_to_ids(["<cat>", "<cat>_1"]) == [514, 515]
        assert tokenizer("a <cat>").input_ids[-2] == 514
    assert merged.overlays[0].details == {"tokens": ["<cat>", "<cat>_1"]}
    assert token_prompts(merged) == ["a picture of <cat> <cat>_1"], "the verdict covers the new rows"


def test_new_tokens_are_judged(
    tiny: Path, tmp_path: Path, judge_export: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "cat.safetensors", {"<cat>": vectors()})
    lora = write(tmp_path / "lora.safetensors", loras.kohya(pairs()))
    merged = open_source(tiny, textual_inversions=[path], loras=[lora])
    report = judge_export(merged, "text_encoder")
    assert report.verdict == "PASS", report.summary
    real = textual_inversion.with_rows

    def reversed_rows(table: Any, more: Any) -> Any:
        from exporter.checkpoints.derived import made

        flipped = made(more.name, more.dtype, more.shape, more, lambda: more.load().flip(0))
        return real(table, flipped)

    monkeypatch.setattr(textual_inversion, "with_rows", reversed_rows)
    report = judge_export(open_source(tiny, textual_inversions=[path]), "text_encoder")
    assert report.verdict == "FAIL", report.summary


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"<cat>": torch.ones(2, 48)}, "vectors of 48 numbers, the text_encoder takes 32"),
        ({"<cat>": torch.full((1, 32), torch.nan)}, "NaN or Inf"),
        ({"a</w>": torch.ones(1, 32)}, "in the tokenizer already"),
        ({"a cat": torch.ones(1, 32)}, "no usable token"),
        ({"<cat>": torch.ones(1, 32), "<dog>": torch.ones(1, 32)}, "is no textual inversion: it holds 2"),
        ({"<cat>": torch.ones(2, 32, 1)}, "not vectors"),
        ({}, "is no textual inversion: it holds 0"),
    ],
)
def test_bad_embeddings(tiny: Path, tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_source(tiny, textual_inversions=[write(tmp_path / "x.safetensors", state)])


def test_a_pickled_embedding_is_refused(tiny: Path, tmp_path: Path) -> None:
    torch.save({"<cat>": vectors()}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        open_source(tiny, textual_inversions=[str(tmp_path / "x.bin")])


def test_overlays_are_found_again_or_missed(tiny: Path, other: Path, tmp_path: Path) -> None:
    """The manifest says what was laid over; a file that is gone or changed is an error of its own."""
    lora = write(tmp_path / "lora.safetensors", loras.kohya(pairs()))
    tokens = write(tmp_path / "cat.safetensors", {"<cat>": vectors()})
    merged = open_source(tiny, vae=str(other), textual_inversions=[tokens], loras=[f"{lora}:0.5"])
    assert [r.kind for r in merged.overlays] == ["vae", "textual_inversion", "lora"]
    root = make_artifact(merged, tmp_path / "artifact", components=["vae_decoder"])
    again = reference_for(Artifact.open(root), None)
    assert again.overlays == merged.overlays and again.root == merged.root
    by_name = {c.name: c for c in components_of(merged)}
    for component in components_of(again):
        assert component.weights_digest == by_name[component.name].weights_digest
    plain = {c.name: c.weights_digest for c in components_of(resolve(tiny))}
    assert all(c.weights_digest != plain[c.name] for c in components_of(again)), "the truths of another model"

    write(tmp_path / "lora.safetensors", loras.kohya(pairs(seed=1)))
    with pytest.raises(ArtifactError, match=r"lora .* has changed since"):
        reference_for(Artifact.open(root), None)
    Path(lora).unlink()
    with pytest.raises(ArtifactError, match=r"overlay that cannot be laid again: The LoRA .* is not there"):
        reference_for(Artifact.open(root), None)
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["source"]["overlays"][2]["scale"] = "much"
    (root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        Artifact.open(root)
