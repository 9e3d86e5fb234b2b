"""A Ray node that shares no storage with the command: its disk is its own, and artifacts come by the URL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from exporter import batch
from exporter.artifact import MANIFEST
from exporter.batch import Row
from exporter.errors import BackendMissing, UsageError
from tests.batch.matrices import SIZES, attempts, write
from tests.batch.remote import RemoteStore, installed
from tests.batch.remote_fs import PlainHttp
from tests.batch.test_cluster import cluster  # noqa: F401

pytest.importorskip("onnx")
CELL = f"t-r-{SIZES[0]}"
AS_ROOT = () if os.geteuid() == 0 else ("--map-root-user",)
SHARES_NOTHING = ("unshare", "--mount", *AS_ROOT, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')


def own_disks_can_be_had(folder: Path) -> bool:
    """Whether a process here may have a disk of its own at a path: that takes a mount namespace."""
    return shutil.which("unshare") is not None and (
        subprocess.run([*SHARES_NOTHING, folder, "true"], capture_output=True, check=False).returncode == 0
    )


@contextmanager
def node_apart(cluster: Any, disk: Path, site: str) -> Iterator[subprocess.Popen[bytes]]:  # noqa: F811
    """A node with a core, and at `disk` a file system that nobody else sees."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--block"]
    limits = ["--num-cpus=1", "--memory=1500000000", "--object-store-memory=100000000"]
    before = alive(cluster)
    child = subprocess.Popen(
        [*SHARES_NOTHING, str(disk), *ray, *limits],
        env={**os.environ, "PYTHONPATH": site, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            if alive(cluster) > before:
                break
            assert child.poll() is None, child.stdout.read().decode()  # type: ignore[union-attr]
            time.sleep(0.1)
        else:
            pytest.fail("the node did not join")
        yield child
    finally:
        child.terminate()
        child.wait(30)


class Killer(batch.NoWatcher):
    """Kills the node of the first cell that is heard of, and everything on it."""

    def __init__(self, nodes: dict[str, subprocess.Popen[bytes]]) -> None:
        self.nodes, self.killed = nodes, ""

    def working(self, row: Row, what: str) -> None:
        place = what.split(":")[0].split("/")[-1]
        if not self.killed and place in self.nodes:
            self.killed = row.id
            node = psutil.Process(self.nodes.pop(place).pid)
            for process in [*node.children(recursive=True), node]:
                with suppress(psutil.Error):
                    process.kill()


def alive(cluster: Any) -> int:  # noqa: F811
    return len(names(cluster))


class Said(batch.NoWatcher):
    """What a node without shared storage said."""

    def __init__(self) -> None:
        self.started_cells: list[str] = []
        self.words: list[str] = []

    def started(self, row: Row) -> None:
        self.started_cells.append(row.id)

    def working(self, row: Row, what: str) -> None:
        self.words.append(what)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A batch's folder that nodes may have on a disk of their own, and what they find exporter by."""
    fsspec.register_implementation("plainhttp", PlainHttp, clobber=True)
    out, site = tmp_path / "out", tmp_path / "site"
    out.mkdir()
    site.mkdir()
    if not own_disks_can_be_had(out):
        pytest.skip("no mount namespaces here")
    return out, installed(site)


def test_what_a_node_makes_on_its_own_disk_comes_by_the_url(
    cluster: Any,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
    place: tuple[Path, Path],
) -> None:
    out, site = place
    matrix = write(tmp_path, tiny, SIZES[:1])
    with RemoteStore() as remote, node_apart(cluster, out, site):
        with pytest.raises(UsageError, match="does not see") as caught:
            batch.run(matrix, out, ray=cluster.address)
        assert caught.value.hint is not None and "--collect" in caught.value.hint
        with pytest.raises(UsageError, match=r"On the node .* is another place there"):
            batch.run(matrix, out, ray=cluster.address, collect=f"file://{out}/there")

        remote.refused["model.onnx"] = (500, "out of order")
        said = Said()
        summary = batch.run(matrix, out, ray=cluster.address, collect=remote.url, watcher=said)
        (row,) = summary.rows
        assert row.state == "uncollected" and row.exit_code == 7 and row.error is not None
        assert f"stays at {out / CELL} on the node {row.where}" in row.error.message
        assert not (out / CELL).exists(), "it was not made on a disk of its own"
        assert said.started_cells == [CELL] and said.words, "nothing was heard of it"

        remote.refused.clear()
        summary = batch.run(matrix, out, ray=cluster.address, collect=remote.url)
        (row,) = summary.rows
        assert (row.state, row.collected, row.exit_code) == ("kept", f"{remote.url}/{CELL}", 0), row
        assert row.bytes > 0 and f"nightly/{CELL}/{MANIFEST}" in remote.files
        assert not [n for n in remote.files if "probe" in n]
        noted = ["begun", "done", "uncollected", "begun", "kept", "collected"]
        assert attempts(out, CELL) == noted and row.attempts == 2

        summary = batch.run(matrix, out, ray=cluster.address, collect=remote.url)
        assert summary.rows[0].state == "kept" and attempts(out, CELL) == noted
        assert remote.url in (out / "index.html").read_text()


@pytest.mark.full
def test_a_node_that_is_killed_with_its_own_disk(
    cluster: Any,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
    place: tuple[Path, Path],
) -> None:
    out, site = place
    matrix = write(
        tmp_path, tiny, more="set: {components: [unet, vae_decoder, vae_encoder]}\nsplit: always\n"
    )
    with RemoteStore() as remote, ExitStack() as stack:
        nodes = {}
        for _ in range(2):
            known = names(cluster)
            child = stack.enter_context(node_apart(cluster, out, site))
            nodes[(names(cluster) - known).pop()[:8]] = child
        killer = Killer(nodes)
        summary = batch.run(matrix, out, ray=cluster.address, collect=remote.url, watcher=killer)
        assert killer.killed, "no node was killed while it was at work"
        assert summary.exit_code == 0, summary
        for row in summary.rows:
            assert row.parts == [], "parts cannot be adopted from another node's disk"
            assert row.state == "done" and row.collected == f"{remote.url}/{row.id}"
            assert attempts(out, row.id).count("done") == attempts(out, row.id).count("collected") == 1
        assert attempts(out, killer.killed)[:2] == ["begun", "begun"]
        manifests = [n for n in remote.names("PUT") if n.endswith(MANIFEST)]
        assert len(manifests) == len(set(manifests)) == 3


def names(cluster: Any) -> set[str]:  # noqa: F811
    return {n["NodeID"] for n in cluster.global_state.node_table() if n["Alive"]}


def test_a_node_without_the_package_is_known_before_work(
    cluster: Any,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
) -> None:
    fsspec.register_implementation("plainhttp", PlainHttp, clobber=True)
    node = cluster.add_node(num_cpus=1, memory=1_500_000_000, object_store_memory=100_000_000, wait=True)
    try:
        with RemoteStore() as remote, pytest.raises((UsageError, BackendMissing), match="On the node"):
            batch.run(
                write(tmp_path, tiny, SIZES[:1]), tmp_path / "out", ray=cluster.address, collect=remote.url
            )
        assert not list((tmp_path / "out" / ".batch").glob("*.attempts")) and remote.files == {}
    finally:
        cluster.remove_node(node)
