"""A store that knows eight genes and a few cell types: names are made in no time."""

from __future__ import annotations

from pathlib import Path

from scvec.base.types import Description, Gene, Marker
from scvec.stores.knowledge.tables import marker_table
from scvec.stores.store.store import Store

#: Term -> its label, its parent, and its markers.
TYPES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "CL:0000000": ("cell", "", ()),
    "CL:0000255": ("eukaryotic cell", "CL:0000000", ()),
    "CL:0000738": ("leukocyte", "CL:0000255", ()),
    "CL:0000542": ("lymphocyte", "CL:0000738", ()),
    "CL:0000236": ("B cell", "CL:0000542", ("MS4A1", "CD79A", "CD19", "BANK1")),
    "CL:0000084": ("T cell", "CL:0000542", ("CD3D", "CD3E", "TRAC", "IL7R")),
    "CL:0002319": ("neural cell", "CL:0000255", ()),
    "CL:0000540": ("neuron", "CL:0002319", ("SNAP25",)),
}
GENES = [gene for _, _, genes in TYPES.values() for gene in genes]


def ancestors(cl_id: str) -> list[str]:
    """Terms above a term, nearest first."""
    found, above = [], TYPES[cl_id][1]
    while above:
        found.append(above)
        above = TYPES[above][1]
    return found


def small_names(folder: Path) -> Store:
    """Make the store."""
    store = Store.open(folder, create=True)
    with store.begin("ingest genes", {"source": "test"}) as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes([Gene(f"HGNC:{i}", "human", g, entrez_id=i) for i, g in enumerate(GENES, 1)])
        kb.upsert_descriptions(
            Description(f"HGNC:{i}", f"{g} is a gene of lymphocytes.", "ncbi", "1", "2026-01-01", "human")
            for i, g in enumerate(GENES, 1)
        )
        for cl_id, (label, _, _) in TYPES.items():
            kb._con.execute("INSERT INTO cl_terms VALUES (?, ?)", [cl_id, label])
            for steps, above in enumerate(ancestors(cl_id), 1):
                kb._con.execute("INSERT INTO cl_ancestors VALUES (?, ?, ?)", [cl_id, above, steps])
        markers = [Marker(t, "", "human", g, source="test") for t, (_, _, gs) in TYPES.items() for g in gs]
        kb.put_markers(marker_table(markers), "test")
        txn.commit()
    return store
