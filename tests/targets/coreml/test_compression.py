"""Weights in fewer bits: what is written, read back by coremltools and by the interpreter."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from exporter.artifact import hash_files
from exporter.progress import NullProgress
from exporter.targets.coreml import CoremlOptions, load
from exporter.targets.coreml.compression import COMPRESSED_KEY, How, compress, compressible, store
from exporter.targets.coreml.interpreter.values import Constants, type_of
from exporter.targets.coreml.package import open_package
from exporter.targets.coreml.palettes import Integers, Palette, noise_ratio, palettise, to_integers
from exporter.targets.coreml.rewrite import Rewriter
from tests.targets.coreml.conftest import Exported, as_artifact, export, judge
from tests.targets.coreml.inference import ct


@pytest.fixture(scope="module")
def newer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A text encoder for iOS 18, whose operators hold sub-byte integers."""
    root = tmp_path_factory.mktemp("coreml18")
    return export(tiny, root, ("text_encoder",), deployment_target="iOS18")


def small_copy(exported: Exported, name: str, label: str, folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """A package with everything it may compress, compressed."""
    path = Path(shutil.copytree(exported.package(name), folder / exported.package(name).name))
    component = exported.components[name]
    holds = compressible(path, component, "float16")
    compress(path, component, dict.fromkeys(holds, How.of(label)), holds, "float16", NullProgress())
    return path, holds


def operations(path: Path) -> Any:
    function = open_package(path).spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def unpacked_by_coremltools(path: Path) -> dict[str, np.ndarray]:
    """Every compressed weight as coremltools' own reader and decompression give it."""
    from coremltools.converters.mil.frontend.milproto.load import load as read

    spec = open_package(path).spec
    program = read(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    return {
        op.outputs[0].name: np.asarray(op.materialized_val_inference())
        for op in program.functions["main"].operations
        if op.op_type.startswith("constexpr_")
    }


def values_of(path: Path, names: list[str], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return load(path, mode="unrounded").predict(given, keep=names)


@pytest.mark.parametrize(
    "system,label",
    [("half", "palette6"), ("half", "int8")]
    + [("newer", label) for label in ("palette1", "palette2", "palette4", "palette6", "palette8")]
    + [("newer", "int8"), ("newer", "int4")],
)
def test_coremltools_reads_what_is_written(
    system: str, label: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The file's weights: coremltools' reading, the interpreter's, and the rounding that was meant."""
    exported: Exported = request.getfixturevalue(system)
    path, holds = small_copy(exported, "text_encoder", label, tmp_path)
    theirs = unpacked_by_coremltools(path)
    assert set(theirs) == set(holds) and len(holds) >= 4
    ids = np.zeros((1, 77), np.float32)
    ours = values_of(path, list(holds), {"input_ids": ids})
    component, how = exported.components["text_encoder"], How.of(label)
    for name, stored in holds.items():
        original = component.reference_weights[stored[0]].load().float().numpy()
        meant = palettise(original, how.bits) if how.kind == "palette" else to_integers(original, label)  # type: ignore[arg-type]
        assert np.array_equal(ours[name], meant.values()), name
        assert np.abs(theirs[name].astype(np.float32) - ours[name]).max() <= 1e-3 * np.abs(ours[name]).max()
        assert 0 < noise_ratio(original, ours[name]) < {1: 0.5, 2: 0.2, 4: 0.03}.get(how.bits, 2e-3)
    (tmp_path / "again").mkdir()
    again, _ = small_copy(exported, "text_encoder", label, tmp_path / "again")
    assert [f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()] == [
        f.read_bytes() for f in sorted(again.rglob("*")) if f.is_file()
    ]


def test_convolutions_are_compressed_and_all_else_is_as_it_was(half: Exported, tmp_path: Path) -> None:
    path, holds = small_copy(half, "unet", "palette4", tmp_path)
    stored = {key.removeprefix("inner.") for keys in holds.values() for key in keys}
    assert {"conv_in.weight", "mid_block.resnets.0.conv1.weight"} & stored == {
        "mid_block.resnets.0.conv1.weight"
    }  # conv_in has 1152 numbers, too few to save any
    assert "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight" in stored
    before, after = list(operations(half.package("unet"))), list(operations(path))
    assert [o.outputs[0].name for o in before] == [o.outputs[0].name for o in after]
    assert {a.type for b, a in zip(before, after, strict=True) if a.type != b.type} == {
        "constexpr_lut_to_dense"
    }
    sizes = [
        (p / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for p in (half.package("unet"), path)
    ]
    assert sizes[1] < 0.5 * sizes[0]
    old, new = Constants(open_package(half.package("unet"))), Constants(open_package(path))
    for b, a in zip(before, after, strict=True):
        if a.type == "const" and type_of(a.outputs[0].type) and type_of(a.outputs[0].type)[0] != "string":  # type: ignore[index]
            assert np.array_equal(old.read(b.attributes["val"], "x"), new.read(a.attributes["val"], "x"))
    assert COMPRESSED_KEY in open_package(path).metadata


@pytest.fixture(scope="module")
def compressed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    root = tmp_path_factory.mktemp("compressed")
    wishes: dict[str, dict[str, Any]] = {
        "palette8": {"palettize": "text_encoder=8"},
        "int4": {"quantize": ["int4"], "deployment_target": "iOS18"},
    }
    return {how: export(tiny, root / how, ("text_encoder",), **given) for how, given in wishes.items()}


def change_a_code(package: Path) -> None:
    """Another one in the middle of the first compressed weight."""
    op = next(op for op in operations(package) if op.type.startswith("constexpr"))
    value = op.attributes["indices"] if "indices" in op.attributes else op.inputs["data"].arguments[0].value
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    size, start = struct.unpack_from("<QQ", data, value.blobFileValue.offset + 8)
    data[start + size // 2] ^= 0x55
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["palette8", "int4"])
def test_a_compressed_artifact_is_judged_in_three_ways(
    compressed: dict[str, Exported], how: str, truths: Path, tmp_path: Path
) -> None:
    """Nearest codes, the graph with its own weights, the whole effect; one changed code is found."""
    artifact = as_artifact(compressed[how], tmp_path / "artifact", ["text_encoder"])
    least = (
        8.0 if how == "int4" else 27.0
    )  # random matrices, 32 wide, lose more to four bits than trained ones
    report = judge(artifact, truths, min_sqnr=least)
    (part,) = report.components
    assert report.verdict == "PASS", part.reasons
    assert part.compression is not None and part.compression.scheme.startswith(how)
    noted = compressed[how].records["text_encoder"].details["compression"]["weights"]
    assert {weight.name: weight.how for weight in part.compression.weights} == noted and len(noted) >= 4
    assert all(0.3 < weight.steps <= 0.501 for weight in part.compression.weights)
    assert part.compression.sqnr_db is not None and part.compression.sqnr_db > least
    strict = judge(artifact, truths, min_sqnr=100.0)
    assert strict.verdict == "FAIL" and "the stated limit is 100 dB" in " ".join(strict.components[0].reasons)
    package = artifact.root / artifact.manifest.components[0].entry
    change_a_code(package)
    artifact.manifest.components[0].files = hash_files(
        [file for file in package.rglob("*") if file.is_file()], artifact.root
    )
    artifact.save()
    found = judge(artifact, truths, min_sqnr=least, bisect=False)
    assert found.verdict == "FAIL"
    assert "steps from the checkpoint's at" in " ".join(found.components[0].reasons)


@pytest.mark.parametrize("system", ["iOS16", "iOS18"])
@pytest.mark.parametrize("kind", ["palette", "int8", "int4"])
def test_the_form_is_coremltools(system: str, kind: str, tmp_path: Path) -> None:
    """Names, types and shapes of every operand, against a package that coremltools compressed."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.optimize import coreml as optimize

    if (system, kind) == ("iOS16", "int4"):
        pytest.skip("iOS 16 has no int4")
    weight = np.random.default_rng(0).standard_normal((16, 32, 3, 3)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 32, 8, 8))], opset_version=getattr(ct.target, system))
    def program(x: Any) -> Any:
        return mb.conv(x=x, weight=weight, pad_type="same", name="y")

    model = ct.convert(
        program, convert_to="mlprogram", skip_model_load=True,
        minimum_deployment_target=getattr(ct.target, system), compute_precision=ct.precision.FLOAT32,
    )  # fmt: skip
    plain = tmp_path / "plain.mlpackage"
    model.save(str(plain))
    if kind == "palette":
        config: Any = optimize.OpPalettizerConfig(mode="kmeans", nbits=4)
        work, small = optimize.palettize_weights, palettise(weight, 4, "float32")
    else:
        by_block = {"dtype": "int4", "granularity": "per_block", "block_size": 32} if kind == "int4" else {}
        config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", **by_block)
        work, small = optimize.linear_quantize_weights, to_integers(weight, kind, "float32")  # type: ignore[assignment,arg-type]
    work(model, optimize.OptimizationConfig(global_config=config)).save(str(tmp_path / "theirs.mlpackage"))
    (theirs,) = [op for op in operations(tmp_path / "theirs.mlpackage") if op.type.startswith("constexpr")]
    package = open_package(plain)
    function = package.spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    assert isinstance(small, Palette | Integers)
    with Rewriter(tmp_path / "new.bin") as rewriter:
        (mine,) = [op for op in block.operations if op.type == "const" and "weight" in op.outputs[0].name]
        store(mine, small, "float32", system == "iOS18", rewriter)
    assert mine.type == theirs.type
    assert set(mine.attributes) == set(theirs.attributes) and set(mine.inputs) == set(theirs.inputs)
    for name in set(theirs.attributes) - {"name"}:
        assert mine.attributes[name].type == theirs.attributes[name].type, name
    for name in theirs.inputs:
        assert mine.inputs[name].arguments[0].value.type == theirs.inputs[name].arguments[0].value.type, name
    assert mine.outputs[0].type == theirs.outputs[0].type


@pytest.mark.parametrize(
    "options,why",
    [
        ({"palettize": "5"}, "a palette has 1, 2, 4, 6, 8 bits"),
        ({"palettize": ["unet=six"]}, "a palette has 1, 2, 4, 6, 8 bits"),
        ({"palettize": ["mixed:9"]}, "lies outside 1 to 8"),
        ({"palettize": ["mixed:nan"]}, "lies outside 1 to 8"),
        ({"palettize": ["mixed:few"]}, "no average number of bits"),
        ({"palettize": ["unett=6"]}, "no component 'unett'"),
        ({"palettize": ["unet=6", "unet=4"]}, "unet is given twice"),
        ({"quantize": ["int2"]}, "int8 or int4"),
        ({"quantize": ["unet=int8"], "palettize": ["unet=6"]}, "both given for unet"),
        ({"quantize": ["int4"]}, "int4 needs --deployment-target iOS18"),
    ],
)
def test_senseless_wishes_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        CoremlOptions(**options)


def test_a_component_s_own_wish_comes_first() -> None:
    options = CoremlOptions(palettize=["6", "unet=mixed:4.5"], quantize=["vae_decoder=int8"])  # type: ignore[arg-type]
    assert options.compression("text_encoder") == "palette6"
    assert options.compression("unet") == "palette-mixed4.5"
    assert options.compression("vae_decoder") == "int8"
    assert CoremlOptions().compression("unet") is None
    assert CoremlOptions.model_validate(options.model_dump(mode="json")) == options
