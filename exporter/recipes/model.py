"""What may stand in a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from exporter.recipes.places import Places

SCHEMA_ID = "exporter-recipe"
Scalar = str | int | float | bool
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
UNFILLED = "unfilled"
"""Context of a validation before variables are filled in: `${k}` may stand where a number is wanted."""
NEVER_FILLED = ("name", "variables", "matrix")


class Section(BaseModel):
    """Unknown keys are errors: a misspelt option that is ignored is worse than none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _filled_in_later(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        later = info.context == UNFILLED and info.field_name not in NEVER_FILLED
        if later and isinstance(value, str) and VARIABLE.fullmatch(value):
            return value
        return check(value)


class Verify(Section):
    """How the artifact is judged.

    Attributes:
        enabled: Off is recorded in the manifest, and nothing unverified is published.
        k: Allowed error in multiples of PyTorch's own.
        steps / samples / seed: Of the reference run.
        prompts: Of the reference run; the built-in ones when empty.
    """

    enabled: bool = True
    k: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    steps: int = Field(default=8, ge=1)
    samples: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    prompts: list[str] = Field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `exporter.parity.verify`."""
        given = self.model_dump(exclude={"enabled"})
        return {**given, "prompts": given["prompts"] or None}


class Publish(Section):
    """Where a verified artifact goes.

    Attributes:
        repo: `org/name`; `{target}` and the matrix's keys are filled in.
        create / private / revision / pull_request: As of `exporter push`.
    """

    repo: str
    create: bool = False
    private: bool = False
    revision: str | None = None
    pull_request: bool = False


class Recipe(Section):
    """One recipe.

    Attributes:
        name: Of the recipe; letters, digits, `-`, `_` and `.`.
        description: One sentence: when to use it.
        model: What to convert, as after `exporter convert`.
        revision / variant: Of a Hub repository.
        loras: `FILE` or `FILE:SCALE` each, fused into the weights.
        vae / textual_inversions / controlnets / ip_adapters: Laid over the model, as `exporter convert`
            does it.
        scheduler: A scheduler of diffusers in the place of the model's own.
        task: What it is for, where a model does several things: `image-to-video` …
        config / tokenizer: Folders that tell what a model in one file does not.
        base: Folder or Hub id that has the parts which a model in one file lacks.
        allow_pickle: Open `.ckpt` and `.bin` weights, by PyTorch's restricted reader.
        target: The format, or `pytorch` for the diffusers pipeline itself; may come from the matrix.
        techniques: Ways to accelerate it (`exporter.techniques`): names, or names with their options.
        options: The target's own options.
        components: Only these; all when empty.
        safety_checker: `false` leaves out the one that the model has.
        output: Destination folder; `{name}`, `{target}` and the matrix's keys are filled in.
        verify: How it is judged.
        publish: Where it goes afterwards; nowhere when None.
        variables: Names for `${name}` in any value; `--set name=value` changes them.
        matrix: Key → values; the recipe is run for every combination. Keys are `target`, `model`,
            a variable, or an option of the target.

    As it is read, `${k}` may stand in the place of any value; `exporter.recipes.cells` fills it in.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    description: str = ""
    model: str = Field(min_length=1)
    revision: str | None = None
    variant: str | None = None
    loras: list[str] = Field(default_factory=list)
    vae: str | None = None
    textual_inversions: list[str] = Field(default_factory=list)
    controlnets: list[str] = Field(default_factory=list)
    ip_adapters: list[str] = Field(default_factory=list)
    scheduler: str | None = None
    task: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    base: str | None = None
    allow_pickle: bool = False
    target: str | None = None
    techniques: list[str | dict[str, dict[str, Any]]] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    components: list[str] = Field(default_factory=list)
    safety_checker: bool = True
    output: str | None = None
    verify: Verify = Field(default_factory=Verify)
    publish: Publish | None = None
    variables: dict[str, Scalar] = Field(default_factory=dict)
    matrix: dict[str, list[Scalar]] = Field(default_factory=dict)
    _places: Places = PrivateAttr(default_factory=Places)

    def placed(self, places: Places) -> Recipe:
        """The recipe, which from now on knows where its values stand."""
        self._places = places
        return self

    def where(self, path: Sequence[Any] = ()) -> str:
        """The place of a value, for messages."""
        return self._places.of(path) if self._places.name else f"Recipe {self.name}"

    def said(self) -> dict[str, Any]:
        """Its keys and values as they were written: `${k}` may stand for a number."""
        return self.model_dump(warnings=False)

    def intake(self) -> dict[str, Any]:
        """How the model is opened and what is laid over it: arguments of `checkpoints.open_source`."""
        names = (
            "loras", "vae", "textual_inversions", "controlnets", "scheduler", "config", "tokenizer", "base",
            "allow_pickle", "ip_adapters", "task",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @field_validator("matrix")
    @classmethod
    def _no_empty_axis(cls, value: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"the axis {key!r} has no values")
            if len(set(map(str, values))) != len(values):
                raise ValueError(f"the axis {key!r} names a value twice")
        return value


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, for editors that complete and check YAML."""
    schema = Recipe.model_json_schema()
    variable = {"type": "string", "pattern": f"^{VARIABLE.pattern}$"}
    for section in (schema, *schema["$defs"].values()):
        for name, value in section["properties"].items():
            if name not in NEVER_FILLED and value.get("type") in ("number", "integer", "boolean"):
                about = {key: value.pop(key) for key in ("title", "description", "default") if key in value}
                section["properties"][name] = {**about, "anyOf": [value, variable]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
