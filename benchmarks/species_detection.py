"""Which files are taken for a species: by names, by counts on known names, and by what cells express.

    python benchmarks/species_detection.py [--publish]

Real cells of human and mouse: the pancreas that ships, and what is in ``../shared/data``. They are cut to
panels, lose names, are renamed to other species through the shipped tables (orthologs alone, or with symbols
of that species on the other columns), to names of chance, and get their own names in the wrong order.
``accepted`` by names and counts; ``warned`` by rank correlation of counts with those of the cells that ship
(:func:`scvec.model.resolvers.usual_expression`). Its limits were set after all files had been looked at; the
table gives the files of ``CHOSEN`` and the others apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from orthologs import SHARED
from tables import markdown, publish

from scvec.model.resolvers import USUAL, FoundGenes, is_chance, snapshot_resolver, usual_expression
from scvec.stores.knowledge.snapshot import Snapshot

CHOSEN = ("pancreas_baron", "pbmc_kang", "pbmc_3assays", "pbmc3k")
OTHERS = ("rat", "pig", "chicken", "xenopus", "zebrafish", "fruit fly", "worm", "yeast")
N_GENES, N_CELLS = 6000, 400
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
Case = tuple[str, np.ndarray, Sequence[str]]  # what it is, columns, their names


def cells() -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yield file, species, and the counts and names of its genes."""
    shipped = [Path(str(files("scvec") / "data" / f"baron_{species}.h5ad")) for species in ("human", "mouse")]
    more = [path for path in sorted(SHARED.glob("*.h5ad")) if "baron" not in path.name]
    for path in (*shipped, *more):
        read = anndata.read_h5ad(path)
        some = np.random.default_rng(0).permutation(read.n_obs)[:N_CELLS]
        name = path.stem if "baron" not in path.stem else f"pancreas_{path.stem}"
        species = "mouse" if "mouse" in name or "muris" in name else "human"
        totals = np.asarray(sp.csr_matrix(read.X)[some].sum(axis=0), dtype=np.float64).ravel()
        yield name, species, totals, list(read.var_names)


def cases(species: str, totals: np.ndarray, names: list[str], rng: np.random.Generator) -> Iterator[Case]:
    """Yield the files that are made of one: right ones, of other species, of chance, in the wrong order."""
    every, named = np.arange(len(names)), np.array(names, dtype=object)
    some = np.sort(rng.permutation(every)[:N_GENES])
    yield "true: whole", every, names
    for n in (100, 300, 500):
        yield f"true: panel of {n}", rng.permutation(np.argsort(-totals)[:4000])[:n], []
    for part in (0.5, 0.3, 0.15):
        lost = [name if rng.random() < part else f"MSTRG.{i}" for i, name in enumerate(named[some])]
        yield f"true: {part:.0%} of the names kept", some, lost
    ids = snapshot_resolver().resolve(list(named[some]), species).gene_ids
    genes, pairs = (Snapshot.open().table(f"more_{t}").to_pandas() for t in ("genes", "orthologs"))
    symbols = dict(zip(genes["gene_id"], genes["symbol"], strict=True))
    for other in OTHERS:
        own = pairs[(pairs["species"] == other) & (pairs["other_species"] == species)]
        partner = dict(zip(own["other_id"], own["gene_id"].map(symbols), strict=True))
        there = np.array([i for i, gene in enumerate(ids) if partner.get(gene)], dtype=np.int64)
        if len(there) < 100:
            continue
        called = [partner[ids[i]] for i in there]
        yield f"{other}: orthologs", some[there], called
        rest = rng.permutation(sorted(set(genes.loc[genes["species"] == other, "symbol"]) - {"", *called}))
        left = np.setdiff1d(some, some[there])[: len(rest)]
        yield f"{other}: whole", np.r_[some[there], left], [*called, *rest[: len(left)]]
    for made, letters, case in (("ABC", 3, str.upper), ("Abc12", 3, str.title), ("abc-12", 3, str.lower)):
        ends = [str(rng.integers(1, 40)) if made != "ABC" else "" for _ in some]
        dash = "-" if "-" in made else ""
        yield (
            f"chance: {made}",
            some,
            [case("".join(rng.choice(LETTERS, letters)) + dash + end) for end in ends],
        )
    yield "chance: AT1G01010", some, [f"AT{1 + i % 5}G{10000 + 3 * int(i):05d}" for i in some]
    yield "order: random", every, list(rng.permutation(named))
    yield "order: one off", every, list(np.roll(named, 1))


def rows_of() -> list[dict[str, Any]]:
    """Return a row for each file and case."""
    resolver, rows = snapshot_resolver(), list[dict[str, Any]]()
    for file, species, totals, names in cells():
        rng = np.random.default_rng(0)
        for what, columns, called in cases(species, totals, names, rng):
            match = resolver.resolve([str(n) for n in called] or [names[i] for i in columns])
            found = FoundGenes(match, "index", match.count_share(totals[columns]))
            usual = usual_expression(match, totals[columns], resolver)
            taken = not match.looks_like and not is_chance(found)
            rows.append(
                {
                    "case": what,
                    "chosen on": file.startswith(CHOSEN),
                    "accepted": taken,
                    "as its own species": taken and match.species == species,
                    "warned": usual < USUAL,
                    "names known": match.n_matched / len(match.names),
                    "counts known": found.share,
                    "correlation": usual,
                }
            )
        print(file, len(rows), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each case: files, those accepted (true ones: rightly), those warned of, means."""
    shown = []
    for what, some in pd.DataFrame(rows).groupby("case", sort=False):
        told = some["correlation"].dropna()
        kind = str(what).partition(":")[0]
        row = {"case": what, "files": len(some), "accepted": int(some["accepted"].sum())}
        if kind == "true":  # and taken for what they are
            row["accepted"] = int(some["as its own species"].sum())
        row |= {"names known": some["names known"].mean(), "counts known": some["counts known"].mean()}
        row |= {"correlation": f"{told.min():.2f} to {told.max():.2f}" if len(told) else "-"}
        for part, chosen in (("warned, five files", True), ("warned, other five", False)):
            of = some[some["chosen on"] == chosen]
            row[part] = f"{int(of['warned'].sum())} of {int(of['correlation'].notna().sum())}"
        shown.append(row)
    return shown


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    rows = table(rows_of())
    columns = tuple(rows[0])
    print(markdown(columns, rows))
    if options.publish:
        command = "python benchmarks/species_detection.py --publish"
        publish("species_detection", command, columns, rows)


if __name__ == "__main__":
    main()
