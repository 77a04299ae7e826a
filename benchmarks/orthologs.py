"""How genes cross from species to species: weights of several partners, and text where orthologs end.

    python benchmarks/orthologs.py [--seeds 5] [--publish]

Human and mouse, both ways: the pancreas cells that ship, and the pairs of brain and liver in
``../shared/data``, where they are. Cells are named by the nearest class mean (cosine over the 2,000 most
variable genes of the reference that the query has), which is steady across species and takes seconds, so
that all that changes is how the genes were joined. A fraction of the orthologs is hidden by chance, once a
seed; text then joins genes whose descriptions are alike, and the control joins as many at random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pairs import PANCREAS_MERGED
from tables import markdown, publish

from scvec.base.types import Space
from scvec.model.gene_vectors import gene_table
from scvec.model.matching import MAX_GENES, with_partners
from scvec.model.metrics import accuracy, macro_f1
from scvec.model.resolvers import GeneMap, GeneResolver
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.store.vector_cache import VECTORS, ShippedVectors

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
N_GENES, N_CELLS = 2000, 800
SHARES = (0.0, 0.1, 0.5)
Row = dict[str, Any]
Side = tuple[Any, np.ndarray, list[str]]  # counts or linear values (CSR), labels, gene names


def sides() -> dict[str, tuple[Side, Side]]:
    """Return pair -> reference and query, labels under the names by which they are compared."""
    data = files("scvec") / "data"
    baron = []
    for species in ("human", "mouse"):
        cells = anndata.read_h5ad(str(data / f"baron_{species}.h5ad"))
        labels = np.array([PANCREAS_MERGED.get(str(n), str(n)) for n in cells.obs["cell_type"]])
        some = np.random.default_rng(0).permutation(len(labels))[:N_CELLS]
        baron.append((sp.csr_matrix(cells.X)[some], labels[some], list(cells.var_names)))
    found = {"pancreas human -> mouse": (baron[0], baron[1]), "pancreas mouse -> human": (baron[1], baron[0])}
    listed = json.loads((SHARED / "pairs.json").read_text()) if (SHARED / "pairs.json").exists() else {}
    for name in ("darmanis->tm_brain", "tm_brain->darmanis", "aizarani->tm_liver", "tm_liver->aizarani"):
        if name in listed:
            pair = listed[name]
            found[name] = (_side(pair, "reference"), _side(pair, "query"))
    return found


def _side(pair: dict[str, Any], which: str) -> Side:
    cells = anndata.read_h5ad(SHARED / pair[which])
    for column, value in pair.get(f"{which}_where", {}).items():
        cells = cells[cells.obs[column].isin(value if isinstance(value, list) else [value])]
    names = pair.get(f"{which}_labels") or {}
    labels = np.array([str(names.get(str(n), "") or "") if names else str(n) for n in cells.obs["cell_type"]])
    kept = labels != ""
    return sp.csr_matrix(cells.X)[kept], labels[kept], list(cells.var_names)


def logged(values: Any) -> Any:
    """Return log1p of CP10k."""
    total = np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1e-9)
    scaled = sp.csr_matrix(sp.diags(1e4 / total) @ values)
    scaled.data = np.log1p(scaled.data)
    return scaled


def score(reference: Side, spread: Any, query: Side, genes: GeneMap) -> tuple[float, float]:
    """Return macro-F1 and accuracy over the cells whose type the reference has.

    ``spread`` (n_genes,) is the variance of the genes of the reference, whose values are logged.
    """
    known, labels, _ = reference
    measured = np.flatnonzero(genes.measured)
    chosen = measured[np.argsort(-spread[measured], kind="stable")[:N_GENES]]
    classes = np.unique(labels)
    means = np.stack([np.asarray(known[labels == c][:, chosen].mean(axis=0)).ravel() for c in classes])
    new = logged(query[0] @ genes.weights)[:, chosen].toarray()
    centre = means.mean(axis=0)
    means, new = means - centre, new - new.mean(axis=0)
    cosines = new @ means.T / np.maximum(np.linalg.norm(means, axis=1), 1e-9)
    said = classes[cosines.argmax(axis=1)]
    there = np.isin(query[1], classes)
    return macro_f1(query[1][there], said[there]), accuracy(query[1][there], said[there])


class Texts:
    """Vectors of the descriptions that ship."""

    def __init__(self, kb: KnowledgeBase) -> None:
        genes = kb.genes()
        coding = genes.loc[genes["gene_type"] == "protein-coding", "gene_id"].tolist()
        table = gene_table(kb, coding, "default")
        shipped = ShippedVectors()
        space = Space.from_dict(Snapshot.open().manifest["tables"][VECTORS]["space"])
        rows = shipped.rows(space, table["text_sha256"].tolist())
        self.row = {g: int(r) for g, r in zip(table["gene_id"], rows, strict=True) if r >= 0}
        self.shipped = shipped
        described = kb.descriptions(list(self.row))
        self.length = {g: len(described[g].text) for g in self.row if g in described}

    def of(self, gene_ids: list[str]) -> Any:
        return self.shipped.take(np.array([self.row[g] for g in gene_ids], dtype=np.int64))

    def joined(self, genes: GeneMap, ids: Any, targets: list[str]) -> GeneMap:
        """Return the map with genes added by text, as ``query --unmatched-genes text`` does it."""
        unused = {g for g, used in zip(ids, genes.used, strict=True) if g is not None and not used}
        new = sorted(sorted(unused & set(self.length), key=lambda g: (-self.length[g], g))[:MAX_GENES])
        told = [g for g in targets if g in self.row]
        number = {g: i for i, g in enumerate(targets)}
        if not new:
            return genes
        places = np.array([number[g] for g in told], dtype=np.int64)
        return with_partners(genes, ids, new, self.of(new), places, self.of(told))


def at_random(genes: GeneMap, wider: GeneMap, rng: np.random.Generator) -> GeneMap:
    """Return the map with as many genes added as text added, partners exchanged at random."""
    added = (wider.weights - genes.weights).tocoo()
    kept = added.data > 0
    columns = rng.permutation(added.col[kept])
    more = sp.csr_matrix((added.data[kept], (added.row[kept], columns)), genes.weights.shape)
    return replace(wider, weights=(genes.weights + more).tocsr())


def rows_of(seeds: int) -> tuple[list[Row], list[Row]]:
    """Return rows on several partners, and rows on hidden orthologs."""
    policies, hidden = [], []
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.open(Path(folder) / "kb.duckdb") as kb:
        kb.load_snapshot()
        names, table = kb.aliases(), kb.orthologs()
        texts = Texts(kb)
    full = GeneResolver(names, table)
    none = names.iloc[:0]

    def among(some: pd.DataFrame, many: str = "mean") -> GeneResolver:
        made = GeneResolver(none, some, many=many)
        made._symbol = full._symbol
        return made

    for name, (reference, query) in sides().items():
        matches = [full.resolve(side[2]) for side in (reference, query)]
        # One column for each gene of the reference; other names of it are left out.
        targets = list(dict.fromkeys(g for g in matches[0].gene_ids if g is not None))
        own = full.map_to(matches[0], targets, matches[0].species)
        reference = (logged(reference[0] @ own.weights), reference[1], targets)
        square = reference[0].multiply(reference[0])
        spread = np.asarray(square.mean(axis=0) - np.square(reference[0].mean(axis=0))).ravel()

        def join(resolver: GeneResolver, match: Any = matches, to: list[str] = targets) -> GeneMap:
            return resolver.map_to(match[1], to, match[0].species)

        ways = {"one to one only": among(table[table["kind"] == "one2one"])}
        ways |= {many: among(table, many) for many in ("mean", "sum", "best")}
        for way, resolver in ways.items():
            genes = join(resolver)
            f1, right = score(reference, spread, query, genes)
            policies.append({"pair": name, "several partners": way, "genes": int(genes.measured.sum()),
                             "macro_f1": f1, "accuracy": right})  # fmt: skip
            print(policies[-1], flush=True)
        for share in SHARES:
            for seed in range(seeds if share else 1):
                rng = np.random.default_rng(seed)
                genes = join(among(table[rng.random(len(table)) >= share]))
                wider = texts.joined(genes, matches[1].gene_ids, targets)
                for way, made in (
                    ("nothing", genes),
                    ("text", wider),
                    ("random", at_random(genes, wider, rng)),
                ):
                    f1, right = score(reference, spread, query, made)
                    row = {"pair": name, "hidden": share, "instead": way, "seed": seed}
                    row |= {"genes": int(made.measured.sum()), "macro_f1": f1, "accuracy": right}
                    hidden.append(row)
                print(hidden[-3:], flush=True)
    return policies, hidden


def means(rows: list[Row], by: tuple[str, ...]) -> list[Row]:
    """Return means over the other columns, and the standard deviation over seeds of the mean of pairs."""
    frame = pd.DataFrame(rows)
    mean = frame.groupby(list(by), sort=False)[["genes", "macro_f1", "accuracy"]].mean().reset_index()
    if "seed" in frame:
        seeds = frame.groupby([*by, "seed"], sort=False)["macro_f1"].mean()
        mean["sd"] = seeds.groupby(level=list(by), sort=False).std(ddof=1).fillna(0.0).to_numpy()
    return [dict(row) for row in mean.to_dict("records")]


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    policies, hidden = rows_of(options.seeds)
    command = f"python benchmarks/orthologs.py --seeds {options.seeds} --publish"
    several = [*policies, *({"pair": "all pairs", **row} for row in means(policies, ("several partners",)))]
    joined = means(hidden, ("hidden", "instead"))
    for name, rows in (("orthologs_several", several), ("orthologs_hidden", joined)):
        shown = tuple(dict.fromkeys(key for row in rows for key in row))
        print(markdown(shown, rows))
        if options.publish:
            publish(name, command, shown, rows)


if __name__ == "__main__":
    main()
