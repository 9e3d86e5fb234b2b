"""The documented way by hand and the helper for several devices, where PyTorch cannot be imported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from exporter import pipeline
from tests.targets.stablehlo.artifacts import arrays, component
from tests.targets.stablehlo.without_torch import documented, run

STEPS = 4


def snippet() -> str:
    """The code of the README's section, with the tiny model's sizes and fewer steps."""
    _, code = documented()
    changed = code.replace("25, 7.5\n", f"{STEPS}, 7.5\n").replace("side, scale = 16,", "side, scale = 8,")
    assert changed.count(f" {STEPS}, 7.5") == changed.count("= 8,") == 1
    return changed


def test_the_documented_snippet_paints_on_eight_devices(program: Path, tiny: Path, tmp_path: Path) -> None:
    after = f"""
assert "torch" not in sys.modules and n == 8
assert len(x.sharding.device_set) == 8 and {{s.data.shape for s in x.addressable_shards}} == {{(1, 4, 8, 8)}}
np.savez({str(tmp_path / "found.npz")!r}, start=start, pictures=pictures)
"""
    said = run(snippet() + after, program)
    assert re.fullmatch(r"first step \d+\.\d\d s with compiling, the others \d+\.\d\d s\n", said)
    found = np.load(tmp_path / "found.npz")
    assert len({start.tobytes() for start in found["start"]}) == 8  # a key of its own for every device
    reference = pipeline.load(str(tiny))
    for start, picture in list(zip(found["start"], found["pictures"], strict=True))[::7]:
        wanted = reference(
            "a large red star at the left on a blue background", num_inference_steps=STEPS,
            guidance_scale=7.5, latents=torch.from_numpy(start[None]), output_type="np",
        ).images[0]  # fmt: skip
        assert np.abs(picture.transpose(1, 2, 0) - wanted).max() < 1e-3


SHARDED = """
import json, re
from pathlib import Path
import jax, numpy as np
from exporter.errors import UsageError
from exporter.targets.stablehlo.sharded import Sharded

inputs = dict(np.load(PLACE))
unet = Sharded(Path("unet/model.stablehlo"))
found = unet(**inputs)["out_sample"]
first = unet.compile_seconds
again = unet(**inputs)["out_sample"]
(text,) = unet.program_text()
refused = {}
for count in (3, 12):
    try:
        unet(**{k: v[:1].repeat(count, 0) if v.ndim else v for k, v in inputs.items()})
    except UsageError as error:
        refused[count] = [error.message, error.hint]
noise = np.asarray(unet.noise(3, 8, (4, 8, 8)))
np.savez(PLACE.replace("in", "out"), found=found)
print(json.dumps({
    "torch": "torch" in sys.modules,
    "devices": len(unet.devices),
    "shards": sorted({str(s.data.shape) for s in found.addressable_shards}),
    "held": len({s.device for s in found.addressable_shards}),
    "exchanged": re.findall("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text),
    "compiled": [first, unet.compile_seconds],
    "same": bool((found == again).all()),
    "refused": refused,
    "different": len({row.tobytes() for row in noise}),
    "again": bool((noise == np.asarray(unet.noise(3, 8, (4, 8, 8)))).all()),
}))
"""


def test_rows_are_shared_by_devices_and_nothing_is_exchanged(
    program: Path, tiny: Path, tmp_path: Path
) -> None:
    part = component(tiny, "unet")
    inputs = arrays(part, batch=8)
    place = tmp_path / "in.npz"
    np.savez(place, **inputs)
    said = json.loads(
        run(f"PLACE = {str(place)!r}\n" + SHARDED.replace('"in", "out"', '"in.npz", "out.npz"'), program)
    )
    assert not said["torch"] and said["devices"] == said["held"] == 8
    assert said["shards"] == ["(1, 4, 8, 8)"] and said["exchanged"] == []
    assert said["compiled"][0] == said["compiled"][1] > 0 and said["same"]
    assert said["different"] == 8 and said["again"]
    message, hint = said["refused"]["12"]
    assert message == "12 prompts cannot be shared evenly by 8 devices."
    assert hint == "Give 8 or 16 prompts, or choose the devices with --device."
    assert said["refused"]["3"][1].startswith("Give 8 prompts")
    with torch.no_grad():
        (wanted,) = part.reference_module()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    assert np.abs(np.load(tmp_path / "out.npz")["found"] - wanted.numpy()).max() < 1e-5


def test_the_runner_itself_needs_no_torch(program: Path, tiny: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **arrays(component(tiny, "text_encoder")))
    code = f"""
from pathlib import Path
import numpy as np
from exporter.targets.base import RunOptions
from exporter.targets.stablehlo.runner import StableHloRunner
with StableHloRunner(Path("text_encoder/model.stablehlo"), RunOptions(device="cpu:3")) as opened:
    found = opened.run(dict(np.load({str(tmp_path / "in.npz")!r})))
    print(sorted(found), len(opened.module_names()) > 10, "torch" in sys.modules)
"""
    assert run(code, program).strip() == "['last_hidden_state', 'pooler_output'] True False"
