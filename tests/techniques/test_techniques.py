"""Every technique that can run here is applied to a real pipeline, does what it says, and can be undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter import pipeline, techniques
from exporter.errors import BackendMissing, UsageError
from exporter.techniques.base import Technique
from tests.techniques.split_over_processes import latents_of, tiny_flux

PROMPT = "a large red star at the left on a blue background"
HERE: dict[str, dict[str, Any]] = {
    "precision": {},
    "channels-last": {},
    "attention-backend": {"backend": "math"},
    "fused-qkv": {},
    "token-merging": {"ratio": 0.3},
    "deep-cache": {"interval": 2},
    "t-gate": {"gate": 3},
    "vae-slicing": {},
    "vae-tiling": {},
    "int8": {"smallest": 32},
    "layerwise-casting": {},
    "trace": {},
}
"""Those for a UNet that need no GPU, with options that show at this size."""
LEAST = {"rounding": 30.0, "lossy": 8.0}
"""dB against the plain picture, after 6 steps of the trained model; one that breaks paints noise (5 dB)."""


@pytest.fixture(scope="module")
def painter() -> Any:
    return pipeline.load("builtin:shapes")


def paint(painter: Any) -> np.ndarray:
    (picture,) = pipeline.paint(painter, [PROMPT], steps=6, guidance=4.0)
    return np.asarray(picture, np.float64)


@pytest.fixture(scope="module")
def plain(painter: Any) -> np.ndarray:
    return paint(painter)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@pytest.mark.parametrize("name", HERE)
def test_it_does_what_it_says_and_is_undone(name: str, painter: Any, plain: np.ndarray) -> None:
    for package in techniques.kind(name).packages:
        pytest.importorskip(package)
    undo = techniques.apply(painter, [{name: HERE[name]}])
    try:
        changed = psnr(paint(painter), plain)
    finally:
        undo()
    effect = techniques.kind(name).effect
    if effect == "exact":
        assert changed > 60
    else:
        assert changed > LEAST[effect]
    if effect == "lossy" and name != "vae-tiling":  # the picture is no larger than a tile
        assert changed < 80, "it changed nothing at all"
    assert psnr(paint(painter), plain) == float("inf"), "undo left something behind"


def test_several_are_applied_in_order_and_undone_together(painter: Any, plain: np.ndarray) -> None:
    given = [{"deep-cache": {"interval": 2}}, "channels-last", {"precision": {"dtype": "bfloat16"}}]
    assert [each.name for each in techniques.parse(given)] == ["precision", "channels-last", "deep-cache"]
    undo = techniques.apply(painter, given)
    try:
        assert painter.unet.dtype == torch.bfloat16
        assert psnr(paint(painter), plain) > LEAST["lossy"]
    finally:
        undo()
    assert painter.unet.dtype == torch.float32
    assert psnr(paint(painter), plain) == float("inf")


def test_after_the_gate_the_unet_runs_on_half_the_batch(painter: Any) -> None:
    rows: list[int] = []
    handle = painter.unet.conv_in.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[0]))
    undo = techniques.apply(painter, [{"t-gate": {"gate": 2}}])
    try:
        paint(painter)
    finally:
        undo()
        handle.remove()
    assert rows == [2, 2, 1, 1, 1, 1]


def test_deep_cache_leaves_the_middle_of_the_unet_alone_in_between(painter: Any) -> None:
    calls: list[int] = []
    inner = painter.unet.mid_block.forward
    painter.unet.mid_block.forward = lambda *a, **k: (calls.append(1), inner(*a, **k))[1]
    try:
        undo = techniques.apply(painter, [{"deep-cache": {"interval": 3}}])
        try:
            paint(painter)
        finally:
            undo()
    finally:
        painter.unet.mid_block.forward = inner
    assert len(calls) == 2


def test_compiling_is_undone(painter: Any) -> None:
    undo = techniques.apply(painter, [{"compile": {"regional": True}}])
    blocks = [m for m in painter.unet.modules() if m._compiled_call_impl is not None]
    assert blocks and {type(b).__name__ for b in blocks} <= set(painter.unet._repeated_blocks)
    undo()
    assert all(m._compiled_call_impl is None for m in painter.unet.modules())


@pytest.mark.parametrize("name", techniques.names())
def test_each_says_what_it_is(name: str) -> None:
    kind = techniques.kind(name)
    assert issubclass(kind, Technique) and kind.name == name
    for text in (kind.does, kind.source, kind.how_much):
        assert len(text) > 10
    assert kind.excludes <= set(techniques.names())
    kind()  # options have defaults


def test_what_excludes_one_is_excluded_by_it() -> None:
    for name in techniques.names():
        for other in techniques.kind(name).excludes:
            with pytest.raises(UsageError, match="cannot be combined"):
                techniques.parse([other, name])


def test_requests_that_make_no_sense(painter: Any) -> None:
    with pytest.raises(UsageError, match="no technique 'deepcache'") as raised:
        techniques.parse(["deepcache"])
    assert raised.value.hint == "Did you mean deep-cache?"
    with pytest.raises(UsageError, match="named twice"):
        techniques.parse(["int8", "int8"])
    with pytest.raises(UsageError, match="interval: input should be greater"):
        techniques.parse([{"deep-cache": {"interval": 0}}])
    with pytest.raises(UsageError, match="works on a transformer"):
        techniques.apply(painter, ["first-block-cache"])
    with pytest.raises(UsageError, match="cannot be carried by the target onnx"):
        techniques.check(["int8"], "onnx", ["unet"], "StableDiffusionPipeline")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="needs a CUDA device, not cpu"):
            techniques.apply(painter, ["tf32"])
        with pytest.raises(BackendMissing, match="none here") as missing:
            techniques.check(["tf32"], "pytorch", ["unet"], "StableDiffusionPipeline")
        assert missing.value.exit_code == 4


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.techniques.base.find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="needs tomesd") as raised:
        techniques.check(["token-merging"], "pytorch", ["unet"], "StableDiffusionPipeline")
    assert raised.value.exit_code == 4 and raised.value.hint == 'pip install "exporter[techniques]"'


def test_the_folder_of_a_gpu_machine_needs_no_exporter_behind_it(tmp_path: Path) -> None:
    """`exporter.techniques` imports neither a target nor the command line."""
    import subprocess
    import sys

    code = (
        "import sys, exporter.techniques as t; [t.kind(n) for n in t.names()];"
        "print([m for m in sys.modules if m.startswith(('exporter.targets', 'exporter.cli', 'torch.'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def flux() -> Any:
    return tiny_flux()


@pytest.mark.parametrize(
    "name", ["first-block-cache", "attention-broadcast", "faster-cache", "taylor-seer", "layerwise-casting"]
)
def test_caches_of_a_transformer_do_something_and_are_undone(name: str, flux: Any) -> None:
    options = {"first-block-cache": {"threshold": 0.5}, "attention-broadcast": {"timesteps": (1, 999)}}

    plain = latents_of(flux, 8)
    undo = techniques.apply(flux, [{name: options.get(name, {})}])
    try:
        changed = latents_of(flux, 8)
    finally:
        undo()
    assert torch.isfinite(changed).all()
    assert 0 < float((changed - plain).norm() / plain.norm()) < 1
    assert torch.equal(latents_of(flux, 8), plain), "undo left something behind"


def test_the_page_lists_every_technique_with_its_effect_and_options() -> None:
    page = (Path(techniques.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = page.split("## On one H100")[0]
    first = table[table.index("| technique | on |") :].split("\n\n")[0]
    rows = {line.split("`")[1]: line for line in first.splitlines() if line.startswith("| `")}
    assert list(rows) == techniques.names()
    for name in techniques.names():
        kind = techniques.kind(name)
        assert f"| {kind.effect} |" in rows[name]
        assert all(f"`{option}`" in rows[name] for option in kind.model_fields)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_what_tuning_asks_of_the_compiler_is_known_to_it(mode: str) -> None:
    import torch._inductor as inductor

    from exporter.techniques.compiled import Compiled

    asked = Compiled(mode=mode, tuned=True)._tuned()
    assert set(asked) <= set(inductor.list_options())
    assert asked.get("triton.cudagraphs", False) == (mode != "default")
