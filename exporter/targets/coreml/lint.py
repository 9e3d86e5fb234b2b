"""What Apple's own runners would refuse, checked without them.

Each rule names in its docstring the code of apple/ml-stable-diffusion (commit e12202c) that it speaks
for. `exporter verify` runs them all; a sentence they return is a fault of the artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exporter.targets.coreml.chunks import PARTS
from exporter.targets.coreml.functions import SPEC_18
from exporter.targets.coreml.interpreter import ARRAY_TYPES
from exporter.targets.coreml.layout import (
    OUTPUTS,
    Binding,
    input_bindings,
    is_controlled,
    is_xl_text,
    kind_of,
    output_bindings,
)
from exporter.targets.coreml.names import CONTROLLED, CONTROLNET_PREFIX, ENDINGS, PREFIX
from exporter.targets.coreml.package import Functions, Package
from exporter.targets.coreml.safety import ADJUSTMENT, CONCEPTS, FILTERED, FLAG, IMAGES, LOOK, NAME
from exporter.targets.coreml.sd3 import T5_TOKENS, TOKENS

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Port:
    """An input or output as the package declares it; `shapes` are all it may have."""

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    flexible: bool


@dataclass(frozen=True)
class Chunk:
    """A package: the only one, or one of a UNet in two. `functions` are those of several sizes."""

    file_name: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    version: int
    functions: Functions | None = None


@dataclass(frozen=True)
class Subject:
    """What the rules look at.

    Attributes:
        half: Whether the arithmetic is float16, as far as the inputs tell: a float32 package takes
            float32 and is meant for proof, not for Apple's Python runner.
        packages: Each package; of a UNet in two, `inputs` are those of both that are not handed on, and
            `outputs` the second's.
    """

    component: str
    file_name: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    half: bool
    packages: tuple[Chunk, ...]

    @property
    def kind(self) -> str:
        return kind_of(self.component)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The inputs it should have, as many of a ControlNet's as it has."""
        return input_bindings(self.component, list(self.inputs))

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Of a UNet in two packages both, else nothing."""
        return self.packages if len(self.packages) > 1 else ()


Rule = Callable[[Subject], list[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def lint(package: Package, component: str, second: Package | None = None) -> list[str]:
    """Everything that a client would refuse, one sentence each; empty when there is nothing.

    Args:
        second: The other package of a UNet in two.
    """
    chunks = [_chunk(part) for part in (package, second) if part is not None]
    inputs, outputs = dict(chunks[0].inputs), chunks[-1].outputs
    for chunk in chunks[1:]:
        inputs |= {n: p for n, p in chunk.inputs.items() if n not in chunks[0].outputs and n not in inputs}
    subject = Subject(
        component,
        package.path.name,
        inputs,
        outputs,
        half=any(port.dtype == "float16" for port in inputs.values()),
        packages=tuple(chunks),
    )
    return [f"Apple's runners: {fault}" for check in RULES for fault in check(subject)]


def _chunk(package: Package) -> Chunk:
    description = package.spec.description
    return Chunk(
        package.path.name,
        {f.name: _port(f) for f in description.input},
        {f.name: _port(f) for f in description.output},
        package.spec.specificationVersion,
        package.functions,
    )


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
    every "/" of the model's name as "_", and raises FileNotFoundError for any other name;
    `_load_mlpackage_controlnet` opens `ControlNet_{model}.mlpackage`, and then the UNet is `control-unet`."""
    if subject.kind == "controlnet":
        named = subject.file_name.startswith(CONTROLNET_PREFIX)
        return [] if named else [f"{subject.file_name} is not {CONTROLNET_PREFIX}….mlpackage"]
    controlled = subject.kind == "unet" and is_controlled(subject.inputs)
    ending = CONTROLLED if controlled else ENDINGS.get(subject.component, subject.component)
    names = [chunk.file_name for chunk in subject.chunks] or [subject.file_name]
    endings = [f"_{ending}{part}.mlpackage" for part in (PARTS if subject.chunks else ("",))]
    return [
        f"{name} is not {PREFIX}…{end}"
        for name, end in zip(names, endings, strict=True)
        if not (name.startswith(PREFIX) and name.endswith(end))
    ]


@rule
def input_names(subject: Subject) -> list[str]:
    """`coreml_model.CoreMLModel._verify_inputs` raises ValueError for a name it does not expect, and
    `pipeline.py` passes these. `Unet.predictNoise` in Swift passes `sample`, `timestep` and
    `encoder_hidden_states`, for SDXL `text_embeds` and `time_ids`, and under their names what the ControlNets
    give; `ControlNet.execute` passes the first three and `controlnet_cond`;
    `MultiModalDiffusionTransformer.predictNoise` passes four of its own and asks the model for the shape of
    `latent_image_embeddings`; `TextEncoderT5.encode(ids:)` passes `input_ids`, and an `attention_mask` that a
    model need not take; `SafetyChecker.isSafe` passes `clip_input`, `images` and `adjustment`. `TextEncoder`
    and `Decoder` take whatever input there is."""
    known = subject.bindings
    xl = any(binding.xl and binding.name in subject.inputs for binding in known)
    return _names("input", [b.name for b in known if xl or not b.xl], list(subject.inputs))


