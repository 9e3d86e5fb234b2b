"""Faults that the test Hub can show: each is used up after `times` requests that it fits."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

Kind = Literal["drop", "truncate", "corrupt", "429", "500", "503", "hang-up"]
"""`drop` closes in the middle of the body; `truncate` sends half a body as if it were whole; `corrupt`
sends other bytes of the right length; `hang-up` closes without an answer; numbers are statuses."""


@dataclass
class Fault:
    method: str
    part: str
    kind: Kind
    times: int = 1
    retry_after: str | None = None


class Faults:
    """The faults still to be shown."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.shown: list[tuple[str, str, Kind]] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self.shown.clear()

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and fault.part in path:
                    fault.times -= 1
                    self.shown.append((method, path, fault.kind))
                    return fault
        return None
