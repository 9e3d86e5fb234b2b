"""IP-Adapters laid over a checkpoint: whose weights go where, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.architectures import components_of
from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints import open_source
from exporter.checkpoints.overlays.ip_adapter import TAKERS, processor
from exporter.errors import ArtifactError, CheckpointError, UnsupportedError, UsageError
from exporter.parity.sources import reference_for
from exporter.targets.coreml.layout import check_known
from exporter.targets.safetensors.export import estimate
from exporter.targets.safetensors.options import SafetensorsOptions
from tests import ip_adapters
from tests.families import make
from tests.ip_adapters import WEIGHTS
from tests.parity.torch_target import make_artifact


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {kind: ip_adapters.write(tiny / "unet", root / kind, kind) for kind in ("plain", "plus", "full")}


@pytest.fixture
def copy(adapters: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapters["plain"], tmp_path / "adapter"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sdxl", tmp_path_factory.mktemp("ip") / "sdxl")


@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_the_weights_go_where_diffusers_puts_them(tiny: Path, adapters: dict[str, Path], kind: str) -> None:
    from diffusers import DiffusionPipeline

    merged = open_source(tiny, ip_adapters=[str(adapters[kind])])
    theirs = DiffusionPipeline.from_pretrained(tiny)
    theirs.load_ip_adapter(str(adapters[kind]), subfolder="", weight_name=WEIGHTS)
    expected = theirs.unet.state_dict()
    for stored in (merged.stored("unet"), merged.reference_stored("unet")):
        assert set(stored) == set(expected)
        assert all(torch.equal(stored[name].load(), value) for name, value in expected.items())
    parts = {c.name: c for c in components_of(merged)}
    assert list(parts) == ["text_encoder", "image_encoder", "unet", "vae_decoder", "vae_encoder"]
    settings = parts["unet"].config["ip_adapter"]
    assert settings["kind"] == kind and settings["tokens"] == {"plain": 4, "plus": 6, "full": 257}[kind]
    (record,) = merged.overlays
    assert (record.kind, record.source) == ("ip_adapter", str(adapters[kind]))
    assert [file.path for file in record.files] == [WEIGHTS, "config.json", "model.safetensors"]


def test_attentions_of_several_levels_keep_their_order(sdxl: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = ip_adapters.write(sdxl / "unet", tmp_path / "xl")
    merged = open_source(sdxl, ip_adapters=[str(folder)])
    theirs = DiffusionPipeline.from_pretrained(sdxl)
    theirs.load_ip_adapter(str(folder), subfolder="", weight_name=WEIGHTS)
    stored, expected = merged.stored("unet"), theirs.unet.state_dict()
    added = [name for name in expected if "_ip." in name]
    assert len(added) == 16 and set(stored) == set(expected)
    assert all(torch.equal(stored[name].load(), expected[name]) for name in added)


def test_what_the_encoder_is_shown_is_what_diffusers_makes() -> None:
    from transformers import CLIPImageProcessor

    known = CLIPImageProcessor(size=336, crop_size=336).to_dict()
    mine = processor(336)
    assert {name: known[name] for name in mine if name in known} == {n: mine[n] for n in mine if n in known}
    assert CLIPImageProcessor(**mine).to_dict() == known


def test_every_pipeline_named_takes_one() -> None:
    import inspect

    import diffusers

    for name in TAKERS:
        kind = getattr(diffusers, name)
        assert "ip_adapter_image" in inspect.signature(kind.__call__).parameters, name
        assert "image_encoder" in inspect.signature(kind.__init__).parameters, name


def test_where_it_may_lie(tiny: Path, copy: Path, tmp_path: Path) -> None:
    for text in (copy / WEIGHTS, f"{copy}:{WEIGHTS}", copy):
        assert open_source(tiny, ip_adapters=[str(text)]).overlays
    shelf = tmp_path / "shelf"
    (shelf / "models").mkdir(parents=True)
    (shelf / "sdxl_models").mkdir()
    shutil.move(copy / WEIGHTS, shelf / "models" / WEIGHTS)
    shutil.move(copy / "image_encoder", shelf / "models" / "image_encoder")
    ip_adapters.encoder(projected=36).save_pretrained(shelf / "sdxl_models" / "image_encoder")
    shutil.copy(shelf / "models" / WEIGHTS, shelf / "sdxl_models" / "ip-adapter_vit-h.safetensors")
    # The encoder beside this one gives something else; the other one fits.
    merged = open_source(tiny, ip_adapters=[f"{shelf}:sdxl_models/ip-adapter_vit-h.safetensors"])
    assert merged.config("image_encoder")["projection_dim"] == ip_adapters.PROJECTED
    with pytest.raises(CheckpointError, match="holds 2 files that could be an IP-Adapter") as error:
        open_source(tiny, ip_adapters=[str(shelf)])
    assert "sdxl_models/ip-adapter_vit-h.safetensors" in str(error.value.hint)
    with pytest.raises(CheckpointError, match=r"no file gone\.safetensors in"):
        open_source(tiny, ip_adapters=[f"{shelf}:gone.safetensors"])
    with pytest.raises(CheckpointError, match="is not there"):
        open_source(tiny, ip_adapters=[str(tmp_path / "nowhere")])


def test_one_of_another_family(tiny: Path, sdxl: Path, adapters: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"UNet of 4 attentions to the text, that of .* has 8") as error:
        open_source(sdxl, ip_adapters=[str(adapters["plain"])])
    assert "same model family" in str(error.value.hint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_proj.proj.weight": (4 * 48, 28)}, "makes tokens of 48 channels, .* takes text of 32"),
        ({"image_proj.proj.weight": (130, 28)}, "130 channels are not those of 4 tokens"),
        ({"image_proj.proj.weight": (128,)}, r"is damaged: image_proj\.proj\.weight"),
        (
            {"image_proj.proj.weight": (4 * 32, 36)},
            "No image_encoder of .* gives the 36 channels .*: image_encoder gives 28",
        ),
        ({"ip_adapter.3.to_v_ip.weight": (64, 32)}, r"ip_adapter\.3\.to_v_ip\.weight has shape \[64, 32\]"),
        ({"ip_adapter.3.to_v_ip.weight": None}, r"ip_adapter\.3\.to_v_ip\.weight is missing"),
        ({"ip_adapter.9.to_k_ip.weight": (32, 32)}, "UNet of 5 attentions to the text"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (8, 8)}, "is an IP-Adapter FaceID"),
        ({"image_proj.proj.0.weight": (8, 8)}, "is an IP-Adapter FaceID"),
        ({"ip_adapter.0.to_q_lora.down.weight": (8, 8)}, "is an IP-Adapter FaceID"),
        ({"image_proj.proj.weight": None}, "holds no IP-Adapter of Stable Diffusion"),
    ],
)
def test_one_that_does_not_fit(
    tiny: Path, copy: Path, change: Mapping[str, tuple[int, ...] | None], said: str
) -> None:
    state = load_file(copy / WEIGHTS)
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
    save_file(state, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=said) as error:
        open_source(tiny, ip_adapters=[str(copy)])
    assert "\n" not in error.value.message


def test_a_resampler_of_other_depth(tiny: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapters["plus"], tmp_path / "plus"))
    state = {n: v for n, v in load_file(copy / WEIGHTS).items() if ".layers.3." not in n}
    save_file(state, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match="resampler has 3 layers of 64 channels"):
        open_source(tiny, ip_adapters=[str(copy)])


def test_an_encoder_that_is_missing_or_another_model(tiny: Path, copy: Path) -> None:
    config = copy / "image_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "siglip_vision_model"}))
    with pytest.raises(CheckpointError, match=r"image_encoder gives 0\."):
        open_source(tiny, ip_adapters=[str(copy)])
    shutil.rmtree(copy / "image_encoder")
    with pytest.raises(
        CheckpointError, match=r"has no image_encoder \(CLIPVision\w+\) beside the IP-Adapter"
    ) as error:
        open_source(tiny, ip_adapters=[str(copy)])
    assert "Put its folder image_encoder/" in str(error.value.hint)


def test_pickles_are_refused_and_read_when_allowed(tiny: Path, copy: Path) -> None:
    state = load_file(copy / WEIGHTS)
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in state.items():
        part, _, inner = name.partition(".")
        nested[part][inner] = value
    (copy / WEIGHTS).unlink()
    torch.save(nested, copy / "ip-adapter_tiny.bin")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code") as error:
        open_source(tiny, ip_adapters=[str(copy)])
    assert "--allow-pickle" in str(error.value.hint)
    merged = open_source(tiny, ip_adapters=[str(copy)], allow_pickle=True)
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"
    assert torch.equal(merged.stored("unet")[place].load(), state["ip_adapter.1.to_k_ip.weight"])
    encoder = copy / "image_encoder"
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    assert open_source(tiny, ip_adapters=[str(copy)], allow_pickle=True).stored("image_encoder")
    save_file(state, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        open_source(tiny, ip_adapters=[str(copy)])


def test_several_and_other_models(tiny: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes one IP-Adapter in this version; given: 2"):
        open_source(tiny, ip_adapters=[str(adapters["plain"])] * 2)
    copy = Path(shutil.copytree(tiny, tmp_path / "sd3"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(CheckpointError, match="is laid over Stable Diffusion, SDXL"):
        open_source(copy, ip_adapters=[str(adapters["plain"])])


def test_formats_and_techniques_that_cannot_have_one(tiny: Path, adapters: dict[str, Path]) -> None:
    merged = open_source(tiny, ip_adapters=[str(adapters["plain"])])
    parts = {c.name: c for c in components_of(merged)}
    for name in ("image_encoder", "unet"):
        with pytest.raises(UnsupportedError, match="Apple's runners"):
            check_known(parts[name])
    with pytest.raises(UnsupportedError, match="load_ip_adapter"):
        estimate(parts["unet"], SafetensorsOptions())
    with pytest.raises(UsageError, match="fused-qkv changes the UNet's attention, and so does an IP-Adapter"):
        components_of(merged.exported_with([("fused-qkv", {})]))


def test_the_reference_is_found_again(tiny: Path, copy: Path, tmp_path: Path) -> None:
    merged = open_source(tiny, ip_adapters=[str(copy)])
    root = make_artifact(merged, tmp_path / "artifact", components=("image_encoder",))
    document = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps(document))
    again = reference_for(Artifact.open(root), None)
    assert "ip_adapter" in again.config("unet")
    state = load_file(copy / WEIGHTS)
    save_file(
        state | {"ip_adapter.1.to_k_ip.weight": state["ip_adapter.1.to_k_ip.weight"] + 1}, copy / WEIGHTS
    )
    with pytest.raises(ArtifactError, match=r"The ip adapter .* is not what the artifact was made with"):
        reference_for(Artifact.open(root), None)
