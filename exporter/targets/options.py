"""Options every target takes, and what a baked size is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from exporter.architectures.base import Component, Size

Dtype = Literal["float32", "float16"]
Static = tuple[int, int, int] | tuple[int, int, int, int]
"""A baked size: pictures, height and width in pixels; of a video model the frames of a clip too."""


class Options(BaseModel):
    """Options every target takes; a target's own class adds to them. Unknown ones are errors.

    Attributes:
        dtype: Dtype of the stored weights (and of the arithmetic where the runtime follows it).
        static: `(batch, height, width)` in pictures and pixels bakes the shapes, of a video model with the
            frames as a fourth number; None keeps them dynamic.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Dtype = "float32"
    static: Static | None = None

    @classmethod
    def of(cls, options: Options) -> Self:
        """The same options as this class; one that it does not know is an error."""
        return options if isinstance(options, cls) else cls.model_validate(options.model_dump())

    @model_validator(mode="before")
    @classmethod
    def _first_size(cls, values: Any) -> Any:
        """Of several sizes the first is `static`, the others are `more_sizes`, where the format has that."""
        given = values.get("static") if isinstance(values, Mapping) else None
        if not isinstance(given, list | tuple) or not any(
            isinstance(one, str | list | tuple) for one in given
        ):
            return values
        sizes = []
        for one in given:
            try:
                sizes.append(_size_of(one))
            except ValueError:
                return {**values, "static": one}  # the field itself refuses it, under its own name
        sizes = list(dict.fromkeys(sizes))
        if len(sizes) > 1 and "more_sizes" not in cls.model_fields:
            raise ValueError("it bakes one size, and --static was given more than once")
        more = {"more_sizes": sizes[1:]} if len(sizes) > 1 else {}
        return {**values, "static": sizes[0], **more}

    @field_validator("static", mode="before")
    @classmethod
    def _parse_static(cls, value: Any) -> Any:
        return _size_of(value) if isinstance(value, str) else value

    def sizes(self) -> tuple[Static, ...]:
        """Every size that is baked, the first one first; empty where shapes are dynamic."""
        more = getattr(self, "more_sizes", ())
        return () if self.static is None else (self.static, *more)


class SeveralSizes(Options):
    """Options of a format that takes `--static` more than once.

    Attributes:
        more_sizes: The sizes after the first. Each lies beside it as a file of its own, or in the same file,
            and shares the weights.
    """

    more_sizes: tuple[Static, ...] = Field(default=())

    @model_validator(mode="after")
    def _more_than_one(self) -> SeveralSizes:
        if self.more_sizes and self.static is None:
            raise ValueError("more_sizes come after a first size: give them all as --static")
        return self


def _size_of(value: Any) -> Any:
    """`1x512x512` as numbers; what is no text is left to the field's own type."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    parts = value.lower().replace("×", "x").split("x")
    if len(parts) not in (3, 4) or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise ValueError(
            f"{value!r} is not BATCHxHEIGHTxWIDTH, for example 1x512x512 (of a video model "
            "BATCHxHEIGHTxWIDTHxFRAMES)"
        )
    return tuple(int(p) for p in parts)


def size_text(static: Static) -> str:
    """`1x512x512`."""
    return "x".join(map(str, static))


def component_shapes(component: Component, static: Static | None) -> tuple[tuple[int, ...], ...]:
    """The shapes of a component's inputs: two sizes of equal shapes are one file. Empty where dynamic."""
    if static is None:
        return ()
    size = component_size(component, static)
    return tuple(spec.shape(size) for spec in component.inputs)


def component_size(component: Component, static: Static) -> Size:
    """The size of a component's own tensors for a static picture size.

    A UNet sees two rows per picture under classifier-free guidance; the text encoder one; text always
    has the native number of tokens, a clip the pipeline's own number of frames where none is given.
    """
    batch, height, width, *frames = static
    size = replace(component.native, batch=component.rows * batch, height=height, width=width)
    return replace(size, frames=frames[0] if frames else component.clip)
