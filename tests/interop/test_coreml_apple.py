"""Apple's own Python pipeline paints with the packages; the interpreter computes where Core ML would.

Needs python_coreml_stable_diffusion (apple/ml-stable-diffusion), which is in no package index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.conversion import convert, make_plan
from exporter.pipeline import from_checkpoint
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
