"""What the parity tests share: a torch artifact, and `judge_torch` which verifies one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoints import Checkpoint, resolve
from exporter.parity import Report, verify
from tests.parity.torch_target import Fault, OutputFault, TorchTarget, make_artifact

JudgeTorch = Callable[..., Report]


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return resolve(tiny)


@pytest.fixture(scope="session")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of truths and floors for all parity tests, so that only the artifacts run again."""
    return tmp_path_factory.mktemp("truths")


@pytest.fixture
def judge_torch(
    checkpoint: Checkpoint, truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> JudgeTorch:
    """Verify a torch artifact with planted faults: `judge_torch(faults={...}, after={...}, **settings)`."""

    def run(
        *,
        faults: Mapping[str, Fault] | None = None,
        after: Mapping[str, OutputFault] | None = None,
        components: list[str] | None = None,
        arithmetic: str = "float32",
        only: list[str] | None = None,
        root: Path | None = None,
        **settings: Any,
    ) -> Report:
        target = TorchTarget(checkpoint, faults, after)
        monkeypatch.setattr("exporter.targets.get_target", lambda name: target)
        if root is None:
            root = make_artifact(
                checkpoint, tmp_path / "artifact", components=components, arithmetic=arithmetic
            )
        defaults: dict[str, Any] = {
            "steps": 2, "samples": 2, "prompts": ["a red star"], "pipeline": False,
            "components": only, "cache": truths,
        }  # fmt: skip
        return verify(root, **(defaults | settings))

    return run
