"""A place for artifacts at an fsspec URL: what may be one, and how bytes get there and back.

Stores differ in what they promise, so little is asked of one: put, get, information, delete, and a listing.
Nothing that a library says is shown before what looks like a secret is taken out of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from exporter.errors import BackendMissing, DestinationError, ExporterError, NetworkError, UsageError
from exporter.hashing import HASH_CHUNK

T = TypeVar("T")

TRIES = 3
PAUSE = 0.5
"""Seconds before the second try; twice as long before each further one."""
ENOUGH = 20.0
"""Seconds after which a small request is not tried again: then the library has tried for itself."""
PROBE = ".exporter-probe-"
MEMORY = "memory"
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "webdav": "webdav4", "oss": "ossfs",
    "oci": "ocifs", "hdfs": "pyarrow", "arrow_hdfs": "pyarrow", "dropbox": "dropboxdrivefs", "box": "boxfs",
    "tos": "tosfs", "lakefs": "lakefs-spec", "root": "fsspec-xrootd", "webhdfs": "requests",
}  # fmt: skip
"""What fsspec needs for a protocol, as pip calls it."""
KEYS_ONLY = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "tos", MEMORY}
"""Protocols without real folders: asked for one, some would make a bucket of a name that was mistyped."""
READ_ONLY = {"http", "https", "data", "github", "git", "gist", "zip", "tar", "libarchive", "reference"}
EXAMPLES = "Give one such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, sftp://HOST/FOLDER or file:///FOLDER."
ENVIRONMENT = (
    "Give credentials in the store's own environment variables or files, or in fsspec's configuration."
)
NO_SENSE_TO_REPEAT = (PermissionError, NotImplementedError, FileNotFoundError, NotADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = (
    "memory:// lives inside one process, and every cell of a batch has a process of its own: what one writes "
    "there, no other sees, and it is gone when that process ends."
)


class StoreFull(ExporterError):
    """The place has no room left."""

    exit_code = 6


def refusal(url: str) -> str | None:
    """Why a text is no URL to collect at, without repeating a secret in it; None if it is one."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+._-]*", scheme) or not rest.strip("/"):
        if "::" in url:
            return "a chain of protocols (::) is not taken, only one"
        return "it is not PROTOCOL://PLACE"
    host = rest.partition("/")[0]
    if "@" in host and ":" in unquote(host.rpartition("@")[0]):
        return (
            f"a password in the URL ({scheme}://USER:PASSWORD@…) would be kept in batch.json and on the page"
        )
    if "?" in rest or "#" in rest:
        return (
            f"what follows ? or # in the URL ({scheme}://…) may be a token, and would be kept in batch.json"
        )
    if scheme in READ_ONLY:
        return f"{scheme}:// can only be read"
    return None


