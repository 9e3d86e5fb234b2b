"""Publishing: what is refused, what goes up, what the card says, and that an interruption costs nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter import conversion
from exporter.artifact import Artifact
from exporter.checkpoints.patience import Patience
from exporter.errors import ArtifactError, NetworkError, VerificationFailed, VerificationInconclusive
from exporter.publish import push
from tests.hub.conftest import Client, environment
from tests.hub.faults import Fault
from tests.hub.server import PART, TOKEN, HubServer

pytest.importorskip("onnxruntime")

HASTE = Patience(tries=4, first=0.01)
NAME = "tester/shapes-onnx"


@pytest.fixture(scope="session")
def verified(tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Path:
    """The embedded model as ONNX with a verdict, made once; tests copy it."""
    out = tmp_path_factory.mktemp("verified") / "shapes-onnx"
    plan = conversion.make_plan("builtin:shapes", "onnx", out, {})
    settings = {"steps": 4, "samples": 1}
    assert conversion.convert(plan, verify_settings=settings).verdict == "PASS"
    return out


@pytest.fixture
def artifact(verified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified, tmp_path / "shapes-onnx"))


@pytest.fixture
def writer(online: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return online


def judged(artifact: Path, verdict: str) -> Path:
    opened = Artifact.open(artifact)
    record = opened.manifest.verification
    assert record is not None
    record.verdict, record.summary = verdict, "said by the test"  # type: ignore[assignment]
    opened.save()
    return artifact


def files(hub: HubServer, name: str = NAME, branch: str = "main") -> dict[str, str]:
    return {path: blob.sha256 for path, blob in hub.store.repos[name].branches[branch][-1].files.items()}


def test_everything_goes_up_in_one_commit(writer: HubServer, artifact: Path) -> None:
    pushed = push(artifact, NAME, create=True, private=True, patience=HASTE)
    repo = writer.store.repos[NAME]
    assert repo.private and len(repo.branches["main"]) == 2
    there = files(writer)
    manifest = Artifact.open(artifact).manifest
    assert {f.path: f.sha256 for f in manifest.all_files()}.items() <= there.items()
    assert {"README.md", "exporter.json", "verification/report.html", "verification/report.json"} <= set(
        there
    )
    assert pushed.verdict == "PASS" and pushed.commit == repo.branches["main"][-1].sha
    assert any(f.bytes > PART for f in manifest.all_files()), "a large file went up in parts"


def test_the_card(writer: HubServer, artifact: Path) -> None:
    push(artifact, NAME, create=True, patience=HASTE)
    card = writer.store.data(files(writer)["README.md"]).read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "**Verified: PASS.**" in card
    assert f'ORTStableDiffusionPipeline.from_pretrained("{NAME}")' in card
    assert f"exporter verify {NAME}" in card and "exporter convert builtin:shapes --to onnx" in card
    manifest = Artifact.open(artifact).manifest
    for component in manifest.components:
        assert component.files[0].sha256[:16] in card
    for picture in re.findall(r"!\[\]\((verification/[^)]+)\)", card):
        assert picture in files(writer)
    assert len(re.findall(r"!\[\]", card)) >= 3
    assert str(artifact.parent) not in card and TOKEN not in card


@pytest.mark.parametrize(
    ("verdict", "error", "code"),
    [("FAIL", VerificationFailed, 1), ("INCONCLUSIVE", VerificationInconclusive, 5)],
)
def test_what_is_no_pass_is_refused(
    writer: HubServer, artifact: Path, verdict: str, error: type[Exception], code: int
) -> None:
    judged(artifact, verdict)
    with pytest.raises(error, match="not published") as caught:
        push(artifact, NAME, create=True, patience=HASTE)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    assert NAME not in writer.store.repos, "refused before anything was asked of the Hub"
    push(artifact, NAME, create=True, allow_unverified=True, patience=HASTE)
    card = writer.store.data(files(writer)["README.md"]).read_text(encoding="utf-8")
    assert f"**Verified: {verdict}.**" in card and "--allow-unverified" in card


def test_an_artifact_that_was_never_verified(writer: HubServer, artifact: Path) -> None:
    opened = Artifact.open(artifact)
    opened.manifest.verification = None
    opened.save()
    with pytest.raises(VerificationInconclusive, match="is missing"):
        push(artifact, NAME, create=True, patience=HASTE)
    push(artifact, NAME, create=True, allow_unverified=True, patience=HASTE)
    assert "**Not verified.**" in writer.store.data(files(writer)["README.md"]).read_text(encoding="utf-8")


def test_a_changed_byte_is_never_published(writer: HubServer, artifact: Path) -> None:
    data = artifact / "unet" / "model.onnx_data"
    with data.open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\1\2\3")
    with pytest.raises(ArtifactError, match="changed after it was made"):
        push(artifact, NAME, create=True, allow_unverified=True, patience=HASTE)


def test_branches_and_pull_requests(writer: HubServer, artifact: Path) -> None:
    push(artifact, NAME, create=True, revision="next", patience=HASTE)
    assert "exporter.json" in files(writer, branch="next") and not files(writer)
    pushed = push(artifact, NAME, pull_request=True, patience=HASTE)
    assert pushed.pull_request is not None and pushed.pull_request.endswith("/discussions/1")
    assert "exporter.json" in files(writer, branch="refs/pr/1") and not files(writer)


def test_a_second_push_removes_what_the_first_had_and_nothing_else(writer: HubServer, artifact: Path) -> None:
    push(artifact, NAME, create=True, patience=HASTE)
    repo = writer.store.repos[NAME]
    writer.store.add_commit(repo, "main", "mine", {"notes.txt": writer.store.put(b"mine")})
    opened = Artifact.open(artifact)
    gone = opened.manifest.shared_files.pop()
    record = opened.manifest.verification
    assert record is not None
    record.digest = opened.manifest.digest()
    opened.save()
    push(artifact, NAME, patience=HASTE)
    assert gone.path not in files(writer) and "notes.txt" in files(writer)


def test_without_a_login(online: HubServer, artifact: Path) -> None:
    online.store.create(NAME)
    with pytest.raises(NetworkError) as caught:
        push(artifact, NAME, patience=HASTE)
    assert "hf auth login" in str(caught.value.hint)


def test_a_repository_that_is_not_there(writer: HubServer, artifact: Path) -> None:
    with pytest.raises(NetworkError, match="no repository") as caught:
        push(artifact, NAME, patience=HASTE)
    assert "--create" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("method", "part", "kind"),
    [
        ("PUT", "/lfs/", "500"),
        ("PUT", "/lfs/", "hang-up"),
        ("POST", "/commit/", "503"),
        ("POST", "preupload", "429"),
    ],
)
def test_faults_that_pass(writer: HubServer, artifact: Path, method: str, part: str, kind: str) -> None:
    writer.faults.add(Fault(method, part, kind, 1, retry_after="0"))  # type: ignore[arg-type]
    push(artifact, NAME, create=True, patience=HASTE)
    assert len(writer.faults.shown) == 1
    assert "exporter.json" in files(writer)


def test_a_killed_push_leaves_nothing_visible_and_goes_on(
    hub: HubServer, artifact: Path, tmp_path: Path, client: Client
) -> None:
    large = sum(f.bytes > 10_000 for f in Artifact.open(artifact).manifest.all_files())
    child = subprocess.Popen(
        [sys.executable, "-m", "exporter", "push", str(artifact), NAME, "--create"],
        env=environment(hub, tmp_path / "hf-home", token=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while hub.count("PUT", "/lfs/") < 3 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = set(hub.store.blobs)
    assert before and len(before) < large + 5, "it was killed in the middle"
    assert not files(hub), "nothing became visible"
    uploads = hub.count("PUT", "/lfs/")
    ran = client("push", str(artifact), NAME, token=True)
    assert ran.returncode == 0, ran.stderr
    assert before <= set(hub.store.blobs)
    again = {
        path for method, path in hub.requests[-(hub.count("PUT", "/lfs/") - uploads) :] if method == "PUT"
    }
    assert not {oid for oid in before if any(oid in path for path in again)}, "what arrived is not sent again"
    assert "exporter.json" in files(hub)
    assert TOKEN not in ran.stdout + ran.stderr


def test_published_verified_and_painted_from_a_fresh_cache(
    hub: HubServer, artifact: Path, tmp_path: Path, client: Client
) -> None:
    ran = client("push", str(artifact), NAME, "--create", "--json", token=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verdict"] == "PASS"
    place = {"home": "fresh", "EXPORTER_CACHE": str(tmp_path / "fresh-cache")}
    hashes = client("verify", NAME, "--check-hashes", **place)
    assert hashes.returncode == 0, hashes.stderr
    verify = client("verify", NAME, "--json", "--steps", "3", "--samples", "1", **place)
    assert verify.returncode == 0, verify.stderr
    assert json.loads(verify.stdout)["verdict"] == "PASS"
    picture = tmp_path / "star.png"
    prompt = "a large red star at the left on a blue background"
    paint = client("run", NAME, prompt, "-o", str(picture), "--seed", "7", **place)
    assert paint.returncode == 0, paint.stderr
    from PIL import Image

    from tests.judge import judge

    assert judge(Image.open(picture), prompt).ok
    inspected = client("inspect", NAME, "--json", **place)
    assert json.loads(inspected.stdout)["target"] == "onnx"
    assert client("convert", NAME, "--to", "onnx", **place).returncode == 3


@pytest.mark.interop
def test_the_code_of_the_card_runs(hub: HubServer, artifact: Path, tmp_path: Path, client: Client) -> None:
    """As it is copied from the card, by clients that know nothing of this package."""
    pytest.importorskip("optimum.onnxruntime")
    assert client("push", str(artifact), NAME, "--create", token=True).returncode == 0
    card = hub.store.data(files(hub)["README.md"]).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks):
        folder = tmp_path / f"client-{number}"
        folder.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment(hub, tmp_path / "client-home", token=False),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        from PIL import Image

        from tests.judge import judge

        prompt = re.search(r'\("(a large [^"]+)"', code)
        assert prompt and judge(Image.open(folder / "picture.png"), prompt[1]).ok