@rule
def output_names(subject: Subject) -> list[str]:
    """`pipeline.py` reads `last_hidden_state`, `noise_pred` and `image` by name, and
    `TextEncoder.encode(ids:)` in Swift `last_hidden_state`; for SDXL both read `hidden_embeds` and
    `pooled_outputs` (`TextEncoderXL.encode(ids:)`), of T5 Swift reads `encoder_hidden_states`; of a
    safety checker `pipeline.py` reads all three, and Swift `has_nsfw_concepts`.
    Every output of a ControlNet is an input of the UNet."""
    xl = is_xl_text(subject.component, list(subject.outputs))
    names = list(subject.outputs)
    wanted = OUTPUTS["text_encoder_2"] if xl else output_bindings(subject.component, names)
    if not wanted:
        return [f"it has no output additional_residual_0 …, but {', '.join(names) or 'none'}"]
    return _names("output", [b.name for b in wanted], list(subject.outputs))


def _names(side: str, wanted: list[str], found: list[str]) -> list[str]:
    faults = [f"there is no {side} {name!r}" for name in wanted if name not in found]
    return faults + [
        f"there is an {side} {name!r}, which they do not know" for name in found if name not in wanted
    ]


@rule
def single_output(subject: Subject) -> list[str]:
    """`Unet.predictNoise`, `MultiModalDiffusionTransformer.predictNoise`, `Decoder.decode` and
    `Encoder.encode` in Swift take `featureNames.first`: of two outputs, whichever comes first."""
    if (
        subject.component in ("unet", "transformer", "vae_decoder", "vae_encoder")
        and len(subject.outputs) != 1
    ):
        return [
            f"the {subject.component} has {len(subject.outputs)} outputs; Swift takes whichever comes first"
        ]
    return []


@rule
def input_types(subject: Subject) -> list[str]:
    """`CoreMLModel._verify_inputs` raises TypeError for another dtype; `pipeline.py` gives the UNet and the
    decoder float16, and the text encoder `input_ids` as float32."""
    faults = []
    for binding in subject.bindings:
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
        for port in (subject.outputs | (subject.chunks[0].outputs if subject.chunks else {})).values()
        if port.dtype != "float32"
    ]


@rule
def shapes(subject: Subject) -> list[str]:
    """`torch2coreml.py` (`convert_*`): text as (batch, width, 1, tokens), two rows for guidance, one
    `timestep` for each row, pictures with 3 channels; `CoreMLModel._verify_inputs` compares strictly.
    `StableDiffusion3Pipeline.encodePrompt` in Swift joins 77 tokens of CLIP and the first 77 that T5 gives,
    and `generateConditioning` gives the pooled text two dims of 1."""
    faults = []

    def expect(name: str, fits: Callable[[tuple[int, ...]], bool], wanted: str, side: str = "input") -> None:
        port = (subject.inputs if side == "input" else subject.outputs).get(name)
        verb = "give" if side == "input" else "take"
        for shape in port.shapes if port is not None else ():
            if not fits(shape):
                faults.append(f"{side} {name!r} is {list(shape)}, they {verb} {wanted}")

    if subject.kind in ("unet", "controlnet"):
        expect("sample", lambda s: len(s) == 4 and s[0] == 2, "[2, channels, height, width]")
        expect("timestep", lambda s: s == (2,), "[2]")
        expect(
            "encoder_hidden_states",
            lambda s: len(s) == 4 and s[0] == 2 and s[2] == 1,
            "[2, width, 1, tokens]",
        )
        expect("controlnet_cond", lambda s: len(s) == 4 and s[:2] == (2, 3), "[2, 3, height, width]")
        expect("text_embeds", lambda s: len(s) == 2 and s[0] == 2, "[2, width]")
        expect("time_ids", lambda s: s in ((2, 6), (2, 5)), "[2, 6], or [2, 5] for a refiner")
    elif subject.component == "transformer":
        latents = "[2, channels, height, width]"
        expect("latent_image_embeddings", lambda s: len(s) == 4 and s[0] == 2, latents)
        expect("timestep", lambda s: s == (2,), "[2]")
        joined = f"[2, width, 1, {TOKENS}]"
        text = "token_level_text_embeddings"
        expect(text, lambda s: len(s) == 4 and s[0] == 2 and s[2:] == (1, TOKENS), joined)
        pooled = "[2, width, 1, 1]"
        expect("pooled_text_embeddings", lambda s: len(s) == 4 and s[0] == 2 and s[2:] == (1, 1), pooled)
        given = subject.inputs.get("latent_image_embeddings")
        if given is not None:
            expect("denoiser_output", lambda s: (s,) == given.shapes, "the latents' shape", "output")
    elif subject.component == "text_encoder_3":
        least = f"at least {T5_TOKENS} tokens"
        expect("input_ids", lambda s: len(s) == 2 and s[0] == 1 and s[1] >= T5_TOKENS, f"[1, {least}]")
        ids = subject.inputs.get("input_ids")
        tokens = ids.shapes[0][-1] if ids is not None and ids.shapes[0] else 0
        text = f"[1, width, 1, {tokens}]"
        expect(
            "encoder_hidden_states",
            lambda s: len(s) == 4 and s[0] == 1 and s[2:] == (1, tokens),
            text,
            "output",
        )
    elif subject.component.startswith("text_encoder"):
        expect("input_ids", lambda s: len(s) == 2 and s[0] == 1, "[1, tokens]")
    elif subject.component == "vae_decoder":
        expect("z", lambda s: len(s) == 4 and s[0] == 1, "[1, channels, height, width]")
    elif subject.component == "vae_encoder":
        expect("x", lambda s: len(s) == 4 and s[:2] == (1, 3), "[1, 3, height, width]")
    elif subject.component == NAME:
        look, picture = "[1, 3, pixels, as many]", "[1, height, width, 3]"
        expect(LOOK, lambda s: len(s) == 4 and s[:2] == (1, 3) and s[2] == s[3], look)
        expect(IMAGES, lambda s: len(s) == 4 and (s[0], s[3]) == (1, 3), picture)
        expect(ADJUSTMENT, lambda s: s == (1,), "[1]")
        shown = subject.inputs.get(IMAGES)
        if shown is not None:
            expect(FILTERED, lambda s: (s,) == shown.shapes, "the pictures' shape", "output")
        expect(FLAG, lambda s: s == (1, 1, 1, 1), "[1, 1, 1, 1]", "output")
        expect(CONCEPTS, lambda s: len(s) == 2 and s[0] == 1, "[1, concepts]", "output")
    return faults


