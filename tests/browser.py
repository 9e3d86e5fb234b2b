"""Opens a page in headless Chromium: the DOM it ends up with, and every address it asked for.

Used for the pages we write (the demo, the parity report), which must need nothing but themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REQUIRED = "EXPORTER_REQUIRE_BROWSER"
NO_PAGE = "not an origin"
"""What the network log names as the initiator of the browser's own errands (updates, clock)."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True)
class Visit:
    """What became of a page.

    Attributes:
        dom: The rendered document.
        requests: Addresses that were asked for other than the page itself.
    """

    dom: str
    requests: tuple[str, ...]


def browser() -> str:
    """The browser's path. Without one the test is skipped, or fails under EXPORTER_REQUIRE_BROWSER=1."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    reason = f"no headless browser on PATH ({', '.join(NAMES)})"
    if os.environ.get(REQUIRED, "") not in {"", "0"}:
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)


def visit(page: Path, *, width: int = 1200, height: int = 900) -> Visit:
    """Open a page and watch it.

    Its folder is served on the loopback, so that a neighbouring file it asks for shows as well; every
    name resolution fails, so nothing can leave the machine. What the page tried is in the browser's
    own network log.
    """
    with tempfile.TemporaryDirectory() as folder, _served(page.parent) as root:
        log, address = Path(folder) / "net.json", f"{root}/{page.name}"
        result = _run(
            address, Path(folder), f"--window-size={width},{height}", f"--log-net-log={log}", "--dump-dom"
        )
        return Visit(result.stdout, _requests(log, address))


def screenshot(page: Path, target: Path, *, width: int, height: int, dark: bool = False) -> Path:
    """Save what the page looks like as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        _run(
            page.absolute().as_uri(),
            Path(folder),
            f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={target}",
        )
    assert target.is_file(), "the browser wrote no screenshot"
    return target


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _run(address: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [browser(), *FLAGS, f"--user-data-dir={profile / 'profile'}", *flags, address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, f"the browser ended with {result.returncode}: {result.stderr[-500:]}"
    return result


def _requests(log: Path, page: str) -> tuple[str, ...]:
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    started = [event for event in events if {"url", "initiator", "method"} <= event.keys()]
    addresses = [event["url"] for event in started if event["initiator"] != NO_PAGE or event["url"] == page]
    assert page in addresses, "the network log does not even show the page, so it proves nothing"
    return tuple(dict.fromkeys(address for address in addresses if address != page))
