"""RUN: a picture that the painted one takes after, by the IP-Adapter of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from exporter.architectures.ip_adapter import EMBEDS, KEY, NAME, encoded, looks, pictured, set_scale
from exporter.errors import ArtifactError, UsageError
from exporter.stand_ins import ExportedModule, ExportedUNet
from exporter.targets import Runner

if TYPE_CHECKING:
    from PIL.Image import Image

HINT = "Give it one with --ip-adapter-image FILE."


class ExportedImageEncoder(ExportedModule):
    """Stands for a `CLIPVisionModelWithProjection`."""

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__(runner, config)
        # Pipelines ask the first parameter for the dtype of the picture.
        self.mark = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        (value,) = self.call(self.runner, pixel_values=pixel_values)
        return encoded({self.runner.outputs[0].name: value})


class ExportedPicturedUNet(ExportedUNet):
    """Stands for a `UNet2DConditionModel` with an IP-Adapter; `set_ip_adapter_scale` of the pipeline sets how
    much that counts, with one number."""

    def __init__(self, runner: Runner, config: Mapping[str, Any], *others: Any) -> None:
        super().__init__(runner, config, *others)
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
        from diffusers.models.embeddings import ImageProjection

        # Never called: what pipelines tell the adapter and its kind by, and where they set its scale.
        kind: nn.Module = ImageProjection(1, 1, 1) if config[KEY]["kind"] == "plain" else nn.Identity()
        self.encoder_hid_proj = SimpleNamespace(image_projection_layers=[kind])
        self.attn_processors = {"attn2.processor": IPAdapterAttnProcessor2_0(1, 1, num_tokens=[1])}
        self.down_blocks: list[nn.Module] = []
        self.up_blocks: list[nn.Module] = []

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        added = dict(added_cond_kwargs or {})
        if added.get(EMBEDS) is None:
            raise UsageError("This model looks at a picture: give its pipeline ip_adapter_image.", hint=HINT)
        return super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond,
            pictured(added, self),
            return_dict,
            **others,
        )


def eyes_of(root: Path, runners: Mapping[str, Runner]) -> dict[str, Any]:
    """What a pipeline looks at a picture with: its `image_encoder` and `feature_extractor`.

    Raises:
        ArtifactError: The artifact does not hold the encoder.
    """
    from transformers import CLIPImageProcessor

    if NAME not in runners:
        raise ArtifactError(
            "The artifact has no image_encoder, so it cannot look at a picture and cannot paint.",
            hint="Convert again without --component.",
        )
    config = json.loads((root / NAME / "config.json").read_text(encoding="utf-8"))
    processor = CLIPImageProcessor.from_pretrained(root / "feature_extractor", local_files_only=True)
    return {NAME: ExportedImageEncoder(runners[NAME], config), "feature_extractor": processor}


def looking(pipeline: Any, picture: Image | None, scale: float | None) -> dict[str, Any]:
    """Arguments of the pipeline's call: what it looks at. How much that counts is set in the pipeline.

    Args:
        picture: Of any size; the encoder is shown its middle.
        scale: 1 when None, as diffusers has it.

    Raises:
        UsageError: The model has no IP-Adapter; or it has one and there is no picture.
    """
    if not looks(pipeline):
        if picture is not None or scale is not None:
            raise UsageError(
                f"This {type(pipeline).__name__} has no IP-Adapter, so it cannot look at a picture.",
                hint="Leave out --ip-adapter-image, or lay one over the checkpoint with --ip-adapter SOURCE.",
            )
        return {}
    if picture is None:
        raise UsageError("This model looks at a picture (its IP-Adapter does).", hint=HINT)
    set_scale(pipeline, 1.0 if scale is None else float(scale))
    return {"ip_adapter_image": picture.convert("RGB")}
