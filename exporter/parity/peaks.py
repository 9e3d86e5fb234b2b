"""The largest values on the way through a component: overflow is seen there before it is seen in outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exporter.artifact import PeakRecord
from exporter.parity.schema import ComponentReport, PeakRow


def overflows(peaks: Sequence[PeakRow]) -> list[str]:
    """One sentence on the first value that its dtype cannot hold; what follows from it is only counted.

    A value that is infinite before it is rounded has not overflown here: an earlier one did, or a constant
    of the file is infinite.
    """
    found = [row for row in peaks if row.limit is not None and not (row.peak <= row.limit)]
    first = next((row for row in found if math.isfinite(row.peak)), None)
    if first is None or first.limit is None:
        return []
    place = f" in {first.module}" if first.module else ""
    more = f" ({len(found) - 1} more after it)" if len(found) > 1 else ""
    return [
        f"float16 overflows: {first.operation} {first.value!r}{place} reaches {first.peak:.4g}, float16 "
        f"holds {first.limit:.0f}{more}"
    ]


def peak_record(component: ComponentReport) -> PeakRecord | None:
    """What the manifest keeps of a component's peaks: the largest of its last run."""
    found = [run.largest for run in component.runs if run.largest is not None]
    if not found:
        return None
    fields = found[-1].model_dump()
    return PeakRecord(**fields | {"peak": fields["peak"] if math.isfinite(fields["peak"]) else None})
