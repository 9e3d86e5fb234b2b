"""Weights are kept away from OpenVINO's transformations, and rounded tensor by tensor on their way back.

OpenVINO's common transformations read every constant, and its own rounding to float16 needs the whole float32
model and, to put the vectors back, the rounded one besides: that took 5.6 GB at the peak for Stable Diffusion
1.5 (`python -m tests.benchmarks.export_vs_optimum --to openvino`). To bfloat16 it does not round at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from exporter.targets.openvino.mapped import let_go
from exporter.targets.openvino.model import COMPRESSED, is_vector

if TYPE_CHECKING:
    import numpy as np
    import openvino

PIECE = 1 << 20
"""Numbers rounded at a time."""
EVERY = 1 << 27
"""Bytes of float32 weights after which the pages they were read from are handed back."""


@dataclass(frozen=True)
class Held:
    """A weight that is kept back, and the input of the model that stands for it meanwhile."""

    constant: openvino.Node
    stand_in: openvino.Node

    @property
    def name(self) -> str:
        """Of the weight: the checkpoint's, where nothing was made of it on the way."""
        return str(self.stand_in.get_friendly_name())


def hold_back(model: openvino.Model) -> list[Held]:
    """Replace every float32 matrix and kernel by an input of the same name and shape.

    Vectors (biases, norms, tables; under 0.1 % of a full-size model) stay: they are what transformations fold
    and fuse, and they are stored as float32 in any case. Multiplied by a timestep of 900, the rounding of its
    frequencies alone would move the phase by up to 0.4.

    Args:
        model: Changed in place, and of no use until `put_back`.
    """
    import openvino
    from openvino import opset13 as ops

    held = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        shape = list(node.get_output_shape(0))
        if is_vector(shape):
            continue
        stand_in = ops.parameter(shape, openvino.Type.f32, name=node.get_friendly_name())
        _hand_over(node, stand_in)
        held.append(Held(node, stand_in))
    model.add_parameters([each.stand_in for each in held])
    return held


def put_back(
    model: openvino.Model,
    held: list[Held],
    dtype: Literal["float32", "float16", "bfloat16"],
    scratch: Path,
) -> list[openvino.Tensor]:
    """Put weights where their stand-ins are: as they were, or rounded with a conversion to float32 behind.

    The latter is how OpenVINO itself writes float16 weights, and every plugin knows it as compressed weights.
    The rounded bytes go through a file that is then mapped, so the process never holds more than one tensor.
    A tensor with a finite value that float16 cannot hold stays float32.

    Args:
        model: Changed in place; afterwards its weights lie in files until it is saved.
        scratch: Folder of the graph that the model was read from; the rounded weights are written there.

    Returns:
        What the model's constants point into without owning it: keep it until the model is saved or dropped.
    """
    places = {} if dtype == "float32" else _rounded(held, dtype, scratch / f"{dtype}.bin")
    tensors = _mapped(held, places, dtype, scratch / f"{dtype}.bin")
    for number, each in enumerate(held):
        _hand_over(each.stand_in, _compressed(each, tensors[number]) if number in tensors else each.constant)
        model.remove_parameter(each.stand_in)
    model.validate_nodes_and_infer_types()
    return list(tensors.values())


def _rounded(held: list[Held], dtype: str, path: Path) -> dict[int, int]:
    """Write the rounded weights; which of them were written, and where in the file."""
    places = {}
    read = 0
    with path.open("wb") as file:
        for number, each in enumerate(held):
            place = file.tell()
            values = each.constant.get_data().reshape(-1)
            if _round_into(file, values, dtype):
                places[number] = place
            else:
                file.seek(place)
                file.truncate()
            read += values.nbytes
            if read >= EVERY:
                let_go(path.parent)
                read = 0
    let_go(path.parent)
    return places


def _round_into(file: BinaryIO, values: np.ndarray, dtype: str) -> bool:
    """Write rounded values piece by piece; False where a finite one is too large for the dtype."""
    import torch

    for start in range(0, values.size, PIECE):
        piece = torch.tensor(values[start : start + PIECE])
        rounded = piece.to(getattr(torch, dtype))
        if not torch.equal(rounded.isfinite(), piece.isfinite()):
            return False
        file.write(rounded.view(torch.int16).numpy().data)
    return True


def _mapped(held: list[Held], places: dict[int, int], dtype: str, path: Path) -> dict[int, openvino.Tensor]:
    """The rounded weights as tensors over the mapped file."""
    import numpy as np
    import openvino

    if not places:
        return {}
    kind = openvino.Type.f16 if dtype == "float16" else openvino.Type.bf16
    stored = np.memmap(path, dtype=np.uint16, mode="r")
    found = {}
    for number, place in places.items():
        shape = list(held[number].constant.get_output_shape(0))
        start = place // stored.itemsize
        words = stored[start : start + int(np.prod(shape))].reshape(shape)
        found[number] = openvino.Tensor(words, openvino.Shape(shape), kind)
    return found


def _compressed(each: Held, tensor: openvino.Tensor) -> openvino.Node:
    """A rounded constant and the conversion behind it."""
    from openvino import opset13 as ops

    constant = ops.constant(tensor, shared_memory=True)
    name = each.constant.get_friendly_name()
    constant.set_friendly_name(f"{name}{COMPRESSED}")
    restored = _decompression(constant)
    restored.set_friendly_name(name)
    return restored


def _hand_over(before: openvino.Node, after: openvino.Node) -> None:
    """Everything that reads one node reads the other instead, under the same names."""
    port = before.output(0)
    names = port.get_names()
    port.set_names(set())
    after.output(0).set_names(names)
    for user in list(port.get_target_inputs()):
        user.replace_source_output(after.output(0))


def _decompression(constant: openvino.Node) -> openvino.Node:
    """A conversion to float32 with OpenVINO's mark, so that plugins keep the constant as it is stored.

    Python cannot set the mark, OpenVINO's own pass can: so a conversion of its making is borrowed.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import compress_model_transformation

    row = ops.parameter([1, 2], np.float32)
    product = ops.matmul(row, ops.constant(np.ones((2, 2), np.float32)), False, False)
    lender = openvino.Model([product], [row])
    compress_model_transformation(lender)
    conversion = next(node for node in lender.get_ops() if node.get_type_name() == "Convert")
    for user in list(conversion.output(0).get_target_inputs()):
        user.replace_source_output(ops.constant(np.ones((2, 2), np.float32)).output(0))
    conversion.input(0).replace_source_output(constant.output(0))
    # Its output takes the new shape when it is validated, which a model does.
    openvino.Model([conversion.output(0)], []).validate_nodes_and_infer_types()
    return conversion
