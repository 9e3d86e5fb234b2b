"""From a matrix to jobs: each one a conversion with its folder, its estimates, and its identity."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from exporter import recipes
from exporter.artifact import Artifact, Manifest
from exporter.batch.collect import Collection, arrived_whole
from exporter.batch.schema import MatrixFile, override
from exporter.batch.state import Row
from exporter.errors import ArtifactError, ExporterError, ResourceError
from exporter.planning import DISK_MARGIN, Plan, free_disk, human, tool_versions
from exporter.progress import NullProgress, Prefixed, Progress
from exporter.recipes.matrix import Cell
from exporter.recipes.running import PYTORCH, recorded_recipe

VERIFIER = 700_000_000
"""Bytes for the verifier's process, which runs beside what the export has left: PyTorch, a runtime, and
small models. The plan's own estimate is the export's."""
LIBRARIES = 700_000_000
"""Bytes for a process that exports nothing: PyTorch, and the small files of an artifact."""


@dataclass
class Job:
    """One cell of a matrix.

    Attributes:
        row: What became of it; what `batch.json` keeps.
        cell: The conversion.
        output: Its folder.
        parts: What is to be made before it, each by itself (`exporter.batch.split`).
        whole: Of a part: its cell's job.
        judging: Bytes that everything but the export takes on a node: the libraries and, where it is judged,
            the verifier with the weights of all components, which are open at once to paint.
        collect / keep: The URL it is collected at; whether it stays here then.
        near: The node that has its artifact, which was not collected.
    """

    row: Row
    cell: Cell
    output: Path
    parts: list[Job] = field(default_factory=list, repr=False, compare=False)
    whole: Job | None = field(default=None, repr=False, compare=False)
    judging: int = 0
    collect: str | None = None
    keep: bool = True
    near: str | None = None

    def request(self, attempts: Path) -> dict[str, Any]:
        """What a worker is told, as JSON values."""
        return {
            "id": self.row.id,
            "recipe": self.cell.recipe.model_dump(mode="json"),
            "output": str(self.output),
            "attempts": str(attempts),
            "cwd": str(Path.cwd()),
            "part": self.whole is not None,
            "adopt": [str(part.output) for part in self.parts],
            "collect": self.collect,
            "keep": self.keep,
        }

    def take(self, result: dict[str, Any]) -> None:
        """What `worker.work` gave back, into the row."""
        for name, value in Row.model_validate({**self.row.model_dump(), **result}):
            if name in result:
                setattr(self.row, name, value)


def jobs(file: MatrixFile, output: Path) -> list[Job]:
    """Every combination, in the order in which models, recipes and the recipes' own axes are written.

    Raises:
        RecipeError: A recipe that is not there or broken, two cells of one name, a `skip` that names
            nothing, a recipe that publishes or measures PyTorch; with the line of the matrix.
    """
    found: dict[str, Job] = {}
    skipped = {(skip.model, skip.recipe) for skip in file.matrix.skip}
    unused = set(skipped)
    for m, model in enumerate(file.matrix.models):
        name = model.name or _base(model.model)
        for r, use in enumerate(file.matrix.recipes):
            place = ("recipes", r)
            told = {**file.matrix.set, **use.set, **model.set, "model": model.model}
            try:
                recipe = recipes.read(_recipe_path(file, use.recipe), override(told), by="`set`")
                cells = recipes.cells(recipe)
            except ExporterError as error:
                raise file.error(place, error.message, error.hint) from error
            title = use.name or recipe.name
            if (name, title) in skipped:
                unused.discard((name, title))
                continue
            for cell in cells:
                _refuse(file, place, cell)
                label = " ".join(str(value) for value in cell.axes.values())
                key = "-".join(_slug(part) for part in (name, title, label) if part)
                if key in found:
                    other = ("models", m) if m and found[key].row.recipe == title else place
                    raise file.error(other, f"two cells would both be called {key}.", "Give one a `name`.")
                row = Row(id=key, model=name, recipe=title, label=label, target=cell.target)
                found[key] = Job(row, cell, output / key)
    if unused:
        names = ", ".join(f"{model} × {recipe}" for model, recipe in sorted(unused))
        raise file.error(("skip",), f"there is no combination {names}.", "Use the names of the summary.")
    if not found:
        raise file.error(("skip",), "every combination is left out.")
    return list(found.values())


def _refuse(file: MatrixFile, place: tuple[str | int, ...], cell: Cell) -> None:
    if cell.target == PYTORCH:
        raise file.error(
            place, f"{cell.recipe.name} measures PyTorch and writes no artifact.",
            "Measure it with `exporter bench SOURCE --recipe …`.",
        )  # fmt: skip
    if cell.recipe.publish is not None:
        raise file.error(
            place, f"{cell.recipe.name} publishes, which a batch does not do.",
            "Take `publish` out with `set: {publish: null}`, and use `exporter push` afterwards.",
        )  # fmt: skip


def _recipe_path(file: MatrixFile, name: str) -> Path:
    beside = file.path.parent / name
    return beside if beside.is_file() else recipes.find(name)


def _base(model: str) -> str:
    base = model.removeprefix("builtin:").rstrip("/").split("/")[-1]
    for suffix in (".safetensors", ".ckpt"):
        base = base.removesuffix(suffix)
    return _slug(base)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "model"


@dataclass
class Planned:
    """Jobs sorted by what is to be done with them; every job's row is filled in.

    Attributes:
        waiting: To be done, in order.
        kept: Complete from an earlier run.
        refused: Cannot be done; the row says why.
    """

    waiting: list[Job] = field(default_factory=list)
    kept: list[Job] = field(default_factory=list)
    refused: list[Job] = field(default_factory=list)


def plan(
    found: Iterable[Job],
    progress: Progress | None = None,
    before: Mapping[str, Row] | None = None,
    divide: Callable[[Job, Plan], None] | None = None,
    collection: Collection | None = None,
) -> Planned:
    """Open every model and check every request; nothing is written. A cell that cannot be has its reason,
    and does not keep the others from being planned. What does not fit the disk any more is refused too.

    Args:
        before: Rows of an earlier run, by id.
        divide: Is shown every cell that is to be done, to give it parts.
        collection: Where artifacts are collected; what stands there whole is kept, too.
    """
    planned = Planned()
    report = progress or NullProgress()
    free: int | None = None
    for job in found:
        report.start(f"planning {job.row.id}")
        try:
            made = recipes.plan(job.cell, Prefixed(report, job.row.id))
            job.row.memory = made.memory + (VERIFIER if made.verify else 0)
            job.row.disk = made.disk
            job.judging = LIBRARIES + (VERIFIER + made.disk if made.verify else 0)
            old = (before or {}).get(job.row.id)
            if complete(job, made, collection, old.digest if old else None):
                job.row.state, job.row.digest = "kept", made.digest
                planned.kept.append(job)
                continue
            free = free_disk(job.output) if free is None else free
            need = int(made.disk * DISK_MARGIN)
            if collection is not None and collection.elsewhere:
                need = 0  # the disk it is made on is asked by its worker
            if need > free:
                raise ResourceError(
                    f"Not enough disk: this cell takes {human(made.disk)}, and the cells before it leave "
                    f"{human(free)}.",
                    hint="Free some space, or choose another disk with -o.",
                )
            if collection is None or collection.keep:
                free -= need
            if divide is not None:
                divide(job, made)
            planned.waiting.append(job)
        except ExporterError as error:
            job.row.fail(error)
            planned.refused.append(job)
        finally:
            report.done()
    return planned


def complete(job: Job, made: Plan, collection: Collection | None, known: str | None) -> bool:
    """Whether nothing is left to do for a cell; its row is then filled in.

    Raises:
        ArtifactError: Another artifact stands in its place.
    """
    if collection is not None:
        return arrived_whole(job.row, made, job.cell, job.output, collection, known=known)
    if not finished(made, job.cell, job.output, known=known):
        return False
    describe(job.row, job.output)
    return True


def finished(made: Plan, cell: Cell, output: Path, *, known: str | None = None) -> bool:
    """Whether the artifact that stands at `output` is whole and is what `made` asks for: same recipe,
    options, tool versions and source, by the source's hashes. Then nothing is done again.

    Args:
        known: The digest that it was made with, where that is known: if equal, the source is not hashed.

    Raises:
        ArtifactError: It is none, or another one.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    hint = "Move it away, or choose another folder with -o."
    try:
        artifact = Artifact.open(output)
    except ArtifactError as error:
        raise ArtifactError(f"{output.name} stands in the way: {error.message}", hint=hint) from error
    changed = artifact.other_sizes()
    if changed:
        raise ArtifactError(f"{output.name} is not whole: {changed[0]} is missing or changed.", hint=hint)
    if other := otherwise(made, cell, artifact.manifest, known=known):
        raise ArtifactError(f"{output.name} was made otherwise (other {', '.join(other)}).", hint=hint)
    return True


