"""`.pt2`: one zip archive. The program is JSON in it, what it says of itself too, weights are entries.

An entry's CRC is brought up to date after every change, so that no gate can find a fault by it.
"""

from __future__ import annotations

import copy
import itertools
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.mutation.blob import Blob
from tests.mutation.formats.base import Edit, Format, part, register
from tests.mutation.formats.common import STORED, Dims, baked
from tests.mutation.formats.torchscript import Entry, rewrite

if TYPE_CHECKING:
    from tests.mutation.workshop import Workshop

ENTRY = "model.pt2"
STATIC = (1, 64, 64)
DTYPES = {6: "float16", 7: "float32"}
"""torch's own numbers for them in the file (`torch._export.serde.schema.ScalarType`)."""
HALF, FLOAT = DTYPES
Change = Callable[[dict[str, Any]], None]


def blobs(folder: Path) -> list[Blob]:
    """Every contiguous float tensor among the weights."""
    path = folder / ENTRY
    data = path.read_bytes()
    found: list[Blob] = []
    with zipfile.ZipFile(path) as archive:
        (config,) = (name for name in archive.namelist() if name.endswith("weights_config.json"))
        for entry in json.loads(archive.read(config))["config"].values():
            meta = entry["tensor_meta"]
            shape = tuple(size["as_int"] for size in meta["sizes"])
            stride = tuple(step["as_int"] for step in meta["strides"])
            if meta["dtype"] not in DTYPES or stride != contiguous(shape):
                continue
            name = f"{config.rpartition('/')[0]}/{entry['path_name']}"
            dtype = DTYPES[meta["dtype"]]
            start = meta["storage_offset"]["as_int"] * np.dtype(dtype).itemsize
            header = archive.getinfo(name).header_offset
            begin = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
            found.append(Entry(path, begin + start, shape, dtype, name))
    return found


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def changing(ending: str, *changes: Change) -> Edit:
    """Change a JSON entry of the only component's archive."""

    def edit(shop: Workshop, root: Path) -> None:
        change_json(part(root), ending, *changes)

    return edit


def change_json(folder: Path, ending: str, *changes: Change) -> None:
    def changed(text: str) -> str:
        data = json.loads(text)
        for change in changes:
            change(data)
        return json.dumps(data)

    rewrite(folder / ENTRY, lambda name: name.endswith(ending), changed)


def program(*changes: Change) -> Edit:
    return changing("/models/model.json", *changes)


def declaration(change: Change) -> Edit:
    return changing("/extra/exporter.json", change)


def both(*edits: Edit) -> Edit:
    def edit(shop: Workshop, root: Path) -> None:
        for each in edits:
            each(shop, root)

    return edit


