"""Flags of `convert` that belong to a target: passed on only when typed, judged by the target's own options.

One list a format; a flag that several formats share stands in the first list. A flag's name is the
option's name, so nothing has to be mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

COMMON = [
    click.option(
        "--static", multiple=True, metavar="BxHxW",
        help="Bake the shapes: pictures x height x width in pixels, such as 1x512x512, of a video "
        "model with x frames; repeatable for onnx, openvino and coreml.",
    ),
    click.option(
        "--dtype", metavar="DTYPE",
        help="Stored weights: float32, float16, or what else the target has.  "
        "[default: float32; coreml: float16; safetensors: as stored]",
    ),
    click.option(
        "--attention", metavar="KIND", help="How attention is written, where the target has a choice."
    ),
    click.option(
        "--weights", metavar="INTEGERS",
        help="Quantise weights: int8, or int4 for the denoiser's matrices and int8 for the rest.",
    ),
    click.option(
        "--symmetric/--asymmetric", default=None,
        help="Quantised weights: codes around zero, or with a zero point.  [default: asymmetric]",
    ),
    click.option(
        "--group-size", type=int, metavar="N", help="int4: weights that share one scale.  [default: 64]"
    ),
    click.option(
        "--ratio", type=float, metavar="R",
        help="int4: share of the matrices in int4, those that lose least first.  [default: 1]",
    ),
]  # fmt: skip
ONNX = [
    click.option("--opset", type=int, metavar="N", help="ONNX opset."),
    click.option(
        "--naming", metavar="KIND",
        help="Names of the ONNX files: diffusers, or transformers.js (onnx/unet_fp16.onnx).",
    ),
]  # fmt: skip
OPENVINO = [
    click.option(
        "--precision-hint", metavar="HINT",
        help="Arithmetic an OpenVINO artifact is made for: f32, bf16, f16.",
    ),
    click.option(
        "--activations", metavar="INTEGERS",
        help="With --weights int8: int8 also rounds what enters products and convolutions, in ranges "
        "calibrated on inputs captured from a run of the checkpoint (OpenVINO; needs nncf).",
    ),
    click.option(
        "--calibration-prompts", multiple=True, metavar="TEXT",
        help="A prompt of that run; repeatable.  [default: four of our own]",
    ),
]  # fmt: skip
COREML = [
    click.option(
        "--deployment-target", metavar="OS",
        help="Oldest system a Core ML package must open on: iOS16 to iOS26, macOS13 to macOS26.",
    ),
    click.option(
        "--compute-units", metavar="UNITS",
        help="Where a Core ML package is meant to run: all, cpu_and_ne, cpu_and_gpu, cpu_only.",
    ),
    click.option(
        "--palettize", multiple=True, metavar="[PART=]BITS",
        help="Core ML weights as palettes of 1, 2, 4, 6 or 8 bits, or mixed:4.5 for bits by measured "
        "sensitivity; repeatable.",
    ),
    click.option(
        "--quantize", multiple=True, metavar="[PART=]TYPE",
        help="Core ML weights as int8, or from iOS18 on int4; repeatable.",
    ),
    click.option("--chunk", is_flag=True, help="Core ML: the UNet as two packages, for iPhone and iPad."),
]  # fmt: skip
SAFETENSORS = [
    click.option(
        "--max-shard-size", metavar="SIZE", help="Largest safetensors file, such as 5GB or 2GiB."
    ),
    click.option(
        "--output-variant", metavar="NAME",
        help="Variant in the names of the safetensors files that are written (--variant reads one).",
    ),
]  # fmt: skip
TORCHSCRIPT = [
    click.option("--channels-last", is_flag=True, help="TorchScript: convolutions in channels-last layout."),
    click.option("--freeze", is_flag=True, help="TorchScript: weights become constants of the graph."),
    click.option(
        "--optimize-for-inference", is_flag=True,
        help="TorchScript: PyTorch's fusions, applied whenever the artifact is opened.",
    ),
]  # fmt: skip
PT2 = [
    click.option(
        "--compile", is_flag=True,
        help="pt2: compile for this machine with AOTInductor; needs a C++ compiler.",
    ),
]  # fmt: skip
ALL = (*COMMON, *ONNX, *OPENVINO, *COREML, *SAFETENSORS, *TORCHSCRIPT, *PT2)


def target_flags(function: Function) -> Function:
    """Add every target's flags to a command, in the order of `ALL`."""
    for option in reversed(ALL):
        function = option(function)
    return function


def typed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The target's options among a command's parameters: those that were typed."""
    result = {}
    for parameter in _parameters():
        value = given.get(parameter.name or "")
        # A flag without an opposite is False when it was not typed; one with an opposite is None.
        if parameter.name and value not in (None, ()) and (value is not False or parameter.secondary_opts):
            result[parameter.name] = value
    return result


def _parameters() -> list[click.Parameter]:
    @target_flags
    def probe() -> None: ...

    return list(reversed(getattr(probe, "__click_params__", [])))
