"""`run --ip-adapter-image`: the picture is diffusers' own, by the reference and stand-ins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from exporter.architectures import components_of
from exporter.checkpoints import open_source
from exporter.errors import ArtifactError, UsageError
from exporter.pipeline import assemble, from_checkpoint, paint
from tests import ip_adapters
from tests.cli.runner import invoke
from tests.families import control, make
from tests.test_pipeline import TorchRunner
from tests.test_tasks import drawing, mask, picture

KINDS = {"sd": "plain", "sd plus": "plus", "sdxl": "plain", "sdxl plus": "plus", "lcm": "plain"}


@pytest.fixture(scope="module")
def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A checkpoint and an adapter for it, by a name of `KINDS`."""
    root = tmp_path_factory.mktemp("look")

    def get(name: str) -> tuple[Path, Path]:
        family = name.split()[0]
        base = tiny if family == "sd" else root / family
        if not base.exists():
            make(family, base)
        folder = root / f"adapter {name}"
        if not folder.exists():
            ip_adapters.write(base / "unet", folder, KINDS[name])
        return base, folder

    return get


def stand_ins(base: Path, adapter: Path, root: Path, without: str = "") -> Any:
    """A pipeline of an artifact whose parts compute in PyTorch."""
    merged = open_source(base, ip_adapters=[str(adapter)])
    shutil.copytree(base, root, dirs_exist_ok=True)
    shutil.copytree(base / "vae", root / "vae_decoder")
    shutil.copytree(merged.root, root, dirs_exist_ok=True)
    runners = {c.name: TorchRunner(c) for c in components_of(merged) if c.name != without}
    return assemble(root, merged.pipeline_class, runners)


