"""Bad requests: the right exit code, one clear sentence, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from exporter.background import ASIDE
from tests.cli.runner import CLOSED_PORT, invoke, spawn

TARGET = "openvino"


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPORTER_DEBUG", raising=False)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own, to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def convert(source: object, output: Path, *more: object, to: str = TARGET):
    return invoke("convert", source, "--to", to, "-o", output, *more)


def test_unknown_target(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", to="gguf").failed(2, "'gguf'", "onnx", "openvino")
    assert not (tmp_path / "out").exists()


def test_an_option_the_target_does_not_have(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "--opset", 18, to="openvino").failed(2, "--opset", "openvino")


def test_an_option_by_name_that_the_target_does_not_have(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "--option", "colour=red").failed(2, "--colour", TARGET)
    convert(tiny, tmp_path / "out", "--option", "colour").failed(2, "NAME=VALUE")


@pytest.mark.parametrize("static", ["512", "1x512", "0x64x64", "1x64xwide"])
def test_static_that_makes_no_sense(tiny: Path, tmp_path: Path, static: str) -> None:
    ran = convert(tiny, tmp_path / "out", "--static", static)
    ran.failed(2, f"'{static}' is not BATCHxHEIGHTxWIDTH, for example 1x512x512")


@pytest.mark.parametrize("to", ["openvino", "onnx"])
@pytest.mark.parametrize(
    ("static", "hint"), [("1x64x60", "1x64x64"), ("2x66x64", "2x64x64"), ("1x4x64", "1x8x64")]
)
def test_static_size_that_the_vae_does_not_divide(
    tiny: Path, tmp_path: Path, to: str, static: str, hint: str
) -> None:
    ran = convert(tiny, tmp_path / "out", "--static", static, to=to)
    ran.failed(2, f"--static {static}: height and width must be multiples of 8.", f"Try {hint}.")
    assert not (tmp_path / "out").exists()


def test_unknown_dtype(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "--dtype", "float7").failed(2, "--dtype", "float16")


def test_a_dtype_that_the_runtime_cannot_run(tiny: Path, tmp_path: Path) -> None:
    ran = convert(tiny, tmp_path / "out", "--dtype", "bfloat16", to="onnx")
    ran.failed(2, "ONNX Runtime has no bfloat16 kernels", "float16", "--to openvino")
    assert list(tmp_path.iterdir()) == []


def test_unknown_component(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "--component", "brain").failed(2, "'brain'", "unet")


@pytest.mark.parametrize("k", ["0", "-1", "many"])
def test_k_that_is_no_positive_number(tiny: Path, tmp_path: Path, k: str) -> None:
    convert(tiny, tmp_path / "out", "--k", k).failed(2, "--k")


def test_k_that_is_nan_is_refused(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "--k", "nan").failed(2, "--k")
    invoke("verify", tmp_path, "--k", "nan").failed(2, "--k")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "builtin:cats", "just-a-word", ""])
def test_source_that_does_not_exist(tmp_path: Path, source: str) -> None:
    convert(source, tmp_path / "out").failed(3, source.removeprefix("builtin:"))


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    """Not in offline mode: a real attempt at a port where nobody listens."""
    ran = spawn(
        "convert", "some-org/some-model", "--to", TARGET, "-o", tmp_path / "out",
        HF_HUB_OFFLINE="0", HF_ENDPOINT=CLOSED_PORT, HF_HOME=str(tmp_path / "hub"),
    )  # fmt: skip
    ran.failed(7, "some-org/some-model", "builtin:shapes")


def test_hub_in_offline_mode(tmp_path: Path) -> None:
    spawn("inspect", "some-org/some-model", HF_HOME=str(tmp_path)).failed(7, "some-org/some-model")


def test_folder_without_model_index(copy: Path, tmp_path: Path) -> None:
    (copy / "model_index.json").unlink()
    convert(copy, tmp_path / "out").failed(3, "model_index.json")


def test_model_index_that_is_not_json(copy: Path, tmp_path: Path) -> None:
    (copy / "model_index.json").write_text("{")
    convert(copy, tmp_path / "out").failed(3, "model_index.json")


def test_truncated_safetensors(copy: Path, tmp_path: Path) -> None:
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    convert(copy, tmp_path / "out").failed(3, weights.name, "the file has")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_family_that_is_not_known(copy: Path, tmp_path: Path) -> None:
    index = (copy / "model_index.json").read_text()
    (copy / "model_index.json").write_text(index.replace("StableDiffusionPipeline", "DreamPipeline"))
    convert(copy, tmp_path / "out").failed(3, "DreamPipeline", "generic route", "model_index.json")


def test_output_folder_that_exists(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear diary")
    convert(tiny, tmp_path / "out", "--overwrite").failed(2, str(tmp_path / "out"))
    assert (tmp_path / "out/letter.txt").read_text() == "dear diary"


def test_output_that_is_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    convert(tiny, tmp_path / "out").failed(2, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "a file"


def test_output_below_a_file(tiny: Path, tmp_path: Path) -> None:
    """A parent that cannot be written, whoever runs the tests (permissions do not stop root)."""
    (tmp_path / "file").write_text("a file")
    convert(tiny, tmp_path / "file/out").failed(2, "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_output_in_a_folder_without_permission(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    convert(tiny, tmp_path / "locked/out").failed(2, "locked")


def test_disk_too_small(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    convert(tiny, tmp_path / "out").failed(6, "disk", "1.0 kB")
    assert list(tmp_path.iterdir()) == []


def test_a_component_larger_than_the_free_disk(copy: Path, tmp_path: Path) -> None:
    """Its file is real, and almost all hole: the plan reads the header only."""
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    numbers = shutil.disk_usage(tmp_path).free // 4 + 10**9
    entry = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    header = json.dumps({"conv_in.weight": entry}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        os.truncate(weights, 8 + len(header) + 4 * numbers)
    except OSError as error:
        pytest.skip(f"no file of that size can be made here: {error}")
    for to in ("onnx", "openvino"):
        convert(copy, tmp_path / "out", to=to).failed(6, "Not enough disk", "the unet", "free")
    for thread in [thread for thread in threading.enumerate() if thread.name == ASIDE]:
        thread.join(timeout=10)
        assert not thread.is_alive(), "the file is still being hashed, for nobody"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_memory_too_small(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.planning.free_memory", lambda: 1_000_000)
    convert(tiny, tmp_path / "out").failed(6, "memory", "1.0 MB")
    assert list(tmp_path.iterdir()) == []


def test_verify_what_is_no_artifact(tmp_path: Path) -> None:
    invoke("verify", tmp_path / "nothing", "--check-hashes").failed(3, "nothing")
    invoke("verify", tmp_path, "--check-hashes").failed(3, "exporter.json")


def test_prompts_file(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    invoke("verify", tmp_path, "--prompts", prompts).failed(2, str(prompts))
    prompts.write_text("# nothing but a remark\n\n")
    invoke("verify", tmp_path, "--prompts", prompts).failed(2, "no prompt")
    prompts.write_bytes(b"\xff\xfe\x00star")
    invoke("verify", tmp_path, "--prompts", prompts).failed(2, "UTF-8")


@pytest.mark.parametrize(
    ("picture", "part"), [("star.xyz", "suffix"), ("star", "suffix"), ("missing/star.png", "missing")]
)
def test_picture_that_could_not_be_written(tiny: Path, tmp_path: Path, picture: str, part: str) -> None:
    invoke("run", tiny, "a star", "-o", tmp_path / picture).failed(2, part)


@pytest.mark.parametrize("size", [("--height", "60"), ("--width", "0"), ("--steps", "0")])
def test_run_sizes(tiny: Path, tmp_path: Path, size: tuple[str, str]) -> None:
    invoke("run", tiny, "a star", "-o", tmp_path / "star.png", *size).failed(2)
    assert not (tmp_path / "star.png").exists()


def test_unknown_device(tiny: Path, tmp_path: Path) -> None:
    ran = invoke("run", tiny, "a star", "-o", tmp_path / "star.png", "--device", "abacus")
    ran.failed(4, "abacus", "it finds: cpu")


def test_a_device_that_is_not_here(tiny: Path, tmp_path: Path) -> None:
    import torch

    name = "meta" if torch.cuda.is_available() else "cuda"
    invoke("run", tiny, "a star", "-o", tmp_path / "star.png", "--device", name).failed(4, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--weights", "int3"), "--weights"),
        (("--weights", "int8", "--group-size", "64"), "--weights int4"),
        (("--weights", "int4", "--group-size", "48"), "16, 32, 64"),
        (("--weights", "int4", "--ratio", "1.5"), "1.5"),
        (("--asymmetric",), "--weights"),
    ],
)
def test_quantisation_that_makes_no_sense(
    tiny: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    convert(tiny, tmp_path / "out", *arguments).failed(2, words)


def test_a_target_without_quantised_weights(tiny: Path, tmp_path: Path) -> None:
    ran = invoke("convert", tiny, "--to", "torchscript", "--weights", "int8", "-o", tmp_path / "out")
    ran.failed(2, "--weights", "torchscript")


@pytest.mark.parametrize("flag", ["--min-sqnr", "--min-psnr"])
def test_a_stated_limit_that_is_nan_is_refused(tmp_path: Path, flag: str) -> None:
    invoke("verify", tmp_path, flag, "nan").failed(2, flag)
