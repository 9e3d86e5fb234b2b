"""The ten lines of the README on eight devices where PyTorch cannot be imported, and what they stand on."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exporter import pipeline
from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import ArtifactError, BackendMissing, UnsupportedError, UsageError
from exporter.targets import get_target
from exporter.targets.stablehlo.clip_tokens import ClipTokens
from exporter.targets.stablehlo.painter import Painter
from exporter.targets.stablehlo.schedule import ddim_step, ddim_steps
from tests.targets.stablehlo.without_torch import README, documented, run

STEPS = 4
PROMPT = "a large red star at the left on a blue background"
AFTER = """
import json, re
import numpy as np
from exporter.errors import UsageError

def refusal(*given, **settings):
    try:
        painter(*given, **settings)
    except UsageError as error:
        return error.message

text = "".join(painter.program_text())
np.savez("found.npz", start=painter.noise(keys), pictures=pictures)
print(json.dumps({
    "imported": sorted({
        name.partition(".")[0] for name, module in sys.modules.items()
        if "site-packages" in str(getattr(module, "__file__", ""))
    }),
    "devices": len(pictures.sharding.device_set),
    "shards": sorted({str(s.data.shape) for s in pictures.addressable_shards}),
    "exchanged": re.findall("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text),
    "refused": [
        refusal(["a"] * 9), refusal(["a"] * 8, keys[:3]), refusal(["a"] * 8, height=68),
        refusal(["a"] * 256), refusal(["a"] * 8, steps=1001),
    ],
}))
"""


def installed() -> set[str]:
    """Modules of the packages that the README says are enough, and of those that these bring."""
    section = README.read_text(encoding="utf-8").split("## StableHLO")[1].split("\n## ")[0]
    (said,) = re.findall(r"`pip install (jax [^`]+)`", section)
    brought = (
        "jaxlib numpy scipy ml_dtypes opt_einsum pydantic_core annotated_types typing_extensions "
        "typing_inspection huggingface_hub yaml packaging PIL"
    )
    # Taken along where they are there, without being needed; and what finds an editable installation.
    optional = {
        "cloudpickle",
        "pygments",
        "charset_normalizer",
        "_cyutility",
        "_distutils_hack",
        "sitecustomize",
    }
    found = {name for name in sys.modules if name.startswith("__editable__")}
    return {*said.split(), *brought.split(), *optional, *found}


def ten_lines(root: Path) -> str:
    """The README's snippet, on an artifact of the tests and with fewer steps."""
    code = documented()[0]
    changed = code.replace('Painter("shapes-jax")  ', f"Painter({str(root)!r})  ")
    changed = changed.replace("steps=25", f"steps={STEPS}")
    assert changed.count(str(root)) == changed.count(f"steps={STEPS}") == 1
    return changed


def from_diffusers(source: Path, start: np.ndarray, **settings: Any) -> np.ndarray:
    """The picture that the reference pipeline makes of the same noise: (height, width, 3)."""
    given = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "np", **settings}
    found: np.ndarray = pipeline.load(str(source))(
        PROMPT, latents=torch.from_numpy(np.array(start[None])), **given
    ).images[0]
    return found


def test_the_snippet_has_ten_lines() -> None:
    assert len([line for line in documented()[0].splitlines() if line.strip()]) <= 10


@pytest.mark.full
def test_ten_lines_paint_on_eight_devices_without_torch(program: Path, tiny: Path, tmp_path: Path) -> None:
    first, said = run(ten_lines(program) + AFTER, tmp_path).splitlines()
    compiling, painting = map(float, re.findall(r"\d+\.\d\d", first))
    assert compiling > painting > 0 and "of compiling" in first
    told = json.loads(said)
    assert {"jax", "tokenizers"} <= set(told["imported"]) <= installed() and told["exchanged"] == []
    assert told["devices"] == 8 and told["shards"] == ["(1, 64, 64, 3)"]
    divided, keys, size, many, steps = told["refused"]
    assert divided == "9 prompts cannot be shared evenly by 8 devices."
    assert keys == "3 keys for 8 prompts: each picture needs its own."
    assert size == "height is 68; this artifact takes multiples of 16."
    assert many == "64 rows on each device; this artifact takes 63."
    assert steps == "1001 steps; there are 1 to 1000."
    found = np.load(tmp_path / "found.npz")
    assert len({start.tobytes() for start in found["start"]}) == 8  # a key of its own for every device
    for number in (0, 7):
        wanted = from_diffusers(tiny, found["start"][number])
        assert np.abs(found["pictures"][number] - wanted).max() < 1e-3
        saved = np.asarray(Image.open(tmp_path / f"star-{number}.png")).astype(int)
        assert np.abs(saved - 255 * wanted).max() < 1


