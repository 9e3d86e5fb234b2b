"""`python -m tests.mutation`: the whole catalogue, every gate, the table.

Exit code 0 when every fault above the floor was found and nothing honest failed, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--targets", help="formats, separated by commas; all there are by default")
    parser.add_argument("--faults", help="names, separated by commas; all by default, `none` for none")
    parser.add_argument("--checkpoint", default="tiny", help="`tiny` or any source that exporter takes")
    parser.add_argument("--honest", type=int, help="how many honest conversions; all by default")
    parser.add_argument("--work", type=Path, help="folder to keep, so that a later run goes on from it")
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--readme", action="store_true", help="write the tables into the READMEs")
    parser.add_argument("--table-only", action="store_true", help="run nothing, use what --work holds")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    from exporter.errors import ExporterError
    from tests.mutation import suite, table
    from tests.mutation.catalogue import BY_NAME, CATALOGUE
    from tests.mutation.formats import available, format_of
    from tests.mutation.honest import checkpoint, plan
    from tests.mutation.workshop import Workshop

    targets = args.targets.split(",") if args.targets else available()
    try:
        for name in targets:
            format_of(name)
    except ExporterError as error:
        parser.error(error.message)
    chosen = CATALOGUE
    if args.faults is not None:
        names = [] if args.faults == "none" else args.faults.split(",")
        unknown = [name for name in names if name not in BY_NAME]
        if unknown:
            parser.error(f"there is no fault {unknown[0]!r}; there are: {', '.join(BY_NAME)}")
        chosen = [BY_NAME[name] for name in names]

    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        work = args.work or Path(temporary)
        # Programs that are made here are noted as trusted, and not among the user's own.
        os.environ["EXPORTER_STATE"] = str(work / "state")
        store = suite.Store(work)
        if not args.table_only:
            source = args.checkpoint
            if source == "tiny":
                source = str(checkpoint(work / "honest", 0))
            shop = Workshop(work / "planted", source)
            suite.plant_all(shop, chosen, targets, store, say)
            if chosen:
                suite.calm_all(shop, targets, store, say)
            if args.honest != 0:
                suite.honest_all(work, plan(targets, args.honest), store, say)
        results = table.Results(
            store.read("fault", suite.Row), store.read("calm", suite.Calm), suite.honest_rows(store)
        )
    if args.json:
        args.json.write_text(
            json.dumps({k: [asdict(r) for r in v] for k, v in vars(results).items()}, indent=1)
        )
    say("")
    say(results.summary())
    if args.readme:
        table.write_readme(results)
    return 0 if results.sound else 1


if __name__ == "__main__":
    sys.exit(main())
