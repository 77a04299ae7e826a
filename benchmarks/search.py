"""Whether searches for genes find the genes that the Gene Ontology annotates with the topic.

    python benchmarks/search.py [--store DIR] [--publish]

Thirty topics, each a query as one would type it and the Gene Ontology terms that it is about; topics were
written down before any was searched for. A gene fits a topic when it is annotated with one of its terms, or
with a term below it by is_a, part_of or regulates. The store needs the vectors of human genes
(``scvec ingest embeddings --species human``: about ten minutes on two cores); without --store one is made.

The descriptions that ship with scvec are composed from the same annotations, six terms at most, so that this
says how well what is known is found, and not how much is known. Rows that read names only do not profit.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown, publish

import scvec
from scvec.stores.knowledge.gene_search import words
from scvec.stores.store.store import Store
from scvec.workflows.search_genes import find_meaning, rank_genes

#: Query -> names of Gene Ontology terms.
TOPICS: dict[str, tuple[str, ...]] = {
    "insulin secretion": ("insulin secretion",),
    "breaking down fatty acids": ("fatty acid catabolic process",),
    "T cell receptor signaling": ("T cell receptor signaling pathway",),
    "repair of mismatched DNA bases": ("mismatch repair",),
    "enzymes of glycolysis": ("glycolytic process",),
    "blood clotting": ("blood coagulation",),
    "genes induced by interferon": ("response to type I interferon", "response to interferon-gamma"),
    "assembly of collagen fibers": ("collagen fibril organization",),
    "mitochondrial respiratory chain": ("respiratory electron transport chain",),
    "potassium channel": ("potassium channel activity",),
    "antigen presentation by MHC class II": (
        "antigen processing and presentation of peptide antigen via MHC class II",
        "MHC class II protein complex",
    ),
    "programmed cell death": ("programmed cell death", "apoptotic process"),
    "building cilia": ("cilium assembly",),
    "muscle contraction": ("muscle contraction",),
    "release of neurotransmitter from synaptic vesicles": (
        "synaptic vesicle exocytosis",
        "neurotransmitter secretion",
    ),
    "circadian clock": ("circadian rhythm",),
    "cholesterol synthesis": ("cholesterol biosynthetic process",),
    "chromosome segregation in mitosis": ("mitotic sister chromatid segregation",),
    "splicing of messenger RNA": ("mRNA splicing, via spliceosome",),
    "ribosomal proteins": ("structural constituent of ribosome",),
    "ubiquitin ligase": ("ubiquitin-protein transferase activity",),
    "chemokines that attract leukocytes": ("chemokine activity", "leukocyte chemotaxis"),
    "sense of smell": ("sensory perception of smell", "olfactory receptor activity"),
    "vision and light detection in the retina": ("visual perception", "detection of light stimulus"),
    "growth of new blood vessels": ("angiogenesis",),
    "iron storage and transport": ("iron ion homeostasis", "iron ion transport"),
    "Wnt signaling": ("Wnt signaling pathway",),
    "telomere maintenance": ("telomere maintenance",),
    "killing of target cells by cytotoxic lymphocytes": ("leukocyte mediated cytotoxicity", "cell killing"),
    "tight junction between epithelial cells": ("tight junction", "tight junction organization"),
}
BELOW = ("is_a", "part of", "regulates", "negatively regulates", "positively regulates")
K = 10
COLUMNS = ("search", "precision_at_10", "topics_over_0.6", "worst_topic", "insulin_hits", "rank_of_INS")

Search = Callable[[str], Sequence[str]]


def relevant(kb: Any) -> dict[str, set[str]]:
    """Return the genes of each topic."""
    parents = kb.arrow("go_parents", ["go_id", "parent_id", "relation"]).to_pandas()
    children: dict[str, list[str]] = {}
    for row in parents[parents["relation"].isin(BELOW)].itertuples(index=False):
        children.setdefault(row.parent_id, []).append(row.go_id)
    terms = kb.arrow("go_terms", ["go_id", "name"]).to_pandas()
    ids = dict(zip(terms["name"], terms["go_id"], strict=True))
    annotations = kb.arrow("go_annotations", ["gene_id", "go_id"]).to_pandas()
    genes_of = annotations.groupby("go_id")["gene_id"].agg(set).to_dict()
    found = {}
    for query, names in TOPICS.items():
        seen: set[str] = set()
        todo = [ids[name] for name in names]
        while todo:
            term = todo.pop()
            if term not in seen:
                seen.add(term)
                todo += children.get(term, [])
        found[query] = set().union(*(genes_of.get(term, set()) for term in seen))
    return found


def plain(kb: Any, *columns: str) -> Search:
    """Plain keyword search: genes with most of the words in some columns, the shortest text first."""
    genes = kb.genes("human")
    described = kb.descriptions()
    text = {
        "names": (genes["symbol"] + " " + genes["name"]).str.lower().to_numpy(),
        "description": np.array(
            [described[g].text.lower() if g in described else "" for g in genes["gene_id"]]
        ),
    }
    haystack = [" ".join(parts) for parts in zip(*(text[c] for c in columns), strict=True)]
    ids = genes["gene_id"].to_numpy()

    def search(query: str) -> list[str]:
        wanted = words(query)
        n = np.array([sum(w in one for w in wanted) for one in haystack])
        length = np.array([len(one) for one in haystack])
        order = np.lexsort((ids, length, -n))[:K]
        return [str(ids[i]) for i in order if n[i] > 0]

    return search


def measure(name: str, search: Search, truth: dict[str, set[str]], ins: str) -> dict[str, Any]:
    """Return the row of one way to search, and its precision on each topic."""
    precision: dict[str, float] = {}
    for query, genes in truth.items():
        best = list(search(query))[:K]
        precision[query] = sum(g in genes for g in best) / K
        if query == "insulin secretion":
            place = best.index(ins) + 1 if ins in best else None
    values = np.array(list(precision.values()))
    return {
        "search": name,
        "precision_at_10": float(values.mean()),
        "topics_over_0.6": int((values >= 0.6).sum()),
        "worst_topic": min(precision, key=lambda q: precision[q]),
        "insulin_hits": round(K * precision["insulin secretion"]),
        "rank_of_INS": place or "-",
        "topics": precision,
    }


def run(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of both tables."""
    store = Store(folder)
    with store.knowledge() as kb:
        truth = relevant(kb)
        genes = kb.genes("human").set_index("gene_id")
        (ins,) = genes.index[genes["symbol"] == "INS"]
        meaning = find_meaning(store, None)
        coding = genes.index[genes["gene_type"] == "protein-coding"]

        def ranked(method: str, *, terms: bool = True) -> Search:
            return lambda query: (
                rank_genes(kb, query, meaning=meaning, species=["human"], method=method, terms=terms).gene_ids
            )

        rows = [
            measure("hybrid (the default)", ranked("hybrid"), truth, ins),
            measure("hybrid, no names of terms", ranked("hybrid", terms=False), truth, ins),
            measure("meaning", ranked("meaning"), truth, ins),
            measure("words (BM25)", ranked("words"), truth, ins),
            measure("words (BM25), no names of terms", ranked("words", terms=False), truth, ins),
            measure("plain keywords in names and description", plain(kb, "names", "description"), truth, ins),
            measure("plain keywords in names", plain(kb, "names"), truth, ins),
        ]
    chance = [len(truth[q] & set(coding)) / len(coding) for q in TOPICS]
    by_topic = [
        {
            "query": query,
            "genes_that_fit": len(truth[query]),
            "by_chance": float(share),
            "hybrid": rows[0]["topics"][query],
            "meaning": rows[2]["topics"][query],
            "words": rows[3]["topics"][query],
            "plain": rows[5]["topics"][query],
        }
        for query, share in zip(TOPICS, chance, strict=True)
    ]
    return [{c: row[c] for c in COLUMNS} for row in rows], by_topic


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="a store with the vectors of human genes")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.store or Path(name) / "store"
        if options.store is None:
            scvec.ingest_embeddings(folder, species=["human"])
        rows, topics = run(folder)
    print(markdown(COLUMNS, rows))
    columns = list(topics[0])
    print(markdown(columns, topics))
    if options.publish:
        command = "python benchmarks/search.py --publish"
        publish("search", command, COLUMNS, rows)
        publish("search_topics", command, columns, topics)


if __name__ == "__main__":
    main()
