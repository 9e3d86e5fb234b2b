"""A T2I-Adapter and the UNet that takes its features are the library's own; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.architectures import Size, components_of
from exporter.checkpoints import resolve
from exporter.errors import CheckpointError, UnsupportedError
from exporter.pipeline import from_checkpoint, paint
from exporter.targets.coreml.layout import check_known
from tests.families import make
from tests.test_tasks import drawing

SIZE = Size(2, 96, 64, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("t2i")
    return {family: make(family, root / family) for family in ("t2i_adapter", "sdxl_t2i_adapter")}


@pytest.mark.parametrize("family", ["t2i_adapter", "sdxl_t2i_adapter"])
def test_both_are_the_librarys_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    from diffusers import T2IAdapter, UNet2DConditionModel

    parts = {c.name: c for c in components_of(resolve(folders[family]))}
    given = parts["adapter"].example_inputs(SIZE, seed=2)
    with torch.no_grad():
        theirs = T2IAdapter.from_pretrained(folders[family] / "adapter")(given["control_image"])
        mine = parts["adapter"].reference_module()(**given)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert [tuple(m.shape) for m in mine] == [s.shape(SIZE) for s in parts["adapter"].outputs]

    inputs = parts["unet"].example_inputs(SIZE, seed=2)
    features = {name: inputs.pop(name) for name in list(inputs) if name.startswith("down_intrablock")}
    added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
    assert [tuple(f.shape) for f in features.values()] == [tuple(m.shape) for m in mine]
    unet = UNet2DConditionModel.from_pretrained(folders[family] / "unet")
    with torch.no_grad():
        # Cloned: diffusers' blocks add what follows to the tensors they are given.
        given_features: Any = [value.clone() for value in features.values()]
        expected = unet(
            **inputs, added_cond_kwargs=added, down_intrablock_additional_residuals=given_features,
            return_dict=False,
        )[0]  # fmt: skip
        module = parts["unet"].reference_module()
        assert torch.equal(module(**inputs, **added, **features)[0], expected)
        for name in features:
            other = features | {name: features[name] + 1}
            assert not torch.equal(module(**inputs, **added, **other)[0], expected), name


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("adapter/config.json", {"channels": [32, 32]}, r"gives features of .* \(32, 2\)\], the UNet takes"),
        ("adapter/config.json", {"downscale_factor": 16}, "made for another model"),
        ("adapter/config.json", {"adapter_type": "full_adapter_xl"}, "made for another model"),
        ("adapter/config.json", {"adapter_type": "light_adapter", "channels": [32, 48]}, "another model"),
        ("model_index.json", {"adapter": [None, None]}, "without a adapter"),
        ("model_index.json", {"adapter": ["diffusers", "MultiAdapter"]}, "adapter is a MultiAdapter; "),
    ],
)
def test_one_that_does_not_fit(
    folders: dict[str, Path], tmp_path: Path, file: str, values: dict[str, object], said: str
) -> None:
    copy = Path(shutil.copytree(folders["t2i_adapter"], tmp_path / "copy"))
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | values))
    with pytest.raises(CheckpointError, match=said):
        components_of(resolve(copy))


def test_a_light_one_fits(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["t2i_adapter"], tmp_path / "copy"))
    config = json.loads((copy / "adapter/config.json").read_text())
    unet = json.loads((copy / "unet/config.json").read_text())
    light = config | {"adapter_type": "light_adapter", "channels": [64]}
    (copy / "adapter/config.json").write_text(json.dumps(light))
    (copy / "unet/config.json").write_text(json.dumps(unet | {"block_out_channels": [64, 64]}))
    parts = {c.name: c for c in components_of(resolve(copy))}
    dims = [spec.dims for spec in parts["adapter"].outputs]
    assert dims == [
        ("batch", 64, "latent_height", "latent_width"), ("batch", 64, "latent_height_2", "latent_width_2"),
    ]  # fmt: skip
    module = parts["adapter"].construct()
    given = parts["adapter"].example_inputs(SIZE)["control_image"]
    assert [tuple(f.shape) for f in module(given)] == [s.shape(SIZE) for s in parts["adapter"].outputs]


def test_core_ml_refuses_both(folders: dict[str, Path]) -> None:
    parts = {c.name: c for c in components_of(resolve(folders["t2i_adapter"]))}
    for name in ("adapter", "unet"):
        with pytest.raises(UnsupportedError, match="Apple's runners"):
            check_known(parts[name])


def test_the_scale_counts(folders: dict[str, Path]) -> None:
    pipeline = from_checkpoint(str(folders["t2i_adapter"]))
    pictures = [
        paint(pipeline, ["a"], steps=1, control=[drawing()], control_scale=scale)[0].tobytes()
        for scale in ((), (1.0,), (0.2,))
    ]
    assert pictures[0] == pictures[1] != pictures[2]
