"""Results of some formats into a page that has those of others: what this run did not look at stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.mutation.catalogue import CATALOGUE
from tests.mutation.formats import FORMATS, format_of

if TYPE_CHECKING:
    from tests.mutation.table import Results

format_of("onnx")  # and with it all that are known
TITLES = [known.title for known in FORMATS.values()]
"""Formats in the order of columns and lines."""


def totals(old: str, results: Results) -> str:
    """Lines of `gate | format | found | false alarms`; those of the run's formats replace older ones."""
    head, rest = _table(old)
    new = _table("\n".join(results.totals()))[1]
    again = {row[1] for row in new}
    rows = [*(row for row in rest if row[1] not in again), *new]
    order = {title: place for place, title in enumerate(TITLES)}
    rows.sort(key=lambda row: order.get(row[1], len(order)))  # gates of a format stay in their order
    return _text([head, *rows])


def whole(old: str, results: Results) -> str:
    """The page of the suite: totals, one line a fault, what does not apply, the summary in words."""
    first, faults, title, reasons, summary = old.strip().split("\n\n")
    fresh = results.markdown().split("\n\n")
    return "\n\n".join(
        (
            totals(first, results),
            _columns(faults, fresh[1]),
            title,
            _by_title(reasons, fresh[3]),
            _summary(summary, results),
        )
    )


def _columns(old: str, new: str) -> str:
    """One line a fault; columns of the run's formats are new, and so are faults that no line had."""
    (old_head, old_rows), (head, rows) = _table(old), _table(new)
    again = {f"{kind}{t}" for t in TITLES for kind in ("", "allclose, ") if t in head}
    # The other gates know ONNX alone: without it their columns of this run are empty.
    gates = [name for name in head[3:] if name not in again and TITLES[0] in head]
    fresh, kept = {*again, *gates}, {row[0]: dict(zip(old_head, row, strict=True)) for row in old_rows}
    mine = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    every = [*old_head, *(name for name in head if name not in old_head)]
    names = every[:3] + sorted(every[3:], key=_place)
    lines = [names]
    for fault in (*kept, *(name for name in mine if name not in kept)):
        was, now = kept.get(fault, {}), mine.get(fault, {})
        cells = [(now if name in fresh or not was else was).get(name) for name in names]
        lines.append([_absent(fault, n) if c is None else c for n, c in zip(names, cells, strict=True)])
    return _text(lines)


def _absent(fault: str, name: str) -> str:
    """The cell of a fault and a format without a row."""
    entry = next((each for each in CATALOGUE if each.title == fault), None)
    if name not in TITLES or entry is None:
        return ""
    known = format_of(list(FORMATS)[TITLES.index(name)])
    return "does not apply" if entry.why_not(known) is not None else ""


def _place(name: str) -> tuple[int, int]:
    """Formats, then the gates that know one format, then `allclose` for each."""
    kind, title = (2, name.removeprefix("allclose, ")) if name.startswith("allclose, ") else (0, name)
    return (kind, TITLES.index(title)) if title in TITLES else (1, 0)


def _by_title(old: str, new: str) -> str:
    """Lines `- FORMAT: …`."""
    lines = {line.partition(":")[0]: line for text in (old, new) for line in text.splitlines()}
    return "\n".join(lines[f"- {title}"] for title in TITLES if f"- {title}" in lines)


def _summary(old: str, results: Results) -> str:
    """A format's own sentences are replaced, conversions counted together, the margin is the least."""
    again = {format_of(name).title for name in results.targets}
    lines = old.strip("`\n").splitlines()
    fresh = results.summary().splitlines()
    found = [
        line
        for title in TITLES
        for line in (fresh if title in again else lines)
        if line.startswith(f"{title}: ")
    ]
    largest = [
        line
        for title in TITLES
        for line in (fresh if title in again else lines)
        if line.startswith(f"  largest error ÷ limit, {title}, ")
    ]
    smallest = [line for line in (*lines, *fresh) if line.startswith("  smallest error ÷ limit")]
    smallest.sort(key=lambda line: float(line.partition(": ")[2].split()[0]))
    bad = [line for line in fresh if line.startswith(("MISSED", "FALSE ALARM"))]
    return "\n".join(["```", *found, *_honest(lines, fresh, again), *largest, *smallest[:1], *bad, "```"])


def _honest(old: Sequence[str], new: Sequence[str], again: set[str]) -> list[str]:
    """`Honest: 396 conversions …`, the old ones and those of this run.

    Raises:
        ValueError: The page has conversions of a format of this run already: which of its number they are
            is not known.
    """
    both = [[line for line in lines if line.startswith("Honest: ")] for lines in (old, new)]
    if any(line.startswith(f"  largest error ÷ limit, {title}, ") for line in old for title in again):
        raise ValueError("the page counts conversions of these formats already; run every format together")
    numbers = [[int(word) for word in line.replace(",", "").split() if word.isdigit()] for (line,) in both]
    count, alarms, unsure = (sum(pair) for pair in zip(*numbers, strict=True))
    return [f"Honest: {count} conversions of one component each, {alarms} false alarms, {unsure} undecided"]


def _table(text: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table in Markdown."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.strip().splitlines()
    ]
    return lines[0], lines[2:]


def _text(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rest))
