"""How genes cross from species to species: weights of several partners, and text where orthologs end.

    python benchmarks/orthologs.py [--seeds 5] [--vectors FILE] [--publish]
    python benchmarks/orthologs.py --families FILE [--seeds 5] [--publish]
    python benchmarks/orthologs.py --chance [--publish]
    python benchmarks/orthologs.py --control [--seeds 5] [--publish]

Human and mouse, both ways: the pancreas cells that ship, and the pairs of brain and liver in
``../shared/data``, where they are. Cells are named by the nearest class mean (cosine over the 2,000 most
variable genes of the reference that the query has), which is steady across species and takes seconds, so
that all that changes is how the genes were joined. A fraction of the orthologs is hidden by chance, once a
seed. Genes are then joined by what is known of them, and each control joins as many at random:

- shipped text: of mouse genes it is borrowed from the human ortholog, so that it still holds what was hidden
- own name: the full name that MGI and HGNC give, as a text vector
- own GO: Gene Ontology terms of experiments in the species itself

Mouse genes have no name and no terms in what ships, so the last two read ``../shared/data/genes``; without
these tables their rows say ``no own text``. ``--families`` compares protein families alone: a table without
header of Ensembl gene ids and Pfam ids, as BioMart exports it.

``--control`` asks the same cells by a reference of their own species as well: what is lost without crossing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pairs import PANCREAS_MERGED
from tables import markdown, publish

from scvec.backbones import load_backbone, parse_spec
from scvec.base.species import SPECIES
from scvec.base.types import Space
from scvec.model.calibration import accuracy, macro_f1
from scvec.model.gene_vectors import gene_table
from scvec.model.matching import with_partners
from scvec.model.resolvers import GeneMap, GeneResolver, snapshot_resolver
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.store.vector_cache import VECTORS, ShippedVectors

SHARED = Path(os.environ.get("SCVEC_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
N_GENES, N_CELLS = 2000, 800
#: The most variable genes of each side, which may be joined where their ortholog is hidden.
N_JOINED = 2000
EXPERIMENTS = {"EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "HTP", "HDA", "HMP", "HGI", "HEP"}
PROTEIN_BINDING = "GO:0005515"
SHARES = (0.0, 0.1, 0.5)
Row = dict[str, Any]
Side = tuple[Any, np.ndarray, list[str]]  # counts or linear values (CSR), labels, gene names


def sides(*, whole: bool = False) -> dict[str, tuple[Side, Side]]:
    """Return pair -> reference and query, labels under the names by which they are compared.

    Of the pancreas at most ``N_CELLS`` cells, or all of ``whole`` files.
    """
    data = files("scvec") / "data"
    baron = []
    for species in ("human", "mouse"):
        cells = anndata.read_h5ad(str(data / f"baron_{species}.h5ad"))
        labels = np.array([PANCREAS_MERGED.get(str(n), str(n)) for n in cells.obs["cell_type"]])
        some = np.random.default_rng(0).permutation(len(labels))[:N_CELLS]
        some = np.arange(len(labels)) if whole else some
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


class Vectors:
    """Vectors of genes, of which unmeasured genes get the most similar one.

    Parameters
    ----------
    row
        Gene id -> row of ``values``, (n, dim) float32.
    """

    def __init__(self, row: dict[str, int], values: np.ndarray) -> None:
        self.row, self.values = row, values

    def joined(
        self, genes: GeneMap, ids: Any, targets: list[str], asked: tuple[set[str], set[str]]
    ) -> GeneMap:
        """Return the map with genes added, by the rule of ``query --unmatched-genes text``.

        ``asked`` are the genes of the reference and of the query that may be joined.
        """
        unused = {g for g, used in zip(ids, genes.used, strict=True) if g is not None and not used}
        new = sorted(unused & asked[1] & set(self.row))
        told = [i for i, g in enumerate(targets) if g in asked[0] and g in self.row]
        if not new or not told:
            return genes
        here, there = ([self.row[g] for g in some] for some in (new, [targets[i] for i in told]))
        places = np.array(told, dtype=np.int64)
        return with_partners(genes, ids, new, self.values[here], places, self.values[there])


def shipped_texts(kb: KnowledgeBase) -> Vectors:
    """Return vectors of the descriptions that ship. A mouse gene's is borrowed from its human ortholog."""
    genes = kb.genes()
    coding = genes.loc[genes["gene_type"] == "protein-coding", "gene_id"].tolist()
    table = gene_table(kb, coding, "default")
    shipped = ShippedVectors()
    space = Space.from_dict(Snapshot.open().manifest["tables"][VECTORS]["space"])
    rows = shipped.rows(space, table["text_sha256"].tolist())
    told = [(g, int(r)) for g, r in zip(table["gene_id"], rows, strict=True) if r >= 0]
    values = shipped.take(np.array([r for _, r in told], dtype=np.int64))
    return Vectors({g: i for i, (g, _) in enumerate(told)}, np.asarray(values, dtype=np.float32))


