"""Stable Diffusion 3 as Swift's runner wants it: 77 tokens of CLIP and 77 of T5, in Apple's names."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporter.architectures import Component, components_of
from exporter.artifact import Artifact, TensorRecord
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import UnsupportedError
from exporter.painting import baked_tokens
from exporter.parity import Report, verify
from exporter.pipeline import load as load_pipeline
from exporter.pipeline import paint
from exporter.targets.coreml import CoremlOptions, load, sd3
from exporter.targets.coreml.clients import apple
from exporter.targets.coreml.export import export_size
from exporter.targets.coreml.layout import as_apple, layout_of
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.families import make
from tests.mutation.formats.coreml import blobs
from tests.mutation.workshop import rehash

PROMPT = "a red star"
PREFIX = "Stable_Diffusion_version_tiny-sd3_"
EXPECTED: dict[str, tuple[list[tuple[str, str, tuple[int, ...]]], list[tuple[str, str, tuple[int, ...]]]]] = {
    "text_encoder": (
        [("input_ids", "float32", (1, 77))],
        [("hidden_embeds", "float32", (1, 77, 16)), ("pooled_outputs", "float32", (1, 24))],
    ),
    "text_encoder_2": (
        [("input_ids", "float32", (1, 77))],
        [("hidden_embeds", "float32", (1, 77, 32)), ("pooled_outputs", "float32", (1, 24))],
    ),
    "text_encoder_3": (
        [("input_ids", "float32", (1, 77))],
        [("encoder_hidden_states", "float32", (1, 64, 1, 77))],
    ),
    "transformer": (
        [
            ("latent_image_embeddings", "float32", (2, 16, 8, 8)),
            ("pooled_text_embeddings", "float32", (2, 48, 1, 1)),
            ("timestep", "float32", (2,)),
            ("token_level_text_embeddings", "float32", (2, 64, 1, 154)),
        ],
        [("denoiser_output", "float32", (2, 16, 8, 8))],
    ),
    "vae_decoder": ([("z", "float32", (1, 16, 8, 8))], [("image", "float32", (1, 3, 64, 64))]),
    "vae_encoder": ([("x", "float32", (1, 3, 64, 64))], [("latent", "float32", (1, 32, 8, 8))]),
}
SETTINGS: dict[str, Any] = {"steps": 2, "samples": 2, "prompts": [PROMPT]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sd3-sources")
    return {family: make(family, root / f"tiny-{family}") for family in ("sd3", "sd35")}


@pytest.fixture(scope="module")
def artifacts(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """With T5, and without (3.5)."""
    root = tmp_path_factory.mktemp("coreml-sd3")
    return {
        family: convert(make_plan(str(source), "coreml", root / family, verify=False)).artifact
        for family, source in sources.items()
    }


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sd3-truths")


@pytest.fixture(scope="module")
def reports(artifacts: dict[str, Artifact], truths: Path) -> dict[str, Report]:
    return {family: verify(each.root, cache=truths, **SETTINGS) for family, each in artifacts.items()}


def part(source: Path, name: str) -> Component:
    return next(c for c in components_of(resolve(str(source))) if c.name == name)


def test_names_types_and_shapes_are_apples(artifacts: dict[str, Artifact]) -> None:
    artifact = artifacts["sd3"]
    for record in artifact.manifest.components:
        path = artifact.root / record.entry
        model = load(path)
        inputs, outputs = EXPECTED[record.name]
        assert sorted((f.name, f.dtype, f.shape) for f in model.inputs) == sorted(inputs)
        assert [(f.name, f.dtype, f.shape) for f in model.outputs] == outputs
        assert path.name == f"{PREFIX}{'mmdit' if record.name == 'transformer' else record.name}.mlpackage"
        assert lint(open_package(path), record.name) == []
        half = record.name in ("text_encoder", "text_encoder_2")
        assert record.dtype == ("float16" if half else "float32")
    assert {record.name for record in artifact.manifest.components} == set(EXPECTED)


def test_swift_finds_each_compiled_model_and_t5s_tokenizer(
    artifacts: dict[str, Artifact], sources: dict[str, Path]
) -> None:
    folder = artifacts["sd3"].root / "Resources"
    script = (folder / "compile.sh").read_text()
    names = {"text_encoder": "TextEncoder", "text_encoder_2": "TextEncoder2", "vae_decoder": "VAEDecoder"}
    names |= {"text_encoder_3": "TextEncoderT5", "mmdit": "MultiModalDiffusionTransformer"}
    for package, name in names.items():
        assert f"mv Resources/{PREFIX}{package}.mlmodelc Resources/{name}.mlmodelc" in script
    assert "vae_encoder" not in script, "Swift takes 4 of its 16 channels for the mean"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (sources["sd3"] / "tokenizer_3" / name).read_bytes()
    assert not (artifacts["sd35"].root / "Resources/tokenizer.json").exists()
    for name in ("vocab.json", "merges.txt"):
        assert (folder / name).is_file()


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_it_computes_and_paints_what_pytorch_does(reports: dict[str, Report], family: str) -> None:
    report = reports[family]
    assert report.verdict == "PASS", report.summary
    assert report.pipeline is not None and report.pipeline.verdict == "PASS"
    assert {c.name for c in report.components} == set(EXPECTED) - (
        {"text_encoder_3"} if family == "sd35" else set()
    )


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_it_is_judged_with_the_tokens_that_swift_gives(
    reports: dict[str, Report], artifacts: dict[str, Artifact], sources: dict[str, Path], family: str
) -> None:
    """Those that diffusers makes of a prompt with `max_sequence_length=77`: zeros where there is no T5."""
    assert reports[family].verdict == "PASS"
    given = load_file(artifacts[family].root / "verification/inputs.safetensors")
    texts = [
        t for name, t in given.items() if "transformer" in name and name.endswith("encoder_hidden_states")
    ]
    assert texts and {tuple(text.shape) for text in texts} == {(2, 154, 64)}
    stock = load_pipeline(sources[family])
    wanted, empty, _, _ = stock.encode_prompt(PROMPT, None, None, max_sequence_length=77)
    joined = torch.cat([empty, wanted])
    for text in texts:
        assert torch.allclose(text, joined, atol=1e-5)
    assert (joined[:, 77:].abs().max() > 0) == (family == "sd3")


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_the_pipeline_of_the_user_paints_with_the_same_tokens(
    artifacts: dict[str, Artifact], sources: dict[str, Path], family: str
) -> None:
    pipeline, stock = (
        load_pipeline(artifacts[family].root, precision_hint="f32"),
        load_pipeline(sources[family]),
    )
    assert (baked_tokens(pipeline), baked_tokens(stock)) == (77, None)

    def picture(of: Any, **more: Any) -> np.ndarray:
        return np.asarray(paint(of, [PROMPT], seed=3, steps=3, guidance=5.0, **more)[0], np.float64)

    mine, truth, longer = picture(pipeline), picture(stock, tokens=77), picture(stock)
    assert np.abs(mine - truth).max() <= 2
    assert np.abs(truth - longer).max() > 2, "256 tokens of T5 paint another picture"


def test_swift_by_hand(artifacts: dict[str, Artifact], sources: dict[str, Path]) -> None:
    """What Swift's `encodePrompt` and `predictNoise` do with the packages, step by step, beside diffusers."""
    artifact, stock = artifacts["sd3"], load_pipeline(sources["sd3"])
    names = {record.name: artifact.root / record.entry for record in artifact.manifest.components}
    models = {n: load(path, mode="unrounded") for n, path in names.items()}

    def ids(tokenizer: Any, prompt: str) -> np.ndarray:
        found = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        return np.asarray([found], np.float32)

    def encoded(prompt: str) -> tuple[np.ndarray, np.ndarray]:
        first, second, third = (
            models[name].predict({"input_ids": ids(tokenizer, prompt)})
            for name, tokenizer in (
                ("text_encoder", stock.tokenizer),
                ("text_encoder_2", stock.tokenizer_2),
                ("text_encoder_3", stock.tokenizer_3),
            )
        )
        clip = np.concatenate([first["hidden_embeds"], second["hidden_embeds"]], axis=2)
        padding = np.zeros((1, 77, 64 - clip.shape[2]), np.float32)
        clip = np.concatenate([clip, padding], axis=2).transpose(0, 2, 1)[:, :, None, :]
        text = np.concatenate([clip, third["encoder_hidden_states"][..., :77]], axis=3)
        return text, np.concatenate([first["pooled_outputs"], second["pooled_outputs"]], axis=1)

    texts, pooled = zip(encoded(PROMPT), encoded(""), strict=True)
    latents = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)
    noise = models["transformer"].predict(
        {
            "latent_image_embeddings": np.concatenate([latents, latents]),
            "timestep": np.asarray([901.5, 901.5], np.float32),
            "token_level_text_embeddings": np.concatenate(texts),
            "pooled_text_embeddings": np.concatenate(pooled).reshape(2, 48, 1, 1),
        }
    )["denoiser_output"]
    with torch.no_grad():
        text, negative, one, other = stock.encode_prompt(PROMPT, None, None, max_sequence_length=77)
        (truth,) = stock.transformer(
            torch.from_numpy(latents).repeat(2, 1, 1, 1),
            torch.cat([text, negative]),
            torch.cat([one, other]),
            torch.full((2,), 901.5),
            return_dict=False,
        )
    error = np.linalg.norm(noise - truth.numpy()) / np.linalg.norm(truth.numpy())
    assert error < 1e-3, "the text encoders hold float16 weights"
    exchanged = np.linalg.norm(noise[::-1] - truth.numpy()) / np.linalg.norm(truth.numpy())
    assert exchanged > 10 * error, "the rows are the prompt's and the negative one's"


