"""Artifacts at a URL: over real HTTP with faults, in a folder, and in memory. Nothing is converted here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from exporter.artifact import (
    MANIFEST,
    Artifact,
    ComponentRecord,
    Manifest,
    SourceRecord,
    VerificationRecord,
    hash_files,
    now,
)
from exporter.batch import Row, store
from exporter.batch.collect import Collection, hand_over
from exporter.batch.state import Summary
from exporter.batch.summary import write_page
from exporter.errors import ArtifactError, DestinationError, NetworkError
from exporter.progress import NullProgress
from tests.batch.remote import RemoteStore
from tests.batch.remote_fs import PlainHttp
from tests.cli.runner import invoke

CELL = "t-r-1x64x64"
MODEL, REPORT = f"{CELL}/unet/model.onnx", f"{CELL}/verification/report.html"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("plainhttp", PlainHttp, clobber=True)
    monkeypatch.setattr(store, "PAUSE", 0.01)


@pytest.fixture
def remote() -> Iterator[RemoteStore]:
    with RemoteStore() as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small artifact with a report."""
    return artifact(tmp_path / "out" / CELL)


def artifact(root: Path, weights: bytes = b"weights" * 30_000) -> Path:
    (root / "unet").mkdir(parents=True)
    (root / "verification").mkdir()
    (root / "unet" / "model.onnx").write_bytes(weights)
    (root / "model_index.json").write_text("{}")
    (root / "verification" / "report.html").write_text("<p>PASS")
    files = hash_files([root / "unet" / "model.onnx"], root)
    unet = ComponentRecord(
        name="unet", entry=files[0].path, files=files, inputs=[], outputs=[], parameters=1, dtype="float32"
    )
    manifest = Manifest(
        target="onnx", source=SourceRecord(source="x", pipeline_class="P"), components=[unet],
        shared_files=hash_files([root / "model_index.json"], root),
    )  # fmt: skip
    manifest.verification = VerificationRecord(
        verdict="PASS", report="verification/report.html", when=now(), digest=manifest.digest()
    )
    Artifact(root, manifest).save()
    return root


def test_everything_goes_up_and_the_manifest_last(remote: RemoteStore, root: Path) -> None:
    sent = Collection(remote.url).send(root)
    assert sent.url == f"{remote.url}/{CELL}" and (sent.files, sent.there) == (4, 0)
    assert remote.names("PUT")[-1] == f"{CELL}/{MANIFEST}"
    assert {n.removeprefix("nightly/"): c for n, c in remote.files.items()} == {
        f"{CELL}/{p.relative_to(root).as_posix()}": p.read_bytes() for p in root.rglob("*") if p.is_file()
    }
    remote.requests.clear()
    again = Collection(remote.url).send(root)
    assert (again.files, again.bytes, again.there) == (0, 0, 4)
    assert remote.names("PUT") == [] and remote.names("GET") == [f"{CELL}/{MANIFEST}", "?list"]


def test_what_is_there_with_the_right_hash_is_not_sent_again(remote: RemoteStore, root: Path) -> None:
    """As after an upload that was stopped: a file is whole, one has the right size and other bytes."""
    remote.files[f"nightly/{MODEL}"] = (root / "unet" / "model.onnx").read_bytes()
    remote.files[f"nightly/{CELL}/model_index.json"] = b"[]"
    sent = Collection(remote.url).send(root)
    assert remote.names("PUT") == [f"{CELL}/model_index.json", REPORT, f"{CELL}/{MANIFEST}"]
    assert sent.there == 1 and remote.files[f"nightly/{CELL}/model_index.json"] == b"{}"
    assert remote.names("GET").count(MODEL) == 1, "the price: it is read in full"

    remote.hashes = True
    del remote.files[f"nightly/{CELL}/{MANIFEST}"]
    remote.requests.clear()
    Collection(remote.url).send(root)
    assert remote.names("PUT") == [f"{CELL}/{MANIFEST}"]
    assert MODEL not in remote.names("GET"), "a store that tells its sha256 is not read"


def test_a_lost_file_is_noticed_and_the_folder_has_no_manifest_meanwhile(
    remote: RemoteStore, root: Path
) -> None:
    collection = Collection(remote.url)
    collection.send(root)
    assert collection.holds(root) and collection.manifest(CELL) is not None
    del remote.files[f"nightly/{MODEL}"]
    assert not collection.holds(root) and collection.manifest(CELL) is None
    remote.refused[MODEL] = (500, "out of order")
    with pytest.raises(NetworkError):
        collection.send(root)
    assert f"nightly/{CELL}/{MANIFEST}" not in remote.files
    remote.refused.clear()
    assert collection.send(root).files == 2 and collection.holds(root)


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_connection_that_is_cut_in_the_middle_is_tried_again(
    remote: RemoteStore, root: Path, method: str
) -> None:
    remote.cut.append((method, MODEL))
    Collection(remote.url).send(root)
    assert remote.cut == [] and remote.names(method).count(MODEL) == 2
    assert remote.files[f"nightly/{MODEL}"] == (root / "unet" / "model.onnx").read_bytes()


