"""The results in words and as the table in README.md between two markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.catalogue import BY_NAME
from tests.mutation.formats import FORMATS, format_of
from tests.mutation.honest import HonestRow
from tests.mutation.peers import GATES
from tests.mutation.suite import Calm, Row

README = Path(__file__).parent / "README.md"
ROOT_README = README.parent.parent.parent / "README.md"
PARITY_README = ROOT_README.parent / "exporter" / "parity" / "README.md"
BEGIN, END = "<!-- mutation:begin -->", "<!-- mutation:end -->"


@dataclass
class Results:
    """Every row of a run.

    Attributes:
        faults: Planted faults.
        calm: Honest artifacts shown to every gate.
        honest: Honest conversions judged by the verifier alone.
    """

    faults: list[Row]
    calm: list[Calm]
    honest: list[HonestRow]

    @property
    def missed(self) -> list[Row]:
        """Faults above the floor that were not found."""
        return [row for row in self.faults if row.must and not row.detected]

    @property
    def alarms(self) -> list[str]:
        """Honest artifacts that did not pass."""
        return [row.label for row in self.honest if row.verdict != "PASS"] + [
            f"{row.target}-{row.component}" for row in self.calm if row.verdict != "PASS"
        ]

    @property
    def sound(self) -> bool:
        """All found, no false alarm, and not because nothing was looked at."""
        return bool(self.faults or self.honest) and not self.missed and not self.alarms

    @property
    def targets(self) -> list[str]:
        """In the order in which the formats are registered."""
        found = {row.target for row in self.faults} | {row.target for row in self.honest}
        return sorted(found, key=lambda name: (list(FORMATS).index(name) if name in FORMATS else 99, name))

    def summary(self) -> str:
        lines = [*self._detection(), *self._margins()]
        lines += [f"MISSED: {row.title} ({row.target}): {row.verdict}" for row in self.missed]
        lines += [f"FALSE ALARM: {label}" for label in self.alarms]
        return "\n".join(lines)

    def _detection(self) -> list[str]:
        lines = []
        for target in self.targets:
            rows = [row for row in self.faults if row.target == target]
            above = [row for row in rows if row.must]
            found = sum(row.detected for row in above)
            places = [row for row in above if row.module is not None and row.verdict == "FAIL"]
            right = sum(row.blamed == row.module for row in places)
            below = [row for row in rows if not row.must]
            lines.append(
                f"{format_of(target).title}: {found} of {len(above)} faults above the noise floor found; "
                f"{right} of {len(places)} named by module; {len(below)} at or below the floor, of which "
                f"{sum(row.detected for row in below)} found"
            )
        return lines

    def _margins(self) -> list[str]:
        lines = []
        if self.honest:
            failed = sum(row.verdict == "FAIL" for row in self.honest)
            unsure = sum(row.verdict not in ("PASS", "FAIL") for row in self.honest)
            lines.append(
                f"Honest: {len(self.honest)} conversions of one component each, {failed} false alarms, "
                f"{unsure} undecided"
            )
            for target, mode, largest, row in self.largest():
                title = format_of(target).title
                lines.append(f"  largest error ÷ limit, {title}, {mode}: {largest:.2f} ({row.label})")
        caught = [row for row in self.faults if row.ratio is not None and row.detected and not row.by_sight]
        if caught:
            least = min(caught, key=lambda row: row.ratio or math.inf)
            lines.append(
                f"  smallest error ÷ limit of a fault that was found: {least.ratio:.2f} ({least.title})"
            )
        return lines

    def largest(self) -> Iterable[tuple[str, str, float, HonestRow]]:
        """By target and way of running: the largest error ÷ limit of an honest artifact."""
        for target in self.targets:
            for mode in ("graph", "default"):
                rows = [row for row in self.honest if row.target == target and mode in row.ratios]
                if rows:
                    worst = max(rows, key=lambda row: row.ratios[mode])
                    yield target, mode, worst.ratios[mode], worst

    def markdown(self) -> str:
        """The table that README carries."""
        head = ["planted fault", "in", "size", *(format_of(t).title for t in self.targets)]
        head += [f"{gate}" for gate in GATES if gate != "allclose"]
        head += [f"allclose, {format_of(t).title}" for t in self.targets]
        lines = [_row(head), _row(["---"] * len(head))]
        for name in dict.fromkeys(row.fault for row in self._ordered()):
            lines.append(_row(self._cells(name)))
        return "\n".join([*self.totals(), "", *lines, "", *self.reasons()])

    def reasons(self) -> list[str]:
        """Why a fault does not apply to a format."""
        lines = ["Does not apply:", ""]
        for target in self.targets:
            why: dict[str, list[str]] = {}
            for fault in BY_NAME.values():
                reason = fault.why_not(format_of(target))
                if reason is not None:
                    why.setdefault(reason, []).append(f"`{fault.name}`")
            said = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in why.items())
            lines.append(f"- {format_of(target).title}: {said or 'every fault applies'}.")
        return lines

    def _ordered(self) -> list[Row]:
        """Above the floor first, the least conspicuous first among them."""
        return sorted(
            self.faults,
            key=lambda row: (not row.must, row.by_sight, row.floors if row.floors is not None else math.inf),
        )

    def _cells(self, name: str) -> list[str]:
        rows = {row.target: row for row in self.faults if row.fault == name}
        one = next(iter(rows.values()))
        cells = [one.title, f"`{one.component}`", one.size]
        cells += [_verdict(name, target, rows.get(target)) for target in self.targets]
        cells += [_peer(rows.get("onnx"), gate) for gate in GATES if gate != "allclose"]
        return cells + [_peer(rows.get(target), "allclose") for target in self.targets]

    def totals(self) -> list[str]:
        """Who catches how much, and who raises how many false alarms: a table."""
        lines = [
            _row(["gate", "format", "faults above the floor found", "false alarms"]),
            _row(["---"] * 4),
        ]
        for target in self.targets:
            title = format_of(target).title
            above = [row for row in self.faults if row.target == target and row.must]
            calm = [row for row in self.calm if row.target == target]
            honest = [row for row in self.honest if row.target == target]
            found = sum(row.detected for row in above)
            judged = [row.verdict for row in (*calm, *honest)]
            alarms = sum(verdict != "PASS" for verdict in judged)
            lines.append(
                _row(
                    [
                        "**exporter**",
                        title,
                        _share(found, len(above)),
                        f"{alarms} of {len(judged)}",
                    ]
                )
            )
            for gate in GATES:
                asked = [row for row in above if row.peers.get(gate) is not None]
                if not asked:
                    continue
                found = sum(bool(row.peers[gate]) for row in asked)
                alarms = sum(bool(row.peers.get(gate)) for row in calm)
                lines.append(_row([gate, title, _share(found, len(asked)), f"{alarms} of {len(calm)}"]))
        return lines


def _share(found: int, of: int) -> str:
    return f"{found} of {of} ({100 * found // of} %)" if of else "–"


def _verdict(fault: str, target: str, row: Row | None) -> str:
    if row is None:  # not run, if it can be made
        return "does not apply" if BY_NAME[fault].why_not(format_of(target)) is not None else ""
    if not row.detected:
        return "**missed**" if row.must else "passes (below)"
    if row.module is None:
        return row.verdict
    return f"{row.verdict}, named" if row.blamed == row.module else row.verdict


def _peer(row: Row | None, gate: str) -> str:
    caught = row.peers.get(gate) if row is not None else None
    return "" if caught is None else "caught" if caught else "passes"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_readme(results: Results) -> None:
    """The whole table into this folder's page, and who catches how much into the project's and parity's.

    What the pages say of formats that the run did not look at stays.
    """
    if set(FORMATS) <= set(results.targets):
        _replace(README, lambda _: f"{results.markdown()}\n\n```\n{results.summary()}\n```")
        for page in (ROOT_README, PARITY_README):
            _replace(page, lambda _: "\n".join(results.totals()))
        return
    from tests.mutation import pages

    _replace(README, lambda old: pages.whole(old, results))
    for page in (ROOT_README, PARITY_README):
        _replace(page, lambda old: pages.totals(old, results))


def _replace(path: Path, change: Callable[[str], str]) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: The markers are not there, once each and in order.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} lacks the markers {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{change(old)}\n{END}{after}", encoding="utf-8")
