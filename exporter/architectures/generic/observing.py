"""Runs diffusers' own pipeline over a checkpoint's configs, and writes down the calls of its modules.

Every module computes shapes only (fake tensors, no weights) and gives noise of that shape back, so observing
costs no more for 12 billion parameters than for a million. A module that looks at values on its way cannot be
run like that: then all of them are run with their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from exporter.architectures.generic.ports import (
    METHODS,
    SCAFFOLD,
    arguments,
    build,
    construct,
    first_line,
    from_picture,
    is_network,
    named_arguments,
    port,
    takes_picture,
)
from exporter.architectures.generic.symbols import Knobs
from exporter.architectures.generic.trees import Strange, Tree, take_apart
from exporter.architectures.weightless import no_weights
from exporter.errors import ExporterError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.checkpoints import Checkpoint

STEPS = 2
"""Of a run: with one alone a number that moves from step to step would pass for a constant."""
PROMPT = "a red star"
LONG_PROMPT = "a large red star at the left of a small blue circle on a white background with a border"
PICTURES = ("images", "frames", "prediction")
"""Where a pipeline's result has them; a prediction is a map of depths, of one channel."""
SIDES = (16, 8, -2, -4)
"""Latent cells by which a side is changed, in this order, until the pipeline runs."""


@dataclass
class Seen:
    """One observed call."""

    arguments: Tree
    tensors: dict[str, torch.Tensor]
    numbers: dict[str, float]
    returns: Tree
    results: dict[str, torch.Tensor]


@dataclass
class Run:
    """Every call of a run, by folder and method, and whether the result was pictures."""

    knobs: Knobs
    calls: dict[tuple[str, str], list[Seen]] = field(default_factory=dict)
    pictures: bool = False


class Observer:
    """A checkpoint's pipeline over modules that are observed.

    Args:
        real: Run the modules with their weights.

    Attributes:
        used: By folder and method, the first part of the path of every weight-bearing submodule that ran.
    """

    def __init__(self, checkpoint: Checkpoint, *, real: bool = False) -> None:
        self.checkpoint = checkpoint
        self.run: Run | None = None
        self.used: dict[tuple[str, str], set[str]] = {}
        self.modules: dict[str, nn.Module] = {}
        ports: dict[str, nn.Module] = {}
        for folder, (library, class_name) in checkpoint.component_classes.items():
            if not is_network(library, class_name) or folder == "safety_checker":
                continue
            config = checkpoint.config(folder)
            ports[folder] = port(folder, library, class_name, config, self._call)
            with no_weights():
                module = construct(library, class_name, config)
            self.modules[folder] = module.eval().requires_grad_(False)
        self.fake = None if real else _fake(self.modules.values())
        if real:
            self._fill()
        self.pipeline = build(checkpoint.root, checkpoint.index, checkpoint.source, ports)

    def observe(self, knobs: Knobs, *, prompt: str = PROMPT, tokens: int | None = None) -> Run:
        """Run the pipeline once.

        Raises:
            UnsupportedError: A call cannot be told as tensors and constants, or the pipeline wants more than
                it is given.
        """
        self.run = Run(knobs)
        shown = shade(knobs.height, knobs.width) if takes_picture(self.pipeline) else None
        given = arguments(
            self.pipeline,
            prompts=[prompt] * knobs.pictures,
            height=knobs.height,
            width=knobs.width,
            steps=STEPS,
            generators=[torch.Generator().manual_seed(i) for i in range(knobs.pictures)],
            tokens=tokens,
            pictures=[shown] * knobs.pictures if shown is not None else (),
            further=from_picture(self.pipeline, STEPS),
        )
        with torch.no_grad():
            result = self.pipeline(**given)
        self.run.pictures = any(hasattr(result, name) for name in PICTURES)
        return self.run

    def _call(self, folder: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.modules[folder]
        named = named_arguments(type(module), method, args, kwargs)
        if self.checkpoint.component_classes[folder][0] == "transformers" and "use_cache" not in named:
            named |= _without_cache(module)
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, float] = {}
        try:
            tree = take_apart(named, "", tensors, numbers)
        except Strange as error:
            raise UnsupportedError(
                f"The {folder} ({type(module).__name__}.{method}) is given {error}, which is neither a "
                "tensor nor a constant, so the generic route cannot convert it.",
                hint=SCAFFOLD,
            ) from error
        used = self.used.setdefault((folder, method), set())
        result = self._compute(module, method, named, used)
        results: dict[str, torch.Tensor] = {}
        returns = take_apart(result, "", results, None)
        assert self.run is not None
        kept = {name: value.detach().clone() for name, value in tensors.items()}
        seen = Seen(tree, kept, numbers, returns, results)
        self.run.calls.setdefault((folder, method), []).append(seen)
        return result

    def _compute(self, module: nn.Module, method: str, named: dict[str, Any], used: set[str]) -> Any:
        handles = [
            each.register_forward_pre_hook(lambda *_, path=path: used.add(path.split(".")[0]))
            for path, each in module.named_modules()
            if path and each._parameters
        ]
        try:
            if self.fake is None:
                return getattr(module, method)(**named)
            fake = self.fake
            with fake:
                inside = tree_map(lambda v: fake.from_tensor(v) if isinstance(v, torch.Tensor) else v, named)
                result = getattr(module, method)(**inside)
            return _noise(result)
        finally:
            for handle in handles:
                handle.remove()

    def _fill(self) -> None:
        """Real weights, in float32."""
        for folder, module in self.modules.items():
            names = renames(module)
            stored = {names(n): t for n, t in self.checkpoint.reference_stored(folder).items()}
            state = {n: t.load().float() for n, t in stored.items() if n is not None}
            module.load_state_dict(state, strict=False, assign=True)
            module.float().eval().requires_grad_(False)


