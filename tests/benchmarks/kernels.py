"""Where the time of a run on a GPU goes, by kind of kernel: what benchmarks print with `--profile`.

Times are the device's own (PyTorch's profiler). Kernels that run side by side count once in `busy`; `exposed`
is the time in which only a collective ran. A collective's time has waiting for the other GPU in it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

KINDS = {
    "collective": re.compile(r"nccl|gloo|c10d", re.I),
    "fused": re.compile(r"triton_(?!tem|mm|convolution)"),
    "attention": re.compile(r"flash|fmha|sdpa|attention|mha_", re.I),
    "convolution": re.compile(r"conv|fprop|implicit", re.I),
    "matmul": re.compile(
        r"gem[mv]|triton_tem|cutlass|nvjet|cublas|xmma|splitk|aten::(mm|addmm|bmm|linear|baddbmm)|_mm_", re.I
    ),
    "copy": re.compile(r"memcpy|memset|copy|catarray|transpose|nchwtonhwc|nhwctonchw", re.I),
}
"""The first that matches. `fused` is what a compiler made, named by what it fused; the rest is `other`."""
Span = tuple[float, float]


@dataclass(frozen=True)
class Profile:
    """Seconds a run; `kinds` are sums of each kind's own time, with how many kernels."""

    span: float
    busy: float
    exposed: float
    kinds: dict[str, tuple[float, int]]
    longest: list[tuple[str, float, int]]

    def rows(self, runs: int = 1) -> Iterable[str]:
        """Lines for people, in milliseconds of one of `runs` equal parts."""
        each = 1000 / runs
        for kind, (seconds, count) in sorted(self.kinds.items(), key=lambda item: -item[1][0]):
            extra = (
                f", {self.exposed * each:.2f} of it with nothing beside it" if kind == "collective" else ""
            )
            yield f"    {kind:12}{seconds * each:9.2f} ms {count / runs:8.0f} kernels{extra}"
        idle = self.span - self.busy
        yield f"    {'idle':12}{idle * each:9.2f} ms of {self.span * each:.2f}, first kernel to last"
        for name, seconds, count in self.longest:
            yield f"      {seconds * each:7.2f} ms ×{count / runs:<5.0f} {name[:84]}"


def united(spans: Iterable[Span]) -> float:
    """Length of what the intervals cover together."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), "other")


def profiled(run: Callable[[], object], longest: int = 8) -> Profile:
    """Run once under PyTorch's profiler. Without CUDA it is operators of the CPU that are counted."""
    cuda = torch.cuda.is_available()
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kind.CUDA if cuda else kind.CPU], acc_events=True) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    wanted = {"kernel", "gpu_memcpy", "gpu_memset"} if cuda else {"cpu_op"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return counted([event for event in trace["traceEvents"] if event.get("cat") in wanted], longest)


def counted(events: list[dict], longest: int = 8) -> Profile:
    """Events of a Chrome trace: `name`, `ts` and `dur` in microseconds."""
    spans: dict[str, list[Span]] = {}
    names: dict[str, list[float]] = {}
    for event in events:
        start = float(event["ts"]) / 1e6
        took = float(event["dur"]) / 1e6
        spans.setdefault(kind_of(event["name"]), []).append((start, start + took))
        names.setdefault(event["name"], []).append(took)
    every = [span for each in spans.values() for span in each]
    if not every:
        return Profile(0, 0, 0, {}, [])
    busy = united(every)
    rest = united(span for kind, each in spans.items() if kind != "collective" for span in each)
    return Profile(
        span=max(stop for _, stop in every) - min(start for start, _ in every),
        busy=busy, exposed=busy - rest,
        kinds={kind: (united(each), len(each)) for kind, each in spans.items()},
        longest=sorted(((n, sum(t), len(t)) for n, t in names.items()), key=lambda item: -item[1])[:longest],
    )  # fmt: skip
