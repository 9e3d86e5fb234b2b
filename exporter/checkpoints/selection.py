"""Which files of a repository a pipeline needs: one format, one precision, nothing twice.

Pure: works on names. The names are those that diffusers and transformers write:
`<stem>[.<variant>].safetensors`, shards `<stem>[.<variant>]-00001-of-00002.safetensors`, and the index
`<stem>.safetensors.index[.<variant>].json`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from exporter.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")
SMALL = (".json", ".txt", ".model")
"""Endings of configs and tokenizers."""
ROOT_FILES = ("model_index.json", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
WEIGHT = re.compile(
    rf"^(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?(-\d{{5}}-of-\d{{5}})?(\.(?P<late>\w+))?\.safetensors$"
)
INDEX = re.compile(rf"^(?P<stem>{'|'.join(STEMS)})\.safetensors\.index(\.(?P<variant>\w+))?\.json$")
ANY_INDEX = re.compile(r"\.index(\.\w+)?\.json$")


def select_files(
    names: Iterable[str],
    index: Mapping[str, Any],
    variant: str | None = None,
    skip: Collection[str] = (),
) -> list[str]:
    """The files to fetch, sorted.

    Args:
        names: Every file of the repository.
        index: Its `model_index.json`.
        variant: Wanted weight variant (`fp16`); a component without it gives its plain weights.
        skip: Components whose weights are not wanted; their small files are.

    Raises:
        CheckpointError: No component has that variant, or one has no safetensors weights.
    """
    everything = list(names)
    wanted = {name for name in everything if name in ROOT_FILES}
    found_variants: set[str] = set()
    asked_found = variant is None
    for component in components(index, everything):
        inside = [n.removeprefix(f"{component}/") for n in everything if n.startswith(f"{component}/")]
        inside = [n for n in inside if "/" not in n]
        small = [n for n in inside if n.endswith(SMALL) and not ANY_INDEX.search(n)]
        wanted |= {f"{component}/{n}" for n in small}
        if component in skip:
            continue
        by_variant = weights_by_variant(inside)
        found_variants |= {v for v in by_variant if v}
        asked_found = asked_found or variant in by_variant
        if by_variant:
            wanted |= {f"{component}/{n}" for n in choose(by_variant, variant, component)}
        elif pickled := [n for n in inside if n.endswith((".bin", ".ckpt", ".pt"))]:
            raise CheckpointError(
                f"Component {component!r} has only pickled weights ({pickled[0]}); a pickle can run code "
                "when it is opened, so it is not downloaded.",
                hint="Look for a revision or variant with safetensors.",
            )
    if not asked_found:
        there = ", ".join(sorted(found_variants)) or "none"
        raise CheckpointError(
            f"No component has the variant {variant!r}; variants there are: {there}.",
            hint="Leave out --variant for the plain weights.",
        )
    return sorted(wanted)


def select_part(names: Iterable[str], variant: str | None = None) -> list[str]:
    """The files of a repository that holds one model in diffusers layout (a ControlNet), sorted.

    Raises:
        CheckpointError: It has no safetensors weights.
    """
    inside = [name for name in names if "/" not in name]
    by_variant = weights_by_variant(inside)
    if not by_variant:
        raise CheckpointError(
            "The repository has no safetensors weights beside its config.json.",
            hint="Look for a revision or variant with safetensors.",
        )
    small = [name for name in inside if name in ("config.json", *ROOT_FILES)]
    return sorted({*small, *choose(by_variant, variant, "of the repository")})


def components(index: Mapping[str, Any], names: Iterable[str] = ()) -> list[str]:
    """Folders that `model_index.json` names a class for, and those among `names` of further ControlNets."""
    found = [
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    ]
    if "controlnet" in found and index["controlnet"][1] == "MultiControlNetModel":
        folders = {name.split("/")[0] for name in names if "/" in name}
        found += sorted(folder for folder in folders if re.match(r"^controlnet_\d+$", folder))
    return found


def weights_by_variant(inside: Iterable[str]) -> dict[str | None, list[str]]:
    """Variant → its weight files and index, of the first stem that has any."""
    by_stem: dict[str, dict[str | None, list[str]]] = {}
    for name in inside:
        found = WEIGHT.match(name) or INDEX.match(name)
        if found:
            groups = found.groupdict()
            variant = groups.get("variant") or groups.get("late")
            by_stem.setdefault(found["stem"], {}).setdefault(variant, []).append(name)
    for stem in STEMS:
        complete = {
            variant: files
            for variant, files in by_stem.get(stem, {}).items()
            if any(name.endswith(".safetensors") for name in files)
        }
        if complete:
            return complete
    return {}


def choose(by_variant: Mapping[str | None, list[str]], variant: str | None, component: str) -> list[str]:
    """The files of the variant asked for, else the plain ones, else the only variant there is."""
    for key in (variant, None):
        if key in by_variant:
            return by_variant[key]
    if len(by_variant) == 1:
        return next(iter(by_variant.values()))
    there = ", ".join(sorted(str(v) for v in by_variant))
    raise CheckpointError(
        f"Component {component!r} has no plain weights, and several variants ({there}).",
        hint="Choose one with --variant.",
    )