def own_facts() -> pd.DataFrame | None:
    """Return names and Gene Ontology terms that both species have of their own; None without the tables.

    Terms are those of experiments in the species itself. Terms by orthology (ISO, ISS, IBA) or by programs
    (IEA) would come through the ortholog.
    """
    paths = [SHARED / "genes" / f"{species}_gene_descriptions.parquet" for species in ("human", "mouse")]
    if not all(path.exists() for path in paths):
        return None
    columns = ["authority_id", "name", "go_terms"]
    table = pd.concat([pd.read_parquet(path, columns=columns) for path in paths], ignore_index=True)
    table = table.dropna(subset=["authority_id"]).drop_duplicates("authority_id").set_index("authority_id")
    table["go"] = [
        [t["id"] for t in terms if EXPERIMENTS & set(t["evidence"]) and t["id"] != PROTEIN_BINDING]
        for terms in table.pop("go_terms")
    ]
    return table


def own_names(facts: pd.DataFrame, kept: Path | None) -> Vectors:
    """Return text vectors (MiniLM) of the genes' own full names, without symbols."""
    names = facts["name"].dropna()
    names = names[names != ""]
    known: dict[str, np.ndarray] = {}
    if kept and kept.exists():
        with np.load(kept) as stored:
            known = dict(zip(stored["names"].tolist(), stored["values"], strict=True))
    new = sorted(set(names) - set(known), key=len)
    backbone = load_backbone(parse_spec("minilm"))
    for start in range(0, len(new), 256):
        some = new[start : start + 256]
        known |= dict(zip(some, backbone.encode(some), strict=True))
        print(f"names encoded: {start + len(some)} of {len(new)}", flush=True)
    if kept and new:
        np.savez(kept, names=np.array(list(known)), values=np.stack(list(known.values())))
    values = np.stack([known[name] for name in names])
    return Vectors({g: i for i, g in enumerate(names.index)}, values)


def own_terms(terms: pd.Series[Any]) -> Vectors:
    """Return one direction a term, weighted by how rare it is; ``terms`` are lists by gene id."""
    terms = terms[terms.map(len) > 0]
    number = {t: i for i, t in enumerate(sorted({t for some in terms for t in some}))}
    columns = np.array([number[t] for some in terms for t in some])
    rows = np.repeat(np.arange(len(terms)), terms.map(len))
    rare = np.log(len(terms) / np.bincount(columns))
    shape = (len(terms), len(number))
    values = sp.csr_matrix((rare[columns], (rows, columns)), shape=shape, dtype=np.float32)
    return Vectors({g: i for i, g in enumerate(terms.index)}, values.toarray())


