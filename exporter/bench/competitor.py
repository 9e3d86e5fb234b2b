"""One competitor: a process that opens a pipeline and paints when it is told to."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from exporter import errors
from exporter.errors import ArtifactError, ExporterError

if TYPE_CHECKING:
    from PIL.Image import Image

    from exporter.bench import Entrant, Settings


@dataclass(frozen=True)
class Measured:
    """One picture: wall seconds, seconds of one call by component, peak bytes of the process (and of the
    GPU, 0 without one) so far."""

    seconds: float
    parts: dict[str, float]
    peak_memory: int
    device_memory: int
    arithmetic: str
    picture: Image


class Competitor:
    """A child process with an open pipeline.

    Attributes:
        opened: What it said of itself: target, load seconds, bytes on disk, hint, static size, verdict.

    Raises:
        ExporterError: Whatever kept it from opening, as its own type.
    """

    def __init__(self, entrant: Entrant, settings: Settings) -> None:
        self.source = entrant.source
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "exporter.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
        )
        try:
            self.opened = self._ask({"open": asdict(entrant), "settings": asdict(settings)})
        except BaseException:
            self.close()
            raise

    def paint(self) -> Measured:
        """Paint once.

        Raises:
            ExporterError: It could not, or the process died.
        """
        from PIL import Image

        answer = self._ask({"paint": True})
        data = base64.b64decode(answer.pop("picture"))
        return Measured(**answer, picture=Image.open(io.BytesIO(data)).convert("RGB"))

    def close(self) -> None:
        """End the process."""
        if self._child.stdin and not self._child.stdin.closed:
            self._child.stdin.close()
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        for line in self._child.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # a library printed something
            if "error" in answer:
                raise _rebuilt(answer["error"])
            return dict(answer)
        raise self._dead()

    def _dead(self) -> ArtifactError:
        self._child.wait()
        self._log.seek(0)
        said = self._log.read().strip().splitlines()
        why = said[-1] if said else f"exit status {self._child.returncode}"
        return ArtifactError(
            f"{self.source} stopped while it was measured ({why}).",
            hint="Out of memory? --one-at-a-time holds one competitor at a time.",
        )


def _rebuilt(error: dict[str, Any]) -> ExporterError:
    """The child's error with its own type, so that the exit code is the right one."""
    kind = getattr(errors, str(error["type"]), ArtifactError)
    if not (isinstance(kind, type) and issubclass(kind, ExporterError)):
        kind = ArtifactError
    return kind(error["message"], hint=error.get("hint"))