def graph_of(data: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = data["graph_module"]["graph"]
    return graph


def node_of(data: dict[str, Any], operator: str) -> dict[str, Any]:
    """The first node of an operator."""
    target = f"torch.ops.aten.{operator}"
    node: dict[str, Any] = next(n for n in graph_of(data)["nodes"] if n["target"] == target)
    return node


def returning(choose: Callable[[list[Any]], list[Any]]) -> Change:
    """Other outputs, in everything that the file says of them."""

    def change(data: dict[str, Any]) -> None:
        module = data["graph_module"]
        module["graph"]["outputs"] = choose(module["graph"]["outputs"])
        module["signature"]["output_specs"] = choose(module["signature"]["output_specs"])
        call = module["module_call_graph"][0]["signature"]
        spec = json.loads(call["out_spec"])
        spec[1]["children_spec"] = choose(spec[1]["children_spec"])
        call["out_spec"] = json.dumps(spec)

    return change


def argument(name: str, value: dict[str, Any], *, keyword: bool = False) -> dict[str, Any]:
    return {"name": name, "arg": value, "kind": 2 if keyword else 1}


def insert(
    data: dict[str, Any],
    place: int,
    operator: str,
    given: str,
    rest: list[dict[str, Any]],
    dtype: int = FLOAT,
) -> str:
    """A new node that computes a tensor of the same shape from another one; its name."""
    graph = graph_of(data)
    name = f"planted_{len(graph['nodes'])}"
    graph["tensor_values"][name] = copy.deepcopy(graph["tensor_values"][given]) | {"dtype": dtype}
    node = copy.deepcopy(graph["nodes"][min(place, len(graph["nodes"]) - 1)])  # of the same module
    node |= {
        "target": f"torch.ops.aten.{operator}",
        "inputs": [argument("self", {"as_tensor": {"name": given}}), *rest],
        "outputs": [{"as_tensor": {"name": name}}],
    }
    node["name"] = name
    graph["nodes"].insert(place, node)
    return name


def cast_output(*dtypes: int) -> Change:
    """The first output goes through other dtypes."""

    def change(data: dict[str, Any]) -> None:
        graph = graph_of(data)
        name = old = graph["outputs"][0]["as_tensor"]["name"]
        for dtype in dtypes:
            more = [argument("dtype", {"as_scalar_type": dtype})]
            name = insert(data, len(graph["nodes"]), "to.dtype", name, more, dtype)
        graph["outputs"][0] = {"as_tensor": {"name": name}}
        specs = data["graph_module"]["signature"]["output_specs"]
        assert specs[0]["user_output"]["arg"]["as_tensor"]["name"] == old
        specs[0]["user_output"]["arg"] = {"as_tensor": {"name": name}}

    return change


def tanh_gelu(data: dict[str, Any]) -> None:
    node_of(data, "gelu.default")["inputs"].append(
        argument("approximate", {"as_string": "tanh"}, keyword=True)
    )


def bilinear(data: dict[str, Any]) -> None:
    node = node_of(data, "upsample_nearest2d.vec")
    node["target"] = "torch.ops.aten.upsample_bilinear2d.vec"
    node["inputs"].insert(2, argument("align_corners", {"as_bool": False}))


def padding(data: dict[str, Any]) -> None:
    """One row less above and one more below, before the first convolution."""
    nodes = graph_of(data)["nodes"]
    first = node_of(data, "conv2d.default")
    given = first["inputs"][0]["arg"]["as_tensor"]["name"]
    more = [argument("pad", {"as_ints": [0, 0, -1, 1]})]
    name = insert(data, nodes.index(first), "constant_pad_nd.default", given, more)
    first["inputs"][0]["arg"] = {"as_tensor": {"name": name}}


def sin_cos(data: dict[str, Any]) -> None:
    sine, cosine = node_of(data, "sin.default"), node_of(data, "cos.default")
    sine["target"], cosine["target"] = cosine["target"], sine["target"]


def rename(data: dict[str, Any]) -> None:
    data["outputs"][0]["name"] = "renamed"


def add(data: dict[str, Any]) -> None:
    data["outputs"].append(data["outputs"][0] | {"name": "extra"})


def drop(data: dict[str, Any]) -> None:
    del data["outputs"][-1]


def reverse(data: dict[str, Any]) -> None:
    data["outputs"].reverse()


def exchange(data: dict[str, Any]) -> None:
    """Each of the two outputs under the other's name, with the shape that goes with it."""
    first, second = data["outputs"]
    first["name"], second["name"] = second["name"], first["name"]


def free(folder: Path, dims: Dims) -> None:
    def claim(data: dict[str, Any]) -> None:
        for tensor in (*data["inputs"], *data["outputs"]):
            tensor["dims"] = dims[tensor["name"]]

    change_json(folder, "/extra/exporter.json", claim)


EDITS: dict[str, Edit] = STORED | {
    "output-renamed": declaration(rename),
    "output-extra": both(declaration(add), program(returning(lambda found: [*found, found[0]]))),
    "output-missing": both(declaration(drop), program(returning(lambda found: found[:-1]))),
    "output-dtype": program(cast_output(HALF)),
    "output-float16": program(cast_output(HALF, FLOAT)),
    "output-order": both(declaration(reverse), program(returning(lambda found: found[::-1]))),
    "output-exchanged": declaration(exchange),
    "tanh-gelu": program(tanh_gelu),
    "bilinear": program(bilinear),
    "padding": program(padding),
    "sin-cos": program(sin_cos),
    "baked": baked(),
    "baked-declared": baked(free),
    "baked-picture": baked(free),
}

FORMS = [
    {"dtype": dtype} | static
    for dtype, static in itertools.product(("float32", "float16", "bfloat16"), ({}, {"static": STATIC}))
]

register(
    Format(
        "pt2",
        "PyTorch .pt2",
        "pt2",
        edits=EDITS,
        blobs=blobs,
        honest=FORMS,
        excluded={"stale-data": "graph and weights are one file"},
    )
)