def families(path: Path, resolver: GeneResolver, asked: set[str]) -> Vectors:
    """Return the protein families of genes as terms; of a table without header, Ensembl id and family."""
    table = pd.read_csv(path, sep="\t", names=["ensembl", "family"])
    found: list[pd.DataFrame] = []
    for species in SPECIES:
        own = table.assign(gene=resolver.resolve(table["ensembl"].tolist(), species).gene_ids)
        found.append(own[own["gene"].isin(asked)])
    return own_terms(pd.concat(found).groupby("gene")["family"].agg(lambda some: sorted(set(some))))


def at_random(genes: GeneMap, wider: GeneMap, rng: np.random.Generator) -> GeneMap:
    """Return the map with as many genes added as text added, partners exchanged at random."""
    added = (wider.weights - genes.weights).tocoo()
    kept = added.data > 0
    columns = rng.permutation(added.col[kept])
    more = sp.csr_matrix((added.data[kept], (added.row[kept], columns)), genes.weights.shape)
    return replace(wider, weights=(genes.weights + more).tocsr())


def spread_of(values: Any) -> np.ndarray:
    """Return the variance of each column of logged values, (n,)."""
    square = values.multiply(values)
    return np.asarray(square.mean(axis=0) - np.square(values.mean(axis=0))).ravel()


def most(spread: np.ndarray, ids: Sequence[str | None]) -> set[str]:
    """Return the genes of the columns that vary most."""
    order = [ids[i] for i in np.argsort(-spread, kind="stable")]
    return set(list(dict.fromkeys(g for g in order if g is not None))[:N_JOINED])


@dataclass
class Pair:
    """A reference whose columns are genes, and a query."""

    reference: Side
    query: Side
    ids: Any
    species: tuple[str, str]
    spread: np.ndarray
    asked: tuple[set[str], set[str]]

    @classmethod
    def of(cls, reference: Side, query: Side, resolver: GeneResolver) -> Pair:
        """Return the pair with its genes found."""
        known, new = (resolver.resolve(side[2]) for side in (reference, query))
        # One column for each gene of the reference; other names of it are left out.
        targets = list(dict.fromkeys(g for g in known.gene_ids if g is not None))
        values = logged(reference[0] @ resolver.map_to(known, targets, known.species).weights)
        spread = spread_of(values)
        asked = most(spread, targets), most(spread_of(logged(query[0])), new.gene_ids)
        made = values, reference[1], targets
        return cls(made, query, new, (known.species, new.species), spread, asked)

    def join(self, resolver: GeneResolver) -> GeneMap:
        """Return the query's genes by orthologs."""
        return resolver.map_to(self.ids, self.reference[2], self.species[0])

    def score(self, genes: GeneMap) -> Row:
        """Return genes measured, macro-F1 and accuracy."""
        f1, right = score(self.reference, self.spread, self.query, genes)
        return {"genes": int(genes.measured.sum()), "macro_f1": f1, "accuracy": right}


def joins(
    pair: Pair, genes: GeneMap, all_genes: GeneMap, ways: dict[str, Vectors | None], rng: Any
) -> list[Row]:
    """Return a row for nothing, each way, and its control.

    ``right`` is the fraction of the pairs added that are orthologs, by the map of all of them.
    """
    rows: list[Row] = [{"instead": "nothing"} | pair.score(genes)]
    truth = all_genes.weights > 0
    for way, vectors in ways.items():
        if vectors is None:
            rows.append({"instead": f"{way}: no own text"} | pair.score(genes))
            continue
        wider = vectors.joined(genes, pair.ids.gene_ids, pair.reference[2], pair.asked)
        for name, made in ((way, wider), (f"{way}, at random", at_random(genes, wider, rng))):
            added = (made.weights - genes.weights) > 0
            n = int(added.sum())
            right = float(added.multiply(truth).sum()) / n if n else 0.0
            rows.append({"instead": name} | pair.score(made) | {"added": n, "right": right})
    return rows