def test_wrong_bytes_are_noticed_and_taken_away(remote: RemoteStore, root: Path) -> None:
    remote.spoiled.append(MODEL)
    with pytest.raises(NetworkError, match="what is read back is not what was sent, 3 times"):
        Collection(remote.url).send(root)
    assert remote.names("PUT").count(MODEL) == 3
    assert not [n for n in remote.files if n.endswith((MODEL, MANIFEST))]


def test_a_spoiled_manifest_is_noticed(remote: RemoteStore, root: Path) -> None:
    remote.spoiled.append(MANIFEST)
    with pytest.raises(NetworkError, match="read back"):
        Collection(remote.url).send(root)
    assert f"nightly/{CELL}/{MANIFEST}" not in remote.files


def test_files_here_that_are_not_the_manifests(remote: RemoteStore, root: Path) -> None:
    (root / "unet" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="is not what its manifest says") as caught:
        Collection(remote.url).send(root)
    assert caught.value.hint is not None and f"Delete {root} " in caught.value.hint
    assert not [n for n in remote.files if n.endswith((MODEL, MANIFEST))]


def test_what_is_not_ours_is_left_alone(remote: RemoteStore, root: Path) -> None:
    remote.files[f"nightly/{CELL}/unet/model.safetensors.index.json"] = b"{}"
    with pytest.raises(ArtifactError, match=r"holds unet/model\.safetensors\.index\.json"):
        Collection(remote.url).send(root)
    assert len(remote.files) == 1
    remote.files = {f"nightly/{CELL}/{MANIFEST}": b"no JSON"}
    with pytest.raises(ArtifactError, match="is no manifest"):
        Collection(remote.url).manifest(CELL)