def scaled(artifact: Artifact, name: str, tmp_path: Path) -> Path:
    """The artifact with one matrix of a component 1 % too large."""
    root = Path(shutil.copytree(artifact.root, tmp_path / "scaled"))
    blob = max(
        (b for b in blobs(root / artifact.manifest.component(name).entry) if len(b.shape) == 2),
        key=lambda b: math.prod(b.shape),
    )
    blob.write(blob.read() * np.float32(1.01))
    rehash(root)
    return root


@pytest.mark.parametrize("name", ["transformer", "text_encoder_3"])
def test_a_scale_in_the_weights_is_found(
    artifacts: dict[str, Artifact], truths: Path, tmp_path: Path, name: str
) -> None:
    """A hundredth in one matrix of the transformer, or of T5."""
    root = scaled(artifacts["sd3"], name, tmp_path)
    report = verify(root, cache=truths, **SETTINGS)
    assert report.verdict == "FAIL"
    assert [c.name for c in report.components if c.verdict == "FAIL"] == [name]


def test_the_module_of_a_fault_is_named(artifacts: dict[str, Artifact], truths: Path, tmp_path: Path) -> None:
    from tests.mutation.formats.coreml import edit, operation

    root = Path(shutil.copytree(artifacts["sd35"].root, tmp_path / "swapped"))

    def swap(spec: Any) -> None:
        sine, cosine = operation(spec, "sin"), operation(spec, "cos")
        sine.type, cosine.type = "cos", "sin"

    edit(root / artifacts["sd35"].manifest.component("transformer").entry, swap)
    rehash(root)
    report = verify(root, cache=truths, **SETTINGS)
    assert report.verdict == "FAIL"
    assert "time_text_embed" in report.summary


