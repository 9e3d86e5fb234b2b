"""What lies on disk is what Apple's runners look for, and computes what PyTorch computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter.architectures import Size
from exporter.conversion import make_plan
from exporter.errors import UnsupportedError
from exporter.targets.coreml import CoremlOptions, load
from exporter.targets.coreml.attention import split_attention
from exporter.targets.coreml.export import export_size
from exporter.targets.coreml.interpreter import Feature
from exporter.targets.coreml.lint import lint
from exporter.targets.coreml.package import open_package
from tests.families import make
from tests.targets.coreml.conftest import NAMES, Exported, export

EXPECTED = {
    "text_encoder": (
        [("input_ids", "float32", (1, 77))],
        [("last_hidden_state", "float32", (1, 77, 32)), ("pooled_outputs", "float32", (1, 32))],
    ),
    "unet": (
        [
            ("sample", "float16", (2, 4, 8, 8)),
            ("timestep", "float16", (2,)),
            ("encoder_hidden_states", "float16", (2, 32, 1, 77)),
        ],
        [("noise_pred", "float32", (2, 4, 8, 8))],
    ),
    "vae_decoder": ([("z", "float16", (1, 4, 8, 8))], [("image", "float32", (1, 3, 64, 64))]),
    "vae_encoder": ([("x", "float16", (1, 3, 64, 64))], [("latent", "float32", (1, 8, 8, 8))]),
}


def plain(features: tuple[Feature, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(f.name, f.dtype, f.shape) for f in features]


@pytest.mark.parametrize("name", NAMES)
def test_names_types_and_shapes_are_apples(half: Exported, name: str) -> None:
    path = half.package(name)
    assert path.name.startswith("Stable_Diffusion_version_tiny-sd_") and path.name.endswith(
        f"_{name}.mlpackage"
    )
    model = load(path)
    assert (plain(model.inputs), plain(model.outputs)) == EXPECTED[name]
    assert lint(open_package(path), name) == []
    assert {p.name for p in path.iterdir()} == {"Manifest.json", "Data"}


def relative(result: np.ndarray, truth: torch.Tensor) -> float:
    expected = truth.double().numpy()
    return float(np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("hint,limit", [("f32", 2e-3), ("f16", 8e-3)])
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_pytorch_computes(half: Exported, name: str, hint: str, limit: float) -> None:
    component = half.components[name]
    rows = 2 if name == "unet" else 1
    native = component.native
    size = Size(rows, native.height, native.width, native.sequence, native.factor)
    inputs = component.example_inputs(size, 3)
    with torch.no_grad():
        truth = component.reference_module()(**inputs)
    with half.open(name, precision_hint=hint) as runner:
        assert runner.precision == {"f32": "float32", "f16": "float16"}[hint]
        outputs = runner.run({n: t.numpy() for n, t in inputs.items()})
    assert list(outputs) == [spec.name for spec in component.outputs]
    for spec, expected in zip(component.outputs, truth, strict=True):
        assert outputs[spec.name].dtype == np.float32
        assert relative(outputs[spec.name], expected) < limit


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_the_float32_graph_is_exact(single: Exported, name: str) -> None:
    component = single.components[name]
    native = component.native
    size = Size(2 if name == "unet" else 1, native.height, native.width, native.sequence, native.factor)
    inputs = component.example_inputs(size, 4)
    with torch.no_grad():
        truth = component.reference_module()(**inputs)
    with single.open(name) as runner:
        outputs = runner.run({n: t.numpy() for n, t in inputs.items()})
    for spec, expected in zip(component.outputs, truth, strict=True):
        assert relative(outputs[spec.name], expected) < 3e-6


@given(
    tokens=st.integers(1, 30), keys=st.integers(1, 9), heads=st.integers(1, 3),
    chunk=st.one_of(st.none(), st.integers(1, 12)),
)  # fmt: skip
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
def test_split_attention_serves_every_length(tokens: int, keys: int, heads: int, chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(tokens * 100 + keys)
    query, key, value = (torch.randn(2, heads * 4, 1, n, generator=generator) for n in (tokens, keys, keys))

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(2).unflatten(1, (heads, 4)).transpose(2, 3)

    whole = torch.nn.functional.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value))
    expected = whole.transpose(2, 3).flatten(1, 2).unsqueeze(2)
    assert torch.allclose(split_attention(query, key, value, heads, 0.5, chunk), expected, atol=1e-5)


def test_no_path_of_this_machine_is_written(half: Exported, tiny: Path) -> None:
    for path in half.root.rglob("*"):
        if path.is_file() and path.suffix != ".bin":
            data = path.read_bytes()
            assert str(tiny.parent).encode() not in data and str(Path.home()).encode() not in data, path


def test_the_same_input_gives_the_same_bytes(half: Exported, tiny: Path, tmp_path: Path) -> None:
    again = export(tiny, tmp_path, ("text_encoder",))
    assert again.records["text_encoder"].files == half.records["text_encoder"].files


ANOTHER_PROCESS = """
import sys
from pathlib import Path
from coremltools.converters.mil import Builder
from tests.targets.coreml.conftest import export
for name in ("linear", "const", "mul"):  # as a conversion that failed leaves them
    Builder.name_count[name] = 9
