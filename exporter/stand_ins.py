"""Modules that look like diffusers' own and compute in another runtime, through a `Runner`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.architectures._transformer import unread
from exporter.architectures.baked.driving import Driver
from exporter.architectures.controlnet import numbered
from exporter.errors import ArtifactError, InputError, UsageError
from exporter.targets import Runner
from exporter.tiles import in_tiles


class ExportedModule(nn.Module):
    """A component that computes in another runtime. Looks like the diffusers module it stands for."""

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__()
        from diffusers.configuration_utils import FrozenDict

        self.runner = runner
        self.config = FrozenDict(dict(config))
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def call(self, runner: Runner, **inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run with inputs cast to the declared dtypes; outputs as float32, in declared order.

        A runner with a baked-in batch gets its rows in portions of that size, the last one padded.
        """
        arrays = {}
        for spec in runner.inputs:
            array = inputs[spec.name].detach().cpu().numpy()
            if spec.dtype.startswith("int") and not np.array_equal(array, np.trunc(array)):
                raise InputError(
                    f"The artifact takes {spec.name!r} as {spec.dtype}, "
                    f"the scheduler gives fractions ({array})."
                )
            array = array.astype(spec.dtype, copy=False)
            arrays[spec.name] = array.reshape(-1)[:1] if spec.dims == [1] and array.ndim == 0 else array
        outputs = self._in_portions(runner, arrays)
        return [torch.from_numpy(np.asarray(outputs[spec.name])).float() for spec in runner.outputs]

    def _in_portions(self, runner: Runner, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batched = [s.name for s in runner.inputs if len(s.dims) > 1]
        baked = {int(s.dims[0]) for s in runner.inputs if s.name in batched and isinstance(s.dims[0], int)}
        rows = arrays[batched[0]].shape[0]
        if len(baked) != 1 or rows == (size := baked.pop()):
            return runner.run(arrays)
        collected: dict[str, list[np.ndarray]] = {}
        for start in range(0, rows, size):
            picked = [min(start + offset, rows - 1) for offset in range(size)]
            portion = {n: a[picked] if n in batched else a for n, a in arrays.items()}
            for name, value in runner.run(portion).items():
                collected.setdefault(name, []).append(value[: rows - start])
        return {name: np.concatenate(values) for name, values in collected.items()}


class ExportedTextEncoder(ExportedModule):
    """Stands for a CLIP text encoder, with or without a projection, a `T5EncoderModel` or a `Gemma2Model`."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        inputs = {"input_ids": input_ids}
        if any(spec.name == "attention_mask" for spec in self.runner.inputs):
            inputs["attention_mask"] = (
                torch.ones_like(input_ids) if attention_mask is None else attention_mask
            )
        values = self.call(self.runner, **inputs)
        given = dict(zip((spec.name for spec in self.runner.outputs), values, strict=True))
        states = self._states(given)
        if options.get("output_hidden_states") and not states:
            raise UsageError("clip_skip needs the hidden states, which this artifact does not give.")
        kind: Any = CLIPTextModelOutput if "text_embeds" in given else BaseModelOutputWithPooling
        named = {n: v for n, v in given.items() if not n.startswith("hidden_states.")}
        if "last_hidden_state" not in named and states:
            # pipelines tell the two kinds of encoder by the rank of the first output; none reads this one
            some = next(value for value in given.values() if value.dim() == 3)
            named["last_hidden_state"] = torch.full_like(some, torch.nan)
        return kind(**named, hidden_states=states or None)

    def _states(self, given: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The hidden states by their numbers; asking for one that the artifact does not have is an error."""
        found = {
            int(name.removeprefix("hidden_states.")): value
            for name, value in given.items()
            if name.startswith("hidden_states.")
        }
        if not found:
            return ()
        count = max(max(found), int(self.config.get("num_hidden_layers", 0))) + 1
        return _States(found.get(number) for number in range(count))


class _States(tuple):
    """Hidden states, of which an artifact may have only some."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if found is None:
            raise UsageError("This artifact does not give that hidden state; leave out clip_skip.")
        return found


class ExportedUNet(ExportedModule):
    """Stands for a `UNet2DConditionModel`.

    Args:
        driver: Where a technique made several graphs of it: what calls them.
        further: The runners of these besides the first.
    """

    def __init__(
        self,
        runner: Runner,
        config: Mapping[str, Any],
        driver: Driver | None = None,
        further: Mapping[str, Runner] | None = None,
    ) -> None:
        super().__init__(runner, config)
        self.driver, self.runners = driver, {"unet": runner, **(further or {})}
        self.names = {spec.name for spec in runner.inputs}
        features = self.config.get("projection_class_embeddings_input_dim")
        if features is not None:  # SDXL's pipelines look here for the number of time_ids
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=int(features)))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        values = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep),
            "encoder_hidden_states": encoder_hidden_states,
            "timestep_cond": timestep_cond,
            **(added_cond_kwargs or {}),
            **numbered(others),
        }
        given = {name: value for name, value in values.items() if value is not None}
        unknown = sorted(set(given) - self.names)
        if unknown:
            raise UsageError(f"The pipeline passes {unknown[0]!r}, which this artifact's unet does not take.")
        if self.driver is not None:
            out = self.driver(self._ask, given)
        else:
            (out,) = self.call(self.runner, **given)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)

    def _ask(self, name: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        runner = self.runners[name]
        outputs = self.call(runner, **{spec.name: inputs[spec.name] for spec in runner.inputs})
        return {spec.name: value for spec, value in zip(runner.outputs, outputs, strict=True)}


class ExportedTransformer(ExportedModule):
    """Stands for a diffusion transformer, whose inputs it takes under the names that the runner has."""

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__(runner, {**_defaults(config), **config})
        self.names = {spec.name for spec in runner.inputs}
        if (
            "num_attention_heads" in self.config and "attention_head_dim" in self.config
        ):  # HunyuanDiT's reads them
            self.num_heads = int(self.config["num_attention_heads"])
            self.inner_dim = self.num_heads * int(self.config["attention_head_dim"] or 0)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Pipelines name the pass they make, for caches that an exported graph has not."""
        return nullcontext()

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | None = None,
        *,
        added_cond_kwargs: Mapping[str, torch.Tensor | None] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        others |= {"timestep": timestep, **(added_cond_kwargs or {})}
        others = {n: v for n, v in numbered(others).items() if n not in unread(self.config)}
        said = {n: v for n, v in others.items() if not (v is None or (isinstance(v, Mapping) and not v))}
        given = {name: _tensor(value) for name, value in said.items()}
        unknown = sorted(set(given) - self.names)
        if unknown:
            raise UsageError(
                f"The pipeline passes {unknown[0]!r}, which this artifact's transformer does not take."
            )
        (out,) = self.call(self.runner, hidden_states=hidden_states, **given)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The library's values of settings that a config, older than they are, does not name; pipelines read some
    (`timestep_scale` of Sana)."""
    import diffusers

    cls = getattr(diffusers, str(config.get("_class_name")), None)
    known = inspect.signature(cls.__init__).parameters.values() if cls is not None else ()
    return {each.name: each.default for each in known if each.default is not each.empty}


def _tensor(value: Any) -> torch.Tensor:
    """Pipelines of clips pass counts and scales as numbers, and masks as truths."""
    tensor = torch.as_tensor(value)
    return tensor.long() if tensor.dtype == torch.bool else tensor


class ExportedVae(ExportedModule):
    """Stands for an `AutoencoderKL`, an `AutoencoderTiny` or an `AutoencoderDC`; decoder and encoder are two
    components."""

    def __init__(self, decoder: Runner, encoder: Runner | None, config: Mapping[str, Any]) -> None:
        tiny = config.get("decoder_block_out_channels")  # older configs lack the name that pipelines read
        super().__init__(decoder, {"block_out_channels": tiny, **config} if tiny else config)
        self.encoder_runner = encoder
        self.tile: tuple[int, int] | None = None
        self.use_slicing = False

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode and encode pictures larger than what the model was trained at in overlapping tiles of that
        size, or of the size that was baked in. Under diffusers' name, so that the pipeline finds it."""
        native = int(self.config.get("sample_size") or 512) // self.factor
        dims = next(spec.dims for spec in self.runner.inputs if spec.name == "latent_sample")[2:]
        height, width = (dim if isinstance(dim, int) else native for dim in dims)
        self.tile = (height, width) if use_tiling else None

    def disable_tiling(self) -> None:
        self.tile = None

    def enable_slicing(self) -> None:
        """One picture at a time, whatever the batch."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def _sparing(self, runner: Runner, name: str, value: torch.Tensor, unit: int) -> torch.Tensor:
        """Run, sliced and tiled as asked for. `unit` is cells of the input for one of a latent."""

        def run(part: torch.Tensor) -> torch.Tensor:
            (result,) = self.call(runner, **{name: part})
            return result

        rows = value.split(1) if self.use_slicing else (value,)
        if self.tile is None:
            return torch.cat([run(row) for row in rows])
        tile = (self.tile[0] * unit, self.tile[1] * unit)
        return torch.cat([in_tiles(run, row, tile, unit) for row in rows])

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        picture = self._sparing(self.runner, "latent_sample", z, 1)
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, EncoderOutput
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        if self.encoder_runner is None:
            raise ArtifactError("This artifact has no vae_encoder, so it cannot start from a picture.")
        moments = self._sparing(self.encoder_runner, "sample", x, self.factor)
        if self.encoder_runner.outputs[0].name == "latent_sample":
            if return_dict and self.config.get("_class_name") == "AutoencoderDC":
                return EncoderOutput(latent=moments)
            return AutoencoderTinyOutput(latents=moments) if return_dict else (moments,)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
