"""Many models × recipes, on this machine or on a Ray cluster; a run that was stopped is taken up again.

>>> from exporter import batch
>>> batch.run("matrix.yaml", "out").exit_code
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from exporter.batch.collect import Collection, confirm, opened, settle_here
from exporter.batch.plan import Job, Planned, jobs, plan
from exporter.batch.schema import Matrix, MatrixFile, read
from exporter.batch.split import divide, folder_of_parts, remove, settle
from exporter.batch.state import STATE, WORST_FIRST, Failure, Row, Summary, earlier, worst
from exporter.batch.watch import NoWatcher, Watcher
from exporter.errors import DestinationError, UsageError
from exporter.planning import Plan
from exporter.progress import Progress

__all__ = [
    "WORST_FIRST", "Failure", "Job", "Matrix", "NoWatcher", "Planned", "Row", "Summary", "Watcher",
    "check", "jobs", "plan", "read", "run", "worst",
]  # fmt: skip

WORK = ".batch"
"""Inside the output folder: the lock, logs, and how often each cell was begun."""


def check(
    matrix: str | Path,
    output: str | Path,
    progress: Progress | None = None,
    *,
    ray: str | None = None,
    collect: str | None = None,
    keep: bool | None = None,
) -> Summary:
    """Plan every cell; nothing is written, and no cluster is asked. Errors as of `run`."""
    file = read(matrix)
    folder = Path(output).expanduser()
    found = jobs(file, folder)
    mode = _mode(file.matrix, ray)
    collection = _collection(file, found, collect, keep)
    planned = plan(found, progress, divide=_divider(mode, folder / WORK), collection=collection)
    if mode == "auto":
        for job in (job for job in planned.waiting if job.parts):
            job.row.split = f"auto: {len(job.parts)} parts, if the cluster's cores and memory ask for it"
    else:
        settle(planned.waiting, mode)
    name, description = file.matrix.name, file.matrix.description
    return Summary(name=name, description=description, rows=[job.row for job in found])


def run(
    matrix: str | Path,
    output: str | Path,
    *,
    slots: int | None = None,
    memory: int | None = None,
    retries: int = 2,
    ray: str | None = None,
    collect: str | None = None,
    keep: bool | None = None,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
) -> Summary:
    """Convert and judge every cell; one that fails does not keep the others from finishing.

    Args:
        matrix: A YAML file, or a name on the shelf.
        output: The folder: `batch.json`, `index.html`, and one artifact a cell.
        slots: Cells at once on this machine; None is half the cores.
        memory: Bytes they may take together; None is what is free.
        retries: How often a cell is begun again whose worker was lost.
        ray: Address of a Ray cluster that does the work instead.
        collect: fsspec URL that every artifact is sent to; None is the matrix's own.
        keep: Whether artifacts stay here then; None is as the matrix says.
        progress: Is told of the planning.
        watcher: Is told of the work.

    Raises:
        RecipeError: The matrix cannot be used; with the line.
        DestinationError: The folder cannot be written, is another's, or another batch writes it.
        UsageError: No URL that can be collected at.
        BackendMissing, NetworkError: Ray, or a package for the URL, is not installed; nobody answers there.
    """
    from exporter.batch.summary import write_page

    file = read(matrix)
    folder = Path(output).expanduser()
    found = jobs(file, folder)
    told = watcher or NoWatcher()
    collection = _collection(file, found, collect, keep)
    cluster = None
    if ray is not None:
        from exporter.batch.cluster import Cluster

        if slots is not None or memory is not None:
            raise UsageError("--jobs and --memory are for this machine; the cluster has its own limits.")
        cluster = Cluster(ray)
    if collection is not None:
        collection.store.probe()
        collection.elsewhere = cluster is not None
    with _claimed(folder) as work:
        before = {row.id: row for row in (earlier(folder) or Summary(name="none")).rows}
        summary = Summary(name=file.matrix.name, description=file.matrix.description)
        summary.rows = [job.row for job in found]
        mode = _mode(file.matrix, ray)
        planned = plan(found, progress, before, _divider(mode, work), collection)
        for job in [*planned.kept, *planned.refused]:
            if collection is not None and job.row.collected:
                settle_here(job.row, collection, job.output)
            _remember(job, before, work)
            told.ended(job.row)

        for job in planned.waiting:
            old = before.get(job.row.id)
            job.near = old.where if old is not None and old.state == "uncollected" else None

        def save(job: Job | None = None) -> None:
            if job is not None and job.row.collected and collection is not None and cluster is not None:
                confirm(job.row, collection, job.output)
            if job is not None and job.whole is None and job.row.state in ("done", "kept", "uncollected"):
                remove(folder_of_parts(work, job))
            summary.save(folder)
            write_page(summary, folder)

        save()
        try:
            if cluster is not None:
                cluster.run(
                    planned.waiting, work, retries=retries, watcher=told, ended=save, split=mode,
                    collection=collection,
                )  # fmt: skip
            else:
                from exporter.batch.local import Pool, cores

                many = slots or max(1, cores() // 2)
                settle(planned.waiting, mode)
                Pool(work, many, memory, retries, told, save).run(planned.waiting)
        finally:
            save()
    return summary


def _collection(
    file: MatrixFile, found: list[Job], collect: str | None, keep: bool | None
) -> Collection | None:
    """Where artifacts are collected, as the matrix says or in spite of it; every cell's job is told."""
    collection = opened(collect or file.matrix.collect, keep=file.matrix.keep if keep is None else keep)
    for job in found:
        job.collect, job.keep = (collection.url, collection.keep) if collection else (None, True)
    return collection


def _mode(matrix: Matrix, ray: str | None) -> str:
    """`auto` is about clusters: here, a cell's components are as well exported one after the other."""
    return "never" if matrix.split == "auto" and ray is None else matrix.split


def _divider(mode: str, work: Path) -> Callable[[Job, Plan], None] | None:
    return None if mode == "never" else lambda job, made: divide(job, made, work)


def _remember(job: Job, before: dict[str, Row], work: Path) -> None:
    """What only the earlier run knew of a cell that is not done again."""
    from exporter.batch.worker import begun

    job.row.attempts = begun(work / f"{job.row.id}.attempts")
    old = before.get(job.row.id)
    if old is not None and job.row.state == "kept":
        job.row.seconds, job.row.where = old.seconds, old.where
        job.row.split, job.row.parts = old.split, old.parts
        remove(folder_of_parts(work, job))


@contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """The output folder for us alone; gives the folder for logs.

    Raises:
        DestinationError: It cannot be written, is another's, or another batch writes it.
    """
    hint = "Choose another folder with -o."
    if folder.exists() and not folder.is_dir():
        raise DestinationError(f"{folder} exists and is not a folder.", hint=hint)
    try:
        ours = not folder.exists() or (folder / STATE).is_file() or (folder / WORK).is_dir()
        if not ours and any(folder.iterdir()):
            raise DestinationError(
                f"{folder} exists and was not made by `exporter batch`, so it is left alone.", hint=hint
            )
        work = folder / WORK
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise DestinationError(f"Another batch is writing {folder}.", hint="Wait for it. " + hint) from error
    except OSError as error:
        raise DestinationError(
            f"{folder} cannot be written: {error.strerror or error}.", hint=hint
        ) from error
    try:
        yield work
    finally:
        lock.release()
