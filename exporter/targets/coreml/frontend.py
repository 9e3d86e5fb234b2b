"""coremltools, with what it needs on a current PyTorch, and without what it says about itself."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import UnsupportedError

if TYPE_CHECKING:
    from exporter.targets.coreml.layout import Layout
    from exporter.targets.coreml.options import CoremlOptions

WAVES = ("sin", "cos")
CARRIERS = frozenset(
    ("mul", "real_div", "add", "sub", "expand_dims", "squeeze", "reshape", "cast", "identity", "exp")
)
"""Operations between the timestep and its sine; nothing else is followed."""
COMPUTE_UNITS = {
    "all": "ALL",
    "cpu_and_ne": "CPU_AND_NE",
    "cpu_and_gpu": "CPU_AND_GPU",
    "cpu_only": "CPU_ONLY",
}


def coremltools() -> Any:
    """The package. On Linux it logs every binary it misses; reading and converting need none of them."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct

    return ct


def convert(program: Any, layout: Layout, options: CoremlOptions) -> tuple[Any, dict[str, float]]:
    """A traced program as an `MLModel` that is not loaded, and its scalars before they were rounded.

    Args:
        program: `torch.export`'s, decomposed.
        layout: Names, shapes and dtypes of inputs and outputs.

    Raises:
        UnsupportedError: coremltools has no route for an operator, or not on this deployment target.
    """
    ct = coremltools()
    register_operators()
    start_names()
    scalars: dict[str, float] = {}
    with quiet():
        try:
            model = ct.convert(
                program,
                convert_to="mlprogram",
                skip_model_load=True,
                minimum_deployment_target=deployment_target(options.deployment_target),
                inputs=[
                    ct.TensorType(name=f.name, shape=f.shape, dtype=np.dtype(f.dtype).type)
                    for f in layout.inputs
                ],
                outputs=[ct.TensorType(name=f.name, dtype=np.float32) for f in layout.outputs],
                pass_pipeline=passes(),
                compute_precision=precision(options.dtype, scalars),
                compute_units=getattr(ct.ComputeUnit, COMPUTE_UNITS[options.compute_units]),
            )
        except Exception as error:  # coremltools raises whatever its parts do
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(
                f"coremltools cannot convert this for {options.deployment_target}: {first}",
                hint="Try a newer --deployment-target, or --attention original.",
            ) from error
    return model, scalars


def save(model: Any, path: Path) -> list[Path]:
    """Write an `MLModel` as a package, the same bytes in every process. Returns its files."""
    with quiet():
        model.save(str(path))
    for file in path.glob("Data/*/*.mlmodel"):  # its maps would lie in the order of this process
        file.write_bytes(model.get_spec().SerializeToString(deterministic=True))
    for extra in path.glob("*.json"):
        if extra.name != "Manifest.json":  # a debug mapping that the manifest does not know
            extra.unlink()
    name_items(path / "Manifest.json")
    return sorted(file for file in path.rglob("*") if file.is_file())


def name_items(manifest: Path) -> None:
    """Replace the manifest's random identifiers by ones made of what they name.

    In their order, for so does coremltools write it, and that whenever a package is opened: in another order
    it would change a file of an artifact by looking at it.
    """
    data = json.loads(manifest.read_text(encoding="utf-8"))
    names = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper()
        for old, entry in data["itemInfoEntries"].items()
    }
    entries = {names[old]: entry for old, entry in data["itemInfoEntries"].items()}
    data["itemInfoEntries"] = dict(sorted(entries.items()))
    data["rootModelIdentifier"] = names[data["rootModelIdentifier"]]
    manifest.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def passes() -> Any:
    """coremltools' passes but one, which turns `x * gamma + beta` into a batch norm of variance 1 and
    epsilon 1e-5 and does not make up for the epsilon: every group norm comes out 5e-6 too small."""
    pipeline = coremltools().PassPipeline()
    pipeline.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    return pipeline


