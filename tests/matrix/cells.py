"""One cell: a tiny random checkpoint of a family, converted to one format, verified and painted with.

`python -m tests.matrix.cells FAMILY TARGET [OPTIONS]` (options as JSON) prints the result as JSON.
It works in a folder of its own and with relative paths, so that no message holds a path of this machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import chdir
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.matrix.results import Result

SETTINGS: dict[str, Any] = {"steps": 3, "samples": 2}
STEPS = 4
CLOSE = {"float32": 2, "stored": 2}
"""Largest difference of two pictures, by the dtype of the weights; for narrower ones `ROUGH`."""
ROUGH = 24
BEGUN = {"ltx_image": "ltx", "ltx_095_image": "ltx_095"}
"""Rows that are a video family converted with `--task image-to-video`."""
REFUSED = (2, 3)
"""Exit codes of the command line: the request, or what was given, cannot be done."""
UNFORESEEN = 70


def families() -> dict[str, Callable[[Path], Path]]:
    """Every family that is known here → how to write its tiny checkpoint, an IP-Adapter beside it."""
    from tests import families as written
    from tests import ip_adapters, unwritten
    from tests.tiny import make_tiny

    found: dict[str, Callable[[Path], Path]] = {"sd1": make_tiny}
    names = {**written.FAMILIES, **written.VIDEO}
    found |= {name: lambda folder, n=name: written.make(n, folder) for name in names}  # type: ignore[misc]

    def adapted(below: str, kind: str, folder: Path) -> Path:
        found[below](folder)
        ip_adapters.write(folder / "unet", _beside(folder), kind)
        return folder

    for name, (below, kind) in ip_adapters.ADAPTED.items():
        found[name] = partial(adapted, below, kind)
    found |= {name: found[below] for name, below in BEGUN.items()}
    found |= {name: lambda folder, n=name: unwritten.make(n, folder) for name in unwritten.UNWRITTEN}  # type: ignore[misc]
    return found


def _beside(folder: Path) -> Path:
    """Where the IP-Adapter of a tiny checkpoint lies."""
    return folder.with_name(f"{folder.name}-beside")


def intake_of(family: str, source: Path) -> dict[str, Any]:
    """What is laid over a family's checkpoint."""
    from tests.ip_adapters import ADAPTED

    if family in BEGUN:
        return {"task": "image-to-video"}
    return {"ip_adapters": [str(_beside(source))]} if family in ADAPTED else {}


def versions(target: str) -> dict[str, str]:
    """Of what decides a cell: PyTorch, the libraries, and the target's own packages."""
    from exporter.planning import tool_versions
    from exporter.targets import get_target

    packages = {name.replace("_", "-") for name in get_target(target, require_backend=False).packages}
    wanted = {"exporter", "torch", "diffusers", "transformers", *packages}
    return {name: version for name, version in tool_versions().items() if name in wanted}


def run(family: str, target: str, folder: Path, options: Mapping[str, str] | None = None) -> Result:
    """Fill one cell; works in `folder`. A failure's traceback goes to stderr.

    Args:
        options: Instead of `options_of`.
    """
    from exporter.errors import ExporterError

    started = time.monotonic()
    chosen = dict(options_of(family, target) if options is None else options)

    def result(verdict: Any, exit: int, reason: str = "", **more: Any) -> Result:
        clean = " ".join(reason.replace(f"{folder}{os.sep}", "").split())
        return Result(
            verdict=verdict, reason=clean, seconds=round(time.monotonic() - started, 1), exit=exit,
            date=datetime.now(UTC).date().isoformat(), tools=versions(target), options=chosen, **more,
        )  # fmt: skip

    with chdir(folder):
        source = families()[family](Path(family))
        intake = intake_of(family, source)
        started = time.monotonic()
        try:
            done, converted = _convert(str(source), target, chosen, intake)
        except ExporterError as error:
            traceback.print_exc()
            return result(
                "refused" if error.exit_code in REFUSED else "fails", error.exit_code, error.message
            )
        except Exception as error:
            traceback.print_exc()
            return result("fails", UNFORESEEN, f"{type(error).__name__}: {_first_line(error)}")
        told = {"components": converted, "noise": done.noise}
        if done.verdict != "PASS":
            return result("fails", 1, f"{done.verdict}: {done.summary}", **told)
        try:
            difference, limit = _paint(family, source, intake, done.root, done.dtypes)
        except Exception as error:
            traceback.print_exc()
            return result(
                "fails", UNFORESEEN, f"painting: {type(error).__name__}: {_first_line(error)}", **told
            )
        told["difference"] = difference
        if difference > limit:
            return result("fails", 1, f"the picture differs by {difference} of 255", **told)
        return result("supported", 0, **told)


