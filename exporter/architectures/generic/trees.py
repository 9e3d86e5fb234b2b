"""Arguments and results of a call as trees of JSON values, with the tensors taken out by name.

A tree is a dict of one of these forms: `{"tensor": name}`, `{"number": name}` (a Python number, not yet known
to be a constant), `{"value": constant}`, `{"list": [...]}`, `{"tuple": [...]}`, `{"named": {...}}` with the
class it is rebuilt as in `"class"` where it is not a plain dict, `{"distribution": tree}` (the moments of a
`DiagonalGaussianDistribution`) and `{"left_out": class}` (a result that no graph gives, such as a cache).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporter.errors import ArtifactError

if TYPE_CHECKING:
    import torch

Tree = dict[str, Any]
LIBRARIES = ("diffusers", "transformers")
"""Where the classes of results come from; no other is ever imported by its name."""


class Strange(Exception):
    """Something among the arguments that is neither tensor nor constant: its place, and its class."""

    def __init__(self, place: str, value: object) -> None:
        super().__init__(f"{place} is a {type(value).__name__}")
        self.place, self.kind = place, type(value).__name__


def take_apart(
    value: Any, place: str, tensors: dict[str, torch.Tensor], numbers: dict[str, float] | None
) -> Tree:
    """The tree of a value; its tensors go into `tensors` by their place (`added_cond_kwargs.text_embeds`).

    Args:
        numbers: Python numbers go in here by their place; None makes constants of them, and leaves out what
            is no tensor (of results).

    Raises:
        Strange: An argument that cannot be told.
    """
    import torch

    def inside(key: object, one: Any) -> Tree:
        return take_apart(one, f"{place}.{key}" if place else str(key), tensors, numbers)

    if isinstance(value, torch.Tensor):
        same = next((name for name, one in tensors.items() if one is value), None)
        if numbers is not None or same is None:  # one result under two names is one output
            same = place
            tensors[place] = value
        return {"tensor": same}
    if numbers is not None and isinstance(value, int | float) and not isinstance(value, bool):
        numbers[place] = value
        return {"number": place}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        items = value.items() if isinstance(value, Mapping) else vars(value).items()
        tree: Tree = {"named": {str(key): inside(key, one) for key, one in items}}
        if type(value) is not dict:
            tree["class"] = f"{type(value).__module__}:{type(value).__qualname__}"
        return tree
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [inside(i, v) for i, v in enumerate(value)]}
    if type(value).__name__ == "DiagonalGaussianDistribution":
        return {"distribution": inside("parameters", value.parameters)}
    if numbers is None:
        return {"left_out": type(value).__name__}
    raise Strange(place, value)


def put_together(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    """The value of a tree, its tensors (and numbers that became tensors) taken by name.

    Raises:
        ArtifactError: A class that is no output of diffusers or transformers, or a tree of no known form.
    """
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "value" in tree:
        return tree["value"]
    if "left_out" in tree:
        return None
    if "distribution" in tree:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(put_together(tree["distribution"], tensors))
    for kind, make in (("list", list), ("tuple", tuple)):
        if kind in tree:
            return make(put_together(one, tensors) for one in tree[kind])
    if "named" not in tree:
        raise ArtifactError(f"A recorded call holds {sorted(tree)}, which this version cannot read.")
    named = {key: put_together(one, tensors) for key, one in tree["named"].items()}
    return named if "class" not in tree else output_class(tree["class"])(**named)


def output_class(name: str) -> Callable[..., Any]:
    """The class of a result by `module:Name`.

    Raises:
        ArtifactError: It is no output class of diffusers or transformers.
    """
    module, _, attribute = name.partition(":")
    found: Any = None
    if module.split(".")[0] in LIBRARIES:
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError:
            found = None
    from diffusers.utils import BaseOutput
    from transformers.utils import ModelOutput

    if not (isinstance(found, type) and issubclass(found, BaseOutput | ModelOutput)):
        raise ArtifactError(f"{name} is no output of diffusers or transformers of this version.")
    return found


def renamed(tree: Any, names: Mapping[str, str], constants: Mapping[str, float]) -> Any:
    """A tree with tensors under other names, and its numbers as constants or as tensors."""
    if isinstance(tree, list):
        return [renamed(one, names, constants) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"number"}:
        place = tree["number"]
        return {"value": constants[place]} if place in constants else {"tensor": names[place]}
    if set(tree) == {"tensor"}:
        return {"tensor": names[tree["tensor"]]}
    return {
        key: {k: renamed(v, names, constants) for k, v in value.items()}
        if key == "named"
        else value
        if key in ("value", "class", "left_out")
        else renamed(value, names, constants)
        for key, value in tree.items()
    }


def places_of(tree: Tree, place: str = "") -> dict[str, str]:
    """Name of every tensor in a tree → its place, as `take_apart` would call it."""
    if "tensor" in tree:
        return {tree["tensor"]: place}
    found: dict[str, str] = {}
    inside: list[tuple[object, Tree]] = list(tree.get("named", {}).items())
    inside += enumerate(tree.get("list") or tree.get("tuple") or ())
    if "distribution" in tree:
        inside.append(("parameters", tree["distribution"]))
    for key, one in inside:
        for name, where in places_of(one, f"{place}.{key}" if place else str(key)).items():
            found.setdefault(name, where)
    return found