def precision(dtype: str, scalars: dict[str, float]) -> Any:
    """What coremltools casts to float16: everything, except what feeds the sine of a timestep.

    In float16 the phase of a timestep of 981 is off by up to 0.27.

    Args:
        scalars: Filled with the constants of one element that are cast, under the names they get, as they
            were: an epsilon of 1e-5 is off by a thousandth in float16, which is no fault of the graph.
    """
    ct = coremltools()
    if dtype == "float32":
        return ct.precision.FLOAT32

    def is_cast(op: Any) -> bool:
        if feeds_wave(op):
            return False
        for value in op.inputs.values():
            for var in value if isinstance(value, list | tuple) else (value,):
                number = getattr(var, "val", None)
                if (
                    isinstance(number, np.generic | np.ndarray)
                    and number.size == 1
                    and number.dtype.kind == "f"
                ):
                    scalars[f"{var.name}_to_fp16"] = float(number.reshape(-1)[0])
        return True

    return ct.transform.FP16ComputePrecision(op_selector=is_cast)


def feeds_wave(op: Any) -> bool:
    """Whether an operation is a sine or cosine, or leads straight into one."""
    if op.op_type in WAVES:
        return True
    if op.op_type not in CARRIERS:
        return False
    return any(feeds_wave(child) for output in op.outputs for child in output.child_ops)


def deployment_target(name: str) -> Any:
    """coremltools' value of `iOS17`, `macOS14` …"""
    return getattr(coremltools().target, name)


def register_operators() -> None:
    """`alias` is to coremltools what `alias_copy` is, `gelu` keeps its form, and the exponential of a
    constant is PyTorch's.

    coremltools reads the form only where it is given by place; torch's exporter gives `approximate` by name,
    so that every tanh form became the exact one. And it folds constants with numpy, whose exponential differs
    from PyTorch's in the last bit: of a timestep's frequencies a thousand times that reaches the sine.
    """
    import torch
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as REGISTRY

    if "alias" not in REGISTRY.name_to_func_mapping:
        REGISTRY.set_func_by_name(REGISTRY.get_func("alias_copy"), "alias")

    def gelu(context: Any, node: Any) -> None:
        given = ops._get_inputs(context, node)
        named = ops._get_kwinputs(context, node, "approximate", default=given[1:])
        form = named[0] if named else "none"
        form = form if isinstance(form, str) else form.val
        mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[form]
        context.add(Builder.gelu(x=given[0], mode=mode, name=node.name))

    def exp(context: Any, node: Any) -> None:
        (x,) = ops._get_inputs(context, node, expected=1)
        if isinstance(x.val, np.ndarray) and x.val.dtype == np.float32:
            made = Builder.const(val=torch.from_numpy(x.val).exp().numpy(), name=node.name)
        else:
            made = Builder.exp(x=x, name=node.name)
        context.add(made)

    REGISTRY.name_to_func_mapping["gelu"] = gelu
    REGISTRY.name_to_func_mapping["exp"] = exp


def start_names() -> None:
    """Number the values of a program from 0: coremltools counts on from what used its builder before, for it
    starts again only after a conversion that worked."""
    from coremltools.converters.mil.converter import _reset_conversion_state

    _reset_conversion_state()


def operations_by_handle(model: Any) -> dict[int, list[Any]]:
    """`debug_handle` of a traced node → the operations made of it, in order, constants left out."""
    from coremltools.converters.mil.mil.scope import ScopeSource

    result: dict[int, list[Any]] = {}
    for op in computed(model):
        for handle in op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or []:
            if handle is not None:
                result.setdefault(int(handle), []).append(op)
    return result


def computed(model: Any) -> list[Any]:
    """The operations of the converted program, constants left out."""
    return [op for op in model._mil_program.functions["main"].operations if op.op_type != "const"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and warnings of the converter off the terminal; errors still raise."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