def of_input(name: str, *shape: int) -> Callable[[Any], None]:
    def change(description: Any) -> None:
        feature = next(f for f in (*description.input, *description.output) if f.name == name)
        feature.type.multiArrayType.shape[:] = shape

    return change


def renamed(old: str, new: str) -> Callable[[Any], None]:
    def change(description: Any) -> None:
        next(f for f in (*description.input, *description.output) if f.name == old).name = new

    return change


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("transformer", of_input("token_level_text_embeddings", 2, 64, 1, 333), r"\[2, width, 1, 154\]"),
        ("transformer", of_input("token_level_text_embeddings", 2, 154, 64), r"\[2, width, 1, 154\]"),
        ("transformer", of_input("pooled_text_embeddings", 2, 48), r"\[2, width, 1, 1\]"),
        ("transformer", of_input("timestep", 1), r"'timestep' is \[1\], they give \[2\]"),
        ("transformer", of_input("denoiser_output", 2, 4, 8, 8), "they take the latents' shape"),
        ("transformer", renamed("latent_image_embeddings", "sample"), "no input 'latent_image_embeddings'"),
        ("text_encoder_3", of_input("input_ids", 1, 64), r"\[1, at least 77 tokens\]"),
        ("text_encoder_3", of_input("encoder_hidden_states", 1, 77, 64), r"\[1, width, 1, 77\]"),
        ("text_encoder_3", renamed("encoder_hidden_states", "text"), "no output 'encoder_hidden_states'"),
    ],
)
def test_what_swift_would_refuse_is_a_fault(
    artifacts: dict[str, Artifact], name: str, change: Callable[[Any], None], fault: str
) -> None:
    package = open_package(artifacts["sd3"].root / artifacts["sd3"].manifest.component(name).entry)
    assert lint(package, name) == []
    change(package.spec.description)
    assert any(re.search(fault, found) for found in lint(package, name)), lint(package, name)


def test_frequencies_of_timesteps_are_pytorchs_to_the_bit(artifacts: dict[str, Artifact]) -> None:
    """coremltools folds them with numpy: at 1000 the last bit of one was 4.7 times PyTorch's own error."""
    artifact = artifacts["sd35"]
    model = load(artifact.root / artifact.manifest.component("transformer").entry, mode="exact")
    wave = next(step for step in model.program.steps if step.kind == "sin")
    phase = next(step for step in model.program.steps if step.outputs[0][0] == wave.inputs["x"])
    held = model.program.constants[next(n for n in phase.inputs.values() if n in model.program.constants)]
    half = 128
    wanted = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    assert torch.equal(torch.as_tensor(np.asarray(held)).reshape(-1), wanted)


