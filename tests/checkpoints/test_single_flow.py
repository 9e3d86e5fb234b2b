"""SD3 and FLUX.1 in one file: every tensor against the diffusers layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import StoredTensor, open_source, resolve
from exporter.checkpoints.derived import held
from exporter.checkpoints.lacking import check_whole
from exporter.checkpoints.original import flow, flux, sd3, tables, theirs
from exporter.errors import CheckpointError
from tests import original_layout
from tests.checkpoints.conftest import Judge
from tests.checkpoints.flow_files import FAMILIES, everything, transformer


def same(mine: dict[str, StoredTensor], wanted: dict[str, StoredTensor]) -> None:
    assert set(mine) == set(wanted)
    for name, tensor in wanted.items():
        assert (mine[name].shape, mine[name].dtype) == (tensor.shape, tensor.dtype), name
        assert bytes(mine[name].raw()) == bytes(tensor.raw()), name
        assert torch.equal(mine[name].load(), tensor.load()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_all_in_one_file_is_the_same_model(
    flow_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = flow_folders[family]
    path = original_layout.save(everything(folder), tmp_path / "model.safetensors")
    single, other = resolve(path, base=str(folder)), resolve(folder)
    assert single.pipeline_class == other.pipeline_class
    assert single.lacking == {} and single.notes == (), "all is read from the shapes or from the base"
    parts = {n: c for n, c in other.component_classes.items() if (folder / n / "config.json").is_file()}
    assert {n: c for n, c in single.component_classes.items() if n in parts} == parts
    for name in parts:
        assert single.weight_files(name) == [path]
        same(single.stored(name), other.stored(name))
        reference = single.reference_stored(name)
        assert set(other.stored(name)) <= set(reference)
        assert all(torch.equal(reference[n].load(), t.load()) for n, t in other.stored(name).items())
        assert len({t.name for t in single.stored(name).values()}) == len(single.stored(name))
    derived = {n for n, t in single.stored("transformer").items() if type(t) is not StoredTensor}
    assert derived and all("norm" in n and n.split(".")[-2] == "linear" for n in derived), "the rest streams"
    mine = {c.name: (c.inputs, c.outputs, c.native) for c in components_of(single)}
    assert mine == {c.name: (c.inputs, c.outputs, c.native) for c in components_of(other)}
    check_whole(single)
    single.validate()


@pytest.mark.parametrize("family", ["flux", "sd35"])
def test_the_mapping_is_judged(
    flow_folders: dict[str, Path], tmp_path: Path, judge_export: Judge, family: str
) -> None:
    """The weights an export writes, against the module that diffusers' own conversion fills."""
    path = original_layout.save(everything(flow_folders[family]), tmp_path / "x.safetensors")
    single = resolve(path, base=str(flow_folders[family]))
    report = judge_export(single, "transformer")
    assert report.verdict == "PASS", report.summary


