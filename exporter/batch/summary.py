"""The page of a batch. Needs no network to read."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from exporter.artifact import write_text_atomic
from exporter.batch.state import Summary
from exporter.planning import human

PAGE = "index.html"


def write_page(summary: Summary, folder: Path) -> None:
    """Write `index.html`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("exporter.batch", "."), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"human": human, "address": quote}
    style = Path(__file__).parents[1] / "demo" / "style.css"
    page = environment.get_template("page.html.j2").render(
        summary=summary,
        rows=summary.rows,
        words={row.id: verdict(row.verdict, row.state) for row in summary.rows},
        passed=sum(row.verdict == "PASS" for row in summary.rows),
        style=Markup(style.read_text(encoding="utf-8")),
    )
    write_text_atomic(folder / PAGE, page)


def verdict(found: str | None, state: str) -> str:
    """A verdict, or what stands in its place."""
    if found is not None:
        return found
    return {"failed": "stopped", "waiting": "waiting", "running": "running"}.get(state, "not verified")
