"""Quantised artifacts: the graph is judged apart from the rounding of its weights.

Three questions instead of one:

1. Are the integers in the file the nearest to the checkpoint's weights, and are their steps as fine as the
   scheme's? Asked of each weight, in steps of its own scale: a shifted zero point, a wrong scale or two
   exchanged codes are found here, however little they show in an output.
2. Does the artifact compute what PyTorch computes *with those very weights*? This has the ordinary,
   earned limit: `restored()` gives the component with the weights read back from the file.
3. Is the output near enough to the unquantised model's? That is a stated limit, in dB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from exporter.parity.calibrated import check_ranges
from exporter.parity.parts import Compression, WeightCheck
from exporter.parity.schema import ComponentReport, PipelineReport
from exporter.parity.stated import stated

if TYPE_CHECKING:
    from exporter.architectures.base import Component
    from exporter.artifact import ComponentRecord
    from exporter.checkpoints import Checkpoint, StoredTensor
    from exporter.parity.measure import Opened
    from exporter.targets.base import QuantisedWeight, RoundedActivation, Runner

SHARD = 1 << 28
"""Bytes of dequantised weights gathered before they are written."""
CHUNK = 1 << 21
"""Weights compared at a time."""
HALF, HALF_RANGE = "int8_half", 64
"""How weights that are multiplied with rounded activations are quantised, and the last code of that: two
products with a byte (255 · 64 · 2 = 32640) fit into 16 bits."""
LABEL = re.compile(r"int(?P<bits>[48])_(?P<kind>a?sym|half|narrow)(?:_group(?P<group>\d+))?")
PALETTE = re.compile(r"palette(?P<bits>[1-8])")


def is_quantised(record: ComponentRecord) -> bool:
    """Whether the manifest says that the component's weights are integers, or places in palettes."""
    return record.dtype in ("int8", "int4") or record.dtype.startswith("palette")


def claimed_labels(record: ComponentRecord) -> dict[str, str]:
    """How the manifest says that each weight is quantised, by its name."""
    return dict((record.details.get("compression") or {}).get("weights") or {})


def rounds_activations(record: ComponentRecord) -> bool:
    """Whether the manifest says that the file rounds activations to integers."""
    return bool((record.details.get("compression") or {}).get("activations"))


def restore(
    component: Component,
    record: ComponentRecord,
    opened: Opened,
    folder: Path,
    report: ComponentReport,
    checkpoint: Checkpoint,
    cache: Path | Literal["user"] | None,
    tick: Callable[[str], None],
) -> Component:
    """The component with the artifact's own weights; checks and faults go into the report."""
    original = component
    try:
        with opened() as runner:
            component, report.compression, faults = restored(component, record, runner, folder)
            rounded = runner.rounded()
        if rounds_activations(record):
            claimed = record.details["compression"]["activations"]
            report.compression.calibrated_on = int(claimed["inputs"])
            report.compression.activations, more = check_ranges(
                checkpoint, original, claimed, rounded, cache=cache, tick=tick
            )
            faults += more + overflowing(claimed_labels(record), rounded)
        elif rounded:
            faults.append("the file rounds activations, which the manifest does not say")
    except Exception as error:  # a damaged file: what it holds cannot be read
        faults = [f"the quantised weights cannot be read: {type(error).__name__}: {error}"]
    report.problems += faults
    return component


def note_schemes(report: PipelineReport, records: Iterable[ComponentRecord]) -> bool:
    """Say in the pipeline's report which scheme its pictures are judged by: the coarsest of its components'.

    Returns:
        Whether any component is quantised.
    """
    found = [record.details.get("compression") or {} for record in records if is_quantised(record)]
    if found:
        report.scheme = min((str(each.get("scheme")) for each in found), key=lambda s: (stated(s, 1), s))
    return bool(found)


def restored(
    component: Component, record: ComponentRecord, runner: Runner, folder: Path
) -> tuple[Component, Compression, list[str]]:
    """The component with the artifact's own weights, and how far they are from the checkpoint's.

    Args:
        runner: The artifact, open.
        folder: Where the dequantised weights go (float32 safetensors); it must live as long as the
            component is used. One tensor is in memory at a time, and up to `SHARD` bytes waiting.

    Returns:
        The component, the checks of its weights, and faults that need no number.
    """
    claimed = record.details.get("compression") or {}
    labels = claimed_labels(record)
    compression = Compression(scheme=str(claimed.get("scheme") or record.dtype))
    component = component.fused()
    originals = component.reference_weights
    keys = {tensor.name: key for key, tensor in component.weights.items()}
    faults: list[str] = []
    stored: dict[str, StoredTensor] = {}
    waiting: dict[str, np.ndarray] = {}
    found: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for weight in runner.quantised():
        original = originals.get(keys.get(weight.name, ""))
        if original is None or original.shape != weight.values.shape:
            faults.append(f"the quantised weight {weight.name!r} is none of the checkpoint's")
            continue
        found.add(weight.name)
        label = str(labels.get(weight.name))
        checked = check(weight, original, label)
        if label == HALF and not (most := _last_code(weight)) <= HALF_RANGE + 0.5:
            faults.append(
                f"the quantised weight {weight.name} has a code of {most:.0f}; {label} ends at {HALF_RANGE}"
            )
        if checked is not None:
            compression.weights.append(checked)
        waiting[keys[weight.name]] = np.ascontiguousarray(weight.values, dtype=np.float32)
        if sum(values.nbytes for values in waiting.values()) >= SHARD:
            stored |= _write(waiting, folder / f"{len(stored)}.safetensors")
            waiting = {}
    stored |= _write(waiting, folder / f"{len(stored)}.safetensors")
    if not found:
        faults.append(f"the manifest says {record.dtype}, but no weight in the file is quantised")
    elif found != set(labels):
        odd = sorted(found ^ set(labels))
        faults.append(
            f"the manifest and the file disagree about what is quantised: {odd[0]} ({len(odd)} in all)"
        )
    return component.holding({**originals, **stored}), compression, faults


