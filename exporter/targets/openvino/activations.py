"""Activations in int8: `FakeQuantize` in front of products, its range from captured inputs by nncf.

Only the inputs of convolutions and of products with weights are rounded: what is between them (norms, sums,
attention, the activation functions) stays as it is, and so do the layers that 256 steps serve badly (`KEPT`).
nncf chooses the places and measures the ranges; the weights are left to `compression`, whose codes are the
nearest to the checkpoint's and can be held against it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import BackendMissing, UnsupportedError
from exporter.targets.base import RoundedActivation

if TYPE_CHECKING:
    import openvino

    from exporter.architectures.base import Component

PRODUCTS = ("Convolution", "MatMul")
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze")
"""Operators that only move numbers: a rounding before or behind them is the same."""
KEPT = re.compile(r"(^|\.)(conv_in|conv_out|quant_conv|post_quant_conv|time_embedding|add_embedding)(\.|$)")
"""Layers whose inputs are not rounded, by the name of their weight: the first and the last of a network and
the embedding of the timestep. With these rounded too, the last step of the embedded UNet keeps 7.5 dB."""
LEVELS = 256
STEPS, SEED, SAMPLES = 8, 1000, 8
"""Of the run that is calibrated with, unless others are asked for: another seed than `verify` takes, so that
the verdict speaks of inputs that calibration has not seen."""
CI = "NNCF_CI"
"""nncf reports its use to its makers unless this is set when it is imported."""


def require_nncf() -> None:
    """
    Raises:
        BackendMissing: nncf is not installed.
    """
    if find_spec("nncf") is None:
        raise BackendMissing(
            "Activations in int8 need nncf, which is not installed here.",
            hint='pip install "exporter[openvino]", or leave out --activations.',
        )


def round_activations(
    model: openvino.Model, component: Component, inputs: Sequence[Mapping[str, np.ndarray]]
) -> openvino.Model:
    """The model with `FakeQuantize` in front of its products; its weights are as they were.

    Args:
        model: With its float32 weights in it.
        inputs: By the model's names, as captured. A range is the least and the largest value that these
            give, zero included, and is widened until zero is one of its numbers.

    Raises:
        BackendMissing: nncf is not installed.
        UnsupportedError: nncf refuses the model, or would round something else besides.
    """
    require_nncf()
    nncf = _quiet_nncf()
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    chosen = {node.get_friendly_name() for node in _products(model)}
    kinds = {node.get_type_name() for node in model.get_ops()} - {*PRODUCTS, *MOVES, "Concat"}
    kinds -= {"Parameter", "Result", "Constant"}
    others = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() in PRODUCTS and node.get_friendly_name() not in chosen
    ]
    settings = AdvancedQuantizationParameters(
        # Both would change numbers of the checkpoint: weights by what activations are divided by, and biases.
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        backend_params={"compress_weights": False},
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it draws a bar there
            rounded = nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                subset_size=len(inputs),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=others, types=sorted(kinds), validate=False),
                advanced_parameters=settings,
            )
    except Exception as error:  # it raises several unrelated types
        from exporter.targets.openvino.model import plain

        raise UnsupportedError(
            f"nncf cannot calibrate the {component.name} ({component.class_name}): {plain(error)}"
        ) from error
    weights = {node.get_friendly_name(): weight_of(node) for node in _products(rounded)}
    for node in list(rounded.get_ordered_ops()):
        if node.get_type_name() == "FakeQuantize":
            source = node.input_value(0)
            if source.get_node().get_type_name() == "Constant":
                _bypass(node)
            elif not set(_fed(node)) <= chosen:
                raise UnsupportedError(
                    f"nncf would round more of the {component.name} than the inputs of its products: "
                    f"{node.get_friendly_name()}."
                )
            else:  # nncf names it by what is before it, which may have a number of this process as its name
                _name(node, f"{min(str(weights[fed]) for fed in _fed(node))}.input")
    for key in [key for key in rounded.get_rt_info() if key == "nncf"]:
        del rounded.get_rt_info()[key]
    return rounded


def roundings(model: openvino.Model) -> Iterator[RoundedActivation]:
    """Every weight whose product has rounded inputs, with the range and the number of levels."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in PRODUCTS:
            continue
        source = behind_moves(node.input_value(0).get_node())
        if source.get_type_name() != "FakeQuantize":
            continue
        low, high, low_out, high_out = (_number(source, position) for position in range(1, 5))
        levels = int(source.get_attributes()["levels"])
        if (low, high) != (low_out, high_out):  # it would scale, not only round
            low, high = float("nan"), float("nan")
        yield RoundedActivation(weight_of(node) or node.get_friendly_name(), low, high, levels)


def leave_out(model: openvino.Model) -> int:
    """Take every rounding of activations out of a model, in place; returns how many there were."""
    nodes = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    for node in nodes:
        _bypass(node)
    if nodes:
        model.validate_nodes_and_infer_types()
    return len(nodes)


def has_roundings(model: openvino.Model) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def described(model: openvino.Model, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """For the manifest: how the ranges were found, and what they are, by the name of the weight."""
    found = {each.name: [each.low, each.high] for each in roundings(model)}
    return {"dtype": "int8", **calibration, "ranges": found}


def _products(model: openvino.Model) -> list[openvino.Node]:
    """Products with a weight whose inputs are to be rounded."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in PRODUCTS
        and (name := weight_of(node)) is not None
        and not KEPT.search(name)
        and len(node.input_value(1).get_partial_shape()) >= 2
    ]


def weight_of(node: openvino.Node) -> str | None:
    """The name of a product's weight as the checkpoint has it; None where both sides are computed."""
    from exporter.targets.openvino.compression import CODES
    from exporter.targets.openvino.model import COMPRESSED

    if node.get_type_name() not in PRODUCTS:
        return None
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize"):
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant":
        return None
    return str(source.get_friendly_name()).removesuffix(CODES).removesuffix(COMPRESSED)


def behind_moves(node: openvino.Node) -> openvino.Node:
    """What computes a node's values, however they are moved on the way to it."""
    while node.get_type_name() in MOVES:
        node = node.input_value(0).get_node()
    return node


def _fed(node: openvino.Node) -> Iterator[str]:
    """What computes with a node's values, however they are moved on the way there."""
    for port in node.output(0).get_target_inputs():
        user = port.get_node()
        if user.get_type_name() in MOVES and port.get_index() == 0:
            yield from _fed(user)
        elif user.get_type_name() != "ShapeOf":
            yield user.get_friendly_name()


def _number(node: openvino.Node, position: int) -> float:
    """A scalar operand of a `FakeQuantize`; NaN where it has more than one number."""
    source = node.input_value(position).get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    values = source.get_data() if source.get_type_name() == "Constant" else np.empty(0)
    return float(values.reshape(-1)[0]) if values.size == 1 else float("nan")


def _name(node: openvino.Node, name: str) -> None:
    node.set_friendly_name(name)
    for position, part in enumerate(("low", "high", "low_out", "high_out"), 1):
        node.input_value(position).get_node().set_friendly_name(f"{name}.{part}")


def _bypass(node: openvino.Node) -> None:
    source = node.input_value(0)
    names = node.output(0).get_names()
    node.output(0).set_names(set())
    source.set_names(source.get_names() | names)
    for user in list(node.output(0).get_target_inputs()):
        user.replace_source_output(source)


def _quiet_nncf() -> Any:
    """nncf without its messages, and without its reports of use."""
    before = os.environ.get(CI)
    os.environ[CI] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ[CI]
        else:
            os.environ[CI] = before
    nncf.set_log_level(logging.ERROR)
    return nncf
