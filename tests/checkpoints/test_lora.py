"""LoRAs: every style of keys gives the same weights, which are the right ones, and bad files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exporter.architectures import components_of
from exporter.checkpoints import open_source, resolve
from exporter.checkpoints.overlays import lora
from exporter.checkpoints.overlays.lora_keys import Layers, role
from exporter.errors import CheckpointError, UsageError
from exporter.parity.twin import round_again
from tests import original_layout
from tests.checkpoints import conftest as loras
from tests.checkpoints.conftest import ATTENTION, Judge, pairs, write


def expected(tiny: Path, factor: float) -> dict[str, dict[str, torch.Tensor]]:
    """The merged weights, computed element by element from the definition."""
    result: dict[str, dict[str, torch.Tensor]] = {}
    base = resolve(tiny)
    for folder, layers in pairs().items():
        result[folder] = {}
        for name, (down, up) in layers.items():
            weight = base.stored(folder)[f"{name}.weight"].load().double()
            delta = torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
            result[folder][name] = (weight + factor * delta).float()
    return result


@pytest.mark.parametrize("style", ["kohya", "diffusers_new", "diffusers_old", "peft"])
def test_every_style_is_the_same_lora(tiny: Path, tmp_path: Path, style: str) -> None:
    path = write(tmp_path / "style.safetensors", getattr(loras, style)(pairs()))
    alpha = 2.0 if style == "kohya" else 4.0  # unstated means the rank
    merged = open_source(tiny, loras=[f"{path}:0.5"])
    for folder, layers in expected(tiny, 0.5 * alpha / 4).items():
        stored, untouched = merged.stored(folder), merged.base.stored(folder)
        for name, weight in layers.items():
            assert torch.equal(stored[f"{name}.weight"].load(), weight), (folder, name)
        changed = {f"{name}.weight" for name in layers}
        assert {n for n, t in untouched.items() if stored[n] is not t} == changed
    assert merged.notes == ()
    assert merged.overlays[0].scale == 0.5 and merged.overlays[0].details == {"layers": 6}
    assert merged.overlays[0].files[0].path == "style.safetensors"


def test_kohyas_keys_agree_with_diffusers_own_reading(tiny: Path) -> None:
    """diffusers renames the file's keys into its older style; both names must mean one layer to us."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    given = loras.kohya(pairs())
    layers = Layers(resolve(tiny))
    mine = {}
    for key, tensor in given.items():
        name, part = role(key) or ("", "")
        mine[tensor.data_ptr()] = (layers.find(name), part)
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(dict(given))
    assert len(theirs) == 12
    for key, tensor in theirs.items():
        name, part = role(key) or ("", "")
        assert (layers.find(name), part) == mine[tensor.data_ptr()], key


def test_kohyas_names_of_the_original_blocks(tiny: Path, tmp_path: Path) -> None:
    """SDXL's LoRAs count the blocks through, as the original does."""
    down, up = pairs()["unet"][f"{ATTENTION}.to_q"]
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    conv = pairs()["unet"]["up_blocks.1.resnets.0.conv1"]
    state = {
        f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
        "lora_unet_output_blocks_2_0_in_layers_2.lora_down.weight": conv[0],
        "lora_unet_output_blocks_2_0_in_layers_2.lora_up.weight": conv[1],
    }  # fmt: skip
    merged = open_source(tiny, loras=[write(tmp_path / "x.safetensors", state)])
    for name in (f"{ATTENTION}.to_q", "up_blocks.1.resnets.0.conv1"):
        assert torch.equal(merged.stored("unet")[f"{name}.weight"].load(), expected(tiny, 1)["unet"][name])


@pytest.mark.parametrize("where", ["header", "adapter_config.json"])
def test_alpha_that_peft_states_counts(tiny: Path, tmp_path: Path, where: str) -> None:
    name = f"{ATTENTION}.to_q"
    if where == "header":
        stated = {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"proj_in": 1}}
        metadata = {"lora_adapter_metadata": json.dumps(stated)}
        path = write(tmp_path / "x.safetensors", loras.diffusers_new(pairs()), metadata)
        factor = 2.0
    else:
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"lora_alpha": 6, "r": 4, "use_rslora": True, "alpha_pattern": {"proj_in": 0.5}})
        )
        path = write(tmp_path / "adapter_model.safetensors", loras.peft(pairs()))
        factor = 3.0  # 6 / sqrt(4)
    merged = open_source(tiny, loras=[path]).stored("unet")
    assert torch.equal(merged[f"{name}.weight"].load(), expected(tiny, factor)["unet"][name])
    proj = "mid_block.attentions.0.proj_in"
    assert torch.equal(merged[f"{proj}.weight"].load(), expected(tiny, 0.25)["unet"][proj])