def shown(text: str) -> str:
    """A library's message in one line, without what looks like a secret: passwords and queries of URLs,
    values called token, key and the like, and what the environment holds under such a name."""
    line = (text.strip().splitlines() or ["no message"])[0]
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY|SAS", name, re.IGNORECASE):
            line = line.replace(value, "***")
    line = re.sub(r"://[^/@\s]+@", "://***@", line)
    line = re.sub(r"\?[\w%.~-]+=[^\s'\"]*", "?***", line)
    line = re.sub(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+", r"\1 ***", line)
    secret = (
        r"(?i)((?:token|secret|passw(?:or)?d|signature|credential|access_?key|api_?key)\w*[\"']?\s*[=:]\s*)"
    )
    return re.sub(secret + r"[\"']?[^\s\"',;&]+[\"']?", r"\1***", line)


class Store:
    """A folder at a URL.

    Attributes:
        url: Without a slash at the end.
        fs: fsspec's file system.
        base: The folder as `fs` calls it.

    Raises:
        UsageError: No URL that can be used, an unknown protocol.
        BackendMissing: A package for the protocol is not installed; with its name.
    """

    def __init__(self, url: str) -> None:
        problem = refusal(url)
        if problem is not None:
            raise UsageError(f"Nothing can be collected there: {problem}.", hint=f"{EXAMPLES} {ENVIRONMENT}")
        import fsspec

        self.url = url.rstrip("/")
        self.protocol = url.partition("://")[0]
        try:
            fsspec.get_filesystem_class(self.protocol)
        except ValueError as error:
            raise UsageError(f"fsspec knows no protocol {self.protocol}://.", hint=EXAMPLES) from error
        except ImportError as error:
            package = PACKAGES.get(self.protocol)
            raise BackendMissing(
                f"A package for {self.protocol}:// is not installed here ({shown(str(error))}).",
                hint=f"pip install {package}" if package else "Install the package that it names.",
            ) from error
        self.fs: Any
        self.fs, self.base = self._try("be opened", lambda: fsspec.url_to_fs(self.url))

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""
        try:
            return self._try("be read", lambda: bytes(self.fs.cat_file(self._at(name))))
        except DestinationError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Bytes of every file below a folder, by its path in there. One listing (a request for a thousand
        files, in an object store; one for each folder elsewhere); empty where there is nothing."""

        def listed() -> dict[str, dict[str, Any]]:
            self.fs.invalidate_cache()
            return dict(self.fs.find(self._at(folder), detail=True))

        try:
            found = self._try("be listed", listed)
        except DestinationError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise
        prefix = self._at(folder).strip("/") + "/"
        names = {str(name).strip("/"): info for name, info in found.items()}
        return {name.removeprefix(prefix): info.get("size") for name, info in names.items() if name != prefix}

    def sha256(self, name: str) -> str:
        """sha256 hex of a file there: the store's own where it tells one, else of its bytes, read back."""

        def of_bytes() -> str:
            self.fs.invalidate_cache()
            told = told_sha256(self.fs.info(self._at(name)))
            if told is not None:
                return told
            digest = hashlib.sha256()
            with self.fs.open(self._at(name), "rb") as handle:
                if hasattr(handle, "prefetch"):  # paramiko's would wait for every 32 kB
                    handle.prefetch()
                while chunk := handle.read(HASH_CHUNK):
                    digest.update(chunk)
            return digest.hexdigest()

        return self._try("be read back", of_bytes, large=True)

    def put(self, local: Path, name: str) -> None:
        """Copy a file there, over one that stands there; tried again when the connection is lost."""
        self._try("be written", lambda: self._put(local, name), large=True)

    def write(self, name: str, content: bytes) -> None:
        """The same for a few bytes."""

        def once() -> None:
            self._folder_of(name)
            self.fs.pipe_file(self._at(name), content)

        self._try("be written", once)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

        def once() -> None:
            try:
                self.fs.rm_file(self._at(name))
            except FileNotFoundError:
                pass
            except Exception:  # FTP has one answer for no rights and no file
                self.fs.invalidate_cache()
                with suppress(FileNotFoundError):
                    self.fs.info(self._at(name))
                    raise

        self._try("be written (delete)", once)

    def probe(self) -> None:
        """Write a small file, read it back and delete it: the errors that come are of this place.

        Raises:
            DestinationError: It does not allow that, or does not keep what is written.
            NetworkError: It cannot be reached.
        """
        content = secrets.token_bytes(64)
        with self.witness(content) as name:
            found = self.read(name)
        if found != content:
            raise DestinationError(f"{self.url} gives back other bytes than were written there.")
        if self.read(name) is not None:
            raise DestinationError(f"{self.url} keeps what was deleted there.")

    @contextmanager
    def witness(self, content: bytes) -> Iterator[str]:
        """A small file that is there meanwhile; gives its name."""
        name = f"{PROBE}{secrets.token_hex(8)}"
        self.write(name, content)
        try:
            yield name
        finally:
            self.remove(name)

    def _put(self, local: Path, name: str) -> None:
        self._folder_of(name)
        self.fs.put_file(str(local), self._at(name))

    def _folder_of(self, name: str) -> None:
        if self.protocol not in KEYS_ONLY:
            self.fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self.base.rstrip('/')}/{name}"

    def _try(self, what: str, call: Callable[[], T], *, large: bool = False) -> T:
        began = time.monotonic()
        for count in range(TRIES):
            try:
                return call()
            except ExporterError:
                raise
            except Exception as error:
                last = count + 1 == TRIES or (not large and time.monotonic() - began > ENOUGH)
                if last or isinstance(error, NO_SENSE_TO_REPEAT) or _full(error):
                    raise self._explained(what, error) from error
            time.sleep(PAUSE * 2**count)
        raise AssertionError("unreachable")

    def _explained(self, what: str, error: Exception) -> ExporterError:
        """fsspec's file systems raise OSErrors, and whatever their libraries raise."""
        why = f"{self.url} cannot {what}: {type(error).__name__}: {shown(str(error)).rstrip('.')}."
        if _full(error):
            return StoreFull(why, hint="Free some space there, and run the same command again.")
        if isinstance(error, NO_SENSE_TO_REPEAT):
            return DestinationError(why, hint=f"Check the URL and the rights there. {ENVIRONMENT}")
        return NetworkError(why, hint=f"Run the same command again when it answers. {ENVIRONMENT}")


def told_sha256(info: dict[str, Any]) -> str | None:
    """The sha256 that a store computed itself: `sha256`, or `lfs.sha256` of huggingface_hub. An ETag and
    MD5 are not taken for one."""
    lfs = info.get("lfs")
    for value in (info.get("sha256"), lfs.get("sha256") if isinstance(lfs, dict) else None):
        if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
            return value
    return None


def _full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL
