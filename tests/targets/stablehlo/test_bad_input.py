"""What cannot be done says so: no JAX, no such platform, prompts that do not divide, operators, 64 bits."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError, BackendMissing, UnsupportedError, UsageError
from exporter.parity import verify
from exporter.staging import Staging
from exporter.targets.sharing import shared_evenly
from exporter.targets.stablehlo.devices import check_platform, find_devices
from exporter.targets.stablehlo.lowering import TABLE
from exporter.targets.stablehlo.program import arguments
from exporter.targets.stablehlo.runner import read_program
from exporter.targets.stablehlo.sharded import Sharded
from tests.targets.stablehlo.artifacts import arrays, component, runner


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path) -> None:
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "jax" else found(name, *rest))
    with pytest.raises(BackendMissing, match="needs jax, which is not installed") as caught:
        make_plan(str(tiny), "stablehlo", tmp_path / "out", {})
    assert caught.value.exit_code == 4 and caught.value.hint == 'pip install "exporter[jax]"'


def test_without_what_jax_reads_programs_with(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX does not ask for flatbuffers; the artifact is not to blame."""
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(BackendMissing, match=r"JAX cannot read programs here: .*flatbuffers") as caught:
        read_program(program / "text_encoder" / "model.stablehlo")
    assert caught.value.exit_code == 4 and caught.value.hint == 'pip install "exporter[jax]"'