def test_a_folder_and_memory(root: Path, tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/there/deeper", "memory://bucket/deeper"):
        collection = Collection(url + "/")
        collection.store.probe()
        assert collection.store.sizes("") == {}, "the probe was left"
        assert collection.manifest(CELL) is None and not collection.holds(root)
        assert collection.send(root).files == 4 and collection.send(root).files == 0
        assert collection.holds(root)
        assert collection.store.sizes(CELL).keys() == {
            p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()
        }
    assert Artifact.open(tmp_path / "there" / "deeper" / CELL).changed_files() == []
    weights = tmp_path / "there" / "deeper" / MODEL
    weights.write_bytes(b"x" * weights.stat().st_size)
    (weights.parents[1] / MANIFEST).unlink()
    assert Collection(f"file://{tmp_path}/there/deeper").send(root).files == 2


def request(root: Path, url: str, *, keep: bool = True) -> dict[str, object]:
    return {"output": str(root), "collect": url, "keep": keep}


@pytest.mark.parametrize(
    ("fault", "code", "part"),
    [((500, "no"), 7, "OSError: no"), ((403, ""), 2, "PermissionError"), ((404, ""), 2, "FileNotFoundError")],
)
def test_a_failed_collection_is_told_and_the_artifact_stays(
    remote: RemoteStore, root: Path, fault: tuple[int, str], code: int, part: str
) -> None:
    remote.refused[MODEL] = fault
    row = Row(id=CELL, model="t", recipe="r", target="onnx", state="done", verdict="PASS")
    hand_over(row, request(root, remote.url, keep=False), NullProgress())
    assert (row.state, row.verdict, row.collected, row.exit_code) == ("uncollected", "PASS", None, code)
    assert row.error is not None and row.error.message.startswith("Not collected: ")
    assert part in row.error.message and f"The artifact stays at {root}." in row.error.message
    assert Artifact.open(root).changed_files() == []
    row.verdict = "FAIL"
    assert row.exit_code == 1, "the worst of both"
    summary = Summary(name="m", rows=[row])
    write_page(summary, root.parent)
    page = (root.parent / "index.html").read_text()
    assert "not collected" in page and "cannot be written" in page


def test_an_artifact_that_is_collected_is_deleted_where_asked(remote: RemoteStore, root: Path) -> None:
    row = Row(id=CELL, model="t", recipe="r", target="onnx", state="done", verdict="PASS")
    row.report = f"{CELL}/verification/report.html"
    hand_over(row, request(root, remote.url), NullProgress())
    assert row.collected == f"{remote.url}/{CELL}" and root.is_dir()
    assert row.report == f"{CELL}/verification/report.html"
    hand_over(row, request(root, remote.url, keep=False), NullProgress())
    assert list(root.parent.iterdir()) == [] and f"nightly/{CELL}/{MANIFEST}" in remote.files
    assert row.report == f"{remote.url}/{CELL}/verification/report.html"
    write_page(Summary(name="m", rows=[row]), root.parent)
    assert f"collected: {remote.url}/{CELL}" in (root.parent / "index.html").read_text()


@pytest.mark.parametrize(
    ("url", "code", "part"),
    [
        ("out", 2, "PROTOCOL://PLACE"),
        ("/shared/out", 2, "PROTOCOL://PLACE"),
        ("s3://", 2, "PROTOCOL://PLACE"),
        ("simplecache::s3://b/x", 2, "a chain of protocols"),
        ("sftp://me:verysecret@host/x", 2, "a password in the URL (sftp://USER:PASSWORD@…)"),
        ("sftp://me%3Averysecret@host/x", 2, "a password in the URL"),
        ("az://c/x?sig=verysecret", 2, "may be a token"),
        ("s3://b/x#token=verysecret", 2, "may be a token"),
        ("https://host/x", 2, "can only be read"),
        ("memory://x", 2, "a process of its own"),
        ("nosuch://x", 2, "fsspec knows no protocol nosuch://"),
        ("s3://bucket/x", 4, "pip install s3fs"),
        ("sftp://host/x", 4, "pip install paramiko"),
    ],
)
def test_urls_that_are_refused_before_work(
    tmp_path: Path, url: str, code: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s3fs", "paramiko"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import of a missing package sees
    matrix = tmp_path / "m.yaml"
    matrix.write_text("name: m\nmodels: [builtin:shapes]\nrecipes: [onnx/float32]\n")
    for more in ([], ["--dry-run"]):
        ran = invoke("batch", matrix, "-o", tmp_path / "out", "--collect", url, *more)
        ran.failed(code, part)
        assert "verysecret" not in ran.stderr and not (tmp_path / "out").exists()


def test_a_url_of_the_matrix_is_refused_with_its_line(tmp_path: Path) -> None:
    matrix, good = tmp_path / "m.yaml", "name: m\nmodels: [builtin:shapes]\nrecipes: [onnx/float32]\n"
    matrix.write_text(good + "collect: sftp://me:verysecret@host/x\n")
    ran = invoke("batch", matrix, "-o", tmp_path / "out")
    ran.failed(3, "m.yaml line 4: collect: a password in the URL")
    assert "verysecret" not in ran.stderr
    matrix.write_text(good + "keep: false\n")
    invoke("batch", matrix, "-o", tmp_path / "out").failed(2, "--collect")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_known_before_work(tmp_path: Path, remote: RemoteStore) -> None:
    matrix = tmp_path / "m.yaml"
    matrix.write_text("name: m\nmodels: [builtin:shapes]\nrecipes: [onnx/float32]\n")
    (tmp_path / "file").write_text("x")
    for url, code, part in (
        (f"file://{tmp_path}/file/x", 2, "cannot be written"),
        (remote.url.replace("nightly", "none"), 2, "PermissionError"),
        ("plainhttp://127.0.0.1:9/x", 7, "Connection refused"),
    ):
        remote.refused["none"] = (403, "")
        ran = invoke("batch", matrix, "-o", tmp_path / "out", "--collect", url)
        ran.failed(code, part)
        assert not (tmp_path / "out").exists() and remote.files == {}
    remote.spoiled.append("")
    with pytest.raises(DestinationError, match="other bytes"):
        Collection(remote.url).store.probe()
    assert remote.files == {}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STORE_TOKEN", "verysecret-of-the-environment")
    for text in (
        "cannot reach sftp://me:verysecret@host/x",
        "403 for https://host/x?sv=1&sig=verysecret",
        "Authorization: Bearer verysecret",
        "{'access_key_id': 'verysecret', 'place': 'x'}",
        "token=verysecret, retry",
        "sent verysecret-of-the-environment there",
    ):
        found = store.shown(text + "\nmore")
        assert "verysecret" not in found and "***" in found, found
    assert (
        store.shown("Bucket models does not exist in eu-west-1")
        == "Bucket models does not exist in eu-west-1"
    )
    assert store.shown("  ") == "no message"


def test_hashes_that_stores_tell() -> None:
    right = "0" * 64
    assert store.told_sha256({"sha256": right}) == store.told_sha256({"lfs": {"sha256": right}}) == right
    assert store.told_sha256({"ETag": right, "md5": "0" * 32, "lfs": None, "sha256": b""}) is None


def test_a_full_store(root: Path, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    there = tmp_path / "there" / CELL / "unet"
    there.mkdir(parents=True)
    (there / "model.onnx").symlink_to(full)
    with pytest.raises(store.StoreFull) as caught:
        Collection(f"file://{tmp_path}/there").send(root)
    assert caught.value.exit_code == 6


def test_a_store_with_one_answer_for_no_rights_and_no_file(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FTP has it: deleting what is not there is no error, deleting what stays is one."""

    def no(self: PlainHttp, path: str) -> None:
        raise ValueError("550 No")

    monkeypatch.setattr(PlainHttp, "rm_file", no)
    place = Collection(remote.url).store
    place.remove("nothing")
    place.write("something", b"x")
    with pytest.raises(NetworkError, match="550 No"):
        place.remove("something")


def test_a_library_that_has_tried_for_long_is_not_asked_again(
    remote: RemoteStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ENOUGH", 0.0)
    remote.refused["small"] = remote.refused[MODEL] = (500, "no")
    place = Collection(remote.url).store
    with pytest.raises(NetworkError):
        place.write("small", b"x")
    with pytest.raises(NetworkError):
        place.put(root / "unet" / "model.onnx", MODEL)
    assert (remote.names("PUT").count("small"), remote.names("PUT").count(MODEL)) == (1, 3)
