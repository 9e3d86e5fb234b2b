"""The generic route: pipelines that no module is written for, learnt by observing diffusers' own."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from exporter.architectures import components_of, generic
from exporter.architectures.base import Component, Size, knobs_of
from exporter.architectures.generic.symbols import Knobs, Namer, Unexplained
from exporter.architectures.generic.trees import output_class, places_of, put_together, take_apart
from exporter.checkpoints import resolve
from exporter.conversion import Conversion, convert, make_plan
from exporter.errors import ArtifactError, CheckpointError, UnsupportedError, UsageError
from exporter.pipeline import load, paint
from tests.unwritten import FROM_PICTURES, UNWRITTEN, make


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("unwritten")
    return {name: make(name, root / name) for name in UNWRITTEN}


@pytest.fixture(scope="module")
def unconditional(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    plan = make_plan(str(folders["ddpm"]), "onnx", tmp_path_factory.mktemp("ddpm") / "artifact")
    return convert(plan, verify_settings={"steps": 2, "samples": 1})


def named(folder: Path) -> dict[str, Component]:
    return {c.name: c for c in components_of(resolve(folder))}


def dims(component: Component) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.dims for spec in (*component.inputs, *component.outputs)}


def test_what_moves_with_prompts_and_pictures_is_a_symbol(folders: dict[str, Path]) -> None:
    found = named(folders["aura_flow"])
    assert list(found) == ["text_encoder", "transformer", "vae_decoder"]
    picture = ("batch", 4, "latent_height", "latent_width")
    tokens = ("batch", "sequence")
    assert dims(found["text_encoder"]) == {
        "input_ids": tokens, "attention_mask": tokens, "last_hidden_state": (*tokens, 32),
    }  # fmt: skip
    assert dims(found["transformer"]) == {
        "hidden_states": picture, "encoder_hidden_states": (*tokens, 32), "timestep": ("batch",),
        "sample": picture,
    }  # fmt: skip
    assert dims(found["vae_decoder"]) == {"z": picture, "sample": ("batch", 3, "height", "width")}
    assert found["transformer"].rows == 2 and found["text_encoder"].rows == 1
    assert found["vae_decoder"].used == ("decoder.", "post_quant_conv.")


def test_classes_and_pixels_without_prompts(folders: dict[str, Path]) -> None:
    found = named(folders["dit"])
    assert list(found) == ["transformer", "vae_decoder"]
    assert dims(found["transformer"])["class_labels"] == ("batch",)
    assert dims(found["transformer"])["hidden_states"] == ("batch", 4, 8, 8)  # the pipeline has one size
    unet = named(folders["ddpm"])["unet"]
    assert dims(unet) == {
        "sample": ("batch", 3, 16, 16), "timestep": (), "out_sample": ("batch", 3, 16, 16),
    }  # fmt: skip


@pytest.mark.parametrize("name", UNWRITTEN)
def test_a_component_computes_what_the_library_does(folders: dict[str, Path], name: str) -> None:
    pipeline = getattr(diffusers, resolve(folders[name]).pipeline_class).from_pretrained(folders[name])
    for component in named(folders[name]).values():
        inputs = component.example_inputs(component.native)
        with torch.no_grad():
            mine, *_ = component.reference_module()(**inputs)
            whole = getattr(pipeline, component.folder)
            method = whole.decode if component.name.endswith("_decoder") else whole
            method = whole.encode if component.name.endswith("_encoder") and whole is pipeline.vae else method
            theirs = next(iter(vars(method(**inputs)).values()))
        assert torch.equal(mine, getattr(theirs, "parameters", theirs))


def test_it_is_a_verified_artifact_that_says_so(unconditional: Conversion) -> None:
    assert unconditional.verdict == "PASS", unconditional.summary
    manifest = unconditional.artifact.manifest
    assert any(
        note.startswith("generic: no module is written for a DDPMPipeline") for note in manifest.source.notes
    )
    assert "generic.json" in {file.path for file in manifest.shared_files}
    report = json.loads((unconditional.artifact.root / "verification" / "report.json").read_text())
    kinds = {case["kind"] for run in report["components"][0]["runs"] for case in run["cases"]}
    assert {"captured", "batch"} <= kinds


def test_it_paints_in_the_librarys_pipeline(unconditional: Conversion, folders: dict[str, Path]) -> None:
    mine, theirs = (
        np.asarray(paint(load(place), ["anything"], steps=3)[0]).astype(int)
        for place in (unconditional.artifact.root, folders["ddpm"])
    )
    assert mine.shape == (16, 16, 3) and theirs.std() > 10
    assert np.abs(mine - theirs).max() <= 2
    with pytest.raises(UsageError, match="one size only"):
        paint(load(unconditional.artifact.root), ["a"], steps=1, height=32, width=32)
    with pytest.raises(UsageError, match="DDPMPipeline takes no negative prompt"):
        paint(load(unconditional.artifact.root), ["a"], steps=1, negative_prompt="a")
    with pytest.raises(UsageError, match="DDPMPipeline takes no picture") as error:
        paint(load(unconditional.artifact.root), ["a"], steps=1, image=Image.new("RGB", (16, 16)))
    assert error.value.hint == "Leave out --image."
    with pytest.raises(UsageError, match="DDPMPipeline has no strength"):
        paint(load(unconditional.artifact.root), ["a"], steps=1, strength=0.5)
    with pytest.raises(UsageError, match="has no --control"):
        paint(load(unconditional.artifact.root), ["a"], steps=1, control=[Image.new("RGB", (16, 16))])


def start_of(name: str) -> Image.Image | None:
    """The picture that a pipeline is given: no square, and of no size that fits."""
    return Image.radial_gradient("L").resize((130, 70)).convert("RGB") if name in FROM_PICTURES else None


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript", "pt2", "safetensors", "stablehlo"])
@pytest.mark.parametrize("name", UNWRITTEN)
def test_every_format(name: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    plan = make_plan(str(folders[name]), target, tmp_path / "artifact")
    done = convert(plan, verify_settings={"steps": 3, "samples": 2})
    assert done.verdict == "PASS", done.summary
    mine, theirs = (
        np.asarray(paint(load(place, precision_hint=hint), ["3"], steps=3, image=start_of(name))[0]).astype(
            int
        )
        for place, hint in ((done.artifact.root, "f32"), (folders[name], None))
    )
    assert np.abs(mine - theirs).max() <= 2


def copy_of(folder: Path, place: Path, **index: Any) -> Path:
    copied = Path(shutil.copytree(folder, place / "copy"))
    told = json.loads((copied / "model_index.json").read_text()) | index
    (copied / "model_index.json").write_text(json.dumps(told))
    return copied


def test_a_pipeline_that_diffusers_does_not_have(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = copy_of(folders["ddpm"], tmp_path, _class_name="DreamPipeline")
    with pytest.raises(CheckpointError, match=r"DreamPipeline, which diffusers .* generic route") as error:
        components_of(resolve(copied))
    assert "_class_name" in (error.value.hint or "")


def test_a_pipeline_that_wants_more_than_prompts(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = copy_of(
        folders["ddpm"], tmp_path, _class_name="KandinskyV22Pipeline", movq=["diffusers", "VQModel"]
    )
    diffusers.VQModel(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=8, vq_embed_dim=4
    ).save_pretrained(copied / "movq")
    with pytest.raises(UnsupportedError, match="'image_embeds'") as error:
        components_of(resolve(copied))
    assert "new-architecture" in (error.value.hint or "")


class Marked(diffusers.DDPMPipeline):
    """Gives its UNet something more in some of its calls."""

    further: Callable[[int], tuple[Any, ...]]

    @functools.wraps(diffusers.DDPMPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward, numbers = self.unet.forward, count()
        self.unet.forward = lambda *given: forward(*given, *type(self).further(next(numbers)))
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.unet.forward = forward


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            lambda call: (torch.Generator(),),
            "unet .UNet2DModel.forward. is given class_labels is a Generator",
        ),
        (lambda call: (None,) * call, "more than one way .'class_labels' differs"),
    ],
)
def test_what_is_no_tensor_is_named(
    further: Any, message: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "MarkedPipeline", Marked, raising=False)
    monkeypatch.setattr(Marked, "further", staticmethod(further), raising=False)
    with pytest.raises(UnsupportedError, match=message):
        components_of(resolve(copy_of(folders["ddpm"], tmp_path, _class_name="MarkedPipeline")))


def test_missing_and_misfitting_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = copy_of(folders["ddpm"], tmp_path)
    config = copied / "unet" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"block_out_channels": [16, 48]}))
    with pytest.raises(CheckpointError, match=r"has shape .* on disk, the config asks for"):
        named(copied)["unet"].reference_module()
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'unet' of .* has no safetensors weights"):
        make_plan(str(copied), "onnx", tmp_path / "out")


def test_a_missing_part_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = copy_of(folders["aura_flow"], tmp_path, text_encoder=[None, None])
    with pytest.raises(UnsupportedError, match=r"AuraFlowPipeline does not run on .*, so there is nothing"):
        components_of(resolve(copied))


def test_a_recording_is_kept_and_read_again(folders: dict[str, Path], user_cache: Path) -> None:
    first = generic.recording_of(resolve(folders["ddpm"]))
    assert list((user_cache / "recordings").glob("*.json"))
    generic._in_memory.clear()
    assert generic.recording_of(resolve(folders["ddpm"])) == first
    for damaged in (user_cache / "recordings").glob("*.json"):
        damaged.write_text("{")
    generic._in_memory.clear()
    assert generic.recording_of(resolve(folders["ddpm"])) == first


def test_a_damaged_recording_in_an_artifact(folders: dict[str, Path], tmp_path: Path) -> None:
    copied = copy_of(folders["ddpm"], tmp_path)
    (copied / "generic.json").write_text('{"version": 99}')
    with pytest.raises(ArtifactError, match=r"generic.json is damaged"):
        components_of(resolve(copied))


RUNS = {
    "base": Knobs(1, 64, 64), "batch": Knobs(3, 64, 64), "height": Knobs(1, 128, 64),
    "width": Knobs(1, 64, 128), "sequence": Knobs(1, 64, 64),
}  # fmt: skip


def symbol(*sizes: int) -> int | str:
    """Of a dim with these sizes in the five runs, beside a batch of two rows and 10 or 30 tokens."""
    shapes = {
        run: [(2 * knobs.pictures, 30 if run == "sequence" else 10, size)]
        for (run, knobs), size in zip(RUNS.items(), sizes, strict=True)
    }
    return Namer(RUNS, shapes, 8).name(0, 2)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((7, 7, 7, 7, 7), 7),
        ((2, 6, 2, 2, 2), "batch"),
        ((1, 3, 1, 1, 1), "batch_over_2"),
        ((8, 8, 16, 8, 8), "latent_height"),
        ((64, 64, 64, 128, 64), "width"),
        ((4, 4, 4, 8, 4), "width_over_16"),
        ((16, 16, 32, 32, 16), "area_over_256"),
        ((18, 18, 34, 34, 18), "area_over_256_plus_2"),
        ((11, 11, 11, 11, 31), "sequence_plus_1"),
        ((9, 9, 9, 9, 29), "sequence_minus_1"),
        ((20, 20, 20, 20, 60), "sequence_times_2"),
    ],
)  # fmt: skip
def test_rules(sizes: tuple[int, ...], wanted: int | str) -> None:
    found = symbol(*sizes)
    assert found == wanted
    for run, knobs in RUNS.items():
        tokens = 30 if run == "sequence" else 10
        size = Size(2 * knobs.pictures, knobs.height, knobs.width, tokens, 8)
        assert size.resolve(found) == sizes[list(RUNS).index(run)]


def test_what_follows_no_rule() -> None:
    with pytest.raises(Unexplained, match="batch and height"):
        symbol(1, 3, 2, 1, 1)
    with pytest.raises(Unexplained, match="no simple rule"):
        symbol(8, 8, 4, 8, 8)
    with pytest.raises(KeyError):
        Size().resolve("depth")
    assert knobs_of("area_over_256") == ("height", "width") and knobs_of(3) == ()
    assert Fraction(1, 2) == Fraction(Size(height=32, width=16).resolve("area_over_256"), 4)


def test_trees_give_back_what_they_took() -> None:
    from diffusers.models.unets.unet_2d import UNet2DOutput

    made = {
        "a": torch.ones(2),
        "more": {"b": torch.zeros(1), "c": [None, True, "x"]},
        "out": UNet2DOutput(torch.ones(1)),
    }
    tensors: dict[str, torch.Tensor] = {}
    tree = take_apart(made, "", tensors, {})
    assert list(tensors) == ["a", "more.b", "out.sample"]
    back = put_together(json.loads(json.dumps(tree)), tensors)
    assert (
        back["a"] is made["a"]
        and back["more"]["c"] == [None, True, "x"]
        and back["out"].sample is made["out"].sample
    )
    assert places_of(tree) == {name: name for name in tensors}


@pytest.mark.parametrize(
    "name", ["os:system", "diffusers.models.unets.unet_2d:UNet2DModel", "diffusers:nothing"]
)
def test_only_outputs_are_ever_made_by_name(name: str) -> None:
    with pytest.raises(ArtifactError, match="is no output of diffusers"):
        output_class(name)
