"""ControlNets laid over a checkpoint: as diffusers wants them, and by the command line from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exporter.conversion import convert, make_plan
from exporter.pipeline import from_checkpoint, paint
from tests.cli.runner import invoke
from tests.families import control
from tests.test_tasks import drawing, picture


@pytest.fixture(scope="module")
def nets(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_pretrained(tiny / "unet")
    folders = [tmp_path_factory.mktemp("nets") / name for name in ("canny", "depth")]
    for folder in folders:
        control(unet).save_pretrained(folder)
    return list(map(str, folders))


@pytest.mark.interop
def test_diffusers_opens_what_was_laid_together(tiny: Path, nets: list[str], tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, MultiControlNetModel, StableDiffusionControlNetPipeline

    out = tmp_path / "artifact"
    convert(make_plan(str(tiny), "safetensors", out, {}, verify=False, intake={"controlnets": nets}))
    opened = DiffusionPipeline.from_pretrained(out)
    assert type(opened) is StableDiffusionControlNetPipeline
    assert isinstance(opened.controlnet, MultiControlNetModel) and len(opened.controlnet.nets) == 2
    opened.set_progress_bar_config(disable=True)
    settings = {"steps": 2, "control": [drawing(), picture()], "control_scale": [0.8, 0.4]}
    theirs = paint(opened, ["a star"], **settings)
    mine = paint(from_checkpoint(str(tiny), controlnets=nets), ["a star"], **settings)
    assert np.array_equal(np.asarray(theirs[0]), np.asarray(mine[0]))


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnx", "openvino", "coreml"])
def test_the_command_line_from_end_to_end(tiny: Path, nets: list[str], tmp_path: Path, target: str) -> None:
    out, edges = tmp_path / "artifact", tmp_path / "edges.png"
    drawing().save(edges)
    more = [word for net in nets for word in ("--controlnet", net)]
    made = invoke("convert", tiny, "--to", target, "-o", out, *more)
    assert made.code == 0, made
    manifest = json.loads((out / "exporter.json").read_text())
    assert [o["source"] for o in manifest["source"]["overlays"]] == nets
    again = invoke("verify", out)
    assert again.code == 0, again
    ran = invoke("run", out, "a star", "-o", tmp_path / "a.png", "--steps", 2, *["--control", edges] * 2)
    assert ran.code == 0, ran
    assert Image.open(tmp_path / "a.png").size == (64, 64)
    invoke("run", out, "a", "-o", tmp_path / "b.png", "--control", edges).failed(2, "pictures given: 1")
    invoke("run", out, "a", "-o", tmp_path / "b.png", *more).failed(2, "cannot be laid over it any more")
