"""What decides a graph: the key of a cached skeleton.

Two components with the same key have the same graph whatever their weights. So everything that can change
the graph is in the key, and a component of which that cannot be said has none: it is traced every time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from exporter.architectures.base import Component

TOOLS = ("exporter", "torch", "diffusers", "transformers", "numpy", "onnx", "onnx-ir", "onnxscript")
ROOMS = (Path(__file__).parent, Path(__file__).parents[1] / "architectures")
"""Source files whose every change makes other keys: how graphs are made, and of what."""

IRRELEVANT = frozenset(
    {"_name_or_path", "name_or_path", "_diffusers_version", "transformers_version", "_commit_hash"}
)
"""Keys of a config that tell where it came from: they differ between fine-tunes of one architecture."""


class Undescribed(Exception):
    """Something that may decide the graph and has no description."""


def key_of(component: Component, options: Mapping[str, Any]) -> str | None:
    """sha256 of everything that decides the graph, or None where it cannot be told.

    Args:
        component: Its class, config, tensors, the functions that build it with all they hold, and the names
            (not the shapes, dtypes or bytes) of its weights count: initializers are called as stored.
        options: Of `build()`.
    """
    modules: set[str] = set()
    try:
        about = {
            "component": [component.name, component.class_name, sorted(component.used)],
            "config": _described(component.config, modules),
            "tensors": _described([component.inputs, component.outputs, component.native], modules),
            "functions": [_described(each, modules) for each in (component.construct, component.adapt)],
            "weights": _names_digest(component),
            "options": _described(dict(options), modules),
            "tools": [_version(name) for name in TOOLS],
            "sources": [source_digest(), *(_module_digest(name) for name in sorted(modules))],
        }
    except Undescribed:
        return None
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _names_digest(component: Component) -> str:
    names = sorted((name, tensor.name) for name, tensor in component.weights.items())
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


@functools.cache
def source_digest() -> str:
    """sha256 of the source files of `ROOMS`.

    Raises:
        Undescribed: They are not there as files.
    """
    files = sorted(path for room in ROOMS for path in room.rglob("*.py"))
    if not files:
        raise Undescribed("sources that are no files")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.parent.name}/{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _module_digest(name: str) -> str:
    """sha256 of the source of a module that some function of the component comes from."""
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:
        raise Undescribed(f"the module {name}, which has no file")
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise Undescribed(f"the module {name}, which cannot be read") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _described(value: Any, modules: set[str], around: tuple[Any, ...] = ()) -> Any:
    """A value as JSON; modules of functions and classes in it are added to `modules`.

    Raises:
        Undescribed: A value of another kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if any(value is each for each in around):
        return "itself"
    around = (*around, value)

    def each(values: Iterable[Any]) -> list[Any]:
        return [_described(one, modules, around) for one in values]

    if isinstance(value, list | tuple):
        return each(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise Undescribed("a mapping whose keys are no names")
        kept = {key: one for key, one in value.items() if key not in IRRELEVANT}
        return dict(zip(kept, each(kept.values()), strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [type(value).__qualname__, *each(fields)]
    if isinstance(value, functools.partial):
        return ["partial", *each((value.func, value.args, value.keywords))]
    if isinstance(value, type):
        if "<locals>" in value.__qualname__:  # its methods may hold anything
            raise Undescribed(f"the class {value.__qualname__}, made in a function")
        modules.add(value.__module__)
        return [value.__module__, value.__qualname__]
    if isinstance(value, FunctionType):
        modules.add(value.__module__)
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        code = _code(value.__code__)
        rest = each((held, value.__defaults__, value.__kwdefaults__))
        return [value.__module__, value.__qualname__, code, *rest]
    raise Undescribed(f"a {type(value).__qualname__}")


def _code(code: CodeType) -> list[Any]:
    """Tells apart functions of one name, such as two lambdas of one line."""
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]
