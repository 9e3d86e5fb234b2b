"""Which components of a float16 artifact float16 can hold, and what is done about the others.

Measured, not guessed: the float32 reference is run, and the largest magnitude inside each component decides.
Where nothing is verified nothing is run; then `force_upcast`, which SDXL's autoencoder sets, is taken at its
word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from exporter.progress import Progress

if TYPE_CHECKING:
    from exporter.architectures import Component
    from exporter.planning import Plan
    from exporter.targets import Options

FLOAT16_MAX = 65504.0
MARGIN = 2.0
"""Other prompts may reach higher than those that were run."""


@dataclass
class Safety:
    """What was decided for one component.

    Attributes:
        options: To export it with.
        details: For the manifest; empty where float16 was not in question.
        note: In words, where the component is not exported as asked for.
    """

    options: Options
    details: dict[str, Any] = field(default_factory=dict)
    note: str | None = None


def decide(plan: Plan, settings: Mapping[str, Any], progress: Progress) -> dict[str, Safety]:
    """Options for every component of a plan, by name.

    Args:
        settings: Of the verification: what is run to measure.
    """
    plain = {component.name: Safety(plan._options) for component in plan._components}
    if not plan._target.computes_in_float16(plan._options):
        return plain
    if not plan.verify:
        for component in plan._components:
            if asks_for_float32(component):
                why = "its config says force_upcast, and nothing was measured (--no-verify)"
                plain[component.name] = _kept(plan, component, FLOAT16_MAX * MARGIN, {}, why)
        return plain
    from exporter.parity.activations import measure_peaks

    progress.start("measuring what float16 has to hold")
    count = 0

    def tick(label: str) -> None:
        nonlocal count
        count += 1
        progress.update(count, label)

    peaks = measure_peaks(plan._checkpoint, plan._components, plan._options.static, settings, tick=tick)
    progress.done()
    for component in plan._components:
        peak = peaks[component.name]
        measured = {"peak_activation": peak.value, "peak_module": peak.where}
        if peak.value * MARGIN <= FLOAT16_MAX:
            plain[component.name].details = measured
            continue
        why = f"its values reach {peak.value:.3g} in {peak.where or 'it'}, and float16 ends at 65504"
        plain[component.name] = _kept(plan, component, peak.value * MARGIN, measured, why)
    return plain


def resized(plan: Plan, chosen: Mapping[str, Safety]) -> Plan:
    """The plan with what it takes now: float32 is twice as large."""
    parts = []
    for planned, component in zip(plan.components, plan._components, strict=True):
        need = plan._target.estimate(component, chosen[component.name].options)
        parts.append(replace(planned, disk=need.disk, memory=need.memory))
    disk, memory = sum(part.disk for part in parts), max(part.memory for part in parts)
    return replace(plan, components=parts, disk=disk, memory=memory)


def asks_for_float32(component: Component) -> bool:
    """Whether a pipeline of diffusers would compute this autoencoder in float32: only SDXL's heed the flag,
    which newer versions of diffusers write into every config."""
    family = component.checkpoint.pipeline_class
    return component.folder == "vae" and bool(component.config.get("force_upcast")) and "XL" in family


def _kept(plan: Plan, component: Component, peak: float, measured: dict[str, Any], why: str) -> Safety:
    options = plan._target.keep_finite(component, plan._options, peak)
    changed = {
        name: value
        for name, value in options.model_dump(mode="json").items()
        if value != plan._options.model_dump(mode="json")[name]
    }
    how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changed.items())
    note = f"{component.name}: {how}, because {why}" if changed else None
    return Safety(options, {**measured, "float16": f"{how or 'not safe'}: {why}"}, note)
