"""The code of model cards: TorchScript in PyTorch, without this package."""

from __future__ import annotations

from exporter.artifact import ComponentRecord, Manifest
from exporter.targets.base import PROMPT, Client

PARTS = ("text_encoder", "unet", "vae_decoder")
UNET_INPUTS = ["sample", "timestep", "encoder_hidden_states"]
WARNING = "# A TorchScript file is a program: load it only if you trust its author."

PAINT = """\
import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download
from transformers import CLIPTokenizer

{warning}
folder = Path(snapshot_download("{repo}"))
parts = ("text_encoder", "unet", "vae_decoder")
text_encoder, unet, vae = (torch.jit.load(folder / part / "model.pt") for part in parts)
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
scale = json.loads((folder / "vae_decoder/config.json").read_text())["scaling_factor"]

words = [""] * {pictures} + ["{prompt}"] * {pictures}
ids = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
scheduler.set_timesteps(25)
with torch.no_grad():
    text = torch.cat([text_encoder(rows)[0] for rows in ids.split({text_rows})])
    latents = torch.randn({latents}, generator=torch.Generator().manual_seed(7))
    for timestep in scheduler.timesteps:
        both = torch.cat([latents, latents])
        negative, positive = unet(both, timestep.float(), text)[0].chunk(2)
        noise = negative + 7.5 * (positive - negative)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    pictures = torch.cat([vae(rows)[0] for rows in (latents / scale).split({vae_rows})])
VaeImageProcessor().postprocess(pictures)[0].save("picture.png")"""

CALL = """\
import torch
from huggingface_hub import hf_hub_download

{warning}
{variable} = torch.jit.load(hf_hub_download("{repo}", "{entry}"))
with torch.no_grad():
    outputs = {variable}(
{arguments}
    )
print([tuple(output.shape) for output in outputs])"""


def pytorch(repo: str, manifest: Manifest) -> Client:
    """Painting where the parts are those of Stable Diffusion 1 and 2, else a call of the last component."""
    return Client("PyTorch", "pip install torch diffusers transformers", "python", code(repo, manifest))


def code(repo: str, manifest: Manifest) -> str:
    """What `pytorch` shows."""
    records = {record.name: record for record in manifest.components}
    unet = records.get("unet")
    plain = manifest.source.pipeline_class == "StableDiffusionPipeline"
    if plain and unet is not None and set(PARTS) <= set(records):
        sample = _shapes(unet)["sample"]
        if [spec.name for spec in unet.inputs] == UNET_INPUTS and sample[1] == 4 and sample[0] % 2 == 0:
            pictures = sample[0] // 2
            return PAINT.format(
                warning=WARNING, repo=repo, prompt=PROMPT, pictures=pictures,
                latents=", ".join(map(str, (pictures, *sample[1:]))),
                text_rows=_shapes(records["text_encoder"])["input_ids"][0],
                vae_rows=_rows(records["vae_decoder"], "latent_sample", pictures),
            )  # fmt: skip
    record = unet or manifest.components[-1]
    shapes = _shapes(record)
    lines = [
        f"        torch.zeros({tuple(shapes[s.name])}, dtype=torch.{s.dtype}),  # {s.name}"
        for s in record.inputs
    ]
    return CALL.format(
        warning=WARNING, variable=record.name, repo=repo, entry=record.entry, arguments="\n".join(lines)
    )


def _shapes(record: ComponentRecord) -> dict[str, list[int]]:
    """The sizes the trace was made at, which every trace takes."""
    traced = record.details.get("traced_at", {})
    ones = {s.name: [d if isinstance(d, int) else 1 for d in s.dims] for s in record.inputs}
    return {name: list(traced.get(name, shape)) for name, shape in ones.items()}


def _rows(record: ComponentRecord, name: str, wanted: int) -> int:
    """Rows of one call: as many as wanted where the batch is free, else those that were baked."""
    first = next(spec.dims[0] for spec in record.inputs if spec.name == name)
    return first if isinstance(first, int) else wanted
