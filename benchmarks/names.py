"""Names without a reference: marker lists of every type of the shared data, named by ``scvec.name``.

    python benchmarks/names.py [--tables]

For each type of each data set with a term of the Cell Ontology, its 25 most specific genes (by the other
types) are named. Types of a data set that ships are left out where the shipped markers are tested, since
its own markers are among them. ``--tables`` also loads the tables of ../shared/data/markers. Prints, with and
without the tissue: similarity of the first name to the true one (Jaccard index of the terms above them), how
often it is on the same lineage, the best similarity of five, how often the broad term is right, and the
calibration error of the confidence.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp

import scvec
from scvec.celltypes.terms import TermMatcher
from scvec.model.metrics import expected_calibration_error, on_lineage, ontology_similarity
from scvec.stores.store.store import Store

SHARED = Path(os.environ.get("SCVEC_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
N_GENES = 25
PLACES = {"brain cortex": "brain", "head & neck SCC": ""}


def lists(matcher: TermMatcher) -> list[dict]:
    found = []
    for file in sorted(SHARED.glob("*.h5ad")):
        cells = anndata.read_h5ad(file)
        X = sp.csr_matrix(cells.X).astype(np.float64)
        if X.max() > 30:
            X = sp.diags(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X
            X.data = np.log1p(X.data)
        names = [n.split("_ENSG")[0] for n in cells.var_names]
        tissues = cells.obs["tissue"].astype(str)
        for tissue in sorted(tissues.unique()) if "tabula" in file.name else [tissues.iloc[0]]:
            here = (tissues == tissue).to_numpy() if "tabula" in file.name else np.ones(len(cells), bool)
            labels = cells.obs["cell_type"].astype(str).to_numpy()
            terms = matcher.match_all(sorted(set(labels[here])), [tissue])
            for label, match in terms.items():
                own, rest = here & (labels == label), here & (labels != label)
                if not match.cl_id or own.sum() < 5 or rest.sum() < 5:
                    continue
                a, b = X[own].toarray(), X[rest].toarray()
                noise = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b)) + 0.05
                score = (a.mean(0) - b.mean(0)) / noise * np.where((a > 0).mean(0) > 0.2, 1, 0.3)
                top = np.argsort(-score, kind="stable")[:N_GENES]
                place = "blood" if "pbmc" in tissue.lower() or "blood" in tissue.lower() else tissue
                found.append(
                    {
                        "genes": " ".join(names[i] for i in top),
                        "tissue": PLACES.get(place, place),
                        "species": str(cells.obs["species"].iloc[0]),
                        "truth": match.cl_id,
                        "ships": "baron" in file.name or "68k" in file.name,
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", action="store_true")
    with_tables = parser.parse_args().tables
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        scvec.ingest_genes(store)
        if with_tables:
            print(scvec.ingest_markers(store, sorted((SHARED / "markers").glob("*.tsv.gz"))))
        with Store(store).knowledge() as kb:
            matcher, lineage = TermMatcher(kb.cl_names()), kb.cl_lineage()
        above = {t: (t, *a) for t, a in lineage.items()}
        asked = [q for q in lists(matcher) if with_tables or not q["ships"]]
        for place in (False, True):
            path = Path(folder) / "lists.csv"
            with path.open("w", newline="") as file:
                write = csv.writer(file)
                write.writerow(["group", "genes", "species", *(["tissue"] if place else [])])
                for i, q in enumerate(asked):
                    write.writerow([i, q["genes"], q["species"], *([q["tissue"]] if place else [])])
            groups = {g.group: g for g in scvec.name(store, markers=path).groups}
            truth = [q["truth"] for q in asked]
            first = [_ids(groups[str(i)])[0] for i in range(len(asked))]
            right = on_lineage(truth, first, above)
            best = [
                max(ontology_similarity([t] * 5, (_ids(groups[str(i)]) + [""] * 5)[:5], above))
                for i, t in enumerate(truth)
            ]
            sure = np.array([_sure(groups[str(i)]) for i in range(len(asked))])
            broad = [(t, groups[str(i)].broad) for i, t in enumerate(truth)]
            told = [on_lineage([t], [b.cl_id], above)[0] for t, b in broad if b is not None]
            print(
                f"{len(asked)} types, tissue {'given' if place else 'not given'}: similarity "
                f"{ontology_similarity(truth, first, above).mean():.3f}, same lineage {right.mean():.3f}, "
                f"best of five {np.mean(best):.3f}, broad term for {len(told)}, right {np.mean(told):.3f}, "
                f"calibration error {expected_calibration_error(sure, right):.3f}"
            )


def _ids(group) -> list[str]:
    return [c.cl_id for c in group.candidates] or [""]


def _sure(group) -> float:
    return group.candidates[0].probability if group.candidates else 0.0


if __name__ == "__main__":
    main()
