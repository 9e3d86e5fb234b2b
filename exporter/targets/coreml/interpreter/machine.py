"""Runs a MIL program op by op, checking every value against what the program declares of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from exporter.errors import ArtifactError
from exporter.targets.coreml.interpreter import compressed, elementwise, network, shapes
from exporter.targets.coreml.interpreter.registry import OPERATIONS
from exporter.targets.coreml.interpreter.values import Constants, Value, torch_dtype, type_of

_LOADED = (compressed, elementwise, network, shapes)  # importing them fills the table

Mode = Literal["exact", "emulate", "unrounded"]
HALF = ("float16", "bfloat16")
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Step:
    """One operation, ready to run.

    Attributes:
        inputs: Parameter → name of a value, a tuple of names, or a constant (`Given`).
        outputs: (name, dtype, shape) as declared.
        frees: Values that nothing reads after this step.
    """

    kind: str
    name: str
    inputs: dict[str, Any]
    outputs: tuple[tuple[str, str, tuple[int | None, ...]], ...]
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """A constant that stands in an operation itself."""

    value: Value


@dataclass
class Peaks:
    """The largest magnitude of every floating value, before it is rounded: name → (operation, value)."""

    values: dict[str, tuple[str, float]] = field(default_factory=dict)

    def note(self, name: str, kind: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            self.values[name] = (kind, float(tensor.abs().max()))

    def overflowing(self, limit: float = LARGEST_HALF) -> list[tuple[str, str, float]]:
        """(value, operation, peak) of everything that float16 cannot hold, in order; NaN counts."""
        return [(n, kind, peak) for n, (kind, peak) in self.values.items() if not (peak <= limit)]


class Program:
    """A function of a package, parsed once and run as often as wanted.

    Args:
        function: The MIL `Function`.
        constants: Reads its constants; weights stay memory-mapped.
        where: For errors.

    Raises:
        ArtifactError: An operation is unknown, a constant cannot be read.
    """

    def __init__(self, function: Any, constants: Constants, where: str) -> None:
        self.where = where
        block = function.block_specializations[function.opset]
        self.inputs = [value.name for value in function.inputs]
        self.outputs = list(block.outputs)
        self.constants: dict[str, Value] = {}
        steps = [
            step
            for number, op in enumerate(block.operations)
            if (step := self._parse(op, number, constants)) is not None
        ]
        self.steps = list(_with_frees(steps, set(self.outputs), set(self.constants)))
        made = {name for step in steps for name, _, _ in step.outputs} | set(self.inputs)
        for name in self.outputs:
            if name not in made | set(self.constants):
                raise ArtifactError(f"{where}: nothing computes the output {name!r}.")

    def _parse(self, op: Any, number: int, constants: Constants) -> Step | None:
        outputs = []
        for output in op.outputs:
            found = type_of(output.type)
            outputs.append((output.name, *(found or ("", ()))))
        name = outputs[0][0] if outputs else f"number {number}"
        place = f"{self.where}: operation {op.type} {name!r} (number {number})"
        if op.type == "const":
            self.constants[name] = constants.read(op.attributes["val"], place)
            return None
        if op.type not in OPERATIONS:
            raise ArtifactError(f"{place} is unknown to the interpreter.")
        inputs: dict[str, Any] = {}
        for parameter, argument in op.inputs.items():
            bound = [
                binding.name if binding.WhichOneof("binding") == "name" else Given(
                    constants.read(binding.value, f"{place}, {parameter}")
                )
                for binding in argument.arguments
            ]  # fmt: skip
            inputs[parameter] = tuple(bound) if parameter == "values" or len(bound) > 1 else bound[0]
        for parameter, value in op.attributes.items():
            if parameter != "name" and op.type.startswith("constexpr"):  # the iOS 16 forms
                inputs[parameter] = Given(constants.read(value, f"{place}, {parameter}"))
        return Step(op.type, name, inputs, tuple(outputs))

    def refine(self, scalars: Mapping[str, float]) -> None:
        """Replace scalar constants by what they were before they were rounded.

        Only where rounding gives exactly what the program holds: a note cannot hide a wrong constant.
        """
        for name, exact in scalars.items():
            held = self.constants.get(name)
            if isinstance(held, torch.Tensor) and held.dtype == torch.float16 and held.numel() == 1:
                rounded = torch.tensor(exact, dtype=torch.float32).to(torch.float16)
                if bool((rounded == held.reshape(())).item()):
                    self.constants[name] = torch.tensor(exact, dtype=torch.float32).reshape(held.shape)

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        mode: Mode,
        keep: Sequence[str] = (),
        peaks: Peaks | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run once.

        Args:
            inputs: By name, already of the declared dtype and shape.
            mode: `exact` computes in the declared dtypes. `emulate` computes in float32 and rounds every
                output to its declared dtype, as hardware that accumulates in float32 does. `unrounded`
                computes in float32 and rounds nothing: the graph without its precision.
            keep: More values to return, beside the outputs.
            peaks: Filled with the largest magnitudes.
            tick: Called with the number of every finished step.

        Raises:
            ArtifactError: A value does not have the declared shape or dtype, or an operation fails.
        """
        values: dict[str, Value] = dict(self.constants)
        values.update(inputs)
        wanted = set(keep) | set(self.outputs)
        held = {name: values[name] for name in wanted if name in values}
        with torch.no_grad():
            for number, step in enumerate(self.steps):
                results = self._compute(step, values, mode)
                for (name, dtype, shape), result in zip(step.outputs, results, strict=True):
                    if peaks is not None and isinstance(result, torch.Tensor):
                        peaks.note(name, step.kind, result)
                    values[name] = self._settle(step, name, dtype, shape, result, mode)
                    if name in wanted:
                        held[name] = values[name]
                for name in step.frees:
                    values.pop(name, None)
                if tick is not None:
                    tick(number)
        return held

    def _compute(self, step: Step, values: Mapping[str, Value], mode: Mode) -> tuple[Any, ...]:
        given = {name: self._lookup(bound, values, mode) for name, bound in step.inputs.items()}
        if step.kind == "cast" and mode != "exact" and given.get("dtype") == "fp16":
            given["dtype"] = "fp32"  # the rounding, where the mode wants it, comes with the declaration
        try:
            result = OPERATIONS[step.kind](**given)
        except ArtifactError as error:
            raise ArtifactError(f"{self._place(step)}: {error.message}") from error
        except Exception as error:  # whatever torch says of operands that do not go together
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArtifactError(f"{self._place(step)}: {first}") from error
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(step.outputs):
            raise ArtifactError(
                f"{self._place(step)} gives {len(results)} values, {len(step.outputs)} declared."
            )
        return results

    def _lookup(self, bound: Any, values: Mapping[str, Value], mode: Mode) -> Value:
        if isinstance(bound, tuple):
            return tuple(self._lookup(item, values, mode) for item in bound)
        value = bound.value if isinstance(bound, Given) else values.get(bound)
        if value is None:
            raise ArtifactError(f"{self.where}: the value {bound!r} is used before it is made.")
        if mode != "exact" and isinstance(value, torch.Tensor) and value.dtype in (
            torch.float16, torch.bfloat16,
        ):  # fmt: skip
            return value.float()
        return value

    def _settle(
        self, step: Step, name: str, dtype: str, shape: tuple[int | None, ...], result: Any, mode: Mode
    ) -> Value:
        """Check one result against its declaration, and round it as the mode wants."""
        if not dtype or not isinstance(result, torch.Tensor):
            return result
        declared = torch_dtype(dtype)
        got = tuple(result.shape)
        if len(got) != len(shape) or any(d is not None and d != g for d, g in zip(shape, got, strict=True)):
            raise ArtifactError(
                f"{self._place(step)}: {name!r} is declared {list(shape)}, gives {list(got)}."
            )
        if mode == "exact" or not declared.is_floating_point:
            if (
                step.kind.startswith("constexpr")
                and result.is_floating_point()
                and declared.is_floating_point
            ):
                return result.to(declared)
            if result.dtype != declared:
                raise ArtifactError(
                    f"{self._place(step)}: {name!r} is declared {dtype}, gives "
                    f"{str(result.dtype).removeprefix('torch.')}."
                )
            return result
        if not result.is_floating_point():
            raise ArtifactError(
                f"{self._place(step)}: {name!r} is declared {dtype}, gives "
                f"{str(result.dtype).removeprefix('torch.')}."
            )
        if mode == "emulate" and dtype in HALF and result.dtype == torch.float32:
            return result.to(declared).float()
        return result.float()

    def _place(self, step: Step) -> str:
        return f"{self.where}: operation {step.kind} {step.name!r}"


def _with_frees(steps: Sequence[Step], outputs: set[str], constants: set[str]) -> Iterator[Step]:
    """The steps with what each one leaves behind for the last time."""
    last: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name, _, _ in step.outputs:
            last[name] = number
        for bound in step.inputs.values():
            for item in bound if isinstance(bound, tuple) else (bound,):
                if isinstance(item, str):
                    last[item] = number
    dying: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in outputs and name not in constants:
            dying.setdefault(number, []).append(name)
    for number, step in enumerate(steps):
        yield Step(step.kind, step.name, step.inputs, step.outputs, tuple(dying.get(number, ())))
