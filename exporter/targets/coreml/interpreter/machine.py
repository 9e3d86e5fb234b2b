"""Runs a MIL program op by op, checking every value against what the program declares of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from exporter.errors import ArtifactError, ExporterError
from exporter.targets.coreml.interpreter import compressed, elementwise, network, shapes
from exporter.targets.coreml.interpreter.guard import Shape, check_sizes, fits, foreseen
from exporter.targets.coreml.interpreter.peaks import Peaks
from exporter.targets.coreml.interpreter.registry import OPERATIONS
from exporter.targets.coreml.interpreter.rounding import round_to
from exporter.targets.coreml.interpreter.steps import Given, Step
from exporter.targets.coreml.interpreter.strips import Strip, with_strips
from exporter.targets.coreml.interpreter.values import Constants, Value, torch_dtype, type_of

_LOADED = (compressed, elementwise, network, shapes)  # importing them fills the table

Mode = Literal["exact", "emulate", "unrounded"]
HALF = ("float16", "bfloat16")
HALVES = (torch.float16, torch.bfloat16)
KEPT_WIDE = 1 << 16
"""Numbers up to which a constant is kept in float32 between runs; larger ones are widened when needed."""


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
        self.steps: list[Step] = []
        for number, op in enumerate(block.operations):
            with reading(f"{where}: operation {op.type} (number {number})"):
                step = self._parse(op, number, constants)
            if step is not None:
                self.steps.append(step)
        self._wide: dict[str, torch.Tensor] = {}
        outputs = set(self.outputs)
        with reading(where):
            drawn = with_strips(self.steps, outputs, self._constant)
        self._plan = list(_with_frees(drawn, outputs | set(self.constants)))
        made = {name for step in self.steps for name, _, _ in step.outputs} | set(self.inputs)
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
        check_sizes(outputs, place)
        inputs: dict[str, Any] = {}
        for parameter, argument in op.inputs.items():
            bound = [
                binding.name if binding.WhichOneof("binding") == "name" else Given(
                    constants.read(binding.value, f"{place}, {parameter}")
                )
                for binding in argument.arguments
            ]  # fmt: skip
            inputs[parameter] = tuple(bound) if parameter == "values" or len(bound) != 1 else bound[0]
        for parameter, value in op.attributes.items():
            if parameter != "name" and op.type.startswith("constexpr"):  # the iOS 16 forms
                inputs[parameter] = Given(constants.read(value, f"{place}, {parameter}"))
        return Step(op.type, name, inputs, tuple(outputs))

    def _constant(self, bound: Any) -> Value:
        """What an input is if it is a constant, else None."""
        if isinstance(bound, Given):
            return bound.value
        return self.constants.get(bound) if isinstance(bound, str) else None

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
        values: dict[str, Value] = dict(inputs)
        wanted = set(keep) | set(self.outputs)
        known = self.constants | values
        held = {name: known[name] for name in wanted if name in known}
        with torch.inference_mode():
            for number, item in enumerate(self._plan):
                if isinstance(item, Step):
                    self._run(item, values, mode, peaks)
                elif wanted.isdisjoint(item.inner):
                    self._run_strip(item, values, mode, peaks)
                else:
                    for step in item.steps:
                        self._run(step, values, mode, peaks)
                    held.update({name: values[name] for name in item.inner if name in wanted})
                    for name in item.inner:
                        del values[name]
                held.update({name: values[name] for name, _, _ in item.outputs if name in wanted})
                for name in item.frees:
                    values.pop(name, None)
                if tick is not None:
                    tick(number)
        return held

    def _run(self, step: Step, values: dict[str, Value], mode: Mode, peaks: Peaks | None) -> None:
        given = {name: self._lookup(bound, values, mode) for name, bound in step.inputs.items()}
        results = self._compute(step, given, mode, step.outputs[0][2] if step.outputs else ())
        for (name, dtype, shape), result in zip(step.outputs, results, strict=True):
            values[name] = self._settle(step, (name, dtype, shape), result, mode, given, peaks)

    def _run_strip(self, strip: Strip, values: dict[str, Value], mode: Mode, peaks: Peaks | None) -> None:
        """The steps of an attention, over some queries at a time."""
        fixed = [
            {p: self._lookup(bound, values, mode, strip.inner) for p, bound in step.inputs.items()}
            for step in strip.steps
        ]
        whole: torch.Tensor | None = None
        for first, count in strip.ranges():
            result: Value = None
            for number, (step, axis) in enumerate(zip(strip.steps, strip.axes, strict=True)):
                known = fixed[number]
                given = strip.fill(known, result) if number else strip.cut(known, first, count)
                ((name, dtype, shape),) = step.outputs
                part = (*shape[:axis], count, *shape[axis + 1 :])
                (made,) = self._compute(step, given, mode, part)
                result = self._settle(step, (name, dtype, part), made, mode, given, peaks)
            if whole is None:
                whole = result.new_empty([int(size or 0) for size in strip.outputs[0][2]])
            whole.narrow(strip.axes[-1], first, count).copy_(result)
        values[strip.outputs[0][0]] = whole

    def _compute(self, step: Step, given: dict[str, Value], mode: Mode, shape: Shape) -> tuple[Any, ...]:
        """The results of one step, unless they would not have the declared shape."""
        if step.kind == "cast" and mode != "exact" and given.get("dtype") == "fp16":
            given["dtype"] = "fp32"  # the rounding, where the mode wants it, comes with the declaration
        try:
            size = foreseen(step.kind, given)
            if size is not None and not fits(size, shape):
                raise ArtifactError(f"is declared {list(shape)}, gives {list(size)}.")
            result = OPERATIONS[step.kind](**given)
        except ExporterError as error:
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

    def _lookup(
        self,
        bound: Any,
        values: Mapping[str, Value],
        mode: Mode,
        absent: Sequence[str] = (),
    ) -> Value:
        if isinstance(bound, tuple):
            return tuple(self._lookup(item, values, mode, absent) for item in bound)
        if isinstance(bound, Given):
            return self._widened(None, bound.value, mode)
        value = values.get(bound)
        if value is not None:
            return value.float() if mode != "exact" and _is_half(value) else value
        if bound in absent:
            return None
        value = self.constants.get(bound)
        if value is None:
            raise ArtifactError(f"{self.where}: the value {bound!r} is used before it is made.")
        return self._widened(bound, value, mode)

    def _widened(self, name: str | None, value: Value, mode: Mode) -> Value:
        """A constant in the dtype in which the mode computes; small ones are widened once."""
        if mode == "exact" or not _is_half(value):
            return value
        if name is None or value.numel() > KEPT_WIDE:
            return value.float()
        wide = self._wide.get(name)
        if wide is None:
            wide = self._wide[name] = value.float()
        return wide

    def _settle(
        self,
        step: Step,
        declaration: tuple[str, str, Shape],
        result: Any,
        mode: Mode,
        given: Mapping[str, Value],
        peaks: Peaks | None,
    ) -> Value:
        """Check one result against its declaration, note its peak, and round it as the mode wants."""
        name, dtype, shape = declaration
        if not dtype or not isinstance(result, torch.Tensor):
            return result
        declared = torch_dtype(dtype)
        if not fits(result.shape, shape):
            got = list(result.shape)
            raise ArtifactError(f"{self._place(step)}: {name!r} is declared {list(shape)}, gives {got}.")
        if peaks is not None:
            peaks.note(name, step.kind, dtype, result)
        floating = result.is_floating_point()
        if mode == "exact" or not declared.is_floating_point:
            if step.kind.startswith("constexpr") and floating and declared.is_floating_point:
                return result.to(declared)
            if result.dtype != declared:
                raise self._mismatch(step, name, dtype, result)
            return result
        if not floating:
            raise self._mismatch(step, name, dtype, result)
        if mode == "emulate" and dtype in HALF and result.dtype == torch.float32:
            # what is only moved was rounded where it was made
            return result if step.kind in shapes.MOVES else round_to(result, declared, given.values())
        return result.float()

    def _mismatch(self, step: Step, name: str, dtype: str, result: torch.Tensor) -> ArtifactError:
        given = str(result.dtype).removeprefix("torch.")
        return ArtifactError(f"{self._place(step)}: {name!r} is declared {dtype}, gives {given}.")

    def _place(self, step: Step) -> str:
        return f"{self.where}: operation {step.kind} {step.name!r}"


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Inside, whatever a damaged file makes the libraries raise becomes one of our errors."""
    try:
        yield
    except ExporterError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise ArtifactError(f"{place} cannot be read: {type(error).__name__}: {first}.") from error


def _is_half(value: Value) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in HALVES


def _with_frees(items: Sequence[Step | Strip], lasting: set[str]) -> Iterator[Step | Strip]:
    """The steps with what each one leaves behind for the last time."""
    last: dict[str, int] = {}
    for number, item in enumerate(items):
        last.update({name: number for name, _, _ in item.outputs})
        last.update(dict.fromkeys(item.reads(), number))
    dying: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in lasting:
            dying.setdefault(number, []).append(name)
    for number, item in enumerate(items):
        yield replace(item, frees=tuple(dying.get(number, ())))
