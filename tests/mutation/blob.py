"""A stored tensor of any format: its place in a data file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Blob:
    """A stored tensor: file, first byte, shape and dtype."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.fromfile(self.file, self.dtype, count, offset=self.offset).reshape(self.shape)

    def write(self, array: np.ndarray) -> None:
        if array.shape != self.shape or str(array.dtype) != self.dtype:
            raise ValueError(f"{array.dtype}{array.shape} does not fit {self.dtype}{self.shape}")
        with self.file.open("r+b") as handle:
            handle.seek(self.offset)
            handle.write(np.ascontiguousarray(array).tobytes())