class _Done:
    def __init__(
        self, verdict: str | None, summary: str, root: Path, dtypes: set[str], noise: float | None
    ) -> None:
        self.verdict, self.summary, self.root, self.dtypes, self.noise = verdict, summary, root, dtypes, noise


def _convert(
    source: str, target: str, options: dict[str, str], intake: dict[str, Any]
) -> tuple[_Done, list[str]]:
    from exporter.conversion import convert, make_plan

    plan = make_plan(source, target, Path("artifact"), options, intake=intake)
    done = convert(plan, verify_settings=SETTINGS)
    records = done.artifact.manifest.components
    noise = None
    report = done.artifact.root / "verification" / "report.json"
    if report.is_file():
        worst = [c["worst"] for c in json.loads(report.read_text())["components"] if c.get("worst")]
        ratios = [one["value"] / one["floor"] for one in worst if one["floor"]]
        noise = round(max(ratios), 2) if ratios else None
    dtypes = {record.dtype for record in records}
    made = _Done(done.verdict, done.summary, done.artifact.root, dtypes, noise)
    return made, [record.name for record in records]


def _paint(
    family: str, source: Path, intake: dict[str, Any], artifact: Path, dtypes: set[str]
) -> tuple[int, int]:
    """Largest difference to the reference's picture, and what is allowed."""
    import numpy as np

    from exporter.clips import film, in_one_picture
    from exporter.painting import baked_tokens
    from exporter.pipeline import load, paint
    from tests.families import VIDEO

    given = settings_of(family)

    def made(pipeline: Any) -> Any:
        if family in VIDEO or family in BEGUN:
            return in_one_picture(film(pipeline, "3", **given))
        return paint(pipeline, ["3"], steps=STEPS, **given)[0]

    exported = load(artifact, precision_hint="f32")
    tokens = baked_tokens(exported)
    given |= {"tokens": tokens} if tokens is not None else {}  # the reference reads as long a text
    mine, theirs = (np.asarray(made(each)).astype(int) for each in (exported, load(source, **intake)))
    if mine.shape != theirs.shape:
        raise ValueError(f"the picture is {mine.shape}, the reference's {theirs.shape}")
    return int(np.abs(mine - theirs).max()), max(CLOSE.get(dtype, ROUGH) for dtype in dtypes)


def settings_of(family: str) -> dict[str, Any]:
    """What a family is painted with besides a prompt."""
    from tests.families import VIDEO
    from tests.ip_adapters import ADAPTED
    from tests.test_tasks import TASK, given, picture
    from tests.unwritten import FROM_PICTURES

    if family in VIDEO or family in BEGUN:
        begun = {"image": picture(130, 70)} if family in BEGUN else {}
        return {"steps": 3, "guidance": 3.0, "height": 64, "width": 96, "frames": 9, **begun}
    if family in FROM_PICTURES:  # not every one of them knows a strength
        return {"guidance": 5.0, "image": picture()}
    if family in ADAPTED:
        return {"guidance": 5.0, "ip_adapter_image": picture(80, 60), "ip_adapter_scale": 0.6}
    return {"guidance": 5.0, **given(TASK.get(family, "text"))}


def options_of(family: str, target: str) -> dict[str, str]:
    """What a cell is converted with; the table says so where there is something."""
    from tests.test_tasks import TASK

    # JAX cannot tell one free size from half of another.
    # Nor the number of patches from that of a rectangle's.
    unprovable = TASK.get(family, "").startswith("control") or family.startswith("hunyuan_dit")
    return {"static": "1x64x64"} if unprovable and target == "stablehlo" else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def main() -> None:
    family, target, *options = sys.argv[1:]
    printed, sys.stdout = sys.stdout, sys.stderr  # libraries print
    with tempfile.TemporaryDirectory(prefix="matrix-") as scratch:
        os.environ["EXPORTER_CACHE"] = os.environ["EXPORTER_STATE"] = str(Path(scratch) / "state")
        made = run(family, target, Path(scratch), json.loads(options[0]) if options else None)
    printed.write(made.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