def test_one_device_another_size_and_no_guidance(program: Path, tiny: Path) -> None:
    import jax

    painter, keys = Painter(program, "cpu:0"), jax.random.split(jax.random.key(5), 2)
    pictures = painter([PROMPT] * 2, keys, steps=STEPS, guidance=1, height=80, width=48)
    start = np.asarray(painter.noise(keys, height=80, width=48))
    wanted = from_diffusers(tiny, start[1], guidance_scale=1.0, height=80, width=48)
    assert pictures.shape == (2, 80, 48, 3) and np.abs(np.asarray(pictures[1]) - wanted).max() < 1e-3
    spent = painter.compile_seconds
    again = painter([PROMPT] * 2, keys, steps=STEPS, guidance=1, height=80, width=48)
    assert painter.compile_seconds == spent > 0 and (again == pictures).all()


def card(root: Path) -> str:
    """The code of the model card's first client."""
    (client, *_) = get_target("stablehlo").clients("me/it", Artifact.open(root).manifest)
    return client.code


def test_the_card_shows_the_same_calls(program: Path, tmp_path: Path) -> None:
    """And of an artifact that cannot be painted without PyTorch, how a component is opened."""
    names = [{node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
             for code in (card(program), documented()[0])]  # fmt: skip
    assert names[0] >= names[1] - {"pictures", "print"}
    manifest = Artifact.open(program).manifest
    alone = manifest.model_copy(update={"components": manifest.components[:1]})
    assert "Painter" not in get_target("stablehlo").clients("me/it", alone)[0].code


@pytest.mark.full
def test_the_code_of_the_card_runs(program: Path, tmp_path: Path) -> None:
    before = f"import huggingface_hub\nhuggingface_hub.snapshot_download = lambda repo: {str(program)!r}\n"
    run(before + card(program) + "\nassert 'torch' not in sys.modules", tmp_path, devices=2)
    assert len(list(tmp_path.glob("picture-*.png"))) == 2


@pytest.mark.full
def test_baked_for_one_picture(program: Path, tiny: Path, tmp_path: Path) -> None:
    """A device has two rows of it for every prompt: they come one after another."""
    import jax

    plan = make_plan(str(tiny), "stablehlo", tmp_path / "baked", {"static": (1, 64, 64)}, verify=False)
    baked, keys = Painter(convert(plan).artifact.root), jax.random.split(jax.random.key(1), 3)
    found = np.asarray(baked([PROMPT] * 3, keys, steps=STEPS))
    wanted = np.asarray(Painter(program)([PROMPT] * 3, keys, steps=STEPS))
    assert np.abs(found - wanted).max() < 1e-4
    with pytest.raises(UsageError, match="height is baked: 64, not 128"):
        baked([PROMPT], height=128)


@pytest.mark.full
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_stable_diffusion_xl(tmp_path: Path, negative: str) -> None:
    import diffusers
    import jax

    from tests.tiny_sdxl import make_tiny_sdxl

    source = make_tiny_sdxl(tmp_path / "xl")
    plan = make_plan(str(source), "stablehlo", tmp_path / "out", {}, verify=False)
    painter, keys = Painter(convert(plan).artifact.root), jax.random.split(jax.random.key(2), 1)
    found = np.asarray(painter([PROMPT], keys, steps=STEPS, negative_prompt=negative))[0]
    reference = pipeline.load(str(source))
    reference.scheduler = diffusers.DDIMScheduler.from_config(reference.scheduler.config, clip_sample=False)
    wanted = reference(
        PROMPT, num_inference_steps=STEPS, guidance_scale=7.5, output_type="np",
        negative_prompt=negative or None, latents=torch.from_numpy(np.array(painter.noise(keys))),
    ).images[0]  # fmt: skip
    assert np.abs(found - wanted).max() < 1e-3


CONFIGS = [
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
     "set_alpha_to_one": False, "clip_sample": False},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
     "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"beta_schedule": "linear", "prediction_type": "sample", "timestep_spacing": "linspace"},
    {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "clip_sample_range": 1.5},
    {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(), "clip_sample": False},
]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 4, 7, 50])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_the_steps_are_those_of_diffusers(number: int, steps: int) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**CONFIGS[number])
    theirs.set_timesteps(steps)
    config = {**theirs.config, "_class_name": "DDIMScheduler"}
    ours = ddim_steps(config, steps)
    assert ours.times.tolist() == theirs.timesteps.tolist()
    noise = np.random.default_rng(steps)
    for place, t in enumerate(theirs.timesteps):
        x, found = noise.standard_normal((2, 4, 8, 8), np.float32)
        wanted = theirs.step(torch.from_numpy(found), t, torch.from_numpy(x)).prev_sample.numpy()
        got = ddim_step(config, found, x, ours.now[place], ours.then[place])
        assert np.abs(got - wanted).max() <= 2e-4 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "LCMScheduler"}, "scheduler is a LCMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler is a FlowMatch"),
        ({"prediction_type": "flow_prediction"}, "UNet predicts 'flow_prediction'"),
        ({"thresholding": True}, "uses thresholds"),
        ({"beta_schedule": "sigmoid"}, "betas are 'sigmoid'"),
        ({"timestep_spacing": "odd"}, "spaced 'odd'"),
    ],
)
def test_schedules_that_are_not_walked_by_ddim(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        ddim_steps({"_class_name": "DDIMScheduler", **change}, 4)


TEXTS = (
    "", "a cat", "A  Large   RED star,at the left!!", "it's 1234 o'clock", "naïve café — ½ 日本語 🙂",
    "<|endoftext|> in between", "low lower lowest", "<new> word", "x" * 300,
)  # fmt: skip


def tokenizer_folder(folder: Path) -> Path:
    """With merges, an own padding and a word that was added."""
    from tests.tiny import make_tokenizer

    plain = make_tokenizer(folder / "plain")
    vocabulary = plain.get_vocab()
    for word in ("lo", "low</w>", "er</w>", "lo", "st", "ca", "cat</w>"):
        vocabulary.setdefault(word, len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\ne r</w>\nc a\nca t</w>\ns t\n")
    tokenizer = type(plain)(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="!"
    )
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "made")
    return folder / "made"


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPTokenizerFast

    folder = tokenizer_folder(tmp_path)
    theirs = CLIPTokenizerFast.from_pretrained(folder)
    wanted = theirs(list(TEXTS), padding="max_length", truncation=True, return_tensors="np").input_ids
    found = ClipTokens(folder)(TEXTS)
    assert found.dtype == np.int32 and found.shape == (len(TEXTS), 77)
    different = [text for text, ours, row in zip(TEXTS, found, wanted, strict=True) if (ours != row).any()]
    assert different == []


def test_artifacts_that_it_cannot_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"model_index.json of nothing cannot be read") as caught:
        Painter(tmp_path / "nothing")
    assert "exporter convert --to stablehlo" in str(caught.value.hint)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UnsupportedError, match="is a FluxPipeline; without PyTorch only Stable") as caught:
        Painter(tmp_path)
    assert caught.value.exit_code == 3 and "exporter run" in str(caught.value.hint)
    with pytest.raises(ArtifactError, match="tokenizer of the artifact cannot be read"):
        ClipTokens(tmp_path / "tokenizer")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(BackendMissing, match="tokenizers, which is not installed"):
        ClipTokens(tmp_path / "tokenizer")