@pytest.mark.parametrize("fault", ["key and value exchanged", "shift and scale as stored"])
def test_a_wrong_mapping_is_found(
    flow_folders: dict[str, Path],
    tmp_path: Path,
    judge_export: Judge,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """The reference does not share the table: what is wrong in it shows in the verdict."""
    path = original_layout.save(everything(flow_folders["flux"]), tmp_path / "x.safetensors")
    single = resolve(path, base=str(flow_folders["flux"]))
    if fault.startswith("key"):
        monkeypatch.setitem(flux.QKV, "img", ("to_q", "to_v", "to_k"))
    else:
        monkeypatch.setattr(tables, "swapped", lambda tensor: tensor)
    assert judge_export(single, "transformer").verdict == "FAIL"


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "dev": ("FluxPipeline", {"guidance_embeds": True}),
    "schnell": ("FluxPipeline", {}),
    "fill": ("FluxFillPipeline", {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}),
    "sd3 medium": ("StableDiffusion3Pipeline", {"num_layers": 24, "pos_embed_max_size": 192}),
    "sd3.5 medium": (
        "StableDiffusion3Pipeline",
        {
            "num_layers": 24, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
    ),
    "sd3.5 large": (
        "StableDiffusion3Pipeline",
        {"num_layers": 38, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", PUBLISHED)
def test_a_published_transformer_is_found_again(which: str) -> None:
    """At its full size, without a byte of weights: config, names and shapes; diffusers' conversion agrees."""
    import diffusers

    pipeline_class, config = PUBLISHED[which]
    kind = "SD3Transformer2DModel" if which.startswith("sd3") else "FluxTransformer2DModel"
    if which.startswith("sd3"):
        layers = config["num_layers"]
        config = {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "qk_norm": None,
            "attention_head_dim": 64, "num_attention_heads": layers, "caption_projection_dim": 64 * layers,
            "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "dual_attention_layers": [], **config,
        }  # fmt: skip
    else:
        config = {"in_channels": 64, "guidance_embeds": False, "axes_dims_rope": [16, 56, 56], **config}
        config |= {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24}
        config |= {"attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
    with torch.device("meta"):
        state = getattr(diffusers, kind)(**config).state_dict()
    layout = original_layout.sd3 if which.startswith("sd3") else original_layout.flux
    original = {n: held(n, t, Path("x")) for n, t in layout(state, config, "").items()}
    found = flow.detect(original, "x")
    assert found is not None and (found.pipeline_class, found.transformer_class) == (pipeline_class, kind)
    assert which.split()[-1] in found.published.lower(), "the hint names the right one"
    shown = found.infer(original)
    whole = {**shown, **found.assume(shown)[0]}
    assert {key: whole[key] for key in config} == config
    mapped = tables.weights(original, found.table(shown), "transformer")
    assert {n: t.shape for n, t in mapped.items()} == {n: tuple(t.shape) for n, t in state.items()}
    by_diffusers = theirs.converter(kind)({n: t.load() for n, t in original.items()})
    assert {n: tuple(t.shape) for n, t in by_diffusers.items()} == {n: t.shape for n, t in mapped.items()}


@pytest.mark.parametrize("family", ["flux", "flux_schnell"])
def test_values_at_the_width_that_diffusers_knows(flow_folders: dict[str, Path], family: str) -> None:
    """Its conversion of FLUX cuts at 3072 channels: matrices as tall as FLUX.1's and one column wide."""
    _, config = original_layout.read(flow_folders[family], "transformer")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in original_layout.read(flow_folders[family], "transformer")[0].items():
        grown = tensor.shape[0] // 32 * 3072 if tensor.shape[0] % 32 == 0 else tensor.shape[0]
        state[name] = torch.randn((grown, *(1 for _ in tensor.shape[1:])), generator=generator)
    original = original_layout.flux(state, config, "")
    shown = {**config, "num_attention_heads": 24, "attention_head_dim": 128}
    stored = {n: held(n, t, Path("x")) for n, t in original.items()}
    mapped = tables.weights(stored, flux.table(shown), "transformer")
    by_diffusers = theirs.converter("FluxTransformer2DModel")(dict(original))
    in_blocks = theirs.in_blocks(stored, theirs.converter("FluxTransformer2DModel"))
    assert set(mapped) == set(by_diffusers) == set(in_blocks) == set(state)
    for name, tensor in state.items():
        assert torch.equal(mapped[name].load(), tensor), name
        assert torch.equal(by_diffusers[name], tensor) and torch.equal(in_blocks[name].load(), tensor), name


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_diffusers_opens_the_test_file(flow_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """The inverse mapping of these tests is the real layout: diffusers reads it from the file by itself."""
    from diffusers import SD3Transformer2DModel

    folder = flow_folders[family]
    path = original_layout.save(everything(folder), tmp_path / "model.safetensors")
    opened = SD3Transformer2DModel.from_single_file(
        str(path), config=str(folder), subfolder="transformer", local_files_only=True
    )
    wanted, _ = original_layout.read(folder, "transformer")
    assert set(opened.state_dict()) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.parametrize("prefix", [original_layout.PREFIX, ""])
def test_a_transformer_alone(flow_folders: dict[str, Path], tmp_path: Path, prefix: str) -> None:
    folder = flow_folders["flux"]
    path = original_layout.save(transformer(folder, prefix), tmp_path / "flux1-dev.safetensors")
    alone = resolve(path, config=str(folder))
    assert list(alone.lacking) == ["text_encoder", "text_encoder_2", "vae"]
    assert [c.name for c in components_of(alone)] == ["transformer"]
    check_whole(alone, ["transformer"])
    alone.validate()
    for wanted in (None, ["transformer", "text_encoder_2"]):
        with pytest.raises(
            CheckpointError, match=r"holds transformer and lacks .*text_encoder_2 \(T5\)"
        ) as e:
            check_whole(alone, wanted)
        assert "--base SOURCE" in str(e.value.hint) and "--component transformer" in str(e.value.hint)
    with pytest.raises(CheckpointError, match=r"lacks vae \(autoencoder\)"):
        check_whole(alone, ["vae_decoder"])
    whole = resolve(path, base=str(folder))
    assert whole.lacking == {} and "text_encoder, text_encoder_2, vae: from" in " ".join(whole.notes)
    for name in ("text_encoder", "text_encoder_2", "vae", "transformer"):
        same(whole.stored(name), resolve(folder).stored(name))
    assert whole.config("scheduler") == resolve(folder).config("scheduler")
    assert whole.opened_with["base"] == str(folder)
    recorded = {file.path: file.sha256 for file in whole.files}
    theirs_ = {file.path: file.sha256 for file in resolve(folder).files}
    assert recorded["flux1-dev.safetensors"]
    lent = [n for n in theirs_ if n.endswith(".safetensors") and not n.startswith("transformer/")]
    assert len(lent) == 3 and all(recorded[name] == theirs_[name] for name in lent)


def test_a_base_of_another_variant_gives_parts_only(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    path = original_layout.save(transformer(flow_folders["flux_schnell"]), tmp_path / "x.safetensors")
    schnell = resolve(path, base=str(flow_folders["flux"]), config=str(flow_folders["flux_schnell"]))
    assert schnell.config("transformer")["guidance_embeds"] is False
    with pytest.raises(CheckpointError, match="heads of 16 channels"):
        resolve(path, base=str(flow_folders["flux"]))
    only = tmp_path / "config"
    (only / "transformer").mkdir(parents=True)
    content = (flow_folders["flux_schnell"] / "transformer" / "config.json").read_bytes()
    (only / "transformer" / "config.json").write_bytes(content)
    mixed = resolve(path, base=str(flow_folders["flux"]), config=str(only))
    assert mixed.config("scheduler")["use_dynamic_shifting"] is False, "schnell's, not that of the base"
    assert any("another kind or size" in note for note in mixed.notes)


def test_sd3_medium_without_encoders_and_without_t5(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = flow_folders["sd3"]
    state = {n: t for n, t in everything(folder).items() if "t5xxl" not in n}
    path = original_layout.save(state, tmp_path / "sd3_medium_incl_clips.safetensors")
    clips = resolve(path, config=str(folder))
    assert clips.lacking == {} and clips.index["text_encoder_3"] == [None, None], "T5 is left out"
    names = [c.name for c in components_of(clips)]
    assert names == ["text_encoder", "text_encoder_2", "transformer", "vae_decoder", "vae_encoder"]
    assert "text_encoder_3" in resolve(path, base=str(folder)).component_classes, "or comes from the base"
    state = {n: t for n, t in state.items() if not n.startswith("text_encoders.")}
    path = original_layout.save(state, tmp_path / "sd3_medium.safetensors")
    bare = resolve(path, config=str(folder))
    assert list(bare.lacking) == ["text_encoder", "text_encoder_2"]
    assert [c.name for c in components_of(bare)] == ["transformer", "vae_decoder", "vae_encoder"]


def test_t5_needs_its_tokenizer(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = flow_folders["sd3"]
    path = original_layout.save(everything(folder), tmp_path / "x.safetensors")
    only = tmp_path / "config"
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2"):
        (only / part).mkdir(parents=True)
        for file in (folder / part).iterdir():
            if file.suffix in {".json", ".txt"}:
                (only / part / file.name).write_bytes(file.read_bytes())
    without = resolve(path, config=str(only))
    assert without.lacking == {"tokenizer_3": "the tokenizer of T5"}
    with pytest.raises(CheckpointError, match=r"lacks tokenizer_3 \(the tokenizer of T5\)"):
        check_whole(without)
    assert resolve(path, config=str(only), tokenizer=str(folder / "tokenizer_3")).lacking == {}
    assert resolve(path, config=str(only), tokenizer=str(folder)).lacking == {}
    with pytest.raises(CheckpointError, match="holds no tokenizer for a text encoder"):
        resolve(path, config=str(only), tokenizer=str(folder / "vae"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"no usable tokenizer\.json"):
        resolve(path, config=str(only), tokenizer=str(broken))
    (broken / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["x", 0]] * 40_000}}))
    with pytest.raises(CheckpointError, match="does not fit the text_encoder_3"):
        resolve(path, config=str(only), tokenizer=str(broken))


def test_an_autoencoder_of_its_own(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    """`--vae ae.safetensors` gives the part that a file lacks, and replaces that of the base."""
    folder = flow_folders["flux"]
    path = original_layout.save(transformer(folder), tmp_path / "flux.safetensors")
    autoencoder = original_layout.vae(*original_layout.read(folder, "vae"), "")
    ae = original_layout.save(autoencoder, tmp_path / "ae.safetensors")
    for given in ({"config": str(folder)}, {"base": str(folder)}):
        opened = open_source(path, vae=str(ae), **given)
        assert "vae" not in opened.lacking
        same(opened.stored("vae"), resolve(folder).stored("vae"))
        assert opened.config("vae")["scaling_factor"] == 0.3611
        assert {c.name for c in components_of(opened)} >= {"transformer", "vae_decoder", "vae_encoder"}
    whole = original_layout.save(everything(folder), tmp_path / "whole.safetensors")
    same(open_source(folder, vae=str(whole)).stored("vae"), resolve(folder).stored("vae"))


def test_float8_weights(flow_folders: dict[str, Path], tmp_path: Path) -> None:
    """As ComfyUI's all-in-one files store them: read as they are, cut and swapped as any other."""
    folder = flow_folders["flux"]
    path = original_layout.save(
        {n: t.to(torch.float8_e4m3fn) for n, t in everything(folder).items()}, tmp_path / "x.safetensors"
    )
    single = resolve(path, base=str(folder))
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        reference = single.reference_stored(part)
        for name, tensor in resolve(folder).stored(part).items():
            wanted = tensor.load().to(torch.float8_e4m3fn).float()
            found = single.stored(part)[name]
            assert found.dtype == reference[name].dtype == "F8_E4M3"
            assert torch.equal(found.load().float(), wanted), name
            assert torch.equal(reference[name].load().float(), wanted), name


def test_heads_that_no_shape_shows() -> None:
    with pytest.raises(CheckpointError, match="no multiple of the 64"):
        sd3.assume({"caption_projection_dim": 32})
    assert sd3.assume({"caption_projection_dim": 1536})[0]["num_attention_heads"] == 24