def rows_of(seeds: int, vectors: Path | None, family_table: Path | None) -> tuple[list[Row], list[Row]]:
    """Return rows on several partners, and rows on hidden orthologs: of families alone where given."""
    policies, hidden = [], []
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.open(Path(folder) / "kb.duckdb") as kb:
        kb.load_snapshot()
        names, table = kb.aliases(), kb.orthologs()
        shipped = None if family_table else shipped_texts(kb)
    full = GeneResolver(names, table)
    pairs = {name: Pair.of(*both, full) for name, both in sides().items()}
    asked = set[str]().union(*(some for pair in pairs.values() for some in pair.asked))
    none = names.iloc[:0]

    def among(some: pd.DataFrame, many: str = "mean") -> GeneResolver:
        made = GeneResolver(none, some, many=many)
        made._symbol = full._symbol
        return made

    if family_table:
        ways: dict[str, Vectors | None] = {"Pfam": families(family_table, full, asked)}
    else:
        facts = own_facts()
        facts = None if facts is None else facts[facts.index.isin(asked)]
        ways = {
            "shipped text": shipped,
            "own name": None if facts is None else own_names(facts, vectors),
            "own GO": None if facts is None else own_terms(facts["go"]),
        }
        resolvers = {"one to one only": among(table[table["kind"] == "one2one"])}
        resolvers |= {many: among(table, many) for many in ("mean", "sum", "best")}
        for (name, pair), (way, resolver) in product(pairs.items(), resolvers.items()):
            policies.append({"pair": name, "several partners": way} | pair.score(pair.join(resolver)))
            print(policies[-1], flush=True)
    everything = {name: pair.join(full) for name, pair in pairs.items()}
    for share, seed in [(0.0, 0), *product(SHARES[1:], range(seeds))]:
        rng = np.random.default_rng(seed)
        kept = among(table[rng.random(len(table)) >= share])
        for name, pair in pairs.items():
            found = joins(pair, pair.join(kept), everything[name], ways, rng)
            hidden += [{"pair": name, "hidden": share, "seed": seed} | row for row in found]
            print(hidden[-len(found) :], flush=True)
    return policies, hidden


