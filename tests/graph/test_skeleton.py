"""A graph from the cache is the graph, to the byte; what is damaged or does not fit is never used."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exporter import cache, graph
from exporter.architectures import Component, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError
from exporter.graph import skeleton
from exporter.graph.identity import key_of
from exporter.progress import NullProgress

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text encoder": ("text_encoder", {}),
    "half precision": ("text_encoder", {"dtype": "float16", "attention": "decomposed"}),
    "UNet": ("unet", {"attention": "opset23"}),
    "as stored": ("text_encoder", {"layout": "stored"}),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoded(tiny: Path) -> tuple[Component, bytes]:
    """The text encoder and the bytes of its graph."""
    component = find(tiny, "text_encoder")
    with cache.off():
        return component, skeleton.encode(graph.build(component), component)


def find(source: Path, name: str) -> Component:
    return next(c for c in components_of(resolve(source)) if c.name == name)


def entries() -> list[Path]:
    return cache.SKELETONS.files()


class Labels(NullProgress):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, label: str, total: float | None = None) -> None:
        self.seen.append(label)


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes_with_and_without_the_cache(tiny: Path, tmp_path: Path, case: str) -> None:
    name, options = CASES[case]
    component = find(tiny, name)
    with cache.off():
        graph.write(graph.build(component, **options), tmp_path / "without")
    assert entries() == []
    told = [Labels(), Labels()]
    for folder, progress in zip(("first", "second"), told, strict=True):
        made = graph.build(component, progress=progress, **options)
        graph.write(made, tmp_path / folder)
    assert "graph from the cache" in " ".join(told[1].seen) and "capture" not in " ".join(told[1].seen)
    assert "capture" in " ".join(told[0].seen)
    assert len(entries()) == 1
    for file in ("model.onnx", "model.onnx_data"):
        expected = (tmp_path / "without" / file).read_bytes()
        assert (tmp_path / "first" / file).read_bytes() == expected
        assert (tmp_path / "second" / file).read_bytes() == expected
    assert expected, "there are weights"


def test_another_fine_tune_takes_the_graph_and_its_own_weights(tmp_path: Path, own_cache: Path) -> None:
    """The second of two models of one architecture: no tracing, no diffusers, weights of its own."""
    from tests.tiny import make_tiny

    sources = [make_tiny(tmp_path / name, seed=seed) for name, seed in (("first", 1), ("second", 2))]
    config = json.loads((sources[1] / "vae/config.json").read_text())
    config |= {"_name_or_path": "/somewhere/else", "_diffusers_version": "0.1.0"}
    (sources[1] / "vae/config.json").write_text(json.dumps(config))
    program = """
