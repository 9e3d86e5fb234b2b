"""Batches whose artifacts go to a store over HTTP: failures, taking up again, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from exporter import batch
from exporter.artifact import MANIFEST, Artifact
from tests.batch.matrices import SIZES, attempts, write
from tests.batch.remote import RemoteStore, installed
from tests.batch.remote_fs import PlainHttp
from tests.cli.runner import invoke

pytest.importorskip("onnx")
FIRST, SECOND = (f"t-r-{size}" for size in SIZES[:2])


def states(rows: list[dict[str, object]]) -> list[object]:
    return [row["state"] for row in rows]


def test_a_failing_collection_is_taken_up_again_and_nothing_is_done_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("plainhttp", PlainHttp, clobber=True)
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path / "site"))
    with RemoteStore() as remote:
        matrix, out = write(tmp_path, tiny, SIZES[:2], more=f"collect: {remote.url}\n"), tmp_path / "out"
        command = ("batch", matrix, "-o", out, "--json")
        remote.refused[f"{FIRST}/"] = (500, "the disk of the store is broken")
        ran = invoke(*command)
        assert ran.code == 7, ran
        assert states(ran.document["rows"]) == ["uncollected", "done"]
        failed, sent = ran.document["rows"]
        assert "the disk of the store is broken" in failed["error"]["message"] and failed["collected"] is None
        assert sent["collected"] == f"{remote.url}/{SECOND}"
        page = (out / "index.html").read_text()
        assert "the disk of the store is broken" in page and f"collected: {remote.url}/{SECOND}" in page
        assert attempts(out, FIRST) == ["begun", "done", "uncollected"]
        assert attempts(out, SECOND) == ["begun", "done", "collected"]
        for name in (FIRST, SECOND):
            assert Artifact.open(out / name).changed_files() == []

        remote.refused.clear()
        ran = invoke(*command)
        assert ran.code == 0 and states(ran.document["rows"]) == ["kept", "kept"], ran
        assert attempts(out, FIRST)[3:] == ["begun", "kept", "collected"]
        assert attempts(out, SECOND) == ["begun", "done", "collected"], "it was done twice"
        puts = remote.names("PUT")
        assert all(puts.count(n) == 1 for n in puts if n.startswith(SECOND)), "it was sent twice"

        # Another machine, with an empty disk: what is at the URL is not made again. Here it may go.
        remote.requests.clear()
        ran = invoke("batch", matrix, "-o", tmp_path / "elsewhere", "--json")
        assert ran.code == 0 and states(ran.document["rows"]) == ["kept", "kept"]
        assert not (tmp_path / "elsewhere" / FIRST).exists() and remote.names("PUT") == []
        assert ran.document["rows"][0]["bytes"] == failed["bytes"] > 0
        ran = invoke(*command, "--no-keep")
        assert ran.code == 0 and not (out / FIRST).exists() and not (out / SECOND).exists()
        assert json.loads((out / "batch.json").read_text())["rows"][1]["collected"] == sent["collected"]

        # Another request is not written over it.
        write(tmp_path, tiny, SIZES[:1], more=f"collect: {remote.url}\nset: {{options.dtype: float16}}\n")
        held = dict(remote.files)
        summary = batch.run(matrix, tmp_path / "third")
        assert summary.exit_code == 3 and summary.rows[0].error is not None
        assert "was made otherwise" in summary.rows[0].error.message and remote.files == held
        assert f"nightly/{FIRST}/{MANIFEST}" in held
