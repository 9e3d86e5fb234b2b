"""A Hub in this process, over real HTTP, for the unmodified huggingface_hub client.

It speaks the part of the protocol that downloading and publishing need: model info and tree, resolve
with redirects and ranges, ETags, gated and private repositories, create repo and branch, preupload,
LFS batch with single and multi-part uploads, and NDJSON commits with pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Fault, Faults
from tests.hub.store import Blob, Commit, Repo, Store

TOKEN = "hf_testTokenThatMustNeverBeShown"
PART = 200_000
"""Bytes of one part of a large upload; anything larger goes up in several."""


class HubServer:
    """`with HubServer(folder) as hub: hub.url`"""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.parts: dict[str, dict[int, bytes]] = {}
        self.pulls = 0
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, method: str, part: str) -> int:
        """How many requests of a method had `part` in their path."""
        return sum(m == method and part in path for m, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    query: dict[str, list[str]]

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "model_info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "lfs_put"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
        ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", "cdn"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append((method, url.path))
        self.fault: Fault | None = self.hub.faults.take(method, url.path)
        if self.fault is not None and self._refuse(self.fault):
            return
        for verb, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found and (verb == method or (verb == "GET" and method == "HEAD")):
                values = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                getattr(self, name)(**values)
                return
        self._error(404, f"no route for {method} {url.path}")

    def _refuse(self, fault: Fault) -> bool:
        if fault.kind == "hang-up":
            self.close_connection = True
            self.connection.close()
            return True
        if fault.kind.isdigit():
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._error(int(fault.kind), HTTPStatus(int(fault.kind)).phrase, headers=headers)
            return True
        return False

    # Answers

    def _json(self, value: Any, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _error(
        self, status: int, text: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        extra = {"X-Error-Message": text, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._bytes(json.dumps({"error": text}).encode(), extra, status)

    def _bytes(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        kind = self.fault.kind if self.fault and status < 400 else None
        if kind == "corrupt":
            data = bytes(byte ^ 0x55 for byte in data)
        if kind == "truncate":
            data = data[: len(data) // 2]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "drop":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)

    # Who may see what

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str, *, content: bool = False) -> Repo | None:
        found = self.hub.store.repos.get(name)
        if found is None or (found.private and not self._authorised()):
            status = 404 if self._authorised() else 401
            self._error(status, "Repository not found", "RepoNotFound")
            return None
        if content and found.gated and not self._authorised():
            self._error(401, "Access to this model is restricted", "GatedRepo")
            return None
        return found

    def _commit(self, repo: Repo, revision: str) -> Commit | None:
        found = repo.commit(revision)
        if found is None:
            self._error(404, "Invalid rev id", "RevisionNotFound")
        return found

    def _writable(self, name: str) -> Repo | None:
        if not self._authorised():
            self._error(401, "Invalid username or password.")
            return None
        return self._repo(name)

    # Reading

    def whoami(self) -> None:
        if not self._authorised():
            return self._error(401, "Invalid username or password.")
        return self._json({"name": "tester", "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def model_info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision) if found else None
        if found is None or commit is None:
            return
        blobs = "blobs" in self.query
        siblings = [
            {"rfilename": path, **(_blob(blob) if blobs else {})}
            for path, blob in sorted(commit.files.items())
        ]
        self._json(
            {
                "id": repo, "modelId": repo, "sha": commit.sha, "private": found.private,
                "gated": "auto" if found.gated else False, "tags": [], "siblings": siblings,
            }
        )  # fmt: skip

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        found = self._repo(repo)
        commit = self._commit(found, revision) if found else None
        if commit is not None:
            entries = [
                {"type": "file", "path": name, "oid": blob.git, **_blob(blob)}
                for name, blob in sorted(commit.files.items())
                if name.startswith(path)
            ]
            self._json(entries)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._repo(repo, content=True)
        commit = self._commit(found, revision) if found else None
        if commit is None:
            return
        blob = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha}
        if blob is None:
            self._error(404, "Entry not found", "EntryNotFound", headers)
        elif blob.lfs:
            headers |= {
                "X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size),
                "Location": f"{self.hub.url}/cdn/{blob.sha256}",
            }  # fmt: skip
            self._bytes(b"", headers, 302)
        else:
            self._content(blob, {**headers, "ETag": f'"{blob.git}"'})

    def cdn(self, oid: str) -> None:
        blob = self.hub.store.blobs.get(oid)
        if blob is None:
            return self._error(404, "no such object")
        return self._content(blob, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, blob: Blob, headers: dict[str, str]) -> None:
        data = self.hub.store.data(blob.sha256).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._bytes(data[start : end + 1], headers, 206)
        else:
            self._bytes(data, headers)

    # Writing

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def create_repo(self) -> None:
        if not self._authorised():
            return self._error(401, "Invalid username or password.")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        with self.hub.lock:
            if name in self.hub.store.repos:
                return self._json(
                    {"error": "You already created this model repo", "url": self._web(name)}, 409
                )
            self.hub.store.create(name, private=bool(asked.get("private")))
        return self._json({"url": self._web(name), "name": name})

    def _web(self, name: str) -> str:
        return f"{self.hub.url}/{name}"

    def branch(self, repo: str, revision: str) -> None:
        found = self._writable(repo)
        if found is None:
            return
        if revision in found.branches:
            return self._error(409, "Reference already exists")
        found.branches[revision] = list(found.branches["main"])
        self._json({"ref": f"refs/heads/{revision}"}, 201)

    def preupload(self, repo: str, revision: str) -> None:
        found = self._writable(repo)
        commit = self._commit(found, revision) if found else None
        if commit is None:
            return
        files = []
        for file in json.loads(self.body)["files"]:
            path, size = file["path"], file["size"]
            there = commit.files.get(path)
            lfs = self.hub.store.is_lfs(path, size)
            oid = None if there is None else there.sha256 if there.lfs else there.git
            files.append(
                {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": files})

    def lfs_batch(self, repo: str) -> None:
        if self._writable(repo) is None:
            return
        answers = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.store.blobs:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{oid}", "header": {}}
                if size > PART:
                    count = -(-size // PART)
                    parts = {str(n): f"{self.hub.url}/lfs/{oid}/{n}" for n in range(1, count + 1)}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(PART), **parts},
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{oid}/verify"}}
            answers.append(answer)
        self._json({"transfer": "multipart", "objects": answers})

    def lfs_put(self, oid: str, part: str | None = None) -> None:
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = self.body
            self._bytes(b"", {"ETag": hashlib.md5(self.body).hexdigest()})
        elif self._keep(oid, self.body):
            self._bytes(b"", {})

    def lfs_complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid, {})
        wanted = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        if self._keep(oid, b"".join(parts[number] for number in wanted)):
            self._json({})

    def _keep(self, oid: str, data: bytes) -> bool:
        if hashlib.sha256(data).hexdigest() != oid:
            self._error(422, "the content does not have the announced hash")
            return False
        self.hub.store.put(data, "large.bin")
        return True

    def lfs_verify(self, oid: str) -> None:
        blob = self.hub.store.blobs.get(oid)
        asked = json.loads(self.body)
        if blob is None or blob.size != asked["size"]:
            self._error(404, "no such object")
        else:
            self._json({})

    def commit(self, repo: str, revision: str) -> None:
        found = self._writable(repo)
        if found is None or self._commit(found, revision) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        added: dict[str, Blob] = {}
        deleted: list[str] = []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = self.hub.store.put(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.store.blobs:
                    return self._error(400, f"the object of {value['path']} was not uploaded")
                added[value["path"]] = self.hub.store.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        with self.hub.lock:
            answer: dict[str, Any] = {}
            if "create_pr" in self.query:
                self.hub.pulls += 1
                revision = f"refs/pr/{self.hub.pulls}"
                answer["pullRequestUrl"] = f"{self._web(repo)}/discussions/{self.hub.pulls}"
            commit = self.hub.store.add_commit(found, revision, lines[0]["value"]["summary"], added, deleted)
        self._json({"commitUrl": f"{self._web(repo)}/commit/{commit.sha}", "commitOid": commit.sha, **answer})


def _blob(blob: Blob) -> dict[str, Any]:
    lfs = {"oid": blob.sha256, "sha256": blob.sha256, "size": blob.size, "pointerSize": 130}
    return {"blobId": blob.git, "size": blob.size, **({"lfs": lfs} if blob.lfs else {})}