def asked(pipeline: Any, scale: float, **given: Any) -> np.ndarray:
    """What diffusers paints when it is called as its documentation says."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.set_ip_adapter_scale(scale)
    made = pipeline(
        "a red star", num_inference_steps=3, guidance_scale=5.0, height=64, width=96,
        generator=torch.Generator().manual_seed(3), ip_adapter_image=picture(80, 60), **given,
    )  # fmt: skip
    return np.asarray(made.images[0])


@pytest.mark.parametrize(
    "name",
    ["sd", "sdxl plus", *(pytest.param(n, marks=pytest.mark.full) for n in ("sd plus", "sdxl", "lcm"))],
)
def test_the_picture_is_that_of_diffusers(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str
) -> None:
    from diffusers import DiffusionPipeline

    base, adapter = pair(name)
    theirs = DiffusionPipeline.from_pretrained(base, **({"add_watermarker": False} if "xl" in name else {}))
    theirs.load_ip_adapter(str(adapter), subfolder="", weight_name=ip_adapters.WEIGHTS)
    expected = asked(theirs, 0.6)
    assert not np.array_equal(expected, asked(theirs, 0.0)), "the picture counts"
    settings = {"seed": 3, "steps": 3, "guidance": 5.0, "height": 64, "width": 96}
    settings |= {"ip_adapter_image": picture(80, 60), "ip_adapter_scale": 0.6}
    reference = from_checkpoint(str(base), ip_adapters=[str(adapter)])
    exported = stand_ins(base, adapter, tmp_path / "artifact")
    for pipeline in (reference, exported):
        (mine,) = paint(pipeline, ["a red star"], **settings)
        assert np.array_equal(np.asarray(mine), expected)
    assert np.array_equal(asked(exported, 0.6), expected), "called by hand"


def test_other_tasks_look_too(pair: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    exported = stand_ins(*pair("sd"), tmp_path / "artifact")
    for task in ({"image": picture(), "strength": 0.5}, {"image": picture(), "mask": mask()}):
        one, other = (
            np.asarray(paint(exported, ["a"], steps=2, ip_adapter_image=seen, **task)[0])
            for seen in (picture(), Image.new("RGB", (64, 64), "red"))
        )
        assert not np.array_equal(one, other)
    several = paint(exported, ["a", "b"], steps=1, seed=[1, 2], together=2, ip_adapter_image=picture())
    alone = paint(exported, ["b"], steps=1, seed=2, ip_adapter_image=picture())
    assert np.abs(np.asarray(several[1]).astype(int) - np.asarray(alone[0])).max() <= 1


def test_with_a_controlnet_and_a_lora(pair: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel

    base, adapter = pair("sd")
    torch.manual_seed(3)
    control(UNet2DConditionModel.from_pretrained(base / "unet")).save_pretrained(tmp_path / "net")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    parts = {"lora_A": torch.randn(4, 32), "lora_B": torch.randn(32, 4)}
    save_file(
        {f"{layer}.{part}.weight": value for part, value in parts.items()}, tmp_path / "style.safetensors"
    )
    overlays = {"ip_adapters": [str(adapter)], "controlnets": [str(tmp_path / "net")]}

    net = ControlNetModel.from_pretrained(tmp_path / "net")
    theirs = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=net)
    theirs.load_ip_adapter(str(adapter), subfolder="", weight_name=ip_adapters.WEIGHTS)
    expected = asked(theirs, 0.6, image=drawing(96, 64), controlnet_conditioning_scale=0.7)
    settings = {"seed": 3, "steps": 3, "guidance": 5.0, "control": [drawing(96, 64)], "control_scale": [0.7]}
    settings |= {"ip_adapter_image": picture(80, 60), "ip_adapter_scale": 0.6}
    (mine,) = paint(from_checkpoint(str(base), **overlays), ["a red star"], **settings)
    assert np.array_equal(np.asarray(mine), expected)

    merged = open_source(base, **overlays, loras=[str(tmp_path / "style.safetensors")])
    unet = next(c for c in components_of(merged) if c.name == "unet")
    given = unet.example_inputs(unet.native)
    plain = next(c for c in components_of(open_source(base, **overlays)) if c.name == "unet")
    fused, beside, without = (module.reference_module()(**given)[0] for module in (unet.fused(), unet, plain))
    assert torch.allclose(fused, beside, atol=1e-5) and not torch.allclose(fused, without, atol=1e-3)


def test_what_cannot_be_done(pair: Callable[[str], tuple[Path, Path]], tiny: Path, tmp_path: Path) -> None:
    exported = stand_ins(*pair("sd"), tmp_path / "artifact")
    with pytest.raises(UsageError, match="looks at a picture") as error:
        paint(exported, ["a"], steps=1)
    assert "--ip-adapter-image" in str(error.value.hint)
    with pytest.raises(UsageError, match="give its pipeline ip_adapter_image"):
        exported("a", num_inference_steps=1)
    with pytest.raises(UsageError, match="one picture for each prompt"):
        exported("a", num_inference_steps=1, ip_adapter_image=[[picture(), picture()]])
    with pytest.raises(UsageError, match="has no IP-Adapter"):
        paint(from_checkpoint(str(tiny)), ["a"], steps=1, ip_adapter_image=picture())
    with pytest.raises(ArtifactError, match="no image_encoder, so it cannot look"):
        stand_ins(*pair("sd"), tmp_path / "other", without="image_encoder")


def test_the_command_line(pair: Callable[[str], tuple[Path, Path]], tiny: Path, tmp_path: Path) -> None:
    base, adapter = pair("sd")
    picture().save(tmp_path / "look.png")
    out, look = tmp_path / "out.png", tmp_path / "look.png"
    line = (
        "run",
        base,
        "a star",
        "-o",
        out,
        "--steps",
        1,
        "--ip-adapter",
        f"{adapter}:{ip_adapters.WEIGHTS}",
    )
    ran = invoke(*line, "--ip-adapter-image", look, "--ip-adapter-scale", 0.5, "--json")
    assert ran.code == 0, ran
    assert ran.document["ip_adapter_scale"] == 0.5 and Image.open(out).size == (64, 64)
    invoke(*line).failed(2, "looks at a picture", "--ip-adapter-image FILE")
    gone = tmp_path / "gone.png"
    invoke(*line, "--ip-adapter-image", gone).failed(3, "gone.png cannot be read as a picture")
    invoke("run", tiny, "a", "-o", out, "--ip-adapter-image", look).failed(2, "has no IP-Adapter")
    invoke("run", tiny, "a", "-o", out, "--ip-adapter", tmp_path / "no").failed(3, "is not there")
    shown = invoke("convert", base, "--to", "onnx", "--ip-adapter", adapter, "--dry-run", "--json")
    assert shown.code == 0, shown
    assert [part["name"] for part in json.loads(shown.stdout)["components"]][1] == "image_encoder"


@pytest.mark.full
@pytest.mark.parametrize("name", ["sd", "sd plus", "sdxl"])
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_from_end_to_end(
    pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, target: str, name: str
) -> None:
    base, adapter = pair(name)
    out, look = tmp_path / "artifact", tmp_path / "look.png"
    picture(80, 60).save(look)
    made = invoke("convert", base, "--to", target, "-o", out, "--ip-adapter", adapter)
    assert made.code == 0, made
    again = invoke("verify", out)
    assert again.code == 0, again
    line = ("a red star", "--steps", 3, "--ip-adapter-image", look, "--ip-adapter-scale", 0.6)
    for source, more, file in ((out, (), "a.png"), (base, ("--ip-adapter", adapter), "b.png")):
        hint = ("--precision-hint", "f32") if source is out else ()
        ran = invoke("run", source, *line, "-o", tmp_path / file, *more, *hint)
        assert ran.code == 0, ran
    mine, theirs = (np.asarray(Image.open(tmp_path / n)).astype(int) for n in ("a.png", "b.png"))
    assert np.abs(mine - theirs).max() <= 2
    invoke("run", out, "a", "-o", tmp_path / "c.png").failed(2, "looks at a picture")
