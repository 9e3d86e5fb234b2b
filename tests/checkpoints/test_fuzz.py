"""Whatever bytes the parsers are given, they answer or say in one of our errors why not."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.artifact import MANIFEST, Artifact
from exporter.checkpoints import SafetensorsFile, resolve
from exporter.errors import ExporterError

FUZZ = settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Two seconds for one input of a few hundred bytes: a parser that takes longer can be made to hang."""

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 64),
    st.booleans(),
    st.floats(),
    st.none(),
    st.text(max_size=5),
)
json_values = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=12,
)
entries = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F4", "", 3, None, ["F32"]]),
            "shape": st.one_of(st.lists(numbers, max_size=80), json_values),
            "data_offsets": st.one_of(st.tuples(numbers, numbers).map(list), json_values),
        }
    ),
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@FUZZ
@given(header=st.dictionaries(st.text(max_size=10), entries, max_size=4), data=st.binary(max_size=64))
def test_safetensors_headers(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    raw = dumped(header)
    check_safetensors(tmp_path / "x.safetensors", len(raw).to_bytes(8, "little") + raw + data)


@FUZZ
@given(data=st.binary(max_size=200))
def test_safetensors_bytes(tmp_path: Path, data: bytes) -> None:
    check_safetensors(tmp_path / "x.safetensors", data)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[' + b",".join([b"9" * 18] * 50_000) + b'],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b'{"__metadata__":[1,2]}',
    ],
    ids=["nested objects", "nested lists", "a long number", "many numbers", "infinity", "odd metadata"],
)
def test_safetensors_headers_that_are_meant_to_hurt(tmp_path: Path, header: bytes) -> None:
    check_safetensors(tmp_path / "x.safetensors", len(header).to_bytes(8, "little") + header + b"\0" * 8)


def check_safetensors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except ExporterError as error:
        assert len(str(error)) < 2000
        return
    spans = []
    for tensor in file.tensors.values():
        assert tensor.offset >= 0 and tensor.offset + tensor.nbytes <= len(data), "inside the file"
        assert len(tensor.raw()) == tensor.nbytes
        if tensor.nbytes:
            spans.append((tensor.offset, tensor.offset + tensor.nbytes))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(spans)), "no byte twice"


FLOW_NAMES = [
    "img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "final_layer.linear.weight",
    "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.qkv.weight",
    "double_blocks.1.img_mod.lin.bias", "single_blocks.0.linear1.weight", "guidance_in.in_layer.weight",
    "joint_blocks.0.x_block.attn.qkv.weight", "joint_blocks.0.x_block.attn.ln_q.weight", "pos_embed",
    "x_embedder.proj.weight", "context_embedder.weight", "y_embedder.mlp.0.weight",
    f"double_blocks.{'9' * 5000}.x", "double_blocks.-1.x", "joint_blocks.0", "joint_blocks.0.scaled_fp8",
    "text_encoders.t5xxl.transformer.shared.weight", "text_encoders.clip_l.transformer.text_model.x.weight",
    "vae.encoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight", "x.lora_down.weight",
]  # fmt: skip
SHAPES = [[], [0], [1], [7], [64], [0, 3], [64, 64], [384, 1], [1, 49, 64], [64, 16, 2, 2], [2**31, 2**30]]


@FUZZ
@given(
    header=st.dictionaries(st.sampled_from(FLOW_NAMES), st.sampled_from(SHAPES), min_size=1),
    prefix=st.sampled_from(["", "model.diffusion_model."]),
)
def test_families_are_told_apart_whatever_the_shapes(
    tmp_path: Path, header: dict[str, list[int]], prefix: str
) -> None:
    """Names of SD3 and FLUX.1 in any company, with any shapes: an answer, or one of our errors."""
    path, tensors, end = tmp_path / "x.safetensors", {}, 0
    for name, shape in header.items():
        size = math.prod(shape) * 4
        if size > 100_000:
            shape, size = [0, *shape], 0  # no bytes, but every other dimension
        tensors[prefix + name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = dumped(tensors)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * end)
    try:
        resolve(path).validate()
    except ExporterError as error:
        assert len(str(error)) < 2000


def a_manifest() -> dict[str, Any]:
    file = {"path": "unet/model.onnx", "sha256": "0" * 64, "bytes": 3}
    return {
        "kind": "exporter-artifact", "schema_version": 1, "created": "now", "target": "onnx",
        "source": {
            "source": "x", "pipeline_class": "StableDiffusionPipeline", "files": [file],
            "overlays": [{"kind": "lora", "source": "x", "scale": 1.0, "files": [file]}],
        },
        "components": [
            {
                "name": "unet", "entry": "unet/model.onnx", "files": [file], "parameters": 3,
                "dtype": "float32", "outputs": [],
                "inputs": [{"name": "sample", "dtype": "float32", "dims": ["batch", 4]}],
            }
        ],
        "shared_files": [dict(file)],
    }  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    if isinstance(value, dict):
        return [at, *(p for k, v in value.items() for p in places(v, (*at, k)))]
    if isinstance(value, list):
        return [at, *(p for i, v in enumerate(value) for p in places(v, (*at, i)))]
    return [at]


