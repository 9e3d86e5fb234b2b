"""Sizes and targets at their limits, and what a package says about itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from exporter.artifact import ComponentRecord, Manifest, SourceRecord
from exporter.errors import UnsupportedError, UsageError
from exporter.planning import make_plan
from exporter.targets.coreml import CoremlOptions, CoremlTarget
from exporter.targets.coreml.attention import CHUNK, split_attention
from exporter.targets.coreml.export import compile_command
from exporter.targets.coreml.layout import DESCRIPTIONS, layout_of
from exporter.targets.coreml.notes import describe
from exporter.targets.coreml.package import open_package
from tests.targets.coreml.conftest import NAMES, Exported, export


@pytest.mark.parametrize("tokens", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 1100])
def test_pieces_of_512_lose_no_query(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(1, 8, 1, n, generator=generator) for n in (tokens, 77, 77))
    whole = split_attention(query, key, value, 2, 0.5, None)
    pieces = split_attention(query, key, value, 2, 0.5, CHUNK)
    assert pieces.shape == (1, 8, 1, tokens) and torch.allclose(pieces, whole, atol=1e-6)


def test_a_unet_of_a_size_that_512_does_not_divide(tiny: Path, tmp_path: Path) -> None:
    """26 × 26 latents are 676 queries: 512 and 164. Apple's own version 2 would leave the 164 out."""
    made = export(tiny, tmp_path, ("unet",), attention="split_einsum_v2", static="1x208x208")
    unet = made.components["unet"]
    size = unet.native.__class__(2, 208, 208, unet.native.sequence, unet.native.factor)
    inputs = unet.example_inputs(size, 4)
    with torch.no_grad():
        (truth,) = unet.reference_module()(**inputs)
    with made.open("unet") as runner:
        (found,) = runner.run({n: t.numpy() for n, t in inputs.items()}).values()
    assert found.shape == (2, 4, 26, 26)
    assert np.linalg.norm(found - truth.numpy()) < 2e-3 * float(truth.norm())


def test_a_size_that_the_autoencoder_cannot_serve_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 8"):
        make_plan(str(tiny), "coreml", tmp_path / "x", options={"static": "1x100x100"}, verify=False)


def test_wishes_reach_the_user_as_one_sentence(tiny: Path, tmp_path: Path) -> None:
    for options, why in (
        ({"palettize": ("3",)}, r"--palettize of target coreml: a palette has 1, 2, 4, 6, 8 bits"),
        ({"quantize": ("unet=int4",)}, r"int4 needs --deployment-target iOS18"),
        ({"deployment_target": "iOS14"}, r"--deployment-target of target coreml"),
    ):
        with pytest.raises(UsageError, match=why):
            make_plan(
                str(tiny), "coreml", tmp_path / "x", options=cast("dict[str, Any]", options), verify=False
            )


def test_an_operator_that_the_target_is_too_old_for_is_refused() -> None:
    """A state (a buffer that the program writes) came with iOS 18."""
    from exporter.targets.coreml.frontend import convert
    from exporter.targets.coreml.layout import Feature, Layout

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(x)
            return self.count * 2

    program = torch.export.export(Counter(), (torch.ones(4),)).run_decompositions({})
    layout = Layout((Feature("x", (4,), "float32"),), (Feature("y", (4,), "float32"),))
    with pytest.raises(UnsupportedError, match="cannot convert this for iOS16") as caught:
        convert(program, layout, CoremlOptions(dtype="float32"))
    assert "--deployment-target" in str(caught.value.hint)


@pytest.mark.parametrize("name", NAMES)
def test_a_package_says_whose_and_what_it_is(half: Exported, name: str) -> None:
    package = open_package(half.package(name))
    description = package.spec.description
    notes = description.metadata
    assert "tiny-sd" in notes.author and "exporter" in notes.author
    assert "tiny-sd" in notes.license and "model card" in notes.license
    assert notes.versionString and name in notes.shortDescription and "iOS16" in notes.shortDescription
    for port in (*description.input, *description.output):
        assert port.shortDescription == DESCRIPTIONS[port.name]
    assert package.metadata["exporter.version"] and package.metadata["com.github.apple.coremltools.version"]
    assert package.metadata["com.github.apple.coremltools.source"].startswith("torch==")
    assert package.metadata["exporter.component"] == name
    assert "conversion_date" not in " ".join(package.metadata)


def test_the_source_s_revision_is_the_package_s_version(half: Exported) -> None:
    vae = half.components["vae_decoder"]
    checkpoint = SimpleNamespace(source="org/model", revision="0123abc")
    component: Any = SimpleNamespace(
        name="vae_decoder", class_name="AutoencoderKL", checkpoint=checkpoint, outputs=vae.outputs
    )
    model: Any = SimpleNamespace(user_defined_metadata={}, input_description={}, output_description={})
    describe(model, component, layout_of(vae, vae.native, "float16"), CoremlOptions())
    assert model.version == "0123abc" and model.user_defined_metadata["exporter.revision"] == "0123abc"
    assert "org/model" in model.author and "org/model" in model.short_description


def test_what_a_mac_must_do_is_said(half: Exported) -> None:
    """The command that compiles each package is recorded, in the script, and among what `convert` prints."""
    manifest = Manifest(
        target="coreml",
        source=SourceRecord(source="tiny-sd", pipeline_class="StableDiffusionPipeline"),
        components=[cast("ComponentRecord", half.records[name]) for name in NAMES],
    )
    lines = CoremlTarget().afterwards(manifest)
    script = (half.root / "Resources/compile.sh").read_text()
    assert "sh Resources/compile.sh" in lines[0]
    for name in NAMES:
        command = compile_command(half.package(name).name)
        assert command in lines and command in script
        assert half.records[name].details["compiled"] == {"verdict": "INCONCLUSIVE", "command": command}
