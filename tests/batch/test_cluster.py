"""Batches on a real Ray cluster of three nodes on this machine, one of which is killed at work."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter import batch
from exporter.artifact import Artifact
from exporter.batch import Row, split
from exporter.errors import NetworkError
from tests.batch.matrices import SIZES, attempts, write
from tests.cli.runner import invoke

pytest.importorskip("onnx")
CELLS = [f"t-r-{size}" for size in SIZES]
MEMORY = 1_500_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no cells."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "memory": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made
    finally:
        made.shutdown()


def node(cluster: Any) -> Any:
    """One more node, with a core and memory for one cell."""
    return cluster.add_node(num_cpus=1, memory=MEMORY, object_store_memory=100_000_000, wait=True)


class Killer(batch.NoWatcher):
    """Kills the node of the first cell that is seen at work on one of `nodes`."""

    def __init__(self, cluster: Any, nodes: list[Any]) -> None:
        self.cluster, self.nodes = cluster, {n.node_id[:8]: n for n in nodes}
        self.killed: str | None = None
        self.again_seen: list[str] = []
        self.where: set[str] = set()

    def working(self, row: Row, what: str) -> None:
        place = what.split(":")[0].split("/")[-1]
        self.where.add(place)
        if self.killed is None and place in self.nodes:
            self.killed = row.id
            self.cluster.remove_node(self.nodes.pop(place), allow_graceful=False)

    def again(self, row: Row, why: str) -> None:
        self.again_seen.append(row.id)


@pytest.mark.full
def test_a_node_that_is_killed_loses_nothing_and_nothing_is_done_twice(
    cluster: Any, tiny: Path, tmp_path: Path
) -> None:
    more = "set: {components: [unet, vae_decoder, vae_encoder]}\n"
    matrix, out = write(tmp_path, tiny, (*SIZES, "1x64x63"), more=more), tmp_path / "out"
    nodes = [node(cluster), node(cluster)]
    killer = Killer(cluster, nodes)
    try:
        summary = batch.run(matrix, out, ray=cluster.address, watcher=killer)
        assert killer.killed is not None, "no node was killed while it was at work"
        rows = {row.id: row for row in summary.rows}
        assert rows["t-r-1x64x63"].exit_code == 2 and summary.exit_code == 2
        for name in CELLS:
            assert rows[name].error is None, rows[name]
            assert Artifact.open(out / name).changed_files() == []
            assert attempts(out, name).count("done") == 1
        assert attempts(out, killer.killed)[:2] == ["begun", "begun"]
        assert killer.again_seen == [killer.killed]
        assert {rows[name].where.split("/")[-1] for name in CELLS} & set(killer.nodes)  # type: ignore[union-attr]
        assert not [p.name for p in out.iterdir() if p.name.startswith(".t-r")], "staging or locks are left"

        again = batch.run(matrix, out, ray=cluster.address)
        assert [again_row.state for again_row in again.rows] == ["kept", "kept", "kept", "failed"]
        assert all(attempts(out, name).count("begun") == rows[name].attempts for name in CELLS)
    finally:
        for left in killer.nodes.values():
            cluster.remove_node(left)


@pytest.mark.full
def test_a_node_that_is_killed_while_it_makes_parts(
    cluster: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "WEIGHT", 1)  # so that `auto` thinks the tiny model worth it
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: builtin:shapes\ntarget: onnx\nverify: {steps: 2, samples: 1}\n"
    )
    matrix, out = tmp_path / "m.yaml", tmp_path / "out"
    matrix.write_text(f"name: m\nmodels:\n  - {{model: {tiny}, name: t}}\nrecipes: [r.yaml]\n")
    nodes = [node(cluster), node(cluster)]
    killer = Killer(cluster, nodes)
    try:
        summary = batch.run(matrix, out, ray=cluster.address, watcher=killer)
    finally:
        for left in killer.nodes.values():
            cluster.remove_node(left)
    (row,) = summary.rows
    assert row.verdict == "PASS" and summary.exit_code == 0, row
    assert row.split == "split: 2 cores for 1 cell"
    parts = {part.id: part for part in row.parts}
    assert list(parts) == ["t-r@text_encoder", "t-r@unet", "t-r@vae"]
    assert killer.killed in parts and killer.again_seen == [killer.killed]
    for name, part in parts.items():
        noted = attempts(out, name)
        assert noted.count("done") == 1 and part.attempts == noted.count("begun") == 1 + (
            name == killer.killed
        )
    assert attempts(out, "t-r") == ["begun", "done"], "the cell's own task came after all parts"
    assert {part.where.split("/")[-1] for part in parts.values() if part.where} & set(killer.nodes)
    assert Artifact.open(out / "t-r").verified(rehash=True) == "PASS"
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [".batch"]
    assert not (out / ".batch" / "parts").exists()


def test_a_cell_that_fits_no_node_is_refused_before_work(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    small = cluster.add_node(num_cpus=1, memory=1_000_000, object_store_memory=100_000_000, wait=True)
    try:
        summary = batch.run(write(tmp_path, tiny, SIZES[:1]), tmp_path / "out", ray=cluster.address)
    finally:
        cluster.remove_node(small)
    (row,) = summary.rows
    assert row.exit_code == 6 and row.error is not None and "the largest node gives Ray" in row.error.message
    assert row.attempts == 0


def test_an_address_that_nobody_answers(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    matrix, out = write(tmp_path, tiny, SIZES[:1]), tmp_path / "out"
    began = time.monotonic()
    invoke("batch", matrix, "-o", out, "--ray", "127.0.0.1:9").failed(
        7, "No Ray cluster answers", "ray start"
    )
    assert time.monotonic() - began < 30 and not out.exists()
    invoke("batch", matrix, "-o", out, "--ray", "nonsense").failed(2, "not HOST:PORT")
    invoke("batch", matrix, "-o", out, "--ray", "127.0.0.1:9", "--jobs", 2).failed(2, "--jobs")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_answers(tiny: Path, tmp_path: Path, answer: bytes) -> None:
    """Ray itself would wait for minutes."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer:
            threading.Thread(target=lambda: server.accept()[0].sendall(answer), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(NetworkError, match="answers at"):
            batch.run(write(tmp_path, tiny, SIZES[:1]), tmp_path / "out", ray=address)


def test_without_ray_the_extra_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import of a missing package sees
    ran = invoke("batch", write(tmp_path, tiny, SIZES[:1]), "-o", tmp_path / "out", "--ray", "127.0.0.1:9")
    ran.failed(4, "Ray is needed", 'pip install "exporter[cluster]"')