@pytest.fixture(scope="module")
def for_tpu(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tpu") / "out"
    options = {"platforms": "tpu"}
    return convert(
        make_plan(str(tiny), "stablehlo", out, options, components=["text_encoder"], verify=False)
    ).artifact.root


def test_an_artifact_for_a_platform_that_is_not_there(for_tpu: Path) -> None:
    assert Artifact.open(for_tpu).manifest.components[0].details["platforms"] == ["tpu"]
    with pytest.raises(BackendMissing, match=r"was lowered for tpu, and this is a cpu") as caught:
        runner(for_tpu, "text_encoder")
    assert caught.value.exit_code == 4 and "platforms=cpu" in str(caught.value.hint)


def test_what_cannot_be_run_here_is_no_fault_of_the_artifact(for_tpu: Path, tiny: Path) -> None:
    """Neither component nor picture could be checked: INCONCLUSIVE, with the reason, and never FAIL."""
    report = verify(for_tpu, steps=2, samples=1, prompts=["a cat"])
    assert [c.verdict for c in report.components] == ["INCONCLUSIVE"]
    assert report.pipeline is not None and report.pipeline.verdict == report.verdict == "INCONCLUSIVE"
    assert "was lowered for tpu" in report.pipeline.reasons[0] and ".." not in report.summary


@pytest.mark.parametrize(("version", "hint"), [(99, "Update JAX"), (3, "Convert again")])
def test_a_calling_convention_of_another_jax(program: Path, tmp_path: Path, version: int, hint: str) -> None:
    import jax.export

    place = tmp_path / "unet" / "model.stablehlo"
    place.parent.mkdir()
    made = jax.export.deserialize(bytearray((program / "unet" / "model.stablehlo").read_bytes()))
    place.write_bytes(replace(made, calling_convention_version=version).serialize())
    with pytest.raises(ArtifactError, match=rf"unet/model.stablehlo follows version {version} of") as caught:
        read_program(place)
    assert caught.value.hint is not None and caught.value.hint.startswith(hint)


def test_a_device_that_is_not_there(program: Path) -> None:
    for name in ("tpu", "cpu:99", "nothing"):
        with pytest.raises(BackendMissing, match=f"no device '{name}' here; it finds: cpu:0"):
            runner(program, "text_encoder", device=name)


def test_the_platform_is_that_of_the_device() -> None:
    (device, *_) = find_devices("CPU")
    check_platform(["cpu"], device, "x")
    with pytest.raises(BackendMissing, match="x was lowered for cuda, tpu"):
        check_platform(["cuda", "tpu"], device, "x")


@pytest.mark.parametrize("given", ["gpu", "cpu,", [], "cpu,ipu"])
def test_a_platform_that_jax_does_not_know(tiny: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match=r"platform.*cpu, cuda, rocm, tpu"):
        make_plan(str(tiny), "stablehlo", tmp_path / "out", {"platforms": given})


def test_a_dtype_that_the_format_has_not(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype"):
        make_plan(str(tiny), "stablehlo", tmp_path / "out", {"dtype": "float16"})


@pytest.mark.parametrize(
    ("prompts", "devices", "hint"),
    [(9, 8, "Give 8 or 16"), (3, 8, "Give 8 prompts"), (0, 4, "prompts"), (7, 2, "Give 6 or 8")],
)
def test_prompts_that_the_devices_do_not_divide(prompts: int, devices: int, hint: str) -> None:
    with pytest.raises(UsageError, match=f"{prompts} prompts cannot be shared evenly by {devices}") as caught:
        shared_evenly(prompts, devices)
    assert hint in str(caught.value.hint)
    assert shared_evenly(16, 8) == 2


def test_an_operator_without_a_lowering(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The component fails, named with operator and module; the one before stays complete for the next try."""
    monkeypatch.delitem(TABLE, "aten.upsample_nearest2d.vec")
    plan = make_plan(
        str(tiny), "stablehlo", tmp_path / "out", {}, components=["text_encoder", "unet"], verify=False
    )
    with pytest.raises(UnsupportedError) as caught:
        convert(plan)
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists()
    assert "aten.upsample_nearest2d.vec in module 'up_blocks.0.upsamplers.0'" in caught.value.message
    with Staging(plan.output, plan.digest, overwrite=False) as staging:
        assert staging.completed("text_encoder") is not None and staging.completed("unet") is None


def test_an_operator_used_in_a_way_without_lowering(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("this kind")

    monkeypatch.setitem(TABLE, "aten.embedding.default", refuses)
    plan = make_plan(str(tiny), "stablehlo", tmp_path / "out", {}, components=["text_encoder"], verify=False)
    with pytest.raises(UnsupportedError, match=r"aten\.embedding\.default in module .*: this kind"):
        convert(plan)


def test_free_sizes_that_jax_cannot_decide_about_are_told_to_be_baked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def divides(weight: Any, ids: Any, *_: Any) -> Any:
        return weight if ids.shape[0] > 3 else ids  # so it is of some batches, and of others not

    monkeypatch.setitem(TABLE, "aten.embedding.default", divides)
    plan = make_plan(str(tiny), "stablehlo", tmp_path / "out", {}, components=["text_encoder"], verify=False)
    with pytest.raises(UnsupportedError, match=r"aten\.embedding\.default in module .* free sizes") as caught:
        convert(plan)
    assert "--static" in str(caught.value.hint)


def test_a_lowering_that_gives_another_dtype_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argmax = TABLE["aten.argmax.default"]
    monkeypatch.setitem(TABLE, "aten.argmax.default", lambda *a, **k: argmax(*a, **k).astype("int32"))
    plan = make_plan(str(tiny), "stablehlo", tmp_path / "out", {}, components=["text_encoder"], verify=False)
    with pytest.raises(UnsupportedError, match=r"its lowering gives int32, PyTorch int64"):
        convert(plan)


def test_64_bits_are_refused_rather_than_cut_off(program: Path, tiny: Path) -> None:
    ids = arrays(component(tiny, "text_encoder"))["input_ids"]
    with runner(program, "text_encoder") as opened, pytest.raises(ValueError, match="int64; JAX would cut"):
        opened.run({"input_ids": ids.astype(np.int64) + (1 << 40)})
    with runner(program, "vae_decoder") as opened, pytest.raises(ValueError, match="float64; JAX would cut"):
        opened.run({"latent_sample": np.zeros((1, 4, 8, 8))})
    with pytest.raises(UsageError, match="'input_ids' is int64, which JAX would cut off") as caught:
        Sharded(program / "text_encoder" / "model.stablehlo", "cpu:0")(input_ids=ids.astype(np.int64))
    assert caught.value.hint == "Give int32."
    assert not jax.config.jax_enable_x64  # lowering has not left it on for the rest of the process


def test_int64_inside_is_int64_in_the_file(program: Path) -> None:
    exported = jax.export.deserialize(bytearray((program / "text_encoder" / "model.stablehlo").read_bytes()))
    text = exported.mlir_module()
    assert "tensor<?x?xi64>" in text  # ids, cast where they come in
    assert "f64" not in text


def test_a_border_that_jax_would_cut_off_is_refused(tiny: Path) -> None:
    part = component(tiny, "vae_decoder")
    wide = replace(part, inputs=tuple(replace(spec, dtype="float64") for spec in part.inputs))
    captured = type("Captured", (), {"multiples": {}, "ranges": {}})()
    with pytest.raises(UnsupportedError, match="'latent_sample' as float64, which JAX would cut off"):
        arguments(wide, captured, None)
