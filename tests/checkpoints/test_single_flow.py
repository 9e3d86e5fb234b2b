"""SD3 and FLUX.1 in one file: every tensor against the diffusers layout, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import Checkpoint, StoredTensor, open_source, resolve
from exporter.checkpoints.derived import held
from exporter.checkpoints.lacking import check_whole
from exporter.checkpoints.original import flow, flux, sd3, tables, theirs
from exporter.errors import CheckpointError, UsageError
from tests import original_layout
from tests.checkpoints.conftest import Judge
from tests.families import make, text
from tests.tiny import make_tokenizer

FAMILIES = ("sd3", "sd35", "flux", "flux_schnell", "flux_fill")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("single-flow")
    made = {family: make(family, root / family) for family in FAMILIES}
    for family in ("sd3", "sd35"):
        give_identity(made[family], root / f"{family}-building")
    return made


def give_identity(folder: Path, building: Path) -> None:
    """CLIP L of SD3 has no projection in its authors' file; diffusers' folder then has the identity."""
    torch.manual_seed(3)
    encoder = text(make_tokenizer(building), hidden=24, projected=True)
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(24))
    encoder.save_pretrained(folder / "text_encoder")


def transformer(folder: Path, prefix: str = original_layout.PREFIX) -> State:
    layout = original_layout.flux if "flux" in folder.name else original_layout.sd3
    return layout(*original_layout.read(folder, "transformer"), prefix)


def encoders(folder: Path) -> State:
    """All text encoders, as an all-in-one file has them."""
    names = ["clip_l", "t5xxl"] if "flux" in folder.name else ["clip_l", "clip_g", "t5xxl"]
    state: State = {}
    for number, name in enumerate(names):
        part = folder / ("text_encoder" if number == 0 else f"text_encoder_{number + 1}")
        if part.is_dir():
            state |= original_layout.text(original_layout.read(folder, part.name)[0], name)
    state.pop("text_encoders.clip_l.transformer.text_projection.weight", None)
    return state


def everything(folder: Path) -> State:
    prefix = "vae." if "flux" in folder.name else "first_stage_model."
    autoencoder = original_layout.vae(*original_layout.read(folder, "vae"), prefix)
    return transformer(folder) | autoencoder | encoders(folder)


def same(mine: dict[str, StoredTensor], wanted: dict[str, StoredTensor]) -> None:
    assert set(mine) == set(wanted)
    for name, tensor in wanted.items():
        assert (mine[name].shape, mine[name].dtype) == (tensor.shape, tensor.dtype), name
        assert bytes(mine[name].raw()) == bytes(tensor.raw()), name
        assert torch.equal(mine[name].load(), tensor.load()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_all_in_one_file_is_the_same_model(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    folder = folders[family]
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
    folders: dict[str, Path], tmp_path: Path, judge_export: Judge, family: str
) -> None:
    """The weights an export writes, against the module that diffusers' own conversion fills."""
    path = original_layout.save(everything(folders[family]), tmp_path / "x.safetensors")
    single = resolve(path, base=str(folders[family]))
    report = judge_export(single, "transformer")
    assert report.verdict == "PASS", report.summary


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
    shown = found.infer(original)
    whole = {**shown, **found.assume(shown)[0]}
    assert {key: whole[key] for key in config} == config
    mapped = tables.weights(original, found.table(shown), "transformer")
    assert {n: t.shape for n, t in mapped.items()} == {n: tuple(t.shape) for n, t in state.items()}
    by_diffusers = theirs.converter(kind)({n: t.load() for n, t in original.items()})
    assert {n: tuple(t.shape) for n, t in by_diffusers.items()} == {n: t.shape for n, t in mapped.items()}


