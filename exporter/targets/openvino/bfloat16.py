"""bfloat16 weights: OpenVINO rounds to float16 by itself, to bfloat16 not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exporter.targets.openvino.model import COMPRESSED, vectors

if TYPE_CHECKING:
    import openvino


def store_as_bfloat16(model: openvino.Model, scratch: Path) -> list[openvino.Tensor]:
    """Replace every float32 constant but the `vectors()` by a bfloat16 one and a conversion to float32.

    This is how OpenVINO itself writes float16 weights, and every plugin knows it as compressed weights. The
    rounded bytes go through a file that is then mapped, so the process never holds more than one tensor.
    Those stay float32, for the same reason as with float16.

    Args:
        model: Changed in place; afterwards its weights lie in the file until it is saved.
        scratch: Folder of that file.

    Returns:
        What the model's constants point into without owning it: keep it until the model is saved or dropped.
    """
    import numpy as np
    import openvino
    import torch
    from openvino import opset13 as ops

    path = scratch / "bfloat16.bin"
    kept = vectors(model)
    chosen = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == openvino.Type.f32
        and node.get_friendly_name() not in kept
    ]
    places = []
    with path.open("wb") as file:
        for node in chosen:
            places.append(file.tell())
            rounded = torch.tensor(node.get_data()).to(torch.bfloat16)
            file.write(rounded.view(torch.int16).numpy().tobytes())
    if not chosen:
        return []
    held = []
    stored = np.memmap(path, dtype=np.uint16, mode="r")
    for node, place in zip(chosen, places, strict=True):
        shape = list(node.get_output_shape(0))
        start = place // stored.itemsize
        words = stored[start : start + int(np.prod(shape))].reshape(shape)
        tensor = openvino.Tensor(words, openvino.Shape(shape), openvino.Type.bf16)
        held.append(tensor)
        constant = ops.constant(tensor, shared_memory=True)
        name = node.get_friendly_name()
        constant.set_friendly_name(f"{name}{COMPRESSED}")
        restored = ops.convert(constant, "f32", name=name)
        port = node.output(0)
        restored.output(0).set_names(port.get_names())
        for user in list(port.get_target_inputs()):
            user.replace_source_output(restored.output(0))
    return held
