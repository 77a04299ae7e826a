"""Make the core of marker genes that ships with scvec: scvec/data/snapshot/markers.parquet.

    pip download --no-deps pegasuspy==1.10.2 uhaf==0.1.8 cellconsensus==1.2.0 \
        cellxgene-ontology-guide==1.11.1 -d build/markers
    pip install openpyxl
    python tools/build_markers.py --wheels build/markers

Facts of three packages whose licence allows it, and what the shipped cells say themselves:

- pegasuspy 1.10.2 (BSD-3-Clause): immune, lung, brain and liver cells of human and mouse
- uhaf 0.1.8 (MIT): rules for 50 human organs. Its blood sheet is left out: the rules are off by one row
- cellconsensus 1.2.0 (MIT): the markers of each Cell Ontology term that most lists of many papers and tables
  agree on. Terms that have few lists of their own, beside those of the terms below them, are left out
- Baron et al. 2016 (GSE84133), as it ships: the most specific genes of each type

Beside it tissues.parquet is written: names of tissues, and the organs and systems that they are part of
(Uberon, CC-BY-3.0, as cellxgene-ontology-guide 1.11.1 lists them).

Names are mapped to Cell Ontology terms as labels are; those without a term are printed and left out.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from scvec.celltypes.naming import LEAST_DEPTH, MEANT_TISSUES
from scvec.celltypes.terms import TermMatcher

DATA = Path(__file__).resolve().parents[1] / "scvec" / "data"
PEGASUS = {
    "human_immune": ("human", "blood"),
    "human_lung": ("human", "lung"),
    "human_brain": ("human", "brain"),
    "mouse_immune": ("mouse", "blood"),
    "mouse_lung": ("mouse", "lung"),
    "mouse_liver": ("mouse", "liver"),
    "mouse_brain": ("mouse", "brain"),
}
#: Names that the matcher does not know, and the label of the term that is meant.
MEANT = {
    "EC lymphatic": "endothelial cell of lymphatic vessel",
    "EC artery": "endothelial cell of artery",
    "EC arterial": "endothelial cell of artery",
    "EC vein": "vein endothelial cell",
    "EC venous": "vein endothelial cell",
    "EC general capillary": "capillary endothelial cell",
    "CD56-dim NK cell": "natural killer cell",
    "Alveolar fibroblast": "fibroblast of lung",
    "Airway smooth muscle cell": "bronchial smooth muscle cell",
    "Plumonary neuroendocrine cell": "lung neuroendocrine cell",
    "Opalin+ Oligodendrocyte": "oligodendrocyte",
    "Gfap+ Astrocyte": "astrocyte",
    "Neutrophilic granulocyte": "neutrophil",
    "Basophilic granulocyte": "basophil",
    "Eosinophilic granulocyte": "eosinophil",
    "Sinusoidal endothelial cell": "endothelial cell of hepatic sinusoid",
    "PV inhibitory neuron": "pvalb GABAergic interneuron",
    "SOM inhibitory neuron": "sst GABAergic interneuron",
    "VIP inhibitory neuron": "vip GABAergic interneuron",
    "Rod": "retinal rod cell",
    "Cone": "retinal cone cell",
    "Bipolar cell": "retinal bipolar neuron",
}
#: Most specific genes of each type of the shipped cells, and most agreed ones of cellconsensus.
N_GENES = 20
#: Lists that a term of cellconsensus must have of its own.
OWN_LISTS = 3
COLUMNS = ("cl_id", "tissue", "species", "gene", "direction", "weight", "source")


def matcher() -> TermMatcher:
    terms = pd.read_parquet(DATA / "snapshot" / "cl_terms.parquet")
    synonyms = pd.read_parquet(DATA / "snapshot" / "cl_synonyms.parquet")
    names = [(i, n, True) for i, n in terms.itertuples(index=False)]
    return TermMatcher(names + [(i, n, False) for i, n in synonyms.itertuples(index=False)])


def pegasus(wheel: zipfile.ZipFile):
    def walk(node, above=""):
        for each in node["cell_types"]:
            genes = [(g[:-1], g[-1], m["weight"]) for m in each.get("markers", []) for g in m["genes"]]
            if (above, each["name"]) != ("T cell", "Inhibitory"):  # a state, not an inhibitory neuron
                yield each["name"], genes
            if "subtypes" in each:
                yield from walk(each["subtypes"], each["name"])

    for name, (species, tissue) in PEGASUS.items():
        text = wheel.read(f"pegasus/annotate_cluster/{name}_cell_markers.json")
        for label, genes in walk(json.loads(text)):
            for gene, sign, weight in genes:
                yield label, tissue, species, gene, "positive" if sign == "+" else "negative", weight


def uhaf(wheel: zipfile.ZipFile):
    import openpyxl

    book = openpyxl.load_workbook(io.BytesIO(wheel.read("uhaf/reference/uHAF2.2.0.xlsx")), read_only=True)
    for sheet in book.sheetnames:
        rows = list(book[sheet].iter_rows(values_only=True))
        if not rows or "[Marker]" not in rows[0] or sheet == "Blood":
            continue
        at = rows[0].index("[Marker]")
        for row in rows[1:]:
            labels = [str(cell).strip() for cell in row[:at] if cell]
            if not labels or len(row) <= at or not row[at]:
                continue
            for word in re.findall(r"[A-Za-z0-9][A-Za-z0-9.-]*", str(row[at])):
                if word.lower() not in ("or", "and", "not"):
                    yield labels[-1], sheet.lower(), "human", word, "positive", 1.0


class Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and tables, and nothing that could run."""

    def find_class(self, module, name):
        raise ValueError(f"an unexpected {module}.{name}")