def renames(module: nn.Module) -> Callable[[str], str | None]:
    """A stored weight's name → the module's, which has one name only for a part that had two.

    The module remembers its lost names as plain attributes (`construct`).
    """
    lost: dict[str, str] = {}
    paths = {id(each): path for path, each in module.named_modules()}
    for path, each in module.named_modules():
        for name, value in vars(each).items():
            if isinstance(value, nn.Module) and id(value) in paths:
                lost[f"{path}.{name}" if path else name] = paths[id(value)]

    def rename(name: str) -> str | None:
        for alias, kept in lost.items():
            if name.startswith(f"{alias}."):
                return kept + name[len(alias) :]
        return name

    return rename


def shade(height: int, width: int) -> Image:
    """A picture to start from: what it shows does not matter."""
    from PIL import Image

    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def _without_cache(module: nn.Module) -> dict[str, bool]:
    """A language model is to give no cache: pipelines call it once a prompt."""
    import inspect

    return {"use_cache": False} if "use_cache" in inspect.signature(type(module).forward).parameters else {}


def _fake(modules: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in modules:
            for owner in module.modules():
                for name, parameter in owner._parameters.items():
                    if parameter is not None:
                        empty = torch.empty(parameter.shape, dtype=torch.float32)
                        owner._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return mode


def _noise(result: Any) -> Any:
    """The result with real tensors of the same shapes."""
    made: dict[int, torch.Tensor] = {}

    def real(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in made:
            if value.is_floating_point():
                made[id(value)] = torch.randn(tuple(value.shape), dtype=value.dtype)
            else:
                made[id(value)] = torch.zeros(tuple(value.shape), dtype=value.dtype)
        return made[id(value)]

    return _rebuilt(result, real)


def _rebuilt(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value).__name__ == "DiagonalGaussianDistribution":
        return type(value)(change(value.parameters))
    if isinstance(value, Mapping):
        items = {key: _rebuilt(one, change) for key, one in value.items()}
        return type(value)(**items) if type(value) is not dict else items
    if isinstance(value, list | tuple):
        return type(value)(_rebuilt(one, change) for one in value)
    return value


def observe(checkpoint: Checkpoint) -> tuple[dict[str, Run], Observer, list[str]]:
    """A run as the model is meant, and one for each thing that can be changed.

    Returns:
        Runs by what was changed (`base`, `batch`, `height`, `width`, `sequence`), the observer, and notes.

    Raises:
        UnsupportedError: The pipeline does not run; the message says why and what to do.
    """
    try:
        return _observe(Observer(checkpoint))
    except ExporterError:
        raise
    except Exception as faked:  # a module looked at values: with weights it can
        try:
            return _observe(Observer(checkpoint, real=True))
        except ExporterError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"diffusers' own {checkpoint.pipeline_class} does not run on {checkpoint.source}, so there "
                f"is nothing to learn its calls from: {type(error).__name__}: {first_line(error)} "
                f"(without weights: {first_line(faked)})",
                hint=SCAFFOLD,
            ) from error


def _observe(observer: Observer) -> tuple[dict[str, Run], Observer, list[str]]:
    import inspect

    from exporter.architectures.generic.ports import native_size

    known = inspect.signature(observer.pipeline.__call__).parameters
    height, width, factor = native_size(observer.pipeline)
    base = Knobs(1, height, width)
    runs = {"base": observer.observe(base)}
    notes: list[str] = []

    def change(name: str, tries: list[Callable[[], Run]]) -> None:
        reason = ""
        for attempt in tries:
            try:
                runs[name] = attempt()
                return
            except Exception as error:
                reason = reason or first_line(error)
        notes.append(f"{name} is baked: the pipeline does not run with another ({reason})")

    change("batch", [lambda: observer.observe(Knobs(3, height, width))])
    for side in ("height", "width"):
        if side not in known and not takes_picture(observer.pipeline):
            continue
        sizes = [max(factor, getattr(base, side) + cells * factor) for cells in SIDES]
        change(
            side,
            [
                lambda s=size, side=side: observer.observe(  # type: ignore[misc]
                    Knobs(1, s if side == "height" else height, s if side == "width" else width)
                )
                for size in sizes
                if size != getattr(base, side)
            ],
        )
    tokens = known["max_sequence_length"].default if "max_sequence_length" in known else None
    if isinstance(tokens, int):
        change("sequence", [lambda: observer.observe(base, tokens=max(tokens * 2 // 3, 4))])
    elif "prompt" in known:
        change("sequence", [lambda: observer.observe(base, prompt=LONG_PROMPT)])
    return runs, observer, notes


__all__ = ["METHODS", "Observer", "Run", "Seen", "observe", "renames"]
