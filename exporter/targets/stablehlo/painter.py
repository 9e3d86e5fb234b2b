"""Prompts to pictures over all devices with JAX alone: neither PyTorch nor diffusers nor transformers.

Three programs, each for the rows of its device: text and noise, a step, the picture. Devices exchange
nothing. Stable Diffusion 1, 2 and XL, by DDIM whatever scheduler the checkpoint has, with its settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exporter.errors import ArtifactError, UnsupportedError, UsageError
from exporter.targets.sharing import shared_evenly
from exporter.targets.stablehlo.clip_tokens import ClipTokens
from exporter.targets.stablehlo.devices import check_platform, find_devices
from exporter.targets.stablehlo.options import PAINTED
from exporter.targets.stablehlo.placement import AXIS, BATCH
from exporter.targets.stablehlo.runner import WEIGHTS, declaration, load_weights, read_program
from exporter.targets.stablehlo.schedule import check, ddim_step, ddim_steps
from exporter.targets.stablehlo.weights import read_header

if TYPE_CHECKING:
    from PIL.Image import Image

ENTRY = "model.stablehlo"
INPUTS = {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}
ROWS, WHOLE = PartitionSpec(AXIS), PartitionSpec()


class Painter:
    """An artifact of Stable Diffusion on one device or several; every one holds all weights.

    Args:
        root: The artifact's folder.
        devices: By JAX's names (`cpu`, `cuda`, `tpu`, `cuda:0`); None is every device of JAX's default kind.

    Attributes:
        devices: Those that are used; they have to divide the prompts.
        compile_seconds: What XLA took so far, for each new number of prompts, steps or size; no part of
            `seconds`.
        seconds: What the last call took besides.

    Raises:
        ArtifactError: A file is missing or damaged.
        BackendMissing: No such device here, or a program was not lowered for it.
        UnsupportedError: Another kind of pipeline.
    """

    def __init__(self, root: str | Path, devices: str | None = None) -> None:
        self._root = Path(root)
        index = self._config("model_index.json")
        kind = index.get("_class_name")
        if kind not in PAINTED:
            raise UnsupportedError(
                f"{self._root.name} is a {kind}; without PyTorch only {' and '.join(PAINTED)} are painted.",
                hint="`exporter run` paints it; `Sharded` opens its components.",
            )
        self._wide = kind == PAINTED[1]
        self._plain_zeros = self._wide and bool(index.get("force_zeros_for_empty_prompt", True))
        self._scheduler = self._config("scheduler/scheduler_config.json")
        check(self._scheduler)
        self._vae, self._unet = self._config("vae_decoder/config.json"), self._config("unet/config.json")
        self._texts = ("text_encoder", "text_encoder_2") if self._wide else ("text_encoder",)
        self._tokens = [
            ClipTokens(self._root / name.replace("text_encoder", "tokenizer")) for name in self._texts
        ]
        self.devices = find_devices(devices)
        self._mesh = Mesh(np.asarray(self.devices), (AXIS,))
        self._programs: dict[str, Any] = {}
        self._dims: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, Any] = {}
        for name in (*self._texts, "unet", "vae_decoder"):
            path = self._root / name / ENTRY
            self._programs[name] = read_program(path)
            check_platform(self._programs[name].platforms, self.devices[0], f"{name}/{ENTRY}")
            held = path.with_name(WEIGHTS)
            self._dims[name] = declaration(read_header(held)[0], held)
            self._weights[name] = load_weights(held, NamedSharding(self._mesh, WHOLE))
        odd = sorted(self._dims["unet"]["inputs"].keys() - INPUTS)
        if odd:
            raise UnsupportedError(
                f"The UNet of {self._root.name} also takes {odd[0]!r}, which is not known here.",
                hint="`exporter run` paints it.",
            )
        self._compiled: dict[Any, Any] = {}
        self.compile_seconds = self.seconds = 0.0

    def __call__(
        self,
        prompts: Sequence[str],
        keys: jax.Array | None = None,
        *,
        negative_prompt: str = "",
        steps: int = 25,
        guidance: float = 7.5,
        height: int | None = None,
        width: int | None = None,
    ) -> jax.Array:
        """Paint each prompt from noise of its own.

        Args:
            prompts: As many as the devices divide; each gets as many, in order. A text is one prompt.
            keys: `jax.random` keys (prompts,), of each picture's noise; those of key 0 when None.
            guidance: 1 switches it off.
            height / width: Pixels; those the model was trained for, or the artifact baked for, when None.

        Returns:
            Pictures (prompts, height, width, 3) of 0 to 1, float32, on the devices that painted them.

        Raises:
            UsageError: The devices do not divide the prompts; keys, steps or size that do not fit.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        shared_evenly(len(prompts), len(self.devices))
        keys = jax.random.split(jax.random.key(0), len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise UsageError(f"{len(keys)} keys for {len(prompts)} prompts: each picture needs its own.")
        size = self._latents(height, width, len(prompts) * (1 + (guidance > 1)) // len(self.devices))
        rows, whole = (NamedSharding(self._mesh, spec) for spec in (ROWS, WHOLE))
        pairs = [[negative_prompt, prompt] if guidance > 1 else [prompt] for prompt in prompts]
        ids = [tokens([text for pair in pairs for text in pair]) for tokens in self._tokens]
        plan = [jax.device_put(now, whole) for now in zip(*ddim_steps(self._scheduler, steps), strict=True)]
        scale = jax.device_put(np.float32(guidance), whole)
        zeros = self._plain_zeros and guidance > 1 and not negative_prompt
        begin, step, finish = self._parts(size, guided=guidance > 1, zeros=zeros)
        key = (len(prompts), size, guidance > 1, zeros)
        before, began = self.compile_seconds, time.perf_counter()
        given = (self._weights, jax.device_put(ids, rows), jax.device_put(keys, rows))
        text, latents = self._run((*key, "begin"), begin, (WHOLE, ROWS, ROWS), given)
        for now in plan:
            args = (self._weights, text, latents, now, scale)
            latents = self._run((*key, "step"), step, (WHOLE, ROWS, ROWS, WHOLE, WHOLE), args)
        pictures: jax.Array = self._run((*key, "finish"), finish, (WHOLE, ROWS), (self._weights, latents))
        jax.block_until_ready(pictures)
        self.seconds = time.perf_counter() - began - (self.compile_seconds - before)
        return pictures

    def _run(self, key: Any, local: Callable[..., Any], specs: Any, given: tuple[Any, ...]) -> Any:
        """What every device does with its own rows, compiled once."""
        if key not in self._compiled:
            began = time.perf_counter()
            shared = jax.shard_map(local, mesh=self._mesh, in_specs=specs, out_specs=ROWS, check_vma=False)
            self._compiled[key] = jax.jit(shared).lower(*given).compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[key](*given)

    @staticmethod
    def images(pictures: jax.Array) -> list[Image]:
        """What a call gave, as pictures of Pillow."""
        from PIL import Image

        return [Image.fromarray(np.round(255 * np.asarray(each)).astype(np.uint8)) for each in pictures]

    def noise(self, keys: jax.Array, *, height: int | None = None, width: int | None = None) -> jax.Array:
        """What the pictures of these keys start from: (keys, channels, rows, columns), float32."""
        return jax.vmap(_drawn(self._shape(self._latents(height, width, 1))))(keys)

    def program_text(self) -> list[str]:
        """What XLA made, for each shape so far."""
        return [compiled.as_text() for compiled in self._compiled.values()]

    def _parts(self, size: tuple[int, int], *, guided: bool, zeros: bool) -> tuple[Callable[..., Any], ...]:
        """What one device does with its own rows: before, in, and after the steps."""
        each = 2 if guided else 1
        factor = float(self._vae.get("scaling_factor") or 0.18215)
        draw = _drawn(self._shape(size))

        def begin(weights: Any, ids: Any, keys: Any) -> tuple[dict[str, Any], jax.Array]:
            text = self._text(weights, ids, size)
            if zeros:  # of an empty prompt: rows of zeros in its place
                text |= {name: text[name].at[::2].set(0) for name in ("encoder_hidden_states", "text_embeds")}
            return text, jax.vmap(draw)(keys)

        def step(weights: Any, text: Any, x: jax.Array, now: Any, guidance: Any) -> jax.Array:
            given = {"sample": jnp.repeat(x, each, axis=0), "timestep": now[0], **text}
            found = self._call("unet", weights, given)["out_sample"]
            if guided:
                found = found[::2] + guidance * (found[1::2] - found[::2])
            return jnp.asarray(ddim_step(self._scheduler, found, x, *now[1:]))

        def finish(weights: Any, x: jax.Array) -> jax.Array:
            picture = self._call("vae_decoder", weights, {"latent_sample": x / factor})["sample"]
            return jnp.clip(picture / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)

        return begin, step, finish

    def _text(self, weights: Any, ids: Sequence[Any], size: tuple[int, int]) -> dict[str, Any]:
        """What the UNet takes of the prompts."""
        found = [
            self._call(name, weights, {"input_ids": each})
            for name, each in zip(self._texts, ids, strict=True)
        ]
        if not self._wide:
            return {"encoder_hidden_states": found[0]["last_hidden_state"]}
        # The last but one: `hidden_states.0` are the embeddings, and one follows for each layer.
        last = [sum(name.startswith("hidden_states.") for name in outputs) - 2 for outputs in found]
        states = [outputs[f"hidden_states.{n}"] for outputs, n in zip(found, last, strict=True)]
        pixels = [side * self._factor for side in size]
        numbers = jnp.asarray([*pixels, 0, 0, *pixels], jnp.float32)
        return {
            "encoder_hidden_states": jnp.concatenate(states, axis=-1),
            "text_embeds": found[1]["text_embeds"],
            "time_ids": jnp.broadcast_to(numbers, (len(ids[0]), 6)),
        }

    def _call(self, name: str, weights: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A program over all rows: at once, or by as many as were baked into it, the last ones repeated."""
        labels = next(dims for dims in self._dims[name]["inputs"].values() if dims)
        program, baked = self._programs[name], labels[0]
        if not isinstance(baked, int):
            found: dict[str, Any] = program.call(weights[name], **inputs)
            return found
        rows = {key: value for key, value in inputs.items() if jnp.ndim(value)}
        rest = {key: value for key, value in inputs.items() if key not in rows}
        count = len(next(iter(rows.values())))
        order = np.minimum(np.arange(-(-count // baked) * baked), count - 1).reshape(-1, baked)
        given = {key: value[order] for key, value in rows.items()}
        pieces = jax.lax.map(lambda piece: program.call(weights[name], **piece, **rest), given)
        return {key: value.reshape(-1, *value.shape[2:])[:count] for key, value in pieces.items()}

    @property
    def _factor(self) -> int:
        """Pixels for each latent cell."""
        return int(2 ** (len(self._vae["block_out_channels"]) - 1))

    def _shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return (int(self._unet["in_channels"]), *size)

    def _latents(self, height: int | None, width: int | None, rows: int) -> tuple[int, int]:
        """
        Raises:
            UsageError: A size, or a number of rows on a device, that the UNet does not take.
        """
        labels = self._dims["unet"]
        batch, _, *dims = labels["inputs"]["sample"]
        _, high = labels["ranges"].get(BATCH, (1, None))
        if batch == BATCH and high is not None and rows > high:
            raise UsageError(
                f"{rows} rows on each device; this artifact takes {high}.",
                hint="Give fewer prompts at a time.",
            )
        trained = self._unet.get("sample_size") or 64
        usual = trained if isinstance(trained, list) else [trained, trained]
        found = []
        for name, asked, dim, own in zip(("height", "width"), (height, width), dims, usual, strict=True):
            native = dim if isinstance(dim, int) else own
            step = self._factor * int(labels["multiples"].get(dim, 1))
            pixels = native * self._factor if asked is None else asked
            if isinstance(dim, int) and pixels != dim * self._factor:
                raise UsageError(f"{name} is baked: {dim * self._factor}, not {pixels}.")
            if pixels < step or pixels % step:
                raise UsageError(f"{name} is {pixels}; this artifact takes multiples of {step}.")
            found.append(pixels // self._factor)
        return found[0], found[1]

    def _config(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{name} of {self._root.name} cannot be read: {error}.",
                hint="Name the folder that `exporter convert --to stablehlo` wrote.",
            ) from error
        return found


def _drawn(shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Key to unit noise; DDIM starts from it as it is."""
    return lambda key: jax.random.normal(key, shape)
