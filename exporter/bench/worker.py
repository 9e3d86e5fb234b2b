"""The process of one competitor: reads requests as JSON lines, answers with JSON lines."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exporter.errors import ArtifactError, ExporterError

PARTS = (
    "text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "controlnet", "adapter", "unet",
    "transformer", "safety_checker",
)  # fmt: skip


class Stopwatch:
    """Times every call of the pipeline's heavy parts, on whatever runs them."""

    def __init__(self, pipeline: Any) -> None:
        self.seconds: dict[str, list[float]] = {}
        for name in PARTS:
            module = getattr(pipeline, name, None)
            if module is not None:
                module.forward = self._timed(name, module.forward)
        vae = getattr(pipeline, "vae", None)
        if vae is not None:
            vae.encode = self._timed("vae_encoder", vae.encode)
            vae.decode = self._timed("vae_decoder", vae.decode)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = call(*arguments, **named)
            _wait_for_gpu()
            self.seconds.setdefault(name, []).append(time.perf_counter() - began)
            return result

        return timed

    def medians(self) -> dict[str, float]:
        """Of all calls since the last time this was asked."""
        found = {name: statistics.median(times) for name, times in self.seconds.items()}
        self.seconds = {}
        return found


class Worker:
    """Opens one pipeline, then paints with it."""

    def __init__(self) -> None:
        self.pipeline: Any = None
        self.settings: dict[str, Any] = {}

    def open(self, entrant: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        from exporter import pipeline
        from exporter.artifact import MANIFEST, Artifact
        from exporter.bench.given import given_to
        from exporter.checkpoints.published import local_folder
        from exporter.sizes import at_size

        self.settings = settings
        source, chosen = entrant["source"], entrant["techniques"]
        began = time.perf_counter()
        self.pipeline = pipeline.load(
            source,
            device=settings["device"],
            precision_hint=settings["precision_hint"],
            trust=settings["trust"],
            height=settings["height"],
            width=settings["width"],
            techniques=chosen,
            **entrant["intake"],
        )
        load = time.perf_counter() - began
        self.given = given_to(self.pipeline, settings)
        self.watch = Stopwatch(self.pipeline)
        folder = local_folder(source)
        if folder is None or not (folder / MANIFEST).is_file():
            return {
                "target": "pytorch", "load": load, "disk": _checkpoint_bytes(source),
                "precision_hint": None, "static": None, "verdict": None, "given": self.given.names,
                "techniques": [each if isinstance(each, str) else next(iter(each)) for each in chosen],
            }  # fmt: skip
        whole = Artifact.open(folder)
        artifact = at_size(whole, settings["height"], settings["width"])
        manifest = artifact.manifest
        static = manifest.options.get("static")
        hint = settings["precision_hint"] or next(
            (c.details.get("precision_hint") for c in manifest.components if "precision_hint" in c.details),
            None,
        )
        return {
            "target": manifest.target, "load": load, "precision_hint": hint,
            "disk": sum(f.bytes for f in manifest.all_files()), "verdict": whole.verified(),
            "static": "x".join(map(str, static)) if static else None,
            "compiled": bool(self.pipeline.exporter_compiled), "notes": self.pipeline.exporter_notes,
            "given": self.given.names,
        }  # fmt: skip

    def paint(self) -> dict[str, Any]:
        from exporter import clips, pipeline
        from exporter.bench.tokens import text_tokens

        if self.pipeline is None:
            raise ArtifactError("Nothing is open.")
        s = self.settings
        began = time.perf_counter()
        common = {name: s[name] for name in ("seed", "steps", "guidance", "height", "width")}
        common |= self.given.arguments
        if clips.is_video(self.pipeline):
            clip = clips.film(self.pipeline, s["prompt"], frames=s["frames"], **common)
            picture = clips.in_one_picture(clip)
        else:
            tokens = text_tokens(self.pipeline, s["tokens"])
            (picture,) = pipeline.paint(self.pipeline, [s["prompt"]], tokens=tokens, **common)
        _wait_for_gpu()
        seconds = time.perf_counter() - began
        data = io.BytesIO()
        picture.save(data, format="PNG")
        return {
            "seconds": seconds,
            "parts": self.watch.medians(),
            "peak_memory": _peak_memory(),
            "device_memory": _device_memory(),
            "arithmetic": self._arithmetic(),
            "picture": base64.b64encode(data.getvalue()).decode("ascii"),
        }

    def _arithmetic(self) -> str:
        """As the runners say themselves; PyTorch's is that of its weights."""
        found = []
        parts = [getattr(self.pipeline, name, None) for name in (*PARTS, "vae")]
        for module in (each for part in parts for each in getattr(part, "nets", [part])):  # ControlNets
            if module is None:
                continue
            runner = getattr(module, "runner", None)
            kind = runner.precision if runner is not None else str(module.dtype).removeprefix("torch.")
            found.append(kind or "unknown")
        return ", ".join(dict.fromkeys(found))


def _peak_memory() -> int:
    """Bytes; the kernel counts in kB on Linux and in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _wait_for_gpu() -> None:
    """A GPU works on behind Python's back; a time that does not wait for it says nothing."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _device_memory() -> int:
    """Peak bytes that PyTorch took from its GPUs; 0 without one."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0
    return sum(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count()))


def _checkpoint_bytes(source: str) -> int:
    from exporter.checkpoints import resolve

    checkpoint = resolve(source)
    folders = [f for f in checkpoint.component_classes if (checkpoint.root / f / "config.json").is_file()]
    files: set[Path] = {path for folder in folders for path in checkpoint.weight_files(folder)}
    return sum(path.stat().st_size for path in files)


def _requests() -> Iterator[str]:
    """What the parent asks for. When it is gone, so is this process, also in the middle of a picture."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the pipe carries only answers
    worker = Worker()
    for line in _requests():
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = (
                worker.open(request["open"], request["settings"]) if "open" in request else worker.paint()
            )
        except ExporterError as error:
            answer = {"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}}
        except Exception as error:  # a runtime's own; the parent says which competitor it was
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            answer = {"error": {"type": "ArtifactError", "message": f"it cannot paint: {text}"}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
