"""`.pt2`: exported with dynamic shapes, judged, painted, bisected; what is damaged or too new is refused."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import parity, pipeline
from exporter.architectures import Component, components_of
from exporter.artifact import Artifact
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError
from exporter.trust import UntrustedArtifact
from tests.targets.pt2.archives import edit_entry, edit_json, flip_bytes, rehash, runner, scale_weight

QUICK = {"steps": 1, "samples": 1, "pipeline": False}


def component(tiny: Path, name: str) -> Component:
    return next(c for c in components_of(resolve(str(tiny))) if c.name == name)


def arrays(part: Component, **size: int) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in part.example_inputs(replace(part.native, **size), seed=5).items()}


def test_verified_at_sizes_the_export_never_saw(program: Path) -> None:
    report = parity.verify(program, **QUICK)
    assert len(report.components) == 4 and {c.verdict for c in report.components} == {"PASS"}, report.summary
    kinds = {case.kind for c in report.components for run in c.runs for case in run.cases}
    assert {"captured", "batch", "aspect", "sequence"} <= kinds


def test_every_dim_that_the_family_has_is_free(program: Path, tiny: Path) -> None:
    manifest = Artifact.open(program).manifest
    for part in components_of(resolve(str(tiny))):
        record = manifest.component(part.name)
        assert [(t.name, t.dims) for t in record.inputs] == [(s.name, list(s.dims)) for s in part.inputs]
    unet = manifest.component("unet").details
    assert unet["multiples"] == {"latent_height": 2, "latent_width": 2}
    assert unet["ranges"]["batch"] == [1, 63] and unet["ranges"]["sequence"] == [1, None]
    assert unet["torch"] == torch.__version__


def test_every_weight_lies_in_the_archive_once(program: Path, tiny: Path) -> None:
    for part in components_of(resolve(str(tiny))):
        with zipfile.ZipFile(program / part.name / "model.pt2") as archive:
            weights = [e for e in archive.infolist() if "/data/weights/weight_" in e.filename]
        assert sum(entry.file_size for entry in weights) == 4 * part.parameters


def test_it_paints_what_the_reference_paints(program: Path, tiny: Path) -> None:
    pictures = [
        np.asarray(pipeline.paint(pipeline.load(source), ["a cat"], steps=2, seed=3)[0]).astype(int)
        for source in (program, str(tiny))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize(("dtype", "name"), [("float16", "text_encoder"), ("bfloat16", "vae_decoder")])
def test_half_precision_passes_as_that(tiny: Path, tmp_path: Path, dtype: str, name: str) -> None:
    plan = make_plan(str(tiny), "pt2", tmp_path / "out", {"dtype": dtype}, components=[name], verify=False)
    root = convert(plan).artifact.root
    report = parity.verify(root, **QUICK)
    assert [c.verdict for c in report.components] == ["PASS"], report.summary
    assert {run.arithmetic for c in report.components for run in c.runs} == {dtype}
    with runner(root, name) as opened:
        found = opened.run(arrays(component(tiny, name)))
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}


def test_a_program_of_unknown_origin_stays_closed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORTER_STATE", str(copy.parent / "another-machine"))
    with pytest.raises(UntrustedArtifact, match="was not made by this installation") as caught:
        runner(copy, "unet", trust=False)
    assert "--trust" in str(caught.value.hint) and caught.value.exit_code == 3
    with pytest.raises(UntrustedArtifact):
        parity.verify(copy, **QUICK)
    with pytest.raises(UntrustedArtifact):
        pipeline.load(copy)
    with runner(copy, "unet", trust=True) as opened:
        assert opened.precision == "float32"


def test_a_deep_fault_fails_and_its_module_is_named(copy: Path) -> None:
    name = "inner.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    scale_weight(copy / "unet" / "model.pt2", name, 1.05)
    rehash(copy, "unet")
    report = parity.verify(copy, components=["unet"], trust=True, **QUICK)
    (unet,) = report.components
    assert unet.verdict == "FAIL"
    assert unet.bisection is not None, unet.reasons
    assert unet.bisection.first_bad == name.removeprefix("inner.").removesuffix(".weight"), (
        unet.bisection.explanation
    )


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
    part = component(tiny, "vae_decoder")
    inputs = part.example_inputs(replace(part.native, batch=64))
    module = torch.export.load(program / "vae_decoder" / "model.pt2").module()
    with pytest.raises(AssertionError, match=r"latent_sample\.size\(\)\[0\] <= 63"):
        module(*inputs.values())


def test_the_smallest_sizes(program: Path, tiny: Path) -> None:
    """At which a level of the network has one row, one column or one token: torch would guard against it."""
    for name, size in (
        ("unet", {"height": 16, "width": 16, "sequence": 1}),
        ("vae_encoder", {"height": 8, "width": 8}),
    ):
        part = component(tiny, name)
        inputs = arrays(part, batch=1, **size)
        with torch.no_grad():
            expected = part.reference_module()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
        with runner(program, name) as opened:
            found = opened.run(inputs)
        for value, wanted in zip(found.values(), expected, strict=True):
            assert value.shape == tuple(wanted.shape)
            assert np.abs(value - wanted.numpy()).max() <= 1e-5


def test_a_baked_shape_refuses_another(tiny: Path, tmp_path: Path) -> None:
    plan = make_plan(
        str(tiny), "pt2", tmp_path / "out", {"static": "1x64x64"}, components=["vae_decoder"], verify=False
    )
    with runner(convert(plan).artifact.root, "vae_decoder") as opened:
        assert opened.inputs[0].dims == [1, 4, 8, 8]
        opened.run({"latent_sample": np.zeros((1, 4, 8, 8), np.float32)})
        with pytest.raises(RuntimeError, match="baked for"):
            opened.run({"latent_sample": np.zeros((1, 4, 8, 16), np.float32)})
        with pytest.raises(ValueError, match="latent_sample"):
            opened.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})


def test_an_archive_that_was_cut_short(copy: Path) -> None:
    path = copy / "vae_decoder" / "model.pt2"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ArtifactError, match="cut short"):
        runner(copy, "vae_decoder")


def test_an_archive_whose_program_is_damaged(copy: Path) -> None:
    edit_entry(copy / "vae_decoder" / "model.pt2", "models/model.json", lambda data: data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"PyTorch cannot open vae_decoder/model\.pt2"):
        runner(copy, "vae_decoder")


def test_an_archive_with_a_wrong_byte(copy: Path) -> None:
    flip_bytes(copy / "vae_decoder" / "model.pt2", "/data/weights/weight_3")
    with pytest.raises(ArtifactError, match=r"vae_decoder/model\.pt2 is damaged \(.*weight_3\)"):
        runner(copy, "vae_decoder")


def test_an_archive_that_lacks_a_weight(copy: Path) -> None:
    edit_json(
        copy / "vae_decoder" / "model.pt2",
        "weights_config.json",
        lambda config: config["config"].popitem(),
    )
    with pytest.raises(ArtifactError, match=r"PyTorch cannot open vae_decoder/model\.pt2"):
        runner(copy, "vae_decoder")


def test_a_newer_description(copy: Path) -> None:
    path = copy / "vae_decoder" / "model.pt2"
    edit_json(path, "extra/exporter.json", lambda data: data.update(version=99, novelty=True))
    with pytest.raises(ArtifactError, match="written by a newer exporter") as caught:
        runner(copy, "vae_decoder")
    assert caught.value.hint == "Update exporter." and caught.value.exit_code == 3


def test_a_newer_pytorch(copy: Path) -> None:
    path = copy / "vae_decoder" / "model.pt2"
    edit_json(path, "models/model.json", lambda data: data["schema_version"].update(major=99))
    with pytest.raises(ArtifactError, match="schema version 99, this PyTorch reads") as caught:
        runner(copy, "vae_decoder")
    assert "another PyTorch" in str(caught.value.hint)


def test_inputs_that_are_not_the_programs(copy: Path) -> None:
    path = copy / "vae_decoder" / "model.pt2"
    edit_json(path, "extra/exporter.json", lambda data: data["inputs"][0].update(name="other"))
    with pytest.raises(ArtifactError, match="declares the inputs"):
        runner(copy, "vae_decoder")
