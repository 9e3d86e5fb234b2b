"""Checks and runs the cells of a recipe. One that fails does not keep the others from finishing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.artifact import MANIFEST
from exporter.errors import DestinationError, ExporterError
from exporter.progress import NullProgress, Prefixed, Progress
from exporter.recipes.matrix import Cell, cells
from exporter.recipes.model import Recipe

if TYPE_CHECKING:
    from exporter.bench import Entrant
    from exporter.checkpoints import Checkpoint
    from exporter.conversion import Plan

PYTORCH = "pytorch"
"""The target of a recipe that accelerates the diffusers pipeline and writes nothing."""


@dataclass
class Row:
    """What became of one cell.

    Attributes:
        verdict: PASS, FAIL, INCONCLUSIVE, or None when verification was off or it did not get so far.
        summary: In words.
        error: What stopped it, or None.
        published: Where it went, or None.
    """

    label: str
    target: str
    output: str | None = None
    verdict: str | None = None
    summary: str = ""
    seconds: float = 0.0
    bytes: int = 0
    error: ExporterError | None = None
    published: str | None = None

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return self.error.exit_code
        return {"FAIL": 1, "INCONCLUSIVE": 5}.get(self.verdict or "", 0)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {k: v for k, v in vars(self).items() if k != "error"}
        error = None if self.error is None else {"message": self.error.message, "hint": self.error.hint}
        return {**values, "error": error, "exit_code": self.exit_code}


@dataclass
class RecipeResult:
    """All rows of a recipe, in order."""

    name: str
    rows: list[Row] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """That of the first row that did not pass, or 0."""
        return next((row.exit_code for row in self.rows if row.exit_code), 0)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "recipe": self.name,
            "rows": [row.as_dict() for row in self.rows],
            "exit_code": self.exit_code,
        }


def plan(cell: Cell, progress: Progress | None = None) -> Plan:
    """The plan of one cell: everything about the request is checked, nothing is written.

    Raises:
        UsageError, BackendMissing, CheckpointError …: As `exporter.conversion.make_plan`.
    """
    from exporter.conversion import make_plan

    recipe = cell.recipe
    return make_plan(
        recipe.model,
        cell.target,
        cell.output,
        recipe.options,
        revision=recipe.revision,
        variant=recipe.variant,
        components=recipe.components or None,
        safety_checker=recipe.safety_checker,
        verify=recipe.verify.enabled,
        progress=progress,
        intake=recipe.intake(),
        techniques=recipe.techniques,
    )


def check(recipe: Recipe) -> list[Row]:
    """Plan every cell and run none; a cell that cannot be has its reason."""
    rows = []
    for cell in cells(recipe):
        row = Row(cell.label, cell.target)
        try:
            if cell.target == PYTORCH:
                entrants([cell])
            else:
                planned = plan(cell)
                row.output, row.bytes = str(planned.output), planned.disk
        except ExporterError as error:
            row.error = error
        rows.append(row)
    return rows


def run(recipe: Recipe, *, overwrite: bool = False, progress: Progress | None = None) -> RecipeResult:
    """Convert, judge and publish every cell.

    Args:
        overwrite: Replace artifacts that stand at the destinations.
    """
    report = progress or NullProgress()
    result = RecipeResult(recipe.name)
    for cell in cells(recipe):
        row = Row(cell.label, cell.target)
        result.rows.append(row)
        began = time.monotonic()
        try:
            if cell.target == PYTORCH:
                _measure_cell(cell, row, Prefixed(report, cell.label))
            else:
                _run_cell(cell, row, overwrite, Prefixed(report, cell.label))
        except ExporterError as error:
            row.error = error
        row.seconds = round(time.monotonic() - began, 3)
    return result


def _run_cell(cell: Cell, row: Row, overwrite: bool, progress: Progress) -> None:
    from exporter.conversion import convert

    planned = plan(cell, progress)
    row.output = str(planned.output)
    settings = cell.recipe.verify.settings()
    recorded = recorded_recipe(cell)
    done = convert(planned, overwrite=overwrite, progress=progress, verify_settings=settings, recipe=recorded)
    row.verdict, row.summary = done.verdict, done.summary
    row.bytes = sum(file.bytes for file in done.artifact.manifest.all_files())
    publish = cell.recipe.publish
    if publish is not None and row.verdict == "PASS":
        from exporter.publish import push

        pushed = push(
            done.artifact.root, publish.repo, create=publish.create, private=publish.private,
            revision=publish.revision, pull_request=publish.pull_request, progress=progress,
        )  # fmt: skip
        row.published = pushed.pull_request or pushed.url


def _measure_cell(cell: Cell, row: Row, progress: Progress) -> None:
    """A recipe for PyTorch writes nothing: its result is how fast it is, and how far its picture is off."""
    from exporter import bench

    plain = bench.Entrant(cell.recipe.model, "plain", (), _intake(cell.recipe))
    result = bench.run([plain, *entrants([cell])], runs=2, progress=progress)
    measured = result.rows[1]
    if result.rows[0].error or measured.error:
        raise result.rows[0].error or measured.error  # type: ignore[misc]
    row.bytes = measured.disk
    row.summary = f"{measured.speedup:.2f}× as fast, picture {_decibels(measured.psnr)} against plain PyTorch"


def _decibels(psnr: float | None) -> str:
    if psnr is None:
        return "not comparable"
    return "identical" if psnr == float("inf") else f"{psnr:.1f} dB"


def entrants(
    found: Sequence[Cell], *, progress: Progress | None = None, keep_going: bool = False
) -> list[Entrant]:
    """The competitors of a bench that recipes stand for; an artifact that is not there yet is made.

    Args:
        keep_going: One that cannot be has its reason as `Entrant.error`, and the others go on.

    Raises:
        UsageError, BackendMissing: A technique that cannot be.
        ExporterError: A conversion that does not end in an artifact, or another artifact in its place.
    """
    from exporter.bench import Entrant

    result = []
    for cell in found:
        name = cell.recipe.name if cell.label == cell.recipe.name else f"{cell.recipe.name} {cell.label}"
        try:
            result.append(_entrant(cell, name, progress))
        except ExporterError as error:
            if not keep_going:
                raise
            result.append(Entrant(str(cell.output or cell.recipe.model), name, error=error))
    return result


def _entrant(cell: Cell, name: str, progress: Progress | None) -> Entrant:
    from exporter import techniques
    from exporter.bench import Entrant
    from exporter.conversion import convert

    recipe = cell.recipe
    if cell.target == PYTORCH:
        checkpoint = _checkpoint(recipe)
        techniques.check(recipe.techniques, PYTORCH, checkpoint.component_classes, checkpoint.pipeline_class)
        return Entrant(recipe.model, name, tuple(recipe.techniques), _intake(recipe))
    planned = plan(cell, progress)
    if (planned.output / MANIFEST).is_file():
        _refuse_another(planned)
    else:
        settings, recorded = recipe.verify.settings(), recorded_recipe(cell)
        convert(planned, progress=progress, verify_settings=settings, recipe=recorded)
    return Entrant(str(planned.output), name)


def _refuse_another(planned: Plan) -> None:
    """What stands in the place of an artifact is measured under the recipe's name, so it has to be that one.

    Raises:
        DestinationError: It was made of something else, or otherwise.
    """
    from exporter.artifact import Artifact

    manifest = Artifact.open(planned.output).manifest
    source = manifest.source
    there = {
        "target": (manifest.target, planned.target),
        "source": (source.source, planned.source),
        "revision": (source.revision, planned.revision),
        "variant": (source.variant, planned.variant),
        "overlays": ([o.model_dump(mode="json") for o in source.overlays], planned.overlays),
        "options": (manifest.options, planned.options),
        "techniques": ([t.model_dump(mode="json") for t in manifest.techniques], planned.techniques),
        "components": ({c.name for c in manifest.components}, {c.name for c in planned.components}),
    }
    other = [name for name, (is_there, wanted) in there.items() if is_there != wanted]
    if other:
        raise DestinationError(
            f"{planned.output} is not what the recipe makes (other {', '.join(other)}).",
            hint="Name another folder with --set output=DIR, or measure it by its own name.",
        )


def _intake(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of `exporter.pipeline.load` that say which model it is."""
    given = {"revision": recipe.revision, "variant": recipe.variant, **recipe.intake()}
    return {name: value for name, value in given.items() if value}


def _checkpoint(recipe: Recipe) -> Checkpoint:
    from exporter.checkpoints import open_source

    return open_source(recipe.model, revision=recipe.revision, variant=recipe.variant, **recipe.intake())


def recorded_recipe(cell: Cell) -> dict[str, Any]:
    """What the manifest keeps: the cell's own recipe, without what is as by default."""
    return cell.recipe.model_dump(mode="json", exclude_defaults=True)