def consensus(wheel: zipfile.ZipFile, terms: dict, organs: set[str]):
    found = Plain(io.BytesIO(wheel.read("cellconsensus/data/consensus_cache_full.pkl"))).load()
    n_lists = {i: n for i, n in found["n_sources"].items() if i in terms}
    below = {i: [j for j in n_lists if i in terms[j]["ancestors"]] for i in n_lists}
    own: dict[str, int] = {}
    # A term counts the lists of all terms below it, too.
    for i in sorted(n_lists, key=lambda i: (len(below[i]), i)):
        own[i] = n_lists[i] - sum(own[j] for j in below[i])
        if own[i] >= OWN_LISTS and len(terms[i]["ancestors"]) >= LEAST_DEPTH:
            agreed = found["consensus"][i]
            for gene in sorted(agreed, key=lambda g: (-agreed[g], g))[:N_GENES]:
                for tissue in sorted(places(terms, organs, i)) or [""]:
                    yield i, tissue, "human", gene, "positive", 1.0


def places(terms: dict, organs: set[str], cl_id: str) -> set[str]:
    """Return the organs in the names and first sentence of a term, and in the labels of terms above it."""
    term = terms[cl_id]
    texts = [term["label"], *term.get("synonyms", ()), term.get("description", "").split(". ")[0]]
    above = (terms[a] for a in term["ancestors"] if a in terms)
    texts += [t["label"] for t in above if len(t["ancestors"]) >= LEAST_DEPTH]
    found = set()
    for text in texts:
        words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
        spans = (words[i : i + n] for n in range(1, 5) for i in range(len(words) - n + 1))
        found |= {MEANT_TISSUES.get(" ".join(span), " ".join(span)) for span in spans} & organs
    return found


