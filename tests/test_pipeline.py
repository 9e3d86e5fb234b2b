"""Any runner inside a diffusers pipeline paints what the reference paints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.architectures import Component, Size, components_of
from exporter.artifact import TensorRecord
from exporter.checkpoints import resolve
from exporter.errors import ArtifactError, UsageError
from exporter.pipeline import assemble, from_checkpoint, native_size, paint
from exporter.targets import Runner


class TorchRunner(Runner):
    """The reference module behind the runner contract; optionally with baked-in sizes."""

    def __init__(self, component: Component, baked: Size | None = None) -> None:
        self.module = component.reference_module()
        self.calls = 0
        self.inputs, self.outputs = (
            tuple(
                TensorRecord(
                    name=s.name,
                    dtype=s.dtype,
                    dims=[d if baked is None else baked.resolve(d) for d in s.dims],
                )
                for s in specs
            )
            for specs in (component.inputs, component.outputs)
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        for spec in self.inputs:
            array = inputs[spec.name]
            assert str(array.dtype) == spec.dtype
            for have, wanted in zip(array.shape, spec.dims, strict=True):
                assert isinstance(wanted, str) or have == wanted, f"{spec.name} was baked as {spec.dims}"
        with torch.no_grad():
            outputs = self.module(**{n: torch.from_numpy(np.array(a)) for n, a in inputs.items()})
        return {s.name: o.numpy() for s, o in zip(self.outputs, outputs, strict=True)}


@pytest.fixture(scope="module")
def artifact_root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files of an artifact: configs under the components' names."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("root") / "a"))
    for name in ("vae_decoder", "vae_encoder"):
        shutil.copytree(root / "vae", root / name)
    return root


def runners(tiny: Path, baked: dict[str, Size] | None = None) -> dict[str, TorchRunner]:
    return {c.name: TorchRunner(c, (baked or {}).get(c.name)) for c in components_of(resolve(tiny))}


def build(root: Path, parts: Mapping[str, Runner]) -> object:
    return assemble(root, "StableDiffusionPipeline", parts)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("size", [(None, None), (96, 64)])
def test_same_seed_same_picture_as_the_reference(
    tiny: Path, artifact_root: Path, guidance: float, size: tuple[int | None, int | None]
) -> None:
    settings = {"seed": 3, "steps": 3, "guidance": guidance, "height": size[0], "width": size[1]}
    mine = paint(build(artifact_root, runners(tiny)), ["a red star"], **settings)
    theirs = paint(from_checkpoint(str(tiny)), ["a red star"], **settings)
    assert mine[0].size == (size[1] or 64, size[0] or 64)
    assert np.array_equal(np.asarray(mine[0]), np.asarray(theirs[0]))
    assert np.asarray(mine[0]).std() > 0


def test_a_picture_does_not_depend_on_its_neighbours(tiny: Path, artifact_root: Path) -> None:
    pipeline = build(artifact_root, runners(tiny))
    both = paint(pipeline, ["a", "b"], steps=2)
    alone = paint(pipeline, ["b"], steps=2)
    assert np.array_equal(np.asarray(both[1]), np.asarray(alone[0]))
    assert not np.array_equal(np.asarray(both[0]), np.asarray(both[1]))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_baked_batches_are_filled_and_cut(tiny: Path, artifact_root: Path, guidance: float) -> None:
    """A UNet baked for four rows serves two (or one) of them, and a picture comes out unchanged."""
    baked = {name: Size(1, 64, 64, 77) for name in ("text_encoder", "vae_decoder", "vae_encoder")}
    baked["unet"] = Size(4, 64, 64, 77)
    parts = runners(tiny, baked)
    mine = paint(build(artifact_root, parts), ["a"], steps=2, guidance=guidance)
    theirs = paint(from_checkpoint(str(tiny)), ["a"], steps=2, guidance=guidance)
    difference = np.abs(np.asarray(mine[0]).astype(int) - np.asarray(theirs[0]))
    assert difference.max() <= 1, "another batch may round differently, no more"
    assert parts["unet"].calls == 2


def test_a_baked_batch_smaller_than_the_rows_runs_in_portions(tiny: Path, artifact_root: Path) -> None:
    parts = runners(tiny, {"unet": Size(1, 64, 64, 77)})
    paint(build(artifact_root, parts), ["a"], steps=2, guidance=5.0)
    assert parts["unet"].calls == 4


def test_sizes_that_cannot_be_painted(tiny: Path, artifact_root: Path) -> None:
    pipeline = build(artifact_root, runners(tiny, {"unet": Size(2, 64, 96, 77)}))
    assert native_size(pipeline) == (64, 96)
    with pytest.raises(UsageError, match="baked for 64×96"):
        paint(pipeline, ["a"], steps=1, height=64, width=64)
    with pytest.raises(UsageError, match="multiples of 8"):
        paint(pipeline, ["a"], steps=1, height=60, width=64)


def test_a_missing_component_is_named(tiny: Path, artifact_root: Path) -> None:
    parts = runners(tiny)
    del parts["unet"]
    with pytest.raises(ArtifactError, match="no unet"):
        build(artifact_root, parts)


def test_vae_encode_is_the_references(tiny: Path, artifact_root: Path) -> None:
    mine = build(artifact_root, runners(tiny)).vae
    theirs = from_checkpoint(str(tiny)).vae
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(mine.encode(picture).latent_dist.mean, theirs.encode(picture).latent_dist.mean)
