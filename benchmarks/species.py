"""Across species: what orthologs give, what text gives, and references of both species.

    python benchmarks/species.py [--seeds 3] [--rows FILE] [--publish]

The pancreas cells of Baron et al. 2016 that ship with scvec. Every reference is made once a seed and asked in
several ways. With ``--rows``, figures are kept in a file as they come and not made again: delete it after a
change of scvec.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from pairs import PANCREAS_MERGED
from tables import markdown, publish

from scvec.model import matching, resolvers
from scvec.model.calibration import accuracy, macro_f1
from scvec.model.resolvers import GeneResolver
from scvec.workflows import query as query_module
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query

VOICES = {"default": "label", "head": "label_head", "neighbours": "label_knn"}
SCORES = tuple(f"{score}, {voice}" for voice in VOICES for score in ("macro_f1", "accuracy"))


@dataclass(frozen=True)
class Genes:
    """How the genes of a query become those of a reference.

    Attributes
    ----------
    kinds
        Kinds of orthologs that are used, all when None.
    many
        How a gene counts for several partners (:class:`scvec.model.resolvers.GeneResolver`).
    hidden
        Fraction of the pairs that are not known, drawn by the seed.
    unmatched
        What is done with the genes without a partner: ``drop``, ``text``, or ``random``: as many of them as
        text finds a partner for get a random one of those that text gave.
    """

    kinds: tuple[str, ...] | None = None
    many: str = "mean"
    hidden: float = 0.0
    unmatched: str = "drop"


GENES = {
    "one-to-one orthologs": Genes(("one2one",)),
    "all orthologs": Genes(),
    "all orthologs, each partner gets all": Genes(many="sum"),
    "all orthologs, the best partner gets all": Genes(many="best"),
    "text alone": Genes((), unmatched="text"),
    "all orthologs, and text": Genes(unmatched="text"),
}
HIDDEN = {
    f"{hidden:.0%} of orthologs hidden{also}": Genes(hidden=hidden, unmatched=unmatched)
    for hidden in (0.1, 0.5, 1.0)
    for unmatched, also in (("drop", ""), ("text", ", and text"), ("random", ", and random partners"))
    if (hidden, unmatched) != (1.0, "drop")
}
WAYS = GENES | HIDDEN
Row = dict[str, Any]


def cells() -> dict[str, anndata.AnnData]:
    """Return the cells of each side, labels in obs['cell_type'] as in the files."""
    data = files("scvec") / "data"
    human = anndata.read_h5ad(str(data / "baron_human.h5ad"))
    mouse = anndata.read_h5ad(str(data / "baron_mouse.h5ad"))
    first = human.obs["donor"].isin(["human1", "human2"]).to_numpy()
    one = (mouse.obs["donor"] == "mouse1").to_numpy()
    return {
        "human": human,
        "mouse": mouse,
        "human donors 1-2": human[first].copy(),
        "human donors 3-4": human[~first].copy(),
        "mouse 1": mouse[one].copy(),
        "mouse 2": mouse[~one].copy(),
    }


#: Files of a reference, and the queries it is asked about, each by all ways of genes or by the default.
ORTHOLOGS = ((("human",), "mouse"), (("mouse",), "human"))
BOTH = tuple(
    (reference, new)
    for reference in (("human donors 1-2",), ("mouse 1",), ("human donors 1-2", "mouse 1"))
    for new in ("human donors 3-4", "mouse 2")
)


@contextmanager
def way(genes: Genes, seed: int) -> Iterator[None]:
    """Let queries join genes in one way."""
    original, partners = query_module.stored_resolver, matching.with_partners

    def fewer(store: Any) -> GeneResolver:
        with store.knowledge() as kb:
            table = kb.orthologs()
            if genes.kinds is not None:
                table = table[table["kind"].isin(genes.kinds)]
            kept = np.random.default_rng(seed).random(len(table)) >= genes.hidden
            if not kept.any():
                kept[0] = True  # the species stay joined
            return GeneResolver(kb.aliases(), table[kept], many=genes.many)

    def shuffled(known: Any, gene_ids: Any, new: list[str], *given: Any) -> Any:
        wider = partners(known, gene_ids, new, *given)
        added = (wider.weights - known.weights).tocoo()
        kept = added.data > 0
        columns = np.random.default_rng(seed).permutation(added.col[kept])
        more = sp.csr_matrix((added.data[kept], (added.row[kept], columns)), known.weights.shape)
        return replace(wider, weights=(known.weights + more).tocsr())

    query_module.stored_resolver = resolvers.stored_resolver = fewer
    if genes.unmatched == "random":
        matching.with_partners = shuffled
    try:
        yield
    finally:
        query_module.stored_resolver = resolvers.stored_resolver = original
        matching.with_partners = partners


def merged(labels: Iterable[Any]) -> np.ndarray:
    """Return labels under the names they are scored by."""
    return np.array([PANCREAS_MERGED.get(str(name), str(name)) for name in labels])


def score(new: anndata.AnnData, found: Any) -> Row:
    """Return the scores of all voices, over the cells whose type the reference has."""
    truth = merged(new.obs["cell_type"])
    known = np.isin(truth, merged(found.classes))
    row: Row = {"genes": float(found.parameters["reference_genes_measured"])}
    for voice, column in VOICES.items():
        said = merged(getattr(found, column))
        row[f"macro_f1, {voice}"] = macro_f1(truth[known], said[known])
        row[f"accuracy, {voice}"] = accuracy(truth[known], said[known])
    return row


def run(store: Path, seeds: list[int], kept: Path | None, only: str | None = None) -> list[Row]:
    """Return a row for each table, reference, query, way of genes and seed."""
    there = [json.loads(x) for x in kept.read_text().splitlines()] if kept and kept.exists() else []
    done = {_key(row): row for row in there}
    data, rows, made = cells(), [], None
    # What is hidden changes with the seed; the reference need not.
    tables = {
        "orthologs": (ORTHOLOGS, GENES),
        "hidden": (ORTHOLOGS, HIDDEN),
        "both": (BOTH, ["all orthologs"]),
    }
    for table, (pairs, ways) in tables.items():
        if only and table != only:
            continue
        for (reference, new), seed in product(pairs, seeds):
            fixed = 0 if table == "hidden" else seed
            for genes in ways:
                row: Row = {"table": table, "reference": " and ".join(reference), "query": new}
                row |= {"genes of the query": genes, "seed": seed}
                if _key(row) not in done:
                    if made != (reference, fixed):
                        ingest_cells(
                            store,
                            [data[r] for r in reference],
                            name="r",
                            label_key="cell_type",
                            label_map={"T_cell": "t_cell"},
                            batch_key="donor",
                            seed=fixed,
                        )
                        made = (reference, fixed)
                    with way(WAYS[genes], seed):
                        unmatched = "drop" if WAYS[genes].unmatched == "drop" else "text"
                        found = query(store, data[new], reference="r", unmatched_genes=unmatched, force=True)
                    done[_key(row)] = row | score(data[new], found)
                    if kept:
                        with kept.open("a") as out:
                            out.write(json.dumps(done[_key(row)]) + "\n")
                    print(json.dumps(done[_key(row)]), flush=True)
                rows.append(done[_key(row)])
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("table", "reference", "query", "genes of the query", "seed"))


def means(rows: list[Row], table: str, columns: tuple[str, ...]) -> list[Row]:
    """Return one row for each kind: means over seeds, with the standard deviation of the first score."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["table"] == table:
            groups.setdefault(tuple(row[c] for c in columns), []).append(row)
    out = []
    for key, some in groups.items():
        numbers = {c: float(np.mean([r[c] for r in some])) for c in ("genes", *SCORES)}
        sd = float(np.std([r[SCORES[0]] for r in some], ddof=1)) if len(some) > 1 else "-"
        out.append({**dict(zip(columns, key, strict=True)), **numbers, "sd": sd})
    return out


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="run this one, to have several run at once")
    parser.add_argument("--table", choices=["orthologs", "hidden", "both"], help="only this table")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--store", type=Path, help="a store that has vectors of the genes already")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    seeds = list(range(options.seeds)) if options.only_seed is None else [options.only_seed]
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options.store or Path(folder) / "store", seeds, options.rows, options.table)
    command = f"python benchmarks/species.py --seeds {options.seeds} --publish"
    for name, table, columns in (
        ("species", "orthologs", ("reference", "query", "genes of the query")),
        ("species_hidden", "hidden", ("reference", "query", "genes of the query")),
        ("species_both", "both", ("reference", "query")),
    ):
        found = means(rows, table, columns)
        if not found:
            continue
        shown = (*columns, "genes", *SCORES, "sd")
        print(markdown(shown, found))
        if options.publish:
            publish(name, command, shown, found)


if __name__ == "__main__":
    main()
