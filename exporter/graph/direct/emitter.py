"""Emits ONNX nodes for the nodes of a traced program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporter.graph.attention import Attention

if TYPE_CHECKING:
    from torch.fx import Node

Dim = int | torch.SymInt
Operand = ir.Value | torch.Tensor
"""A tensor of the graph, or a constant that is known now."""

DTYPES = {
    torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.float64: ir.DataType.DOUBLE,
    torch.bfloat16: ir.DataType.BFLOAT16, torch.int64: ir.DataType.INT64, torch.int32: ir.DataType.INT32,
    torch.bool: ir.DataType.BOOL, torch.uint8: ir.DataType.UINT8, torch.int8: ir.DataType.INT8,
}  # fmt: skip


class NotCovered(Exception):
    """The program has something that only torch's own exporter translates."""


class Emitter:
    """The graph in the making.

    Attributes:
        opset: Version of the standard operator set.
        attention: Form of the attention operator.
        nodes: Emitted so far, in order.
        constants: Initializers with data, one per distinct value.
        env: What each traced node became.
        current: The traced node being translated.
    """

    def __init__(self, opset: int, attention: Attention) -> None:
        self.opset = opset
        self.attention = attention
        self.nodes: list[ir.Node] = []
        self.constants: dict[tuple, ir.Value] = {}
        self.env: dict[Node, Any] = {}
        self.current: Node | None = None
        self._fake: dict[ir.Value, torch.Tensor] = {}

    def emit(
        self,
        operator: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> Any:
        """Append a node; its output, or a list of them where there are several."""
        values = [None if x is None else self.value(x) for x in inputs]
        node = ir.node(operator, values, attributes or {}, domain=domain, num_outputs=outputs)
        node.meta["traced"] = self.current
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def value(self, operand: Operand) -> ir.Value:
        """A graph value: constants become initializers, once each."""
        if isinstance(operand, ir.Value):
            return operand
        array = operand.detach().contiguous()
        raw = array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b""
        key = (array.dtype, tuple(array.shape), raw)
        if key not in self.constants:
            if array.dtype not in DTYPES:
                raise NotCovered(f"a constant of {array.dtype}")
            data = array.view(torch.int16).numpy() if array.dtype == torch.bfloat16 else array.numpy()
            name = f"constant_{len(self.constants)}"
            kind = DTYPES[array.dtype]
            tensor = ir.Tensor(data.copy(), dtype=kind, name=name)
            self.constants[key] = ir.Value(
                name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape), const_value=tensor
            )
        return self.constants[key]

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """A constant int64 vector."""
        return self.value(torch.tensor(list(numbers), dtype=torch.int64))

    # What is known of a traced value

    def fake(self, argument: Any) -> torch.Tensor:
        """The traced tensor behind an argument: its dtype, and its shape with symbols."""
        return argument.meta["val"]

    def note(self, value: Any, fake: Any) -> None:
        """Remember the traced tensor of a value: reshapes of it are then recognised as such."""
        if isinstance(value, ir.Value) and isinstance(fake, torch.Tensor) and value not in self._fake:
            self._fake[value] = fake
            if fake.dtype in DTYPES:
                value.dtype = DTYPES[fake.dtype]
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in fake.shape])

    # Sizes

    def size(self, number: Any) -> ir.Value:
        """A size (an int or a traced symbol) as an int64 vector of length 1."""
        if isinstance(number, int):
            return self.ints([number])
        value = self.env[number]
        assert isinstance(value, ir.Value)
        return value

    def sizes(self, numbers: Sequence[Any]) -> ir.Value:
        """Several sizes as one int64 vector."""
        if all(isinstance(number, int) for number in numbers):
            return self.ints(numbers)
        return self.emit("Concat", [self.size(number) for number in numbers], {"axis": 0})

    # Layout

    def reshape(self, operand: Operand, before: Sequence[Dim], after: Sequence[Dim], like: Any = None) -> Any:
        """Reshape from one traced shape to another, with as few nodes as can be.

        Args:
            operand: What to reshape.
            before: Its traced shape.
            after: The traced shape wanted.
            like: A value of the wanted shape, whose shape is read where symbols leave it open.
        """
        if isinstance(operand, torch.Tensor):
            return operand.reshape(tuple(int(n) for n in after))
        producer = operand.producer()
        if producer is not None and producer.op_type == "Reshape" and producer.domain == "":
            base = producer.inputs[0]
            if base is not None and base in self._fake:  # a reshape of a reshape: go back to the first
                operand, before = base, tuple(self._fake[base].shape)
        if same_shape(before, after):
            return operand
        target, unknown = [], 0
        for axis, dim in enumerate(after):
            if isinstance(dim, int):
                target.append(dim)
            elif axis < len(before) and same_dim(before[axis], dim):
                target.append(0)  # copies the input's
            else:
                target.append(-1)
                unknown += 1
        if unknown <= 1:
            return self.emit("Reshape", [operand, self.ints(target)])
        if like is None:
            raise NotCovered(f"a reshape from {tuple(before)} to {tuple(after)}")
        return self.emit("Reshape", [operand, self.emit("Shape", [like])])

    def permute(self, operand: Operand, axes: Sequence[int]) -> Any:
        """Transpose, merged with a transposition before it."""
        if isinstance(operand, torch.Tensor):
            return operand.permute(tuple(axes))
        producer = operand.producer()
        if producer is not None and producer.op_type == "Transpose":
            first = producer.attributes["perm"].as_ints()
            base = producer.inputs[0]
            assert base is not None
            operand, axes = base, [first[axis] for axis in axes]
        if list(axes) == list(range(len(axes))):
            return operand
        return self.emit("Transpose", [operand], {"perm": list(axes)})

    # Numbers

    def cast(self, operand: Operand, dtype: torch.dtype, have: torch.dtype) -> Operand:
        """In another dtype, when it is another."""
        if isinstance(operand, torch.Tensor):
            return operand.to(dtype)
        if have == dtype:
            return operand
        if dtype not in DTYPES:
            raise NotCovered(f"a cast to {dtype}")
        return self.emit("Cast", [operand], {"to": DTYPES[dtype]})


def same_dim(one: Dim, other: Dim) -> bool:
    """Whether two traced sizes are the same number by their formula. Never adds a guard."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if isinstance(one, int) or isinstance(other, int):
        return False
    return bool(one.node.expr == other.node.expr)


def same_shape(one: Sequence[Dim], other: Sequence[Dim]) -> bool:
    return len(one) == len(other) and all(same_dim(a, b) for a, b in zip(one, other, strict=True))
