"""Programs: every command that opens one, or hands it on, asks for --trust; the others open none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.artifact import Artifact
from exporter.conversion import convert, make_plan
from exporter.errors import VerificationInconclusive
from exporter.publish import push
from exporter.trust import UntrustedArtifact
from tests.cli.runner import invoke


@pytest.fixture(scope="module", params=["torchscript", "pt2"])
def made(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / f"tiny-{request.param}"
    return convert(make_plan(str(tiny), request.param, out, {}, verify=False)).artifact.root


@pytest.fixture
def stranger(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifact as somebody finds it who did not make it."""
    monkeypatch.setenv("EXPORTER_STATE", str(tmp_path / "another-machine"))
    return made


def test_what_was_made_here_needs_no_flag(made: Path) -> None:
    assert "It is a program, and was made here." in invoke("inspect", made).stdout


def test_run(stranger: Path, tmp_path: Path) -> None:
    paint = ("run", stranger, "a cat", "--steps", 1, "-o", tmp_path / "cat.png")
    invoke(*paint).failed(3, "is a program, and it was not made by this installation", "--trust")
    assert not (tmp_path / "cat.png").exists()
    ran = invoke(*paint, "--trust")
    assert ran.code == 0, ran.stderr
    assert (tmp_path / "cat.png").is_file()


def test_verify(stranger: Path, tmp_path: Path) -> None:
    judge = ("verify", stranger, "--component", "vae_decoder", "--steps", 1, "--samples", 1, "--no-pipeline",
             "--report", tmp_path)  # fmt: skip
    invoke(*judge).failed(3, "is a program, and it was not made by this installation", "--trust")
    ran = invoke(*judge, "--trust")
    assert ran.code == 0, ran.stderr


@pytest.mark.parametrize("made", ["torchscript"], indirect=True)  # ten seconds each, and one code for both
def test_bench(stranger: Path) -> None:
    measure = ("bench", stranger, "--runs", 1, "--warm-up", 0, "--steps", 1, "--json")
    ran = invoke(*measure)
    assert ran.code == 3
    assert "was not made by this installation" in ran.document["rows"][0]["error"]
    ran = invoke(*measure, "--trust")
    assert ran.code == 0 and ran.document["rows"][0]["error"] is None, ran


def test_push(stranger: Path) -> None:
    with pytest.raises(UntrustedArtifact, match="not published") as caught:
        push(stranger, "tester/programs", allow_unverified=True)
    assert "--trust" in str(caught.value.hint)
    with pytest.raises(VerificationInconclusive):  # the next question, asked once that one is answered
        push(stranger, "tester/programs", trust=True)
    invoke("push", stranger, "tester/programs").failed(3, "is a program", "--trust")
    invoke("push", stranger, "tester/programs", "--trust").failed(5, "not published")


def test_the_card_warns(made: Path) -> None:
    from exporter.card import make_card

    card = make_card(Artifact.open(made), "org/name")
    assert "These files are programs" in card
    assert "exporter verify org/name --trust" in card and "-o picture.png --trust" in card


def test_inspect_and_diff_open_nothing(stranger: Path, made: Path, tmp_path: Path) -> None:
    """Shown with files that nothing could open."""
    copy = Path(shutil.copytree(stranger, tmp_path / "copy"))
    for record in Artifact.open(copy).manifest.components:
        (copy / record.entry).write_bytes(b"\0" * (copy / record.entry).stat().st_size)
    ran = invoke("inspect", copy)
    assert ran.code == 0, ran.stderr
    assert "opening it runs what its author wrote" in ran.stdout and "--trust" in ran.stdout
    assert invoke("diff", copy, made, "--quiet").stdout.strip() == "same"
