"""Activations in int8: what is rounded and what is not, how it is calibrated, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import BackendMissing, UsageError
from exporter.parity import verify
from exporter.planning import parse_options
from exporter.targets import Runner, RunOptions
from exporter.targets.openvino import OpenVinoTarget, activations, compression
from tests.targets.openvino.conftest import arrays
from tests.targets.quantised_weights import decibels_kept, with_the_files_weights

pytest.importorskip("nncf")

OPTIONS: dict[str, Any] = {
    "weights": "int8", "activations": "int8", "calibration_steps": 2, "calibration_samples": 2,
    "calibration_prompts": ["a blue ring", "a large star"],
}  # fmt: skip


def converted(source: Path, root: Path, *components: str, **options: Any) -> Artifact:
    plan = make_plan(
        str(source), "openvino", root, OPTIONS | options, components=list(components) or None, verify=False
    )
    return convert(plan).artifact


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return converted(tiny, tmp_path_factory.mktemp("activations") / "artifact")


def opened(artifact: Artifact, name: str, **options: Any) -> Runner:
    record = artifact.manifest.component(name)
    return OpenVinoTarget().open(artifact.root, record, RunOptions(threads=1, **options))


def component_of(source: Path, name: str) -> Any:
    from exporter.architectures import components_of
    from exporter.checkpoints import resolve

    return next(c for c in components_of(resolve(source)) if c.name == name)


def kinds_of(runner: Runner) -> list[str]:
    """Of the kernels of convolutions and products, as the CPU plugin names them."""
    found = []
    for node in runner.compiled().get_runtime_model().get_ops():  # type: ignore[attr-defined]
        notes = node.get_rt_info()
        if notes["layerType"].astype(str) in ("Convolution", "FullyConnected"):
            found.append(notes["primitiveType"].astype(str).rsplit("_", 1)[-1].lower())
    return found


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_without_the_roundings_it_is_the_graph_with_the_files_weights(
    artifact: Artifact, tiny: Path, name: str
) -> None:
    component = component_of(tiny, name)
    inputs = component.example_inputs(component.native, 3)
    errors = []
    for exact in (True, False):
        with opened(artifact, name, exact=exact) as runner:
            assert runner.rounds_activations is not exact
            assert bool(runner.rounded()) is not exact
            with torch.no_grad():
                truth = with_the_files_weights(component, runner)(**inputs)[0].double().numpy()
            output = runner.run(arrays(runner, inputs))[component.outputs[0].name]
            errors.append(np.linalg.norm(output - truth) / np.linalg.norm(truth))
    assert errors[0] <= 2e-5 and 1e-3 < errors[1] < 0.3, errors


def test_openvino_multiplies_integers(artifact: Artifact) -> None:
    with opened(artifact, "unet") as runner, opened(artifact, "unet", exact=True) as exact:
        assert kinds_of(runner).count("i8") > len(kinds_of(runner)) / 2
        assert kinds_of(exact).count("f32") > 0


def test_the_first_and_the_last_layer_and_the_timestep_are_left_alone(artifact: Artifact, tiny: Path) -> None:
    for name, kept in {
        "unet": {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"},
        "vae_decoder": {"post_quant_conv", "decoder.conv_in", "decoder.conv_out"},
        "vae_encoder": {"quant_conv", "encoder.conv_in", "encoder.conv_out"},
        "text_encoder": set(),
    }.items():
        stored = component_of(tiny, name).weights.values()
        products = {t.name for t in stored if len(t.shape) >= 2 and "embeddings" not in t.name}
        with opened(artifact, name) as runner:
            rounded = {each.name for each in runner.rounded()}
        assert products - rounded == {f"{path}.weight" for path in kept}, name


def test_the_manifest_says_how_it_was_calibrated(artifact: Artifact) -> None:
    for record in artifact.manifest.components:
        said = record.details["compression"]
        assert said["scheme"] == "int8_activations" and record.dtype == "int8"
        assert set(said["counts"]) == {"int8_sym", "int8_half"}
        run = said["activations"]
        assert run["prompts"] == OPTIONS["calibration_prompts"]
        assert (run["steps"], run["seed"], run["samples"], run["dtype"]) == (2, activations.SEED, 2, "int8")
        with opened(artifact, record.name) as runner:
            assert run["ranges"] == {each.name: [each.low, each.high] for each in runner.rounded()}
            assert {each.levels for each in runner.rounded()} == {256}
            rounded = {each.name for each in runner.rounded()}
        assert {name for name, how in said["weights"].items() if how == "int8_half"} == rounded
        assert run["inputs"] == {"text_encoder": 3, "unet": 4}.get(record.name, 2)
    assert artifact.manifest.options["activations"] == "int8"
    assert artifact.manifest.options["calibration_prompts"] == OPTIONS["calibration_prompts"]


def test_no_pair_of_products_overflows_16_bits(artifact: Artifact) -> None:
    """Processors without VNNI add two of them there, a byte of activations times a code of a weight each."""
    for record in artifact.manifest.components:
        with opened(artifact, record.name) as runner:
            rounded = {each.name for each in runner.rounded()}
            codes = {w.name: np.rint(w.values / w.step) for w in runner.quantised()}
        assert rounded <= codes.keys()
        assert all(2 * 255 * np.abs(codes[name]).max() < 2**15 for name in rounded)
        assert {np.abs(codes[name]).max() for name in rounded} == {64}, "finer codes would fit"
        assert all(np.abs(codes[name]).max() == 127 for name in codes.keys() - rounded)


@pytest.mark.parametrize("claims_half", [False, True])
def test_codes_of_the_whole_range_fail_on_every_processor(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims_half: bool
) -> None:
    def whole(held: Any, component: Any, options: Any, rounded: Any) -> Any:
        return planned(held, component, options)

    planned = compression.planned
    monkeypatch.setattr(compression, "planned", whole)
    artifact = converted(tiny, tmp_path / "whole", "text_encoder")
    path = artifact.root / "exporter.json"
    if claims_half:
        path.write_text(path.read_text(encoding="utf-8").replace("int8_sym", "int8_half"), encoding="utf-8")
    report = verify(artifact.root, steps=1, samples=1)
    assert report.verdict == "FAIL"
    assert ("has a code of 127" if claims_half else "overflow on processors without VNNI") in report.summary


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_integer_kernels_lose_what_the_roundings_cost(artifact: Artifact, tiny: Path, name: str) -> None:
    """PyTorch with the file's weights and ranges is as far from the model as OpenVINO is. How far they come
    apart where products saturate: `python -m tests.benchmarks.integer_kernels`."""
    component = component_of(tiny, name)
    inputs = component.example_inputs(component.native, 4)
    with opened(artifact, name) as runner:
        emulated, found = decibels_kept(component, runner, inputs, arrays(runner, inputs))
    assert found > emulated - 3


def test_nothing_of_the_calibration_is_left_in_the_file(artifact: Artifact) -> None:
    model = openvino.Core().read_model(artifact.root / "unet/openvino_model.xml")
    assert "nncf" not in model.get_rt_info()
    assert "nncf" not in (artifact.root / "unet/openvino_model.xml").read_text(encoding="utf-8").lower()


def test_two_exports_are_equal_to_the_byte_and_print_nothing(
    artifact: Artifact, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = converted(tiny, tmp_path / "again", "text_encoder")
    assert [f.sha256 for f in again.manifest.component("text_encoder").files] == [
        f.sha256 for f in artifact.manifest.component("text_encoder").files
    ]
    assert capfd.readouterr().out == ""


def test_other_calibrations_are_never_mixed(artifact: Artifact, tiny: Path, tmp_path: Path) -> None:
    """Neither by resuming an export nor by the cached graph, which both share."""
    changes: list[dict[str, Any]] = [
        {}, {"calibration_seed": 5}, {"calibration_steps": 3}, {"calibration_samples": 1},
        {"calibration_prompts": ["a white cross"]}, {"activations": None, **dict.fromkeys(
            [f"calibration_{name}" for name in ("steps", "samples", "prompts")])},
    ]  # fmt: skip
    plans = [make_plan(str(tiny), "openvino", tmp_path / "a", OPTIONS | change) for change in changes]
    assert len({plan.digest for plan in plans}) == len(plans)
    other = converted(tiny, tmp_path / "b", "text_encoder", calibration_prompts=["a white cross"])
    first, second = (
        each.manifest.component("text_encoder").details["compression"]["activations"]["ranges"]
        for each in (artifact, other)
    )
    assert first.keys() == second.keys() and first != second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activations": "int8"}, "go with --weights int8"),
        ({"activations": "int8", "weights": "int4"}, "go with --weights int8"),
        ({"activations": "int8", "weights": "int8", "symmetric": False}, "symmetric weights"),
        ({"activations": "int8", "weights": "int8", "static": ["1x64x64", "1x64x128"]}, "at one size"),
        ({"weights": "int8", "calibration_seed": 3}, "calibration seed"),
        ({"activations": "int4", "weights": "int8"}, "activations"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(OpenVinoTarget(), options)


def test_a_format_without_them_refuses_them(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnx has no option --activations"):
        make_plan(str(tiny), "onnx", tmp_path / "x", {"weights": "int8", "activations": "int8"})


def test_without_nncf_nothing_is_begun(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="need nncf") as raised:
        make_plan(str(tiny), "openvino", tmp_path / "x", OPTIONS)
    assert raised.value.exit_code == 4 and "exporter[openvino]" in str(raised.value.hint)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"static": "1x64x64"}, marks=pytest.mark.full), {"dtype": "float16"}],
    ids=str,
)
def test_the_verdict_says_what_was_rounded(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plan = make_plan(
        str(tiny), "openvino", tmp_path / "x", OPTIONS | options, components=["text_encoder", "vae_decoder"]
    )
    result = convert(plan, verify_settings={"steps": 2, "samples": 2})
    assert result.verdict == "PASS", result.summary
    assert "activations in int8, calibrated on 2 to 3 captured inputs" in result.summary
    assert "10 dB is a stated limit" in result.summary
