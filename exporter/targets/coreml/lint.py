"""What Apple's own runners would refuse, checked without them.

Each rule names in its docstring the code of apple/ml-stable-diffusion (commit e12202c) that it speaks
for. `exporter verify` runs them all; a sentence they return is a fault of the artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.targets.coreml.interpreter import ARRAY_TYPES
from exporter.targets.coreml.layout import INPUTS, OUTPUTS
from exporter.targets.coreml.package import Package

LATENT_CHANNELS = 4
PREFIXES = ("Stable_Diffusion_version_", "ControlNet_")


@dataclass(frozen=True)
class Port:
    """An input or output as the package declares it; `shapes` are all it may have."""

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    flexible: bool


@dataclass(frozen=True)
class Subject:
    """What the rules look at.

    Attributes:
        half: Whether the arithmetic is float16, as far as the inputs tell: a float32 package takes
            float32 and is meant for proof, not for Apple's Python runner.
    """

    component: str
    file_name: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    half: bool


Rule = Callable[[Subject], list[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def lint(package: Package, component: str) -> list[str]:
    """Everything that a client would refuse, one sentence each; empty when there is nothing."""
    description = package.spec.description
    inputs = {f.name: _port(f) for f in description.input}
    subject = Subject(
        component,
        package.path.name,
        inputs,
        {f.name: _port(f) for f in description.output},
        half=any(port.dtype == "float16" for port in inputs.values()),
    )
    return [f"Apple's runners: {fault}" for check in RULES for fault in check(subject)]


def _port(proto: Any) -> Port:
    array = proto.type.multiArrayType
    shapes = [tuple(int(n) for n in array.shape)]
    flexibility = array.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        shapes += [tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes]
    return Port(
        proto.name,
        ARRAY_TYPES.get(array.dataType, f"type {array.dataType}"),
        tuple(dict.fromkeys(shapes)),
        flexibility is not None,
    )


@rule
def file_name(subject: Subject) -> list[str]:
    """`coreml_model._load_mlpackage` opens `Stable_Diffusion_version_{model}_{submodule}.mlpackage`, with
    every "/" of the model's name as "_", and raises FileNotFoundError for any other name."""
    right = subject.file_name.startswith(PREFIXES) and subject.file_name.endswith(
        f"_{subject.component}.mlpackage"
    )
    return (
        []
        if right
        else [f"{subject.file_name} is not Stable_Diffusion_version_…_{subject.component}.mlpackage"]
    )


@rule
def input_names(subject: Subject) -> list[str]:
    """`coreml_model.CoreMLModel._verify_inputs` raises ValueError for a name it does not expect, and
    `pipeline.py` passes these. `Unet.predictNoise` in Swift passes `sample`, `timestep` and
    `encoder_hidden_states`; `TextEncoder` and `Decoder` take whatever input there is."""
    return _names("input", [b.name for b in INPUTS[subject.component]], list(subject.inputs))


@rule
def output_names(subject: Subject) -> list[str]:
    """`pipeline.py` reads `last_hidden_state`, `noise_pred` and `image` by name, and
    `TextEncoder.encode(ids:)` in Swift `last_hidden_state`."""
    return _names("output", [b.name for b in OUTPUTS[subject.component]], list(subject.outputs))


def _names(side: str, wanted: list[str], found: list[str]) -> list[str]:
    faults = [f"there is no {side} {name!r}" for name in wanted if name not in found]
    return faults + [
        f"there is an {side} {name!r}, which they do not know" for name in found if name not in wanted
    ]


@rule
def single_output(subject: Subject) -> list[str]:
    """`Unet.predictNoise`, `Decoder.decode` and `Encoder.encode` in Swift take `featureNames.first`: of
    two outputs, whichever comes first."""
    if subject.component in ("unet", "vae_decoder", "vae_encoder") and len(subject.outputs) != 1:
        return [
            f"the {subject.component} has {len(subject.outputs)} outputs; Swift takes whichever comes first"
        ]
    return []


@rule
def input_types(subject: Subject) -> list[str]:
    """`CoreMLModel._verify_inputs` raises TypeError for another dtype; `pipeline.py` gives the UNet and the
    decoder float16, and the text encoder `input_ids` as float32."""
    faults = []
    for binding in INPUTS[subject.component]:
        port = subject.inputs.get(binding.name)
        wanted = "float16" if binding.half and subject.half else "float32"
        if port is not None and port.dtype != wanted:
            faults.append(f"input {binding.name!r} is {port.dtype}, they give {wanted}")
    return faults


@rule
def output_types(subject: Subject) -> list[str]:
    """`torch2coreml` declares every output float32; Swift reads `MLShapedArray<Float32>`."""
    return [
        f"output {port.name!r} is {port.dtype}, they read float32"
        for port in subject.outputs.values()
        if port.dtype != "float32"
    ]


@rule
def shapes(subject: Subject) -> list[str]:
    """`torch2coreml.py` (`convert_*`): text as (batch, width, 1, tokens), two rows for guidance, one
    `timestep` for each row, pictures with 3 channels; `CoreMLModel._verify_inputs` compares strictly."""
    faults = []

    def expect(name: str, fits: Callable[[tuple[int, ...]], bool], wanted: str) -> None:
        port = subject.inputs.get(name)
        for shape in port.shapes if port is not None else ():
            if not fits(shape):
                faults.append(f"input {name!r} is {list(shape)}, they give {wanted}")

    if subject.component == "unet":
        expect("sample", lambda s: len(s) == 4 and s[0] == 2, "[2, channels, height, width]")
        expect("timestep", lambda s: s == (2,), "[2]")
        expect(
            "encoder_hidden_states",
            lambda s: len(s) == 4 and s[0] == 2 and s[2] == 1,
            "[2, width, 1, tokens]",
        )
    elif subject.component == "text_encoder":
        expect("input_ids", lambda s: len(s) == 2 and s[0] == 1, "[1, tokens]")
    elif subject.component == "vae_decoder":
        expect("z", lambda s: len(s) == 4 and s[0] == 1, "[1, channels, height, width]")
    elif subject.component == "vae_encoder":
        expect("x", lambda s: len(s) == 4 and s[:2] == (1, 3), "[1, 3, height, width]")
    return faults


@rule
def encoder_is_static(subject: Subject) -> list[str]:
    """`Encoder.encode` in Swift compares the picture's shape with the one the model describes, and throws
    `sampleInputShapeNotCorrect` for any other."""
    port = subject.inputs.get("x")
    if subject.component == "vae_encoder" and port is not None and port.flexible:
        return ["the vae_encoder has more than one size; Swift reads one"]
    return []
