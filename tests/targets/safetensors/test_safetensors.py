"""Safetensors artifacts: bytes, shards, dtypes, verdicts, and what diffusers makes of them."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.artifact import Artifact, hash_files
from exporter.checkpoints import resolve
from exporter.conversion import convert, make_plan
from exporter.errors import CheckpointError, ExporterError, UsageError
from exporter.parity import verify
from exporter.progress import NullProgress
from exporter.targets.safetensors import stream
from exporter.targets.safetensors.export import write_folder
from exporter.targets.safetensors.options import SafetensorsOptions

SETTINGS = {"steps": 1, "samples": 1, "prompts": ["a red star"], "pipeline": False}


def write(source: Path, out: Path, *, allow_pickle: bool = False, **options: object) -> Path:
    plan = make_plan(
        str(source), "safetensors", out, options, verify=False, intake={"allow_pickle": allow_pickle}
    )
    convert(plan)
    return out


def tensors(root: Path, folder: str, variant: str | None = None) -> dict[str, torch.Tensor]:
    return {n: t.load() for n, t in resolve(root, variant=variant).stored(folder).items()}


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny, tmp_path_factory.mktemp("st") / "out", max_shard_size="300KB")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_every_tensor_is_the_same_bit_for_bit(tiny: Path, sharded: Path) -> None:
    for folder in ("text_encoder", "unet", "vae"):
        ours, theirs = tensors(sharded, folder), tensors(tiny, folder)
        assert set(ours) == set(theirs)
        assert all(ours[n].dtype == t.dtype and torch.equal(ours[n], t) for n, t in theirs.items())


def test_the_split_is_that_of_huggingface_hub_and_the_bytes_those_of_safetensors(
    sharded: Path, tmp_path: Path
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    weights = dict(sorted(tensors(sharded, "unet").items()))
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(weights, max_shard_size="300KB", filename_pattern=pattern)
    index = json.loads((sharded / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"] == split.tensor_to_filename
    assert index["metadata"]["total_size"] == split.metadata["total_size"]
    for name, members in split.filename_to_tensors.items():
        save_file({n: weights[n] for n in members}, tmp_path / name, metadata={"format": "pt"})
        assert (tmp_path / name).read_bytes() == (sharded / "unet" / name).read_bytes()


def test_a_sharded_source_gives_the_same_bytes_as_a_whole_one(
    tiny: Path, sharded: Path, tmp_path: Path
) -> None:
    one, two = write(tiny, tmp_path / "one"), write(sharded, tmp_path / "two")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        assert filecmp.cmp(one / f"{name}.safetensors", two / f"{name}.safetensors", shallow=False)


def test_the_vae_is_written_once_and_counted_once(sharded: Path) -> None:
    manifest = Artifact.open(sharded).manifest
    assert manifest.component("vae_decoder").files == manifest.component("vae_encoder").files
    paths = [f.path for f in manifest.all_files()]
    assert len(paths) == len(set(paths))
    on_disk = {p.relative_to(sharded).as_posix() for p in sharded.rglob("*") if p.is_file()}
    assert on_disk == {*paths, "exporter.json"}


def test_the_honest_artifact_passes_and_a_changed_weight_fails_and_is_named(
    tiny: Path, sharded: Path, tmp_path: Path
) -> None:
    assert verify(sharded, components=["unet"], cache=tmp_path / "c", **SETTINGS).verdict == "PASS"
    bad = Path(shutil.copytree(sharded, tmp_path / "bad"))
    stored = resolve(bad).stored("unet")["mid_block.resnets.0.conv1.weight"]
    values = load_file(stored.file.path)
    values["mid_block.resnets.0.conv1.weight"] *= 1.001
    save_file(values, stored.file.path, metadata={"format": "pt"})
    artifact = Artifact.open(bad)
    for record in artifact.manifest.components:
        record.files = hash_files([bad / f.path for f in record.files], bad)
    artifact.save()
    report = verify(bad, components=["unet"], cache=tmp_path / "c", **SETTINGS)
    assert report.verdict == "FAIL"
    assert report.components[0].bisection is not None
    assert report.components[0].bisection.first_bad == "mid_block.resnets.0.conv1"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_a_cast_artifact_passes_by_the_floor_of_its_dtype(tiny: Path, tmp_path: Path, dtype: str) -> None:
    out = write(tiny, tmp_path / "out", dtype=dtype)
    unet, before = tensors(out, "unet"), tensors(tiny, "unet")
    wanted = getattr(torch, dtype)
    assert unet["conv_in.weight"].dtype == wanted
    assert torch.equal(unet["conv_in.weight"].float(), before["conv_in.weight"].to(wanted).float())
    if dtype == "float8_e4m3fn":
        assert {t.dtype for n, t in unet.items() if "norm" in n or n.endswith("bias")} == {torch.float32}
    report = verify(out, components=["unet"], cache=None, precision_hint="f32", **SETTINGS)
    assert report.verdict == "PASS", report.summary
    assert report.components[0].runs[0].weights == dtype


def test_copying_never_loads_pytorch(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from exporter.conversion import convert, make_plan; "
        "convert(make_plan(sys.argv[1], 'safetensors', Path(sys.argv[2]), {}, verify=False)); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny), str(tmp_path / "out")], check=True)


def test_a_config_that_was_cut_short_is_written_again(tiny: Path, tmp_path: Path) -> None:
    """By an export that was stopped; and whoever is reading the earlier one reads that to its end."""
    config = tmp_path / "vae/config.json"
    config.parent.mkdir()
    config.write_text('{"_cla')
    with config.open() as reader, stream.Writer() as writer:
        write_folder(resolve(tiny), "vae", SafetensorsOptions(), tmp_path, NullProgress(), writer)
        assert reader.read() == '{"_cla'
    assert json.loads(config.read_text())["_class_name"] == "AutoencoderKL"


def test_what_transformers_opens_is_not_cast_to_float8(tiny: Path, tmp_path: Path) -> None:
    """It keeps float8 weights as they are and cannot multiply by them: such a text encoder opens nowhere."""
    out = write(tiny, tmp_path / "out", dtype="float8_e4m3fn")
    before = tensors(tiny, "text_encoder")
    for name, tensor in tensors(out, "text_encoder").items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    record = {c.name: c.dtype for c in Artifact.open(out).manifest.components}
    assert (record["text_encoder"], record["unet"]) == ("float32", "float8_e4m3fn")
    report = verify(out, components=["text_encoder"], cache=None, precision_hint="f32", **SETTINGS)
    assert report.verdict == "PASS", report.summary


def test_a_flush_that_failed_once_is_not_forgotten(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells only the first one who asks that a write was lost."""
    told = []

    def failing(path: Path) -> None:
        if not told:
            told.append(path)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(stream, "DIRTY", 1)
    monkeypatch.setattr(stream, "_sync", failing)
    with pytest.raises((OSError, ExporterError), match="Input/output error"):
        write(tiny, tmp_path / "out")
    assert told and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "value"), [("float8_e4m3fn", 500.0), ("float16", 1e5)])
