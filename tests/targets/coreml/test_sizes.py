"""Several sizes in one package: a function each, one set of weights, every size judged and found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter import pipeline
from exporter.artifact import Artifact
from exporter.errors import ArtifactError, UsageError
from exporter.parity import verify
from exporter.planning import make_plan, parse_options
from exporter.recipes import from_manifest
from exporter.targets import RunOptions, get_target
from exporter.targets.base import component_size
from exporter.targets.coreml import CoremlOptions, load
from exporter.targets.coreml.chunks import split
from exporter.targets.coreml.clients import apple
from exporter.targets.coreml.export import estimate
from exporter.targets.coreml.functions import add_function
from exporter.targets.coreml.interpreter.values import Constants
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import as_stored, open_package
from exporter.targets.coreml.runner import CoremlRunner
from tests.mutation.workshop import rehash
from tests.targets.coreml.conftest import Exported, as_artifact, export
from tests.targets.coreml.inference import ct
from tests.targets.coreml.test_native import mac  # noqa: F401 - a fixture

SIZES = ["1x64x64", "1x96x64"]
FIRST, SECOND = "size_64x64", "size_96x64"
TALL = (1, 96, 64)
SPEC, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
NAMES = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture(scope="module")
def sizes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("sizes")
    return export(tiny, root, NAMES, static=SIZES, deployment_target="iOS18")


@pytest.fixture(scope="module")
def artifact(sizes: Exported, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    made = as_artifact(sizes, tmp_path_factory.mktemp("artifact") / "out", NAMES)
    made.manifest.options = parse_options(
        get_target("coreml"), {"static": SIZES, "deployment_target": "iOS18"}
    ).model_dump(mode="json")
    made.save()
    shutil.copytree(sizes.root / "tokenizer", made.root / "tokenizer")
    for name in ("scheduler", "model_index.json", *(n for n in NAMES if (sizes.root / n).exists())):
        source = sizes.root / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, made.root / name)
    return made


def weights(package: Path) -> int:
    return (package / WEIGHTS).stat().st_size


def inputs(exported: Exported, static: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    unet = exported.components["unet"]
    return unet.example_inputs(component_size(unet, static), 5)


def run(exported: Exported, static: tuple[int, int, int], hint: str = "f32") -> tuple[np.ndarray, np.ndarray]:
    """What a size computes, and what PyTorch does."""
    given = inputs(exported, static)
    with torch.no_grad():
        (truth,) = exported.components["unet"].reference_module()(**given)
    record = exported.records["unet"].at(static)
    with get_target("coreml").open(
        exported.root,
        record,
        RunOptions(precision_hint=hint, device="interpreter"),  # type: ignore[arg-type]
    ) as runner:
        assert list(runner.inputs) == record.inputs and list(runner.outputs) == record.outputs
        assert runner.client_faults() == []
        assert set(runner.module_names()) and runner.intermediates(
            {n: t.numpy() for n, t in given.items()}, ["conv_in"]
        )["conv_in"].shape == (2, 32, static[1] // 8, static[2] // 8)
        (found,) = runner.run({n: t.numpy() for n, t in given.items()}).values()
    return found, truth.numpy()


def off(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape
    return float(np.linalg.norm(found.astype(np.float64) - truth) / np.linalg.norm(truth))


def test_a_function_a_size(sizes: Exported) -> None:
    record = sizes.records["unet"]
    assert [(s.static, s.function) for s in record.sizes] == [((1, 64, 64), FIRST), (TALL, SECOND)]
    assert {s.entry for s in record.sizes} == {record.entry}
    assert record.sizes[1].inputs[0].dims == [2, 4, 12, 8]
    spec = as_stored(sizes.package("unet")).spec
    assert spec.specificationVersion >= 9 and spec.description.defaultFunctionName == FIRST
    assert [f.name for f in spec.description.functions] == [FIRST, SECOND]
    assert sorted(spec.mlProgram.functions) == [FIRST, SECOND]
    assert not spec.description.input and not spec.description.output
    assert not list(sizes.root.glob(".*")), "nothing is left of the way there"
    text = sizes.records["text_encoder"]  # its shapes are the same at both
    assert [s.function for s in text.sizes] == [None, None]
    assert not as_stored(sizes.package("text_encoder")).spec.description.functions


def test_weights_are_held_once(sizes: Exported) -> None:
    for name in ("unet", "vae_decoder"):
        both, once = weights(sizes.package(name)), 2 * sizes.components[name].parameters
        assert both < 1.15 * once, f"{name}: {both} bytes for two sizes, {once} of weights in float16"


@pytest.mark.parametrize("hint,limit", [("f32", 2e-3), ("f16", 8e-3)])
@pytest.mark.parametrize("static", [(1, 64, 64), TALL])
def test_each_size_computes_what_pytorch_computes(
    sizes: Exported, static: tuple[int, int, int], hint: str, limit: float
) -> None:
    assert off(*run(sizes, static, hint)) < limit


def test_the_interpreter_runs_each_function(sizes: Exported) -> None:
    path = sizes.package("unet")
    shapes = {name: load(path, function=name).inputs[0].shape for name in (FIRST, SECOND)}
    assert shapes == {FIRST: (2, 4, 8, 8), SECOND: (2, 4, 12, 8)}
    assert load(path).inputs[0].shape == shapes[FIRST], "the first is the default"
    with pytest.raises(ArtifactError, match=f"no function 'main'; it has: {FIRST}, {SECOND}"):
        load(path, function="main")


def test_coremltools_opens_it(sizes: Exported) -> None:
    """And changes no byte of it, by which an artifact would lose its verdict."""
    from coremltools.converters.mil.frontend.milproto.load import load as read

    path = sizes.package("unet")
    before = (path / "Manifest.json").read_bytes()
    assert ct.utils.load_spec(str(path)).description.defaultFunctionName == FIRST
    for name in (FIRST, SECOND):
        model = ct.models.MLModel(str(path), skip_model_load=True, function_name=name)
        assert "sample" in model._model_input_names_set
    assert (path / "Manifest.json").read_bytes() == before
    spec = as_stored(path).spec
    program = read(spec, spec.specificationVersion, str((path / WEIGHTS).parent))
    assert sorted(program.functions) == [FIRST, SECOND]
    one, two = (
        next(op.weight.val for op in program.functions[name].operations if op.op_type == "conv")
        for name in (FIRST, SECOND)
    )
    assert one.shape == (32, 4, 3, 3) and np.array_equal(one, two)


def alone(package: Path, function: str, root: Path) -> Path:
    """One function of a package as a package of its own."""
    target = Path(shutil.copytree(package, root / function / package.name))
    (target / SPEC).write_bytes(open_package(package, function).spec.SerializeToString())
    return target


def test_the_package_is_as_coremltools_makes_one(sizes: Exported, tmp_path: Path) -> None:
    """`save_multifunction` of the same two sizes: what it describes, and what it computes."""
    ours = sizes.package("vae_decoder")
    desc = ct.utils.MultiFunctionDescriptor()
    for name in (FIRST, SECOND):
        desc.add_function(str(alone(ours, name, tmp_path)), "main", name)
    desc.default_function_name = FIRST
    theirs = tmp_path / "theirs.mlpackage"
    ct.utils.save_multifunction(desc, str(theirs))
    one, two = as_stored(ours).spec, as_stored(theirs).spec
    assert one.specificationVersion == two.specificationVersion
    for spec in (one, two):
        for function in spec.description.functions:
            for feature in (*function.input, *function.output):
                feature.shortDescription = ""  # which coremltools drops or keeps as it likes
    assert list(one.description.functions) == list(two.description.functions)
    assert one.description.defaultFunctionName == two.description.defaultFunctionName
    for name in (FIRST, SECOND):
        mine, other = load(ours, function=name), load(theirs, function=name)
        z = np.random.default_rng(0).standard_normal(mine.inputs[0].shape).astype(np.float16)
        assert off(mine.predict({"z": z})["image"], other.predict({"z": z})["image"]) < 1e-3
    assert weights(ours) < 1.02 * weights(theirs)


@pytest.fixture(scope="module")
def chunks(sizes: Exported, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The UNet of both sizes, in two packages."""
    root = tmp_path_factory.mktemp("chunks")
    first, second = (split(alone(sizes.package("unet"), name, root)) for name in (FIRST, SECOND))
    for mine, other in zip(first, second, strict=True):
        add_function(mine, other, FIRST, SECOND)
    return list(first)


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_two_packages_of_two_sizes(sizes: Exported, chunks: list[Path], name: str) -> None:
    static = (1, 64, 64) if name == FIRST else TALL
    given = {n: t.numpy() for n, t in inputs(sizes, static).items()}
    with CoremlRunner(chunks[0], "unet", RunOptions(device="interpreter"), name) as runner:
        assert runner.client_faults() == []
        found = runner.run(given)["out_sample"]
    assert off(found, run(sizes, static)[0]) < 1e-6
    for path in chunks:
        functions = open_package(path).functions
        assert functions is not None and functions.described == (FIRST, SECOND)
    assert sum(map(weights, chunks)) < 1.05 * weights(sizes.package("unet"))


