"""Where parts go: the same as diffusers and accelerate themselves, also from the Hub's headers alone."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch

from exporter.artifact import Artifact, ComponentRecord, FileRecord, Manifest, SourceRecord
from exporter.devices import parse_budgets, plan_devices
from exporter.devices.placement import Device, balanced
from exporter.errors import CheckpointError, UsageError
from tests.cli.runner import invoke
from tests.hub.conftest import hub, online  # noqa: F401 - fixtures
from tests.hub.server import HubServer


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_sdxl import make_tiny_sdxl

    return make_tiny_sdxl(tmp_path_factory.mktemp("xl") / "tiny-xl")


def theirs(root: Path, budgets: dict[Device, int], dtype: str) -> dict[str, Device] | None:
    """The map that diffusers itself makes before it loads a pipeline."""
    import importlib

    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import _get_final_device_map

    index = json.loads((root / "model_index.json").read_text())
    parts = {n: tuple(v) for n, v in index.items() if isinstance(v, list) and v[1] is not None}
    return _get_final_device_map(
        device_map="balanced", pipeline_class=getattr(diffusers, index["_class_name"]), passed_class_obj={},
        init_dict=parts, library=importlib.import_module("diffusers"), max_memory=dict(budgets),
        torch_dtype=getattr(torch, dtype), cached_folder=str(root), local_files_only=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("which", ["tiny", "xl"])
def test_whole_parts_go_where_diffusers_puts_them(
    which: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(which)
    total = sum(part.bytes for part in plan_devices(str(root), {0: 10**12}, dtype=dtype).components)
    chance = random.Random(f"{which} {dtype}")
    seen = set()
    for gpus in (1, 2, 3, 2, 3, 2):
        budgets: dict[Device, int] = {gpu: int(total * chance.uniform(0.05, 1.1)) for gpu in range(gpus)}
        budgets["cpu"] = int(total * chance.uniform(0, 1.1))
        plan = plan_devices(str(root), budgets, dtype=dtype)
        ours = {part.name: part.device for part in plan.components if part.device is not None}
        assert ours == {name: str(device) for name, device in theirs(root, budgets, dtype).items()}  # type: ignore[union-attr]
        assert sum(plan.used.values()) == total
        seen |= set(ours.values())
    assert {"0", "1"} <= seen


def test_the_rule_of_diffusers_over_many_sizes() -> None:
    """Without models: their function for assigning, over sizes that give every kind of answer."""
    from diffusers.pipelines.pipeline_loading_utils import _assign_components_to_devices

    chance = random.Random(0)
    forgotten = 0
    for _ in range(500):
        sizes = {f"part{i}": chance.randrange(1, 100) for i in range(chance.randrange(1, 7))}
        budgets: dict[Device, int] = {i: chance.randrange(1, 150) for i in range(chance.randrange(1, 5))}
        largest_first = dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True))
        roomiest_first = dict(sorted(budgets.items(), key=lambda item: item[1], reverse=True))
        expected = {
            name: device
            for device, names in _assign_components_to_devices(largest_first, roomiest_first).items()
            for name in names
        }
        found = balanced(sizes, budgets)
        assert {n: d for n, d in found.items() if d is not None} == expected
        forgotten += None in found.values()
    assert 0 < forgotten < 500


@pytest.mark.parametrize("share", [0.35, 0.6, 0.8])
def test_blocks_go_where_diffusers_puts_them(tiny: Path, share: float) -> None:
    """`UNet2DConditionModel.from_pretrained(device_map="auto", max_memory=…)`, up to loading."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from diffusers.models.model_loading_utils import _determine_device_map

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tiny / "unet"))
    size = sum(p.numel() * 4 for p in unet.parameters())
    budgets: dict[Device, int] = {0: int(size * share), 1: int(size * share), "cpu": size}
    expected = _determine_device_map(unet, "auto", dict(budgets), torch.float32)
    plan = plan_devices(str(tiny), budgets, split=["unet"])
    part = next(p for p in plan.components if p.name == "unet")
    assert part.blocks == {path: str(device) for path, device in expected.items()}
    assert len(set(part.blocks.values())) > 1 and part.device == "split"


def test_a_part_that_fits_nowhere_and_what_would_help(tiny: Path) -> None:
    sizes = {p.name: p.bytes for p in plan_devices(str(tiny), {0: 10**9}).components}
    half = max(sizes.values()) * 2 // 3
    plan = plan_devices(str(tiny), {0: half, 1: half})
    assert not plan.fits and "main memory" in plan.problems[0]
    assert any("float16" in remedy for remedy in plan.remedies)
    assert plan_devices(str(tiny), {0: half, 1: half}, dtype="float16").fits
    roomy = plan_devices(str(tiny), {0: half, "cpu": 10**9})
    assert roomy.fits and any("streamed to GPU 0" in note for note in roomy.notes)
    nothing = plan_devices(str(tiny), {0: 1000})
    assert not nothing.fits and "Nothing that was tried fits" in nothing.remedies[0]


