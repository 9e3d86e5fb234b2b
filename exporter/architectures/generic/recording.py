"""What is known of a pipeline that no module was written for: its calls, as they were observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import ArtifactError

FILE = "generic.json"
"""Beside `model_index.json` of an artifact: what a client needs to call its components."""
VERSION = 1
Method = Literal["forward", "decode", "encode"]


class Tensor(BaseModel):
    """An input or output of a call.

    Attributes:
        name: As the component names it.
        dtype: numpy's name.
        dims: Sizes, or symbols of `exporter.architectures.base.Size`.
        sample: Nested numbers of one call where random ones would not do (ids, masks, times), else None.
        scale: Standard deviation of the numbers seen, where there is no sample.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    dtype: str
    dims: list[int | str]
    sample: Any = None
    scale: float = 1.0


class Call(BaseModel):
    """One method of one part of the pipeline: a component.

    Attributes:
        name: Of the component: the folder, with `_decoder` or `_encoder` where it is not `forward`.
        folder / library / class_name: As in `model_index.json`.
        arguments: Tree (`trees.py`) of the keyword arguments.
        inputs / outputs: The tensors of both trees.
        returns: Tree of the result.
        used: Prefixes of the weights it needs; empty = all.
        rows: Rows of a call to one picture.
        sequence: Text tokens of the observed call.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    method: Method
    arguments: dict[str, Any]
    inputs: list[Tensor]
    returns: dict[str, Any]
    outputs: list[Tensor]
    used: list[str] = Field(default_factory=list)
    rows: int = 1
    sequence: int = 77


class Recording(BaseModel):
    """Every call that a pipeline makes, in the order in which it makes them.

    Attributes:
        height / width: Pixels it was observed at, its native size.
        factor: Pixels per latent cell.
        pictures: Whether the result is pictures (a prior gives embeddings).
        notes: What is baked, and why.
        picture: Whether it is given a picture, whose size `height` and `width` then are.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    pipeline_class: str
    height: int
    width: int
    factor: int = 1
    pictures: bool = True
    calls: list[Call]
    notes: list[str] = Field(default_factory=list)
    picture: bool = False

    @classmethod
    def read(cls, path: Path) -> Recording:
        """
        Raises:
            ArtifactError: It cannot be read, or was written by a newer version.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error}.") from error

    @classmethod
    def parse(cls, text: str | bytes) -> Recording:
        """
        Raises:
            ArtifactError: It is damaged, or was written by a newer version.
        """
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(
                f"{FILE} is damaged or was written by another version: {error.errors()[0]['msg']}.",
                hint="Convert again, or update exporter.",
            ) from error
        if found.version > VERSION:
            raise ArtifactError(f"{FILE} was written by a newer exporter.", hint="Update exporter.")
        return found

    def baked(self, dims: Mapping[str, Mapping[str, Sequence[int | str]]]) -> tuple[int, int] | None:
        """(height, width) of the only size that exported components take; None where they take any.

        Args:
            dims: By component and input, as it was exported.
        """
        size = {"height": self.height, "width": self.width}
        moves = False
        for call in self.calls:
            for tensor in call.inputs:
                for dim, found in zip(tensor.dims, dims[call.name].get(tensor.name, ()), strict=False):
                    side = str(dim).removeprefix("latent_")
                    moves |= side in size and not isinstance(found, int)
                    if side in size and isinstance(found, int):
                        size[side] = found * (1 if dim == side else self.factor)
        return None if moves else (size["height"], size["width"])

    def call(self, name: str) -> Call | None:
        return next((call for call in self.calls if call.name == name), None)
