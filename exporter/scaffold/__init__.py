"""Begins the module of a pipeline family and its tests, in a source checkout."""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from exporter.errors import DestinationError, UsageError

TRANSFORMER = "family_transformer.py.j2"
"""The module of a pipeline that has a transformer instead of a UNet."""
TEMPLATES = {
    "exporter/architectures/{name}.py": "family.py.j2",
    "tests/architectures/test_{name}.py": "test_family.py.j2",
}
TEMPLATES_MODULE = next(iter(TEMPLATES))
REGISTER = "exporter/architectures/__init__.py"
OPENING = "FAMILIES = {\n"


@dataclass(frozen=True)
class Scaffold:
    """What was written, relative to the checkout, and what to do next."""

    root: Path
    written: tuple[str, ...]
    changed: tuple[str, ...]
    following: tuple[str, ...]


def new_architecture(name: str, pipeline_class: str, root: Path | None = None) -> Scaffold:
    """Write a family's module and test, and enter its pipeline class into `FAMILIES`.

    Args:
        name: Of the module (`my_family`).
        pipeline_class: As in `model_index.json` (`MyFamilyPipeline`).
        root: The checkout; None looks upwards from the working directory.

    Raises:
        UsageError: No name of a module or class, or one that is known; no source checkout.
        DestinationError: A file is there already; nothing is then written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from exporter.artifact import write_text_atomic

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} is no name of a module.", hint="Try small letters: my_family.")
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", pipeline_class):
        raise UsageError(f"{pipeline_class!r} is no name of a class.", hint="Try MyFamilyPipeline.")
    base = checkout(root)
    files = {place.format(name=name): template for place, template in TEMPLATES.items()}
    there = next((file for file in files if (base / file).exists()), None)
    if there is not None:
        raise DestinationError(f"{there} exists and is not overwritten.", hint="Choose another name.")
    register = (base / REGISTER).read_text(encoding="utf-8")
    if f'"{pipeline_class}"' in register:
        raise UsageError(f"{pipeline_class} has a module already: see FAMILIES in {REGISTER}.")
    if OPENING not in register:
        raise UsageError(f"{REGISTER} has no line {OPENING.strip()!r} to enter the family after.")
    engine = Environment(
        loader=PackageLoader("exporter.scaffold", "."), undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    facts = facts_of(pipeline_class)
    if facts["transformer"]:
        files[TEMPLATES_MODULE.format(name=name)] = TRANSFORMER
    title = name.replace("_", " ").capitalize()
    for file, template in files.items():
        text = engine.get_template(template).render(
            name=name, pipeline_class=pipeline_class, title=title, **facts
        )
        write_text_atomic(base / file, text)
    entry = f'    "{pipeline_class}": "exporter.architectures.{name}",\n'
    write_text_atomic(base / REGISTER, _entered(register, pipeline_class, entry))
    return Scaffold(
        root=base,
        written=tuple(files),
        changed=(REGISTER,),
        following=(
            f"python -m pytest tests/architectures/test_{name}.py",
            *([f"The library's code: {facts['code']}"] if facts["code"] else []),
            "Then follow “Add a family” in exporter/architectures/README.md.",
        ),
    )


def facts_of(pipeline_class: str) -> dict[str, Any]:
    """What the library itself says of a pipeline.

    Returns:
        `transformer`: the class of its transformer, empty where it has none or the library does not know
        the pipeline; `takes`: what that one's `forward` takes; `encoded`: what `encode_prompt` returns, as
        far as the pipeline's call takes it; `code`: the file of the pipeline, from `diffusers/` on.
    """
    import diffusers

    facts: dict[str, Any] = {"transformer": "", "takes": [], "encoded": [], "code": ""}
    found = getattr(diffusers, pipeline_class, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        return facts
    facts["code"] = f"{found.__module__.replace('.', '/')}.py"
    facts["encoded"] = _returned(getattr(found, "encode_prompt", None), inspect.signature(found.__call__))
    part = inspect.signature(found.__init__).parameters.get("transformer")
    if part is None:
        return facts
    kind = next((k for k in (part.annotation, *get_args(part.annotation)) if isinstance(k, type)), None)
    facts["transformer"] = kind.__name__ if kind is not None else "the transformer"
    if kind is not None:
        takes = list(inspect.signature(kind.forward).parameters)  # type: ignore[attr-defined]
        facts["takes"] = [each for each in takes if each not in ("self", "return_dict")]
    return facts


def _returned(function: Any, call: inspect.Signature) -> list[str]:
    """The names in a function's last `return`, up to the first that is no parameter of `call`."""
    if function is None:
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    last = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)][-1:]
    names = [each.id for each in getattr(last[0], "elts", []) if isinstance(each, ast.Name)] if last else []
    return list(takewhile(call.parameters.__contains__, names))


def _entered(register: str, pipeline_class: str, entry: str) -> str:
    """The register with an entry more, in the order of the names."""
    start = register.index(OPENING) + len(OPENING)
    end = register.index("}", start)
    for match in re.finditer(r'^    "(\w+)"', register[start:end], re.MULTILINE):
        if match[1] > pipeline_class:
            place = start + match.start()
            return register[:place] + entry + register[place:]
    return register[:end] + entry + register[end:]


def checkout(root: Path | None) -> Path:
    """The source checkout at or above a folder.

    Raises:
        UsageError: There is none: an installed package has no tests to add to.
    """
    start = (root or Path.cwd()).expanduser().absolute()
    for folder in (start, *start.parents) if root is None else (start,):
        if (folder / REGISTER).is_file() and (folder / "tests" / "architectures").is_dir():
            return folder
    raise UsageError(
        f"{start} is in no source checkout of exporter, where families are added.",
        hint="Clone the repository and run this in it.",
    )