for file in export(Path(sys.argv[1]), Path(sys.argv[2]), ("text_encoder",)).records["text_encoder"].files:
    print(file.path, file.sha256)
"""


def test_every_process_gives_the_same_bytes(half: Exported, tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tiny), str(tmp_path)]
    there = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    here = [f"{file.path} {file.sha256}" for file in half.records["text_encoder"].files]
    assert there.stdout.splitlines()[-len(here) :] == here


def test_metadata_is_filled_in(half: Exported) -> None:
    package = open_package(half.package("unet"))
    notes = package.spec.description.metadata
    assert notes.author and notes.license and notes.versionString and "unet" in notes.shortDescription
    ports = [*package.spec.description.input, *package.spec.description.output]
    assert all(port.shortDescription for port in ports)
    assert package.metadata["exporter.attention"] == "split_einsum"


def test_resources_hold_what_linux_can_make(half: Exported) -> None:
    folder = half.root / "Resources"
    assert {p.name for p in folder.iterdir()} >= {"vocab.json", "merges.txt", "compile.sh"}
    tokens = json.loads((folder / "vocab.json").read_text())
    assert len(tokens) == 514
    script = (folder / "compile.sh").read_text()
    command = half.records["unet"].details["compiled"]["command"]
    assert command in script and half.records["unet"].details["compiled"]["verdict"] == "INCONCLUSIVE"
    assert (
        "mv Resources/Stable_Diffusion_version_tiny-sd_vae_decoder.mlmodelc Resources/VAEDecoder.mlmodelc"
        in script
    )
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0


def test_only_one_picture_at_a_time() -> None:
    with pytest.raises(ValidationError, match="one picture at a time"):
        CoremlOptions(static=(2, 64, 64))
    with pytest.raises(ValidationError, match="deployment_target"):
        CoremlOptions(deployment_target="iOS12")  # type: ignore[arg-type]


def test_a_static_size_is_the_package_s_size(half: Exported) -> None:
    size = export_size(half.components["unet"], CoremlOptions(static=(1, 128, 64)))
    assert (size.batch, size.height, size.width) == (2, 128, 64)


def test_a_component_that_apple_does_not_know_is_refused(half: Exported) -> None:
    import dataclasses

    from exporter.targets.coreml.layout import layout_of

    other = dataclasses.replace(half.components["unet"], name="prior")
    with pytest.raises(UnsupportedError, match="prior"):
        layout_of(other, other.native, "float16")


def test_an_operator_without_a_route_is_refused() -> None:
    from exporter.targets.coreml.frontend import convert
    from exporter.targets.coreml.layout import Feature as Named
    from exporter.targets.coreml.layout import Layout

    class Determinant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    program = torch.export.export(Determinant(), (torch.eye(3),)).run_decompositions({})
    layout = Layout((Named("x", (3, 3), "float32"),), (Named("y", (), "float32"),))
    with pytest.raises(UnsupportedError, match=r"cannot convert this for iOS16: .*det"):
        convert(program, layout, CoremlOptions(dtype="float32"))


def test_attention_that_the_split_form_would_change_is_refused() -> None:
    from diffusers.models.attention_processor import Attention

    from exporter.targets.coreml.attention import SplitProcessor

    normed = Attention(8, heads=2, dim_head=4, norm_num_groups=2)
    normed.set_processor(SplitProcessor(None))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="group_norm"):
        normed(torch.zeros(1, 4, 8))
    plain_one = Attention(8, heads=2, dim_head=4)
    plain_one.set_processor(SplitProcessor(None))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="a mask"):
        plain_one(torch.zeros(1, 4, 8), attention_mask=torch.zeros(2, 1, 4))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("flux", "those know no t"),
    ],
)
def test_what_apples_runners_get_no_model_for_is_refused_before_any_work(
    family: str, why: str, tmp_path: Path
) -> None:
    source = str(make(family, tmp_path / family))
    with pytest.raises(UnsupportedError, match=why) as error:
        make_plan(source, "coreml", tmp_path / "out")
    assert "--to onnx" in str(error.value.hint)
    assert not (tmp_path / "out").exists()
    make_plan(source, "coreml", tmp_path / "out", components=["vae_decoder"])
