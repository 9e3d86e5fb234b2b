"""The destination is never half-written, and nothing of another run is reused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from exporter.artifact import ComponentRecord, hash_files
from exporter.errors import DestinationError
from exporter.staging import Staging


def write_component(staging: Staging, name: str, text: str) -> ComponentRecord:
    folder = staging.root / name
    folder.mkdir(exist_ok=True)
    path = folder / "model.bin"
    path.write_text(text)
    record = ComponentRecord(
        name=name,
        entry=f"{name}/model.bin",
        files=hash_files([path], staging.root),
        inputs=[],
        outputs=[],
        parameters=1,
        dtype="float32",
    )
    staging.mark_complete(record)
    return record


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_commit_moves_everything_into_place(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", "a" * 64) as staging:
        write_component(staging, "unet", "weights")
        assert not (tmp_path / "out").exists()
        staging.commit()
    assert (tmp_path / "out/unet/model.bin").read_text() == "weights"
    assert not (tmp_path / "out/.complete").exists()
    assert leftovers(tmp_path) == []


def test_an_interrupted_run_resumes_at_the_first_incomplete_component(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", "a" * 64) as staging:
        write_component(staging, "unet", "weights")
        (staging.root / "vae").mkdir()
        (staging.root / "vae/model.bin").write_text("half")
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    with Staging(tmp_path / "out", "a" * 64) as staging:
        assert staging.resumed
        record = staging.completed("unet")
        assert record is not None and record.files[0].bytes == len("weights")
        assert staging.completed("vae") is None


def test_another_request_never_reuses_the_staging_of_the_first(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", "a" * 64) as staging:
        write_component(staging, "unet", "float32")
        raise KeyboardInterrupt
    with Staging(tmp_path / "out", "b" * 64) as staging:
        assert not staging.resumed
        assert staging.completed("unet") is None
        write_component(staging, "unet", "float16")
        staging.commit()
    assert leftovers(tmp_path) == []


def test_a_file_changed_after_completion_is_not_reused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", "a" * 64) as staging:
        write_component(staging, "unet", "weights")
        (staging.root / "unet/model.bin").write_text("weightz")
        raise KeyboardInterrupt
    with Staging(tmp_path / "out", "a" * 64) as staging:
        assert staging.completed("unet") is None


def test_a_truncated_marker_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", "a" * 64) as staging:
        write_component(staging, "unet", "weights")
        (staging.root / ".complete/unet.json").write_text('{"name": "unet"')
        raise KeyboardInterrupt
    with Staging(tmp_path / "out", "a" * 64) as staging:
        assert staging.completed("unet") is None


def test_nothing_is_left_behind_when_nothing_was_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Staging(tmp_path / "out", "a" * 64):
        raise RuntimeError("export failed")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_write_one_destination(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from exporter.errors import DestinationError
        from exporter.staging import Staging
        try:
            with Staging(Path(sys.argv[1]), "a" * 64):
                print("entered")
        except DestinationError as error:
            print(error.message)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with Staging(tmp_path / "out", "a" * 64):
        inside = subprocess.run(command, capture_output=True, text=True, check=True)
    after = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Another exporter process is writing" in inside.stdout
    assert after.stdout.strip() == "entered"


@pytest.mark.parametrize("content", ["file", "folder"])
def test_an_existing_destination_that_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    if content == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    with pytest.raises(DestinationError), Staging(out, "a" * 64, overwrite=True):
        pass
    assert (out if content == "file" else out / "thesis.txt").read_text() == "mine"


def test_overwrite_replaces_an_artifact_and_only_with_the_flag(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "exporter.json").write_text("{}")
    with pytest.raises(DestinationError, match="exists already"), Staging(out, "a" * 64):
        pass
    with Staging(out, "a" * 64, overwrite=True) as staging:
        write_component(staging, "unet", "new")
        assert (out / "exporter.json").exists(), "the old one stands until the new one is complete"
        staging.commit()
    assert sorted(p.name for p in out.iterdir()) == ["unet"]
    assert leftovers(tmp_path) == []


def test_a_kill_between_the_renames_of_an_overwrite_loses_nothing(tmp_path: Path) -> None:
    old = tmp_path / ".out.replaced"
    old.mkdir()
    (old / "exporter.json").write_text("{}")
    with pytest.raises(DestinationError, match="exists already"), Staging(tmp_path / "out", "a" * 64):
        pass
    assert (tmp_path / "out/exporter.json").is_file()


def test_a_parent_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DestinationError, match="cannot be written"),
        Staging(tmp_path / "file" / "out", "a" * 64),
    ):
        pass
