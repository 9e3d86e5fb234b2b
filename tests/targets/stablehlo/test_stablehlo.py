"""StableHLO: lowered with dynamic shapes, judged, painted, bisected; what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from exporter import parity, pipeline
from exporter.architectures import components_of
from exporter.artifact import Artifact
from exporter.card import command as convert_command
from exporter.checkpoints import StoredTensor, resolve
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError
from tests.targets.stablehlo.artifacts import (
    arrays,
    component,
    edit_header,
    edit_weight,
    rehash,
    runner,
)

QUICK = {"steps": 1, "samples": 1, "pipeline": False}


def test_verified_at_sizes_the_export_never_saw(program: Path) -> None:
    report = parity.verify(program, **QUICK)
    assert len(report.components) == 4 and {c.verdict for c in report.components} == {"PASS"}, report.summary
    kinds = {case.kind for c in report.components for run in c.runs for case in run.cases}
    assert {"captured", "batch", "aspect", "sequence"} <= kinds


def test_every_dim_that_the_family_has_is_free(program: Path, tiny: Path) -> None:
    manifest = Artifact.open(program).manifest
    for part in components_of(resolve(str(tiny))):
        record = manifest.component(part.name)
        for declared, specs in ((record.inputs, part.inputs), (record.outputs, part.outputs)):
            assert [(t.name, t.dims) for t in declared] == [(s.name, list(s.dims)) for s in specs]
        with runner(program, part.name) as opened:
            assert (list(opened.inputs), list(opened.outputs)) == (record.inputs, record.outputs)
            assert opened.precision == opened.weights == "float32"
    unet = manifest.component("unet").details
    assert unet["multiples"] == {"latent_height": 2, "latent_width": 2}
    assert unet["platforms"] == ["cpu", "cuda", "tpu"] and unet["jax"] == jax.__version__


def test_ids_are_int32_at_the_border(program: Path) -> None:
    (ids,) = Artifact.open(program).manifest.component("text_encoder").inputs
    assert ids.dtype == "int32"


def test_weights_are_those_of_the_checkpoint_by_its_names(program: Path, tiny: Path) -> None:
    from safetensors.torch import load_file

    part = component(tiny, "unet")
    found = load_file(program / "unet" / "weights.safetensors")
    wanted = {name.removeprefix("inner."): stored.load() for name, stored in part.weights.items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_program_holds_no_weight_and_no_folder_of_this_machine(program: Path) -> None:
    for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        data = (program / name / "model.stablehlo").read_bytes()
        assert len(data) < 300_000, name
        assert b"site-packages" not in data and b".py" not in data and str(Path.cwd()).encode() not in data


def test_no_weight_is_loaded_to_export(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied piece by piece; none becomes a tensor."""

    def load(stored: StoredTensor) -> torch.Tensor:
        raise AssertionError(f"{stored.name} was loaded")

    monkeypatch.setattr(StoredTensor, "load", load)
    plan = make_plan(str(tiny), "stablehlo", tmp_path / "out", {}, components=["text_encoder"], verify=False)
    assert (convert(plan).artifact.root / "text_encoder" / "weights.safetensors").stat().st_size > 10_000


def test_the_card_repeats_the_platforms(program: Path) -> None:
    command = convert_command(Artifact.open(program))
    assert "--option platforms=cpu,cuda,tpu" in command


def test_it_paints_what_the_reference_paints(program: Path, tiny: Path) -> None:
    loaded = [pipeline.load(source) for source in (program, str(tiny))]
    assert [pipeline.compile_seconds(each) for each in loaded] == [0, 0]
    pictures = [
        np.asarray(pipeline.paint(each, ["a cat"], steps=2, seed=3)[0]).astype(int) for each in loaded
    ]
    assert pipeline.compile_seconds(loaded[0]) > 0 == pipeline.compile_seconds(loaded[1])
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.full
def test_bfloat16_passes_as_that(tiny: Path, tmp_path: Path) -> None:
    options = {"dtype": "bfloat16"}
    plan = make_plan(str(tiny), "stablehlo", tmp_path / "out", options, components=["unet"], verify=False)
    root = convert(plan).artifact.root
    report = parity.verify(root, **QUICK)
    assert [c.verdict for c in report.components] == ["PASS"], report.summary
    assert {run.arithmetic for c in report.components for run in c.runs} == {"bfloat16"}
    with runner(root, "unet") as opened:
        found = opened.run(arrays(component(tiny, "unet")))
        assert opened.weights == "bfloat16" and {v.dtype for v in found.values()} == {np.dtype("float32")}


def test_a_deep_fault_fails_and_its_module_is_named(copy: Path) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    edit_weight(copy / "unet" / "weights.safetensors", name, lambda weight: weight * 1.05)
    rehash(copy, "unet")
    report = parity.verify(copy, components=["unet"], **QUICK)
    (unet,) = report.components
    assert unet.verdict == "FAIL" and unet.bisection is not None, unet.reasons
    assert unet.bisection.first_bad == name.removesuffix(".weight"), unet.bisection.explanation


def test_the_outputs_of_modules_are_those_of_the_reference(program: Path, tiny: Path) -> None:
    part = component(tiny, "unet")
    module = part.reference_module()
    kept: dict[str, np.ndarray] = {}
    for path, child in module.get_submodule("inner").named_modules():
        child.register_forward_hook(
            lambda _, __, out, path=path: kept.__setitem__(path, out.numpy())
            if isinstance(out, torch.Tensor) else None
        )  # fmt: skip
    inputs = arrays(part)
    with torch.no_grad():
        module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    with runner(program, "unet") as opened:
        names = [name for name in opened.module_names() if name in kept]
        found = opened.intermediates(inputs, names)
        with pytest.raises(ValueError, match="no module"):
            opened.intermediates(inputs, ["nothing"])
    assert len(names) > 50 and any(name.endswith("attn2.to_v") for name in names)
    for name in names:
        assert found[name].shape == kept[name].shape, name
        assert np.abs(found[name] - kept[name]).max() <= 1e-5, name


