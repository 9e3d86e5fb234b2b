"""Parts that another process made: taken byte for byte, or refused with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter import conversion
from exporter.adoption import PartRefused
from exporter.artifact import Artifact
from exporter.trust import made_here

OUT = "out"


@pytest.fixture(scope="module")
def part(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of the text encoder alone, made by an installation that vouches for nothing here."""
    folder = tmp_path_factory.mktemp("part")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORTER_STATE", str(folder / "state"))
        conversion.convert(_plan(tiny, folder / "text_encoder"), part=True)
    return folder / "text_encoder"


def _plan(tiny: Path, out: Path) -> conversion.Plan:
    options = {"static": "1x64x64"}
    return conversion.make_plan(
        str(tiny), "torchscript", out, options, components=["text_encoder"], verify=False
    )


def test_a_part_has_nothing_but_its_component(part: Path) -> None:
    artifact = Artifact.open(part)
    assert not (part / "model_index.json").exists() and artifact.manifest.shared_files == []
    hashed = {file.path.split("/")[0] for file in artifact.manifest.source.files}
    assert hashed == {"model_index.json", "text_encoder"}, "of the source it reads only its own"


def test_what_is_taken_is_ours_and_complete(part: Path, tiny: Path, tmp_path: Path) -> None:
    digests = {file.sha256 for file in Artifact.open(part).manifest.component("text_encoder").files}
    assert not digests & made_here()
    done = conversion.convert(_plan(tiny, tmp_path / OUT), adopt=[part])
    assert done.resumed == ("text_encoder",) and done.artifact.changed_files() == []
    assert (tmp_path / OUT / "model_index.json").is_file()
    assert digests <= made_here(), "a program that was taken is opened without --trust"
    assert Artifact.open(part).changed_files() == []


@pytest.mark.parametrize("fault", ["bytes", "missing", "manifest", "options", "tools", "source"])
def test_a_part_that_is_not_what_it_should_be_is_refused(
    part: Path, tiny: Path, tmp_path: Path, fault: str
) -> None:
    mine = tmp_path / "text_encoder"
    shutil.copytree(part, mine)
    artifact = Artifact.open(mine)
    manifest, entry = artifact.manifest, mine / artifact.manifest.components[0].entry
    if fault == "bytes":
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 1
        entry.write_bytes(data)
    elif fault == "missing":
        entry.unlink()
    elif fault == "manifest":
        (mine / "exporter.json").write_text("{}")
    elif fault == "options":
        manifest.options["dtype"] = "float16"
        artifact.save()
    elif fault == "tools":
        manifest.tools["torch"] = "0.0"
        artifact.save()
    else:
        manifest.source.files[-1].sha256 = "0" * 64
        artifact.save()
    with pytest.raises(PartRefused, match="The part text_encoder") as caught:
        conversion.convert(_plan(tiny, tmp_path / OUT), adopt=[mine])
    assert caught.value.part == mine and caught.value.exit_code == 3
    assert not (tmp_path / OUT).exists()
    why = {"bytes": "damaged", "missing": "damaged", "manifest": "cannot be opened"}
    assert why.get(fault, f"other {fault}") in caught.value.message
