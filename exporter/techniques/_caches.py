"""What the caches of diffusers' transformers share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from exporter.errors import UsageError
from exporter.techniques.base import Effect, Technique, Undo, denoiser

CACHES = frozenset({"first-block-cache", "attention-broadcast", "faster-cache", "taylor-seer"})
"""Only one of them at a time, and none inside a traced program."""


class TransformerCache(Technique):
    """Keeps something from one step for the next. A subclass gives diffusers' own settings."""

    denoisers: ClassVar[frozenset[str]] = frozenset({"transformer"})
    effect: ClassVar[Effect] = "lossy"
    stage: ClassVar[int] = 3

    @abstractmethod
    def config(self, pipeline: Any) -> Any:
        """As `enable_cache` of a diffusers model takes it."""

    def apply(self, pipeline: Any) -> Undo:
        return enable(pipeline, self.config(pipeline), self.name)


def enable(pipeline: Any, config: Any, name: str) -> Undo:
    """Switch one of diffusers' caches on; its state is cleared with the pipeline's first step.

    Raises:
        UsageError: This denoiser has no caches, or one is on already.
    """
    module: Any = denoiser(pipeline)
    if not hasattr(module, "enable_cache"):
        raise UsageError(f"The technique {name} does not work on a {type(module).__name__}.")
    if module.is_cache_enabled:
        raise UsageError("Another cache is on already: one at a time.")
    try:
        module.enable_cache(config)
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"The technique {name} does not work on a {type(module).__name__}: {error}"
        ) from error
    # diffusers remembers which parts have hooks; one that has painted before remembers none of the new.
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None:
        registry._child_registries_cache = None
    undo: Undo = module.disable_cache
    return undo