def otherwise(made: Plan, cell: Cell, manifest: Manifest, *, known: str | None = None) -> list[str]:
    """In what an artifact is not what `made` asks for; `known` as of `finished`."""
    same = {
        "recipe": manifest.recipe == recorded_recipe(cell),
        "options": manifest.options == made.options,
        "tools": manifest.tools == tool_versions(),
        "revision": manifest.source.revision == made.revision,
    }
    other = [name for name, equal in same.items() if not equal]
    if not other and made.digest != known and manifest.source.files != made._checkpoint.files:
        return ["source files"]
    return other


def describe(row: Row, output: Path) -> None:
    """Fill in what a complete artifact's manifest says."""
    tell(row, Artifact.open(output).manifest, output.name)


def tell(row: Row, manifest: Manifest, name: str) -> None:
    """The same, of a manifest; `name` is the folder's."""
    row.bytes = sum(file.bytes for file in manifest.all_files())
    verification = manifest.verification
    if verification is None:
        row.verdict, row.summary = None, "not verified (as asked)"
        if not manifest.verification_skipped:
            row.verdict, row.summary = "INCONCLUSIVE", "the verifier left no verdict"
        return
    row.verdict, row.summary = verification.verdict, verification.summary
    # The manifest names the report's data; people are shown its page, which is written beside it.
    page = PurePosixPath(verification.report).with_suffix(".html") if verification.report else None
    row.report = f"{name}/{page}" if page else None
