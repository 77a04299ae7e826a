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
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from pairs import PANCREAS_MERGED
from tables import markdown, publish

from scvec.model import resolvers
from scvec.model.metrics import accuracy, macro_f1
from scvec.model.resolvers import GeneResolver
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query

VOICES = {"default": "label", "head": "label_head", "neighbours": "label_knn"}
SCORES = tuple(f"{score}, {voice}" for voice in VOICES for score in ("macro_f1", "accuracy"))
#: Row -> (kinds of orthologs that are used, None for all; what is done with the other genes).
GENES: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "one-to-one orthologs": (("one2one",), "drop"),
    "all orthologs": (None, "drop"),
    "text alone": ((), "text"),
    "all orthologs, and text": (None, "text"),
}
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
def orthologs(kinds: tuple[str, ...] | None) -> Iterator[None]:
    """Let queries know only orthologs of some kinds."""
    original = resolvers.stored_resolver

    def fewer(store: Any) -> GeneResolver:
        with store.knowledge() as kb:
            table = kb.orthologs()
            return GeneResolver(kb.aliases(), table[table["kind"].isin(kinds or ())])

    if kinds is not None:
        resolvers.stored_resolver = fewer
    try:
        yield
    finally:
        resolvers.stored_resolver = original


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


def run(store: Path, seeds: list[int], kept: Path | None) -> list[Row]:
    """Return a row for each table, reference, query, way of genes and seed."""
    there = [json.loads(x) for x in kept.read_text().splitlines()] if kept and kept.exists() else []
    done = {_key(row): row for row in there}
    data, rows = cells(), []
    for seed in seeds:
        made = None
        for table, pairs in (("orthologs", ORTHOLOGS), ("both", BOTH)):
            for reference, new in pairs:
                for genes in GENES if table == "orthologs" else ("all orthologs",):
                    row: Row = {"table": table, "reference": " and ".join(reference), "query": new}
                    row |= {"genes of the query": genes, "seed": seed}
                    if _key(row) not in done:
                        if made != reference:
                            some = [data[r] for r in reference]
                            ingest_cells(
                                store,
                                some,
                                name="r",
                                label_key="cell_type",
                                label_map={"T_cell": "t_cell"},
                                batch_key="donor",
                                seed=seed,
                            )
                            made = reference
                        kinds, unmatched = GENES[genes]
                        with orthologs(kinds):
                            found = query(
                                store, data[new], reference="r", unmatched_genes=unmatched, force=True
                            )
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
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--store", type=Path, help="a store that has vectors of the genes already")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    seeds = list(range(options.seeds)) if options.only_seed is None else [options.only_seed]
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options.store or Path(folder) / "store", seeds, options.rows)
    command = f"python benchmarks/species.py --seeds {options.seeds} --publish"
    for name, table, columns in (
        ("species", "orthologs", ("reference", "query", "genes of the query")),
        ("species_both", "both", ("reference", "query")),
    ):
        found = means(rows, table, columns)
        shown = (*columns, "genes", *SCORES, "sd")
        print(markdown(shown, found))
        if options.publish:
            publish(name, command, shown, found)


if __name__ == "__main__":
    main()
