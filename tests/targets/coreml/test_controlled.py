"""ControlNets, and the UNet that takes what they give, as Apple's runners want them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.architectures import components_of
from exporter.checkpoints import resolve
from exporter.checkpoints.overlays.controlnet import with_controlnets
from exporter.errors import UnsupportedError
from exporter.targets.coreml import CoremlOptions, CoremlTarget
from exporter.targets.coreml.clients import apple
from exporter.targets.coreml.layout import check_known
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.names import compiled_name, controlnet_ids, package_of
from exporter.targets.coreml.package import open_package
from tests.families import make
from tests.targets.coreml.conftest import Exported, as_artifact, export, judge

NAMES = ("controlnet", "unet")
COUNT = 5
"""Residuals of the tiny UNet: its first layer, one of each of two levels, one between, and the middle."""
RESIDUALS = [f"additional_residual_{n}" for n in range(COUNT)]
MODEL = "Stable_Diffusion_version_tiny-control"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("controlnet", tmp_path_factory.mktemp("control") / "tiny-control")


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(source, tmp_path_factory.mktemp("coreml-control"), NAMES)


def test_names_types_and_shapes_are_apples(exported: Exported) -> None:
    found: dict[str, Any] = {}
    for name in NAMES:
        package = open_package(exported.package(name))
        assert lint(package, name) == []
        with exported.open(name) as runner:
            found[name] = ({f.name: f for f in runner._model.inputs}, list(runner._model.outputs))
    shared = {
        "sample": (2, 4, 8, 8),
        "timestep": (2,),
        "encoder_hidden_states": (2, 32, 1, 77),
    }
    inputs, outputs = found["controlnet"]
    assert {n: f.shape for n, f in inputs.items()} == shared | {"controlnet_cond": (2, 3, 64, 64)}
    assert {f.dtype for f in inputs.values()} == {"float16"}
    assert [f.name for f in outputs] == RESIDUALS and {f.dtype for f in outputs} == {"float32"}
    taken, given = found["unet"]
    assert {n: f.shape for n, f in taken.items()} == shared | {f.name: f.shape for f in outputs}
    assert {f.dtype for f in taken.values()} == {"float16"} and [f.name for f in given] == ["noise_pred"]
    assert exported.package("unet").name == f"{MODEL}_control-unet.mlpackage"
    assert exported.package("controlnet").name == "ControlNet_tiny-control_controlnet.mlpackage"
    script = (exported.root / "Resources/compile.sh").read_text()
    for line in (
        "mkdir -p Resources/controlnet",
        f"mv Resources/{MODEL}_control-unet.mlmodelc Resources/ControlledUnet.mlmodelc",
        "xcrun coremlcompiler compile ControlNet_tiny-control_controlnet.mlpackage Resources/controlnet/",
        "mv Resources/controlnet/ControlNet_tiny-control_controlnet.mlmodelc "
        "Resources/controlnet/TinyControlControlnet.mlmodelc",
    ):
        assert f"\n{line}\n" in script


def test_they_compute_what_pytorch_does(exported: Exported, truths: Path, tmp_path: Path) -> None:
    report = judge(as_artifact(exported, tmp_path / "both", NAMES), truths)
    assert report.verdict == "PASS", report.summary
    net = next(component for component in report.components if component.name == "controlnet")
    assert {len(case.outputs) for run in net.runs for case in run.cases} == {COUNT}


def test_the_card_names_them(exported: Exported, tmp_path: Path) -> None:
    manifest = as_artifact(exported, tmp_path / "both", NAMES).manifest
    manifest.source.source = "someone/tiny-control"
    swift, python = apple("me/mine", manifest)
    assert swift.code.endswith("--controlnet TinyControlControlnet --controlnet-inputs edges_1.png")
    assert python.code.endswith("--controlnet tiny-control_controlnet --controlnet-inputs edges_1.png")


def test_the_scale_multiplies_what_the_package_gives(exported: Exported) -> None:
    component = exported.components["controlnet"]
    given = {n: t.numpy() for n, t in component.example_inputs(component.native).items()}
    given["timestep"] = np.float32(501).reshape(())
    with exported.open("controlnet") as runner:
        assert sorted(spec.name for spec in runner.inputs) == sorted(spec.name for spec in component.inputs)
        whole = runner.run(given | {"conditioning_scale": np.array(1, np.float32)})
        half = runner.run(given | {"conditioning_scale": np.array(0.5, np.float32)})
        for name, value in whole.items():
            assert np.abs(value).max() > 0 and np.array_equal(half[name] * 2, value)
        with pytest.raises(ValueError, match="one float32 number"):
            runner.run(given | {"conditioning_scale": np.ones(2, np.float32)})
        with pytest.raises(ValueError, match="missing"):
            runner.run({name: value for name, value in given.items() if name != "conditioning_scale"})


def test_what_apples_runners_would_refuse_is_told(exported: Exported) -> None:
    def faults(name: str, change: Any) -> list[str]:
        package = open_package(exported.package(name))
        change(package.spec.description)
        return lint(package, name)

    def rename(description: Any) -> None:
        next(f for f in description.input if f.name == RESIDUALS[2]).name = "down_block_2"

    def drop(description: Any) -> None:
        del description.output[:]

    def one_row(description: Any) -> None:
        next(f for f in description.input if f.name == "controlnet_cond").type.multiArrayType.shape[0] = 1

    told = "\n".join(faults("unet", rename))
    assert f"no input '{RESIDUALS[2]}'" in told and "an input 'down_block_2', which they do not know" in told
    assert "no output additional_residual_0" in "\n".join(faults("controlnet", drop))
    assert "they give [2, 3, height, width]" in "\n".join(faults("controlnet", one_row))
    package = open_package(exported.package("unet"))
    assert "is not ControlNet_….mlpackage" in "\n".join(lint(package, "controlnet"))


def test_controlnets_laid_over_a_checkpoint_have_their_own_names(
    tiny: Path, source: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("a/sd-canny_v1.1", "b/sd-canny_v1.1")]
    for folder in folders:
        shutil.copytree(source / "controlnet", folder)
    checkpoint = with_controlnets(resolve(str(tiny)), [*map(str, folders), str(source)])
    assert controlnet_ids(checkpoint) == {
        "controlnet": "sd-canny_v1.1",
        "controlnet_1": "sd-canny_v1.1-2",
        "controlnet_2": "tiny-control",
    }
    names = {c.name: package_of(c) for c in components_of(checkpoint)}
    assert names["unet"] == "Stable_Diffusion_version_tiny-sd_control-unet.mlpackage"
    assert names["controlnet_1"] == "ControlNet_sd-canny_v1.1-2.mlpackage"
    assert compiled_name(names["controlnet_1"]) == "controlnet/SdCannyV1.12"
    assert compiled_name("ControlNet_lllyasviel_sd-controlnet-canny.mlpackage") == (
        "controlnet/LllyasvielSdControlnetCanny"
    )


def test_what_apples_runners_have_no_place_for_is_refused(source: Path, tmp_path: Path) -> None:
    xl = {c.name: c for c in components_of(resolve(str(make("sdxl_controlnet", tmp_path / "xl"))))}
    for name in NAMES:
        with pytest.raises(UnsupportedError, match="Swift refuses one for Stable Diffusion XL") as error:
            CoremlTarget().check(xl[name])
        assert error.value.hint
    grey = Path(shutil.copytree(source, tmp_path / "grey"))
    config = json.loads((grey / "controlnet/config.json").read_text())
    (grey / "controlnet/config.json").write_text(json.dumps(config | {"conditioning_channels": 1}))
    net = next(c for c in components_of(resolve(str(grey))) if c.name == "controlnet")
    with pytest.raises(UnsupportedError, match="pictures of 3 channels"):
        check_known(net)


def test_each_may_be_compressed_by_its_name() -> None:
    options = CoremlOptions(palettize=["unet=4", "controlnet_1=6"])  # type: ignore[arg-type]
    assert (options.compression("controlnet"), options.compression("controlnet_1")) == (None, "palette6")
    with pytest.raises(ValueError, match="no component 'controlnets'"):
        CoremlOptions(palettize=["controlnets=6"])  # type: ignore[arg-type]


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [{"attention": "original", "chunk": True}, {"attention": "split_einsum_v2", "palettize": ["8"]}],
    ids=["original", "v2"],
)
def test_other_forms(source: Path, truths: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    made = export(source, tmp_path / "out", NAMES, **options)
    script = (made.root / "Resources/compile.sh").read_text()
    if "chunk" in options:
        assert made.package("unet").name == f"{MODEL}_control-unet_chunk1.mlpackage"
        for number in (1, 2):
            assert f"Resources/ControlledUnetChunk{number}.mlmodelc\n" in script
    with made.open("unet") as runner:
        assert runner.client_faults() == []
    both = as_artifact(made, tmp_path / "both", NAMES)
    for second in made.root.glob("*_chunk2.mlpackage"):
        shutil.copytree(second, both.root / second.name)
    report = judge(both, truths)
    assert report.verdict == "PASS", report.summary
