"""References of the same and of other tissues: when `scvec query` warns that cells may not fit.

Every data set is a reference and a query for every other one. A pair of one tissue is right. A pair of two
tissues is wrong if less than half of the query's cells are of types that the reference has (by the Cell
Ontology), else shared. Right pairs are also asked with the cells of one type, and of two.
`LEAST_CONTRAST` of `scvec.model.annotation` was chosen on the references of pancreas.

    python benchmarks/wrong_reference.py [--cells 30]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
from pairs import find_file
from tables import markdown

import scvec
from scvec.base.errors import InputError
from scvec.celltypes.terms import ClassOntology
from scvec.stores.store.store import Store

#: Name -> file, tissue, and the tissue of Tabula Muris.
SETS = {
    "Baron-human": ("baron_human.h5ad", "pancreas", None),
    "Baron-mouse": ("baron_mouse.h5ad", "pancreas", None),
    "pbmc3k": ("pbmc3k_10x.h5ad", "blood", None),
    "three-assays": ("pbmc_3assays_symphony_1767genes.h5ad", "blood", None),
    "Kang": ("pbmc_kang_ifnb_1267genes.h5ad", "blood", None),
    "Puram": ("hnscc_puram_ref180_7943genes.h5ad", "tumour", None),
    "Darmanis": ("brain_darmanis_human.h5ad", "brain", None),
    "Aizarani": ("liver_aizarani_human.h5ad", "liver", None),
    **{
        f"mouse-{tissue}": ("tabula_muris_facs_8tissues.h5ad", tissue, tissue)
        for tissue in ("brain", "liver", "lung", "heart")
    },
}
CHOSEN_ON = ("pancreas",)
COLUMNS = ("reference", "kind", "queries", "warned", "contrast")


def cells_of(name: str, most: int) -> Any:
    """Return at most so many cells of each type of a data set, drawn."""
    file, _, part = SETS[name]
    path = find_file(file)
    if path is None:
        raise SystemExit(f"{file} is missing")
    adata = anndata.read_h5ad(path)
    if part is not None:
        adata = adata[(adata.obs["tissue"].astype(str).str.lower() == part).to_numpy()]
    kinds, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(kinds == k))[:most] for k in np.unique(kinds)]
    kept = np.sort(np.concatenate([rows for rows in drawn if len(rows) >= 3]))
    return anndata.AnnData(adata.X[kept], obs=adata.obs.iloc[kept][["cell_type"]].astype(str), var=adata.var)


def terms_of(store: Path, name: str) -> tuple[dict[str, str], ClassOntology]:
    """Return label -> Cell Ontology term of a reference, and its ontology."""
    meta = Store(store).reference(name).meta
    ontology = ClassOntology.from_dict(meta["ontology"])
    return dict(zip(meta["classes"], ontology.terms, strict=True)), ontology


def known(kinds: npt.NDArray[Any], query: Any, reference: Any) -> npt.NDArray[np.bool_]:
    """Return (n,) whether the reference has the type of a cell, or one above or below it."""
    (of, theirs), (ours, own) = query, reference

    def one(term: str) -> bool:
        return bool(term) and any(
            t and (t == term or t in theirs.lineage.get(term, ()) or term in own.lineage.get(t, ()))
            for t in ours.values()
        )

    has = {kind: one(of.get(kind, "")) for kind in np.unique(kinds)}
    return np.array([has[k] for k in kinds])


def asked(store: Path, reference: str, cells: Any) -> tuple[bool, float]:
    """Return whether the query warns, and its contrast; NaN if the cells were not compared."""
    found = scvec.query(store, cells, reference=reference)
    warned = any(note.startswith("warning: the cells may not fit") for note in found.notes)
    contrast = found.parameters.get("contrast")
    return warned, float("nan") if contrast is None else contrast


def rows_of(store: Path, reference: str, queries: dict[str, Any]) -> list[tuple[str, bool, float]]:
    """Return kind, warning and contrast of every query of a reference."""
    rows, tissue = [], SETS[reference][1]
    for name, cells in queries.items():
        if name == reference:
            continue
        kinds = cells.obs["cell_type"].to_numpy()
        has = known(kinds, terms_of(store, name), terms_of(store, reference))
        kind = "right" if SETS[name][1] == tissue else "shared" if has.mean() >= 0.5 else "wrong"
        parts = {kind: np.ones(len(kinds), dtype=bool)}
        if kind == "right":
            common = [k for k in np.unique(kinds[has]) if (kinds == k).sum() >= 10]
            parts |= {f"one type: {k}": kinds == k for k in common[:2]}
            if len(common) > 1:
                parts["two types"] = np.isin(kinds, common[:2])
        for part, mask in parts.items():
            try:
                warned, contrast = asked(store, reference, cells[mask].copy())
            except InputError as error:
                print(f"  {reference} <- {name} {part}: refused ({error.code})", flush=True)
                continue
            rows.append((part.split(":")[0], warned, contrast))
            said = "warned" if warned else "silent"
            print(
                f"  {reference} <- {name} {part} ({has[mask].mean():.2f} known): {said}, {contrast:.2f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Print how many queries of each kind are warned of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=30, help="most cells of a type")
    given = parser.parse_args()
    cells = {name: cells_of(name, given.cells) for name in SETS}
    table = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for name, adata in cells.items():
            scvec.ingest_cells(store, [adata], name=name, label_key="cell_type")
        queries = {name: adata[::2].copy() for name, adata in cells.items()}
        for name in SETS:
            rows = rows_of(store, name, queries)
            note = " (chosen on)" if SETS[name][1] in CHOSEN_ON else ""
            for kind in ("right", "one type", "two types", "shared", "wrong"):
                of = [row for row in rows if row[0] == kind]
                if of:
                    values = [row[2] for row in of if not np.isnan(row[2])]
                    span = f"{min(values):.2f} to {max(values):.2f}" if values else ""
                    table.append((name + note, kind, len(of), sum(row[1] for row in of), span))
    print(markdown(COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in table]))


if __name__ == "__main__":
    main()