import sys
from pathlib import Path
from exporter import conversion
source, out = sys.argv[1:]
plan = conversion.make_plan(source, "onnx", Path(out), {}, components=["vae_decoder"], verify=False)
conversion.convert(plan)
heavy = ("diffusers.models", "transformers", "torch._dynamo", "torch.onnx", "onnxscript")
print([name for name in (*heavy, "exporter.graph.direct") if name in sys.modules])
"""
    seen = []
    for source, out in zip(sources, "ab", strict=True):
        ran = subprocess.run(
            [sys.executable, "-c", program, str(source), str(tmp_path / out)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen.append(ran.stdout.strip().splitlines()[-1])
    assert "torch._dynamo" in seen[0] and seen[1] == "[]", seen
    with cache.off():
        graph.write(graph.build(find(sources[1], "vae_decoder")), tmp_path / "c/vae_decoder")
    data = [(tmp_path / out / "vae_decoder/model.onnx_data").read_bytes() for out in "abc"]
    assert data[1] == data[2] != data[0]
    models = {(tmp_path / out / "vae_decoder/model.onnx").read_bytes() for out in "abc"}
    assert len(models) == 1


@pytest.mark.parametrize("change", ["cut", "one bit", "empty", "another file"])
def test_a_damaged_entry_is_dropped_and_made_again(
    encoded: tuple[Component, bytes], own_cache: Path, change: str
) -> None:
    component, data = encoded
    key = key_of(component, {})
    assert key is not None
    middle = len(data) // 2
    damaged = {
        "cut": data[:middle],
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "empty": b"",
        "another file": b"#!/bin/sh\n" + data,
    }[change]
    cache.write(cache.SKELETONS, key, damaged)
    assert len(entries()) == 1
    assert skeleton.load(key, component) is None
    assert entries() == []


def test_a_graph_that_contradicts_itself_is_damaged(encoded: tuple[Component, bytes]) -> None:
    """Even under a correct hash: a weight whose place in the graph has another shape."""
    component, data = encoded
    start = len(skeleton.MAGIC) + 32
    length = int.from_bytes(data[start : start + 8], "little")
    notes = json.loads(data[start + 8 : start + 8 + length])

    def signed(changed: dict[str, Any]) -> bytes:
        import hashlib

        written = json.dumps(changed).encode()
        body = len(written).to_bytes(8, "little") + written + data[start + 8 + length :]
        return skeleton.MAGIC + hashlib.sha256(body).digest() + body

    assert skeleton.decode(signed(notes), component).weights
    turned = next(row for row in notes["weights"] if row[5] and row[4][0] != row[4][1])
    for changed in (
        {**notes, "weights": notes["weights"][1:]},  # a weight without bytes
        {**notes, "weights": [[*row[:5], []] if row is turned else row for row in notes["weights"]]},
        {**notes, "weights": [[*row[:3], "float16", *row[4:]] for row in notes["weights"]]},
        {**notes, "inputs": 3},
        {name: value for name, value in notes.items() if name != "modules"},
    ):
        with pytest.raises(skeleton.Damaged):
            skeleton.decode(signed(changed), component)


def test_weights_are_matched_by_name_shape_and_kind(encoded: tuple[Component, bytes]) -> None:
    component, data = encoded
    name, tensor = next((n, t) for n, t in component.weights.items() if len(t.shape) == 2)

    def with_weights(weights: dict[str, Any]) -> Component:
        changed = replace(component)
        object.__setattr__(changed, "weights", weights)
        return changed

    without = {n: t for n, t in component.weights.items() if n != name}
    turned = {**component.weights, name: replace(tensor, shape=tensor.shape[::-1])}
    integers = {**component.weights, name: replace(tensor, dtype="I32")}
    if tensor.shape[0] == tensor.shape[1]:
        turned[name] = replace(tensor, shape=(1, tensor.numel))
    for weights in (without, turned, integers):
        with pytest.raises(skeleton.Misfit):
            skeleton.decode(data, with_weights(weights))
        cache.write(cache.SKELETONS, "k", data)
        assert skeleton.load("k", with_weights(weights)) is None
    assert skeleton.load("k", component) is not None


def test_a_checkpoint_that_does_not_fit_fails_as_without_the_cache(tmp_path: Path, tiny: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    path = broken / "text_encoder/model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("final_layer_norm.weight"))
    tensors[name] = torch.ones(7)
    save_file(tensors, path)
    graph.build(find(tiny, "text_encoder"))  # the key of both is the same
    with pytest.raises(CheckpointError, match=r"has shape \[7\] on disk"):
        graph.build(find(broken, "text_encoder"))
    assert len(entries()) == 1, "the entry is not to blame"


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor


def scaled_by(factor: float) -> Any:
    return lambda inner: Scaled(inner, factor)


def test_the_key_tells_apart_what_may_differ(tiny: Path, tmp_path: Path) -> None:
    import shutil

    component = find(tiny, "text_encoder")
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    config = json.loads((other / "text_encoder/config.json").read_text())
    (other / "text_encoder/config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-4}))
    fewer_dims = (replace(component.inputs[0], dims=("batch", 77)),)
    components = {
        "itself": component,
        "config": find(other, "text_encoder"),
        "input": replace(component, inputs=fewer_dims),
        "adapter": replace(component, adapt=scaled_by(1.0)),
        "its number": replace(component, adapt=scaled_by(2.0)),
        "partial": replace(component, adapt=functools.partial(Scaled, factor=3.0)),
        "fewer weights": replace(component, used=("text_model.encoder",)),
    }
    variants = {name: key_of(each, {"dtype": "float32"}) for name, each in components.items()}
    renamed = replace(component)
    stored = {n: replace(t, name=f"old.{t.name}") for n, t in component.weights.items()}
    object.__setattr__(renamed, "weights", stored)
    variants["names in the file"] = key_of(renamed, {"dtype": "float32"})
    variants["an option"] = key_of(component, {"dtype": "float16"})
    assert None not in variants.values()
    assert len(set(variants.values())) == len(variants), variants
    assert key_of(find(tiny, "text_encoder"), {"dtype": "float32"}) == variants["itself"]


def test_what_cannot_be_described_is_not_cached(tiny: Path) -> None:
    """An adapter that holds a module, or a class made in a function, may do anything."""

    class Local(nn.Module):
        pass

    component = find(tiny, "text_encoder")
    held = nn.Linear(1, 1)
    for adapt in (lambda inner: nn.Sequential(inner, held), Local, held.forward):
        assert key_of(replace(component, adapt=adapt), {}) is None