def test_two_loras_add_up(tiny: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", loras.diffusers_new(pairs()))
    second = write(tmp_path / "b:1.safetensors", loras.diffusers_new(pairs()))
    merged = open_source(tiny, loras=[f"{first}:0.25", second])
    name = f"{ATTENTION}.to_q"
    got = merged.stored("unet")[f"{name}.weight"].load()
    assert torch.allclose(got, expected(tiny, 1.25)["unet"][name], rtol=0, atol=1e-7)
    assert [r.scale for r in merged.overlays] == [0.25, 1.0]


def test_the_reference_keeps_its_weights_and_agrees(tiny: Path, tmp_path: Path, judge_export: Judge) -> None:
    path = write(tmp_path / "x.safetensors", loras.kohya(pairs()))
    merged = open_source(tiny, loras=[path])
    base = resolve(tiny)
    name = f"{ATTENTION}.to_q.weight"
    assert torch.equal(merged.reference_stored("unet")[name].load(), base.stored("unet")[name].load())
    report = judge_export(merged, "text_encoder", "unet")
    assert report.verdict == "PASS", report.summary
    assert report.source.overlays[0].scale == 1.0


@pytest.mark.parametrize(
    ("component", "fault"), [("unet", "scale"), ("text_encoder", "left out")], ids=["scale", "left-out"]
)
def test_a_wrong_fusion_is_found(
    tiny: Path,
    tmp_path: Path,
    judge_export: Judge,
    monkeypatch: pytest.MonkeyPatch,
    component: str,
    fault: str,
) -> None:
    """The reference adds the branches by itself, so a fault of the fusing code is a FAIL."""
    path = write(tmp_path / "x.safetensors", loras.kohya(pairs()))
    merged = open_source(tiny, loras=[path])
    real = lora.fused
    if fault == "scale":
        from dataclasses import replace

        monkeypatch.setattr(
            lora, "fused", lambda w, bs: real(w, [replace(b, scale=b.scale * 1.01) for b in bs])
        )
    else:
        monkeypatch.setattr(lora, "fused", lambda w, bs: w)
    report = judge_export(merged, component)
    assert report.verdict == "FAIL", report.summary


def test_the_twin_knows_that_a_fused_weight_was_rounded(tiny: Path, tmp_path: Path) -> None:
    """Its pictures, which make the limit of the artifact's, have that error too, and no larger one."""
    merged = open_source(tiny, loras=[write(tmp_path / "x.safetensors", loras.kohya(pairs()))])
    assert merged.rounded("unet") == set(loras.LAYERS["unet"]) and merged.rounded("vae") == frozenset()
    component = next(c for c in components_of(merged) if c.name == "unet")
    inner = component.reference_module().get_submodule("inner")
    before = {name: p.clone() for name, p in inner.named_parameters()}
    round_again(inner, merged.rounded("unet"), 2.0**-24, torch.Generator().manual_seed(0))
    changed = {name for name, p in inner.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{path}.weight" for path in loras.LAYERS["unet"]}
    for name in changed:
        now, then = inner.get_parameter(name).double(), before[name].double()
        assert bool(((now - then).abs() <= 2.0**-23 * then.abs()).all()), "at most the next number"


def test_the_extra_rounding_widens_no_limit_by_much(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA over every attention of the UNet: what could hide behind it is no more than the twin moves
    anyway, in the picture and after each step."""
    from exporter.parity import twin
    from exporter.parity.painting import Plan, paint
    from exporter.parity.whole import divergence

    components = {c.name: c for c in components_of(resolve(tiny))}
    inner = components["unet"].meta_module().get_submodule("inner")
    names = [n for n, m in inner.named_modules() if type(m).__name__ == "Linear" and ".attn" in n]
    layers = {n: tuple(inner.get_parameter(f"{n}.weight").shape) for n in names}
    monkeypatch.setattr(loras, "LAYERS", {"unet": layers, "text_encoder": {}})
    merged = open_source(tiny, loras=[write(tmp_path / "x.safetensors", loras.kohya(pairs()))])
    assert merged.rounded("unet") == set(names)
    parts = components_of(merged)
    plan = Plan(("a red star",), 3, 0, 64, 64)
    named = {c.name: c for c in parts}
    truth = paint(merged, parts, plan, twin.reference_backend(named), lambda text: None)

    def moved(precision: tuple[str, str]) -> list[float]:
        backend = twin.twin_backend(named, {"unet": precision}, 0)
        painted = paint(merged, parts, plan, backend, lambda text: None)
        pairs = [
            *zip(painted.latents[0], truth.latents[0], strict=True),
            (painted.images[0], truth.images[0]),
        ]
        return [float(divergence(a, b) or 0) for a, b in pairs]

    for precision in (("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")):
        with_it = moved(precision)
        with monkeypatch.context() as without:
            without.setattr(twin, "round_again", lambda *given: None)
            alone = moved(precision)
        assert all(0 < a <= 2 * b for a, b in zip(with_it, alone, strict=True)), (precision, with_it, alone)


def test_keys_without_a_layer_are_named_and_left_out(tiny: Path, tmp_path: Path) -> None:
    state = loras.kohya(pairs())
    state["lora_unet_no_such_layer.lora_down.weight"] = torch.zeros(4, 32)
    merged = open_source(tiny, loras=[write(tmp_path / "x.safetensors", state)])
    assert len(merged.notes) == 1
    assert "1 of 19 tensors match no layer" in merged.notes[0]
    assert "lora_unet_no_such_layer.lora_down.weight" in merged.notes[0]


QUERY = "lora_unet_" + f"{ATTENTION}.to_q".replace(".", "_")
DOWN, UP = f"{QUERY}.lora_down.weight", f"{QUERY}.lora_up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_x.lora_down.weight": torch.ones(1, 2)}, "no key that matches a layer .*: lora_unet_x"),
        ({}, "no key that matches a layer of the model: it is empty"),
        ({DOWN: torch.ones(4, 32)}, "there is only the down part"),
        ({UP: torch.ones(32, 4)}, "there is only the up part"),
        (
            {DOWN: torch.ones(4, 48), UP: torch.ones(48, 4)},
            r"shapes \[4, 48\] and \[48, 4\], which do not fit a weight of shape \[32, 32\]",
        ),
        (
            {DOWN: torch.ones(4, 32), UP: torch.ones(32, 8)},
            "do not fit",
        ),
        (
            {DOWN: torch.ones(4, 32, 3, 3), UP: torch.ones(32, 4)},
            "do not fit",
        ),
        (
            {DOWN: torch.full((4, 32), torch.nan), UP: torch.ones(32, 4)},
            "its down matrix holds NaN or Inf",
        ),
        (
            {
                DOWN: torch.ones(4, 32), UP: torch.ones(32, 4),
                f"{QUERY}.alpha": torch.tensor(torch.inf),
            },
            "its alpha is inf",
        ),
        (
            {
                DOWN: torch.ones(4, 32), UP: torch.ones(32, 4),
                f"{QUERY}.alpha": torch.ones(2),
            },
            "alpha is not one number",
        ),
        ({f"{QUERY}.hada_w1_a": torch.ones(4, 4)}, "but a LoHa"),
        ({f"{QUERY}.lokr_w1": torch.ones(4, 4)}, "but a LoKr"),
        ({f"{QUERY}.dora_scale": torch.ones(4, 4)}, "but a DoRA"),
        ({f"{QUERY}.oft_blocks": torch.ones(4, 4)}, "but a OFT"),
        ({f"{QUERY}.lora_mid.weight": torch.ones(4, 4)}, "middle matrix"),
        ({f"{QUERY}.diff": torch.ones(4, 4)}, "full difference"),
    ],
)  # fmt: skip
def test_bad_loras_have_their_sentence(
    tiny: Path, tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_source(tiny, loras=[write(tmp_path / "x.safetensors", change)])


def test_one_layer_under_two_names(tiny: Path, tmp_path: Path) -> None:
    state = loras.kohya(pairs()) | loras.diffusers_new(pairs())
    with pytest.raises(CheckpointError, match="twice"):
        open_source(tiny, loras=[write(tmp_path / "x.safetensors", state)])


def test_files_and_scales_that_are_none(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"The LoRA nowhere\.safetensors is not there"):
        open_source(tiny, loras=["nowhere.safetensors:0.5"])
    with pytest.raises(CheckpointError, match="is a folder, not a file"):
        open_source(tiny, loras=[str(tiny)])
    for scale in ("nan", "inf"):
        with pytest.raises(UsageError, match="finite number"):
            open_source(tiny, loras=[f"x.safetensors:{scale}"])
    pickle = tmp_path / "x.bin"
    torch.save(loras.kohya(pairs()), pickle)
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        open_source(tiny, loras=[str(pickle)], allow_pickle=True)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 30)
    with pytest.raises(CheckpointError, match="not a usable safetensors file"):
        open_source(tiny, loras=[str(broken)])


def test_a_lora_over_a_single_file(tiny: Path, tmp_path: Path, judge_export: Judge) -> None:
    """Mapping and fusing together: the text encoder of a single file."""
    single = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "tiny.safetensors")
    path = write(tmp_path / "x.safetensors", loras.kohya(pairs()))
    merged = open_source(single, config=str(tiny), loras=[path])
    name = "text_model.encoder.layers.1.self_attn.q_proj"
    assert torch.equal(
        merged.stored("text_encoder")[f"{name}.weight"].load(), expected(tiny, 0.5)["text_encoder"][name]
    )
    report = judge_export(merged, "text_encoder")
    assert report.verdict == "PASS", report.summary
