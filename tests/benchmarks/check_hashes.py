"""Seconds per GB of `exporter verify ARTIFACT --check-hashes`, start-up included, beside bare sha256.

    python -m tests.benchmarks.check_hashes ARTIFACT
    python -m tests.benchmarks.check_hashes --gb 4      # of random bytes, in the shape of SD 1.5

Every round is a process of its own. The files are read once before, so the disk takes no part.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from exporter.artifact import Artifact, ComponentRecord, Manifest, SourceRecord, hash_file

SHARES = {"unet": 0.81, "text_encoder": 0.11, "vae_decoder": 0.05, "vae_encoder": 0.03}
"""Of the bytes of SD 1.5 in float32."""
BLOCK = 1 << 24


def random_artifact(folder: Path, gigabytes: float) -> Artifact:
    """Random bytes under a manifest that is true."""
    components = []
    for name, share in SHARES.items():
        path = folder / name / "model.bin"
        path.parent.mkdir(parents=True)
        with path.open("wb") as handle:
            for _ in range(max(1, int(gigabytes * 1e9 * share / BLOCK))):
                handle.write(os.urandom(BLOCK))
        record = hash_file(path, folder)
        components.append(
            ComponentRecord(
                name=name,
                entry=record.path,
                files=[record],
                inputs=[],
                outputs=[],
                parameters=0,
                dtype="float32",
            )
        )
    source = SourceRecord(source="random", pipeline_class="StableDiffusionPipeline")
    artifact = Artifact(folder, Manifest(target="onnx", source=source, components=components))
    artifact.save()
    return artifact


def bare(paths: list[Path]) -> float:
    """Seconds that sha256 alone takes for all files on one core."""
    began = time.perf_counter()
    for path in paths:
        with path.open("rb") as handle:
            hashlib.file_digest(handle, "sha256")
    return time.perf_counter() - began


def checked(root: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the command.

    Raises:
        RuntimeError: It did not find the files as they were.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-m", "exporter", "verify", str(root), "--check-hashes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "changed:" in done.stdout or done.returncode not in (0, 1, 5):
        raise RuntimeError(done.stdout + done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the random artifact without ARTIFACT")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hashes-") as temporary:
        given = args.artifact
        artifact = Artifact.open(given) if given else random_artifact(Path(temporary), args.gb)
        files = artifact.manifest.all_files()
        size = sum(file.bytes for file in files) / 1e9
        print(f"{len(files)} files, {size:.2f} GB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        paths = [artifact.root / file.path for file in files]
        bare(paths)  # from the disk; from here on the files are in memory
        seconds = bare(paths)
        print(f"sha256 on one core: {seconds:.2f} s = {seconds / size:.2f} s per GB")
        for number in range(1, args.rounds + 1):
            wall, cpu = checked(artifact.root)
            print(
                f"--check-hashes, round {number}: {wall:.2f} s = {wall / size:.2f} s per GB "
                f"({cpu:.2f} s of CPU = {cpu / size:.2f} s per GB)"
            )


if __name__ == "__main__":
    main()
