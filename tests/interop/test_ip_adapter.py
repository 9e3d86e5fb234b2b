"""What other clients make of an artifact with an IP-Adapter: they know none, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.conversion import convert, make_plan
from tests import ip_adapters
from tests.test_tasks import picture

pytestmark = [pytest.mark.interop, pytest.mark.full]


def artifact(tiny: Path, root: Path, target: str) -> Path:
    folder = ip_adapters.write(tiny / "unet", root / "adapter")
    intake = {"ip_adapters": [str(folder)]}
    return convert(make_plan(str(tiny), target, root / target, {}, verify=False, intake=intake)).artifact.root


def test_optimum_opens_the_onnx_and_cannot_paint(tiny: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("optimum.onnxruntime")
    pipeline = runtime.ORTStableDiffusionPipeline.from_pretrained(artifact(tiny, tmp_path, "onnx"))
    assert pipeline.image_encoder is None
    with pytest.raises(ValueError, match="image_embeds is required by model"):
        pipeline("a", num_inference_steps=1)
    with pytest.raises(AttributeError, match="encoder_hid_proj"):
        pipeline("a", num_inference_steps=1, ip_adapter_image=picture())


def test_optimum_intel_does_not_open_the_openvino(tiny: Path, tmp_path: Path) -> None:
    intel = pytest.importorskip("optimum.intel")
    with pytest.raises(OSError, match=r"found in directory .*image_encoder"):
        intel.OVStableDiffusionPipeline.from_pretrained(artifact(tiny, tmp_path, "openvino"))
