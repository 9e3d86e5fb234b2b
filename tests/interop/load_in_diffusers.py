"""A client that knows nothing of this package: loads a folder in diffusers in many ways and says what it got.

    python tests/interop/load_in_diffusers.py FOLDER OUTPUT_FOLDER

Prints one JSON document: way of loading → dtype and device of each part, the device map, and what it was
asked; a picture's latents go to OUTPUT_FOLDER. Ways that need a GPU are reported with the reason why not,
and those that end in an error with that.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

PARTS = ("text_encoder", "unet", "vae")


def ways(root: Path) -> dict[str, dict[str, Any]]:
    """Way → arguments of `from_pretrained`."""
    sizes = {p: sum(f.stat().st_size for f in (root / p).glob("*.safetensors")) for p in PARTS}
    largest = max(sizes.values())
    small = max(sum(sizes.values()) - largest, largest - 1)
    main = {"cpu": "4GB"}
    return {
        "plain": {},
        "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
        "not low_cpu_mem_usage": {"low_cpu_mem_usage": False},
        "float16": {"torch_dtype": torch.float16},
        "bfloat16": {"torch_dtype": torch.bfloat16},
        "a dtype for each": {"torch_dtype": {"vae": torch.float32, "default": torch.float16}},
        "balanced, main memory only": {"device_map": "balanced", "max_memory": main},
        "device_map cpu": {"device_map": "cpu"},
        "device_map cuda": {"device_map": "cuda"},
        "balanced, one GPU": {"device_map": "balanced", "max_memory": {0: "4GB", **main}},
        "balanced, one GPU too small for the largest": {
            "device_map": "balanced", "max_memory": {0: small, **main},
        },
        "balanced, two GPUs": {"device_map": "balanced", "max_memory": {0: "4GB", 1: "3GB", **main}},
    }  # fmt: skip


def gpus_of(arguments: dict[str, Any]) -> int:
    if arguments.get("device_map") == "cuda":
        return 1
    return sum(isinstance(device, int) for device in arguments.get("max_memory", {}))


def paint(pipeline: DiffusionPipeline) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(0)
    result = pipeline(
        "a red star", num_inference_steps=2, generator=generator, height=64, width=64, output_type="latent"
    )
    return result.images.float().cpu().numpy()


def described(pipeline: DiffusionPipeline) -> dict[str, Any]:
    parts = {name: getattr(pipeline, name) for name in PARTS}
    weight = pipeline.unet.conv_in.weight
    return {
        "dtypes": {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()},
        "devices": {name: str(next(part.parameters()).device) for name, part in parts.items()},
        "map": pipeline.hf_device_map and {k: str(v) for k, v in dict_of(pipeline.hf_device_map).items()},
        "conv_in": None if weight.is_meta else float(weight.double().sum()),
    }


def dict_of(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {"": found}


def split_unet(root: Path) -> dict[str, Any]:
    """One part on two GPUs."""
    size = sum(f.stat().st_size for f in (root / "unet").glob("*.safetensors"))
    memory = {0: size * 6 // 10, 1: size * 6 // 10, "cpu": size}
    unet = UNet2DConditionModel.from_pretrained(root, subfolder="unet", device_map="auto", max_memory=memory)
    return {"map": {k: str(v) for k, v in unet.hf_device_map.items()}, "max_memory": _plain(memory)}


def _plain(memory: dict[Any, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in memory.items()}


def main(root: Path, output: Path) -> None:
    present = torch.cuda.device_count()
    found: dict[str, Any] = {}
    for number, (way, arguments) in enumerate(ways(root).items()):
        asked = {"max_memory": _plain(arguments["max_memory"])} if "max_memory" in arguments else {}
        if gpus_of(arguments) > present:
            found[way] = {"skipped": f"needs {gpus_of(arguments)} CUDA device(s), {present} here"}
            continue
        try:
            pipeline = DiffusionPipeline.from_pretrained(root, local_files_only=True, **arguments)
            pipeline.set_progress_bar_config(disable=True)
            np.save(output / f"{number}.npy", paint(pipeline))
        except Exception:  # one way that fails leaves the others to be judged
            found[way] = {"error": traceback.format_exc(), **asked}
            continue
        found[way] = {**described(pipeline), "latents": f"{number}.npy", **asked}
        del pipeline
    found["unet split over two GPUs"] = (
        split_unet(root) if present > 1 else {"skipped": f"needs 2 CUDA device(s), {present} here"}
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
