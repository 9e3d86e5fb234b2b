"""Flags of `convert` that say how the source is opened and what is laid over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

FLAGS = [
    click.option(
        "--lora", "loras", multiple=True, metavar="FILE[:SCALE]",
        help="Fuse this LoRA into the weights; repeatable.  [default scale: 1]",
    ),
    click.option(
        "--vae", metavar="SOURCE",
        help="Take the autoencoder from this folder, checkpoint or file.",
    ),
    click.option(
        "--controlnet", "controlnets", multiple=True, metavar="SOURCE",
        help="Add the ControlNet of this folder, checkpoint or Hub id; repeatable.",
    ),
    click.option(
        "--ip-adapter", "ip_adapters", multiple=True, metavar="SOURCE[:FILE]",
        help="Add this IP-Adapter: a file, or FILE in a folder or Hub id.",
    ),
    click.option(
        "--textual-inversion", "textual_inversions", multiple=True, metavar="FILE",
        help="Add the tokens of this file to tokenizer and text encoder; repeatable.",
    ),
    click.option(
        "--scheduler", metavar="NAME",
        help="Put this scheduler of diffusers in the place of the checkpoint's: euler, ddim, unipc …",
    ),
    click.option(
        "--task", metavar="NAME",
        help="What it is for, where a model does more than its class says: image-to-video, inpainting …",
    ),
    click.option(
        "--config", metavar="DIR",
        help="For a checkpoint in one file: diffusers configs to take instead of inferring them.",
    ),
    click.option(
        "--tokenizer", metavar="DIR",
        help="For a checkpoint in one file: the folder of a tokenizer that is not CLIP's.",
    ),
    click.option(
        "--base", metavar="SOURCE",
        help="For SD3 or FLUX.1 in one file: folder or Hub id that has the parts it lacks.",
    ),
    click.option(
        "--allow-pickle", is_flag=True,
        help="Open .ckpt, .pt and .bin files. A pickle can run code; only tensors are read from it.",
    ),
]  # fmt: skip
NAMES = (
    "loras", "vae", "controlnets", "textual_inversions", "scheduler", "config", "tokenizer", "base",
    "allow_pickle", "ip_adapters", "task",
)  # fmt: skip


def source_flags(function: Function) -> Function:
    """Add them all to a command."""
    for flag in reversed(FLAGS):
        function = flag(function)
    return function


def intake_of(given: dict[str, Any]) -> dict[str, Any]:
    """Take them out of a command's parameters, as `exporter.checkpoints.open_source` wants them."""
    taken = {name: given.pop(name) for name in NAMES}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in taken.items()}
