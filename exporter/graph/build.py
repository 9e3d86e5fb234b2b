"""`build()`: from a component to a weight-free graph."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from exporter import cache
from exporter.architectures.base import INNER, Component, Size, TensorSpec
from exporter.errors import CheckpointError, UnsupportedError
from exporter.graph import skeleton
from exporter.graph.attention import OPSETS, Attention
from exporter.graph.capture import capture, is_cast
from exporter.graph.identity import key_of
from exporter.graph.modules import module_outputs
from exporter.graph.naming import finish
from exporter.graph.optimise import fold_layout, name_weights, optimise, tidy
from exporter.graph.translate import translate
from exporter.graph.weights import Recipe
from exporter.memory import hand_back
from exporter.progress import NullProgress, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)

Layout = Literal["runtime", "stored"]
"""`runtime`: weights are transposed and reshaped as the operators want them, so that the runtime has
nothing to fold when it opens the file. `stored`: as the checkpoint has them, for a consumer that takes
both; then most bytes are the checkpoint's own and need not be copied (`write(..., link=True)`)."""

HOLDER = "exporter"
"""Domain of the nodes that hold a value while the graph is optimised; none is left in the end."""
MODULES_KEY = "exporter.modules"
"""Model metadata: JSON object, module path as diffusers names it → name of the value it returns."""