def test_a_value_that_does_not_fit_names_its_tensor(
    copy: Path, tmp_path: Path, dtype: str, value: float
) -> None:
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"][0, 0, 0, 0] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"conv_in\.weight.*" + dtype):
        write(copy, tmp_path / "out", dtype=dtype)


@pytest.mark.parametrize("size", ["300KB", "5GB"])
def test_diffusers_opens_a_variant(tiny: Path, tmp_path: Path, size: str) -> None:
    from diffusers import DiffusionPipeline

    out = write(tiny, tmp_path / "out", dtype="float16", output_variant="fp16", max_shard_size=size)
    pipeline = DiffusionPipeline.from_pretrained(
        out, variant="fp16", torch_dtype=torch.float16, low_cpu_mem_usage=True, local_files_only=True
    )
    assert pipeline.unet.dtype == torch.float16
    assert torch.equal(pipeline.unet.conv_in.weight, tensors(out, "unet")["conv_in.weight"])
    assert resolve(out).stored("unet").keys() == resolve(tiny).stored("unet").keys()


def test_diffusers_opens_it_under_balanced_and_max_memory(sharded: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        sharded, device_map="balanced", max_memory={"cpu": "4GB"}, local_files_only=True
    )
    assert torch.equal(pipeline.vae.decoder.conv_in.weight, tensors(sharded, "vae")["decoder.conv_in.weight"])


def test_pickles_only_when_allowed_and_then_as_safetensors(tiny: Path, copy: Path, tmp_path: Path) -> None:
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(CheckpointError, match="pickle can run code"):
        write(copy, tmp_path / "no")
    out = write(copy, tmp_path / "yes", allow_pickle=True)
    plain = write(tiny, tmp_path / "plain")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (out / name).read_bytes() == (plain / name).read_bytes()
    assert Artifact.open(out).manifest.source.pickle


def test_a_pickle_that_wants_to_run_code_stays_closed(copy: Path, tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = copy / "unet/diffusion_pytorch_model.safetensors"
    path.with_suffix(".bin").write_bytes(pickle.dumps({"a": Evil()}))
    path.unlink()
    with pytest.raises(CheckpointError):
        write(copy, tmp_path / "out", allow_pickle=True)
    assert not (tmp_path / "owned").exists()


def test_an_index_that_names_the_wrong_shard(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    index = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    data = json.loads(index.read_text())
    names = sorted(set(data["weight_map"].values()))
    first = next(iter(data["weight_map"]))
    data["weight_map"][first] = next(n for n in names if n != data["weight_map"][first])
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="does not hold it"):
        write(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"max_shard_size": "5 potatoes"}, {"max_shard_size": "0"}, {"static": "1x64x64"},
                {"output_variant": "../x"}, {"dtype": "int3"}],
)  # fmt: skip
def test_bad_options(tiny: Path, options: dict) -> None:
    with pytest.raises(UsageError):
        make_plan(str(tiny), "safetensors", None, options)


def test_onnx_of_the_artifact_is_onnx_of_the_checkpoint(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for name, source in (("a", tiny), ("b", sharded)):
        convert(make_plan(str(source), "onnx", tmp_path / name, {}, components=["vae_decoder"], verify=False))
    for file in ("model.onnx", "model.onnx_data"):
        assert filecmp.cmp(
            tmp_path / "a/vae_decoder" / file, tmp_path / "b/vae_decoder" / file, shallow=False
        )
