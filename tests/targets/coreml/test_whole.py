"""The road of a user on Linux: convert, paint through the interpreter; overflow; compressed packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.artifact import ComponentRecord
from exporter.conversion import convert, make_plan
from exporter.pipeline import load as load_pipeline
from exporter.pipeline import paint
from exporter.targets import RunOptions
from exporter.targets.coreml import CoremlTarget, load
from tests.judge import judge
from tests.mutation.formats.coreml import blobs
from tests.targets.coreml.conftest import Exported
from tests.targets.coreml.inference import ct

PROMPT = "a large red star at the left on a blue background"


@pytest.mark.full
def test_the_embedded_checkpoint_paints_what_is_asked(tmp_path: Path) -> None:
    """In emulated float16, through packages in Apple's names and shapes."""
    names = ["text_encoder", "unet", "vae_decoder"]
    plan = make_plan("builtin:shapes", "coreml", tmp_path / "shapes", components=names, verify=False)
    artifact = convert(plan).artifact
    assert artifact.manifest.components[1].entry == "Stable_Diffusion_version_shapes_unet.mlpackage"
    pipeline = load_pipeline(artifact.root)
    (picture,) = paint(pipeline, [PROMPT], seed=7, steps=15)
    judgement = judge(picture, PROMPT)
    assert judgement.ok, judgement


def test_an_overflow_is_named_with_its_operation(half: Exported, tmp_path: Path) -> None:
    record: ComponentRecord = half.records["vae_decoder"]
    package = Path(shutil.copytree(half.package("vae_decoder"), tmp_path / record.entry))
    for blob in blobs(package)[:2]:
        blob.write((blob.read().astype(np.float32) * 2000).clip(-60000, 60000).astype(np.float16))
    inputs = half.components["vae_decoder"].example_inputs(half.components["vae_decoder"].native)
    given = {name: tensor[:1].numpy() for name, tensor in inputs.items()}
    with (
        CoremlTarget().open(tmp_path, record, RunOptions(precision_hint="f16")) as runner,
        pytest.raises(RuntimeError, match=r"float16 overflows: conv '.*' in decoder.conv_in reaches .*e\+"),
    ):
        runner.run(given)


@pytest.mark.parametrize("kind", ["palette4", "int8", "sparse"])
@pytest.mark.parametrize("system", ["iOS16", "iOS18"])
def test_packages_compressed_by_coremltools_are_read(
    half: Exported, tmp_path: Path, kind: str, system: str
) -> None:
    """The interpreter on compressed weights, against itself on what coremltools makes of them."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.optimize import coreml as optimize

    weight = np.random.default_rng(0).standard_normal((16, 32, 3, 3)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 32, 8, 8))], opset_version=getattr(ct.target, system))
    def program(x):
        return mb.conv(x=x, weight=weight, pad_type="same", name="y")

    model = ct.convert(
        program, convert_to="mlprogram", skip_model_load=True,
        minimum_deployment_target=getattr(ct.target, system), compute_precision=ct.precision.FLOAT32,
    )  # fmt: skip
    settings = {
        "palette4": (optimize.palettize_weights, optimize.OpPalettizerConfig(mode="uniform", nbits=4)),
        "int8": (optimize.linear_quantize_weights, optimize.OpLinearQuantizerConfig(mode="linear_symmetric")),
        "sparse": (optimize.prune_weights, optimize.OpMagnitudePrunerConfig(target_sparsity=0.6)),
    }
    work, config = settings[kind]
    small = work(model, optimize.OptimizationConfig(global_config=config))
    small.save(str(tmp_path / "small.mlpackage"))
    optimize.decompress_weights(small).save(str(tmp_path / "large.mlpackage"))
    x = {"x": np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)}
    read, plain = load(tmp_path / "small.mlpackage"), load(tmp_path / "large.mlpackage")
    assert any(step.kind.startswith("constexpr") for step in read.program.steps)
    assert not any(step.kind.startswith("constexpr") for step in plain.program.steps)
    mine, truth = read.predict(x), plain.predict(x)
    (name,) = truth
    assert np.abs(mine[name] - truth[name]).max() < 1e-5 * np.abs(truth[name]).max()
