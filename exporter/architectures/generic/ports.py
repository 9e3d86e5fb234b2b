"""The library's pipeline over modules without weights, whose calls go elsewhere; and how such a pipeline is
called.

The same for observing a pipeline, for running exported components in it, and for the reference run of a
verification: what differs is where the calls go.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.architectures.generic.trees import LIBRARIES
from exporter.architectures.weightless import no_weights
from exporter.errors import CheckpointError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

METHODS = ("forward", "decode", "encode")
SCAFFOLD = "Write a module for the family: `exporter new-architecture NAME` begins one."
PLAIN = {"processing_resolution": 0}
"""Settings for the size that is asked for, where pipelines (Marigold's) would scale to one of their own."""
SKIPPED = ("safety_checker",)
"""Parts that are not exported and that pipelines do without."""
STRENGTH = 0.5
"""Of observed and of judged runs that take away part of a picture first."""
Route = Callable[[str, str, tuple[Any, ...], dict[str, Any]], Any]
"""Makes a call: folder, method, positional and named arguments."""


def pipeline_class(name: str, source: str) -> Any:
    """The class of diffusers by its name.

    Raises:
        CheckpointError: There is none; the message says what the generic route can do.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise CheckpointError(
            f"{source} is a {name}, which diffusers {diffusers.__version__} has no pipeline for; the generic "
            "route converts a family without a module by observing diffusers' own, so there has to be one.",
            hint="Check _class_name in model_index.json, or update diffusers.",
        )
    return found


def is_network(library: str, class_name: str) -> bool:
    """Whether a part of a pipeline is a module with weights."""
    cls = part_class(library, class_name)
    from torch import nn

    return isinstance(cls, type) and issubclass(cls, nn.Module)


def part_class(library: str, class_name: str) -> Any:
    """The class of a part, None where these libraries have none of that name."""
    from importlib import import_module

    return getattr(import_module(library), class_name, None) if library in LIBRARIES else None


def construct(library: str, class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """The library's module from its config. A module that has two names gets one (`aliases`)."""
    cls = part_class(library, class_name)
    made: nn.Module
    if library == "diffusers":
        made = cls.from_config(dict(config))
    else:
        made = cls(cls.config_class.from_dict(dict(config)))
    for alias in aliases(made):
        owner = made.get_submodule(alias.rpartition(".")[0])
        name = alias.rpartition(".")[2]
        object.__setattr__(owner, name, owner._modules.pop(name))
    return made


def aliases(module: nn.Module) -> dict[str, str]:
    """Path of every submodule that is there under another name too → the longest such name."""
    paths: dict[int, list[str]] = {}
    for path, each in module.named_modules(remove_duplicate=False):
        paths.setdefault(id(each), []).append(path)
    found: dict[str, str] = {}
    for names in paths.values():
        kept = max(names, key=lambda path: (path.count("."), path))
        inside = tuple(f"{alias}." for alias in found)
        found |= {n: kept for n in names if n != kept and not n.startswith(inside or ("\0",))}
    return found


def port(folder: str, library: str, class_name: str, config: Mapping[str, Any], route: Route) -> nn.Module:
    """A module of the right class and config without weights, whose methods go to `route`."""
    import torch

    with no_weights():
        module = construct(library, class_name, config)
    module.eval().requires_grad_(False)
    kind = type(module)
    here = property(lambda self: torch.device("cpu"))
    module.__class__ = type(kind.__name__, (kind,), {"device": here, "__module__": kind.__module__})
    for method in METHODS:
        if callable(getattr(kind, method, None)):
            setattr(module, method, _routed(route, folder, method))
    return module


def _routed(route: Route, folder: str, method: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return route(folder, method, args, kwargs)

    return call


def named_arguments(cls: type, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    signature = inspect.signature(_undecorated(getattr(cls, method)))
    bound = dict(signature.bind(None, *args, **kwargs).arguments)
    bound.pop(next(iter(signature.parameters)), None)  # self
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and bound.pop(name, ()):
            raise UnsupportedError(f"{cls.__name__}.{method} takes arguments without names.", hint=SCAFFOLD)
    return bound


def _undecorated(function: Any) -> Any:
    """What a decorator that hides the parameters was put around (`apply_forward_hook` of diffusers)."""
    function = inspect.unwrap(function)
    names = list(inspect.signature(function).parameters)
    held = [cell.cell_contents for cell in function.__closure__ or () if callable(cell.cell_contents)]
    return _undecorated(held[0]) if names == ["self", "args", "kwargs"] and len(held) == 1 else function


def build(root: Path, index: Mapping[str, Any], source: str, modules: Mapping[str, nn.Module]) -> Any:
    """The library's pipeline over `modules`; its small parts come from the files below `root`.

    Raises:
        CheckpointError: The pipeline or a part is of no class of these libraries, or cannot be opened.
    """
    import torch

    base = pipeline_class(str(index["_class_name"]), source)
    cpu = property(lambda self: torch.device("cpu"))
    kind = type(base.__name__, (base,), {"device": cpu, "_execution_device": cpu})
    known = inspect.signature(base.__init__).parameters
    parts: dict[str, Any] = dict(modules)
    for name, value in index.items():
        if not (isinstance(value, list | tuple) and len(value) == 2) or name in parts or name not in known:
            continue
        library, class_name = value
        if class_name is None or name in SKIPPED:
            parts[name] = None
            continue
        cls = part_class(library, class_name)
        if cls is None:
            raise CheckpointError(
                f"{source}: {name} is a {library}.{class_name}, which these versions of diffusers and "
                "transformers lack."
            )
        try:
            parts[name] = cls.from_pretrained(root / name, local_files_only=True)
        except Exception as error:  # the libraries raise whatever their parts do
            raise CheckpointError(f"{source}: {name} cannot be opened: {first_line(error)}") from error
    settings: dict[str, Any] = {
        n: v for n, v in index.items() if n in known and not isinstance(v, list | tuple) and n not in parts
    }
    settings |= {n: False for n in ("requires_safety_checker", "add_watermarker") if n in known}
    missing = [
        n for n, p in known.items()
        if p.default is p.empty and n not in {"self", *parts, *settings} and p.kind is p.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    pipeline = kind(**parts, **settings, **dict.fromkeys(missing))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments(
    pipeline: Any,
    *,
    prompts: Sequence[str],
    height: int,
    width: int,
    steps: int,
    generators: Sequence[torch.Generator],
    guidance: float | None = None,
    tokens: int | None = None,
    pictures: Sequence[Image] = (),
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a pipeline is called with for some pictures.

    Args:
        prompts: One a picture. A pipeline of classes takes the class of that number, or name; one that takes
            neither ignores them.
        tokens: Of `max_sequence_length`.
        pictures: To start from, one for each prompt, of that height and width; for a pipeline that takes any.
        further: Given as they are.

    Raises:
        UnsupportedError: It wants something else too; the message names it.
        UsageError: No such class.
    """
    known = inspect.signature(pipeline.__call__).parameters
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "height": height,
        "width": width,
        "output_type": "np",
    }
    if guidance is not None:
        given["guidance_scale"] = guidance
    if tokens is not None:
        given["max_sequence_length"] = tokens
    if "prompt" in known:
        given["prompt"] = list(prompts)
    elif "class_labels" in known:
        given["class_labels"] = [_label(pipeline, prompt) for prompt in prompts]
    else:
        given["batch_size"] = len(prompts)
    if pictures:
        given["image"] = list(pictures) if len(pictures) > 1 else pictures[0]
    given |= PLAIN
    given["generator"] = list(generators) if len(generators) > 1 else generators[0]
    given |= further or {}
    wanted = [
        n for n, p in known.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and n not in given
    ]  # fmt: skip
    if wanted:
        raise UnsupportedError(
            f"A {type(pipeline).__name__} wants {wanted[0]!r}, which the generic route has nothing for: it "
            "gives prompts, class labels, a picture, sizes and noise.",
            hint=SCAFFOLD,
        )
    return {name: value for name, value in given.items() if name in known}


def _label(pipeline: Any, prompt: str) -> int:
    """The class that a prompt names: its number, its name, or for free text one drawn by it."""
    labels: Mapping[str, int] = getattr(pipeline, "labels", None) or {}
    if prompt in labels:
        return labels[prompt]
    if prompt.strip().isdigit():
        return int(prompt)
    if labels:
        raise UsageError(
            f"This model paints classes, and {prompt!r} is none of them.",
            hint=f"Give a number, or a name such as {next(iter(labels))!r}.",
        )
    return sum(prompt.encode()) % 10


def takes_picture(pipeline: Any) -> bool:
    """Whether a pipeline is given a picture (to change, to enlarge, to measure)."""
    return "image" in inspect.signature(pipeline.__call__).parameters


def from_picture(pipeline: Any, steps: int) -> dict[str, Any]:
    """Settings with which a pipeline that takes away part of a picture first does all the steps."""
    known = inspect.signature(pipeline.__call__).parameters
    if "strength" not in known or "image" not in known:
        return {}
    return {"strength": STRENGTH, "num_inference_steps": math.ceil(steps / STRENGTH)}


def native_size(pipeline: Any) -> tuple[int, int, int]:
    """(height, width, pixels per latent cell), by the config of what denoises, or the pipeline's defaults.

    Of a pipeline that enlarges pictures it is the small one's, whose pixels are the latent cells.
    """
    named = [getattr(pipeline, name, None) for name in ("vae_scale_factor", "movq_scale_factor")]
    factor = next((int(value) for value in named if isinstance(value, int)), None)
    if factor is None:
        blocks = getattr(getattr(getattr(pipeline, "vae", None), "config", None), "block_out_channels", None)
        factor = 2 ** (len(blocks) - 1) if blocks else 1
    if getattr(pipeline, "low_res_scheduler", None) is not None:
        factor = 1
    known = inspect.signature(pipeline.__call__).parameters
    for name in ("unet", "transformer", "prior", "decoder"):
        sample = getattr(getattr(getattr(pipeline, name, None), "config", None), "sample_size", None)
        if isinstance(sample, int | list | tuple) and sample:
            high, wide = (sample, sample) if isinstance(sample, int) else sample[-2:]
            return high * factor, wide * factor, factor
    defaults = [known[side].default if side in known else None for side in ("height", "width")]
    high, wide = (side if isinstance(side, int) else 512 for side in defaults)
    return high, wide, factor


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