@rule
def encoder_is_static(subject: Subject) -> list[str]:
    """`Encoder.encode` in Swift compares the picture's shape with the one the model describes, and throws
    `sampleInputShapeNotCorrect` for any other."""
    port = subject.inputs.get("x")
    if subject.component == "vae_encoder" and port is not None and port.flexible:
        return ["the vae_encoder has more than one size; Swift reads one"]
    return []


@rule
def first_chunk(subject: Subject) -> list[str]:
    """`Unet.latentSampleShape` in Swift asks the first model for its input `sample`, and for XL
    `latentTimeIdShape` for `time_ids`; both are unwrapped by force."""
    return [
        f"the first chunk has no input {name!r}, whose shape Swift asks it for"
        for name in ("sample", "time_ids")
        if subject.chunks and name in subject.inputs and name not in subject.chunks[0].inputs
    ]


@rule
def handed_on(subject: Subject) -> list[str]:
    """`Array<ManagedMLModel>.predictions` in Swift gives the second model what the first gives and what the
    first was given, by name: each input of the second is one of these, with the same type and shape."""
    if not subject.chunks:
        return []
    first, second = subject.chunks
    faults = [
        f"the second chunk does not take {name!r}, which the first gives"
        for name in first.outputs
        if name not in second.inputs
    ]
    for name, port in first.outputs.items():
        taken = second.inputs.get(name)
        if taken is not None and (taken.dtype, taken.shapes) != (port.dtype, port.shapes):
            faults.append(
                f"the first chunk gives {name!r} as {port.dtype} {list(port.shapes[0])}, the second takes "
                f"{taken.dtype} {list(taken.shapes[0])}"
            )
    known = [binding.name for binding in subject.bindings]
    return faults + [
        f"the second chunk wants {name!r}, which nobody gives it"
        for name in second.inputs
        if name not in first.outputs and name not in known
    ]


@rule
def several_sizes(subject: Subject) -> list[str]:
    """`ManagedMLModel.loadModel` in Swift names no function, so Core ML takes the default one;
    `save_multifunction` in coremltools' `models/utils.py` describes each function, names the default, and
    gives such a package the specification version of iOS 18. Swift loads both chunks in the same way, so
    their default sizes have to be the same."""
    faults = []
    for package in subject.packages:
        functions = package.functions
        if functions is None:
            continue
        if functions.default not in functions.described:
            faults.append(f"{package.file_name} names {functions.default!r} as default, which it lacks")
        if sorted(functions.described) != sorted(functions.programs):
            faults.append(
                f"{package.file_name} describes the functions {', '.join(functions.described)} and has "
                f"programs for {', '.join(functions.programs)}"
            )
        if package.version < SPEC_18:
            faults.append(
                f"{package.file_name} has several functions and specification version {package.version}; "
                f"Core ML wants {SPEC_18}, that of iOS 18"
            )
    offered = {(p.functions.described, p.functions.default) if p.functions else () for p in subject.packages}
    if len(offered) > 1:
        faults.append("the chunks have other functions, or another default, than each other")
    return faults
