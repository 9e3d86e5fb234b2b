"""The lazy reader agrees with the safetensors package and refuses every damaged file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from exporter.checkpoints import SafetensorsFile
from exporter.errors import CheckpointError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def write(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
)
def test_same_tensors_as_the_safetensors_package(
    tmp_path: Path, shapes: list[list[int]], dtypes: list[torch.dtype]
) -> None:
    tensors = {f"t{i}": (torch.rand(shape) * 8).to(dtypes[i]).contiguous() for i, shape in enumerate(shapes)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    read = SafetensorsFile(path).tensors
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        loaded = read[name].load()
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)
        assert bytes(read[name].raw()) == tensor.view(-1).view(torch.uint8).numpy().tobytes()


def test_data_that_is_not_aligned_is_read_right(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.25])
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % 4)
    path = write(tmp_path / "x.safetensors", raw, b"\x07" + values.numpy().tobytes())
    assert torch.equal(SafetensorsFile(path).tensors["b"].load(), values)


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (GOOD, b"\0" * 7),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}, b"\0" * 12),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}, b"\0" * 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"\0" * 8),
        ({"a": {"dtype": "NOPE", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
        ({"a": 3}, b""),
        ([], b""),
        (b"not json", b""),
        (b"\xff\xfe", b""),
        (b"[" * 100_000, b""),
    ],
)
def test_damage_is_one_clear_error(tmp_path: Path, header: object, data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"not a usable safetensors file"):
        SafetensorsFile(write(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"\x01\x02", struct.pack("<Q", 1 << 60) + b"{}"])
def test_a_header_that_lies_about_its_length(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        SafetensorsFile(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_corruption_raises_only_our_error(tmp_path: Path, data: st.DataObject) -> None:
    blob = bytearray(save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.int64)}))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(0, len(blob)))]
    path = tmp_path / "x.safetensors"
    path.write_bytes(blob)
    try:
        for tensor in SafetensorsFile(path).tensors.values():
            tensor.load()
    except CheckpointError:
        pass