@pytest.mark.full
def test_chunks_and_palettes_of_each_size(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunk": True, "palettize": "6"}
    small = export(tiny, tmp_path, ("unet",), static=SIZES, deployment_target="macOS15", **options)
    compressed = small.records["unet"].details["compression"]["weights"]
    for static, name in (((1, 64, 64), FIRST), (TALL, SECOND)):
        record = small.records["unet"].at(static)
        assert record.entry.endswith("_unet_chunk1.mlpackage") and record.details["function"] == name
        assert off(*run(small, static)) < 0.1, "six bits"
        with CoremlRunner(tmp_path / record.entry, "unet", RunOptions(), name) as runner:
            assert {weight.name for weight in runner.quantised()} == set(compressed)
    both = sum(weights(path) for path in tmp_path.glob("*.mlpackage"))
    assert both < 1.25 * small.components["unet"].parameters * 6 / 8, "the codes are held twice"


def test_verify_judges_each_size(artifact: Artifact, truths: Path, tmp_path: Path) -> None:
    """A fault that only the second size has makes the whole artifact fail."""
    quick: dict[str, Any] = {"steps": 2, "samples": 1, "prompts": ["a red star"], "pipeline": False}
    report = verify(artifact.root, cache=truths, components=["unet"], **quick)
    assert report.verdict == "PASS", report.summary
    assert [(s.static, s.verdict) for s in report.sizes] == [("1x96x64", "PASS")]
    modes = [(run.mode, run.verdict) for c in report.components for run in c.runs]
    assert modes == [("graph", "PASS"), ("default", "PASS")]
    faulty = Path(shutil.copytree(artifact.root, tmp_path / "faulty"))
    path = faulty / artifact.manifest.component("unet").entry / SPEC
    stored = as_stored(path.parents[2])
    function = stored.spec.mlProgram.functions[SECOND]
    operations = function.block_specializations[function.opset].operations
    next(op for op in operations if op.type == "silu").type = "sigmoid"
    path.write_bytes(stored.spec.SerializeToString())
    rehash(faulty)
    report = verify(faulty, cache=truths, components=["unet"], bisect=False, **quick)
    assert [c.verdict for c in report.components] == ["PASS"]
    assert report.verdict == "FAIL" and report.summary.startswith("at 1x96x64: unet")


def test_run_takes_the_size_that_is_asked_for(artifact: Artifact) -> None:
    assert pipeline.native_size(pipeline.load(artifact.root)) == (64, 64)
    tall = pipeline.load(artifact.root, height=96)
    (picture,) = pipeline.paint(tall, ["a red star"], steps=1, height=96)
    assert (picture.width, picture.height) == (64, 96)
    with pytest.raises(UsageError, match=r"64×64, 96×64 pixels.*not 64×96"):
        pipeline.load(artifact.root, height=64, width=96)


def test_the_recipe_names_all_sizes(artifact: Artifact) -> None:
    recipe = from_manifest(artifact.manifest)
    assert recipe.options["static"] == SIZES
    assert parse_options(get_target("coreml"), recipe.options).sizes() == ((1, 64, 64), TALL)


def test_core_ml_would_be_asked_for_the_function(
    sizes: Exported,
    mac: list[tuple[str, str]],  # noqa: F811
) -> None:
    """As on a Mac, with the interpreter behind coremltools' classes."""
    record = sizes.records["unet"].at(TALL)
    given = {n: t.numpy() for n, t in inputs(sizes, TALL).items()}
    with get_target("coreml").open(sizes.root, record, RunOptions(precision_hint="f16")) as runner:
        assert runner.run(given)["out_sample"].shape == (2, 4, 12, 8)
    assert mac == [(sizes.package("unet").name, "ALL")]


def test_only_swift_is_offered(artifact: Artifact) -> None:
    """Apple's Python runner reads `spec.description.input`, empty where there are several functions."""
    named = artifact.manifest.model_copy(
        update={"source": artifact.manifest.source.model_copy(update={"source": "org/model"})}
    )
    assert [c.title for c in apple("o/n", named)] == ["Swift (ml-stable-diffusion)"]


def test_room_is_asked_for_before(sizes: Exported) -> None:
    unet = sizes.components["unet"]
    one = estimate(unet, CoremlOptions(deployment_target="iOS18", static="1x64x64"))  # type: ignore[arg-type]
    two = estimate(unet, parse_options(get_target("coreml"), {"static": SIZES, "deployment_target": "iOS18"}))
    assert two.disk - one.disk >= 2 * 2 * unet.parameters


# What is refused


def test_targets_without_functions_say_so(tiny: Path, tmp_path: Path) -> None:
    for wish in ({}, {"deployment_target": "iOS17"}, {"deployment_target": "macOS14"}):
        with pytest.raises(UsageError, match=r"several sizes in one package need --deployment-target iOS18"):
            make_plan(str(tiny), "coreml", tmp_path / "x", {"static": SIZES, **wish}, verify=False)


def test_a_size_that_is_given_twice_is_one(tiny: Path, tmp_path: Path) -> None:
    options = parse_options(get_target("coreml"), {"static": ["1x64x64", "1x64x64"]})
    assert options.sizes() == ((1, 64, 64),), "also for targets that have one function"
    three = {"static": ["1x64x64", "1x96x64", "1x64x64"], "deployment_target": "iOS18"}
    assert parse_options(get_target("coreml"), three).sizes() == ((1, 64, 64), TALL)


def test_every_size_must_fit(tiny: Path, tmp_path: Path) -> None:
    for second, why in (
        ("1x64x60", "--static 1x64x60: height and width must be multiples of 8"),
        ("2x64x64", "one picture at a time, not 2"),
        ("64x64", "is not BATCHxHEIGHTxWIDTH"),
    ):
        with pytest.raises(UsageError, match=why):
            wishes = {"static": ["1x64x64", second], "deployment_target": "iOS18"}
            make_plan(str(tiny), "coreml", tmp_path / "x", wishes, verify=False)


def test_the_linter_knows_functions(sizes: Exported, tmp_path: Path) -> None:
    source = sizes.package("unet")
    assert lint(open_package(source, SECOND), "unet") == []
    damaged = Path(shutil.copytree(source, tmp_path / source.name))

    def said(change: Any, function: str = SECOND) -> str:
        spec = as_stored(source).spec
        change(spec)
        (damaged / SPEC).write_bytes(spec.SerializeToString())
        return " ".join(lint(open_package(damaged, function), "unet"))

    assert "names 'other' as default, which it lacks" in said(
        lambda spec: setattr(spec.description, "defaultFunctionName", "other")
    )
    assert "specification version 8; Core ML wants 9" in said(
        lambda spec: setattr(spec, "specificationVersion", 8)
    )
    assert f"describes the functions {SECOND} and has programs for {FIRST}, {SECOND}" in said(
        lambda spec: spec.description.functions.pop(0)
    )
    second = as_stored(source).spec.description.functions[1]
    assert second.name == SECOND
    assert "they give [2]" in said(
        lambda spec: next(
            f for f in spec.description.functions[1].input if f.name == "timestep"
        ).type.multiArrayType.shape.append(1)
    )  # fmt: skip


def test_damaged_functions_are_refused(sizes: Exported, tmp_path: Path) -> None:
    source = sizes.package("unet")
    damaged = Path(shutil.copytree(source, tmp_path / source.name))
    spec = as_stored(source).spec
    del spec.mlProgram.functions[SECOND]
    spec.description.defaultFunctionName = "gone"
    (damaged / SPEC).write_bytes(spec.SerializeToString())
    with pytest.raises(ArtifactError, match=f"no function {SECOND!r}"):
        load(damaged, function=SECOND)
    with pytest.raises(ArtifactError, match="no function 'gone'"):
        load(damaged)
    twice = as_stored(source).spec
    twice.description.functions[1].name = FIRST
    (damaged / SPEC).write_bytes(twice.SerializeToString())
    with pytest.raises(ArtifactError, match=f"no function {FIRST!r}"):
        load(damaged)


def test_chunks_with_other_functions_are_found(chunks: list[Path], tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(path, tmp_path / path.name)) for path in chunks)
    spec = as_stored(second).spec
    spec.description.defaultFunctionName = SECOND
    (second / SPEC).write_bytes(spec.SerializeToString())
    found = lint(open_package(first), "unet", open_package(second, FIRST))
    assert any("another default" in fault for fault in found), found


def test_constants_of_both_functions_come_from_one_file(sizes: Exported) -> None:
    path = sizes.package("unet")
    held = {}
    for name in (FIRST, SECOND):
        package = open_package(path, name)
        constants = Constants(package)
        function = package.spec.mlProgram.functions["main"]
        held[name] = {
            op.attributes["val"].blobFileValue.offset: constants.read(op.attributes["val"], "x").shape
            for op in function.block_specializations[function.opset].operations
            if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
        }
    shared = held[FIRST].keys() & held[SECOND].keys()
    assert len(shared) > 0.95 * len(held[FIRST]) and all(held[FIRST][o] == held[SECOND][o] for o in shared)
