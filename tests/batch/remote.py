"""A store over real HTTP in this process, with the faults of real ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

FS = Path(__file__).with_name("remote_fs.py")


class RemoteStore:
    """`with RemoteStore() as store: store.url`

    Attributes:
        files: What it holds, by path.
        requests: Method and path of each.
        cut: Method and end of a path: that connection is cut in the middle, once.
        spoiled: Ends of paths whose bytes it stores wrong, each time.
        refused: Parts of paths that it answers with this status.
        hashes: Whether it tells the sha256 of what it holds.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut: list[tuple[str, str]] = []
        self.spoiled: list[str] = []
        self.refused: dict[str, tuple[int, str]] = {}
        self.hashes = False
        handler = type("Handler", (_Handler,), {"store": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"plainhttp://127.0.0.1:{self._http.server_address[1]}/nightly"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> RemoteStore:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def names(self, method: str) -> list[str]:
        """Paths of the requests of a method, below the URL, without probes."""
        paths = [path.removeprefix("nightly/") for m, path in self.requests if m == method]
        return [path for path in paths if ".exporter-probe-" not in path]


class _Handler(BaseHTTPRequestHandler):
    store: RemoteStore

    def _begin(self) -> tuple[str, bool]:
        """The path, and whether this connection is to be cut."""
        path = unquote(self.path).lstrip("/")
        self.store.requests.append((self.command, path))
        fault = next((f for f in self.store.cut if f[0] == self.command and path.endswith(f[1])), None)
        if fault is not None:
            self.store.cut.remove(fault)
        return path, fault is not None

    def _refused(self, path: str) -> bool:
        for part, (status, text) in self.store.refused.items():
            if part in path:
                self._answer(status, text.encode())
                return True
        return False

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_PUT(self) -> None:
        path, cut = self._begin()
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size // 2 if cut else size)
        if cut:
            self.store.files[path] = content  # a store that keeps what had come
            self.close_connection = True
            self.connection.close()
        elif not self._refused(path):
            if any(path.endswith(end) for end in self.store.spoiled):
                content = bytes([content[0] ^ 1]) + content[1:]
            self.store.files[path] = content
            self._answer(200)

    def do_GET(self) -> None:
        path, cut = self._begin()
        if path == "?list":
            sizes = {name: len(content) for name, content in self.store.files.items()}
            return self._answer(200, json.dumps(sizes).encode())
        content = self.store.files.get(path)
        if content is None:
            return self._answer(404)
        if cut:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._answer(200, content)

    def do_HEAD(self) -> None:
        path, _ = self._begin()
        content = self.store.files.get(path)
        if content is None:
            return self._answer(404)
        told = {"X_Sha256": hashlib.sha256(content).hexdigest()} if self.store.hashes else {}
        return self._answer(200, X_Size=str(len(content)), **told)

    def do_DELETE(self) -> None:
        path, _ = self._begin()
        self._answer(200 if self.store.files.pop(path, None) is not None else 404)

    def log_message(self, *_: object) -> None:
        pass


def installed(folder: Path) -> str:
    """Put the file system where a process with this PYTHONPATH has it as an installed package."""
    shutil.copy(FS, folder / "plain_http_fs.py")
    info = folder / "plain_http_fs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-http-fs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fsspec.specs]\nplainhttp = plain_http_fs.PlainHttp\n")
    return str(folder)
