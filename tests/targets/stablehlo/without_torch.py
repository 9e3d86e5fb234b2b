"""A start for programs in tests: PyTorch is as good as not installed, and this machine has eight devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[3] / "exporter" / "targets" / "README.md"

BEGIN = """
import importlib.abc, importlib.util, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
found = importlib.util.find_spec

def find_spec(name, *rest):
    return None if name.partition(".")[0] == "torch" else found(name, *rest)

importlib.util.find_spec = find_spec
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("torch is here")
"""


def run(code: str, folder: Path, *, devices: int = 8) -> str:
    """Run code in a fresh process; its standard output."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run(
        [sys.executable, "-c", BEGIN + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def documented() -> list[str]:
    """The code of the README's section: with exporter's help, and by hand."""
    section = README.read_text(encoding="utf-8").split("## StableHLO")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.+?)```", section, re.DOTALL)
