"""Whatever bytes a package holds, it runs or one of our errors says why not, in bounded time and memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.errors import ArtifactError, ExporterError
from exporter.targets.coreml import load
from exporter.targets.coreml.interpreter.guard import MEMORY
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.benchmarks.process import status_mb
from tests.mutation.formats.coreml import SPEC, WEIGHTS, edit
from tests.targets.coreml.conftest import Exported
from tests.targets.coreml.inference import ct

FUZZ = settings(
    max_examples=120, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
"""Five seconds for an input of a few hundred kB that is read in a tenth of one."""
ROOM = 600.0
"""MB that all of a test's packages together may add to the process."""

changes = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("double"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("end"), st.floats(0, 1), st.just(0)),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def changed(data: bytes, what: list[tuple[str, float, int]]) -> bytes:
    """The bytes with some set, flipped, left out, doubled, or cut off."""
    result = bytearray(data)
    for kind, where, value in what:
        place = min(int(where * len(result)), len(result) - 1)
        if place < 0:
            break
        if kind == "set":
            result[place] = value
        elif kind == "flip":
            result[place] ^= 1 << value
        elif kind == "cut":
            del result[place : place + value]
        elif kind == "double":
            result[place:place] = result[place : place + value]
        else:
            del result[place:]
    return bytes(result)


def check(package: Path, component: str) -> None:
    """Read it, look it over and run it, as `exporter verify` does."""
    try:
        lint(open_package(package), component)
        model = load(package)
        inputs = {f.name: np.zeros(f.shape, f.dtype) for f in model.inputs if np.prod(f.shape) < 1e6}
        if len(inputs) == len(model.inputs):
            outputs = model.predict(inputs)
            assert all(outputs[f.name].shape in f.shapes or not f.shape for f in model.outputs)
    except ExporterError as error:
        assert 0 < len(str(error)) < 2000


@pytest.fixture(scope="module")
def package(half: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder's package: integers, gathers, softmax, norms."""
    source = half.package("text_encoder")
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("fuzz") / source.name))


@pytest.fixture(scope="module")
def bounded() -> Any:
    """What the whole module may take."""
    before = status_mb("VmRSS")
    yield
    assert status_mb("VmRSS") - before < ROOM


@pytest.mark.parametrize("file", [SPEC, WEIGHTS, "Manifest.json"])
def test_changed_bytes(package: Path, bounded: None, file: str) -> None:
    original = (package / file).read_bytes()

    @FUZZ
    @given(what=changes)
    def run(what: list[tuple[str, float, int]]) -> None:
        (package / file).unlink()  # the last example's may still be mapped
        (package / file).write_bytes(changed(original, what))
        check(package, "text_encoder")

    try:
        run()
    finally:
        (package / file).unlink(missing_ok=True)
        (package / file).write_bytes(original)
    check(package, "text_encoder")


@FUZZ
@given(data=st.binary(max_size=300))
def test_any_bytes(package: Path, data: bytes) -> None:
    path = package.parent / "any.mlpackage"
    shutil.copytree(package, path, dirs_exist_ok=True)
    (path / SPEC).write_bytes(data)
    with pytest.raises(ExporterError):
        load(path)


def program(tmp_path: Path, build: Callable[[Any, Any], Any], shape: tuple[int, ...] = (2, 3)) -> Path:
    """A package of one operation."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS16)
    def made(x: Any) -> Any:
        return build(mb, x)

    model = ct.convert(
        made, convert_to="mlprogram", skip_model_load=True, minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
    )  # fmt: skip
    model.save(str(tmp_path / "small.mlpackage"))
    return tmp_path / "small.mlpackage"


HUGE = 1 << 28
AMPLIFIERS: dict[str, tuple[Callable[[Any, Any], Any], str, list[int]]] = {
    "tile": (lambda mb, x: mb.tile(x=x, reps=[2, 2], name="y"), "reps", [HUGE, 2]),
    "pad": (
        lambda mb, x: mb.pad(x=x, pad=[0, 0, 1, 1], mode="constant", constant_val=0.0, name="y"),
        "pad", [0, 0, HUGE, HUGE],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(AMPLIFIERS))
def test_a_constant_that_asks_for_all_memory_is_refused_before_it_gets_it(kind: str, tmp_path: Path) -> None:
    build, parameter, values = AMPLIFIERS[kind]
    package = program(tmp_path, build)
    x = {"x": np.ones((2, 3), np.float32)}
    assert load(package).predict(x)

    def enlarge(spec: Any) -> None:
        block = spec.mlProgram.functions["main"]
        operations = block.block_specializations[block.opset].operations
        op = next(o for o in operations if o.type == kind)
        name = op.inputs[parameter].arguments[0].name
        constant = next(o for o in operations if o.outputs[0].name == name)
        constant.attributes["val"].immediateValue.tensor.ints.values[:] = values

    edit(package, enlarge)
    before = status_mb("VmRSS")
    with pytest.raises(ArtifactError, match=rf"{kind} 'y': is declared \[.*, gives \[.*"):
        load(package).predict(x)
    assert status_mb("VmRSS") - before < 100


def test_operands_that_broadcast_to_more_than_is_declared(tmp_path: Path) -> None:
    package = program(tmp_path, lambda mb, x: mb.add(x=x, y=np.ones((1, 3), np.float32), name="y"))

    def reshape(spec: Any) -> None:
        block = spec.mlProgram.functions["main"]
        for op in block.block_specializations[block.opset].operations:
            if op.type == "const" and op.outputs[0].type.tensorType.rank == 2:
                for value in (op.outputs[0].type, op.attributes["val"].type):
                    value.tensorType.dimensions[0].constant.size = 3
                    value.tensorType.dimensions[1].constant.size = 1

    edit(package, reshape)
    with pytest.raises(ArtifactError, match="add 'y'"):
        load(package).predict({"x": np.ones((2, 3), np.float32)})


def test_a_declaration_larger_than_the_machine(tmp_path: Path) -> None:
    package = program(tmp_path, lambda mb, x: mb.relu(x=x, name="y"))

    def declare(spec: Any) -> None:
        block = spec.mlProgram.functions["main"]
        (op,) = [o for o in block.block_specializations[block.opset].operations if o.type == "relu"]
        op.outputs[0].type.tensorType.dimensions[0].constant.size = MEMORY

    edit(package, declare)
    with pytest.raises(ArtifactError, match=r"relu 'y' .* GB in float32; this machine has"):
        load(package)
