"""An fsspec file system over plain HTTP (PUT, GET, HEAD, DELETE and a listing), for `remote.RemoteStore`.

Imports nothing of ours: workers find it as they find any other, by an entry point of an installed package.
"""

from __future__ import annotations

import http.client
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsspec import AbstractFileSystem


class PlainHttp(AbstractFileSystem):
    """`plainhttp://HOST:PORT/PATH`."""

    protocol = "plainhttp"

    def _request(
        self, method: str, path: str, body: Any = None, size: int | None = None
    ) -> tuple[bytes, Any]:
        host, _, name = self._strip_protocol(path).partition("/")
        line = http.client.HTTPConnection(host, timeout=20)
        try:
            line.request(method, "/" + quote(name), body, {"Content-Length": str(size or 0)})
            answer = line.getresponse()
            content = answer.read()
        finally:
            line.close()
        if answer.status == 404:
            raise FileNotFoundError(path)
        if answer.status == 403:
            raise PermissionError(path)
        if answer.status >= 400:
            raise OSError(content.decode() or answer.reason)
        return content, answer.headers

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **_: Any) -> None:
        with Path(lpath).open("rb") as handle:
            self._request("PUT", rpath, handle, Path(lpath).stat().st_size)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._request("PUT", path, value, len(value))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        headers = self._request("HEAD", path)[1]
        found = {"name": path, "size": int(headers["X-Size"]), "type": "file"}
        return found | ({"sha256": headers["X-Sha256"]} if "X-Sha256" in headers else {})

    def find(
        self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        path = self._strip_protocol(path)
        host, _slash, name = path.partition("/")
        found = json.loads(self._request("GET", f"{host}/?list")[0]) if name else {}
        prefix = f"{name}/"
        below = {f"{host}/{n}": {"size": size} for n, size in found.items() if n.startswith(prefix)}
        return below if detail else list(below)

    def rm_file(self, path: str) -> None:
        self._request("DELETE", path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb"
        return io.BytesIO(self._request("GET", path)[0])
