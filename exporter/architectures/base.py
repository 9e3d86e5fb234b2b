"""WHAT: components of a pipeline family, with named inputs and outputs.

A component names its tensors once, in the field's terms; targets translate where a client wants
other names. Dims are sizes or the symbols of `Size`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exporter.architectures.weightless import no_weights
from exporter.checkpoints import Checkpoint, StoredTensor
from exporter.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from exporter.architectures.baked.deciding import Decisions

    Device = torch.device | None
Dim = int | str
DENOISERS = ("unet", "transformer")
"""Names of the component that predicts what is noise."""
INNER = "inner."
"""Adapters keep the library's own module as `inner`, so a weight's name is INNER + its stored name."""

PACKED = 2
"""Latent cells on each side of what FLUX packs into one token."""

KNOBS = ("batch", "height", "width", "frames", "sequence")
"""What a caller chooses; every symbol follows from these."""
PLAIN = (*KNOBS, "latent_height", "latent_width", "image_tokens", "latent_frames", "video_tokens")
"""Symbols of `Size` itself."""
_DERIVED = re.compile(
    r"(batch|height|width|area|sequence)(?:_times_(\d+))?(?:_over_(\d+))?(?:_(plus|minus)_(\d+))?"
)
"""Symbols that say themselves how they follow from a knob (`area` is height × width in pixels)."""
_FOLLOWS = {
    "latent_height": ("height",),
    "latent_width": ("width",),
    "image_tokens": ("height", "width"),
    "latent_frames": ("frames",),
    "video_tokens": ("frames", "height", "width"),
    "area": ("height", "width"),
}


@dataclass(frozen=True)
class Size:
    """A concrete size for every symbol a dim may name.

    Attributes:
        batch: Rows of the component's own batch (a UNet under guidance sees twice the pictures).
        height: Picture height in pixels; `latent_height` is height // factor, and `image_tokens` the number
            of squares of 2×2 latent cells (FLUX packs each into one token).
        width: Picture width in pixels.
        sequence: Text tokens.
        factor: Pixels per latent cell (the VAE's scale).
        frames: Of a clip; 1 of a picture. `latent_frames` is (frames - 1) // temporal + 1, and
            `video_tokens` the number of latent cells of all of them.
        temporal: Frames per latent frame after the first (a video VAE's scale in time).

    `latent_height_4` is a quarter of `latent_height`, rounded up: the rows at a deeper level of a UNet.
    """

    batch: int = 1
    height: int = 512
    width: int = 512
    sequence: int = 77
    factor: int = 8
    frames: int = 1
    temporal: int = 1

    def resolve(self, dim: Dim) -> int:
        """The number a dim stands for."""
        if isinstance(dim, int):
            return dim
        cells = (self.height // self.factor) * (self.width // self.factor)
        latent_frames = (self.frames - 1) // self.temporal + 1
        values = {
            "batch": self.batch,
            "height": self.height,
            "width": self.width,
            "sequence": self.sequence,
            "latent_height": self.height // self.factor,
            "latent_width": self.width // self.factor,
            "image_tokens": (self.height // self.factor // PACKED) * (self.width // self.factor // PACKED),
            "frames": self.frames,
            "latent_frames": latent_frames,
            "video_tokens": latent_frames * cells,
        }
        base, share = origin(dim)
        return -(-values[base] // share) if base in values else self._derived(dim)

    def _derived(self, dim: str) -> int:
        """The number of a symbol that says how it follows: `height_over_16`, `batch_times_2` …"""
        match = _DERIVED.fullmatch(dim)
        if match is None:
            raise KeyError(dim)
        knob, times, over, sign, offset = match.groups()
        value = self.height * self.width if knob == "area" else int(getattr(self, knob))
        shift = int(offset or 0) * (-1 if sign == "minus" else 1)
        return value * int(times or 1) // int(over or 1) + shift


def runs_each_step(name: str) -> bool:
    """Whether a pipeline calls the component of that name once a step: the denoiser, and what controls it."""
    return name in DENOISERS or name.startswith("controlnet")


def origin(dim: str) -> tuple[str, int]:
    """The symbol that a symbol is a share of, and which: `latent_height_4` → (`latent_height`, 4)."""
    base, _, share = dim.rpartition("_")
    return (base, int(share)) if share.isdigit() and base in PLAIN else (dim, 1)


def knobs_of(dim: Dim) -> tuple[str, ...]:
    """The knobs of `KNOBS` that a dim moves with; none of a number."""
    if isinstance(dim, int):
        return ()
    match = _DERIVED.fullmatch(dim)
    name = match[1] if match is not None else origin(dim)[0]
    return _FOLLOWS.get(name, (name,))


def is_rule(symbol: str) -> bool:
    """Whether a symbol is none of the plain ones but says by its name how it follows from a knob."""
    return origin(symbol)[0] not in PLAIN


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: name, numpy dtype name, dims as sizes or symbols of `Size`.

    Attributes:
        exact: A number to be taken as it is, whatever the arithmetic of the graph: rounding it would
            ask another question (pixels, of which a sine is taken), not answer it less precisely.
    """

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    exact: bool = False

    def shape(self, size: Size) -> tuple[int, ...]:
        return tuple(size.resolve(dim) for dim in self.dims)


Situations = Callable[
    ["Component", "dict[str, torch.Tensor]", int, int], Iterable[tuple[str, "dict[str, torch.Tensor]"]]
]


@dataclass(frozen=True)
class Component:
    """One exportable part of a pipeline.

    Attributes:
        name: Its name in artifacts (`vae_decoder`).
        folder: Its folder in the checkpoint (`vae`).
        checkpoint: Where its weights lie.
        class_name: The library's class (`AutoencoderKL`).
        inputs / outputs: In the order of the adapter's `forward`.
        native: The size the model was trained at.
        construct: Builds the library's own module from its config; weights are whatever the
            surrounding context gives (random, or none under `no_weights`).
        adapt: Wraps that module so that `forward(**inputs)` returns a tuple in order of `outputs`;
            keeps it as `.inner`.
        used: Prefixes of weight names (without `inner.`) that this component uses; empty = all.
        make_inputs: `(spec, size, generator) -> tensor` for inputs that are not plain noise.
        renames: Maps a stored weight name (old checkpoints) to the module's name, or None to drop it.
        rows: Rows of a call to one picture: two where guidance runs both prompts at once.
        multiple: Latent cells by which it divides each side of a picture: patches, or a UNet's levels.
        clip: Frames of a clip where nobody says how many: the pipeline's own default. 1 of a picture model.
        published: Gives what clients read in the exported component's `config.json` besides the
            checkpoint's own config: numbers that lie among its weights.
        varying: Symbols that are another number from one call of a run to the next: none can be baked.
        derive: Makes of the stored weights, by their names, those of a module that has others (joined ones).
        variant: What a technique made of it, as text that tells it from every other; part of its digest.
        beside: The component before it that has most of the same weights: a format may keep them once.
        reference: Computes the same by the library's own code; what artifacts are judged against, where it
            is not this component itself.
        decides: What it decides by comparing numbers, where it does.
        situations: Makes of one captured input those that it is judged on, in words and tensors: itself, the
            input, height and width of the picture (pixels). None where the input is judged as it is.
        held: Weights in the place of the checkpoint's, for itself and as its own reference: `holding`.
    """

    name: str
    folder: str
    checkpoint: Checkpoint
    class_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    native: Size
    construct: Callable[[], nn.Module]
    adapt: Callable[[nn.Module], nn.Module]
    used: tuple[str, ...] = ()
    make_inputs: Mapping[str, Callable[[TensorSpec, Size, torch.Generator], torch.Tensor]] = field(
        default_factory=dict
    )
    renames: Callable[[str], str | None] = field(default=lambda name: name)
    rows: int = 1
    multiple: int = 1
    clip: int = 1
    published: Callable[[], Mapping[str, Any]] = field(default=dict)
    varying: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, StoredTensor]], Mapping[str, StoredTensor]] = field(
        default=lambda stored: stored
    )
    variant: str = ""
    beside: str | None = None
    reference: Component | None = None
    decides: Decisions | None = None
    situations: Situations | None = None
    held: dict[str, StoredTensor] | None = field(default=None, repr=False, compare=False)

    @property
    def config(self) -> dict[str, Any]:
        """The component's own `config.json`."""
        return self.checkpoint.config(self.folder)

    @cached_property
    def weights(self) -> dict[str, StoredTensor]:
        """Every weight in use by the adapter's parameter name (`inner.…`), on disk, not yet read."""
        if self.held is not None:
            return self.held
        return self._in_use(self.checkpoint.stored(self.folder))

    @cached_property
    def reference_weights(self) -> dict[str, StoredTensor]:
        """As `weights`, for the reference: the same but for sources that are changed on their way."""
        if self.held is not None:
            return self.held
        return self._in_use(self.checkpoint.reference_stored(self.folder))

    def fused(self) -> Component:
        """The component as it is exported: what the reference computes beside its weights (a LoRA) is in
        them, and `reference_module` gives that."""
        if not self.checkpoint.rounded(self.folder):
            return self
        return replace(self, checkpoint=self.checkpoint.unattached()).holding(self.weights)

    def holding(self, weights: dict[str, StoredTensor]) -> Component:
        """The component with other weights, which it is its own reference for."""
        return replace(self, reference=None, held=weights)

    def _in_use(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        renamed = {}
        for stored_name, tensor in stored.items():
            name = self.renames(stored_name)
            if name is not None and (not self.used or name.startswith(self.used)):
                renamed[name] = tensor
        return {INNER + name: tensor for name, tensor in self.derive(renamed).items()}

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.weights.values())

    def meta_module(self) -> nn.Module:
        """The adapted module in eval mode with parameters on the meta device (buffers are real)."""
        with no_weights():
            inner = self.construct()
        return self.adapt(inner).eval().requires_grad_(False)

    def reference_module(self, dtype: torch.dtype | None = None, device: Device = None) -> nn.Module:
        """The unpatched module with real weights, in eval mode.

        Weights stored in `dtype` stay memory-mapped on the CPU; others are cast or moved one by one, and what
        was read of the file for one is handed back before the next.

        Args:
            dtype: Of weights and floating buffers; float32 when None.
            device: Of weights; buffers stay on the CPU.

        Raises:
            CheckpointError: Weights are missing, or their shapes do not fit the config.
        """
        import torch

        wanted = dtype or torch.float32
        module = self.meta_module()
        expected = {n: p for n, p in module.named_parameters() if self._is_used(n)}
        buffers = dict(module.named_buffers())
        check_weights(self, {name: tuple(p.shape) for name, p in expected.items()}, self.reference_weights)
        state = {}
        for name, stored in self.reference_weights.items():
            if name in expected or name in buffers:
                tensor = stored.load()
                state[name] = tensor.to(device, wanted if tensor.is_floating_point() else tensor.dtype)
                if state[name] is not tensor:
                    stored.release()
        module.load_state_dict(state, strict=False, assign=True)
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and buffer.is_floating_point() and not buffer.is_meta:
                    owner._buffers[name] = buffer.to(wanted)
        self.checkpoint.attach(self.folder, module.get_submodule("inner"), wanted)
        return module.eval().requires_grad_(False)

    def _is_used(self, name: str) -> bool:
        return not self.used or name.removeprefix(INNER).startswith(self.used)

    def example_inputs(self, size: Size, seed: int = 0) -> dict[str, torch.Tensor]:
        """Deterministic inputs of plausible range: unit noise unless the family says otherwise."""
        import torch

        result = {}
        for position, spec in enumerate(self.inputs):
            generator = torch.Generator().manual_seed(seed * 1000 + position)
            make = self.make_inputs.get(spec.name)
            if make is not None:
                result[spec.name] = make(spec, size, generator)
            else:
                noise = torch.randn(spec.shape(size), generator=generator)
                result[spec.name] = noise.to(getattr(torch, spec.dtype))
        return result

    @cached_property
    def weights_digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the reference's weights, and the config."""
        if self.reference is not None:
            return hashlib.sha256(f"{self.variant} {self.reference.weights_digest}".encode()).hexdigest()
        digest = hashlib.sha256(repr(sorted(self.config.items())).encode())
        digest.update(self.variant.encode())
        digest.update(self.checkpoint.reference_digest(self.folder).encode())
        for name, tensor in sorted(self.reference_weights.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.raw())
            tensor.release()  # or the whole file stays resident
        return digest.hexdigest()