@FUZZ
@given(place=st.sampled_from(places(a_manifest())[1:]), value=st.one_of(json_values, st.text(max_size=400)))
def test_manifests(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    manifest = a_manifest()
    inner: Any = manifest
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (tmp_path / MANIFEST).write_bytes(dumped(manifest))
    try:
        artifact = Artifact.open(tmp_path)
        artifact.changed_files()
        artifact.verified(rehash=True)
        artifact.manifest.digest()
    except ExporterError:
        return
    for file in artifact.manifest.all_files():
        assert (tmp_path / file.path).resolve().is_relative_to(tmp_path.resolve())


@FUZZ
@given(data=st.one_of(st.binary(max_size=100), st.just(b"[" * 100_000), json_values.map(dumped)))
def test_manifest_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(ExporterError):
        Artifact.open(tmp_path)


@FUZZ
@given(
    index=st.one_of(
        json_values,
        st.dictionaries(
            st.one_of(
                st.sampled_from(["_class_name", "unet", "vae", "..", "auto_map"]), st.text(max_size=300)
            ),
            st.one_of(
                json_values, st.just(["diffusers", "AutoencoderKL"]), st.just("StableDiffusionPipeline")
            ),
            max_size=5,
        ),
    )
)
def test_model_indexes(tmp_path: Path, index: Any) -> None:
    (tmp_path / "model_index.json").write_bytes(dumped(index))
    try:
        checkpoint = resolve(tmp_path)
        checkpoint.validate()
    except ExporterError:
        return
    assert all(isinstance(v, str) for pair in checkpoint.component_classes.values() for v in pair)


def a_recipe() -> dict[str, Any]:
    return {
        "name": "r", "description": "x", "model": "builtin:shapes", "revision": "main", "target": "onnx",
        "loras": ["a.safetensors:0.5"], "vae": "b", "textual_inversions": ["c"], "allow_pickle": False,
        "options": {"dtype": "float32", "static": "${size}"}, "components": ["unet"],
        "output": "out/{name}-{target}", "variables": {"size": "1x64x64", "n": 3},
        "verify": {"enabled": True, "k": 4.0, "steps": 2, "prompts": ["a ${n}"]},
        "publish": {"repo": "org/{name}", "create": True},
        "matrix": {"target": ["onnx", "openvino"], "dtype": ["float32", "float16"], "n": [1, 2]},
    }  # fmt: skip


@FUZZ
@given(
    place=st.sampled_from(places(a_recipe())[1:]),
    value=st.one_of(
        json_values, st.text(max_size=400), st.sampled_from(["${n}", "${size}", "{name}", "../x"])
    ),
    override=st.one_of(st.none(), st.text(max_size=40), st.just("options.dtype=[1, 2]")),
)
def test_recipes(place: tuple[Any, ...], value: Any, override: str | None) -> None:
    from exporter import recipes
    from exporter.recipes.reading import parse

    recipe = a_recipe()
    inner: Any = recipe
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    try:
        read = parse(dumped(recipe).decode("utf-8", "replace"), "fuzz", [override] if override else [])
        found = recipes.cells(read)
    except ExporterError as error:
        assert len(str(error)) < 2000
        return
    for cell in found:
        assert cell.target and cell.recipe.intake() and recipes.to_yaml(cell.recipe)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\n"
        + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(12)),
        "[" * 50_000,
        "{a: " * 5_000,
        "name: m\nmodel: x\ntarget: onnx\nmatrix:\n"
        + "".join(f"  k{i}: [{', '.join(map(str, range(40)))}]\n" for i in range(8)),
        "name: m\nmodel: ${v}\ntarget: onnx\nvariables: {v: 3}\n",
        "name: m\nmodel: x\ntarget: onnx\noutput: ${v}\nvariables: {v: 3}\n",
        "name: m\nmodel: x\ntarget: onnx\npublish: {repo: '${v}'}\nvariables: {v: 3}\n",
        "x: !!python/object/apply:os.system ['true']\n",
    ],
    ids=[
        "billion laughs",
        "nested lists",
        "nested maps",
        "a huge matrix",
        "a number for a name",
        "a number for a folder",
        "a number for a repository",
        "code",
    ],
)
def test_recipes_that_are_meant_to_hurt(text: str) -> None:
    from exporter import recipes
    from exporter.recipes.reading import parse

    with pytest.raises(ExporterError) as caught:
        recipes.cells(parse(text, "hurt"))
    assert len(str(caught.value)) < 2000


@FUZZ
@given(
    items=st.lists(
        st.tuples(
            st.sampled_from(["location", "offset", "length", "checksum"]),
            st.one_of(
                st.text(max_size=300), st.integers(-(2**80), 2**80).map(str),
                st.sampled_from(["data", "../data", "/etc/passwd", ".", "..", "a/../../x", "9" * 5000]),
            ),
        ),
        min_size=1, max_size=4,
    ),
    hidden=st.booleans(),
)  # fmt: skip
def test_external_data_of_onnx(tmp_path: Path, items: list[tuple[str, str]], hidden: bool) -> None:
    onnx = pytest.importorskip("onnx")
    from exporter.targets.onnx.runner import check_data

    (tmp_path / "data").write_bytes(b"\0" * 64)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4])
    for key, value in items:
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value.encode("utf-8", "replace").decode()
    graph = onnx.GraphProto()
    if hidden:  # in a constant inside the branch of an If
        inner = onnx.GraphProto(node=[onnx.helper.make_node("Constant", [], ["c"], value=tensor)])
        graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner))
    else:
        graph.initializer.append(tensor)
    model = onnx.ModelProto(graph=graph)
    last = {entry.key: entry.value for entry in tensor.external_data}
    try:
        check_data(model, tmp_path)
    except ExporterError:
        return
    assert last["location"] == "data" or (tmp_path / last["location"]).samefile(tmp_path / "data")
    assert 0 <= int(last.get("offset", 0)) + int(last.get("length", 0)) <= 64