@dataclass
class Graph:
    """An ONNX graph without its weights.

    Attributes:
        model: The onnx_ir model. Initializers named in `weights` have no value; small constants do.
        weights: Initializer name → how its bytes are made.
        modules: Module path → name of the value it returns, in order of execution.
        inputs / outputs: What the graph declares; dims are symbols, or sizes where baked.
        dtype: Of weights and arithmetic. Inputs and outputs are float32 whatever it is.
        attention: Form of the attention operator.
        opset: Version of the standard operator set.
        route: `direct`, or `torch` where an operator is not covered by this package's own translation.
    """

    model: ir.Model
    weights: dict[str, Recipe]
    modules: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtype: str
    attention: Attention
    opset: int
    route: str

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they will be written."""
        return sum(recipe.nbytes for recipe in self.weights.values())


def build(
    component: Component,
    *,
    static: Size | None = None,
    dtype: str = "float32",
    attention: Attention = "fused",
    opset: int | None = None,
    layout: Layout = "runtime",
    progress: Progress | None = None,
) -> Graph:
    """Capture, translate and optimise a component, or take what an earlier call made. No weight is read.

    The graph is looked up in the user's cache (see `exporter.graph.skeleton`); one from there equals one made
    now, to the byte.

    Args:
        component: What to convert.
        static: Bake this size (of the component's own tensors); None keeps symbolic dims dynamic.
        dtype: `float32` or `float16`, of weights and arithmetic.
        attention: Form of the attention operator; see `Attention`.
        opset: Version of the standard operator set; None takes the mode's own.
        layout: Of the weights; see `Layout`.
        progress: Told about each phase.

    Raises:
        UnsupportedError: A module or operator has no route; the message names both.
        CheckpointError: Weights are missing or do not fit the config.
    """
    progress = progress or NullProgress()
    version = opset or OPSETS[attention]
    key = None
    if cache.enabled():
        options = {
            "static": static, "dtype": dtype, "attention": attention, "opset": version, "layout": layout,
        }  # fmt: skip
        key = key_of(component, options)
    known = skeleton.load(key, component)
    if known is not None:
        progress.start(f"{component.name}: graph from the cache")
        progress.done()
        return known
    data = skeleton.encode(_build(component, static, dtype, attention, version, layout, progress), component)
    if key is not None:
        cache.write(cache.SKELETONS, key, data)
    hand_back()  # what was traced is the larger part: the graph is made anew from its bytes
    return skeleton.decode(data, component)


def _build(
    component: Component,
    static: Size | None,
    dtype: str,
    attention: Attention,
    version: int,
    layout: Layout,
    progress: Progress,
) -> Graph:
    if version < OPSETS[attention]:
        raise UnsupportedError(
            f"Attention as {attention} needs opset {OPSETS[attention]} or later, not {version}.",
            hint="Leave out --opset, or use --attention decomposed with an older one.",
        )
    progress.start(f"{component.name}: capture", 3)
    model, modules, route = _to_onnx(component, static, dtype, attention, version, progress)
    progress.update(2, "optimise")
    weights = _match(component, model, dtype)
    named = _optimise(model, modules, direct=route == "direct")
    recipes = fold_layout(model, weights) if layout == "runtime" else name_weights(model, weights)
    inputs, outputs = _declare(component, model, static, dtype)
    finish(model, named)
    paths = {path: str(value.name) for path, value in named.items()}
    model.metadata_props[MODULES_KEY] = json.dumps(paths)
    progress.done()
    return Graph(model, recipes, paths, inputs, outputs, dtype, attention, version, route)


def _to_onnx(
    component: Component,
    static: Size | None,
    dtype: str,
    attention: Attention,
    version: int,
    progress: Progress,
) -> tuple[ir.Model, dict[str, ir.Value], str]:
    """The model, the value of each module, and the route taken."""
    from exporter.graph import direct

    program = capture(component, static=static, dtype=dtype, attention="decomposed")
    progress.update(1, "translate to ONNX")
    try:
        model, modules = direct.translate(component, program, version, attention)
        return model, modules, "direct"
    except direct.NotCovered as reason:
        log.info("%s goes through torch's exporter because of %s", component.name, reason)
    if attention == "fused":  # torch's route has no fused operator: it is put in while capturing
        program = capture(component, static=static, dtype=dtype, attention=attention)
    model = translate(component, program, version)
    return model, module_outputs(model), "torch"


def _optimise(model: ir.Model, modules: dict[str, ir.Value], *, direct: bool) -> dict[str, ir.Value]:
    """Optimise, and tell what became of each module's value. Those that are gone are left out.

    Passes keep what the graph returns, so meanwhile a node of ours holds each module's value and is returned.
    (The values themselves would not do: equal ones, two of which are returned, cannot be merged.)
    """
    import onnx_ir as ir

    graph = model.graph
    promised = len(graph.outputs)
    returned = {path: value for path, value in modules.items() if not value.is_graph_output()}
    places = {path: graph.outputs.index(v) for path, v in modules.items() if path not in returned}
    graph.opset_imports[HOLDER] = 1
    holders = {
        path: ir.node("Hold", [value], {"place": place}, domain=HOLDER)
        for place, (path, value) in enumerate(returned.items())
    }
    for holder in holders.values():
        graph.append(holder)
        graph.outputs.append(holder.outputs[0])
    if direct:
        tidy(model)
    else:
        optimise(model)
    values = {path: graph.outputs[place] for path, place in places.items()}
    values |= {path: holder.inputs[0] for path, holder in holders.items() if holder.inputs[0] is not None}
    del graph.outputs[promised:]
    graph.remove(list(holders.values()), safe=True)
    tidy(model)
    alive = {value for node in graph for value in node.outputs}
    return {path: values[path] for path in modules if values.get(path) in alive}


def _match(component: Component, model: ir.Model, dtype: str) -> dict[ir.Value, Recipe]:
    """Pair every initializer that is a parameter with its stored tensor, by name, shape and kind.

    Raises:
        CheckpointError: A weight is missing, or has another shape or kind.
    """
    where = f"{component.checkpoint.source}, component {component.folder!r}"
    result = {}
    for name, value in model.graph.initializers.items():
        stored = component.weights.get(name)
        if stored is None:
            if _has_data(value):
                continue  # a buffer or a small constant
            raise CheckpointError(
                f"{where}: the config asks for {name.removeprefix(INNER)!r} which the files do not hold.",
                hint="config.json and weights do not belong together, or a shard is missing.",
            )
        assert value.shape is not None and value.dtype is not None
        shape = tuple(int(n) for n in value.shape.numpy())
        if stored.shape != shape:
            raise CheckpointError(
                f"{where}: {stored.name!r} has shape {list(stored.shape)} on disk, "
                f"the config asks for {list(shape)}.",
                hint="config.json and weights do not belong together.",
            )
        value.const_value = None
        kind = dtype if value.dtype.is_floating_point() else value.dtype.numpy().name
        if not skeleton.same_kind(stored, kind):
            raise CheckpointError(
                f"{where}: {stored.name!r} is stored as {stored.dtype}, the model computes it as {kind}.",
                hint="config.json and weights do not belong together.",
            )
        result[value] = Recipe(stored, kind, shape)
    return result


def _has_data(value: ir.Value) -> bool:
    """Whether an initializer carries numbers, rather than a fake tensor's mere shape."""
    from torch._subclasses.fake_tensor import FakeTensor

    raw = getattr(value.const_value, "raw", None)
    return value.const_value is not None and not isinstance(raw, FakeTensor)


def _declare(
    component: Component, model: ir.Model, static: Size | None, dtype: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Name and type inputs and outputs as the component does, casting at the border for float16."""
    import onnx_ir as ir

    graph = model.graph
    if [value.name for value in graph.inputs] != [spec.name for spec in component.inputs]:
        names = ", ".join(str(value.name) for value in graph.inputs)
        raise UnsupportedError(f"The {component.name} uses only some of its inputs ({names}).")

    def baked(spec: TensorSpec) -> TensorSpec:
        dims = spec.dims if static is None else spec.shape(static)
        return replace(spec, dims=dims)

    inputs, outputs = [baked(s) for s in component.inputs], [baked(s) for s in component.outputs]
    taken = {spec.name for spec in (*inputs, *outputs)}
    for node in graph:
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}.inner"
    half = ir.DataType.FLOAT16
    for index, spec in enumerate(inputs):
        value = graph.inputs[index]
        value.shape = ir.Shape(spec.dims)
        if dtype == "float16" and is_cast(spec):
            cast = ir.node("Cast", [value], {"to": half})
            users = [use for use in value.uses() if use.node is not cast]
            for use in users:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            cast.outputs[0].name = f"{spec.name}.float16"
            cast.outputs[0].dtype = half
            cast.name = f"{spec.name}.cast"
            graph.insert_before(graph[0], cast)
            value.dtype = ir.DataType.FLOAT
    for index, spec in enumerate(outputs):
        value = graph.outputs[index]
        if dtype == "float16":
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            cast.name = f"{spec.name}.cast"
            graph.append(cast)
            value = graph.outputs[index] = cast.outputs[0]
        elif value.name in {v.name for v in graph.inputs}:
            raise UnsupportedError(f"The {component.name} returns its input {value.name!r} unchanged.")
        value.name = spec.name
        value.dtype = ir.DataType.FLOAT
        value.shape = ir.Shape(spec.dims)
    return tuple(inputs), tuple(outputs)