def whole_module(component: Component, dtype: torch.dtype | None = None, device: Device = None) -> nn.Module:
    """As `reference_module`, the library's own module with all its weights: of an autoencoder both halves."""
    return replace(component, used=(), held=None).reference_module(dtype, device).get_submodule("inner")


def check_weights(
    component: Component,
    expected: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, StoredTensor] | None = None,
) -> None:
    """Every expected parameter is in the checkpoint with its shape.

    Args:
        weights: Where to look; the component's own when None.

    Raises:
        CheckpointError: Naming the first mismatch.
    """
    where = f"{component.checkpoint.source}, component {component.folder!r}"
    weights = component.weights if weights is None else weights
    missing = [name for name in expected if name not in weights]
    if missing:
        raise CheckpointError(
            f"{where}: the config asks for {missing[0].removeprefix(INNER)!r} "
            f"({len(missing)} weights in all) which the files do not hold.",
            hint="config.json and weights do not belong together, or a shard is missing.",
        )
    for name, shape in expected.items():
        found = weights[name].shape
        if found != shape:
            raise CheckpointError(
                f"{where}: {name.removeprefix(INNER)!r} has shape {list(found)} on disk, "
                f"the config asks for {list(shape)}.",
                hint="config.json and weights do not belong together.",
            )