def overflowing(labels: Mapping[str, str], rounded: Iterable[RoundedActivation]) -> list[str]:
    """A fault where codes of the whole range are multiplied with rounded activations.

    Processors without VNNI add pairs of such products in 16 bits, which saturate: what passes on the
    machine of the verdict would be broken on those.
    """
    whole = [each.name for each in rounded if labels.get(each.name) != HALF]
    if not whole:
        return []
    return [
        f"the codes of {whole[0]} ({len(whole)} in all) are not within ±{HALF_RANGE} ({HALF}): multiplied "
        "with rounded activations they overflow on processors without VNNI; convert again"
    ]


def _last_code(weight: QuantisedWeight) -> float:
    with np.errstate(all="ignore"):
        return float(np.abs(weight.values / weight.step).max(initial=0.0))


def check(weight: QuantisedWeight, original: StoredTensor, label: str) -> WeightCheck | None:
    """How far a quantised weight is from the original, in steps, and how coarse its steps are.

    Of a palette a step is twice the way to its nearest number, so that half a step is the nearest there too,
    and its coarseness is by how much it has more numbers than its bits can name.

    Half a step is what rounding to nearest costs. At the first and last code a further half is granted, for
    values that were clipped, and where the codes reach one step less on one side (`sym`), what storing the
    scale as float16 can put the largest value beyond them. NaN anywhere gives NaN.

    Args:
        label: The manifest's word for how it is quantised (`int4_asym_group64`); where it says nothing that
            can be read, the steps have no measure, and are infinitely coarse.
    """
    tensor = original.load()
    rows = tensor.shape[0]
    flat = tensor.reshape(rows, -1)
    mine = [each.reshape(rows, -1) for each in (weight.values, weight.step, weight.edge)]
    count = max(1, CHUNK // max(1, flat.shape[1]))
    worst, place, coarse, noise, signal = -1.0, 0, 0.0, 0.0, 0.0
    beyond = 0.5 + _past_the_last_code(label)
    for start in range(0, rows, count):
        wanted = flat[start : start + count].float().numpy()
        values, step, edge = (each[start : start + count] for each in mine)
        with np.errstate(all="ignore"):
            difference = np.abs(values - wanted)
            if weight.palette is not None:
                step, edge = 2 * _way_to_nearest(weight.palette, wanted), np.zeros_like(edge)
            # a weight that is met exactly is no step away, however small the step
            steps = np.where(difference == 0, 0, difference / step - beyond * edge)
            noise += float(np.sum(np.square(difference, dtype=np.float64)))
            signal += float(np.sum(np.square(wanted, dtype=np.float64)))
            most = float(steps.max())  # NaN, where there is one
            ratio = _coarseness(step, wanted, label, weight.palette)
        if not (most <= worst):
            worst, place = most, start * flat.shape[1] + int(steps.argmax())
        coarse = ratio if not (ratio <= coarse) else coarse
        if math.isnan(worst) or math.isnan(coarse):
            break
    original.release()
    index = [int(i) for i in np.unravel_index(place, weight.values.shape)]
    sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    return WeightCheck(name=weight.name, how=label, steps=worst, coarseness=coarse, index=index, sqnr_db=sqnr)


def _past_the_last_code(label: str) -> float:
    """Steps between 8 times a scale, where int4 ends at 7, and the same times that scale as float16
    (unit roundoff 2^-11)."""
    match = LABEL.fullmatch(label)
    return 8 * 2.0**-11 if match is not None and match["kind"] == "sym" and match["bits"] == "4" else 0.0


def _way_to_nearest(palette: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Distance of every number to the nearest of an ascending palette."""
    place = np.searchsorted(palette, wanted)
    below, above = palette[np.maximum(place - 1, 0)], palette[np.minimum(place, len(palette) - 1)]
    return np.minimum(np.abs(wanted - below), np.abs(wanted - above))


def _coarseness(step: np.ndarray, original: np.ndarray, label: str, palette: np.ndarray | None) -> float:
    """The largest step ÷ the step that the scheme gives the same weights."""
    if palette is not None:
        named = PALETTE.fullmatch(label)
        return math.inf if named is None else len(palette) / 2 ** int(named["bits"])
    match = LABEL.fullmatch(label)
    if match is None:
        return math.inf
    rows, columns = original.shape
    group = int(match["group"] or columns)
    if columns % group:
        return math.inf
    groups = original.reshape(rows, -1, group)
    bits = int(match["bits"])
    if match["kind"] in ("sym", "narrow"):
        narrow = bits == 8 or match["kind"] == "narrow"
        reach, codes = 2 * np.abs(groups).max(-1), 2**bits - 2 if narrow else 2**bits
    elif match["kind"] == "half":
        reach, codes = 2 * np.abs(groups).max(-1), 2 ** (bits - 1)
    else:
        reach, codes = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0), 2**bits - 1
    fine = np.where(reach == 0, np.inf, reach / codes)  # zeros alone have any step
    # A scale that float16 holds badly is the next larger number it has.
    return float(((step.reshape(rows, -1, group).max(-1) - 2.0**-24) / fine).max())


def _write(tensors: dict[str, np.ndarray], path: Path) -> dict[str, StoredTensor]:
    from safetensors.numpy import save_file

    from exporter.checkpoints.safetensors_file import SafetensorsFile

    if not tensors:
        return {}
    save_file(tensors, path)
    return dict(SafetensorsFile(path).tensors)