@pytest.mark.parametrize("family", ["flux", "flux_schnell"])
def test_values_at_the_width_that_diffusers_knows(folders: dict[str, Path], family: str) -> None:
    """Its conversion of FLUX cuts at 3072 channels: matrices as tall as FLUX.1's and one column wide."""
    _, config = original_layout.read(folders[family], "transformer")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in original_layout.read(folders[family], "transformer")[0].items():
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
def test_diffusers_opens_the_test_file(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """The inverse mapping of these tests is the real layout: diffusers reads it from the file by itself."""
    from diffusers import SD3Transformer2DModel

    folder = folders[family]
    path = original_layout.save(everything(folder), tmp_path / "model.safetensors")
    opened = SD3Transformer2DModel.from_single_file(
        str(path), config=str(folder), subfolder="transformer", local_files_only=True
    )
    wanted, _ = original_layout.read(folder, "transformer")
    assert set(opened.state_dict()) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.parametrize("prefix", [original_layout.PREFIX, ""])
def test_a_transformer_alone(folders: dict[str, Path], tmp_path: Path, prefix: str) -> None:
    folder = folders["flux"]
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


def test_a_base_of_another_variant_gives_parts_only(folders: dict[str, Path], tmp_path: Path) -> None:
    path = original_layout.save(transformer(folders["flux_schnell"]), tmp_path / "x.safetensors")
    schnell = resolve(path, base=str(folders["flux"]), config=str(folders["flux_schnell"]))
    assert schnell.config("transformer")["guidance_embeds"] is False
    with pytest.raises(CheckpointError, match="heads of 16 channels"):
        resolve(path, base=str(folders["flux"]))
    only = tmp_path / "config"
    (only / "transformer").mkdir(parents=True)
    content = (folders["flux_schnell"] / "transformer" / "config.json").read_bytes()
    (only / "transformer" / "config.json").write_bytes(content)
    mixed = resolve(path, base=str(folders["flux"]), config=str(only))
    assert mixed.config("scheduler")["use_dynamic_shifting"] is False, "schnell's, not that of the base"
    assert any("another kind or size" in note for note in mixed.notes)


def test_sd3_medium_without_encoders_and_without_t5(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["sd3"]
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


def test_t5_needs_its_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["sd3"]
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


def test_an_autoencoder_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """`--vae ae.safetensors` gives the part that a file lacks, and replaces that of the base."""
    folder = folders["flux"]
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


def test_float8_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """As ComfyUI's all-in-one files store them: read as they are, cut and swapped as any other."""
    folder = folders["flux"]
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


def without(*starts: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if not n.startswith(starts)}


def more(**tensors: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {n.replace("__", "."): t for n, t in tensors.items()}


ONE = torch.zeros(1)
P = original_layout.PREFIX


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("flux", without(f"{P}img_in.weight"), "incomplete: it lacks 'img_in.weight'"),
        ("flux", without(f"{P}double_blocks.0.txt_mlp.2"), r"lacks 'double_blocks.0.txt_mlp.2.weight', "),
        ("flux", without(f"{P}single_blocks.0."), "lacks 'single_blocks.0'"),
        ("flux", without(f"{P}single_blocks."), "lacks 'single_blocks.0'"),
        ("flux", without(f"{P}guidance_in.in_layer"), "lacks 'guidance_in.in_layer.weight'"),
        ("flux", without("text_encoders.t5xxl.transformer.shared"), "T5 encoder is incomplete"),
        (
            "flux",
            without("text_encoders.clip_l.transformer.text_model.embeddings"),
            "text encoder is incompl",
        ),
        ("flux", without("vae.encoder.conv_in"), "autoencoder is incomplete"),
        ("flux", more(model__diffusion_model__surprise=ONE), "'surprise', which no model of this kind has"),
        ("flux", more(model__diffusion_model__scaled_fp8=ONE), "float8 weights with scales beside them"),
        ("flux", more(**{f"{P}img_in.weight.absmax": ONE}), "weights in 4 or 8 bits"),
        ("flux", more(**{f"{P}img_in.weight": torch.zeros(32, 128)}), "takes 128 channels.*Depth and Canny"),
        (
            "flux",
            more(**{f"{P}img_in.weight": torch.zeros(32, 96)}),
            "takes 96 channels a token and gives 64",
        ),
        ("flux", more(**{f"{P}img_in.weight": torch.zeros(33, 64)}), "do not divide 33"),
        (
            "flux",
            more(**{f"{P}single_blocks.0.linear1.weight": torch.zeros(9, 32)}),
            r"odd 'single_blocks.0.l",
        ),
        ("flux", more(**{f"{P}distilled_guidance_layer.x": ONE}), "a Chroma model"),
        ("flux", more(**{f"{P}double_blocks.0.img_attn_qkv.weight": ONE}), "a HunyuanVideo model"),
        ("flux", more(**{f"{P}double_stream_modulation_img.lin.weight": ONE}), "a FLUX.2 model"),
        ("sd3", more(controlnet_blocks__0__weight=ONE), "a ControlNet"),
        (
            "sd3",
            without(f"{P}joint_blocks.1.context_block.attn.qkv"),
            "lacks 'joint_blocks.1.context_block.att",
        ),
        ("sd3", without(f"{P}pos_embed"), "lacks 'pos_embed'"),
        ("sd3", more(**{f"{P}pos_embed": torch.zeros(1, 7, 32)}), "do not go together"),
        (
            "sd35",
            without(f"{P}joint_blocks.1.x_block.attn2.ln_q"),
            r"lacks 'joint_blocks.1.x_block.attn2.ln_q",
        ),
        ("sd35", without(f"{P}joint_blocks.0.x_block.attn.ln_q"), "transformer"),
    ],
)
def test_bad_files(
    folders: dict[str, Path], tmp_path: Path, family: str, change: Callable[[State], State], message: str
) -> None:
    path = original_layout.save(change(everything(folders[family])), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve(path, base=str(folders[family])).validate()
    assert caught.value.exit_code == 3


def test_bad_requests(folders: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    folder = folders["flux"]
    path = original_layout.save(transformer(folder), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="heads of 16 channels, and it does not say") as caught:
        resolve(path)
    assert "--base SOURCE" in str(caught.value.hint)
    with pytest.raises(
        CheckpointError, match=r"CLIPTextModelWithProjection as its text_encoder; FLUX\.1 dev needs"
    ):
        resolve(path, base=str(folders["sd3"]), config=str(folder))
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(path, base="nowhere")
    with pytest.raises(UsageError, match="--base is for a checkpoint in one file"):
        resolve(folder, base=str(folder))
    old = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "sd1.safetensors")
    with pytest.raises(UsageError, match="--base is for files of SD3 and FLUX"):
        resolve(old, base=str(folder))
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a usable safetensors file"):
        resolve(tmp_path / "cut.safetensors", base=str(folder))
    torch.save(transformer(folder), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        resolve(tmp_path / "x.ckpt", base=str(folder))
    allowed = resolve(tmp_path / "x.ckpt", base=str(folder), allow_pickle=True)
    assert allowed.opened_with["pickle"]
    same_values(allowed, resolve(folder))
    state = {"transformer_blocks.0.attn.to_q.weight": ONE}
    with pytest.raises(CheckpointError, match="a transformer alone, under diffusers' names"):
        resolve(original_layout.save(state, tmp_path / "y.safetensors"))


def same_values(one: Checkpoint, other: Checkpoint) -> None:
    for name, tensor in other.stored("transformer").items():
        assert torch.equal(one.stored("transformer")[name].load(), tensor.load()), name


def test_heads_that_no_shape_shows() -> None:
    with pytest.raises(CheckpointError, match="no multiple of the 64"):
        sd3.assume({"caption_projection_dim": 32})
    assert sd3.assume({"caption_projection_dim": 1536})[0]["num_attention_heads"] == 24
