"""A UNet in two packages is the UNet in one."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.architectures import Component, Size
from exporter.errors import ArtifactError
from exporter.parity.arithmetic import Reference
from exporter.targets import RunOptions
from exporter.targets.coreml.chained import packages
from exporter.targets.coreml.chunks import CARRIED, split
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from exporter.targets.coreml.resources import compile_script, packages_in
from exporter.targets.coreml.runner import CoremlRunner
from tests.targets.coreml.conftest import Exported
from tests.targets.coreml.test_native import mac  # noqa: F401 - a fixture

MODEL = "Stable_Diffusion_version_tiny-sd"


@pytest.fixture(scope="module")
def chunks(half: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    whole = half.package("unet")
    return split(Path(shutil.copytree(whole, tmp_path_factory.mktemp("chunks") / whole.name)))


def inputs(half: Exported) -> dict[str, np.ndarray]:
    native = half.components["unet"].native
    size = Size(2, native.height, native.width, native.sequence, native.factor)
    return {n: t.numpy() for n, t in half.components["unet"].example_inputs(size, 5).items()}


def off(one: np.ndarray, two: np.ndarray) -> float:
    one = one.astype(np.float64)
    return float(np.linalg.norm(one - two.reshape(one.shape)) / np.linalg.norm(one))


def outputs(unet: Component, given: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Of the named modules in PyTorch: the file's weights, float64."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, _: object, __: object, output: Any) -> None:
        value = output if isinstance(output, torch.Tensor) else output[0]
        found[name] = value.numpy()

    with Reference(unet, weights="float16", arithmetic="float64") as reference:
        for name in names:
            layer = reference.module.get_submodule(f"inner.{name}")
            layer.register_forward_hook(partial(keep, name))
        reference({name: torch.from_numpy(value) for name, value in given.items()})
    return found


@pytest.mark.parametrize("hint", ["f32", "f16"])
def test_both_together_compute_what_one_computes(
    half: Exported, chunks: tuple[Path, Path], hint: str
) -> None:
    with (
        half.open("unet", precision_hint=hint) as whole,
        CoremlRunner(chunks[0], "unet", RunOptions(precision_hint=hint)) as chained,  # type: ignore[arg-type]
    ):
        assert [t.name for t in chained.inputs] == [t.name for t in whole.inputs]
        assert chained.inputs == whole.inputs and chained.outputs == whole.outputs
        assert chained.precision == whole.precision and chained.client_faults() == []
        # nothing that bisection asks for is lost
        assert set(chained.module_names()) == set(whole.module_names())
        given, some = inputs(half), chained.module_names()[::7]
        one, two = whole.intermediates(given, some), chained.intermediates(given, some)
        # PyTorch adds in another order where the boundary lays a value out anew
        limit = 1e-6 if hint == "f32" else 1e-3
        assert off(whole.run(given)["out_sample"], chained.run(given)["out_sample"]) < limit
    # How much that shows inside differs between processors; against float64 both are as far off.
    truth = outputs(half.components["unet"], given, some)
    errors = {name: (off(truth[name], one[name]), off(truth[name], two[name])) for name in some}
    assert all(mine <= 1.25 * other for other, mine in errors.values()), errors


def test_each_has_about_half_of_the_weights(half: Exported, chunks: tuple[Path, Path]) -> None:
    def weights(path: Path) -> int:
        return (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    whole, parts = weights(half.package("unet")), [weights(path) for path in chunks]
    assert abs(sum(parts) - whole) < 0.02 * whole
    assert 0.4 < parts[0] / whole < 0.65
    assert [path.name for path in chunks] == [f"{MODEL}_unet_chunk{n}.mlpackage" for n in (1, 2)]
    assert not (chunks[0].parent / half.package("unet").name).exists()


def test_the_boundary_is_apples(chunks: tuple[Path, Path]) -> None:
    """float32, by name, and the first chunk has what Swift asks it for."""
    first, second = (open_package(path).spec.description for path in chunks)
    handed = [feature.name for feature in first.output]
    assert handed and all(name.endswith(CARRIED) for name in handed)
    assert "sample" in [feature.name for feature in first.input]
    assert [feature.name for feature in second.output] == ["noise_pred"]
    assert set(handed) <= {feature.name for feature in second.input}


def test_coremltools_reads_both(chunks: tuple[Path, Path]) -> None:
    from coremltools.converters.mil.frontend.milproto.load import load as read

    for path in chunks:
        spec = open_package(path).spec
        weights = str(path / "Data/com.apple.CoreML/weights")
        program = read(spec, spec.specificationVersion, weights)
        assert len(list(program.functions["main"].operations)) > 100


def test_the_linter_finds_what_swift_would_refuse(chunks: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (open_package(path) for path in chunks)
    handed = first.spec.description.output[0]
    name = handed.name
    handed.name = "other"
    found = " ".join(lint(first, "unet", second))
    assert "does not take 'other'" in found and f"wants '{name}', which nobody gives it" in found
    handed.name = name
    handed.type.multiArrayType.shape[0] += 1
    assert "the second takes float32" in " ".join(lint(first, "unet", second))
    handed.type.multiArrayType.shape[0] -= 1
    assert lint(first, "unet", second) == []
    for position, feature in enumerate(first.spec.description.input):
        if feature.name == "sample":
            second.spec.description.input.add().CopyFrom(feature)
            del first.spec.description.input[position]
            break
    assert "no input 'sample', whose shape Swift asks it for" in " ".join(lint(first, "unet", second))
    renamed = tmp_path / "chunk.mlpackage"
    shutil.copytree(chunks[1], renamed)
    found = " ".join(lint(open_package(chunks[0]), "unet", open_package(renamed)))
    assert "chunk.mlpackage is not Stable_Diffusion_version_…_unet_chunk2.mlpackage" in found


def test_halves_of_two_models_are_refused(chunks: tuple[Path, Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(path, tmp_path / path.name)) for path in chunks]
    spec = open_package(copies[1]).spec
    spec.description.input[-1].type.multiArrayType.shape[0] = 7
    (copies[1] / "Data/com.apple.CoreML/model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(ArtifactError, match="does not take as it is"):
        packages(copies[0])
    shutil.rmtree(copies[1])
    with pytest.raises(ArtifactError, match=r"_unet_chunk2\.mlpackage is missing"):
        packages(copies[0])


def test_both_are_compiled_under_swifts_names(half: Exported, chunks: tuple[Path, Path]) -> None:
    parts = [half.components[name] for name in ("text_encoder", "unet")]
    names = list(packages_in(chunks[0].parent, parts))
    assert names == [f"{MODEL}_{end}.mlpackage" for end in ("text_encoder", "unet_chunk1", "unet_chunk2")]
    script = compile_script(names)
    for number in (1, 2):
        assert (
            f"mv Resources/{MODEL}_unet_chunk{number}.mlmodelc Resources/UnetChunk{number}.mlmodelc" in script
        )


def test_core_ml_would_run_one_after_the_other(
    half: Exported,
    chunks: tuple[Path, Path],
    mac: list[tuple[str, str]],  # noqa: F811
) -> None:
    """As on a Mac, with the interpreter behind coremltools' classes."""
    with half.open("unet", precision_hint="f16", device="interpreter") as whole:
        expected = whole.run(inputs(half))
    with CoremlRunner(chunks[0], "unet", RunOptions(precision_hint="f16")) as chained:
        found = chained.run(inputs(half))
    assert [name for name, _ in mac] == [path.name for path in chunks]
    assert off(expected["out_sample"], found["out_sample"]) < 1e-3
