"""Plants every fault, asks every gate, and keeps one row of each on disk, so that a run can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation.faults import Fault
from tests.mutation.formats import format_of
from tests.mutation.honest import Conversion, HonestRow
from tests.mutation.honest import run as run_honest
from tests.mutation.peers import Peers, Said
from tests.mutation.workshop import Cost, Workshop

Say = Callable[[str], None]


@dataclass
class Row:
    """One fault in one format.

    Attributes:
        floors / limits: What the fault changes in float64 PyTorch, in noise floors and in limits; None
            where no measurement is needed to see it.
        ratio: Error ÷ limit that the verifier measured on the artifact.
        module: Where the fault was planted; `blamed` what bisection named.
        peers: Gate → caught, None where it knows no such format.
    """

    fault: str
    title: str
    component: str
    place: str
    target: str
    by_sight: bool
    floors: float | None
    limits: float | None
    verdict: str
    detected: bool
    ratio: float | None
    module: str | None
    blamed: str | None
    reason: str
    peers: dict[str, bool | None] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def must(self) -> bool:
        """Above the floor: it changes an output by more than PyTorch's noise is allowed to."""
        return self.by_sight or (self.limits is not None and not (self.limits <= 1))

    @property
    def size(self) -> str:
        """In words, for the table."""
        if self.floors is None:
            return "–"
        return "not finite" if self.floors == float("inf") else f"{self.floors:.2g}"


@dataclass
class Calm:
    """An honest artifact of one component, shown to every gate."""

    component: str
    target: str
    verdict: str
    peers: dict[str, bool | None]
    why: dict[str, str]


class Store:
    """Rows as small JSON files, so that several processes may fill one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rows"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, kind: str, make: Callable[..., Any]) -> list[Any]:
        found = sorted(self.folder.glob(f"{kind}@*.json"))
        return [make(**json.loads(path.read_text(encoding="utf-8"))) for path in found]

    def has(self, kind: str, name: str) -> bool:
        return (self.folder / f"{kind}@{name}.json").is_file()

    def write(self, kind: str, name: str, row: Any) -> None:
        path = self.folder / f"{kind}@{name}.json"
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")
        beside.replace(path)


def plant_all(
    shop: Workshop, faults: Sequence[Fault], targets: Sequence[str], store: Store, say: Say
) -> None:
    """Every fault in every format; rows that are there already are kept."""
    peers = Peers(shop)
    costs: dict[tuple[str, str], Cost | None] = {}
    for fault in faults:
        for target in targets:
            name = f"{target}-{fault.name}"
            known = format_of(target)
            if fault.why_not(known) is not None or store.has("fault", name):
                continue
            key = fault.name, known.floors_from
            plant = fault.in_torch(shop)
            if key not in costs:
                costs[key] = (
                    shop.cost(fault.component, plant, known.floors_from) if plant is not None else None
                )
            row = plant_one(shop, fault, target, costs[key], peers)
            store.write("fault", name, row)
            say(line(row))


def plant_one(shop: Workshop, fault: Fault, target: str, cost: Cost | None, peers: Peers) -> Row:
    root = fault.plant(shop, target)
    answers = peers.ask(root, at_native=fault.at_native)
    outcome = shop.judge(root)
    shutil.rmtree(root)
    return Row(
        fault=fault.name,
        title=fault.title,
        component=fault.component,
        place=fault.place,
        target=target,
        by_sight=fault.by_sight,
        floors=cost.floors if cost else None,
        limits=cost.limits if cost else None,
        verdict=outcome.verdict,
        detected=outcome.detected,
        ratio=outcome.ratio,
        module=fault.named_in(shop, format_of(target)),
        blamed=outcome.blamed,
        reason=outcome.reason,
        peers=_caught(answers),
        why=_why(answers),
        seconds=round(outcome.seconds, 1),
    )


def calm_all(shop: Workshop, targets: Sequence[str], store: Store, say: Say) -> None:
    """The honest artifacts of the same checkpoint, shown to every gate: who raises a false alarm."""
    peers = Peers(shop)
    for target in targets:
        for component in shop.components:
            name = f"{target}-{component}"
            if store.has("calm", name):
                continue
            root = shop.copy(target, component, "honest")
            answers = peers.ask(root)
            row = Calm(component, target, shop.judge(root).verdict, _caught(answers), _why(answers))
            store.write("calm", name, row)
            alarms = [gate for gate, caught in row.peers.items() if caught]
            say(f"honest {component:14s} {target:9s} {row.verdict:6s} false alarms: {alarms or 'none'}")


def honest_all(folder: Path, conversions: Sequence[Conversion], store: Store, say: Say) -> None:
    wanted = [c for c in conversions if not store.has("honest", c.label)]
    for row in run_honest(folder / "honest", wanted, say):
        store.write("honest", row.label, row)


def honest_rows(store: Store) -> list[HonestRow]:
    return store.read("honest", HonestRow)


def line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:10.3g} × limit"
    blamed = "" if row.module is None else f"  named: {row.blamed == row.module}"
    return f"{row.fault:20s} {row.target:9s} size {row.size:>10s}  {row.verdict:12s} {ratio}{blamed}"


def _caught(answers: dict[str, Said]) -> dict[str, bool | None]:
    return {gate: said.caught for gate, said in answers.items()}


def _why(answers: dict[str, Said]) -> dict[str, str]:
    return {gate: said.why for gate, said in answers.items() if said.why}
