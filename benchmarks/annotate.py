"""scvec against its controls, simple baselines and what others use: pairs x methods x seeds.

    python benchmarks/annotate.py                                  # all pairs and methods, one seed
    python benchmarks/annotate.py --methods default                # scvec as it is now, beside all kept rows
    python benchmarks/annotate.py --methods quick --pairs donors,pbmc
    python benchmarks/annotate.py --pairs all --seeds 5 --publish
    python benchmarks/annotate.py --methods others --rotation --no-run --only-shown

Every run is written to ``rows.jsonl`` as it ends, and is not done again unless its code, its data or its
options change: after a change of scvec, ``--methods default`` runs that one method and compares it with rows
that are kept. ``make peers`` sets up what others use. ``--rotation`` shows for each tissue the method that is
best on the pairs of the other tissues, and how good it is on those of this one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import methods
import pairs
import summary
from results import Results, Run
from tables import markdown

CACHE = Path(__file__).resolve().parent / "cache"


def options() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="all", help="groups, names or runners; names by ; or ,")
    parser.add_argument("--pairs", default="main", help="groups or names, by commas")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of rows, answers and the store")
    parser.add_argument(
        "--store", type=Path, help="scvec's store; in the cache, and one run at a time uses it"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each method")
    parser.add_argument("--limit", type=float, help="seconds after which nothing more is started")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--fresh", action="store_true", help="run again what was run before")
    parser.add_argument("--only-shown", action="store_true", help="leave kept rows of other methods out")
    parser.add_argument("--rotation", action="store_true", help="choose on other tissues, report on each")
    parser.add_argument("--no-run", action="store_true", help="show what is there")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks")
    return parser.parse_args()


def whole_seeds(planned: list[Run], missing: set[str]) -> dict[tuple[str, str], tuple[set[int], int]]:
    """Return (method, kind of pair) -> seeds that all its pairs have, how many there are."""
    found: dict[tuple[str, str], dict[int, bool]] = {}
    for run in planned:
        seeds = found.setdefault((run.method.name, run.pair.kind), {})
        seeds[run.seed] = seeds.get(run.seed, True) and run.key not in missing
    return {k: ({seed for seed, there in v.items() if there}, len(v)) for k, v in found.items()}


def main() -> None:
    """Run what is missing, print, and with --publish write docs/benchmarks."""
    given = options()
    started = time.monotonic()
    results = Results(given.cache, given.store)
    asked = methods.chosen(given.methods)
    some = pairs.chosen(given.pairs)
    runs, absent = results.plan(asked, some, given.seeds, every_method=given.methods != "all")
    if not given.no_run:
        todo = results.missing(runs, retry=given.retry, again=given.fresh)
        print(f"{len(runs)} runs, {len(todo)} to do", flush=True)
        results.execute(todo, threads=given.threads, limit=given.limit)
    for name in absent:
        print(f"skipped {name}: its files are not here")
    shown = asked if given.only_shown else methods.METHODS
    planned, _ = results.plan(shown, some, given.seeds, every_method=given.methods != "all")
    kinds = {p.name: p.kind for p in some}
    rows = [row for run in planned if (row := results.scored(run)) is not None]
    good = [row for row in rows if "error" not in row]
    rotated = [summary.rotated(good)] if given.rotation else []
    for columns, table in (*summary.tables(good), *rotated):
        print(f"\n{markdown(columns, table)}")
    print()
    for line in summary.verdict(good) + summary.changes(results, planned):
        print(line)
    for row in rows:
        if "error" in row:
            print(f"failed: {row['method']} on {row['pair']}: {row['error']}")
    print(f"{time.monotonic() - started:.0f} s")
    if given.publish:
        whole = whole_seeds(planned, {r.key for r in results.missing(planned)})
        for (name, kind), (seeds, asked_for) in sorted(whole.items()):
            if len(seeds) < asked_for:
                print(f"runs are missing: {name}, {kind}: {len(seeds)} of {asked_for} seeds are published")
        good = [r for r in good if r["seed"] in whole[r["method"], kinds[r["pair"]]][0]]
        summary.publish_all(
            good, f"python benchmarks/annotate.py --pairs {given.pairs} --seeds {given.seeds}"
        )


if __name__ == "__main__":
    main()
