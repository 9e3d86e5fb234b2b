"""Fixtures shared by all tests. Nothing here may reach a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: see exporter.cli.main


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))


@pytest.fixture(scope="session", autouse=True)
def _own_record_of_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests export is not noted among the programs that the user made."""
    os.environ["EXPORTER_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the test run's own, for this process and its children."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EXPORTER_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion checkpoint (float32)."""
    from tests.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of checkpoint with weights stored in float16."""
    import torch

    from tests.tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny16") / "tiny-sd-fp16", seed=1, dtype=torch.float16)
