"""SDXL as Apple's runners want it: two text encoders, six numbers, an autoencoder in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.architectures import components_of
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import UnsupportedError, UsageError
from exporter.parity import verify
from exporter.pipeline import load as load_pipeline
from exporter.pipeline import paint
from exporter.targets import RunOptions
from exporter.targets.coreml import CoremlOptions, CoremlTarget, load
from exporter.targets.coreml.export import export_size, for_component
from exporter.targets.coreml.layout import as_apple, layout_of
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.families import make

PREFIX = "Stable_Diffusion_version_tiny-sdxl_"
EXPECTED = {
    "text_encoder": (
        [("input_ids", "float32", (1, 77))],
        [("hidden_embeds", "float32", (1, 77, 16)), ("pooled_outputs", "float32", (1, 16))],
    ),
    "text_encoder_2": (
        [("input_ids", "float32", (1, 77))],
        [("hidden_embeds", "float32", (1, 77, 32)), ("pooled_outputs", "float32", (1, 24))],
    ),
    "unet": (
        [
            ("sample", "float16", (2, 4, 8, 8)),
            ("timestep", "float16", (2,)),
            ("encoder_hidden_states", "float16", (2, 48, 1, 77)),
            ("text_embeds", "float16", (2, 24)),
            ("time_ids", "float16", (2, 6)),
        ],
        [("noise_pred", "float32", (2, 4, 8, 8))],
    ),
    "vae_decoder": ([("z", "float32", (1, 4, 8, 8))], [("image", "float32", (1, 3, 64, 64))]),
    "vae_encoder": ([("x", "float32", (1, 3, 64, 64))], [("latent", "float32", (1, 8, 8, 8))]),
}


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("sdxl", tmp_path_factory.mktemp("sdxl") / "tiny-sdxl")


@pytest.fixture(scope="module")
def artifact(xl: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("coreml-xl") / "out"
    plan = make_plan(str(xl), "coreml", out, options={"attention": "original"}, verify=False)
    return convert(plan).artifact


def test_names_types_and_shapes_are_apples(artifact: Artifact) -> None:
    for record in artifact.manifest.components:
        path = artifact.root / record.entry
        model = load(path)
        inputs, outputs = EXPECTED[record.name]
        assert sorted((f.name, f.dtype, f.shape) for f in model.inputs) == sorted(inputs)
        assert [(f.name, f.dtype, f.shape) for f in model.outputs] == outputs
        assert path.name == f"{PREFIX}{record.name}.mlpackage"
        assert lint(open_package(path), record.name) == []
        assert record.dtype == ("float32" if record.name.startswith("vae") else "float16")
    assert {record.name for record in artifact.manifest.components} == set(EXPECTED)
    script = (artifact.root / "Resources/compile.sh").read_text()
    assert f"mv Resources/{PREFIX}text_encoder_2.mlmodelc Resources/TextEncoder2.mlmodelc" in script
    assert "text_encoder_2" in [record.name for record in artifact.manifest.components]


def test_it_computes_and_paints_what_pytorch_does(artifact: Artifact, tmp_path: Path) -> None:
    report = verify(artifact.root, steps=2, samples=2, prompts=["a red star"], cache=tmp_path / "truths")
    assert report.verdict == "PASS", report.summary
    judged = {
        c.name: {o.name for r in c.runs for case in r.cases for o in case.outputs} for c in report.components
    }
    assert judged["text_encoder"] == {"hidden_states.1", "pooler_output"}
    assert judged["text_encoder_2"] == {"hidden_states.2", "text_embeds"}
    assert report.pipeline is not None and report.pipeline.verdict == "PASS"


def test_the_pipeline_of_the_user_paints(artifact: Artifact, xl: Path) -> None:
    """Through the stand-ins of `exporter run`, near what diffusers itself paints."""
    mine = paint(load_pipeline(artifact.root), ["a red star"], seed=3, steps=2)[0]
    truth = paint(load_pipeline(xl), ["a red star"], seed=3, steps=2)[0]
    difference = np.asarray(mine, np.float64) - np.asarray(truth, np.float64)
    assert np.sqrt((difference**2).mean()) < 3
    with pytest.raises(UsageError, match="does not give that hidden state"):
        load_pipeline(artifact.root)("a red star", num_inference_steps=1, clip_skip=1)


def test_numbers_of_a_picture_that_float16_cannot_hold_are_refused(artifact: Artifact) -> None:
    record = artifact.manifest.component("unet")
    unet = next(c for c in components_of(resolve(artifact.manifest.source.source)) if c.name == "unet")
    given = {n: t.numpy() for n, t in unet.example_inputs(unet.native).items()}
    with CoremlTarget().open(artifact.root, record, RunOptions(precision_hint="f16")) as runner:
        assert runner.run(given)
        given["time_ids"][0, 0] = 2049
        with pytest.raises(ValueError, match="2049 cannot be given as float16"):
            runner.run(given)


def test_an_autoencoder_that_was_mended_is_float16(xl: Path, tmp_path: Path) -> None:
    mended = Path(shutil.copytree(xl, tmp_path / "mended"))
    config = json.loads((mended / "vae/config.json").read_text())
    (mended / "vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    options, found = CoremlOptions(), {}
    for source in (xl, mended):
        vae = next(c for c in components_of(resolve(str(source))) if c.name == "vae_decoder")
        found[source] = for_component(vae, options)
    assert (found[xl].dtype, found[xl].compute_units) == ("float32", "cpu_and_gpu")
    assert found[mended] is options


def test_a_refiner_has_five_numbers(tmp_path: Path) -> None:
    components = {
        c.name: c for c in components_of(resolve(str(make("sdxl_refiner", tmp_path / "tiny-refiner"))))
    }
    assert set(components) == {"text_encoder_2", "unet", "vae_decoder", "vae_encoder"}
    unet = as_apple(components["unet"])
    layout = layout_of(unet, export_size(unet, CoremlOptions()), "float16")
    assert {f.name: f.shape for f in layout.inputs}["time_ids"] == (2, 5)
    assert [f.name for f in layout.outputs] == ["noise_pred"]


def test_a_unet_with_an_input_that_apple_lacks_is_refused(tmp_path: Path) -> None:
    unet = next(c for c in components_of(resolve(str(make("lcm", tmp_path / "lcm")))) if c.name == "unet")
    with pytest.raises(UnsupportedError, match="no 'timestep_cond'"):
        layout_of(unet, unet.native, "float16")


def test_a_text_encoder_in_fewer_bits_is_judged_with_its_own_weights(xl: Path, tmp_path: Path) -> None:
    """It gives some of its outputs only; for that it was judged by the checkpoint's: 3.4 times the limit."""
    plan = make_plan(
        str(xl), "coreml", tmp_path / "out", options={"quantize": ["int8"]}, components=["text_encoder_2"],
        verify=False,
    )  # fmt: skip
    artifact = convert(plan).artifact
    report = verify(artifact.root, steps=2, samples=2, prompts=["a red star"], cache=tmp_path / "truths")
    assert [c.verdict for c in report.components] == ["PASS"], report.summary


@pytest.mark.parametrize(
    ("family", "name"), [("sdxl", "text_encoder"), ("sd3", "transformer"), ("sd3", "text_encoder_2")]
)
def test_weights_that_a_component_holds_stay_with_it(family: str, name: str, tmp_path: Path) -> None:
    """Those with a LoRA in them, and those of a quantised file: Apple's form of it has the same."""
    source = make(family, tmp_path / family)
    component = next(c for c in components_of(resolve(str(source))) if c.name == name)
    own = dict(component.weights)
    other = as_apple(component.holding(own))
    assert other is not component
    assert other.weights is own and other.reference_weights is own
