"""`exporter run` of several pictures: one on each of eight devices, from the seeds that were said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter import pipeline, several
from exporter.errors import UsageError
from tests.cli.runner import spawn
from tests.targets.stablehlo.artifacts import arrays, component
from tests.targets.stablehlo.without_torch import run

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
PROMPTS = ("a cat", "a dog")


def test_run_shares_the_prompts_among_eight_devices(program: Path, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    given = ("run", program, PROMPTS[0], "--also", PROMPTS[1], "--pictures", 4, "-o", picture)
    ran = spawn(*given, "--steps", 2, "--seed", 3, "--json", **EIGHT)
    assert ran.code == 0, ran
    said = ran.document
    assert said["devices"] == 8 and 0 < said["compile_seconds"] < said["seconds"]
    assert [(each["prompt"], each["seed"]) for each in said["pictures"]] == [
        (prompt, 3 + 4 * place + number) for place, prompt in enumerate(PROMPTS) for number in range(4)
    ]
    painted = [np.asarray(Image.open(each["picture"])).astype(int) for each in said["pictures"]]
    assert len({each.tobytes() for each in painted}) == 8
    reference = pipeline.load(str(tiny))
    for each, found in list(zip(said["pictures"], painted, strict=True))[::3]:
        (wanted,) = pipeline.paint(reference, [each["prompt"]], steps=2, seed=each["seed"])
        assert np.abs(found - np.asarray(wanted).astype(int)).max() <= 1


def test_more_prompts_than_the_devices_divide(program: Path, tmp_path: Path) -> None:
    ran = spawn("run", program, "a cat", "--pictures", 9, "-o", tmp_path / "x.png", **EIGHT)
    ran.failed(2, "9 prompts cannot be shared evenly by 8 devices", "Give 8 or 16 prompts")
    assert not list(tmp_path.iterdir())


SPREAD = """
import json
from pathlib import Path
import numpy as np
from exporter.targets.base import RunOptions
from exporter.targets.stablehlo.runner import StableHloRunner
inputs = dict(np.load(PLACE))
path = Path("text_encoder/model.stablehlo")
with StableHloRunner(path, RunOptions(spread=True)) as many, StableHloRunner(path, RunOptions()) as one:
    wanted = one.run(inputs)
    found = many.run(inputs)
    few = many.run({name: value[:3] for name, value in inputs.items()})
    shared, alone = (
        [len(s.device_set) for s in compiled.output_shardings.values() if not s.is_fully_replicated]
        for compiled in many._compiled.values()
    )
    print(json.dumps({
        "shares": [many.shares, one.shares], "shared": shared, "alone": alone,
        "off": max(float(np.abs(found[n] - wanted[n]).max()) for n in wanted),
        "few": max(float(np.abs(few[n] - wanted[n][:3]).max()) for n in wanted),
        "torch": "torch" in sys.modules,
    }))
"""


def test_rows_that_the_devices_do_not_divide_are_computed_on_each(
    program: Path, tiny: Path, tmp_path: Path
) -> None:
    """As those of the one picture that several prompts start from."""
    np.savez(tmp_path / "in.npz", **arrays(component(tiny, "text_encoder"), batch=8))
    said = json.loads(run(f"PLACE = {str(tmp_path / 'in.npz')!r}\n" + SPREAD, program))
    assert said["shares"] == [8, 1] and said["shared"] == [8, 8] and said["alone"] == []
    assert said["off"] <= 1e-5 and said["few"] <= 1e-5 and not said["torch"]


@pytest.mark.parametrize("form", [pytest.param("artifact", marks=pytest.mark.full), "reference"])
def test_on_one_device_they_come_one_after_another(program: Path, tiny: Path, form: str) -> None:
    loaded = pipeline.load(program if form == "artifact" else tiny, device="cpu", spread=True)
    assert several.devices(loaded) == 1
    pictures = several.paint(loaded, ["a cat", "a cat"], seed=1, steps=1)
    (second,) = pipeline.paint(loaded, ["a cat"], seed=2, steps=1)
    assert second.tobytes() == pictures[1].tobytes() != pictures[0].tobytes()


def test_files_of_several_pictures() -> None:
    assert several.paths(Path("a/star.png"), 1) == [Path("a/star.png")]
    assert several.paths(Path("a/star.png"), 10)[::9] == [Path("a/star-01.png"), Path("a/star-10.png")]
    assert several.repeated(["a", "b"], 2) == ["a", "a", "b", "b"]


def test_no_prompts_at_all(program: Path) -> None:
    loaded = pipeline.load(program, device="cpu:0")
    with pytest.raises(UsageError, match="0 prompts"):
        several.paint(loaded, [])
