"""Fixtures shared by all tests. Nothing here may reach a network."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

_looked_through = 0
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


@pytest.fixture(scope="session", autouse=True)
def _programs_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """XLA's own cache of what it compiled, for this test run, its processes and their children: an artifact
    with a fault in its weights is the same program."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    if (jax := sys.modules.get("jax")) is not None:  # it has read its environment
        for name, value in settings.items():
            jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched_for_garbage() -> None:
    """Half a million objects of torch, diffusers and transformers live as long as the process: looked through
    once after they were imported, and not by each of the thousands of collections that tests ask for."""
    global _looked_through
    if len(sys.modules) > _looked_through + 100:
        gc.collect()
        gc.freeze()
        _looked_through = len(sys.modules)


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
