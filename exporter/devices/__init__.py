"""Which part of a pipeline goes on which device, before anybody downloads it.

Weights only: what a run computes with (activations, a picture's latents) comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from exporter.devices.parts import Part, Parts, parts_of
from exporter.devices.placement import (
    CPU,
    Device,
    balanced,
    blocks,
    largest_layer,
    parse_budgets,
    size_of,
    sizes_of_blocks,
)
from exporter.errors import UsageError
from exporter.planning import human

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DevicePlan", "PlacedPart", "parse_budgets", "plan_devices"]

DTYPES = ("float32", "float16", "bfloat16")
DISK = "disk"


class PlacedPart(BaseModel):
    """One part.

    Attributes:
        stored: Dtype on disk → number of weights; empty where the files do not say.
        stored_bytes: What a download of it brings.
        bytes: What its weights take in memory in the plan's dtype.
        device: `0`, `1`, `cpu`; `split` when its blocks go to several; None when diffusers forgets it.
        blocks: Module path → device, when it was split.
    """

    name: str
    class_name: str
    parameters: int
    stored: dict[str, int] = Field(default_factory=dict)
    stored_bytes: int
    bytes: int
    device: str | None
    blocks: dict[str, str] = Field(default_factory=dict)


class DevicePlan(BaseModel):
    """The answer.

    Attributes:
        dtype: Weights are loaded in; of formats whose runtime decides, `as stored`.
        max_memory / used: Device → bytes.
        fits: Whether every part has a place within its budget.
        problems: Why not, in sentences.
        remedies: What would make it fit, each tried with the same budgets.
        notes: What a reader should know.
    """

    source: str
    revision: str | None
    pipeline_class: str
    dtype: str
    max_memory: dict[str, int]
    used: dict[str, int]
    components: list[PlacedPart]
    fits: bool
    problems: list[str] = Field(default_factory=list)
    remedies: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def plan_devices(
    source: str,
    budgets: Mapping[Device, int],
    *,
    dtype: str = "float32",
    split: Sequence[str] = (),
    revision: str | None = None,
    variant: str | None = None,
) -> DevicePlan:
    """Place the parts of a checkpoint or an artifact. Of one on the Hub only headers are fetched.

    Args:
        budgets: Device → bytes, see `parse_budgets`.
        dtype: Loaded in (`torch_dtype`); diffusers takes float32 when nobody names one.
        split: Parts whose blocks may go to several devices; they are placed first.

    Raises:
        UsageError: Unknown dtype or part, or a part that cannot be split.
        CheckpointError, ArtifactError, NetworkError: The source cannot be read.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype!r}: weights are loaded in {', '.join(DTYPES)}.")
    found = parts_of(source, revision=revision, variant=variant)
    names = [part.name for part in found.parts]
    for name in split:
        if name not in names:
            raise UsageError(f"{source} has no part {name!r}; it has: {', '.join(names)}.")
    question = _Question(found, dict(budgets))
    return question.answer(dtype if found.splittable else "as stored", tuple(dict.fromkeys(split)))


