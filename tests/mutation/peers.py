"""What other gates say of the same artifacts: optimum's, PyTorch's own, and a plain `allclose`.

Each is given its best case: the reference model itself, its own default shapes and thresholds, and
names of dims as it expects them. A gate that raises has caught the fault.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.artifact import Artifact
from tests.mutation.formats.onnx import ONNX, edit_onnx
from tests.mutation.workshop import Workshop

if TYPE_CHECKING:
    import onnx
    import torch

    from exporter.architectures import Size

GATES = ("optimum", "torch.onnx", "allclose")
TORCH_ABS, TORCH_REL = 5e-3, 1e-1
"""`torch.onnx.export(verify=True)` of torch 2.13 reports an output as inaccurate from these on."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Said:
    """One gate's answer: caught or not, None where it knows no such format; and why in words."""

    caught: bool | None
    why: str = ""


class Peers:
    """The other gates over one checkpoint."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self._programs: dict[tuple[str, str], torch.export.ExportedProgram] = {}

    def ask(self, root: Path, *, at_native: bool = False) -> dict[str, Said]:
        """Every gate's answer about an artifact of one component.

        Args:
            at_native: The artifact was traced at the checkpoint's native size (else the exporter's), as
                one without a symbolic dim is in any case.
        """
        record = Artifact.open(root).manifest.components[0]
        fixed = all(isinstance(dim, int) for given in record.inputs for dim in given.dims)
        size = self._size(record.name, at_native or fixed)
        answers: dict[str, Said] = {}
        for gate, ask in (
            ("optimum", self._optimum), ("torch.onnx", self._torch), ("allclose", self._allclose),
        ):  # fmt: skip
            if gate != "allclose" and not record.entry.endswith(ONNX):
                answers[gate] = Said(None)
                continue
            try:
                with silence():
                    answers[gate] = ask(root, record.name, size)
            except Exception as error:  # whatever it raises, its user would see
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                answers[gate] = Said(True, f"{type(error).__name__}: {first[:160]}")
        return answers

    def _size(self, component: str, at_native: bool) -> Size:
        from exporter.graph.capture import trace_size
        from exporter.targets.base import component_size

        part = self.shop.components[component]
        if at_native:
            return component_size(part, (1, part.native.height, part.native.width))
        return trace_size(part)

    # optimum: `validate_model_outputs` with its default atol and its default shapes

    @cached_property
    def _models(self) -> dict[str, tuple[Any, Any]]:
        import torch
        from diffusers import StableDiffusionPipeline
        from optimum.exporters.utils import get_diffusion_models_for_export

        root = next(iter(self.shop.components.values())).checkpoint.root
        with silence():
            pipeline = StableDiffusionPipeline.from_pretrained(root, torch_dtype=torch.float32)
            models: dict[str, tuple[Any, Any]] = get_diffusion_models_for_export(pipeline, exporter="onnx")
        return models

    def _optimum(self, root: Path, component: str, size: Size) -> Said:
        import shutil

        from optimum.exporters.onnx.convert import validate_model_outputs

        model, config = self._models[component]
        folder = root.parent / f"{root.name}-optimum" / component
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / component, folder)
        edit_onnx(folder, lambda proto: rename_dims(proto, config))
        validate_model_outputs(config, model, folder / ONNX, list(config.outputs), use_subprocess=False)
        return Said(False)

    # torch.onnx: `verify_onnx_program` on the traced example, as `export(verify=True)` calls it

    def _torch(self, root: Path, component: str, size: Size) -> Said:
        import onnx_ir
        import torch
        from torch.onnx import ONNXProgram
        from torch.onnx.verification import verify_onnx_program

        key = component, str(size)
        if key not in self._programs:
            part = self.shop.components[component]
            inputs = part.example_inputs(size)
            self._programs[key] = torch.export.export(part.reference_module(), (), kwargs=inputs)
        model = onnx_ir.load(root / component / ONNX)
        onnx_ir.external_data.load_to_model(model)  # it opens the model from memory
        program = ONNXProgram(model, self._programs[key])
        try:
            found = verify_onnx_program(program)
        finally:
            program.release()
        for info in found:
            if info.max_abs_diff >= TORCH_ABS or info.max_rel_diff >= TORCH_REL:
                said = f"{info.name}: abs {info.max_abs_diff:.2g}, rel {info.max_rel_diff:.2g}"
                return Said(True, said)
        return Said(False)

    # allclose: random inputs at the traced shape, atol = rtol = 1e-3

    def _allclose(self, root: Path, component: str, size: Size) -> Said:
        import torch

        from exporter.targets import RunOptions, get_target

        artifact = Artifact.open(root)
        part = self.shop.components[component]
        inputs = part.example_inputs(size, seed=7)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in part.reference_module()(**inputs)]
        record = artifact.manifest.components[0]
        with get_target(artifact.manifest.target).open(root, record, RunOptions(trust=True)) as runner:
            given = {
                spec.name: inputs[spec.name].numpy().astype(spec.dtype).reshape(_ranked(spec.dims, inputs))
                if spec.name == "timestep"
                else inputs[spec.name].numpy().astype(spec.dtype)
                for spec in runner.inputs
            }
            outputs = runner.run(given)
        for spec, wanted in zip(part.outputs, expected, strict=True):
            if not np.allclose(outputs[spec.name], wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return Said(True, f"{spec.name} differs")
        return Said(False)


def _ranked(dims: list[int | str], inputs: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a timestep: a scalar, or one element where the format knows no scalars."""
    return (1,) if dims else ()


def rename_dims(model: onnx.ModelProto, config: Any) -> None:
    """Give symbolic dims the names optimum expects, so that it does not fail over a name."""
    for values, wanted in ((model.graph.input, config.inputs), (model.graph.output, config.outputs)):
        for value in values:
            names = wanted.get(value.name, {})
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param and axis in names:
                    dim.dim_param = names[axis]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what the gates print and log out of the table."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
