"""TorchScript: traced, judged, painted; a program of unknown origin stays closed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import parity, pipeline
from exporter.architectures import components_of
from exporter.artifact import Artifact, hash_file
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError
from exporter.targets import RunOptions, get_target
from exporter.trust import UntrustedArtifact

QUICK = {"steps": 1, "samples": 1, "pipeline": False}


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torchscript") / "tiny-torchscript"
    return convert(make_plan(str(tiny), "torchscript", out, {}, verify=False)).artifact.root


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def runner(root: Path, name: str, **options: object):
    opened = Artifact.open(root)
    record = opened.manifest.component(name)
    return get_target("torchscript").open(root, record, RunOptions(**options))  # type: ignore[arg-type]


def rehash(root: Path, name: str) -> None:
    """Bring the manifest up to date, as whoever plants a program would."""
    opened = Artifact.open(root)
    record = opened.manifest.component(name)
    record.files = [hash_file(root / file.path, root) for file in record.files]
    opened.save()


def test_libtorch_opens_every_component_and_it_computes_what_pytorch_does(artifact: Path, tiny: Path) -> None:
    for component in components_of(resolve(str(tiny))):
        program = torch.jit.load(str(artifact / component.name / "model.pt"))
        inputs = component.example_inputs(component.native, seed=5)
        with torch.no_grad():
            expected = component.reference_module()(**inputs)
            found = program(*inputs.values())
        for value, wanted in zip(found, expected, strict=True):
            assert torch.allclose(value, wanted, atol=1e-5)


def test_verified_at_sizes_the_trace_never_saw(artifact: Path) -> None:
    report = parity.verify(artifact, **QUICK)
    assert report.components and {c.verdict for c in report.components} == {"PASS"}
    kinds = {case.kind for c in report.components for run in c.runs for case in run.cases}
    assert {"captured", "batch", "aspect", "sequence"} <= kinds


def test_it_paints_what_the_reference_paints(artifact: Path, tiny: Path) -> None:
    pictures = [
        np.asarray(pipeline.paint(pipeline.load(source), ["a cat"], steps=2, seed=3)[0]).astype(int)
        for source in (artifact, str(tiny))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_it_computes_where_its_inputs_are(artifact: Path, tiny: Path) -> None:
    """On a device without values: one tensor made elsewhere and PyTorch would refuse, as CUDA does."""
    for component in components_of(resolve(str(tiny))):
        program = torch.jit.load(str(artifact / component.name / "model.pt"))
        for module in program.modules():
            for name, weight in [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]:
                setattr(module, name, torch.nn.Parameter(weight.to("meta"), requires_grad=False))
        inputs = component.example_inputs(component.native, seed=5)
        found = program(*(value.to("meta") for value in inputs.values()))
        assert {value.device.type for value in found} == {"meta"}


def test_a_changed_weight_fails_and_is_named(copy: Path) -> None:
    path = copy / "unet" / "model.pt"
    weights = dict(torch.jit.load(str(path)).named_parameters())
    weight = weights["inner.mid_block.resnets.0.conv1.weight"].detach()
    replace_bytes(path, weight.numpy().tobytes(), (weight * 1.01).numpy().tobytes())
    rehash(copy, "unet")
    report = parity.verify(copy, components=["unet"], trust=True, **QUICK)
    (unet,) = report.components
    assert unet.verdict == "FAIL"
    assert unet.bisection is not None, unet.reasons
    assert unet.bisection.first_bad == "mid_block.resnets.0.conv1", unet.bisection.explanation


def replace_bytes(archive: Path, old: bytes, new: bytes) -> None:
    """Exchange the one entry of a TorchScript archive that holds `old`."""
    with zipfile.ZipFile(archive) as source:
        entries = [(entry.filename, source.read(entry)) for entry in source.infolist()]
    assert [data for _, data in entries].count(old) == 1
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for name, data in entries:
            target.writestr(name, new if data == old else data)


def test_a_baked_shape_refuses_another(tiny: Path, tmp_path: Path) -> None:
    plan = make_plan(
        str(tiny),
        "torchscript",
        tmp_path / "out",
        {"static": "1x64x64"},
        components=["vae_decoder"],
        verify=False,
    )
    root = convert(plan).artifact.root
    with runner(root, "vae_decoder") as opened:
        assert opened.inputs[0].dims == [1, 4, 8, 8]
        with pytest.raises(RuntimeError, match="baked for"):
            opened.run({"latent_sample": np.zeros((1, 4, 8, 16), np.float32)})
        with pytest.raises(ValueError, match="latent_sample"):
            opened.run({"sample": np.zeros((1, 4, 8, 8), np.float32)})


def test_a_program_of_unknown_origin_stays_closed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORTER_STATE", str(copy.parent / "another-machine"))
    with pytest.raises(UntrustedArtifact, match="was not made by this installation") as caught:
        runner(copy, "unet")
    assert "--trust" in str(caught.value.hint) and caught.value.exit_code == 3
    with pytest.raises(UntrustedArtifact):
        parity.verify(copy, **QUICK)
    with pytest.raises(UntrustedArtifact):
        pipeline.load(copy)
    with runner(copy, "unet", trust=True) as opened:
        assert opened.precision == "float32"


def test_a_program_that_is_not_the_manifests_stays_closed(copy: Path) -> None:
    path = copy / "unet" / "model.pt"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UntrustedArtifact, match="is not the file that the manifest describes"):
        runner(copy, "unet")


def test_a_truncated_archive(copy: Path) -> None:
    path = copy / "unet" / "model.pt"
    path.write_bytes(path.read_bytes()[:5000])
    rehash(copy, "unet")
    with pytest.raises(ArtifactError, match="unet"):
        runner(copy, "unet", trust=True)