class _Question:
    """Parts and budgets; asked again with other dtypes for the remedies."""

    def __init__(self, found: Parts, budgets: dict[Device, int]) -> None:
        self.found, self.budgets = found, budgets

    @cached_property
    def modules(self) -> dict[str, nn.Module | None]:
        if not self.found.splittable:
            return {part.name: None for part in self.found.parts}
        return {part.name: part.module() for part in self.found.parts}

    def size(self, part: Part, dtype: str) -> int:
        if not self.found.splittable:
            return part.file_bytes
        module = self.modules[part.name]
        return part.bytes_in(dtype) if module is None else size_of(module, dtype)

    def sizes(self, dtype: str) -> dict[str, int]:
        return {part.name: self.size(part, dtype) for part in self.found.parts}

    def place(
        self, dtype: str, split: Sequence[str]
    ) -> tuple[dict[str, Device | None], dict[str, dict[str, Device]], dict[Device, int], list[str]]:
        """Whole parts, blocks of the split ones, bytes by device, problems."""
        left = dict(self.budgets)
        used: dict[Device, int] = dict.fromkeys(self.budgets, 0)
        places: dict[str, dict[str, Device]] = {}
        problems = []
        for name in split:
            module = self.modules[name]
            found = None if module is None else blocks(module, left, dtype)
            if module is None or found is None:
                raise UsageError(
                    f"{name} of {self.found.source} cannot be split: its class does not say where.",
                    hint="It goes on one device as a whole; leave --split out.",
                )
            places[name] = found
            for device, taken in sizes_of_blocks(module, found, dtype).items():
                used[device] = used.get(device, 0) + taken
                if device == DISK:
                    problems.append(
                        f"{human(taken)} of the {name} fit on no device; accelerate puts them on disk."
                    )
                else:
                    left[device] = max(left[device] - taken, 0)
        sizes = {n: s for n, s in self.sizes(dtype).items() if n not in split}
        whole = balanced(sizes, left)
        for name, place in whole.items():
            used[CPU if place is None else place] = used.get(CPU if place is None else place, 0) + sizes[name]
        forgotten = [name for name, place in whole.items() if place is None]
        if forgotten:
            problems.append(
                "diffusers remembers only one part that fits on no GPU: "
                f"{', '.join(forgotten)} would be left in main memory, and nothing moves its inputs there."
            )
        room = self.budgets.get(CPU, 0)
        if used.get(CPU, 0) > room:
            on_cpu = [n for n, place in whole.items() if place in (CPU, None)]
            problems.append(
                f"{', '.join(on_cpu) or 'Blocks'} would lie in main memory and take {human(used[CPU])}, "
                f"of which --max-memory allows {human(room)}."
            )
        return whole, places, used, problems

    def answer(self, dtype: str, split: Sequence[str]) -> DevicePlan:
        whole, places, used, problems = self.place(dtype, split)
        sizes = self.sizes(dtype)
        parts = [
            PlacedPart(
                name=part.name,
                class_name=part.class_name,
                parameters=part.numel,
                stored=part.stored_dtypes(),
                stored_bytes=part.stored_bytes,
                bytes=sizes[part.name],
                device=self._device(part.name, whole, places),
                blocks={path: str(device) for path, device in places.get(part.name, {}).items()},
            )
            for part in self.found.parts
        ]
        return DevicePlan(
            source=self.found.source,
            revision=self.found.revision,
            pipeline_class=self.found.pipeline_class,
            dtype=dtype,
            max_memory={str(d): n for d, n in self.budgets.items()},
            used={str(d): n for d, n in used.items()},
            components=parts,
            fits=not problems,
            problems=problems,
            remedies=self._remedies(dtype, split) if problems else [],
            notes=self._notes(whole, split),
        )

    def _device(
        self, name: str, whole: Mapping[str, Device | None], places: Mapping[str, Mapping[str, Device]]
    ) -> str | None:
        if name in places:
            devices = {str(device) for device in places[name].values()}
            return devices.pop() if len(devices) == 1 else "split"
        place = whole[name]
        return None if place is None else str(place)

    def _notes(self, whole: Mapping[str, Device | None], split: Sequence[str]) -> list[str]:
        notes = ["Weights only: activations come on top, so leave room on the GPUs."]
        gpus = [d for d in self.budgets if d != CPU]
        offloaded = [name for name, place in whole.items() if place == CPU]
        if gpus and offloaded and self.found.splittable:
            notes.append(
                f"{', '.join(offloaded)}: kept in main memory and streamed to GPU {gpus[0]} layer by layer "
                "whenever it runs, which is slow."
            )
        if not self.found.splittable:
            notes.append(
                f"A {self.found.target} artifact is opened by its runtime, one component a file: nothing can "
                "be split, and the sizes of its files are what is counted."
            )
        for part in self.found.parts:
            if self.found.splittable and self.modules[part.name] is None:
                notes.append(
                    f"{part.name} ({part.class_name}) is not built here; its size is that of its headers."
                )
        return notes

    def _remedies(self, dtype: str, split: Sequence[str]) -> list[str]:
        """What fits, of what can be tried without other hardware."""
        found: list[str] = []
        gpus = {d: n for d, n in self.budgets.items() if d != CPU}
        smaller = [dtype] if dtype != "float32" else ["float32", "float16"]
        for each in smaller:
            torch_dtype = "" if each == dtype else f"torch_dtype=torch.{each} (--dtype {each}) and "
            if each != dtype and not self.place(each, split)[3]:
                found.append(f"torch_dtype=torch.{each} (--dtype {each}) fits.")
                return found
            sizes = self.sizes(each)
            total, largest = sum(sizes.values()), max(sizes, key=lambda n: sizes[n])
            if self.found.splittable and gpus:
                if largest not in split and self._splits(each, [*split, largest]):
                    found.append(
                        f"{torch_dtype}splitting the {largest} fits: load it by itself with "
                        f'device_map="auto" and the same max_memory (--split {largest}).'
                    )
                if sizes[largest] <= max(gpus.values()) and total <= self.budgets.get(CPU, 0):
                    found.append(f"{torch_dtype}pipeline.enable_model_cpu_offload() on one GPU fits.")
                layer = max(
                    (largest_layer(m, each) for m in self.modules.values() if m is not None), default=0
                )
                if 0 < layer <= max(gpus.values()) and total <= self.budgets.get(CPU, 0):
                    found.append(
                        f"{torch_dtype}pipeline.enable_sequential_cpu_offload() on one GPU fits, and is slow."
                    )
        if not found:
            sizes = self.sizes(smaller[-1])
            largest = max(sizes, key=lambda n: sizes[n])
            found.append(
                f"Nothing that was tried fits: the weights take {human(sum(sizes.values()))} "
                f"({smaller[-1]}), {human(sizes[largest])} of it the {largest}; offloading needs all of "
                "that as cpu=."
            )
        return found

    def _splits(self, dtype: str, split: Sequence[str]) -> bool:
        try:
            return not self.place(dtype, split)[3]
        except UsageError:
            return False