def means(rows: list[Row], by: tuple[str, ...]) -> list[Row]:
    """Return means over the other columns, and the standard deviation over seeds of the mean of pairs."""
    frame = pd.DataFrame(rows)
    scores = [c for c in ("genes", "macro_f1", "accuracy", "added", "right") if c in frame]
    mean = frame.groupby(list(by), sort=False)[scores].mean().reset_index()
    if "seed" in frame:
        seeds = frame.groupby([*by, "seed"], sort=False)["macro_f1"].mean()
        mean["sd"] = seeds.groupby(level=list(by), sort=False).std(ddof=1).fillna(0.0).to_numpy()
    found = [dict(row) for row in mean.to_dict("records")]
    return [{k: "-" if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in found]


def _halves(side: Side, groups: np.ndarray | None, rng: np.random.Generator) -> tuple[Side, Side]:
    """Return two halves of cells: of other donors, or at random within each label where there are none."""
    values, labels, names = side
    first = np.zeros(len(labels), dtype=bool)
    if groups is not None:
        donors = rng.permutation(np.unique(groups))
        first = np.isin(groups, donors[: len(donors) // 2])
    else:
        for label in np.unique(labels):
            some = rng.permutation(np.flatnonzero(labels == label))
            first[some[: (len(some) + 1) // 2]] = True
    return (values[first], labels[first], names), (values[~first], labels[~first], names)


def _some(side: Side, labels: set[str], rng: np.random.Generator) -> Side:
    """Return at most ``N_CELLS`` cells of some labels."""
    rows = rng.permutation(np.flatnonzero(np.isin(side[1], sorted(labels))))[:N_CELLS]
    return side[0][rows], side[1][rows], side[2]


def control(seeds: int) -> list[Row]:
    """Return what the same cells get from a reference of their own species, and of the other one.

    The cells of the pancreas are split by donor. Those of brain and liver have none: their halves are drawn
    at random, which flatters the own species.
    """
    resolver, rows = snapshot_resolver(), list[Row]()
    for pair, (other, query) in sides(whole=True).items():
        species = pair.split(" -> ")[-1]
        groups = _donors(species) if pair.startswith("pancreas") else None
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            own, new = _halves(query, groups, rng)
            shared = set(own[1]) & set(other[1]) & set(new[1])
            own, away, new = (_some(side, shared, rng) for side in (own, other, new))
            at_home, abroad = Pair.of(own, new, resolver), Pair.of(away, new, resolver)
            home, crossed = at_home.join(resolver), abroad.join(resolver)
            through = np.asarray(home.weights[crossed.used].sum(axis=0)).ravel() > 0
            split = "donors" if groups is not None else "random halves"
            for reference, score in (
                ("own species", at_home.score(home)),
                ("own species, genes that cross", at_home.score(replace(home, measured=through))),
                ("other species", abroad.score(crossed)),
            ):
                rows.append({"pair": pair, "split": split, "reference": reference, "seed": seed} | score)
            print(rows[-3:], flush=True)
    return rows


def _donors(species: str) -> np.ndarray:
    cells = anndata.read_h5ad(str(files("scvec") / "data" / f"baron_{species}.h5ad"), backed="r")
    return cells.obs["donor"].astype(str).to_numpy()


def chance() -> list[Row]:
    """Return the fraction of the symbols of each further species that human and mouse know."""
    genes, resolver = Snapshot.open().table("more_genes").to_pandas(), snapshot_resolver()
    rows = []
    for species, symbols in genes.groupby("species", sort=True)["symbol"]:
        names = symbols[symbols != ""].drop_duplicates().tolist()
        known = {of: resolver.resolve(names, of).n_matched / len(names) for of in SPECIES}
        rows.append(
            {"species": species, "symbols": len(names)} | {f"known as {of}": known[of] for of in SPECIES}
        )
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--vectors", type=Path, help="a file that keeps the vectors of names (.npz)")
    parser.add_argument("--families", type=Path, help="Ensembl gene ids and Pfam ids (.tsv, no header)")
    parser.add_argument("--chance", action="store_true", help="only how many names other species know")
    parser.add_argument("--control", action="store_true", help="only references of the own species beside")
    options = parser.parse_args()
    if options.control:
        rows = means(control(options.seeds), ("pair", "split", "reference"))
        print(markdown(tuple(rows[0]), rows))
        if options.publish:
            command = f"python benchmarks/orthologs.py --control --seeds {options.seeds} --publish"
            publish("orthologs_control", command, tuple(rows[0]), rows)
        return
    if options.chance:
        rows = chance()
        print(markdown(tuple(rows[0]), rows))
        if options.publish:
            publish(
                "species_chance", "python benchmarks/orthologs.py --chance --publish", tuple(rows[0]), rows
            )
        return
    policies, hidden = rows_of(options.seeds, options.vectors, options.families)
    given = " --families FILE" if options.families else ""
    command = f"python benchmarks/orthologs.py{given} --seeds {options.seeds} --publish"
    several = [*policies]
    if policies:
        several += [{"pair": "all pairs", **row} for row in means(policies, ("several partners",))]
    joined = [{"pair": "all pairs", **row} for row in means(hidden, ("hidden", "instead"))]
    joined += means(hidden, ("pair", "hidden", "instead"))
    tables = {"orthologs_several": several, "orthologs_hidden": joined}
    for name, rows in ({"orthologs_families": joined} if options.families else tables).items():
        shown = tuple(dict.fromkeys(key for row in rows for key in row))
        print(markdown(shown, rows))
        if options.publish:
            publish(name, command, shown, rows)


if __name__ == "__main__":
    main()
