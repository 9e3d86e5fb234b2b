"""Apple's own Python pipeline paints with the packages; the interpreter computes where Core ML would.

Needs python_coreml_stable_diffusion (apple/ml-stable-diffusion), which is in no package index.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.conversion import convert, make_plan
from exporter.pipeline import from_checkpoint
from tests.checkers import ALWAYS, NEVER, checker, give
from tests.families import make
from tests.test_tasks import drawing, picture

NETS = ["tiny-control_controlnet", "tiny-control_controlnet_1"]


class Interpreted:
    """What Apple's code uses of `coremltools.models.MLModel`, computed by the reference interpreter."""

    def __init__(self, path: str, **_: Any) -> None:
        import coremltools

        from exporter.targets.coreml import load

        self._spec = coremltools.utils.load_spec(path)
        self._model = load(path)

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._model.predict(inputs)


@pytest.mark.full
@pytest.mark.interop
def test_two_controlnets_in_apples_python_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apple = pytest.importorskip("python_coreml_stable_diffusion.pipeline")
    import coremltools

    source = make("two_controlnets", tmp_path / "tiny-control")
    out = convert(make_plan(str(source), "coreml", tmp_path / "out", verify=False)).artifact.root
    monkeypatch.setattr(coremltools.models, "MLModel", Interpreted)
    stock = from_checkpoint(str(source))
    stock.register_modules(safety_checker=None, feature_extractor=None)
    pipeline = apple.get_coreml_pipe(
        stock,
        str(out),
        "tiny-control",
        "ALL",
        delete_original_pipe=False,
        controlnet_models=NETS,
        force_zeros_for_empty_prompt=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.controlnet) == 2
    noise = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)

    def theirs(*pictures: Any) -> np.ndarray:
        conditions = [np.asarray(each.convert("RGB")).transpose(2, 0, 1) / 255 for each in pictures]
        made = pipeline(
            "a star", 64, 64, num_inference_steps=2, latents=noise, controlnet_cond=conditions,
            output_type="np", negative_prompt="",
        )  # fmt: skip
        return np.asarray(made.images[0] * 255, np.float64)

    import torch

    fed = [each.convert("RGB") for each in (drawing(), picture())]
    mine = stock(
        "a star", image=fed, height=64, width=64, num_inference_steps=2, latents=torch.from_numpy(noise),
        output_type="np",
    ).images[0]  # fmt: skip
    truth = np.asarray(mine * 255, np.float64)
    right, exchanged = (
        float(np.sqrt(((theirs(*pictures) - truth) ** 2).mean()))
        for pictures in ((drawing(), picture()), (picture(), drawing()))
    )
    print(f"from diffusers' picture: {right:.4f} of 255, with exchanged drawings {exchanged:.4f}")
    assert right < 0.5
    assert right < exchanged, "each reads its own"


@pytest.mark.interop
@pytest.mark.parametrize("found", [True, False])
def test_apples_python_pipeline_asks_the_safety_checker(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    apple = pytest.importorskip("python_coreml_stable_diffusion.pipeline")
    import coremltools

    source = give(tiny, tmp_path / "tiny-checked", checker(ALWAYS if found else NEVER))
    out = convert(make_plan(str(source), "coreml", tmp_path / "out", verify=False)).artifact.root
    monkeypatch.setattr(coremltools.models, "MLModel", Interpreted)
    stock = from_checkpoint(str(source))
    pipeline = apple.get_coreml_pipe(
        stock, str(out), "tiny-checked", "ALL", delete_original_pipe=False,
        force_zeros_for_empty_prompt=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
    made = pipeline("a star", 64, 64, num_inference_steps=1, latents=noise, output_type="np")
    assert bool(np.asarray(made.images).any()) is not found
    assert np.asarray(made.nsfw_content_detected).ravel().tolist() == [float(found)]


def apples_sources() -> Path:
    """The folder of Apple's Python package; its modules import packages that need not be here."""
    found = importlib.util.find_spec("python_coreml_stable_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("python_coreml_stable_diffusion is not installed")
    return Path(found.submodule_search_locations[0])


@pytest.mark.interop
def test_apples_converter_has_the_same_names() -> None:
    """Of compiled models, and of what the transformer of Stable Diffusion 3 takes and gives."""
    from exporter.targets.coreml.layout import INPUTS, OUTPUTS
    from exporter.targets.coreml.names import RESOURCE_NAMES

    text = (apples_sources() / "torch2coreml.py").read_text()
    theirs = dict(
        re.findall(r'\("([\w-]+)", "(\w+)"\)', text[text.index("for source_name, target_name in") :])
    )
    assert theirs["mmdit"] == "MultiModalDiffusionTransformer"
    ours = {
        name: title for name, title in RESOURCE_NAMES.items() if name != "text_encoder_3"
    }  # T5 is fetched
    assert ours == {name: title for name, title in theirs.items() if name in ours}
    assert f'"{RESOURCE_NAMES["text_encoder_3"]}.mlmodelc"' in text, "T5 is fetched, not converted"
    body = text[text.index("def convert_mmdit") : text.index("def convert_safety_checker")]
    for side, bindings in (("input", INPUTS["transformer"]), ("output", OUTPUTS["transformer"])):
        named = re.findall(rf'{side}_description\["(\w+)"\]', body)
        assert sorted(named) == sorted(binding.name for binding in bindings)


@pytest.mark.interop
@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_coremltools_reads_what_swift_is_to_open(family: str, tmp_path: Path) -> None:
    """Specification, weights and every operation, by coremltools' own loader."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as read

    source = make(family, tmp_path / f"tiny-{family}")
    names = ["transformer", *(["text_encoder_3"] if family == "sd3" else [])]
    plan = make_plan(str(source), "coreml", tmp_path / "out", components=names, verify=False)
    artifact = convert(plan).artifact
    for record in artifact.manifest.components:
        path = str(artifact.root / record.entry)
        model = coremltools.models.MLModel(path, skip_model_load=True)
        spec = model.get_spec()
        program = read(spec, spec.specificationVersion, model.weights_dir)
        inputs = {name: tuple(var.shape) for name, var in program.functions["main"].inputs.items()}
        if record.name == "transformer":
            assert inputs == {
                "latent_image_embeddings": (2, 16, 8, 8),
                "timestep": (2,),
                "token_level_text_embeddings": (2, 64, 1, 154),
                "pooled_text_embeddings": (2, 48, 1, 1),
            }
        else:
            assert inputs == {"input_ids": (1, 77)}