@pytest.mark.parametrize(
    ("inputs", "tokens"),
    [
        ({"transformer": ("encoder_hidden_states", [2, 154, 64])}, 77),
        ({"transformer": ("encoder_hidden_states", [2, 333, 64])}, 256),
        ({"transformer": ("encoder_hidden_states", ["batch", "sequence", 64])}, None),
        ({"text_encoder_3": ("input_ids", [1, 77])}, 77),
        ({"text_encoder": ("input_ids", [1, 77])}, None),
        ({}, None),
    ],
)
def test_the_length_of_a_text_is_that_of_what_was_baked(
    inputs: dict[str, tuple[str, list[Any]]], tokens: int | None
) -> None:
    from exporter.architectures.stable_diffusion_3 import t5_tokens

    declared = {
        component: [TensorRecord(name=name, dtype="float32", dims=dims)]
        for component, (name, dims) in inputs.items()
    }
    assert t5_tokens(declared, 77) == tokens


def test_t5_alone_is_judged_with_77_tokens(sources: dict[str, Path], truths: Path, tmp_path: Path) -> None:
    plan = make_plan(
        str(sources["sd3"]), "coreml", tmp_path / "t5", components=["text_encoder_3"], verify=False
    )
    artifact = convert(plan).artifact
    report = verify(artifact.root, cache=truths, **SETTINGS)
    assert [c.verdict for c in report.components] == ["PASS"]


def test_what_swift_cannot_run_is_refused_before_any_work(sources: dict[str, Path], tmp_path: Path) -> None:
    wide = Path(shutil.copytree(sources["sd3"], tmp_path / "wide"))
    config = json.loads((wide / "transformer/config.json").read_text())
    (wide / "transformer/config.json").write_text(json.dumps(config | {"in_channels": 33}))
    with pytest.raises(UnsupportedError, match="takes 33 channels and gives 16"):
        layout_of(as_apple(part(wide, "transformer")), part(wide, "transformer").native, "float32")
    mute = Path(shutil.copytree(sources["sd3"], tmp_path / "mute"))
    (mute / "tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match=r"reads tokenizer_3/tokenizer.json, which .* lacks"):
        make_plan(str(mute), "coreml", tmp_path / "out")
    with pytest.raises(UnsupportedError, match="in one piece"):
        make_plan(str(sources["sd35"]), "coreml", tmp_path / "out", options={"chunk": True})
    assert not (tmp_path / "out").exists()


def test_cards_and_last_words_say_what_swift_does(artifacts: dict[str, Artifact]) -> None:
    """Widths stand in Swift's code; a model of other widths gets no command that would fail."""
    manifest = artifacts["sd3"].manifest.model_copy(deep=True)
    assert apple("me/tiny", manifest) == []
    assert sd3.other_widths(manifest.components)[0].startswith("the text of text_encoder has 16 channels")
    for record in manifest.components:
        for spec in (*record.inputs, *record.outputs):
            if len(spec.dims) == 3:
                spec.dims[2] = sd3.WIDTHS[record.name]
    (client,) = apple("me/tiny", manifest)
    assert "--sd3" in client.code and sd3.other_widths(manifest.components) == []


@pytest.mark.full
def test_several_sizes_and_fewer_bits(sources: dict[str, Path], truths: Path, tmp_path: Path) -> None:
    options = {
        "static": ["1x64x64", "1x64x96"],
        "deployment_target": "iOS18",
        "quantize": ["transformer=int8"],
    }
    plan = make_plan(
        str(sources["sd35"]), "coreml", tmp_path / "out", options=options, components=["transformer"],
        verify=False,
    )  # fmt: skip
    artifact = convert(plan).artifact
    sizes = [size.function for size in artifact.manifest.component("transformer").sizes]
    assert sizes == ["size_64x64", "size_64x96"]
    report = verify(artifact.root, cache=truths, **SETTINGS)
    assert [c.verdict for c in report.components] == ["PASS"], report.summary


def test_the_layout_has_swifts_tokens_at_any_size(sources: dict[str, Path]) -> None:
    transformer = as_apple(part(sources["sd3"], "transformer"))
    size = export_size(transformer, CoremlOptions(static=(1, 64, 96)))
    shapes = {f.name: f.shape for f in layout_of(transformer, size, "float32").inputs}
    assert shapes["token_level_text_embeddings"] == (2, 64, 1, 154)
    assert shapes["latent_image_embeddings"] == (2, 16, 8, 12)
