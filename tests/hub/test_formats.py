"""Every format end to end: judged, published through a kill in the middle, fetched into an empty cache,
judged again there, painted, and run by the very code of its model card."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.artifact import Artifact, Manifest
from tests.hub.conftest import Client, environment
from tests.hub.server import TOKEN, HubServer
from tests.judge import judge

NEEDS = {
    "openvino": "openvino",
    "coreml": "coremltools",
    "safetensors": "safetensors",
    "stablehlo": "jax",
    "torchscript": "torch",
}
pytestmark = pytest.mark.full  # one to three minutes each: every step is a process of its own
PROMPT = "a large red star at the left on a blue background"
BLOCK = re.compile(r"^([^\n]*):\n\n```(python|sh)\n(.*?)```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """One client's code in a card."""

    title: str
    language: str
    text: str


def codes(card: str) -> list[Code]:
    section = card.split("## Run it")[1].split("## Check it")[0]
    return [Code(*found) for found in BLOCK.findall(section)]


@pytest.mark.parametrize("target", NEEDS)
def test_from_the_artifact_to_a_picture_on_another_machine(
    target: str, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    pytest.importorskip(NEEDS[target])
    artifact, name = tmp_path / "artifact", f"tester/shapes-{target}"
    ran = client("convert", "builtin:shapes", "--to", target, "-o", str(artifact), "--no-verify", "-q")
    assert ran.returncode == 0, ran.stderr
    quick = ("--steps", "2", "--samples", "1")
    ran = client("verify", str(artifact), *quick, "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr

    killed_in_the_middle(hub, artifact, name, tmp_path)
    ran = client("push", str(artifact), name, "--json", token=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verdict"] == "PASS" and TOKEN not in ran.stdout + ran.stderr
    manifest = Artifact.open(artifact).manifest
    published = {path: blob.sha256 for path, blob in hub.store.repos[name].branches["main"][-1].files.items()}
    assert {f.path: f.sha256 for f in manifest.all_files()}.items() <= published.items()

    place = {
        "home": "fresh",
        "EXPORTER_CACHE": str(tmp_path / "fresh"),
        "EXPORTER_STATE": str(tmp_path / "other"),
    }
    ran = client("download", name, "--json", **place)
    assert ran.returncode == 0 and json.loads(ran.stdout)["kind"] == "artifact", ran.stderr
    trust = ["--trust"] if target == "torchscript" else []
    if trust:
        assert client("verify", name, *quick, **place).returncode == 3, "a program of unknown origin"
    ran = client("verify", name, *quick, *trust, "--json", **place)
    assert ran.returncode == 0 and json.loads(ran.stdout)["verdict"] == "PASS", ran.stdout + ran.stderr
    the_code_of_the_card_runs(hub, name, published["README.md"], manifest, tmp_path)


def killed_in_the_middle(hub: HubServer, artifact: Path, name: str, tmp_path: Path) -> None:
    """A push that dies leaves nothing visible; what arrived stays."""
    child = subprocess.Popen(
        [sys.executable, "-m", "exporter", "push", str(artifact), name, "--create"],
        env=environment(hub, tmp_path / "hf-home", token=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while hub.count("PUT", "/lfs/") < 2 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was killed before it had ended"
    assert hub.store.blobs, "something had arrived"
    assert not hub.store.repos[name].branches["main"][-1].files, "nothing became visible"


def the_code_of_the_card_runs(
    hub: HubServer, name: str, card: str, manifest: Manifest, tmp_path: Path
) -> None:
    """As it is copied; what is for a Mac says so, and is left alone."""
    from PIL import Image

    blocks = codes(hub.store.data(card).read_text(encoding="utf-8"))
    here = [block for block in blocks if "on macOS only" not in block.title]
    assert len(here) >= 2 and {block.language for block in here} == {"python", "sh"}
    assert (len(here) < len(blocks)) == (manifest.target == "coreml")
    painted = 0
    for number, block in enumerate(here):
        folder = tmp_path / f"client-{number}"
        folder.mkdir()
        shell = [sys.executable, "-c"] if block.language == "python" else ["sh", "-ec"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            [*shell, block.text],
            cwd=folder,
            env=environment(hub, tmp_path / "client-home", token=False)
            | {"PATH": path, "EXPORTER_CACHE": str(tmp_path / "client-cache")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, (block.title, ran.stderr[-2000:])
        pictures = sorted(folder.glob("picture*.png"))  # the JAX client's are numbered: one a device
        if pictures:
            painted += 1
            assert all(judge(Image.open(picture), PROMPT).ok for picture in pictures), block.title
        else:
            assert "unet" in ran.stdout.lower() and "noise_pred" in ran.stdout, block.title
    assert painted == len(here) - (manifest.target == "coreml")