def test_what_diffusers_forgets_is_said(tiny: Path) -> None:
    plan = plan_devices(str(tiny), {0: 1000, "cpu": 10**9})
    lost = [part.name for part in plan.components if part.device is None]
    assert len(lost) == 2 and not plan.fits
    assert all(name in plan.problems[0] for name in lost)
    assert any("enable_sequential_cpu_offload" in r for r in plan.remedies) is False
    better = plan_devices(str(tiny), {0: 10**6, "cpu": 10**9})
    assert better.fits or better.remedies


def test_an_artifact_of_a_runtime(tmp_path: Path) -> None:
    root = tmp_path / "art"
    root.mkdir()
    source = SourceRecord(source="x", pipeline_class="StableDiffusionPipeline")
    records = [
        ComponentRecord(
            name=name, entry=f"{name}/model.onnx", inputs=[], outputs=[], parameters=size // 4,
            dtype="float32",
            files=[FileRecord(path=f"{name}/model.onnx", sha256="0" * 64, bytes=size)],
        )
        for name, size in (("unet", 4000), ("text_encoder", 1000))
    ]  # fmt: skip
    Artifact(root, Manifest(target="onnx", source=source, components=records)).save()
    plan = plan_devices(str(root), {0: 4500, 1: 2000})
    assert {p.name: p.device for p in plan.components} == {"unet": "0", "text_encoder": "1"}
    assert plan.dtype == "as stored" and plan.used == {"0": 4000, "1": 1000}
    assert not plan_devices(str(root), {0: 3000}).fits
    with pytest.raises(UsageError, match="cannot be split"):
        plan_devices(str(root), {0: 4500}, split=["unet"])


def test_from_the_hub_by_headers_alone(online: HubServer, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    online.store.upload("org/tiny", tiny)
    budgets = parse_budgets("0=3MB,1=3MB,cpu=16GB")
    plan = plan_devices("org/tiny", budgets)
    local = plan_devices(str(tiny), budgets)
    assert plan.components == local.components and plan.used == local.used
    assert plan.revision == online.store.repos["org/tiny"].branches["main"][-1].sha
    assert not list((tmp_path / "hf-home").rglob("*.safetensors")), "no weight file was fetched"


@pytest.mark.parametrize("lie", ["behind the end", "bytes its shape", "cannot be read"])
def test_a_header_on_the_hub_that_lies(online: HubServer, tiny: Path, tmp_path: Path, lie: str) -> None:  # noqa: F811
    import shutil

    root = Path(shutil.copytree(tiny, tmp_path / "lying"))
    path = root / "unet/diffusion_pytorch_model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    if lie == "behind the end":
        header[name]["shape"] = [10**9]
        header[name]["data_offsets"] = [0, 4 * 10**9]
    elif lie == "bytes its shape":
        header[name]["shape"] = [3]
    text = b"no json" if lie == "cannot be read" else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    online.store.upload("org/lying", root)
    with pytest.raises(CheckpointError, match=lie):
        plan_devices("org/lying", {0: 10**9})


@pytest.mark.parametrize(
    "text", ["", "8GB", "0=8 potatoes", "gpu=8GB", "-1=8GB", "0=1GB,0=2GB", "cpu=", "0=1e9GB", "²=1GB"]
)
def test_bad_budgets(text: str) -> None:
    with pytest.raises(UsageError):
        parse_budgets(text)


def test_budgets() -> None:
    assert parse_budgets(" cpu=1GiB, 1=500MB,0=8GB") == {0: 8 * 10**9, 1: 500 * 10**6, "cpu": 2**30}


def test_the_command(tiny: Path) -> None:
    ran = invoke("plan-devices", str(tiny), "--max-memory", "0=8GB,1=8GB,cpu=16GB", "--json")
    assert ran.code == 0, ran.stderr
    assert {c["device"] for c in json.loads(ran.stdout)["components"]} == {"0", "1"}
    ran = invoke("plan-devices", str(tiny), "--max-memory", "0=1MB")
    assert ran.code == 6 and "It does not fit." in ran.stdout
    assert invoke("plan-devices", str(tiny), "--max-memory", "0=1MB", "--split", "nose").code == 2
    assert invoke("plan-devices", str(tiny), "--max-memory", "0=1MB", "--dtype", "int3").code == 2
    ran = invoke("plan-devices", str(tiny), "--max-memory", "0=2MB,1=3MB,cpu=1GB", "--split", "unet")
    assert ran.code == 0 and "  up_blocks" in ran.stdout, ran.stdout