def test_the_smallest_sizes(program: Path, tiny: Path) -> None:
    """At which a level of the network has one row, one column or one token."""
    for name, size in (
        ("unet", {"height": 16, "width": 16, "sequence": 1}),
        ("vae_encoder", {"height": 8, "width": 8}),
        ("text_encoder", {"sequence": 1}),
    ):
        part = component(tiny, name)
        inputs = arrays(part, batch=1, **size)
        with torch.no_grad():
            expected = part.reference_module()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
        with runner(program, name) as opened:
            found = opened.run(inputs)
        for spec, wanted in zip(part.outputs, expected, strict=True):
            assert found[spec.name].shape == tuple(wanted.shape)
            assert np.abs(found[spec.name] - wanted.numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ({"batch": 64}, "batch is 64 in input 'sample'; this program takes 1 to 63"),
        ({"width": 72}, "latent_width is 9 in input 'sample'; this program takes multiples of 2"),
    ],
)
def test_a_size_outside_the_ranges_is_refused(
    program: Path, tiny: Path, size: dict[str, int], match: str
) -> None:
    inputs = arrays(component(tiny, "unet"), **size)
    with runner(program, "unet") as opened, pytest.raises(RuntimeError, match=match):
        opened.run(inputs)


def test_the_program_guards_itself_too(program: Path, tiny: Path) -> None:
    """What plain JAX says, without the runner."""
    exported = jax.export.deserialize(bytearray((program / "unet" / "model.stablehlo").read_bytes()))
    inputs = arrays(component(tiny, "unet"), width=72)
    (weights,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    zeros = {name: np.zeros(aval.shape, aval.dtype) for name, aval in weights.items()}
    with pytest.raises(ValueError, match="latent_width_over_2"):
        exported.call(zeros, **inputs)


def test_a_baked_shape_refuses_another(tiny: Path, tmp_path: Path) -> None:
    options = {"static": "1x64x64"}
    plan = make_plan(
        str(tiny), "stablehlo", tmp_path / "out", options, components=["vae_decoder"], verify=False
    )
    with runner(convert(plan).artifact.root, "vae_decoder") as opened:
        assert opened.inputs[0].dims == [1, 4, 8, 8] and opened.outputs[0].dims == [1, 3, 64, 64]
        opened.run({"latent_sample": np.zeros((1, 4, 8, 8), np.float32)})
        with pytest.raises(RuntimeError, match="baked for"):
            opened.run({"latent_sample": np.zeros((1, 4, 8, 16), np.float32)})
        with pytest.raises(ValueError, match="latent_sample"):
            opened.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})
        assert len(opened.module_names()) > 20


def test_compile_time_is_told_apart(program: Path, tiny: Path) -> None:
    inputs = arrays(component(tiny, "text_encoder"))
    with runner(program, "text_encoder") as opened:
        assert opened.compile_seconds == 0
        opened.run(inputs)
        first = opened.compile_seconds
        opened.run(inputs)
        assert opened.compile_seconds == first > 0
        opened.run({name: value[:, :5] for name, value in inputs.items()})
        assert opened.compile_seconds > first


def test_a_program_that_was_cut_short(copy: Path) -> None:
    path = copy / "vae_decoder" / "model.stablehlo"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ArtifactError, match=r"JAX cannot open vae_decoder/model\.stablehlo"):
        runner(copy, "vae_decoder")


def test_weights_that_were_cut_short(copy: Path) -> None:
    path = copy / "vae_decoder" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged"):
        runner(copy, "vae_decoder")


def test_weights_that_are_missing(copy: Path) -> None:
    (copy / "vae_decoder" / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        runner(copy, "vae_decoder")


def test_a_weight_of_another_shape(copy: Path) -> None:
    def turn(header: dict) -> None:
        header["decoder.conv_in.weight"]["shape"].reverse()

    edit_header(copy / "vae_decoder" / "weights.safetensors", turn)
    with pytest.raises(ArtifactError, match=r"'decoder\.conv_in\.weight' as float32"):
        runner(copy, "vae_decoder")


def test_a_weight_under_another_name(copy: Path) -> None:
    edit_header(
        copy / "vae_decoder" / "weights.safetensors",
        lambda header: header.__setitem__("other", header.pop("decoder.conv_in.bias")),
    )
    with pytest.raises(ArtifactError, match=r"lacks 'decoder\.conv_in\.bias'"):
        runner(copy, "vae_decoder")


def test_weights_that_do_not_say_what_the_program_takes(copy: Path) -> None:
    edit_header(copy / "vae_decoder" / "weights.safetensors", lambda header: header.pop("__metadata__"))
    with pytest.raises(ArtifactError, match="does not say what the program takes"):
        runner(copy, "vae_decoder")


def test_inputs_that_are_not_the_programs(copy: Path) -> None:
    def rename(header: dict) -> None:
        declared = json.loads(header["__metadata__"]["exporter"])
        declared["inputs"] = {"other": declared["inputs"]["latent_sample"]}
        header["__metadata__"]["exporter"] = json.dumps(declared)

    edit_header(copy / "vae_decoder" / "weights.safetensors", rename)
    with pytest.raises(ArtifactError, match="its weights declare"):
        runner(copy, "vae_decoder")
