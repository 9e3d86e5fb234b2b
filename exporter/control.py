"""RUN: a picture that the painted one follows, by the ControlNets or the T2I-Adapter of a pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.architectures.controlnet import control_argument, controller, is_controlnet, scale_argument
from exporter.architectures.t2i_adapter import NAME as ADAPTER
from exporter.errors import ArtifactError, UsageError
from exporter.stand_ins import ExportedModule
from exporter.targets import Runner

if TYPE_CHECKING:
    from PIL.Image import Image

BENT = 1.03
"""By how much a control picture may be stretched in one direction: what rounding to multiples of 8 needs."""


class ExportedControlNet(ExportedModule):
    """Stands for a `ControlNetModel`, which pipelines tell from several of them by its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        from diffusers import ControlNetModel

        return ControlNetModel

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        from diffusers.models.controlnets.controlnet import ControlNetOutput

        unknown = next((name for name, value in others.items() if value is not None), None)
        if guess_mode or unknown:
            raise UsageError(f"{unknown or 'guess_mode'} is not part of what was exported.")
        *down, middle = self.call(
            self.runner,
            sample=sample,
            timestep=torch.as_tensor(timestep),
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            conditioning_scale=torch.as_tensor(conditioning_scale),
            **(added_cond_kwargs or {}),
        )
        if not return_dict:
            return down, middle
        every: Any = tuple(down)
        return ControlNetOutput(down_block_res_samples=every, mid_block_res_sample=middle)


class ExportedAdapter(ExportedModule):
    """Stands for a `T2IAdapter`."""

    @property
    def downscale_factor(self) -> int:
        return int(self.config.get("downscale_factor", 8))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.call(self.runner, control_image=x)


def adapter_of(root: Path, runners: Mapping[str, Runner]) -> ExportedAdapter:
    """What a pipeline takes as its `adapter`.

    Raises:
        ArtifactError: The artifact does not hold it.
    """
    if ADAPTER not in runners:
        raise ArtifactError(
            "The artifact has no adapter, so it cannot paint.", hint="Convert again without --component."
        )
    config = json.loads((root / ADAPTER / "config.json").read_text(encoding="utf-8"))
    return ExportedAdapter(runners[ADAPTER], config)


def controlnet_of(root: Path, runners: Mapping[str, Runner]) -> Any:
    """What a pipeline takes as its `controlnet`: a stand-in, or several joined as diffusers joins them.

    Args:
        root: An artifact, with `controlnet/config.json`, `controlnet_1/config.json` …

    Raises:
        ArtifactError: It does not hold all of them.
    """
    from diffusers import MultiControlNetModel

    class Several(MultiControlNetModel):
        """Of stand-ins, which have no parameters to tell a dtype and a device by."""

        dtype = torch.float32
        device = torch.device("cpu")

    names = sorted(filter(is_controlnet, runners), key=lambda name: (len(name), name))
    path = root / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "controlnet" not in names or index.get("controlnet", ["", ""])[1] is None:
        raise ArtifactError(
            "The artifact has not all ControlNets of its model, so it cannot paint.",
            hint="Convert again without --component.",
        )
    configs = [json.loads((root / name / "config.json").read_text(encoding="utf-8")) for name in names]
    nets = [ExportedControlNet(runners[name], config) for name, config in zip(names, configs, strict=True)]
    return nets[0] if len(nets) == 1 else Several(nets)


def following(
    pipeline: Any,
    pictures: Sequence[Image],
    scales: Sequence[float],
    size: tuple[int, int],
    shape: tuple[int, int],
) -> dict[str, Any]:
    """Arguments of the pipeline's call: what each ControlNet reads, and how much it counts.

    Args:
        pictures: One for each ControlNet, scaled to what is painted.
        scales: One for all, or one for each; the pipeline's own when empty.
        size: (width, height) of what is painted.
        shape: (width, height) that each picture must be similar to: that of the picture which `size` was
            taken from, before its sides were rounded, or `size` itself.

    Raises:
        UsageError: The model has no ControlNet, or another number of them; a picture has another shape.
    """
    from PIL.Image import Resampling

    takes = inspect.signature(pipeline.__call__).parameters
    argument, scale_name = control_argument(takes), scale_argument(takes)
    if argument is None or scale_name is None:
        if pictures or scales:
            raise UsageError(
                f"A {type(pipeline).__name__} has no ControlNet, so it cannot follow a picture.",
                hint="Leave out --control, or lay a ControlNet over the checkpoint with --controlnet SOURCE.",
            )
        return {}
    follows = controller(pipeline)
    nets = getattr(follows, "nets", None)
    count = 1 if nets is None else len(nets)
    if not pictures:
        raise UsageError(
            "This model follows a picture (edges, depth, a pose: what its ControlNet was trained on).",
            hint="Give it one with --control FILE.",
        )
    if len(pictures) != count:
        known = "1 ControlNet, which follows 1 picture" if count == 1 else f"{count} ControlNets"
        raise UsageError(
            f"This model has {known}; pictures given: {len(pictures)}.",
            hint="Give --control FILE once for each ControlNet, in their order.",
        )
    if len(scales) not in (0, 1, count):
        raise UsageError(
            f"This model has {count} ControlNets; control scales given: {len(scales)}.",
            hint="Give --control-scale once for all of them, or once for each in their order.",
        )
    for picture in pictures:
        _check_shape(picture, shape)
    grey = scale_name.startswith("adapter") and follows.config.get("in_channels") == 1
    scaled = [
        picture.convert("L" if grey else "RGB").resize(size, Resampling.LANCZOS) for picture in pictures
    ]
    given: dict[str, Any] = {argument: scaled[0] if nets is None else scaled}
    if scales:
        every = [float(scale) for scale in (scales if len(scales) == count else [*scales] * count)]
        given[scale_name] = every[0] if nets is None else every
    return given


def _check_shape(picture: Image, shape: tuple[int, int]) -> None:
    """That a picture is not bent by being scaled."""
    stretch = (picture.width / picture.height) / (shape[0] / shape[1])
    if not 1 / BENT <= stretch <= BENT:
        raise UsageError(
            f"The control picture is {picture.width}×{picture.height}, which does not have the shape of "
            f"{shape[0]}×{shape[1]}: its lines would be bent.",
            hint="Crop it, or choose --width and --height of its shape.",
        )
