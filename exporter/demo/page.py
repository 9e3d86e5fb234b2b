"""Writes the demo's page: one HTML file that needs nothing else and asks the network for nothing."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from exporter.artifact import write_text_atomic
from exporter.demo.pictures import AMPLIFICATION, data_uri
from exporter.planning import human, tool_versions

if TYPE_CHECKING:
    from exporter.demo import DemoResult
    from exporter.demo.rows import Row

FOLDER = Path(__file__).parent
MARKS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?", "ERROR": "!", "MISSING": "–"}
WORDS = {"ERROR": "NOT MADE", "MISSING": "NOT INSTALLED"}
"""Verdicts stand in their own words; the other two states in these."""


@dataclass(frozen=True)
class Page:
    """What the template is given; everything is formatted here, so the template only places it."""

    result: DemoResult
    output: Path
    about_prompts: str

    @cached_property
    def tried(self) -> list[Row]:
        """Rows of installed targets."""
        return [row for row in self.result.rows if row.status != "MISSING"]

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        by_status = {status: titles(self.tried, status) for status in ("FAIL", "ERROR", "INCONCLUSIVE")}
        if failed := by_status["FAIL"]:
            return (
                f"{enumerate_words(failed)} {verb(failed, 'does', 'do')} not compute what PyTorch computes."
            )
        if stopped := by_status["ERROR"]:
            return f"{enumerate_words(stopped)} could not be made."
        if unsure := by_status["INCONCLUSIVE"]:
            return f"{enumerate_words(unsure)} could not be judged here."
        passed = titles(self.tried, "PASS")
        return f"{enumerate_words(passed)} {verb(passed, 'paints', 'paint')} what PyTorch paints."

    @property
    def tally(self) -> str:
        """`2 of 3 artifacts passed`."""
        passed = len(titles(self.tried, "PASS"))
        return f"{passed} of {len(self.tried)} {'artifact' if len(self.tried) == 1 else 'artifacts'} passed"

    @property
    def component_names(self) -> list[str]:
        """Every component of every artifact, in pipeline order."""
        return list(dict.fromkeys(c.name for row in self.tried for c in row.components))

    def parameters(self, name: str) -> int:
        """Number of weights of a component."""
        return next(c.parameters for row in self.tried for c in row.components if c.name == name)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(what it does, command) for repeating each part."""
        source = shlex.quote(self.result.source)
        here = shlex.quote(shown_path(self.output))
        demo = "exporter demo" if here == "artifacts/demo" else f"exporter demo -o {here}"
        for name, value, default in (
            ("source", source, "builtin:shapes"),
            ("seed", self.result.seed, 7),
            ("steps", self.result.steps, 25),
        ):
            demo += f" --{name} {value}" if value != default else ""
        found = [("Everything on this page", demo)]
        for row in self.tried[:1]:
            artifact = shlex.quote(shown_path(self.output / row.target))
            prompt = shlex.quote(self.result.prompts[0])
            found += [
                ("One format", f"exporter convert {source} --to {row.target} -o {artifact} --overwrite"),
                ("Its verdict again", f"exporter verify {artifact}"),
                (
                    "One of its pictures",
                    f"exporter run {artifact} {prompt} "
                    f"--seed {self.result.seed} --steps {self.result.steps} -o picture.png",
                ),
            ]
        return found

    def link(self, path: Path) -> str:
        """A path as a relative address from the page."""
        return quote(Path(os.path.relpath(path, self.output)).as_posix())


def write_page(page: Page) -> Path:
    """Render the page and put it into place in one step."""
    from exporter.doctor import find_hardware
    from exporter.inspection import inspect

    reference = inspect(page.result.source)
    write_text_atomic(
        page.result.page,
        environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            result=page.result,
            reference=reference,
            reference_dtype=", ".join(sorted({d for c in reference.components for d in c.dtypes})),
            hardware=find_hardware(),
            versions=tool_versions(),
            amplification=AMPLIFICATION,
            created=datetime.now(UTC).replace(microsecond=0),
        ),
    )
    return page.result.page


def environment() -> Any:
    """Jinja2 with everything escaped: prompts and error messages are somebody's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["style"] = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))  # our own file
    env.globals["marks"] = MARKS
    env.globals["words"] = WORDS
    env.filters.update(
        bytes=lambda size: "–" if size is None else human(size),
        seconds=seconds,
        decibel=decibel,
        count=count,
        date=date,
        uri=data_uri,
        levels=levels,
        sentence=sentence,
    )
    return env


def seconds(value: float | None) -> str:
    """`0.42 s`, `12.3 s`, `3 min 5 s`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def decibel(value: float | None) -> str:
    """`62.1 dB`; `identical` for pictures without any difference."""
    if value is None:
        return "–"
    if value == math.inf:
        return "identical"
    return f"{value:.1f} dB" if math.isfinite(value) else "not comparable"


def date(moment: datetime) -> str:
    """`3 November 2026, 08:30 UTC`, whatever the locale."""
    months = (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    )  # fmt: skip
    return f"{moment.day} {months[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"


def levels(largest: int) -> str:
    """The largest difference of two pictures in words."""
    return "no difference" if largest == 0 else f"at most {largest} of 255"


def count(value: float) -> str:
    """`860 M`, `6.6 M`, `12.3 k`: a number of parameters."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{value:.0f}"


def sentence(text: str) -> str:
    """With a capital, unless it begins with a component's name (`unet: …`)."""
    first = text.split(" ", 1)[0]
    return text if first.endswith(":") or "_" in first else text[:1].upper() + text[1:]


def titles(rows: list[Row], status: str) -> list[str]:
    """Titles of the rows in one state, each kept on one line by spaces that do not break."""
    return [row.title.replace(" ", "\u00a0") for row in rows if row.status == status]


def verb(subjects: list[str], one: str, many: str) -> str:
    return one if len(subjects) == 1 else many


def enumerate_words(words: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def shown_path(path: Path) -> str:
    """Relative to the working directory where it lies below it, as the user would type it."""
    absolute = Path(os.path.abspath(path))
    try:
        return absolute.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
