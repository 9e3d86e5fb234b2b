"""Our OpenVINO files have no more nodes than those that optimum-intel makes of the same checkpoint."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from tests.interop.openvino_artifacts import make

pytestmark = [pytest.mark.interop, pytest.mark.full]  # 50 s of CPU; `test_tidy.py` counts in the quick tier
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def sides(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(ours, optimum's), of a checkpoint without a zero bias or a norm of ones, which OpenVINO would drop."""
    from optimum.exporters.openvino import main_export

    root = tmp_path_factory.mktemp("nodes")
    source = root / "source"
    shutil.copytree(tiny, source)
    noise = torch.Generator().manual_seed(0)
    for path in source.rglob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensors[name] = torch.rand(tensor.shape, generator=noise).to(tensor.dtype) + 0.5
        save_file(tensors, path, metadata={"format": "pt"})
    main_export(str(source), root / "optimum", task="text-to-image", library_name="diffusers")
    return make(source, root / "ours"), root / "optimum"


def nodes(folder: Path, component: str) -> Counter[str]:
    """Operators by kind. Constants, and the conversions of stored weights, are no work."""
    import openvino

    model = openvino.Core().read_model(folder / component / "openvino_model.xml")
    kinds = Counter(node.get_type_name() for node in model.get_ops())
    return Counter({kind: n for kind, n in kinds.items() if kind not in ("Constant", "Convert")})


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_more_nodes_than_optimum(sides: tuple[Path, Path], component: str) -> None:
    ours, theirs = (nodes(folder, component) for folder in sides)
    assert theirs.total() > 50
    assert ours.total() <= theirs.total(), f"in excess: {ours - theirs}, spared: {theirs - ours}"
