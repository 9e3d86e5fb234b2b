"""The results file, and the table that is made from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.artifact import write_text_atomic

ROOM = Path(__file__).parents[2] / "exporter" / "architectures"
FILE = ROOM / "matrix.json"
README = ROOM / "README.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
TARGETS = ("onnx", "openvino", "coreml", "safetensors", "torchscript", "pt2", "stablehlo")
TITLES = {
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "coreml": "Core ML",
    "torchscript": "TorchScript",
    "stablehlo": "StableHLO",
}
NOT_RUN = "not run"
Verdict = Literal["supported", "refused", "fails"]


class Result(BaseModel):
    """What became of one family in one format.

    Attributes:
        verdict: `supported`: converted, verified (PASS) and painted like the reference. `refused`: one
            sentence before or during the work. `fails`: anything else.
        reason: Of a refusal or a failure.
        options: What it was converted with besides the defaults.
        components: What was exported.
        noise: Largest error in multiples of PyTorch's own rounding noise, where the verifier gave one.
        difference: Largest difference of two painted pictures, in steps of 255.
        seconds: Of the whole cell.
        exit: What the command line would have ended with (2 and 3 are refusals, 1 a verdict other than PASS);
            70 of an error that nobody foresaw, minus a signal's number of a process that crashed, 124 of one
            that was stopped. None of older results.
        memory: Largest resident memory of the cell's processes together, in MB, where it was watched.
        date: UTC.
        tools: Versions.
    """

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    reason: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    components: list[str] = Field(default_factory=list)
    noise: float | None = None
    difference: int | None = None
    seconds: float = 0.0
    exit: int | None = None
    memory: int | None = None
    date: str
    tools: dict[str, str]


class Results(BaseModel):
    """Family → target → result; what was not run is not there."""

    model_config = ConfigDict(extra="forbid")

    cells: dict[str, dict[str, Result]] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = FILE) -> Results:
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else cls()

    def write(self, path: Path = FILE) -> None:
        ordered = {f: dict(sorted(self.cells[f].items())) for f in sorted(self.cells)}
        write_text_atomic(path, Results(cells=ordered).model_dump_json(indent=1) + "\n")

    def get(self, family: str, target: str) -> Result | None:
        return self.cells.get(family, {}).get(target)

    def put(self, family: str, target: str, result: Result) -> None:
        self.cells.setdefault(family, {})[target] = result


def table(results: Results, families: list[str]) -> str:
    """The table in Markdown, with the reasons below it."""
    lines = [
        "| family | " + " | ".join(TITLES.get(t, f"`{t}`") for t in TARGETS) + " |",
        "| --- " * (len(TARGETS) + 1) + "|",
    ]
    reasons: list[str] = []
    for family in families:
        row = [_cell(results.get(family, target), reasons) for target in TARGETS]
        lines.append(f"| `{family}` | " + " | ".join(row) + " |")
    counted = [results.get(f, t) for f in families for t in TARGETS]
    done = [one for one in counted if one is not None]
    supported = sum(one.verdict == "supported" for one in done)
    dates = sorted({one.date for one in done})
    when = f", run {dates[0]} to {dates[-1]}" if dates else ""
    missing = len(counted) - len(done)
    left = f", {missing} were not run" if missing else ""
    lines += ["", f"{supported} of {len(counted)} are supported{left}{when}."]
    if reasons:
        lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines)


def _cell(result: Result | None, reasons: list[str]) -> str:
    if result is None:
        return NOT_RUN
    if result.verdict == "supported":
        return ", ".join(["yes", *(f"`--{name} {value}`" for name, value in result.options.items())])
    if result.reason not in reasons:
        reasons.append(result.reason)
    word = "no" if result.verdict == "refused" else "**fails**"
    return f"{word} ({reasons.index(result.reason) + 1})"


def with_table(readme: str, made: str) -> str:
    """A README with the table between its marks replaced."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    assert pattern.search(readme), f"the README has no {BEGIN} … {END}"
    return pattern.sub(lambda _: f"{BEGIN}\n{made}\n{END}", readme)
