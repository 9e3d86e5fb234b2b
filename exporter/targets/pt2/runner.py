"""Opens a `.pt2` archive in PyTorch and runs it: an exported program, or a compiled package."""

from __future__ import annotations

import json
import zipfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import ArtifactError
from exporter.targets.base import Runner, RunOptions
from exporter.targets.pt2.compile import check_machine
from exporter.targets.pt2.modules import run_keeping
from exporter.targets.torch_module import (
    Declaration,
    check_entries,
    majority,
    no_tf32,
    one_line,
    quiet,
    to_array,
    to_tensors,
    torch_device,
)
from exporter.targets.traced import module_outputs
from exporter.threads import threads

if TYPE_CHECKING:
    import torch

SMALL = 64 << 20
"""Bytes of a file whose program is kept for the next opening: parsing takes seconds whatever the size, and
the verifier opens a component several times."""
KEPT = 4
_programs: dict[tuple[str, int, int, int], torch.export.ExportedProgram] = {}


class Pt2Runner(Runner):
    """What both kinds have in common. Opening one runs its author's program.

    Args:
        path: `model.pt2`.
        declaration: What the file says of itself.
        options: Device and threads. Trust was checked by the target.
    """

    def __init__(self, path: Path, declaration: Declaration, options: RunOptions) -> None:
        self._path, self._declaration, self._threads = path, declaration, options.threads
        self._device = torch_device(options.device or (declaration.compiled or {}).get("device"))
        self.inputs, self.outputs = tuple(declaration.inputs), tuple(declaration.outputs)
        self._program: Any = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self._guarded(self._compute, inputs)
        if len(values) != len(self.outputs):
            raise RuntimeError(f"the program gave {len(values)} outputs, {len(self.outputs)} are declared")
        for spec, value in zip(self.outputs, values, strict=True):
            given = str(value.dtype).removeprefix("torch.")
            if given != spec.dtype:  # a cast here would hide it from whoever judges the file
                raise RuntimeError(f"the program gave {spec.name!r} as {given}, {spec.dtype} is declared")
        return {spec.name: to_array(value) for spec, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        self._program = None

    @abstractmethod
    def _compute(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]: ...

    def _guarded(self, compute: Any, inputs: Mapping[str, np.ndarray]) -> Any:
        import torch

        self._declaration.check(inputs)
        tensors = to_tensors(inputs, self.inputs, self._device)
        with torch.no_grad(), threads(self._threads), no_tf32(), quiet():
            try:
                return compute(tensors)
            except (RuntimeError, AssertionError, ValueError) as error:  # guards raise the last two
                raise RuntimeError(
                    f"the program of {self._path.parent.name} refused: {one_line(error)}"
                ) from error


class ExportedRunner(Pt2Runner):
    """An ExportedProgram, run operator by operator, by default on the CPU.

    Raises:
        ArtifactError: The file is damaged, made by a newer torch, or says something else than it holds.
    """

    def __init__(self, path: Path, declaration: Declaration, options: RunOptions) -> None:
        super().__init__(path, declaration, options)
        moved = self._device.type != "cpu"
        program = read_program(path, keep=not moved)
        named = [str(name) for name in program.graph_signature.user_inputs]
        declared = [spec.name for spec in self.inputs]
        if named != declared:
            raise ArtifactError(
                f"{path.parent.name}/{path.name} declares the inputs {declared}, its program takes {named}."
            )
        # What weights are stored in is what PyTorch computes in.
        self.precision = self.weights = majority([t for t in program.state_dict.values() if not t.is_meta])
        if moved:
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self._device)
        module = program.module()
        self._program = module
        nodes = {node.name for node in module.graph.nodes}
        outputs = module_outputs(program.graph_module.graph)
        self._modules = {path: name for path, name in outputs.items() if name in nodes}

    def module_names(self) -> list[str]:
        return list(self._modules)

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run.

        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        self.check_modules(modules)
        names = [self._modules[name] for name in modules]
        if not names:
            return {}
        found = self._guarded(lambda tensors: run_keeping(self._program, tensors, names), inputs)
        return {name: to_array(found[self._modules[name]]) for name in modules}

    def _compute(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return self._program(*tensors)  # type: ignore[no-any-return]


class CompiledRunner(Pt2Runner):
    """An AOTInductor package: machine code, and no Python of the model's.

    It checks nothing of what it is given, so shapes are checked against the declaration first. It
    gives no intermediate outputs, and does not tell its arithmetic: the declaration does.

    Raises:
        ArtifactError: The file is damaged, or compiled by another torch.
        BackendMissing: It was compiled for another device or instruction set.
    """

    def __init__(self, path: Path, declaration: Declaration, options: RunOptions) -> None:
        import torch

        super().__init__(path, declaration, options)
        where = f"{path.parent.name}/{path.name}"
        check_machine(declaration.compiled or {}, where, self._device)
        check_entries(path)  # damaged machine code would take the process down
        try:
            with quiet():
                self._program = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # the loader raises several types
            raise ArtifactError(
                f"PyTorch cannot open {where}: {one_line(error)}",
                hint="Damaged? `exporter verify --check-hashes` tells.",
            ) from error
        self.precision = self.weights = declaration.dtype

    def _compute(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return self._program(*tensors)  # type: ignore[no-any-return]


def open_runner(path: Path, options: RunOptions) -> Pt2Runner:
    """The runner for the kind of file it is.

    Raises:
        ArtifactError: It is missing, damaged or not one of ours.
    """
    declaration = Declaration.read(path)
    kind = ExportedRunner if declaration.compiled is None else CompiledRunner
    return kind(path, declaration, options)


def read_program(path: Path, *, keep: bool = True) -> torch.export.ExportedProgram:
    """
    Args:
        keep: Share the program with other openings; off for whoever changes it.

    Raises:
        ArtifactError: torch cannot read it.
    """
    import torch

    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if keep and key in _programs:
        return _programs[key]
    check_entries(path)
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as error:  # the reader raises dozens of types
        raise ArtifactError(
            f"PyTorch cannot open {path.parent.name}/{path.name}: {other_schema(path) or one_line(error)}",
            hint="Damaged, or made by another PyTorch; `exporter verify --check-hashes` tells.",
        ) from error
    if keep and stat.st_size <= SMALL:
        while len(_programs) >= KEPT:
            _programs.pop(next(iter(_programs)))
        _programs[key] = program
    return program


def other_schema(path: Path) -> str | None:
    """What torch only logs: that the program was written in another version of its format."""
    from torch._export.serde.schema import SCHEMA_VERSION

    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/models/model.json"))
            found = json.loads(archive.read(name))["schema_version"]["major"]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError):
        return None
    if found == SCHEMA_VERSION[0]:
        return None
    return f"its program has the schema version {found}, this PyTorch reads {SCHEMA_VERSION[0]}."