def shipped():
    for species, file in (("human", "baron_human.h5ad"), ("mouse", "baron_mouse.h5ad")):
        cells = anndata.read_h5ad(DATA / file)
        X = sp.csr_matrix(cells.X).astype(np.float64)
        X = sp.diags(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X
        X.data = np.log1p(X.data)
        ids = cells.obs["cell_ontology_id"].astype(str)
        means = {i: np.asarray(X[(ids == i).to_numpy()].mean(axis=0)).ravel() for i in sorted(set(ids))}
        for cl_id, mean in means.items():
            if not cl_id.startswith("CL:"):
                continue
            rest = np.max([m for i, m in means.items() if i != cl_id], axis=0)
            for g in np.argsort(rest - mean, kind="stable")[:N_GENES]:
                yield cl_id, "pancreas", species, str(cells.var_names[g]), "positive", 1.0


def background() -> pa.Table:
    """Return, for each gene of the shipped cells, its mean log1p CP10k over types, and the spread."""
    parts = []
    for species, file in (("human", "baron_human.h5ad"), ("mouse", "baron_mouse.h5ad")):
        cells = anndata.read_h5ad(DATA / file)
        X = sp.csr_matrix(cells.X).astype(np.float64)
        X = sp.diags(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X
        X.data = np.log1p(X.data)
        labels = cells.obs["cell_type"].astype(str)
        means = np.array([X[(labels == t).to_numpy()].mean(axis=0).A1 for t in sorted(set(labels))])
        kept = np.flatnonzero(means.max(axis=0) > 0.05)
        parts.append(
            pa.table(
                {
                    "species": [species] * len(kept),
                    "gene": [str(cells.var_names[g]) for g in kept],
                    "mean": means.mean(axis=0)[kept].astype(np.float32),
                    "spread": means.std(axis=0)[kept].astype(np.float32),
                }
            )
        )
    return pa.concat_tables(parts)


#: Parts of the body that say little of the cells in them.
VAGUE = {
    "abdomen",
    "axilla",
    "bladder organ",  # of urine or gall
    "embryo",
    "endocrine gland",
    "exocrine gland",
    "knee",
    "lamina propria",
    "mucosa",
}


def ontology(wheel: zipfile.ZipFile, name: str) -> dict:
    packed = wheel.read(f"cellxgene_ontology_guide/data/{name}.json.zst")
    return json.loads(pa.input_stream(io.BytesIO(packed), compression="zstd").read())


def tissues(wheel: zipfile.ZipFile) -> pa.Table:
    """Return the names of tissues, and the organs and systems above them."""
    terms = ontology(wheel, "UBERON-ontology-v2026-04-01")
    general = json.loads(wheel.read("cellxgene_ontology_guide/data/tissue_general_list.json"))
    organ = {i: terms[i]["label"] for i in general if terms[i]["label"] not in VAGUE}
    found = collections.defaultdict(set)
    for i, term in terms.items():
        if term.get("label") and not term.get("deprecated"):
            for name in (term["label"], *term.get("synonyms", ())):
                found[name.lower()] |= {organ[a] for a in (i, *term["ancestors"]) if a in organ}
    rows = sorted((name, "|".join(sorted(above))) for name, above in found.items() if above)
    return pa.table({"name": [name for name, _ in rows], "organs": [above for _, above in rows]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, required=True)
    wheels = parser.parse_args().wheels
    match, left = matcher(), collections.Counter()
    own = {label: cl_id for cl_id, label in match.label_of.items()}
    rows = set()
    for source, read in (("pegasuspy", pegasus), ("uhaf", uhaf)):
        [path] = wheels.glob(f"{source}-*.whl")
        with zipfile.ZipFile(path) as wheel:
            for label, tissue, *rest in read(wheel):
                cl_id = own.get(MEANT.get(label, ""), "") or match.match_all([label], [tissue])[label].cl_id
                if cl_id:
                    rows.add((cl_id, tissue, *rest, source))
                else:
                    left[f"{source}: {label}"] += 1
    [path] = wheels.glob("cellxgene_ontology_guide-*.whl")
    with zipfile.ZipFile(path) as wheel:
        parts, terms = tissues(wheel), ontology(wheel, "CL-ontology-v2026-03-26")
    organs = {o for above in parts["organs"].to_pylist() for o in above.split("|") if " system" not in o}
    terms = {i: t for i, t in terms.items() if i in match.label_of}
    [path] = wheels.glob("cellconsensus-*.whl")
    with zipfile.ZipFile(path) as wheel:
        rows |= {(*row, "cellconsensus") for row in consensus(wheel, terms, organs)}
    rows |= {(*row, "Baron 2016") for row in shipped()}
    table = pa.table(
        {name: list(column) for name, column in zip(COLUMNS, zip(*sorted(rows), strict=True), strict=True)}
    )
    table = table.set_column(5, "weight", table["weight"].cast(pa.float32()))
    manifest_path = DATA / "snapshot" / "snapshot.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    for name, made in (("markers", table), ("background", background()), ("tissues", parts)):
        out = DATA / "snapshot" / f"{name}.parquet"
        pq.write_table(made, out, compression="zstd", compression_level=19)
        raw = out.read_bytes()
        manifest["tables"][name] = {
            "rows": made.num_rows,
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    own = ("marker genes of cell types", "organs and systems of tissues")
    others = [s for s in manifest["sources"] if s.get("gives") not in own]
    manifest["sources"] = [
        *others,
        {
            "name": "pegasuspy, uhaf, cellconsensus, Baron et al. 2016",
            "version": "pegasuspy 1.10.2, uhaf 0.1.8, cellconsensus 1.2.0, GSE84133",
            "licence": "BSD-3-Clause; MIT; MIT; facts",
            "url": "https://pypi.org/project/pegasuspy/ https://pypi.org/project/uhaf/ "
            "https://pypi.org/project/cellconsensus/",
            "gives": "marker genes of cell types",
        },
        {
            "name": "Uberon through cellxgene-ontology-guide",
            "version": "2026-04-01, cellxgene-ontology-guide 1.11.1",
            "licence": "CC BY 3.0; package MIT",
            "url": "https://obofoundry.org/ontology/uberon.html",
            "gives": "organs and systems of tissues",
        },
    ]
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(f"{table.num_rows:,} markers of {len(set(table['cl_id'].to_pylist()))} terms, {len(raw):,} bytes")
    print(f"without a term: {', '.join(sorted(left))}")


if __name__ == "__main__":
    main()
