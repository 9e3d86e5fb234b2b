"""Inputs from a real run of the checkpoint, for targets that calibrate what they write with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.errors import UnsupportedError
from exporter.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from exporter.parity.cases import Inputs
    from exporter.planning import Plan
    from exporter.targets.base import Calibration


def captured_for(
    plan: Plan, completed: Callable[[str], object | None], progress: Progress
) -> Calibration | None:
    """The inputs of each component from the run that the target asks for; None where it asks for none.

    Args:
        completed: What an earlier run has finished of a component, by its name, or None: then it is not run.

    The run is the float32 reference's, and is kept in the same cache as those of `verify`.

    Raises:
        UnsupportedError: The pipeline cannot be run here, or never calls one of the components.
    """
    wanted = plan._target.calibration(plan._options)
    components = [c for c in plan._components if wanted is not None and completed(c.name) is None]
    if wanted is None or not components:
        return wanted
    from exporter.parity.calibrated import calibration_cases, calibration_plan
    from exporter.parity.painting import supported

    checkpoint = plan._checkpoint
    if not supported(checkpoint):
        raise UnsupportedError(
            f"Nothing can be calibrated: this version cannot run a {checkpoint.pipeline_class} to capture "
            "its inputs."
        )
    painting = calibration_plan(checkpoint, plan._options.static, wanted.prompts, wanted.steps, wanted.seed)
    progress.start("capturing inputs to calibrate with", len(painting.groups()) * (painting.steps + 2))
    count = 0

    def tick(label: str) -> None:
        nonlocal count
        count += 1
        progress.update(count, label)

    cases = calibration_cases(checkpoint, components, painting, wanted.samples, tick=tick)
    progress.done()
    for component in components:
        if not cases[component.name]:
            raise UnsupportedError(
                f"{component.name} cannot be calibrated: a run of the pipeline never calls it.",
                hint="Convert the others with --component.",
            )
    return replace(
        wanted,
        prompts=painting.prompts,
        inputs={name: [_arrays(case) for case in found] for name, found in cases.items()},
        record={
            "prompts": list(painting.prompts), "steps": painting.steps, "seed": painting.seed,
            "samples": wanted.samples, "height": painting.height, "width": painting.width,
            "batch": painting.batch,
        },
    )  # fmt: skip


def _arrays(case: Inputs) -> dict[str, np.ndarray]:
    return {name: tensor.contiguous().numpy() for name, tensor in case.tensors.items()}
